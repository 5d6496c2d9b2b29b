"""Forward passes over a corpus: the stream at every depth, with or without a gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memprobe.blocks import decoder_of, residual_hooks
from memprobe.interventions import hook_output
from memprobe.modes import evaluating

if TYPE_CHECKING:
    from memprobe.models import LensModel

SKIP = 1
"""Leading positions that are left out: the first token's stream is a sink of attention, unlike all others."""


def streams_of(
    lens_model: LensModel, ids: Int[Tensor, "sequence position"]
) -> Float[Tensor, "depth sequence position d_model"]:
    """The residual stream at depths 0 … n_layers, in fp32, without a gradient."""
    kept: dict[int, Tensor] = {}
    with evaluating(lens_model.model), residual_hooks(lens_model.blocks, kept.__setitem__):
        decoder_of(lens_model.model)(input_ids=ids.to(lens_model.device), use_cache=False)
    return torch.stack([kept[depth].float() for depth in range(lens_model.n_layers + 1)])


def streams_with_gradient(
    lens_model: LensModel, ids: Int[Tensor, "sequence position"]
) -> list[Float[Tensor, "sequence position d_model"]]:
    """The same in the model's precision, each stream a node of one graph rooted at depth 0; weights must be frozen."""
    kept: dict[int, Tensor] = {}
    root = hook_output(lens_model, "residual", 0, lambda stream: stream.detach().requires_grad_())
    try:
        with torch.enable_grad(), residual_hooks(lens_model.blocks, kept.__setitem__):
            decoder_of(lens_model.model)(input_ids=ids.to(lens_model.device), use_cache=False)
    finally:
        root.remove()
    return [kept[depth] for depth in range(lens_model.n_layers + 1)]


@contextlib.contextmanager
def frozen(lens_model: LensModel) -> Iterator[None]:
    """Eval mode, and no parameter wants a gradient; afterwards model and readout are as they were."""
    modules = [lens_model.model, lens_model.lens.readout]
    wanted = [p for module in modules for p in module.parameters() if p.requires_grad]
    training = [module for module in lens_model.model.modules() if module.training]
    lens_model.model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
