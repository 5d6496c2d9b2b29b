"""Few-shot prompts: their common beginning read once, against whole prompts.

    python -m tests.benchmarks.shared_beginning [--ckpt smollm2-135m] [--n 24] [--shots 8] [--repeats 2] [--threads 1]

Prints processor seconds of each capture in turns, and how far ranks and log-probabilities differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from unittest import mock

import polars as pl
import torch

from memprobe.capturing import capture
from memprobe.factoids import Factoid, make_factoid
from memprobe.models import LensModel, load
from memprobe.sources import load_factoids


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="smollm2-135m")
    for name, default in {"n": 24, "shots": 8, "repeats": 2, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = load(asked.ckpt, device="cpu", dtype="float32")
    known = load_factoids("known")
    before = " ".join(f"{fact.prompt} {fact.answer}." for fact in known[: asked.shots])
    facts = [
        make_factoid(f"{before} {fact.prompt}", fact.answer, "benchmark", relation=fact.relation, id=str(i))
        for i, fact in enumerate(known[asked.shots : asked.shots + asked.n])
    ]
    found = {}
    for _ in range(asked.repeats):
        for name in ("once", "whole"):
            start = time.process_time()
            found[name] = _captured(model, facts, whole=name == "whole")
            print(f"{name}: {time.process_time() - start:.2f} s of processor", flush=True)
    once, whole = (found[name].sort("factoid", "token", "depth") for name in ("once", "whole"))
    gaps = (once["rank"] - whole["rank"]).abs()
    print(
        f"{(gaps > 0).sum()} of {len(gaps):,} ranks differ, by {gaps.max()} at most; log-probabilities by "
        f"{(once['log_prob'] - whole['log_prob']).abs().max():.2g}"
    )


def _captured(model: LensModel, facts: Sequence[Factoid], whole: bool) -> pl.DataFrame:
    """Records of a capture."""
    if not whole:
        return capture(model, facts, "plain", predictions=False).records
    with mock.patch("memprobe.prefixes.may_share", return_value=False):
        return capture(model, facts, "plain", predictions=False).records


if __name__ == "__main__":
    main()
