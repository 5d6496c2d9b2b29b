"""Micro-batches written out by hand, and a model's state before and after a measurement."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SILENT = {
    "input_ids": torch.tensor([[1, 2]]),
    "logits_to_keep": torch.zeros((1, 2), dtype=torch.bool),
    "labels": torch.tensor([], dtype=torch.long),
}
"""A row without a position that carries loss."""


def microbatch(rows: list[tuple[list[int], int]], pad: int = 0, extra: int = 0) -> dict[str, torch.Tensor]:
    """(token ids, length of the prompt) as a micro-batch: all tokens after the prompt carry loss."""
    width = max(len(ids) for ids, _ in rows) - 1 + extra
    inputs = torch.full((len(rows), width), pad)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, (ids, prompt) in enumerate(rows):
        inputs[index, : len(ids) - 1] = torch.tensor(ids[:-1])
        keep[index, prompt - 1 : len(ids) - 1] = True
    labels = torch.tensor([token for ids, prompt in rows for token in ids[prompt:]])
    return {"input_ids": inputs, "logits_to_keep": keep, "labels": labels}


def perturbed(model: nn.Module) -> Any:
    """No weight left at a round value, and in training mode, so that dropout would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.train()


def state(model: nn.Module) -> dict[str, Any]:
    """Weights, gradients, modes and random state."""
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = state(model)
    for key in ("weights", "gradients"):
        for old, new in zip(before[key], after[key], strict=True):
            assert (old is None and new is None) or torch.equal(old, new), key
    assert before["modes"] == after["modes"]
    assert torch.equal(before["random"], after["random"])
