"""What ``make where`` measured, from the files kept in this folder: ``python analyses/where/report.py``.

``states``, ``weights``, ``erasure``: directories of patches between the study's seed-0 stages; the facts are made-up
keys. ``relearn.parquet``: how fast lost keys are learned again. The report has their tables as Markdown
(``report.md``); ``memprobe figures`` draws the same directories, and the notebook 08 reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from memprobe import wording
from memprobe.errors import MemprobeError
from memprobe.files import write_text
from memprobe.patch_tables import tables_of
from memprobe.patches import open_patches

HERE = Path(__file__).parent
DEPTHS = (0, 5, 10, 12, 14, 16, 18, 20, 25, 30)
HEAD = """# Where stage 1's facts were: the stored tables

From `analyses/where`, made by `make where`. 64 made-up keys, then 64 LAMA facts, SmolLM2-135M-Instruct, seed 0 of the
study's grid: `s1` is stage 1, which all arms share; the others are their stages 2. Facts *overwritten* are those that
stage 1 recalls and stage 2 does not; *retained*, those that both recall. Shares are of the log-probability that
separates the two checkpoints, [95 % intervals] over facts, at the positions that predict the answer. Intervals speak of
these checkpoints, not of arms: there is one seed.
"""


def main() -> None:
    """Writes the report."""
    parser = argparse.ArgumentParser(description="Writes the tables of stored patches.")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=HERE, help="folder with the results [this one]"
    )
    asked = parser.parse_args()
    try:
        write_text(report(asked.folder), asked.folder / "report.md")
    except MemprobeError as error:
        parser.error(str(error))


def report(folder: Path) -> str:
    """The report as Markdown."""
    parts = [HEAD.rstrip()]
    for title, says, head, rows in sections(folder):
        parts += [f"## {title}", says, "\n".join(wording.markdown_table(head, rows))]
    return "\n\n".join(parts) + "\n"


def sections(folder: Path) -> Iterator[tuple[str, str, list[str], list[list[str]]]]:
    """(title, what it says, head, rows) of each table."""
    states = open_patches(folder / "states")
    lost, every = (tables_of(states, facts=facts) for facts in ("overwritten", "all"))
    rows = [
        [row["target"], row["fate"], f"{row['n']} of {row['facts']}", *_first(row)]
        for row in lost["fates"].filter(direction="restoration").iter_rows(named=True)
    ]
    head = ["stage 2 of", "facts", "differ enough", "median", "mean, never as 31", "never"]
    yield (
        "From which depth stage 1's state gives half of a fact back",
        "The state of one depth at the positions that predict the answer.",
        head,
        rows,
    )
    rows = [
        [
            *(facts, row["target"], row["reference"], str(row["n"])),
            wording.of_row(_as(row, "difference"), "difference", "+.2f"),
            *(wording.p_value(row[name]) for name in ("p", "q")),
        ]
        for facts, tables in (("overwritten", lost), ("all", every))
        for row in _of(tables["first_depth_differences"], direction="restoration").iter_rows(named=True)
    ]
    yield (
        "Does the arm matter?",
        "First depths less those of the first pair, paired by fact over the facts of both; below 0 is earlier.",
        ["facts", "pair", "less", "facts in both", "depths", "p", "q"],
        rows,
    )
    by_depth = every["by_depth"].filter(pl.col("direction") == "restoration", pl.col("depth").is_in(DEPTHS))
    rows = [
        [
            *(row["target"], str(row["depth"]), str(row["n"])),
            wording.of_row(_as(row, "moved"), "moved", ".1%"),
            *(wording.percent(row[name], 0) for name in ("other", "random")),
            wording.of_row(row, "net_other", "+.0%"),
        ]
        for row in by_depth.iter_rows(named=True)
    ]
    yield (
        "Share given back by depth",
        "Of all facts that separate the two. *Other*: the state of another key; *random*: a random one of the same "
        "norm; both take the answer away and so move less than 0. *Net*: less the other key's, paired by fact.",
        ["stage 2 of", "depth", "facts", "given back", "other", "random", "net of other"],
        rows,
    )
    grafts = tables_of(open_patches(folder / "weights"))["grafts"]
    rows = [
        [
            *(row["target"], str(row["window"]), _blocks(row), str(row["n"])),
            wording.of_row(_as(row, "moved"), "moved", ".1%"),
            wording.number(row["net_random"], "+.0%"),
            *(wording.percent(row[name], 0) for name in ("support", "facts_share")),
        ]
        for row in _of(grafts, direction="restoration").iter_rows(named=True)
    ]
    yield (
        "Grafts of stage 1's blocks",
        "Of each sweep the window of blocks that gives most back, net of random weights as far from the target's own; "
        "in how many resamples of the facts it wins again, and of how many facts it is the largest.",
        ["stage 2 of", "blocks", "the most by", "facts", "given back", "net", "support", "of facts"],
        rows,
    )
    erasure = tables_of(open_patches(folder / "erasure"), reference="base")["erasure"]
    rows = [
        [row["source"], f"{row['n']} of {row['facts']}", wording.of_row(_as(row, "score"), "score", ".1%")]
        for row in erasure.iter_rows(named=True)
    ]
    yield (
        "How much is erased",
        "The erasure score of Lee et al. 2026 (arXiv 2605.24614): stage 2's states in stage 1, beside the base "
        "model's, which never had the keys. 0 % says that they carry a key as stage 1's own do, 100 % that they lack "
        "it as the base model's do.",
        ["stage 2 of", "facts that stage 1 encodes", "erased"],
        rows,
    )
    rows = [
        [
            *(row["arm"], f"{row['lost']} of {row['asked']}", str(row["n"])),
            *(f"{row[f'steps_{side}']:.1f}" for side in ("lost", "fresh")),
            wording.of_row(row, "savings"),
            *(f"{row[f'cued_{side}']:.0%}, {row[f'gain_{side}']:+.1f}" for side in ("lost", "fresh")),
        ]
        for row in pl.read_parquet(folder / "relearn.parquet").iter_rows(named=True)
    ]
    yield (
        "Gone, or only out of reach",
        "Steps of training until a key is recalled again, and until a key of the same kind that was never there is "
        "recalled; savings are the share of steps that lost ones do without. A cue of four solved keys: how many it "
        "brings back, and the nats that it adds.",
        [
            "arm",
            "lost",
            "in each set",
            "steps, lost",
            "steps, never there",
            "savings",
            "cue, lost",
            "cue, never there",
        ],
        rows,
    )


def _of(table: pl.DataFrame, **wanted: str) -> pl.DataFrame:
    """Some rows of a table that may have neither rows nor columns."""
    return table.filter(**wanted) if len(table) else table


def _as(row: dict, name: str) -> dict:
    """A row whose interval is called ``low`` and ``high``."""
    return row | {f"{name}_low": row["low"], f"{name}_high": row["high"]}


def _first(row: dict) -> list[str]:
    never = wording.of_row(row, "never", ".0%")
    median = wording.of_row(row, "median", ".0f", open_ended=True)
    return [median, wording.of_row(row, "restricted", ".1f"), never]


def _blocks(row: dict) -> str:
    return str(row["depth"]) if row["window"] == 1 else f"{row['depth']}–{row['last']}"


if __name__ == "__main__":
    main()
