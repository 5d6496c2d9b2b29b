"""bfloat16 where it pays: asked once, and told."""

from __future__ import annotations

import json
import tomllib

import pytest
import torch

from training import autocast
from training.recipe import parse_recipe
from training.run import run

CPU = torch.device("cpu")


def recipe(base, **changes):
    stages = [{"name": "a", "data": "kvr:4", "epochs": 1}]
    parts = {"base": str(base), "stages": stages, "precision": {"autocast": "auto"}}
    return parse_recipe(parts | changes)


@pytest.mark.parametrize(("speed", "taken"), [(3.8, "bfloat16"), (1.2, "none"), (0.3, "none")])
def test_a_run_takes_what_pays_and_says_so(speed, taken, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(autocast, "speed_of_bfloat16", lambda device: speed)
    out = tmp_path / "run"
    last = run(recipe(tiny_checkpoint), out, quiet=True)
    assert tomllib.loads((out / "recipe.toml").read_text())["precision"]["autocast"] == taken
    assert f"autocast {taken}: products in bfloat16 run {speed:.2f} times" in (out / "log.txt").read_text()

    def again(device):
        raise AssertionError("asked twice")

    monkeypatch.setattr(autocast, "speed_of_bfloat16", again)
    assert run(recipe(tiny_checkpoint), out, quiet=True) == last  # as it was begun


def test_runs_that_share_a_folder_take_the_same(tiny_checkpoint, tmp_path, monkeypatch):
    speeds = iter([2.0, 1.0])
    monkeypatch.setattr(autocast, "speed_of_bfloat16", lambda device: next(speeds))
    for name in ("one", "two"):
        run(recipe(tiny_checkpoint), tmp_path / name, quiet=True, asked=tmp_path / "asked")
    taken = [tomllib.loads((tmp_path / name / "recipe.toml").read_text()) for name in ("one", "two")]
    assert [one["precision"]["autocast"] for one in taken] == ["bfloat16", "bfloat16"]
    assert json.loads((tmp_path / "asked" / "autocast.json").read_text())["speed"] == 2.0


def test_the_measurement_is_a_ratio_of_times(monkeypatch):
    """By a clock that makes products under autocast take a quarter of the time of others."""
    now = 0.0

    class Layer(torch.nn.Linear):
        def forward(self, rows):
            nonlocal now
            now += 0.01 if torch.is_autocast_enabled("cpu") else 0.04
            return super().forward(rows)

    monkeypatch.setattr(torch.nn, "Linear", Layer)
    monkeypatch.setattr(autocast, "_INNER", 8)  # by this clock, a smaller product takes as long
    monkeypatch.setattr(autocast.time, "perf_counter", lambda: now)
    assert autocast.speed_of_bfloat16(CPU) == pytest.approx(4.0)
