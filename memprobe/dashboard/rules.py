"""One set of checkpoints under one token rule: its figures and numbers for every k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from memprobe import plots
from memprobe.dashboard import explorer
from memprobe.dashboard.chains import Chain
from memprobe.dashboard.questions import Asked
from memprobe.dashboard.shown import COMPARED, DRAWS, SHOWN, STAGED, difference_unit
from memprobe.plots import Sketch
from memprobe.statistics.arms import MIN_SEEDS, Run, arm_means
from memprobe.statistics.controls import BINARY, SHARES, STATISTICS, values_of
from memprobe.statistics.curves import frequency_of, recall_of, shuffled_recall_of
from memprobe.statistics.holding import trajectories
from memprobe.statistics.intervals import Resamples, bootstrap_mean, wilson
from memprobe.statistics.occurrence import Occurrence, kaplan_meier, placement_of
from memprobe.statistics.overview import (
    STATES,
    depth_shares,
    flows,
    mean_over_draws,
    outcome_shares,
    paired_means,
    states_of,
)

if TYPE_CHECKING:
    pass

FATE_NAMES = {"said": "exact", "surfaces": "surfaces only", "absent": "absent"}


class UnderRule:
    """What the page shows of a set under one token rule. The rule is applied once; each k then is a threshold."""

    def __init__(
        self,
        asked: Asked,
        rule: str,
        chains: Sequence[Chain],
        followed: Sequence[Chain],
        pairs: Sequence[tuple[str, str, str]],
        fixed: Asked | None,
    ) -> None:
        self.asked, self.chains, self.followed, self.pairs = asked, chains, followed, pairs
        self.labels = asked.labels
        self.answers = {part.checkpoint: part for part in trajectories(asked.records, token=rule)}
        self.others = list(trajectories(asked.shuffled, token=rule))
        self.outcomes = {
            label: outcome_shares(asked.outcomes.filter(pl.col("checkpoint") == label))
            for label in self.labels
        }
        self.accuracy = {
            label: exact["value"] if (exact := row["exact_match"] or row["exact_tokens"]) else None
            for label, row in self.outcomes.items()
        }
        common = set.intersection(*(set(part.factoids) for part in self.answers.values()))
        self.everyone = asked.factoids.filter(pl.col("id").is_in(list(common)))
        ids = self.everyone["id"].to_numpy()
        self.aligned = {label: self.answers[label].select(ids) for label in self.labels}
        self.exact = dict(
            zip(self.labels, explorer.exact_in(asked, self.everyone, self.labels).T, strict=True)
        )
        self.fixed = {}
        if fixed is not None:
            found = {part.checkpoint: part for part in trajectories(fixed.records, token=rule)}
            self.fixed = {
                label: part.select(ids) for label, part in found.items() if common <= set(part.factoids)
            }
        self.resamples: dict[tuple[int, int], Resamples] = {}

    def tables(self, k: int) -> tuple[dict[str, Sketch], dict[str, Any], list[dict[str, Any]]]:
        """Figures by name, the numbers on top by checkpoint, and the means over seeds by arm and stage."""
        answers = list(self.answers.values())
        recall, frequency = recall_of(answers, k=k), frequency_of(answers, k=k)
        chance = shuffled_recall_of(self.others, k=k)
        found = {label: Occurrence.of(self.answers[label], k) for label in self.labels}
        look = {"checkpoints": self.labels}
        figures = {
            "recall": plots.recall_curves.sketch(recall, chance, accuracy=self.accuracy, **look),
            "frequency": plots.normalised_frequency.sketch(frequency, accuracy=self.accuracy, **look),
            "recall-heatmap": plots.depth_heatmap.sketch(recall, "recall", title=f"recall@{k}", **look),
            "frequency-heatmap": plots.depth_heatmap.sketch(
                frequency, "frequency", title="share of occurrences", largest=None, **look
            ),
        }
        for name, of in (("lof", "first occurrence"), ("settled", "settled depth")):
            depths = {label: (getattr(one, name), one.n_layers) for label, one in found.items()}
            figures[name] = plots.depth_distribution.sketch(depth_shares(depths), of=of, **look)
            survival = pl.concat(
                kaplan_meier(depth, layers).with_columns(pl.lit(label, pl.String).alias("checkpoint"))
                for label, (depth, layers) in depths.items()
            )
            figures[f"{name}-survival"] = plots.survival_curves.sketch(survival, of=of, **look)
        arms: list[dict[str, Any]] = []
        if len(self.everyone):
            values = {
                label: values_of(part, Occurrence.of(part, k), self.exact[label])
                for label, part in self.aligned.items()
            }
            figures |= self._differences(values, k)
            figures |= self._fates(k)
            if self.chains:
                staged, arms = self._stages(values)
                figures |= staged
        return figures, self._headline(k, found, recall, chance), arms

    def _headline(
        self, k: int, found: Mapping[str, Occurrence], recall: pl.DataFrame, chance: pl.DataFrame
    ) -> dict[str, Any]:
        by_chance: dict[str, list[dict[str, float | None]]] = {}
        for part in self.others:
            placed = placement_of(Occurrence.of(part, k), self._draws(len(part.factoids), 1))
            by_chance.setdefault(part.checkpoint, []).append(placed)
        names = ("lof_mean", "lof_sd", "share_never", "depths_per_factoid")
        rows: dict[str, dict[str, Any]] = {}
        for label in self.labels:
            rows[label] = self.outcomes[label] | placement_of(
                found[label], self._draws(len(found[label].factoids), DRAWS)
            )
            rows[label]["recall"] = _at_full_depth(recall, label)
            rows[label]["shuffled"] = None
            if draws := by_chance.get(label):
                rows[label]["shuffled"] = mean_over_draws(draws, names) | {
                    "recall": _at_full_depth(chance, label)
                }
        return rows

    def _differences(self, values: Mapping[str, np.ndarray], k: int) -> dict[str, Sketch]:
        if not self.pairs:
            return {}
        resamples = self._draws(len(self.everyone), DRAWS)
        beside = {
            label: values_of(part, Occurrence.of(part, k), self.exact[label])
            for label, part in self.fixed.items()
        }
        pairs = pl.DataFrame(
            [[at, *pair] for at, pair in enumerate(self.pairs)],
            schema=["pair", "against", "reference", "checkpoint"],
            orient="row",
        )

        def subtracted(of: Mapping[str, np.ndarray]) -> pl.DataFrame:
            """One product with the draws for all pairs."""
            unknown = np.full((len(self.everyone), len(STATISTICS)), np.nan)
            values = [of.get(other, unknown) - of.get(one, unknown) for _, one, other in self.pairs]
            return paired_means(np.stack(values, axis=1), resamples)

        table = pairs.join(subtracted(values), on="pair", how="left", maintain_order="left_right")
        if self.fixed:
            names = {name: f"fixed_{name}" for name in ("difference", "low", "high")}
            second = subtracted(beside).select("pair", "statistic", *names).rename(names)
            table = table.join(second, on=["pair", "statistic"], how="left", maintain_order="left")
        return {
            f"difference-{name}": plots.difference_forest.sketch(
                table.filter(pl.col("statistic") == name),
                x=difference_unit(name),
                percent=SHOWN[name][1],
                checkpoints=self.labels,
            )
            for name in COMPARED
        }

    def _fates(self, k: int) -> dict[str, Sketch]:
        found = {}
        states = {label: states_of(self.exact[label], part.held(k)) for label, part in self.aligned.items()}
        assert tuple(FATE_NAMES) == STATES
        for position, chain in enumerate(self.followed):
            table = flows(np.column_stack([states[label] for label in chain.labels]))
            found[f"fate-{position}"] = plots.fate_flows.sketch(table, chain.stage_names, names=FATE_NAMES)
        return found

    def _stages(self, values: Mapping[str, np.ndarray]) -> tuple[dict[str, Sketch], list[dict[str, Any]]]:
        """A line for each run; with three seeds of an arm or more, their mean and its interval as well."""
        n = len(self.everyone)
        resamples = self._draws(n, DRAWS)
        together = np.column_stack([values[label] for label in self.labels])
        # [edge, label, statistic]: one product with the draws for all checkpoints.
        edges = np.reshape(bootstrap_mean(together, resamples), (3, len(self.labels), len(STATISTICS)))
        place = {label: at for at, label in enumerate(self.labels)}
        called: dict[int, set[str]] = {}
        for chain in self.chains:
            for stage, name in zip(chain.stages, chain.stage_names, strict=True):
                called.setdefault(stage, set()).add(name)
        names = {
            stage: min(found) if len(found) == 1 else f"stage {stage}" for stage, found in called.items()
        }
        runs = [
            Run.of(chain.arm, str(stage), chain.seed or "", label, values[label])
            for chain in self.chains
            for stage, label in zip(chain.stages, chain.labels, strict=True)
            if stage > 0
        ]
        means = arm_means(runs, list(STATISTICS), n, shares=SHARES, binary=BINARY)
        several = means.filter(pl.col("seeds") >= MIN_SEEDS)
        figures = {}
        # An arm looks like the last checkpoint of its first run.
        looks = {chain.arm: self.labels.index(chain.labels[-1]) for chain in reversed(self.chains)}
        for name in STAGED:
            _, share = SHOWN[name]
            column = STATISTICS.index(name)
            rows = []
            for chain in self.chains:
                for stage, checkpoint in zip(chain.stages, chain.labels, strict=True):
                    value = edges[:, place[checkpoint], column].tolist()
                    if share:
                        value[1:] = map(float, wilson(value[0], np.array(n)))
                    rows.append([chain.arm, chain.seed, checkpoint, stage, names[stage], *value])
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
            figures[f"stage-{name}"] = plots.stage_lines.sketch(table, y="", percent=share, looks=looks)
        if not (means["seeds"] > 1).any():
            return figures, []
        rows = []
        for (arm, stage), part in means.group_by("arm", "stage", maintain_order=True):
            numbers = {
                row["statistic"]: {key: row[key] for key in ("mean", "low", "high", "by_seed")}
                for row in part.iter_rows(named=True)
                if row["statistic"] in STAGED
            }
            rows.append({"arm": arm, "stage": names[int(str(stage))], "seeds": part["seeds"][0]} | numbers)
        return figures, rows

    def _draws(self, n: int, draws: int) -> Resamples:
        if (n, draws) not in self.resamples:
            self.resamples[n, draws] = Resamples.of(n, draws=draws)
        return self.resamples[n, draws]


def _at_full_depth(recall: pl.DataFrame, label: str) -> dict[str, float] | None:
    rows = recall.filter(pl.col("checkpoint") == label)
    if rows.is_empty():
        return None
    deepest = rows.filter(pl.col("depth") == rows["depth"].max())
    return dict(zip(("value", "low", "high"), deepest.select("recall", "low", "high").row(0), strict=True))
