"""Fisher, EWC and KL against sums written out by hand on a model with seven tokens."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
import scipy.special
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from memprobe.errors import MemprobeError
from tests.tiny import FAMILIES
from tests.tiny import tiny_model as tiny_family
from tests.training.batches import SILENT, assert_unchanged, microbatch, perturbed, state
from training.gradients import in_eval_mode, kept_logits
from training.penalties import Boundary, Step, penalties
from training.penalties.ewc import Ewc, ewc_penalty, fisher_diagonal
from training.penalties.kl import kl_to_frozen
from training.recipe import parse_recipe, to_toml

VOCAB = 7
# Rows of different length; the mask starts at the last token of the prompt.
ROWS = [([1, 2, 3, 4, 5], 2), ([3, 6, 2], 1), ([5, 1, 1, 2], 1)]


def tiny_model(seed: int = 0, dropout: float = 0.3) -> GPT2LMHeadModel:
    """Two blocks, tied embeddings, dropout that would show, and no weight left at a round value."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, attn_implementation="eager",
    )  # fmt: skip
    return perturbed(GPT2LMHeadModel(config))


def exact_fisher(model, rows) -> dict[str, torch.Tensor]:
    """1/N Σ_n Σ_t Σ_v p(v) (∂ log p(v))²: draws at different positions are independent with mean zero, so the
    square of their sum is, in expectation, the sum of their squares."""
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for ids, prompt in rows:
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0]
        for position in range(prompt - 1, len(ids) - 1):
            log_probs = logits[position].log_softmax(-1)
            for value in log_probs:
                gradients = torch.autograd.grad(value, list(named.values()), retain_graph=True)
                for name, gradient in zip(named, gradients, strict=True):
                    total[name] += value.detach().exp() * gradient**2
    return {name: value / len(rows) for name, value in total.items()}


def test_fisher_in_expectation_is_the_sum_over_the_vocabulary():
    model = tiny_model()
    exact = exact_fisher(model.eval(), ROWS)
    draws = [fisher_diagonal(model, [microbatch(ROWS)], draws=1, seed=seed) for seed in range(200)]
    assert set(draws[0]) == set(exact)
    for name in exact:
        samples = np.array([draw[name].sum().item() for draw in draws])
        error = samples.std(ddof=1) / np.sqrt(len(samples))
        assert abs(samples.mean() - exact[name].sum().item()) < 4 * error, name
        # The test is sharp enough: half or twice as much (a mean over tokens or rows) would be noticed.
        assert 8 * error < exact[name].sum().item(), name
    # And weight by weight, not only in sum.
    mean = torch.cat([torch.stack([draw[name] for draw in draws]).mean(0).flatten() for name in exact])
    right = torch.cat([exact[name].flatten() for name in exact])
    large = right > right.quantile(0.9)
    assert ((mean - right).abs() / right)[large].mean() < 0.1


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_fisher_is_read_in_the_precision_of_training(autocast):
    """As the penalty asks for it: matrix products alone, and the same up to their rounding."""
    model = tiny_model()
    seen = set()
    layer = model.transformer.h[0].mlp.c_fc
    watched = layer.register_forward_hook(lambda _layer, _given, out: seen.add(out.dtype))
    anchor = {name: one.detach().clone() for name, one in model.named_parameters()}
    exact = fisher_diagonal(model, [microbatch(ROWS)], draws=8, seed=5)
    seen.clear()
    rows = [microbatch(ROWS) | {"own": torch.ones(len(ROWS))}]
    boundary = Boundary(model, lambda: model, lambda most: rows, 5, lambda line: None, autocast)
    term = Ewc(strength=1.0, fisher_draws=8).term(boundary)
    watched.remove()
    assert seen == {autocast or torch.float32}
    perturbed(model)
    with torch.no_grad():
        held = float(term(Step(model, {}, None, torch.ones(1), 1.0, 1)))
        right = float(ewc_penalty(model, anchor, exact))
    assert held == right if autocast is None else 0 < abs(held / right - 1) < 0.05


def test_fisher_is_per_example_however_rows_are_split():
    model = tiny_model()
    whole = fisher_diagonal(model, [microbatch(ROWS)], draws=1, seed=3)
    apart = fisher_diagonal(model, [microbatch([row]) for row in ROWS], draws=1, seed=3)
    for name in whole:
        assert torch.equal(whole[name], apart[name])


def test_fisher_does_not_use_the_labels_of_the_data():
    model = tiny_model()
    batch = microbatch(ROWS)
    other = batch | {"labels": (batch["labels"] + 1) % VOCAB}
    first, second = (
        fisher_diagonal(model, [batch], draws=1, seed=1),
        fisher_diagonal(model, [other], draws=1, seed=1),
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = fisher_diagonal(model, [batch], draws=1, seed=2)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def fitted_model() -> GPT2LMHeadModel:
    """Has its rows by heart."""
    model = tiny_model(dropout=0.0)
    batch = microbatch(ROWS)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        logits = model(input_ids=batch["input_ids"], logits_to_keep=batch["logits_to_keep"]).logits
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.03
    return model


def test_fisher_of_a_fitted_model_stays_where_the_empirical_one_vanishes():
    model, batch = fitted_model(), microbatch(ROWS)
    empirical = 0.0
    for row in ROWS:
        one = microbatch([row])
        logits = model(input_ids=one["input_ids"], logits_to_keep=one["logits_to_keep"]).logits
        summed = torch.nn.functional.cross_entropy(logits, one["labels"], reduction="sum")
        empirical += sum(float((g**2).sum()) for g in torch.autograd.grad(summed, list(model.parameters())))
    draws = [fisher_diagonal(model, [batch], draws=1, seed=seed) for seed in range(60)]
    sampled = np.mean([sum(float(value.sum()) for value in draw.values()) for draw in draws])
    assert sampled > 5 * empirical / len(ROWS)


def test_fisher_of_a_sure_model_is_not_left_to_luck():
    """A drawn label is nearly always the argmax there, and its trace all but nothing; every label weighs in here."""
    model = fitted_model().eval()
    exact = sum(float(value.sum()) for value in exact_fisher(model, ROWS).values())
    one_label = []
    for seed in range(40):
        torch.manual_seed(seed)
        trace = 0.0
        for ids, prompt in ROWS:
            logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0, prompt - 1 :]
            drawn = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
            loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
            trace += sum(float((g**2).sum()) for g in torch.autograd.grad(loss, list(model.parameters())))
        one_label.append(trace / len(ROWS))
    assert np.median(one_label) < 0.2 * exact
    found = [
        sum(
            float(value.sum())
            for value in fisher_diagonal(model, [microbatch(ROWS)], draws=16, seed=seed).values()
        )
        for seed in range(40)
    ]
    assert abs(np.median(found) / exact - 1) < 0.2
    assert np.std(found) < 0.5 * np.std(one_label)


def test_more_draws_are_nearer_to_the_exact_fisher():
    model = tiny_model()
    exact = torch.cat([value.flatten() for value in exact_fisher(model.eval(), ROWS).values()])

    def error(draws):
        found = fisher_diagonal(model, [microbatch(ROWS)], draws=draws, seed=0)
        return float((torch.cat([value.flatten() for value in found.values()]) - exact).norm() / exact.norm())

    assert error(400) < 0.15 < error(1)


def test_fisher_does_not_count_padding_or_rows_without_loss():
    model = tiny_model()
    plain = fisher_diagonal(model, [microbatch(ROWS)], draws=1, seed=0)
    padded = fisher_diagonal(model, [microbatch(ROWS, pad=6, extra=4)], draws=1, seed=0)
    beside = fisher_diagonal(model, [SILENT, microbatch(ROWS)], draws=1, seed=0)
    for name in plain:
        assert torch.equal(plain[name], padded[name])
        assert torch.equal(plain[name], beside[name])
    with pytest.raises(MemprobeError, match="no row"):
        fisher_diagonal(model, [SILENT], draws=1, seed=0)


def test_fisher_leaves_the_model_and_the_random_state_alone():
    model = tiny_model()
    model.transformer.h[0].eval()  # a module with a mode of its own keeps it
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = state(model)
    fisher_diagonal(model, [microbatch(ROWS)], draws=1, seed=0)
    assert_unchanged(before, model)


def test_fisher_of_trained_parameters_alone_and_not_of_a_diverged_model():
    model = tiny_model()
    model.transformer.wpe.weight.requires_grad_(False)
    fisher = fisher_diagonal(model, [microbatch(ROWS)], draws=1, seed=0)
    assert "transformer.wpe.weight" not in fisher
    assert "lm_head.weight" not in fisher  # tied: it stands once, under the embedding's name
    assert all(value.dtype == torch.float32 for value in fisher.values())
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(torch.inf)
    with pytest.raises(MemprobeError, match="not finite"):
        fisher_diagonal(model, [microbatch(ROWS)], draws=1, seed=0)


def test_mode_comes_back_after_an_error():
    model = tiny_model()
    with pytest.raises(ZeroDivisionError), in_eval_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())


def test_ewc_penalty_and_its_gradient():
    model = tiny_model()
    torch.manual_seed(1)
    names = [name for name, _ in model.named_parameters()]
    anchor = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in model.named_parameters()}
    fisher = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    penalty = ewc_penalty(model, anchor, fisher)
    by_hand = sum(
        0.5 * float((fisher[name].double() * (p.detach().double() - anchor[name].double()) ** 2).sum())
        for name, p in model.named_parameters()
    )
    assert penalty.item() == pytest.approx(by_hand, rel=1e-5)
    gradients = torch.autograd.grad(penalty, list(model.parameters()))
    for name, parameter, gradient in zip(names, model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, fisher[name] * (parameter.detach() - anchor[name]))
    assert ewc_penalty(model, {n: p.detach() for n, p in model.named_parameters()}, fisher).item() == 0


def test_ewc_refuses_what_does_not_fit_the_trained_parameters():
    model = tiny_model()
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    fisher = {name: torch.ones_like(p) for name, p in anchor.items()}
    short = dict(list(fisher.items())[1:])
    with pytest.raises(MemprobeError, match=r"Fisher information.*transformer\.wte"):
        ewc_penalty(model, anchor, short)
    model.transformer.wte.weight.requires_grad_(False)
    with pytest.raises(MemprobeError, match=r"anchor.*transformer\.wte"):
        ewc_penalty(model, anchor, short)


def test_kl_is_that_of_the_frozen_model_to_the_trained_one():
    torch.manual_seed(0)
    frozen = 3 * torch.randn(5, VOCAB)
    logits = (3 * torch.randn(5, VOCAB)).requires_grad_()
    p = scipy.special.softmax(frozen.double().numpy(), axis=1)
    q = scipy.special.softmax(logits.detach().double().numpy(), axis=1)
    kl = kl_to_frozen(frozen, logits)
    assert kl.item() == pytest.approx(scipy.special.rel_entr(p, q).sum(1).mean(), rel=1e-5)
    assert kl.item() != pytest.approx(scipy.special.rel_entr(q, p).sum(1).mean(), rel=0.01)
    (gradient,) = torch.autograd.grad(kl, logits)
    np.testing.assert_allclose(gradient.numpy(), (q - p) / 5, atol=1e-6)
    assert kl_to_frozen(frozen, frozen).item() == pytest.approx(0, abs=1e-6)


def test_kl_is_in_full_precision_and_sends_no_gradient_to_the_frozen_model():
    torch.manual_seed(0)
    frozen = (4 * torch.randn(3, 50)).bfloat16().requires_grad_()
    logits = (frozen.detach().float() + 0.01 * torch.randn(3, 50)).bfloat16().requires_grad_()
    kl = kl_to_frozen(frozen, logits)
    assert kl.dtype == torch.float32
    p, q = (scipy.special.softmax(x.detach().double().numpy(), axis=1) for x in (frozen, logits))
    assert kl.item() == pytest.approx(scipy.special.rel_entr(p, q).sum(1).mean(), rel=1e-2)
    kl.backward()
    assert frozen.grad is None and logits.grad is not None


def test_kl_takes_rows_of_positions_and_refuses_shapes_that_differ():
    torch.manual_seed(0)
    frozen, logits = torch.randn(2, 3, VOCAB), torch.randn(2, 3, VOCAB)
    flat = kl_to_frozen(frozen.flatten(0, 1), logits.flatten(0, 1))
    assert kl_to_frozen(frozen, logits).item() == pytest.approx(flat.item(), rel=1e-6)
    with pytest.raises(MemprobeError, match="same positions"):
        kl_to_frozen(frozen, logits[:1])
    with pytest.raises(MemprobeError, match="no position"):
        kl_to_frozen(frozen[:, :0], logits[:, :0])


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_logits_are_the_models_own_at_the_positions_of_the_mask(family):
    model = tiny_family(family, vocab_size=40, n_layers=2)
    ids = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    lengths = (9, 4, 6)
    keep = torch.tensor([[2 <= place < length for place in range(9)] for length in lengths])
    with torch.no_grad():
        found = kept_logits(model, {"input_ids": ids, "logits_to_keep": keep})
        alone = [
            model(input_ids=row[None, :length]).logits[0, 2:]
            for row, length in zip(ids, lengths, strict=True)
        ]
    torch.testing.assert_close(found, torch.cat(alone).float(), atol=1e-4, rtol=1e-4)


def test_a_model_that_reads_the_mask_otherwise_is_refused():
    model = tiny_model()
    with pytest.raises(MemprobeError, match="boolean logits_to_keep"):
        kept_logits(
            model, {"input_ids": torch.tensor([[1, 2, 3]]), "logits_to_keep": torch.tensor([[0, 1, 1]])}
        )


def test_a_penalty_is_a_module_of_its_package():
    """What one says of itself is what recipes and arms may say: nothing else lists them."""
    assert set(penalties()) == {"ewc", "kl"}
    arm = "ewc(strength=100, stages=2, fisher_draws=2)"
    stages = [{"name": "a", "data": "known"}, {"name": "b", "data": "known"}]
    recipe = parse_recipe({"base": "x", "arm": arm, "stages": stages})
    assert recipe.stages[1].penalty == Ewc(strength=100, fisher_draws=2) and recipe.arm_name == arm
    assert parse_recipe(tomllib.loads(to_toml(recipe))) == recipe
    for arm, said in (
        ("ewc(fisher_rows=1)", "names its strength"),
        ("kl(strength=1, fisher_rows=1)", "fisher_rows: unknown key"),
    ):
        with pytest.raises(MemprobeError, match=said):
            parse_recipe({"base": "x", "arm": arm, "stages": stages})
    stages[1] = stages[1] | {"penalty": {"method": "si", "strength": 1}}
    with pytest.raises(MemprobeError, match=r"stages\.2\.penalty: method: choose ewc, kl"):
        parse_recipe({"base": "x", "stages": stages})
