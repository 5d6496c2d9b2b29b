"""Whether matrix products in bfloat16 pay on this machine: asked of it in a second, not assumed.

Some CPUs have units for bfloat16 and make it several times as fast as fp32; others emulate it and make it slower. A
recipe with ``precision.autocast = "auto"`` takes bfloat16 where the products that training is made of run at least
:data:`PAYS` times as fast in it. Losses differ between the two, so the answer is asked once for all runs that are to be
compared, and stands in what they leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from memprobe.files import read_valid, write_json
from training.alike import settled_as
from training.directories import begun, is_run
from training.recipe import Recipe

PAYS = 1.3
"""How many times as fast bfloat16 must be: below that, its rounding buys too little."""
_ROWS, _WIDTH, _INNER = 256, 576, 1536  # a few short rows through a block of a small model
_SECONDS, _FEWEST, _MOST = 1.0, 3, 200


class AutocastFile(BaseModel):
    """``autocast.json``: what was chosen on which measurement."""

    model_config = ConfigDict(extra="allow", strict=True)

    autocast: Literal["none", "bfloat16"]


def speed_of_bfloat16(device: torch.device) -> float:
    """How many times as fast as fp32 a linear layer, forward and backward, is under bfloat16 autocast: the median of
    pairs of runs in turns, in about a second."""
    layer = torch.nn.Linear(_WIDTH, _INNER, bias=False, device=device)
    rows = torch.randn(_ROWS, _WIDTH, device=device, requires_grad=True)

    def seconds(half: bool) -> float:
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            layer(rows).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    begun = time.perf_counter()
    for half in (False, True):
        seconds(half)  # first calls choose their kernels
    ratios: list[float] = []
    while len(ratios) < _FEWEST or (time.perf_counter() - begun < _SECONDS and len(ratios) < _MOST):
        ratios.append(seconds(False) / seconds(True))
    return median(ratios)


def as_begun(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with ``auto`` as the run in a directory has it, where one was begun."""
    if recipe.precision.autocast != "auto" or not is_run(out):
        return recipe
    return settled_as(recipe, begun(out))


def settled(recipe: Recipe, shared: Path, device: torch.device, say: Callable[[str], None]) -> Recipe:
    """The recipe with ``auto`` as the first run that shares a folder chose it, which may be this one.

    Args:
        shared: a folder that runs to be compared share.
        say: called with what was measured.
    """
    if recipe.precision.autocast != "auto":
        return recipe
    return _with(recipe, _choice(shared / "autocast.json", device, say))


def _with(recipe: Recipe, autocast: str) -> Recipe:
    return recipe.model_copy(update={"precision": recipe.precision.model_copy(update={"autocast": autocast})})


def _choice(path: Path, device: torch.device, say: Callable[[str], None]) -> str:
    from filelock import FileLock

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # another run may be at it
            if not path.exists():
                speed = speed_of_bfloat16(device)
                autocast = "bfloat16" if speed >= PAYS else "none"
                say(
                    f"autocast {autocast}: products in bfloat16 run {speed:.2f} times as fast as in fp32 here"
                )
                write_json({"autocast": autocast, "speed": round(speed, 3), "device": str(device)}, path)
    return read_valid(path, AutocastFile)["autocast"]
