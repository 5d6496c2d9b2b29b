"""One factoid, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memprobe.errors import MemprobeError
from memprobe.palette import template
from memprobe.plots.sketch import Looks, by_checkpoint, depth_ticks, line_of, plain

if TYPE_CHECKING:
    import polars as pl
    from plotly.graph_objects import Figure

RANK_TICKS = (0, 10, 100, 1_000, 10_000, 100_000)


def rank_trajectory(
    records: pl.DataFrame,
    *,
    k: int = 10,
    checkpoints: Sequence[str] | None = None,
    looks: Looks | None = None,
) -> Figure:
    """Rank and log-probability of one answer token by depth, a line per checkpoint; rank 0 is on top.

    Args:
        records: rows of one factoid and one answer token, of the RECORDS schema.
        k: where the dashed line stands: ranks above it are in the top k.
        checkpoints: their order; as in the table where not given.
        looks: see :data:`memprobe.plots.sketch.Looks`.

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
    for look, label, rows in by_checkpoint(records, checkpoints, looks):
        depth = rows["depth"].to_list()
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
    last = int(records["depth"].to_numpy().max()) if len(records) else 1
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
    figure.update_xaxes(title_text="depth", tickvals=depth_ticks(last), row=2, col=1)
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


def visible(token: str) -> str:
    """A token's text with its white space made visible: a leading space as ``·``, a newline as ``⏎``."""
    text = token.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    stripped = text.lstrip(" ")
    return "·" * (len(text) - len(stripped)) + stripped
