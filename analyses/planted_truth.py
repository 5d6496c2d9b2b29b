"""Planted truth: what do first occurrence and settled depth say when we know which block holds the facts?

    python analyses/planted_truth.py --out probes/planted --seed 0
    python analyses/planted_truth.py --base smollm2-135m --out probes/planted-smollm2 --seed 0

A small Llama is trained on simple facts until it knows them. Then, from that base model, one block alone is
fine-tuned on new facts (every other block, the embedding, the final norm and the unembedding are frozen), for
several choices of the block. What was planted in block b can change the residual stream from depth b on and
nowhere before; the question is at which depth the lens says that it surfaces. As the readout is frozen, each
model's own readout is the base model's: the two that a placement claim needs are one here.

``--base`` plants in a pretrained Llama instead: made-up keys and values (KVR), which it cannot know. The small
run and SmolLM2-135M take minutes each; killed, the pretrained one goes on with the same command. Writes the
probe directories, the trained blocks and ``planted.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file
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
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, factoids_hash, make_factoid
from memprobe.files import replacing, write_json
from memprobe.models import load, wrap
from memprobe.probes import Probe
from memprobe.probing import probe
from memprobe.sources import load_factoids
from memprobe.sources.kvr import generate_kvr
from memprobe.templates import Template, tokenise_all

N_LAYERS, D_MODEL = 8, 64
FIRST, LAST, VALUES, RELATIONS = 30, 30, 150, 4
BASE_FACTS, NEW_FACTS = 300, 120
BLOCKS = (1, 2, 4, 6, 8)
PRETRAINED_BLOCKS, PRETRAINED_FACTS = (5, 15, 25, 30), 24
SAVE_SECONDS = 60


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


def tokens_of(facts: list[Factoid], tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets [fact, position]; -100 where nothing is to be predicted.

    Padding comes last, and a causal model never looks at it from the positions that count.
    """
    items = tokenise_all(facts, Template.parse("plain"), tokenizer)
    width = max(len(item.inputs) for item in items)
    inputs = torch.tensor([[*item.inputs, *[item.inputs[-1]] * (width - len(item.inputs))] for item in items])
    targets = torch.full((len(items), width), -100)
    for row, item in enumerate(items):
        targets[row, len(item.prompt) - 1 : len(item.inputs)] = torch.tensor(item.targets)
    return inputs, targets


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
    inputs, targets = tokens_of(facts, tokenizer)

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
        logits, wanted, _ = predict(torch.randperm(len(inputs), generator=generator)[:batch])
        functional.cross_entropy(logits, wanted).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 10 == 0:
            with torch.no_grad():
                logits, wanted, fact = predict(torch.arange(len(inputs)))
            missed = torch.unique(fact[logits.argmax(-1) != wanted])
            known = 1 - len(missed) / len(inputs)
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


@contextlib.contextmanager
def blocks_from(model: LlamaForCausalLM, block: int) -> Iterator[None]:
    """The model without the blocks before ``block`` (counted from 1): what it takes as embeddings is then the
    residual stream that enters that block."""
    whole = model.model.layers
    model.model.layers = torch.nn.ModuleList(whole[block - 1 :])
    try:
        yield
    finally:
        model.model.layers = whole


@dataclass(frozen=True)
class Planted:
    """How the training of one block stands; ``learnt`` is the step after which it said all facts twice in a row."""

    steps: int
    known: float
    seconds: float
    done: bool
    learnt: int | None = None


def plant(
    model: LlamaForCausalLM,
    block: int,
    facts: list[Factoid],
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    *,
    rate: float,
    steps: int,
    past: int = 0,
) -> Planted:
    """Fine-tunes one block of a pretrained model, all facts in every step, until all are the argmax twice in a row
    and for ``past`` steps more.

    The blocks before it do not change, so the stream that enters it is computed once and a step costs only the
    blocks from there on. What is under way is kept in ``file`` (the block's weights and AdamW's moments), and a
    killed run goes on from there to the same weights.
    """
    layer = model.model.layers[block - 1]
    inputs, targets = tokens_of(facts, tokenizer)
    counts = targets != -100
    fact, wanted = counts.nonzero()[:, 0], targets[counts]
    model.requires_grad_(False)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    layer.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    how = json.dumps({"rate": rate, "steps": steps, "past": past, "facts": factoids_hash(facts)})
    stood = _restore(file, how, names, parameters, optimiser)
    if stood.done:
        return stood
    with torch.no_grad():
        stream = model.model(inputs, output_hidden_states=True, use_cache=False).hidden_states[block - 1]
    start = saved = time.perf_counter() - stood.seconds
    saved += stood.seconds
    before, known, learnt = 0.0, stood.known, stood.learnt
    with blocks_from(model, block):
        for step in range(stood.steps + 1, steps + 1):
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, step / 20)
            hidden = model.model(inputs_embeds=stream, use_cache=False).last_hidden_state[counts]
            logits = model.lm_head(hidden)
            missed = torch.unique(fact[logits.argmax(-1) != wanted])
            before, known = known, 1 - len(missed) / len(facts)
            now = time.perf_counter()
            if learnt is None and min(before, known) == 1:
                learnt = step - 1
            if step == steps or (learnt is not None and step > learnt + past):
                stood = Planted(step - 1, known, now - start, True, learnt)
                break
            loss = functional.cross_entropy(logits, wanted)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            if step % 10 == 0:
                print(
                    f"block {block}: step {step}, loss {loss.item():.3f}, says {known:.1%} of {len(facts)} facts,"
                    f" {(now - start) / step:.1f} s a step",
                    flush=True,
                )
            if now - saved > SAVE_SECONDS:
                _save(
                    file, how, names, parameters, optimiser, Planted(step, known, now - start, False, learnt)
                )
                saved = now
    _save(file, how, names, parameters, None, stood)
    return stood


def _save(
    file: Path,
    how: str,
    names: tuple[str, ...],
    parameters: tuple[torch.nn.Parameter, ...],
    optimiser: torch.optim.Optimizer | None,
    stands: Planted,
) -> None:
    tensors = {name: parameter.detach() for name, parameter in zip(names, parameters, strict=True)}
    for name, parameter in zip(names, parameters, strict=True):
        for moment in ("exp_avg", "exp_avg_sq") if optimiser else ():
            tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
        save_file(tensors, path, {"stands": json.dumps(vars(stands)), "how": how})


def _restore(
    file: Path,
    how: str,
    names: tuple[str, ...],
    parameters: tuple[torch.nn.Parameter, ...],
    optimiser: torch.optim.Optimizer,
) -> Planted:
    if not file.exists():
        return Planted(0, 0.0, 0.0, False)
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata()
        if metadata["how"] != how:
            raise MemprobeError(f"{file}: planted with {metadata['how']}, now {how}; use another --out")
        stands = Planted(**json.loads(metadata["stands"]))
        for name, parameter in zip(names, parameters, strict=True):
            parameter.data.copy_(tensors.get_tensor(name))
            if not stands.done:
                moments = {key: tensors.get_tensor(f"{key}.{name}") for key in ("exp_avg", "exp_avg_sq")}
                optimiser.state[parameter] = {"step": torch.tensor(float(stands.steps)), **moments}
    return stands


def plant_in_pretrained(spec: str, blocks: tuple[int, ...], options: argparse.Namespace) -> None:
    """Plants made-up keys and values in one block of a pretrained Llama after another, and reads them all."""
    start = time.perf_counter()
    read = load(spec, device="cpu", dtype="float32")
    model, tokenizer = read.model, read.tokenizer
    if not isinstance(model, LlamaForCausalLM):
        raise MemprobeError(f"--base {spec}: {type(model).__name__}; planting needs a Llama")
    if wrong := [block for block in blocks if not 1 <= block <= read.n_layers]:
        raise MemprobeError(f"--blocks: {wrong[0]} is no block of {spec}; it has {read.n_layers}")
    facts = generate_kvr(options.facts, seed=options.seed)
    known = probe([wrap(model, tokenizer, label="base")], load_factoids("known"), options.out / "known", k=1)
    opened = probe([wrap(model, tokenizer, label="base")], facts, options.out / "new", k=1, seed=options.seed)
    trained = {}
    for block in blocks:
        layer = model.model.layers[block - 1]
        untouched = copy.deepcopy(layer.state_dict())
        file = options.out / "blocks" / f"block-{block:02}.safetensors"
        how = {"rate": options.rate, "steps": options.steps, "past": options.past}
        stands = plant(model, block, facts, tokenizer, file, **how)
        label = f"block {block}"
        trained[label] = {
            "block": block,
            "learnt": stands.learnt,
            "steps": stands.steps,
            "known": stands.known,
            "seconds": stands.seconds,
        }
        said = f"{label} alone: {stands.steps} steps in {stands.seconds:.0f} s"
        print(f"{said}, says {stands.known:.1%} of {len(facts)} new facts", flush=True)
        opened = probe(
            [wrap(model, tokenizer, label=label)], facts, options.out / "new", k=1, seed=options.seed
        )
        layer.load_state_dict(untouched)
    result = {"seed": options.seed, "base": spec, "facts": len(facts), "trained": trained}
    summarise(result, opened, known, options.out, tokens=("first", "all"))
    print(f"{time.perf_counter() - start:.0f} s in this run; {options.out / 'planted.json'}")


def plant_in_small(options: argparse.Namespace) -> None:
    """Trains the small base model, plants in one of its blocks after another, and reads them all."""
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
    summarise({"seed": options.seed, "trained": trained}, opened, known, options.out)
    print(f"{time.perf_counter() - start:.0f} s in all; {options.out / 'planted.json'}")


def summarise(
    result: dict[str, object], new: Probe, known: Probe, out: Path, *, tokens: tuple[str, ...] = ("first",)
) -> None:
    """What the statistics say about every planted block, printed and written to ``planted.json``.

    Args:
        tokens: the token rules; answers of one token need one only.
    """
    tables = {}
    for token in tokens:
        for k in (1, 10):
            comparison = compare([new], k=k, token=token, reference="base", draws=2_000)
            tables[f"k={k}, {token}"] = _table(comparison.tables, f"k = {k}, answer tokens: {token}")
    place = compare([known], k=1, draws=2_000).tables["placement"].row(0, named=True)
    already = {name: place[name] for name in ("exact", "lof_mean", "lof_sd", "settled_mean", "share_never")}
    print("what the base model knew already surfaces at (k = 1):", already)
    write_json(result | {"tables": tables, "what the base model knew": already}, out / "planted.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default: probes/planted, with --base probes/planted-BASE")
    parser.add_argument("--seed", type=int, default=0)
    pretrained = parser.add_argument_group("in a pretrained Llama")
    pretrained.add_argument("--base", metavar="SPEC", help="e.g. smollm2-135m")
    pretrained.add_argument(
        "--blocks", type=int, nargs="+", default=PRETRAINED_BLOCKS, help="counted from 1, one model for each"
    )
    pretrained.add_argument("--facts", type=int, default=PRETRAINED_FACTS, help="how many keys")
    pretrained.add_argument("--steps", type=int, default=600, help="at most")
    pretrained.add_argument("--past", type=int, default=0, help="steps to go on once all facts are said")
    pretrained.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    options = parser.parse_args()
    if options.base is None:
        options.out = options.out or Path("probes/planted")
        plant_in_small(options)
    else:
        options.out = options.out or Path(f"probes/planted-{Path(options.base).name}")
        plant_in_pretrained(options.base, tuple(options.blocks), options)


def _table(tables: dict[str, pl.DataFrame], title: str) -> list[dict[str, object]]:
    """What the statistics say about each planted block; printed too."""
    rows: list[dict[str, object]] = []
    by_depth = tables["differences_by_depth"].filter(measure="log_prob")
    curves = tables["curves"]
    for place in tables["placement"].iter_rows(named=True):
        label = place["checkpoint"]
        against = by_depth.filter(checkpoint=label)
        moved = against.filter(pl.col("q") < 0.05)["depth"].to_list()
        own = curves.filter(checkpoint=label)
        names = (
            "lof_mean",
            "lof_sd",
            "lof_restricted_mean",
            "settled_mean",
            "settled_restricted_mean",
            "exact",
        )
        rows.append(
            {"checkpoint": label}
            | {name: place[name] for name in names}
            | {
                "never": place["share_never"],
                "only_full": place["share_only_full"],
                "first_depth_that_differs_from_base": moved[0] if moved else None,
                "log_prob_difference_from_base": against["difference"].to_list(),
                "recall": own["recall"].to_list(),
                "chance": own["chance"].to_list(),
            }
        )
    deepest = int(curves["depth"].max())
    shown = range(deepest + 1) if deepest < 12 else range(0, deepest + 1, 5)
    print(f"\n{title}: recall at depths {', '.join(map(str, shown))}; the last is the model's own readout")
    for row in rows:
        recall = " ".join(f"{row['recall'][depth]:.2f}" for depth in shown)
        lof = "–" if row["lof_mean"] is None else f"{row['lof_mean']:.2f} ± {row['lof_sd'] or 0:.2f}"
        settled = "–" if row["settled_mean"] is None else f"{row['settled_mean']:.2f}"
        print(
            f"{row['checkpoint']:8} {recall}  LoF {lof}, never {row['never']:.2f}, only at full depth"
            f" {row['only_full']:.2f}; settled {settled}; log-prob differs from base from depth"
            f" {row['first_depth_that_differs_from_base']}"
        )
    return rows


if __name__ == "__main__":
    main()
