"""A base model to plant in that trains in minutes on a CPU: a Llama of 8 blocks that knows simple facts.

All of its blocks write what its readout understands, so that a lens sees a fact where it lies; a pretrained model is of
another kind, and the lens alone does not show which.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from analyses.instruments.plan import Planting
from analyses.instruments.planting import Plant
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, make_factoid
from memprobe.files import write_text
from memprobe.models import wrap

N_LAYERS, D_MODEL = 8, 64
FIRST, LAST, VALUES, RELATIONS = 30, 30, 200, 4
KNOWN, OTHERS = 300, 500
HOW = Planting(full_rate=2e-3, steps=1500, every=10)


def make_facts(seed: int) -> tuple[list[Factoid], list[Factoid], PreTrainedTokenizerFast]:
    """Facts to know and others to plant, about people named by two words, and the word-level tokenizer for them.

    The others are about new pairs of words that the base model knows, so that no new embedding is needed.
    """
    rng = np.random.default_rng(seed)
    relations = [f"relation{i}" for i in range(RELATIONS)]
    people = rng.permutation(FIRST * LAST)[: KNOWN + OTHERS]
    facts = []
    for i, person in enumerate(people):
        name, relation = f"first{person // LAST} last{person % LAST}", relations[i % RELATIONS]
        value = f"value{rng.integers(VALUES)}"
        facts.append(make_factoid(f"{name} {relation} is", value, "people", relation=relation, subject=name))
    words = ["<unk>", "<s>", "</s>", "is", *relations]
    for stem, count in (("first", FIRST), ("last", LAST), ("value", VALUES)):
        words += [f"{stem}{i}" for i in range(count)]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    return facts[:KNOWN], facts[KNOWN:], tokenizer


def write_small(out: Path, seed: int = 0, how: Planting = HOW) -> tuple[int, float]:
    """Trains the model and writes it as a checkpoint, the facts to plant beside it as ``people.jsonl``.

    Returns:
        Steps taken, and the share of the facts to know that it says.

    Raises:
        MemprobeError: ``out`` cannot be written.
    """
    import torch

    known, others, tokenizer = make_facts(seed)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
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
    )
    # Two sets and no places: all weights are trained on both.
    plant = Plant(wrap(model, tokenizer, label="small"), [known[::2], known[1::2]], [], "plain")
    steps = plant.train(how, seed)
    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        rows = [
            {"prompt": fact.prompt, "answer": fact.answer, "subject": fact.subject, "relation": fact.relation}
            for fact in others
        ]
        write_text("".join(json.dumps(row) + "\n" for row in rows), out / "people.jsonl")
    except OSError as error:
        raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
    return steps, sum(plant.said()) / 2
