"""Run directories become frames: a row per run, per score, and per score over seeds; and answers to other questions.

A run that has not ended is left out; one in which a stage of factoids did not end with all its own rows exact is
counted as failed and is in no mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memprobe.arms import arm_names, by_kind
from memprobe.errors import MemprobeError
from memprobe.evaluations import EXACT, SHARES, WITHIN_ONE, EvaluatedRow, EvaluatedSet, EvaluationFile, Score
from memprobe.retention.asked import AskedOtherwise, asked_otherwise
from memprobe.retention.setups import setups_of
from memprobe.runs import RunDirectory
from memprobe.statistics.arms import MIN_SEEDS, Run, arm_means
from memprobe.statistics.ends import SHARE
from memprobe.statistics.shares import size_over_seeds

ALL_ROWS, UNSEEN_ROWS = "all rows of D_A", "those not replayed"
_KNOWN = "known"


@dataclass(frozen=True)
class Retention:
    """What runs keep.

    Attributes:
        cells: one row per run: what was trained, what it cost, and what is left of D_A and of all else after its last
            stage.
        scores: [setup, arm, seed, stage, dataset, metric, n, value, low, high], one row per run, stage and dataset.
        over_seeds: [setup, arm, dataset, rows, metric, stage, seeds, value, low, high, by_seed], of learned runs: the
            mean of each stage's dataset after each stage. Of the first one also that of the ``rows`` that no later
            stage trained on again. An interval needs three seeds that were asked the same rows, or rows of which no
            seed shares one with another; see :func:`memprobe.statistics.arms.arm_means`.
        asked: how D_A is answered when it is asked otherwise; arms are texts.
    """

    cells: pl.DataFrame
    scores: pl.DataFrame
    over_seeds: pl.DataFrame
    asked: AskedOtherwise = field(default_factory=lambda: AskedOtherwise(pl.DataFrame(), pl.DataFrame()))


OVER_SEEDS = pl.Schema(
    {
        "setup": pl.String,
        "arm": pl.String,
        "dataset": pl.String,
        "rows": pl.String,
        "metric": pl.String,
        "stage": pl.Int64,
        "seeds": pl.Int64,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "by_seed": pl.List(pl.Float64),
    }
)


def ended_runs(
    runs: Iterable[RunDirectory], say: Callable[[str], None] = lambda text: None
) -> list[RunDirectory]:
    """The runs of two stages or more that have ended, each arm and seed of a set-up once.

    Args:
        say: called with one line about each run that is left out.

    Raises:
        MemprobeError: a file of a run is broken.
    """
    several = [run for run in runs if len(run.recipe.stages) > 1]
    ended = [run for run in several if run.has_ended]
    for run in several:
        if run not in ended:
            say(f"{run.path}: has not ended, and is left out")
    names = setups_of(ended)
    kept: dict[tuple[str, str, int], RunDirectory] = {}
    for run in ended:
        other = kept.setdefault((names[run.path], run.arm, run.seed), run)
        if other is not run:
            setup = names[run.path]
            say(f"{run.path}: is arm {run.arm}, seed {run.seed} of {setup} again, as {other.path}; left out")
    return list(kept.values())


def retention_of(runs: Sequence[RunDirectory]) -> Retention:
    """The frames of runs that have ended (:func:`ended_runs`).

    Raises:
        MemprobeError: a file of a run is broken.
    """
    setups = setups_of(runs)
    arms = {run.path: run.what.in_chain(len(run.recipe.stages)).text for run in runs}
    names = arm_names(by_kind(set(arms.values())))
    who = {
        run.path: (setups[run.path], (run.cell.arm if run.cell else None) or names[arms[run.path]])
        for run in runs
    }
    watched = _watched_by_all(runs, setups)
    cells = [_cell(run, *who[run.path], watched.get((setups[run.path], run.seed))) for run in runs]
    scores = [row for run in runs for row in _scores(run, *who[run.path])]
    over = []
    groups: dict[tuple[str, str], list[RunDirectory]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.learned:
            groups.setdefault(who[run.path], []).append(run)
    for (setup, arm), group in groups.items():
        over += [{"setup": setup, "arm": arm} | row for row in _group_over_seeds(group)]
    frame = pl.DataFrame(cells, infer_schema_length=None)
    if len(frame):
        order = {arm: place for place, arm in enumerate(by_kind(set(frame["arm_text"])))}
        rank = pl.col("arm_text").replace_strict(order)
        frame = frame.sort("setup", rank, "seed", maintain_order=True)
    return Retention(
        frame,
        pl.DataFrame(scores, infer_schema_length=None),
        pl.DataFrame(over, schema=OVER_SEEDS, orient="row"),
        asked_otherwise([run for run in runs if run.learned], setups),
    )


def _watched_by_all(
    runs: Sequence[RunDirectory], setups: Mapping[Path, str]
) -> dict[tuple[str, int], set[str]]:
    """By set-up and seed, the ids of the known facts that every arm is asked after its first stage and its last.

    Facts that a stage trains on are not watched, nor those that an arm mixes in, so that runs may watch others.
    """
    common: dict[tuple[str, int], set[str]] = {}
    for run in runs:
        key = (setups[run.path], run.seed)
        for number in {min(run.trained), max(run.trained)}:
            evaluation = run.trained[number].evaluation
            if evaluation is not None and (one := evaluation.sets.get(_KNOWN)) is not None and one.rows:
                ids = {row.id for row in one.rows}
                common[key] = common.get(key, ids) & ids
    return common


def _known(one: EvaluatedSet | None, watched: Collection[str] | None) -> float | None:
    """The share of known facts, of those that are watched by all; of all, where rows do not say which they are."""
    if one is None or watched is None or not one.rows or one.metric not in SHARES:
        return _score(one).value
    shares = (row.share(one.metric) for row in one.rows if row.id in watched)
    values = [share for share in shares if share is not None]
    return float(np.mean(values)) if values else None


def _cell(run: RunDirectory, setup: str, arm: str, watched: Collection[str] | None = None) -> dict[str, Any]:
    """One run's row.

    Args:
        watched: ids of the known facts that are counted; see :func:`_watched_by_all`.
    """
    recipe, cell, names = run.recipe, run.cell, run.datasets
    stages = run.trained
    for number, stage in stages.items():
        if not recipe.joint and stage.name != recipe.stages[number - 1].name:
            raise MemprobeError(
                f"{run.path}: recipe.toml calls stage {number} {recipe.stages[number - 1].name!r}, and its folder "
                f"{stage.name!r}"
            )
    first, last = (stages[number].evaluation for number in (min(stages), max(stages)))
    assert first is not None and last is not None
    manifests = [stage.manifest for stage in stages.values()]
    mixing = [part for stage in recipe.stages for part in stage.mixing]
    settings = {(part.ratio, part.words[-1]) for part in mixing}
    ratio, words = settings.pop() if len(settings) == 1 else (None, None)
    replay = [stage.replay.ratio for stage in recipe.stages if stage.replay]
    d_a = _kept_of(last.sets.get(names[0]))
    own = last.sets.get(names[-1])
    if own is None:
        raise MemprobeError(f"{run.path}: the evaluation of the last stage lacks its own rows, {names[-1]}")
    kept = last.retention.get(names[0], {})
    # Joint training has no second dataset whose gradient could pull against the first one's; evaluations of old hold
    # D_A against itself.
    measured: Mapping[str, Any] = {} if recipe.joint else last.interference or {}
    costs = cell.stages if cell else manifests

    def total(name: str) -> float | None:
        values = [None if one is None else getattr(one, name) for one in costs]
        given = [value for value in values if value is not None]
        return sum(given) if len(given) == len(values) else None

    return {
        "block": cell.block if cell else None,
        "setup": setup,
        "arm": arm,
        "seed": run.seed,
        "d_a": recipe.stages[0].name,
        "d_b": recipe.stages[1].name,
        "d_c": recipe.stages[2].name if len(names) > 2 else None,
        "n": first.sets[names[0]].n if names[0] in first.sets else None,
        "arm_text": run.arm,
        "mixing": ",".join(part.source for part in mixing) or None,
        "mixing_ratio": ratio,
        "mixing_words": words,
        "replay_ratio": replay[0] if replay else None,
        "plain_last": run.what.is_plain_in(len(names), len(names)),
        "labels": [stage.label for stage in cell.stages] if cell else [],
        "learned": run.learned,
        "why": cell.why if cell else "",
        # A joint run has one stage, which is its first and its last.
        "d_a_after_1": None if recipe.joint else _kept_of(first.sets.get(names[0])).value,
        "retention": d_a.value,
        "retention_low": d_a.low,
        "retention_high": d_a.high,
        "retention_replayed": _part(kept, "replayed"),
        "retention_unseen": _part(kept, "unseen"),
        "n_unseen": kept["unseen"].n if "unseen" in kept else None,
        "last_metric": own.metric,
        "last_score": own.score.value,
        "known_after_1": None if recipe.joint else _known(first.sets.get(_KNOWN), watched),
        "known": _known(last.sets.get(_KNOWN), watched),
        "perplexity_after_1": None if recipe.joint else _score(first.sets.get("texts")).value,
        "perplexity": _score(last.sets.get("texts")).value,
        "steps": total("steps"),
        "tokens": total("tokens"),
        "seconds": total("seconds"),
        "cosine_start": _overall(measured, "start", "cosine_a_b"),
        "cosine_end": _overall(measured, "end", "cosine_a_b"),
        "first_order_harm": _overall(measured, "end", "gradient_a_delta"),
        "weight_change": None if recipe.joint else _moved(last),
    }


def _score(one: EvaluatedSet | None) -> Score:
    return Score(value=None) if one is None else one.score


def _kept_of(one: EvaluatedSet | None) -> Score:
    """What is kept of D_A. Of one that is measured by perplexity or loss no share is: those are scores of a stage."""
    return _score(one) if one is None or one.metric in WITHIN_ONE else Score(value=None)


def _part(kept: Mapping[str, Any], name: str) -> float | None:
    part = kept.get(name)
    return part.scores[EXACT].value if part is not None and part.n and EXACT in part.scores else None


def _moved(last: EvaluationFile) -> float | None:
    """How far a stage moved the weights; evaluations of old have it only where gradients were measured."""
    return last.weight_change.get("stage", _overall(last.interference or {}, "end", "delta_norm"))


def _overall(measured: Mapping[str, Any], end: str, name: str) -> float | None:
    return ((measured.get(end) or {}).get(name) or {}).get("overall")


def _scores(run: RunDirectory, setup: str, arm: str) -> list[dict[str, Any]]:
    """A row for each stage and dataset, of the score that stands for it."""
    keys = {"setup": setup, "arm": arm, "seed": run.seed}
    return [
        keys
        | {"stage": number, "dataset": dataset, "metric": one.metric, "n": one.n}
        | {name: getattr(one.score, name) for name in ("value", "low", "high")}
        for number, stage in run.trained.items()
        if stage.evaluation is not None
        for dataset, one in stage.evaluation.sets.items()
    ]


def _group_over_seeds(group: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """The datasets of one arm's learned runs (by seed) after each stage, over seeds."""
    rows = []
    for place, dataset in enumerate(group[0].datasets, 1):
        for number in sorted(group[0].trained):
            sets = [run.trained[number].evaluation.sets.get(dataset) for run in group]  # type: ignore[union-attr]
            present = [one for one in sets if one is not None]
            if len(present) < len(group) or not all(one.rows for one in present):
                continue
            if (metric := present[0].metric) not in SHARES:
                continue
            kinds = {ALL_ROWS: [one.rows for one in present]}
            if place == 1 and number == max(group[0].trained) and "replay" in group[0].what.kinds:
                kinds[UNSEEN_ROWS] = [_unseen(run, one) for run, one in zip(group, present, strict=True)]
            for which, numbers in kinds.items():
                if all(numbers):
                    keys = {"dataset": dataset, "rows": which, "metric": metric, "stage": number}
                    rows.append(keys | _over_seeds(numbers, metric))
    return rows


def _unseen(run: RunDirectory, one: EvaluatedSet) -> list[EvaluatedRow]:
    """D_A's rows that no later stage trained on again; none where manifests do not say which."""
    manifests = [stage.manifest for stage in run.trained.values()]
    if any(manifest is None for manifest in manifests):
        return []
    again = {key for manifest in manifests if manifest for key in manifest.replayed}
    return [row for row in one.rows if row.id not in again]


def _over_seeds(seeds: Sequence[Sequence[EvaluatedRow]], metric: str) -> dict[str, Any]:
    """Mean and interval over seeds of a score that each row has.

    Where seeds share some of their rows and not others, there is no interval: what rows bring to several seeds is
    known of rows that all of them were asked.
    """
    columns = [{row.id: share for row in rows if (share := row.share(metric)) is not None} for rows in seeds]
    by_seed = [float(np.mean(list(column.values()))) for column in columns]
    low = high = None
    sizes = [len(column) for column in columns]
    alike = all(column.keys() == columns[0].keys() for column in columns)
    apart = sum(sizes) == len(set().union(*columns))
    if len(columns) >= MIN_SEEDS and (alike or apart) and min(sizes) > 1:
        values = [np.array([column[key] for key in (columns[0] if alike else column)]) for column in columns]
        runs = [Run.of("", "", str(seed), str(seed), one[:, None]) for seed, one in enumerate(values)]
        runs = runs if alike else [run.of_own_facts() for run in runs]
        binary = [metric] if np.isin(np.concatenate(values), (0, 1)).all() else []
        size = size_over_seeds(sizes)
        row = arm_means(runs, [metric], size, ends={metric: SHARE}, binary=binary).row(0, named=True)
        low, high = row["low"], row["high"]
    return {
        "seeds": len(by_seed),
        "value": float(np.mean(by_seed)),
        "low": low,
        "high": high,
        "by_seed": by_seed,
    }
