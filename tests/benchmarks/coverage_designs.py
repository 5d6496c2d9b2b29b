"""Simulated studies of the published sizes, for ``interval_coverage.py``: one function a design, each giving rows of
what its intervals hold and what its tests reject."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import special, stats

from memprobe.statistics.arms import Run, arm_differences, arm_means
from memprobe.statistics.ends import SHARE
from memprobe.statistics.fates import kept_against_lost, rank_correlations
from memprobe.statistics.intervals import Resamples
from memprobe.statistics.latent import latent_spread, unlucky
from memprobe.statistics.occurrence import Occurrence, placement_of
from memprobe.statistics.paired import differences

FACTS, SEEDS, SHARES = (64, 500), (3, 5, 10), (0.01, 0.1, 0.5, 0.99)
N_LAYERS = 30
Row = dict[str, Any]
Wanted = Callable[[Row], bool]
"""Whether a setting, of which these keys are known, is to be simulated."""


def every(keys: Row) -> bool:
    """All settings."""
    del keys
    return True


def row(design: str, statistic: str, hits: list[bool], **settings: Any) -> Row:
    """One line of the stored result: coverage over the simulations that had an interval, and how many had none."""
    return {
        "design": design,
        "statistic": statistic,
        **settings,
        "simulations": len(hits),
        "share": round(float(np.mean(hits)), 4) if hits else None,
    }


# ------------------------------------------------------------------------------------------- shares over seeds


def answers(
    rng: np.random.Generator,
    facts: int,
    seeds: int,
    levels: tuple[float, ...],
    *,
    rows: float,
    scatter: float,
    prefix: float,
) -> list[np.ndarray]:
    """Yes-or-no [seed, factoid] of arms with these shares: a probit with crossed random effects.

    Args:
        rows: variance of the latent normal by factoid, half of it common to the arms.
        scatter: by seed, of which ``prefix`` is common to the arms.
    """
    fact, seed = rng.normal(size=facts), rng.normal(size=(seeds, 1))
    made = []
    for level in levels:
        own_fact, own_seed = rng.normal(size=facts), rng.normal(size=(seeds, 1))
        latent = np.sqrt(rows / 2) * (fact + own_fact)
        latent = latent + np.sqrt(scatter) * (np.sqrt(prefix) * seed + np.sqrt(1 - prefix) * own_seed)
        latent = latent + np.sqrt(1 - rows - scatter) * rng.normal(size=(seeds, facts))
        made.append((latent < special.ndtri(level)).astype(float))
    return made


def runs(arm: str, values: np.ndarray, start: str) -> list[Run]:
    """One run per seed of values [seed, factoid]; ``start`` holds the seed's place where seeds share a prefix."""
    return [
        Run.of(arm, "", str(i), "", one[:, None], before=("base", start.format(i)))
        for i, one in enumerate(values)
    ]


def shares(simulations: int, seed: int, wanted: Wanted = every) -> Iterator[Row]:
    """An arm's share, its difference from a naive arm at 1 %, and a true null at the same share."""
    settings = itertools.product(FACTS, SEEDS, SHARES, (0.0, 0.1), (0.0, 0.3), (False, True))
    for facts, seeds, level, scatter, rows, prefix in settings:
        if prefix and not scatter:
            continue  # without scatter there is nothing that a prefix could have in common
        keys = {"facts": facts, "seeds": seeds, "level": level, "scatter": scatter, "rows": rows}
        paired = {**keys, "paired": prefix}
        if not wanted(paired):
            continue
        rng = np.random.default_rng(
            [seed, facts, seeds, int(level * 100), int(scatter * 100), int(rows * 100)]
        )
        alone, apart, null = [], [], []
        for _ in range(simulations):
            arm, same, naive = answers(
                rng,
                facts,
                seeds,
                (level, level, 0.01),
                rows=rows,
                scatter=scatter,
                prefix=0.9 if prefix else 0.0,
            )
            start = "stage 1 of seed {}" if prefix else "base"
            of = runs("arm", arm, start)
            if not prefix:
                mean = arm_means(of, ["x"], facts, ends={"x": SHARE}, binary=["x"]).row(0, named=True)
                alone.append(mean["low"] <= level <= mean["high"])
            for other, hits, truth in ((naive, apart, level - 0.01), (same, null, None)):
                found = arm_differences(runs("none", other, start) + of, ["x"], facts, binary=["x"])
                low, high = found["low"][0], found["high"][0]
                hits.append(low > 0 or high < 0 if truth is None else low <= truth <= high)
        if alone:
            yield row("shares", "share", alone, **keys)
        if level != 0.01:
            yield row("shares", "difference", apart, **paired)
        yield row("shares", "null rejected", null, **paired)


# ------------------------------------------------------------------------------------------- means over seeds


def means(simulations: int, seed: int, wanted: Wanted = every) -> Iterator[Row]:
    """Differences of means between arms whose seeds and factoids both vary; the second scatters ``ratio`` as widely."""
    for facts, seeds, ratio, prefix in itertools.product(FACTS, SEEDS, (1.0, 3.0), (False, True)):
        keys = {"facts": facts, "seeds": seeds, "scatter": ratio, "paired": prefix}
        if not wanted(keys):
            continue
        rng = np.random.default_rng([seed, facts, seeds, int(ratio), prefix])
        hits, null = [], []
        for _ in range(simulations):
            fact, common = rng.normal(0, 2, facts), rng.normal(0, 1, (seeds, 1))
            start = "stage 1 of seed {}" if prefix else "base"
            made = []
            for place, spread in ((0.0, 0.3), (1.0, 0.3 * ratio), (0.0, 0.3 * ratio)):
                over = spread * rng.normal(size=(seeds, 1)) + (common if prefix else 0)
                made.append(place + over + fact + rng.normal(0, 2, (seeds, facts)))
            for other, told, truth in ((made[1], hits, 1.0), (made[2], null, None)):
                both = runs("none", made[0], start) + runs("arm", other, start)
                found = arm_differences(both, ["x"], facts)
                low, high = found["low"][0], found["high"][0]
                told.append(low > 0 or high < 0 if truth is None else low <= truth <= high)
        yield row("means", "difference", hits, **keys)
        yield row("means", "null rejected", null, **keys)


# ------------------------------------------------------------------------------------------- kept facts


class Tally:
    """Of one setting's simulations: whether intervals hold the truth, and which nulls, true or not, they reject."""

    def __init__(self) -> None:
        self.hits: list[bool] = []
        self.null: list[bool] = []
        self.power: list[bool] = []

    def add(self, members: list[Run], facts: int, truth: float) -> None:
        """The mean over the runs of an arm; a truth that is not 0 lies below it."""
        table = arm_means(members, ["x"], facts)
        low, high = table["low"][0], table["high"][0]
        if truth:
            self.hits.append(low <= truth <= high)
            self.power.append(high < 0)
        else:
            self.null.append(low > 0 or high < 0)

    def rows(self, design: str, statistic: str, power: str, keys: Row) -> Iterator[Row]:
        """The lines of the stored result."""
        yield row(design, statistic, self.hits, **keys)
        yield row(design, "null rejected", self.null, **keys)
        yield row(design, power, self.power, **keys)


def kept(simulations: int, seed: int, wanted: Wanted = every) -> Iterator[Row]:
    """Facts kept against facts lost: depths that scatter by 2.2, with half of their variance the fact's own."""
    for facts, seeds, level in itertools.product(FACTS, SEEDS, (0.15, 0.5)):
        keys = {"facts": facts, "seeds": seeds, "level": level}
        if not wanted(keys):
            continue
        rng = np.random.default_rng([seed, facts, seeds, int(level * 100)])
        tally = Tally()
        for _ in range(simulations):
            fact, ease = rng.normal(0, 1.55, facts), rng.normal(size=facts)
            for truth in (0.0, -0.35):
                members = []
                for i in range(seeds):
                    chosen = np.sqrt(0.3) * ease + np.sqrt(0.7) * rng.normal(size=facts)
                    stays = chosen < special.ndtri(level)
                    depth = 26 + fact + rng.normal(0, 1.55, facts) + truth * stays
                    if 0 < stays.sum() < facts:
                        found = kept_against_lost(np.round(depth)[:, None], stays, ~stays)
                        members.append(Run("arm", "", str(i), "", found.difference, found.influence))
                if len(members) >= 3:
                    tally.add(members, facts, truth)
        yield from tally.rows("kept facts", "difference", "power for 0.35 depths", keys)


def ranks(simulations: int, seed: int, wanted: Wanted = every) -> Iterator[Row]:
    """Depth before a stage and log-probability after it: half of the variance of depths and a third of that of what is
    left are the fact's own. The truth is that of very many facts."""

    def runs_of(
        rng: np.random.Generator, facts: int, seeds: int, slope: float
    ) -> Iterator[tuple[np.ndarray, ...]]:
        fact, ease = rng.normal(size=(2, facts))
        for _ in range(seeds):
            depth = np.sqrt(0.5) * fact + np.sqrt(0.5) * rng.normal(size=facts)
            rest = np.sqrt(0.3) * ease + np.sqrt(0.7) * rng.normal(size=facts)
            yield (
                np.clip(np.round(28 + 2 * depth), 1, N_LAYERS + 1),
                slope * depth + np.sqrt(1 - slope**2) * rest,
            )

    truths = {0.0: 0.0}
    for depth, left in runs_of(np.random.default_rng(seed), 400_000, 1, -0.3):
        truths[-0.3] = float(stats.spearmanr(depth, left).statistic)
    for facts, seeds in itertools.product(FACTS, SEEDS):
        keys = {"facts": facts, "seeds": seeds}
        if not wanted(keys):
            continue
        rng = np.random.default_rng([seed, facts, seeds])
        tally = Tally()
        for _ in range(simulations):
            for slope, truth in truths.items():
                members = []
                for i, (depth, left) in enumerate(runs_of(rng, facts, seeds, slope)):
                    found = rank_correlations(depth[:, None], left, np.ones(facts, bool))
                    members.append(Run("arm", "", str(i), "", found.rho, found.influence))
                tally.add(members, facts, truth)
        yield from tally.rows("kept by degrees", "correlation", "power for a correlation of −0.3", keys)


# ------------------------------------------------------------------------------------------- few occurrences


def depths(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    """First occurrences of a model of 30 layers."""
    if kind == "deep":
        lof = 26.5 + 2.3 * rng.normal(size=n)
    elif kind == "at the end":
        lof = 29.3 + 0.8 * rng.normal(size=n)
    else:  # lucky hits
        lof = np.where(rng.random(n) < 0.15, rng.uniform(6, 11, n), 27 + 1.5 * rng.normal(size=n))
    return np.clip(np.ceil(lof), 1, N_LAYERS)


def held_from(lof: np.ndarray, rng: np.random.Generator) -> Occurrence:
    """Facts that most depths from their first occurrence on hold."""
    every = np.arange(N_LAYERS + 1)
    held = every >= np.where(np.isnan(lof), N_LAYERS + 1, lof)[:, None]
    held &= (rng.random(held.shape) > 0.1) | (every == lof[:, None])
    return Occurrence(np.arange(len(lof)), N_LAYERS, lof, lof, held)


ALONE = ("lof_mean", "lof_sd", "lof_restricted_mean", "depths_per_factoid", "effective_layers")


def few(simulations: int, seed: int, draws: int, wanted: Wanted = every) -> Iterator[Row]:
    """One checkpoint of which many facts never occur; ``without`` is the share that had too few for an interval."""
    for kind in ("deep", "at the end", "lucky hits"):
        rng = np.random.default_rng([seed, len(kind)])
        population = held_from(depths(rng, 200_000, kind), rng)
        for n, never in itertools.product((20, *FACTS), (0.0, 0.5, 0.8)):
            if not wanted({"facts": n, "never": never, "depths": kind}):
                continue
            rng = np.random.default_rng([seed, len(kind), n, int(never * 10)])
            gone = np.random.default_rng(seed + 1).random(200_000) < never
            lof = np.where(gone, np.nan, population.lof)
            whole = Occurrence(population.factoids, N_LAYERS, lof, lof, population.held & ~gone[:, None])
            truth = placement_of(whole, Resamples(200_000, 2, np.ones((2, 200_000), np.uint8)))
            hits: dict[str, list[bool]] = {name: [] for name in ALONE}
            for i in range(simulations):
                sample = whole.select(rng.integers(0, 200_000, n))
                found = placement_of(sample, Resamples.of(n, draws=draws, seed=seed + i))
                for name in ALONE:
                    low, high = found[f"{name}_low"], found[f"{name}_high"]
                    if low is not None and high is not None:
                        hits[name].append(low <= (truth[name] or 0) <= high)
            for name in ALONE:
                without = round(1 - len(hits[name]) / simulations, 4)
                yield row(
                    "one checkpoint", name, hits[name], facts=n, never=never, depths=kind, without=without
                )


def few_pairs(simulations: int, seed: int, draws: int, wanted: Wanted = every) -> Iterator[Row]:
    """Paired differences of first occurrences that few facts have in both checkpoints."""
    for kind, n in itertools.product(("deep", "at the end", "lucky hits"), (3, 5, 10, 20, 64)):
        if not wanted({"facts": n, "depths": kind}):
            continue
        rng = np.random.default_rng([seed, len(kind), n])
        common, moved = depths(rng, 100_000, kind), np.rint(rng.normal(-0.5, 1, 100_000))
        apart = np.clip(common + moved, 1, N_LAYERS) - common
        truth, hits = float(apart.mean()), []
        for i in range(simulations):
            sample = rng.choice(apart, n)
            found = differences(sample[:, None], Resamples.of(n, draws=draws, seed=i))
            low, high = found["low"][0], found["high"][0]
            if low is not None:
                hits.append(low <= truth <= high)
        without = round(1 - len(hits) / simulations, 4)
        yield row("pairs", "lof", hits, facts=n, depths=kind, without=without)


# ------------------------------------------------------------------------------------------- latent depths


def latent(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    """[2, factoid]: latent depths of two checkpoints before they are moved, of sd about 2.2 and correlated by 0.6."""
    common = rng.normal(size=n)
    normal = np.array([np.sqrt(0.6) * common + np.sqrt(0.4) * rng.normal(size=n) for _ in range(2)])
    rank = np.clip(special.ndtr(normal), 1e-9, 1 - 1e-9)
    if kind == "skewed":
        return 1.8 * (np.log(-np.log1p(-rank)) + 0.577)
    if kind == "heavy-tailed":
        return 1.5 * special.stdtrit(3, rank)
    return 2.2 * normal


def spread(simulations: int, seed: int) -> Iterator[Row]:
    """How often a pure shift of latent depths is called more, or less, spread; and a scale 1.5 times as wide."""
    kinds = ("normal", "skewed", "heavy-tailed", "lucky hits")
    places = ((25.0, 0.0), (26.0, 1.5), (26.0, -1.5), (28.0, -1.0), (29.3, -0.3))
    settings = [(kind, 64, place) for kind in kinds for place in places]
    settings += [(kind, 500, place) for kind in kinds for place in places[1:3]]
    for kind, facts, (place, shift) in settings:
        rng = np.random.default_rng([seed, len(kind), facts, int(place * 10)])
        more, less, wider, without = [], [], [], 0
        for _ in range(simulations):
            base = latent(rng, facts, kind)
            luck = rng.uniform(6, 11, facts)
            luck[rng.random(facts) > 0.08] = np.inf
            chance = None
            if kind == "lucky hits":
                drawn = np.where(rng.random(5 * facts) < 0.08, np.ceil(rng.uniform(6, 11, 5 * facts)), np.nan)
                chance = unlucky([_seen(drawn)])
            else:
                luck[:] = np.inf
            for scale in (1.0, 1.5):
                moved = np.minimum(place + shift + scale * base[1], luck)
                found = latent_spread(
                    _seen(np.clip(np.ceil(moved), 1, N_LAYERS)),
                    _seen(np.clip(np.ceil(np.minimum(place + base[0], luck)), 1, N_LAYERS)),
                    chance=chance,
                    reference_chance=chance,
                )
                if scale > 1:
                    wider.append(found.low > 1)
                elif found.why:
                    without += 1
                else:
                    more.append(found.low > 1)
                    less.append(found.high < 1)
        keys = {"facts": facts, "depths": kind, "place": place, "shift": shift}
        keys["without"] = round(without / simulations, 4)
        yield row("latent depth", "more, wrongly", more, **keys)
        yield row("latent depth", "less, wrongly", less, **keys)
        yield row("latent depth", "more, of a scale 1.5 times as wide", wider, **keys)


def _seen(lof: np.ndarray) -> Occurrence:
    return Occurrence(np.arange(len(lof)), N_LAYERS, lof, lof, np.zeros((len(lof), N_LAYERS + 1), bool))
