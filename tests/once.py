"""What many tests read and none changes, made once for all workers of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` has filled. The first worker to ask makes it, others wait; a test that changes what is in
    it takes a copy.

    Args:
        factory: the fixture ``tmp_path_factory``.
        name: of the folder, another for each ``make``.
        make: takes the folder, empty. Where it fails, the next to ask tries again in another folder.
    """
    own = factory.getbasetemp()
    top = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own  # of the whole run
    made = top / f"once-{name}"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            folder = factory.mktemp(name)
            make(folder)
            made.symlink_to(folder, target_is_directory=True)
    return made.resolve()
