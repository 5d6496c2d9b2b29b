"""Models split over main memory and the disk are read, patched, fitted and filtered as whole ones are."""

import shutil

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from memprobe import models, prober
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.filter import ask
from memprobe.models import load
from memprobe.patch_plan import plan_patches
from memprobe.patching import patch_batches
from memprobe.planning import plan_capture
from memprobe.probing import probe
from memprobe.sources import load_factoids
from memprobe.splitting import device_text, gather_streams, home_of, load_split, memory_of
from memprobe.weights import files_like

FACTS = load_factoids("known")[:4]


@pytest.fixture(scope="module")
def split(tiny_checkpoint):
    """Some blocks in main memory, the others on the disk."""
    size = sum(file.stat().st_size for file in files_like(tiny_checkpoint, ("*.safetensors",)))
    model = load(str(tiny_checkpoint), device=f"split:cpu={size // 2 // 1000}KB", dtype="float32")
    places = set(model.model.hf_device_map.values())
    assert {"cpu", "disk"} <= places, places
    assert any(parameter.is_meta for parameter in model.model.parameters())
    return model


@pytest.fixture(scope="module")
def whole(tiny_checkpoint):
    return load(str(tiny_checkpoint), device="cpu", dtype="float32")


def test_a_split_model_reads_as_the_whole_one(split, whole):
    assert split.device == home_of(split.model) == torch.device("cpu")
    assert split.difference < 1e-4 and split.fingerprint == whole.fingerprint
    ours, theirs = capture(split, FACTS), capture(whole, FACTS)
    for name in ("records", "controls", "outcomes"):
        assert getattr(ours, name).equals(getattr(theirs, name)), name


def test_bf16_of_a_split_model_has_an_fp32_readout(tiny_checkpoint, split):
    size = sum(file.stat().st_size for file in files_like(tiny_checkpoint, ("*.safetensors",)))
    short = load(str(tiny_checkpoint), device=f"split:cpu={size // 4 // 1000}KB", dtype="bfloat16")
    assert any(parameter.is_meta for parameter in short.model.parameters())
    assert all(p.dtype == torch.float32 and not p.is_meta for p in short.lens.readout.parameters())
    expected = capture(load(str(tiny_checkpoint), device="cpu", dtype="bfloat16"), FACTS).records
    assert capture(short, FACTS).records.equals(expected)


def test_patches_into_a_split_model(split, whole):
    def patched(source, target):
        plan = plan_patches(source, target, FACTS, "plain", positions=["last"], controls=[])
        return pl.concat(list(patch_batches(source, target, plan)))

    ours, theirs = patched(split, split), patched(whole, whole)
    assert ours.drop("log_prob").equals(theirs.drop("log_prob"))
    assert (ours["log_prob"] - theirs["log_prob"]).abs().max() < 1e-5


def test_a_split_model_says_the_same(split, whole, tmp_path):
    ours = {one.factoid.id: one.verdict for one in ask(split, FACTS, tmp_path / "split")}
    theirs = {one.factoid.id: one.verdict for one in ask(whole, FACTS, tmp_path / "whole")}
    assert ours == theirs and len(ours) == len(FACTS)


def test_commands_take_a_device_map(cli, tiny_checkpoint, tmp_path):
    size = sum(file.stat().st_size for file in files_like(tiny_checkpoint, ("*.safetensors",)))
    where = ["--device-map", "auto", "--max-memory", f"cpu={size // 2 // 1000}KB"]
    ckpt = ["--ckpt", f"a={tiny_checkpoint}"]
    few = ["--factoids", "known", "--n", "3"]
    code, _, err = cli("layers", *ckpt, *few, *where, "--out", str(tmp_path / "split"))
    assert code == 0, err
    code, _, err = cli("layers", *ckpt, *few, "--device", "cpu", "--out", str(tmp_path / "whole"))
    assert code == 0, err
    for table in ("records", "controls"):
        ours, theirs = (next((tmp_path / name / table).iterdir()) for name in ("split", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    for name, how in {"split": where, "whole": ["--device", "cpu"]}.items():
        out = str(tmp_path / f"{name}.jsonl")
        code, _, err = cli("filter", *ckpt, *few, *how, "--out", out)
        assert code == 0, err
        both = ["--from", f"a={tiny_checkpoint}", "--into", f"b={tiny_checkpoint}"]
        code, _, err = cli(
            "patch", *both, *few, "--positions", "last", *how, "--out", str(tmp_path / f"{name}-p")
        )
        assert code == 0, err
    assert (tmp_path / "split.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    ours, theirs = (
        pl.read_parquet(next((tmp_path / f"{name}-p" / "patches").glob("*.parquet")))
        for name in ("split", "whole")
    )
    numbers = [name for name, kind in ours.schema.items() if kind.is_float()]
    assert len(ours) and ours.drop(numbers).equals(theirs.drop(numbers))
    for name in numbers:
        apart = (ours[name] - theirs[name]).abs().max()
        assert apart is None or apart < 1e-5, name
    code, _, err = cli("layers", *ckpt, *few, *where, "--device", "cpu", "--out", str(tmp_path / "x"))
    assert code != 0 and "give one of the two" in err


def test_patch_check_and_lens_take_a_device_map(cli, tiny_checkpoint, tmp_path, monkeypatch):
    size = sum(file.stat().st_size for file in files_like(tiny_checkpoint, ("*.safetensors",)))
    where = ["--device-map", "auto", "--max-memory", f"cpu={size // 2 // 1000}KB"]
    read = []
    monkeypatch.setattr(models, "load_split", lambda *given: read.append(given[1]) or load_split(*given))
    both = ["--from", f"a={tiny_checkpoint}", "--into", f"b={tiny_checkpoint}"]
    asked = {
        "patch": [*both, "--corrupt", "subject", "--n", "2", "--threshold", "1e-9", "--out", str(tmp_path)],
        "check": ["--ckpt", str(tiny_checkpoint), "--json"],
        "lens": ["--ckpt", str(tiny_checkpoint), "--prompt", "The capital of France is"],
    }
    for command, options in asked.items():
        code, _, err = cli(command, *options, *where)
        assert code == 0, err
        assert read, command
        read.clear()
    code, _, err = cli("patch", *both, "--weights", *where, "--out", str(tmp_path / "weights"))
    assert code != 0 and "does not go with --device-map" in err


@pytest.mark.parametrize("kind", ["linear", "tuned", "jacobian"])
def test_a_lens_is_fitted_to_a_split_model(kind, cli, tiny_checkpoint, tmp_path):
    size = sum(file.stat().st_size for file in files_like(tiny_checkpoint, ("*.safetensors",)))
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "\n".join('{"text": "%s"}' % (f"the river {i} is long and deep " * 8) for i in range(40))
    )
    found = {}
    for name, where in {
        "split": ["--device-map", "auto", "--max-memory", f"cpu={size // 2 // 1000}KB"],
        "whole": ["--device", "cpu"],
    }.items():
        code, _, err = cli(
            "fit", "--ckpt", str(tiny_checkpoint), "--texts", str(texts), "--kind", kind, "--tokens", "400",
            "--length", "24", "--held-out", "2", *where, "--out", str(tmp_path / name),
        )  # fmt: skip
        assert code == 0, err
        found[name] = load_file(next((tmp_path / name).glob("*.safetensors")))
    assert found["split"].keys() == found["whole"].keys()
    for name, tensor in found["whole"].items():
        torch.testing.assert_close(found["split"][name], tensor, rtol=1e-5, atol=1e-6)


def test_checkpoints_that_are_split_share_what_their_tokenizer_made(tiny_checkpoint, tmp_path, monkeypatch):
    size = sum(file.stat().st_size for file in files_like(tiny_checkpoint, ("*.safetensors",)))
    shutil.copytree(tiny_checkpoint, tmp_path / "later")
    planned = []
    monkeypatch.setattr(
        prober, "plan_capture", lambda *given, **more: planned.append(1) or plan_capture(*given, **more)
    )
    made = probe(
        [f"first={tiny_checkpoint}", f"later={tmp_path / 'later'}"],
        FACTS,
        out=tmp_path / "probe",
        device=f"split:cpu={size // 2 // 1000}KB",
    )
    assert len(planned) == 1 and len(made.checkpoints) == 2


@pytest.mark.parametrize(
    "give", [lambda stream: stream, lambda stream: (stream, "cache"), lambda stream: [stream, "cache"]]
)
def test_streams_come_home_from_other_devices(give):
    """Two devices are made up: what a block puts out on another one is brought to where the model's inputs are."""

    class Block(nn.Module):
        def forward(self, stream):
            return give(stream.to("meta"))

    model = nn.Sequential(Block(), Block())
    model.device = torch.device("cpu")
    model.hf_device_map = {"0": 0, "1": 1}
    moved = []

    class Stream(torch.Tensor):
        def to(self, device):
            moved.append(str(device))
            return self

    gather_streams(model, list(model))
    out = model[0](torch.zeros(2, 3).as_subclass(Stream))
    assert moved == ["meta", "cpu"]
    assert type(out) is type(give(1)) or isinstance(out, Stream)
    alone = nn.Sequential(Block())
    alone.hf_device_map = {"0": 0, "1": "cpu"}
    gather_streams(alone, list(alone))
    assert not alone[0]._forward_hooks, "accelerate brings what is computed on one device and kept elsewhere"


def test_what_is_asked_of_devices():
    assert device_text("cuda:1", None, None) == "cuda:1"
    assert memory_of(device_text("auto", "auto", "cpu=8GiB, 0=70GB")) == {"cpu": 8 * 2**30, 0: 70 * 10**9}
    assert memory_of("split") is None
    for device, device_map, memory, said in (
        ("auto", "balanced", None, "--device-map balanced: give auto"),
        ("auto", None, "cpu=1GB", "--device-map auto with it"),
        ("cuda", "auto", None, "give one of the two"),
        ("auto", "auto", "cpu=much", "DEVICE=SIZE"),
        ("auto", "auto", "cpu=8", "DEVICE=SIZE"),
        ("auto", "auto", "cpu=manyGiB", "a size such as 40GiB"),
        ("auto", "auto", "tpu=1GB", "DEVICE=SIZE"),
    ):
        with pytest.raises(MemprobeError, match=said):
            device_text(device, device_map, memory)


def test_only_plain_checkpoints_are_split(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "a")
    graft = f"graft({tmp_path / 'a'}, {tiny_checkpoint}, blocks=1)"
    with pytest.raises(MemprobeError, match="splits safetensors checkpoints alone"):
        load(graft, device="split")
