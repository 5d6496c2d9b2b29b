"""Five verdicts, families of claims, arms that do nothing."""

from __future__ import annotations

import pytest

from memprobe.statistics.controls import held_in_both
from memprobe.statistics.verdicts import (
    ABOVE,
    BELOW,
    CONTRADICTED,
    EQUIVALENT,
    NOT_TESTED,
    SEEN,
    UNDECIDED,
    holm,
    is_inert,
    on_one_side,
    side_of,
    together,
    verdict,
    verdict_without_interval,
)


@pytest.mark.parametrize(
    ("own", "fixed", "wanted"),
    [
        ((0.1, 0.5), (0.2, 0.3), True),
        ((-0.5, -0.1), (-0.3, -0.2), True),
        ((-0.5, -0.1), (0.2, 0.3), False),
        ((0.1, 0.5), (-0.2, 0.3), False),
        ((-0.1, 0.5), (-0.2, 0.3), False),  # both hold 0: that is no side
        ((0.0, 0.5), (0.0, 0.3), False),
        ((0.1, 0.5), (None, None), None),
        ((float("nan"), float("nan")), (0.2, 0.3), None),
        ((-0.1, 0.5), (None, None), None),
    ],
)
def test_a_claim_of_placement_is_held_where_both_intervals_lie_on_one_side(own, fixed, wanted):
    """The rule of the table of claims, of the page's sentences and of its plots."""
    assert on_one_side(own, fixed) is wanted and on_one_side(fixed, own) is wanted
    assert (
        held_in_both(dict(zip(("low", "high", "fixed_low", "fixed_high"), (*own, *fixed), strict=True)))
        is wanted
    )
    assert held_in_both(dict(zip(("low", "high"), own, strict=True))) is None, "no readout was probed beside"
    assert [side_of(*one) for one in ((1, 2), (-2, -1), (-1, 1), (None, 1))] == [1, -1, 0, None]


@pytest.mark.parametrize(
    ("low", "high", "side", "wanted"),
    [
        (0.1, 0.5, ABOVE, SEEN),
        (0.1, 0.5, BELOW, CONTRADICTED),
        (-0.5, -0.1, BELOW, SEEN),
        (-0.5, -0.1, ABOVE, CONTRADICTED),
        (-0.04, 0.03, ABOVE, EQUIVALENT),
        (-0.04, 0.03, BELOW, EQUIVALENT),
        (-0.14, 0.46, ABOVE, UNDECIDED),  # wide: no evidence of no difference
        (-0.04, 0.06, ABOVE, UNDECIDED),
        (-0.05, 0.05, ABOVE, EQUIVALENT),  # the bounds are within themselves
        (None, None, ABOVE, NOT_TESTED),
        (float("nan"), 0.3, ABOVE, NOT_TESTED),
    ],
)
def test_five_verdicts(low, high, side, wanted):
    assert verdict(low, high, side=side, equivalent=0.05) == wanted


def test_nothing_is_equivalent_without_bounds_and_nothing_seen_without_its_family():
    assert verdict(-0.01, 0.01, side=ABOVE, equivalent=None) == UNDECIDED
    assert verdict(0.1, 0.5, side=ABOVE, equivalent=0.05, p=0.06) == UNDECIDED
    assert verdict(0.01, 0.04, side=ABOVE, equivalent=0.05, p=0.06) == EQUIVALENT
    assert verdict(0.1, 0.5, side=ABOVE, equivalent=0.05, p=0.04) == SEEN


@pytest.mark.parametrize(
    ("p", "wanted"), [(0.05, UNDECIDED), (0.1 / 2, UNDECIDED), (1 - 0.95, UNDECIDED), (0.0499, SEEN)]
)
def test_five_per_cent_is_not_below_five_per_cent(p, wanted):
    """Whether the test has an interval or not."""
    assert verdict(0.1, 0.5, side=ABOVE, equivalent=None, p=p) == wanted
    assert verdict_without_interval(0.3, p, side=ABOVE) == wanted


@pytest.mark.parametrize(
    ("estimate", "p", "side", "wanted"),
    [
        (0.9, 0.01, ABOVE, SEEN),
        (-0.9, 0.01, BELOW, SEEN),
        (0.9, 0.01, BELOW, CONTRADICTED),
        (-0.9, 0.01, ABOVE, CONTRADICTED),
        (0.9, 0.05, ABOVE, UNDECIDED),
        (0.0, 1.0, ABOVE, UNDECIDED),  # no interval: never equivalent
        (None, None, ABOVE, NOT_TESTED),
        (0.9, None, ABOVE, NOT_TESTED),
        (float("nan"), float("nan"), ABOVE, NOT_TESTED),
    ],
)
def test_a_test_without_interval_says_by_sign_and_p(estimate, p, side, wanted):
    assert verdict_without_interval(estimate, p, side=side) == wanted


def test_holm_by_hand():
    # 0.01 × 3, 0.03 × 2, then 0.04 × 1, which may not fall below the one before.
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_agrees_with_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = [0.001, 0.2, 0.013, 0.04, 0.04, 0.7, 0.02]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        ([SEEN, SEEN], SEEN),
        ([SEEN, UNDECIDED], UNDECIDED),
        ([CONTRADICTED, UNDECIDED], CONTRADICTED),
        ([CONTRADICTED, SEEN], UNDECIDED),
        ([EQUIVALENT, EQUIVALENT], EQUIVALENT),
        ([EQUIVALENT, SEEN], UNDECIDED),
        ([SEEN, NOT_TESTED], NOT_TESTED),
        ([], NOT_TESTED),
    ],
)
def test_a_claim_over_several_readings(verdicts, wanted):
    assert together(verdicts) == wanted


def test_an_arm_that_moves_the_weights_as_far_as_naive_does_nothing():
    naive = [4.911, 4.957, 5.013]
    assert is_inert([5.537, 4.956, 5.012], naive)  # one seed took another path
    assert not is_inert([6.774, 6.697, 5.668], naive)
    assert not is_inert([None, None, None], naive)
