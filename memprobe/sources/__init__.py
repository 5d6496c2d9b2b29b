"""Names and paths -> factoids, task examples and texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.sources.builtin import read_known
from memprobe.sources.files import read_factoid_file
from memprobe.sources.kvr import generate_kvr
from memprobe.sources.rows import ROW_FILES, BadRows, OnBadRow


def load_factoids(
    name_or_path: str,
    *,
    n: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    on_bad_row: OnBadRow = "fail",
) -> list[Factoid]:
    """Factoids by name (``known``, ``kvr:N``) or from a JSONL, CSV or Parquet file.

    Args:
        n: a seeded subset of this size, the same for any order of the rows; a larger one holds the smaller.
        seed: of the subset, and of ``kvr``.

    Raises:
        MemprobeError: no such source, fewer than ``n`` rows, or a bad row.
    """
    name, _, argument = name_or_path.partition(":")
    if name_or_path == "known":
        factoids = read_known()
    elif name == "kvr":
        factoids = generate_kvr(_count(name_or_path, argument), seed=seed)
    elif Path(name_or_path).suffix.lower() in ROW_FILES:
        factoids = read_factoid_file(Path(name_or_path), BadRows(on_bad_row))
    else:
        raise MemprobeError(f"no source {name_or_path!r}; give known, kvr:N or a {', '.join(ROW_FILES)} file")
    factoids = list({factoid.id: factoid for factoid in reversed(factoids)}.values())[::-1]
    return factoids if n is None else subset(factoids, n, seed, name_or_path)


def subset(factoids: Sequence[Factoid], n: int, seed: int, name: str) -> list[Factoid]:
    """``n`` of them, chosen by a hash of seed and id.

    Raises:
        MemprobeError: there are fewer.
    """
    if not 1 <= n <= len(factoids):
        raise MemprobeError(f"{name}: --n {n} is not between 1 and its {len(factoids)} rows")
    key = {factoid.id: hashlib.sha256(f"{seed} {factoid.id}".encode()).digest() for factoid in factoids}
    return sorted(factoids, key=lambda factoid: key[factoid.id])[:n]


def _count(name: str, text: str) -> int:
    if not text.isdecimal():
        raise MemprobeError(f"{name}: give the number of pairs, as in kvr:200")
    return int(text)
