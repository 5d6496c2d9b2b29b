"""One prompt at every depth: its numbers against a computation of their own, its sentence, and its page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from memprobe import sentences
from memprobe.dashboard import write_prompt
from memprobe.factoids import make_factoid
from memprobe.models import load
from memprobe.prompt_lens import read_prompt
from memprobe.templates import Template, tokenise
from tests.pages import AUDIT, chromium, opened
from tests.test_plots import prompt_reading

HOSTILE = "</script><img src=x onerror=window.pwned=1>"


def test_every_number_is_that_of_the_modules_applied_by_hand(tiny_checkpoint):
    model = load(str(tiny_checkpoint), device="cpu", dtype="float32")
    reading = read_prompt(model, "The river of Oria is the", answer="Lunn", top_k=3)
    asked = make_factoid("The river of Oria is the", "Lunn", "prompt")
    item = tokenise(asked, Template.parse("plain"), model.tokenizer, model.max_length, model.n_ids)
    ids = torch.tensor([[*item.prompt, *item.lead]])
    with torch.no_grad():
        found = model.model(ids, output_hidden_states=True)
        inner = model.model.model
        by_hand = [model.model.lm_head(inner.norm(stream[0])) for stream in found.hidden_states[:-1]]
        by_hand.append(found.logits[0])
    assert len(reading.top1) == len(by_hand) == reading.n_layers + 1
    last = softmax(by_hand[-1].double().numpy(), 1)
    target = item.answer[0]
    for depth, logits in enumerate(by_hand):
        shares = softmax(logits.double().numpy(), 1)
        order = np.argsort(-shares, 1)
        assert np.allclose(reading.entropy[depth], entropy(shares, axis=1), atol=1e-4), depth
        assert np.allclose(reading.kl[depth], entropy(last, shares, axis=1), atol=1e-4), depth
        assert np.allclose(reading.probability[depth], shares.max(1), atol=1e-5), depth
        for at, row in enumerate(order):
            said = [text for text, _ in reading.best[depth][at]]
            assert said == [model.tokenizer.decode([i]) for i in row[:3]], (depth, at)
            assert reading.answer_ranks[depth][at] == (shares[at] > shares[at, target]).sum()
        assert reading.answer_probability[depth] == pytest.approx(
            np.exp(log_softmax(logits.double().numpy(), 1)[-1, target]), abs=1e-6
        )
    assert np.allclose(reading.kl[-1], 0, atol=1e-6)


def test_the_sentence_says_what_since_when_and_where_the_answer_is():
    assert sentences.of_prompt(prompt_reading()) == (
        "The model says “Paris” with 60%, its first choice only at the last depth, 2 of 2. That is the answer. "
        "It first enters the top 10 at depth 1 of 2."
    )
    other = prompt_reading(answer_ranks=[[5, 60], [7, 8], [9, 12]], answer=" Rome")
    assert "The answer begins with “Rome”, at rank 12 at the end." in sentences.of_prompt(other)
    never = prompt_reading(answer_ranks=[[5, 60], [7, 80], [9, 12]])
    assert sentences.of_prompt(never).endswith("It is never among the top 10.")
    unasked = prompt_reading(answer=None, answer_ranks=None, top1=[["a", "x"], ["b", " P"], ["c", " P"]])
    assert sentences.of_prompt(unasked, named=True) == (
        "Read through logit, the model says “P” with 60%, its first choice from depth 1 of 2 on."
    )


def test_what_one_lens_reads_is_not_told_as_what_the_model_says():
    """Another checkpoint's readout says something else, and a fitted lens something else before the last depth."""
    for lens in ("logit@base", "tuned"):
        told = sentences.of_prompt(prompt_reading(lens=lens))
        assert told.startswith(f"Read through {lens}, the model says “Paris”")
    assert not sentences.names_lens([prompt_reading()])
    assert sentences.names_lens([prompt_reading(), prompt_reading(lens="tuned")])


class TestInABrowser:
    pytestmark = pytest.mark.browser

    @pytest.fixture(scope="class")
    def browser(self):
        with chromium() as launched:
            yield launched

    @pytest.mark.parametrize("width", [390, 1440])
    def test_a_reader_chooses_a_statistic_and_sees_the_top_tokens(self, browser, tmp_path, width):
        reading = prompt_reading(tokens=["The", HOSTILE])
        write_prompt([reading], tmp_path / "page.html", label="m", prompt=HOSTILE)
        with opened(browser, tmp_path / "page.html", width=width) as shown:
            assert shown.inner_text("h1") == f"m: {HOSTILE}" and shown.evaluate("window.pwned") is None
            assert "The model says “Paris”" in shown.inner_text("#answer")
            assert "surer of their first choice, whether or not" in shown.inner_text("p.note")
            shown.click("#statistic input[value=entropy]")
            assert "surer, with its probability on fewer tokens" in shown.inner_text("p.note")
            values = shown.evaluate("document.querySelector('.canvas').data[0].z")
            assert values == reading.entropy
            drawn = shown.locator(".canvas .nsewdrag").first.bounding_box()
            shown.mouse.move(drawn["x"] + 0.75 * drawn["width"], drawn["y"] + drawn["height"] / 6)
            hover = shown.wait_for_selector(".hoverlayer .hovertext")
            for told in ("depth 2", "60.0%", "rank of ·Paris: 0", "entropy 0.50 nats"):
                assert told in hover.text_content()
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            framed = shown.evaluate("document.querySelector('.canvas').layout.shapes.length")
            assert framed == sum(rank == 0 for row in reading.answer_ranks for rank in row) > 0
            ticks = shown.locator(".ytick text").all_text_contents()
            assert ticks[-1] == str(reading.n_layers), "the last depth is ticked"
            shown.mouse.move(0, 0)
            for scheme in ("light", "dark"):
                shown.emulate_media(color_scheme=scheme)
                assert shown.evaluate(AUDIT) == [], scheme


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_its_table_has_one_line_a_depth_in_a_terminal_of_80_columns(monkeypatch, answered, n):
    from dataclasses import replace
    from io import StringIO

    from memprobe.cli import lens, terminal

    reading = prompt_reading()
    top = [(" internationalisation", 0.5), *((f" token{i}", 0.05) for i in range(4))]
    long = replace(reading, best=[[top for _ in row] for row in reading.best])
    if not answered:
        long = replace(long, answer=None, answer_ranks=None, answer_probability=None)
    shown = StringIO()
    console = terminal.terminal(width=80, force_terminal=True, no_color=True, file=shown)
    monkeypatch.setattr(terminal, "terminal", lambda: console)
    lens._print([long] * n, "a model", 5)
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    depths = len(long.best)
    assert len([line for line in lines if "internat" in line]) == depths
    assert len(lines) <= depths + 3  # the label, and a head of two lines at most
