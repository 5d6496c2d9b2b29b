"""Do two datasets pull the weights in opposite directions? Measured on fixed batches, never used in training.

This is the paper's figure 2 (Chen et al., arXiv 2411.07175): a stage on D_B forgets D_A where the gradients of
both oppose each other, and mixing data is to bring them closer. To first order, a change Δθ of the weights
changes the loss on D_A by ∇L_A·Δθ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memprobe.blocks import blocks_of
from memprobe.errors import MemprobeError
from training.gradients import gradients_of, in_eval_mode, kept_logits, trained_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    MicroBatch = Mapping[str, Tensor]
    Gradient = list[Tensor | None]


def interference(
    model: PreTrainedModel,
    microbatches_a: Iterable[MicroBatch],
    microbatches_b: Iterable[MicroBatch],
    microbatches_m: Iterable[MicroBatch] | None = None,
    delta: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """How the losses on D_A, D_B and mixing data D_M interfere at the model's weights.

    L is the mean cross-entropy in nats over all kept tokens of a set, however its rows are split into
    micro-batches, and ∇ its gradient with respect to the parameters that are trained::

        cosine_a_b        cos(∇L_A, ∇L_B) = ∇L_A·∇L_B / (‖∇L_A‖ ‖∇L_B‖)
        cosine_a_m        cos(∇L_A, ∇L_M)            where D_M is given
        gradient_a_delta  ∇L_A·Δθ                    where delta is given: above 0 it hurts D_A
        delta_norm        ‖Δθ‖                       where delta is given
        gradient_norm_a   ‖∇L_A‖, and so _b and _m

    Args:
        microbatches_a, microbatches_b, microbatches_m: see :mod:`training.batches`.
        delta: by parameter name, the change Δθ of the weights; parameters that are not named did not change.

    Returns:
        ``loss_a``, ``loss_b``, ``loss_m``, and the above, each as ``{"overall": value, "blocks": [one for each
        transformer block], "other": value}``, with embeddings, final norm and output head in ``other``. A
        cosine is None where one of its gradients is zero. Weights, gradients, mode and random state of the
        model stay as they are.

    Raises:
        MemprobeError: a set without a token that carries loss, or ``delta`` of other parameters.
    """
    names, parameters = trained_parameters(model)
    places, n_blocks = _places(model, parameters)

    def summed(products: Sequence[float]) -> dict[str, Any]:
        return _by_block(products, places, n_blocks)

    result: dict[str, Any] = {}
    gradients: dict[str, Gradient] = {}
    for key, batches in {"a": microbatches_a, "b": microbatches_b, "m": microbatches_m}.items():
        if batches is not None:
            result[f"loss_{key}"], gradients[key] = _gradient(model, parameters, batches, f"D_{key.upper()}")
    squares = {key: summed(_dots(gradient, gradient)) for key, gradient in gradients.items()}
    for key, square in squares.items():
        result[f"gradient_norm_{key}"] = _each(math.sqrt, square)
    for other in sorted(set(gradients) - {"a"}):
        inner = summed(_dots(gradients["a"], gradients[other]))
        result[f"cosine_a_{other}"] = _each(_cosine, inner, squares["a"], squares[other])
    if delta is not None:
        if unknown := sorted(set(delta) - set(names)):
            raise MemprobeError(f"weight change: the model does not train {unknown[0]}")
        change: Gradient = [
            delta[name].to(p.device) if name in delta else None
            for name, p in zip(names, parameters, strict=True)
        ]
        result["gradient_a_delta"] = summed(_dots(gradients["a"], change))
        result["delta_norm"] = _each(math.sqrt, summed(_dots(change, change)))
    return result


def _gradient(
    model: PreTrainedModel, parameters: list[nn.Parameter], batches: Iterable[MicroBatch], name: str
) -> tuple[float, Gradient]:
    """Loss and gradient of the mean over all tokens that carry loss."""
    loss, tokens = 0.0, 0
    total: Gradient = [None] * len(parameters)
    with in_eval_mode(model):
        for batch in batches:
            if not batch["logits_to_keep"].any():
                continue
            logits = kept_logits(model, batch)
            summed = F.cross_entropy(logits, batch["labels"].to(logits.device), reduction="sum")
            for index, part in enumerate(gradients_of(summed, parameters)):
                if part is not None:
                    kept = total[index]
                    # Never in place: autograd may hand the same tensor to two parameters.
                    total[index] = part.float() if kept is None else kept + part
            loss += summed.item()
            tokens += len(logits)
    if not tokens:
        raise MemprobeError(f"interference: no token of {name} carries loss")
    return loss / tokens, [None if part is None else part / tokens for part in total]


def _dots(first: Gradient, second: Gradient) -> list[float]:
    """The inner product of each parameter's part; a missing part is zero."""
    products = [
        None if a is None or b is None else torch.dot(a.float().flatten(), b.float().flatten())
        for a, b in zip(first, second, strict=True)
    ]
    there = [product for product in products if product is not None]
    values = iter(torch.stack(there).tolist() if there else [])
    return [0.0 if product is None else next(values) for product in products]


def _by_block(products: Sequence[float], places: Sequence[int | None], n_blocks: int) -> dict[str, Any]:
    def total(place: int | None) -> float:
        return math.fsum(value for value, where in zip(products, places, strict=True) if where == place)

    return {
        "overall": math.fsum(products),
        "blocks": [total(block) for block in range(n_blocks)],
        "other": total(None),
    }


def _each(function: Callable[..., float | None], *tables: dict[str, Any]) -> dict[str, Any]:
    """A function of numbers, for the whole model, each block and the rest."""
    return {
        "overall": function(*(table["overall"] for table in tables)),
        "blocks": [function(*values) for values in zip(*(table["blocks"] for table in tables), strict=True)],
        "other": function(*(table["other"] for table in tables)),
    }


def _cosine(inner: float, square_a: float, square_b: float) -> float | None:
    length = math.sqrt(square_a) * math.sqrt(square_b)
    return None if length == 0 else max(-1.0, min(1.0, inner / length))  # rounding must not push it past 1


def _places(model: PreTrainedModel, parameters: list[nn.Parameter]) -> tuple[list[int | None], int]:
    """For each parameter the index of its transformer block, or None outside; and the number of blocks."""
    blocks = blocks_of(model)
    block_of = {id(p): index for index, block in enumerate(blocks) for p in block.parameters()}
    return [block_of.get(id(parameter)) for parameter in parameters], len(blocks)
