"""Fused norms compute what the model's own compute, and leave nothing behind."""

import pytest
import torch

from memprobe.checkpoints import resolve
from memprobe.models import load_pretrained
from training.kernels import _is_rms_norm, fewer_kernels


def gradients(model, ids):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits.float()
    logits.log_softmax(-1)[..., 3].sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_logits_and_gradients_are_those_of_the_model_itself(tiny_checkpoint):
    model, _ = load_pretrained(resolve(str(tiny_checkpoint)), torch.float32)
    with torch.no_grad():
        for norm in (module for module in model.modules() if _is_rms_norm(module)):
            norm.weight.uniform_(0.5, 1.5)
    ids = torch.arange(24).reshape(2, 12)
    logits, plain = gradients(model, ids)
    with fewer_kernels(model):
        norms = [module for module in model.modules() if "forward" in module.__dict__]
        assert len(norms) == 2 * model.config.num_hidden_layers + 1
        # The result of a norm before linear layers is bfloat16 already; autocast would have made it so.
        with torch.autocast("cpu", torch.bfloat16):
            assert norms[0](torch.randn(1, 3, model.config.hidden_size)).dtype == torch.bfloat16
        fused, others = gradients(model, ids)
    torch.testing.assert_close(fused, logits, rtol=0, atol=0.02 * float(logits.std()))
    for name, gradient in plain.items():
        scale = float(gradient.std()) + 1e-9
        assert float((others[name] - gradient).abs().max()) < 0.05 * max(
            scale, float(gradient.abs().max())
        ), name
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_norm_of_another_kind_stays_as_it_is():
    class OneMoreRMSNorm(torch.nn.Module):
        eps = 1e-6

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(8))

        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    assert not _is_rms_norm(OneMoreRMSNorm()) and not _is_rms_norm(torch.nn.LayerNorm(8))


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_numbers_of_another_type_go_through_the_norm_itself(dtype, tiny_checkpoint):
    model, _ = load_pretrained(resolve(str(tiny_checkpoint)), torch.float32)
    norm = next(module for module in model.modules() if _is_rms_norm(module))
    some = torch.randn(2, model.config.hidden_size).to(dtype)
    expected = norm(some)
    with fewer_kernels(model):
        assert torch.equal(norm(some), expected) and norm(some).dtype == expected.dtype
