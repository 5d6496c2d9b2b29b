"""What blocks write towards answers, by depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memprobe.palette import style
from memprobe.plots.sketch import Sketch, add_band, depth_ticks, drawn, figure_of, line_of, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl


@drawn
def contribution_curves(contributions: pl.DataFrame, *, names: Mapping[str, str]) -> Sketch:
    """What each block, its attention and its MLP add to the answer's logit, with 95 % bands.

    Args:
        contributions: of one checkpoint, [part, depth, value, low, high].
        names: how each part is called.
    """
    figure = figure_of(x="depth", y="logits", percent=False)
    for at, part in enumerate(contributions["part"].unique(maintain_order=True).to_list()):
        rows, look, name = contributions.filter(part=part).sort("depth"), style(at), names[part]
        depth, low, high = (rows[name].to_list() for name in ("depth", "low", "high"))
        add_band(figure, depth, low, high, colour=look["colour"], meta={"part": part})
        figure.add_scatter(
            x=depth,
            y=rows["value"].to_list(),
            customdata=rows.select("low", "high").rows(),
            **line_of(name, look) | {"meta": {"part": part, "role": "line"}},
            hovertemplate=f"<b>%{{y:+.2f}}</b> (%{{customdata[0]:+.2f}} – %{{customdata[1]:+.2f}}) {plain(name)}"
            "<extra></extra>",
        )
    if len(contributions):
        figure.update_xaxes(tickvals=depth_ticks(int(contributions["depth"].to_numpy().max()), 1))
    return figure
