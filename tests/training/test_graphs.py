"""A graphed pass computes what the model's own computes; on a CPU the same code runs without a recording."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from training.batches import model_inputs, padded, rows_exact
from training.graphs import GraphedSteps, Unfit, _kept, in_shapes
from training.mixing import IGNORED, Example


def llama(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, **{**sizes, "tie_word_embeddings": True, **changes}))


def gemma():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 32}
    return Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=97, **sizes, **more))


def some_rows():
    draw = torch.Generator().manual_seed(3)
    rows = []
    for number, length in enumerate((5, 19, 11, 8, 3)):
        ids = torch.randint(1, 97, (length,), generator=draw).tolist()
        labels = [IGNORED] * (length - 3) + torch.randint(1, 97, (3,), generator=draw).tolist()
        rows.append(Example(tuple(ids), tuple(labels), str(number), own=number % 2 == 0))
    return rows


def own_pass(model, batch, items):
    """Loss, counts and gradients by the model's own forward pass."""
    model.zero_grad()
    logits = model(**model_inputs(batch), use_cache=False).logits
    nats = torch.nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="none")
    (nats.sum() / items).backward()
    exact = rows_exact(logits, batch["labels"], batch["kept_row"], len(batch["own"])) & batch["own"]
    return nats.detach(), exact, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [llama, gemma])
def test_loss_counts_and_gradients_are_the_models_own(make):
    model, items = make(), 31
    batch = padded(some_rows())
    # One own row is made exact, so that the count of exact rows has something to find.
    logits = model(**model_inputs(batch), use_cache=False).logits
    batch["labels"] = torch.where(batch["kept_row"] == 2, logits.argmax(-1), batch["labels"])
    nats, exact, gradients = own_pass(model, batch, items)
    assert int(exact.sum()) == 1

    shaped = in_shapes(lambda rows: {**padded(rows), "labels": batch["labels"]})(some_rows())
    assert shaped["input_ids"].shape == (8, 32) and len(shaped["own"]) == 8
    model.zero_grad()
    steps = GraphedSteps(model, None)
    found = steps(shaped, items)
    mine = batch["own"][batch["kept_row"]]
    assert float(found.loss) == pytest.approx(float(nats.sum() / items), rel=1e-5)
    assert found.rows.tolist() == [1, 3]
    assert found.nats.tolist() == pytest.approx([float(nats[mine].sum()), 9], rel=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_copies_of_weights_give_what_autocast_gives(tied):
    model, batch = llama(tie_word_embeddings=tied), in_shapes(padded)(some_rows())
    with torch.autocast("cpu", torch.bfloat16):
        nats, _, gradients = own_pass(model, batch, 15)
    for parameter in model.parameters():
        parameter.grad = None
    steps = GraphedSteps(model, torch.bfloat16)
    assert len(steps.copies.trained) == 2 * 7 + 1
    for _ in range(2):  # copies follow their weights
        assert float(steps(batch, 15).loss) == pytest.approx(float(nats.sum() / 15), rel=1e-3)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=0.02, atol=0.02 * float(gradient.std()))
        model.zero_grad()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        with torch.autocast("cpu", torch.bfloat16):
            nats, _, gradients = own_pass(model, batch, 15)
        model.zero_grad()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_low_rank_adapters_are_trained_alone():
    import peft

    model = llama()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model, batch = peft.get_peft_model(model, config), in_shapes(padded)(some_rows())
    with torch.autocast("cpu", torch.bfloat16):
        nats, _, _ = own_pass(model, batch, 15)
    assert GraphedSteps(model, torch.bfloat16).differs(batch, 15, nats.sum() / 15) is None


def test_rows_longer_than_the_window_of_attention_are_refused():
    GraphedSteps(gemma(), None, longest=16)
    with pytest.raises(Unfit, match="longer than its attention window"):
        GraphedSteps(gemma(), None, longest=17)


def test_frozen_weights_get_no_gradient():
    model, batch = llama(), in_shapes(padded)(some_rows())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name)
    GraphedSteps(model, torch.bfloat16)(batch, 15)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters() if p.grad is not None)


def test_micro_batches_add_up_and_a_dropped_gradient_begins_at_zero():
    model = llama()
    collate, rows = in_shapes(padded), some_rows()
    whole = own_pass(model, padded(rows), 15)[2]
    model.zero_grad()
    steps = GraphedSteps(model, None)
    for _ in range(
        2
    ):  # the second time after the gradients of the first were dropped, as a Trainer drops them
        steps(collate(rows[:2]), 15)
        steps(collate(rows[2:]), 15)
        for parameter, gradient in zip(model.parameters(), whole, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
        model.zero_grad()


def test_a_model_that_computes_something_else_is_found_out():
    """A head that scales its logits: the graph leaves that out, and must not be used."""

    class Scaled(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            found.logits = found.logits * 0.5
            return found

    torch.manual_seed(0)
    config = llama().config
    model, batch = Scaled(config), in_shapes(padded)(some_rows())
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    nats, _, _ = own_pass(model, batch, 15)
    assert "loss" in GraphedSteps(model, None).differs(batch, 15, nats.sum() / 15)
    plain = llama()
    nats, _, _ = own_pass(plain, batch, 15)
    assert GraphedSteps(plain, None).differs(batch, 15, nats.sum() / 15) is None
    nats, _, _ = own_pass(plain, batch, 15)
    for parameter in plain.parameters():
        parameter.grad *= 1.2
    assert "gradient" in GraphedSteps(plain, None).differs(batch, 15, nats.sum() / 15)


def test_few_counts_of_positions():
    counts = [_kept(count) for count in range(2000)]
    assert all(kept >= max(count, 1) for count, kept in enumerate(counts))
    assert all(kept <= 1.25 * count for count, kept in enumerate(counts) if count > 320)
    assert len(set(counts)) < 25


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_passes_are_the_models_own():
    model, collate, rows = llama().cuda(), in_shapes(padded), some_rows()
    steps = GraphedSteps(model, None)
    for subset in (rows, rows[:2], rows[1:], rows, rows[:2]):
        batch = {key: value.cuda() for key, value in collate(subset).items()}
        for _ in range(3):
            nats, _, gradients = own_pass(model, batch, 15)
            model.zero_grad()
            found = steps(batch, 15)
            torch.testing.assert_close(found.loss, nats.sum() / 15, rtol=1e-4, atol=1e-5)
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    assert steps.graphs
