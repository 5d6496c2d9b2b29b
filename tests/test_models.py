"""Every family's readout against the model's own logits, formulas written out by hand, and TransformerLens."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2ForCausalLM, LlamaForCausalLM

from memprobe.blocks import blocks_of, residual_hooks
from memprobe.errors import MemprobeError
from memprobe.lenses import Readout
from memprobe.models import ATOL, CHECK_TEXT, load, to_bridge, wrap
from memprobe.modes import evaluating
from memprobe.weights import fingerprint_model
from tests import oracle
from tests.tiny import FAMILIES, N_LAYERS, save_tiny, tiny_model, tiny_tokenizer

WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "compiled, then parallel": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "parallel, then compiled": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}
PROMPT = "The river of Oria is the Lunn, and 12 + 7"


def streams(read, ids):
    """What the hooks give: [n_layers + 1, positions, d_model]."""
    kept = {}
    with evaluating(read.model), residual_hooks(read.blocks, kept.__setitem__):
        logits = read.model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return torch.stack([kept[depth][0] for depth in range(read.n_layers + 1)]), logits[0]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lens_is_the_model_at_full_depth_and_the_oracle_at_every_depth(family, kind):
    tokenizer = tiny_tokenizer(kind)
    read = wrap(tiny_model(family, vocab_size=len(tokenizer)), tokenizer)
    ids = tokenizer.encode(PROMPT)
    residuals, logits = streams(read, ids)
    with torch.inference_mode():
        lens = read.lens(residuals)
    assert read.n_layers == N_LAYERS and lens.shape == (N_LAYERS + 1, len(ids), read.vocab_size)
    torch.testing.assert_close(lens[-1], logits, atol=ATOL, rtol=0)
    by_hand = oracle.readout(read.model, oracle.residuals(read.model, ids))
    np.testing.assert_allclose(lens.numpy(), by_hand, atol=ATOL, rtol=0)
    assert read.difference <= ATOL


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_and_untied_heads(family):
    tokenizer = tiny_tokenizer()
    for tied in (True, False):
        model = tiny_model(family, vocab_size=len(tokenizer), tie_word_embeddings=tied)
        same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert same == tied
        assert wrap(model, tokenizer).difference <= ATOL


def test_perturbation_reaches_every_parameter():
    for family in FAMILIES:
        for name, parameter in tiny_model(family).named_parameters():
            assert parameter.std() > 0.05, f"{family}: {name} is constant, so an error in it could hide"


# TransformerLens names of the families that its bridge reads out without a projection after the norm.
BRIDGED = [family for family in FAMILIES if family not in ("opt-projected", "opt-post-norm")]


@pytest.mark.parametrize("family", BRIDGED)
def test_transformer_lens_agrees(family, tmp_path):
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    save_tiny(tmp_path / "tiny", family)
    read = load(str(tmp_path / "tiny"))
    ids = read.tokenizer.encode(PROMPT)
    residuals, _ = streams(read, ids)
    bridge = to_bridge(load(str(tmp_path / "tiny")))
    bridge.eval()
    target = torch.tensor(ids[1:])
    theirs = logit_readout(bridge, residuals[:, :-1], targets=target, return_type="log_probs")
    with torch.inference_mode():
        logits = read.lens(residuals[:, :-1])
    answer = logits.gather(-1, target.expand(N_LAYERS + 1, -1)[..., None])
    ours = logits.log_softmax(-1).gather(-1, target.expand(N_LAYERS + 1, -1)[..., None])
    torch.testing.assert_close(ours, theirs.values, atol=ATOL, rtol=0)
    low, high = ((logits > answer + sign * ATOL).sum(-1) for sign in (1, -1))
    ranks = theirs.target_ranks[..., 0]
    assert ((low <= ranks) & (ranks <= high)).all()


class Shifted(LlamaForCausalLM):
    """A readout that no formula here knows."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.linspace(0, 1, output.logits.shape[-1])
        return output


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_the_ones_that_the_lens_reads_between(family):
    model = tiny_model(family, vocab_size=len(tiny_tokenizer()))
    blocks = blocks_of(model)
    assert len(blocks) == N_LAYERS and blocks == wrap(model, tiny_tokenizer()).blocks
    counts = [sum(p.numel() for p in block.parameters()) for block in blocks]
    assert len(set(counts)) == 1 and counts[0] > 0  # like modules, and no part of one
    model.config.get_text_config().num_hidden_layers = 7
    with pytest.raises(MemprobeError, match=r"mine: .* no list of 7 transformer blocks"):
        blocks_of(model, "mine")


def test_unknown_transform_of_the_logits_is_refused():
    tokenizer = tiny_tokenizer()
    plain = tiny_model("llama", vocab_size=len(tokenizer))
    shifted = Shifted(plain.config)
    shifted.load_state_dict(plain.state_dict())
    wrap(plain, tokenizer)
    with pytest.raises(MemprobeError, match="does not equal the logits of Shifted"):
        wrap(shifted, tokenizer, label="odd")


def test_a_family_with_a_softcap_of_another_name_is_refused():
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        "recurrent_gemma",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        lru_width=32,
        logits_soft_cap=0.5,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(MemprobeError) as caught:
        wrap(model, tokenizer, label="odd")
    assert len(str(caught.value).splitlines()) == 1 and "odd" in str(caught.value)


def test_a_model_whose_positions_see_later_ones_is_refused():
    """As embedding models do: teacher forcing told it the answer, and the lens equalled the logits."""
    tokenizer = tiny_tokenizer()
    options = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 3}
    for both_ways in (False, True):
        config = AutoConfig.for_model(
            "gemma3_text",
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            use_bidirectional_attention=both_ways,
            **options,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        if both_ways:
            with pytest.raises(MemprobeError, match="odd: Gemma3ForCausalLM lets a position see later ones"):
                wrap(model, tokenizer, label="odd")
        else:
            wrap(model, tokenizer)


def test_a_model_of_two_precisions_that_does_not_compute_says_so():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer)).to(torch.bfloat16)
    model.lm_head.float()
    with pytest.raises(MemprobeError, match="weights are bfloat16 and float32: make them one precision"):
        wrap(model, tokenizer)


def test_a_norm_that_wrap_does_not_see_is_refused():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    inner = model.model.norm
    model.model.norm = nn.Identity()
    model.model.register_forward_hook(
        lambda _, __, output: type(output)(last_hidden_state=inner(output.last_hidden_state))
    )
    with pytest.raises(MemprobeError, match="does not equal the logits"):
        wrap(model, tokenizer)


def test_weights_and_tokenizer_are_checked():
    tokenizer = tiny_tokenizer()
    small = tiny_model("gpt2", vocab_size=50)
    with pytest.raises(MemprobeError, match="tokenizer does not belong"):
        wrap(small, tokenizer)
    broken = tiny_model("gpt2", vocab_size=len(tokenizer))
    with torch.no_grad():
        broken.transformer.ln_f.bias[3] = torch.inf
    with pytest.raises(MemprobeError, match=r"NaN or infinity, first in transformer\.ln_f\.bias"):
        wrap(broken, tokenizer)


def test_wrap_leaves_the_model_as_it_was():
    tokenizer = tiny_tokenizer()
    model = tiny_model("gemma2", vocab_size=len(tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    wrap(model, tokenizer)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "gpt2"])
def test_bf16_models_are_read_in_fp32(family):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer)).bfloat16()
    read = wrap(model, tokenizer)
    residuals, _ = streams(read, tokenizer.encode(PROMPT))
    with torch.inference_mode():
        lens = read.lens(residuals)
    assert residuals.dtype == torch.bfloat16 and lens.dtype == torch.float32
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    # fp64 on the same (rounded) residuals and weights: only the readout's own precision is left.
    np.testing.assert_allclose(
        lens.numpy(), oracle.readout(model, residuals.double().numpy()), atol=ATOL, rtol=0
    )


def test_fingerprint_is_of_the_weights():
    one, same, other = (tiny_model("llama", seed=seed) for seed in (0, 0, 1))
    assert fingerprint_model(one) == fingerprint_model(same) != fingerprint_model(other)
    with torch.no_grad():
        same.lm_head.weight[0, 0] += 1e-3
    assert fingerprint_model(one) != fingerprint_model(same)


def test_the_check_prompt_is_within_every_context():
    tokenizer = tiny_tokenizer()
    short = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=8)
    assert len(tokenizer.encode(CHECK_TEXT)) > 8
    assert wrap(short, tokenizer).max_length == 8


class HarderCap(Gemma2ForCausalLM):
    """Gemma 2 that caps its logits harder than its config says."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2.5 * torch.tanh(output.logits / 2.5)
        return output


def test_a_softcap_that_no_config_tells_of_is_refused():
    tokenizer = tiny_tokenizer()
    model = tiny_model("gemma2", len(tokenizer))
    wrap(model, tokenizer)
    model.__class__ = HarderCap
    with pytest.raises(MemprobeError, match="does not equal the logits of HarderCap at full depth"):
        wrap(model, tokenizer)


@pytest.mark.parametrize(
    ("setting", "value"), [("final_logit_softcapping", 3.0), ("logits_scaling", 4.0), ("logit_scale", 0.5)]
)
def test_settings_that_a_model_does_not_obey_are_refused(setting, value):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    setattr(model.config, setting, value)
    with pytest.raises(MemprobeError, match="does not equal the logits"):
        wrap(model, tokenizer)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gemma2", {"softcap": None}),
        ("gemma2", {"softcap": 3.01}),
        ("cohere", {"scale": 1.0}),
        ("granite", {"scale": 4.0}),
        ("granite", {"scale": 0.2501}),
        ("llama", {"final": nn.ModuleList()}),
        ("opt-projected", {"final": nn.ModuleList()}),
    ],
)
def test_a_wrong_softcap_scale_or_norm_is_caught(family, change, monkeypatch):
    tokenizer = tiny_tokenizer()
    true = Readout.of

    def wrong(model, final):
        lens = true(model, final)
        for name, value in change.items():
            setattr(lens, name, value)
        return lens

    monkeypatch.setattr(Readout, "of", staticmethod(wrong))
    with pytest.raises(MemprobeError, match=r"does not equal the logits|cannot be rebuilt"):
        wrap(tiny_model(family, len(tokenizer)), tokenizer)


def test_large_finite_weights_are_not_mistaken_for_infinity():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    with torch.no_grad():  # their sum overflows, and no token of the check prompt uses them
        model.model.embed_tokens.weight[4] = 3e38
    assert wrap(model, tokenizer).difference <= ATOL


def test_a_padding_token_that_the_model_does_not_know_is_not_put_in(tiny_checkpoint, tmp_path):
    """Added for training elsewhere, without a row in the embedding: what pads is never read, so any other will do."""
    folder = tmp_path / "padded"
    shutil.copytree(tiny_checkpoint, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"pad_token": "[PAD]"}), encoding="utf-8"
    )
    model = load(str(folder), device="cpu")
    assert model.tokenizer.pad_token_id >= model.n_ids > model.pad_id()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_training_wraps_a_model_in_is_looked_through(wrapper):
    model = tiny_model()
    read = wrap(WRAPPERS[wrapper](model), tiny_tokenizer())
    assert read.model is model and read.fingerprint == wrap(model, tiny_tokenizer()).fingerprint
