"""What the commands print as tables: a study's results, a grid's plan and power, and what was learned again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Column, Table
from rich.text import Text

from memprobe.cli.terminal import echo, wide_terminal

if TYPE_CHECKING:
    import polars as pl

    from training.grid import Cell, GridPlan
    from training.relearn import Relearned


def relearned_line(row: Relearned) -> str:
    """One checkpoint, learned again, as a line."""
    ends = "" if row.savings_low is None else f" [{row.savings_low:.2f}, {row.savings_high:.2f}]"
    savings = f"savings not known ({row.why})" if row.savings is None else f"savings {row.savings:.2f}{ends}"
    unlearned = f" ({row.unlearned} were never learned)" if row.unlearned else ""
    return (
        f"{row.checkpoint} ({row.arm}): {row.lost} of {row.asked} facts lost{unlearned}; of these "
        f"{_back(row, 'lost')}; of never-learned ones {_back(row, 'fresh')}; {savings}; "
        f"cued {row.cued_lost:.0%} against {row.cued_fresh:.0%}, "
        f"{row.gain_lost:+.1f} against {row.gain_fresh:+.1f} nats"
    )


def _back(row: Relearned, name: Literal["lost", "fresh"]) -> str:
    """How many of a set came back within the limit, and after how many steps; others count as one step more."""
    back, steps, examples = (getattr(row, f"{what}_{name}") for what in ("back", "steps", "examples"))
    came = round(back * row.n)
    verb = "are back" if name == "lost" else "are learned"
    if not came:
        return f"0 of {row.n} tried {verb} within {row.limit} steps"
    mean = f"after {steps:.1f} steps on average ({examples:.0f} examples)"
    cut = (
        ""
        if came == row.n
        else f", the rest, not within the limit of {row.limit}, counted as {row.limit + 1}"
    )
    return f"{came} of {row.n} tried {verb} {mean}{cut}"


def print_relearned(arms: pl.DataFrame) -> None:
    """Learning again by arm: savings with their interval over seeds, every seed, and what lies behind them."""
    from memprobe import wording
    from memprobe.arms import arm_names
    from memprobe.statistics.vocabulary import label

    names = arm_names({*arms["arm"]})
    form, signed = wording.form_of("savings"), wording.form_of("savings", signed=True)
    table = Table(
        Column("arm", overflow="fold"),
        "stage",
        *(
            Column(head, justify="right")
            for head in ("savings", "by seed", "minus naive", "n", "steps", "cued")
        ),
        title=f"{label('savings')}, over training seeds",
    )
    for (arm, stage), group in arms.group_by("arm", "stage", maintain_order=True):
        rows = {row["statistic"]: row for row in group.iter_rows(named=True)}
        savings = rows["savings"]
        apart = (savings["difference"], savings["difference_low"], savings["difference_high"])
        steps, cued = (
            " / ".join(wording.number(rows[f"{name}_{side}"]["mean"], unit) for side in ("lost", "fresh"))
            for name, unit in (("steps", ".1f"), ("cued", ".0%"))
        )
        table.add_row(
            names[str(arm)],
            str(stage),
            wording.interval(savings["mean"], savings["low"], savings["high"], form),
            ", ".join(wording.number(value, form) for value in savings["by_seed"]),
            wording.interval(*apart, signed),
            ", ".join(map(str, dict.fromkeys(savings["n_by_seed"]))),
            steps,
            cued,
        )
    wide_terminal().print(table)
    echo("n: facts in each set; steps and cued: lost / never-learned facts; no interval under three seeds")
    for arm, stage, note in arms.select("arm", "stage", "note").unique(maintain_order=True).iter_rows():
        if note:
            echo(f"{names[arm]}, {stage}: {note}")


def print_results(made: dict[str, pl.DataFrame]) -> None:
    """Retention by arm, and the claims that could be tested."""
    from training.study.published import shown

    console = wide_terminal()
    columns = ["after stage 1", "retention", "95 %", "by seed", "D_B", "tokens ×"]
    for (setup,), group in made["forgetting"].group_by("setup", maintain_order=True):
        table = Table(
            Column("arm", overflow="fold"),
            "learned",
            *columns,
            title=str(setup),
            title_justify="left",
            box=None,
        )
        for row in group.iter_rows(named=True):
            edges = "–" if row["low"] is None else f"{row['low']:.1%} – {row['high']:.1%}"
            shares = [_percent(row[name]) for name in ("d_a_after_1", "retention")]
            seeds = " ".join(_percent(value) for value in row["by_seed"] or [])
            metric = row["last_metric"]
            percent = metric in ("exact_match", None)
            last = _percent(row["last_score"]) if percent else f"{metric} {shown(row['last_score'])}"
            learned = f"{row['cells'] - row['failed']}/{row['cells']}"
            table.add_row(row["arm"], learned, *shares, edges, seeds, last, shown(row["tokens"]))
        console.print(table)
    if "claims" in made:
        _print_claims(made["claims"])
    else:
        console.print("no claim is tested: no cell has learned all its stages")


def _print_claims(claims: pl.DataFrame) -> None:
    """A table for each claim in each reading, with what it says and the unit of its numbers."""
    import polars as pl

    from memprobe import wording
    from memprobe.statistics.verdicts import NOT_TESTED
    from training.study.claim_book import read_book

    console = wide_terminal()
    tested = claims.filter(pl.col("verdict") != NOT_TESTED)
    of = {(claim.family, claim.name): claim for claim in read_book().claims}
    for (family, name, k, token), group in tested.group_by(
        "family", "claim", "k", "token", maintain_order=True
    ):
        claim = of[str(family), str(name)]
        reading = "" if k is None else f"; top {k}, {token}"
        columns = ["setup", "arm", "against", "stage", "verdict"]
        table = Table(
            *(Column(column, overflow="fold") for column in columns),
            Column(claim.unit, justify="right"),
            title=Text(f"{name}: {claim.says}{reading}"),
            title_justify="left",
            box=None,
        )
        for row in group.iter_rows(named=True):
            estimate = wording.interval(row["estimate"], row["low"], row["high"], claim.form)
            texts = ["" if row[column] is None else str(row[column]) for column in columns]
            table.add_row(*(Text(text) for text in [*texts, estimate]))
        console.print()
        console.print(table)
    console.print("other lenses, and p: in claims.csv", highlight=False)
    console.print(f"{len(claims) - len(tested)} claims are not tested; the tables say why", highlight=False)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def print_power(wanted: Sequence[Cell], scatter: Path) -> None:
    """Which differences these cells can see; one line for set-ups with as many facts and seeds, which see the same."""
    from training.study.power import power_of, stored_scatter
    from training.study.results import read_results

    scattered = stored_scatter(read_results(scatter).cells)
    made = power_of(wanted, scattered)
    table = Table(*(Column(name, overflow="fold") for name in made.columns), box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    for _, group in made.group_by("facts", "seeds", "scatter", maintain_order=True):
        row = group.row(0, named=True)
        points = [f"{100 * row[name]:.1f}" if row[name] is not None else "-" for name in ("sd", "detectable")]
        known = row["facts"] is not None
        setup = row["setup"] if len(group) == 1 else f"{len(group)} set-ups"
        first = [setup, str(row["facts"]) if known else "unknown", str(row["seeds"]), row["scatter"]]
        beyond = "over 200" if known else "-"
        needed = [beyond if row[name] is None else str(row[name]) for name in made.columns[-2:]]
        table.add_row(*(Text(cell) for cell in [*first, *points, *needed]))
    console = wide_terminal()
    console.print(table)
    if made["facts"].has_nulls():
        console.print("facts unknown: the grid gives no n for D_A, so its differences cannot be foreseen")
    console.print(
        f"In points of retention, against naive, at 80 % power and 5 %: if pairs of seeds scatter as in {scatter}, "
        "all arms together and the one that scatters most.",
        highlight=False,
        soft_wrap=True,
    )


def print_plan(plan: GridPlan) -> None:
    """The cells of a grid, what they share, and an estimate of time and disk."""

    table = Table("cell", "block", "", box=None, padding=(0, 2, 0, 0))
    for name, block, done in plan.cells:
        table.add_row(name, block, "done" if done else "")
    console = wide_terminal()
    console.print(table)
    for name, count in plan.shared.items():
        console.print(f"shared   {name} by {count} cells", highlight=False)
    hours = None if plan.per_second is None else plan.tokens / plan.per_second / 3600
    time = (
        "its rate is known after the first stage"
        if hours is None
        else f"about {hours:.1f} h at the {plan.per_second:.0f} tokens/s measured here"
    )
    again = f" ({plan.again} of them again, as their weights went)" if plan.again else ""
    console.print(
        f"time     {plan.stages} stages to train{again}, at most {plan.tokens:,} tokens: {time}",
        highlight=False,
    )
    console.print(
        f"disk     at most {plan.peak_stages * plan.stage_bytes / 2**30:.1f} GiB of weights at once "
        f"({plan.peak_stages} stages)" + (", and checkpoints along the way" if plan.along else ""),
        highlight=False,
    )
