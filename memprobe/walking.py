"""Directories from the top down, each once, wherever links lead."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def walk(tops: Sequence[Path]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Directories with the names of the folders and files in them, as :func:`os.walk` gives them.

    The caller may shorten the list of folders: what is taken from it is not entered. Folders that are links are
    followed after all others, so that what can be reached in two ways has the path where it lies; a link to a folder
    that the link itself lies in leads round in a circle, and is not followed.
    """
    seen: set[Path] = set()
    waiting = list(tops)
    while waiting:
        links = []
        for top in waiting:
            real = top.resolve()
            for name, folders, files in os.walk(top):
                folder = Path(name)
                here = real / folder.relative_to(top)
                if here in seen:
                    folders.clear()
                    continue
                seen.add(here)
                yield folder, folders, files
                inner = (folder / one for one in folders)
                links += [
                    path for path in inner if path.is_symlink() and not here.is_relative_to(path.resolve())
                ]
        waiting = links
