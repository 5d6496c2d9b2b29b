"""Times capture against its floor, TransformerLens' logit_lens and stock Hugging Face, in one run.

    python tests/benchmarks/capture_speed.py --n 256 --repeats 5

The floor is the bare forward pass of the same batches plus one matrix product of the size of all readouts: no
implementation that computes every rank can be faster. Repeats are interleaved, ranks are checked to be equal,
and the median of the ratios within a repeat (a busy spell hits both) and the ratio of the fastest are printed as
Markdown. Times never decide a test.
"""

from __future__ import annotations

import argparse
import inspect
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from memprobe.capturing import capture_batches
from memprobe.factoids import Factoid, make_factoid
from memprobe.models import LensModel, load, to_bridge
from memprobe.planning import Plan, plan_capture
from memprobe.sources import load_factoids
from memprobe.templates import Template

Batch = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, list[str]
]  # ids, last positions, answers, factoid ids


def floor(model: LensModel, batches: list[Batch]) -> None:
    """The least that any implementation must do."""
    decoder, head = model.model.base_model, model.lens.readout.unembedding.weight
    with torch.inference_mode():
        for ids, last, _, _ in batches:
            decoder(input_ids=ids, use_cache=False)
            residuals = torch.ones(len(last) * (model.n_layers + 1), model.d_model)
            residuals @ head.T


def product(model: LensModel, plan: Plan) -> dict[tuple[str, int], int]:
    """memprobe's capture: records and five shuffled controls."""
    found = {}
    for tables in capture_batches(model, plan, predictions=False):
        for factoid, depth, rank in tables.records.select("factoid", "depth", "rank").iter_rows():
            found[factoid, depth] = rank
    return found


def transformer_lens(bridge: object, batches: list[Batch]) -> dict[tuple[str, int], int]:
    """TransformerLens' logit_lens, last position, per-row targets, on batches of equal length."""
    from transformer_lens.tools.analysis import logit_lens

    found = {}
    with torch.inference_mode():
        for ids, _, answers, names in batches:
            ranks = logit_lens(bridge, ids, targets=answers).rank_trajectory()
            for depth, row in enumerate(ranks.tolist()):
                found.update({(name, depth): rank for name, rank in zip(names, row, strict=True)})
    return found


def stock(model: LensModel, batches: list[Batch]) -> dict[tuple[str, int], int]:
    """output_hidden_states=True, then the norm and head on every position."""
    found = {}
    with torch.inference_mode():
        for ids, last, answers, names in batches:
            output = model.model(input_ids=ids, output_hidden_states=True, use_cache=False)
            rows = torch.arange(len(ids))
            for depth, hidden in enumerate(output.hidden_states):
                # Hugging Face's last entry has been through the final norm already.
                normed = hidden if depth == model.n_layers else model.lens.transform_hidden(hidden)
                logits = model.model.lm_head(normed)[rows, last]
                ranks = (logits > logits.gather(1, answers[:, None])).sum(1)
                found.update({(name, depth): int(rank) for name, rank in zip(names, ranks, strict=True)})
    return found


def mixed_factoids(model: LensModel, n: int) -> list[Factoid]:
    """Known facts whose answer is one token, behind zero to five others: prompts of mixed length."""
    template = Template("plain")
    rng = random.Random(0)
    facts = load_factoids("known")
    plan = plan_capture(model, facts, template)
    short = [item.factoid for item in plan.items if len(item.answer) == 1]
    mixed = []
    while len(mixed) < n:
        fact = short[len(mixed) % len(short)]
        before = rng.sample(short, rng.randint(0, 5))
        prompt = " ".join([*(f"{other.prompt} {other.answer}." for other in before), fact.prompt])
        mixed.append(
            make_factoid(prompt, fact.answer, "benchmark", relation=fact.relation, id=f"f{len(mixed)}")
        )
    return mixed


def own_batches(model: LensModel, plan: Plan) -> list[Batch]:
    """The product's own batches."""
    batches = [
        tables.outcomes["factoid"].to_list() for tables in capture_batches(model, plan, predictions=False)
    ]
    return [as_batch(model, plan, names) for names in batches]


def equal_length_batches(model: LensModel, plan: Plan) -> list[Batch]:
    """Batches without padding, for a tool that reads the last position."""
    groups: dict[int, list[str]] = {}
    for item in plan.items:
        groups.setdefault(len(item.inputs), []).append(item.factoid.id)
    return [as_batch(model, plan, names) for _, names in sorted(groups.items())]


def as_batch(model: LensModel, plan: Plan, names: list[str]) -> Batch:
    """Factoid ids as right-padded tensors."""
    items = {item.factoid.id: item for item in plan.items}
    chosen = [items[name] for name in names]
    ids = torch.full((len(chosen), max(len(item.inputs) for item in chosen)), model.pad_id())
    for row, item in enumerate(chosen):
        ids[row, : len(item.inputs)] = torch.tensor(item.inputs)
    last = torch.tensor([len(item.inputs) - 1 for item in chosen])
    return ids, last, torch.tensor([item.answer[0] for item in chosen]), names


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="smollm2-135m")
    parser.add_argument("--n", type=int, default=256, help="factoids (default 256)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (default 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=["TransformerLens", "stock"], help="leave out"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = load(arguments.ckpt, device="cpu", dtype="float32")
    plan = plan_capture(model, mixed_factoids(model, arguments.n), Template("plain"))
    own, equal = own_batches(model, plan), equal_length_batches(model, plan)
    methods: dict[str, Callable[[], dict[tuple[str, int], int] | None]] = {
        "memprobe": lambda: product(model, plan),
        "floor": lambda: floor(model, own),
    }
    if "TransformerLens" not in arguments.skip:
        bridge = to_bridge(model)
        methods["TransformerLens"] = lambda: transformer_lens(bridge, equal)
    if "stock" not in arguments.skip:
        methods["stock"] = lambda: stock(model, own)

    times: dict[str, list[float]] = {name: [] for name in methods}
    results = {}
    for repeat in range(arguments.repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            results[name] = method()
            times[name].append(time.perf_counter() - start)
            print(f"repeat {repeat + 1}: {name} {times[name][-1]:.2f} s", flush=True)

    lengths = [len(item.inputs) for item in plan.items]
    print(
        f"\n{arguments.n} factoids, {min(lengths)} to {max(lengths)} tokens (mean {np.mean(lengths):.1f}), "
    )
    print(
        f"{len(own)} own batches, {len(equal)} batches of equal length, {arguments.threads} threads, fp32\n"
    )
    print(
        "| method | median s | fastest s | of memprobe: median over repeats | fastest | ranks that differ |"
    )
    print("|---|---|---|---|---|---|")
    ours = times["memprobe"]
    for name, seconds in times.items():
        ratios = paired(seconds, ours), min(seconds) / min(ours)
        differ = "–" if results[name] is None else differing(results["memprobe"], results[name])
        print(
            f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} "
            f"| {ratios[0]:.2f} | {ratios[1]:.2f} | {differ} |"
        )
    print(
        f"\nmemprobe / floor: {statistics.median(ours) / statistics.median(times['floor']):.2f} (medians), ",
        end="",
    )
    print(
        f"{min(ours) / min(times['floor']):.2f} (fastest). The floor:\n\n```python\n{inspect.getsource(floor)}```"
    )


def paired(ours: list[float], theirs: list[float]) -> float:
    """The median over repeats of the ratio within each."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def differing(ours: dict[tuple[str, int], int], theirs: dict[tuple[str, int], int]) -> str:
    """How many ranks differ, and by how much at the most."""
    table = pl.DataFrame([(ours[key], theirs[key]) for key in ours], schema=["ours", "theirs"], orient="row")
    gap = (table["ours"] - table["theirs"]).abs()
    return f"{(gap > 0).sum()} of {len(gap)}, by {gap.max()} at the most"


if __name__ == "__main__":
    main()
