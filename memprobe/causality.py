"""Whether a model predicts each token from those before it alone, as teacher forcing takes for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memprobe.errors import MemprobeError
from memprobe.quantised import is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARE = 0.25  # of the logits' spread; weights of 8 bits are rounded by what else is read, and move them less


def check_causal(model: PreTrainedModel, ids: Tensor, logits: Tensor, tolerance: float, label: str) -> None:
    """Refuses a model in which a position sees later ones: teacher forcing would tell it the answer.

    Such are embedding models and those of whole texts. Their lens equals their logits, so that nothing else shows it.

    Args:
        ids: of a text, 1 x tokens.
        logits: what the model makes of them.
        tolerance: how far logits may differ by rounding alone.

    Raises:
        MemprobeError: another last token changes what the model says before it.
    """
    other = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % logits.shape[-1]], dim=1)
    changed = (model(input_ids=other, use_cache=False).logits - logits)[:, :-1].abs()
    if is_quantised(model):
        tolerance = max(tolerance, _SHARE * float(logits.std()))
    if changed.numel() and float(changed.max()) > tolerance:
        name = type(model).__name__
        raise MemprobeError(f"{label}: {name} lets a position see later ones, so it is no causal LM")
