"""Settings that turn tensors into a model: what changes a number changes their hash, and nothing else does."""

import dataclasses
import json

import peft
import pytest
import torch

from memprobe.checkpoints import fingerprint, resolve
from memprobe.models import load, wrap
from memprobe.settings import of_config, settings_of
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("settings") / "base")


@pytest.fixture(scope="module")
def config(base):
    return json.loads((base / "config.json").read_text())


def save_adapter(base, path, **changes):
    """A LoRA adapter whose tensors are the same each time, and whose configuration says what is asked."""
    torch.manual_seed(0)
    options = peft.LoraConfig(r=4, lora_alpha=1, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(load(str(base), device="cpu").model, options).save_pretrained(path)
    file = path / "adapter_config.json"
    said = json.loads(file.read_text()) | {"base_model_name_or_path": str(base)} | changes
    file.write_text(json.dumps(said))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 1.0},
        {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"head_dim": 16},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"final_logit_softcapping": 3.0},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        {"eos_token_id": 7},
        {"text_config": {"rms_norm_eps": 1.0}},
        {"quantization_config": {"bits": 4}},
    ],
)
def test_what_the_forward_pass_reads_counts(config, change):
    assert of_config(config | change, {}) != of_config(config, {})


@pytest.mark.parametrize(
    ("kind", "key", "counts"),
    [
        ("gpt_neox", "use_parallel_residual", True),
        ("gpt2", "scale_attn_weights", True),
        ("gpt2", "scale_attn_by_inverse_layer_idx", False),
        ("llama", "attention_bias", False),
        ("no-such-model", "anything", False),
    ],
)
def test_what_is_switched_off_counts_where_it_is_on_unless_said(kind, key, counts):
    plain = {"model_type": kind}
    assert (of_config(plain | {key: False}, {}) != of_config(plain, {})) == counts


@pytest.mark.parametrize(
    "change",
    [
        {
            "transformers_version": "4.1",
            "_name_or_path": "elsewhere",
            "dtype": None,
            "torch_dtype": "float32",
        },
        {"architectures": ["Other"], "use_cache": False, "id2label": {"0": "a"}, "attention_dropout": 0.1},
        {"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {"type": "default"}},
        {"head_dim": None, "mlp_bias": None, "layer_types": ["full_attention"] * 3},
        {"a_key_of_later": None, "another": False, "pad_token_id": 9, "bos_token_id": None},
    ],
)
def test_what_another_version_writes_otherwise_does_not(config, change):
    assert of_config(config | change, {}) == of_config(config, {})


def test_rotary_scaling_counts_alike_in_its_old_and_its_new_form(config):
    scaled = {"factor": 2.0, "rope_theta": 500.0}
    new = config | {"rope_parameters": scaled | {"rope_type": "linear"}}
    old = config | {
        "rope_theta": 500,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": None,
    }
    assert of_config(new, {}) == of_config(old, {}) != of_config(config, {})


def test_end_tokens_count_wherever_they_are_named(config):
    apart = {key: value for key, value in config.items() if key != "eos_token_id"}
    assert of_config(apart, {"eos_token_id": [config["eos_token_id"]]}) == of_config(config, {})
    assert of_config(config, {"eos_token_id": [config["eos_token_id"], 9]}) != of_config(config, {})


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"lora_alpha": 64}, False),
        ({"use_rslora": True}, False),
        ({"alpha_pattern": {"q_proj": 8}}, False),
        ({"fan_in_fan_out": True}, False),
        (
            {
                "target_modules": ["v_proj", "q_proj"],
                "inference_mode": False,
                "peft_version": "0",
                "revision": "x",
            },
            True,
        ),
        ({"lora_dropout": 0.5, "init_lora_weights": True, "a_key_of_later": None}, True),
    ],
)
def test_adapters_of_the_same_tensors(base, tmp_path, change, same):
    one = resolve(str(save_adapter(base, tmp_path / "one")))
    two = resolve(str(save_adapter(base, tmp_path / "two", **change)))
    assert fingerprint(one) == fingerprint(two)
    assert (settings_of(one) == settings_of(two)) is same


def test_the_settings_of_a_base_are_an_adapters_and_a_grafts(base, tmp_path):
    other = save_tiny(tmp_path / "other")
    said = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(said | {"rms_norm_eps": 1.0}))
    one, two = (resolve(str(save_adapter(at, tmp_path / at.name / "adapter"))) for at in (base, other))
    assert settings_of(one) != settings_of(two)
    grafts = [resolve(f"graft({base}, {donor}, blocks=1-2)") for donor in (base, other)]
    assert settings_of(grafts[0]) != settings_of(grafts[1])
    assert settings_of(dataclasses.replace(resolve(str(base)), kind="gguf")) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_model_in_memory_has_the_settings_of_its_files(family, tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    held = wrap(model, tokenizer)
    assert held.settings == settings_of(resolve(str(tmp_path))) == load(str(tmp_path), device="cpu").settings
    assert wrap(model, tokenizer, weights_fingerprint="told").settings is None


def test_adapters_in_memory_count_with_their_strength(base):
    marks = []
    for alpha in (1, 64):
        torch.manual_seed(0)
        options = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        marks.append(wrap(peft.get_peft_model(tiny_model("llama", 320), options), tiny_tokenizer()))
    assert marks[0].fingerprint == marks[1].fingerprint and marks[0].settings != marks[1].settings
    assert marks[0].tokenizer_mark == marks[1].tokenizer_mark is not None
