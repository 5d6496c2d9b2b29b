"""One pass over each row of logits on a GPU.

A row is cut into parts, one program each. A program walks over its part a tile at a time; every lane keeps for its own
column of tiles the maximum m so far, S = Σ exp(l − m), W = Σ exp(l − m)(l − m), where the maximum stood, and how many
logits reached each threshold, so that nothing is reduced within the loop and a logit costs one exponential:
a larger logit x makes them e^(m − x) S + 1 and e^(m − x) (W + (m − x) S), another adds e^(x − m) and e^(x − m)(x − m).
The lanes, then a row's parts, are put together at their common maximum. All of it is fp32.
"""

# pyrefly: ignore-errors (triton's types are its own compiler's)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from memprobe.sweeps import Swept

# Measured on an H100 (docs/findings/speed.md): few warps and whole rows were fastest at 49,152 and near it at 262,144.
BLOCK, WARPS = 1024, 4
_PROGRAMS = 512
_MIN_TILES = 6  # in a part: what a program does once must not weigh
_MAX_PARTS = 64


def sweep(
    logits: Float[Tensor, "row vocab"],
    targets: Int[Tensor, "row target"],
    *,
    block: int = BLOCK,
    warps: int = WARPS,
    parts: int | None = None,
) -> Swept:
    """See :class:`memprobe.sweeps.Swept`. Leaves the logits as they are.

    Args:
        block: logits in a tile, a power of 2.
        warps: in a program.
        parts: programs a row; by default as many as fill a large GPU.
    """
    rows, vocab = logits.shape
    wanted = targets.shape[1]
    tiles = triton.cdiv(vocab, block)
    if parts is None:
        parts = min(_MAX_PARTS, triton.cdiv(_PROGRAMS, max(1, rows)), max(1, tiles // _MIN_TILES))
    tiles_each = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, tiles_each)  # none is empty
    width = triton.next_power_of_2(wanted)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    sums, places = empty(rows, parts, 3), empty(rows, parts, dtype=torch.int32)
    counts = empty(rows, parts, width + 1, dtype=torch.int32)
    swept = Swept(
        empty(rows, wanted, dtype=torch.int32),
        empty(rows, dtype=torch.int32),
        empty(rows),
        empty(rows),
        empty(rows, dtype=torch.int32),
    )
    if not rows:
        return swept
    targets = targets.contiguous()
    _sweep_part[rows, parts](
        logits, logits.stride(0), vocab, targets, wanted, sums, places, counts,
        tiles_each, WIDTH=width, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    _join_parts[rows,](
        logits, logits.stride(0), targets, wanted, sums, places, counts, parts, *swept,
        WIDTH=width, PARTS=triton.next_power_of_2(parts), num_warps=1,
    )  # fmt: skip
    return swept


@triton.jit
def _sweep_part(
    logits, stride, vocab, targets, wanted, sums, places, counts, tiles_each,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line = logits + row * stride
    # What stands for a threshold that is not wanted is not counted in the end.
    k = tl.arange(0, WIDTH)[:, None]
    ids = tl.load(targets + row * wanted + k, mask=k < wanted, other=-1)
    thresholds = tl.load(line + tl.maximum(ids, 0), mask=ids >= 0, other=float("inf"))
    answer = tl.load(line + tl.load(targets + row * wanted))

    # Everything has the tile's shape [1, BLOCK], so that the lanes of all of it lie in the same threads.
    lane = tl.arange(0, BLOCK)[None, :]
    first = part * tiles_each * BLOCK
    filled = first + lane < vocab
    m = tl.load(line + first + lane, mask=filled, other=float("-inf"))
    total = tl.where(filled, 1.0, 0.0)
    weighted = m - m  # 0, and not a number where the logit is not finite
    weighted = tl.where(filled, weighted, 0.0)
    best = lane + first
    reached = (m >= thresholds).to(tl.int32)
    tied = ((m == answer) & filled).to(tl.int32)
    reached = tl.where(filled, reached, 0)

    last = tl.minimum(first + tiles_each * BLOCK, vocab)
    full = first + BLOCK + ((tl.maximum(last - first - BLOCK, 0)) // BLOCK) * BLOCK
    upcoming = tl.load(line + first + BLOCK + lane, mask=first + BLOCK + lane < last, other=float("-inf"))
    for start in range(first + BLOCK, full, BLOCK):
        x = upcoming
        upcoming = tl.load(line + start + BLOCK + lane, mask=start + BLOCK + lane < last, other=float("-inf"))
        reached += (x >= thresholds).to(tl.int32)
        tied += (x == answer).to(tl.int32)
        d = x - m
        larger = d > 0
        weight = tl.exp(-tl.abs(d))
        weighted = tl.where(larger, weight * (weighted - d * total), weighted + weight * d)
        total = tl.where(larger, weight * total + 1.0, total + weight)
        best = tl.where(larger, start + lane, best)
        m = tl.where(larger, x, m)
    if full < last:  # the end of the row fills no tile
        x = upcoming
        inside = full + lane < last
        reached += tl.where(inside, (x >= thresholds).to(tl.int32), 0)
        tied += tl.where(inside, (x == answer).to(tl.int32), 0)
        d = tl.where(inside, x - m, 0.0)
        larger = d > 0
        weight = tl.where(inside, tl.exp(-tl.abs(d)), 0.0)
        weighted = tl.where(larger, weight * (weighted - d * total), weighted + weight * d)
        total = tl.where(larger, weight * total + 1.0, total + weight)
        best = tl.where(larger, full + lane, best)
        m = tl.where(larger, x, m)

    largest = tl.max(m, axis=1)
    d = tl.where(total > 0.0, m - largest[:, None], 0.0)
    weight = tl.exp(d)
    at = row * tl.num_programs(1) + part
    one = tl.arange(0, 1)
    tl.store(sums + at * 3 + one, largest)
    tl.store(sums + at * 3 + 1 + one, tl.sum(weight * total, axis=1))
    tl.store(sums + at * 3 + 2 + one, tl.sum(weight * (weighted + d * total), axis=1))
    tl.store(places + at + one, tl.min(tl.where(m == largest[:, None], best, vocab - 1), axis=1))
    tl.store(counts + at * (WIDTH + 1) + tl.arange(0, WIDTH), tl.sum(reached, axis=1))
    tl.store(counts + at * (WIDTH + 1) + WIDTH + one, tl.sum(tied, axis=1))


@triton.jit
def _join_parts(
    logits, stride, targets, wanted, sums, places, counts, parts, rank, ties, log_prob, entropy, top1,
    WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    inside = part < parts
    at = row * parts + part
    m = tl.load(sums + at * 3, mask=inside, other=float("-inf"))
    total = tl.load(sums + at * 3 + 1, mask=inside, other=0.0)
    weighted = tl.load(sums + at * 3 + 2, mask=inside, other=0.0)
    largest = tl.max(m, axis=0)
    d = tl.where(inside, m - largest, 0.0)
    weight = tl.exp(d)
    log_total = tl.log(tl.sum(weight * total, axis=0))
    answer = tl.load(logits + row * stride + tl.load(targets + row * wanted))
    tl.store(log_prob + row, answer - largest - log_total)
    mean = tl.sum(weight * (weighted + d * total), axis=0) / tl.sum(weight * total, axis=0)
    tl.store(entropy + row, log_total - mean)
    place = tl.load(places + at, mask=inside, other=0)
    far = 2147483647
    nearest = tl.min(tl.where(inside & (m == largest), place, far), axis=0)
    tl.store(top1 + row, tl.where(nearest == far, 0, nearest))

    k = tl.arange(0, WIDTH)
    reached = tl.load(counts + at[:, None] * (WIDTH + 1) + k[None, :], mask=inside[:, None], other=0)
    ids = tl.load(targets + row * wanted + k, mask=k < wanted, other=-1)
    tl.store(rank + row * wanted + k, tl.where(ids >= 0, tl.sum(reached, axis=0) - 1, -1), mask=k < wanted)
    tied = tl.load(counts + at * (WIDTH + 1) + WIDTH, mask=inside, other=0)
    tl.store(ties + row, tl.sum(tied, axis=0) - 1)
