"""What the outcomes say, against real generation one prompt at a time; and what low precision does to ranks."""

import numpy as np
import polars as pl
import pytest
import torch

from memprobe.answers import budget, cut, generate
from memprobe.capturing import capture
from memprobe.factoids import make_factoid
from memprobe.lens_specs import make_lens
from memprobe.models import wrap
from memprobe.planning import plan_capture
from memprobe.templates import Template
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

FACTS = [
    make_factoid("The river of Oria is the", "Lunn", "test", relation="river"),
    make_factoid("The river of Selva is the", "Brack", "test", relation="river"),
    make_factoid("The river of Tolm is the", "Ister", "test", relation="river"),
    make_factoid("The tallest hill of Oria is", "Mount Grey", "test", relation="hill"),
    make_factoid("The tallest hill of Selva is", "Peak Nine", "test", relation="hill"),
    make_factoid("12 + 7 =", "19", "sums"),
]
UNSEEN = [
    make_factoid("The river of Brack is the", "Selva", "unseen", relation="river"),
    make_factoid("The opposite of hot is", "cold", "unseen"),
]


def taught(family, template, tokenizer, steps=80):
    """A tiny model that has learned FACTS by heart, in the template's own text."""
    model = tiny_model(family, len(tokenizer)).train()
    items = plan_capture(wrap(model, tokenizer), FACTS, Template.parse(template)).items
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    width = max(len(item.prompt) + len(item.targets) for item in items)
    ids, labels = torch.zeros(len(items), width, dtype=torch.long), torch.full((len(items), width), -100)
    for row, item in enumerate(items):
        whole = [*item.prompt, *item.targets]
        ids[row, : len(whole)] = torch.tensor(whole)
        labels[row, len(item.prompt) : len(whole)] = torch.tensor(item.targets)
    for _ in range(steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def spoken(model, tokenizer, prompt, n, stops=()):
    """What ``model.generate`` says to one prompt alone: new ids, up to a stop."""
    with torch.no_grad():
        ids = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=n,
            do_sample=False,
            eos_token_id=list(stops) or None,
            pad_token_id=2,
        )
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("template", ["plain", "tulu", "chat"])
def test_exact_tokens_is_what_a_taught_model_says_alone(template, kind):
    tokenizer = tiny_tokenizer(kind)
    model = taught("llama", template, tokenizer)
    lens_model = wrap(model, tokenizer)
    factoids = [*FACTS, *UNSEEN]
    outcomes = {row["factoid"]: row for row in capture(lens_model, factoids, template).outcomes.to_dicts()}
    assert {True, False} == {row["exact_tokens"] for row in outcomes.values()}
    for item in plan_capture(lens_model, factoids, Template.parse(template)).items:
        row, answer = outcomes[item.factoid.id], item.factoid.answer
        new = spoken(model, tokenizer, item.prompt, budget(item, tokenizer), [1])
        assert row["exact_tokens"] == (tuple(new[: len(item.targets)]) == item.targets)
        assert row["error"] is None
        text = tokenizer.decode(new, skip_special_tokens=True)
        if row["exact_tokens"]:
            assert row["exact_match"] and row["prediction"] == answer
            assert text.strip() == answer if item.end is not None else text.strip().startswith(answer)
        else:
            said = text.strip() if item.end is not None else cut(text.split("\n")[0], answer)
            assert row["prediction"] == said
            assert row["exact_match"] == (said.lower() == answer.lower())


def test_other_tokens_of_the_same_text_match_without_being_exact():
    """The reverse does not hold: an answer spelled in other tokens, or in other case, matches."""
    tokenizer = tiny_tokenizer()
    model = taught("llama", "tulu", tokenizer)
    shout = [make_factoid(fact.prompt, fact.answer.upper(), "test") for fact in FACTS[:5]]
    outcomes = capture(wrap(model, tokenizer), shout, "tulu").outcomes
    assert not outcomes["exact_tokens"].any() and outcomes["exact_match"].all()


def test_a_tie_at_the_top_counts_against_the_answer():
    """Two tokens share the largest logit: what the model says is then a matter of their ids, not of its weights."""
    tokenizer = tiny_tokenizer()
    model = taught("llama", "tulu", tokenizer)
    read = wrap(model, tokenizer)
    before = capture(read, FACTS[:1], "tulu")
    assert before.outcomes["exact_tokens"].all()
    first = int(before.records.filter(token=0)["token_id"][0])
    spare = len(tokenizer) - 1
    with torch.no_grad():
        model.lm_head.weight[spare] = model.lm_head.weight[first]
    after = capture(read, FACTS[:1], "tulu")
    top = after.records.filter(token=0, depth=read.n_layers)
    assert top["rank"].item() == top["ties"].item() == 1
    assert not after.outcomes["exact_tokens"].any()
    assert after.outcomes["exact_match"].all(), "the smaller id is the one that greedy decoding takes"


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom"])
@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_a_factoid_that_just_fits_the_context_is_probed(family, batch_size):
    tokenizer = tiny_tokenizer()
    limit = 24
    changes = {} if family == "bloom" else {"max_position_embeddings": limit}
    model = tiny_model(family, len(tokenizer), **changes)
    lens_model = wrap(model, tokenizer)
    short = FACTS[0]
    answer = len(plan_capture(lens_model, [short], Template("plain")).items[0].targets)
    filler = tokenizer.encode(" the", add_special_tokens=False)
    assert len(filler) == 1
    start = "Oria"
    used = len(tokenizer.encode(start))
    long = make_factoid(start + " the" * (limit + 1 - answer - used), short.answer, "test", id="long")
    (item,) = plan_capture(lens_model, [long], Template("plain")).items
    assert len(item.inputs) == limit
    tables = capture(lens_model, [short, long], batch_size=batch_size)
    assert set(tables.records["factoid"]) == {short.id, "long"}
    for name, fact in ((short.id, short), ("long", long)):
        (item,) = plan_capture(lens_model, [fact], Template("plain")).items
        wanted = budget(item, tokenizer)
        room = wanted if family == "bloom" else limit + 1 - len(item.prompt)
        new = spoken(model, tokenizer, item.prompt, min(wanted, room), [1])
        text = cut(tokenizer.decode(new, skip_special_tokens=True).split("\n")[0], fact.answer)
        assert tables.outcomes.filter(factoid=name)["prediction"].item() == text


def test_own_logits_that_are_not_finite_are_an_error_under_another_readout_too():
    tokenizer = tiny_tokenizer()
    lens_model, other = (wrap(tiny_model("phi", len(tokenizer), seed=seed), tokenizer) for seed in (0, 1))
    with torch.no_grad():
        lens_model.lens.readout.unembedding.bias[5] = torch.nan
    tables = capture(lens_model, FACTS, lenses=[make_lens(lens_model, None, other)])
    assert tables.outcomes["error"].to_list() == ["a logit is not finite"] * len(FACTS)
    assert tables.outcomes["exact_tokens"].null_count() == len(FACTS)
    assert tables.records.is_empty()


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_with_a_shared_beginning_say_what_each_prompt_says_alone(family):
    """Solved examples before every prompt are read once; what is said must not change by it."""
    tokenizer = tiny_tokenizer()
    lens_model = wrap(tiny_model(family, len(tokenizer)), tokenizer)
    shots = "The river of Oria is the Lunn.\n12 + 7 = 19.\n"
    prompts = [tokenizer.encode(shots + fact.prompt) for fact in FACTS]
    limits = [3 + number % 4 for number in range(len(prompts))]
    end = 5  # never stops at a line's end, so that every token counts
    batched = generate(lens_model, prompts, max_new_tokens=limits, end=end)
    for prompt, limit, text in zip(prompts, limits, batched, strict=True):
        new = spoken(lens_model.model, tokenizer, prompt, limit, [1, end])
        new = new[: next((place for place, token in enumerate(new) if token in (1, end)), len(new))]
        assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_low_precision_changes_a_share_of_the_ranks(record_property):
    """The share is measured and said; what must hold is that the top of the ranking is mostly the same."""
    tokenizer = tiny_tokenizer()
    keys = ["factoid", "token", "depth"]
    shares = {}
    for family in ("llama", "gemma2", "gpt2"):
        model = tiny_model(family, len(tokenizer))
        full = capture(wrap(model, tokenizer), FACTS, predictions=False).records.sort(keys)
        low = wrap(model.to(torch.bfloat16), tokenizer)
        half = capture(low, FACTS, predictions=False).records.sort(keys)
        assert half["token_id"].equals(full["token_id"])
        changed = float((half["rank"] != full["rank"]).mean())
        held = pl.DataFrame({"full": full["rank"] < 10, "half": half["rank"] < 10})
        shares[family] = {
            "ranks changed": changed,
            "top 10 changed": float((held["full"] != held["half"]).mean()),
        }
        assert np.corrcoef(full["rank"], half["rank"])[0, 1] > 0.95
        assert shares[family]["top 10 changed"] < 0.1
    record_property("bf16", shares)
    print("bf16:", shares)
