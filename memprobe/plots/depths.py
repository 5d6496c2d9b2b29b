"""How first occurrences and settled depths spread over the depths, and depth by checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memprobe.palette import style, translucent
from memprobe.plots.sketch import (
    Sketch,
    by_checkpoint,
    clip,
    drawn,
    figure_of,
    line_of,
    plain,
    tick_step,
)

if TYPE_CHECKING:
    import polars as pl
    from plotly.graph_objects import Figure


def lof_distribution(distribution: pl.DataFrame, *, checkpoints: Sequence[str] | None = None) -> Figure:
    """At which depth the answer first occurs, as a share of all factoids; those that never do stand apart.

    Args:
        distribution: one row per (checkpoint, lof) with ``share`` of factoids; lof null is "never".
        checkpoints: their order; as in the table where not given.
    """
    return depth_distribution(distribution.rename({"lof": "depth"}), checkpoints=checkpoints)


@drawn
def depth_distribution(
    distribution: pl.DataFrame,
    *,
    of: str = "layer of first occurrence",
    checkpoints: Sequence[str] | None = None,
) -> Sketch:
    """How first occurrences or settled depths spread over the depths; factoids without one stand apart.

    Args:
        distribution: of :func:`memprobe.statistics.overview.depth_shares`; depth null is "never".
        of: what the depths are, for the axis.
        checkpoints: their order; as in the table where not given.
    """
    figure = figure_of(x=of, y="share of factoids", percent=True)
    figure.update_yaxes(rangemode="tozero")
    depths = distribution["depth"].max()
    last = int(depths) if depths is not None else 1  # type: ignore[arg-type]
    never = last + max(2, last // 12)
    for position, label, rows in by_checkpoint(distribution, checkpoints):
        look = style(position)
        found = rows.filter(rows["depth"].is_not_null())
        absent = rows.filter(rows["depth"].is_null())
        common: dict[str, Any] = {
            "legendgroup": label,
            "hovertemplate": "<b>%{y:.1%}</b> " + plain(label) + "<extra></extra>",
        }
        figure.add_scatter(
            x=found["depth"].to_list(),
            y=found["share"].to_list(),
            **line_of(label, look),
            **common,
        )
        figure.add(
            "bar",
            x=[never] * len(absent),
            y=absent["share"].to_list(),
            name=f"{plain(label)}, never",
            marker={
                "color": translucent(look["colour"], 0.5),
                "line": {"color": look["colour"], "width": 1},
            },
            showlegend=False,
            meta={"checkpoint": label, "role": "bar", "x": "never"},
            **common,
        )
    figure.update_layout(bargap=0.1, barmode="group")
    ticks = list(range(0, last + 1, tick_step(last)))
    figure.update_xaxes(
        tickvals=[*ticks, never], ticktext=[*map(str, ticks), "never"], range=[0, never + max(1, last / 20)]
    )
    return figure


@drawn
def depth_heatmap(
    table: pl.DataFrame,
    column: str,
    *,
    title: str,
    largest: float | None = 1.0,
    checkpoints: Sequence[str] | None = None,
) -> Sketch:
    """Depth by checkpoint, a row for each checkpoint.

    Args:
        table: with checkpoint, depth and ``column``, such as recall or the normalised frequency.
        title: of the colours.
        largest: where they end; ``None`` for the table's largest.
        checkpoints: their order; as in the table where not given.
    """
    figure = figure_of(x="depth", y="", percent=False)
    parts = by_checkpoint(table, checkpoints)
    depths = sorted(table["depth"].unique().to_list())
    cells = [dict(rows.select("depth", column).iter_rows()) for _, _, rows in parts]
    figure.add(
        "heatmap",
        x=depths,
        y=[clip(plain(label), 28) for _, label, _ in parts],
        z=[[line.get(depth) for depth in depths] for line in cells],
        coloraxis="coloraxis",
        xgap=1,
        ygap=2,
        hovertemplate=f"<b>%{{z:.1%}}</b> {title} at depth %{{x}}<br>%{{y}}<extra></extra>",
        meta={"rows": [label for _, label, _ in parts], "role": "cells"},
    )
    bar = {
        "tickformat": ".0%",
        "thickness": 8,
        "outlinewidth": 0,
        "orientation": "h",
        "y": 1.0,
        "yanchor": "bottom",
        "ypad": 2,
        "x": 0,
        "xanchor": "left",
        "xpad": 0,
        "len": 0.4,
        "nticks": 4,
    }
    scale = {"colorbar": bar, "cmin": 0} | ({"cmax": largest} if largest else {})
    figure.update_layout(
        coloraxis=scale,
        hovermode="closest",
        margin={"t": 34},
        meta={"row": 26, "frame": 82},
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return figure
