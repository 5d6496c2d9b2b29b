"""What a study of arms found, over training seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memprobe.palette import style
from memprobe.plots.sketch import Sketch, drawn, figure_of, plain
from memprobe.wording import interval, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl


@drawn
def placement_points(table: pl.DataFrame) -> Sketch:
    """Where the facts surface after a stage, a row for each arm: the mean over seeds, and the chance level.

    Args:
        table: [arm, lof_restricted_mean, its _low and _high, chance_lof_restricted_mean] of one pair of datasets and
            stage, in depths. An arm of fewer than three seeds has no interval.
    """
    figure = figure_of(
        x="mean first occurrence (depth; never counts as one past the last)", y="", percent=False
    )
    ends = [f"lof_restricted_mean{end}" for end in ("_low", "_high")]
    names = shortened(table["arm"].to_list(), 30)
    arms = [plain(names[arm]) for arm in table["arm"]]
    look = style(0)
    chance = "chance_lof_restricted_mean"
    figure.add_scatter(
        x=table[chance].to_list(),
        y=arms,
        mode="markers",
        name="shuffled answers (chance)",
        marker={"symbol": "circle-open", "size": 8, "color": look["colour"]},
        hovertemplate="<b>%{x:.1f}</b> shuffled answers (chance), %{y}<extra></extra>",
        meta={"role": "line"},
    )
    mean = table["lof_restricted_mean"]
    figure.add_scatter(
        x=mean.to_list(),
        y=arms,
        error_x=_bars(mean, *(table[end] for end in ends)),
        customdata=table.select(ends).rows(),
        text=[interval(value, *edges, form=".1f") for value, *edges in table.select(mean.name, *ends).rows()],
        mode="markers",
        name="mean over seeds, with its 95 % interval",
        marker={"symbol": "diamond", "size": 10, "color": look["colour"]},
        hovertemplate="<b>%{text}</b> mean over seeds, %{y}<extra></extra>",
        meta={"role": "line"},
    )
    _lay_out_rows(figure, arms)
    return figure


def _lay_out_rows(figure: Sketch, names: Sequence[str], **of_x: Any) -> None:
    """A row for each arm, the first on top.

    Args:
        of_x: what else is said of the axis of values.
    """
    figure.update_layout(hovermode="closest", margin={"t": 8}, meta={"row": 28, "frame": 66})
    figure.update_xaxes(**of_x, showgrid=True, showline=False)
    figure.update_yaxes(
        autorange="reversed", type="category", showgrid=False, categoryorder="array", categoryarray=names
    )


def _bars(value: pl.Series, low: pl.Series, high: pl.Series) -> dict[str, Any]:
    """Bars from ``low`` to ``high``; none where they are not known."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - value).fill_null(0).to_list(),
        "arrayminus": (value - low).fill_null(0).to_list(),
        "thickness": 2,
        "width": 0,
    }


@drawn
def retention_points(table: pl.DataFrame) -> Sketch:
    """What is left of D_A after the last stage, a row for each arm: mean with 95 % interval, and each seed.

    Args:
        table: [arm, retention, low, high, by_seed] of one pair of datasets; ``by_seed`` is a list. An arm of fewer than
            three seeds has no mean. ``missing``, where it is there, says why an arm has no number.
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
        error_x=_bars(known["retention"], known["low"], known["high"]),
        customdata=known.select("low", "high").rows(),
        mode="markers",
        name="mean, with its 95 % interval",
        marker={"symbol": "diamond", "size": 10, "color": look["colour"]},
        hovertemplate="<b>%{x:.1%}</b> (%{customdata[0]:.1%} – %{customdata[1]:.1%}) %{y}<extra></extra>",
        meta={"role": "line"},
    )
    reasons = table.select("arm", "missing").drop_nulls().rows() if "missing" in table.columns else []
    for arm, reason in reasons:
        figure.add_annotation(x=0, y=plain(names[arm]), text=plain(reason), xanchor="left", showarrow=False)
    _lay_out_rows(figure, [plain(names[arm]) for arm in table["arm"]], range=[-0.02, 1.02], tickformat=".0%")
    return figure
