"""What is answered of D_A's facts when they are asked otherwise: in other words, or for something made of the answer.

The sets ``paraphrases`` and ``manipulations`` of a run's evaluations (:mod:`memprobe.sources.evaluation`) become
statistics over seeds, one for each way of asking. A fact that is asked in several wordings counts once, by the share of
them that it is answered in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memprobe.arms import NAIVE, Arm
from memprobe.runs import EXACT, EvaluationFile, RunDirectory
from memprobe.statistics.arms import Run, arm_differences, arm_means

PARAPHRASES, MANIPULATIONS = "paraphrases", "manipulations"
AS_LEARNED = "as_learned"
OTHERWISE = (PARAPHRASES, "manipulation_first", "manipulation_reversed", "manipulation_true")
QUESTIONS = (AS_LEARNED, *OTHERWISE)
"""Statistics: the share of facts that are answered so, beside that of the question that was learned."""
BASE = "base"
"""The arm of the base model, whose stage is 0: what is answered without having learned anything."""

Answers = dict[str, dict[str, np.ndarray]]
"""By statistic and fact: the share of its questions that are answered, the mean log-probability of their answers in
nats, and the share of its questions to which the fact's own answer is said, as to the question that was learned."""


def log_prob_of(statistic: str) -> str:
    """The statistic of how probable the right answers are, in nats."""
    return f"log_prob_{statistic}"


def repeats_of(statistic: str) -> str:
    """The statistic of how often a question about an answer is answered with that answer itself."""
    return f"repeats_{statistic}"


def asked_otherwise(runs: Sequence[RunDirectory], setups: Mapping[Path, str]) -> dict[str, pl.DataFrame]:
    """The statistics over seeds, and their differences between arms.

    Args:
        runs: that have learned; those whose recipe asked for neither set are passed over.
        setups: by run directory, the name of its set-up.

    Returns:
        ``arms`` and ``differences``, as :func:`~memprobe.statistics.arms.arm_means` and
        :func:`~memprobe.statistics.arms.arm_differences` (against naive training and its controls) have them, with a
        column ``setup``; without rows where no run was asked. They are of facts that every checkpoint of a set-up was
        asked.
    """
    groups: dict[str, list[RunDirectory]] = defaultdict(list)
    for run in runs:
        groups[setups[run.path]].append(run)
    parts: dict[str, list[pl.DataFrame]] = {"arms": [], "differences": []}
    for setup, group in groups.items():
        for name, table in _of_setup(list(_checkpoints(group))):
            parts[name].append(table.select(pl.lit(setup).alias("setup"), pl.all()))
    return {name: pl.concat(some) if some else pl.DataFrame() for name, some in parts.items()}


def other_questions(arms: pl.DataFrame, differences: pl.DataFrame) -> pl.DataFrame:
    """How D_A is answered when it is asked otherwise, by arm and stage; the base model's stage is 0.

    Args:
        arms, differences: of :func:`asked_otherwise`; rows of other statistics are passed over.

    Returns:
        [setup, question, stage, arm, seeds, share, low, high, by_seed, difference, difference_low, difference_high, p,
        log_prob, repeats, log_prob_difference, log_prob_difference_low, log_prob_difference_high, log_prob_p]:
        ``share`` of the facts is answered, ``log_prob`` is the mean log-probability of a right answer in nats,
        ``repeats`` the share to which the fact's own answer is said, as to the question that was learned (in other
        words that is the right one); differences are against naive training, with p before any correction.
    """
    if not len(arms):
        return pl.DataFrame()
    keys = ["setup", "arm", "stage"]
    parts = []
    for question in QUESTIONS:
        names = (question, log_prob_of(question), repeats_of(question))
        shares, nats, repeats = (arms.filter(statistic=name) for name in names)
        table = shares.select(
            *keys,
            pl.lit(question).alias("question"),
            "seeds",
            pl.col("mean").alias("share"),
            "low",
            "high",
            "by_seed",
        )
        table = table.join(
            _against_naive(differences, question, ""), on=keys, how="left", maintain_order="left"
        )
        for more in (
            nats.select(*keys, pl.col("mean").alias("log_prob")),
            repeats.select(*keys, pl.col("mean").alias("repeats")),
            _against_naive(differences, log_prob_of(question), "log_prob_"),
        ):
            table = table.join(more, on=keys, how="left", maintain_order="left")
        parts.append(table.with_columns(pl.col("stage").cast(pl.Int64)).sort("stage", maintain_order=True))
    front = ["setup", "question", "stage", "arm"]
    return pl.concat(parts).select(*front, pl.exclude(front)).sort("setup", maintain_order=True)


def _against_naive(differences: pl.DataFrame, statistic: str, front: str) -> pl.DataFrame:
    """[setup, arm, stage] and a statistic's difference from naive training, under names that begin with ``front``."""
    keys = {"setup": pl.String, "arm": pl.String, "stage": pl.String}
    named = {"difference": "difference", "low": "difference_low", "high": "difference_high", "p": "p"}
    called = {name: f"{front}{to}" for name, to in named.items()}
    if not len(differences):
        return pl.DataFrame(schema=keys | dict.fromkeys(called.values(), pl.Float64))
    rows = differences.filter(statistic=statistic, reference=NAIVE)
    return rows.select(*keys, *(pl.col(name).alias(to) for name, to in called.items()))


def _checkpoints(group: Sequence[RunDirectory]) -> Iterator[tuple[Run, Answers]]:
    """Each checkpoint of a set-up that was asked, once, as a run that has no values yet, with what it answered.

    Cells share first stages. The base model answers the same in every seed, and is that of the first.
    """
    seen: set[str] = set()
    for run in group:
        before: list[str] = []
        labels = {stage.stage: stage.label for stage in run.cell.stages} if run.cell else {}
        for stage in run.stages:
            if stage.evaluation is None:
                continue
            made = stage.manifest
            if made is not None and made.parent is not None and made.parent.fingerprint:
                before.append(made.parent.fingerprint)
            label = labels.get(stage.path.name, f"{run.path}/{stage.path.name}") if stage.number else BASE
            answers = answers_of(stage.evaluation)
            if label in seen or not answers:
                continue
            seen.add(label)
            if not stage.number:
                yield _empty(BASE, 0, "", BASE), answers
                continue
            rows = made.stages[0].hash if made is not None and made.stages else None
            # A stage that cells share has the arm of the cell that trained it.
            arm, seed = (made.arm, made.seed) if made is not None else (None, None)
            who = (arm or run.arm, stage.number, str(run.seed if seed is None else seed), label)
            yield _empty(*who, before=tuple(before), rows=rows or ""), answers


def _empty(arm: str, stage: int, seed: str, label: str, **more: Any) -> Run:
    return Run.of(arm, str(stage), seed, label, np.empty((1, 0)), **more)


def answers_of(evaluation: EvaluationFile) -> Answers:
    """What a checkpoint answered of the two sets; nothing where its recipe did not ask."""
    rows: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for name in (PARAPHRASES, MANIPULATIONS):
        for row in evaluation.sets[name].rows if name in evaluation.sets else ():
            fact, _, task = str(row["id"]).rpartition("/")
            statistic = name if name == PARAPHRASES else f"manipulation_{task}"
            rows.setdefault(statistic, {}).setdefault(fact, []).append(row)
    learned = next((one.rows for name, one in evaluation.sets.items() if name.startswith("1-")), [])
    own = {row["id"]: row.get("prediction") if row.get(EXACT) else None for row in learned}
    if rows and learned and all(EXACT in row for row in learned):
        rows[AS_LEARNED] = {row["id"]: [row] for row in learned}
    return {
        statistic: {
            fact: np.mean([_of_row(row, fact, own) for row in some], axis=0) for fact, some in facts.items()
        }
        for statistic, facts in rows.items()
    }


def _of_row(row: Mapping[str, Any], fact: str, own: Mapping[str, str | None]) -> tuple[float, float, float]:
    """One question: whether it is answered, the log-probability of its answer, and whether the fact's own is said.

    Args:
        own: what each fact's learned question is answered with, ``None`` where that is wrong.
    """
    repeats = (
        float(row.get("prediction") is not None and row["prediction"] == own[fact]) if fact in own else np.nan
    )
    return float(row[EXACT]), -float(row.get("nats", np.nan)), repeats


def _of_setup(
    checkpoints: Sequence[tuple[Run, Answers]],
) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of one set-up, way by way of asking."""
    for statistic in QUESTIONS:
        asked = [(run, answers[statistic]) for run, answers in checkpoints if statistic in answers]
        facts = sorted(set.intersection(*(set(answers) for _, answers in asked))) if asked else []
        if not facts:
            continue
        runs = [
            Run.of(
                run.arm,
                run.stage,
                run.seed,
                run.label,
                np.array([answers[fact] for fact in facts]),
                before=run.before,
                rows=run.rows,
            )
            for run, answers in asked
        ]
        names = [statistic, log_prob_of(statistic), repeats_of(statistic)]
        binary = [names[0], names[2]]
        yield "arms", arm_means(runs, names, len(facts), shares=binary, binary=binary)
        for arm in dict.fromkeys(run.arm for run in runs if run.label != BASE):
            if Arm.of(arm).is_naive or Arm.of(arm).is_control:
                yield (
                    "differences",
                    arm_differences(runs, names, len(facts), reference=arm, binary=binary),
                )
