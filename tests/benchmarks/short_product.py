"""Would logits in bfloat16, with those near a target computed again in fp32, give exact ranks sooner?

    python -m tests.benchmarks.short_product [--ckpt smollm2-135m] [--n 24] [--threads 1]

Rows are the residual streams of known facts at every depth, after the final norm; targets are the answer and five other
answers, as in a probe. A rank is exact if every token whose bfloat16 logit lies within twice the largest error of the
target's is computed again. Printed are processor seconds of the product in both types and of that second computation,
how many tokens it takes, and by how much log-probability and entropy, which need every logit, would be off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from memprobe.capturing import residuals_at
from memprobe.models import load
from memprobe.modes import evaluating
from memprobe.planning import plan_capture
from memprobe.sources import load_factoids
from memprobe.templates import Template


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """The least processor seconds, and what it gave."""
    taken, result = [], None
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        taken.append(time.process_time() - start)
    return min(taken), result


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="smollm2-135m")
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = load(asked.ckpt, device="cpu", dtype="float32")
    plan = plan_capture(model, load_factoids("known")[: asked.n], Template("plain"))
    sites = [(row, plan.sites(item)[0]) for row, item in enumerate(plan.items)]
    with evaluating(model.model):
        streams = residuals_at(model, plan.items, sites)
        rows = torch.cat([model.lens.transform_hidden(one[None])[0] for one in streams])
        weight = model.lens.readout.unembedding.weight.detach().float()
        short_rows, short_weight = rows.bfloat16(), weight.bfloat16()
        full_s, exact = timed(lambda: rows @ weight.T)
        short_s, short = timed(lambda: (short_rows @ short_weight.T).float())
        error = float((exact - short).abs().max())
        answers = torch.tensor([item.targets[0] for item in plan.items])
        targets = torch.stack([answers.roll(shift) for shift in range(6)], 1).repeat(len(streams), 1)
        near = torch.zeros_like(exact, dtype=torch.bool)
        for column in targets.T:
            near |= (short - short.gather(1, column[:, None])).abs() <= 2 * error

        def again() -> None:
            for row, chosen in zip(rows, near, strict=True):
                weight[chosen] @ row

        again_s, _ = timed(again, 1)
        off = (exact.log_softmax(1) - short.log_softmax(1)).gather(1, targets).abs()
        entropies = [torch.distributions.Categorical(logits=one).entropy() for one in (exact, short)]
    print(f"{len(rows)} rows x {len(weight):,}: fp32 {full_s:.3f} s, bfloat16 {short_s:.3f} s of processor")
    print(
        f"largest error of a logit {error:.3f}; within twice that of a target {near.float().mean():.1%} of tokens"
    )
    print(f"computing those again in fp32: {again_s:.3f} s")
    print(f"log-probabilities off by up to {float(off.max()):.3f} nats, median {float(off.median()):.4f}")
    print(f"entropies off by up to {float((entropies[0] - entropies[1]).abs().max()):.3f} nats")


if __name__ == "__main__":
    main()
