"""Training as the axis: statistics, and what has become of the facts, over the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memprobe.palette import FATES, style, translucent
from memprobe.plots.sketch import Sketch, add_band, drawn, figure_of, plain

if TYPE_CHECKING:
    import polars as pl


@drawn
def step_lines(values: pl.DataFrame, *, y: str, percent: bool = False) -> Sketch:
    """A statistic over the steps of each training run, with its 95 % band.

    Args:
        values: [run, checkpoint, step, value, low, high], in order of steps; null edges where there is no interval.
        y: what it is, with its unit.
        percent: shares.
    """
    figure = figure_of(x="training step", y=y, percent=percent)
    if percent:
        figure.update_yaxes(range=[-0.02, 1.04])
    form = ".1%" if percent else ".2f"
    for position, rows in enumerate(values.partition_by("run", maintain_order=True)):
        look, run = style(position), str(rows["run"][0])
        edges = rows.drop_nulls(["low", "high"])
        steps = edges["step"].to_list()
        add_band(
            figure,
            steps,
            edges["low"].to_list(),
            edges["high"].to_list(),
            colour=look["colour"],
            opacity=0.12,
            meta={"run": run, "checkpoints": rows["checkpoint"].to_list()},
        )
        known = len(edges) == len(rows)
        figure.add_scatter(
            x=rows["step"].to_list(),
            y=rows["value"].to_list(),
            customdata=rows.select("low", "high").rows(),
            mode="lines+markers",
            name=plain(run),
            line={"color": look["colour"], "width": 2, "dash": look["dash"]},
            marker={"symbol": look["marker"], "size": 5, "color": look["colour"]},
            hovertemplate=f"<b>%{{y:{form}}}</b>"
            + (f" (%{{customdata[0]:{form}}} – %{{customdata[1]:{form}}})" if known else "")
            + f" {plain(run)}<extra></extra>",
            meta={"run": run, "role": "line", "checkpoints": rows["checkpoint"].to_list()},
        )
    return figure


@drawn
def fate_areas(shares: pl.DataFrame, *, names: Mapping[str, str]) -> Sketch:
    """What has become of the facts at each step of one run, as shares that stand on each other.

    Args:
        shares: of :func:`memprobe.statistics.overview.state_shares`, with ``step`` and ``checkpoint``.
        names: how each state is called, from the bottom up.
    """
    figure = figure_of(x="training step", y="share of facts", percent=True)
    figure.update_yaxes(range=[0, 1])
    for colour, (state, name) in zip(FATES, names.items(), strict=True):
        rows = shares.filter(shares["state"] == state)
        figure.add_scatter(
            x=rows["step"].to_list(),
            y=rows["share"].to_list(),
            customdata=rows.select("low", "high", "n").rows(),
            stackgroup="fates",
            mode="lines",
            name=plain(name),
            line={"color": colour, "width": 1.5},
            fillcolor=translucent(colour, 0.75),
            hovertemplate="<b>%{y:.1%}</b> (%{customdata[0]:.1%} – %{customdata[1]:.1%}) "
            + plain(name)
            + ", %{customdata[2]:,} facts<extra></extra>",
            meta={"role": "line", "state": state, "checkpoints": rows["checkpoint"].to_list()},
        )
    return figure
