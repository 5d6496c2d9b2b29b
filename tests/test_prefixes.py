"""Few-shot prompts have their common beginning read once, and say what they say when read whole."""

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from memprobe import prefixes
from memprobe.capturing import batches_of, capture
from memprobe.factoids import make_factoid
from memprobe.interventions import Ablate, applied
from memprobe.models import wrap
from memprobe.planning import plan_capture
from memprobe.templates import Template
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

EXAMPLES = "The capital of France is Paris. The river of Selva is the Brack. "
FACTS = [
    make_factoid(f"{EXAMPLES}{prompt}", answer, "test", subject=subject, id=str(number))
    for number, (prompt, answer, subject) in enumerate(
        [
            ("The river of Oria is the", "Lunn", "Oria"),
            ("The tallest hill of Selva is", "Peak Nine", "Selva"),
            ("The opposite of hot is", "cold", "hot"),
            ("The opposite of the word that says up is", "down", "up"),
        ]
    )
]
# What a model keeps of its past is no plain list of keys and values, or a window counts positions.
WITHOUT = {"mistral", "gemma2", "gemma3"}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def both(lens_model, monkeypatch, **options):
    """Records with a beginning read once, and of whole prompts."""
    found = capture(lens_model, FACTS, "plain", predictions=False, **options).records
    with monkeypatch.context() as patch:
        patch.setattr(prefixes, "may_share", lambda _: False)
        whole = capture(lens_model, FACTS, "plain", predictions=False, **options).records
    return found, whole


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_beginning_read_once_changes_nothing(family, tokenizer, monkeypatch):
    lens_model = wrap(tiny_model(family, vocab_size=len(tokenizer)), tokenizer)
    plan = plan_capture(lens_model, FACTS, Template("plain"))
    assert len(plan.beginning) > prefixes.SHARED
    assert bool(prefixes.shared_beginning(lens_model, plan)) == (family not in WITHOUT)
    found, whole = both(lens_model, monkeypatch)
    keys = ["factoid", "token", "depth"]
    found, whole = found.sort(keys), whole.sort(keys)
    assert_frame_equal(
        found.select("log_prob", "entropy"), whole.select("log_prob", "entropy"), rel_tol=0, abs_tol=1e-3
    )
    assert (found["rank"] - whole["rank"]).abs().max() <= 1
    assert_frame_equal(found.select(*keys, "token_id"), whole.select(*keys, "token_id"))


def test_it_is_read_once(tokenizer, monkeypatch):
    lens_model = wrap(tiny_model(vocab_size=len(tokenizer)), tokenizer)
    plan = plan_capture(lens_model, FACTS, Template("plain"))
    assert prefixes.may_share(lens_model)
    passes = []
    decoder = prefixes.decoder_of(lens_model.model)
    run = decoder.forward
    monkeypatch.setattr(
        decoder,
        "forward",
        lambda *args, **kwargs: passes.append(kwargs["input_ids"].shape) or run(*args, **kwargs),
    )
    capture(lens_model, FACTS, "plain", predictions=False, batch_size=2)
    own = [len(item.inputs) - len(plan.beginning) for item in plan.items]
    assert sorted(rows for rows, _ in passes) == [1, 2, 2]
    assert max(width for rows, width in passes if rows == 2) == max(own)
    [beginning] = [width for rows, width in passes if rows == 1]
    assert beginning == len(plan.beginning)


def test_a_position_within_it_is_read_where_it_stands(tokenizer, monkeypatch):
    """The subject of one prompt stands in what all begin with: they share less, and all is read."""
    lens_model = wrap(tiny_model(vocab_size=len(tokenizer)), tokenizer)
    early = [make_factoid(f"{EXAMPLES}It is", "Paris", "test", subject="Selva", id="early"), *FACTS]
    plan = plan_capture(lens_model, early, Template("plain"), positions=("answer", "subject"))
    assert len(plan.beginning) <= plan.subjects["early"]
    found = capture(lens_model, early, "plain", positions=("answer", "subject"), predictions=False).records
    with monkeypatch.context() as patch:
        patch.setattr(prefixes, "may_share", lambda _: False)
        whole = capture(
            lens_model, early, "plain", positions=("answer", "subject"), predictions=False
        ).records
    keys = ["factoid", "position", "token", "depth"]
    found, whole = (
        frame.filter(pl.col("position") == "subject").sort(keys).select("log_prob")
        for frame in (found, whole)
    )
    assert found.height and torch.allclose(
        torch.from_numpy(found["log_prob"].to_numpy().copy()),
        torch.from_numpy(whole["log_prob"].to_numpy().copy()),
        rtol=0,
        atol=1e-3,
    )


def test_an_edited_pass_is_read_whole(tokenizer):
    """Edits count positions from a prompt's first token."""
    lens_model = wrap(tiny_model(vocab_size=len(tokenizer)), tokenizer)
    plan = plan_capture(lens_model, FACTS, Template("plain"))
    assert prefixes.shared_beginning(lens_model, plan)
    with applied(lens_model, Ablate(1, part="mlp")):
        assert not prefixes.shared_beginning(lens_model, plan)


def test_weights_put_into_a_model_are_read_anew(tokenizer, monkeypatch):
    lens_model = wrap(tiny_model(vocab_size=len(tokenizer)), tokenizer)
    capture(lens_model, FACTS, "plain", predictions=False)
    with torch.no_grad():
        for parameter in lens_model.model.parameters():
            parameter.mul_(0.9)
    found, whole = both(lens_model, monkeypatch)
    assert_frame_equal(found.select("log_prob"), whole.select("log_prob"), rel_tol=0, abs_tol=1e-3)


def test_batches_are_filled_by_what_is_read_of_each(tokenizer, monkeypatch):
    lens_model = wrap(tiny_model(vocab_size=len(tokenizer)), tokenizer)
    plan = plan_capture(lens_model, FACTS, Template("plain"))
    own = max(len(item.inputs) for item in plan.items) - len(plan.beginning)
    monkeypatch.setattr("memprobe.capturing._CPU_BATCH_TOKENS", 4 * own)
    assert len(batches_of(lens_model, plan)) == 1
    monkeypatch.setattr(prefixes, "may_share", lambda _: False)
    assert len(batches_of(lens_model, plan)) > 1
