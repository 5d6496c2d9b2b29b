"""Specs of many checkpoints, the next one's weights read ahead into the same model, and the hub's cache given back."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from memprobe import hub_cache, loading, planning, prober, probing
from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.loading import Loader
from memprobe.members import step_of
from memprobe.models import load
from memprobe.probes import table_file
from memprobe.probing import probe
from memprobe.sequences import Deferred, One, expand, find_all
from memprobe.sources import load_factoids

FACTS = load_factoids("known")[:5]


def texts(spec):
    return [one.text for one in expand(spec)]


def test_braces_count_and_list():
    assert texts("o/n@step{1000..3000..1000}") == ["o/n@step1000", "o/n@step2000", "o/n@step3000"]
    assert texts("o/n@step{1..3}-t{8,9}")[:3] == ["o/n@step1-t8", "o/n@step1-t9", "o/n@step2-t8"]
    assert texts("o/n@{007..009}") == ["o/n@007", "o/n@008", "o/n@009"]
    assert [one.label for one in expand("pythia=o/n@step{1,2}")] == ["pythia/o/n@step1", "pythia/o/n@step2"]
    assert [one.step for one in expand("o/n@step{0..512..256}")] == [0, 256, 512]
    assert [(one.text, one.label, one.step) for one in expand("a=o/n@step7")] == [("a=o/n@step7", None, None)]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("o/n@{3..1}", "counts to nothing"),
        ("o/n@{1..9..0}", "counts to nothing"),
        ("o/n@{x}", "is neither {FIRST..LAST..BY}"),
        ("o/n@{1..99999}", "more than 10,000"),
        ("o/n@{1..200}{1..200}", "more than 10,000"),
        ("nowhere/check*", "no checkpoint matches"),
    ],
)
def test_what_stands_for_nothing_is_refused(spec, said):
    with pytest.raises(MemprobeError, match=said):
        expand(spec)


@pytest.fixture
def steps(tiny_checkpoint, tmp_path):
    """Four checkpoints of one shape whose weights differ, in folders whose order by text is another."""
    for step in (5, 10, 20, 100):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        shutil.copytree(tiny_checkpoint, folder)
        file = folder / "model.safetensors"
        torch.manual_seed(step)
        changed = {name: t + 0.05 * torch.randn_like(t) for name, t in load_file(file).items()}
        save_file(changed, file, metadata={"format": "pt"})
    (tmp_path / "run" / "checkpoint-0-empty").mkdir()
    return tmp_path / "run"


def test_a_pattern_matches_folders_in_the_order_of_their_numbers(steps):
    found, by_label = find_all([str(steps / "checkpoint-*")])
    assert [item.label for item in found] == [
        "checkpoint-5",
        "checkpoint-10",
        "checkpoint-20",
        "checkpoint-100",
    ]
    assert by_label == {"checkpoint-5": 5, "checkpoint-10": 10, "checkpoint-20": 20, "checkpoint-100": 100}
    named, _ = find_all([f"a={steps}/checkpoint-*0"])
    assert [item.label for item in named] == ["a/checkpoint-10", "a/checkpoint-20", "a/checkpoint-100"]
    many, _ = find_all([f"{steps.parent}/*/checkpoint-{{5,10}}"])
    assert [item.label for item in many] == ["checkpoint-5", "checkpoint-10"]


def test_the_next_weights_go_into_the_same_model(steps):
    paths = [steps / f"checkpoint-{step}" for step in (5, 10, 100)]
    checkpoints = [resolve(str(path)) for path in paths]
    with Loader("cpu", "float32") as loader:
        for index, checkpoint in enumerate(checkpoints):
            model = loader.get(checkpoint)
            expected = load(str(paths[index]), device="cpu", dtype="float32")
            ours, theirs = model.model.state_dict(), expected.model.state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
            assert model.fingerprint == expected.fingerprint and model.label == expected.label
            assert loader.reused == index
            for after in checkpoints[index + 1 : index + 2]:
                loader.announce(after)


@pytest.mark.parametrize("change", ["config", "name", "missing", "shape", "not plain"])
def test_what_does_not_fit_is_loaded_anew(steps, monkeypatch, change):
    one, two = steps / "checkpoint-5", steps / "checkpoint-10"
    file = two / "model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    if change == "config":
        config = json.loads((two / "config.json").read_text())
        (two / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    elif change == "name":
        save_file({"other" if name == first else name: t for name, t in tensors.items()}, file)
    elif change == "missing":
        save_file({name: t for name, t in tensors.items() if name != first}, file)
    elif change == "shape":
        save_file({name: t[:1] if name == first else t for name, t in tensors.items()}, file)
    else:
        monkeypatch.setattr(loading, "_holds", lambda model, tensors: False)
    with Loader("cpu", "float32") as loader:
        loader.get(resolve(str(one)))
        loader.announce(resolve(str(two)))
        if change in ("name", "missing", "shape"):
            with pytest.raises(MemprobeError, match=r"weights|shape|loaded as a causal LM"):
                loader.get(resolve(str(two)))
        else:
            model = loader.get(resolve(str(two)))
            assert torch.equal(model.model.state_dict()[first], tensors[first])
        assert loader.reused == 0


def watched(monkeypatch):
    """What a probe does from now on, in order, and its loaders."""
    happened, loaders = [], []
    ahead, start, finish = Loader._read_ahead, Loader.__init__, probing.finish

    def read_ahead(self, item, beside):
        happened.append(f"read ahead {item.label}")
        return ahead(self, item, beside)

    def finished(out, run, label, texts):
        happened.append(f"finished {label}")
        finish(out, run, label, texts)

    monkeypatch.setattr(Loader, "__init__", lambda self, *a: loaders.append(self) or start(self, *a))
    monkeypatch.setattr(Loader, "_read_ahead", read_ahead)
    monkeypatch.setattr(probing, "finish", finished)
    return happened, loaders


def test_a_probe_of_many_is_the_probe_of_each(steps, tmp_path, monkeypatch):
    planned = []
    plan = planning.plan_capture
    monkeypatch.setattr(prober, "plan_capture", lambda *a, **k: planned.append(1) or plan(*a, **k))
    happened, loaders = watched(monkeypatch)
    many = probe([str(steps / "checkpoint-*")], FACTS, tmp_path / "many", device="cpu")
    assert len(planned) == 1, "tokenised once for one tokenizer"
    assert [loader.reused for loader in loaders] == [3], "into the model of the first"
    for step, after in ((5, 10), (10, 20), (20, 100)):
        begun = happened.index(f"read ahead checkpoint-{after}")
        assert begun < happened.index(f"finished checkpoint-{step}"), "while the one before computes"
    monkeypatch.undo()
    assert [entry["step"] for entry in many.run["checkpoints"].values()] == [5, 10, 20, 100]
    for step in (5, 10, 20, 100):
        label = f"checkpoint-{step}"
        alone = probe([str(steps / label)], FACTS, tmp_path / label, device="cpu")
        for table in ("records", "controls"):
            ours = table_file(tmp_path / "many", label, table).read_bytes()
            assert ours == table_file(tmp_path / label, label, table).read_bytes()
        entry = many.run["checkpoints"][label]
        assert entry["fingerprint"] == alone.run["checkpoints"][label]["fingerprint"]


def test_fp32_is_asked_for_once_for_each_architecture(steps, tmp_path, monkeypatch):
    asked = []
    precision = probing._precision
    monkeypatch.setattr(
        probing,
        "_precision",
        lambda out, run, label, *rest: asked.append(label) or precision(out, run, label, *rest),
    )
    found = probe(
        [str(steps / "checkpoint-{5,10,20}")], FACTS, tmp_path / "probe", device="cpu", dtype="bfloat16"
    )
    entries = found.run["checkpoints"]
    assert asked == ["checkpoint-5"] and "precision" in entries["checkpoint-5"]
    assert entries["checkpoint-20"]["precision_of"] == "checkpoint-5"


# The hub's cache, without the hub.


@pytest.fixture
def hub(tiny_checkpoint, tmp_path, monkeypatch):
    """A cache of three revisions that share their tokenizer's file, and what was fetched from it."""
    root = tmp_path / "hub" / "models--owner--name"
    blobs = root / "blobs"
    blobs.mkdir(parents=True)
    commits = {}
    for number, revision in enumerate(("step1", "step2", "step3")):
        commit = commits[revision] = str(number) * 40
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(commit)
        for file in tiny_checkpoint.iterdir():
            own = file.name == "model.safetensors"
            blob = blobs / (f"{file.name}-{number}" if own else file.name)
            if own:
                tensors = {name: t + number * 0.01 for name, t in load_file(file).items()}
                save_file(tensors, blob, metadata={"format": "pt"})
            elif not blob.exists():
                shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(blob)
    fetched = []

    def download(name, revision=None, **_):
        fetched.append(revision)
        return str(root / "snapshots" / commits[revision])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return root, fetched


def test_hub_checkpoints_of_a_sequence_are_fetched_in_turn_and_given_back(hub, tmp_path):
    root, fetched = hub
    asked = ["owner/name@step{1..3}"]
    found, _ = find_all(asked)
    assert all(isinstance(item, Deferred) for item in found) and not fetched
    result = probe(asked, FACTS, tmp_path / "probe", device="cpu", evict=True)
    assert list(result.run["checkpoints"]) == ["owner/name@step1", "owner/name@step2", "owner/name@step3"]
    assert fetched == ["step1", "step2", "step3"], "each once"
    assert not list((root / "snapshots").glob("*")) if root.exists() else True
    probe(asked, FACTS, tmp_path / "probe", device="cpu")
    assert len(fetched) == 3, "what is finished is not fetched again"


def test_what_a_lens_reads_with_stays(hub, tmp_path):
    root, _ = hub
    probe(
        ["owner/name@step{1,2}"], FACTS, tmp_path / "probe", device="cpu", evict=True,
        lenses=["logit", "logit@owner/name@step1"],
    )  # fmt: skip
    assert sorted(path.name[0] for path in (root / "snapshots").iterdir()) == ["0", "2"]
    assert (root / "blobs" / "model.safetensors-0").exists()
    assert not (root / "blobs" / "model.safetensors-1").exists()


def test_what_another_checkpoint_is_read_from_stays(hub, tiny_checkpoint, tmp_path):
    """A graft's parts, and whose tokenizer is taken, whenever their own turn is over."""
    root, _ = hub
    grafted = f"g=graft(owner/name@step2, {tiny_checkpoint}, blocks=1)"
    asked = ["owner/name@step1", "owner/name@step2", "owner/name@step3", grafted]
    result = probe(asked, FACTS, tmp_path / "probe", device="cpu", evict=True, tokenizer="owner/name@step1")
    assert all(entry["complete"] for entry in result.run["checkpoints"].values())
    left = {path.name[0] for path in (root / "snapshots").iterdir()}
    assert "0" in left and "2" not in left, "whose tokenizer is taken stays, and nobody reads from step 3"


def test_the_base_of_an_adapter_that_is_found_later_stays(tiny_checkpoint, tmp_path, monkeypatch):
    """Of an adapter on the hub, its configuration says what it lies over; the other models go, each in its turn."""
    import peft
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers import AutoModelForCausalLM

    asked = ["owner/base", "owner/other", "owner/adapter"]

    def snapshot(name):
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        return folder / "snapshots" / (str(asked.index(name)) * 40)

    for name in ("owner/base", "owner/other"):
        shutil.copytree(tiny_checkpoint, snapshot(name))
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(snapshot("owner/adapter"))
    file = snapshot("owner/adapter") / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "owner/base"}))

    def download(name, file=None, **_):
        path = snapshot(name) if file is None else snapshot(name) / file
        if not path.exists():
            raise LocalEntryNotFoundError(str(path))
        return str(path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    result = probe(asked, FACTS, tmp_path / "probe", device="cpu", evict=True)
    assert all(entry["complete"] for entry in result.run["checkpoints"].values())
    assert {name: snapshot(name).exists() for name in asked} == {
        "owner/base": True,
        "owner/other": False,
        "owner/adapter": False,
    }


def test_only_a_revision_in_the_cache_is_one(tmp_path, hub):
    root, _ = hub
    assert hub_cache.is_cached_snapshot(root / "snapshots" / ("0" * 40))
    assert not hub_cache.is_cached_snapshot(tmp_path)
    assert not hub_cache.is_cached_snapshot(root / "snapshots" / "main")


def test_layers_takes_many(steps, tmp_path, cli):
    code, out, err = cli(
        "layers", "--ckpt", str(steps / "checkpoint-{5,10}"), "--factoids", "known", "--n", "4",
        "--out", str(tmp_path / "probe"), "--json",
    )  # fmt: skip
    assert code == 0, err
    assert list(json.loads(out)["checkpoints"]) == ["checkpoint-5", "checkpoint-10"]
    code, _, err = cli("layers", "--ckpt", str(steps / "x*"), "--out", str(tmp_path / "other"))
    assert code != 0 and "no checkpoint matches" in err


def test_an_older_copy_beside_the_weights_is_not_read_for_them(steps):
    """It was, where a checkpoint went into the model of the one before, and had been equal there."""
    first, second = steps / "checkpoint-5", steps / "checkpoint-10"
    for folder in (first, second):
        shutil.copy(first / "model.safetensors", folder / "old.safetensors")
    (one, two), _ = find_all([str(first), str(second)])
    with Loader("cpu", "float32") as loader:
        loader.get(one)
        loader.announce(two)
        state = {name: tensor.clone() for name, tensor in loader.get(two).model.state_dict().items()}
    right = load_file(second / "model.safetensors")
    assert all(torch.equal(state[name], right[name]) for name in right)


@pytest.mark.parametrize("label", ["[/]x", "{a,b}", "step*", "[link=evil]y[/link]", "what?"])
def test_a_label_before_something_that_exists_may_hold_marks_and_braces(steps, label):
    spec = f"{label}={steps / 'checkpoint-5'}"
    assert [(one.text, one.one_of_many) for one in expand(spec)] == [(spec, False)]
    assert [item.label for item in find_all([spec])[0]] == [label]


@pytest.mark.parametrize(
    "name", ["m-step200", "m/checkpoint-200", "m/global_step200", "m Step 200", "m-CHECKPOINT_200"]
)
def test_a_step_is_one_in_labels_as_in_specs(name):
    assert step_of(name, {}) == One(name, None, True).step == 200


@pytest.mark.parametrize("name", ["m-footstep200", "m/mycheckpoint-200", "m-200"])
def test_a_number_behind_another_word_is_no_step(name):
    assert step_of(name, {}) is None and One(name, None, True).step is None
