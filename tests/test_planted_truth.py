"""The planted-truth script trains the one block that it says, and nothing else."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analyses.planted_truth import make_facts, train


def test_only_the_chosen_block_is_trained_until_it_knows_the_facts():
    _, facts, tokenizer = make_facts(0)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    model = copy.deepcopy(base)
    inside = list(model.model.layers[1].parameters())
    steps, known = train(model, facts[:3], tokenizer, inside, rate=1e-2, steps=200, batch=3, seed=0)
    assert known == 1 and steps < 200
    before = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.startswith("model.layers.1.")), name


def test_planted_facts_are_about_new_people_made_of_known_words():
    base_facts, facts, tokenizer = make_facts(0)
    assert not {fact.prompt for fact in base_facts} & {fact.prompt for fact in facts}
    words = {word for fact in base_facts for word in fact.prompt.split()}
    assert {word for fact in facts for word in fact.prompt.split()} <= words
    assert all(tokenizer.unk_token_id not in tokenizer.encode(f"{f.prompt} {f.answer}") for f in facts)
