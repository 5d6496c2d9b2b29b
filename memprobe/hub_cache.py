"""The hub's cache on this disk: what a checkpoint takes there, given back after its probe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from memprobe import adapters
from memprobe.checkpoints import OLD_NAMES
from memprobe.errors import MemprobeError
from memprobe.files import read_valid

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_cached_snapshot(path: Path) -> bool:
    """Whether a folder is one revision of a model in the hub's cache: ``models--OWNER--NAME/snapshots/COMMIT``."""
    path = path.absolute()
    return (
        _COMMIT.fullmatch(path.name) is not None
        and path.parent.name == "snapshots"
        and path.parents[1].name.startswith("models--")
    )


def is_of(path: Path, names: frozenset[str]) -> bool:
    """Whether a revision in the cache is one of these models, by hub id (``OWNER/NAME``)."""
    return path.absolute().parents[1].name in {f"models--{name.replace('/', '--')}" for name in names}


def bases_named(spec: str) -> Iterator[str]:
    """The hub ids of the models that an adapter on the hub lies over, one below the other; none for other checkpoints.

    Of the adapter its configuration alone is fetched, and nothing of a model that only a file names.
    """
    above = {spec}
    while (base := _base_named(spec, offline=len(above) > 1)) is not None and base not in above:
        above.add(base)
        yield base
        spec = base


def _base_named(spec: str, *, offline: bool) -> str | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    name, _, revision = OLD_NAMES.get(spec, spec).partition("@")
    try:
        file = hf_hub_download(name, adapters.CONFIG, revision=revision or None, local_files_only=offline)
        base = read_valid(Path(file), adapters.AdapterFile, own=False).get("base_model_name_or_path")
    except (MemprobeError, EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None  # no adapter; or whoever reads it says what is wrong
    return OLD_NAMES.get(base, base).partition("@")[0] if base else None


def evict(path: Path) -> int:
    """Deletes a revision from the cache, and the files that no other revision there uses; gives the bytes freed."""
    from huggingface_hub import scan_cache_dir

    path = path.absolute()
    strategy = scan_cache_dir(path.parents[2]).delete_revisions(path.name)
    strategy.execute()
    return strategy.expected_freed_size
