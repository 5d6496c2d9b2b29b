"""Elastic weight consolidation: weights that mattered for the earlier stages are held to where they were.

Source: Kirkpatrick et al. 2017 (arXiv 1612.00796).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from memprobe.errors import MemprobeError
from training.penalties import Boundary, Penalty, Step, Term

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from training.batches import MicroBatch


class Ewc(Penalty):
    """½ Σ_i F_i (θ_i − θ*_i)², with the Fisher information F of rows of all earlier stages, read once, at the boundary.

    Attributes:
        fisher_rows: at most so many rows of the earlier stages make the Fisher information.
        fisher_draws: random directions for each of them, see :func:`fisher_diagonal`.
    """

    holds_weights: ClassVar[bool] = True
    reads_logits: ClassVar[bool] = False

    method: Literal["ewc"] = "ewc"
    fisher_rows: int = Field(1024, ge=1)
    fisher_draws: int = Field(4, ge=1)

    def term(self, boundary: Boundary) -> Term:  # noqa: D102
        rows = boundary.earlier(self.fisher_rows)
        boundary.say(f"Fisher information of {sum(len(one['own']) for one in rows)} earlier rows")
        fisher = fisher_diagonal(
            boundary.model, rows, draws=self.fisher_draws, seed=boundary.seed, autocast=boundary.autocast
        )
        boundary.say(f"its trace is {sum(float(part.sum()) for part in fisher.values()):.4g}")
        named = dict(boundary.model.named_parameters())
        anchor = {name: named[name].detach().clone() for name in fisher}

        def held(step: Step) -> Tensor:
            return ewc_penalty(step.model, anchor, fisher) / step.accumulation

        return held


def fisher_diagonal(
    model: PreTrainedModel,
    microbatches: Iterable[MicroBatch],
    *,
    draws: int,
    seed: int,
    autocast: torch.dtype | None = None,
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
        autocast: of the matrix products; directions and squares are in fp32.

    Returns:
        By name, a tensor in fp32 for each parameter that is trained. Weights, gradients, mode and random state
        of the model stay as they are.

    Raises:
        MemprobeError: no row has a position that carries loss, or a logit or gradient is not finite.
    """
    import torch

    from training.gradients import gradients_of, in_eval_mode, kept_logits, trained_parameters

    names, parameters = trained_parameters(model)
    generator = torch.Generator(device=parameters[0].device).manual_seed(seed)
    total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    examples = 0
    with in_eval_mode(model):
        for row in _rows(microbatches):
            with torch.autocast(parameters[0].device.type, autocast, enabled=autocast is not None):
                logits = kept_logits(model, row)
            if not torch.isfinite(logits).all():
                raise MemprobeError("Fisher information: a logit is not finite; the model has diverged")
            for draw in range(draws):
                product = (logits * _directions(logits.detach(), generator)).sum()
                parts = gradients_of(product, parameters, keep_graph=draw + 1 < draws)
                # All tensors in a few kernels: row by row, what counts on a device is how many there are.
                sums = [sum_ for sum_, part in zip(total, parts, strict=True) if part is not None]
                gradients = [part.float() for part in parts if part is not None]
                torch._foreach_addcmul_(sums, gradients, gradients)
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
    import torch

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
    from training.distance import weighed_distance
    from training.gradients import trained_parameters

    names, parameters = trained_parameters(model)
    for what, given in (("anchor", anchor), ("Fisher information", fisher)):
        if unmatched := sorted(set(names) ^ set(given)):
            raise MemprobeError(
                f"EWC: the {what} and the trained parameters differ, first in {unmatched[0]}; take both from the "
                "same model with the same parameters trained"
            )
    return weighed_distance(
        parameters,
        [anchor[name].to(p.device).float() for name, p in zip(names, parameters, strict=True)],
        [fisher[name].to(p.device) for name, p in zip(names, parameters, strict=True)],
    )


def _rows(microbatches: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """One example at a time of padded micro-batches, cut after the last position that carries loss."""
    for batch in microbatches:
        for ids, keep in zip(batch["input_ids"], batch["logits_to_keep"], strict=True):
            kept = keep.nonzero()
            if len(kept):
                length = int(kept[-1]) + 1
                yield {"input_ids": ids[None, :length], "logits_to_keep": keep[None, :length]}
