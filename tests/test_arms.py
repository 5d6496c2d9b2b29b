"""Arms: parsed once, asked by attribute."""

import pytest

from memprobe.arms import Arm, arm_names, by_kind
from memprobe.errors import MemprobeError

REMIX = "remix(data=generic, stages=1)"
CONTROL = "matched(to=steps, data=generic, stages=1)"


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("none", {"is_naive"}),
        ("joint", {"is_joint", "sees_again"}),
        (CONTROL, {"is_control"}),
        (f"{CONTROL}+kl(strength=1, stages=2)", set()),
        (REMIX, {"mixes"}),
        (f"{REMIX}+replay(ratio=0.1, stages=2)", {"mixes", "sees_again"}),
        ("ewc(strength=1e+07, stages=2)", set()),
        ("replay(ratio=0.1, stages=2)", {"sees_again"}),
        ("made elsewhere, of no kind", set()),
    ],
)
def test_what_an_arm_is(text, yes):
    arm = Arm.of(text)
    names = ("is_naive", "is_joint", "is_control", "mixes", "sees_again")
    assert {name for name in names if getattr(arm, name)} == yes


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("remix(data=generic, stages=1)", True),
        ("remix(stages=1, data=generic)", True),
        ("remix(data=generic, stages=1,2)", False),
        ("remix(data=generic, stages=1,3)", False),
        ("remix(data=generic, stages=10)", False),
        ("remix(data=generic, stages=1)+remix(data=prose, stages=1, ratio=1)", True),
        (f"{REMIX}+replay(ratio=0.1, stages=2)", False),
        (CONTROL, False),
        ("none", False),
    ],
)
def test_mixing_in_stage_1_alone_is_that_and_nothing_more(text, alone):
    assert Arm.of(text).mixes_in_stage_1_alone() is alone


def test_stages_that_are_not_named_are_those_that_the_kind_has():
    arm = Arm.parse("lora(rank=2)+replay(ratio=0.1)+kl(strength=1, stages=3)")
    assert [part.stages_of(3) for part in arm.parts] == [(1, 2, 3), (2, 3), (3,)]
    assert [arm.is_plain_in(stage, 3) for stage in (1, 2, 3)] == [False, False, False]
    assert [Arm.parse(REMIX).is_plain_in(stage, 2) for stage in (1, 2)] == [False, True]
    assert Arm.parse("none").is_plain_in(2, 2) and not Arm.parse("joint").is_plain_in(2, 2)
    for stages, said in (("4", "from 1 to 3"), ("0", "from 1 to 3"), ("x", "from 1"), ("2,2", "twice")):
        with pytest.raises(MemprobeError, match=said):
            Arm.parse(f"replay(ratio=0.1, stages={stages})").parts[0].stages_of(3)


@pytest.mark.parametrize(
    ("two", "three", "same"),
    [
        ("replay(ratio=0.1, stages=2)", "replay(ratio=0.1, stages=2,3)", True),
        ("replay(ratio=0.1, stages=2)", "replay(ratio=0.1)", True),
        ("replay(ratio=0.1, stages=2)", "replay(ratio=0.1, stages=2)", False),
        ("replay(ratio=0.1, stages=2)", "replay(ratio=0.1, stages=3)", False),
        ("replay(ratio=0.1, stages=2)", "replay(ratio=0.2, stages=2,3)", False),
        ("lora(rank=2, stages=1,2)", "lora(rank=2, stages=1,2,3)", True),
        ("kl(strength=1, stages=2)+lora(rank=2, stages=2)", "kl(strength=1)+lora(rank=2, stages=2)", True),
        ("remix(data=generic, stages=1)", "remix(data=generic, stages=1)", True),
        ("remix(data=generic, stages=1,2)", "remix(data=generic, stages=1,2,3)", False),
        ("none", "none", True),
        ("somebody's own", "somebody's own", True),
    ],
)
def test_an_arm_is_the_same_in_longer_chains_where_it_is_done_in_every_stage_that_it_can_be(two, three, same):
    assert (Arm.of(two).in_chain(2).text == Arm.of(three).in_chain(3).text) is same


def test_arms_that_differ_in_one_option_are_one_arm_without_it():
    arms = (
        "remix(data=self, generic, stages=1, words=12,12)",
        "remix(words=12, 12, ratio=4, stages=1, data=self,generic)",
    )
    assert {Arm.of(text).without("ratio").text for text in arms} == {
        "remix(data=self,generic, stages=1, words=12,12)"
    }
    assert Arm.of(arms[0]).without("words") != Arm.of(arms[1]).without("words")
    for text in ("none", "somebody's own"):
        assert Arm.of(text).without("ratio").text == text


def test_mixing_rows_have_two_lengths():
    texts = (
        "remix(data=self, stages=1, words=12, 30)",
        "remix(data=self, stages=1, words=7)",
        "remix(data=self, stages=1)",
    )
    assert [Arm.of(text).parts[0].words for text in texts] == [("12", "30"), ("7", "7"), ("50", "50")]


def test_a_penalty_needs_no_row_of_its_own():
    """One that memprobe has never heard of is spelled, ordered and parsed like those that it has."""
    arm = Arm.parse("mas(strength=3, stages=2)")
    assert arm.parts[0].is_penalty and arm.name() == "MAS 3" and str(Arm.made_of(arm.parts)) == arm.text
    assert by_kind(["joint", REMIX, arm.text, "none", CONTROL]) == ["none", CONTROL, arm.text, REMIX, "joint"]
    assert not Arm.parse("mas").parts[0].is_penalty, "a penalty says how strong it is"


def test_what_is_no_arm_is_a_name():
    text = "my arm (2)"
    assert Arm.of(text).parts == () and Arm.of(text).name() == text
    assert arm_names([text, "none"]) == {text: text, "none": "naive"}
    assert by_kind([text, "joint"]) == ["joint", text]
    with pytest.raises(MemprobeError, match="my arm"):
        Arm.parse(text)


@pytest.mark.parametrize(
    "text", ["none", "joint", f"{REMIX}+replay(ratio=0.1, stages=2,3)", "ewc(strength=1e+07, stages=2)"]
)
def test_the_canonical_spelling_reads_back(text):
    assert Arm.made_of(Arm.parse(text).parts).text == text
    assert Arm.made_of([]).is_naive


def test_arms_that_differ_in_one_option_are_told_apart_by_it():
    generic = "remix(data=generic, stages=1, words=12,12)"
    random = "remix(data=random-words, stages=1, words=12,12, prompt=words)"
    names = arm_names(
        [
            "none",
            generic,
            generic.replace(")", ", prompt=sentence)"),
            generic.replace(")", ", order=shuffled)"),
            random,
            random.replace("prompt=words", "prompt=sentence"),
            random.replace("prompt", "redraw=true, prompt"),
        ]
    )
    assert list(names.values()) == [
        "naive",
        "REMIX generic",
        "REMIX generic prompt sentence",
        "REMIX generic order shuffled",
        "REMIX random-words prompt words",
        "REMIX random-words prompt sentence",
        "REMIX random-words prompt words redraw true",
    ]
    short, long = arm_names([generic, generic.replace("12,12", "50,50")]).values()
    assert (short, long) == ("REMIX generic words 12,12", "REMIX generic words 50,50")


def test_arms_that_differ_in_several_options_say_all_of_them():
    """One that is the only one with its ratio would pass for the first with another."""
    generic = "remix(data=generic, stages=1)"
    sentence, fourfold = (
        generic.replace(")", more) for more in (", prompt=sentence)", ", ratio=4, prompt=sentence)")
    )
    assert list(arm_names([generic, sentence, fourfold]).values()) == [
        "REMIX generic",
        "REMIX generic prompt sentence",
        "REMIX generic ratio 4 prompt sentence",
    ]
    assert arm_names([generic, fourfold])[fourfold] == "REMIX generic ratio 4 prompt sentence"


def test_shuffled_text_is_not_called_text():
    """Also where no other arm of that name stands beside it."""
    shuffled = "remix(data=generic, stages=1, order=shuffled)"
    assert (
        Arm.parse(shuffled).name()
        == arm_names(["none", shuffled])[shuffled]
        == "REMIX generic order shuffled"
    )
    fourfold = shuffled.replace("order", "ratio=4, order")
    assert arm_names([shuffled, fourfold])[fourfold] == "REMIX generic order shuffled ratio 4"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("remix(data=, stages=1)", "remix: give its data"),
        ("remix(data= , stages=1)", "remix: give its data"),
        ("remix(data=generic,, stages=1)", "remix: give its data"),
        ("remix(data=generic, stages=)", "remix: give its stages"),
        ("replay(ratio=)", "replay: give its ratio"),
        ("lora(rank=)", "lora: give its rank"),
        ("ewc(strength=)", "ewc: give its strength"),
        ("replay(ratio=0.1, ratio=0.5)", "replay: ratio is given twice"),
        ("remix(data=generic, data=random-words, stages=1)", "remix: data is given twice"),
    ],
)
def test_an_option_is_given_once_and_says_something(text, said):
    """What a variable leaves that is not set would be another arm, and so would the last of two."""
    with pytest.raises(MemprobeError, match=f"arm: {said}"):
        Arm.parse(text)
