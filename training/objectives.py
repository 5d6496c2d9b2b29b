"""What EWC and the KL arm add to the loss, and the batches that these and the interference numbers are read from.

A micro-batch is a dict of three tensors::

    input_ids       int64 [row, position]  padded on the right
    logits_to_keep  bool  [row, position]  positions whose next token carries loss
    labels          int64 [kept]           those next tokens, row after row

No attention mask is needed: causal attention never lets a position see what stands after it. Under a boolean
``logits_to_keep`` a Hugging Face model computes logits [kept, vocab] for these positions alone, in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    MicroBatch = Mapping[str, Tensor]


def fisher_diagonal(
    model: PreTrainedModel, microbatches: Iterable[MicroBatch], *, draws: int, seed: int
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of the model's own predictions, per example.

    For examples x_1 … x_N, each a row with kept positions t, and the true tokens as every position's context::

        F_i = 1/N Σ_n Σ_t E_{y ~ p_t} [ (∂/∂θ_i log p_t(y))² ]  =  1/N Σ_n Σ_t [ J_tᵀ (diag(p_t) − p_t p_tᵀ) J_t ]_ii

    with J_t = ∂ logits_t / ∂θ: positions' scores have mean zero, so that the square of their sum is, in expectation,
    the sum of their squares. The expectation over labels is taken exactly, by directions that weigh *every* label:
    with ε ∈ {−1, 1} for each label, drawn at random,

        z_t = √p_t ∘ ε_t − p_t (√p_t · ε_t)      has   E[z_t z_tᵀ] = diag(p_t) − p_t p_tᵀ

    and so E[(∂/∂θ_i Σ_t z_t · logits_t)²] is F_i. One draw of y for each position has the same mean and is useless
    where the model is sure of itself: it nearly always draws the argmax, whose score vanishes, and almost all of F is
    in labels that are almost never drawn. Memorised factoids are such rows.

    The square is that of one example's gradient, never of a batch's mean; and labels are weighed by the model: with
    the data's own in their place this would be the "empirical Fisher", which vanishes where the data is fitted.

    Sources: Kirkpatrick et al. 2017 (arXiv 1612.00796); Kunstner et al. 2019, "Limitations of the empirical
    Fisher approximation" (arXiv 1905.12558); directions with a given covariance: Hutchinson 1990, "A stochastic
    estimator of the trace of the influence matrix".

    Args:
        microbatches: how rows are split into them does not matter; their order does, through the draws.
        draws: directions for each row; a weight's relative error is about √(2 / (N · draws)) where all N rows
            contribute alike.
        seed: of the draws.

    Returns:
        By name, a tensor in fp32 for each parameter that is trained. Weights, gradients, mode and random state
        of the model stay as they are.

    Raises:
        MemprobeError: no row has a position that carries loss, or a logit or gradient is not finite.
    """
    names, parameters = trained_parameters(model)
    generator = torch.Generator(device=parameters[0].device).manual_seed(seed)
    total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    examples = 0
    with in_eval_mode(model):
        for ids, keep in _rows(microbatches):
            logits = kept_logits(model, ids, keep)
            if not torch.isfinite(logits).all():
                raise MemprobeError("Fisher information: a logit is not finite; the model has diverged")
            for draw in range(draws):
                product = (logits * _directions(logits.detach(), generator)).sum()
                parts = gradients_of(product, parameters, keep_graph=draw + 1 < draws)
                for sum_, gradient in zip(total, parts, strict=True):
                    if gradient is not None:
                        sum_.addcmul_(gradient.float(), gradient.float())
            examples += 1
    if not examples:
        raise MemprobeError("Fisher information: no row has a position that carries loss")
    fisher = {name: sum_ / (examples * draws) for name, sum_ in zip(names, total, strict=True)}
    for name, value in fisher.items():
        if not torch.isfinite(value).all():
            raise MemprobeError(f"Fisher information: not finite, first in {name}; the model has diverged")
    return fisher


def _directions(
    logits: Float[Tensor, "kept vocab"], generator: torch.Generator
) -> Float[Tensor, "kept vocab"]:
    """For each position a random direction of logits whose covariance is diag(p) − p pᵀ."""
    probabilities = logits.softmax(-1)
    signs = torch.randint(0, 2, logits.shape, generator=generator, device=logits.device) * 2 - 1
    weighed = probabilities.sqrt() * signs
    return weighed - probabilities * weighed.sum(-1, keepdim=True)


def ewc_penalty(
    model: nn.Module, anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """½ Σ_i F_i (θ_i − θ*_i)², in fp32 and before any strength λ: elastic weight consolidation.

    Source: Kirkpatrick et al. 2017 (arXiv 1612.00796), equation 3. θ* and F are those at the end of the stage
    that is to be kept, so that EWC sees that stage's data once, at its boundary.

    Args:
        anchor: θ*, by parameter name.
        fisher: F, from :func:`fisher_diagonal`.

    Raises:
        MemprobeError: the model trains other parameters than those in ``anchor`` and ``fisher``.
    """
    names, parameters = trained_parameters(model)
    for what, given in (("anchor", anchor), ("Fisher information", fisher)):
        if unmatched := sorted(set(names) ^ set(given)):
            raise MemprobeError(
                f"EWC: the {what} and the trained parameters differ, first in {unmatched[0]}; take both from the "
                "same model with the same parameters trained"
            )
    terms = [
        (fisher[name].to(p.device) * (p.float() - anchor[name].to(p.device).float()).square()).sum()
        for name, p in zip(names, parameters, strict=True)
    ]
    return 0.5 * torch.stack([term.to(terms[0].device) for term in terms]).sum()


def kl_to_frozen(
    frozen_logits: Float[Tensor, "*kept vocab"], logits: Float[Tensor, "*kept vocab"]
) -> Float[Tensor, ""]:
    """Mean over kept positions of KL(p_A ‖ p_θ) = Σ_v p_A(v) (log p_A(v) − log p_θ(v)), nats, in fp32.

    p_A is the frozen model's distribution and p_θ the trained one's: the mean is taken under the model that is
    to be kept, so that θ must cover all that it says. No gradient reaches ``frozen_logits``.

    Source: the term of Learning without Forgetting at temperature 1 (Li and Hoiem 2016, arXiv 1606.09282),
    which is Hinton et al. 2015 (arXiv 1503.02531) up to the constant entropy of p_A.

    Raises:
        MemprobeError: the two differ in shape, or no position is kept.
    """
    if frozen_logits.shape != logits.shape:
        raise MemprobeError(
            f"KL: logits {list(logits.shape)} against {list(frozen_logits.shape)} of the frozen model; "
            "both need the same positions and vocabulary"
        )
    if logits.numel() == 0:
        raise MemprobeError("KL: no position carries loss")
    frozen = frozen_logits.detach().float().log_softmax(-1).flatten(0, -2)
    trained = logits.float().log_softmax(-1).flatten(0, -2)
    return F.kl_div(trained, frozen, reduction="batchmean", log_target=True)


def kept_logits(model: nn.Module, ids: Tensor, keep: Tensor) -> Float[Tensor, "kept vocab"]:
    """Logits in fp32 at the positions of a boolean mask [row, position], row after row."""
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), logits_to_keep=keep.to(device), use_cache=False).logits
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


def _rows(microbatches: Iterable[MicroBatch]) -> Iterator[tuple[Tensor, Tensor]]:
    """One example at a time, [1, position] each, cut after the last position that carries loss."""
    for batch in microbatches:
        for ids, keep in zip(batch["input_ids"], batch["logits_to_keep"], strict=True):
            kept = keep.nonzero()
            if len(kept):
                length = int(kept[-1]) + 1
                yield ids[None, :length], keep[None, :length]
