"""A study -> the tables that its figures draw. Laid out here, computed in :mod:`memprobe.statistics` and
:mod:`memprobe.compare`.

    probes, comparisons ─ compare's tables ─> recall, frequency, lof, survival, heatmap, differences, spread, kept,
                                          steps, lenses, contributions
    training runs ─ evaluations, recipes ───> forgetting, replay_ratio, mixing_ratio, mixing_length,
                                          penalty_strength, stages, other_questions
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from memprobe import wording
from memprobe.arms import arm_names, by_kind
from memprobe.compare.beside import is_net
from memprobe.figures.by_checkpoint import DIFFERENCES, PLACEMENT
from memprobe.figures.by_step import OVER_STEPS
from memprobe.figures.placing import (
    after,
    at_ends,
    at_step,
    checkpoint_layout,
    in_order,
    places_along,
    several_seeds,
)
from memprobe.fitted import WITH_FLOOR
from memprobe.sentences import FEWEST_STEPS
from memprobe.stages import stage_order
from memprobe.statistics.occurrence import ENDS
from memprobe.statistics.vocabulary import label as called

MOST_ROWS = 24
"""Checkpoints below each other, before a figure tells them by arm or by stage."""
NAMES = (
    *("recall", "frequency", "lof", "survival", "heatmap", "differences", "spread", "kept", "steps"),
    *("lenses", "positions", "contributions"),
)
"""Figures of a comparison."""
_NEVER = "no answer occurs at any depth"


def of_comparison(
    tables: Mapping[str, pl.DataFrame],
    settings: Mapping[str, Any],
    *,
    chains: Sequence[Sequence[str]] = (),
    names: Iterable[str] = NAMES,
) -> dict[str, pl.DataFrame | str]:
    """What a comparison can be drawn as.

    Args:
        tables, settings: of :class:`memprobe.compare.Comparison`, or as read from its ``comparison.json``. Only the
            tables that the figures need are looked at.
        chains: of :func:`checkpoint_layout`.
        names: of the figures.

    Returns:
        By figure, its table; or, in words, why there is none.
    """
    made = [dict(row) for row in settings["checkpoints"]]
    order = [row["label"] for row in made]
    front = ["panel", "line", "seed", "along", "exact", "depth"]

    def laid_out(table: pl.DataFrame) -> pl.DataFrame:
        exact = tables["placement"].select("checkpoint", "exact")
        layout = checkpoint_layout(made, settings.get("base"), chains, along=places_along(tables["steps"]))
        return _laid_out(table, layout).join(exact, on="checkpoint", how="left", maintain_order="left")

    def frequency() -> pl.DataFrame | str:
        curves = laid_out(tables["curves"]).filter(pl.col("depth") > 0)
        if curves["frequency"].drop_nulls().is_empty():
            return _NEVER
        return curves.select(*front, "frequency")

    def survival() -> pl.DataFrame | str:
        surfaced = tables["survival"].filter(of="lof")
        if not (surfaced["events"] > 0).any():
            return _NEVER
        return laid_out(surfaced).select(*front, "survival", "low", "high")

    figures: dict[str, Callable[[], pl.DataFrame | str]] = {
        "recall": lambda: _without_empty(
            laid_out(tables["curves"]).select(
                *front, "recall", "recall_low", "recall_high", "chance", "floor"
            ),
            "floor",
        ),
        "frequency": frequency,
        "lof": lambda: _first_occurrence(tables, made, order),
        "survival": survival,
        "lenses": lambda: _lenses(tables),
        "positions": lambda: _positions(tables),
        "contributions": lambda: _contributions(tables),
        "heatmap": lambda: _heatmap(tables["curves"], made, settings.get("base")),
        "differences": lambda: _differences(tables, settings),
        "spread": lambda: _spread(tables, settings),
        "kept": lambda: _kept(tables, settings),
        "steps": lambda: _steps(tables),
    }
    return {name: figures[name]() for name in names}


def _lenses(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame | str:
    """[checkpoint, lens, depth, recall, recall_low, recall_high, chance, floor_mean]"""
    curves = tables["lenses_by_depth"]
    if curves["lens"].n_unique() < 2:
        return "read through one lens only"
    floors = tables["lenses"].select("checkpoint", "lens", "floor_mean")
    columns = ("checkpoint", "lens", "depth", "recall", "recall_low", "recall_high", "chance", "floor_mean")
    return curves.join(floors, on=["checkpoint", "lens"], how="left", maintain_order="left").select(columns)


def _positions(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame | str:
    """[checkpoint, position, depth, recall, recall_low, recall_high, chance]"""
    curves = tables["positions_by_depth"]
    if curves.is_empty():
        return "read at one position only (memprobe layers --positions answer,subject)"
    columns = ("checkpoint", "position", "depth", "recall", "recall_low", "recall_high", "chance")
    return curves.select(columns)


def _without_empty(table: pl.DataFrame, column: str) -> pl.DataFrame:
    """Without a column that says nothing in any row."""
    return table.drop(column) if table[column].is_null().all() else table


def _contributions(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame | str:
    """[checkpoint, part, depth, value, low, high, net]: net of shuffled answers where all have them."""
    table = tables["contributions"]
    if table.is_empty():
        return "there are no attributions (memprobe layers --attributions)"
    net = is_net(table)
    value = {"value": "net", "low": "net_low", "high": "net_high"} if net else {"value": "logit"}
    named = [pl.col(old).alias(new) for new, old in ({"low": "low", "high": "high"} | value).items()]
    return table.select("checkpoint", "part", "depth", *named, net=pl.lit(net))


def _laid_out(table: pl.DataFrame, layout: pl.DataFrame) -> pl.DataFrame:
    return layout.join(table, on="checkpoint", how="inner", maintain_order="left_right")


def _heatmap(curves: pl.DataFrame, made: Sequence[Mapping[str, Any]], base: str | None) -> pl.DataFrame:
    """[panel, group, row, depth, recall]: in one panel; by stage, and seeds together, where checkpoints are many."""
    trained = [row for row in made if row["label"] != base]
    rows = [("", row["label"], row["label"], row["label"]) for row in made]
    if len(made) > MOST_ROWS and trained and all(row["arm"] for row in trained):
        names = arm_names([row["arm"] for row in trained])
        kinds = by_kind({row["arm"] for row in trained})
        rows = []
        for stage in sorted({stage_order(row["stage"]) for row in trained}):
            here = [row for row in trained if stage_order(row["stage"]) == stage]
            here.sort(key=lambda row: (kinds.index(row["arm"]), *in_order(row)))
            panel = after(here[0])
            rows += [(panel, "base model", "base model", base)] if base is not None else []
            for row in here:
                arm = names[row["arm"]]
                rows.append((panel, arm, f"{arm}, seed {row['seed']}{at_step(row)}", row["label"]))
    layout = pl.DataFrame(rows, schema=["panel", "group", "row", "checkpoint"], orient="row")
    return _laid_out(curves, layout).select("panel", "group", "row", "depth", "recall")


def _first_occurrence(
    tables: Mapping[str, pl.DataFrame], made: Sequence[Mapping[str, Any]], order: Sequence[str]
) -> pl.DataFrame:
    """[row, series, statistic, value, low, high, sd, by_seed, along, n_layers, floor], by checkpoint; by arm and stage
    where seeds repeat, ``n_layers`` being null. ``floor`` is there where a lens has one."""
    placed = {row["checkpoint"]: row for row in tables["placement"].iter_rows(named=True)}
    trained = at_ends(made)
    rows: list[list[Any]] = []
    if not several_seeds(made):
        for label in order:
            for name in PLACEMENT:
                value, low, high = (placed[label][f"{name}{end}"] for end in ENDS)
                sd = placed[label]["lof_sd"] if name == "lof_mean" and value is not None else None
                rows.append([label, "", name, value, low, high, sd, None])
    else:
        means = {
            (row["arm"], row["stage"]): row
            for row in tables["arms"].filter(statistic="lof").iter_rows(named=True)
        }
        names = arm_names([row["arm"] for row in trained])
        for row in made:
            if row["arm"] is None:
                for name in PLACEMENT:
                    value, low, high = (placed[row["label"]][f"{name}{end}"] for end in ENDS)
                    rows.append([row["label"], "not trained", name, value, low, high, None, None])
        for arm in by_kind({row["arm"] for row in trained}):
            mine = [row for row in trained if row["arm"] == arm]
            for stage in sorted({stage_order(row["stage"]) for row in mine}):
                here = sorted(
                    (row for row in mine if stage_order(row["stage"]) == stage),
                    key=lambda row: row["seed"] or "",
                )
                over = means.get((arm, here[0]["stage"] or ""), {})
                for name in PLACEMENT:
                    seeds = [placed[row["label"]][name] for row in here]
                    mean = [over.get(key) if name == "lof_mean" else None for key in ("mean", "low", "high")]
                    rows.append([names[arm], after(here[0]), name, *mean, None, seeds])
    numbers = dict.fromkeys(("value", "low", "high", "sd"), pl.Float64) | {"by_seed": pl.List(pl.Float64)}
    schema = {"row": pl.String, "series": pl.String, "statistic": pl.String, **numbers}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    places = {label: place for label, (_, _, place) in places_along(tables["steps"]).items()}
    layers = {label: row["n_layers"] for label, row in placed.items()}
    floors = tables["placement"]["lof_floor"].drop_nulls()
    floor = pl.when(pl.col("statistic") == "lof_mean").then(pl.lit(floors.max(), pl.Float64))
    return _without_empty(
        table.with_columns(
            pl.col("row").replace_strict(places, default=None, return_dtype=pl.Float64).alias("along"),
            pl.col("row").replace_strict(layers, default=None, return_dtype=pl.Int64).alias("n_layers"),
            floor.alias("floor"),
        ),
        "floor",
    )


def lof_table(placement: pl.DataFrame) -> pl.DataFrame:
    """The LoF table: one row per checkpoint, every number with its interval beside it.

    Args:
        placement: of :func:`memprobe.compare.compare`.
    """
    names = ["lof_mean", "lof_sd", "share_never", "share_only_full", "lof_median", "lof_restricted_mean"]
    names += ["effective_layers", "depths_per_factoid"]
    chance = [name for name in ("chance_lof_restricted_mean",) if name in placement.columns]
    return placement.select(
        *("checkpoint", "n", "n_layers", "lof_n", "settled_n", "exact"),
        *(f"{name}{end}" for name in names for end in ENDS),
        *chance,
    )


def lof_markdown(table: pl.DataFrame, *, k: int, token: str) -> str:
    """:func:`lof_table` for a reader: mean ± sd, then each number [95 % interval]."""
    names = ("exact", "lof_mean", "share_never", "lof_median", "lof_restricted_mean")
    head = ["checkpoint", *(called(name, short=True) for name in names), "by chance"]
    head[2] += ", mean ± sd"
    head += [called(name, short=True) for name in ("effective_layers", "depths_per_factoid")]
    rows = [
        [
            row["checkpoint"],
            wording.percent(row["exact"]),
            wording.mean_and_sd(row["lof_mean"], row["lof_sd"]),
            wording.of_row(row, "share_never", ".1%"),
            wording.of_row(row, "lof_median", ".0f", open_ended=True)
            if row["lof_median"] is not None
            else "half never",
            wording.of_row(row, "lof_restricted_mean"),
            wording.number(row.get("chance_lof_restricted_mean")),
            wording.of_row(row, "effective_layers"),
            wording.of_row(row, "depths_per_factoid"),
        ]
        for row in table.iter_rows(named=True)
    ]
    lines = wording.markdown_table(head, rows, right=range(1, len(head)), gap="")
    says = f"Top {k}, token rule `{token}`; [95 % intervals] over factoids."
    return "\n".join([says, "", *lines]) + "\n"


def _differences(tables: Mapping[str, pl.DataFrame], settings: Mapping[str, Any]) -> pl.DataFrame | str:
    """[row, reference, statistic, difference, low, high, held, floor, readout]: by checkpoint, or by arm where those
    are many. ``floor`` is there where a lens has one, ``readout`` where it is known."""
    readout = {"readout": pl.lit(settings["readout"])} if settings.get("readout") else {}
    wanted = pl.col("statistic").is_in(list(DIFFERENCES))
    numbers = ["difference", "low", "high"]
    if len(settings["checkpoints"]) < 2:
        return "there is one checkpoint only"
    several = several_seeds(settings["checkpoints"])
    if several and len(settings["checkpoints"]) > MOST_ROWS:
        over = tables["arm_differences"].filter(wanted, pl.col("low").is_not_null())
        if not len(over):
            return "no arm has three seeds, and there are too many checkpoints to draw one by one"
        names = arm_names([*over["arm"], *over["reference"]])
        kinds = by_kind(set(over["arm"]))
        rank = pl.col("arm").replace_strict({arm: i for i, arm in enumerate(kinds)})
        row = pl.col("arm").replace_strict(names) + pl.format(", stage {}", "stage")
        reference = pl.col("reference").replace_strict(names)
        over = over.sort(rank, "stage", maintain_order=True)
        held = pl.lit(None, pl.Boolean)
        return over.select(row.alias("row"), reference, "statistic", *numbers, held=held, **readout)
    table = tables["differences"].filter(wanted, on="all", reference=settings["reference"])
    if not len(table):
        return f"no checkpoint is comparable with {settings['reference']}"
    keys = ["reference", "checkpoint", "statistic"]
    table = table.join(tables["claims"].select(*keys, "held"), on=keys, how="left", maintain_order="left")
    floors = tables["placement"].select("checkpoint", floor="lof_floor")
    table = table.join(floors, on="checkpoint", how="left", maintain_order="left").with_columns(
        pl.when(pl.col("statistic").is_in(WITH_FLOOR)).then("floor").alias("floor")
    )
    columns = ["reference", "statistic", *numbers, "held", "floor"]
    return _without_empty(table.select(pl.col("checkpoint").alias("row"), *columns, **readout), "floor")


def _spread(tables: Mapping[str, pl.DataFrame], settings: Mapping[str, Any]) -> pl.DataFrame | str:
    """[panel, row, series, reference, difference, low, high], by checkpoint."""
    if tables["spread"].is_empty():
        return "there is one checkpoint only"
    if several_seeds(settings["checkpoints"]):
        return "each seed is held against naive of its own (python -m training report GRID draws that)"
    table = tables["spread"].filter(on="all", reference=settings["reference"])
    known = table.filter(pl.col("ratio").is_not_null())
    if not len(known):
        why = table["why"][0] if len(table) else "no other checkpoint of as many layers"
        return f"no checkpoint's spread can be estimated against {settings['reference']} ({why})"
    blank = [pl.lit("").alias(name) for name in ("panel", "series")]
    row = pl.col("checkpoint").alias("row")
    return known.select(blank[0], row, blank[1], "reference", *log2_ratio())


def log2_ratio() -> list[pl.Expr]:
    """A ratio of scales and its ends as [difference, low, high] on a scale of powers of 2."""
    names = {"difference": "ratio", "low": "low", "high": "high"}
    return [pl.col(name).log(2).alias(shown) for shown, name in names.items()]


def _kept(tables: Mapping[str, pl.DataFrame], settings: Mapping[str, Any]) -> pl.DataFrame | str:
    """[panel, row, series, difference, low, high, by_seed], by checkpoint."""
    table = tables["kept"].filter(reference=settings["reference"])
    series = {"lof_restricted": "first occurrence", "lof_restricted_net": "net of shuffled answers"}
    table = table.filter(pl.col("statistic").is_in(list(series)), pl.col("difference").is_not_null())
    if not len(table):
        return f"no checkpoint keeps some and loses some of the facts that {settings['reference']} recalls"
    return table.select(
        pl.lit("").alias("panel"),
        pl.col("checkpoint").alias("row"),
        pl.col("statistic").replace(series).alias("series"),
        "difference",
        "low",
        "high",
        pl.lit(None, pl.List(pl.Float64)).alias("by_seed"),
    )


def _steps(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame | str:
    """[run, step, statistic, state, value, low, high], of each training run with three checkpoints or more."""
    steps = tables["steps"].filter(pl.len().over("run") >= FEWEST_STEPS)
    if not len(steps):
        return f"no {FEWEST_STEPS} checkpoints lie along one training run"
    front = ["run", "step"]
    parts = [
        steps.select(
            *front,
            pl.lit(name).alias("statistic"),
            pl.lit(None, pl.String).alias("state"),
            *(pl.col(f"{name}{end}").alias(short) for end, short in zip(ENDS, _NUMBERS, strict=True)),
        )
        for name in OVER_STEPS
    ]
    states = steps.select(*front, "checkpoint").join(tables["states"], on="checkpoint", maintain_order="left")
    parts.append(
        states.select(
            *front, pl.lit("fates").alias("statistic"), "state", pl.col("share").alias("value"), "low", "high"
        )
    )
    return pl.concat(parts)


_NUMBERS = ("value", "low", "high")
