"""Where a dataset's rows come from: a local folder, or the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from memprobe.errors import MemprobeError, among, first_line
from memprobe.files import sha256_of
from memprobe.sources.catalogue import Dataset, Split
from memprobe.sources.rows import BadRows, Row, read_rows

DATA_DIR = "MEMPROBE_DATA_DIR"
_SHUFFLE_BUFFER = 10_000  # rows of a streamed set that are shuffled at a time


@dataclass(frozen=True, slots=True)
class Origin:
    """Which rows were used.

    Attributes:
        source: the name, such as ``popqa``.
        kind: factoids, tasks or texts.
        via: how they were got.
        location: file name or hub id; never a path, so that it agrees between machines.
        split: the part of the set.
        revision: the hub's commit, or ``sha256:…`` of the file.
        n: number of rows.
        hash: of the rows; see :func:`memprobe.sources.kinds.rows_hash`.
    """

    source: str
    kind: str
    via: Literal["built-in", "generated", "file", "folder", "hub"]
    location: str | None = None
    split: str | None = None
    revision: str | None = None
    n: int = 0
    hash: str = ""

    @property
    def name(self) -> str:
        """The source's name; of someone's own file or hub dataset that of the file or dataset."""
        return self.location if self.source == "file" and self.location else self.source

    def to_dict(self) -> dict[str, Any]:
        """For ``run.json`` and the like."""
        return asdict(self)


def data_folder(data_dir: str | Path | None) -> Path | None:
    """The local folder: what was given, else ``MEMPROBE_DATA_DIR``, else none.

    Raises:
        MemprobeError: it does not exist.
    """
    given = data_dir or os.environ.get(DATA_DIR)
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise MemprobeError(f"{folder}: no such folder (--data-dir or {DATA_DIR})")
    return folder


def split_of(dataset: Dataset, name: str | None) -> tuple[str, Split]:
    """A part of a dataset by name; its default part for None.

    Raises:
        MemprobeError: it has no such part.
    """
    name = name or dataset.default_split
    if name not in dataset.splits:
        raise MemprobeError(
            f"{dataset.name}: no split {name!r}; {among(name, dataset.splits, before='it has')}"
        )
    return name, dataset.splits[name]


def expected(dataset: Dataset, folder: Path | None, split: str | None = None) -> str:
    """Where a dataset would come from here, in words."""
    file = split_of(dataset, split)[1].file
    if folder is not None:
        if file is not None and (folder / file).is_file():
            return f"folder: {file}"
        return f"missing in the folder ({file or 'no file of this split'})"
    return f"hub: {dataset.hub.id}" if dataset.hub else "needs --data-dir"


def open_rows(
    dataset: Dataset,
    split: str | None,
    folder: Path | None,
    bad: BadRows,
    seed: int,
) -> tuple[Iterator[Row], Origin]:
    """A dataset's raw rows and where they come from: the folder if there is one, else the hub.

    Raises:
        MemprobeError: neither has it; the message says what to give.
    """
    name, part = split_of(dataset, split)
    if folder is None:
        return _hub_rows(dataset, name, part, seed)
    if part.file is None:
        held = [key for key, other in dataset.splits.items() if other.file]
        raise MemprobeError(
            f"{dataset.name}: the folder holds no split {name!r} ({', '.join(held)} only); without --data-dir "
            "it is read from the hub"
        )
    path = folder / part.file
    if not path.is_file():
        raise MemprobeError(
            f"{dataset.name}: {path} is missing; put it there, or read {_hub_id(dataset)} from the hub by giving "
            f"no --data-dir and unsetting {DATA_DIR}"
        )
    origin = Origin(dataset.name, dataset.kind, "folder", part.file, name, revision=file_revision(path))
    rows = read_rows(path, bad)
    if part.values:
        rows = (row for row in rows if row.columns.get("split") in part.values)
    return rows, origin


def file_revision(path: Path) -> str:
    """``sha256:`` and 16 hex digits of a file's content.

    Raises:
        MemprobeError: it cannot be read.
    """
    return f"sha256:{sha256_of(path)[:16]}"


def _hub_id(dataset: Dataset) -> str:
    return dataset.hub.id if dataset.hub else "it"


def _hub_rows(dataset: Dataset, name: str, part: Split, seed: int) -> tuple[Iterator[Row], Origin]:
    hub = dataset.hub
    assert hub is not None
    try:
        commit = hub_commit(hub.id, hub.revision)
    except Exception as error:  # huggingface_hub, httpx and the file system each have their own
        raise _unreachable(dataset, part, error) from error
    origin = Origin(dataset.name, dataset.kind, "hub", hub.id, name, revision=commit)
    return _stream(dataset, part, commit, seed), origin


def _stream(dataset: Dataset, part: Split, commit: str, seed: int) -> Iterator[Row]:
    hub = dataset.hub
    assert hub is not None
    try:
        from datasets import load_dataset

        for config in hub.configs:
            for split in part.hub:
                rows = load_dataset(hub.id, config, split=split, revision=commit, streaming=True)
                if hub.large:
                    rows = rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
                place = "/".join(filter(None, (hub.id, config, split)))
                for number, columns in enumerate(rows, 1):
                    yield Row(dict(columns), f"{place} row {number}")
    except MemprobeError:
        raise
    except Exception as error:  # datasets raises many kinds: connection, unknown split, script, torn file
        raise _unreachable(dataset, part, error) from error


def hub_commit(hub_id: str, revision: str) -> str:
    """The commit that a branch of a hub dataset stands at."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(hub_id, revision=revision).sha)


def _unreachable(dataset: Dataset, part: Split, error: Exception) -> MemprobeError:
    reason = first_line(error, at_most=160)
    give = (
        f"give a folder that holds {part.file} with --data-dir or {DATA_DIR}, or " if part.file else "give "
    )
    return MemprobeError(
        f"{dataset.name}: {_hub_id(dataset)} cannot be read from the hub ({reason}); {give}a network "
        "(and HF_HUB_OFFLINE unset)"
    )
