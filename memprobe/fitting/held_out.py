"""How well a lens predicts on held-out text, and how far two fits of it differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memprobe.fitting.streams import SKIP, streams_of
from memprobe.statistics.intervals import Resamples, bootstrap_mean

if TYPE_CHECKING:
    from memprobe.lenses import Lens
    from memprobe.models import LensModel

_LOGITS = 1 << 24


def judge(
    lens_model: LensModel,
    lens: Lens,
    ids: Int[Tensor, "sequence position"],
    seed: int = 0,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """One row for each depth 0 … n_layers: how well the lens predicts, beside the Logit Lens.

    ``cross_entropy`` is of the next token and ``kl`` that of the model's own output to the lens's, both in nats and
    over all positions but the first and the last of each sequence; ``logit_cross_entropy`` and ``logit_kl`` are the
    Logit Lens's; ``kl_saved`` is how much lower the lens's KL is, with a 95 % interval over sequences
    (``low``, ``high``).

    Args:
        progress: called with (sequences read, of how many).
    """
    own = lens_model.lens
    progress(0, len(ids))
    by_sequence = []
    for sequence in ids:
        by_sequence.append(_sequence(lens_model, [lens, own], sequence))
        progress(len(by_sequence), len(ids))
    values = torch.stack(by_sequence).numpy()
    saved = values[:, 1, 1] - values[:, 0, 1]  # [sequence, depth]
    resamples = Resamples.of(len(ids), seed=seed)
    mean, low, high = bootstrap_mean(saved, resamples)
    by_depth = values.mean(0)
    return [
        {
            "depth": depth,
            "cross_entropy": float(by_depth[0, 0, depth]),
            "kl": float(by_depth[0, 1, depth]),
            "logit_cross_entropy": float(by_depth[1, 0, depth]),
            "logit_kl": float(by_depth[1, 1, depth]),
            "kl_saved": float(mean[depth]),
            "low": _finite(low[depth]),
            "high": _finite(high[depth]),
        }
        for depth in range(lens_model.n_layers + 1)
    ]


def _sequence(
    lens_model: LensModel, lenses: Sequence[Lens], ids: Tensor
) -> Float[Tensor, "lens measure depth"]:
    """Cross-entropy and KL of each lens at each depth, averaged over one sequence."""
    depths = lens_model.n_layers + 1
    streams = streams_of(lens_model, ids[None])[:, 0, SKIP:-1]
    total = torch.zeros(len(lenses), 2, depths, dtype=torch.float64, device=streams.device)
    following = ids[SKIP + 1 :].to(streams.device)
    rows = max(1, _LOGITS // lens_model.vocab_size)
    with torch.inference_mode():
        for chunk, wanted in zip(streams.split(rows, dim=1), following.split(rows), strict=True):
            target = lens_model.lens(chunk[-1]).log_softmax(-1)
            for place, lens in enumerate(lenses):
                for depth in range(depths):
                    log_probs = lens(chunk[depth], depth).log_softmax(-1)
                    total[place, 0, depth] -= log_probs.gather(1, wanted[:, None]).double().sum()
                    total[place, 1, depth] += (target.exp() * (target - log_probs)).sum(-1).double().sum()
    return (total / len(following)).cpu()


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
