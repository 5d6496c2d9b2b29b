"""The tables of patches on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from rich.console import Console
from rich.text import Text

from memprobe import wording
from memprobe.cli.terminal import plain_table, terminal
from memprobe.statistics.patches import OF_STATES, SWEEP
from memprobe.statistics.vocabulary import label


def show_patches(tables: Mapping[str, pl.DataFrame], threshold: float, *, facts: str = "all") -> None:
    """By depth beside its controls; then from which depth half is moved, of which facts, and under which arm.

    Args:
        tables: of :func:`memprobe.patch_tables.tables_of`.
        threshold: nats.
        facts: of which fate they are, or ``all``.
    """
    console = terminal()
    if tables["by_depth"].is_empty():
        which = "No fact" if facts == "all" else f"No fact that is {facts}"
        console.print(
            f"{which} separates the two by more than {threshold:g} nats, so there is nothing to restore or erase.",
            soft_wrap=True,
        )
        _erasures(console, tables["erasure"])  # whose threshold is another
        return
    for part in tables["by_depth"].partition_by(SWEEP, maintain_order=True):
        _by_depth(console, part, threshold)
    for row in tables["first_depth"].iter_rows(named=True):
        _say(console, f"half {row['direction']}, {_sweep(row)}: {_first(row)} of {row['n']} facts")
    # Facts that all met one fate are those of the line above.
    fates = tables["fates"]
    for row in (fates.filter(pl.len().over(OF_STATES) > 1) if len(fates) else fates).iter_rows(named=True):
        _say(
            console,
            f"of {wording.count(row['facts'], 'fact')} {row['fate']}, {row['n']} differ enough for {row['direction']}, "
            f"{_sweep(row)}: {_first(row)}",
        )
    for row in tables["grafts"].iter_rows(named=True):
        _say(
            console,
            f"largest {row['direction']} by a graft ({row['parts']}, {wording.count(row['window'], 'block')}): block "
            f"{_place(row)}, {row['moved']:.1%}; the largest {wording.wins(row)}",
        )
    _erasures(console, tables["erasure"])
    _arms(console, tables)


def _erasures(console: Console, scores: pl.DataFrame) -> None:
    for row in scores.iter_rows(named=True):
        _say(
            console,
            f"{label('erasure_score')} of {row['source']} in {row['target']}: "
            f"{wording.interval(row['score'], row['low'], row['high'], '.1%')} over {row['n']} of "
            f"{row['facts']} facts",
        )


def _by_depth(console: Console, part: pl.DataFrame, threshold: float) -> None:
    head = part.row(0, named=True)
    grafts = head["what"] == "weights"
    what = (
        f"{head['parts']} of {wording.count(head['window'], 'block')}"
        if grafts
        else f"{head['what']}, {head['positions']}"
    )
    title = f"{head['direction']}: {head['source']} into {head['target']} ({what})"
    _say(console, f"\n{title}", "bold")
    console.print(f"{head['n']} of {head['facts']} facts differ by more than {threshold:g} nats", style="dim")
    table = plain_table()
    table.add_column("block" if grafts else "depth", justify="right")
    table.add_column(label("moved", short=True), justify="right")
    controls = {"other": "other fact's", "random": "random"}
    asked = [name for name in controls if part[name].count()]  # a graft has no other fact's weights
    for name in asked:
        table.add_column(controls[name], justify="right", style="dim")
    table.add_column("q", justify="right")
    for row in part.iter_rows(named=True):
        share = wording.interval(row["moved"], row["low"], row["high"], ".1%")
        q = wording.number(row["q"], ".3f")
        table.add_row(_place(row), share, *(wording.percent(row[name]) for name in asked), q)
    console.print(table)


def _arms(console: Console, tables: Mapping[str, pl.DataFrame]) -> None:
    """Over seeds: how many facts, from which depth, and which arm is later."""
    arms, differences = tables["arms"], tables["arm_differences"]
    if arms.is_empty() or (arms["seeds"].to_numpy().max() < 2 and arms["arm"].n_unique() < 2):
        return  # one run says nothing that is not said above
    console.print(Text("\nOver training seeds", "bold"))
    for row in arms.iter_rows(named=True):
        unit = ".1%" if row["statistic"] == "moved_never" else ".1f"
        seeds = ", ".join(wording.number(value, unit) for value in row["by_seed"])
        mean = wording.interval(row["mean"], row["low"], row["high"], unit)
        _say(
            console,
            f"{row['arm']}, {row['stage']} ({row['what']}, {row['positions']}, {row['direction']}, "
            f"{row['facts']}): {label(row['statistic'])} {mean}, by seed {seeds}",
        )
    for row in differences.iter_rows(named=True):
        ends = (
            f"no interval: {wording.why_of_difference(row, facts=_most_facts(tables, row))}"
            if row["low"] is None
            else f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        )
        _say(
            console,
            f"{row['arm']} minus {row['reference']} ({row['what']}, {row['positions']}, {row['direction']}, "
            f"{row['facts']}): {label(row['statistic'])} {row['difference']:+.2f}, {ends}",
        )


def _most_facts(tables: Mapping[str, pl.DataFrame], row: Mapping[str, Any]) -> int | None:
    """How many facts the pair of checkpoints has that has most of them, of those that a difference of arms is over."""
    alike = {name: row[name] for name in ("what", "positions", "direction")}
    of = tables["first_depth"] if row["facts"] == "all" else tables["fates"].filter(fate=row["facts"])
    return max(of.filter(**alike)["n"].to_list(), default=None)


def _say(console: Console, line: str, style: str = "") -> None:
    """A line as it stands: nothing in it is markup, and the terminal breaks it where it is too long."""
    console.print(Text(line, style), soft_wrap=True)


def _sweep(row: Mapping[str, Any]) -> str:
    return f"{row['source']} into {row['target']} ({row['what']}, {row['positions']})"


def _first(row: Mapping[str, Any]) -> str:
    if row["patched"] is not None:
        at = wording.spans(row["patched"])
        never = wording.of_row(row, "never", ".1%")
        return f"median and mean need every depth; at none of those patched ({at}) {never}"
    median = "never" if row["median"] is None else f"{row['median']:.0f}"
    return (
        f"median depth {median}; mean {wording.of_row(row, 'restricted', '.1f')}, counting never as one depth further; "
        f"never {wording.of_row(row, 'never', '.1%')}"
    )


def _place(row: Mapping[str, Any]) -> str:
    return str(row["depth"]) if row["last"] == row["depth"] else f"{row['depth']}-{row['last']}"
