"""How numbers and intervals are written."""

from __future__ import annotations

import pytest

from memprobe import wording
from memprobe.wording import of_row, p_of, p_value


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"x": 2.5, "x_low": 2.0, "x_high": 3.0, "lof_n": 100}, "2.50 [2.00, 3.00]"),
        ({"x": 2.5, "x_low": None, "x_high": None, "lof_n": 12}, "2.50 (too few)"),
        ({"x": 2.5, "x_low": None, "x_high": None, "lof_n": 100}, "2.50"),  # no scatter, but enough
        ({"x": 2.5, "x_low": None, "x_high": None}, "2.50"),
        ({"x": None, "x_low": None, "x_high": None, "lof_n": 0}, "–"),
    ],
)
def test_too_few_is_said_where_it_is_why_there_is_no_interval(row, wanted):
    assert of_row(row, "x") == wanted


def test_a_median_without_an_upper_end_is_not_too_few():
    row = {"lof_median": 4.0, "lof_median_low": 3.0, "lof_median_high": None, "lof_n": 12}
    assert of_row(row, "lof_median", ".0f", open_ended=True) == "4 [3, ∞]"


def test_a_p_value_below_four_digits_says_so():
    assert [p_value(one) for one in (None, 0.5, 0.0001, 0.00009)] == ["–", "0.5000", "0.0001", "< 0.0001"]
    assert (p_of(0.0), p_of(0.0123)) == ("p < 0.0001", "p = 0.0123")


@pytest.mark.parametrize(
    ("significant", "difference", "seeds", "facts", "wanted"),
    [
        (True, -1.0, (3, 3), 40, "yes"),
        (False, -1.0, (3, 3), 40, "no"),
        (None, -1.0, (3, 3), 40, "nothing scatters"),
        (None, -1.0, (3, 2), 40, "too few seeds"),
        (None, -1.0, (3, 3), 1, "too few facts"),
        (None, None, (3, 3), 40, "not known under every seed"),
    ],
)
def test_what_is_not_significant_for_want_of_an_interval_says_why(
    significant, difference, seeds, facts, wanted
):
    row = {"significant": significant, "difference": difference}
    row |= dict(zip(("seeds", "reference_seeds"), seeds, strict=True))
    assert wording.significant(row, facts=facts) == wanted


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({"low": -0.5, "high": 0.5}, "0.00 [-0.50, 0.50]"),
        ({}, "0.00 (no scatter)"),
        ({"n_lost": 9}, "0.00 (too few)"),
        ({"statistic": "lof_restricted_net"}, "0.00 (too few, or no scatter)"),
        ({"difference": None, "n_lost": 9}, "–"),
    ],
)
def test_kept_against_lost_without_an_interval_says_why(told, wanted):
    row = {
        "statistic": "lof_restricted",
        "difference": 0.0,
        "low": None,
        "high": None,
        "n_kept": 20,
        "n_lost": 20,
    }
    assert wording.of_kept(row | told, ".2f") == wanted
