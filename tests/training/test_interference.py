"""Gradients of D_A, D_B and D_M against autograd on whole sequences, one row at a time."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memprobe.errors import MemprobeError
from tests.training.batches import SILENT, assert_unchanged, microbatch, perturbed, state
from training.interference import interference

VOCAB = 11
A = [([1, 2, 3, 4, 5, 9], 2), ([3, 6, 2], 2), ([5, 1, 1, 2], 1)]
B = [([7, 8, 9], 1), ([2, 2, 4, 10, 3], 3)]
M = [([4, 4, 6, 1], 1)]


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, attention_dropout=0.4, attn_implementation="eager",
    )  # fmt: skip
    return perturbed(LlamaForCausalLM(config))


def by_hand(model, rows) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss per token and its gradient, through full logits and no padding."""
    total, tokens = 0.0, 0
    for ids, prompt in rows:
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for position in range(prompt, len(ids)):
            total = total - log_probs[position - 1, ids[position]]
            tokens += 1
    loss = total / tokens
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    return loss.item(), dict(zip(named, gradients, strict=True))


def part(name: str) -> str:
    return name.split(".")[2] if ".layers." in name else "other"


def flat(gradient: dict[str, torch.Tensor], where: str) -> torch.Tensor:
    return torch.cat([g.flatten() for name, g in gradient.items() if where in ("overall", part(name))])


def read(table: dict, where: str):
    return table["blocks"][int(where)] if where.isdigit() else table[where]


def test_every_number_overall_and_by_block():
    model = tiny_model()
    model.eval()
    losses, gradients = zip(*(by_hand(model, rows) for rows in (A, B, M)), strict=True)
    torch.manual_seed(5)
    delta = {name: 0.1 * torch.randn_like(p) for name, p in model.named_parameters()}
    found = interference(model, [microbatch(A)], [microbatch(B)], [microbatch(M)], delta)
    assert [found[f"loss_{key}"] for key in "abm"] == pytest.approx(losses, rel=1e-5)
    assert len(found["cosine_a_b"]["blocks"]) == 2
    for where in ("overall", "0", "1", "other"):
        a, b, m = (flat(gradient, where) for gradient in gradients)
        change = flat(delta, where)
        cosine = torch.nn.functional.cosine_similarity
        assert read(found["cosine_a_b"], where) == pytest.approx(cosine(a, b, dim=0).item(), abs=1e-5)
        assert read(found["cosine_a_m"], where) == pytest.approx(cosine(a, m, dim=0).item(), abs=1e-5)
        assert read(found["gradient_a_delta"], where) == pytest.approx((a @ change).item(), abs=1e-5)
        assert read(found["delta_norm"], where) == pytest.approx(change.norm().item(), rel=1e-5)
        assert read(found["gradient_norm_a"], where) == pytest.approx(a.norm().item(), rel=1e-4)
        assert read(found["gradient_norm_b"], where) == pytest.approx(b.norm().item(), rel=1e-4)
        assert read(found["gradient_norm_m"], where) == pytest.approx(m.norm().item(), rel=1e-4)
    json.dumps(found, allow_nan=False)


def test_gradient_times_change_predicts_the_change_of_the_loss():
    model = tiny_model().double()
    torch.manual_seed(2)
    delta = {name: 1e-5 * torch.randn_like(p) for name, p in model.named_parameters()}
    before = interference(model, [microbatch(A)], [microbatch(B)], delta=delta)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(delta[name])
    after = interference(model, [microbatch(A)], [microbatch(B)])
    assert after["loss_a"] - before["loss_a"] == pytest.approx(
        before["gradient_a_delta"]["overall"], rel=0.05
    )


def test_rows_split_and_padded_otherwise_give_the_same_numbers():
    model = tiny_model()
    whole = interference(model, [microbatch(A)], [microbatch(B)], [microbatch(M)])
    split = interference(
        model,
        [microbatch(A[:1], pad=7, extra=3), microbatch(A[1:], pad=9)],
        [microbatch([row], extra=2) for row in reversed(B)],
        [microbatch(M)],
    )
    for key in ("loss_a", "loss_b"):
        assert whole[key] == pytest.approx(split[key], rel=1e-5)
    for key in ("cosine_a_b", "cosine_a_m", "gradient_norm_a", "gradient_norm_b"):
        assert whole[key]["overall"] == pytest.approx(split[key]["overall"], abs=1e-5)
        assert whole[key]["blocks"] == pytest.approx(split[key]["blocks"], abs=1e-5)


def test_a_set_with_itself_and_what_is_not_given():
    model = tiny_model()
    found = interference(model, [microbatch(A)], [microbatch(A)])
    assert found["cosine_a_b"]["overall"] == pytest.approx(1, abs=1e-6)
    assert not {"cosine_a_m", "loss_m", "gradient_norm_m", "gradient_a_delta", "delta_norm"} & set(found)


def test_it_never_touches_the_model_or_the_random_state():
    model = tiny_model()
    model.model.layers[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    delta = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    before = state(model)
    first = interference(model, [microbatch(A)], [microbatch(B)], [microbatch(M)], delta)
    assert_unchanged(before, model)
    assert all(bool((value == 1).all()) for value in delta.values())
    torch.manual_seed(123)  # with dropout on, another random state would give other numbers
    assert interference(model, [microbatch(A)], [microbatch(B)], [microbatch(M)], delta) == first


def test_only_trained_parameters_count():
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers.1." in name)
    found = interference(model, [microbatch(A)], [microbatch(B)])
    assert found["gradient_norm_a"]["blocks"][0] == 0
    assert found["cosine_a_b"]["blocks"][0] is None and found["cosine_a_b"]["other"] is None
    assert found["cosine_a_b"]["overall"] == pytest.approx(found["cosine_a_b"]["blocks"][1])
    with pytest.raises(MemprobeError, match=r"does not train model\.norm\.weight"):
        interference(model, [microbatch(A)], [microbatch(B)], delta={"model.norm.weight": torch.ones(8)})


def test_a_set_without_loss_is_named():
    model = tiny_model()
    with pytest.raises(MemprobeError, match="D_B"):
        interference(model, [microbatch(A)], [SILENT])
    both = interference(model, [microbatch(A)], [SILENT, microbatch(B)])
    assert both == interference(model, [microbatch(A)], [microbatch(B)])
