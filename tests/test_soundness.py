"""What ``memprobe check`` shows beside the lens: by hand, and on a model whose forward pass is wrong."""

import json
import math

import pytest
import torch

from memprobe import soundness
from memprobe.factoids import make_factoid
from memprobe.models import wrap
from memprobe.soundness import TEXT, measure
from tests.test_outcomes import FACTS, taught
from tests.tiny import tiny_model, tiny_tokenizer


def test_the_loss_is_that_of_the_text_by_hand():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer), max_position_embeddings=1024)
    ids = tokenizer.encode(TEXT)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    nats = [-float(logits[place].log_softmax(-1)[token]) for place, token in enumerate(ids[1:])]
    found = measure(wrap(model, tokenizer))
    assert found.loss == pytest.approx(sum(nats) / len(nats), abs=1e-4)
    assert 0 < found.facts <= 20 and found.exact_match == 0


def test_a_wrong_forward_pass_loses_what_the_weights_know(monkeypatch):
    """Rotary embeddings of another base: lens and model agree, and yet the facts are gone."""
    tokenizer = tiny_tokenizer()
    model = taught("llama", "plain", tokenizer)
    facts = [make_factoid(fact.prompt, fact.answer, "test") for fact in FACTS]
    monkeypatch.setattr(soundness, "load_factoids", lambda _: facts)
    right = measure(wrap(model, tokenizer))
    assert right.exact_match == right.facts == len(FACTS)
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.mul_(9.0)
    wrong = measure(wrap(model, tokenizer))
    assert wrong.exact_match < right.exact_match


def test_check_shows_both(tiny_checkpoint, cli):
    code, out, _ = cli("check", "--ckpt", tiny_checkpoint, "--json", "--device", "cpu")
    (entry,) = json.loads(out)["checkpoints"]
    assert code == 0 and entry["ok"] and math.isfinite(entry["loss"])
    assert entry["exact_match"].split(" of ")[1].endswith("known facts")
