import random

import pytest

from memprobe.errors import MemprobeError
from memprobe.metrics import (
    containment,
    gsm8k_answer,
    math_answer,
    normalise,
    rouge_l,
    same_final_answer,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  United States of America.", "united states of america"),
        ("An apple, a pear", "apple pear"),
        ("theatre", "theatre"),  # an article is a word, not a prefix
        ("Ｐａｒｉｓ", "paris"),  # full-width letters
        ("Straße", "strasse"),
        ("“Hamlet”", "hamlet"),
        ("A", "a"),  # an answer that is an article stays
        ("+", "+"),
        ("AC/DC", "acdc"),
    ],
)
def test_normalise(text, normal):
    assert normalise(text) == normal


def test_containment_is_of_whole_words():
    assert containment("It is the Padmé Amidala of Naboo", ["Padmé Amidala"])
    assert not containment("Parisian", ["Paris"])
    assert containment("He spoke U.S. English", ["us english"])


def test_rouge_l_by_hand():
    # Words: the cat sat | the cat is here -> common subsequence "the cat", P = 2/3, R = 2/4, F1 = 4/7.
    assert rouge_l("The cat sat", "the cat is here") == pytest.approx(4 / 7)
    assert rouge_l("a b c", "c b a") == pytest.approx(1 / 3)
    assert rouge_l("same words", "Same words!") == 1
    assert rouge_l("", "words") == 0


def test_rouge_l_agrees_with_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    draw = random.Random(0)
    vocabulary = ["the", "Cat", "sat", "3.5", "on", "mat,", "—", "naïve", "x_y", "it's"]
    for _ in range(200):
        said, right = (" ".join(draw.choices(vocabulary, k=draw.randrange(12))) for _ in range(2))
        expected = scorer.score(right, said)["rougeL"].fmeasure
        assert rouge_l(said, right) == pytest.approx(expected, abs=1e-12), (said, right)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 5\n#### 1,234", "1234"),
        ("#### 18.00", "18"),
        ("#### $70000.", "70000"),
        ("#### -0", "0"),
        ("#### 100", "100"),
        ("#### -3.50", "-3.5"),
        ("the answer is 18", None),
        ("####", None),
    ],
)
def test_gsm8k_answer(text, answer):
    assert gsm8k_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\boxed{\dfrac{9}{7}}", r"$\boxed{\frac97}$", True),
        (r"\boxed{1} then \boxed{\frac{3}{4}}", r"\boxed{3/4}", True),
        (r"\boxed{0.5}", r"\boxed{\tfrac12}", True),
        (r"\boxed{x \in [-2,7]}", r"\boxed{x\in[-2,7]}", True),
        (r"\boxed{k = 5}", r"\boxed{5}", True),
        (r"\boxed{.25}", r"\boxed{0.25}", True),
        (r"\boxed{12\%}", r"\boxed{12}", True),
        (r"\boxed{90^\circ}", r"\boxed{90}", True),
        (r"\boxed{5\text{ cm}}", r"\boxed{5}", True),
        (r"\boxed{\left(1,2\right)}", r"\boxed{(1,2)}", True),
        (r"\boxed{\sqrt3}", r"\boxed{\sqrt{3}}", True),
        (r"is $\boxed 4$.", r"\boxed{4}", True),
        (r"\fbox{4}", r"\boxed{4}", True),
        (r"\boxed{4}", r"\boxed{5}", False),
        (r"4", r"\boxed{4}", False),
        (r"\boxed{4", r"\boxed{4}", False),
        (r"\boxed{a=b=c}", r"\boxed{b=c}", False),
    ],
)
def test_math_answers(one, other, same):
    assert same_final_answer("math", one, other) is same


def test_final_answers_need_a_rule_and_a_reference():
    assert math_answer("no box") is None
    with pytest.raises(MemprobeError, match="mbpp: no rule"):
        same_final_answer("mbpp", "1", "1")
    with pytest.raises(MemprobeError, match="without a final answer"):
        same_final_answer("gsm8k", "#### 4", "four")
