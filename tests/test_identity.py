"""Numbers of one checkpoint are not taken for another's that has the same tensors."""

import json
import shutil

import pytest

from memprobe import capturing
from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.files import read_json, write_json
from memprobe.filter import ask
from memprobe.identity import identity_of, tokenizer_of
from memprobe.lineage import same_weights
from memprobe.load_options import LoadOptions
from memprobe.models import load, wrap
from memprobe.patch_pairs import pair_up, patch
from memprobe.probe_joining import join_probe
from memprobe.probing import probe
from memprobe.sequences import Deferred
from tests.tiny import byte_level, save_tiny, tiny_model, tiny_tokenizer

FACTS = [
    make_factoid(f"The river of {name} is the", answer, "test", subject=name)
    for name, answer in (("Oria", "Lunn"), ("Selva", "Brack"), ("Tolm", "Ister"))
]
OLD = ("settings", "tokenizer", "tokenizer_from")  # what entries did not say before


@pytest.fixture
def model(tmp_path):
    return save_tiny(tmp_path / "model")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two tokenizers of one vocabulary: one begins every text with a token, one does not."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, adds_bos in (("a", False), ("b", True)):
        byte_level(adds_bos=adds_bos).save_pretrained(folder / name)
    shutil.copytree(folder / "a", folder / "a again")
    return folder


def edit(model, **changes):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def older(out, *at):
    """Takes from a ``run.json`` what an older memprobe did not say."""
    file = out.joinpath(*at, "run.json")
    run = read_json(file)
    for entry in [*run.get("checkpoints", {}).values(), *run.get("pairs", {}).values()]:
        for key in [key for key in entry if key.removeprefix("source_").removeprefix("target_") in OLD]:
            del entry[key]
    write_json(run, file)


def test_a_probe_of_other_settings_is_refused(model, tmp_path):
    out = tmp_path / "probe"
    first = probe([str(model)], FACTS, out)
    edit(model, rms_norm_eps=1.0)
    with pytest.raises(
        MemprobeError, match=r"the same weights with other settings .* under the label 'model'"
    ):
        probe([str(model)], FACTS, out)
    both = probe([f"edited={model}"], FACTS, out)
    entries = both.run["checkpoints"]
    assert entries["model"]["fingerprint"] == entries["edited"]["fingerprint"]
    assert same_weights(entries.items()) == []
    older(out)
    assert probe([str(model)], FACTS, out).records.filter(checkpoint="model").equals(first.records)
    (group,) = same_weights(probe([str(model)], FACTS, out).run["checkpoints"].items())
    assert sorted(group) == ["edited", "model"]


def test_the_readout_of_other_settings_is_another_one(model, tmp_path):
    base = shutil.copytree(model, tmp_path / "base")
    edit(base, rms_norm_eps=1.0)
    read = probe([str(model)], FACTS, tmp_path / "probe", lenses=["logit", f"logit@{base}"])
    own, other = (view.records.drop("lens") for view in read.views())
    assert not own.equals(other)
    edit(base, rms_norm_eps=2.0)
    with pytest.raises(MemprobeError, match="is not the one that you gave"):
        probe([str(model)], FACTS, tmp_path / "probe", lenses=["logit", f"logit@{base}"])


def test_a_probe_by_another_tokenizer_is_refused(model, tokenizers, tmp_path):
    out = tmp_path / "probe"
    given = {name: str(tokenizers / name) for name in ("a", "b", "a again")}
    first = probe([str(model)], FACTS, out, tokenizer=given["a"])
    assert first.run["checkpoints"]["model"]["tokenizer_from"] == given["a"]
    with pytest.raises(MemprobeError, match="what was asked with another tokenizer under the label 'model'"):
        probe([str(model)], FACTS, out, tokenizer=given["b"])
    later = Deferred(str(model), "model", lambda: resolve(str(model), LoadOptions(tokenizer=given["b"])))
    with pytest.raises(MemprobeError, match="another tokenizer"):
        probe([later], FACTS, out, tokenizer=given["b"])
    assert probe([str(model)], FACTS, out, tokenizer=given["a again"]).run == first.run
    older(out)
    assert probe([str(model)], FACTS, out, tokenizer=given["b"]).records.equals(first.records)


def test_a_killed_probe_does_not_go_on_with_another_tokenizer(model, tokenizers, tmp_path, monkeypatch):
    batches = capturing.capture_batches

    def killed(*args, **options):
        yield next(batches(*args, **options))
        raise KeyboardInterrupt

    asked = {"batch_size": 1}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(capturing, "capture_batches", killed)
        probe([str(model)], FACTS, tmp_path / "probe", tokenizer=str(tokenizers / "a"), **asked)
    with pytest.raises(MemprobeError, match="another tokenizer"):
        probe([str(model)], FACTS, tmp_path / "probe", tokenizer=str(tokenizers / "b"), **asked)
    whole = probe([str(model)], FACTS, tmp_path / "whole", tokenizer=str(tokenizers / "a"), **asked)
    again = probe([str(model)], FACTS, tmp_path / "probe", tokenizer=str(tokenizers / "a"), **asked)
    assert again.records.equals(whole.records)


def test_models_in_memory_are_known_by_settings_and_tokenizer(tmp_path):
    one = tiny_model("llama", 320)
    held = wrap(one, tiny_tokenizer(), label="m")
    probe([held], FACTS, tmp_path / "probe")
    padded = tiny_tokenizer()
    padded(["a", "b c d"], padding=True, truncation=True, max_length=4)  # leaves its traces on the tokenizer
    probe([wrap(one, padded, label="m")], FACTS, tmp_path / "probe")
    with pytest.raises(MemprobeError, match="another tokenizer"):
        probe([wrap(one, byte_level(adds_bos=True), label="m")], FACTS, tmp_path / "probe")
    one.config.rms_norm_eps = 1.0
    with pytest.raises(MemprobeError, match="other settings"):
        probe([wrap(one, tiny_tokenizer(), label="m")], FACTS, tmp_path / "probe")


def test_patches_and_joined_probes_and_journals_of_another_checkpoint_are_refused(
    model, tokenizers, tmp_path
):
    other = save_tiny(tmp_path / "other", seed=1)
    loading = LoadOptions(device="cpu")
    asked = {"depths": [0], "controls": False, "loading": loading}
    out = tmp_path / "patches"
    patch(pair_up([str(other)], [str(model)], loading), FACTS, out, **asked)
    probe([str(model)], FACTS, tmp_path / "whole")
    ask(load(str(model), device="cpu"), FACTS, tmp_path / "journal")
    edit(model, rms_norm_eps=1.0)
    with pytest.raises(MemprobeError, match=r"other settings .* under the label 'model'"):
        patch(pair_up([str(other)], [str(model)], loading), FACTS, out, **asked)
    older(out, "patches")
    patch(pair_up([str(other)], [str(model)], loading), FACTS, out, **asked)
    probe([str(model)], FACTS, tmp_path / "part")
    with pytest.raises(MemprobeError, match="other settings"):
        join_probe(tmp_path / "part", tmp_path / "whole")
    with pytest.raises(MemprobeError, match=r"another run \(other settings\)"):
        ask(load(str(model), device="cpu"), FACTS, tmp_path / "journal")
    edit(model, rms_norm_eps=1e-6)
    with pytest.raises(MemprobeError, match=r"another run \(other tokenizer\)"):
        ask(load(str(model), device="cpu", tokenizer=str(tokenizers / "b")), FACTS, tmp_path / "journal")


def test_the_tokenizer_that_is_taken_is_the_one_that_counts(model, tokenizers):
    own = resolve(str(model))
    given = {
        name: resolve(str(model), LoadOptions(tokenizer=str(tokenizers / name)))
        for name in ("a", "b", "a again")
    }
    marks = {name: tokenizer_of(one) for name, one in given.items()}
    assert marks["a"] == marks["a again"] != marks["b"]
    assert tokenizer_of(own) not in (marks["b"],)
    assert identity_of(load(str(model), device="cpu")) == identity_of(own)
