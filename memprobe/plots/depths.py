"""How first occurrences and settled depths spread over the depths, and depth by checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memprobe.palette import translucent
from memprobe.plots import sketch
from memprobe.wording import shortened

if TYPE_CHECKING:
    import polars as pl
    from plotly.graph_objects import Figure


MOST_BARS = 6
"""Checkpoints whose bars can stand beside each other at a depth."""


def lof_distribution(distribution: pl.DataFrame, *, checkpoints: Sequence[str] | None = None) -> Figure:
    """At which depth the answer first occurs, as a share of all factoids; those that never do stand apart.

    Args:
        distribution: one row per (checkpoint, lof) with ``share`` of factoids; lof null is "never".
        checkpoints: their order; as in the table where not given.
    """
    return depth_distribution(distribution.rename({"lof": "depth"}), checkpoints=checkpoints)


@sketch.drawn
def depth_distribution(
    distribution: pl.DataFrame,
    *,
    of: str = "first occurrence",
    checkpoints: Sequence[str] | None = None,
    looks: sketch.Looks | None = None,
    floor: float | None = None,
) -> sketch.Sketch:
    """How first occurrences or settled depths spread over the depths, in bars; factoids without one stand apart.

    More than :data:`MOST_BARS` checkpoints get a row of colours each.

    Args:
        distribution: of :func:`memprobe.statistics.overview.depth_shares`; depth null is "never".
        of: what the depths are, for the axis.
        checkpoints: their order; as in the table where not given.
        looks: see :data:`memprobe.plots.sketch.Looks`.
        floor: in depths, how far apart two fits of a fitted lens place the mean; a bar of that width.
    """
    depths = distribution["depth"].max()
    last = int(depths) if depths is not None else 1  # type: ignore[arg-type]
    parts = sketch.by_checkpoint(distribution, checkpoints, looks)
    if len(parts) > MOST_BARS:
        # The next cell: an axis with a gap would be one of categories, where a range counts cells.
        never = last + 1
        placed = distribution.with_columns(distribution["depth"].fill_null(never))
        figure = depth_heatmap.sketch(
            placed, "share", title="of facts", largest=None, checkpoints=checkpoints, at=of, every=True
        )
        figure.update_xaxes(**_depths_and_never(last, never), range=[0.5, never + 0.5])
        sketch.add_floor_width(figure, floor, at=1)
        return figure
    never = last + max(2, last // 8)
    figure = sketch.figure_of(x=of, y="share of facts", percent=True)
    figure.update_yaxes(rangemode="tozero")
    for look, label, rows in parts:
        reached = rows.filter(rows["depth"].is_not_null())
        absent = rows.filter(rows["depth"].is_null())
        bar: dict[str, Any] = {
            "legendgroup": label,
            "offsetgroup": label,  # both traces of a checkpoint have one place at a depth, not two
            "hovertemplate": "<b>%{y:.1%}</b> " + sketch.plain(label) + "<extra></extra>",
            "marker": {"color": look["colour"], "line": {"color": look["colour"], "width": 0}},
        }
        figure.add(
            "bar",
            x=reached["depth"].to_list(),
            y=reached["share"].to_list(),
            name=sketch.plain(label),
            meta={"checkpoint": label, "role": "line", "marker": look["marker"]},
            **bar,
        )
        figure.add(
            "bar",
            x=[never] * len(absent),
            y=absent["share"].to_list(),
            name=f"{sketch.plain(label)}, never",
            showlegend=False,
            meta={"checkpoint": label, "role": "bar", "x": "never"},
            **bar
            | {
                "marker": {
                    "color": translucent(look["colour"], 0.5),
                    "line": {"color": look["colour"], "width": 1},
                }
            },
        )
    figure.update_layout(bargap=0.1, barmode="group")
    figure.update_xaxes(**_depths_and_never(last, never), range=[0.5 - last / 60, never + max(1, last / 20)])
    sketch.add_floor_width(figure, floor, at=1)
    return figure


def _depths_and_never(last: int, never: int) -> dict[str, Any]:
    """Ticks of depths, but for those that "never" would cover where it is the next depth."""
    ticks = [depth for depth in sketch.depth_ticks(last, 1) if never > last + 1 or never - depth >= last / 8]
    return {"tickvals": [*ticks, never], "ticktext": [*map(str, ticks), "never"]}


@sketch.drawn
def depth_heatmap(
    table: pl.DataFrame,
    column: str,
    *,
    title: str,
    largest: float | None = 1.0,
    checkpoints: Sequence[str] | None = None,
    looks: sketch.Looks | None = None,
    at: str = "depth",
    every: bool = False,
) -> sketch.Sketch:
    """Depth by checkpoint, a row for each checkpoint.

    Args:
        table: with checkpoint, depth and ``column``, such as recall or the normalised frequency.
        title: of the colours.
        largest: where they end; ``None`` for the table's largest.
        checkpoints: their order; as in the table where not given.
        looks: not used here: rows have no colour of their own.
        at: what the depths are, for the axis.
        every: whether depths that no row has get blank cells.
    """
    figure = sketch.figure_of(x=at, y="", percent=False)
    parts = sketch.by_checkpoint(table, checkpoints)
    names = shortened([label for _, label, _ in parts])
    depths = sketch.add_cells(
        figure,
        [(sketch.plain(names[label]), rows) for _, label, rows in parts],
        column,
        largest=largest,
        every=every,
        hovertemplate=f"<b>%{{z:.1%}}</b> {title} at depth %{{x}}<br>%{{y}}<extra></extra>",
        meta={"rows": [label for _, label, _ in parts], "role": "cells"},
    )
    figure.update_xaxes(tickvals=sketch.depth_ticks(depths[-1], depths[0]))
    return figure
