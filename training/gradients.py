"""Gradients for measurements: logits at the positions that carry loss, and what of the model they touch.

Micro-batches are those of :mod:`training.batches`. Under a boolean ``logits_to_keep`` a Hugging Face model computes
logits [kept, vocab] for these positions alone, row after row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memprobe.errors import MemprobeError
from training.batches import model_inputs


def kept_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "kept vocab"]:
    """Logits in fp32 at the positions of a micro-batch that carry loss, row after row."""
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in model_inputs(batch).items()}
    logits = model(**inputs, use_cache=False).logits
    if logits.ndim != 2:  # a mask of another type, or a family that reads it otherwise, would go unnoticed
        raise MemprobeError(
            f"{type(model).__name__} does not take a boolean logits_to_keep (logits {list(logits.shape)}); "
            "this needs transformers 5.22 or later and a family that supports it"
        )
    return logits.float()


def trained_parameters(model: nn.Module) -> tuple[list[str], list[nn.Parameter]]:
    """Names and parameters that are trained, tied ones once.

    Raises:
        MemprobeError: there are none.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise MemprobeError("the model has no parameter that is trained")
    return [name for name, _ in named], [parameter for _, parameter in named]


def gradients_of(
    loss: Tensor, parameters: list[nn.Parameter], *, keep_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients that leave every ``.grad`` alone; None for a parameter that the loss does not depend on."""
    return torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=keep_graph)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients, so that dropout neither blurs a measurement nor draws; then every module's own
    mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module in training:
            module.training = True
