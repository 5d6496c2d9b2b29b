"""Grafts as checkpoints and the sweep over blocks, against each other and against patching."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from memprobe.checkpoints import fingerprint, resolve, split_label
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.grafting import donor_of, sweep_batches
from memprobe.grafts import Graft, make_graft, parse_graft, parse_places
from memprobe.models import after_blocks, load, wrap
from memprobe.parts import parameter_places
from memprobe.patch_plan import plan_patches
from memprobe.patching import own_log_probs, patch_batches
from memprobe.templates import Template, tokenise_all
from tests.families import build
from tests.tiny import FAMILIES, N_LAYERS, save_tiny, tiny_model, tiny_tokenizer

FACTS = [
    make_factoid(f"The river of {name} is the", answer, "tiny", relation="river", subject=name)
    for name, answer in (("Oria", "Lunn"), ("Selva", "Brack"), ("Tolm", "Ister of the north"))
]


def asked(read):
    items = tokenise_all(FACTS, Template.parse("plain"), read.tokenizer)
    return own_log_probs(read, items).sort("factoid", "token")["log_prob"].to_numpy()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two checkpoints that differ in every weight, for some families."""
    path = tmp_path_factory.mktemp("two")
    for family in ("llama", "llama-tied", "gpt2"):
        for seed in (0, 1):
            save_tiny(path / f"{family}-{seed}", family, seed=seed)
    return path


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_a_graft_of_everything_is_the_source_and_of_nothing_else_is_not(two, family):
    into, source = two / f"{family}-0", two / f"{family}-1"
    whole = load(f"g=graft({into}, {source}, blocks=1-{N_LAYERS}, parts=all+embeddings+head)")
    theirs = load(str(source))
    assert whole.label == "g"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, theirs.model.state_dict()[name]), name
    np.testing.assert_array_equal(asked(whole), asked(theirs))
    part = load(f"graft({into}, {source}, blocks=1-{N_LAYERS})")
    assert np.abs(asked(part) - asked(theirs)).max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_three_ways_one_number(two, family):
    """A patch of everything at depth d, and a graft of blocks 1 … d with the embeddings; tied ones come apart."""
    into, source = two / f"{family}-0", two / f"{family}-1"
    target = load(str(into))
    plan = plan_patches(load(str(source)), target, FACTS, positions=["prompt"], controls=[])
    table = pl.concat(list(patch_batches(load(str(source)), target, plan))).sort("factoid", "token")
    for depth in range(N_LAYERS + 1):
        spec = f"graft({into}, {source}, parts=embeddings)"
        if depth:
            spec = f"graft({into}, {source}, blocks=1-{depth}, parts=all+embeddings)"
        found = table.filter(pl.col("depth") == depth)["log_prob"]
        np.testing.assert_allclose(found, asked(load(spec)), atol=1e-4)
    # and the head alone is what reads out the target's stream
    head = load(f"graft({into}, {source}, parts=head)")
    back = load(f"graft({source}, {into}, blocks=1-{N_LAYERS}, parts=all+embeddings)")
    np.testing.assert_allclose(asked(head), asked(back), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_has_its_place(family):
    tokenizer = tiny_tokenizer()
    read = wrap(tiny_model(family, len(tokenizer)), tokenizer)
    places = parameter_places(read.model, read.blocks, after_blocks(read.model, tokenizer))
    assert places.keys() == dict(read.model.named_parameters()).keys()
    for block in range(1, N_LAYERS + 1):
        parts = [parts - {"all"} for number, parts in places.values() if number == block]
        assert all(len(part) == 1 for part in parts), "each weight of a block is in one part besides all"
        assert {part for [part] in parts} >= {"attn", "mlp", "norms"}
    outer = [parts for number, parts in places.values() if number == 0]
    assert {"head"} <= set().union(*outer) and {"embeddings"} <= set().union(*outer)
    assert ({"embeddings", "head"} in outer) == (family == "llama-tied")


def test_the_sweep_is_the_grafts_one_by_one(two):
    into, source = two / "llama-0", two / "llama-1"
    target = load(str(into))
    before = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    items = tokenise_all(FACTS, Template.parse("plain"), target.tokenizer)
    donor = donor_of(load(str(source)), items)
    parts = ["all", "attn", "mlp", "norms", "embeddings", "head"]
    for batch in ({}, {"batch_size": 1, "at_once": 2}):
        table = pl.concat(list(sweep_batches(donor, target, items, windows=[1, 2], parts=parts, **batch)))
        table = table.sort("factoid", "token")
        assert all(torch.equal(before[n], t) for n, t in target.model.state_dict().items())  # bit for bit
        np.testing.assert_allclose(
            table.filter((pl.col("parts") == "head") & (pl.col("control") == ""))["source_log_prob"],
            asked(load(str(source))),
            atol=1e-5,
        )
        for part in parts:
            spans = [(0, 0)] if part == "embeddings" else [(N_LAYERS + 1, N_LAYERS + 1)]
            if part not in ("embeddings", "head"):
                spans = [(b, b) for b in (1, 2, 3)] + [(1, 2), (2, 3)]
            own = table.filter((pl.col("parts") == part) & (pl.col("control") == ""))
            assert set(own.select("depth", "last").iter_rows()) == set(spans)
            for first, last in spans:
                outer = part in ("embeddings", "head")
                spec = f"graft({into}, {source}, parts={part}" + ("" if outer else f", blocks={first}-{last}")
                found = own.filter((pl.col("depth") == first) & (pl.col("last") == last))["log_prob"]
                np.testing.assert_allclose(found, asked(load(spec + ")")), atol=1e-4)
    random = table.filter(pl.col("control") == "random")
    assert len(random) == len(table) / 2
    assert (random["log_prob"] - random["target_log_prob"]).abs().max() > 1e-3


def test_blocks_that_lack_a_part_are_not_grafted():
    """Jamba has attention in every second block: without it nothing is exchanged, and there is no number."""
    source, target = (wrap(build("jamba", seed), tiny_tokenizer(), label=str(seed)) for seed in (1, 0))
    items = tokenise_all(FACTS, Template.parse("plain"), target.tokenizer)
    sweep = sweep_batches(donor_of(source, items), target, items, windows=[1, 2], parts=["attn"])
    spans = set(pl.concat(list(sweep)).select("depth", "last").iter_rows())
    assert spans == {(2, 2), (4, 4), (1, 2), (2, 3), (3, 4)}


def test_the_sweep_names_the_planted_block():
    tokenizer = tiny_tokenizer()
    target = wrap(tiny_model("llama", len(tokenizer)), tokenizer, label="base")
    items = tokenise_all(FACTS, Template.parse("plain"), tokenizer)
    for block in range(1, N_LAYERS + 1):
        planted = wrap(tiny_model("llama", len(tokenizer)), tokenizer, label="planted")
        with torch.no_grad():
            for parameter in planted.blocks[block - 1].parameters():
                parameter.mul_(1.3)
        table = pl.concat(list(sweep_batches(donor_of(planted, items), target, items, control=True)))
        moved = (table["log_prob"] - table["target_log_prob"]).to_numpy()
        gap = (table["source_log_prob"] - table["target_log_prob"]).to_numpy()
        here = (table["depth"] == block).to_numpy()
        own = (table["control"] == "").to_numpy()
        assert np.abs(gap).max() > 0.01
        np.testing.assert_allclose(moved[own & here], gap[own & here], atol=1e-4)
        np.testing.assert_allclose(moved[~here], 0, atol=1e-5)  # also the control: no distance, no change
        assert np.abs(moved[~own & here] - gap[~own & here]).max() > 1e-3


def test_specs():
    assert parse_graft("graft(a/b, c@rev, blocks=5-10)") == ("a/b", "c@rev", Graft((5, 10)))
    into, source, graft = parse_graft("graft(graft(a, b, blocks=1), c, parts = mlp+head, blocks = 2)")
    assert (into, source, graft) == ("graft(a, b, blocks=1)", "c", Graft((2, 2), ("mlp", "head")))
    assert parse_graft(f"graft(a, b, {graft})")[2] == graft
    assert make_graft(None, "embeddings").blocks is None
    assert split_label("g=graft(a, b, blocks=1)") == ("g", "graft(a, b, blocks=1)")
    assert split_label("graft(a, b, blocks=1)") == (None, "graft(a, b, blocks=1)")


def test_places_are_written_as_in_a_graft():
    assert parse_places("blocks=5") == Graft((5, 5))
    assert parse_places(" parts = mlp+attn , blocks = 2-3 ") == Graft((2, 3), ("mlp", "attn"))
    assert parse_places("parts=embeddings") == Graft(None, ("embeddings",))
    for text, said in (
        ("", "is not blocks="),
        ("5", "'5' is not blocks="),
        ("parts=mlp", "names no block"),
        ("blocks=1, blocks=2", "twice"),
        ("blocks=3-2", "counted from 1"),
        ("blocks=1, parts=gate", "no part 'gate'"),
    ):
        with pytest.raises(MemprobeError, match=said):
            parse_places(text)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("graft(a, b)", "names no block"),
        ("graft(a, b, parts=mlp)", "names no block"),
        ("graft(a, b, blocks=)", "names no block"),
        ("graft(a, b, blocks=0)", "names no block"),
        ("graft(a, b, blocks=3-2)", "names no block"),
        ("graft(a, b, blocks=x)", "neither a number"),
        ("graft(a, b, blocks=1, parts=head)", "lie outside the blocks"),
        ("graft(a, b, blocks=1, parts=ears)", "no part 'ears'"),
        ("graft(a, b, blocks=1, blocks=2)", "twice"),
        ("graft(a, b, 1-10)", "is not blocks="),
        ("graft(a, blocks=1)", "names 1 of two"),
        ("graft(a, , blocks=1)", "names 1 of two"),
        ("graft(a, b, blocks=1", "not closed"),
        ("graft(a, (b, blocks=1)", "not closed"),
        ("graft(a), b, blocks=1)", "too many"),
    ],
)
def test_specs_that_are_none_are_one_line(spec, message):
    with pytest.raises(MemprobeError, match=message) as caught:
        resolve(spec)
    assert "\n" not in str(caught.value)


def test_checkpoints_that_do_not_fit_are_one_line(two, tmp_path):
    llama, gpt2 = two / "llama-0", two / "gpt2-0"
    with pytest.raises(MemprobeError, match="built differently"):
        load(f"graft({llama}, {gpt2}, blocks=1)")
    with pytest.raises(MemprobeError, match="there are blocks 1 to 3"):
        load(f"graft({llama}, {two / 'llama-1'}, blocks=2-4)")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", len(tokenizer), intermediate_size=40).save_pretrained(tmp_path / "narrow")
    tokenizer.save_pretrained(tmp_path / "narrow")
    with pytest.raises(MemprobeError, match="differ in shape"):
        load(f"graft({llama}, {tmp_path / 'narrow'}, blocks=1)")


def test_a_graft_is_a_checkpoint_like_any_other(two, tmp_path, cli):
    spec = f"graft({two / 'llama-0'}, {two / 'llama-1'}, blocks=2)"
    marks = {fingerprint(resolve(text)) for text in (spec, spec.replace("=2", "=3"), str(two / "llama-0"))}
    assert len(marks) == 3 and fingerprint(resolve(spec)) in marks
    facts = tmp_path / "facts.jsonl"
    facts.write_text(json.dumps({"prompt": "The river of Oria is the", "answer": "Lunn"}) + "\n")
    code, out, err = cli(
        "layers", "--ckpt", f"g={spec}", "--factoids", facts, "--out", tmp_path / "p", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["checkpoints"].keys() == {"g"}


def test_models_that_compute_otherwise_are_not_grafted(tmp_path):
    """No weight brings a setting along, so that all of one in the other would not be that one."""
    save_tiny(tmp_path / "a", "llama", seed=0)
    save_tiny(tmp_path / "b", "llama", seed=1)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 50.0, "rope_type": "default"}
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    one, other = load(str(tmp_path / "a")), load(str(tmp_path / "b"))
    items = tokenise_all(FACTS, Template.parse("plain"), one.tokenizer)
    with pytest.raises(MemprobeError, match=r"compute otherwise \(rope is .*50"):
        list(sweep_batches(donor_of(other, items), one, items))
    with pytest.raises(MemprobeError, match="compute otherwise"):
        load(f"g=graft({tmp_path / 'a'}, {tmp_path / 'b'}, blocks=1-2)")


def test_models_whose_saved_buffers_differ_are_not_grafted():
    tokenizer = tiny_tokenizer()
    one, other = (wrap(tiny_model("llama", len(tokenizer), seed=s), tokenizer, label=str(s)) for s in (0, 1))
    for read, value in ((one, 0.0), (other, 1.0)):
        read.blocks[1].mlp.register_buffer("bias_of_experts", torch.full((2,), value))
    items = tokenise_all(FACTS, Template.parse("plain"), tokenizer)
    with pytest.raises(MemprobeError, match=r"differ in .*bias_of_experts, which is saved and is no weight"):
        list(sweep_batches(donor_of(other, items), one, items))
