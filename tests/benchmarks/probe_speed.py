"""Times what a probe directory costs: a second readout, four lenses in one pass, and the n-th checkpoint.

    python tests/benchmarks/probe_speed.py readouts --n 295 --repeats 3     # SmolLM2-135M on `known`
    python tests/benchmarks/probe_speed.py lenses --n 64 --repeats 3
    python tests/benchmarks/probe_speed.py append --n 300                   # tiny checkpoints, one call each

`readouts` probes with one lens and with two, whole directories with generation, controls, tables and summary.
`lenses` sets one capture with four lenses beside the bare forward pass of the same batches with one and with four
matrix products of the size of all readouts. The other readouts are the model's own with its weights moved a little, so
that none is read for another. `append` adds checkpoint after checkpoint of one tiny model to a directory, as a callback
does. Repeats are interleaved; the median of the ratios within a repeat is printed, of processor seconds. Times never
decide a test.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from memprobe.batching import batches_by_tokens
from memprobe.capturing import _CPU_BATCH_TOKENS, capture_batches
from memprobe.lens_specs import make_lens
from memprobe.lenses import Lens
from memprobe.models import LensModel, load, wrap
from memprobe.planning import CapturePlan, plan_capture
from memprobe.probing import probe
from memprobe.sources import load_factoids
from memprobe.templates import Template


def timed(run: Callable[[], object]) -> float:
    """Processor seconds of all threads, so that what else runs on the machine does not count."""
    start = time.process_time()
    run()
    return time.process_time() - start


def moved(model: LensModel, label: str, seed: int) -> LensModel:
    """The same model under a readout of its own."""
    readout = copy.deepcopy(model.lens.readout)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=random))
    return replace(model, lens=Lens("logit", readout), label=label, fingerprint=f"{seed:064x}")


def readouts(n: int, repeats: int) -> None:
    """A probe with one lens and with two."""
    model = load("smollm2-135m")
    other = moved(model, "base", 1)
    facts = load_factoids("known")[:n]
    times: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(repeats):
        for name, lenses in (("one", ["logit"]), ("two", ["logit", "logit@base"])):
            with tempfile.TemporaryDirectory() as folder:
                seconds = timed(
                    lambda lenses=lenses, folder=folder: _probe(model, other, facts, folder, lenses)
                )
            times[name].append(seconds)
            print(f"{name} {seconds:.1f} s", flush=True)
    ratios = [two / one for one, two in zip(*times.values(), strict=True)]
    report("a second readout", f"{len(facts)} facts, whole probe", ratios, times)


def _probe(model: LensModel, other: LensModel, facts: list, folder: str, lenses: list[str]) -> None:
    from memprobe.lens_set import AskedLens, LensSet
    from memprobe.lens_specs import LensSpec

    asked = [AskedLens(LensSpec(), None if name == "logit" else other) for name in lenses]
    probe([model], facts, Path(folder) / "probe", lenses=LensSet(asked))


def floor(model: LensModel, plan: CapturePlan, products: int) -> None:
    """The bare forward pass of the same batches, and the product of all rows so many times."""
    items = sorted(plan.items, key=lambda item: (len(item.inputs), item.factoid.id))
    head = model.lens.readout.unembedding.weight
    with torch.inference_mode():
        for batch in batches_by_tokens(
            range(len(items)), lambda i: len(items[i].inputs), _CPU_BATCH_TOKENS, None, border=None
        ):
            width = max(len(items[i].inputs) for i in batch)
            model.model.base_model(input_ids=torch.ones(len(batch), width, dtype=torch.long), use_cache=False)
            rows = sum(len(plan.sites(items[i])) for i in batch) * (model.n_layers + 1)
            for _ in range(products):
                for start in range(0, rows, 512):
                    torch.ones(min(512, rows - start), model.d_model) @ head.T


def lenses(n: int, repeats: int) -> None:
    """Captures with one and four lenses, beside their floors."""
    model = load("smollm2-135m")
    four = [model.lens, *(make_lens(model, None, moved(model, f"m{i}", i)) for i in range(1, 4))]
    plan = plan_capture(model, load_factoids("known")[:n], Template("plain"))
    runs = {
        "floor 1": lambda: floor(model, plan, 1),
        "one lens": lambda: list(capture_batches(model, plan, predictions=False)),
        "floor 4": lambda: floor(model, plan, 4),
        "four lenses": lambda: list(capture_batches(model, plan, lenses=four, predictions=False)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(timed(run))
            print(f"{name} {times[name][-1]:.1f} s", flush=True)
    for one, other in (("floor 1", "one lens"), ("floor 4", "four lenses"), ("one lens", "four lenses")):
        pair = {name: times[name] for name in (one, other)}
        report(f"{other} / {one}", f"{n} facts", [b / a for a, b in zip(*pair.values(), strict=True)], pair)


def append(n: int) -> None:
    """Adds checkpoint after checkpoint, one call each."""
    from tests.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    model = wrap(tiny_model("llama", len(tokenizer)), tokenizer)
    facts = load_factoids("known")[:32]
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            one = replace(model, label=f"step@{i}")
            times.append(timed(lambda one=one: probe([one], facts, Path(folder) / "probe")))
    for start in range(0, n, max(1, n // 6)):
        part = times[start : start + max(1, n // 6)]
        print(f"checkpoints {start} … {start + len(part) - 1}: median {statistics.median(part):.3f} s")


def report(name: str, what: str, ratios: list[float], times: dict[str, list[float]]) -> None:
    fastest = ", ".join(f"{key} {min(values):.2f} s" for key, values in times.items())
    print(f"| {name} | {what} | {statistics.median(ratios):.2f} | {fastest} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["readouts", "lenses", "append"])
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.what == "append":
        append(options.n)
    else:
        {"readouts": readouts, "lenses": lenses}[options.what](options.n, options.repeats)


if __name__ == "__main__":
    main()
