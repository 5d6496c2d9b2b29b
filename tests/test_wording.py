"""How numbers and intervals are written."""

from __future__ import annotations

import pytest

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
