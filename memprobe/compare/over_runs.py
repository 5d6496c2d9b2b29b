"""Tables over training runs: paths through stages, arms over seeds, learning curves of depth, kept facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from memprobe.chains import Chain
from memprobe.compare.by_checkpoint import placement
from memprobe.compare.table import NUMBERS, floats, table
from memprobe.errors import MemprobeError
from memprobe.members import Member, check_apart, ends_of
from memprobe.readings import ARM_STATISTICS, Readings
from memprobe.statistics.arms import Run, arm_means
from memprobe.statistics.arms import arm_differences as arm_differences_of
from memprobe.statistics.controls import BINARY, STATISTICS
from memprobe.statistics.ends import Ends
from memprobe.statistics.fates import fates, kept_against_lost, rank_correlations
from memprobe.statistics.margins import GIVEN_MARGIN, given_margin, margin, with_statistic
from memprobe.statistics.vocabulary import PER_FACTOID, ends

_SEEDS = {"by_seed": pl.List(pl.Float64)}
DEPTHS = tuple(
    name for name in ARM_STATISTICS if name.removesuffix("_net") in ("lof_restricted", "settled_restricted")
)
"""Statistics of where a fact surfaces, which every fact has; one that never does counts as one depth more."""
_BY_LAYERS = tuple(
    name for name in ARM_STATISTICS if PER_FACTOID[name.removesuffix("_net")].unit in ("depth", "depths")
)
"""Statistics that models of several numbers of layers have on scales of their own."""


@table(
    "all",
    {"arm": pl.String, "seed": pl.String, "stages": pl.String, "path": pl.String, "n": pl.Int64}
    | floats("share", "low", "high"),
)
def paths(readings: Readings) -> pl.DataFrame:
    """Paths of facts through the stages of each run."""
    parts = [
        path_of(chain, [readings[label].exact for label in chain.labels])
        for chain in readings.chains
        if len(chain.members) > 1
    ]
    return pl.concat(parts) if parts else paths.empty


def path_of(chain: Chain[Any], exact: Sequence[np.ndarray]) -> pl.DataFrame:
    """Of a run that has several stages, how many facts take which path through them.

    Args:
        exact: by stage, bool [factoid], whether the answer is given.
    """
    stages = " → ".join(one.stage or "" for one in chain.members)
    keys = {"arm": chain.arm, "seed": chain.seed, "stages": stages}
    fates_seen = fates(np.column_stack(exact))
    return fates_seen.select(*(pl.lit(value).alias(name) for name, value in keys.items()), pl.all())


def runs_of(readings: Readings, labels: Iterable[str] | None = None) -> list[Run]:
    """The checkpoints whose arm is known, as :mod:`memprobe.statistics.arms` takes them: the ends of stages.

    Raises:
        MemprobeError: two of them have one arm, stage, seed and step, or are models of one arm with other layers.
    """
    wanted = [readings.member(label) for label in (readings.labels if labels is None else labels)]
    check_apart(wanted)
    deep: dict[tuple[str, str], Member] = {}
    for one in wanted:
        first = deep.setdefault((one.arm or "", one.stage or ""), one)
        if one.arm is not None and one.n_layers != first.n_layers:
            raise MemprobeError(
                f"{first.label} and {one.label} are both arm {one.arm!r} and have {first.n_layers} and {one.n_layers} "
                "layers, so that they are no seeds of one arm: tell them apart with `arms`"
            )
    return [readings.run(member.label) for member in ends_of(wanted)]


@table(
    "all",
    {"arm": pl.String, "stage": pl.String, "seeds": pl.Int64, "statistic": pl.String}
    | floats("mean", "low", "high", "p", "detectable")
    | _SEEDS,
)
def arms(readings: Readings) -> pl.DataFrame:
    """Each arm's mean over seeds, stage by stage."""
    runs, names = _with_margins(readings, runs_of(readings))
    if not runs:
        return arms.empty
    by_layers: dict[int, list[Run]] = {}
    for run in runs:
        by_layers.setdefault(readings.member(run.label).n_layers, []).append(run)
    return pl.concat(
        arm_means(
            some, names, len(readings.factoids), ends=limits_of(readings, [some[0].label]), binary=BINARY
        )
        for some in by_layers.values()
    )


def limits_of(readings: Readings, labels: Iterable[str] | None = None) -> dict[str, Ends]:
    """The least and the most that statistics of :func:`arms` can be in the deepest of some checkpoints."""
    members = [readings.member(label) for label in (readings.labels if labels is None else labels)]
    n_layers = max(member.n_layers for member in members)
    return {name: ends(name, n_layers) for name in (*ARM_STATISTICS, GIVEN_MARGIN)}


@table(
    "all",
    {"arm": pl.String, "reference": pl.String, "stage": pl.String, "statistic": pl.String}
    | {"seeds": pl.Int64, "reference_seeds": pl.Int64, "in_common": pl.String, "paired": pl.Boolean}
    | floats(*NUMBERS, "p")
    | {"significant": pl.Boolean, "detectable": pl.Float64},
)
def arm_differences(readings: Readings, reference: str | None = None) -> pl.DataFrame:
    """Differences between arms at the same stage, over seeds. Those of depths are left out between arms whose models
    have other numbers of layers.

    Args:
        reference: an arm (default: that of the reference checkpoint, else the first).
    """
    runs, names = _with_margins(readings, runs_of(readings))
    if not runs:
        return arm_differences.empty
    arm = reference or readings.reference.arm or runs[0].arm
    found = arm_differences_of(
        runs, names, len(readings.factoids), reference=arm, ends=limits_of(readings), binary=BINARY
    )
    layers = {(run.arm, run.stage): readings.member(run.label).n_layers for run in runs}
    alike = [
        layers[one, stage] == layers[other, stage]
        for one, other, stage in found.select("arm", "reference", "stage").iter_rows()
    ]
    return found.filter(pl.Series(alike, dtype=pl.Boolean) | ~pl.col("statistic").is_in(_BY_LAYERS))


def _with_margins(readings: Readings, runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Runs with :data:`~memprobe.statistics.margins.GIVEN_MARGIN` beside the others, where a first stage is there."""
    stage_of = {str(one.entry.get("fingerprint")): one for one in readings.members if one.arm is not None}
    log_probs = {run.label: _log_prob(readings, run.label) for run in runs}
    first: dict[str, str] = {}
    for run in runs:
        trained = [stage_of[key] for key in run.before if key in stage_of]
        if trained and (trained[-1].stage or "").partition("-")[0] == "1":
            first[run.label] = trained[-1].label
    margins = {label: margin(_log_prob(readings, label)) for label in set(first.values())}
    values = [np.full(len(run.influence), np.nan) for run in runs]
    for stage in dict.fromkeys(run.stage for run in runs if run.label in first):
        at = [i for i, run in enumerate(runs) if run.stage == stage and run.label in first]
        after = [log_probs[runs[i].label] for i in at]
        before = [margins[first[runs[i].label]] for i in at]
        for i, one in zip(at, given_margin(after, before), strict=True):
            values[i] = one
    if not first:
        return runs, list(ARM_STATISTICS)
    return with_statistic(runs, values), [*ARM_STATISTICS, GIVEN_MARGIN]


def _log_prob(readings: Readings, label: str) -> np.ndarray:
    """Of each fact's answer at full depth, [factoid], nats."""
    return readings[label].values[:, STATISTICS.index("log_prob_full")]


@table("all", {"run": pl.String, "step": pl.Int64} | dict(placement.schema))
def steps(readings: Readings, placed: pl.DataFrame | None = None) -> pl.DataFrame:
    """Learning curves of depth: placement along training.

    Args:
        placed: the table ``placement``, where it is made already.
    """
    points = [
        (series.name, step, label)
        for series in readings.series
        for step, label in zip(series.steps, series.labels, strict=True)
    ]
    if not points:
        return steps.empty
    along = pl.DataFrame(points, schema=["run", "step", "checkpoint"], orient="row")
    placed = placement(readings, along["checkpoint"].to_list()) if placed is None else placed
    return along.join(placed, on="checkpoint", how="left", maintain_order="left")


def kept_facts(readings: Readings, arms: Mapping[str, Sequence[tuple[str, str]]]) -> pl.DataFrame:
    """Whether the facts that further training left had surfaced earlier, before it, than those that it took.

    An arm that keeps more also has more facts to read afterwards, so that comparing arms there compares retention
    once more. This compares facts with facts: in the checkpoint *before*, where all compared ones are recalled, the
    mean over those still recalled after, minus the mean over the lost
    (:func:`memprobe.statistics.fates.kept_against_lost`).

    Args:
        arms: by arm, for each of its seeds the labels (before, after).

    Returns:
        [arm, seeds, kept, lost, statistic, difference, low, high, p, detectable, by_seed], of
        :data:`ARM_STATISTICS` but exact match; ``kept`` and ``lost`` count facts in each seed. The interval is of
        :func:`memprobe.statistics.arms.arm_means` and needs three seeds. Seeds without a kept or a lost fact are not
        in it.

    Raises:
        MemprobeError: an unknown label, broken files.
    """
    chosen = [i for i, name in enumerate(ARM_STATISTICS) if name != "exact"]
    runs, counts = [], {}
    for arm, pairs in arms.items():
        for before, after in pairs:
            recalled, retained = readings[before].exact, readings[after].exact
            kept, lost = recalled & retained, recalled & ~retained
            if kept.any() and lost.any():
                values = readings.with_net(before)[:, chosen]
                found = kept_against_lost(values, kept, lost)
                runs.append(Run(arm, "", after, after, found.difference, found.influence))
                counts.setdefault(arm, []).append((int(kept.sum()), int(lost.sum())))
    if not runs:
        return pl.DataFrame()
    names = [ARM_STATISTICS[i] for i in chosen]
    found = arm_means(runs, names, len(readings.factoids), ends=limits_of(readings), differences=True)
    found = found.rename({"mean": "difference"})
    sizes = [[[n for n, _ in one], [n for _, n in one]] for one in counts.values()]
    numbers = pl.DataFrame(
        {"arm": list(counts), "kept": [kept for kept, _ in sizes], "lost": [lost for _, lost in sizes]}
    )
    columns = ["arm", "seeds", "kept", "lost", "statistic", *NUMBERS, "p", "detectable", "by_seed"]
    return found.join(numbers, on="arm", how="left", maintain_order="left").select(columns)


def depth_and_retention(
    readings: Readings,
    arms: Mapping[str, Sequence[tuple[str, str]]],
    own: Readings | None = None,
) -> pl.DataFrame:
    """Whether facts that surfaced at other depths before further training are left more, or less, probable by it.

    What :func:`kept_facts` asks of kept facts and lost ones, by degrees: over all facts that the checkpoint *before*
    recalls, Spearman's correlation of where they surface in it with the log-probability of their answers after. It is
    defined where a stage loses every fact, or none.

    Args:
        arms: by arm, for each of its seeds the labels (before, after).
        own: the same checkpoints in their own readout, by default these readings: how probable an answer is after is
            what the model itself says, whatever reads the depths before.

    Returns:
        [arm, seeds, facts, statistic, correlation, low, high, p, detectable, by_seed], of :data:`DEPTHS`; a negative
        correlation says that earlier ones are left more probable. ``facts`` counts those that were recalled before, in
        each seed. The interval is of :func:`memprobe.statistics.arms.arm_means`, whose seeds and facts are crossed, and
        needs three seeds.

    Raises:
        MemprobeError: an unknown label, broken files.
    """
    chosen = [ARM_STATISTICS.index(name) for name in DEPTHS]
    runs, counts = [], {}
    for arm, pairs in arms.items():
        for before, after in pairs:
            recalled = readings[before].exact
            if not recalled.any():
                continue
            says = dict(zip((own or readings).ids, _log_prob(own or readings, after), strict=True))
            outcome = np.array([says.get(fact, np.nan) for fact in readings.ids])
            found = rank_correlations(readings.with_net(before)[:, chosen], outcome, recalled)
            runs.append(Run(arm, "", after, after, found.rho, found.influence))
            counts.setdefault(arm, []).append(int(recalled.sum()))
    if not runs:
        return pl.DataFrame()
    table = arm_means(runs, list(DEPTHS), len(readings.factoids), ends=dict.fromkeys(DEPTHS, (-1.0, 1.0)))
    table = table.rename({"mean": "correlation"})
    numbers = pl.DataFrame({"arm": list(counts), "facts": list(counts.values())})
    front = ["arm", "seeds", "facts", "statistic"]
    return table.join(numbers, on="arm", how="left", maintain_order="left").select(
        *front, "correlation", "low", "high", "p", "detectable", "by_seed"
    )
