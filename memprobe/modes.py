"""A model as it is asked: in evaluation, without autocast and other wrappers of training."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    pass


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, without gradients and autocast, by the model's own forward pass; then all is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(), _plain_forward(model), _without_autocast():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _plain_forward(model: nn.Module) -> Iterator[None]:
    """Takes accelerate's wrapper off: mixed precision would compute in bf16 what the weights hold in fp32."""
    wrapped = model.__dict__.get("forward")
    original = model.__dict__.get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    bound = original if hasattr(original, "__self__") else types.MethodType(original, model)
    model.__dict__["forward"] = bound
    try:
        yield
    finally:
        model.__dict__["forward"] = wrapped


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
