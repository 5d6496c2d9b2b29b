"""What a large study costs, computed from rates that were measured (``h100.json``, ``records.json`` beside this)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
MEASURED = "capture random:1b bfloat16"
"""The run that rates are taken from: a Llama of 1.2 B random weights in bf16, read in fp32, all depths."""


@dataclass(frozen=True)
class Model:
    """A causal LM by what its cost depends on; ``parameters`` without the embeddings, ``weights`` all of them."""

    name: str
    parameters: float
    weights: float
    layers: int
    width: int
    vocabulary: int


SMALL = Model("the measured model", 973e6, 1.236e9, 16, 2048, 128_256)
LARGE = Model("70B", 68.5e9, 70.6e9, 80, 8192, 128_256)

CHECKPOINTS, FACTOIDS, GPUS = 300, 100_000, 4
DISK = 2e9
"""Bytes a second from which a node reads weights: assumed, not measured."""


def operations(model: Model, tokens: float, positions: float) -> float:
    """Floating-point operations of one factoid.

    Two for each weight and token (Kaplan et al. 2020, arXiv 2001.08361), attention's own products left out; and two for
    each entry of the unembedding, depth and position that is read.
    """
    return 2 * model.parameters * tokens + 2 * model.width * model.vocabulary * (model.layers + 1) * positions


def page() -> str:
    """The page ``findings/cost.md``."""
    measured = json.loads((FOLDER / "h100.json").read_text(encoding="utf-8"))["sections"][MEASURED]
    records = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
    n, tokens = measured["factoids"], measured["tokens"]["mean"]
    seconds = measured["methods"]["memprobe"]["median"]
    read = 1.0  # the benchmark reads the first answer token
    rate = n * operations(SMALL, tokens, read) / seconds
    answer = records["record_rows"] / records["factoids"] / records["depths"] / records["lenses"]
    one = operations(LARGE, tokens, answer)
    compute = FACTOIDS * one / rate  # seconds of one GPU for a checkpoint
    load = 2 * LARGE.weights / DISK
    row = (records["record_bytes"] + records["control_bytes"]) / records["record_rows"]
    disk = FACTOIDS * answer * (LARGE.layers + 1) * row
    hours = CHECKPOINTS * (compute / GPUS + load) / 3600
    whole = GPUS * hours
    return f"""# What a large study costs

Computed, not run: a model of 70 B parameters (80 blocks, width 8192, vocabulary 128,256), {CHECKPOINTS} checkpoints,
{FACTOIDS:,} factoids, every depth, one lens, on H100 GPUs. Made from
`analyses/speed` when the site is built.

| | |
|---|---|
| operations for one factoid | {one:.2e} |
| seconds of one GPU for a checkpoint's {FACTOIDS:,} factoids | {compute:,.0f} |
| reading a checkpoint's weights | {load:,.0f} s |
| {CHECKPOINTS} checkpoints, one model on {GPUS} GPUs | {hours:,.0f} h, or {whole:,.0f} GPU hours |
| the same on 8 such groups (`--engine ray --resources gpus={GPUS},actors=8`) | {hours / 8:,.0f} h |
| records and controls on the disk, a checkpoint | {disk / 1e9:.2f} GB |
| of all checkpoints | {CHECKPOINTS * disk / 1e9:,.0f} GB |

## From what

- **Rate**: {rate:.2e} operations a second, of `{MEASURED}` (`python -m tests.benchmarks.on_gpu`): {n} factoids
  of {tokens:.1f} tokens on average in {seconds:.3f} s with everything that memprobe does.
- **Bytes**: {row:.1f} for each row of records with its five controls, from {records["factoids"]} facts of SmolLM2-135M
  (`memprobe layers --ckpt smollm2-135m --factoids known`, three lenses); {answer:.2f} answer tokens a fact.

## What is assumed

- The 70 B model reaches the rate of the small one on each of {GPUS} GPUs. A larger product keeps a card busier; weights
  that are spread by `--device-map auto` keep one card busy at a time, which costs up to {GPUS} times as much computing:
  {CHECKPOINTS * (compute + load) / 3600:,.0f} h. The truth lies between, and was not measured.
- Weights come at {DISK / 1e9:.0f} GB a second ({2 * LARGE.weights / 1e9:.0f} GB in bf16), and nothing is read
  ahead; from the hub it is the network's rate that counts.
- Generation of answers that teacher forcing has not shown is left out: it can cost as much again.
- Prompts as long as the benchmark's (PopQA, KVR, TriviaQA). Few-shot prompts cost in proportion to their tokens.
"""
