"""Packed micro-batches: each row's logits and gradients are what the row gives by itself."""

from dataclasses import replace

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


@pytest.mark.parametrize("family", ["bloom", "mistral", "gemma2"])
def test_a_model_that_computes_something_else_from_packed_rows_gets_padded_ones(family, rows):
    """No positions, or a window that counts the tokens between: found by asking the model."""
    model = tiny_model(family, vocab_size=len(tiny_tokenizer()))
    said = []
    batch = collator(model, rows, packing=True, say=said.append)(rows)
    assert batch["input_ids"].shape == (len(rows), max(len(row.ids) for row in rows))
    (line,) = said
    assert type(model).__name__ in line and "padded" in line


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


def test_rows_are_packed_only_where_that_is_less_work(rows):
    """Attention over all packed tokens costs their square: long rows of nothing in common stay apart."""
    model = tiny_model(vocab_size=len(tiny_tokenizer()), max_position_embeddings=1024)
    collate = collator(model, rows, packing=True, say=lambda line: None)
    long = [Example(tuple(range(n, n + 200)), (IGNORED, *[1] * 199), str(n)) for n in range(4)]
    assert collate(rows[:2])["input_ids"].shape == (1, packed_tokens(rows[:2]))
    assert collate(long)["input_ids"].shape[0] == 4
    assert collate([replace(rows[0])])["input_ids"].shape == (1, len(rows[0].ids))
    assert collator(model, rows, packing=False, say=lambda line: None) is padded
