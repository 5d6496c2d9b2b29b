"""The oracle: logits read by torch, and counted by numpy on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memprobe.sweeps import Swept

# Reading is fastest while the block fits a CPU's cache.
_CPU_ROWS, _GPU_ROWS = 32, 2048


def sweep(logits: Float[Tensor, "row vocab"], targets: Int[Tensor, "row target"]) -> Swept:
    """See :class:`memprobe.sweeps.Swept`. Overwrites the logits."""
    rows = _CPU_ROWS if logits.device.type == "cpu" else _GPU_ROWS
    blocks = [
        _sweep_block(logits[start : start + rows], targets[start : start + rows])
        for start in range(0, len(logits), rows)
    ]
    return Swept(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _sweep_block(logits: Float[Tensor, "row vocab"], targets: Int[Tensor, "row target"]) -> Swept:
    """With m = max l and S = Σ exp(l − m): log p = l − m − log S and H = log S − Σ exp(l − m)(l − m) / S."""
    rank, ties, top1 = _order(logits, logits.gather(1, targets.clamp(min=0)), targets >= 0)
    answer = logits.gather(1, targets[:, :1])
    largest = logits.gather(1, top1)
    shifted = logits.sub_(largest)
    weights = shifted.exp()
    total = weights.sum(1)
    entropy = total.log() - weights.mul_(shifted).sum(1) / total
    log_prob = (answer - largest)[:, 0] - total.log()
    return Swept(rank, ties, log_prob, entropy, top1[:, 0].to(torch.int32))


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
