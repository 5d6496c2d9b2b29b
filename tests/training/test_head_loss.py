"""The loss a few positions at a time: that of all logits at once, in value, gradient and what is right."""

import copy

import pytest
import torch
import torch.nn.functional as F

from memprobe.sources import load_factoids
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.runs import losses, small
from training import head_loss
from training.batches import model_inputs, own_rows_exact, own_rows_right, packed, padded
from training.examples import ExampleMaker
from training.head_loss import BlockwiseHead
from training.mixing import IGNORED
from training.run import run


@pytest.fixture(scope="module")
def rows():
    make = ExampleMaker("tulu", tiny_tokenizer(), 256)
    return [make(factoid, own=index % 2 == 0) for index, factoid in enumerate(load_factoids("kvr:7"))]


def one_model(tied=False, biased=False):
    model = tiny_model(vocab_size=len(tiny_tokenizer()), tie_word_embeddings=tied)
    if biased:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(model.lm_head.out_features))
    with torch.no_grad():
        for (
            weight
        ) in model.parameters():  # so that some labels are the argmax's rivals and gradients are not tiny
            weight.mul_(3)
    return model


def at_once(model, batch, autocast):
    """Loss and gradients of all logits at once, by torch's own cross-entropy."""
    model = copy.deepcopy(model)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        logits = model(**model_inputs(batch), use_cache=False).logits
    nats = F.cross_entropy(logits.float(), batch["labels"], reduction="none", ignore_index=IGNORED)
    (nats.sum() / 7).backward()
    return logits, nats, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("make", [padded, packed])
@pytest.mark.parametrize("tied, biased", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_blocks_give_the_loss_and_the_gradients_of_all_logits(
    block, make, tied, biased, autocast, rows, monkeypatch
):
    model, batch = one_model(tied, biased), make(rows)
    batch["labels"][3] = IGNORED
    monkeypatch.setattr(head_loss, "_BLOCK_BYTES", 4 * block * model.lm_head.out_features)
    logits, nats, gradients = at_once(model, batch, autocast)
    place = batch["labels"], batch["kept_row"], batch["own"]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        counted = BlockwiseHead(model, autocast)(
            model, model_inputs(batch), batch["labels"], batch["own"][batch["kept_row"]], 7
        )
    counted.loss.backward()
    near = 1e-5 if autocast is None else 2e-2
    torch.testing.assert_close(counted.nats, nats.detach(), rtol=1e-5, atol=1e-5)
    assert own_rows_right(counted.right, *place).tolist() == own_rows_exact(logits, *place).tolist()
    for parameter, wanted in zip(model.parameters(), gradients, strict=True):
        assert float((parameter.grad - wanted).norm() / wanted.norm()) < near


def test_gradients_of_tied_weights_add_up_over_micro_batches(rows):
    whole, parts = one_model(tied=True), one_model(tied=True)
    head = BlockwiseHead(parts, None)
    for some in (rows[:3], rows[3:]):
        batch = padded(some)
        F.cross_entropy(whole(**model_inputs(batch)).logits, batch["labels"], reduction="sum").div(
            7
        ).backward()
        asked = batch["own"][batch["kept_row"]]
        head(parts, model_inputs(batch), batch["labels"], asked, 7).loss.backward()
    for mine, wanted in zip(parts.parameters(), whole.parameters(), strict=True):
        assert not mine.grad.is_sparse
        assert float((mine.grad - wanted.grad).norm() / wanted.grad.norm()) < 1e-5
    assert not parts.get_input_embeddings().sparse


def test_logits_of_a_later_micro_batch_in_the_same_memory_are_refused_to_an_earlier_backward_pass(rows):
    model, batch = one_model(), padded(rows)
    head, asked = BlockwiseHead(model, None), batch["own"][batch["kept_row"]]
    first = head(model, model_inputs(batch), batch["labels"], asked, 7)
    head(model, model_inputs(batch), batch["labels"], asked, 7)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.loss.backward()


def test_what_is_right_is_the_argmax_and_of_asked_positions_alone(rows):
    model, batch = one_model(), padded(rows)
    best = model(**model_inputs(batch), use_cache=False).logits.argmax(-1)
    asked = torch.arange(len(best)) % 3 != 0
    labels = best.where(torch.arange(len(best)) % 2 == 0, batch["labels"])
    counted = BlockwiseHead(model, None)(model, model_inputs(batch), labels, asked, 7)
    assert counted.right.tolist() == ((labels == best) & asked).tolist()
    assert 0 < int(counted.right.sum()) < len(best)


def test_weights_that_are_not_trained_have_no_gradient(rows):
    model, batch = one_model(), padded(rows)
    model.lm_head.weight.requires_grad_(False)
    _, _, gradients = at_once(model, batch, None)
    counted = BlockwiseHead(model, None)(
        model, model_inputs(batch), batch["labels"], batch["own"][batch["kept_row"]], 7
    )
    counted.loss.backward()
    assert model.lm_head.weight.grad is None
    mine = model.model.embed_tokens.weight.grad
    assert float((mine - gradients[0]).norm() / gradients[0].norm()) < 1e-5


def test_no_rows_carry_no_loss():
    model, batch = one_model(), padded([])
    counted = BlockwiseHead(model, None)(
        model, model_inputs(batch), batch["labels"], torch.zeros(0, dtype=torch.bool), 3
    )
    counted.loss.backward()
    assert counted.loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def patched(change):
    """A model whose forward pass does something to what its unembedding gives."""
    model = one_model()
    forward = model.forward

    def changed(*args, **kwargs):
        result = forward(*args, **kwargs)
        result.logits = change(result.logits)
        return result

    model.forward = changed
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: 30 * torch.tanh(logits / 30),
        lambda logits: logits / 1.01,
        lambda logits: logits[..., :-1],
    ],
    ids=["cap", "scale", "cut"],
)
def test_logits_that_are_changed_after_the_unembedding_are_computed_whole(change, rows):
    model = patched(change)
    assert "does something" in str(BlockwiseHead(model, None).unfit(model, padded(rows[:2])))


def test_a_model_that_gives_all_logits_is_left_to_the_error_that_tells_it(rows):
    model = one_model()
    forward = model.forward
    model.forward = lambda *args, logits_to_keep=None, **kwargs: forward(*args, **kwargs)
    assert "logits_to_keep" in str(BlockwiseHead(model, None).unfit(model, padded(rows[:2])))


def test_a_loss_that_is_not_the_cross_entropy_is_left_to_the_model(rows):
    model = one_model()
    assert BlockwiseHead(model, None).unfit(model, padded(rows[:2])) is None
    own = model.loss_function
    model.loss_function = lambda *args, **kwargs: (
        own(*args, **kwargs) + 0.5
    )  # an auxiliary loss, as experts have one
    assert "its loss is" in str(BlockwiseHead(model, None).unfit(model, padded(rows[:2])))


def test_an_unembedding_that_is_not_a_linear_layer_is_left_to_the_model(rows):
    model = one_model()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert "linear" in str(BlockwiseHead(model, None).unfit(model, padded(rows[:2])))


@pytest.mark.parametrize("arm", ["remix(data=kvr:20:test, stages=1,2)", "ewc(strength=100)", "lora(rank=4)"])
def test_a_run_trains_as_it_does_with_all_logits(arm, tmp_path, monkeypatch):
    base = tmp_path / "base"
    tiny_model(vocab_size=len(tiny_tokenizer()), tie_word_embeddings=True).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    blocks = run(small(base, arm), tmp_path / "blocks", quiet=True)
    assert "all logits at once" not in (blocks.parent / "log.txt").read_text()
    monkeypatch.setattr("training.stage.StageTrainer._blockwise_head", lambda self: None)
    whole = run(small(base, arm), tmp_path / "whole", quiet=True)
    assert losses(blocks) == pytest.approx(losses(whole), rel=1e-4)


def test_a_model_that_caps_its_logits_trains_with_all_of_them_and_says_so(
    tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(BlockwiseHead, "unfit", lambda *_: "it does something to its logits")
    out = run(small(tiny_checkpoint, "none"), tmp_path / "run", quiet=True)
    assert "all logits at once: it does something to its logits" in (out.parent / "log.txt").read_text()
