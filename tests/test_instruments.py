"""The benchmark of instruments: what is planted lies where it is said to, and instruments are marked by that alone."""

from __future__ import annotations

import copy
import inspect
import json

import numpy as np
import polars as pl
import pytest
import torch

from analyses.instruments import small, work
from analyses.instruments.__main__ import HERE
from analyses.instruments.evidence import directional, metered
from analyses.instruments.instruments import Verdict, WeightChange, all_instruments, by_part, cost_of, largest
from analyses.instruments.marking import among_sets, marked, rank_of
from analyses.instruments.plan import Options, Planting, cells_of, parse_plan, read_plan
from analyses.instruments.planting import Plant, Planted, drawn_away
from analyses.instruments.small import write_small
from analyses.instruments.work import run
from memprobe.errors import MemprobeError
from memprobe.files import read_json
from memprobe.grafts import Graft
from memprobe.models import LensModel, load, wrap
from memprobe.patching import own_log_probs, padded
from memprobe.sources import load_factoids
from memprobe.sources.kvr import generate_kvr
from memprobe.templates import Template, tokenise_all

HOW = Planting(rate=1e-2, steps=200)
N_LAYERS = 5


@pytest.fixture(scope="module")
def base() -> LensModel:
    from tests.tiny import byte_level, tiny_model

    return wrap(tiny_model(n_layers=N_LAYERS), byte_level(), label="base")


def planted(base: LensModel, places: list[Graft], n: int = 3, **changes) -> tuple[Plant, list]:
    """A copy of the base in which disjoint sets of keys are trained."""
    model = wrap(copy.deepcopy(base.model), base.tokenizer, label="planted", weights_fingerprint="planted")
    keys = generate_kvr(n * len(places))
    sets = [keys[start : start + n] for start in range(0, len(keys), n)]
    plant = Plant(model, sets, places, "plain")
    plant.train(HOW.model_copy(update=changes), seed=0)
    return plant, keys


@pytest.fixture(scope="module")
def single(base):
    """Keys in the MLP and attention of block 3 alone, and the verdicts of all instruments."""
    plant, keys = planted(base, [Graft((3, 3))])
    found = {one.name: one for one in all_instruments("plain")}
    return plant, {name: one.verdict(plant.model, base, keys) for name, one in found.items()}, found


@pytest.fixture(scope="module")
def several(base):
    plant, keys = planted(base, [Graft((2, 2)), Graft((4, 4), ("mlp",))])
    return plant, keys


@pytest.mark.parametrize(
    "name",
    ["graft", "reset", "graft parts", "reset parts"]
    + [f"{side} all {rule}" for side in ("restoration", "erasure") for rule in ("jump", "half")],
)
def test_grafts_and_patches_of_all_positions_name_the_planted_block(single, name):
    """The share that a patch moves jumps from 0 to 1 at the block, whatever else: below it both runs are the same."""
    plant, verdicts, _ = single
    assert plant.verify(0).valid
    assert verdicts[name].depth.tolist() == [3.0] * 3
    assert [rank_of(score, (3, 3)) for score in verdicts[name].score] == [1.0] * 3


def test_what_cannot_see_a_fact_is_the_same_for_all(single):
    _, verdicts, found = single
    norms = verdicts["weight change"]
    assert norms.depth.tolist() == [3.0] * 3 and (np.delete(norms.score, 2, 1) == 0).all()
    assert cost_of(found["weight change"]).forwards == 0
    assert cost_of(found["lof logit k=1"]).forwards == pytest.approx(1)  # one pass reads all
    assert cost_of(found["gradient path"]).backwards == 5
    # Of every depth 0 … 5 a copy that goes through what is above it, and two whole runs; and the check beforehand.
    assert 2 + 15 / 5 < cost_of(found["restoration all jump"]).forwards < 12


def test_instruments_are_given_no_truth(single):
    for one in single[2].values():
        assert list(inspect.signature(one.verdict).parameters) == ["model", "base", "factoids"]
        for evidence in one.evidence:
            assert list(inspect.signature(evidence.measure).parameters) == ["model", "base", "factoids"]


def test_the_blocks_of_several_sets_are_told_apart(base, several):
    plant, keys = several
    assert plant.verify(0).valid
    for one in all_instruments("plain", only=["graft", "reset", "restoration all jump"]):
        verdict = one.verdict(plant.model, base, keys)
        assert verdict.depth.tolist() == [2.0] * 3 + [4.0] * 3, one.name
        if one.name.endswith("parts"):
            assert verdict.part is not None and verdict.part[3:] == ("mlp",) * 3


def test_a_step_on_a_set_moves_its_block_and_no_other(base, several):
    plant, _ = several
    before = dict(base.model.named_parameters())
    moved = {name for name, p in plant.model.model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[2] for name in moved} == {"1", "3"}
    assert all(".mlp." in name for name in moved if name.split(".")[2] == "3")


@pytest.mark.parametrize("absent", [False, True])
def test_a_set_s_gradient_is_of_its_own_facts(base, several, absent):
    """Against autograd on the loss of the set alone, in a model with the other set's block in place or the base's."""
    plant, _ = several
    groups = plant.parameters
    plant._gradients(0, plant.batches[0], groups, [1] if absent else [], 1e9)
    assert all(p.grad is None for _, p in groups[1])
    other = copy.deepcopy(plant.model.model)
    if absent:
        for name, p in other.named_parameters():
            if name.startswith("model.layers.3."):
                p.data.copy_(dict(base.model.named_parameters())[name])
    named = dict(other.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    total, count = torch.zeros(()), 0
    for row in plant.examples[0]:
        logits = other(torch.tensor([row.ids])).logits[0]
        labels = torch.tensor(row.labels)
        kept = labels != -100
        total = total + torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum")
        count += int(kept.sum())
    wanted = torch.autograd.grad(total / count, [named[name] for name, _ in groups[0]])
    for (_, p), gradient in zip(groups[0], wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-6, rtol=1e-4)
        p.grad = None


def test_other_sets_are_away_by_chance_and_never_the_own_one():
    generator = torch.Generator().manual_seed(0)
    drawn = [drawn_away(4, 1, 0.5, generator) for _ in range(2000)]
    assert not any(1 in away for away in drawn)
    assert sum(not away for away in drawn) / 2000 == pytest.approx(0.5 + 0.5 / 8, abs=0.04)
    assert sum(2 in away for away in drawn) / 2000 == pytest.approx(0.25, abs=0.04)
    assert not any(drawn_away(4, 1, 0.0, generator) for _ in range(50))


@pytest.mark.parametrize(
    ("said", "own", "others", "valid"),
    [
        ((1, 1), (0, 0.25), (1, 0.6), True),
        ((1, 1), (0, 0.3), (1, 0.6), False),  # the second set is said without its block
        ((1, 1), (0, 0), (1, 0.5), False),  # the first one leans on the second one's block
        ((1, 0.9), (0, 0.9), (float("nan"), 0), True),  # what was not learned proves nothing, either way
        ((0.9, 0.9), (0, 0), (1, 1), False),
        ((1,), (0,), (float("nan"),), True),
    ],
)
def test_a_truth_that_a_reset_does_not_confirm_is_none(said, own, others, valid):
    assert Planted(1, list(said), list(own), list(others), [0.1] * len(said)).valid is valid


def test_one_set_without_a_place_is_ordinary_fine_tuning(base):
    """All weights are trained, at their own rate, and no reset says anything."""
    model = wrap(copy.deepcopy(base.model), base.tokenizer, label="planted", weights_fingerprint="planted")
    plant = Plant(model, [generate_kvr(3)], [], "plain")
    assert len(plant.parameters[0]) == len(dict(model.model.named_parameters()))
    plant.train(HOW.model_copy(update={"full_rate": 1e-9, "steps": 1}), seed=0)
    found = plant.verify(1)
    assert 0 < found.moved[0] < 1e-6
    assert np.isnan(found.reset_own).all() and np.isnan(found.reset_others).all()


def test_gradient_times_change_is_autograd_s_fact_by_fact(base, several):
    plant, keys = several
    model = plant.model
    theirs = dict(base.model.named_parameters())
    change = {name: p.data - theirs[name].data for name, p in model.model.named_parameters()}
    items = tokenise_all(keys, Template.parse("plain"), model.tokenizer)
    with metered(model) as cost:
        found = directional(model, padded(items, 0), items, change)
    assert cost.forwards == pytest.approx(len(items))
    network = copy.deepcopy(model.model)
    named = dict(network.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)
    for row, item in enumerate(items):
        logits = network(torch.tensor([item.inputs])).logits[0, len(item.prompt) - 1 :]
        asked = [j for j, token in enumerate(item.target_indices) if token >= 0]
        said = logits.log_softmax(-1)[asked, [item.targets[j] for j in asked]].sum()
        wanted = np.zeros(N_LAYERS)
        gradients = torch.autograd.grad(said, list(named.values()))
        for name, gradient in zip(named, gradients, strict=True):
            if ".layers." in name:
                wanted[int(name.split(".")[2])] += float((gradient * change[name]).sum())
        np.testing.assert_allclose(found[row], wanted, atol=1e-4, rtol=1e-3)
    # On the whole way the first-order effects add up to what the log-probability gains.
    path = next(one for one in all_instruments("plain") if one.name == "gradient path")
    score = path.verdict(model, base, keys).score.sum(1)
    gained = [
        own_log_probs(one, items).group_by("factoid", maintain_order=True).agg(pl.col("log_prob").sum())
        for one in (model, base)
    ]
    gain = gained[0].join(gained[1], on="factoid").select(pl.col("log_prob") - pl.col("log_prob_right"))
    assert score.sum() == pytest.approx(gain["log_prob"].sum(), rel=0.5)


def test_marks_by_hand():
    score = np.array([0.5, 0.0, 2.0, 0.5])
    assert rank_of(score, (3, 3)) == 1 and rank_of(score, (1, 1)) == 2.5 and rank_of(score, (2, 2)) == 4
    assert rank_of(score, (2, 3)) == 1
    assert among_sets(score, 0, [(1, 1), (2, 2)]) == 1
    assert among_sets(score, 0, [(1, 1), (4, 4)]) == 0.5 and among_sets(score, 1, [(3, 3), (4, 4)]) == 0
    verdict = largest(np.array([[0.0, 3.0, 1.0], [np.nan] * 3, [-1.0, 0.0, -2.0]]))
    np.testing.assert_array_equal(verdict.depth, [2, np.nan, np.nan])
    parts = by_part({"attn": np.array([[1.0, 5.0], [0.0, 1.0]]), "mlp": np.array([[2.0, 4.0], [0.0, 3.0]])})
    assert parts.depth.tolist() == [2, 2] and parts.part == ("attn", "mlp")
    rows = marked("one", Verdict(np.array([2, np.nan]), np.zeros((2, 4))), [0, 1], [(2, 2), (4, 4)])
    assert rows["depth"].to_list() == [2, None] and rows["rank"].to_list() == [2.5, 2.5]
    assert rows["among"].to_list() == [0.5, 0.5]
    free = marked("one", Verdict(np.array([2.0]), np.zeros((1, 4))), [-1], None)
    assert free.row(0) == ("one", -1, 0, 2.0, None, None, None, None)


# ---------------------------------------------------------------------------------------------- runs


def tiny_plan(base, **changes):
    data = {
        "base": str(base),
        "seeds": [0],
        "blocks": [1, 3],
        "facts": 3,
        "instruments": ["graft", "lof logit k=1", "weight change"],
        "planting": {"rate": 1e-2, "steps": 20},  # enough to be found; no test of runs asks for every fact
        "fits": {"linear": 0, "tuned": 0, "jacobian": 0},
        "cells": [{"kind": "several"}],
    }
    return parse_plan(data | changes)


def test_a_run_stopped_in_between_goes_on_to_the_same_verdicts(tiny_checkpoint, tmp_path, monkeypatch):
    plan = tiny_plan(tiny_checkpoint)
    whole = Options(tmp_path / "whole", tmp_path / "whole" / ".scratch", quiet=True)
    assert run(plan, whole) == []
    [cell] = cells_of(plan)
    wanted = pl.read_parquet(whole.out / "verdicts" / f"{cell.name}.parquet")
    assert set(wanted.filter(pl.col("depth").is_not_null())["instrument"]) >= {"graft", "weight change"}
    assert read_json(whole.out / "cells" / f"{cell.name}.json")["finished"]
    assert not list((whole.scratch / "planted").glob("*"))

    class Killed(Exception):
        pass

    halves = Options(tmp_path / "halves", tmp_path / "halves" / ".scratch", quiet=True)
    trained = []
    train = Plant.train
    monkeypatch.setattr(Plant, "train", lambda *given, **named: trained.append(1) or train(*given, **named))

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(work, "marked", killed, raising=False)
        patch.setattr("analyses.instruments.marking.marked", killed)
        with pytest.raises(Killed):
            run(plan, halves)
    assert run(plan, halves) == []
    assert len(trained) == 1  # the planted weights waited
    assert pl.read_parquet(halves.out / "verdicts" / f"{cell.name}.parquet").equals(wanted)
    assert run(plan, halves) == [] and len(trained) == 1
    # Once over, the time limit leaves nothing half-written, and other settings are refused.
    late = Options(tmp_path / "late", tmp_path / "late" / ".scratch", quiet=True, until=0.0)
    assert run(plan, late) == [] and not list((late.out / "cells").glob("*"))
    with pytest.raises(MemprobeError, match="another planting"):
        run(tiny_plan(tiny_checkpoint, planting={"rate": 1e-3}), halves)


def test_what_a_cell_lacks_is_told_and_the_others_go_on(tiny_checkpoint, tmp_path):
    rows = [
        {"prompt": f"The hill of {name} is", "answer": name[::-1], "subject": name}
        for name in ("Oria", "Tolm")
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = tiny_plan(
        tiny_checkpoint,
        instruments=["weight change"],
        planting={"rate": 1e-2, "steps": 1},
        cells=[{"kind": "several", "sources": [str(path)]}, {"kind": "full"}],
    )
    [line] = run(plan, Options(tmp_path / "out", tmp_path / "scratch", quiet=True))
    assert "has 2 facts" in line and "6 are needed" in line
    about = read_json(tmp_path / "out" / "cells" / "full-kvr-all-3-s0.json")
    assert about["finished"] and about["valid"] is None


def test_an_instrument_that_fails_is_told_and_asked_again(tiny_checkpoint, tmp_path, monkeypatch):
    plan = tiny_plan(tiny_checkpoint, planting={"rate": 1e-2, "steps": 1})
    options = Options(tmp_path / "out", tmp_path / "scratch", quiet=True)
    [cell] = cells_of(plan)
    with monkeypatch.context() as patch:

        def broken(*_):
            raise RuntimeError("no such kernel")

        patch.setattr("analyses.instruments.instruments.WeightChange.verdict", broken)
        [line] = run(plan, options)
    assert "1 instruments failed, first weight change" in line
    assert "no such kernel" in (options.out / "log.txt").read_text()
    asked = pl.read_parquet(options.out / "verdicts" / f"{cell.name}.parquet")
    assert set(asked["instrument"]) == {"graft", "graft parts", "lof logit k=1"}
    assert not read_json(options.out / "cells" / f"{cell.name}.json")["finished"]
    assert run(plan, options) == []
    assert read_json(options.out / "cells" / f"{cell.name}.json")["finished"]


def test_a_plan_that_names_more_instruments_asks_finished_cells_for_them(
    tiny_checkpoint, tmp_path, monkeypatch
):
    few = tiny_plan(tiny_checkpoint, instruments=["weight change"])
    more = tiny_plan(tiny_checkpoint)
    whole, grown = (Options(tmp_path / name, tmp_path / f"{name}-scratch", quiet=True) for name in ("a", "b"))
    [cell] = cells_of(few)

    def verdicts(options):
        return pl.read_parquet(options.out / "verdicts" / f"{cell.name}.parquet").sort("instrument", "fact")

    asked = []
    verdict = WeightChange.verdict
    monkeypatch.setattr(WeightChange, "verdict", lambda *given: asked.append(1) or verdict(*given))
    assert run(more, whole) == run(few, grown) == []
    assert set(verdicts(grown)["instrument"]) == {"weight change"} and len(asked) == 2
    assert run(few, whole) == [] and run(more, grown) == []
    assert verdicts(grown).equals(verdicts(whole)) and len(asked) == 2  # what was said stays said
    about = read_json(grown.out / "cells" / f"{cell.name}.json")
    assert about["finished"] and set(about["costs"]) == set(verdicts(grown)["instrument"])
    # A cell that is planted otherwise than before says nothing any more of what it was.
    path = whole.out / "cells" / f"{cell.name}.json"
    path.write_text(json.dumps(read_json(path) | {"steps": 1}))
    assert run(tiny_plan(tiny_checkpoint, instruments=["graft", "weight change", "reset"]), whole) == []
    assert set(verdicts(whole)["instrument"]) == {
        "graft",
        "graft parts",
        "reset",
        "reset parts",
        "weight change",
    }
    assert len(asked) == 3


def test_a_lens_that_cannot_be_fitted_costs_its_own_instruments_alone(tiny_checkpoint, tmp_path, monkeypatch):
    tries = []

    def broken(*_, **__):
        tries.append(1)
        raise RuntimeError("two devices")

    monkeypatch.setattr("memprobe.fitting.load_texts", lambda *_, **__: ([], {}))
    monkeypatch.setattr("memprobe.fitting.make_corpus", lambda *_, **__: None)
    monkeypatch.setattr("memprobe.fitting.fit", broken)
    plan = tiny_plan(
        tiny_checkpoint,
        planting={"rate": 1e-2, "steps": 1},
        instruments=["weight change", "lof linear"],
        fits={"linear": 100, "tuned": 0, "jacobian": 0},
    )
    options = Options(tmp_path / "out", tmp_path / "scratch", quiet=True)
    [line] = run(plan, options)
    assert "2 instruments failed, first lof linear k=1" in line and len(tries) == 1
    [cell] = cells_of(plan)
    asked = pl.read_parquet(options.out / "verdicts" / f"{cell.name}.parquet")
    assert set(asked["instrument"]) == {"weight change"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks": [1, 1]}, "blocks: each once"),
        ({"cells": [{"kind": "pair"}], "blocks": [1, 2]}, "sets share a block"),
        ({"cells": [{"kind": "several"}] * 2}, "several-kvr-all-3-s0 stands twice"),
        ({"cells": [{"kind": "many"}]}, "cells.1.kind"),
        ({"facts": 1}, "facts"),
        ({"colour": "red"}, "colour: unknown key"),
    ],
)
def test_a_wrong_plan_is_told_by_key(tmp_path, changes, said):
    with pytest.raises(MemprobeError, match=said):
        tiny_plan(tmp_path, **changes)


def test_a_file_is_named_without_its_folder(tmp_path):
    plan = tiny_plan(tmp_path, cells=[{"kind": "full", "sources": ["some/where/people.jsonl", "kvr"]}])
    assert [cell.name for cell in cells_of(plan)] == ["full-people-all-3-s0", "full-kvr-all-3-s0"]


def test_the_small_base_knows_its_facts_and_not_those_to_plant(tmp_path):
    steps, said = write_small(tmp_path / "base", how=small.HOW.model_copy(update={"steps": 20}))
    assert steps == 20 and 0 <= said <= 1
    known, others, _ = small.make_facts(0)
    rows = load_factoids(str(tmp_path / "base" / "people.jsonl"))
    assert [row.prompt for row in rows] == [fact.prompt for fact in others]
    assert not {fact.prompt for fact in known} & {row.prompt for row in rows}
    words = {word for fact in known for word in fact.prompt.split()}
    assert {word for row in rows for word in row.prompt.split()} <= words
    assert load(str(tmp_path / "base")).n_layers == small.N_LAYERS


def test_shipped_plans_are_plans():
    for path in sorted((HERE / "plans").glob("*.toml")):
        assert cells_of(read_plan(path))


def test_instruments_are_chosen_by_the_beginning_of_their_names():
    assert [one.name for one in all_instruments("plain", only=["reset"])] == ["reset", "reset parts"]
    names = [one.name for one in all_instruments("plain")]
    assert len(set(names)) == len(names) > 30
    with pytest.raises(MemprobeError, match="begins with 'magic'"):
        all_instruments("plain", only=["magic"])
