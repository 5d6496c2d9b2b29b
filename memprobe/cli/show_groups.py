"""Checkpoints and facts in groups, on the terminal: paths through stages, arms over seeds, groups of facts, steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memprobe import wording
from memprobe.arms import arm_names
from memprobe.cli.show_pairs import DIRECTION
from memprobe.cli.terminal import print_table
from memprobe.compare.headline import never_as
from memprobe.stages import after_stage
from memprobe.statistics.vocabulary import label, shown
from memprobe.wording import interval, number, of_row

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console


def print_paths(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """Each arm's and seed's facts by whether they were right at every stage."""
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
        print_table(console, "Paths through the stages", columns, rows, left=3)


def print_arms(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """Means over seeds of each arm and stage, then differences between arms."""
    wanted = {*shown("arms"), "score"}
    # Each checkpoint's row says over how many facts; of answers alone, those of the table outcomes.
    asked = tables["placement"] if "placement" in tables else tables["outcomes"]
    facts = max(asked["n"].to_list(), default=None)
    for name in ("arms", "arm_differences"):
        table = tables[name]
        means = name == "arms"
        texts = [*table["arm"], *([] if means else table["reference"])]
        names = arm_names(list(dict.fromkeys(texts)))
        for (arm, stage), part in table.group_by("arm", "stage", maintain_order=True):
            rows = []
            for row in part.to_dicts():
                if row["statistic"] not in wanted:
                    continue
                value = row["mean"] if means else row["difference"]
                cells = [interval(value, row["low"], row["high"], ".2f" if means else "+.2f")]
                if means:
                    cells.append("  ".join(number(one) for one in row["by_seed"]))
                else:
                    cells.append(wording.p_value(row["p"]))
                    cells.append(wording.significant(row, facts=facts))
                rows.append([label(row["statistic"], short=True), *cells])
            if means:
                title, columns, says = (
                    f"{names[arm]}{after_stage(stage)}, over seeds",
                    ["", "mean", "by seed"],
                    None,
                )
            else:
                against = f"{names[arm]} minus {names[part['reference'][0]]}"
                title = f"{against}{after_stage(stage)}, over seeds"
                columns, says = (
                    ["", "difference", "p", "significant"],
                    f"Seeds and factoids both vary. {DIRECTION}",
                )
            print_table(console, title, columns, rows, says=says)


def print_groups(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """Each group of facts of a checkpoint, and whether the groups surface alike."""
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
        says = None if p is None else f"Log-rank test that the groups surface alike: {wording.p_of(p)}"
        columns = ["", "n", "recall at the end", "never", "first occurrence"]
        print_table(console, f"{checkpoint} by {by}", columns, rows, says=says)


def print_steps(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    """Checkpoints along training runs, step by step."""
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
        print_table(console, "By training step", columns, rows, says=says)
