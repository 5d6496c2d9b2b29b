"""Logits → rank, log-probability, entropy and argmax: where the vocabulary axis ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from memprobe.lenses import Lens

# The unembedding is fastest on many rows, reading what it made is fastest while a block fits the cache.
_CHUNK_ROWS, _CPU_BLOCK_ROWS, _GPU_ROWS = 512, 32, 2048


@dataclass(frozen=True)
class Reading:
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


def read_rows(
    lens: Lens,
    hidden: Float[Tensor, "row d_head"],
    targets: Int[Tensor, "row target"],
    intrusions: Mapping[str, Sequence[int]],
) -> tuple[Reading, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Reads every row, a chunk of logits at a time; for each intrusion, its best token and that token's rank."""
    targets = targets.to(hidden.device)
    watched = {name: torch.tensor(ids, device=hidden.device) for name, ids in intrusions.items()}
    on_cpu = hidden.device.type == "cpu"
    chunk_rows, block_rows = (_CHUNK_ROWS, _CPU_BLOCK_ROWS) if on_cpu else (_GPU_ROWS, _GPU_ROWS)
    readings: list[Reading] = []
    best_ids: list[Tensor] = []
    for start in range(0, len(hidden), chunk_rows):
        chunk = lens.unembed(hidden[start : start + chunk_rows])
        for offset in range(0, len(chunk), block_rows):
            logits = chunk[offset : offset + block_rows]
            wanted = targets[start + offset : start + offset + block_rows]
            strongest = [_strongest(logits, ids, wanted[:, 0]) for ids in watched.values()]
            readings.append(read_logits(logits, torch.column_stack([wanted, *strongest])))
            best_ids.append(torch.stack(strongest, 1) if strongest else wanted[:, :0])
    merged = Reading(
        *(np.concatenate([getattr(r, name) for r in readings]) for name in Reading.__dataclass_fields__)
    )
    ids = torch.cat(best_ids).cpu().numpy()
    first = targets.shape[1]
    return merged, {name: (ids[:, i], merged.rank[:, first + i]) for i, name in enumerate(watched)}


def _strongest(logits: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """Of the watched tokens, the one with the largest logit in each row; the answer's own does not count."""
    values = logits[:, ids].masked_fill(ids == answer[:, None], -torch.inf)
    best = values.max(1)
    return torch.where(best.values > -torch.inf, ids[best.indices], -1)


def read_logits(logits: Float[Tensor, "row vocab"], targets: Int[Tensor, "row target"]) -> Reading:
    """Rank, ties, log-probability, entropy and argmax, in few passes over the logits. Overwrites them.

    With m = max l and S = Σ exp(l − m): log p = l − m − log S and H = log S − Σ exp(l − m)(l − m) / S.

    Args:
        targets: token ids; the first of a row is its answer, an id of -1 is skipped (rank -1).
    """
    rank, ties, top1 = _order(logits, logits.gather(1, targets.clamp(min=0)), targets >= 0)
    answer = logits.gather(1, targets[:, :1])
    largest = logits.gather(1, top1)
    shifted = logits.sub_(largest)
    weights = shifted.exp()
    total = weights.sum(1)
    entropy = total.log() - weights.mul_(shifted).sum(1) / total
    log_prob = (answer - largest)[:, 0] - total.log()
    return Reading(
        rank=rank.cpu().numpy(),
        ties=ties.cpu().numpy(),
        log_prob=log_prob.cpu().numpy(),
        entropy=entropy.cpu().numpy(),
        top1=top1[:, 0].to(torch.int32).cpu().numpy(),
    )


def _order(
    logits: Float[Tensor, "row vocab"],
    values: Float[Tensor, "row target"],
    wanted: Bool[Tensor, "row target"],
) -> tuple[Int[Tensor, "row target"], Int[Tensor, " row"], Int[Tensor, "row 1"]]:
    """Other logits that reach each value (-1 where not wanted), those equal to the first, and the argmax."""
    if logits.device.type != "cpu":
        larger = [(logits >= column[:, None]).sum(1) - 1 for column in values.unbind(1)]
        rank = torch.where(wanted, torch.stack(larger, 1), -1)
        return (
            rank.to(torch.int32),
            ((logits == values[:, :1]).sum(1) - 1).to(torch.int32),
            logits.argmax(1, True),
        )
    # On a CPU numpy counts several times faster than torch: one row at a time stays in the cache.
    rank = np.full(values.shape, -1, np.int32)
    ties, top1 = np.empty(len(logits), np.int32), np.empty((len(logits), 1), np.int64)
    mask = np.empty(logits.shape[1], bool)
    asked = wanted.numpy()
    for row, (line, thresholds) in enumerate(zip(logits.numpy(), values.numpy(), strict=True)):
        for target in asked[row].nonzero()[0]:
            rank[row, target] = np.count_nonzero(np.greater_equal(line, thresholds[target], out=mask)) - 1
        ties[row] = np.count_nonzero(np.equal(line, thresholds[0], out=mask)) - 1
        top1[row] = line.argmax()
    return torch.from_numpy(rank), torch.from_numpy(ties), torch.from_numpy(top1)
