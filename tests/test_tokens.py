"""Tokens before a text, before an answer and beyond a model; and answers that Unicode can write in two ways."""

import unicodedata

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from memprobe.answers import exact_match
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, make_factoid
from memprobe.models import wrap
from memprobe.statistics.holding import by_rule
from memprobe.templates import LEAD, Template, tokenise
from tests import oracle
from tests.tiny import byte_level, sentencepiece, tiny_model

FACT = make_factoid("The river of Oria is the", "Lunn", "test")


def adding(single: str, *names: str):
    """A tokenizer that puts tokens around every text."""
    tokenizer = byte_level()
    pairs = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=pairs
    )
    return tokenizer


@pytest.mark.parametrize("template", ["plain", "tulu", "chat"])
@pytest.mark.parametrize(
    ("single", "names"),
    [
        ("<|user|> <pad> $A", ("<|user|>", "<pad>")),  # GLM: two tokens, neither of them BOS
        ("</s> $A", ("</s>",)),  # XGLM, BioGPT: the end token
        ("<s> $A </s>", ("<s>", "</s>")),  # an end token appended to every text belongs to no prompt
    ],
)
def test_what_the_tokenizer_puts_before_a_text_stands_once(template, single, names):
    tokenizer = adding(single, *names)
    before = [tokenizer.convert_tokens_to_ids(name) for name in single.split("$A")[0].split()]
    item = tokenise(FACT, Template(template), tokenizer)
    assert list(item.prompt[: len(before)]) == before
    bare = tokenise(FACT, Template(template), byte_level(adds_bos=False))
    rest = list(item.prompt[len(before) :])
    # The chat template of these tokenizers begins with <s> itself.
    assert rest == list(bare.prompt) or [*before[-1:], *rest] == list(bare.prompt)
    assert item.targets == bare.targets


def test_a_prefix_that_the_chat_template_writes_itself_is_not_put_twice():
    tokenizer = adding("<|user|> <pad> $A", "<|user|>", "<pad>")
    marks = tokenizer.convert_tokens_to_ids(["<|user|>", "<pad>"])
    for start, written in (("<|user|><pad>", marks), ("<pad>", marks)):
        tokenizer.chat_template = start + "{% for m in messages %}{{ m['content'] }}:{% endfor %}"
        prompt = list(tokenise(FACT, Template("chat"), tokenizer).prompt)
        assert prompt[:2] == written and not set(prompt[2:]) & set(marks)


def test_a_bare_space_before_an_answer_is_not_its_first_token():
    """Every number begins with it, so the rule ``first`` would hold made-up ones at 100 %."""
    tokenizer = byte_level(digits=True)
    model = tiny_model("llama", len(tokenizer))
    facts = [
        make_factoid(f"The value of key {key} is", answer, "test")
        for key, answer in (("q", "1984"), ("z", "2003"))
    ]
    read = wrap(model, tokenizer)
    tables = capture(read, facts)
    for fact in facts:
        item = tokenise(fact, Template("plain"), tokenizer)
        assert tokenizer.decode(item.lead) == " " and item.target_indices == (LEAD, 0, 1, 2, 3)
        assert tokenizer.decode(item.answer) == fact.answer
        logits = oracle.answer_logits(model, item.prompt, item.targets)
        for row in tables.records.filter(factoid=fact.id).iter_rows(named=True):
            place = item.target_indices.index(row["token"])
            expected = oracle.Row(logits[row["depth"], place], item.targets[place])
            assert row["token_id"] == item.targets[place]
            assert row["log_prob"] == pytest.approx(expected.log_prob, abs=1e-4)
        controls = tables.controls.filter(factoid=fact.id)
        assert LEAD not in controls["token"]
        (other,) = (tokenise(one, Template("plain"), tokenizer) for one in facts if one is not fact)
        for row in controls.iter_rows(named=True):
            place = item.target_indices.index(row["token"])
            assert row["token_id"] == other.answer[row["token"]]
            assert row["rank"] == oracle.Row(logits[row["depth"], place], row["token_id"]).rank
    first = by_rule(tables.records, token="first")
    wanted = tables.records.filter(token=0)
    assert sorted(first["rank"]) == sorted(wanted["rank"]) and len(first) == 2 * (read.n_layers + 1)


def test_answers_that_unicode_can_write_in_two_ways():
    tokenizer = sentencepiece()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), backend.normalizer])
    composed, apart = (unicodedata.normalize(form, "São Luís") for form in ("NFC", "NFD"))
    assert composed != apart
    items = [
        tokenise(make_factoid("The town is", answer, "test"), Template("plain"), tokenizer)
        for answer in (composed, apart)
    ]
    assert items[0].targets == items[1].targets
    assert exact_match(composed, apart) and not exact_match(composed, "Sao Luis")


def test_text_that_is_no_unicode_names_its_factoid():
    for prompt, answer in (("The \ud800 is", "x"), ("The hill is", "L\udfffx")):
        with pytest.raises(MemprobeError, match="half a surrogate pair"):
            tokenise(Factoid(prompt, answer, "test", "an-id"), Template("plain"), byte_level())


def test_a_token_beyond_the_embedding_names_its_factoid():
    tokenizer = byte_level()
    model = tiny_model("llama", len(tokenizer))
    tokenizer.add_tokens(["river"])
    read = wrap(model, tokenizer)
    assert read.n_ids == len(tokenizer) - 1
    with pytest.raises(MemprobeError, match=r"the token 'river' has the id 320, and the model knows 320"):
        capture(read, [FACT])


def letters(model: models.Model):
    """A tokenizer of a few signs that puts BOS before every text."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


SIGNS = {sign: index for index, sign in enumerate(["<s>", "</s>", "1", "2", "3", "+", "="])}


@pytest.mark.parametrize("model", [models.BPE(vocab=SIGNS, merges=[]), models.WordLevel(SIGNS)])
def test_bos_stands_before_a_text_also_where_the_vocabulary_has_no_letters(model):
    """One kind of tokenizer drops a letter that it does not know, the other raises."""
    item = tokenise(make_factoid("1 + 2 =", "3", "test"), Template("plain"), letters(model))
    assert item.prompt == (0, 2, 5, 3, 6) and item.answer == (4,)


def test_a_text_that_a_tokenizer_cannot_read_names_its_factoid():
    for prompt, answer in (("x + 2 =", "3"), ("1 + 2 =", "y")):
        with pytest.raises(MemprobeError, match=r"factoid .* the tokenizer cannot read"):
            tokenise(
                make_factoid(prompt, answer, "test"), Template("plain"), letters(models.WordLevel(SIGNS))
            )


@pytest.mark.parametrize("answer", ["</s>", "a</s>b", "<s>"])
def test_an_answer_that_ends_a_text_is_refused(answer):
    with pytest.raises(MemprobeError, match="begins or ends a text"):
        tokenise(make_factoid("The mark is", answer, "test"), Template("plain"), byte_level())
