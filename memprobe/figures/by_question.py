"""What is answered of D_A when it is asked otherwise, arm by arm and stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from memprobe.figures import look as style
from memprobe.figures.by_checkpoint import point
from memprobe.statistics.vocabulary import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style.in_style
def other_questions(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Shares of D_A's facts that are answered as learned, in other words, and when something is made of the answer.

    Hollow points are seeds; the mean and its 95 % interval need three of them.

    Args:
        table: [setup, question, arm, stage, share, low, high, by_seed] of one set-up; ``question`` is a statistic of
            :mod:`memprobe.statistics.vocabulary`, the base model's ``stage`` is 0, ``by_seed`` is a list.
        width: millimetres.
    """
    style.not_empty(table, "share")
    questions = table["question"].unique(maintain_order=True).to_list()
    arms = pl.concat([table.filter(stage=0), table])["arm"].unique(maintain_order=True).to_list()
    numbers = sorted(table["stage"].unique())
    looks = {stage: style.look(place) | {"linestyle": ""} for place, stage in enumerate(numbers)}
    handles = [
        style.handle(f"after stage {stage}" if stage else "base model", **marks)
        for stage, marks in looks.items()
    ]
    stages = len([stage for stage in numbers if stage])
    figure, every = style.panels(
        len(questions),
        width,
        columns=(1, 2),
        height=style.rows_height(len(arms), stages) + 12,
        above=style.legend_height(handles, width),
        sharey=True,
        sharex=True,
    )
    for axes, question in zip(every, questions, strict=True):
        for row in table.filter(question=question).iter_rows(named=True):
            aside = style.dodge(row["stage"] - 1, stages) if row["stage"] else 0.0
            where = f"{question}/{row['arm']}/{row['stage']}"
            drawn = row | {"value": row["share"], "sd": None}
            if not row["stage"]:  # one model, and no seed
                drawn["by_seed"] = None
            point(axes, drawn, arms.index(row["arm"]) + aside, looks[row["stage"]], where)
        style.panel_title(axes, label(question), 34, map(label, questions))
        axes.set_xlim(0, 1)
        style.percent_axis(axes.xaxis)
        axes.tick_params(axis="x", labelbottom=True)
        axes.grid(axis="x", color=style.PALE, linewidth=0.4)
    style.name_rows(every, arms, width)
    style.apart(figure)
    style.name_axes(figure, every, "facts of D_A", "")
    style.legend(figure, handles, width)
    return figure
