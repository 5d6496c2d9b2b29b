"""A figure as plain JSON while it is drawn, and the pieces that several figures share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

from memprobe.palette import style, template, translucent

if TYPE_CHECKING:
    import polars as pl
    from plotly.graph_objects import Figure

P = ParamSpec("P")
FLOOR_COLOUR = "#8c8c8c"
"""Of what a fitted lens cannot tell apart, in either theme."""


class Sketch:
    """A figure as plain JSON while it is drawn: a page holds hundreds, and plotly's objects check each number.

    Attributes:
        data: traces.
        layout: without the template.
    """

    def __init__(self) -> None:
        self.data: list[dict[str, Any]] = []
        self.layout: dict[str, Any] = {"xaxis": {}, "yaxis": {}}

    def add(self, kind: str, **trace: Any) -> None:
        """A trace."""
        self.data.append({"type": kind} | {key: value for key, value in trace.items() if value is not None})

    def add_scatter(self, **trace: Any) -> None:
        """Lines or markers."""
        self.add("scatter", **trace)

    def add_shape(self, **shape: Any) -> None:
        """A line on the page."""
        self.layout.setdefault("shapes", []).append(shape)

    def add_annotation(self, **annotation: Any) -> None:
        """A text on the page."""
        self.layout.setdefault("annotations", []).append(annotation)

    def update_layout(self, **layout: Any) -> None:
        """Replaces parts of the layout."""
        self.layout |= layout

    def update_xaxes(self, **axis: Any) -> None:
        """Adds to the x axis."""
        self.layout["xaxis"] |= axis

    def update_yaxes(self, **axis: Any) -> None:
        """Adds to the y axis."""
        self.layout["yaxis"] |= axis


class Drawn(Generic[P]):
    """A function that draws: called, it gives a plotly figure; ``sketch`` gives the same as plain JSON."""

    def __init__(self, draw: Callable[P, Sketch]) -> None:
        self.sketch = draw
        functools.update_wrapper(self, draw)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Figure:
        """A plotly figure."""
        import plotly.graph_objects as go

        drawn = self.sketch(*args, **kwargs)
        return go.Figure(data=drawn.data, layout=drawn.layout | {"template": template()})


def drawn(draw: Callable[P, Sketch]) -> Drawn[P]:
    """Makes a function that sketches into one that gives a figure."""
    return Drawn(draw)


def figure_of(*, x: str, y: str, percent: bool) -> Sketch:
    """An empty figure with titled axes."""
    figure = Sketch()
    figure.update_xaxes(title={"text": x})
    figure.update_yaxes(title={"text": y}, **({"tickformat": ".0%"} if percent else {}))
    return figure


def add_cells(
    figure: Sketch,
    rows: Sequence[tuple[str, pl.DataFrame]],
    column: str,
    *,
    largest: float | None,
    every: bool = False,
    **trace: Any,
) -> list[int]:
    """Shares by depth as colours, a row a name, with their scale above.

    Where there are gaps between the depths, each has a cell and a tick of its own, as wide as any other's: the axis
    then is one of categories.

    Args:
        rows: the name of each, and its table with depth and ``column``.
        largest: where the colours end; ``None`` for the largest share.
        every: whether gaps are blank cells instead.
        trace: what is told of a cell and of the rows.

    Returns:
        The depths.
    """
    cells = [dict(row.select("depth", column).iter_rows()) for _, row in rows]
    depths = sorted({depth for row in cells for depth in row})
    if every and depths:
        depths = list(range(depths[0], depths[-1] + 1))
    if largest is None:
        # Without either end plotly ranges by itself; where there is nothing, any scale does.
        largest = max((share for row in cells for share in row.values() if share is not None), default=0) or 1
    if has_gaps(depths):
        figure.update_xaxes(type="category")
    figure.add(
        "heatmap",
        x=list(map(str, depths)) if has_gaps(depths) else depths,
        y=[name for name, _ in rows],
        z=[[row.get(depth) for depth in depths] for row in cells],
        coloraxis="coloraxis",
        xgap=1,
        ygap=2,
        **trace,
    )
    scale = {"tickformat": ".0%", "thickness": 8, "outlinewidth": 0, "orientation": "h", "y": 1.0}
    scale |= {"yanchor": "bottom", "ypad": 2, "x": 0, "xanchor": "left", "xpad": 0, "len": 0.4, "nticks": 4}
    figure.update_layout(
        coloraxis={"colorbar": scale, "cmin": 0, "cmax": largest},
        hovermode="closest",
        margin={"t": 34},
        meta={"row": 26, "frame": 82},
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return depths


def line_of(label: str, look: Mapping[str, str]) -> dict[str, Any]:
    """The trace of a checkpoint's line in its look."""
    return {
        "mode": "lines+markers",
        "name": plain(label),
        "line": {"color": look["colour"], "width": 2, "dash": look["dash"]},
        "marker": {"symbol": look["marker"], "size": 6, "color": look["colour"]},
        "meta": {"checkpoint": label, "role": "line"},
    }


def add_band(
    figure: Sketch,
    x: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    colour: str,
    opacity: float = 0.1,
    meta: Mapping[str, Any],
) -> None:
    """What lies between two curves, in a line's colour: a 95 % band.

    Args:
        meta: whose band it is; ``role`` is added.
    """
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=translucent(colour, opacity),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        meta={**meta, "role": "band"},
    )


def add_control(
    figure: Sketch,
    label: str,
    x: Sequence[float],
    y: Sequence[float],
    *,
    look: Mapping[str, str],
    kind: str,
    tip: str,
    customdata: Sequence[Any] | None = None,
) -> None:
    """A checkpoint's level by chance: a dotted line in its colour.

    Args:
        kind: what it is, behind the label in its name.
        tip: what it is, in the tooltip.
        customdata: for each point, what the page may ask of it.
    """
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": look["colour"], "width": 1.5, "dash": "dot"},
        name=f"{plain(label)}, {kind}",
        hovertemplate=f"%{{y:.1%}} <i>{tip}</i><extra></extra>",
        showlegend=False,
        meta={"checkpoint": label, "role": "control", "kind": kind},
        customdata=customdata,
    )


def add_floor_band(figure: Sketch, floor: float | None) -> None:
    """On an axis of depths apart, what two fits of a lens differ by: within it a difference says nothing."""
    if floor:
        shape = {"type": "rect", "x0": -floor, "x1": floor, "yref": "paper", "y0": 0, "y1": 1}
        figure.add_shape(**shape, fillcolor=FLOOR_COLOUR, opacity=0.22, line={"width": 0}, layer="below")
        _say_floor(figure, f"grey: the lens’s floor, ±{floor:.2g}")


def add_floor_width(figure: Sketch, floor: float | None, *, at: float) -> None:
    """On an axis of depths, as a bar of its own width from ``at`` on, how far apart two fits place the mean."""
    if floor:
        shape = {"type": "rect", "x0": at, "x1": at + floor, "yref": "paper", "y0": 0.965, "y1": 1}
        figure.add_shape(**shape, fillcolor=FLOOR_COLOUR, opacity=0.7, line={"width": 0})
        _say_floor(figure, f"bar: the lens’s floor, {floor:.2g} depths", inside=True)


def _say_floor(figure: Sketch, text: str, *, inside: bool = False) -> None:
    place = {"xref": "paper", "x": 1, "xanchor": "right", "yref": "paper", "y": 1}
    place["yanchor"] = "top" if inside else "bottom"
    figure.add_annotation(**place, text=text, showarrow=False, font={"size": 11, "color": FLOOR_COLOUR})


def share_tip(label: str) -> str:
    """The tooltip of a share whose interval is its ``customdata``."""
    return (
        f"<b>%{{y:.1%}}</b> (%{{customdata[0]:.1%}} – %{{customdata[1]:.1%}}) {plain(label)}<extra></extra>"
    )


def percentage(share: float) -> str:
    """A percentage as the page writes it: halves go up."""
    return f"{math.floor(1000 * share + 0.5) / 10:g}%"


Looks = Mapping[str, Mapping[str, str]]
"""By checkpoint, how it looks where that is not by its position: see :func:`memprobe.palette.along`."""


def by_checkpoint(
    table: pl.DataFrame, checkpoints: Sequence[str] | None, looks: Looks | None = None
) -> list[tuple[Mapping[str, str], str, pl.DataFrame]]:
    """(look, label, rows by depth) in order; a checkpoint without rows is left out and keeps its colour."""
    labels = (
        list(checkpoints)
        if checkpoints is not None
        else table["checkpoint"].unique(maintain_order=True).to_list()
    )
    parts = [
        ((looks or {}).get(label) or style(position), label, rows_of(table, label))
        for position, label in enumerate(labels)
    ]
    return [part for part in parts if len(part[2])]


def rows_of(table: pl.DataFrame, label: str) -> pl.DataFrame:
    """A checkpoint's rows, by depth where there is one."""
    rows = table.filter(table["checkpoint"] == label)
    return rows.sort("depth") if "depth" in rows.columns else rows


def plain(text: str) -> str:
    """Text that plotly draws as it stands: its labels read a subset of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")


def clip(text: str, length: int) -> str:
    """Text of at most so many characters, the last an ellipsis where some are left out."""
    return text if len(text) <= length else text[: length - 1] + "…"


def depth_ticks(last: int, first: int = 0) -> list[int]:
    """About eight depths to tick, the last of them the model's own readout: where most of it happens."""
    step = tick_step(last)
    ticks = [depth for depth in range(first, last, step) if last - depth > step / 2]
    return [*ticks, last]


def has_gaps(depths: Sequence[int]) -> bool:
    """Whether depths, in order, leave some out between the first and the last."""
    return len(depths) > 0 and depths[-1] - depths[0] >= len(depths)


def log_ticks(low: float, high: float) -> list[float]:
    """Three ticks and more of a logarithmic axis: decades, else parts of them, and round numbers where all is near."""
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for parts in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [part * decade for decade in decades for part in parts if low <= part * decade <= high]
        if len(ticks) >= 3:
            return ticks
    if high <= low:
        return [low]
    unit = 10.0 ** math.floor(math.log10(high - low))
    step = next(unit / by for by in (1, 2, 5, 10) if (high - low) * by / unit >= 3)
    return [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def tick_step(last: int) -> int:
    """Distance between depth ticks: about eight of them."""
    return max(1, round(last / 8))
