"""The planted-truth script trains the one block that it says, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analyses import planted_truth
from analyses.planted_truth import blocks_from, make_facts, plant, tokens_of, train
from memprobe.errors import MemprobeError


def small_llama(vocab: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, num_key_value_heads=2, **sizes))


def changed(model: LlamaForCausalLM, base: LlamaForCausalLM) -> set[str]:
    """The blocks (or other parts) whose parameters differ."""
    before = dict(base.named_parameters())
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    return {".".join(name.split(".")[:3]) for name in moved}


def test_only_the_chosen_block_is_trained_until_it_knows_the_facts():
    _, facts, tokenizer = make_facts(0)
    base = small_llama(len(tokenizer))
    model = copy.deepcopy(base)
    inside = list(model.model.layers[1].parameters())
    steps, known = train(model, facts[:3], tokenizer, inside, rate=1e-2, steps=200, batch=3, seed=0)
    assert known == 1 and steps < 200
    assert changed(model, base) == {"model.layers.1"}


def test_the_blocks_before_are_computed_once_and_give_the_same_logits():
    _, facts, tokenizer = make_facts(0)
    model = small_llama(len(tokenizer)).eval()
    inputs, _ = tokens_of(facts[:4], tokenizer)
    with torch.no_grad():
        whole = model.model(inputs, output_hidden_states=True)
        for block in (1, 2, 3):
            with blocks_from(model, block):
                rest = model.model(inputs_embeds=whole.hidden_states[block - 1])
            torch.testing.assert_close(rest.last_hidden_state, whole.last_hidden_state)
    assert len(model.model.layers) == 3


def test_planting_in_a_pretrained_model_goes_on_after_a_kill(tmp_path, monkeypatch):
    _, facts, tokenizer = make_facts(0)
    base = small_llama(len(tokenizer))
    how = {"rate": 1e-2, "steps": 120}
    whole = copy.deepcopy(base)
    stands = plant(whole, 2, facts[:4], tokenizer, tmp_path / "whole", **how)
    assert stands.done and stands.known == 1 and 5 < stands.steps < 120
    assert changed(whole, base) == {"model.layers.1"}

    class Killed(Exception):
        pass

    def killed_after_saving(*arguments):
        save(*arguments)
        if arguments[-1].steps == 5:
            raise Killed

    save = planted_truth._save
    monkeypatch.setattr(planted_truth, "SAVE_SECONDS", 0)
    monkeypatch.setattr(planted_truth, "_save", killed_after_saving)
    with pytest.raises(Killed):
        plant(copy.deepcopy(base), 2, facts[:4], tokenizer, tmp_path / "killed", **how)
    again = copy.deepcopy(base)
    resumed = plant(again, 2, facts[:4], tokenizer, tmp_path / "killed", **how)
    assert resumed.steps == stands.steps
    assert changed(again, whole) == set()
    # What is finished is read, not trained again.
    finished = copy.deepcopy(base)
    assert plant(finished, 2, facts[:4], tokenizer, tmp_path / "killed", **how) == resumed
    assert changed(finished, whole) == set()
    with pytest.raises(MemprobeError, match="another --out"):
        plant(finished, 2, facts[:4], tokenizer, tmp_path / "killed", rate=1e-3, steps=120)


def test_training_goes_on_past_what_is_learnt(tmp_path):
    _, facts, tokenizer = make_facts(0)
    how = {"rate": 1e-2, "steps": 120}
    until, past = (
        plant(small_llama(len(tokenizer)), 2, facts[:4], tokenizer, tmp_path / str(more), past=more, **how)
        for more in (0, 7)
    )
    assert past.learnt == until.learnt == until.steps and past.steps == until.steps + 7


def test_what_is_not_learnt_is_reported_as_such(tmp_path):
    _, facts, tokenizer = make_facts(0)
    stands = plant(small_llama(len(tokenizer)), 2, facts[:4], tokenizer, tmp_path / "b", rate=1e-6, steps=3)
    assert stands.done and stands.known < 1


def test_planted_facts_are_about_new_people_made_of_known_words():
    base_facts, facts, tokenizer = make_facts(0)
    assert not {fact.prompt for fact in base_facts} & {fact.prompt for fact in facts}
    words = {word for fact in base_facts for word in fact.prompt.split()}
    assert {word for fact in facts for word in fact.prompt.split()} <= words
    assert all(tokenizer.unk_token_id not in tokenizer.encode(f"{f.prompt} {f.answer}") for f in facts)
