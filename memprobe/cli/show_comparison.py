"""The tables of a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from memprobe import wording
from memprobe.cli.show_groups import print_arms, print_groups, print_paths, print_steps
from memprobe.cli.show_pairs import (
    DIRECTION,
    print_by_depth,
    print_differences,
    print_fates,
    print_kept,
    print_overlap,
    print_spread,
    shown_depths,
)
from memprobe.cli.terminal import print_table, wide_terminal
from memprobe.compare.beside import besides
from memprobe.compare.headline import never_as, no_median
from memprobe.compare.written import FEW_SEEDS
from memprobe.statistics.vocabulary import label
from memprobe.wording import interval, mean_and_sd, number, of_row

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from memprobe.compare import Comparison
    from memprobe.compare.outcomes import OutcomeComparison


def print_comparison(
    result: Comparison,
    net: str | None = None,
    *,
    full: bool = False,
    groups: bool = False,
    overlap: bool = False,
) -> None:
    """Prints the verdict and the main table; ``--out`` and ``--json`` hold all of them.

    Args:
        full: print every table that fits a terminal of 100 columns.
        net: the control that recall and the statistics are shown net of; by default their chance level from
            shuffled answers stands beside them.
        groups, overlap: print the table of groups of facts, of pairs of checkpoints, without ``full``, too.
    """
    console = wide_terminal()
    settings = result.settings
    base = f", base model {settings['base']}" if settings["base"] else ""
    for line in result.verdict():
        console.print(line, markup=False, highlight=False)
    console.print(
        f"\n{wording.count(settings['factoids'], 'fact')}, against {settings['reference']}{base}. A depth holds an "
        f"answer when {wording.TOKEN_RULES[settings['token']]} among the top {settings['k']} tokens. In brackets: 95 % "
        f"intervals from {settings['draws']:,} resamples, seed {settings['seed']}.",
        style="dim",
        markup=False,
        highlight=False,
    )
    if net is not None:
        _net_recall(console, result.tables, net)
        _net(console, result.tables, net)
    elif full:
        _recall(console, result.tables)
        _placement(console, result.tables)
    else:
        _main(console, result)
    _besides(console, result.tables)
    if not full:
        if overlap:
            print_overlap(console, result)
        if groups:
            print_groups(console, result.tables)
        return
    for show in (print_differences, print_by_depth, print_spread):
        show(console, result.tables)
    print_overlap(console, result)
    for show in (print_fates, print_kept, print_paths, print_arms, print_groups, print_steps):
        show(console, result.tables)


def print_notes(notes: Iterable[str], *, seeds: bool) -> None:
    """What a reader must know beside the numbers, below the tables.

    Args:
        seeds: whether arms are shown or stored, so that it matters that one has few seeds.
    """
    console = wide_terminal(stderr=True, highlight=False)
    for note in notes:
        if seeds or note != FEW_SEEDS:
            console.print(f"note: {note}", markup=False)


def print_outcomes(result: OutcomeComparison, *, full: bool = False) -> None:
    """Prints a comparison of answers alone.

    Args:
        full: print differences and arms as well.
    """
    console = wide_terminal()
    for line in result.verdict():
        console.print(line, markup=False, highlight=False)
    shown = result.headline()
    print_table(console, shown.title, list(shown.columns), [list(row) for row in shown.rows], says=shown.says)
    if not full:
        return
    rows = [
        [
            f"{row['checkpoint']} − {row['reference']}",
            label(row["statistic"], short=True),
            str(row["n"]),
            interval(row["difference"], row["low"], row["high"], "+.3f"),
            wording.p_value(row["p"]),
        ]
        for row in result.tables["differences"].to_dicts()
    ]
    if rows:
        print_table(console, "Paired differences", ["", "", "n", "difference", "p"], rows, left=2)
    for show in (print_paths, print_arms):
        show(console, result.tables)


def _recall(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    curves = tables["curves"]
    shown = shown_depths(curves)
    rows = []
    for name in curves["checkpoint"].unique(maintain_order=True):
        own = {row["depth"]: row for row in curves.to_dicts() if row["checkpoint"] == name}
        for front, column in ((name, "recall"), ("  shuffled answers", "chance")):
            rows.append([front, *(number(own[d][column]) if d in own else "" for d in shown)])
    says = "Share of facts whose answer a depth holds. Chance level: shuffled answers, those of other facts."
    print_table(
        console, "Recall by depth, and its chance level", ["depth", *map(str, shown)], rows, says=says
    )


def _net_recall(console: Console, tables: dict[str, pl.DataFrame], control: str) -> None:
    table = tables["net_by_depth"].filter(control=control, measure="recall")
    shown = shown_depths(table)
    rows = []
    for name in table["checkpoint"].unique(maintain_order=True):
        own = {row["depth"]: row for row in table.to_dicts() if row["checkpoint"] == name}
        rows.append([name, *(number(own[d]["net"], "+.2f") if d in own else "" for d in shown)])
    says = "Share of facts whose answer a depth holds, minus the control's."
    print_table(console, f"Recall by depth, net of {control}", ["depth", *map(str, shown)], rows, says=says)


def _net(console: Console, tables: dict[str, pl.DataFrame], control: str) -> None:
    rows, before = [], None
    for row in tables["net"].filter(control=control).to_dicts():
        name = row["checkpoint"]
        rows.append(
            [
                name if name != before else "",
                label(row["statistic"], short=True),
                str(row["n"]),
                number(row["value"]),
                number(row["chance"]),
                interval(row["net"], row["low"], row["high"], "+.2f"),
            ]
        )
        before = name
    columns = ["", "", "n", "value", "control", "net"]
    print_table(console, f"Net of {control}: value minus control", columns, rows, left=2, says=DIRECTION)


def _main(console: Console, result: Comparison) -> None:
    shown = result.headline()
    print_table(console, shown.title, list(shown.columns), [list(row) for row in shown.rows], says=shown.says)


def _besides(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    for shown in besides(tables):
        print_table(
            console,
            shown.title,
            list(shown.columns),
            [list(row) for row in shown.rows],
            left=2,
            says=shown.says,
        )


def _first_occurrence(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    _by_checkpoint(
        console,
        tables,
        "First occurrence",
        f"The smallest depth that holds a fact; smaller is earlier.{no_median(tables['placement'])} Mean of all: "
        f"counting never as {never_as(tables['placement'])}. Against chance: minus that of shuffled answers, "
        "over facts that have one.",
        {
            "mean ± sd": lambda row: f"{number(row['lof_mean'])} ± {number(row['lof_sd'])}",
            "median": lambda row: of_row(row, "lof_median", ".0f", open_ended=True),
            "mean of all": lambda row: of_row(row, "lof_restricted_mean"),
            "against chance": lambda row: of_row(row, "net_lof_restricted_mean", "+.2f"),
        },
    )


def _by_checkpoint(
    console: Console,
    tables: dict[str, pl.DataFrame],
    title: str,
    says: str,
    columns: dict[str, Callable[[dict[str, Any]], str]],
) -> None:
    """Some columns of the table ``placement``."""
    body = [
        [row["checkpoint"] + (" (base)" if row["base"] else ""), *(cell(row) for cell in columns.values())]
        for row in tables["placement"].to_dicts()
    ]
    print_table(console, title, ["", *columns], body, says=says)


def _placement(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    _first_occurrence(console, tables)
    _by_checkpoint(
        console,
        tables,
        "Shares of factoids",
        "Cover: what naming the k commonest answer tokens would hold, whatever the prompt.",
        {
            "exact match": lambda row: number(row["exact"]),
            "never": lambda row: of_row(row, "share_never"),
            "only at the last depth": lambda row: number(row["share_only_full"]),
            "area": lambda row: number(row["area"]),
            "by chance": lambda row: number(row["chance_area"]),
            "cover": lambda row: number(row["answer_cover"]),
        },
    )
    _by_checkpoint(
        console,
        tables,
        "Settled depth",
        "The smallest depth from which every later one holds the fact; smaller is earlier. By chance: of shuffled "
        f"answers. Mean of all: counting never as {never_as(tables['placement'])}.",
        {
            "mean ± sd": lambda row: mean_and_sd(row["settled_mean"], row["settled_sd"]),
            "never": lambda row: number(row["settled_share_never"]),
            "mean of all": lambda row: of_row(row, "settled_restricted_mean"),
            "by chance": lambda row: number(row["chance_settled_restricted_mean"]),
        },
    )
    _by_checkpoint(
        console,
        tables,
        "Diversity",
        "How many depths hold a factoid, and over how many all occurrences spread (exp of the entropy).",
        {
            "depths per factoid": lambda row: of_row(row, "depths_per_factoid"),
            "by chance": lambda row: number(row["chance_depths_per_factoid"]),
            "effective layers": lambda row: of_row(row, "effective_layers"),
        },
    )
