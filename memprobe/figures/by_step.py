"""Training as the axis: what a run recalls, where its facts surface, and what has become of them, over its steps."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from memprobe.figures import look as style
from memprobe.palette import FATES
from memprobe.statistics.overview import STATE_NAMES, STATES
from memprobe.statistics.vocabulary import STATISTICS, axis

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OVER_STEPS = ("exact", "lof_restricted_mean", "share_never")
"""Panels of :func:`steps`: statistics of placement."""


@style.in_style
def steps(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Recall, first occurrence, the share that never occurs, and what has become of the facts, over training steps.

    A line is a training run, with 95 % intervals; the areas of a run's facts stand on each other.

    Args:
        table: [run, step, statistic, state, value, low, high]: of :data:`OVER_STEPS`, where ``state`` is null, and
            ``fates``, a row for each of :data:`memprobe.statistics.overview.STATES`.
        k, token: named on the axes.
        width: millimetres.
    """
    from matplotlib.ticker import MaxNLocator

    style.not_empty(table, "statistic")
    runs = table["run"].unique(maintain_order=True).to_list()
    shown = [name for name in OVER_STEPS if name in set(table["statistic"])]
    handles = [style.handle(run, **style.look(i)) for i, run in enumerate(runs)] if len(runs) > 1 else []
    handles += [
        style.handle(STATE_NAMES[state], color=FATES[i], linewidth=4) for i, state in enumerate(STATES)
    ]
    n = len(shown) + len(runs)
    figure, every = style.panels(
        n,
        width,
        columns=(2, 4),
        height=40,
        above=style.legend_height(handles, width),
    )
    for axes, statistic in zip(every, shown, strict=False):
        for position, run in enumerate(runs):
            rows = table.filter(run=run, statistic=statistic)
            marks, at = style.look(position), rows["step"].to_list()
            style.band(axes, rows, "step", ("low", "high"), f"{run}/{statistic}", color=marks["color"])
            axes.plot(at, style.numbers(rows, "value"), **marks, clip_on=False, gid=f"{run}/{statistic}/line")
        axes.set_title(_title(statistic, k, token))
        if STATISTICS[statistic].share:
            axes.set_ylim(0, 1)
            style.percent_axis(axes.yaxis)
    for axes, run in zip(every[len(shown) :], runs, strict=True):
        _fates(axes, table.filter(run=run, statistic="fates"), run)
        axes.set_title(
            "state of the facts"
            if len(runs) == 1
            else style.shortened(f"facts of {run}", 24, (f"facts of {one}" for one in runs))
        )
    for axes in every:
        axes.set_xlabel("training step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlim(min(table["step"]), max(table["step"]))
    style.legend(figure, handles, width)
    return figure


def _title(statistic: str, k: int, token: str) -> str:
    name = axis(statistic, k=k)
    return fill(name + ("" if statistic == "exact" else style.rule(token)), 24)


def _fates(axes: Axes, table: pl.DataFrame, run: str) -> None:
    """What has become of one run's facts, as shares that stand on each other."""
    at = table["step"].unique(maintain_order=True).to_list()
    shares = [style.numbers(table.filter(state=state), "value") for state in STATES]
    for state, area in zip(STATES, axes.stackplot(at, *shares, colors=FATES, alpha=0.8), strict=True):
        area.set_gid(f"{run}/{state}/area")
    axes.set_ylim(0, 1)
    style.percent_axis(axes.yaxis)
