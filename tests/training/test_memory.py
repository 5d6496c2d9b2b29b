"""One model for all stages: whatever was done with it before, a stage comes out as from files."""

import json
import random
import shutil

import pytest
import torch

from memprobe.checkpoints import fingerprint, resolve
from memprobe.models import load_pretrained
from memprobe.settings import settings_of
from tests.training.grids import write
from tests.training.runs import same_weights, small
from training.grid import cells_of, read_grid
from training.memory import Memory
from training.run import run

STAGES = ("1-a", "2-b")


def recipes(folder, tiny_checkpoint, arms):
    """A recipe for each arm, with bf16 autocast, which wraps the model."""
    path = write(folder, tiny_checkpoint, seeds="[0]", epochs=2, arms=json.dumps(list(arms)))
    text = path.read_text().replace("[data.a]", '[recipe.precision]\nautocast = "bfloat16"\n[data.a]', 1)
    for name, arm in arms.items():
        text = text.replace("[arms]", f'[arms]\n{name} = "{arm}"', 1)
    text = text.replace("[recipe]", "[recipe]\nevaluate = { interference = true }", 1)
    path.write_text(text)
    return [cell.node.recipe for cell in cells_of(read_grid(path), path)]


ARMS = {
    "plain": "none",
    "held": "kl(strength=0.5)",
    "adapted": "lora(rank=2)",
    "weighed": "ewc(strength=1.0)",
}


def test_runs_one_after_the_other_in_one_model_are_those_from_files(tiny_checkpoint, tmp_path):
    memory = Memory("cpu")
    made = recipes(tmp_path, tiny_checkpoint, ARMS)
    assert len(made) == len(ARMS)
    for number, recipe in enumerate(made):
        together, apart = tmp_path / f"together-{number}", tmp_path / f"apart-{number}"
        run(recipe, together, quiet=True, memory=memory)
        run(recipe, apart, quiet=True)
        for stage in STAGES:
            assert same_weights(together / stage, apart / stage), (recipe.arm_name, stage)
            first, second = (
                json.loads((out / stage / "evaluation.json").read_text()) for out in (together, apart)
            )
            assert first == second


def test_the_model_holds_what_was_asked_for(tiny_checkpoint, tmp_path):
    """Base, stage 1, base, stage 2: each time the weights of the files, and one model all along."""
    (recipe,) = recipes(tmp_path, tiny_checkpoint, {"plain": "none"})
    run(recipe, tmp_path / "run", quiet=True)
    memory, models = Memory("cpu"), []
    specs = [str(tiny_checkpoint), *(str(tmp_path / "run" / stage) for stage in STAGES)]
    for spec in [specs[0], specs[1], specs[0], specs[2], specs[2]]:
        model, _ = memory.load(resolve(spec), torch.float32)
        models.append(model)
        expected = load_pretrained(resolve(spec), torch.float32)[0].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        assert not model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
        memory.changed()
        with torch.no_grad():  # as training does
            for parameter in model.parameters():
                parameter.add_(1.0)
    assert all(model is models[0] for model in models)


def test_another_model_is_not_poured_into_this_one(tiny_checkpoint, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "other")
    memory = Memory("cpu")
    first, _ = memory.load(resolve(str(tiny_checkpoint)), torch.float32)
    second, _ = memory.load(resolve(str(tmp_path / "other")), torch.float32)
    assert first is not second
    assert memory.weights(resolve(str(tmp_path / "other"))) is not None
    assert memory.weights(resolve(str(tiny_checkpoint))) is None


def test_a_second_model_leaves_the_first_as_it_is(tiny_checkpoint, tmp_path):
    (recipe,) = recipes(tmp_path, tiny_checkpoint, {"plain": "none"})
    run(recipe, tmp_path / "run", quiet=True)
    memory, base = Memory("cpu"), resolve(str(tiny_checkpoint))
    memory.load(base, torch.float32)
    model, _ = memory.load(resolve(str(tmp_path / "run" / "1-a")), torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    second = memory.second(base, torch.float32)
    expected = load_pretrained(base, torch.float32)[0].state_dict()
    assert second.model is not model and second.fingerprint == fingerprint(base)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(5, 15)[None]).logits


def test_a_stage_of_other_settings_is_another_model(tiny_checkpoint, tmp_path):
    """Its tensors would fit into the base model's; and the base model's into the one that it is."""
    (recipe,) = recipes(tmp_path, tiny_checkpoint, {"plain": "none"})
    run(recipe, tmp_path / "run", quiet=True)
    config = tmp_path / "run" / "1-a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    base, changed, plain = (
        resolve(str(path)) for path in (tiny_checkpoint, config.parent, tmp_path / "run" / "2-b")
    )
    expected = {one.spec: logits_of(load_pretrained(one, torch.float32)[0]) for one in (base, changed, plain)}
    memory = Memory("cpu")
    for checkpoint in (base, changed, base, plain, changed, plain, changed, base):
        model, _ = memory.load(checkpoint, torch.float32)
        assert torch.equal(logits_of(model), expected[checkpoint.spec]), checkpoint.spec
        for other in (base, changed, plain):
            second = memory.second(other, torch.float32)
            assert torch.equal(logits_of(second.model), expected[other.spec])
            assert second.settings == settings_of(other)
        assert torch.equal(logits_of(model), expected[checkpoint.spec])


def written_otherwise(tiny_checkpoint, folder):
    """With a default left out that is written into the stages' configuration."""
    base = shutil.copytree(tiny_checkpoint, folder / "base")
    config = json.loads((base / "config.json").read_text())
    assert config.pop("hidden_act") == "silu"
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    return base


def an_adapter(tiny_checkpoint, folder):
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(folder / "base")
    return folder / "base"


@pytest.mark.parametrize("made", [written_otherwise, an_adapter])
@pytest.mark.parametrize("arm", ["none", "lora(rank=2)"])
def test_stages_go_into_the_model_of_a_base_whose_settings_are_spelled_otherwise(
    made, arm, tiny_checkpoint, tmp_path
):
    base = made(tiny_checkpoint, tmp_path)
    (recipe,) = recipes(tmp_path, base, {"plain": arm})
    run(recipe, tmp_path / "run", quiet=True)
    checkpoints = [resolve(str(path)) for path in (base, *(tmp_path / "run" / name for name in STAGES))]
    assert settings_of(checkpoints[0]) != settings_of(checkpoints[1]) == settings_of(checkpoints[2])
    for first in range(3):  # whichever the model was built of, once the base model is held
        memory = Memory("cpu")
        memory.load(checkpoints[0], torch.float32)
        memory.forget()
        models = {memory.load(checkpoints[at], torch.float32)[0] for at in (first, 0, 1, 2, 0, 2)}
        assert len(models) == 1


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json"])
def test_a_fingerprint_is_read_again_when_files_change(changed, tiny_checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    before = fingerprint(resolve(str(folder)))
    if changed == "config.json":  # it is no weight
        (folder / changed).write_text((folder / changed).read_text() + " ")
        assert fingerprint(resolve(str(folder))) == before
        return
    weights = load_file(folder / changed)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / changed, {"format": "pt"})
    assert fingerprint(resolve(str(folder))) != before


def test_weights_are_those_of_the_files_in_whatever_precision_came_before(tiny_checkpoint, tmp_path):
    """What was rounded for one run is not what another, in fp32, is trained from; nor are the same tensors in another
    model."""
    run(small(tiny_checkpoint), tmp_path / "run", quiet=True)
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    named = {"base": tiny_checkpoint, "stage": tmp_path / "run" / "1-a", "other": other}
    named = {name: resolve(str(path)) for name, path in named.items()}
    exact = {
        (name, dtype): load_pretrained(checkpoint, dtype)[0].state_dict()
        for name, checkpoint in named.items()
        for dtype in (torch.float32, torch.bfloat16)
    }
    memory = Memory("cpu")
    generator = random.Random(0)
    for name, dtype in [generator.choice(list(exact)) for _ in range(24)]:
        model, _ = memory.load(named[name], dtype)
        assert model.config.rms_norm_eps == (0.5 if name == "other" else config["rms_norm_eps"])
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, exact[name, dtype][key]), (name, dtype, key)
        held = memory.weights(named["base"])
        for key, tensor in (held or {}).items():
            assert torch.equal(tensor, exact["base", tensor.dtype][key])
