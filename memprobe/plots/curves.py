"""Curves by depth, by stage and by training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memprobe.palette import style
from memprobe.plots import sketch

if TYPE_CHECKING:
    import polars as pl


@sketch.drawn
def recall_curves(
    recall: pl.DataFrame,
    shuffled: pl.DataFrame | None = None,
    *,
    checkpoints: Sequence[str] | None = None,
    looks: sketch.Looks | None = None,
    accuracy: Mapping[str, float | None] | None = None,
    floor: Sequence[float] = (),
) -> sketch.Sketch:
    """Recall@k by depth with its 95 % band, and dotted beneath it the level that shuffled answers reach.

    Args:
        recall: of :func:`memprobe.statistics.recall_by_depth`.
        shuffled: of :func:`memprobe.statistics.shuffled_recall`, at the same k and token rule.
        checkpoints: their order; as in the table where not given.
        looks: see :data:`memprobe.plots.sketch.Looks`.
        accuracy: share of exact answers by checkpoint, for the legend (as in the paper's figure 4).
        floor: by depth, how far apart two fits of a fitted lens read; a grey line.
    """
    figure = sketch.figure_of(x="depth", y="recall", percent=True)
    figure.update_yaxes(range=[0, 1.02])
    _tick_depths(figure, recall)
    if floor:
        figure.add_scatter(
            x=list(range(len(floor))),
            y=list(floor),
            mode="lines",
            name="the lens’s floor",
            line={"color": sketch.FLOOR_COLOUR, "width": 1.5, "dash": "dashdot"},
            hovertemplate="%{y:.1%} <i>the lens’s floor: two fits differ by so much</i><extra></extra>",
            meta={"role": "line"},
        )
    for look, label, rows in sketch.by_checkpoint(recall, checkpoints, looks):
        depth, low, high = rows["depth"].to_list(), rows["low"].to_list(), rows["high"].to_list()
        sketch.add_band(figure, depth, low, high, colour=look["colour"], meta={"checkpoint": label})
        chance = None if shuffled is None else sketch.rows_of(shuffled, label)
        if chance is not None and len(chance):
            sketch.add_control(
                figure,
                label,
                chance["depth"].to_list(),
                chance["recall"].to_list(),
                look=look,
                kind="shuffled",
                tip="shuffled answers",
                customdata=chance.select("low", "high").rows(),
            )
        figure.add_scatter(
            x=depth,
            y=rows["recall"].to_list(),
            customdata=rows.select("low", "high").rows(),
            **sketch.line_of(label, look) | {"name": _with_accuracy(label, accuracy)},
            hovertemplate=sketch.share_tip(label),
        )
    return figure


@sketch.drawn
def normalised_frequency(
    frequency: pl.DataFrame,
    *,
    checkpoints: Sequence[str] | None = None,
    looks: sketch.Looks | None = None,
    accuracy: Mapping[str, float | None] | None = None,
) -> sketch.Sketch:
    """Which share of all occurrences falls on each depth: sums to 1 over depths 1 … n_layers.

    Args:
        frequency: of :func:`memprobe.statistics.normalised_frequency`; a checkpoint in which nothing occurs
            has nulls and no line.
        checkpoints: their order; as in the table where not given.
        looks: see :data:`memprobe.plots.sketch.Looks`.
        accuracy: share of exact answers by checkpoint, for the legend.
    """
    figure = sketch.figure_of(x="depth", y="share of occurrences", percent=True)
    figure.update_yaxes(rangemode="tozero")
    _tick_depths(figure, frequency, 1)
    for look, label, rows in sketch.by_checkpoint(frequency, checkpoints, looks):
        figure.add_scatter(
            x=rows["depth"].to_list(),
            y=rows["frequency"].to_list(),
            **sketch.line_of(label, look) | {"name": _with_accuracy(label, accuracy)},
            hovertemplate="<b>%{y:.1%}</b> " + sketch.plain(label) + "<extra></extra>",
        )
    return figure


@sketch.drawn
def survival_curves(
    survival: pl.DataFrame,
    *,
    of: str = "first occurrence",
    checkpoints: Sequence[str] | None = None,
    looks: sketch.Looks | None = None,
) -> sketch.Sketch:
    """Kaplan–Meier curves: the share of factoids that have not surfaced by each depth, with 95 % bands.

    A bar at the last depth is the interval of the share that never surfaces, where the band ends.

    Args:
        survival: of :func:`memprobe.statistics.occurrence.kaplan_meier`, with ``checkpoint``.
        of: what is waited for, for the axis.
        checkpoints: their order; as in the table where not given.
        looks: see :data:`memprobe.plots.sketch.Looks`.
    """
    figure = sketch.figure_of(x="depth", y=f"still without {of}", percent=True)
    figure.update_yaxes(range=[0, 1.02])
    _tick_depths(figure, survival)
    parts = sketch.by_checkpoint(survival, checkpoints, looks)
    for position, (look, label, rows) in enumerate(parts):
        depth, low, high = (_stairs(rows[name].to_list(), name) for name in ("depth", "low", "high"))
        sketch.add_band(
            figure, depth, low, high, colour=look["colour"], opacity=0.08, meta={"checkpoint": label}
        )
        beside = min(0.15, 0.4 / len(parts)) * (position + 1)  # its last drop would cover it
        _bar_at_the_end(figure, rows, beside, colour=look["colour"], meta={"checkpoint": label})
        line = sketch.line_of(label, look)
        line["line"] = line["line"] | {"shape": "hv"}
        figure.add_scatter(
            x=rows["depth"].to_list(),
            y=rows["survival"].to_list(),
            customdata=rows.select("low", "high").rows(),
            **line,
            hovertemplate=sketch.share_tip(label),
        )
    return figure


@sketch.drawn
def stage_lines(
    values: pl.DataFrame, *, y: str, percent: bool = False, looks: Mapping[str, int] | None = None
) -> sketch.Sketch:
    """A statistic from stage to stage, a line for each run, coloured by its arm; arms stand a little apart.

    Args:
        values: [arm, seed, checkpoint, stage (0 = base model), stage_name, value, low, high], in order; a null
            ``seed`` is the mean over an arm's seeds.
        y: what it is, with its unit.
        percent: shares.
        looks: by arm, the position whose :func:`style` it has; in order of the arms where not given.
    """
    figure = sketch.figure_of(x="", y=y, percent=percent)
    if percent:
        figure.update_yaxes(range=[-0.02, 1.04])
    arms = values["arm"].unique(maintain_order=True).to_list()
    runs = values.select("arm", "seed").unique(maintain_order=True).rows()
    form = ".1%" if percent else ".2f"
    apart = min(0.04, 0.24 / max(1, len(arms) - 1))
    for arm, seed in runs:
        rows = values.filter(_equal(values, "arm", arm) & _equal(values, "seed", seed))
        look = style(arms.index(arm) if looks is None else looks[arm])
        thin = seed is not None and (arm, None) in runs
        known = rows["low"].is_not_null() & rows["high"].is_not_null()
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [(high or 0) - v if k else 0 for v, high, k in _zipped(rows, "high", known)],
            "arrayminus": [v - (low or 0) if k else 0 for v, low, k in _zipped(rows, "low", known)],
            "thickness": 1.2,
            "width": 3,
        }
        who = sketch.clip(sketch.plain(arm), 48) + ("" if seed is None else f", seed {seed}")
        figure.add_scatter(
            x=[stage + apart * (arms.index(arm) - (len(arms) - 1) / 2) for stage in rows["stage"]],
            y=rows["value"].to_list(),
            customdata=rows.select("low", "high").rows(),
            error_y=None if thin else bars,
            mode="lines+markers",
            name=who,
            opacity=0.35 if thin else 1,
            line={"color": look["colour"], "width": 1 if thin else 2, "dash": look["dash"]},
            marker={"symbol": look["marker"], "size": 4 if thin else 8, "color": look["colour"]},
            hovertemplate=f"<b>%{{y:{form}}}</b>"
            + ("" if not known.all() else f" (%{{customdata[0]:{form}}} – %{{customdata[1]:{form}}})")
            + f" {who}<extra></extra>",
            meta={
                "checkpoints": rows["checkpoint"].to_list(),
                "x": rows["stage"].to_list(),
                "role": "seed" if thin else "line",
                "arm": arm,
            },
        )
    stages = dict(values.select("stage", "stage_name").unique(maintain_order=True).rows())
    figure.update_xaxes(
        tickvals=sorted(stages),
        ticktext=[sketch.clip(sketch.plain(stages[stage]), 16) for stage in sorted(stages)],
        range=[min(stages) - 0.15, max(stages) + 0.15],
    )
    return figure


@sketch.drawn
def training_curves(steps: pl.DataFrame, column: str, *, y: str, log: bool = False) -> sketch.Sketch:
    """A measure of training over a stage's optimiser steps, a line for each run.

    Args:
        steps: [run, step, ``column``] of one stage.
        column: such as loss or exact.
        y: what it is.
        log: whether its axis is logarithmic.
    """
    figure = sketch.figure_of(x="optimiser step", y=y, percent=column == "exact")
    if column == "exact":
        figure.update_yaxes(range=[-0.02, 1.04])
    if log:
        known = [value for value in steps[column].to_list() if value is not None and value > 0]
        ticks = sketch.log_ticks(min(known), max(known)) if known else []
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,.4g}" for tick in ticks])
    form = ".1%" if column == "exact" else ".3g"
    for position, run in enumerate(steps["run"].unique(maintain_order=True).to_list()):
        rows = steps.filter((steps["run"] == run) & steps[column].is_not_null())
        look = style(position)
        if rows.is_empty():
            continue
        figure.add_scatter(
            x=rows["step"].to_list(),
            y=rows[column].to_list(),
            mode="lines",
            name=sketch.plain(run),
            line={"color": look["colour"], "width": 1.6, "dash": look["dash"]},
            hovertemplate=f"<b>%{{y:{form}}}</b> {sketch.plain(run)}<extra></extra>",
            meta={"run": run, "role": "line"},
        )
    return figure


def _tick_depths(figure: sketch.Sketch, table: pl.DataFrame, first: int = 0) -> None:
    """Ticks some depths, and the last."""
    if len(table):
        figure.update_xaxes(tickvals=sketch.depth_ticks(int(table["depth"].to_numpy().max()), first))


def _with_accuracy(label: str, accuracy: Mapping[str, float | None] | None) -> str:
    share = None if accuracy is None else accuracy.get(label)
    return sketch.plain(label) + ("" if share is None else f" ({sketch.percentage(share)} exact)")


def _stairs(values: list[float], name: str) -> list[float]:
    """A column as stairs: each value holds until the next depth."""
    twice = [value for value in values for _ in range(2)]
    return twice[1:] if name == "depth" else twice[:-1]


def _bar_at_the_end(
    figure: sketch.Sketch, rows: pl.DataFrame, beside: float, *, colour: str, meta: Mapping[str, Any]
) -> None:
    """The interval of a curve at its last depth, ``beside`` depths off; comes and goes with the band."""
    last = rows.row(-1, named=True)
    if last["low"] is None:
        return
    figure.add_scatter(
        x=[last["depth"] + beside],
        y=[last["survival"]],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [last["high"] - last["survival"]],
            "arrayminus": [last["survival"] - last["low"]],
            "thickness": 1.5,
            "width": 3,
        },
        mode="markers",
        marker={"size": 1, "color": colour},
        hoverinfo="skip",
        showlegend=False,
        meta={**meta, "role": "band"},
    )


def _equal(table: pl.DataFrame, column: str, value: Any) -> pl.Series:
    return table[column].is_null() if value is None else (table[column] == value).fill_null(value=False)


def _zipped(rows: pl.DataFrame, edge: str, known: pl.Series) -> Iterator[tuple[float, float | None, bool]]:
    return zip(rows["value"], rows[edge], known, strict=True)
