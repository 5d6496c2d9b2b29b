"""A checkpoint held against another, on the terminal: differences, depths, spread, overlap, fates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memprobe import wording
from memprobe.cli.terminal import print_table
from memprobe.statistics.intervals import FEWEST
from memprobe.statistics.vocabulary import label
from memprobe.wording import HELD, interval, number, of_row

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from memprobe.compare import Comparison

DIRECTION = (
    "First occurrence, settled: in depths, negative is earlier. Others: positive is more (log-prob: nats)."
)


def shown_depths(table: pl.DataFrame) -> list[int]:
    """Nine depths at most, from the first to the last."""
    deepest = int(table["depth"].to_numpy().max())
    return sorted({round(deepest * step / 8) for step in range(9)})


def print_differences(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """Each pair's differences factoid by factoid, and whether they hold in the base readout."""
    table = tables["differences"]
    held = {(r["reference"], r["checkpoint"], r["statistic"]): r["held"] for r in tables["claims"].to_dicts()}
    both = {
        (r["reference"], r["checkpoint"], r["statistic"]): r
        for r in table.to_dicts()
        if r["on"] == "exact in both"
    }
    also = {
        (r["reference"], r["checkpoint"], r["statistic"]): r["also_in"] for r in tables["claims"].to_dicts()
    }
    several = any(names is not None for names in also.values())
    for reference, checkpoint in (
        table.select("reference", "checkpoint").unique(maintain_order=True).iter_rows()
    ):
        rows = []
        for row in table.filter(reference=reference, checkpoint=checkpoint, on="all").to_dicts():
            key = (reference, checkpoint, row["statistic"])
            inner = both.get(key) or {"difference": None, "low": None, "high": None}
            rows.append(
                [
                    label(row["statistic"], short=True),
                    str(row["n"]),
                    interval(row["difference"], row["low"], row["high"], "+.2f"),
                    wording.p_value(row["p"]),
                    number(row["effect"], "+.2f"),
                    interval(inner["difference"], inner["low"], inner["high"], "+.2f"),
                    HELD[held[key]] if key in held else "",
                    *([", ".join(also.get(key) or ())] if several else []),
                ]
            )
        columns = [
            "",
            "n",
            "difference",
            "p",
            "d_z",
            "exact in both",
            "held",
            *(["also in"] if several else []),
        ]
        says = f"{DIRECTION} Held: the same side of 0 in the own and in the base readout (?: not probed)."
        says += " Also in: other lenses by which it lies on that side too." if several else ""
        print_table(console, f"{checkpoint} minus {reference}, factoid by factoid", columns, rows, says=says)


def print_by_depth(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """The depths at which the answer stands higher or lower."""
    import polars as pl

    table = tables["differences_by_depth"]
    if table.is_empty():
        return
    rows = []
    for (reference, checkpoint, measure), part in table.group_by(
        "reference", "checkpoint", "measure", maintain_order=True
    ):
        # The side of what p is of: for a rank that is its signs, and its fall is a rise of the answer.
        better = -pl.col("dominance") if measure == "rank" else pl.col("difference")
        sure = part.filter(pl.col("q") < 0.05)
        up, down = (sure.filter(which)["depth"].to_list() for which in (better > 0, better < 0))
        pair = f"{checkpoint} − {reference}" if measure == "recall" else ""
        rows.append([pair, str(measure), wording.spans(up), wording.spans(down)])
    columns = ["", "", "answer stands higher at depths", "lower at depths"]
    print_table(console, "Depths that differ (false-discovery rate 5 % over depths)", columns, rows, left=4)


def print_spread(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """The scale of first occurrence in both."""
    rows = [
        [
            f"{row['checkpoint']} − {row['reference']}",
            *(number(row[name]) for name in ("sd", "sd_reference")),
            *(number(row[name], ".0%") for name in ("censored", "reference_censored")),
            row["why"] or interval(row["ratio"], row["low"], row["high"], ".2f"),
        ]
        for row in tables["spread"].to_dicts()
        if row["on"] == "all"
    ]
    if rows:
        columns = ["", "sd", "reference's", "censored", "reference's", "ratio of scales"]
        says = (
            "In depths. Censored: at the last depth or never. Ratio of the scales of latent depths, which the last "
            "block cuts off; 1 where the reference was only moved."
        )
        print_table(console, "Spread of first occurrence", columns, rows, says=says)


def print_overlap(console: Console, result: Comparison) -> None:
    """Of the facts that either holds at a depth, the share that both hold."""
    table = result.tables["overlap"]
    if table.is_empty():
        return
    depths = [depth for depth in shown_depths(table.drop_nulls("depth")) if depth][-6:]
    rows = []
    for reference, checkpoint in (
        table.select("reference", "checkpoint").unique(maintain_order=True).iter_rows()
    ):
        part = {
            row["depth"]: row for row in table.filter(reference=reference, checkpoint=checkpoint).to_dicts()
        }
        whole = part[None]
        rows.append(
            [
                f"{checkpoint}, {reference}",
                *(number(part[depth]["jaccard"] if depth in part else None) for depth in depths),
                interval(whole["jaccard"], whole["low"], whole["high"], ".2f"),
            ]
        )
    more = "" if result.settings["pairs"] == "all" else " --pairs all shows every pair."
    says = f"Of the factoids that a depth holds in either, the share that it holds in both.{more}"
    print_table(console, "Overlap, by depth", ["depth", *map(str, depths), "1 … n"], rows, says=says)


def print_fates(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """What became of right answers, and where the lost ones are still held."""
    if tables["fates"].is_empty():
        return
    lost = {(row["reference"], row["checkpoint"]): row for row in tables["lost"].to_dicts()}
    rows = []
    for (reference, checkpoint), part in tables["fates"].group_by(
        "reference", "checkpoint", maintain_order=True
    ):
        counts = dict(part.select("path", "n").iter_rows())
        row = lost[reference, checkpoint]
        rows.append(
            [
                f"{reference} → {checkpoint}",
                *(str(counts[path]) for path in ("1→1", "1→0", "0→1", "0→0")),
                of_row(row, "surfaces"),
                number(row["deepest"], ".1f"),
                number(row["log_prob"]),
                number(row["intruded"]),
            ]
        )
    columns = ["", "1→1", "1→0", "0→1", "0→0", "surface", "deepest", "log-prob", "intruded"]
    says = (
        "Counts; then of the lost (1→0): the share held at some depth still, the deepest such depth, the answer's "
        "log-prob left (nats), the share outranked by an answer of another dataset."
    )
    print_table(
        console, "Fates: exact match before → after, and where the lost went", columns, rows, says=says
    )


def print_kept(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """Where facts that stayed right were in the reference, against those that did not."""
    if tables["kept"].is_empty():
        return
    shown = ("lof_restricted", "lof_restricted_net", "settled_restricted")
    rows = []
    for key, part in tables["kept"].group_by("reference", "checkpoint", maintain_order=True):
        by_statistic = {row["statistic"]: row for row in part.to_dicts()}
        counts = by_statistic[shown[0]]
        differences = [by_statistic[name] for name in shown]
        edges = [wording.of_kept(row, ".2f") for row in differences]
        rows.append([" → ".join(map(str, key)), str(counts["n_kept"]), str(counts["n_lost"]), *edges])
    columns = ["", "1→1", "1→0", "first occurrence", "net of shuffled", "settled"]
    says = (
        "In the reference: mean of 1→1 minus mean of 1→0, counting never as one depth further than there are. "
        f"Negative: kept facts were earlier. Too few: fewer than {FEWEST['mean']} were kept, or lost."
    )
    print_table(console, "Where kept facts were before, against lost ones", columns, rows, says=says)
