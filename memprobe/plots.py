"""Tables -> plotly figures: drawn, returned, never shown.

Nothing is computed here but positions on a page: every number comes from a table of
:mod:`memprobe.statistics` or from the records. The report and the notebooks draw with the same functions.

Each trace says in ``meta`` which checkpoint it belongs to and its role (``line``, ``band`` or ``control``), so
that a page can show some of a figure without drawing it anew.

A checkpoint is told by colour *and* marker, so that no figure needs colour vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    import polars as pl
    from plotly.graph_objects import Figure

# After Okabe and Ito (2008), moved so that each is at least 3:1 against the light and the dark background.
COLOURS = ("#2577b8", "#d05a14", "#128a6e", "#b8569a", "#a67c00", "#6f6ad1")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x")

# Dark enough throughout for white text in a cell.
HEAT = ((0, "#241b45"), (0.5, "#2f5d8a"), (1, "#1a8a6c"))

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


def style(position: int) -> dict[str, str]:
    """Colour and marker of the checkpoint at ``position`` in the order in which they were named."""
    # The markers of each further round of colours are open.
    suffix = "" if (position // len(COLOURS)) % 2 == 0 else "-open"
    return {
        "colour": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[position % len(MARKERS)] + suffix,
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
            "shapedefaults": {"line": {"color": ink["faint"], "width": 1}},
            "annotationdefaults": {"font": {"color": ink["faint"], "size": 11}},
        }
    }


def recall_curves(
    recall: pl.DataFrame, shuffled: pl.DataFrame | None = None, *, checkpoints: Sequence[str] | None = None
) -> Figure:
    """Recall@k by depth with its 95 % band, and dotted beneath it the level that shuffled answers reach.

    Args:
        recall: of :func:`memprobe.statistics.recall_by_depth`.
        shuffled: of :func:`memprobe.statistics.shuffled_recall`, at the same k and token rule.
        checkpoints: their order; as in the table where not given.
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
            fillcolor=_translucent(look["colour"], 0.14),
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
            **_line(label, look),
            hovertemplate=(
                "<b>%{y:.1%}</b> (%{customdata[0]:.1%} – %{customdata[1]:.1%}) "
                + _plain(label)
                + "<extra></extra>"
            ),
        )
    return figure


def normalised_frequency(frequency: pl.DataFrame, *, checkpoints: Sequence[str] | None = None) -> Figure:
    """Which share of all occurrences falls on each depth: sums to 1 over depths 1 … n_layers.

    Args:
        frequency: of :func:`memprobe.statistics.normalised_frequency`; a checkpoint in which nothing occurs
            has nulls and no line.
        checkpoints: their order; as in the table where not given.
    """
    figure = _figure(x="depth", y="share of occurrences", percent=True)
    figure.update_yaxes(rangemode="tozero")
    for position, label, rows in _by_checkpoint(frequency, checkpoints):
        figure.add_scatter(
            x=rows["depth"].to_list(),
            y=rows["frequency"].to_list(),
            **_line(label, style(position)),
            hovertemplate="<b>%{y:.1%}</b> " + _plain(label) + "<extra></extra>",
        )
    return figure


def lof_distribution(distribution: pl.DataFrame, *, checkpoints: Sequence[str] | None = None) -> Figure:
    """At which depth the answer first occurs, as a share of all factoids; those that never do stand apart.

    Args:
        distribution: one row per (checkpoint, lof) with ``share`` of factoids; lof null is "never".
        checkpoints: their order; as in the table where not given.
    """
    figure = _figure(x="layer of first occurrence", y="share of factoids", percent=True)
    figure.update_yaxes(rangemode="tozero")
    depths = distribution["lof"].max()
    last = int(depths) if depths is not None else 1  # type: ignore[arg-type]
    never = last + max(2, last // 12)
    for position, label, rows in _by_checkpoint(distribution, checkpoints):
        look = style(position)
        found = rows.filter(rows["lof"].is_not_null()).sort("lof")
        absent = rows.filter(rows["lof"].is_null())
        common: dict[str, Any] = {
            "legendgroup": label,
            "hovertemplate": "<b>%{y:.1%}</b> " + _plain(label) + "<extra></extra>",
        }
        figure.add_scatter(
            x=found["lof"].to_list(),
            y=found["share"].to_list(),
            **_line(label, look),
            **common,
        )
        figure.add_bar(
            x=[never] * len(absent),
            y=absent["share"].to_list(),
            name=f"{_plain(label)}, never",
            marker={
                "color": _translucent(look["colour"], 0.5),
                "line": {"color": look["colour"], "width": 1},
            },
            showlegend=False,
            meta={"checkpoint": label, "role": "line", "x": "never"},
            **common,
        )
    figure.update_layout(bargap=0.1, barmode="group")
    ticks = list(range(0, last + 1, _step(last)))
    figure.update_xaxes(
        tickvals=[*ticks, never], ticktext=[*map(str, ticks), "never"], range=[0, never + max(1, last / 20)]
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


def _figure(*, x: str, y: str, percent: bool) -> Figure:
    import plotly.graph_objects as go

    figure = go.Figure(layout={"template": template()})
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y, tickformat=".0%" if percent else None)
    return figure


def _line(label: str, look: dict[str, str]) -> dict[str, Any]:
    return {
        "mode": "lines+markers",
        "name": _plain(label),
        "line": {"color": look["colour"], "width": 2},
        "marker": {"symbol": look["marker"], "size": 6, "color": look["colour"]},
        "meta": {"checkpoint": label, "role": "line"},
    }


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
