"""Planted truth: what do first occurrence and settled depth say when we know which block holds the facts?

    python analyses/planted_truth.py --out probes/planted --seed 0

A small Llama is trained on simple facts until it knows them. Then, from that base model, one block alone is
fine-tuned on new facts (every other block, the embedding, the final norm and the unembedding are frozen), for
several choices of the block. What was planted in block b can change the residual stream from depth b on and
nowhere before; the question is at which depth the lens says that it surfaces. As the readout is frozen, each
model's own readout is the base model's: the two that a placement claim needs are one here.

Minutes on two CPU cores. Writes the probe directories and ``planted.json`` beside them.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from memprobe.compare import compare
from memprobe.factoids import Factoid, Template, make_factoid, tokenise_all
from memprobe.models import wrap
from memprobe.probing import probe
from memprobe.records import write_json

N_LAYERS, D_MODEL = 8, 64
FIRST, LAST, VALUES, RELATIONS = 30, 30, 150, 4
BASE_FACTS, NEW_FACTS = 300, 120
BLOCKS = (1, 2, 4, 6, 8)


def make_facts(seed: int) -> tuple[list[Factoid], list[Factoid], PreTrainedTokenizerFast]:
    """Facts about people named by two words, and the word-level tokenizer that reads them.

    New facts are about new pairs of words that the base model knows, so that no new embedding is needed.
    """
    rng = np.random.default_rng(seed)
    relations = [f"relation{i}" for i in range(RELATIONS)]
    people = rng.permutation(FIRST * LAST)[: BASE_FACTS + NEW_FACTS]
    facts = [
        make_factoid(
            f"first{person // LAST} last{person % LAST} {relations[i % RELATIONS]} is",
            f"value{rng.integers(VALUES)}",
            "planted" if i >= BASE_FACTS else "base",
            relation=relations[i % RELATIONS],
        )
        for i, person in enumerate(people)
    ]
    words = ["<unk>", "<s>", "</s>", "is", *relations]
    for stem, count in (("first", FIRST), ("last", LAST), ("value", VALUES)):
        words += [f"{stem}{i}" for i in range(count)]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    return facts[:BASE_FACTS], facts[BASE_FACTS:], tokenizer


def train(
    model: PreTrainedModel,
    facts: list[Factoid],
    tokenizer: PreTrainedTokenizerBase,
    parameters: list[torch.nn.Parameter],
    *,
    rate: float,
    steps: int,
    batch: int,
    seed: int,
) -> tuple[int, float]:
    """Plain AdamW on the answers' tokens until every fact is the argmax twice in a row, or ``steps`` are over.

    Returns:
        Steps taken and the share of facts that the model then says.
    """
    generator = torch.Generator().manual_seed(seed)
    items = tokenise_all(facts, Template.parse("plain"), tokenizer)
    width = max(len(item.inputs) for item in items)
    # Padding comes last, and a causal model never looks at it from the positions that count.
    inputs = torch.tensor([[*item.inputs, *[item.inputs[-1]] * (width - len(item.inputs))] for item in items])
    targets = torch.full((len(items), width), -100)
    for row, item in enumerate(items):
        targets[row, len(item.prompt) - 1 : len(item.inputs)] = torch.tensor(item.targets)

    def predict(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        counts = targets[rows] != -100
        hidden = model.model(inputs[rows]).last_hidden_state[counts]
        return model.lm_head(hidden), targets[rows][counts], counts.nonzero()[:, 0]

    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    known, before = 0.0, 0.0
    for step in range(1, steps + 1):
        logits, wanted, _ = predict(torch.randperm(len(items), generator=generator)[:batch])
        functional.cross_entropy(logits, wanted).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 10 == 0:
            with torch.no_grad():
                logits, wanted, fact = predict(torch.arange(len(items)))
            missed = torch.unique(fact[logits.argmax(-1) != wanted])
            known = 1 - len(missed) / len(items)
            if min(known, before) == 1:
                break
            before = known
    return step, known


def train_small_base(
    seed: int,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[Factoid], list[Factoid]]:
    """The small Llama, its tokenizer, the facts that it was trained on and those to plant."""
    base_facts, new_facts, tokenizer = make_facts(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=4 * D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    base = LlamaForCausalLM(config)
    how = {"rate": 2e-3, "steps": 1500, "batch": 100, "seed": seed}
    steps, known = train(base, base_facts, tokenizer, list(base.parameters()), **how)
    print(f"base model: {steps} steps, says {known:.1%} of {len(base_facts)} facts")
    return base, tokenizer, base_facts, new_facts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("probes/planted"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    base, tokenizer, known_facts, new_facts = train_small_base(options.seed)
    trained = {}
    checkpoints = [wrap(base, tokenizer, label="base")]
    for block in BLOCKS:
        model = copy.deepcopy(base)
        inside = list(model.model.layers[block - 1].parameters())
        how = {"rate": 2e-3, "steps": 400, "batch": 100, "seed": options.seed}
        steps, share = train(model, new_facts, tokenizer, inside, **how)
        label = f"block {block}"
        trained[label] = {"block": block, "steps": steps, "known": share}
        said = f"{label} alone: {steps} steps, says {share:.1%} of {len(new_facts)} new facts"
        print(f"{said}; {time.perf_counter() - start:.0f} s", flush=True)
        checkpoints.append(wrap(model, tokenizer, label=label))
    opened = probe(checkpoints, new_facts, options.out / "new", k=1, seed=options.seed)
    known = probe(checkpoints[:1], known_facts, options.out / "known", k=1, seed=options.seed)
    result = {"seed": options.seed, "trained": trained, "tables": {}}
    for k in (1, 10):
        comparison = compare([opened], k=k, reference="base", draws=2_000)
        result["tables"][f"k={k}"] = _table(comparison.tables, k)
    place = compare([known], k=1, draws=2_000).tables["placement"].row(0, named=True)
    result["what the base model knew"] = {
        name: place[name] for name in ("lof_mean", "lof_sd", "settled_mean")
    }
    print("what the base model knew already surfaces at (k = 1):", result["what the base model knew"])
    write_json(result, options.out / "planted.json")
    print(f"{time.perf_counter() - start:.0f} s in all; {options.out / 'planted.json'}")


def _table(tables: dict[str, pl.DataFrame], k: int) -> list[dict[str, object]]:
    """What the statistics say about each planted block; printed too."""
    rows: list[dict[str, object]] = []
    by_depth = tables["differences_by_depth"].filter(measure="log_prob")
    curves = tables["curves"]
    for place in tables["placement"].iter_rows(named=True):
        label = place["checkpoint"]
        moved = by_depth.filter(pl.col("checkpoint") == label, pl.col("q") < 0.05)["depth"].to_list()
        own = curves.filter(checkpoint=label)
        rows.append(
            {
                "checkpoint": label,
                "lof_mean": place["lof_mean"],
                "lof_sd": place["lof_sd"],
                "never": place["share_never"],
                "only_full": place["share_only_full"],
                "settled_mean": place["settled_mean"],
                "first_depth_that_differs_from_base": moved[0] if moved else None,
                "recall": own["recall"].to_list(),
                "chance": own["chance"].to_list(),
            }
        )
    print(
        f"\nk = {k}: recall by depth 0 … {N_LAYERS}; LoF mean ± sd; never; only at full depth; settled; log-prob moves"
    )
    for row in rows:
        recall = " ".join(f"{value:.2f}" for value in row["recall"])
        lof = "–" if row["lof_mean"] is None else f"{row['lof_mean']:.2f} ± {row['lof_sd'] or 0:.2f}"
        settled = "–" if row["settled_mean"] is None else f"{row['settled_mean']:.2f}"
        print(
            f"{row['checkpoint']:8} {recall}  {lof:>12}  {row['never']:.2f}  {row['only_full']:.2f}"
            f"  {settled}  from {row['first_depth_that_differs_from_base']}"
        )
    return rows


if __name__ == "__main__":
    main()
