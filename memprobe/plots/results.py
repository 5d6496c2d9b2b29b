"""What a study of arms found, over training seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memprobe.palette import style
from memprobe.plots.sketch import Sketch, drawn, figure_of, plain
from memprobe.wording import shortened

if TYPE_CHECKING:
    import polars as pl


@drawn
def retention_points(table: pl.DataFrame) -> Sketch:
    """What is left of D_A after the last stage, a row for each arm: mean with 95 % interval, and each seed.

    Args:
        table: [arm, retention, low, high, by_seed] of one pair of datasets; ``by_seed`` is a list. An arm of fewer than
            three seeds has no mean.
    """
    figure = figure_of(x="exact match on D_A after the last stage", y="", percent=False)
    names = shortened(table["arm"].to_list(), 30)
    look = style(0)
    known = table.drop_nulls(["retention", "low", "high"])
    figure.add_scatter(
        x=[value for row in table.iter_rows(named=True) for value in row["by_seed"] or ()],
        y=[plain(names[row["arm"]]) for row in table.iter_rows(named=True) for _ in row["by_seed"] or ()],
        mode="markers",
        name="each seed",
        marker={"symbol": "circle-open", "size": 6, "color": look["colour"]},
        hovertemplate="<b>%{x:.1%}</b> one seed of %{y}<extra></extra>",
        meta={"role": "line"},
    )
    figure.add_scatter(
        x=known["retention"].to_list(),
        y=[plain(names[arm]) for arm in known["arm"]],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (known["high"] - known["retention"]).to_list(),
            "arrayminus": (known["retention"] - known["low"]).to_list(),
            "thickness": 2,
            "width": 0,
        },
        customdata=known.select("low", "high").rows(),
        mode="markers",
        name="mean, with its 95 % interval",
        marker={"symbol": "diamond", "size": 10, "color": look["colour"]},
        hovertemplate="<b>%{x:.1%}</b> (%{customdata[0]:.1%} – %{customdata[1]:.1%}) %{y}<extra></extra>",
        meta={"role": "line"},
    )
    figure.update_layout(hovermode="closest", margin={"t": 8}, meta={"row": 28, "frame": 66})
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".0%", showgrid=True, showline=False)
    figure.update_yaxes(
        autorange="reversed",
        type="category",
        showgrid=False,
        categoryorder="array",
        categoryarray=[plain(names[arm]) for arm in table["arm"]],
    )
    return figure
