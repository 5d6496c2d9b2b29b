"""What is answered of D_A's facts when they are asked otherwise: in other words, or for something made of the answer.

The sets ``paraphrases`` and ``manipulations`` of a run's evaluations (:mod:`memprobe.sources.evaluation`) become
statistics over seeds, one for each way of asking. A fact that is asked in several wordings counts once, by the share of
them that it is answered in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from memprobe.arms import Arm
from memprobe.evaluations import EXACT, MANIPULATIONS, PARAPHRASES, EvaluatedRow, EvaluationFile
from memprobe.runs import RunDirectory
from memprobe.statistics.arms import Run, arm_differences, arm_means
from memprobe.statistics.ends import Ends
from memprobe.statistics.shares import size_over_seeds
from memprobe.statistics.vocabulary import QUESTIONS, ends, log_prob_of, repeats_of

AS_LEARNED = "as_learned"
OTHERWISE = tuple(question for question in QUESTIONS if question != AS_LEARNED)
"""Of :data:`~memprobe.statistics.vocabulary.QUESTIONS`, those that were not learned."""
BASE = "base"
"""The arm of the base model, whose stage is 0: what is answered without having learned anything."""

Answers = dict[str, dict[str, np.ndarray]]
"""By statistic and fact: the share of its questions that are answered, the mean log-probability of their answers in
nats, and the share of its questions to which the fact's own answer is said, as to the question that was learned."""


class AskedOtherwise(NamedTuple):
    """How D_A is answered when it is asked otherwise, of all set-ups; without rows where no run was asked.

    Attributes:
        arms: of :func:`~memprobe.statistics.arms.arm_means`, and a column ``setup``.
        differences: of :func:`~memprobe.statistics.arms.arm_differences`, against naive training and its controls, and
            a column ``setup``.
    """

    arms: pl.DataFrame
    differences: pl.DataFrame


def asked_otherwise(runs: Sequence[RunDirectory], setups: Mapping[Path, str]) -> AskedOtherwise:
    """The statistics over seeds, of facts that every checkpoint of a set-up was asked.

    Where each seed drew a D_A of its own, of each checkpoint's own facts; see :func:`_of_own_facts`.

    Args:
        runs: that have learned; those whose recipe asked for neither set are passed over.
        setups: by run directory, the name of its set-up.
    """
    groups: dict[str, list[RunDirectory]] = defaultdict(list)
    for run in runs:
        groups[setups[run.path]].append(run)
    parts: dict[str, list[pl.DataFrame]] = {"arms": [], "differences": []}
    for setup, group in groups.items():
        for name, table in _of_setup(list(_checkpoints(group))):
            parts[name].append(table.select(pl.lit(setup).alias("setup"), pl.all()))
    return AskedOtherwise(
        **{name: pl.concat(some) if some else pl.DataFrame() for name, some in parts.items()}
    )


def _checkpoints(group: Sequence[RunDirectory]) -> Iterator[tuple[dict[str, Any], Answers]]:
    """Each checkpoint of a set-up that was asked, once: what a run says of it, and what it answered.

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
                yield {"arm": BASE, "stage": "0", "seed": "", "label": BASE}, answers
                continue
            # A stage that cells share has the arm of the cell that trained it.
            arm, seed = (made.arm, made.seed) if made is not None else (None, None)
            who = {
                "arm": arm or run.arm,
                "stage": str(stage.number),
                "seed": str(run.seed if seed is None else seed),
                "label": label,
                "before": tuple(before),
                "rows": (made.stages[0].hash if made is not None and made.stages else None) or "",
            }
            yield who, answers


def answers_of(evaluation: EvaluationFile) -> Answers:
    """What a checkpoint answered of the two sets; nothing where its recipe did not ask."""
    rows: dict[str, dict[str, list[EvaluatedRow]]] = {}
    for name in (PARAPHRASES, MANIPULATIONS):
        for row in evaluation.sets[name].rows if name in evaluation.sets else ():
            fact, _, task = row.id.rpartition("/")
            statistic = name if name == PARAPHRASES else f"manipulation_{task}"
            rows.setdefault(statistic, {}).setdefault(fact, []).append(row)
    learned = next((one.rows for name, one in evaluation.sets.items() if name.startswith("1-")), [])
    own = {row.id: row.prediction if row.exact_match else None for row in learned}
    if rows and learned and all(row.exact_match is not None for row in learned):
        rows[AS_LEARNED] = {row.id: [row] for row in learned}
    return {
        statistic: {
            fact: np.mean([_of_row(row, fact, own) for row in some], axis=0) for fact, some in facts.items()
        }
        for statistic, facts in rows.items()
    }


def _of_row(row: EvaluatedRow, fact: str, own: Mapping[str, str | None]) -> tuple[float, float, float]:
    """One question: whether it is answered, the log-probability of its answer, and whether the fact's own is said.

    Args:
        own: what each fact's learned question is answered with, ``None`` where that is wrong.
    """
    repeats = float(row.prediction is not None and row.prediction == own[fact]) if fact in own else np.nan
    share = row.share(EXACT)
    return np.nan if share is None else share, np.nan if row.nats is None else -row.nats, repeats


def _of_setup(
    checkpoints: Sequence[tuple[dict[str, Any], Answers]],
) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of one set-up, way by way of asking."""
    drawn_by_seed = len({who["rows"] for who, _ in checkpoints if who.get("rows")}) > 1
    for statistic in QUESTIONS:
        asked = [(who, answers[statistic]) for who, answers in checkpoints if statistic in answers]
        if drawn_by_seed:
            yield from _of_own_facts(statistic, asked)
            continue
        facts = sorted(set.intersection(*(set(answers) for _, answers in asked))) if asked else []
        if not facts:
            continue
        runs = [Run.of(values=np.array([answers[fact] for fact in facts]), **who) for who, answers in asked]
        names, binary = _names(statistic)
        limits = _limits(names)
        yield "arms", arm_means(runs, names, len(facts), ends=limits, binary=binary)
        for arm in _references(runs):
            apart = arm_differences(runs, names, len(facts), reference=arm, ends=limits, binary=binary)
            yield "differences", apart


def _of_own_facts(
    statistic: str, asked: Sequence[tuple[dict[str, Any], Mapping[str, np.ndarray]]]
) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of a set-up in which each seed drew a D_A of its own: no fact is asked of two seeds.

    See :meth:`~memprobe.statistics.arms.Run.of_own_facts`. The base model is left out, which was asked the facts of one
    seed.
    """
    names, binary = _names(statistic)
    runs, sizes = [], []
    for who, answers in asked:
        if who["label"] != BASE:
            runs.append(Run.of(values=np.array(list(answers.values())), **who).of_own_facts())
            sizes.append(len(answers))
    if not runs:
        return
    size = max(2, size_over_seeds(sizes))
    limits = _limits(names)
    yield "arms", arm_means(runs, names, size, ends=limits, binary=binary)
    for arm in _references(runs):
        yield "differences", arm_differences(runs, names, size, reference=arm, ends=limits)


def _names(statistic: str) -> tuple[list[str], list[str]]:
    """The three statistics of a way of asking, and those of them that each fact has or has not."""
    names = [statistic, log_prob_of(statistic), repeats_of(statistic)]
    return names, [names[0], names[2]]


def _limits(names: Sequence[str]) -> dict[str, Ends]:
    return {name: ends(name, np.inf) for name in names}  # none of them is a depth


def _references(runs: Sequence[Run]) -> list[str]:
    """The arms that others are held against."""
    arms = dict.fromkeys(run.arm for run in runs if run.label != BASE)
    return [arm for arm in arms if Arm.of(arm).is_naive or Arm.of(arm).is_control]
