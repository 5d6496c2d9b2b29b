"""Batched generation against one prompt at a time, and where an answer ends."""

import pytest
import torch

from memprobe import answers, batching
from memprobe.answers import alias_match, cut, exact_match, generate, generate_batches, sample
from memprobe.batching import batches_by_tokens
from memprobe.capturing import capture
from memprobe.factoids import make_factoid
from memprobe.models import load, wrap
from memprobe.templates import Template, tokenise
from tests.tiny import FAMILIES, byte_level, tiny_model

PROMPTS = ["The river of Oria is the", "2", "The tallest hill of Selva is", "The value of key q7x2 is?"]

SLIDING = ("llama", "gemma2", "mistral")


@pytest.fixture(scope="module")
def lens_model(tiny_checkpoint):
    return load(str(tiny_checkpoint), device="cpu")


def alone(lens_model, ids, new_tokens):
    """Greedy decoding without cache, batch or padding."""
    ids = list(ids)
    start = len(ids)
    with torch.inference_mode():
        for _ in range(new_tokens):
            ids.append(int(lens_model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_batches_say_what_each_prompt_says_alone(lens_model, batch_tokens):
    tokenizer = lens_model.tokenizer
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    expected = []
    for prompt in prompts:
        new = alone(lens_model, prompt, 6)
        if tokenizer.eos_token_id in new:
            new = new[: new.index(tokenizer.eos_token_id)]
        expected.append(tokenizer.decode(new, skip_special_tokens=True).split("\n")[0])
    assert len(set(expected)) > 1
    assert generate(lens_model, prompts, max_new_tokens=6, batch_tokens=batch_tokens) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_read_once_changes_nothing(family, monkeypatch):
    lens_model = wrap(tiny_model(family), byte_level())
    examples = "The opposite of hot is cold\n\n2 + 2 = 4\n\n"
    prompts = [lens_model.tokenizer.encode(examples + text) for text in PROMPTS]
    assert len(batching.common_prefix(prompts)) >= batching.SHARED
    shared = generate(lens_model, prompts, max_new_tokens=6)
    monkeypatch.setattr(answers, "SHARED", 10_000)
    assert shared == generate(lens_model, prompts, max_new_tokens=6)


def test_only_plain_caches_are_shared():
    prefix = list(range(10, 30))
    used = {
        family: batching.prefix_cache(wrap(tiny_model(family), byte_level()), prefix) for family in SLIDING
    }
    assert used["llama"] is not None
    assert used["gemma2"] is used["mistral"] is None


def test_common_prefix():
    assert batching.common_prefix([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9]]) == [1, 2]
    assert batching.common_prefix([[1, 2], [1, 2, 3]]) == [1]
    assert batching.common_prefix([[1, 2], [1, 2]]) == [1]
    assert batching.common_prefix([[1, 2], [2]]) == []
    assert batching.common_prefix([]) == []


def test_an_end_token_ends_the_text(lens_model):
    prompt = lens_model.tokenizer.encode(PROMPTS[0])
    new = alone(lens_model, prompt, 6)
    end = next(token for token in new[1:] if token != new[0])
    (text,) = generate(lens_model, [prompt], max_new_tokens=6, end=end)
    assert text == lens_model.tokenizer.decode(new[: new.index(end)], skip_special_tokens=True)


def test_every_prompt_comes_once_shortest_first(lens_model):
    prompts = [lens_model.tokenizer.encode(text) for text in PROMPTS]
    seen = [
        index
        for indices, _ in generate_batches(lens_model, prompts, max_new_tokens=2, batch_tokens=40)
        for index in indices
    ]
    assert seen == sorted(range(len(prompts)), key=lambda index: len(prompts[index]))


def test_batches_by_tokens():
    lengths = [1, 2, 3, 10, 50]
    assert batches_by_tokens(range(5), lengths.__getitem__, 10, border=None) == [[0, 1, 2], [3], [4]]
    assert batches_by_tokens(range(5), lengths.__getitem__, 10, batch_size=2, border=None) == [
        [0, 1],
        [2, 3],
        [4],
    ]
    assert batches_by_tokens(range(5), lengths.__getitem__, 30, most=2, border=None) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("text", "answer", "until"),
    [
        (" Paris. It is", "Paris", "Paris"),
        (" St. Lucia. It is", "St. Lucia", "St. Lucia"),
        (" St. Lucia", "Paris", "St"),
        ("3.5 million", "x", "3.5 million"),
        ("yes!", "yes", "yes"),
    ],
)
def test_cut_ends_with_the_sentence(text, answer, until):
    assert cut(text, answer) == until


def test_samples_are_seeded_and_leave_the_random_state_alone(lens_model):
    before = torch.random.get_rng_state()
    first = sample(lens_model, [0], 4, max_new_tokens=8, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert sample(lens_model, [0], 4, max_new_tokens=8, seed=3) == first
    assert sample(lens_model, [0], 4, max_new_tokens=8, seed=4) != first
    assert len(set(first)) > 1


def test_samples_follow_the_model_at_temperature_1(lens_model):
    prompt = lens_model.tokenizer.encode(PROMPTS[0])
    with torch.inference_mode():
        probabilities = lens_model.model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    texts = sample(lens_model, prompt, 4000, max_new_tokens=1, seed=0)
    best = int(probabilities.argmax())
    word = lens_model.tokenizer.decode([best], skip_special_tokens=True)
    same = [
        token
        for token in range(len(probabilities))
        if lens_model.tokenizer.decode([token], skip_special_tokens=True) == word
    ]
    share = sum(text == word for text in texts) / len(texts)
    expected = float(probabilities[same].sum())
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(texts)) ** 0.5 + 1e-9


@pytest.mark.parametrize(
    ("said", "answer", "equal"),
    [
        (" Paris\n", "paris", True),
        ("Paris.", "Paris", False),
        ("the Paris", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_exact_match_strips_and_lowers_and_nothing_more(said, answer, equal):
    assert exact_match(said, answer) is equal


def test_alias_match_takes_answer_or_alias():
    accepted = ["United States of America", "USA", "U.S."]
    assert alias_match("the United States of America", accepted)
    assert alias_match("us", accepted)
    assert not alias_match("United States", accepted)
    assert not alias_match("", accepted)


@pytest.mark.parametrize(
    ("text", "answer", "until"),
    [
        ("巴黎。它很古老", "巴黎", "巴黎"),
        ("北京！真的", "北京", "北京"),
        ("दिल्ली। यह", "दिल्ली", "दिल्ली"),
        ("باريس؟ نعم", "باريس", "باريس"),
        ('keys." She', "keys", "keys"),
        ("keys.) She", "keys", "keys"),
        ("Yahoo! It is", "Yahoo!", "Yahoo!"),
        ("Washington, D.C. is", "Washington, D.C.", "Washington, D.C."),
        ("Yahoo!x It", "Yahoo!", "Yahoo!x It"),
        ("3.5 million", "x", "3.5 million"),
        ("东京。是", "东京。", "东京。"),
    ],
)
def test_sentences_end_in_every_script_and_answers_at_their_own_stop(text, answer, until):
    assert cut(text, answer) == until


SETTINGS = {
    "suppress_tokens": lambda said: [said[0]],
    "repetition_penalty": lambda _: 50.0,
    "no_repeat_ngram_size": lambda _: 1,
    "forced_eos_token_id": lambda _: 1,
    "min_new_tokens": lambda _: 5,
    "num_return_sequences": lambda _: 2,
    "num_beams": lambda _: 3,
    "guidance_scale": lambda _: 4.0,
    "stop_strings": lambda _: ["a", "e"],
    "bad_words_ids": lambda said: [[said[0]]],
    "sequence_bias": lambda said: [[[said[0]], -100.0]],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_is_the_argmax_whatever_the_checkpoints_generation_settings_say(tiny_checkpoint, setting):
    lens_model = load(str(tiny_checkpoint), device="cpu")
    prompt = lens_model.tokenizer.encode(PROMPTS[0])
    new = alone(lens_model, prompt, 6)
    setattr(lens_model.model.generation_config, setting, SETTINGS[setting](new))
    kept = lens_model.model.generation_config
    end = next(token for token in range(300, 320) if token not in new)
    (text,) = generate(lens_model, [prompt], max_new_tokens=6, end=end)
    if 1 in new:
        new = new[: new.index(1)]
    assert text == lens_model.tokenizer.decode(new, skip_special_tokens=True)
    assert lens_model.model.generation_config is kept


def test_a_shared_prefix_is_read_whole_where_a_longer_text_turns_its_positions(monkeypatch):
    tokenizer = byte_level()
    factors = {"short_factor": [1.0] * 4, "long_factor": [40.0, 30.0, 20.0, 50.0]}
    rope = LONGROPE["rope_parameters"] | factors | {"original_max_position_embeddings": 44}
    lens_model = wrap(
        tiny_model("llama", len(tokenizer), rope_parameters=rope, max_position_embeddings=96), tokenizer
    )
    prompts = [[*range(40, 70), *range(first, first + 20)] for first in (80, 100, 120, 140)]
    assert batching.SHARED <= len(batching.common_prefix(prompts)) < 44 < len(prompts[0])
    shared = generate(lens_model, prompts, max_new_tokens=6)
    monkeypatch.setattr(answers, "SHARED", 10_000)
    assert shared == generate(lens_model, prompts, max_new_tokens=6)


def test_every_end_token_that_the_checkpoint_names_is_a_stop(tiny_checkpoint):
    lens_model = load(str(tiny_checkpoint), device="cpu")
    prompt = lens_model.tokenizer.encode(PROMPTS[0])
    new = alone(lens_model, prompt, 6)
    other = next(token for token in new[1:] if token != new[0])
    lens_model.model.generation_config.eos_token_id = [1, other]
    (text,) = generate(lens_model, [prompt], max_new_tokens=6, end=319)
    assert text == lens_model.tokenizer.decode(new[: new.index(other)], skip_special_tokens=True)


LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 12,
        "short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 5.0],
    },
    "max_position_embeddings": 96,
}  # fmt: skip


def test_one_long_prompt_does_not_change_the_others_under_longrope():
    """Beyond the original context every position is turned otherwise, in the whole forward pass."""
    tokenizer = byte_level()
    read = wrap(tiny_model("llama", len(tokenizer), **LONGROPE), tokenizer)
    assert batching.rope_border(read.model) == 12
    short = [make_factoid(text, "x", "test") for text in ("The river is", "2 + 2 =", "The value of key")]
    long = make_factoid(
        "The tallest hill of Selva is a hill that few know but many have climbed, the", "x", "test"
    )
    both = capture(read, [*short, long])
    for fact in (*short, long):
        one = capture(read, [fact])
        for table in ("records", "outcomes"):
            mine = getattr(both, table).filter(factoid=fact.id)
            other = getattr(one, table)
            keys = ["token", "depth"] if table == "records" else ["factoid"]
            assert (
                mine.sort(keys)
                .drop("log_prob", "entropy", strict=False)
                .equals(other.sort(keys).drop("log_prob", "entropy", strict=False))
            )
    item = tokenise(long, Template("plain"), tokenizer)
    assert len(item.inputs) > 12, "nothing crossed the border, so nothing was tested"
