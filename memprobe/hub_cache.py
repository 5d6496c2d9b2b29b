"""The hub's cache on this disk: what a checkpoint takes there, given back after its probe."""

from __future__ import annotations

import re
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_cached_snapshot(path: Path) -> bool:
    """Whether a folder is one revision of a model in the hub's cache: ``models--OWNER--NAME/snapshots/COMMIT``."""
    path = path.absolute()
    return (
        _COMMIT.fullmatch(path.name) is not None
        and path.parent.name == "snapshots"
        and path.parents[1].name.startswith("models--")
    )


def evict(path: Path) -> int:
    """Deletes a revision from the cache, and the files that no other revision there uses; gives the bytes freed."""
    from huggingface_hub import scan_cache_dir

    path = path.absolute()
    strategy = scan_cache_dir(path.parents[2]).delete_revisions(path.name)
    strategy.execute()
    return strategy.expected_freed_size
