"""Checkpoint specs, fingerprints and manifests on tiny checkpoints written here."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from memprobe.checkpoints import common_template, fingerprint, resolve, resolve_all, split_label
from memprobe.errors import MemprobeError
from memprobe.load_options import LoadOptions
from memprobe.manifests import MANIFEST, read_manifest
from memprobe.models import load
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 17, 99, 200, 31, 7]])


def write_manifest(checkpoint: Path, **changes) -> Path:
    """A manifest as training writes it, with the factoids of stage 1 beside the weights."""
    factoids = checkpoint / "factoids.jsonl"
    factoids.write_text('{"prompt": "The river of Oria is the", "answer": "Lunn"}\n')
    mark = hashlib.sha256(factoids.read_bytes()).hexdigest()
    manifest = {
        "schema": 1,
        "template": "plain",
        "arm": "none",
        "seed": 3,
        "stage": 1,
        "stage_name": "facts",
        "steps": 10,
        "stages": [{"index": 1, "name": "facts", "factoids": "factoids.jsonl", "hash": mark}],
    } | changes
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    return checkpoint


def one_line(spec: str, *words: str, **options) -> None:
    with pytest.raises(MemprobeError) as caught:
        resolve(spec, LoadOptions(**options))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that may be changed."""

    def make(name: str = "copy") -> Path:
        return Path(shutil.copytree(tiny_checkpoint, tmp_path / name))

    return make


def test_a_directory_is_called_by_its_name_or_by_its_label(tiny_checkpoint, monkeypatch):
    plain = resolve(str(tiny_checkpoint))
    assert (plain.label, plain.path, plain.kind) == (tiny_checkpoint.name, tiny_checkpoint, "weights")
    named = resolve(f"base={tiny_checkpoint}")
    assert (named.label, named.path, named.spec) == ("base", tiny_checkpoint, str(tiny_checkpoint))
    monkeypatch.chdir(tiny_checkpoint)
    assert resolve(".").label == tiny_checkpoint.name


def test_labels_are_split_at_the_first_equals_sign_unless_the_path_exists(tmp_path):
    assert split_label("a=b=c") == ("a", "b=c")
    assert split_label(f"lr=1e-4={tmp_path}") == ("lr=1e-4", str(tmp_path))
    assert split_label("lr=1e-4=org/name") == ("lr=1e-4", "org/name")
    assert split_label("run=runs/lr=0.1/1-kvr") == ("run", "runs/lr=0.1/1-kvr")
    assert split_label("org/name") == (None, "org/name")
    odd = tmp_path / "lr=0.1"
    odd.mkdir()
    assert split_label(str(odd)) == (None, str(odd))
    for bad in ("=x", "a=", " = "):
        with pytest.raises(MemprobeError, match="LABEL=SPEC"):
            split_label(bad)


def test_two_checkpoints_of_one_label_are_refused(tiny_checkpoint):
    assert [c.label for c in resolve_all([f"a={tiny_checkpoint}", f"b={tiny_checkpoint}"])] == ["a", "b"]
    with pytest.raises(MemprobeError, match="LABEL=SPEC"):
        resolve_all([f"a={tiny_checkpoint}", f"a={tiny_checkpoint}"])


def test_what_is_no_checkpoint_is_refused_in_one_line(copy, tmp_path):
    one_line(str(tmp_path / "nowhere"), "nowhere", "no such file or directory")
    (tmp_path / "empty").mkdir()
    one_line(str(tmp_path / "empty"), "no config.json")
    (tmp_path / "note.txt").write_text("x")
    one_line(str(tmp_path / "note.txt"), "note.txt")
    bare = copy("bare")
    (bare / "model.safetensors").unlink()
    one_line(str(bare), "no weights")
    torn = copy("torn")
    content = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(content[: len(content) // 2])
    one_line(str(torn), "model.safetensors", "truncated or corrupt")
    broken = copy("broken")
    (broken / "config.json").write_text("{")
    one_line(str(broken), "config.json")


def test_pickled_weights_need_a_word(copy):
    pickled = copy("pickled")
    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    one_line(str(pickled), "pickled", "--allow-pickle")
    checkpoint = resolve(str(pickled), LoadOptions(allow_pickle=True))
    assert checkpoint.kind == "pickle"
    assert len(fingerprint(checkpoint)) == 64
    # What a Trainer leaves beside the weights is no weights file.
    (pickled / "pytorch_model.bin").rename(pickled / "training_args.bin")
    one_line(str(pickled), "no weights", allow_pickle=True)


def test_a_changed_weight_in_a_pickle_is_another_fingerprint(copy):
    """Else a state or a probe of other weights is taken for this one's."""
    pickled = copy("pickled")
    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    found = []
    for _ in range(2):
        torch.save(weights, pickled / "pytorch_model.bin")
        found.append(fingerprint(resolve(str(pickled), LoadOptions(allow_pickle=True))))
        weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    assert found[0] != found[1]


def test_a_hub_id_offline_gives_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one_line("no-such-owner/no-such-model", "no-such-owner/no-such-model", "hub")
    one_line("no-such-owner/no-such-model@v1.0", "no-such-owner/no-such-model@v1.0")


# Run directories


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """A run directory with stages 1, 2 and 10 finished and 11 under way."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "recipe.toml").write_text("name = 'x'\n")
    for index, name in ((1, "facts"), (2, "other"), (10, "last")):
        stage = Path(shutil.copytree(tiny_checkpoint, path / f"{index}-{name}"))
        write_manifest(stage, stage=index, stage_name=name)
    (path / "11-unfinished").mkdir()
    return path


def test_a_run_directory_is_its_last_finished_stage(run):
    checkpoint = resolve(str(run))
    assert checkpoint.path.name == "10-last"
    assert checkpoint.manifest is not None and checkpoint.manifest.stage == 10


@pytest.mark.parametrize("name", ["facts", "1-facts"])
def test_a_stage_is_found_by_name(run, name):
    assert resolve(f"{run}/{name}").manifest.stage == 1
    assert resolve(f"mine={run}/{name}").label == "mine"


def test_an_unknown_stage_and_a_run_without_one_are_refused(run):
    one_line(f"{run}/nothing", "no such file or directory")
    for name in ("1-facts", "2-other", "10-last"):
        shutil.rmtree(run / name)
    one_line(str(run), "without a finished stage")


# Adapters


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter with weights of some size, saved beside its base; gives (base, adapter, merged logits)."""
    peft = pytest.importorskip("peft")
    base = save_tiny(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return base, tmp_path / "adapter", adapted(input_ids=IDS).logits


def rebase(adapter: Path, base: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_an_adapter_is_merged_onto_its_base(adapter, kind, tmp_path):
    base, path, expected = adapter
    if kind == "relative":
        rebase(path, "../base")
        path = Path(shutil.move(tmp_path, tmp_path.with_name(f"{tmp_path.name}-moved"))) / "adapter"
    else:
        rebase(path, str(base))
    checkpoint = resolve(str(path))
    assert checkpoint.kind == "adapter" and checkpoint.base is not None
    lens_model = load(checkpoint, device="cpu")
    with torch.no_grad():
        logits = lens_model.model(input_ids=IDS).logits
        bare = load(checkpoint.base, device="cpu").model(input_ids=IDS).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert (logits - bare).abs().max() > 0.1, "the adapter does nothing, so nothing was tested"
    assert lens_model.fingerprint != fingerprint(checkpoint.base)


@pytest.mark.parametrize("changed", ["base", "pickled adapter"])
def test_an_adapters_fingerprint_is_of_its_base_and_of_its_own_weights(adapter, changed):
    """One adapter on two bases is two models, and so are two pickled adapters on one."""
    base, path, _ = adapter
    rebase(path, str(base))
    file, name = base / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    save = save_file
    if changed == "pickled adapter":
        weights = load_file(path / "adapter_model.safetensors")
        (path / "adapter_model.safetensors").unlink()
        file, name, save = path / "adapter_model.bin", next(iter(weights)), torch.save
        torch.save(weights, file)
    else:
        weights = load_file(file)
    before = fingerprint(resolve(str(path), LoadOptions(allow_pickle=True)))
    weights[name][0, 0] += 1
    save(weights, file)
    assert fingerprint(resolve(str(path), LoadOptions(allow_pickle=True))) != before


def test_adapters_whose_base_is_missing_or_unnamed_are_refused(adapter):
    _, path, _ = adapter
    rebase(path, "../elsewhere")
    one_line(str(path), "../elsewhere")
    rebase(path, "")
    one_line(str(path), "names no base model")


def test_an_adapter_of_another_shape_is_refused(adapter, tmp_path):
    base, path, _ = adapter
    model = tiny_model("llama", len(tiny_tokenizer()), hidden_size=16)
    model.save_pretrained(base)
    with pytest.raises(MemprobeError, match="does not fit its base model"):
        load(str(path), device="cpu")


# What the files hold, and where they are


def test_weights_that_no_part_of_the_model_holds_are_refused(copy):
    """More layers than the configuration names, or an adapter's tensors among the model's own."""
    for name, shape in (
        ("model.layers.3.mlp.up_proj.weight", (48, 32)),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 32)),
    ):
        folder = copy(name)
        weights = load_file(folder / "model.safetensors")
        assert name not in weights
        weights[name] = torch.zeros(shape)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(MemprobeError, match=f"1 weights belong to no part of LlamaForCausalLM.*{name}"):
            load(str(folder), device="cpu")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen2"])
def test_a_checkpoint_without_a_tokenizer_says_so_and_takes_anothers(family, tiny_checkpoint, tmp_path):
    """As a Trainer without a processing class leaves it; some families would be given an empty tokenizer."""
    tiny_model(family, len(tiny_tokenizer())).save_pretrained(tmp_path / "bare")
    for left in ([], ["tokenizer_config.json"]):
        for name in left:
            shutil.copy(tiny_checkpoint / name, tmp_path / "bare" / name)
        with pytest.raises(MemprobeError, match=r"no (usable tokenizer|tokenizer files).*--tokenizer SPEC"):
            load(str(tmp_path / "bare"), device="cpu")
    found = resolve(str(tmp_path / "bare"), LoadOptions(tokenizer=str(tiny_checkpoint)))
    assert len(load(found, device="cpu").tokenizer) == len(tiny_tokenizer())
    (tmp_path / "words").mkdir()
    tiny_tokenizer().save_pretrained(tmp_path / "words")  # a folder with nothing else
    found = resolve(str(tmp_path / "bare"), LoadOptions(tokenizer=str(tmp_path / "words")))
    assert len(load(found, device="cpu").tokenizer) == len(tiny_tokenizer())


def test_configurations_that_could_never_be_built_are_refused(copy):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    one_line(str(folder), "config.json", "num_hidden_layers is 1000000000", "the files hold")
    (folder / "config.json").write_text(json.dumps([config]))
    one_line(str(folder), "config.json: should be a valid dictionary")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("ids", [10**30, [1, 10**30], "2"])
def test_ids_that_no_token_can_have_are_refused(copy, name, ids):
    folder = copy()
    path = folder / name
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(held | {"eos_token_id": ids}))
    one_line(str(folder), name, "eos_token_id")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "weight_map"),
        ([], "should be a valid dictionary"),
        ({"weight_map": {"a": 3}}, "weight_map"),
        ({"weight_map": {"a": "/dev/zero"}}, "not in this folder"),
        ({"weight_map": {"a": "../other.safetensors"}}, "not in this folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors, which is missing"),
    ],
)
def test_broken_indexes_are_named(copy, index, words):
    folder = copy()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    one_line(str(folder), "model.safetensors.index.json", words)


def test_a_gguf_that_is_no_file_is_no_checkpoint(tmp_path):
    (tmp_path / "a" / "m.gguf").mkdir(parents=True)
    one_line(str(tmp_path / "a"), "no config.json")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "m.gguf").symlink_to("m.gguf")
    one_line(str(tmp_path / "b"), "no config.json")
    one_line(str(tmp_path / "b" / "m.gguf"))
    (tmp_path / "b" / "n.gguf").symlink_to("nowhere")
    one_line(str(tmp_path / "b"), "no config.json")


def test_hub_ids(monkeypatch, tiny_checkpoint):
    """Names from before the hub had owners; code is fetched where it is trusted; other words are no ids."""
    import huggingface_hub

    asked = []

    def snapshot(name, *, allow_patterns, **_):
        asked.append((name, "*.py" in allow_patterns))
        return str(tiny_checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve("gpt2").label == "gpt2"
    resolve("someone/model", LoadOptions(trust_remote_code=True))
    resolve("a=1=someone/model")
    assert asked == [("openai-community/gpt2", False), ("someone/model", True), ("someone/model", False)]
    one_line("gpt3", "gpt3: no such file or directory", "OWNER/NAME")
    for path in (
        "./nowhere",
        "../nowhere",
        "~/nowhere",
        "a=./nowhere",
    ):  # each of the first two could be a hub id
        one_line(path, "nowhere: no such file or directory")
    assert len(asked) == 3


def test_specs_that_no_file_can_be_called(tmp_path):
    one_line("x" * 300, "no such file or directory")
    one_line(f"{'l' * 300}={tmp_path / 'nowhere'}", "no such file or directory")
    one_line("a\0b")


# Fingerprints


def test_the_fingerprint_is_of_the_weights_however_they_are_sharded(tiny_checkpoint, copy):
    once = fingerprint(resolve(str(tiny_checkpoint)))
    sharded = copy("sharded")
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert fingerprint(resolve(str(sharded))) == once
    (sharded / "README.md").write_text("says nothing of the weights")
    assert fingerprint(resolve(f"other={sharded}")) == once


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape", "swap"])
def test_any_change_of_the_weights_changes_the_fingerprint(tiny_checkpoint, copy, change):
    changed = copy()
    weights = load_file(changed / "model.safetensors")
    up, gate = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    if change == "value":
        weights[up][0, 0] = torch.nextafter(weights[up][0, 0], torch.tensor(torch.inf))
    elif change == "name":
        weights[f"{up}.old"] = weights.pop(up)
    elif change == "dtype":
        weights[up] = weights[up].view(torch.int32)
    elif change == "shape":
        weights[up] = weights[up].reshape(-1, 1)
    else:
        weights[up], weights[gate] = weights[gate], weights[up]
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(resolve(str(changed))) != fingerprint(resolve(str(tiny_checkpoint)))


def test_a_missing_shard_is_named(copy, tiny_checkpoint):
    sharded = copy()
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint).save_pretrained(sharded, max_shard_size="20KB")
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    one_line(str(sharded), gone.name, "missing")


# GGUF


def test_a_gguf_file_is_a_checkpoint_and_its_bytes_are_its_fingerprint(tmp_path):
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"GGUF" + os.urandom(64))
    by_file, by_folder = resolve(str(file)), resolve(f"x={tmp_path}")
    assert (by_file.label, by_file.kind, by_file.gguf_file) == ("weights", "gguf", "weights.gguf")
    assert (by_folder.label, by_folder.kind, by_folder.gguf_file) == ("x", "gguf", "weights.gguf")
    before = fingerprint(by_file)
    assert before == fingerprint(by_folder) == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    assert fingerprint(by_file) != before
    with pytest.raises(MemprobeError):
        load(by_file, device="cpu")


# Manifests


def test_a_manifest_gives_what_training_wrote(copy):
    manifest = resolve(str(write_manifest(copy()))).manifest
    assert manifest is not None
    assert (manifest.arm, manifest.seed, manifest.stage, manifest.steps) == ("none", 3, 1, 10)
    assert manifest.stage_factoids(1).name == "factoids.jsonl"


def test_no_manifest_is_no_error(tiny_checkpoint):
    assert read_manifest(tiny_checkpoint) is None
    assert resolve(str(tiny_checkpoint)).manifest is None


def test_stage_factoids_that_are_gone_changed_or_unnamed_are_refused(copy):
    checkpoint = write_manifest(copy())
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    with pytest.raises(MemprobeError, match="names no factoids of stage 2; give --factoids"):
        manifest.stage_factoids(2)
    file = checkpoint / "factoids.jsonl"
    file.write_text(file.read_text() + " ")
    with pytest.raises(MemprobeError, match=r"changed since memprobe\.json was written; give --factoids"):
        manifest.stage_factoids(1)
    file.unlink()
    with pytest.raises(MemprobeError, match="are gone; give --factoids"):
        manifest.stage_factoids(1)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "schema None"),
        ('{"schema": 2}', "schema 2"),
        ('{"schema": 1}', "template: missing"),
    ],
)
def test_manifests_that_cannot_be_read_are_refused(copy, content, word):
    checkpoint = copy()
    (checkpoint / MANIFEST).write_text(content)
    one_line(str(checkpoint), MANIFEST, word)


@pytest.mark.parametrize("key", ["template", "arm", "seed", "stage", "stage_name", "steps"])
def test_a_manifest_without_a_field_is_refused(copy, key):
    checkpoint = write_manifest(copy())
    data = json.loads((checkpoint / MANIFEST).read_text())
    del data[key]
    (checkpoint / MANIFEST).write_text(json.dumps(data))
    one_line(str(checkpoint), f"{key}: missing")


def test_a_manifest_without_stages_names_no_factoids(copy):
    checkpoint = write_manifest(copy())
    data = json.loads((checkpoint / MANIFEST).read_text())
    del data["stages"]
    (checkpoint / MANIFEST).write_text(json.dumps(data))
    manifest = resolve(str(checkpoint)).manifest
    assert manifest is not None
    with pytest.raises(MemprobeError, match="names no factoids of stage 1; give --factoids"):
        manifest.stage_factoids(1)


@pytest.mark.parametrize(
    "factoids", ["/dev/zero", "../../elsewhere.jsonl", "config.json/../../x", "a/../../b", ""]
)
def test_a_manifest_names_files_beside_itself_alone(copy, factoids):
    entry = {"index": 1, "name": "facts", "factoids": factoids, "hash": "0"}
    manifest = resolve(str(write_manifest(copy(), stages=[entry]))).manifest
    with pytest.raises(MemprobeError, match="are not in its folder; give --factoids"):
        manifest.stage_factoids(1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": 5}, "stages: should be a valid list, and is 5"),
        ({"stages": [1]}, "stages.0: should be a valid dictionary, and is 1"),
        ({"stages": [{"index": 1}]}, "stages.0.factoids: missing"),
        (
            {"stages": [{"index": 1, "factoids": 3, "hash": "x"}]},
            "0.factoids: should be a valid string, and is 3",
        ),
        ({"seed": "three"}, "seed: should be a valid integer, and is 'three'"),
        ({"steps": True}, "steps: should be a valid integer, and is True"),
        ({"template": None}, "template: should be a valid string, and is None"),
    ],
)
def test_manifests_of_another_form_are_named(copy, changes, words):
    one_line(str(write_manifest(copy(), **changes)), MANIFEST, words)


def test_the_common_template_is_that_of_the_manifests(copy, tiny_checkpoint):
    base = resolve(f"base={tiny_checkpoint}")
    tulu, again = (resolve(str(write_manifest(copy(name), template="tulu"))) for name in ("a", "b"))
    plain = resolve(str(write_manifest(copy("c"))))
    assert common_template([base]) is None
    assert common_template([base, tulu, again]) == "tulu"
    with pytest.raises(MemprobeError, match=r"a: 'tulu', c: 'plain'.*give --template"):
        common_template([tulu, base, plain])


def test_a_packaged_model_that_is_misspelt_is_suggested():
    with pytest.raises(MemprobeError, match=r"OWNER/NAME; packaged are .*; did you mean smollm2-135m\?$"):
        resolve("smollm2-135")


def test_a_link_is_called_as_it_was_typed(tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "base").symlink_to(tiny_checkpoint, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("base").label == resolve("./base/").label == "base"
    monkeypatch.chdir(tiny_checkpoint)
    assert resolve(".").label == tiny_checkpoint.name
