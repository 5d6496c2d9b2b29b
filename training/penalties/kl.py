"""Learning without forgetting: on the new stage's own rows the model is held to what it said before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from memprobe.errors import MemprobeError
from training.penalties import Boundary, Penalty, Step, Term

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Kl(Penalty):
    """KL(p_A ‖ p_θ), the mean over the response tokens of the stage's own rows, with p_A the model at its start."""

    method: Literal["kl"] = "kl"

    def term(self, boundary: Boundary) -> Term:  # noqa: D102
        import torch

        frozen = boundary.copy().to(boundary.model.device).eval().requires_grad_(False)  # pyrefly: ignore

        def held(step: Step) -> Tensor | None:
            if step.logits is None:
                raise MemprobeError("KL: it is made of logits, and the step has none")
            if not bool(step.own.any()):
                return None
            # As the trained model computes: else it would be held to itself in another precision.
            half = torch.autocast(
                frozen.device.type, boundary.autocast, enabled=boundary.autocast is not None
            )
            with torch.no_grad(), half:
                frozen_logits = frozen(**step.inputs, use_cache=False).logits.float()
            return kl_to_frozen(frozen_logits[step.own], step.logits[step.own]) * step.own_share

        return held


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
    import torch.nn.functional as F

    frozen = frozen_logits.detach().float().log_softmax(-1).flatten(0, -2)
    trained = logits.float().log_softmax(-1).flatten(0, -2)
    return F.kl_div(trained, frozen, reduction="batchmean", log_target=True)
