"""The lens family: maps and readouts against products written out, lens files of every origin, and bad ones."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from memprobe.blocks import residual_hooks
from memprobe.errors import MemprobeError
from memprobe.identity import identity_of
from memprobe.lens_files import AffineMap, read_lens, write_about, write_maps
from memprobe.lens_specs import LensSpec, parse_lens, parse_lenses
from memprobe.lenses import Lens
from memprobe.models import load, wrap
from memprobe.modes import evaluating
from tests import oracle
from tests.tiny import FAMILIES, N_LAYERS, save_tiny, tiny_model, tiny_tokenizer

PROMPT = "The river of Oria is the Lunn, and 12 + 7"


def model_of(family="llama", seed=0, **changes):
    tokenizer = tiny_tokenizer()
    return wrap(tiny_model(family, len(tokenizer), seed=seed, **changes), tokenizer, label=f"{family}-{seed}")


def streams(read):
    kept = {}
    ids = torch.tensor([read.tokenizer.encode(PROMPT)])
    with evaluating(read.model), residual_hooks(read.blocks, kept.__setitem__):
        logits = read.model(input_ids=ids, use_cache=False).logits
    return torch.stack([kept[depth][0] for depth in range(read.n_layers + 1)]), logits[0]


def random_maps(read, seed=0, bias=True):
    random = torch.Generator().manual_seed(seed)
    width = read.d_model
    return {
        depth: AffineMap(
            torch.randn(width, width, generator=random) / width**0.5,
            torch.randn(width, generator=random) if bias else None,
        )
        for depth in range(read.n_layers)
    }


def save_lens(folder, read, maps, kind="linear", **about):
    write_maps(folder / "lens.safetensors", kind, maps)
    write_about(folder, {"kind": kind, "model": read.label, "fingerprint": read.fingerprint} | about)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_then_norm_and_unembedding(family, tmp_path):
    read = model_of(family)
    maps = random_maps(read)
    lens = LensSpec("linear", save_lens(tmp_path / "fit", read, maps)).build(read)
    residuals, logits = streams(read)
    for depth in range(N_LAYERS):
        moved = residuals[depth].double().numpy() @ maps[depth].weight.double().numpy().T
        by_hand = oracle.readout(read.model, moved + maps[depth].bias.double().numpy())
        with torch.inference_mode():
            np.testing.assert_allclose(lens(residuals[depth], depth), by_hand, atol=1e-4, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(lens(residuals[-1], N_LAYERS), logits, atol=1e-4, rtol=0)
        assert torch.equal(lens(residuals[-1], N_LAYERS), lens(residuals[-1]))
    assert (lens.name, lens.kind, lens.notes) == ("linear", "linear", ())


def test_identity_maps_are_the_logit_lens_to_the_bit(tmp_path):
    read = model_of()
    eye = {depth: AffineMap(torch.eye(read.d_model), torch.zeros(read.d_model)) for depth in range(N_LAYERS)}
    lens = LensSpec("tuned", save_lens(tmp_path / "fit", read, eye, "tuned")).build(read)
    residuals, _ = streams(read)
    for depth in range(N_LAYERS + 1):
        with torch.inference_mode():
            assert torch.equal(lens(residuals[depth], depth), read.lens(residuals[depth], depth))


def test_another_checkpoint_reads(tmp_path):
    read, other = model_of(), model_of(seed=1)
    maps = random_maps(read)
    folder = save_lens(tmp_path / "fit", read, maps)
    residuals, _ = streams(read)
    asked = []

    def give(spec):
        asked.append(spec)
        return other

    lens = LensSpec("logit", readout="base").build(read, give)
    fitted = LensSpec("linear", folder, "base").build(read, give)
    assert (lens.name, fitted.name, asked) == ("logit@llama-1", "linear@llama-1", ["base", "base"])
    with torch.inference_mode():
        assert torch.equal(lens(residuals[2], 2), other.lens(residuals[2]))
        assert torch.equal(fitted(residuals[2], 2), other.lens(maps[2](residuals[2])))
    with pytest.raises(MemprobeError, match="logit@base: no way to load"):
        LensSpec("logit", readout="base").build(read)
    small = model_of("gpt2", n_embd=16)
    with pytest.raises(MemprobeError, match="gpt2-0 reads 16 x 320, but llama-0 is 32 x 320"):
        LensSpec("logit", readout="x").build(read, lambda _: small)


class Renamed:
    """A tokenizer in which some numbers stand for other tokens."""

    def __init__(self, inner, changed):
        self.inner, self.changed = inner, changed

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_vocab(self):
        return {
            f"other {number}" if self.changed(number) else token: number
            for token, number in self.inner.get_vocab().items()
        }


def test_a_readout_of_other_tokens_is_refused_though_it_has_as_many():
    """A few may be others: fine-tuning names tokens that were kept free."""
    read, other = model_of(), model_of(seed=1)
    others = replace(other, tokenizer=Renamed(other.tokenizer, lambda number: number > 2))
    said = r"lens mine: llama-1 reads other tokens than llama-0: their tokenizers differ in \d+ of 3\d\d \(token 3 is"
    with pytest.raises(MemprobeError, match=said):
        LensSpec("logit", readout="x", label="mine").build(read, lambda _: others)
    few = replace(other, tokenizer=Renamed(other.tokenizer, lambda number: number < 20))
    assert LensSpec("logit", readout="x").build(read, lambda _: few).name == "logit@llama-1"


@pytest.mark.parametrize(
    ("text", "kind", "path", "readout", "label"),
    [
        ("logit", "logit", None, None, None),
        ("logit@base", "logit", None, "base", None),
        ("logit@base=runs/a", "logit", None, "base=runs/a", None),
        ("logit@owner/name@main", "logit", None, "owner/name@main", None),
        ("tuned=fits/t", "tuned", "fits/t", None, None),
        ("jacobian=j.pt@base=owner/name@v1", "jacobian", "j.pt", "base=owner/name@v1", None),
        ("half=linear=fits/half-1.safetensors", "linear", "fits/half-1.safetensors", None, "half"),
        ("own = logit", "logit", None, None, "own"),
        ("w=tuned=a@b", "tuned", "a", "b", "w"),
    ],
)
def test_lens_texts(text, kind, path, readout, label):
    spec = parse_lens(text)
    assert (spec.kind, spec.path and str(spec.path), spec.readout, spec.label) == (kind, path, readout, label)


def test_an_at_sign_in_a_path_that_exists_belongs_to_it(tmp_path):
    folder = tmp_path / "fits@home"
    folder.mkdir()
    assert parse_lens(f"tuned={folder}") == LensSpec("tuned", folder)
    assert parse_lens(f"tuned={folder}@base") == LensSpec("tuned", folder, "base")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write logit"),
        ("logits", "write logit"),
        ("logit@", "written logit or logit@SPEC"),
        ("logit=here", "written logit or logit@SPEC"),
        ("tuned", "write tuned=PATH"),
        ("tuned@base", "write tuned=PATH"),
        ("tuned=", "write tuned=PATH or"),
        ("tuned=a@", "write tuned=PATH or"),
        ("=logit", "write logit"),
        ("mine=other=a", "write logit"),
    ],
)
def test_bad_lens_texts_are_one_line(text, message):
    with pytest.raises(MemprobeError, match=message) as caught:
        parse_lens(text)
    assert "\n" not in str(caught.value)


def test_names_are_the_lenses_own_or_given(tmp_path):
    checkpoint = save_tiny(tmp_path / "tiny")
    texts = ["logit", f"logit@{checkpoint}", f"logit@base={checkpoint}", "a=tuned=x", "tuned=y"]
    assert [spec.name for spec in parse_lenses(texts)] == ["logit", "logit@tiny", "logit@base", "a", "tuned"]
    assert parse_lenses([]) == [LensSpec()]
    with pytest.raises(MemprobeError, match="two lenses are called 'tuned'"):
        parse_lenses(["tuned=a", "tuned=b"])


def test_what_a_lens_is_is_json_without_paths_and_long_tables(tmp_path):
    read = model_of()
    at = {"lof": 0.5, "lof_mean": 0.1, "recall": [0.1, 0.2]}
    corpus = {"hash": "ab", "tokens": 12, "held out": 4, "origin": {"source": "generic"}}
    about = {"corpus": corpus, "depths": [{"depth": 0}], "floor": {"facts": 3, "k": {"1": at}}}
    lens = LensSpec("linear", save_lens(tmp_path / "fit", read, random_maps(read), **about)).build(read)
    said = json.loads(json.dumps(lens.to_dict()))
    assert said["fitted"] == {
        "schema": 1,
        "kind": "linear",
        "model": "llama-0",
        "fingerprint": read.fingerprint,
        "corpus": {"hash": "ab", "tokens": 12, "held out": 4},
        "floor": {"facts": 3, "k": {"1": at}},
    }
    assert (said["name"], said["readout"], len(said["sha256"])) == ("linear", "own", 64)
    assert str(tmp_path) not in json.dumps(said)
    assert read.lens.to_dict() == {
        "name": "logit", "kind": "logit", "readout": "own", "sha256": None, "fitted": {}
    }  # fmt: skip


def tuned_lens_folder(folder, read, bias=True, **changes):
    """What ``tuned_lens.TunedLens.save`` writes: the state of a ModuleList of nn.Linear, and its settings."""
    torch.manual_seed(3)
    translators = torch.nn.ModuleList(
        [torch.nn.Linear(read.d_model, read.d_model, bias=bias) for _ in range(read.n_layers)]
    )
    folder.mkdir()
    torch.save(translators.state_dict(), folder / "params.pt")
    weight = read.lens.readout.unembedding.weight.detach().numpy()
    import hashlib

    config = {
        "base_model_name_or_path": "owner/tiny",
        "d_model": read.d_model,
        "num_hidden_layers": read.n_layers,
        "bias": bias,
        "base_model_revision": None,
        "unembed_hash": hashlib.sha256(str.encode(np.array_str(weight, precision=1))).hexdigest(),
        "lens_type": "linear_tuned_lens",
    } | changes
    (folder / "config.json").write_text(json.dumps(config))
    return translators


@pytest.mark.parametrize("bias", [True, False])
def test_lenses_of_tuned_lens(tmp_path, bias):
    read = model_of()
    translators = tuned_lens_folder(tmp_path / "published", read, bias)
    lens = parse_lens(f"tuned={tmp_path / 'published'}").build(read)
    residuals, _ = streams(read)
    for depth in range(N_LAYERS):
        with torch.inference_mode():  # its transform_hidden: h + translator(h)
            wanted = read.lens(residuals[depth] + translators[depth](residuals[depth]))
            torch.testing.assert_close(lens(residuals[depth], depth), wanted, atol=1e-4, rtol=0)
    assert lens.notes == ()
    other = model_of(seed=1)
    [note] = parse_lens(f"tuned={tmp_path / 'published'}").build(other).notes
    assert note == "lens tuned: fitted on other weights (owner/tiny) than those of llama-1"


@pytest.mark.parametrize("kind", ["artefact", "half done"])
def test_jacobian_lenses_made_elsewhere(tmp_path, kind):
    read = model_of()
    random = torch.Generator().manual_seed(1)
    matrices = {
        layer: torch.randn(read.d_model, read.d_model, generator=random) for layer in range(N_LAYERS - 1)
    }
    file = tmp_path / "lens.pt"
    if kind == "artefact":
        from transformer_lens.tools.analysis import JacobianLens

        made = JacobianLens(matrices, n_prompts=4, d_model=read.d_model, metadata={"model_name": "tiny"})
        made.save(str(file), dtype=torch.float32)
    else:
        payload = {"jacobian_sum": {k: 4 * v for k, v in matrices.items()}, "n_done": 4, "next_idx": 4}
        torch.save(payload, file)
    lens = parse_lens(f"jacobian={file}").build(read)
    residuals, logits = streams(read)
    with torch.inference_mode():
        assert torch.equal(lens(residuals[0], 0), read.lens(residuals[0]))  # it has no map there, and says so
        for layer, matrix in matrices.items():
            depth = layer + 1
            wanted = read.lens(residuals[depth] @ matrix.T)
            torch.testing.assert_close(lens(residuals[depth], depth), wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(lens(residuals[-1], N_LAYERS), logits, atol=1e-4, rtol=0)
    assert "no map for depth 0" in lens.notes[-1]
    assert "nothing in its file can say" in lens.notes[0]


def test_a_lens_of_other_weights_is_read_and_said(tmp_path):
    read, child = model_of(), model_of(seed=1)
    spec = LensSpec("linear", save_lens(tmp_path / "fit", read, random_maps(read)))
    assert spec.build(read).notes == ()
    assert spec.build(child).notes == (
        "lens linear: fitted on other weights (llama-0) than those of llama-1",
    )
    assert isinstance(spec.build(child), Lens)


def test_a_lens_of_the_same_tensors_in_another_model_is_read_and_said(tmp_path):
    """Another base of the rotary embeddings: no tensor says so, and every stream is another."""
    said = {"rope_theta": 1e4, "rope_type": "default"}
    read, other = model_of(rope_parameters=said), model_of(rope_parameters=said | {"rope_theta": 10.0})
    assert read.fingerprint == other.fingerprint
    assert not torch.allclose(streams(read)[1], streams(other)[1], atol=1e-4)
    known_by = identity_of(read) | {"tokenizer": "another"}
    spec = LensSpec("linear", save_lens(tmp_path / "fit", read, random_maps(read), **known_by))
    assert spec.build(read).notes == ()
    assert spec.build(other).notes == (
        "lens linear: fitted on the same weights with other settings (config.json, adapter_config.json) (llama-0) "
        "than those of llama-0",
    )
    older = LensSpec("linear", save_lens(tmp_path / "older", read, random_maps(read)))
    assert older.build(other).notes == ()


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


ODD_JACOBIANS = {
    "a target by name": {"metadata": {"target_layer": "last"}},
    "a list for metadata": {"metadata": [1]},
    "one tensor for all": {"J": torch.eye(32).expand(2, -1, -1).contiguous()},
    "sparse matrices": {"J": {0: torch.eye(32).to_sparse(), 1: torch.eye(32).to_sparse()}},
    "whole numbers": {"J": {0: torch.eye(32).int(), 1: torch.eye(32).int()}},
}


def torn(path):
    path.write_bytes(path.read_bytes()[:-200])


def broken(folder, name):
    """A lens file that must be refused, and what the refusal says."""
    read = model_of()
    fit = save_lens(folder / "fit", read, random_maps(read))
    published = folder / "published"
    tuned_lens_folder(published, read)
    if name == "another width":
        return f"linear={save_lens(folder / 'w', model_of('gpt2', n_embd=16), {0: AffineMap(torch.eye(16))})}"
    if name == "another depth":
        maps = random_maps(read) | {N_LAYERS: AffineMap(torch.eye(32), torch.zeros(32))}
        return f"linear={save_lens(folder / 'd', read, maps)}"
    if name == "torn":
        torn(fit / "lens.safetensors")
    if name == "NaN":
        maps = random_maps(read)
        maps[1].weight[3, 4] = torch.nan
        save_lens(fit, read, maps)
    if name == "without its JSON":
        (fit / "lens.json").unlink()
    if name == "another lens's JSON":
        write_about(fit, {"kind": "tuned"})
    if name == "another kind":
        return f"tuned={fit}"
    if name == "weights of a model":
        save_tiny(folder / "tiny")
        return f"linear={folder / 'tiny' / 'model.safetensors'}"
    if name == "an empty folder":
        (folder / "empty").mkdir()
        return f"linear={folder / 'empty'}"
    if name == "missing":
        return f"linear={folder / 'nowhere'}"
    if name == "pickled":
        (published / "params.pt").write_bytes(pickle.dumps({"0.weight": Evil()}))
        return f"tuned={published}"
    if name == "pickled by torch":
        torch.save({"J": {0: Evil()}}, folder / "lens.pt")
        return f"jacobian={folder / 'lens.pt'}"
    if name == "torn .pt":
        torn(published / "params.pt")
        return f"tuned={published}"
    if name == "empty .pt":
        (folder / "lens.pt").write_bytes(b"")
        return f"jacobian={folder / 'lens.pt'}"
    if name == "no lens in .pt":
        torch.save({"weights": torch.ones(3)}, folder / "lens.pt")
        return f"jacobian={folder / 'lens.pt'}"
    if name == "a list in .pt":
        torch.save([1, 2], folder / "lens.pt")
        return f"jacobian={folder / 'lens.pt'}"
    if name == "odd matrices":
        torch.save({"J": {0: torch.ones(3, 4)}, "n_prompts": 1}, folder / "lens.pt")
        return f"jacobian={folder / 'lens.pt'}"
    if name == "another target":
        torch.save(
            {"J": {0: torch.eye(32), 1: torch.eye(32)}, "metadata": {"target_layer": 1}}, folder / "l.pt"
        )
        return f"jacobian={folder / 'l.pt'}"
    if name == "some depths only":
        torch.save({"J": {1: torch.eye(32)}, "n_prompts": 1}, folder / "lens.pt")
        return f"jacobian={folder / 'lens.pt'}"
    if name in ODD_JACOBIANS:
        torch.save({"J": {0: torch.eye(32), 1: torch.eye(32)}} | ODD_JACOBIANS[name], folder / "lens.pt")
        return f"jacobian={folder / 'lens.pt'}"
    if name == "no depth":
        return f"linear={save_lens(folder / 'none', read, {0: AffineMap(torch.zeros(0, 0))})}"
    if name == "complex":
        from safetensors.torch import save_file

        maps = torch.eye(32, dtype=torch.complex64).expand(N_LAYERS, -1, -1).contiguous()
        save_file({"weight": maps}, fit / "lens.safetensors", metadata={"memprobe": "linear 1"})
    if name == "a later schema":
        about = json.loads((fit / "lens.json").read_text())
        (fit / "lens.json").write_text(json.dumps(about | {"schema": 2}))
    if name == "a text for a translator":
        torch.save({f"{depth}.weight": "none" for depth in range(N_LAYERS)}, published / "params.pt")
        return f"tuned={published}"
    if name == "too few translators":
        config = json.loads((published / "config.json").read_text())
        (published / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
        return f"tuned={published}"
    if name == "a wider config":
        config = json.loads((published / "config.json").read_text())
        (published / "config.json").write_text(json.dumps(config | {"d_model": 16}))
        return f"tuned={published}"
    return f"linear={fit}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("another width", "fitted on a model of width 16; llama-0 is 32 wide"),
        ("another depth", "fitted on a model of 4 blocks; llama-0 has 3"),
        ("torn", "truncated or corrupt"),
        ("NaN", "map of depth 1 holds NaN"),
        ("without its JSON", "lens.json: cannot be read"),
        ("another lens's JSON", "does not belong to the linear lens"),
        ("another kind", "a linear lens, not a tuned one"),
        ("weights of a model", "not a lens of memprobe"),
        ("an empty folder", "not a lens: it holds neither"),
        ("missing", "no such file or directory"),
        ("pickled", "holds pickled code"),
        ("pickled by torch", "holds pickled code"),
        ("torn .pt", "truncated or corrupt"),
        ("empty .pt", "truncated or corrupt|torn"),
        ("no lens in .pt", "not a Jacobian lens"),
        ("a list in .pt", "holds a list"),
        ("odd matrices", "not square"),
        ("another target", "maps to layer 1, not to the last stream"),
        ("some depths only", "fitted on a model of 3 blocks|has 3"),
        *((name, "not a Jacobian lens") for name in ODD_JACOBIANS),
        ("no depth", "not one square map for each depth"),
        ("complex", "a tensor of complex64"),
        ("a later schema", r"lens\.json: schema: should be 1, and is 2"),
        ("a text for a translator", "str in place of a tensor"),
        ("too few translators", "lacks '3.weight'"),
        ("a wider config", "not 16 x 16"),
    ],
)
def test_bad_lens_files_are_one_line(tmp_path, capsys, name, message):
    with pytest.raises(MemprobeError, match=message) as caught:
        parse_lens(broken(tmp_path, name)).build(model_of())
    assert "\n" not in str(caught.value)
    assert "must never run" not in capsys.readouterr().out


def test_half_fits_are_lenses_too(tmp_path):
    read = model_of()
    folder = save_lens(tmp_path / "fit", read, random_maps(read))
    halves = [random_maps(read, seed) for seed in (5, 6)]
    for number, maps in enumerate(halves, 1):
        write_maps(folder / f"half-{number}.safetensors", "linear", maps)
    lens = parse_lens(f"a=linear={folder / 'half-2.safetensors'}").build(read)
    assert lens.name == "a"
    assert torch.equal(lens.maps[1].weight, halves[1][1].weight)


def test_bf16_models_are_read_in_fp32(tmp_path):
    save_tiny(tmp_path / "tiny")
    read = load(str(tmp_path / "tiny"), dtype="bfloat16")
    maps = random_maps(read)
    lens = LensSpec("linear", save_lens(tmp_path / "fit", read, maps)).build(read)
    residuals, _ = streams(read)
    assert residuals.dtype == torch.bfloat16
    with torch.inference_mode():
        assert lens(residuals[1], 1).dtype == torch.float32
        torch.testing.assert_close(lens(residuals[1], 1), read.lens(maps[1](residuals[1].float())))


def test_a_written_lens_is_read_back(tmp_path):
    read = model_of()
    for bias in (True, False):
        maps = random_maps(read, bias=bias)
        found = read_lens(save_lens(tmp_path / f"{bias}", read, maps, "jacobian"), "jacobian")
        assert found.n_layers == N_LAYERS and found.d_model == read.d_model
        for depth, map_ in maps.items():
            assert torch.equal(found.maps[depth].weight, map_.weight)
            assert (found.maps[depth].bias is None) == (not bias)
