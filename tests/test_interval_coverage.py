"""The stored simulation of intervals and tests, and a smaller run of it."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.interval_coverage import DRAWS, SIMULATIONS, STORED, simulate

RESULT = json.loads(STORED.read_text(encoding="utf-8"))


def test_the_stored_run_is_the_full_one():
    assert (RESULT["simulations"], RESULT["draws"]) == (SIMULATIONS, DRAWS) == (5000, 1000)


@pytest.mark.parametrize("name", RESULT["coverage"])
def test_stored_coverage(name):
    assert 0.94 <= RESULT["coverage"][name] <= 0.96


@pytest.mark.parametrize("name", RESULT["rejected"])
def test_stored_rejections_of_a_true_null(name):
    assert 0.04 <= RESULT["rejected"][name] <= 0.06


def test_a_smaller_run_agrees():
    """150 simulations: a share of 95 % is known to ± 1.8 points (one sd), one of 5 % likewise."""
    result = simulate(150, draws=400)
    for name, coverage in result["coverage"].items():
        assert coverage == pytest.approx(RESULT["coverage"][name], abs=0.06), name
    for name, rejected in result["rejected"].items():
        assert rejected == pytest.approx(RESULT["rejected"][name], abs=0.06), name
