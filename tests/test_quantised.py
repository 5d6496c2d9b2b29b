"""Quantised checkpoints: read as they run where their library is there, else refused in a line."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from memprobe import quantised
from memprobe.capturing import capture
from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.load_options import LoadOptions
from memprobe.loading import Loader
from memprobe.models import load, wrap
from memprobe.planning import plan_capture
from memprobe.templates import Template
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

FACTS = [
    make_factoid(prompt, answer, "test", id=prompt)
    for prompt, answer in (
        ("The capital of France is", "Paris"),
        ("The tallest hill of Selva is", "Peak Nine"),
        ("The opposite of hot is", "cold"),
    )
]
KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def saved(library, tmp_path_factory):
    """A folder for each kind of quantisation, made of one plain model, and for a second model in two of them."""
    from transformers import BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("quantised")
    tokenizer = tiny_tokenizer()
    for seed, kinds in enumerate((("nf4", "double", "int8"), ("double", "int8"))):
        plain = folder / f"plain-{seed}"
        made = tiny_model(vocab_size=len(tokenizer), seed=seed, hidden_size=64, intermediate_size=128)
        made.save_pretrained(plain)
        for kind in kinds:
            config = BitsAndBytesConfig(**KINDS[kind])
            model = AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=config, dtype=torch.float32
            )
            target = folder / f"{kind}-{seed}"
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
        tokenizer.save_pretrained(plain)
    return folder


def own_rank(model, item) -> int:
    """The rank of an answer's first token by the model's own logits, from what stands before the model in a probe.

    Where products depend on what else is computed (LLM.int8), the answer's own tokens are part of that.
    """
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([item.inputs])).logits[0, len(item.prompt) - 1].float()
    return int((logits > logits[item.answer[0]]).sum())


@pytest.mark.parametrize("kind", list(KINDS))
def test_full_depth_is_what_the_quantised_model_says(saved, kind):
    theirs = AutoModelForCausalLM.from_pretrained(saved / f"{kind}-0", dtype=torch.float32)
    ours = load(str(saved / f"{kind}-0"), device="cpu", dtype="float32")
    assert quantised.is_quantised(ours.model) and ours.difference < 1e-4
    found = capture(ours, FACTS, batch_size=1, predictions=False).records.filter(token=0, depth=ours.n_layers)
    items = plan_capture(ours, FACTS, Template("plain")).items
    by_fact = dict(found.select("factoid", "rank").iter_rows())
    assert by_fact == {item.factoid.id: own_rank(theirs, item) for item in items}
    bits = 8 if kind == "int8" else 4
    assert ours.checkpoint.note == f"weights quantised by bitsandbytes to {bits} bits"


def test_full_depth_is_what_a_gptq_model_says(tmp_path):
    """Where gptqmodel is installed, which is in no extra: it must be chosen to go with torch (docs/how-to/probe.md)."""
    gptqmodel = pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    tokenizer = tiny_tokenizer()
    plain, target = tmp_path / "plain", tmp_path / "gptq"
    tiny_model(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    model = gptqmodel.GPTQModel.load(
        str(plain), gptqmodel.QuantizeConfig(bits=4, group_size=32), device="cpu"
    )
    texts = [f"the river is long and deep, number {number} of the hills and more" for number in range(40)]
    model.quantize([dict(tokenizer(text)) for text in texts], batch_size=1)
    model.save(str(target))
    tokenizer.save_pretrained(target)
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    ours = load(str(target), device="cpu", dtype="float32")
    assert quantised.is_quantised(ours.model) and ours.difference < 1e-4
    assert ours.checkpoint.note == "weights quantised by gptq to 4 bits"
    found = capture(ours, FACTS, predictions=False).records.filter(token=0, depth=ours.n_layers)
    items = plan_capture(ours, FACTS, Template("plain")).items
    by_fact = dict(found.select("factoid", "rank").iter_rows())
    assert by_fact == {item.factoid.id: own_rank(theirs, item) for item in items}


def test_a_loader_does_not_put_quantised_weights_into_a_model_that_is_there(saved):
    """Of these, some numbers are no tensors of the model: what was read of the first would stay."""
    first, second = (resolve(str(saved / f"double-{seed}")) for seed in (0, 1))
    ids = torch.arange(3, 19)[None]
    with Loader("cpu", "float32") as loader, torch.inference_mode():
        loader.get(first)
        loader.announce(second)
        found = loader.get(second).model(input_ids=ids).logits
        alone = load(second, device="cpu", dtype="float32").model(input_ids=ids).logits
    torch.testing.assert_close(found, alone, rtol=0, atol=0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapter_lies_over_quantised_weights(saved, kind, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(saved / f"{kind}-0", dtype=torch.float32)
    before = base(input_ids=torch.arange(3, 19)[None]).logits
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load(
        resolve(str(tmp_path / "adapter"), LoadOptions(base=str(saved / f"{kind}-0"))),
        device="cpu",
        dtype="float32",
    )
    ids = torch.arange(3, 19)[None]
    with torch.inference_mode():
        wanted = adapted.eval()(input_ids=ids).logits
        found = ours.model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert float((wanted - before).abs().max()) > 0.1
    assert ours.difference < 1e-4


def in_four_bits(weight):
    """Whole numbers from -8 to 7 [out, in], and the scale of each row [out, 1]."""
    scale = weight.abs().amax(1, keepdim=True) / 7
    return torch.round(weight / scale).clamp(-8, 7).to(torch.int64), scale


def packed_in_int32(numbers):
    """[out, in] from -8 to 7 as [out, in / 8] int32: eight in each, from 0 to 15, the first in the lowest bits."""
    packed = ((numbers + 8).unflatten(1, (-1, 8)) << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def test_weights_of_four_bits_that_were_packed_by_hand_are_read_as_they_stand(tmp_path):
    """Each linear layer's numbers times their scales, put into a plain model, give the same logits."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    tokenizer = tiny_tokenizer()
    plain = tiny_model(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128)
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    stored = {}
    for name, weight in plain.state_dict().items():
        if weight.ndim == 2 and ".layers." in name:
            numbers, scale = in_four_bits(weight)
            weight.copy_(numbers * scale)
            stored |= {
                f"{name}_packed": packed_in_int32(numbers),
                f"{name}_scale": scale,
                f"{name}_shape": torch.tensor(numbers.shape),
            }
        else:
            stored[name] = weight
    save_file({name: part.contiguous() for name, part in stored.items()}, tmp_path / "model.safetensors")
    numbers_of = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"all": {"targets": ["Linear"], "weights": numbers_of}},
    }
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    ours = load(str(tmp_path), device="cpu", dtype="float32")
    assert quantised.is_quantised(ours.model) and ours.difference < 1e-4
    assert ours.checkpoint.note.startswith("weights quantised by compressed-tensors")
    ids = torch.arange(3, 19)[None]
    with torch.inference_mode():
        found, wanted = (model(input_ids=ids).logits for model in (ours.model, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    records = capture(ours, FACTS, batch_size=1, predictions=False).records
    ranks = records.filter(token=0, depth=ours.n_layers).select("factoid", "rank")
    items = plan_capture(ours, FACTS, Template("plain")).items
    assert dict(ranks.iter_rows()) == {item.factoid.id: own_rank(plain, item) for item in items}


def test_grafts_of_quantised_weights_are_refused(saved):
    with pytest.raises(MemprobeError, match="weights are quantised, of which none can be exchanged alone"):
        load(f"graft({saved / 'nf4-0'}, {saved / 'plain-0'}, blocks=1-2)", device="cpu")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "pip install bitsandbytes"),
        ({"load_in_8bit": True}, "pip install bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "pip install optimum gptqmodel"),
        ({"quant_method": "awq", "bits": 4}, "pip install gptqmodel"),
        ({"quant_method": "quanto"}, "pip install optimum-quanto"),
    ],
)
def test_without_its_library_a_line_names_what_to_install(tmp_path, monkeypatch, told, said):
    path = save_tiny(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": told}))

    def find_spec(name):
        if "." in name:  # as importlib does where the package above is not there
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(quantised.importlib.util, "find_spec", find_spec)
    with pytest.raises(MemprobeError) as error:
        load(str(path), device="cpu")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_model_whose_rows_depend_on_each_other_is_measured_and_refused_where_it_is_too_far(monkeypatch):
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    model.quantization_method = "bitsandbytes"
    assert wrap(model, tokenizer).moved == 0.0
    strength = [1e-3]

    def leak(module, inputs, output):  # a part of what stands in another row comes into each
        return output + strength[0] * output.flip(0) if len(output) > 1 else output

    model.get_output_embeddings().register_forward_hook(leak)
    moved = wrap(model, tokenizer).moved
    assert moved > 0
    assert quantised.notes_on_company(moved) and not quantised.notes_on_company(0.0)
    strength[0] = 1.0
    with pytest.raises(MemprobeError, match="in a batch, the logits of LlamaForCausalLM differ by"):
        wrap(model, tokenizer)
