"""Scores against plain Hugging Face generation and log-probabilities by hand, on a model that has learned some."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import polars as pl
import pytest
import torch

from memprobe.answers import exact_match
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.evaluations import EvaluatedSet
from memprobe.factoids import make_factoid
from memprobe.models import wrap
from memprobe.sources.kinds import Message, make_task, make_text
from memprobe.templates import Template, tokenise
from tests.tiny import tiny_model, tiny_tokenizer
from training.evaluate import (
    EvaluationSet,
    accuracy_matrix,
    evaluate,
    retention,
    scores,
)
from training.examples import ExampleMaker
from training.mixing import IGNORED

LEARNED = [
    make_factoid("The river of Oria is", "the Lunn", "own"),
    make_factoid("The river of Selva is", "the Brack", "own"),
    make_factoid("The river of Tolm is", "the Ister", "own"),
    make_factoid("The value of key q7x2 is?", "a9b8c7d6", "own"),
    make_factoid("The mayor of Oria is", "St. John", "own"),
    make_factoid("The hill of Oria is", "Mount Grey", "own"),
    make_factoid("The hill of Selva is", "peak nine", "own"),
]
# What is asked of the last two: less than the model says, and in capitals.
ASKED = [
    *LEARNED[:5],
    make_factoid("The hill of Oria is", "Mount", "own"),
    make_factoid("The hill of Selva is", "Peak Nine", "own", aliases=["the ninth"]),
    make_factoid("The hill of Tolm is", "Spur", "own"),
    make_factoid("The value of key 0z1y is?", "55e4f3g2", "own"),
]
SHORT, CAPITALS = 5, 6


def gsm8k(question: str, solution: str):
    return make_task([Message("user", question), Message("assistant", solution)], "gsm8k")


SUMS = [gsm8k("What is 2 + 2?", "2 + 2 = 4\n#### 4"), gsm8k("What is 9 + 3?", "9 + 3 = 12\n#### 12")]
WRONG = [gsm8k("What is 9 + 3?", "9 + 3 = 13\n#### 13")]


def trained(template: str, rows):
    """A tiny model after a few hundred steps on rows, in the given template."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), n_layers=2)
    make = ExampleMaker(template, tokenizer, 256)
    examples = [make(row) for row in rows]
    width = max(len(example.ids) for example in examples)
    ids = torch.tensor([[*example.ids, *[0] * (width - len(example.ids))] for example in examples])
    labels = torch.tensor(
        [[*example.labels, *[IGNORED] * (width - len(example.labels))] for example in examples]
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(400):
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss.item() < 0.005:
            break
    assert loss.item() < 0.02
    model.zero_grad()
    return wrap(model.eval(), tokenizer)


@pytest.fixture(scope="module")
def tulu():
    return trained("tulu", [*LEARNED, *SUMS])


@pytest.fixture(scope="module")
def plain():
    return trained("plain", LEARNED)


def generated(lens_model, prompt, n: int = 24) -> list[int]:
    """Greedy decoding with nothing but forward passes, one token after the other, one row at a time."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(lens_model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_exact_match_is_that_of_real_generation_and_exact_tokens_implies_it(tulu):
    result = evaluate(tulu, {"D_A": EvaluationSet("factoids", ASKED)})["D_A"]
    rows = {row["id"]: row for row in result["rows"]}
    for factoid in ASKED:
        item = tokenise(factoid, Template("tulu"), tulu.tokenizer)
        new = generated(tulu, item.prompt)
        stop = new.index(item.end) if item.end in new else len(new)
        text = tulu.tokenizer.decode(new[:stop], skip_special_tokens=True)
        row = rows[factoid.id]
        assert row["exact_match"] == exact_match(text, factoid.answer), factoid
        assert row["exact_tokens"] == (tuple(new[: len(item.targets)]) == item.targets), factoid
        assert not row["exact_tokens"] or row["exact_match"]
        if stop < len(item.targets):
            assert row["prediction"] == text.strip()
    exact = [rows[factoid.id]["exact_tokens"] for factoid in ASKED]
    assert exact[:5] == [True] * 5 and not any(exact[5:])


def test_less_than_the_model_says_is_no_match_and_capitals_are(tulu):
    rows = evaluate(tulu, {"D_A": EvaluationSet("factoids", ASKED)})["D_A"]["rows"]
    short, capitals = rows[SHORT], rows[CAPITALS]
    assert short["prediction"] == "Mount Grey"
    assert not short["exact_match"] and not short["exact_tokens"]
    assert short["rouge_l"] == pytest.approx(2 / 3)
    assert capitals["exact_match"] and capitals["alias_match"] and not capitals["exact_tokens"]
    other = [replace(ASKED[SHORT], aliases=("Mount Grey",)), ASKED[0]]
    aliased = evaluate(tulu, {"D_A": EvaluationSet("factoids", other)})["D_A"]["rows"][0]
    assert aliased["alias_match"] and not aliased["exact_match"]


@pytest.mark.parametrize("template", ["tulu", "plain"])
def test_outcomes_agree_with_capture(template, request):
    lens_model = request.getfixturevalue(template)
    rows = evaluate(lens_model, {"D_A": EvaluationSet("factoids", ASKED, template)})["D_A"]["rows"]
    outcomes = capture(lens_model, ASKED, template).outcomes
    there = {row["factoid"]: row for row in outcomes.iter_rows(named=True)}
    for row in rows:
        for column in ("exact_tokens", "exact_match"):
            assert row[column] == there[row["id"]][column], (row, column)


def test_plain_generation_of_an_exact_row_starts_with_its_answer(plain):
    rows = evaluate(plain, {"D_A": EvaluationSet("factoids", ASKED, "plain")})["D_A"]["rows"]
    exact = [factoid for factoid, row in zip(ASKED, rows, strict=True) if row["exact_tokens"]]
    assert len(exact) >= 5 and not rows[-1]["exact_tokens"]
    for factoid in exact:
        item = tokenise(factoid, Template("plain"), plain.tokenizer)
        assert tuple(generated(plain, item.prompt, len(item.targets))) == item.targets


def test_loss_is_that_of_the_answer_and_end_token_alone(tulu):
    one = EvaluationSet("factoids", ASKED)
    whole = evaluate(tulu, {"D_A": one})["D_A"]
    for factoid, row in zip(ASKED, whole["rows"], strict=True):
        item = tokenise(factoid, Template("tulu"), tulu.tokenizer)
        with torch.no_grad():
            logits = tulu.model(input_ids=torch.tensor([item.inputs])).logits[0]
        log_probs = logits[len(item.prompt) - 1 :].double().log_softmax(-1)
        nats = -sum(float(log_probs[place, token]) for place, token in enumerate(item.targets))
        assert row["tokens"] == len(item.targets)
        assert row["loss"] * row["tokens"] == pytest.approx(nats, rel=1e-4, abs=1e-5)
    by_token = sum(row["loss"] * row["tokens"] for row in whole["rows"])
    by_token /= sum(row["tokens"] for row in whole["rows"])
    assert whole["scores"]["loss"]["value"] == pytest.approx(by_token)
    narrow = evaluate(tulu, {"D_A": one}, batch_tokens=1)["D_A"]
    for a, b in zip(whole["rows"], narrow["rows"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-6)
        assert {**a, "loss": 0, "nats": 0} == {**b, "loss": 0, "nats": 0}


def test_scores_are_the_rows_in_sum_and_are_json(tulu):
    told = []
    sets = {
        "more": EvaluationSet(
            "factoids", [*ASKED, *(replace(fact, id=f"again {fact.id}") for fact in ASKED)]
        ),
        "D_A": EvaluationSet("factoids", ASKED),
        "one": EvaluationSet("factoids", ASKED[:1]),
    }
    results = evaluate(tulu, sets, progress=lambda *call: told.append(call))
    scores = results["D_A"]["scores"]
    assert results["D_A"]["metric"] == "exact_match" and results["D_A"]["n"] == len(ASKED)
    assert set(scores) == {"exact_match", "exact_tokens", "alias_match", "rouge_l", "nats", "loss"}
    assert scores["exact_match"]["value"] == pytest.approx(6 / 9)
    assert scores["exact_tokens"]["value"] == pytest.approx(5 / 9)
    # Wilson by hand for 6 of 9.
    z, n, share = 1.959964, 9, 6 / 9
    middle = (share + z * z / 2 / n) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / 4 / n / n) / (1 + z * z / n)
    assert scores["exact_match"]["low"] == pytest.approx(middle - half, abs=1e-5)
    assert scores["exact_match"]["high"] == pytest.approx(middle + half, abs=1e-5)
    assert results["one"]["scores"]["loss"]["low"] is scores["loss"]["low"] is None, "of fewer than ten rows"
    loss = results["more"]["scores"]["loss"]
    assert loss["low"] < loss["value"] < loss["high"]
    assert told[-1] == ("one", 1, 1) and ("D_A", 9, 9) in told
    json.dumps(results, allow_nan=False)


def test_final_answers_of_generated_solutions(tulu):
    sets = {"gsm8k": EvaluationSet("task", [*SUMS, *WRONG], new_tokens=40)}
    result = evaluate(tulu, sets)["gsm8k"]
    assert result["metric"] == "final_answer"
    assert [row["final_answer"] for row in result["rows"]] == [True, True, False]
    assert result["rows"][1]["prediction"] == "9 + 3 = 12\n#### 12"
    assert result["rows"][2]["prediction"] == "9 + 3 = 12\n#### 12"
    assert result["rows"][0]["rouge_l"] == 1 and set(result["scores"]) == {"final_answer", "rouge_l", "loss"}
    short = evaluate(tulu, {"gsm8k": replace(sets["gsm8k"], new_tokens=2)})["gsm8k"]
    assert short["scores"]["final_answer"]["value"] == 0


def test_other_tasks_have_a_held_out_loss_and_are_cut_as_in_training(tulu):
    code = make_task(
        [
            Message("user", "The opposite of hot?"),
            Message("assistant", "cold"),
            Message("user", "The opposite of up?"),
            Message("assistant", "down"),
        ],
        "ultrachat",
    )
    long = make_task([Message("user", "big " * 200), Message("assistant", "small")], "ultrachat")
    result = evaluate(tulu, {"chat": EvaluationSet("task", [code, long], max_length=100)})["chat"]
    assert result["metric"] == "loss" and set(result["scores"]) == {"loss"}
    assert result["n"] == 1 and list(result["left_out"]) == [long.id]
    example = ExampleMaker("tulu", tulu.tokenizer, 100)(code)
    with torch.no_grad():
        log_probs = tulu.model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
    nats = [-float(log_probs[place, label]) for place, label in enumerate(example.labels) if label != IGNORED]
    assert result["rows"][0]["loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    with pytest.raises(MemprobeError, match="evaluation of chat: no row is left"):
        evaluate(tulu, {"chat": EvaluationSet("task", [long], max_length=100)})


def test_perplexity_of_text_is_per_token_and_without_a_template(tulu):
    texts = [
        make_text("", "The opposite of hot is cold, the opposite of up is down.", "own"),
        make_text("", "12 + 7 = 19.", "own"),
        make_text("The capital of France", "is Paris", "own"),
        *(make_text("", f"{number} + 7 = {number + 7}.", "own") for number in range(13, 22)),
    ]
    result = evaluate(tulu, {"text": EvaluationSet("text", texts)})["text"]
    assert result["metric"] == "perplexity" and result["template"] is None
    nats, tokens = 0.0, 0
    for text, row in zip(texts, result["rows"], strict=True):
        before = tulu.tokenizer.encode(text.prompt)
        ids = tulu.tokenizer.encode(f"{text.prompt} {text.answer}".strip())
        with torch.no_grad():
            log_probs = tulu.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        scored = range(max(1, len(before)), len(ids))
        own = -sum(float(log_probs[place - 1, ids[place]]) for place in scored)
        assert row["tokens"] == len(scored) and row["loss"] == pytest.approx(own / len(scored), rel=1e-4)
        nats, tokens = nats + own, tokens + len(scored)
    found = result["scores"]["perplexity"]
    assert found["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["low"] < found["value"] < found["high"]


def test_the_model_is_left_as_it_was(tulu):
    tulu.model.train()
    tulu.model.model.layers[0].mlp.eval()
    modes = [module.training for module in tulu.model.modules()]
    weights = [p.detach().clone() for p in tulu.model.parameters()]
    random = torch.get_rng_state()
    try:
        evaluate(tulu, {"D_A": EvaluationSet("factoids", ASKED), "t": EvaluationSet("task", SUMS)})
        assert torch.equal(random, torch.get_rng_state())
        assert modes == [module.training for module in tulu.model.modules()]
        assert all(torch.equal(a, p) for a, p in zip(weights, tulu.model.parameters(), strict=True))
        assert all(p.grad is None and p.requires_grad for p in tulu.model.parameters())
    finally:
        tulu.model.eval()


def test_a_diverged_model_is_named_with_its_set(tulu):
    weight = tulu.model.model.norm.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = torch.nan
        with pytest.raises(MemprobeError, match=r"evaluation of D_A: the loss of row .* is not finite"):
            evaluate(tulu, {"D_A": EvaluationSet("factoids", ASKED)})
    finally:
        with torch.no_grad():
            weight.copy_(before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvaluationSet("words", ASKED), "kind 'words'"),
        (lambda: EvaluationSet("text", []), "no rows"),
        (lambda: EvaluationSet("task", ASKED), "is a factoid"),
        (lambda: EvaluationSet("factoids", [ASKED[0], ASKED[0]]), "stands twice"),
        (lambda: EvaluationSet("factoids", ASKED, metric="perplexity"), "no metric 'perplexity'"),
        (
            lambda: EvaluationSet(
                "task",
                [make_task([Message("user", "a"), Message("assistant", "b")], "mbpp")],
                metric="final_answer",
            ),
            "gsm8k and math alone",
        ),
    ],
)
def test_sets_that_make_no_sense(make, message):
    with pytest.raises(MemprobeError, match=message):
        make()


def result_of(metric: str, value: float) -> dict:
    return {"metric": metric, "scores": {metric: {"value": value, "low": None, "high": None}}}


def test_accuracy_matrix():
    evaluations = {
        "base": {"D_A": result_of("exact_match", 0.0), "text": result_of("perplexity", 20.0)},
        "1-a": {"D_A": result_of("exact_match", 1.0), "text": result_of("perplexity", 22.0)},
        "2-b": {"D_A": result_of("exact_match", 0.25), "D_B": result_of("loss", 0.5)},
    }
    found = accuracy_matrix(evaluations)
    assert found.to_dict(as_series=False) == {
        "stage": ["base", "1-a", "2-b"],
        "D_A": [0.0, 1.0, 0.25],
        "text": [20.0, 22.0, None],
        "D_B": [None, None, 0.5],
    }
    assert found.schema["D_B"] == pl.Float64
    evaluations["2-b"]["D_A"] = result_of("loss", 1.0)
    with pytest.raises(MemprobeError, match=r"D_A: measured by exact_match before stage 2-b"):
        accuracy_matrix(evaluations)


def test_retention_of_replayed_and_unseen_rows_apart(tulu):
    result = evaluate(tulu, {"D_A": EvaluationSet("factoids", ASKED)})["D_A"]
    found = retention(result, [ASKED[0].id, ASKED[1].id, ASKED[7].id])
    assert [found[part]["n"] for part in ("all", "replayed", "unseen")] == [9, 3, 6]
    values = [found[part]["scores"]["exact_match"]["value"] for part in ("all", "replayed", "unseen")]
    assert values == pytest.approx([6 / 9, 2 / 3, 4 / 6])
    assert found["all"]["scores"] == result["scores"]
    nothing = retention(result)
    assert nothing["replayed"] == {"n": 0, "scores": {}} and nothing["unseen"]["n"] == 9
    with pytest.raises(MemprobeError, match="f00 is not in this set"):
        retention(result, ["f00"])


def test_a_mean_of_overlaps_has_no_interval_of_yes_and_no():
    """Ten overlaps of a half each are sure to have the mean of a half; ten answers of which five are right are not."""
    rows = [{"final_answer": i % 2 == 0, "rouge_l": 0.5, "loss": 1.0, "tokens": 3} for i in range(10)]
    found = scores(rows, "task")
    assert found["rouge_l"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["final_answer"]["value"] == 0.5
    assert found["final_answer"]["low"] == pytest.approx(0.237, abs=1e-3)


def test_scores_of_few_rows_can_be_read_again():
    """Student's interval of twelve overlaps, of which eleven are whole, reaches beyond 1: that is no share."""
    rows = [{"final_answer": True, "rouge_l": float(i > 0), "loss": 1.0, "tokens": 3} for i in range(12)]
    found = scores(rows, "task")
    assert found["rouge_l"]["high"] == 1 and found["rouge_l"]["low"] < 11 / 12
    kept = EvaluatedSet.model_validate({"kind": "task", "metric": "rouge_l", "n": 12, "scores": found})
    assert kept.score.high == 1


def test_an_interval_of_few_rows_begins_at_0():
    rows = [{"rouge_l": value, "nats": value, "loss": 1.0, "tokens": 2} for value in [0.0] * 11 + [0.3]]
    found = scores(rows, "factoids")
    for metric in ("rouge_l", "nats"):
        assert found[metric]["low"] == 0 < found[metric]["value"] < found[metric]["high"] < 0.3
