"""How far weights are from where they were, weighed weight by weight, and its gradient, in a few kernels.

Tensor by tensor this takes a thousand kernels a training step, as many as the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def weighed_distance(
    parameters: Sequence[Tensor], anchor: Sequence[Tensor], weights: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """½ Σ_i w_i (θ_i − θ*_i)² in fp32, for weights w ≥ 0; its gradient is w_i (θ_i − θ*_i).

    Args:
        parameters: θ.
        anchor, weights: θ* and w, in fp32 on the parameters' device.
    """
    return _Distance.apply(list(anchor), list(weights), *parameters)


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: list[Tensor], weights: list[Tensor], *parameters: Tensor) -> Tensor:
        difference = torch._foreach_sub([parameter.float() for parameter in parameters], anchor)
        pull = torch._foreach_mul(difference, weights)
        ctx.save_for_backward(*pull)
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        torch._foreach_mul_(difference, pull)
        # No term is below 0, so the 1-norm is the sum.
        return 0.5 * torch.stack(list(torch._foreach_norm(difference, 1))).sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        gradients = torch._foreach_mul(list(ctx.saved_tensors), outer[0])
        return None, None, *(part.to(dtype) for part, dtype in zip(gradients, ctx.dtypes, strict=True))
