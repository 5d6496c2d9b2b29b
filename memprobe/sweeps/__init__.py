"""Sweeps: what a row of logits is read with, one for each kind of machine.

    eager     torch and numpy, some ten passes over each row; the oracle, and what runs where nothing else does
    numba     one pass, on a CPU where numba is installed (the extra ``fast``)
    triton    one pass, on CUDA where triton is installed (it comes with torch's CUDA builds)

All give the same ranks, ties and finite rows, and log-probabilities and entropies within fp32 rounding. Which one read
a checkpoint is kept in the probe's ``run.json`` (``reading``); :data:`VARIABLE` asks for one by name.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from memprobe.errors import MemprobeError, first_line

VARIABLE = "MEMPROBE_READING"
_FUSED = {"cpu": "numba", "cuda": "triton"}


class Swept(NamedTuple):
    """What a sweep reads from logits [row, vocab] and targets [row, target], on the logits' device.

    Attributes:
        rank: int32 [row, target], other tokens whose logit is at least the target's; -1 for a target below 0.
        ties: int32 [row], other tokens with exactly the first target's logit.
        log_prob: fp32 [row], of the first target, nats.
        entropy: fp32 [row], nats; not finite where any logit is not.
        top1: int32 [row], id of the argmax.
    """

    rank: Tensor
    ties: Tensor
    log_prob: Tensor
    entropy: Tensor
    top1: Tensor


Sweep = Callable[[Tensor, Tensor], Swept]


def sweep_name(device: torch.device) -> str:
    """Which sweep reads logits on a device: ``eager``, ``numba`` or ``triton``.

    Raises:
        MemprobeError: :data:`VARIABLE` asks for one that is not there for this device.
    """
    fused = _FUSED.get(device.type)
    there = fused is not None and why_not(fused) is None
    asked = os.environ.get(VARIABLE, "auto")
    if asked == "auto":
        return fused if fused and there else "eager"
    if asked == "eager" or (asked == fused and there):
        return asked
    choices = ["auto", "eager", *([fused] if fused and there else [])]
    raise MemprobeError(f"{VARIABLE}={asked}: for {device.type} there is {', '.join(choices)}")


def sweep_for(device: torch.device) -> Sweep:
    """The sweep that reads logits on a device; see :func:`sweep_name`."""
    return sweep_named(sweep_name(device))


@cache
def sweep_named(name: str) -> Sweep:
    """The sweep of a name, which must be installed."""
    return importlib.import_module(f"memprobe.sweeps.with_{name}").sweep


@cache
def why_not(name: str) -> str | None:
    """Why a sweep cannot be used here; ``None`` where it can."""
    if find_spec(name) is None:
        return f"{name} is not installed"
    try:
        sweep_named(name)
    except ImportError as error:  # numba refuses a numpy that is too new for it in this way
        return f"{name} cannot be imported: {first_line(error)}"
    return None


def slow_note(device: torch.device) -> str | None:
    """What a user must be told where logits are read eagerly though nobody asked for it.

    On a CPU without numba, which is an extra, there is nothing to say: ``run.json`` has it.
    """
    fused = _FUSED.get(device.type)
    if fused is None or os.environ.get(VARIABLE, "auto") != "auto" or (reason := why_not(fused)) is None:
        return None
    if device.type == "cpu" and find_spec(fused) is None:
        return None
    return f"logits are read by torch, in many passes over each: {reason}"
