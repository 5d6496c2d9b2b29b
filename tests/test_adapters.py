"""Adapters of every kind against the same adapter unmerged in PEFT, and those that must be refused."""

import json
from pathlib import Path

import huggingface_hub
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from memprobe.checkpoints import fingerprint, resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.load_options import LoadOptions
from memprobe.models import load, load_tokenizer, wrap
from memprobe.templates import Template, tokenise
from tests.tiny import byte_level, save_tiny, tiny_tokenizer

IDS = torch.tensor([[5, 17, 99, 200, 31, 7]])
KINDS = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved norm": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "new tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 17, 200]},
}


def perturbed(model, seed=1):
    """A PEFT model whose trained parameters all do something."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def adapted(base: Path, **options):
    """A LoRA model on a checkpoint, in memory."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows := options.pop("rows", None):
        model.resize_token_embeddings(rows, mean_resizing=False)
    return perturbed(peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **options)))


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def refused(spec, *words: str, read=load, **options) -> None:
    with pytest.raises(MemprobeError) as caught:
        read(str(spec), **options)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


def change(folder: Path, **values) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def lora(tmp_path):
    """A plain LoRA adapter beside its base."""
    save_tiny(tmp_path / "base")
    adapted(tmp_path / "base", target_modules=["q_proj"]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_is_what_peft_runs_unmerged(kind, family, tmp_path):
    """Also on tied embeddings, of which an adapter changes one: merged in place, it would change both."""
    base = save_tiny(tmp_path / "base", family)
    trained = adapted(base, **KINDS[kind])
    trained.save_pretrained(tmp_path / "adapter")
    read = load(str(tmp_path / "adapter"), device="cpu")
    expected = logits_of(trained)
    torch.testing.assert_close(logits_of(read.model), expected, atol=1e-4, rtol=0)
    assert (expected - logits_of(load(str(base), device="cpu").model)).abs().max() > 0.1


def test_an_adapter_with_added_tokens_resizes_its_base(tmp_path):
    base = save_tiny(tmp_path / "base", "llama-tied")
    rows = len(tiny_tokenizer()) + 3
    trained = adapted(base, rows=rows, target_modules=["q_proj"])
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    read = load(str(tmp_path / "adapter"), device="cpu")
    assert read.vocab_size == read.n_ids == rows
    torch.testing.assert_close(logits_of(read.model), logits_of(trained), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "language_model."])
def test_weights_that_fit_no_module_are_refused(lora, prefix):
    file = lora / "adapter_model.safetensors"
    renamed = {
        key.replace("base_model.model.", f"base_model.model.{prefix}"): tensor
        for key, tensor in load_file(file).items()
    }
    save_file(renamed, file, metadata={"format": "pt"})
    refused(lora, f"{len(renamed)} of {len(renamed)} adapter weights fit no module", prefix)


def test_weights_that_are_missing_are_refused(lora):
    file = lora / "adapter_model.safetensors"
    weights = load_file(file)
    gone = sorted(weights)[0]
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    refused(lora, "1 adapter weights are missing")


def test_pickled_adapters_need_a_word(lora):
    weights = load_file(lora / "adapter_model.safetensors")
    before = load(str(lora), device="cpu")
    (lora / "adapter_model.safetensors").unlink()
    torch.save(weights, lora / "adapter_model.bin")
    refused(lora, "pickled", "--allow-pickle", read=resolve)
    checkpoint = resolve(str(lora), LoadOptions(allow_pickle=True))
    assert torch.equal(logits_of(load(checkpoint, device="cpu").model), logits_of(before.model))
    assert len(fingerprint(checkpoint)) == 64


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_virtual_tokens_are_refused_on_disk_and_in_memory(config, tmp_path):
    base = save_tiny(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = peft.get_peft_model(model, config(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    with pytest.raises(MemprobeError, match=r"mine: .* virtual tokens"):
        wrap(tuned, tiny_tokenizer(), label="mine")
    tuned.save_pretrained(tmp_path / "adapter")
    refused(tmp_path / "adapter", "virtual tokens", read=resolve)


def test_an_adapter_whose_base_cannot_be_made_again_is_refused(lora):
    """PEFT takes a randomised decomposition off the base, another one each time: logits were off by 6."""
    change(lora, init_lora_weights="pissa_niter_4")
    refused(lora, "init_lora_weights='pissa_niter_4'", "cannot be repeated", read=resolve)


def test_an_adapter_of_a_later_peft_is_refused(lora):
    """PEFT leaves out with a warning what it does not know, and reads another adapter."""
    change(lora, use_something_new=False, another_new={})
    load(str(lora), device="cpu")
    change(lora, use_something_new=True)
    refused(lora, "does not know use_something_new", "adapter_config.json")


def test_what_peft_does_outside_the_blocks_is_refused_in_memory(tmp_path):
    waiting = adapted(
        save_tiny(tmp_path / "base"), target_modules=["q_proj"], alora_invocation_tokens=[5, 17]
    )
    with pytest.raises(MemprobeError, match="mine: an activated LoRA"):
        wrap(waiting, tiny_tokenizer(), label="mine")
    waiting.save_pretrained(tmp_path / "adapter")
    refused(tmp_path / "adapter", "cannot be merged")


def test_an_adapter_in_memory_is_read_with_its_adapter(tmp_path):
    trained = adapted(save_tiny(tmp_path / "base", "llama-tied"), **KINDS["head"])
    read = wrap(trained, tiny_tokenizer())
    torch.testing.assert_close(logits_of(read.model), logits_of(trained), atol=1e-5, rtol=0)


# Where the base comes from


def test_a_file_may_not_send_us_to_the_hub(lora, monkeypatch):
    """A hub base that is not in the cache is fetched only where the user names it."""
    asked = []

    def snapshot(name, *, local_files_only, revision, **_):
        asked.append((name, revision, local_files_only))
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    change(lora, base_model_name_or_path="someone/model", revision="v2")
    refused(lora, "its base model is someone/model on the hub", "--base someone/model@v2", read=resolve)
    assert asked == [("someone/model", "v2", True)]
    refused(lora, "the hub gave no model", base="someone/model@v3")
    assert asked[1:] == [("someone/model", "v3", False)]


def test_the_revision_of_the_base_is_read(lora, monkeypatch):
    asked = []

    def snapshot(name, *, revision, **_):
        asked.append((name, revision))
        return str(lora.parent / "base")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    change(lora, base_model_name_or_path="someone/model", revision="v2")
    assert load(str(lora), device="cpu").checkpoint.base.path == lora.parent / "base"
    assert asked == [("someone/model", "v2")]


def test_a_base_elsewhere_can_be_named(lora):
    change(lora, base_model_name_or_path="/somewhere/else/model")
    refused(lora, "its base model '/somewhere/else/model' is not here; give --base SPEC", read=resolve)
    named = resolve(str(lora), LoadOptions(base=str(lora.parent / "base")))
    assert named.base.path == lora.parent / "base"


@pytest.mark.parametrize("value", [3, ["x"], {"a": 1}])
def test_broken_configurations_are_named(lora, value):
    change(lora, base_model_name_or_path=value)
    refused(lora, "adapter_config.json: base_model_name_or_path: should be a valid string", read=resolve)


def test_an_adapter_that_is_its_own_base_is_refused(lora):
    change(lora, base_model_name_or_path=".")
    refused(lora, "leads back to itself", read=resolve)
    (lora.parent / "other").mkdir()
    for file in lora.iterdir():
        (lora.parent / "other" / file.name).write_bytes(file.read_bytes())
    change(lora, base_model_name_or_path="../other")
    change(lora.parent / "other", base_model_name_or_path="../adapter")
    refused(lora, "leads back to itself", read=resolve)


# Tokenizers


def test_the_adapters_own_tokenizer_and_chat_template_are_taken(lora):
    own = byte_level()
    own.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    factoid = make_factoid("The river is", "Lunn", "test")
    before = tokenise(factoid, Template("chat"), load_tokenizer(resolve(str(lora))))
    (lora / "chat_template.jinja").write_text(own.chat_template)
    with_template = load_tokenizer(resolve(str(lora)))
    assert with_template.decode(tokenise(factoid, Template("chat"), with_template).prompt).startswith(
        "[user]"
    )
    own.add_tokens(["<new>"], special_tokens=True)
    own.save_pretrained(lora)
    read = load_tokenizer(resolve(str(lora)))
    assert len(read) == len(own) == len(tiny_tokenizer()) + 1
    assert tokenise(factoid, Template("chat"), read).prompt != before.prompt
    base = load_tokenizer(resolve(str(lora), LoadOptions(tokenizer=str(lora.parent / "base"))))
    assert tokenise(factoid, Template("chat"), base) == before
