"""One factoid, and one prompt, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memprobe.errors import MemprobeError
from memprobe.palette import HEAT, style, template
from memprobe.plots.sketch import (
    by_checkpoint,
    clip,
    line_of,
    plain,
    tick_step,
)

if TYPE_CHECKING:
    import polars as pl
    from plotly.graph_objects import Figure

RANK_TICKS = (0, 10, 100, 1_000, 10_000, 100_000)


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
    for position, label, rows in by_checkpoint(records, checkpoints):
        look, depth = style(position), rows["depth"].to_list()
        rank = rows["rank"].to_list()
        figure.add_scatter(
            x=depth,
            y=[
                value + 1 for value in rank
            ],  # a logarithmic axis has no 0; the tick labels take the 1 off again
            customdata=rank,
            **line_of(label, look) | {"meta": {"checkpoint": label, "role": "line", "column": "rank"}},
            hovertemplate="rank <b>%{customdata:,}</b> " + plain(label) + "<extra></extra>",
            row=1,
            col=1,
        )
        figure.add_scatter(
            x=depth,
            y=rows["log_prob"].to_list(),
            **line_of(label, look)
            | {"showlegend": False, "meta": {"checkpoint": label, "role": "line", "column": "log_prob"}},
            hovertemplate="<b>%{y:.2f}</b> " + plain(label) + "<extra></extra>",
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
    read = [plain(visible(token)) for token in tokens]
    hover = "after <b>%{customdata[0]}</b>, depth %{y}<br>reads <b>%{customdata[1]}</b> at %{z:.1%}"
    if ranks is not None:
        hover += f"<br>rank of {plain(visible(answer or 'the answer'))}: %{{customdata[2]:,}}"
    figure = go.Figure(
        go.Heatmap(
            x=positions,
            y=list(range(len(top1))),
            z=[list(row) for row in probability],
            text=[[plain(clip(visible(text), 9)) for text in row] for row in top1],
            texttemplate="%{text}",
            customdata=[
                [
                    [read[position], plain(visible(text)), "" if ranks is None else ranks[depth][position]]
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
        ticktext=[plain(clip(visible(token), 14)) for token in tokens],
        title_text="input token",
        showline=False,
    )
    figure.update_yaxes(title_text="depth", dtick=tick_step(len(top1)), showgrid=False)
    return figure


def side_by_side(figures: Mapping[str, Figure]) -> Figure:
    """Heatmaps of one prompt beside each other, under one scale of depths; one alone stays as it is.

    Args:
        figures: by what stands above each, as :func:`lens_heatmap` draws them.
    """
    from plotly.subplots import make_subplots

    drawn = list(figures.values())
    if len(drawn) == 1:
        return drawn[0]
    together = make_subplots(
        cols=len(drawn),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[plain(name) for name in figures],
    )
    layout: Any = drawn[0].layout
    for column, figure in enumerate(drawn, 1):
        together.add_trace(figure.data[0], col=column, row=1)
        together.update_traces(showscale=column == len(drawn), col=column)
    together.update_xaxes(
        tickvals=layout.xaxis.tickvals,
        ticktext=layout.xaxis.ticktext,
        title_text="input token",
        showline=False,
    )
    together.update_yaxes(dtick=layout.yaxis.dtick, showgrid=False)
    together.update_yaxes(title_text="depth", col=1)
    together.update_layout(
        template=template(), hovermode="closest", height=layout.height, margin=layout.margin.to_plotly_json()
    )
    return together


def visible(token: str) -> str:
    """A token's text with its white space made visible: a leading space as ``·``, a newline as ``⏎``."""
    text = token.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    stripped = text.lstrip(" ")
    return "·" * (len(text) - len(stripped)) + stripped
