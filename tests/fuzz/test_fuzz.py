"""A seeded few of the fuzz inputs; ``make fuzz`` tries 20,000."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import mutate
from tests.fuzz.inputs import KINDS, kind_of
from tests.fuzz.seeds import make
from tests.fuzz.trying import attempt, run

FEW = 200  # inputs; the whole is python -m tests.fuzz
SLOW = {"checkpoints": 4, "lines": 8}  # of these that many
SEED = 20_000  # other inputs than those of make fuzz


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("seeds"))


WHOLE = {
    "facts.jsonl": ("memprobe", ["sources", "facts.jsonl"]),
    "facts.csv": ("memprobe", ["sources", "facts.csv"]),
    "facts.parquet": ("memprobe", ["sources", "facts.parquet"]),
    "probe": ("memprobe", ["compare", "probe", "--draws", "100", "--json"]),
    "older": ("memprobe", ["dashboard", "older", "--out", "d.html"]),
    "runs": ("memprobe", ["dashboard", "runs", "--out", "d.html"]),
    "compared": ("memprobe", ["dashboard", "compared", "--out", "d.html"]),
    "checkpoint": ("memprobe", ["check", "--ckpt", "checkpoint"]),
    "recipe.toml": ("training", ["run", "recipe.toml", "--out", "o"]),
    "grid.toml": ("training", ["grid", "grid.toml", "--dry-run", "--out", "o"]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole_is_read(seeds, tmp_path, name):
    """Or the damage would be done to what is refused anyway."""
    (shutil.copytree if (seeds / name).is_dir() else shutil.copy)(seeds / name, tmp_path / name)
    code, _, err = run(*WHOLE[name], tmp_path)
    assert code == 0, err


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_are_read_or_refused_in_one_line(seeds, kind):
    numbers = [number for number in range(FEW) if kind_of(number) == kind][: SLOW.get(kind)]
    ended = {number: attempt(kind, number, seeds, seed=SEED) for number in numbers}
    wrong = {f"{kind}:{number}": (one.wrong, one.said[-500:]) for number, one in ended.items() if one.wrong}
    assert not wrong, json.dumps(wrong, indent=1)
    assert any(one.code for one in ended.values()), "nothing was refused: the damage does none"


# A name too long for a file, a comparison's reference that is none of its checkpoints, stages that a recipe calls
# otherwise than their folders, a page that names 800 GB (polars' process died of it), 10^30 epochs (a hang); a figure
# of 1e308, a stored row without its depth, a share of 1e308.
FAILED_ONCE = [
    (20_271, "lines", 1798),
    (20_271, "stored", 4871),
    (20_271, "studies", 6793),
    (20_271, "factoids", 8745),
    (20_271, "grids", 12_361),
    (112_705, "stored", 758),
    (20_280, "stored", 13_770),
    (20_280, "studies", 15_719),
]


@pytest.mark.parametrize(("seed", "kind", "number"), FAILED_ONCE)
def test_what_failed_once_is_refused_in_one_line(seeds, seed, kind, number):
    ended = attempt(kind, number, seeds, seed=seed)
    assert not ended.wrong and ended.code, ended.said


def test_an_input_does_not_depend_on_those_made_before_it():
    numbers = range(400)
    value = {"a": [1, {"b": {}}], "c": {}}
    made = {number: mutate.json_of(value, Random(number)) for number in numbers}
    assert all(mutate.json_of(value, Random(number)) == made[number] for number in reversed(numbers))
