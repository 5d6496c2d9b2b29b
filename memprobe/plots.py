"""Tables -> plotly figures: drawn, returned, never shown.

Nothing is computed here but positions on a page: every number comes from a table of
:mod:`memprobe.statistics` or from the records. The report and the notebooks draw with the same functions.

Each trace says in ``meta`` which checkpoint (or run) it belongs to and its role (``line``, ``band``, ``control`` …),
so that a page can show some of a figure without drawing it anew. ``meta`` of a layout gives the size in pixels of
figures that have a row for each checkpoint.

A checkpoint is told by colour *and* marker, so that no figure needs colour vision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    import polars as pl
    from plotly.graph_objects import Figure

P = ParamSpec("P")

# After Okabe and Ito (2008), moved so that each is at least 3:1 against the light and the dark background.
COLOURS = ("#2577b8", "#d05a14", "#128a6e", "#b8569a", "#a67c00", "#6f6ad1")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
DASHES = ("solid", "dash", "dashdot")

# Dark enough throughout for white text in a cell.
HEAT = ((0, "#241b45"), (0.5, "#2f5d8a"), (1, "#1a8a6c"))

# Lightness goes evenly from that of the page, so that more stands out without colour vision.
SEQUENTIAL = {
    "light": ((0, "#eef3f7"), (0.25, "#b4d0e3"), (0.5, "#6ba3c9"), (0.75, "#2b6ca3"), (1, "#12325c")),
    "dark": ((0, "#20262e"), (0.25, "#214362"), (0.5, "#2f6f9f"), (0.75, "#6db3ec"), (1, "#d8ecfb")),
}

# Of what becomes of a fact: said, only surfacing, absent.
FATES = ("#128a6e", "#d49a1e", "#8a919c")

RANK_TICKS = (0, 10, 100, 1_000, 10_000, 100_000)
TEMPLATES = {
    "light": {
        "text": "#454b54",
        "grid": "#e9ebee",
        "axis": "#c3c8cf",
        "paper": "#ffffff",
        "faint": "#8a919c",
    },
    "dark": {"text": "#b4bac4", "grid": "#2a2f37", "axis": "#474d57", "paper": "#181b20", "faint": "#7d8591"},
}


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


class _Drawn(Generic[P]):
    """A function that draws: called, it gives a plotly figure; ``sketch`` gives the same as plain JSON."""

    def __init__(self, draw: Callable[P, Sketch]) -> None:
        self.sketch = draw
        functools.update_wrapper(self, draw)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Figure:
        import plotly.graph_objects as go

        drawn = self.sketch(*args, **kwargs)
        return go.Figure(data=drawn.data, layout=drawn.layout | {"template": template()})


def _drawn(draw: Callable[P, Sketch]) -> _Drawn[P]:
    return _Drawn(draw)


def style(position: int) -> dict[str, str]:
    """Colour, marker and dash of the checkpoint at ``position`` in the order in which they were named."""
    # Each further round of colours has other markers, open ones, and other dashes.
    turn = position // len(COLOURS)
    suffix = "" if turn % 2 == 0 else "-open"
    return {
        "colour": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[(position + turn) % len(MARKERS)] + suffix,
        "dash": DASHES[turn % len(DASHES)],
    }


def template(theme: str = "light") -> dict[str, Any]:
    """The look of every figure as a plotly template, ``light`` or ``dark``."""
    ink = TEMPLATES[theme]
    axis = {
        "gridcolor": ink["grid"],
        "linecolor": ink["axis"],
        "zeroline": False,
        "ticks": "",
        "title": {"standoff": 8},
        "automargin": True,
    }
    font = {
        "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
        "size": 12,
        "color": ink["text"],
    }
    return {
        "layout": {
            "font": font,
            "paper_bgcolor": ink["paper"],
            "plot_bgcolor": ink["paper"],
            "xaxis": axis | {"showgrid": False, "showline": True},
            "yaxis": axis,
            "hovermode": "x unified",
            "hoverlabel": {"bgcolor": ink["paper"], "bordercolor": ink["axis"], "font": font},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 52, "r": 12, "t": 12, "b": 44},
            "colorscale": {"sequential": [list(stop) for stop in SEQUENTIAL[theme]]},
            "shapedefaults": {"line": {"color": ink["faint"], "width": 1}},
            "annotationdefaults": {"font": {"color": ink["faint"], "size": 11}},
        }
    }


@_drawn
def recall_curves(
    recall: pl.DataFrame,
    shuffled: pl.DataFrame | None = None,
    *,
    checkpoints: Sequence[str] | None = None,
    accuracy: Mapping[str, float | None] | None = None,
) -> Sketch:
    """Recall@k by depth with its 95 % band, and dotted beneath it the level that shuffled answers reach.

    Args:
        recall: of :func:`memprobe.statistics.recall_by_depth`.
        shuffled: of :func:`memprobe.statistics.shuffled_recall`, at the same k and token rule.
        checkpoints: their order; as in the table where not given.
        accuracy: share of exact answers by checkpoint, for the legend (as in the paper's figure 4).
    """
    figure = _figure(x="depth", y="recall", percent=True)
    figure.update_yaxes(range=[0, 1.02])
    for position, label, rows in _by_checkpoint(recall, checkpoints):
        look = style(position)
        depth, low, high = rows["depth"].to_list(), rows["low"].to_list(), rows["high"].to_list()
        figure.add_scatter(
            x=depth + depth[::-1],
            y=high + low[::-1],
            fill="toself",
            fillcolor=_translucent(look["colour"], 0.1),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            meta={"checkpoint": label, "role": "band"},
        )
        chance = None if shuffled is None else _rows(shuffled, label)
        if chance is not None and len(chance):
            figure.add_scatter(
                x=chance["depth"].to_list(),
                y=chance["recall"].to_list(),
                customdata=chance.select("low", "high").rows(),
                mode="lines",
                line={"color": look["colour"], "width": 1.5, "dash": "dot"},
                name=f"{_plain(label)}, shuffled",
                hovertemplate="%{y:.1%} <i>shuffled answers</i><extra></extra>",
                showlegend=False,
                meta={"checkpoint": label, "role": "control"},
            )
        figure.add_scatter(
            x=depth,
            y=rows["recall"].to_list(),
            customdata=rows.select("low", "high").rows(),
            **_line(label, look) | {"name": _with_accuracy(label, accuracy)},
            hovertemplate=(
                "<b>%{y:.1%}</b> (%{customdata[0]:.1%} – %{customdata[1]:.1%}) "
                + _plain(label)
                + "<extra></extra>"
            ),
        )
    return figure


@_drawn
def normalised_frequency(
    frequency: pl.DataFrame,
    *,
    checkpoints: Sequence[str] | None = None,
    accuracy: Mapping[str, float | None] | None = None,
) -> Sketch:
    """Which share of all occurrences falls on each depth: sums to 1 over depths 1 … n_layers.

    Args:
        frequency: of :func:`memprobe.statistics.normalised_frequency`; a checkpoint in which nothing occurs
            has nulls and no line.
        checkpoints: their order; as in the table where not given.
        accuracy: share of exact answers by checkpoint, for the legend.
    """
    figure = _figure(x="depth", y="share of occurrences", percent=True)
    figure.update_yaxes(rangemode="tozero")
    for position, label, rows in _by_checkpoint(frequency, checkpoints):
        figure.add_scatter(
            x=rows["depth"].to_list(),
            y=rows["frequency"].to_list(),
            **_line(label, style(position)) | {"name": _with_accuracy(label, accuracy)},
            hovertemplate="<b>%{y:.1%}</b> " + _plain(label) + "<extra></extra>",
        )
    return figure


def lof_distribution(distribution: pl.DataFrame, *, checkpoints: Sequence[str] | None = None) -> Figure:
    """At which depth the answer first occurs, as a share of all factoids; those that never do stand apart.

    Args:
        distribution: one row per (checkpoint, lof) with ``share`` of factoids; lof null is "never".
        checkpoints: their order; as in the table where not given.
    """
    return depth_distribution(distribution.rename({"lof": "depth"}), checkpoints=checkpoints)


@_drawn
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
    figure = _figure(x=of, y="share of factoids", percent=True)
    figure.update_yaxes(rangemode="tozero")
    depths = distribution["depth"].max()
    last = int(depths) if depths is not None else 1  # type: ignore[arg-type]
    never = last + max(2, last // 12)
    for position, label, rows in _by_checkpoint(distribution, checkpoints):
        look = style(position)
        found = rows.filter(rows["depth"].is_not_null())
        absent = rows.filter(rows["depth"].is_null())
        common: dict[str, Any] = {
            "legendgroup": label,
            "hovertemplate": "<b>%{y:.1%}</b> " + _plain(label) + "<extra></extra>",
        }
        figure.add_scatter(
            x=found["depth"].to_list(),
            y=found["share"].to_list(),
            **_line(label, look),
            **common,
        )
        figure.add(
            "bar",
            x=[never] * len(absent),
            y=absent["share"].to_list(),
            name=f"{_plain(label)}, never",
            marker={
                "color": _translucent(look["colour"], 0.5),
                "line": {"color": look["colour"], "width": 1},
            },
            showlegend=False,
            meta={"checkpoint": label, "role": "bar", "x": "never"},
            **common,
        )
    figure.update_layout(bargap=0.1, barmode="group")
    ticks = list(range(0, last + 1, _step(last)))
    figure.update_xaxes(
        tickvals=[*ticks, never], ticktext=[*map(str, ticks), "never"], range=[0, never + max(1, last / 20)]
    )
    return figure


@_drawn
def survival_curves(
    survival: pl.DataFrame, *, of: str = "first occurrence", checkpoints: Sequence[str] | None = None
) -> Sketch:
    """Kaplan–Meier curves: the share of factoids that have not surfaced by each depth, with 95 % bands.

    Args:
        survival: of :func:`memprobe.statistics.occurrence.kaplan_meier`, with ``checkpoint``.
        of: what is waited for, for the axis.
        checkpoints: their order; as in the table where not given.
    """
    figure = _figure(x="depth", y=f"still without {of}", percent=True)
    figure.update_yaxes(range=[0, 1.02])
    for position, label, rows in _by_checkpoint(survival, checkpoints):
        look = style(position)
        depth, low, high = (_stairs(rows[name].to_list(), name) for name in ("depth", "low", "high"))
        figure.add_scatter(
            x=depth + depth[::-1],
            y=high + low[::-1],
            fill="toself",
            fillcolor=_translucent(look["colour"], 0.08),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            meta={"checkpoint": label, "role": "band"},
        )
        line = _line(label, look)
        line["line"] = line["line"] | {"shape": "hv"}
        figure.add_scatter(
            x=rows["depth"].to_list(),
            y=rows["survival"].to_list(),
            customdata=rows.select("low", "high").rows(),
            **line,
            hovertemplate="<b>%{y:.1%}</b> (%{customdata[0]:.1%} – %{customdata[1]:.1%}) "
            + _plain(label)
            + "<extra></extra>",
        )
    return figure


@_drawn
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
    figure = _figure(x="depth", y="", percent=False)
    parts = _by_checkpoint(table, checkpoints)
    depths = sorted(table["depth"].unique().to_list())
    cells = [dict(rows.select("depth", column).iter_rows()) for _, _, rows in parts]
    figure.add(
        "heatmap",
        x=depths,
        y=[_clip(_plain(label), 28) for _, label, _ in parts],
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


@_drawn
def difference_forest(
    differences: pl.DataFrame,
    *,
    x: str,
    percent: bool = False,
    checkpoints: Sequence[str] | None = None,
) -> Sketch:
    """Paired differences with 95 % intervals, a row for each checkpoint, and the line of no difference.

    Args:
        differences: of one statistic; [against, reference, checkpoint, n, difference, low, high] and, where a second
            readout was probed, fixed_difference, fixed_low, fixed_high. ``against`` goes into ``meta`` for a page to
            choose by.
        x: what differs, with its unit.
        percent: shares, in percentage points.
        checkpoints: their order, which gives each its look; as in the table where not given.
    """
    figure = _figure(x=x, y="", percent=False)
    labels = (
        list(checkpoints)
        if checkpoints is not None
        else differences["checkpoint"].unique(maintain_order=True).to_list()
    )
    scale, digits, unit = (100, 1, " points") if percent else (1, 2, "")
    second = "fixed_difference" in differences.columns
    most = max(differences["n"], default=0)
    for row in differences.iter_rows(named=True):
        look = style(labels.index(row["checkpoint"]))
        name = _clip(_plain(row["checkpoint"]), 28)
        if row["n"] < most:
            name += f" (n = {row['n']:,})"
        opened = look["marker"].removesuffix("-open")
        opened += "" if opened != look["marker"] else "-open"
        # Rows of the second readout have one name, made distinct by what cannot be seen.
        below = "base model’s readout" + "\u200b" * labels.index(row["checkpoint"])
        own = ("", name, look["marker"], "")
        fixed = ("fixed_", below, opened, ", read out by the base model")
        for prefix, place, marker, note in (own, fixed) if second else (own,):
            value, low, high = (row[f"{prefix}{end}"] for end in ("difference", "low", "high"))
            if value is None:
                continue
            known = low is not None and high is not None
            figure.add_scatter(
                x=[value * scale],
                y=[place],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [(high - value) * scale if known else 0],
                    "arrayminus": [(value - low) * scale if known else 0],
                    "thickness": 1.2 if prefix else 2,
                    "width": 0,
                },
                customdata=[[low * scale, high * scale] if known else [None, None]],
                mode="markers",
                name=name + note,
                marker={
                    "symbol": marker,
                    "size": 9,
                    "color": look["colour"],
                    "line": {"width": 1.5, "color": look["colour"]},
                },
                showlegend=False,
                hovertemplate=f"<b>%{{x:+.{digits}f}}</b>{unit}"
                + (f" (%{{customdata[0]:+.{digits}f}} … %{{customdata[1]:+.{digits}f}})" if known else "")
                + f"<br>{_plain(row['checkpoint'])} − {_plain(row['reference'])}{note}"
                + f", n = {row['n']:,}<extra></extra>",
                meta={
                    "checkpoint": row["checkpoint"],
                    "role": "fixed" if prefix else "difference",
                    "against": row["against"],
                },
            )
    figure.add_shape(type="line", x0=0, x1=0, yref="paper", y0=0, y1=1, layer="below")
    figure.update_layout(hovermode="closest", margin={"t": 8}, meta={"row": 28, "frame": 66})
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_xaxes(showgrid=True, showline=False, nticks=6)
    return figure


@_drawn
def stage_lines(
    values: pl.DataFrame, *, y: str, percent: bool = False, looks: Mapping[str, int] | None = None
) -> Sketch:
    """A statistic from stage to stage, a line for each run, coloured by its arm; arms stand a little apart.

    Args:
        values: [arm, seed, checkpoint, stage (0 = base model), stage_name, value, low, high], in order; a null
            ``seed`` is the mean over an arm's seeds.
        y: what it is, with its unit.
        percent: shares.
        looks: by arm, the position whose :func:`style` it has; in order of the arms where not given.
    """
    figure = _figure(x="", y=y, percent=percent)
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
        who = _clip(_plain(arm), 48) + ("" if seed is None else f", seed {seed}")
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
        ticktext=[_clip(_plain(stages[stage]), 16) for stage in sorted(stages)],
        range=[min(stages) - 0.15, max(stages) + 0.15],
    )
    return figure


@_drawn
def fate_flows(flows: pl.DataFrame, stages: Sequence[str], *, names: Mapping[str, str]) -> Sketch:
    """What becomes of the facts from checkpoint to checkpoint of one run: a band for each change of state.

    Args:
        flows: of :func:`memprobe.statistics.overview.flows`.
        stages: a name for each checkpoint.
        names: how each state is called, in the order in which they stand.
    """
    states = list(names)
    colours = dict(zip(states, FATES, strict=True))
    total = float(flows.filter(flows["step"] == 0)["n"].sum())
    sizes: dict[tuple[int, str], int] = {}
    for row in flows.iter_rows(named=True):
        sizes[row["step"], row["source"]] = sizes.get((row["step"], row["source"]), 0) + row["n"]
        target = (row["step"] + 1, row["target"])
        if row["step"] == len(stages) - 2:
            sizes[target] = sizes.get(target, 0) + row["n"]
    nodes = [(step, state) for step in range(len(stages)) for state in states if sizes.get((step, state))]
    index = {node: at for at, node in enumerate(nodes)}
    tops: list[float] = []
    for step, state in nodes:
        above = sum(sizes.get((step, other), 0) for other in states[: states.index(state)])
        tops.append((above + sizes[step, state] / 2) / total)
    links = flows.filter(flows["n"] > 0)
    figure = _figure(x="", y="", percent=False)
    figure.add(
        "sankey",
        arrangement="fixed",
        node={
            "label": [f"{sizes[node]:,} {names[node[1]]}" for node in nodes],
            "x": [0.001 + 0.998 * step / (len(stages) - 1) for step, _ in nodes],
            "y": [min(max(top, 0.001), 0.999) for top in tops],
            "color": [colours[state] for _, state in nodes],
            "pad": 14,
            "thickness": 12,
            "line": {"width": 0},
            "hovertemplate": "%{label}<extra></extra>",
        },
        link={
            "source": [index[step, state] for step, state in links.select("step", "source").rows()],
            "target": [index[step + 1, state] for step, state in links.select("step", "target").rows()],
            "value": links["n"].to_list(),
            "color": [_translucent(colours[state], 0.35) for state in links["source"]],
            "customdata": links.select("share", "low", "high").rows(),
            "hovertemplate": "<b>%{value:,}</b> facts, %{customdata[0]:.1%} "
            "(%{customdata[1]:.1%} – %{customdata[2]:.1%})<br>%{source.label} → %{target.label}<extra></extra>",
        },
        meta={"role": "flows"},
    )
    figure.update_layout(margin={"l": 8, "r": 8, "t": 30, "b": 8})
    for step, name in enumerate(stages):
        last = step == len(stages) - 1
        figure.add_annotation(
            x=step / (len(stages) - 1),
            y=1,
            xref="paper",
            yref="paper",
            yanchor="bottom",
            yshift=8,
            xanchor="left" if step == 0 else "right" if last else "center",
            text=_clip(_plain(name), 24),
            showarrow=False,
        )
    return figure


@_drawn
def accuracy_matrix(scores: pl.DataFrame) -> Sketch:
    """Rows: a run after each stage; columns: the evaluated sets; each cell with its share of right answers.

    Args:
        scores: [row, dataset, value, low, high, n, metric], the shares only.
    """
    figure = _figure(x="", y="", percent=False)
    rows = scores["row"].unique(maintain_order=True).to_list()
    datasets = scores["dataset"].unique(maintain_order=True).to_list()
    cells = {(row["row"], row["dataset"]): row for row in scores.iter_rows(named=True)}
    grid = [[cells.get((row, dataset)) for dataset in datasets] for row in rows]
    figure.add(
        "heatmap",
        x=[_clip(_plain(name), 22) for name in datasets],
        y=[_clip(_plain(name), 44) for name in rows],
        z=[[None if cell is None else cell["value"] for cell in line] for line in grid],
        text=[["" if cell is None else _rounded(cell["value"]) for cell in line] for line in grid],
        texttemplate="%{text}",
        customdata=[
            [
                None if cell is None else [cell["low"], cell["high"], cell["n"], cell["metric"]]
                for cell in line
            ]
            for line in grid
        ],
        hovertemplate="<b>%{z:.1%}</b> (%{customdata[0]:.1%} – %{customdata[1]:.1%}) %{customdata[3]},"
        " n = %{customdata[2]:,}<br>%{x}, %{y}<extra></extra>",
        zmin=0,
        zmax=1,
        colorscale=HEAT,
        showscale=False,
        xgap=2,
        ygap=2,
        textfont={"color": "#ffffff", "size": 13},
        meta={"role": "matrix"},
    )
    figure.update_layout(hovermode="closest", margin={"t": 8}, meta={"row": 30, "frame": 44, "column": 130})
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showline=False, type="category", side="bottom")
    return figure


@_drawn
def training_curves(steps: pl.DataFrame, column: str, *, y: str, log: bool = False) -> Sketch:
    """A measure of training over a stage's optimiser steps, a line for each run.

    Args:
        steps: [run, step, ``column``] of one stage.
        column: such as loss or exact.
        y: what it is.
        log: whether its axis is logarithmic.
    """
    figure = _figure(x="optimiser step", y=y, percent=column == "exact")
    if column == "exact":
        figure.update_yaxes(range=[-0.02, 1.04])
    if log:
        decades = range(-8, 7)
        ticks = {
            "tickvals": [10.0**power for power in decades],
            "ticktext": [f"{10.0**power:,g}" for power in decades],
        }
        figure.update_yaxes(type="log", **ticks)
    form = ".1%" if column == "exact" else ".3g"
    for position, run in enumerate(steps["run"].unique(maintain_order=True).to_list()):
        rows = steps.filter((steps["run"] == run) & steps[column].is_not_null())
        look = style(position)
        dash = DASHES[position % len(DASHES)]
        if rows.is_empty():
            continue
        figure.add_scatter(
            x=rows["step"].to_list(),
            y=rows[column].to_list(),
            mode="lines",
            name=_plain(run),
            line={"color": look["colour"], "width": 1.6, "dash": dash},
            hovertemplate=f"<b>%{{y:{form}}}</b> {_plain(run)}<extra></extra>",
            meta={"run": run, "role": "line"},
        )
    return figure


def rank_trajectory(
    records: pl.DataFrame, *, k: int = 10, checkpoints: Sequence[str] | None = None
) -> Figure:
    """Rank and log-probability of one answer token by depth, a line per checkpoint; rank 0 is on top.

    Args:
        records: rows of one factoid and one answer token, of the RECORDS schema.
        k: where the dashed line stands: ranks above it are in the top k.
        checkpoints: their order; as in the table where not given.

    Raises:
        MemprobeError: the rows are of several factoids or answer tokens.
    """
    from plotly.subplots import make_subplots

    if records.select("factoid", "token").n_unique() > 1:
        raise MemprobeError(
            "rank_trajectory draws one factoid and one answer token: filter the records to these"
        )
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.06)
    figure.layout.template = template()
    for position, label, rows in _by_checkpoint(records, checkpoints):
        look, depth = style(position), rows["depth"].to_list()
        rank = rows["rank"].to_list()
        figure.add_scatter(
            x=depth,
            y=[
                value + 1 for value in rank
            ],  # a logarithmic axis has no 0; the tick labels take the 1 off again
            customdata=rank,
            **_line(label, look) | {"meta": {"checkpoint": label, "role": "line", "column": "rank"}},
            hovertemplate="rank <b>%{customdata:,}</b> " + _plain(label) + "<extra></extra>",
            row=1,
            col=1,
        )
        figure.add_scatter(
            x=depth,
            y=rows["log_prob"].to_list(),
            **_line(label, look)
            | {"showlegend": False, "meta": {"checkpoint": label, "role": "line", "column": "log_prob"}},
            hovertemplate="<b>%{y:.2f}</b> " + _plain(label) + "<extra></extra>",
            row=2,
            col=1,
        )
    figure.update_yaxes(
        type="log",
        autorange="reversed",
        tickvals=[tick + 1 for tick in RANK_TICKS],
        ticktext=[f"{tick:,}" for tick in RANK_TICKS],
        title_text="rank",
        row=1,
        col=1,
    )
    figure.update_yaxes(title_text="log-probability", row=2, col=1)
    figure.update_xaxes(title_text="depth", row=2, col=1)
    figure.add_shape(
        type="line",
        name="k",
        xref="x domain",
        x0=0,
        x1=1,
        y0=k + 0.5,
        y1=k + 0.5,
        line={"dash": "dash"},
        row=1,
        col=1,
    )
    return figure


def lens_heatmap(
    tokens: Sequence[str],
    top1: Sequence[Sequence[str]],
    probability: Sequence[Sequence[float]],
    *,
    answer: str | None = None,
    ranks: Sequence[Sequence[int]] | None = None,
) -> Figure:
    """The usual picture of a lens on one prompt: depth by position, the top-1 token in each cell.

    Args:
        tokens: [position] the prompt's tokens.
        top1: [depth][position] the token that the lens ranks first there; depth 0 … n_layers.
        probability: [depth][position] of that token.
        answer: a token to follow, named in the hover text.
        ranks: [depth][position] of ``answer``.

    Raises:
        MemprobeError: the shapes do not agree.
    """
    import plotly.graph_objects as go

    shapes = [top1, probability] + ([ranks] if ranks is not None else [])
    if any(len(rows) != len(top1) or any(len(row) != len(tokens) for row in rows) for rows in shapes):
        raise MemprobeError(
            "lens_heatmap: top1, probability and ranks must be [depth][position] over the same prompt"
        )
    positions = list(range(len(tokens)))
    read = [_plain(visible(token)) for token in tokens]
    hover = "after <b>%{customdata[0]}</b>, depth %{y}<br>reads <b>%{customdata[1]}</b> at %{z:.1%}"
    if ranks is not None:
        hover += f"<br>rank of {_plain(visible(answer or 'the answer'))}: %{{customdata[2]:,}}"
    figure = go.Figure(
        go.Heatmap(
            x=positions,
            y=list(range(len(top1))),
            z=[list(row) for row in probability],
            text=[[_plain(_clip(visible(text), 9)) for text in row] for row in top1],
            texttemplate="%{text}",
            customdata=[
                [
                    [read[position], _plain(visible(text)), "" if ranks is None else ranks[depth][position]]
                    for position, text in enumerate(row)
                ]
                for depth, row in enumerate(top1)
            ],
            hovertemplate=hover + "<extra></extra>",
            zmin=0,
            zmax=1,
            colorscale=HEAT,
            colorbar={
                "title": {"text": "probability"},
                "tickformat": ".0%",
                "thickness": 12,
                "outlinewidth": 0,
            },
            xgap=1,
            ygap=1,
        )
    )
    figure.update_layout(
        template=template(),
        hovermode="closest",
        height=max(320, 24 * len(top1) + 110),
        margin={"l": 52, "r": 12, "t": 40, "b": 60},
    )
    figure.update_xaxes(
        tickvals=positions,
        ticktext=[_plain(_clip(visible(token), 14)) for token in tokens],
        title_text="input token",
        showline=False,
    )
    figure.update_yaxes(title_text="depth", dtick=_step(len(top1)), showgrid=False)
    return figure


def visible(token: str) -> str:
    """A token's text with its white space made visible: a leading space as ``·``, a newline as ``⏎``."""
    text = token.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    stripped = text.lstrip(" ")
    return "·" * (len(text) - len(stripped)) + stripped


def _figure(*, x: str, y: str, percent: bool) -> Sketch:
    figure = Sketch()
    figure.update_xaxes(title={"text": x})
    figure.update_yaxes(title={"text": y}, **({"tickformat": ".0%"} if percent else {}))
    return figure


def _line(label: str, look: dict[str, str]) -> dict[str, Any]:
    return {
        "mode": "lines+markers",
        "name": _plain(label),
        "line": {"color": look["colour"], "width": 2, "dash": look["dash"]},
        "marker": {"symbol": look["marker"], "size": 6, "color": look["colour"]},
        "meta": {"checkpoint": label, "role": "line"},
    }


def _with_accuracy(label: str, accuracy: Mapping[str, float | None] | None) -> str:
    share = None if accuracy is None else accuracy.get(label)
    return _plain(label) + ("" if share is None else f" ({_rounded(share)} exact)")


def _rounded(share: float) -> str:
    """A percentage as the page writes it: halves go up."""
    return f"{math.floor(1000 * share + 0.5) / 10:g} %"


def _stairs(values: list[float], name: str) -> list[float]:
    """A column as stairs: each value holds until the next depth."""
    twice = [value for value in values for _ in range(2)]
    return twice[1:] if name == "depth" else twice[:-1]


def _equal(table: pl.DataFrame, column: str, value: Any) -> pl.Series:
    return table[column].is_null() if value is None else (table[column] == value).fill_null(value=False)


def _zipped(rows: pl.DataFrame, edge: str, known: pl.Series) -> Iterator[tuple[float, float | None, bool]]:
    return zip(rows["value"], rows[edge], known, strict=True)


def _by_checkpoint(
    table: pl.DataFrame, checkpoints: Sequence[str] | None
) -> list[tuple[int, str, pl.DataFrame]]:
    """(position, label, rows by depth) in order; a checkpoint without rows is left out and keeps its colour."""
    labels = (
        list(checkpoints)
        if checkpoints is not None
        else table["checkpoint"].unique(maintain_order=True).to_list()
    )
    parts = [(position, label, _rows(table, label)) for position, label in enumerate(labels)]
    return [part for part in parts if len(part[2])]


def _rows(table: pl.DataFrame, label: str) -> pl.DataFrame:
    rows = table.filter(table["checkpoint"] == label)
    return rows.sort("depth") if "depth" in rows.columns else rows


def _plain(text: str) -> str:
    """Text that plotly draws as it stands: its labels read a subset of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _translucent(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _step(last: int) -> int:
    """Distance between depth ticks: about eight of them."""
    return max(1, round(last / 8))
