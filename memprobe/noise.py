"""The noise of causal tracing: how much, and which, whatever the batch."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memprobe.errors import MemprobeError

_SOME_ROWS = 256


def spread_of(embedding: nn.Module) -> float:
    """The standard deviation of all embeddings that a module gives. Some scale the rows of their matrix themselves
    (Gemma by √d_model), which some of their rows tell."""
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    some = torch.linspace(0, len(weight) - 1, min(len(weight), _SOME_ROWS), device=weight.device).long()
    with torch.no_grad():
        given = embedding.forward(some)  # without the hooks of other edits
        scale = given.float().norm() / weight[some].float().norm()
        return float(weight.float().std() * scale)


def corruption(
    ids: Int[Tensor, "row position"], mask: Bool[Tensor, "row position"], width: int, seed: int
) -> Float[Tensor, "row position width"]:
    """Standard normal noise where ``mask`` says so, 0 elsewhere; see :class:`memprobe.interventions.Corrupt` for what
    it depends on.

    Raises:
        MemprobeError: nothing is meant in any row.
    """
    noise = torch.zeros(*ids.shape, width)
    if not mask.any() and ids.shape[1] > 1:  # one token at a time is generation, which comes after the prompt
        raise MemprobeError("none of the rows holds the tokens to corrupt")
    for row in mask.any(1).nonzero()[:, 0].tolist():
        columns = mask[row].nonzero()[:, 0].tolist()
        key = f"{seed} {ids[row, columns].tolist()}"
        random = torch.Generator().manual_seed(int(hashlib.sha256(key.encode()).hexdigest()[:15], 16))
        noise[row, columns] = torch.randn(len(columns), width, generator=random)
    return noise
