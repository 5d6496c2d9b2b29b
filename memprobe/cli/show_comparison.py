"""The tables of a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memprobe import wording
from memprobe.arms import arm_names
from memprobe.compare.beside import besides
from memprobe.compare.headline import headline, never_as
from memprobe.sentences import verdict
from memprobe.statistics.vocabulary import label
from memprobe.wording import interval, number, of_row

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from memprobe.compare import Comparison
    from memprobe.compare.outcomes import OutcomeComparison

WIDTH = 100

_DIRECTION = (
    "First occurrence, settled: in depths, negative is earlier. Others: positive is more (log-prob: nats)."
)


def print_comparison(result: Comparison, net: str | None = None, *, full: bool = False) -> None:
    """Prints the verdict and the main table; ``--out`` and ``--json`` hold all of them.

    Args:
        full: print every table that fits a terminal of 100 columns.
        net: the control that recall and the statistics are shown net of; by default their chance level from
            shuffled answers stands beside them.

    """
    from memprobe.cli.terminal import terminal

    console = terminal()
    if not console.is_terminal:
        console.width = WIDTH  # a file or a pipe has no width
    settings = result.settings
    base = f", base model {settings['base']}" if settings["base"] else ""
    for line in verdict(result):
        console.print(line, markup=False, highlight=False)
    console.print(
        f"\n{wording.count(settings['factoids'], 'fact')}, against {settings['reference']}{base}. A depth holds an "
        f"answer when {wording.TOKEN_RULES[settings['token']]} among the top {settings['k']} tokens. In brackets: 95 % "
        f"intervals from {settings['draws']:,} resamples, seed {settings['seed']}.",
        style="dim",
        markup=False,
        highlight=False,
    )
    if not full:
        if net is None:
            _main(console, result.tables)
        else:
            _net_recall(console, result.tables, net)
            _net(console, result.tables, net)
        _besides(console, result.tables)
        return
    if net is None:
        _recall(console, result.tables)
        _placement(console, result.tables)
    else:
        _net_recall(console, result.tables, net)
        _net(console, result.tables, net)
    _besides(console, result.tables)
    for show in (_differences, _by_depth, _spread):
        show(console, result.tables)
    _overlap(console, result)
    for show in (_fates, _kept, _paths, _arms, _groups, _steps):
        show(console, result.tables)


def print_outcomes(result: OutcomeComparison, *, full: bool = False) -> None:
    """Prints a comparison of answers alone.

    Args:
        full: print differences and arms as well.
    """
    from memprobe.cli.terminal import terminal

    console = terminal()
    if not console.is_terminal:
        console.width = WIDTH
    for line in result.verdict():
        console.print(line, markup=False, highlight=False)
    shown = result.headline()
    _table(console, shown.title, list(shown.columns), [list(row) for row in shown.rows], says=shown.says)
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
        _table(console, "Paired differences", ["", "", "n", "difference", "p"], rows, left=2)
    for show in (_paths, _arms):
        show(console, result.tables)


def _table(
    console: Console,
    title: str,
    columns: list[str],
    rows: list[list[str]],
    *,
    left: int = 1,
    says: str | None = None,
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print()
    console.print(Text(title, "bold"))
    if says:
        console.print(Text(says, "dim"))
    console.print(table)


def _shown_depths(table: pl.DataFrame) -> list[int]:
    deepest = int(table["depth"].to_numpy().max())
    return sorted({round(deepest * step / 8) for step in range(9)})


def _recall(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    curves = tables["curves"]
    shown = _shown_depths(curves)
    rows = []
    for name in curves["checkpoint"].unique(maintain_order=True):
        own = {row["depth"]: row for row in curves.to_dicts() if row["checkpoint"] == name}
        for front, column in ((name, "recall"), ("  shuffled answers", "chance")):
            rows.append([front, *(number(own[d][column]) if d in own else "" for d in shown)])
    says = "Share of facts whose answer a depth holds. Chance level: shuffled answers, those of other facts."
    _table(console, "Recall by depth, and its chance level", ["depth", *map(str, shown)], rows, says=says)


def _net_recall(console: Console, tables: dict[str, pl.DataFrame], control: str) -> None:
    table = tables["net_by_depth"].filter(control=control, measure="recall")
    shown = _shown_depths(table)
    rows = []
    for name in table["checkpoint"].unique(maintain_order=True):
        own = {row["depth"]: row for row in table.to_dicts() if row["checkpoint"] == name}
        rows.append([name, *(number(own[d]["net"], "+.2f") if d in own else "" for d in shown)])
    says = "Share of facts whose answer a depth holds, minus the control's."
    _table(console, f"Recall by depth, net of {control}", ["depth", *map(str, shown)], rows, says=says)


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
    _table(console, f"Net of {control}: value minus control", columns, rows, left=2, says=_DIRECTION)


def _main(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    shown = headline(tables["placement"])
    _table(console, shown.title, list(shown.columns), [list(row) for row in shown.rows], says=shown.says)


def _besides(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    for shown in besides(tables):
        _table(
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
        f"The smallest depth that holds a fact; smaller is earlier. No median: half never surface. Mean of all: "
        f"counting\nnever as {never_as(tables['placement'])}. Against chance: minus that of shuffled answers.",
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
    _table(console, title, ["", *columns], body, says=says)


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
        f"answers.\nMean of all: counting never as {never_as(tables['placement'])}.",
        {
            "mean ± sd": lambda row: f"{number(row['settled_mean'])} ± {number(row['settled_sd'])}",
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


def _differences(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    table = tables["differences"]
    held = {(r["reference"], r["checkpoint"], r["statistic"]): r["held"] for r in tables["claims"].to_dicts()}
    both = {
        (r["reference"], r["checkpoint"], r["statistic"]): r
        for r in table.to_dicts()
        if r["on"] == "exact in both"
    }
    said = {True: "yes", False: "no", None: "?"}
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
                    said[held[key]] if key in held else "",
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
        says = f"{_DIRECTION}\nHeld: the same side of 0 in the own and in the base readout (?: not probed)."
        says += " Also in: other lenses\nby which it lies on that side too." if several else ""
        _table(console, f"{checkpoint} minus {reference}, factoid by factoid", columns, rows, says=says)


def _by_depth(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    import polars as pl

    table = tables["differences_by_depth"]
    if table.is_empty():
        return
    rows = []
    for (reference, checkpoint, measure), part in table.group_by(
        "reference", "checkpoint", "measure", maintain_order=True
    ):
        # A fall in rank is a rise of the answer, so every measure speaks of the answer here.
        better = pl.col("dominance") * (-1 if measure == "rank" else 1)
        sure = part.filter(pl.col("q") < 0.05)
        up, down = (sure.filter(which)["depth"].to_list() for which in (better > 0, better < 0))
        pair = f"{checkpoint} − {reference}" if measure == "recall" else ""
        rows.append([pair, str(measure), wording.spans(up), wording.spans(down)])
    columns = ["", "", "answer stands higher at depths", "lower at depths"]
    _table(console, "Depths that differ (false-discovery rate 5 % over depths)", columns, rows, left=4)


def _spread(console: Console, tables: dict[str, pl.DataFrame]) -> None:
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
        _table(console, "Spread of first occurrence", columns, rows, says=says)


def _overlap(console: Console, result: Comparison) -> None:
    table = result.tables["overlap"]
    if table.is_empty():
        return
    depths = [depth for depth in _shown_depths(table.drop_nulls("depth")) if depth][-6:]
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
    _table(console, "Overlap, by depth", ["depth", *map(str, depths), "1 … n"], rows, says=says)


def _fates(console: Console, tables: dict[str, pl.DataFrame]) -> None:
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
    _table(console, "Fates: exact match before → after, and where the lost went", columns, rows, says=says)


def _kept(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    if tables["kept"].is_empty():
        return
    shown = ("lof_restricted", "lof_restricted_net", "settled_restricted")
    rows = []
    for key, part in tables["kept"].group_by("reference", "checkpoint", maintain_order=True):
        found = {row["statistic"]: row for row in part.to_dicts()}
        counts = found[shown[0]]
        differences = [found[name] for name in shown]
        edges = [interval(row["difference"], row["low"], row["high"], ".2f") for row in differences]
        rows.append([" → ".join(map(str, key)), str(counts["n_kept"]), str(counts["n_lost"]), *edges])
    columns = ["", "1→1", "1→0", "first occurrence", "net of shuffled", "settled"]
    says = (
        "In the reference: mean of 1→1 minus mean of 1→0, counting never as one depth further than there are.\n"
        "Negative: kept facts were earlier."
    )
    _table(console, "Where kept facts were before, against lost ones", columns, rows, says=says)


def _paths(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    names = arm_names(tables["paths"]["arm"].unique(maintain_order=True).to_list())
    rows = [
        [
            f"{names[row['arm']]}, seed {row['seed']}",
            row["stages"],
            row["path"],
            str(row["n"]),
            interval(row["share"], row["low"], row["high"], ".2f"),
        ]
        for row in tables["paths"].to_dicts()
        if row["n"]
    ]
    if rows:
        columns = ["", "stages", "exact match", "n", "share"]
        _table(console, "Paths through the stages", columns, rows, left=3)


def _arms(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    shown = ["exact", "score", "recall_full", "lof_restricted", "settled_restricted", "depths_per_factoid"]
    for name in ("arms", "arm_differences"):
        table = tables[name]
        means = name == "arms"
        told = [*table["arm"], *([] if means else table["reference"])]
        names = arm_names(list(dict.fromkeys(told)))
        for (arm, stage), part in table.group_by("arm", "stage", maintain_order=True):
            rows = []
            for row in part.to_dicts():
                if row["statistic"] not in shown:
                    continue
                value = row["mean"] if means else row["difference"]
                cells = [interval(value, row["low"], row["high"], ".2f" if means else "+.2f")]
                if means:
                    cells.append("  ".join(number(one) for one in row["by_seed"]))
                else:
                    cells.append(wording.p_value(row["p"]))
                    cells.append({True: "yes", False: "no", None: "too few seeds"}[row["significant"]])
                rows.append([label(row["statistic"], short=True), *cells])
            if means:
                title, columns, says = (
                    f"{names[arm]}, stage {stage}, over seeds",
                    ["", "mean", "by seed"],
                    None,
                )
            else:
                title = f"{names[arm]} minus {names[part['reference'][0]]}, stage {stage}, over seeds"
                columns, says = (
                    ["", "difference", "p", "significant"],
                    f"Seeds and factoids both vary.\n{_DIRECTION}",
                )
            _table(console, title, columns, rows, says=says)


def _groups(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    for (by, checkpoint), part in tables["groups"].group_by("by", "checkpoint", maintain_order=True):
        rows = [
            [
                row["group"],
                str(row["n"]),
                of_row(row, "recall_full"),
                of_row(row, "share_never"),
                of_row(row, "lof_restricted_mean"),
            ]
            for row in part.to_dicts()
        ]
        p = part["log_rank_p"][0]
        says = None if p is None else f"Log-rank test that the groups surface alike: p = {p:.4f}"
        columns = ["", "n", "recall at the end", "never", "first occurrence"]
        _table(console, f"{checkpoint} by {by}", columns, rows, says=says)


def _steps(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    rows = [
        [
            row["run"],
            str(row["step"]),
            number(row["exact"]),
            number(row["area"]),
            of_row(row, "lof_restricted_mean"),
            of_row(row, "settled_restricted_mean"),
            of_row(row, "depths_per_factoid"),
        ]
        for row in tables["steps"].to_dicts()
    ]
    if rows:
        columns = [
            "run",
            "step",
            "exact",
            "area",
            "first occurrence",
            "settled",
            "depths per factoid",
        ]
        says = f"Means, counting never as {never_as(tables['placement'])}."
        _table(console, "By training step", columns, rows, says=says)
