"""Templates and tokenisation: what a model is asked, token by token, under each kind of tokenizer."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, changed_fields, content_hash, factoid_id, factoids_hash, make_factoid
from memprobe.records import factoids_frame, factoids_from_frame
from memprobe.templates import LEAD, Template, tokenise, tokenise_all
from tests.tiny import TOKENIZERS, byte_level, sentencepiece, tiny_tokenizer

PLAIN = Template.parse("plain")
KINDS = sorted(TOKENIZERS)


def pieces(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(list(ids))


def text(tokenizer, ids):
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


# A factoid.


def test_ids_are_stable():
    assert factoid_id("kvr", "a b", "c") == "6d23d56d74d17b64", "ids stand in files that people have kept"
    one = make_factoid(
        " The capital of France is ", " Paris ", "known", aliases=["Paris", "City of Light", " "]
    )
    assert (one.prompt, one.answer, one.aliases) == ("The capital of France is", "Paris", ("City of Light",))
    assert one.id == factoid_id("known", "The capital of France is", "Paris")
    assert one.id == make_factoid("The capital of France is", "Paris", "known", relation="capital").id
    assert make_factoid("a", "b", "x", id="mine").id == "mine"


def test_ids_do_not_depend_on_the_process():
    script = "from memprobe.factoids import factoid_id; print(factoid_id('q', 'Zoë\\ud800?', '✓'))"
    run = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert run[0].stdout == run[1].stdout == factoid_id("q", "Zoë\ud800?", "✓") + "\n"


@given(
    st.lists(st.text(min_size=1), min_size=3, max_size=3),
    st.lists(st.text(min_size=1), min_size=3, max_size=3),
)
def test_ids_differ_where_anything_differs(one, other):
    assert (factoid_id(*one) == factoid_id(*other)) == (one == other)


@given(st.permutations([make_factoid(f"q{i}", f"a{i}", "s") for i in range(5)]))
def test_hash_of_a_set_ignores_order_only(factoids):
    assert factoids_hash(factoids) == factoids_hash(sorted(factoids, key=lambda factoid: factoid.prompt))
    changed = [*factoids[1:], make_factoid(factoids[0].prompt, "else", "s", id=factoids[0].id)]
    assert factoids_hash(changed) != factoids_hash(factoids) != factoids_hash(factoids[1:])


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(Factoid)])
def test_every_field_of_a_factoid_is_in_its_contents_hash(name):
    other: dict = {"aliases": ("b",), "popularity": 2.5}
    said = make_factoid(
        "The river of Oria is", "Lunn", "t", aliases=["a"], relation="r", subject="Oria", popularity=2
    )
    facts = [said, make_factoid("a", "b", "t")]
    changed = dataclasses.replace(said, **{name: other.get(name, "else")})
    assert (
        content_hash(facts)
        == content_hash(facts[::-1])
        == content_hash(factoids_from_frame(factoids_frame(facts)))
    )
    assert content_hash([changed, facts[1]]) != content_hash(facts)
    assert changed_fields(facts, [changed]) == ([] if name == "id" else [name])


@pytest.mark.parametrize(("prompt", "answer", "word"), [(" ", "a", "prompt"), ("a", "\n\t", "answer")])
def test_empty_prompt_or_answer_is_refused(prompt, answer, word):
    with pytest.raises(MemprobeError, match=f"the {word} is empty"):
        make_factoid(prompt, answer, "s")


# A template.


@pytest.mark.parametrize(
    "name",
    [
        "{question} {answer}",
        "{prompt} {answer} {id}",
        "{} {answer}",
        "{prompt.x} {answer}",
        "{prompt}",
        "{answer}",
        "",
        "Plain",
        "{prompt} {prompt} {answer}",
        "{prompt} {answer} {answer}",
        "{answer} {prompt}",
        "{prompt} {eos} {answer}",
        "{prompt} {answer}{eos}{eos}",
        "{prompt",
        "{prompt} {answer}}",
        "{prompt} {answer:>9}",
        "{prompt!r} {answer}",
    ],
)
def test_bad_templates_are_refused_in_one_line(name):
    with pytest.raises(MemprobeError) as caught:
        Template.parse(name)
    assert repr(name) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_unknown_field_is_named():
    with pytest.raises(
        MemprobeError, match=r"unknown field \{question\}; the fields are answer, eos, prompt"
    ):
        Template.parse("{question} {answer}")


def test_doubled_braces_are_literal():
    tokenizer = tiny_tokenizer()
    rendered = Template.parse("{{answer}} {prompt}: {{{answer}}}{eos}").render("Q", "A", tokenizer)
    assert (rendered.context, rendered.answer, rendered.end) == ("{answer} Q: {", "A", "}</s>")


@given(st.text(), st.text(min_size=1))
def test_braces_and_fields_in_a_factoid_are_literal(prompt, answer):
    rendered = Template.parse("[{prompt}] = {answer}{eos}").render(prompt, answer, tiny_tokenizer())
    assert rendered.context + rendered.answer + rendered.end == f"[{prompt}] = {answer}</s>"
    assert rendered.context == f"[{prompt}] ="


def test_shapes_of_the_named_templates():
    tokenizer = tiny_tokenizer()
    plain = PLAIN.render("The capital is ", "Paris", tokenizer)
    assert (plain.context, plain.answer, plain.end) == ("The capital is", " Paris", None)
    tulu = Template.parse("tulu").render("The capital is", "Paris", tokenizer)
    assert tulu.context == "<|user|>\nThe capital is\n<|assistant|>\n"
    assert (tulu.answer, tulu.end) == ("Paris", "</s>")
    chat = Template.parse("chat").render("The capital is", "Paris", tokenizer)
    assert chat.context == "<s><|user|>\nThe capital is<|assistant|>\n"
    assert (chat.answer, chat.end) == ("Paris", "</s>")


@pytest.mark.parametrize("answer", ["s", "user", "assistant", "<|assistant|>", "</s>", "{{ messages }}"])
def test_chat_answer_that_the_template_also_writes(answer):
    tokenizer = byte_level()
    # Writes the turn otherwise than its generation prompt does.
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}: {{ m['content'] }} </s>]{% endfor %}"
        "{% if add_generation_prompt %}>>{% endif %}"
    )
    rendered = Template.parse("chat").render("who?", answer, tokenizer)
    assert (rendered.context, rendered.answer) == ("[user: who? </s>][assistant:", " " + answer)
    assert rendered.end == "</s>]"


def test_chat_with_thoughts_before_the_answer():
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
        "{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rendered = Template.parse("chat").render("q", "a", tokenizer)
    assert rendered.context == "<user>q</s><assistant><think></think>" and rendered.end == "</s>"


def test_chat_is_refused_where_it_cannot_be():
    tokenizer = byte_level(chat=False)
    with pytest.raises(MemprobeError, match="no chat template; use plain or tulu"):
        Template.parse("chat").render("q", "a", tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(MemprobeError, match="does not write what the assistant says"):
        Template.parse("chat").render("q", "a", tokenizer)


@pytest.mark.parametrize("name", ["tulu", "{prompt} {answer}{eos}"])
def test_tokenizer_without_end_token(name):
    bare = byte_level(eos=False, pad=False)
    with pytest.raises(MemprobeError, match="this tokenizer has none"):
        Template.parse(name).render("q", "a", bare)
    item = tokenise(make_factoid("The river of Oria is the", "Lunn", "s"), PLAIN, bare)
    assert item.end is None and text(bare, spoken(item)) == " Lunn"


# Tokens.


def spoken(item):
    """The ids of the answer with the bare space that may stand before it."""
    return (*item.lead, *item.answer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_space_belongs_to_the_answer(kind):
    tokenizer = tiny_tokenizer(kind)
    item = tokenise(make_factoid("The river of Oria is the ", "Lunn", "s"), PLAIN, tokenizer)
    assert pieces(tokenizer, spoken(item))[0][0] in "Ġ▁"
    assert pieces(tokenizer, item.prompt)[-1] not in ("Ġ", "▁")
    joint = tokenizer.encode("The river of Oria is the Lunn")
    assert [*item.prompt, *spoken(item)] == joint, "asked as the same text would be read anywhere else"
    assert item.targets == spoken(item) and item.inputs == (*item.prompt, *spoken(item)[:-1])
    assert item.target_indices == (*(LEAD for _ in item.lead), *range(len(item.answer)))


@pytest.mark.parametrize(
    "template", ["plain", "tulu", "chat", "<s>{prompt} {answer}", "{prompt}\n{answer}{eos}"]
)
@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("build", [byte_level, sentencepiece])
def test_bos_stands_once(build, adds_bos, template):
    tokenizer = build(adds_bos=adds_bos)
    item = tokenise(
        make_factoid("The river of Oria is the", "Lunn", "s"), Template.parse(template), tokenizer
    )
    written = template == "chat" or template.startswith("<s>")
    assert list(item.inputs).count(tokenizer.bos_token_id) == int(adds_bos or written)
    if adds_bos or written:
        assert item.prompt[0] == tokenizer.bos_token_id


def test_bos_that_is_also_the_end_token():
    tokenizer = byte_level(adds_bos=True)
    tokenizer.eos_token = "<s>"
    item = tokenise(make_factoid("The river is", "Lunn", "s"), Template.parse("tulu"), tokenizer)
    assert item.prompt[0] == item.end == tokenizer.bos_token_id and item.prompt[1] != item.end


def test_bos_alone_is_a_prompt():
    nothing = Factoid(prompt=" ", answer="Lunn", source="s", id="x")
    assert tokenise(nothing, PLAIN, sentencepiece()).prompt[0] == 0
    with pytest.raises(MemprobeError, match="the prompt has no tokens, and the tokenizer adds no BOS"):
        tokenise(nothing, PLAIN, byte_level())


@pytest.mark.parametrize("kind", KINDS)
def test_digits(kind):
    tokenizer = tiny_tokenizer(kind)
    item = tokenise(make_factoid("12 + 7 =", "19", "s"), PLAIN, tokenizer)
    assert text(tokenizer, spoken(item)).strip() == "19"
    if kind == "byte-level-digits":
        assert pieces(tokenizer, spoken(item))[-2:] == ["1", "9"]


@pytest.mark.parametrize(("prompt", "answer"), [("The riv", "er"), ("The tall", "est"), ("Mount Gre", "y")])
def test_answer_that_merges_with_the_prompt(prompt, answer):
    tokenizer = tiny_tokenizer("byte-level")
    context = tokenizer.encode(prompt)
    assert tokenizer.encode(prompt + answer)[: len(context)] != context, (
        "this pair merges, or the test is empty"
    )
    item = tokenise(make_factoid(prompt, answer, "s"), Template.parse("{prompt}{answer}"), tokenizer)
    assert list(item.prompt) == context
    assert text(tokenizer, spoken(item)) == answer


def test_sentencepiece_adds_no_space_of_its_own_to_an_answer_encoded_apart():
    tokenizer = tiny_tokenizer("sentencepiece")
    prompt, answer = "The riv", "er"
    context = tokenizer.encode(prompt)
    assert tokenizer.encode(prompt + answer)[: len(context)] != context
    item = tokenise(make_factoid(prompt, answer, "s"), Template.parse("{prompt}{answer}"), tokenizer)
    assert "▁" not in "".join(pieces(tokenizer, spoken(item)))
    assert text(tokenizer, [*item.prompt, *spoken(item)]) == text(tokenizer, tokenizer.encode("The river"))


ENDS = {"tulu": "</s>", "chat": "</s>", "{prompt} {answer}{eos}": "</s>", "{prompt} {answer}.": "."}


@pytest.mark.parametrize("template", ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_end_token(kind, template):
    tokenizer = tiny_tokenizer(kind)
    item = tokenise(
        make_factoid("The river of Oria is the", "Mount Grey", "s"), Template.parse(template), tokenizer
    )
    assert pieces(tokenizer, [item.end]) == [ENDS[template]]
    assert item.targets == (*spoken(item), item.end)
    assert item.inputs == (*item.prompt, *spoken(item)), "the end token is predicted, not given"
    assert item.target_indices == (*(LEAD for _ in item.lead), *range(len(item.answer)), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_end_is_encoded_as_it_follows_the_answer(kind):
    tokenizer = tiny_tokenizer(kind)
    item = tokenise(make_factoid("a", "Lunn", "s"), Template.parse("{prompt} is {answer}\n{eos}"), tokenizer)
    assert text(tokenizer, [item.end]) == "\n", "not the space that SentencePiece puts before a text"


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)  # the first call makes the tokenizer
@given(
    prompt=TEXT,
    answer=TEXT,
    template=st.sampled_from(["plain", "tulu", "chat", "{prompt}{answer}", "Q: {prompt}\nA: {answer}{eos}"]),
)
def test_decoding_gives_the_answer_back_or_the_factoid_is_refused(kind, prompt, answer, template):
    tokenizer, parsed = tiny_tokenizer(kind), Template.parse(template)
    if not prompt.strip() or not answer.strip():
        return
    factoid = make_factoid(prompt, answer, "s")
    try:
        item = tokenise(factoid, parsed, tokenizer)
    except MemprobeError as error:
        assert factoid.id in str(error)
        return
    before, whole = text(tokenizer, item.prompt), text(tokenizer, [*item.prompt, *spoken(item)])
    assert whole.startswith(before) and whole[len(before) :].strip() == factoid.answer
    rendered = parsed.render(factoid.prompt, factoid.answer, tokenizer)
    if kind != "sentencepiece":  # byte-level BPE loses nothing: the ids are the text
        assert whole.removeprefix("<s>") == (rendered.context + rendered.answer).removeprefix("<s>")
    assert item.targets[: len(spoken(item))] == spoken(item) and len(spoken(item)) >= 1


@pytest.mark.parametrize("kind", KINDS)
@given(answer=st.text("abcdefgh0123456789 .", min_size=1, max_size=10))
def test_plain_answers_of_plain_characters_are_never_refused(kind, answer):
    if not answer.strip():
        return
    tokenizer = tiny_tokenizer(kind)
    factoid = make_factoid("The river of Oria is the", answer, "s")
    item = tokenise(factoid, PLAIN, tokenizer)
    assert text(tokenizer, spoken(item)).strip() == factoid.answer
    joint = tokenizer.encode(f"{factoid.prompt} {factoid.answer}")
    assert [*item.prompt, *spoken(item)] == joint


def test_answer_without_tokens():
    from tokenizers import normalizers

    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("Lunn", "")
    with pytest.raises(MemprobeError, match="has no tokens") as caught:
        tokenise(make_factoid("river", "Lunn", "s", id="f7"), Template.parse("{prompt}\n{answer}"), tokenizer)
    assert "f7" in str(caught.value) and "'Lunn'" in str(caught.value)


def test_answer_that_the_tokenizer_changes():
    from tokenizers import normalizers

    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(MemprobeError, match="cannot be written in this tokenizer") as caught:
        tokenise(make_factoid("river", "Lunn", "s"), PLAIN, tokenizer)
    assert "' lunn'" in str(caught.value)


def test_prompt_beyond_the_context():
    tokenizer = tiny_tokenizer()
    factoid = make_factoid("The river of Oria is the", "Mount Grey", "s", id="f9")
    fits = len(tokenise(factoid, PLAIN, tokenizer).inputs)
    assert tokenise(factoid, PLAIN, tokenizer, max_length=fits)
    with pytest.raises(
        MemprobeError, match=f"f9.*{fits} tokens do not fit the model's context of {fits - 1}"
    ):
        tokenise(factoid, PLAIN, tokenizer, max_length=fits - 1)


def test_tokenise_all_keeps_the_order_and_names_the_bad_one():
    tokenizer = tiny_tokenizer()
    factoids = [make_factoid(f"q {i}", "Lunn", "s") for i in range(4)]
    assert [item.factoid for item in tokenise_all(factoids, PLAIN, tokenizer)] == factoids
    long = make_factoid("river " * 50, "Lunn", "s")
    with pytest.raises(MemprobeError, match=long.id):
        tokenise_all([*factoids, long], PLAIN, tokenizer, max_length=20)


def test_factoids_import_nothing_heavy():
    script = (
        "import sys, json, memprobe.factoids\n"
        "print(json.dumps([name for name in ('torch', 'transformers') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("field", ["prompt", "answer", "aliases", "relation", "subject"])
@pytest.mark.parametrize("character", ["\ud800", "\udfff", "\0"])
def test_half_a_character_is_no_text(field, character):
    values = {"prompt": "The river is", "answer": "Lunn", "aliases": (), "relation": None, "subject": None}
    text = f"a{character}b"
    with pytest.raises(MemprobeError, match="no character") as raised:
        make_factoid(**values | {field: (text,) if field == "aliases" else text}, source="s")
    str(raised.value).encode()  # the message itself can be shown
