"""A model as it is asked: in evaluation, without autocast and other wrappers of training."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


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
def another_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward pass of a module, as an attribute of its own (accelerate puts one there, too); then as it was."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = before


@contextlib.contextmanager
def _plain_forward(model: nn.Module) -> Iterator[None]:
    """Takes accelerate's wrapper off: mixed precision would compute in bf16 what the weights hold in fp32."""
    original = model.__dict__.get("_original_forward")
    if "forward" not in model.__dict__ or original is None:
        yield
        return
    with another_forward(
        model, original if hasattr(original, "__self__") else types.MethodType(original, model)
    ):
        yield


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
