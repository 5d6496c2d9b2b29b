"""Logits → rank, log-probability, entropy and argmax: where the vocabulary axis ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memprobe.sweeps import Swept, sweep_for

if TYPE_CHECKING:
    from memprobe.lenses import Lens

_CHUNK_ROWS, _GPU_ROWS = 512, 2048  # the unembedding is fastest on many rows


@dataclass(frozen=True)
class LogitReading:
    """Numbers read from logits [rows, vocab].

    Attributes:
        rank: [rows, targets] other tokens whose logit is at least the target's: a tie counts against it.
        ties: [rows] other tokens with exactly the first target's logit.
        log_prob: [rows] of the first target, nats.
        entropy: [rows], nats; not finite where any logit is not.
        top1: [rows] id of the argmax.
    """

    rank: np.ndarray
    ties: np.ndarray
    log_prob: np.ndarray
    entropy: np.ndarray
    top1: np.ndarray

    @classmethod
    def of(cls, swept: Swept) -> LogitReading:
        """What a sweep found, on the CPU."""
        return cls(*(column.cpu().numpy() for column in swept))


def read_rows(
    lens: Lens,
    hidden: Float[Tensor, "row d_head"],
    targets: Int[Tensor, "row target"],
    intrusions: Mapping[str, Sequence[int]],
) -> tuple[LogitReading, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Reads every row, a chunk of logits at a time; for each intrusion, its best token and that token's rank."""
    targets = targets.to(hidden.device)
    watched = {name: torch.tensor(ids, device=hidden.device) for name, ids in intrusions.items()}
    sweep = sweep_for(hidden.device)
    swept: list[Swept] = []
    best_ids: list[Tensor] = []
    rows = _CHUNK_ROWS if hidden.device.type == "cpu" else _GPU_ROWS
    for start in range(0, len(hidden), rows):
        logits = lens.unembed(hidden[start : start + rows])
        wanted = targets[start : start + rows]
        strongest = [_strongest(logits, ids, wanted[:, 0]) for ids in watched.values()]
        swept.append(sweep(logits, torch.column_stack([wanted, *strongest])))
        best_ids.append(torch.stack(strongest, 1) if strongest else wanted[:, :0])
    # A GPU is waited for once, here.
    merged = LogitReading.of(Swept(*(torch.cat(parts) for parts in zip(*swept, strict=True))))
    ids = torch.cat(best_ids).cpu().numpy()
    first = targets.shape[1]
    return merged, {name: (ids[:, i], merged.rank[:, first + i]) for i, name in enumerate(watched)}


def _strongest(logits: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """Of the watched tokens, the one with the largest logit in each row; the answer's own does not count."""
    values = logits[:, ids].masked_fill(ids == answer[:, None], -torch.inf)
    best = values.max(1)
    return torch.where(best.values > -torch.inf, ids[best.indices], -1)


def read_logits(logits: Float[Tensor, "row vocab"], targets: Int[Tensor, "row target"]) -> LogitReading:
    """Rank, ties, log-probability, entropy and argmax, by the sweep of the logits' device. May overwrite them.

    Args:
        logits: fp32, each row contiguous.
        targets: token ids; the first of a row is its answer, an id of -1 is skipped (rank -1).
    """
    return LogitReading.of(sweep_for(logits.device)(logits, targets))
