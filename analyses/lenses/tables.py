"""What ``make fits`` found, as the files kept in this folder: ``python analyses/lenses/tables.py PROBE LENSES``.

``MODEL-KIND.json``: what a lens was fitted on, how well it predicts held-out text by depth, and its floor.
``known.csv``: where the built-in facts surface by each lens, with intervals, whether the lenses agree, and the floor
of each fitted one: how far apart its two halves place a fact (``floor``) and the mean (``floor_mean``).
The lenses themselves are not kept: the command makes them again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from memprobe import open_probe
from memprobe.files import write_json
from memprobe.lens_files import read_about
from memprobe.statistics.lenses import compare_lenses

HERE = Path(__file__).parent
KS = (1, 10)


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description="Writes the tables of fitted lenses.")
    parser.add_argument("probe", type=Path, help="a probe read through the lenses")
    parser.add_argument("lenses", type=Path, nargs="+", help="directories of memprobe fit")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the files [this one]")
    asked = parser.parse_args()
    floors = []
    for folder in asked.lenses:
        about = read_about(folder)
        floors += [
            {"lens": about["kind"], "k": int(k), "floor": at["lof"], "floor_mean": at["lof_mean"]}
            for k, at in about["floor"]["k"].items()
        ]
        del about["seconds"]  # of that machine, on that day
        write_json(about, asked.out / f"{about['model']}-{about['kind']}.json")
    probe = open_probe(asked.probe)
    table = pl.concat([compare_lenses(probe, k=k) for k in KS])
    table = table.join(pl.DataFrame(floors), on=["lens", "k"], how="left", maintain_order="left")
    table.write_csv(asked.out / "known.csv", float_precision=3)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=240, float_precision=2):
        print(table)


if __name__ == "__main__":
    main()
