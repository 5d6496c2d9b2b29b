"""One pass over each row of logits on a CPU, compiled by numba for the machine at hand.

A block of a row stays in the first-level cache while the thresholds are counted in it, its maximum is found and its
exponentials are summed: in fp32 lanes within the block, in fp64 between blocks. With m the maximum so far,
S = Σ exp(l − m) and W = Σ exp(l − m)(l − m), a new maximum m' = m − d (d < 0) makes them e^d S and e^d (W + d S).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from memprobe.sweeps import Swept

_BLOCK = 1024  # logits; 4 KiB
_MIN_ROWS = 8  # for a thread

_F, _I = np.float32, np.int32
_LEAST_INT, _MANTISSA = _I(-(2**31)), _I(23)
_ALL_BUT_SIGN = _I(2**31 - 1)
_LOG2_E, _HALF, _ONE, _BIAS = _F(1.4426950408889634), _F(0.5), _F(1), _I(127)
# exp(-87) is the least normal fp32; what is smaller adds nothing to a sum that holds exp(0).
_LEAST = _F(-87)
# Cephes' expf: exp(x) = 2^k exp(r), r = x − k log 2 with log 2 in two parts, and a polynomial in r.
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_C7, _C6, _C5 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_C4, _C3, _C2 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)


def sweep(logits: Float[Tensor, "row vocab"], targets: Int[Tensor, "row target"]) -> Swept:
    """See :class:`memprobe.sweeps.Swept`. Leaves the logits as they are."""
    lines, ids = logits.numpy(), targets.numpy()
    rows = len(lines)
    rank = np.empty(ids.shape, np.int32)
    ties, top1 = np.empty(rows, np.int32), np.empty(rows, np.int32)
    log_prob, entropy = np.empty(rows, np.float32), np.empty(rows, np.float32)
    columns = (lines, ids, rank, ties, log_prob, entropy, top1)
    threads = max(1, min(torch.get_num_threads(), rows // _MIN_ROWS))
    step = -(-rows // threads)
    parts = [[column[start : start + step] for column in columns] for start in range(0, rows, step)]
    if threads == 1:
        for part in parts:
            _sweep_lines(*part)
    else:
        list(_pool(threads).map(lambda part: _sweep_lines(*part), parts))
    return Swept(*(torch.from_numpy(column) for column in (rank, ties, log_prob, entropy, top1)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="reading")


@njit(inline="always", fastmath={"contract"})
def _exp(x):
    x = x if x > _LEAST else _LEAST
    power = _I(x * _LOG2_E - _HALF)  # x ≤ 0: cut towards 0 after − ½ is rounding
    r = (x - _F(power) * _LN2_HIGH) - _F(power) * _LN2_LOW
    y = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    return (y * (r * r) + r + _ONE) * _I((power + _BIAS) << _MANTISSA).view(_F)


@njit(inline="always")
def _in_order(bits):
    """fp32 bits as integers in the order of the numbers, and back; compilers vectorise the maximum of integers."""
    return bits ^ ((bits >> _I(31)) & _ALL_BUT_SIGN)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """A function as machine code, which later processes find on disk where one of numba's folders can be written."""
    as_code = partial(njit, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
    try:
        return as_code(cache=True)(function)
    except RuntimeError:  # neither the folder of this file nor the user's: compiled by each process anew
        return as_code()(function)


@_compiled
def _sweep_lines(logits, targets, rank, ties, log_prob, entropy, top1):
    rows, vocab = logits.shape
    for i in range(rows):
        row = logits[i]
        bits = row.view(_I)
        answer = row[targets[i, 0]]
        rank[i] = -1
        tied = -1
        largest, place = _LEAST_INT, 0
        m, total, weighted = _F(-np.inf), 0.0, 0.0
        for start in range(0, vocab, _BLOCK):
            line, ordered = row[start : start + _BLOCK], bits[start : start + _BLOCK]
            width = len(line)

            highest = _LEAST_INT
            for j in range(width):
                highest = max(highest, _in_order(ordered[j]))
            if highest > largest:
                largest, place = highest, start
                risen = _I(_in_order(highest)).view(_F)
                if start > 0:
                    d = np.float64(m) - np.float64(risen)
                    weighted = np.exp(d) * (weighted + d * total)
                    total *= np.exp(d)
                m = risen

            for k in range(targets.shape[1]):
                if targets[i, k] >= 0:
                    threshold = row[targets[i, k]]
                    count = _I(0)
                    for j in range(width):
                        count += _I(line[j] >= threshold)
                    rank[i, k] += count
            count = _I(0)
            for j in range(width):
                count += _I(line[j] == answer)
            tied += count

            block_total, block_weighted = _F(0), _F(0)
            for j in range(width):
                shifted = line[j] - m
                weight = _exp(shifted)
                block_total += weight
                block_weighted += weight * shifted
            total += block_total
            weighted += block_weighted
        while place < vocab - 1 and row[place] != m:
            place += 1
        ties[i], top1[i] = tied, place
        log_total = np.log(total)
        log_prob[i] = np.float64(answer) - np.float64(m) - log_total
        entropy[i] = log_total - weighted / total
