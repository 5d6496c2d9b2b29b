"""Chat templates that ask for the date, raise, loop or write without end; and where a chat's answer ends."""

import time

import pytest

from memprobe import chats
from memprobe.chats import render_chat
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.templates import Template, tokenise
from tests.tiny import byte_level, sentencepiece

TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
BODY = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def with_template(text: str):
    tokenizer = byte_level()
    tokenizer.chat_template = text
    return tokenizer


def test_today_is_always_the_same_day():
    dated = with_template("{{ strftime_now('%d %b %Y') }} " + BODY)
    assert render_chat(dated, TURNS) == "26 Jul 2024 QA"
    from transformers.utils import chat_template_utils

    assert chat_template_utils.datetime.now().year > 2024, "outside, today is today"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7]['content'] }}", "cannot be rendered"),
        ("{% for %}", "cannot be rendered"),
        ("{{ 1 // 0 }}", "cannot be rendered"),
        ("{{ 'x' * 20000000 }}" + BODY, "writes 20,000,002 characters"),
        ("", "no chat template"),
    ],
)
def test_templates_that_fail_or_write_without_end(text, words):
    with pytest.raises(MemprobeError, match=words) as caught:
        render_chat(with_template(text), TURNS)
    assert len(str(caught.value).splitlines()) == 1


def test_templates_that_loop_are_stopped(monkeypatch):
    monkeypatch.setattr(chats, "SECONDS", 0.5)
    inner = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    start = time.monotonic()
    with pytest.raises(MemprobeError, match=r"not rendered within 0\.5 s"):
        render_chat(with_template(inner + BODY), TURNS)
    assert time.monotonic() - start < 60
    for _ in range(3):  # nothing is left over that stops what comes next
        assert render_chat(with_template(BODY), TURNS) == "QA"


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_space_before_an_end_token_is_not_the_end(make):
    """Llama 2's template: ``[INST] question [/INST] answer </s>``."""
    tokenizer = make()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    item = tokenise(make_factoid("When?", "1984", "test"), Template("chat"), tokenizer)
    assert item.end == tokenizer.eos_token_id
    assert tokenizer.decode(item.targets, skip_special_tokens=True).strip() == "1984"


PART = "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
BY_PARTS = {
    "of both": "{% for m in messages %}<|{{ m['role'] }}|>" + PART + "</s>{% endfor %}",
    "of the user": "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'user' %}"
    + PART
    + "{% else %}{{ m['content'] }}{% endif %}</s>{% endfor %}",
}


@pytest.mark.parametrize("whose", BY_PARTS)
def test_templates_that_read_the_parts_of_a_message(whose):
    """As models that also see pictures do; of a text they write nothing, and the model was asked without a question."""
    tokenizer = with_template(BY_PARTS[whose])
    item = tokenise(make_factoid("The river is", "Lunn", "test"), Template("chat"), tokenizer)
    assert tokenizer.decode(item.prompt) == "<|user|>The river is</s><|assistant|>"
    assert tokenizer.decode(item.targets) == "Lunn</s>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for m in messages %}{% if m['role'] == 'user' %}x{% endif %}{% endfor %}", "assistant says"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "assistant says"),
        ("{{ messages[-1]['content'] }}</s>", "does not write what the user says"),
        (BODY + "{{ messages[-1]['content'] }}", "more than once"),
    ],
)
def test_templates_that_leave_out_what_was_said(text, words):
    with pytest.raises(MemprobeError, match=words):
        tokenise(make_factoid("The river is", "Lunn", "test"), Template("chat"), with_template(text))


def test_a_template_may_trim_what_the_user_says():
    tokenizer = with_template(
        "{% for m in messages %}{{ m['content'] | trim | replace('  ', ' ') }}|{% endfor %}"
    )
    item = tokenise(make_factoid("The  river is ", "Lunn", "test"), Template("chat"), tokenizer)
    assert tokenizer.decode(item.prompt) == "The river is|"
