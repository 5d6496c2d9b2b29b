"""Fewer kernels for a training step on a GPU, where a small model's time is how many there are.

A block of a Llama takes some 130 operators under autocast, forward and backward (counted on a CPU, without views). Its
norms are written out in elementary ones, and each of five linear layers casts their results for itself. Here a norm is
one call, fused where torch has a kernel for it, and its result is cast once: the same numbers up to rounding in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprobe.modes import another_forward

_BEFORE_LINEAR = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose norms of the residual stream feed linear layers alone, which autocast would cast for anyway."""


@contextmanager
def fewer_kernels(model: Any) -> Iterator[None]:
    """Fused norms, where they compute what the model's own do, and flash attention; then all is as it was.

    Attention by cuDNN makes a plan for every new shape, and batches have many.
    """
    cast = getattr(model.config.get_text_config(), "model_type", "") in _BEFORE_LINEAR
    norms = [module for module in model.modules() if _is_rms_norm(module)]
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with ExitStack() as stack:
            for norm in norms:
                stack.enter_context(another_forward(norm, partial(_fused, norm, cast)))
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def _fused(norm: Any, cast: bool, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != norm.weight.dtype:
        return type(norm).forward(norm, hidden_states)
    normed = F.rms_norm(hidden_states, norm.weight.shape, norm.weight, _eps(norm))
    kind = hidden_states.device.type
    return normed.to(torch.get_autocast_dtype(kind)) if cast and torch.is_autocast_enabled(kind) else normed


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether a module is a root-mean-square norm as torch has it; some families add 1 to the weight, or more."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or weight.ndim != 1:
        return False
    if _eps(module) is None or weight.dtype != torch.float32 or "forward" in module.__dict__:
        return False
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(3, len(weight), generator=generator).to(weight.device)
    with torch.no_grad():
        return torch.allclose(
            module(some), F.rms_norm(some, weight.shape, weight, _eps(module)), rtol=1e-4, atol=1e-5
        )


def _eps(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))
