"""What is answered of D_A's facts when they are asked otherwise: in other words, or for something made of the answer.

The sets ``paraphrases`` and ``manipulations`` of a run's evaluations (:mod:`memprobe.sources.evaluation`) become rows
of the tables of arms and differences, one statistic for each way of asking. A fact that is asked in several wordings
counts once, by the share of them that it is answered in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from memprobe.arms import Arm
from memprobe.files import read_json
from memprobe.lineage import origin
from memprobe.manifests import MANIFEST
from memprobe.runs import EXACT, EvaluationFile, RunDirectory
from memprobe.statistics.arms import Run, arm_differences, arm_means
from training.study.results import READOUTS, SETTINGS

PARAPHRASES, MANIPULATIONS = "paraphrases", "manipulations"
OTHERWISE = (PARAPHRASES, "manipulation_first", "manipulation_reversed", "manipulation_true")
"""Statistics: the share of facts that are answered so."""
BASE = "base"
"""The arm of the base model, whose stage is 0: what is answered without having learned anything."""


def log_prob_of(statistic: str) -> str:
    """The statistic of how probable the right answers are, in nats."""
    return f"log_prob_{statistic}"


def asked_otherwise(runs: Iterable[RunDirectory]) -> dict[str, pl.DataFrame]:
    """Rows for the tables ``arms`` and ``differences`` of :class:`~training.study.results.Results`.

    Args:
        runs: learned cells of a grid; those whose recipe asked for neither set are passed over.

    Returns:
        Both without rows where no cell was asked. Statistics are of facts that every checkpoint of a set-up was asked.
        They do not depend on the reading, and stand under that of the headline.
    """
    setups: dict[str, list[RunDirectory]] = defaultdict(list)
    for run in runs:
        setups[run.path.parent.name].append(run)
    parts: dict[str, list[pl.DataFrame]] = {"arms": [], "differences": []}
    k, token = SETTINGS[0]
    for setup, group in setups.items():
        named = {"setup": setup, "k": k, "token": token, "readout": READOUTS[0]}
        keys = [
            pl.lit(value, pl.Int32 if name == "k" else pl.String).alias(name) for name, value in named.items()
        ]
        for name, table in _of_setup(list(_checkpoints(group))):
            parts[name].append(table.select(*keys, pl.all()))
    return {name: pl.concat(some) if some else pl.DataFrame() for name, some in parts.items()}


def _checkpoints(group: Sequence[RunDirectory]) -> Iterator[tuple[Run, dict[str, dict[str, np.ndarray]]]]:
    """Each checkpoint of a set-up once, as a run that has no values yet, with what it answered.

    Cells share first stages. The base model answers the same in every seed, and is that of the first.
    """
    seen: set[str] = set()
    for run in group:
        before: list[str] = []
        base = next((stage for stage in run.stages if stage.number == 0), None)
        if BASE not in seen and base is not None and base.evaluation is not None:
            seen.add(BASE)
            yield _empty(BASE, 0, "", BASE), answers_of(base.evaluation)
        for stage in run.cell.stages if run.cell else ():
            ended = next((one for one in run.trained.values() if one.path.name == stage.stage), None)
            if ended is None or ended.evaluation is None:
                continue
            manifest = read_json(ended.path / MANIFEST)
            made = origin(manifest)
            before.append(str((made["parent"] or {}).get("fingerprint") or ""))
            if stage.label in seen:
                continue
            seen.add(stage.label)
            rows = str((made["stages"] or [{}])[0].get("hash") or "")
            who = (str(manifest["arm"]), ended.number, str(manifest["seed"]), stage.label)
            yield _empty(*who, before=[one for one in before if one], rows=rows), answers_of(ended.evaluation)


def _empty(arm: str, stage: int, seed: str, label: str, **more: Any) -> Run:
    return Run.of(arm, str(stage), seed, label, np.empty((1, 0)), **more)


def answers_of(evaluation: EvaluationFile) -> dict[str, dict[str, np.ndarray]]:
    """By statistic and fact: the share of its questions that are answered, and the mean log-probability of their
    answers in nats."""
    rows: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for name in (PARAPHRASES, MANIPULATIONS):
        for row in evaluation.sets[name].rows if name in evaluation.sets else ():
            fact, _, task = str(row["id"]).rpartition("/")
            statistic = name if name == PARAPHRASES else f"manipulation_{task}"
            rows.setdefault(statistic, {}).setdefault(fact, []).append(row)
    return {
        statistic: {
            fact: np.mean([(float(row[EXACT]), -float(row["nats"])) for row in some], axis=0)
            for fact, some in facts.items()
        }
        for statistic, facts in rows.items()
    }


def _of_setup(
    checkpoints: Sequence[tuple[Run, dict[str, dict[str, np.ndarray]]]],
) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of one set-up, way by way of asking."""
    for statistic in OTHERWISE:
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
        names, binary = [statistic, log_prob_of(statistic)], [statistic]
        yield "arms", arm_means(runs, names, len(facts), shares=binary, binary=binary)
        for arm in dict.fromkeys(run.arm for run in runs if run.label != BASE):
            if Arm.of(arm).is_naive or Arm.of(arm).is_control:
                yield (
                    "differences",
                    arm_differences(runs, names, len(facts), reference=arm, binary=binary),
                )
