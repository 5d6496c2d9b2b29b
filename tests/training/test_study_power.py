"""What a grid can see, from how the seeds of a study scatter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from memprobe.errors import MemprobeError
from memprobe.statistics.power import detectable
from training.__main__ import app
from training.grid.cells import cells_of
from training.grid.file import read_grid
from training.study.power import Scatter, power_of, stored_scatter

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "analyses" / "study"
TINY = ROOT / "training" / "grids" / "tiny.toml"


def cells(shares: dict[str, list[float]]) -> pl.DataFrame:
    rows = [
        {"setup": "s", "arm": arm, "arm_text": "none" if arm == "naive" else arm, "seed": seed, "n": 64}
        | {"learned": True, "retention": share}
        for arm, values in shares.items()
        for seed, share in enumerate(values)
    ]
    return pl.DataFrame(rows)


def test_scatter_is_that_of_pairs_and_leaves_out_arms_at_the_ends():
    found = stored_scatter(
        cells({"naive": [0.1, 0.0, 0.0], "replay": [0.5, 0.3, 0.4], "ewc": [0.0] * 3, "joint": [1.0] * 3})
    )
    assert [(one.name, one.arms, one.facts) for one in found] == [("all arms", 1, 64), ("replay", 1, 64)]
    total = np.var([0.4, 0.3, 0.4], ddof=1)
    assert found[1].between + found[1].within >= total - 1e-12
    with pytest.raises(MemprobeError, match="no scatter to go by"):
        stored_scatter(cells({"naive": [0.1, 0.0], "ewc": [0.0, 0.0]}))


def test_scatter_is_said_of_the_fewest_facts_that_arms_have():
    """Shares of 0.5 of 16 and of 64 facts: what facts bring is said of 16, at which it is largest."""
    shares = {"naive": [0.5, 0.5, 0.5], "few": [0.5, 0.4, 0.6], "many": [0.5, 0.45, 0.55]}
    stored = cells(shares).with_columns(n=pl.when(pl.col("arm") == "few").then(16).otherwise(64))
    every = stored_scatter(stored)[0]
    answered = [2 * 0.25 - 2 * 0.01 / 3, 2 * 0.25 - 2 * 0.0025 / 3]  # of p (1 - p), naive's and the arm's
    assert every.facts == 16 and every.within == pytest.approx(np.mean(answered) / 16)


def test_a_grid_is_told_what_its_seeds_see():
    grid = cells_of(read_grid(TINY), TINY)
    seeds = {cell.node.recipe.seed for cell in grid}
    facts = int(grid[0].node.recipe.stages[0].data.removeprefix("kvr:"))
    made = power_of(grid, [Scatter("all arms", 3, 0.12**2 - 0.071**2, 0.071**2, facts)])
    row = made.row(0, named=True)
    assert row["seeds"] == len(seeds) and row["sd"] == pytest.approx(0.12)
    assert (row["seeds for 20 points"], row["seeds for 10 points"]) == (6, 14)
    # Two pairs have one degree of freedom, whose Student's quantile is 12.7.
    assert len(seeds) == 2
    assert row["detectable"] == pytest.approx(detectable(0.12 / math.sqrt(2), 1))


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        ('data = "kvr:500"', 500),
        ('data = "kvr:500:test"', 500),
        ('data = "kvr:2000"', 1000),  # evaluate.limit
        ('data = "kvr:2000"\nn = 300', 300),
        ('data = "popqa"\nn = 300', 300),
        ('data = "popqa"\nn = 3000', 1000),
        ('data = "popqa"', None),
        ('data = "kvr:500"\nunknown = {}', None),
    ],
)
def test_the_facts_are_those_of_d_a_that_are_evaluated(data, facts, tmp_path):
    """Where the grid does not say how many, nothing is foreseen: the scatter's number is another study's."""
    path = tmp_path / "grid.toml"
    path.write_text(
        f"""
[recipe]
base = "none"
[data.a]
{data}
[data.b]
data = "kvr:500:validation"
[arms]
naive = "none"
[[blocks]]
name = "only"
stages = [["a", "b"]]
arms = ["naive"]
seeds = [0, 1, 2]
"""
    )
    grid = cells_of(read_grid(path), path)
    (row,) = power_of(grid, [Scatter("all arms", 3, 0.009, 0.005, 64)]).rows(named=True)
    assert row["facts"] == facts
    assert (row["sd"] is None) == (row["detectable"] is None) == (facts is None)
    if facts is not None:
        assert row["sd"] == pytest.approx(math.sqrt(0.009 + 0.005 * 64 / facts))
        assert row["detectable"] == pytest.approx(detectable(row["sd"] / math.sqrt(3), 2))
    shown = CliRunner().invoke(app, ["grid", str(path), "--power", "--scatter", str(STUDY)])
    assert ("unknown" in shown.output) == (facts is None) and "over 200" not in shown.output


def test_the_command_needs_no_data_and_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(
        app,
        [
            "grid",
            str(TINY),
            "--power",
            "--scatter",
            str(ROOT / "analyses" / "study"),
        ],
    )
    assert shown.exit_code == 0 and "80 % power" in shown.output
    assert not list(tmp_path.iterdir())
    broken = CliRunner().invoke(app, ["grid", str(TINY), "--power", "--scatter", str(tmp_path)])
    assert isinstance(broken.exception, MemprobeError)
