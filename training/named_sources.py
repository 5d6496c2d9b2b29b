"""The sources that a recipe names, looked at before anything is read: a grid comes to some of them after hours."""

from __future__ import annotations

from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.sources.catalogue import DATASETS
from memprobe.sources.generated import GENERATED, check_made
from memprobe.sources.named import named_file
from memprobe.sources.origins import split_of
from training.settings import under_key


def found(name: str, path: Path, key: str, n: int | None) -> str:
    """A source as a recipe names it, a file by its place.

    Args:
        path: of the recipe, beside which files are searched first.
        key: of the recipe, for the message.
        n: how many of its rows will be asked for; ``None`` for all, or where nobody knows yet.

    Raises:
        MemprobeError: there is no such source, or no such part of it.
    """
    with under_key(f"{path}: {key}"):
        return _found(name, path, n)


def _found(name: str, path: Path, n: int | None) -> str:
    if (named := named_file(name)) is not None:
        named.targets()
        for candidate in (path.parent / named.path, named.path):
            if candidate.is_file():
                return named.at(candidate)
        raise MemprobeError(f"no file {named.path} here or beside the recipe")
    head, _, tail = name.partition(":")
    if head in GENERATED:
        check_made(name, n)
    elif head in DATASETS:
        split_of(DATASETS[head], tail or None)
    elif name != "known" and not (head == "hub" and tail):
        raise MemprobeError(f"no source {name!r}; `memprobe sources` lists them, or give a file")
    return name
