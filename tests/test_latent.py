"""Latent depths: what is estimated, what is not, and that a shift alone is no spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special

from memprobe.statistics.latent import (
    MOST_CENSORED,
    _log_cells,
    latent_spread,
    ratio_over_seeds,
    spread_of,
    unlucky,
)
from memprobe.statistics.occurrence import Occurrence

N_LAYERS = 30


def occurring(latent: np.ndarray, never: np.ndarray | None = None) -> Occurrence:
    """Facts of these latent depths; those beyond the last block are recalled at the last depth, or never."""
    lof = np.clip(np.ceil(latent), 1, N_LAYERS)
    if never is not None:
        lof = np.where(never & (lof == N_LAYERS), np.nan, lof)
    held = np.arange(N_LAYERS + 1) >= np.where(np.isnan(lof), N_LAYERS + 1, lof)[:, None]
    return Occurrence(np.arange(len(lof)), N_LAYERS, lof, lof, held)


def pair(rng: np.random.Generator, n: int, shift: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    common = rng.normal(size=n)
    one, other = (0.77 * common + 0.63 * rng.normal(size=n) for _ in range(2))
    return 25 + shift + scale * 2.2 * one, 25 + 2.2 * other


def test_scale_and_shift_are_found_through_the_ceiling():
    rng = np.random.default_rng(0)
    checkpoint, reference = pair(rng, 4000, 2.0, 1.4)
    found = latent_spread(occurring(checkpoint), occurring(reference))
    assert found.why == ""
    assert found.shift == pytest.approx(2.0, abs=0.25)
    assert found.low < 1.4 < found.high and found.ratio == pytest.approx(1.4, abs=0.12)
    assert found.p < 1e-6
    # The sds of what is seen would say that the checkpoint hardly spreads more.
    assert np.nanstd(occurring(checkpoint).lof) < 1.2 * np.nanstd(occurring(reference).lof)


def test_a_pure_shift_is_seldom_called_more():
    """The null that the sd of what is seen fails: facts that move away from the last depth, and nothing else."""
    called = {"new": 0, "old": 0}
    rng = np.random.default_rng(1)
    for _ in range(60):
        checkpoint, reference = pair(rng, 200, -3.0, 1.0)
        found = latent_spread(occurring(checkpoint + 3.5), occurring(reference + 3.5))
        called["new"] += found.low > 1
        sds = [np.std(occurring(one + 3.5).lof) for one in (checkpoint, reference)]
        called["old"] += sds[0] > 1.15 * sds[1]
    assert called["old"] > 50
    assert called["new"] <= 6


def test_never_and_the_last_depth_count_alike():
    """How many of those beyond the last block are recalled is of no interest."""
    rng = np.random.default_rng(2)
    checkpoint, reference = pair(rng, 400, 1.0, 1.2)
    whole = latent_spread(occurring(checkpoint), occurring(reference))
    some = latent_spread(occurring(checkpoint, rng.random(400) < 0.7), occurring(reference))
    assert some == whole


def test_the_error_is_that_of_repeated_samples():
    rng = np.random.default_rng(3)
    ratios, errors = [], []
    for _ in range(80):
        checkpoint, reference = pair(rng, 300, 0.5, 1.0)
        found = latent_spread(occurring(checkpoint), occurring(reference))
        ratios.append(math.log(found.ratio))
        errors.append(math.log(found.high / found.low) / 2 / 1.97)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.2)


def test_too_much_censored_is_not_estimable():
    rng = np.random.default_rng(4)
    checkpoint, reference = pair(rng, 64, 0.0, 1.0)
    deep = latent_spread(occurring(checkpoint + 6), occurring(reference))
    assert deep.censored > MOST_CENSORED and "at the last depth or never" in deep.why
    assert math.isnan(deep.ratio) and math.isnan(deep.low) and math.isnan(deep.p)
    few = latent_spread(occurring(checkpoint[:12]), occurring(reference[:12]))
    assert "facts below the last depth" in few.why
    narrow = latent_spread(occurring(np.full(64, 27.5)), occurring(reference))
    assert narrow.why == "facts at 1 depths below the last"
    assert latent_spread(occurring(checkpoint[:0]), occurring(reference[:0])).why == "no facts"


def test_cells_are_those_of_the_normal_without_skewness():
    """With no skewness and tails as the normal's, sinh-arcsinh is the normal; by scipy's own density elsewhere."""
    edges = np.arange(1.0, 10)
    place, scale = np.array([[6.2]]), np.array([[math.log(1.7)]])
    cells = np.exp(_log_cells(edges, place, scale, 0.0, 0.0, np.ones((1, 9))))[0]
    wanted = np.diff(np.concatenate([[0], special.ndtr((edges - 6.2) / 1.7), [1]]))
    np.testing.assert_allclose(cells, np.maximum(wanted, 1e-12), atol=1e-12)
    skewed = np.exp(_log_cells(edges, place, scale, 0.5, -0.2, np.ones((1, 9))))
    assert skewed.sum() == pytest.approx(1)
    # The median is where the transformed depth is 0: sinh(arcsinh(0.5) / δ) scales away.
    median = 6.2 + 1.7 * math.sinh(0.5 / math.exp(-0.2))
    at = optimize.brentq(
        lambda x: _log_cells(np.array([x]), place, scale, 0.5, -0.2, np.ones((1, 1)))[0, 0] - math.log(0.5),
        1,
        20,
    )
    assert at == pytest.approx(median)


def test_luck_that_shuffled_answers_share_is_no_spread():
    """A tenth of the facts named by luck at depths 7 to 11, in both checkpoints, while the rest move deeper."""
    rng = np.random.default_rng(5)
    told = {"with": 0, "without": 0}
    for _ in range(20):
        checkpoint, reference = pair(rng, 500, 1.5, 1.0)
        luck = np.where(rng.random(500) < 0.1, rng.uniform(7, 11, 500), np.inf)
        found = [occurring(np.minimum(luck, one)) for one in (checkpoint, reference)]
        at = np.where(rng.random(2500) < 0.1, rng.uniform(7, 11, 2500), 99.0)
        chance = unlucky([shuffled(at)])
        told["with"] += latent_spread(*found, chance=chance, reference_chance=chance).low > 1
        told["without"] += latent_spread(*found).low > 1
    assert told["without"] > 5
    assert told["with"] <= 2


def shuffled(at: np.ndarray) -> Occurrence:
    lof = np.where(at > N_LAYERS, np.nan, np.ceil(at))
    return Occurrence(np.arange(len(at)), N_LAYERS, lof, lof, np.zeros((len(at), N_LAYERS + 1), bool))


def test_unlucky_counts_every_draw():
    found = unlucky([shuffled(np.array([3.0, 99.0])), shuffled(np.array([1.0, 3.0]))])
    assert found is not None
    assert found[:4].tolist() == [0.75, 0.75, 0.25, 0.25] and found[-1] == 0.25
    assert unlucky([]) is None


def test_seeds_that_agree_by_chance_are_no_surer_than_their_fits():
    agree = ratio_over_seeds([0.30, 0.30, 0.30], [0.1, 0.1, 0.1])
    # By hand: error 0.1 / sqrt 3, t(0.975, 2) = 4.303.
    assert agree[:3] == pytest.approx((0.3, 0.3 - 0.2484, 0.3 + 0.2484), abs=1e-3)
    scattered = ratio_over_seeds([0.1, 0.3, 0.5], [0.01] * 3)
    assert scattered.high - scattered.log_ratio == pytest.approx(4.303 * 0.2 / math.sqrt(3), rel=1e-3)
    two = ratio_over_seeds([0.1, 0.3], [0.1, 0.1])
    assert two.seeds == 2 and two.log_ratio == pytest.approx(0.2) and math.isnan(two.low)
    assert math.isnan(ratio_over_seeds([], []).log_ratio)


def test_a_row_of_a_table_has_no_number_that_does_not_exist():
    rng = np.random.default_rng(6)
    checkpoint, reference = (occurring(one) for one in pair(rng, 100, 0.5, 1.0))
    row = spread_of(checkpoint, reference)
    found = latent_spread(checkpoint, reference)
    assert (row["ratio"], row["low"], row["why"]) == (found.ratio, found.low, "")
    assert row["sd"] == pytest.approx(np.std(checkpoint.lof, ddof=1))
    few = spread_of(checkpoint.select(np.arange(5)), reference.select(np.arange(5)))
    assert few["ratio"] is None and few["low"] is None and "below the last depth" in str(few["why"])
    never = occurring(np.full(1, 99.0), np.ones(1, bool))
    assert spread_of(never, never)["sd"] is None
