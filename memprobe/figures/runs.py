"""Training runs -> tables: what is left of each dataset after each stage, by arm and seed.

Runs are read by their files (``recipe.toml``, and in each stage ``evaluation.json`` and ``memprobe.json``), so that
weights need not be there. A run that has not ended is left out; one in which a stage of factoids did not reach
100 % on its own rows is counted as failed and is in no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memprobe.arms import arm_names, by_kind
from memprobe.errors import MemprobeError
from memprobe.figures.by_arm import SHARES
from memprobe.files import read_json
from memprobe.statistics.arms import MIN_SEEDS, Run, arm_means
from memprobe.studies import TrainingRun

NAMES = ("forgetting", "stages", "replay_ratio", "mixing_ratio", "mixing_length", "interference")
"""Figures of training runs."""
NAIVE = "none"
_EXACT = "exact_match"
BEYOND_NAIVE = ("mixing", "match", "replay", "penalty", "lora")
"""Of a stage in a recipe, what makes it more than training on its own rows."""


@dataclass(frozen=True)
class Ended:
    """One run that has trained all its stages.

    Attributes:
        path: its directory.
        setup: its datasets, ``kvr → lama``.
        arm: its text, as in the manifest.
        recipe: as in ``recipe.toml``.
        evaluations: by number of the stage; joint training has its last stage only.
        manifests: of the stages, those that are there.
    """

    path: Path
    setup: str
    arm: str
    seed: int
    recipe: dict[str, Any]
    evaluations: dict[int, dict[str, Any]]
    manifests: list[dict[str, Any]]

    @property
    def names(self) -> list[str]:
        """Datasets, ``1-kvr`` first."""
        return [f"{i}-{stage['name']}" for i, stage in enumerate(self.recipe["stages"], 1)]

    def total(self, name: str) -> int | None:
        """``steps`` or ``tokens`` of all stages; ``None`` where a manifest is missing."""
        whole = len(self.manifests) == len(self.evaluations)
        return sum(manifest[name] for manifest in self.manifests) if whole else None

    @property
    def last(self) -> dict[str, Any]:
        """Evaluated sets after the last stage."""
        return self.evaluations[len(self.names)]["sets"]

    @property
    def learned(self) -> bool:
        """Whether each stage of factoids ended at 100 % on its own rows."""
        joint = self.recipe.get("joint", False)
        for number, (name, stage) in enumerate(zip(self.names, self.recipe["stages"], strict=True), 1):
            sets = self.last if joint else self.evaluations[number]["sets"]
            if stage.get("kind", "factoids") == "factoids" and sets[name]["scores"][_EXACT]["value"] < 1:
                return False
        return True


def ended_runs(found: Iterable[TrainingRun], say: Callable[[str], None] = lambda text: None) -> list[Ended]:
    """The runs of two stages or more that have ended, each arm, seed and pair of datasets once.

    Args:
        say: called with one line about each run that is left out.

    Raises:
        MemprobeError: a file of a run is broken.
    """
    ended = []
    for run in found:
        recipe = run.recipe
        try:
            names = [str(stage["name"]) for stage in recipe["stages"]]
        except (KeyError, TypeError) as error:
            raise MemprobeError(
                f"{run.path / 'recipe.toml'}: no recipe of python -m training ({error})"
            ) from error
        if len(names) < 2:
            continue
        folders = {
            number: folder
            for number, _, folder in run.stages
            if number and (folder / "evaluation.json").exists()  # 0 is the base model
        }
        wanted = {len(names)} if recipe.get("joint") else set(range(1, len(names) + 1))
        if set(folders) != wanted:
            say(f"{run.path}: has not ended, and is left out")
            continue
        manifests = [folder / "memprobe.json" for folder in folders.values()]
        ended.append(
            Ended(
                path=run.path,
                setup=" → ".join(names),
                arm=run.arm,
                seed=run.seed,
                recipe=recipe,
                evaluations={
                    number: read_json(folder / "evaluation.json") for number, folder in folders.items()
                },
                manifests=[read_json(path) for path in manifests if path.exists()],
            )
        )
    kept: dict[tuple[str, str, int], Ended] = {}
    for one in _told_apart(ended):
        other = kept.setdefault((one.setup, one.arm, one.seed), one)
        if other is not one:
            say(
                f"{one.path}: is arm {one.arm}, seed {one.seed} of {one.setup} again, as {other.path}; left out"
            )
    return list(kept.values())


def _told_apart(found: list[Ended]) -> list[Ended]:
    """Set-ups of the same datasets that differ in their size or in the base model say so in their names."""
    from dataclasses import replace

    sizes = {
        id(one): (one.recipe.get("base"), one.evaluations[len(one.names)]["sets"][one.names[0]]["n"])
        for one in found
    }
    parts: list[dict[str, set[Any]]] = [{}, {}]
    for one in found:
        for part, value in zip(parts, sizes[id(one)], strict=True):
            part.setdefault(one.setup, set()).add(value)
    told = []
    for one in found:
        base, n = sizes[id(one)]
        name = one.setup + (f", n = {n}" if len(parts[1][one.setup]) > 1 else "")
        told.append(replace(one, setup=name + (f", {base}" if len(parts[0][one.setup]) > 1 else "")))
    return told


# ---------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------


def of_runs(runs: Sequence[Ended]) -> dict[str, pl.DataFrame | str]:
    """What training runs can be drawn as: by figure its table or, in words, why there is none."""
    if not runs:
        why = "no training run of two stages or more has ended there"
        return dict.fromkeys(NAMES, why)
    with_facts = [run for run in runs if run.last[run.names[0]]["kind"] == "factoids"]
    found: dict[str, pl.DataFrame | str] = {"stages": _stages(runs)}
    tables = {
        "interference": (_interference(with_facts), "no run measured how its gradients interfere"),
        "forgetting": (forgetting(with_facts), "no run has factoids as D_A"),
        "replay_ratio": (_replay(with_facts), "there are not two replay ratios with all else equal"),
        "mixing_ratio": (
            _mixing(with_facts, "mixing_ratio"),
            "there are not two mixing ratios with all else equal",
        ),
        "mixing_length": (
            _mixing(with_facts, "mixing_words"),
            "there are not two lengths of mixing rows with all else equal",
        ),
    }
    return found | {name: table if len(table) else why for name, (table, why) in tables.items()}


def forgetting(runs: Sequence[Ended]) -> pl.DataFrame:
    """Retention of D_A after the last stage, by pair of datasets and arm, with D_B's score and the cost.

    Returns:
        [setup, arm, arm_text, retention, low, high, by_seed, failed, last_metric, last_score, steps, tokens]; means
        over seeds that were learned; ``retention`` and its interval (:func:`memprobe.statistics.arms.arm_means`)
        are null under three of them; ``steps`` and ``tokens`` are multiples of naive's.
    """
    names = arm_names(by_kind({run.arm for run in runs}))
    rows = []
    for setup in sorted({run.setup for run in runs}):
        naive = [run for run in runs if run.setup == setup and run.arm == NAIVE and run.learned]
        for arm in by_kind({run.arm for run in runs if run.setup == setup}):
            every = [run for run in runs if (run.setup, run.arm) == (setup, arm)]
            learned = _by_seed(run for run in every if run.learned)
            own = [run.last[run.names[-1]] for run in learned]
            rows.append(
                {
                    "setup": setup,
                    "arm": names[arm],
                    "arm_text": arm,
                    **_over_seeds([run.last[run.names[0]] for run in learned], "retention"),
                    "failed": len(every) - len(learned),
                    "last_metric": own[0]["metric"] if own else None,
                    "last_score": _mean([one["scores"][one["metric"]]["value"] for one in own]),
                    "steps": _ratio(learned, naive, "steps"),
                    "tokens": _ratio(learned, naive, "tokens"),
                }
            )
    return _frame(rows)


def _stages(runs: Sequence[Ended]) -> pl.DataFrame | str:
    """[setup, arm, dataset, metric, stage, value, low, high, by_seed] of the runs that have the most stages."""
    most = max(len(run.names) for run in runs)
    long = [run for run in runs if len(run.names) == most and run.learned and not run.recipe.get("joint")]
    names = arm_names(by_kind({run.arm for run in long}))
    rows = []
    for setup in sorted({run.setup for run in long}):
        for arm in by_kind({run.arm for run in long if run.setup == setup}):
            group = _by_seed(run for run in long if (run.setup, run.arm) == (setup, arm))
            for i, dataset in enumerate(group[0].names, 1):
                metric = group[0].last[dataset]["metric"]
                for stage in range(i, most + 1) if metric in SHARES else ():
                    sets = [run.evaluations[stage]["sets"][dataset] for run in group]
                    keys = {"setup": setup, "arm": names[arm], "dataset": dataset.partition("-")[2]}
                    rows.append(keys | {"metric": metric, "stage": stage} | _over_seeds(sets, "value"))
    return _frame(rows) if rows else "no run has learned all its stages"


def _interference(runs: Sequence[Ended]) -> pl.DataFrame:
    """[setup, arm, arm_text, seed, cosine, retention] of the learned runs that measured it as the last stage began."""
    names = arm_names(by_kind({run.arm for run in runs}))
    rows = []
    for run in sorted(runs, key=lambda run: (run.setup, run.arm, run.seed)):
        measured = run.evaluations[len(run.names)].get("interference") or {}
        cosine = measured.get("start", {}).get("cosine_a_b", {}).get("overall")
        if run.learned and cosine is not None and not run.recipe.get("joint"):  # joint has no D_B of its own
            kept = run.last[run.names[0]]["scores"][_EXACT]["value"]
            keys = {"setup": run.setup, "arm": names[run.arm], "arm_text": run.arm, "seed": str(run.seed)}
            rows.append(keys | {"cosine": float(cosine), "retention": float(kept)})
    return pl.DataFrame(rows)


def _replay(runs: Sequence[Ended]) -> pl.DataFrame:
    """[setup, rows, replay_ratio, retention, low, high, by_seed]; of all rows, and of those not replayed."""
    found = []
    for run in runs:
        extras = _extras(run)
        if run.arm == NAIVE:
            found.append((run, 0.0))
        elif len(extras) == 1 and (replay := extras[0].get("replay")):
            found.append((run, replay["ratio"]))
    rows = []
    for which in ("all rows of D_A", "those not replayed"):
        for keys, at, group in _settings([(run, {"setup": run.setup}, ratio) for run, ratio in found]):
            sets = [run.last[run.names[0]] for run in group]
            if which != "all rows of D_A" and at:
                sets = [_unseen(run) for run in group]
            if all(one["rows"] for one in sets):
                over = _over_seeds(sets, "retention")
                rows.append(keys | {"rows": which, "replay_ratio": at} | over)
    return _frame(rows)


def _unseen(run: Ended) -> dict[str, Any]:
    """D_A's rows that no later stage trained on again; none where manifests do not say which."""
    one = run.last[run.names[0]]
    if len(run.manifests) < len(run.evaluations):
        return one | {"rows": []}
    again = {key for manifest in run.manifests for key in manifest.get("replayed", ())}
    return one | {"rows": [row for row in one["rows"] if row["id"] not in again]}


def _mixing(runs: Sequence[Ended], over: str) -> pl.DataFrame:
    """[setup, mixing, the other setting, over, retention, low, high, by_seed], of mixing in stage 1 alone."""
    other = "mixing_words" if over == "mixing_ratio" else "mixing_ratio"
    found, naive = [], [run for run in runs if run.arm == NAIVE]
    for run in runs:
        mixing = run.recipe["stages"][0].get("mixing") or []
        alone = len(_extras(run)) == 1 and not run.recipe["stages"][0].get("match")
        told = {(part["ratio"], part["words"][-1]) for part in mixing}
        if alone and len(told) == 1:
            ratio, words = told.pop()
            setting = {"mixing_ratio": float(ratio), "mixing_words": float(words)}
            sources = ", ".join(part["source"] for part in mixing)
            keys = {"setup": run.setup, "mixing": sources, other: setting[other]}
            found.append((run, keys, setting[over]))
    for keys in {tuple(keys.items()): keys for _, keys, _ in found}.values():
        found += [(run, keys, 0.0) for run in naive if run.setup == keys["setup"]]
    return _frame(
        [
            keys | {over: at} | _over_seeds([run.last[run.names[0]] for run in group], "retention")
            for keys, at, group in _settings(found)
        ]
    )


def _extras(run: Ended) -> list[dict[str, Any]]:
    """What each stage has beyond naive training, where it has anything; joint training is no stage's."""
    if run.recipe.get("joint"):
        return []
    found = []
    for stage in run.recipe["stages"]:
        extra = {key: stage[key] for key in BEYOND_NAIVE if stage.get(key)}
        found += [extra] if extra else []
    return found


def _settings(
    found: Sequence[tuple[Ended, dict[str, Any], float]],
) -> list[tuple[dict[str, Any], float, list[Ended]]]:
    """(keys, setting, its learned runs by seed), of keys under which two settings or more beside naive's 0 ran."""
    groups: dict[tuple[Any, ...], tuple[dict[str, Any], dict[float, list[Ended]]]] = {}
    for run, keys, at in found:
        if run.learned:
            groups.setdefault(tuple(keys.items()), (keys, {}))[1].setdefault(at, []).append(run)
    return [
        (keys, at, _by_seed(by_setting[at]))
        for _, (keys, by_setting) in sorted(groups.items(), key=lambda item: str(item[0]))
        if len(set(by_setting) - {0.0}) > 1
        for at in sorted(by_setting)
    ]


# ---------------------------------------------------------------------------------------------------------------
# Over seeds
# ---------------------------------------------------------------------------------------------------------------


def _over_seeds(sets: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Each seed's score, and from three seeds on their mean and its interval.

    The interval needs the same rows in every seed; where they differ there is none, and no mean either.
    """
    columns = [{row["id"]: float(row[one["metric"]]) for row in one["rows"]} for one in sets]
    by_seed = [float(np.mean(list(column.values()))) for column in columns]
    mean = low = high = None
    alike = all(column.keys() == columns[0].keys() for column in columns)
    if len(columns) >= MIN_SEEDS and alike and len(columns[0]) > 1:
        ids = list(columns[0])
        values = np.array([[column[key] for key in ids] for column in columns])
        runs = [Run.of("", "", str(seed), str(seed), one[:, None]) for seed, one in enumerate(values)]
        binary = [name] if np.isin(values, (0, 1)).all() else []
        row = arm_means(runs, [name], len(ids), shares=[name], binary=binary).row(0, named=True)
        mean, low, high = row["mean"], row["low"], row["high"]
    return {name: mean, "low": low, "high": high, "by_seed": by_seed}


def _by_seed(runs: Iterable[Ended]) -> list[Ended]:
    return sorted(runs, key=lambda run: run.seed)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _ratio(runs: Sequence[Ended], naive: Sequence[Ended], name: str) -> float | None:
    sums = [[run.total(name) for run in side] for side in (runs, naive)]
    if not all(sums) or any(total is None for side in sums for total in side):
        return None
    return float(np.mean(sums[0]) / np.mean(sums[1]))  # type: ignore[arg-type]


def _frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    numbers = ("retention", "value", "low", "high", "last_score", "steps", "tokens")
    schema: dict[str, Any] = {name: pl.Float64 for name in numbers if rows and name in rows[0]}
    return pl.DataFrame(
        rows, schema_overrides=schema | {"by_seed": pl.List(pl.Float64)}, infer_schema_length=None
    )
