"""Short runs on a tiny model, for the tests of stages and runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.recipe import Recipe, parse_recipe

ROOT = Path(__file__).parents[2]


def small(base: Path, arm: str = "none", **changes: Any) -> Recipe:
    """Two stages of six keys, three epochs each, batches of four."""
    stages = [
        {"name": "a", "data": "kvr:6", "epochs": 3},
        {"name": "b", "data": "kvr:6:validation", "epochs": 3},
    ]
    data: dict[str, Any] = {
        "base": str(base),
        "arm": arm,
        "optimiser": {"lr": 1e-3, "batch": 4, "micro_batch": 4},
        "stages": stages,
    }
    return parse_recipe(data | changes)


def metrics(checkpoint: Path) -> list[dict[str, Any]]:
    """What was logged of every optimiser step."""
    return [json.loads(line) for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]


def losses(checkpoint: Path) -> list[float]:
    """The loss of every optimiser step."""
    return [step["loss"] for step in metrics(checkpoint)]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    """Whether all weights are equal, bit for bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def other_weights(checkpoint: Path) -> None:
    """Makes a checkpoint another model under the same path."""
    moved = {name: tensor + 0.1 for name, tensor in weights(checkpoint).items()}
    save_file(moved, checkpoint / "model.safetensors", metadata={"format": "pt"})


def environment() -> dict[str, str]:
    """For a subprocess that reproduces this one's numbers: as many threads."""
    return os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }


def python(words: Sequence[str], code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs a script in a process of its own; ``words`` start a Python, as ``quick_python`` does."""
    return subprocess.run(
        [*words, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=240,
        check=False,
    )
