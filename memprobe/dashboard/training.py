"""The room of training runs: scores after each stage and the curves of training."""

from __future__ import annotations

from typing import Any

import polars as pl

from memprobe import plots
from memprobe.dashboard.embedding import embedded, figure_json
from memprobe.evaluations import WITHIN_ONE
from memprobe.studies import Study
from memprobe.wording import number

MAX_POINTS = 1_200  # of one training curve
MEASURES = {
    "loss": "training loss of the data (nats per token)",
    "penalty": "penalty, as it is added to the loss",
    "exact": "own rows exact",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}
"""Measures of the room by name, which is also the column of a study's training that is drawn, but for
:data:`_COLUMNS`; each as it stands over its plots."""
_AXES = {"loss": "nats per token", "penalty": "added to the loss"}
"""What stands along the axis, where the heading is too long for it."""
_COLUMNS = {"loss": "data_loss"}


def training_room(study: Study) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """Scores after each stage and the curves of training."""
    if not study.runs:
        return None, {}
    scores = _base_once(
        study.evaluations().with_columns(
            row=pl.format("{}, {} {}", "run", "stage", "stage_name"),
            share=pl.col("metric").is_in(WITHIN_ONE),
        )
    )
    blocks, others, note = {}, [], ""
    shares = scores.filter("share", "headline").drop_nulls("value")  # what is not known is an empty cell
    if len(shares):
        blocks["matrix"] = embedded(figure_json(plots.accuracy_matrix.sketch(shares)))
    rest = scores.filter(~pl.col("share"), pl.col("headline"))
    if len(rest):
        others = [["After", "Evaluated on", "Score", "n", "Value", "95 % interval"]]
        for row in rest.iter_rows(named=True):
            edges = "" if row["low"] is None else f"{row['low']:.3g} – {number(row['high'], '.3g')}"
            value = number(row["value"], ".3g")
            others.append([row["row"], row["dataset"], row["metric"], f"{row['n']:,}", value, edges])
    steps = study.training()
    stages = steps.select("stage", "stage_name").unique(maintain_order=True).sort("stage").rows()
    curves: dict[str, list[str]] = {}
    for stage, name in stages:
        here = steps.filter(pl.col("stage") == stage, pl.col("stage_name") == name)
        longest = here.group_by("run").len()["len"].max()
        apart = -(-int(longest or 1) // MAX_POINTS)  # type: ignore[call-overload]
        if apart > 1:
            here = here.filter(pl.int_range(pl.len()).over("run") % apart == 0)
            note = f"Of long stages one step in {apart} is drawn; metrics.jsonl has them all."
        for measure, label in MEASURES.items():
            column = _COLUMNS.get(measure, measure)
            drawn = here.filter(pl.col(column).is_not_null())
            if drawn.is_empty():
                continue
            log = measure in ("loss", "penalty", "grad_norm") and bool((drawn[column] > 0).all())
            block = f"training-{len(blocks)}"
            blocks[block] = embedded(
                figure_json(plots.training_curves.sketch(drawn, column, y=_AXES.get(measure, label), log=log))
            )
            curves.setdefault(measure, []).append(f"{block}\nStage {stage}: {name}")
    running = [f"{run.name}, stage {one.number} {one.name}" for run in study.runs for one in run.running]
    entry = {
        "runs": [[run.name, run.arm, str(run.seed)] for run in study.runs],
        "matrix": "matrix" in blocks,
        "others": others,
        "curves": {measure: [name.split("\n") for name in names] for measure, names in curves.items()},
        "measures": MEASURES,
        "running": running,
        "note": note,
    }
    return entry, blocks


def _base_once(scores: pl.DataFrame) -> pl.DataFrame:
    """Scores with the base model's first: those of one run, where the others' are among them."""
    base = scores.filter(stage=0)
    rows_of = {
        run: set(part.select("dataset", "metric", "value").iter_rows())
        for (run,), part in base.group_by("run", maintain_order=True)
    }
    kept: list[Any] = []
    for run in sorted(rows_of, key=lambda run: -len(rows_of[run])):
        if not any(rows_of[run] <= rows_of[other] for other in kept):
            kept.append(run)
    base = base.filter(pl.col("run").is_in(kept))
    if len(kept) == 1:
        base = base.with_columns(row=pl.lit("base model"))
    return pl.concat([base, scores.filter(pl.col("stage") > 0)])
