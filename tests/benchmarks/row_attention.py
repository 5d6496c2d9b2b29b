"""Attention to packed rows: under a mask over all pairs of tokens, and row by row.

    python -m tests.benchmarks.row_attention [--heads 9 --groups 3 --width 64] [--dtype float32] [--threads 1]

A block's attention, forward and backward, on rows that share so many tokens at their beginning: processor time of both
ways and how far their gradients are apart, then how many tokens in sight cost as much as putting a token beside its
row's others and back, by least squares over all packs (``training.batches._AS_COSTLY_AS_MOVING``), and how often the
rule made of it chooses the faster way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

PACKS = [
    (rows, length, shared)
    for rows, length, shared in (
        *((2, 24, 8), (2, 50, 4), (2, 200, 4), (4, 24, 8), (4, 200, 4), (8, 50, 4), (8, 200, 190)),
        *((16, 24, 0), (16, 24, 8), (16, 50, 4), (16, 100, 4), (16, 100, 90), (32, 24, 18), (32, 40, 36)),
        *((32, 50, 4), (64, 20, 15)),
    )
]


def main() -> None:
    """See the module."""
    import numpy as np
    import torch

    from tests.benchmarks.timing import table
    from training.batches import _AS_COSTLY_AS_MOVING, packed
    from training.mixing import IGNORED, Example
    from training.row_attention import _attention

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--groups", type=int, default=3, help="heads of keys and values")
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    module = SimpleNamespace(num_key_value_groups=asked.heads // asked.groups, is_causal=True)
    found: list[list[Any]] = []
    for rows, length, shared in PACKS:
        examples = [
            Example(
                (*range(shared), *range(1000 * n, 1000 * n + length - shared)),
                (*[IGNORED] * shared, *[1] * (length - shared)),
                str(n),
            )
            for n in range(1, rows + 1)
        ]
        masks = [packed(examples, by_rows=by_rows)["attention_mask"] for by_rows in (False, True)]
        tokens = masks[0].shape[-1]
        dtype = getattr(torch, asked.dtype)
        states = [
            torch.randn(1, tokens, heads, asked.width, dtype=dtype).transpose(1, 2).requires_grad_()
            for heads in (asked.heads, asked.groups, asked.groups)
        ]
        weight = torch.randn(1, tokens, asked.heads, asked.width, dtype=dtype)

        def way(mask: torch.Tensor, states: Any = states, weight: Any = weight) -> tuple[torch.Tensor, ...]:
            result, _ = _attention(module, *states, mask, scaling=asked.width**-0.5)
            return torch.autograd.grad((result * weight).sum(), states)

        times, gradients = [], []
        for mask in masks:
            gradients.append(way(mask))
            times.append(min(_seconds(lambda mask=mask: way(mask)) for _ in range(asked.repeats)))
        apart = max(float((one - other).abs().max()) for one, other in zip(*gradients, strict=True))
        found.append([rows, length, shared, tokens, *(1e3 * taken for taken in times), apart])
    numbers = np.array(found)
    rows, length, _, tokens, masked, by_rows, _ = numbers.T
    places = rows * length
    (move, pair), *_ = np.linalg.lstsq(
        np.stack([places / by_rows, places * length / by_rows], 1), np.ones(len(found)), rcond=None
    )
    chosen = places * (length + _AS_COSTLY_AS_MOVING) < tokens**2
    right = chosen == (by_rows < masked)
    lost = np.where(chosen, by_rows, masked).sum() / np.minimum(by_rows, masked).sum()
    print(
        table(
            ("rows", "tokens of each", "shared", "tokens packed", "mask, ms", "rows, ms", "apart"),
            found,
        )
    )
    print(f"\nputting a token beside its row's and back costs as much as {move / pair:.0f} tokens in sight")
    print(
        f"the rule with {_AS_COSTLY_AS_MOVING} is right {right.sum()} times of {len(right)}; "
        f"its time is {lost:.2f} x the best"
    )


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
