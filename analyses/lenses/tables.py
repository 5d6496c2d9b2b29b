"""What ``make fits`` found, as the files kept in this folder: ``python analyses/lenses/tables.py PROBE LENSES``.

``MODEL-KIND.json``: what a lens was fitted on, how well it predicts held-out text by depth, and its floor.
``known.csv``: where the built-in facts surface by each lens, with intervals, whether the lenses agree, and the floor
of each fitted one: how far apart its two halves place a fact (``floor``) and the mean (``floor_mean``).
``recall.csv``: recall by depth through each lens, with its chance level and floor.
``written.csv``: where the most is written towards the answers, in a probe with attributions.
Rows of other models stay; those of the probe's own are replaced. The lenses themselves are not kept: the command
makes them again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from memprobe.compare import TABLES
from memprobe.errors import MemprobeError
from memprobe.files import write_json
from memprobe.lens_files import read_about
from memprobe.readings import Readings

HERE = Path(__file__).parent
KS = (1, 10)
FILES = {"known.csv": "lenses", "recall.csv": "lenses_by_depth", "written.csv": "largest_contribution"}
"""Tables of a comparison that are kept, by file."""


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description="Writes the tables of fitted lenses.")
    parser.add_argument("probe", type=Path, help="a probe read through the lenses")
    parser.add_argument("lenses", type=Path, nargs="+", help="directories of memprobe fit")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files [this one]")
    asked = parser.parse_args()
    try:
        _write(asked)
    except MemprobeError as error:
        parser.error(str(error))


def _write(asked: argparse.Namespace) -> None:
    for folder in asked.lenses:
        about = read_about(folder)
        del about["seconds"]  # of that machine, on that day
        write_json(about, asked.out / f"{about['model']}-{about['kind']}.json")
    readings = [Readings.of([asked.probe], k=k) for k in KS]
    for name, table in FILES.items():
        found = pl.concat([_with_k(TABLES[table](one), one.k) for one in readings])
        if len(found):
            _add(found, asked.out / name)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=240, float_precision=2):
        print(pl.read_csv(asked.out / "known.csv"))


def _with_k(table: pl.DataFrame, k: int) -> pl.DataFrame:
    return table if "k" in table.columns else table.with_columns(k=pl.lit(k))


def _add(found: pl.DataFrame, path: Path) -> None:
    """Rows of one probe into a file that may hold those of other checkpoints."""
    if path.exists():
        kept = pl.read_csv(path, schema=found.schema)
        found = pl.concat(
            [kept.filter(~pl.col("checkpoint").is_in(found["checkpoint"].unique().implode())), found]
        )
    found.write_csv(path, float_precision=3)


if __name__ == "__main__":
    main()
