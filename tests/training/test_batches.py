"""Packed micro-batches: each row's logits and gradients are what the row gives by itself."""

import pytest
import torch
import torch.nn.functional as F

from memprobe.sources import load_factoids
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from training.batches import collator, model_inputs, packed, packed_tokens, padded
from training.examples import ExampleMaker
from training.mixing import IGNORED, Example


@pytest.fixture(scope="module")
def rows():
    make = ExampleMaker("tulu", tiny_tokenizer(), 256)
    return [make(factoid) for factoid in load_factoids("kvr:5")]


def summed_loss(model, batch):
    logits = model(**model_inputs(batch), use_cache=False).logits
    return logits, F.cross_entropy(logits.float(), batch["labels"], reduction="sum")


def gradients(model, loss):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "gpt2", "gemma3", "mistral"])
def test_a_packed_row_is_what_it_is_alone(family, rows):
    changes = {"sliding_window": 500} if "sliding_window" in FAMILIES[family][1] else {}
    model = tiny_model(family, vocab_size=len(tiny_tokenizer()), **changes)
    said = []
    assert collator(model, rows, packing=True, say=said.append) is not padded and not said
    batch = packed(rows)
    assert batch["input_ids"].shape == (1, packed_tokens(rows))
    logits, loss = summed_loss(model, batch)
    alone = [model(input_ids=torch.tensor([row.ids])).logits[0] for row in rows]
    kept = [part[torch.tensor(row.labels) != IGNORED] for part, row in zip(alone, rows, strict=True)]
    torch.testing.assert_close(logits, torch.cat(kept), atol=2e-5, rtol=1e-4)
    by_row = sum(
        F.cross_entropy(part, torch.tensor(row.labels), ignore_index=IGNORED, reduction="sum")
        for part, row in zip(alone, rows, strict=True)
    )
    torch.testing.assert_close(gradients(model, loss), gradients(model, by_row), atol=1e-4, rtol=1e-3)


@pytest.fixture
def mixed(rows):
    """Rows of different lengths, some of them in one template, one longer than every window."""
    long = tuple(range(10, 40))
    return [
        *rows[:3],
        Example(long, (*[IGNORED] * 9, *long[10:], 5), "long", own=False),
        Example((7, 8, 9), (IGNORED, 9, 3), "short"),
    ]


@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "gpt2", "gpt-neox", "gemma3", "mistral", "phi"])
def test_attention_row_by_row_is_attention_to_padded_rows(family, mixed, monkeypatch):
    """Grouped heads, windows of six tokens among longer rows: the same logits and, in float64, the same gradient."""
    model = tiny_model(family, vocab_size=len(tiny_tokenizer())).double()
    monkeypatch.setattr("training.batches._AS_COSTLY_AS_MOVING", -1e6)  # wherever the model allows it
    assert collator(model, mixed)(mixed)["attention_mask"].dtype == torch.int64
    batch, beside = packed(mixed, by_rows=True), padded(mixed)
    assert batch["input_ids"].shape == (1, packed_tokens(mixed))
    assert batch["attention_mask"].shape == (1, 1, len(mixed), max(len(row.ids) for row in mixed))
    logits, loss = summed_loss(model, batch)
    expected, summed = summed_loss(model, beside)
    assert torch.equal(batch["labels"], beside["labels"]) and torch.equal(
        batch["kept_row"], beside["kept_row"]
    )
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(gradients(model, loss), gradients(model, summed), atol=1e-6, rtol=1e-6)


def test_attention_row_by_row_computes_in_fp32_under_autocast(mixed):
    """Its results come back in the type of what it was given, no further off than a mask's."""
    model = tiny_model(vocab_size=len(tiny_tokenizer()))
    exact, _ = summed_loss(model, padded(mixed))
    with torch.autocast("cpu", torch.bfloat16):
        by_rows, _ = summed_loss(model, packed(mixed, by_rows=True))
        masked, _ = summed_loss(model, packed(mixed))
    assert by_rows.dtype == masked.dtype == torch.bfloat16
    assert (by_rows - exact).abs().max() < 1.5 * (masked - exact).abs().max()


def test_other_masks_are_read_as_before(rows):
    """A model that was trained by rows is asked with ordinary masks next."""
    from training.row_attention import understand_paths

    model = tiny_model(vocab_size=len(tiny_tokenizer()))
    ids = torch.tensor([rows[0].ids, rows[0].ids[::-1]])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    understand_paths()
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)
    assert torch.equal(model(input_ids=ids).logits[1:], model(input_ids=ids[1:]).logits)


@pytest.mark.parametrize("family", ["bloom", "gemma2"])
def test_a_model_that_computes_something_else_from_packed_rows_gets_padded_ones(family, rows):
    """No positions, or a window that counts the tokens between: found by asking the model."""
    model = tiny_model(family, vocab_size=len(tiny_tokenizer()))
    said = []
    batch = collator(model, rows, packing=True, say=said.append)(rows)
    assert batch["input_ids"].shape == (len(rows), max(len(row.ids) for row in rows))
    (line,) = said
    assert type(model).__name__ in line and "padded" in line


def test_a_model_is_asked_once_for_rows_of_a_length_and_again_for_longer_ones(rows):
    model = tiny_model(vocab_size=len(tiny_tokenizer()), max_position_embeddings=1024)
    long = [Example(tuple(range(n, n + 200)), (IGNORED, *[1] * 199), str(n)) for n in range(3)]
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    counts = []
    for some in (rows, rows[:1], [*rows, *long], rows, long):
        before = len(passes)
        collator(model, some)
        counts.append(len(passes) > before)
    assert counts == [True, False, True, False, False]
    model.to(torch.bfloat16)
    before = len(passes)
    collator(model, rows)
    assert len(passes) > before, "another precision"


def test_a_window_keeps_long_rows_from_being_packed_and_short_ones_not(rows):
    """Whichever come first."""
    model = tiny_model("gemma2", vocab_size=len(tiny_tokenizer()))
    window = model.config.sliding_window
    short = [Example(tuple(range(n, n + 3)), (IGNORED, 1, 1), str(n)) for n in range(3)]
    assert max(len(row.ids) for row in rows) > window > 3
    for some, packs in ((short, True), (rows, False), (short, True)):
        assert (collator(model, some) is not padded) == packs


def test_what_rows_share_before_their_loss_stands_once():
    rows = [
        Example((5, 6, 7, 8), (IGNORED, IGNORED, 8, 9), "a"),
        Example((5, 6, 7, 8), (IGNORED, IGNORED, 8, 1), "b", own=False),  # the same, but loss begins at 7
        Example((5, 6, 3), (IGNORED, 3, 4), "c"),
        Example((4, 5), (IGNORED, 2), "d"),
    ]
    batch = packed(rows)
    # a: 5 6 | 7 8, b: 7 8, c: (5) | 6 3 as its loss begins at 6, d: 4 | 5
    assert batch["input_ids"][0].tolist() == [5, 6, 7, 8, 7, 8, 6, 3, 4, 5]
    assert packed_tokens(rows) == 10
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 2, 3, 1, 2, 0, 1]
    assert batch["labels"].tolist() == [8, 9, 8, 1, 3, 4, 2]
    assert batch["kept_row"].tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert batch["own"].tolist() == [True, False, True, True]
    seen = batch["attention_mask"][0, 0]
    assert seen[3].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert seen[5].nonzero()[:, 0].tolist() == [0, 1, 4, 5]
    assert seen[7].nonzero()[:, 0].tolist() == [0, 6, 7]
    assert seen[9].nonzero()[:, 0].tolist() == [8, 9]
    scores = packed(rows, additive=torch.float32)["attention_mask"][0, 0]
    assert torch.equal(scores == 0, seen) and scores.min() == torch.finfo(torch.float32).min


def test_rows_go_the_way_that_is_least_work(rows, monkeypatch):
    """Attention under a mask costs the square of all packed tokens, row by row what it costs of padded rows."""
    monkeypatch.setattr(
        "training.batches._AS_COSTLY_AS_MOVING", 6
    )  # little beside a tiny model's products, too
    model = tiny_model(vocab_size=len(tiny_tokenizer()), max_position_embeddings=1024)
    long = [Example(tuple(range(n, n + 200)), (IGNORED, *[1] * 199), str(n)) for n in range(4)]
    alike = [Example((*range(90), n), (*[IGNORED] * 90, 1), str(n)) for n in range(100, 116)]
    collate = collator(model, [*rows, *long, *alike], packing=True, say=lambda line: None)

    def way(some):
        batch = collate(some)
        if "attention_mask" not in batch:
            return "padded"
        assert batch["input_ids"].shape == (1, packed_tokens(some))
        return "masked" if batch["attention_mask"].dtype == torch.bool else "by rows"

    assert way(alike) == "masked", "16 rows of 91 tokens are 106, packed"
    assert way(rows) == "by rows"
    assert way(long) == "padded", "nothing in common, nothing to fill up"
    assert way([rows[0]]) == "masked"
    assert collator(model, rows, packing=False, say=lambda line: None) is padded


def test_a_model_that_takes_no_paths_is_masked(rows):
    """Eager attention adds its mask to the scores; a pack of long rows is then padded, as its square costs more."""
    model = tiny_model(
        vocab_size=len(tiny_tokenizer()), attn_implementation="eager", max_position_embeddings=1024
    )
    long = [Example(tuple(range(n, n + 200)), (IGNORED, *[1] * 199), str(n)) for n in range(4)]
    collate = collator(model, [*rows, *long], packing=True, say=lambda line: None)
    assert collate(rows[:2])["attention_mask"].is_floating_point()
    assert collate(long)["input_ids"].shape[0] == 4
