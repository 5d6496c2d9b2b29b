"""Every source in a line: what it holds, under which licence, where it comes from, and how many rows are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memprobe.sources import load
from memprobe.sources.builtin import read_known
from memprobe.sources.catalogue import DATASETS
from memprobe.sources.generated import written
from memprobe.sources.origins import expected, split_of

READ, KEPT = "read", "kept"


@dataclass(frozen=True)
class Listed:
    """One source.

    Attributes:
        name: as ``--factoids`` takes it.
        kind: factoids, tasks or texts.
        licence: of the data.
        where: where it would come from here.
        hub: its id on the hub, or how it comes to be where it has none.
        note: what a reader must know.
        amount: how many rows there are, where its name or ``--n`` says it.
        counts: rows read and kept, and how many each rule took out; ``None`` where the rows are not here.
    """

    name: str
    kind: str
    licence: str
    where: str
    hub: str
    note: str = ""
    amount: str = ""
    counts: Mapping[str, int] | None = None


def listed(folder: Path | None, *, splits: bool = False) -> Iterator[Listed]:
    """Every source that has a name.

    Args:
        folder: with the datasets' files; their rows are read and counted.
        splits: also the parts of a dataset that its bare name does not stand for, where their files are there.
    """
    known = len(read_known())
    built_in = {READ: known, KEPT: known}
    yield Listed(
        "known", "factoids", "Apache-2.0", "built in", "built in", "written for memprobe", counts=built_in
    )
    yield from _made(endless=False, amount="N")
    for dataset in DATASETS.values():
        named = f"splits {', '.join(dataset.splits)}" if len(dataset.splits) > 1 else ""
        hub = dataset.hub.id if dataset.hub else "not on the hub"
        for split in dataset.splits if splits else [dataset.default_split]:
            first = split == dataset.default_split
            name = dataset.name if first else f"{dataset.name}:{split}"
            file = split_of(dataset, split)[1].file
            counts = None
            if folder is not None and file is not None and (folder / file).is_file():
                counts = load(name, data_dir=folder, on_bad_row="skip").counts
            elif not first:
                continue
            note = "; ".join(filter(None, (named, dataset.note))) if first else ""
            where = expected(dataset, folder)
            yield Listed(name, dataset.kind, dataset.licence, where, hub, note, counts=counts)
    yield from _made(endless=True, amount="--n")


def _made(*, endless: bool, amount: str) -> Iterator[Listed]:
    for name, made in written(endless=endless).items():
        yield Listed(name, made.kind, made.licence, "generated", "generated", made.note, amount)
