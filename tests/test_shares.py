"""Shares over seeds, against numbers that another implementation gave and an integration by quadrature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, special

from memprobe.statistics.shares import (
    SCATTER,
    discordant_variance,
    share_difference,
    share_over_seeds,
    size_over_seeds,
)

NAIVE, NONE, ALL = np.array([2, 0, 0]), np.array([0, 0, 0]), np.array([64, 64, 64])
GENERIC, REPLAY = np.array([37, 24, 35]), np.array([28, 14, 17])


@pytest.mark.parametrize(
    ("counts", "low", "high"), [(NAIVE, 0.002, 0.15), (NONE, 0.0, 0.085), (ALL, 0.915, 1.0)]
)
def test_shares_near_the_ends_agree_with_a_beta_binomial_of_another_hand(counts, low, high):
    found = share_over_seeds(counts, 64)
    assert found.low == pytest.approx(low, abs=0.002 if low < 0.5 else 0.01)
    assert found.high == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize(
    ("counts", "value", "low", "high"), [(GENERIC, 0.47, 0.26, 0.65), (REPLAY, 0.28, 0.10, 0.50)]
)
def test_differences_agree_with_a_beta_binomial_of_another_hand(counts, value, low, high):
    """Its values are medians of posteriors, a little nearer to 0 than the differences as they are."""
    found = share_difference(counts, NAIVE, 64)
    assert found[:3] == pytest.approx([value, low, high], abs=0.025)
    assert found.low == pytest.approx(low, abs=0.005)
    assert found.value == pytest.approx((counts.sum() - 2) / 192)
    assert found.p < 0.05


def test_a_difference_near_1_reaches_as_far_as_it_may():
    """Shares of 0.99 and 0.01, as they come in three seeds of 64."""
    found = share_difference(np.array([64, 63, 63]), np.array([0, 1, 1]), 64)
    assert found.low < 0.98 < found.high < 1
    assert share_difference(ALL, NONE, 64).high == 1


def test_p_is_where_the_interval_ends_at_0():
    """An arm at the edge of significance: its interval ends near 0, and p is near 0.05."""
    found = [share_difference(np.array([k, k + 2, k + 4]), NAIVE, 64) for k in range(4, 16)]
    for one in found:
        assert (one.low > 0) == (one.p < 0.05)
    assert sorted(one.p for one in found) == [one.p for one in found][::-1]
    assert found[0].p > 0.05 > found[-1].p > 1e-9


def test_the_posterior_is_what_integration_gives():
    """The mean of (5, 9, 3) of 20, with both priors written out."""
    counts, n = (5, 9, 3), 20

    def density(rho: float, m: float) -> float:
        a, b = m * (1 - rho) / rho, (1 - m) * (1 - rho) / rho
        log = sum(special.betaln(a + y, b + n - y) - special.betaln(a, b) for y in counts)
        return np.exp(log + 40) * (1 - rho) ** (SCATTER - 1) / np.sqrt(m * (1 - m))

    def below(edge: float) -> float:
        return integrate.dblquad(density, 1e-6, edge, 1e-6, 1 - 1e-6, epsabs=1e-9, epsrel=1e-6)[0]

    found = share_over_seeds(np.array(counts), n)
    whole = below(1 - 1e-6)
    assert below(found.low) / whole == pytest.approx(0.025, abs=0.002)
    assert below(found.high) / whole == pytest.approx(0.975, abs=0.002)


def test_no_arm_differs_by_keeping_nothing_thrice():
    """Two arms at 0 of 64 in each seed, and one of them with two facts in one seed: none is significant."""
    for counts in (NONE, NAIVE, np.array([3, 2, 3])):
        found = share_difference(NONE, counts, 64)
        assert found.low < 0 < found.high and found.p > 0.05
    same = share_difference(NONE, NONE, 64)
    assert same.p == 1 and same.value == 0 and same.low == pytest.approx(-same.high)


def test_a_difference_turned_round_is_its_negative():
    one, other = share_difference(GENERIC, NAIVE, 64), share_difference(NAIVE, GENERIC, 64)
    assert other[:3] == pytest.approx([-one.value, -one.high, -one.low], abs=1e-3)
    assert other.p == pytest.approx(one.p, abs=1e-3)


def test_more_seeds_and_more_facts_say_more():
    widths = [
        (found := share_over_seeds(np.array(counts), n)).high - found.low
        for counts, n in (([6] * 3, 64), ([6] * 10, 64), ([60] * 10, 640))
    ]
    assert widths[0] > widths[1] > widths[2]


def test_what_facts_do_to_every_seed_does_not_shrink_with_seeds():
    """Facts that are all kept or lost alike in ten seeds: one seed's binomial interval and no less."""
    counts, n = np.full(10, 32), 64
    apart = share_over_seeds(counts, n)
    together = share_over_seeds(counts, n, fact_variance=0.25 / n)
    assert apart.high - apart.low < 0.14
    assert together.high - together.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / n), rel=0.12)
    wide = share_difference(counts, counts, n, fact_variances=(0.0, 0.0, 0.25 / n))
    assert wide.high - wide.low > 1.5 * (apart.high - apart.low)


def test_discordant_pairs_are_never_without_noise():
    assert discordant_variance(np.zeros(64)) == pytest.approx(2 / 66 / 66)
    # 10 gained, 4 lost of 64: (16 / 66 - (6 / 66)²) / 66
    moved = np.array([1.0] * 10 + [-1.0] * 4 + [0.0] * 50)
    assert discordant_variance(moved) == pytest.approx((16 / 66 - (6 / 66) ** 2) / 66)
    # Of two wordings one may be gained: that is half a fact, and a quarter of its square.
    assert discordant_variance(moved / 2) == pytest.approx((5.5 / 66 - (3 / 66) ** 2) / 66)


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ((2, 2, 0), (2, 2, 100)),
        ((6, 7, 4), (64, 60, 5)),
        ((60, 34, 3), (63, 40, 12)),
        ((1, 0, 0), (2, 13, 22)),
    ],
)
def test_seeds_of_other_sizes_count_by_them(counts, sizes):
    """The share is that of all facts, and its interval is of the same: it holds it, and a seed of two facts moves it
    less than one of sixty."""
    counts, sizes = np.array(counts, float), np.array(sizes)
    found = share_over_seeds(counts, sizes)
    assert found.value == pytest.approx(counts.sum() / sizes.sum()) and found.low <= found.value <= found.high
    smallest, largest = sizes.argmin(), sizes.argmax()
    moved = []
    for place in (smallest, largest):
        turned = counts.copy()
        turned[place] = sizes[place] - counts[place]
        moved.append(abs(sum(share_over_seeds(turned, sizes)[1:3]) - found.low - found.high))
    assert moved[0] < moved[1]


def test_seeds_of_one_size_are_the_same_however_it_is_given():
    counts = np.array([3.0, 9.0, 20.0])
    assert share_over_seeds(counts, np.array([32, 32, 32])) == pytest.approx(
        share_over_seeds(counts, 32), nan_ok=True
    )


def test_the_size_over_seeds_is_that_of_the_mean_variance():
    """Seeds that are asked 2, 13 and 22 facts know as much as if each were asked 5: 3 / (1/2 + 1/13 + 1/22) = 4.8."""
    assert size_over_seeds([2, 13, 22]) == 5
