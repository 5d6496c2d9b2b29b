"""Savings and cueing: facts that a stage took against never-learned ones, from the same weights."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from memprobe.errors import MemprobeError
from tests.training.runs import small
from training.relearn import _savings, relearn, relearn_table
from training.run import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_checkpoint):
    """Two stages, the second of which takes all that the first had barely learned."""
    folder = tmp_path_factory.mktemp("relearn") / "run"
    run(small(tiny_checkpoint), folder)
    return folder


def digest(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def test_nothing_comes_back_without_learning(trained):
    row = relearn(str(trained / "2-b"), lr=0.0, limit=2)
    assert row.steps_lost == row.steps_fresh == 3 and row.savings == 0
    assert row.back_lost == row.back_fresh == 0
    assert row.lost <= row.asked == 6 and 2 <= row.n <= row.lost


def test_facts_come_back_and_the_checkpoint_stays(trained):
    before = digest(trained)
    said = []
    row = relearn(str(trained / "2-b"), lr=3e-3, limit=60, say=said.append)
    assert row.back_lost == 1 and 1 <= row.steps_lost <= 60
    assert row.examples_lost == row.steps_lost * min(4, row.n)
    assert row.savings == pytest.approx(1 - row.steps_lost / row.steps_fresh)
    assert row.savings_low <= row.savings <= row.savings_high
    assert digest(trained) == before
    again = relearn(str(trained / "2-b"), lr=3e-3, limit=60)
    assert again == row, "both sets start from the same weights, whatever was done before"
    assert relearn_table([row, again]).height == 2 and any("fresh" in line for line in said)


def test_savings_by_hand():
    value, low, high = _savings(np.array([2, 4]), np.array([6, 6]), seed=0)
    assert value == pytest.approx(0.5)
    assert low == pytest.approx(1 - 4 / 6) and high == pytest.approx(1 - 2 / 6)


def test_what_cannot_be_asked_is_said(trained, tiny_checkpoint):
    with pytest.raises(MemprobeError, match="stage 2 or later"):
        relearn(str(trained / "1-a"))
    with pytest.raises(MemprobeError, match="stage 2 or later"):
        relearn(str(tiny_checkpoint))
