"""Patching every depth at the last position, beside TransformerLens' hooks doing the same.

    python tests/benchmarks/patch_speed.py --source smollm2-135m --target smollm2-135m --n 64

TransformerLens runs the whole model once for each depth (``run_with_hooks``) on batches of equal length; memprobe runs
the blocks above the patch alone. Both read the log-probability of every answer token, and the two must agree within
1e-3 nats. Prints the seconds of each, their ratio and the largest difference; without --source and --target of their
own it patches the model's own states, which costs the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import polars as pl
import torch

from memprobe.models import load, residual_hooks, to_bridge
from memprobe.patching import patch_batches, plan_patches
from memprobe.sources import load_factoids


def with_hooks(source, bridge, items, n_layers: int) -> dict[tuple[str, int, int], float]:
    """(factoid, token, depth) -> log_prob, one forward pass of the whole model for each depth."""
    by_length = defaultdict(list)
    for item in items:
        by_length[len(item.prompt), len(item.inputs)].append(item)
    found = {}
    for (prompt, length), batch in by_length.items():
        ids = torch.tensor([item.inputs for item in batch])
        columns = list(range(prompt - 1, length))
        targets = torch.tensor([item.targets for item in batch])
        streams: dict[int, torch.Tensor] = {}
        with torch.inference_mode(), residual_hooks(source.blocks, streams.__setitem__):
            source.model(input_ids=ids, use_cache=False)
        for depth in range(n_layers + 1):

            def put(value, hook, states=streams[depth][:, columns], columns=columns):
                value = value.clone()
                value[:, columns] = states
                return value

            name = "blocks.0.hook_in" if depth == 0 else f"blocks.{depth - 1}.hook_out"
            with torch.inference_mode():
                logits = bridge.run_with_hooks(ids, fwd_hooks=[(name, put)], return_type="logits")
            lines = logits[:, columns].float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
            for row, item in enumerate(batch):
                for j, value in enumerate(lines[row].tolist()):
                    found[item.factoid.id, item.target_indices[j], depth] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="smollm2-135m")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--factoids", default="known")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--template", default="plain")
    options = parser.parse_args()
    source, target = (load(spec, device="cpu", dtype="float32") for spec in (options.source, options.target))
    facts = load_factoids(options.factoids)[: options.n]
    plan = plan_patches(source, target, facts, options.template, positions=["last"], controls=[])
    start = time.perf_counter()
    table = pl.concat(list(patch_batches(source, target, plan)))
    ours = time.perf_counter() - start
    bridge = to_bridge(load(options.target, device="cpu", dtype="float32"))
    bridge.eval()
    start = time.perf_counter()
    found = with_hooks(source, bridge, [question.item for question in plan.questions], target.n_layers)
    theirs = time.perf_counter() - start
    rows = table.select("factoid", "token", "depth", "log_prob").iter_rows()
    off = max(abs(value - found[factoid, token, depth]) for factoid, token, depth, value in rows)
    print(
        f"{len(facts)} factoids, {target.n_layers + 1} depths, last position, {torch.get_num_threads()} threads"
    )
    print(
        f"memprobe {ours:.1f} s, TransformerLens {theirs:.1f} s: {theirs / ours:.2f} times as fast, off by {off:.1e}"
    )


if __name__ == "__main__":
    main()
