"""States from which a stage goes on: written whole, found again, and removed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMPLETE = "complete"
_STATE = re.compile(r"checkpoint-(\d+)")


def complete_states(folder: Path) -> list[Path]:
    """Folders of complete states, oldest first."""
    states = [
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if (match := _STATE.fullmatch(path.name)) and (path / COMPLETE).exists()
    ]
    return [path for _, path in sorted(states)]


def newest_state(folder: Path) -> Path | None:
    """The newest complete state."""
    states = complete_states(folder)
    return states[-1] if states else None


def remove_torn(folder: Path) -> list[str]:
    """Deletes states that a kill left half-written; their names."""
    torn = [path for path in folder.glob("checkpoint-*") if not (path / COMPLETE).exists()]
    for path in torn:
        shutil.rmtree(path)
    return [path.name for path in torn]


def remove_state(path: Path) -> None:
    """Deletes a state, its mark first, so that a kill in between leaves a torn one."""
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def mark_complete(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the mark, once all that it vouches for is on the disk."""
    sync_folder(folder)
    temporary = folder / f".{COMPLETE}"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    _sync(temporary)
    temporary.replace(folder / COMPLETE)
    _sync(folder)


def sync_folder(folder: Path) -> None:
    """Waits until every file in a folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
