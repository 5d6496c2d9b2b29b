"""Times capture against its floor, TransformerLens' logit_lens and stock Hugging Face, in one run.

    python -m tests.benchmarks.capture_speed --n 256 --repeats 5
    python -m tests.benchmarks.capture_speed --factoids popqa kvr triviaqa --n 512 --data-dir DIR --token first
    python -m tests.benchmarks.capture_speed --device cuda --dtype bfloat16 --ckpt random:1b

The floor is the bare forward pass of the same batches plus one matrix product of the size of all readouts: no
implementation that computes every rank can be faster. ``eager`` is memprobe with its logits read by torch. Repeats are
interleaved. Before a time counts, ranks are held against memprobe's: in fp32 they may differ by the tokens whose logits
lie within rounding (1e-4, or 1e-5 of the largest logit) of the answer's, and by no others; in bf16, where the others
read in bf16 too and memprobe in fp32, the share that differs is printed. ``random:1b`` is a Llama of 1.2 billion random
parameters with a vocabulary of 128,256, ``random:tiny`` a small one.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from memprobe.capturing import capture_batches
from memprobe.factoids import Factoid, make_factoid
from memprobe.models import LensModel, choose_device, choose_dtype, load, load_tokenizer, to_bridge, wrap
from memprobe.modes import evaluating
from memprobe.planning import CapturePlan, plan_capture
from memprobe.sources import load_factoids
from memprobe.sweeps import VARIABLE, sweep_name
from memprobe.templates import Template
from tests.benchmarks.timing import about, in_turns, machine, ratio, table, write

# ids, last positions, answers, factoid ids
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]
Ranks = dict[tuple[str, int], int]
METHODS = ("memprobe", "eager", "floor", "TransformerLens", "stock")
_ROWS = 512


def floor(model: LensModel, batches: list[Batch]) -> None:
    """The least that any implementation must do."""
    decoder, head = model.model.base_model, model.lens.readout.unembedding.weight
    with torch.inference_mode():
        for ids, last, _, _ in batches:
            decoder(input_ids=ids, use_cache=False)
            rows = len(last) * (model.n_layers + 1)
            for start in range(0, rows, _ROWS):
                residuals = torch.ones(min(_ROWS, rows - start), head.shape[1], device=head.device)
                residuals @ head.T


def product(model: LensModel, plan: CapturePlan) -> Ranks:
    """memprobe's capture: records and five shuffled controls."""
    found = {}
    for tables in capture_batches(model, plan, predictions=False):
        first = tables.records.filter(token=0)
        for factoid, depth, rank in first.select("factoid", "depth", "rank").iter_rows():
            found[factoid, depth] = rank
    return found


def eager(model: LensModel, plan: CapturePlan) -> Ranks:
    """The same with logits read by torch."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "eager"
    try:
        return product(model, plan)
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


def transformer_lens(bridge: Any, batches: list[Batch]) -> Ranks:
    """TransformerLens' logit_lens, last position, per-row targets, on batches of equal length."""
    from transformer_lens.tools.analysis import logit_lens

    found = {}
    with torch.inference_mode():
        for ids, _, answers, names in batches:
            ranks = logit_lens(bridge, ids, targets=answers).rank_trajectory()
            for depth, row in enumerate(ranks.tolist()):
                found.update({(name, depth): int(rank) for name, rank in zip(names, row, strict=True)})
    return found


def stock(model: LensModel, batches: list[Batch]) -> Ranks:
    """output_hidden_states=True, then the norm and head on every position."""
    found = {}
    head = model.model.get_output_embeddings()
    with torch.inference_mode():
        for ids, last, answers, names in batches:
            output = model.model(input_ids=ids, output_hidden_states=True, use_cache=False, logits_to_keep=1)
            rows = torch.arange(len(ids), device=ids.device)
            for depth, hidden in enumerate(output.hidden_states):
                # Hugging Face's last entry has been through the final norm already.
                normed = hidden if depth == model.n_layers else model.lens.transform_hidden(hidden)
                logits = head(normed.to(head.weight.dtype))[rows, last]
                ranks = (logits > logits.gather(1, answers[:, None])).sum(1).tolist()
                found.update({(name, depth): rank for name, rank in zip(names, ranks, strict=True)})
    return found


def allowed(model: LensModel, batches: list[Batch]) -> Ranks:
    """How many tokens lie within rounding of each answer's logit: so far may fp32 ranks differ."""
    found = {}
    with torch.inference_mode():
        for ids, last, answers, names in batches:
            states = model.model(input_ids=ids, output_hidden_states=True, use_cache=False, logits_to_keep=1)
            rows = torch.arange(len(ids), device=ids.device)
            for depth, hidden in enumerate(states.hidden_states):
                hidden = hidden[rows, last]
                normed = hidden.float() if depth == model.n_layers else model.lens.transform_hidden(hidden)
                logits = model.lens.unembed(normed)
                near = max(1e-4, 1e-5 * float(logits.abs().max()))
                close = ((logits - logits.gather(1, answers[:, None])).abs() <= near).sum(1).tolist()
                found.update({(name, depth): count for name, count in zip(names, close, strict=True)})
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


def sourced(sources: list[str], n: int, data_dir: str | None) -> list[Factoid]:
    """As many of each source."""
    each = -(-n // len(sources))
    found = [fact for source in sources for fact in load_factoids(source, n=each, data_dir=data_dir)]
    return found[:n]


def first_token_only(plan: CapturePlan) -> CapturePlan:
    """The plan without what follows the first answer token, as the other tools read it."""
    import dataclasses

    items = [dataclasses.replace(item, answer=item.answer[:1], end=None, lead=()) for item in plan.items]
    return dataclasses.replace(plan, items=items)


def own_batches(model: LensModel, plan: CapturePlan) -> list[Batch]:
    """The product's own batches."""
    batches = [
        tables.outcomes["factoid"].to_list() for tables in capture_batches(model, plan, predictions=False)
    ]
    return [as_batch(model, plan, names) for names in batches]


def equal_length_batches(model: LensModel, plan: CapturePlan, most: int = 256) -> list[Batch]:
    """Batches without padding, for a tool that reads the last position."""
    groups: dict[int, list[str]] = {}
    for item in plan.items:
        groups.setdefault(len(item.prompt), []).append(item.factoid.id)
    return [
        as_batch(model, plan, names[start : start + most])
        for _, names in sorted(groups.items())
        for start in range(0, len(names), most)
    ]


def as_batch(model: LensModel, plan: CapturePlan, names: list[str]) -> Batch:
    """Prompts of factoids as right-padded tensors."""
    items = {item.factoid.id: item for item in plan.items}
    chosen = [items[name] for name in names]
    ids = torch.full((len(chosen), max(len(item.prompt) for item in chosen)), model.pad_id())
    for row, item in enumerate(chosen):
        ids[row, : len(item.prompt)] = torch.tensor(item.prompt)
    last = torch.tensor([len(item.prompt) - 1 for item in chosen])
    answers = torch.tensor([item.targets[0] for item in chosen])
    return ids.to(model.device), last.to(model.device), answers.to(model.device), names


def model_of(spec: str, device: torch.device, dtype: str) -> LensModel:
    """A checkpoint, or a Llama of random weights made on the device."""
    if not spec.startswith("random:"):
        return load(spec, device=str(device), dtype=dtype)
    from transformers import LlamaConfig, LlamaForCausalLM

    from memprobe.checkpoints import resolve

    sizes = {
        "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128, "vocab_size": 50_000},
        "1b": {
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "intermediate_size": 8192,
            "vocab_size": 128_256,
        },
    }
    config = LlamaConfig(
        **sizes[spec.removeprefix("random:")], num_attention_heads=32, num_key_value_heads=8,
        tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(choose_dtype(dtype, device))
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    tokenizer = load_tokenizer(resolve("smollm2-135m"))
    return wrap(model.eval(), tokenizer, label=spec, weights_fingerprint="0" * 64)


def as_text(ranks: Ranks) -> dict[str, int]:
    """With keys for JSON."""
    return {f"{name} {depth}": rank for (name, depth), rank in ranks.items()}


def differing(ours: Ranks, theirs: Ranks, within: Ranks | None) -> dict[str, Any]:
    """How many ranks differ, by how much at the most, and how many by more than rounding explains."""
    keys = sorted(ours.keys() & theirs.keys())
    gaps = np.array([abs(ours[key] - theirs[key]) for key in keys])
    found = {
        "compared": len(keys),
        "missing": len(ours.keys() ^ theirs.keys()),
        "differ": int((gaps > 0).sum()),
        "largest": int(gaps.max(initial=0)),
    }
    if within is not None:
        slack = np.array([within[key] for key in keys])
        found["unexplained"] = int((gaps > slack).sum())
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All methods in turns."""
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    model = model_of(options.ckpt, device, options.dtype)
    dtype = str(model.model.dtype).removeprefix("torch.")
    facts = (
        sourced(options.factoids, options.n, options.data_dir)
        if options.factoids
        else mixed_factoids(model, options.n)
    )
    plan = first_token_only(plan_capture(model, facts, Template("plain")))
    own, equal = own_batches(model, plan), equal_length_batches(model, plan)
    bridge: list[Any] = []  # made at its first, untimed or first-repeat use

    def through_bridge() -> Ranks:
        if not bridge:
            bridge.append(to_bridge(model))
            bridge[0].eval()
        return transformer_lens(bridge[0], equal)

    every: dict[str, Callable[[], Ranks | None]] = {
        "memprobe": lambda: product(model, plan),
        "eager": lambda: eager(model, plan),
        "floor": lambda: floor(model, own),
        "TransformerLens": through_bridge,
        "stock": lambda: stock(model, own),
    }
    asked = {name: every[name] for name in every if name in options.methods}
    with evaluating(model.model):
        timed = in_turns(asked, options.repeats, options.warm_ups, device, options.limit)
        within = allowed(model, own) if dtype == "float32" and len(asked) > 1 else None
    lengths = [len(item.prompt) for item in plan.items]
    found: dict[str, Any] = {
        "machine": machine(device),
        "checkpoint": options.ckpt,
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "vocabulary": model.vocab_size,
        "dtype": dtype,
        "reading": sweep_name(device),
        "factoids": len(facts),
        "sources": options.factoids or "mixed",
        "tokens": {"least": min(lengths), "most": max(lengths), "mean": float(np.mean(lengths))},
        "batches": len(own),
        "batches_of_equal_length": len(equal),
        "depths": model.n_layers + 1,
        "methods": {name: one.to_dict() for name, one in timed.items()},
    }
    if options.keep_ranks:
        found["kept"] = {
            "ranks": as_text(timed["memprobe"].result),
            "within": as_text(within) if within else None,
            "batches": [
                {"ids": ids.tolist(), "answers": answers.tolist(), "names": names}
                for ids, _, answers, names in equal
            ],
        }
    for name, one in timed.items():
        if one.result is not None and "memprobe" in timed and name != "memprobe":
            found["methods"][name]["ranks"] = differing(timed["memprobe"].result, one.result, within)
    return found


def report(found: dict[str, Any]) -> str:
    """As Markdown."""
    methods = found["methods"]
    ours, least = methods.get("memprobe"), methods.get("floor")
    busy = "processor_seconds"
    rows = []
    for name, one in methods.items():
        ranks = one.get("ranks")
        agrees: str | None = None
        if ranks is not None:
            agrees = f"{ranks['differ']} of {ranks['compared']} differ, by {ranks['largest']} at most"
            if "unexplained" in ranks:
                agrees += f", {ranks['unexplained']} by more than rounding"
                if ranks["unexplained"] or ranks["missing"]:
                    agrees += ": NOT THE SAME RANKS, its time does not count"
        rows.append(
            [
                name,
                one["median"],
                one["fastest"],
                statistics.median(one[busy]),
                len(one["seconds"]),
                ratio(one["seconds"], ours["seconds"]) if ours else None,
                ratio(one["seconds"], least["seconds"]) if least else None,
                *(ratio(one[busy], base[busy]) if base else None for base in (ours, least)),
                one["peak_mib"],
                agrees,
            ]
        )
    columns = (
        "method", "median s", "fastest s", "processor s", "repeats", "x memprobe", "x floor", "x memprobe, processor",
        "x floor, processor", "peak MiB", "ranks",
    )  # fmt: skip
    tokens = found["tokens"]
    return (
        f"## Capture: {found['checkpoint']}, {found['dtype']}\n\n{about(found['machine'])}.\n\n"
        f"{found['parameters'] / 1e6:.0f} M parameters, vocabulary {found['vocabulary']:,}; {found['factoids']} "
        f"factoids of {tokens['least']} to {tokens['most']} tokens (mean {tokens['mean']:.1f}), "
        f"{found['depths']} depths, {found['batches']} batches ({found['batches_of_equal_length']} of equal length); "
        f"logits read by {found['reading']}.\n\n" + table(columns, rows)
    )


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, from the command line unless they are given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--n", type=int, default=256, help="factoids (default 256)")
    parser.add_argument("--factoids", nargs="*", help="sources; by default known facts behind others")
    parser.add_argument("--data-dir")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (default 5)")
    parser.add_argument("--warm-ups", type=int, default=1, help="rounds before that (default 1)")
    parser.add_argument(
        "--limit",
        type=float,
        default=float("inf"),
        help="seconds after which a method gets no more repeats than 3",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--keep-ranks", action="store_true", help="put ranks and batches into the JSON")
    parser.add_argument("--out", help="folder for NAME.md and NAME.json")
    parser.add_argument("--name", default="capture", help="of those files")
    return parser.parse_args(arguments)


def main() -> None:
    """Runs the comparison and prints it."""
    options = options_of()
    found = measure(options)
    write(found, report(found), options.out, options.name)


if __name__ == "__main__":
    main()
