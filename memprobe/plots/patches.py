"""Figures of patches: which depths, at which positions, give a fact back."""

from __future__ import annotations

import polars as pl

from memprobe.palette import style
from memprobe.plots import sketch
from memprobe.statistics.patches import SWEEP


def sweep_names(by_depth: pl.DataFrame) -> list[str]:
    """A name for each sweep of a table, of what tells it from the others alone."""
    sweeps = by_depth.select(SWEEP).unique(maintain_order=True)
    several = [name for name in SWEEP if sweeps[name].n_unique() > 1] or ["positions"]
    names = []
    for row in sweeps.iter_rows(named=True):
        words: list[str] = []
        if "source" in several or "target" in several:
            words.append(f"{row['source']} → {row['target']}")
        if row["what"] == "weights":
            words += [str(row["parts"])] if several == ["positions"] or "parts" in several else []
            words += [f"{row['window']} block{'s' * (row['window'] != 1)}"] if "window" in several else []
        else:
            words += [str(row[name]) for name in ("what", "positions") if name in several]
        words += [str(row["direction"])] if "direction" in several else []
        names.append(", ".join(words) or str(row["what"]))
    return names


MOST_TICKS = 12
"""Places up to which each has its number on the axis."""


@sketch.drawn
def restoration_heatmap(by_depth: pl.DataFrame) -> sketch.Sketch:
    """The share that each patch moves, depth by sweep (positions, parts, pairs).

    Args:
        by_depth: of :func:`memprobe.statistics.patches.by_depth`.
    """
    figure = sketch.figure_of(x=_axis(by_depth), y="", percent=False)
    parts = by_depth.partition_by(SWEEP, maintain_order=True)
    names = sweep_names(by_depth)
    depths = sketch.add_cells(
        figure,
        [(sketch.clip(sketch.plain(name), 34), part) for name, part in zip(names, parts, strict=True)],
        "moved",
        largest=1,
        hovertemplate="<b>%{z:.1%}</b> at %{x}<br>%{y}<extra></extra>",
        meta={"rows": names, "role": "cells"},
    )
    if len(depths) <= MOST_TICKS:
        figure.update_xaxes(dtick=1)  # of depths, or of those that there are
    return figure


@sketch.drawn
def restoration_curves(by_depth: pl.DataFrame) -> sketch.Sketch:
    """The share that each patch moves by depth with its 95 % band, and dotted what another factoid's states do
    (random weights for grafts).

    Args:
        by_depth: of :func:`memprobe.statistics.patches.by_depth`.
    """
    figure = sketch.figure_of(x=_axis(by_depth), y="moved", percent=True)
    own = [value for value in by_depth["moved"].to_list() if value is not None]
    floor = min([_FLOOR, *(value - 0.04 for value in own)])
    names = sweep_names(by_depth)
    parts = by_depth.partition_by(SWEEP, maintain_order=True)
    for position, (part, name) in enumerate(zip(parts, names, strict=True)):
        rows = part.sort("depth")
        look = style(position)
        depth = rows["depth"].to_list()
        edges = rows.filter(pl.col("low").is_not_null())
        sketch.add_band(
            figure,
            edges["depth"].to_list(),
            edges["low"].to_list(),
            edges["high"].to_list(),
            colour=look["colour"],
            meta={"checkpoint": name},
        )
        control = "other" if rows["other"].is_not_null().any() else "random"
        if rows[control].is_not_null().any():
            kind = "another fact's states" if control == "other" else "random"
            sketch.add_control(figure, name, depth, rows[control].to_list(), look=look, kind=kind, tip=kind)
            _mark_below(figure, name, rows.select("depth", control).rows(), floor, look=look, kind=kind)
        figure.add_scatter(
            x=depth,
            y=rows["moved"].to_list(),
            customdata=rows.select("low", "high").rows(),
            **sketch.line_of(name, look),
            hovertemplate=sketch.share_tip(name),
        )
    # Solid and thin: what is dotted is a control.
    figure.add_shape(
        type="line", xref="paper", x0=0, x1=1, y0=0.5, y1=0.5, line={"width": 0.7}, layer="below"
    )
    figure.add_annotation(
        xref="paper", x=1, xanchor="right", y=0.5, yanchor="bottom", text="half", showarrow=False
    )
    places = sorted(by_depth["depth"].unique())
    if len(places) <= MOST_TICKS or sketch.has_gaps(places):
        figure.update_xaxes(tickvals=places)
    figure.update_yaxes(range=[floor, max([1.06, *own]) + 0.02])
    return figure


_FLOOR = -0.4
"""Where the chart ends, unless a patch itself goes below: a control can take away many times what is to be restored."""


def _mark_below(
    figure: sketch.Sketch,
    name: str,
    points: list[tuple[float, float | None]],
    floor: float,
    *,
    look: dict[str, str],
    kind: str,
) -> None:
    """Marks what lies below the chart on its lower edge, with the values in tooltips and the lowest in writing."""
    below = [(depth, value) for depth, value in points if value is not None and value < floor]
    if not below:
        return
    figure.add_scatter(
        x=[depth for depth, _ in below],
        y=[floor + 0.04] * len(below),
        customdata=[[value] for _, value in below],
        mode="markers",
        marker={"symbol": "triangle-down", "size": 7, "color": look["colour"]},
        name=f"{sketch.plain(name)}, {kind}, below the chart",
        hovertemplate=f"<b>%{{customdata[0]:,.0%}}</b> <i>{kind}</i>, below the chart<extra></extra>",
        showlegend=False,
        meta={"checkpoint": name, "role": "control"},
    )
    depth, lowest = min(below, key=lambda point: point[1])
    figure.add_annotation(
        x=depth, y=floor + 0.06, yanchor="bottom", text=f"{kind}: down to {lowest:,.0%}", showarrow=False
    )


def _axis(by_depth: pl.DataFrame) -> str:
    kinds = set(by_depth["what"])
    if kinds == {"weights"}:
        return "first grafted block"
    return "depth" if kinds <= {"residual"} else "depth, or block"
