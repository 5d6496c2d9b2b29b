"""One set of checkpoints under one token rule: its figures and numbers for every k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from memprobe import plots
from memprobe.compare.by_checkpoint import net_of_chance
from memprobe.compare.over_runs import limits_of
from memprobe.dashboard.answers import answer_of
from memprobe.dashboard.chains import TrainingPath
from memprobe.dashboard.series import looks_of, series_of, step_figures
from memprobe.fitted import WITH_FLOOR, Floor
from memprobe.plots import Sketch
from memprobe.reading import Reading
from memprobe.readings import ARM_STATISTICS, Readings
from memprobe.statistics.arms import MIN_SEEDS, arm_means
from memprobe.statistics.controls import BINARY, STATISTICS
from memprobe.statistics.curves import frequency_of, recall_of, shuffled_recall_of
from memprobe.statistics.occurrence import ENDS, kaplan_meier
from memprobe.statistics.overview import (
    STATE_NAMES,
    STATES,
    chance_of,
    depth_shares,
    exact_of,
    flows,
    outcome_shares,
    paired_means,
    states_of,
)
from memprobe.statistics.vocabulary import PER_FACTOID, axis, shown

_CHANCE = ("lof_mean", "lof_sd", "lof_restricted_mean", "share_never", "depths_per_factoid")


@dataclass(frozen=True)
class Shown:
    """What the page shows of a set under one token rule and top-k.

    Attributes:
        figures: by name.
        headline: by checkpoint, the numbers of the first table.
        arms: means over seeds by arm and stage.
        answer: the sentences on top.
    """

    figures: dict[str, Sketch]
    headline: dict[str, Any]
    arms: list[dict[str, Any]]
    answer: list[str]


class UnderRule:
    """What the page shows of a set under one token rule. The rule is applied once; each k then is a threshold.

    Args:
        readings: under the rule.
        paths: training runs; ``followed`` what flows are drawn along, be no run known.
        pairs: (against what, reference, checkpoint).
    """

    def __init__(
        self,
        readings: Readings,
        paths: Sequence[TrainingPath],
        followed: Sequence[TrainingPath],
        pairs: Sequence[tuple[str, str, str]],
    ) -> None:
        self.readings, self.paths, self.followed, self.pairs = readings, paths, followed, pairs
        self.labels, self.looks = readings.labels, looks_of(readings)
        self.outcomes = {label: outcome_shares(readings[label].outcomes) for label in self.labels}
        self.accuracy = {
            label: exact["value"] if (exact := exact_of(row)) else None
            for label, row in self.outcomes.items()
        }

    def tables(self, at: Readings) -> Shown:
        """What the page shows at one top-k: that of ``at``, the readings under it."""
        k = at.k
        read = {label: at[label] for label in self.labels}
        answers = [one.trajectory for one in read.values()]
        recall, frequency = recall_of(answers, k=k), frequency_of(answers, k=k)
        chance = shuffled_recall_of((draw for label in self.labels for draw in at.shuffled(label)), k=k)
        look = {"checkpoints": self.labels, "looks": self.looks}
        floor = at.floor(at.members[0].label)
        figures = {
            "recall": plots.recall_curves.sketch(
                recall, chance, accuracy=self.accuracy, floor=floor.recall, **look
            ),
            "frequency": plots.normalised_frequency.sketch(frequency, accuracy=self.accuracy, **look),
            "recall-heatmap": plots.depth_heatmap.sketch(recall, "recall", title=f"recall@{k}", **look),
            "frequency-heatmap": plots.depth_heatmap.sketch(
                frequency, "frequency", title="share of occurrences", largest=None, **look
            ),
        }
        for name, of in (("lof", "first occurrence"), ("settled", "settled depth")):
            depths = {label: (getattr(one.found, name), one.found.n_layers) for label, one in read.items()}
            figures[name] = plots.depth_distribution.sketch(
                depth_shares(depths), of=of, floor=floor.lof_mean if name == "lof" else None, **look
            )
            survival = pl.concat(
                kaplan_meier(depth, layers).with_columns(pl.lit(label, pl.String).alias("checkpoint"))
                for label, (depth, layers) in depths.items()
            )
            figures[f"{name}-survival"] = plots.survival_curves.sketch(survival, of=of, **look)
        differences = self._differences(at, read)
        figures |= self._forests(differences, floor) if differences is not None else {}
        figures |= self._fates(read) | step_figures(at, read)
        staged, arms = self._stages(at) if self.paths else ({}, [])
        headline = self._headline(at, recall, chance)
        return Shown(figures | staged, headline, arms, answer_of(at, headline, differences))

    def _headline(self, at: Readings, recall: pl.DataFrame, chance: pl.DataFrame) -> dict[str, Any]:
        rows: dict[str, dict[str, Any]] = {}
        for label in self.labels:
            rows[label] = self.outcomes[label] | at.placed(label) | net_of_chance(at, label, "net_lof")
            rows[label]["recall"] = _at_full_depth(recall, label)
            rows[label]["shuffled"] = None
            if draws := at.shuffled(label):
                rows[label]["shuffled"] = chance_of(draws, at.k, _CHANCE) | {
                    "recall": _at_full_depth(chance, label)
                }
        return rows

    def _differences(self, at: Readings, read: Mapping[str, Reading]) -> pl.DataFrame | None:
        """[against, reference, checkpoint, statistic, n, difference, low, high] and, where a second readout was probed,
        the same there (``fixed_``)."""
        if not self.pairs:
            return None
        compared = shown("compared")
        columns = [STATISTICS.index(name) for name in compared]
        pairs = pl.DataFrame(
            [[at, *pair] for at, pair in enumerate(self.pairs)],
            schema=["pair", "against", "reference", "checkpoint"],
            orient="row",
        )

        def subtracted(of: Mapping[str, Reading]) -> pl.DataFrame:
            """One product with the draws for all pairs."""
            unknown = np.full((len(at.factoids), len(compared)), np.nan)
            values = {label: one.values[:, columns] for label, one in of.items()}
            parts = [values.get(other, unknown) - values.get(one, unknown) for _, one, other in self.pairs]
            return paired_means(np.stack(parts, axis=1), compared, at.resamples())

        table = pairs.join(subtracted(read), on="pair", how="left", maintain_order="left_right")
        if at.second is not None:
            names = {name: f"fixed_{name}" for name in ("difference", "low", "high")}
            beside = subtracted({label: at.second[label] for label in at.second.labels})
            beside = beside.select("pair", "statistic", *names).rename(names)
            table = table.join(beside, on=["pair", "statistic"], how="left", maintain_order="left")
        return table

    def _forests(self, table: pl.DataFrame, floor: Floor) -> dict[str, Sketch]:
        # Of a run that is told by its steps, the last checkpoint stands for all: the others are points of its lines.
        passed = {label for one in series_of(self.readings) for label in one.labels[:-1]}
        return {
            f"difference-{name}": plots.difference_forest.sketch(
                table.filter(pl.col("statistic") == name, ~pl.col("checkpoint").is_in(passed)),
                x=axis(name, difference=True),
                percent=PER_FACTOID[name].share,
                checkpoints=self.labels,
                looks=self.looks,
                floor=floor.lof_mean if name in WITH_FLOOR else None,
            )
            for name in shown("compared")
        }

    def _fates(self, read: Mapping[str, Reading]) -> dict[str, Sketch]:
        sketches = {}
        states = {label: states_of(one.exact, one.found.held) for label, one in read.items()}
        assert tuple(STATE_NAMES) == STATES
        for position, path in enumerate(self.followed):
            table = flows(np.column_stack([states[label] for label in path.labels]))
            sketches[f"fate-{position}"] = plots.fate_flows.sketch(table, path.stage_names, names=STATE_NAMES)
        return sketches

    def _stages(self, at: Readings) -> tuple[dict[str, Sketch], list[dict[str, Any]]]:
        """A line for each run; with three seeds of an arm or more, their mean and its interval as well."""
        called: dict[int, set[str]] = {}
        for path in self.paths:
            for stage, name in zip(path.stages, path.stage_names, strict=True):
                called.setdefault(stage, set()).add(name)
        names = {
            stage: min(named) if len(named) == 1 else f"stage {stage}" for stage, named in called.items()
        }
        staged = shown("staged")
        columns = [ARM_STATISTICS.index(name) for name in staged]
        runs = [
            replace(at.run(label).only(columns), arm=path.arm, stage=str(stage), seed=path.seed or "")
            for path in self.paths
            for stage, label in zip(path.stages, path.labels, strict=True)
            if stage > 0
        ]
        means = arm_means(runs, staged, len(at.factoids), ends=limits_of(at), binary=BINARY)
        several = means.filter(pl.col("seeds") >= MIN_SEEDS)
        figures = {}
        # Of single seeds an arm looks like the last checkpoint of its run; of several, whose checkpoints may share a
        # colour from arm to arm, by its own place.
        seeded = bool((means["seeds"] > 1).any())
        ends = {path.arm: self.labels.index(path.labels[-1]) for path in reversed(self.paths)}
        looks = None if seeded else ends
        for name in staged:
            rows = []
            for path in self.paths:
                for stage, checkpoint in zip(path.stages, path.labels, strict=True):
                    placed = at.placed(checkpoint)
                    value = [placed[f"{PER_FACTOID[name].in_placement}{end}"] for end in ENDS]
                    rows.append([path.arm, path.seed, checkpoint, stage, names[stage], *value])
            for row in several.filter(pl.col("statistic") == name).iter_rows(named=True):
                stage = int(row["stage"])
                value = [row["mean"], row["low"], row["high"]]
                rows.append([row["arm"], None, "", stage, names[stage], *value])
            text = dict.fromkeys(("arm", "seed", "checkpoint"), pl.String)
            schema = (
                text
                | {"stage": pl.Int64, "stage_name": pl.String}
                | dict.fromkeys(("value", "low", "high"), pl.Float64)
            )
            table = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
                pl.col("value", "low", "high").fill_nan(None)
            )
            figures[f"stage-{name}"] = plots.stage_lines.sketch(
                table, y="", percent=PER_FACTOID[name].share, looks=looks
            )
        if not seeded:
            return figures, []
        rows = []
        for (arm, stage), part in means.group_by("arm", "stage", maintain_order=True):
            numbers = {
                row["statistic"]: {key: row[key] for key in ("mean", "low", "high", "by_seed")}
                for row in part.iter_rows(named=True)
            }
            rows.append({"arm": arm, "stage": names[int(str(stage))], "seeds": part["seeds"][0]} | numbers)
        return figures, rows


def _at_full_depth(recall: pl.DataFrame, label: str) -> dict[str, float] | None:
    rows = recall.filter(pl.col("checkpoint") == label)
    if rows.is_empty():
        return None
    deepest = rows.filter(pl.col("depth") == rows["depth"].max())
    return dict(zip(("value", "low", "high"), deepest.select("recall", "low", "high").row(0), strict=True))
