"""Grids: which cells there are, what they share, and what a run of them leaves."""

import json
import shlex
import shutil
import subprocess
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from memprobe.checkpoints import resolve
from memprobe.compare import compare
from memprobe.errors import MemprobeError
from memprobe.probes import open_probe
from tests.training.grids import AGAIN, write
from tests.training.runs import ROOT, same_weights
from training.__main__ import app
from training.grid import cells_in, cells_of, directory, names_in, plan, read_grid, run_grid, run_workers
from training.grid.crew import Crew
from training.grid.found import base_at
from training.grid.stages import _drop
from training.grid.work import started
from training.run import run
from training.study.collect import collect


def cells(path):
    return cells_of(read_grid(path), path)


def test_an_axis_multiplies_only_the_cells_that_use_it(tmp_path):
    names = [cell.node.name for cell in cells(write(tmp_path, seeds="[0]"))]
    assert names == [
        "a-b-n4/naive-s0",
        "a-b-n4/replay-s0",
        "a-b-n4/remix-ratio1-s0",
        "a-b-n4/remix-ratio2-s0",
    ]
    by_name = {cell.node.name: cell for cell in cells(write(tmp_path, seeds="[0]"))}
    assert by_name["a-b-n4/naive-s0"].axes == {"n": 4}
    assert by_name["a-b-n4/remix-ratio2-s0"].axes == {"n": 4, "ratio": 2}
    assert by_name["a-b-n4/remix-ratio2-s0"].node.recipe.stages[0].mixing[0].ratio == 2


def test_a_prefix_is_shared_by_all_that_train_it_alike(tmp_path):
    parents = {cell.node.name: cell.node.parent for cell in cells(write(tmp_path))}
    assert parents["a-b-n4/naive-s0"] is parents["a-b-n4/replay-s0"]
    assert parents["a-b-n4/naive-s0"].name == "a-n4/naive-s0"
    assert parents["a-b-n4/naive-s0"] is not parents["a-b-n4/naive-s1"]
    assert parents["a-b-n4/naive-s0"] is not parents["a-b-n4/remix-ratio1-s0"]
    joint = cells(write(tmp_path, arms='["joint"]'))[0].node
    assert joint.parent is None and joint.stage == "2-joint"


def test_arms_that_are_added_find_the_stages_that_are_there(tmp_path):
    """A shared stage is called by the arm that it is, whichever arm of a block, or block, comes first."""

    def shared(arms):
        every = cells(write(tmp_path, arms=arms, seeds="[0]"))
        return {cell.node.name: cell.node.parent.name for cell in every if cell.node.parent}

    before = shared('["naive", "replay", "remix"]')
    for arms in ('["remix", "replay", "naive"]', '["replay"]', '["remix"]'):
        now = shared(arms)
        assert now and now.items() <= before.items(), arms
    assert before["a-b-n4/replay-s0"] == "a-n4/naive-s0"


def test_chains_are_of_two_or_three_stages(tmp_path):
    path = write(tmp_path)
    text = path.read_text()
    for wrong in ('["a"]', '["a", "b", "c", "a"]'):
        path.write_text(text.replace('[["a", "b"]]', f"[{wrong}]"))
        with pytest.raises(MemprobeError, match="is no chain of two or three"):
            read_grid(path)


def test_three_stages_go_on_from_the_cell_of_two(tmp_path):
    path = write(tmp_path, seeds="[0]")
    path.write_text(path.read_text() + AGAIN)
    found = cells(path)
    longest = found[-1].node
    assert [node.name for node in longest.chain] == ["a-n4/naive-s0", "a-b-n4/naive-s0", "a-b-c-n4/naive-s0"]
    assert longest.parent is found[0].node and found[-1].block == "again"
    assert [node.label for node in longest.chain] == ["naive-s0.1", "naive-s0.2", "naive-s0.3"]


def test_a_cell_that_two_blocks_want_is_there_once_and_belongs_to_the_first(tmp_path):
    path = write(tmp_path, arms='["naive"]', seeds="[0]")
    again = AGAIN.replace('"a", "b", "c"', '"a", "b"').replace('"naive"', '"replay", "naive"')
    path.write_text(path.read_text() + again)
    found = cells(path)
    assert [(cell.node.arm, cell.block) for cell in found] == [("naive", "first"), ("replay", "again")]
    for blocks, arms in (
        (["first"], ["naive"]),
        (["again"], ["naive", "replay"]),
        (["again", "first"], ["naive", "replay"]),
        ([], ["naive", "replay"]),
    ):
        assert [cell.node.arm for cell in cells_in(found, blocks, path)] == arms
    with pytest.raises(
        MemprobeError, match=r"grid\.toml: no block 'agian'; it has first, again; did you mean again"
    ):
        cells_in(found, ["agian"], path)


def test_blocks_are_done_in_the_order_in_which_they_are_given(tmp_path):
    """Whole, with cells that blocks before them in the file have, too."""
    path = write(tmp_path, arms='["naive"]', seeds="[0, 1]")
    last = AGAIN.replace('"again"', '"last"').replace('"a", "b", "c"', '"a", "b"').replace("[0]", "[1]")
    path.write_text(path.read_text() + AGAIN + last.replace('"naive"', '"replay", "naive"'))
    found = cells(path)

    def done(*blocks: str) -> list[str]:
        return [cell.node.name for cell in cells_in(found, blocks, path)]

    first, again, last = done("first"), done("again"), done("last")
    assert set(first) & set(last) and not set(again) & set(last)
    assert done("last", "again", "first") == [*last, *again, *(name for name in first if name not in last)]
    assert done("again", "last") == [*again, *last]


def test_a_block_like_another_has_what_it_does_not_say_itself(tmp_path):
    path = write(tmp_path, seeds="[0]")
    path.write_text(path.read_text() + '\n[[blocks]]\nname = "more"\nlike = "first"\nseeds = [1, 2]\n')
    first, more = read_grid(path).blocks
    assert (first.seeds, more.seeds) == ((0,), (1, 2))
    assert (more.stages, more.arms, more.axes) == (first.stages, first.arms, first.axes)
    assert sorted({cell.node.recipe.seed for cell in cells(path)}) == [0, 1, 2]


def test_a_grid_s_directory_names_the_cells_of_a_block_without_its_files(tmp_path):
    """They lie beside the file that was given, of which the directory holds a copy."""
    path, out = write(tmp_path), tmp_path / "elsewhere"
    (tmp_path / "mine.jsonl").write_text('{"prompt": "The capital of Lunn is", "answer": "Osk"}\n')
    path.write_text(path.read_text().replace('"kvr:{n}"', '"jsonl:mine.jsonl"') + AGAIN)
    out.mkdir()
    shutil.copy(path, out / "grid.toml")
    wanted = cells_in(cells(path), ["again"], path)
    assert names_in(out, ["again"]) == {cell.node.name for cell in wanted}
    with pytest.raises(MemprobeError, match=r"no file mine\.jsonl"):
        cells(out / "grid.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "first"', 'name = "first"\nlike = "first"', "blocks.1.like: no block 'first'"),
        ('name = "first"', 'name = "first"\nlike = ["first"]', "blocks.1.like"),
        ('["a", "b"]', '["a", "z"]', "stages: no 'z' in [data]; it has a, b, c"),
        ('["a", "b"]', '["a"]', "no chain of two or three"),
        ('"naive", "replay"', '"naive", "ewc"', "arms: no 'ewc' in [arms]"),
        ("n = [4]", "n = []", "blocks.1.axes.n: "),
        ("n = [4]", "n = [], unused = []", "blocks.1.axes.n: "),
        ("lr = 3e-3", "lrr = 3e-3", "recipe.optimiser.lrr: unknown key"),
        ("[recipe]", "[recipe]\nseeed = 1", "recipe.seeed: unknown key; there are base, data_seed, "),
        ("lr = 3e-3", "lr = -1", "recipe.optimiser.lr: "),
        ("lr = 3e-3", "lr = 3e-3\nmicro_tokens = 99999999999999999999", "recipe.optimiser.micro_tokens: "),
        ("[data.b]", "[data.b]\nepoch = 1", "data.b.epoch: unknown key"),
        (
            'name = "first"',
            'name = "zeroth"\nstages = [["a", "b"]]\narms = ["remix"]\naxes = { n = [4] }\n[[blocks]]\nname = "first"',
            "block zeroth: remix: remix(data=kvr:8:test, stages=1, ratio={ratio}): no axis 'ratio'; the block has n",
        ),
        ("[recipe]", "[recipe]\nseed = 1", "recipe.seed: the grid says this in its blocks"),
        ("keep = ", "kept = ", "kept: unknown key"),
        ('naive = "none"', 'naive = "none"\n"re/play" = "none"', "arms.re/play: a name has letters"),
        ('naive = "none"', 'naive = "none"\n"../../../esc" = "none"', "arms.../../../esc: a name has"),
        ("[data.a]", '[data."a/b"]\ndata = "kvr:4"\n[data.a]', "data.a/b: a name has letters"),
        ("n = [4]", 'n = [4], "m/../.." = [1]', "blocks.1.axes.m/../..: a name has letters"),
        ('name = "first"', 'name = "fir/st"', "blocks.1.name: a name has letters"),
        ("ratio={ratio}", "ratio={rate}", "axes.ratio: nothing in"),
        ("[data.a]", '[data.a]\nunknown = "x"', "data.a.unknown: "),
        (
            "n = [4]",
            "n = [4], m = [1, 2]",
            "block first: axes.m: nothing in [recipe], [data] and [arms] has {m}",
        ),
        ("seeds = ", f"seeds = {list(range(10_001))} #", "cells, at most 10,000"),
    ],
)
def test_a_bad_grid_is_named_by_file_and_key(tmp_path, old, new, said):
    path = write(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(MemprobeError) as error:
        cells(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_cells_that_differ_under_one_name_are_refused(tmp_path):
    path = write(tmp_path, arms='["naive"]', seeds="[0]")
    text = path.read_text().replace('[data.b]\ndata = "kvr:{n}:validation"', '[data.b]\ndata = "{m}.jsonl"')
    for name in ("my-rows", "my rows", "others"):
        (tmp_path / f"{name}.jsonl").touch()
    # {m} is an axis of the second block alone, and is written into its name.
    text = text.replace("axes = {", 'axes = { m = ["my-rows"],')
    again = AGAIN.replace('"a", "b", "c"', '"a", "b"').replace("n = [4]", 'n = [4], m = ["others"]')
    path.write_text(text + again)
    names = [cell.node.name for cell in cells(path)]
    assert names == ["a-b-n4-mmy-rows/naive-s0", "a-b-n4-mothers/naive-s0"]
    path.write_text(text + again.replace("others", "my rows"))
    with pytest.raises(MemprobeError, match="another cell is called a-b-n4-mmy-rows/naive-s0"):
        cells(path)


def outcome(out, name):
    return json.loads((out / "runs" / name / "cell.json").read_text())


def test_a_grid_leaves_evaluations_and_records_and_no_weights(done):
    path, out = done
    for cell in cells(path):
        folder = directory(out, cell.node)
        assert (folder / "2-b" / "evaluation.json").exists() and (folder / "1-a" / "evaluation.json").exists()
        ended = outcome(out, cell.node.name)
        assert ended["learned"] and ended["arm"] == cell.node.arm and ended["axes"] == dict(cell.axes)
        assert [stage["stage"] for stage in ended["stages"]] == ["1-a", "2-b"]
        assert all(stage["tokens"] > 0 and stage["seconds"] > 0 for stage in ended["stages"])
    assert not list(out.rglob("*.safetensors"))
    assert not list(out.rglob(".state"))


def test_weights_that_went_are_said_to_be_gone_and_nobody_is_sent_to_them(done, tmp_path):
    path, out = done
    node = cells(path)[0].node
    with pytest.raises(MemprobeError) as said:
        resolve(str(directory(out, node)))
    (probe,) = (out / "probes").glob("*")
    assert "its weights were deleted after it was probed" in str(said.value)
    assert 'keep = "weights"' in str(said.value) and str(said.value).endswith(f"its probe is in {probe}")
    shutil.copytree(directory(out, node) / "2-b", tmp_path / "elsewhere")
    with pytest.raises(MemprobeError, match=r"keeps them$"):
        resolve(str(tmp_path / "elsewhere"))
    logs = list(out.rglob("log.txt"))
    assert logs and not any("done: memprobe" in file.read_text(encoding="utf-8") for file in logs)


def test_stage_1_was_trained_once_for_both_arms(done):
    _, out = done
    naive, replay = (out / "runs" / "a-b-n4" / name / "1-a" for name in ("naive-s0", "replay-s0"))
    assert (
        naive.is_symlink()
        and naive.resolve() == replay.resolve() == (out / "runs/a-n4/naive-s0/1-a").resolve()
    )


def test_every_stage_is_in_one_probe_in_both_readouts(done):
    _, out = done
    labels = {"base", "naive-s0.1", "naive-s0.2", "replay-s0.2"}
    labels |= {f"remix-ratio{ratio}-s0.{stage}" for ratio in (1, 2) for stage in (1, 2)}
    (folder,) = (out / "probes" / "a-b-n4").glob("[!.]*")
    probe = open_probe(folder)
    assert set(probe.checkpoints) == labels and probe.checkpoints[0] == "base"
    assert probe.lenses == ["logit", "logit@base"] and probe.finished == probe.checkpoints
    assert set(probe.summary["checkpoints"]) == labels
    assert not list(out.glob(".probes/*/*")), "a cell's own probe goes when it has joined the others"
    entry = probe.run["checkpoints"]["replay-s0.2"]["manifest"]
    assert (entry["arm"], entry["stage"]) == ("replay(ratio=0.5, stages=2)", 2)
    before = probe.run["checkpoints"]["naive-s0.1"]["fingerprint"]  # so that seeds are known to be pairs
    assert entry["parent"]["fingerprint"] == before and entry["stages"][0]["index"] == 1
    assert "b" in probe.run["intrusions"]
    tables = compare([folder], reference="naive-s0.2", draws=100).tables
    assert {"arms", "fates", "claims"} <= set(tables)


def test_a_finished_grid_trains_nothing_again(done, tmp_path, monkeypatch):
    path, out = done[0], shutil.copytree(done[1], tmp_path / "out", symlinks=True)
    monkeypatch.setattr("training.run.run", lambda *args, **options: pytest.fail("trained again"))
    assert run_grid(read_grid(path), path, out, quiet=True) == []


def test_what_a_grid_takes_is_known_before(done, tmp_path):
    path, out = done
    grid = read_grid(path)
    told: list[str] = []
    ahead = plan(grid, path, tmp_path / "new", say=told.append)
    assert told and all("counting tokens of stage" in line for line in told)  # data may take long to read
    assert (ahead.stages, ahead.per_second, ahead.shared) == (7, None, {"a-n4/naive-s0": 2})
    # Nothing stops early here, so the tokens foreseen are those that were trained.
    trained = {
        (s["run"], s["tokens"]) for cell in cells(path) for s in outcome(out, cell.node.name)["stages"]
    }
    assert ahead.tokens == sum(tokens for _, tokens in trained)
    after = plan(grid, path, out)
    assert (after.stages, after.tokens) == (0, 0) and after.per_second > 0
    assert all(is_done for _, _, is_done in after.cells)
    more = tmp_path / "more.toml"
    more.write_text(path.read_text() + AGAIN)
    longer = plan(read_grid(more), more, out, blocks=["again"])
    assert (
        longer.per_second == after.per_second and len(longer.cells) == 1
    )  # measured on other blocks' stages


@pytest.mark.parametrize("workers", [1, 2])
def test_one_block_leaves_the_others_and_the_stages_that_they_start_from(
    workers, tiny_checkpoint, tmp_path, quick_python, monkeypatch
):
    path, out = write(tmp_path, tiny_checkpoint, seeds="[0]", arms='["naive", "replay"]'), tmp_path / "out"
    path.write_text(path.read_text() + AGAIN)
    monkeypatch.chdir(ROOT)
    command = [*quick_python, "-m", "training", "grid", str(path), "--out", str(out)]
    subprocess.run([*command, "--block", "first", "--workers", str(workers)], check=True)
    ended = {file.parent.name: file for file in out.glob("runs/a-b*/*/cell.json")}
    assert set(ended) == {"naive-s0", "replay-s0"} and not (out / "runs/a-b-c-n4").exists()
    weights = {file.parent.parent.name for file in (out / "runs").rglob("*.safetensors")}
    assert weights == {"naive-s0"}, "what the third stage starts from stays"
    before = ended["naive-s0"].read_bytes()
    subprocess.run([*command, "--block", "again"], check=True)
    assert (out / "runs/a-b-c-n4/naive-s0/cell.json").exists() and ended["naive-s0"].read_bytes() == before
    assert not list((out / "runs").rglob("*.safetensors"))


def test_a_shared_stage_changes_nothing(tiny_checkpoint, tmp_path):
    path = write(tmp_path, tiny_checkpoint, arms='["naive", "replay"]', seeds="[0]", keep="weights")
    run_grid(read_grid(path), path, tmp_path / "out", quiet=True)
    node = cells(path)[1].node
    run(node.recipe, tmp_path / "alone", quiet=True)
    assert same_weights(directory(tmp_path / "out", node) / "2-b", tmp_path / "alone" / "2-b")


def test_a_stage_that_was_not_learned_marks_its_cell(tiny_checkpoint, tmp_path):
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1)
    assert run_grid(read_grid(path), path, tmp_path / "out", quiet=True) == []
    ended = outcome(tmp_path / "out", "a-b-n4/naive-s0")
    assert not ended["learned"] and "a ended at 0.0% exact match" in ended["why"]


@pytest.mark.parametrize("workers", [None, 1])
def test_a_base_model_that_is_missing_is_said_once_and_before_anything_is_trained(
    tiny_checkpoint, tmp_path, workers
):
    """And only where a cell still needs it."""
    path, out = write(tmp_path, tmp_path / "nowhere", seeds="[0, 1]"), tmp_path / "out"

    def begin() -> list[str]:
        if workers is None:
            return run_grid(read_grid(path), path, out, quiet=True)
        return run_workers(read_grid(path), path, out, workers=workers, quiet=True)

    with pytest.raises(
        MemprobeError, match=r"grid\.toml: recipe\.base: .*nowhere: no such file or directory"
    ):
        begin()
    assert not out.exists()
    there = tmp_path / "nowhere"
    shutil.copytree(tiny_checkpoint, there)
    path.write_text(path.read_text().replace("[0, 1]", "[0]"))
    run_grid(read_grid(path), path, out, quiet=True)
    shutil.rmtree(there)
    base_at.cache_clear()
    assert begin() == []


def test_a_cell_that_breaks_stops_no_other_and_is_tried_again(tiny_checkpoint, tmp_path, monkeypatch):
    path = write(tmp_path, tiny_checkpoint, seeds="[0]", arms='["replay", "naive"]')
    whole = run
    broken = {"replay(ratio=0.5, stages=2)"}

    def fails(recipe, *args, **options):
        if recipe.arm_name in broken:
            raise MemprobeError("the disk is full")
        return whole(recipe, *args, **options)

    monkeypatch.setattr("training.run.run", fails)
    found = run_grid(read_grid(path), path, tmp_path / "out", quiet=True)
    assert found == ["a-b-n4/replay-s0: the disk is full"]
    assert (tmp_path / "out/runs/a-b-n4/naive-s0/cell.json").exists()
    assert list((tmp_path / "out/runs/a-n4/naive-s0/1-a").glob("*.safetensors")), "still needed"
    broken.clear()
    assert run_grid(read_grid(path), path, tmp_path / "out", quiet=True) == []
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def records_of(stage):
    return {file.name: file.read_bytes() for file in stage.iterdir()}


def test_a_finished_grid_takes_cells_that_start_from_stages_without_weights(tiny_checkpoint, tmp_path):
    """Another arm and a third stage: what they start from is trained again, and its records stay as they are."""
    path, out = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=2), tmp_path / "out"
    assert run_grid(read_grid(path), path, out, quiet=True) == []
    shared, second = out / "runs/a-n4/naive-s0/1-a", out / "runs/a-b-n4/naive-s0/2-b"
    stored = records_of(shared), records_of(second)
    (shared / "config.json").write_text("{}")  # a process was killed while it dropped the weights
    write(tmp_path, tiny_checkpoint, arms='["naive", "replay"]', seeds="[0]", epochs=2)
    path.write_text(path.read_text() + AGAIN)
    ahead = plan(read_grid(path), path, out)
    assert (ahead.stages, ahead.again) == (4, 2) and ahead.tokens > 0
    assert run_grid(read_grid(path), path, out, quiet=True) == []
    assert (records_of(shared), records_of(second)) == stored
    assert not list(out.rglob("*.safetensors")) and not list(out.glob(".again/*/*"))
    naive, replay, longest = (directory(out, cell.node) for cell in cells(path))
    first, other = (json.loads((run / "2-b/memprobe.json").read_text()) for run in (naive, replay))
    assert first["parent"]["fingerprint"] == other["parent"]["fingerprint"], "seeds are still pairs"
    assert (longest / "cell.json").exists() and (longest / "2-b").resolve() == second.resolve()
    run(cells(path)[1].node.recipe, tmp_path / "alone", quiet=True)
    evaluations = [
        json.loads((run / "2-b/evaluation.json").read_text()) for run in (replay, tmp_path / "alone")
    ]
    assert evaluations[0] == evaluations[1]
    after = plan(read_grid(path), path, out)
    assert (after.stages, after.again) == (0, 0)


def test_a_stage_that_comes_out_otherwise_the_second_time_is_refused(tiny_checkpoint, tmp_path):
    path, out = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=3), tmp_path / "out"
    assert run_grid(read_grid(path), path, out, quiet=True) == []
    shared = out / "runs/a-n4/naive-s0/1-a"
    evaluation = json.loads((shared / "evaluation.json").read_text())
    evaluation["weight_change"]["stage"] *= 1 + 1e-9  # as on another machine
    (shared / "evaluation.json").write_text(json.dumps(evaluation))
    stored = records_of(shared)
    write(tmp_path, tiny_checkpoint, arms='["naive", "replay"]', seeds="[0]", epochs=3)
    (broken,) = run_grid(read_grid(path), path, out, quiet=True)
    assert broken.startswith("a-b-n4/replay-s0: ") and 'new --out, and keep = "weights"' in broken
    assert records_of(shared) == stored and not list(out.glob(".again/*/*"))


@pytest.mark.parametrize("worker", [False, True])
def test_a_cell_that_never_fits_into_memory_stops_no_other(worker, tiny_checkpoint, tmp_path, monkeypatch):
    path, out = (
        write(tmp_path, tiny_checkpoint, arms='["replay", "naive"]', seeds="[0]", epochs=1),
        tmp_path / "out",
    )
    whole = run

    def fails(recipe, *args, **options):
        if recipe.arm_name.startswith("replay"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(recipe, *args, **options)

    monkeypatch.setattr("training.run.run", fails)
    monkeypatch.setattr("training.grid.work._PAUSE", (0, 0))
    crew = Crew(out, 1) if worker else None
    if crew is not None:
        with started(cells(path), path, out):
            crew.start()
    said = "out of memory; lower micro_batch, micro_tokens or --workers"
    assert run_grid(read_grid(path), path, out, quiet=True, crew=crew) == [f"a-b-n4/replay-s0: {said}"]
    assert (out / "runs/a-b-n4/naive-s0/cell.json").exists()
    assert (out / "log.txt").read_text().count("tried again in a moment") == 4
    assert crew is None or crew.broken() == {"a-b-n4/replay-s0": said}


@pytest.mark.parametrize("more", [[], ["--workers", "2"], ["--engine", "ray"]])
def test_a_folder_of_data_that_is_not_there_is_said_before_anything_is_trained(
    more, tiny_checkpoint, tmp_path
):
    path, out = write(tmp_path, tiny_checkpoint), tmp_path / "out"
    asked = ["grid", str(path), "--out", str(out), "--data-dir", str(tmp_path / "absent"), *more]
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code and f"{tmp_path / 'absent'}: no such folder" in str(answer.exception)
    assert not out.exists()


def test_a_second_command_is_refused(tiny_checkpoint, tmp_path, quick_python):
    path = write(tmp_path, tiny_checkpoint, seeds="[0]", epochs=1)
    out = tmp_path / "out"
    command = [*quick_python, "-m", "training", "grid", str(path), "--out", str(out)]
    with started(cells(path), path, out):
        before = (out / "grid.toml").read_text()
        path.write_text("# changed\n" + before)
        for more in ([], ["--workers", "2"]):
            refused = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=False)
            assert refused.returncode == 2 and "another command is working on this grid" in refused.stderr, (
                refused.stderr
            )
    assert not (out / "runs").exists()
    assert (out / "grid.toml").read_text() == before, "of the command that is at work"


def test_stages_may_be_trained_by_a_process_of_their_own(tiny_checkpoint, tmp_path, quick_python):
    """As in this process, to the bit; two processes that share a stage: test_grid_on_ray."""
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=2, keep="weights")
    here = tmp_path / "here"
    run_grid(read_grid(path), path, here, quiet=True)
    path.write_text(f"launch = '{shlex.join(quick_python)}'\n{path.read_text()}")
    assert run_grid(read_grid(path), path, tmp_path / "out", quiet=True) == []
    (cell,) = cells(path)
    ended, alone = (outcome(out, cell.node.name) for out in (tmp_path / "out", here))
    assert [stage["tokens"] for stage in ended["stages"]] == [stage["tokens"] for stage in alone["stages"]]
    last, there = (directory(out, cell.node) / "2-b" for out in (tmp_path / "out", here))
    assert json.loads((last / "memprobe.json").read_text())["processes"] == 1
    assert same_weights(last, there)


@pytest.mark.parametrize(("launch", "said"), [("/no/such", "cannot be started"), ("false", "exit code 1")])
def test_a_launch_that_fails_breaks_its_cell_alone(launch, said, tiny_checkpoint, tmp_path):
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]")
    path.write_text(f"launch = {launch!r}\n{path.read_text()}")
    (broken,) = run_grid(read_grid(path), path, tmp_path / "out", quiet=True)
    assert said in broken


def test_the_function_after_a_cell_sees_its_weights(tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(
        "def keep_size(run):\n    (run / 'size').write_text(str((run / '2-b/model.safetensors').stat().st_size))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1)
    path.write_text('after = "own_module:keep_size"\n' + path.read_text())
    run_grid(read_grid(path), path, tmp_path / "out", quiet=True)
    assert int((tmp_path / "out/runs/a-b-n4/naive-s0/size").read_text()) > 1000
    path.write_text(path.read_text().replace("keep_size", "absent"))
    with pytest.raises(MemprobeError, match="after: no function 'own_module:absent'"):
        run_grid(read_grid(path), path, tmp_path / "new", quiet=True)


def test_whatever_a_cell_raises_stops_no_other(tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("def after(run):\n    return {}[run.name]\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0, 1]", epochs=1)
    path.write_text('after = "broken_module:after"\n' + path.read_text())
    out = tmp_path / "out"
    found = run_grid(read_grid(path), path, out, quiet=True)
    assert found == [
        f"a-b-n4/naive-s{seed}: KeyError: 'naive-s{seed}' (where it came from: {out / 'log.txt'})"
        for seed in (0, 1)
    ]
    log = (out / "log.txt").read_text()
    assert log.count("Traceback") == 2 and "broken_module.py" in log
    assert sorted(path.parent.name for path in out.glob("runs/a-b-n4/*/2-b")) == ["naive-s0", "naive-s1"]


@pytest.mark.parametrize(
    ("spec", "text", "said"),
    [
        ("torn_module:f", "def f(:", "no function 'torn_module:f' (SyntaxError"),
        ("raising_module:f", "raise RuntimeError('not here')", "(RuntimeError: not here)"),
        ("os:sep", None, "'os:sep' is no function but a str"),
        ("greedy_module:f", "def f(run, more): ...", "is called with a run directory alone"),
        ("nowhere", None, "write module:function"),
    ],
)
@pytest.mark.parametrize("start", [run_grid, partial(run_workers, workers=1)], ids=["here", "workers"])
def test_what_is_called_after_a_cell_is_looked_at_before_anything_is_trained(
    spec, text, said, start, tiny_checkpoint, tmp_path, monkeypatch
):
    if text is not None:
        (tmp_path / f"{spec.partition(':')[0]}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1)
    path.write_text(f'after = "{spec}"\n' + path.read_text())
    with pytest.raises(MemprobeError) as error:
        start(read_grid(path), path, tmp_path / "out", quiet=True)
    assert said in str(error.value) and f"{path}: after: " in str(error.value)
    assert not (tmp_path / "out" / "runs").exists()


def test_the_command_plans_and_refuses_two_ways_at_once(tmp_path, tiny_checkpoint):
    path = write(tmp_path, tiny_checkpoint)
    told = CliRunner().invoke(app, ["grid", str(path), "--dry-run", "--out", str(tmp_path / "out")])
    assert told.exit_code == 0 and "a-b-n4/naive-s1" in told.output and "14 stages to train" in told.output
    assert "80 % power" in told.output or "power    not known" in told.output
    path.write_text(path.read_text() + AGAIN)
    told = CliRunner().invoke(app, ["grid", str(path), "--dry-run", "--block", "again"])
    assert told.exit_code == 0 and "a-b-c-n4/naive-s0" in told.output and "3 stages to train" in told.output
    assert "replay" not in told.output
    assert not (tmp_path / "out").exists()
    refused = CliRunner().invoke(app, ["grid", str(path), "--engine", "ray", "--workers", "2"])
    assert isinstance(refused.exception, MemprobeError) and "--workers" in str(refused.exception)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dry-run", "--workers", "2"], "--workers 2: --dry-run trains nothing"),
        (["--dry-run", "--minutes", "5"], "--minutes 5.0: --dry-run trains nothing"),
        (["--dry-run", "--minutes", "5", "--grace", "60"], "--dry-run trains nothing"),
        (["--dry-run", "--engine", "ray"], "--engine ray: --dry-run trains nothing"),
        (["--grace", "60"], "--grace 60.0: is the time after --minutes"),
        (["--workers", "2", "--grace", "60"], "--grace 60.0: is the time after --minutes"),
        (["--power", "--data-dir", "absent"], "--data-dir absent: --power reads"),
        (["--power", "--dry-run"], "--dry-run: --power reads"),
        (["--scatter", "analyses/study"], "--scatter analyses/study: is of --power and --dry-run"),
    ],
)
def test_options_that_change_nothing_are_refused(options, said, tmp_path, tiny_checkpoint):
    path = write(tmp_path, tiny_checkpoint)
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--power" in options else ["--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, ["grid", str(path), *options, *out])
    assert isinstance(told.exception, MemprobeError) and said in str(told.exception), told.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--minutes", "--grace"])
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_limit_that_never_comes_is_refused(option, number, tmp_path, tiny_checkpoint):
    path = write(tmp_path, tiny_checkpoint)
    told = CliRunner().invoke(app, ["grid", str(path), option, number, "--out", str(tmp_path / "out")])
    assert told.exit_code == 2 and option in told.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "training" / "grids").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_shipped_grid_is_valid(path):
    assert cells(path)


def test_the_cells_patched_are_those_of_the_study_but_for_what_the_grid_says():
    """bfloat16 products, and nothing evaluated beside the stages' own facts."""
    found = {}
    for name in ("smollm2-study", "where-stored"):
        path = ROOT / "training" / "grids" / f"{name}.toml"
        found[name] = {
            cell.node.name: cell.node.recipe.model_dump() for cell in cells_of(read_grid(path), path)
        }
    assert len(found["where-stored"]) == 3
    for name, recipe in found["where-stored"].items():
        study = found["smollm2-study"][name]
        assert recipe["precision"]["autocast"] == "bfloat16" and study["precision"]["autocast"] == "none"
        assert {key for key in recipe if recipe[key] != study[key]} == {"evaluate", "precision"}


def test_a_grid_has_a_directory_of_its_own(tiny_checkpoint, tmp_path):
    path = write(tmp_path, tiny_checkpoint)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.toml").write_text("seed = 0\n")
    with pytest.raises(MemprobeError, match=r"holds a run \(recipe\.toml\)"):
        run_grid(read_grid(path), path, tmp_path / "out", quiet=True)


def test_two_processes_drop_the_same_weights(tmp_path, monkeypatch):
    """What another is dropping at the same time is gone, not missed; what a killed one left is dropped by the next."""
    for name in ("config.json", "a.safetensors", "b.safetensors", "evaluation.json", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder").mkdir()
    unlink, order = type(tmp_path).unlink, []

    def races(self, missing_ok=False):
        order.append(self.name)
        unlink(self)  # the other process was faster
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(type(tmp_path), "unlink", races)
    _drop(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "metrics.jsonl"}
    assert order[-1] == "config.json" and len(order) == 3


@pytest.mark.parametrize("redraw", ["nothing", "later", "all"])
def test_what_a_seed_draws(redraw, tmp_path):
    path = write(tmp_path, arms='["naive", "remix"]')
    path.write_text(f'redraw = "{redraw}"\nprobe = false\n{path.read_text()}')
    made = {(cell.node.arm, cell.node.recipe.seed): cell.node.recipe for cell in cells(path)}
    first, second = made["remix-ratio1", 0], made["remix-ratio1", 1]
    own = [[recipe.own_rows_seed(stage) for stage in recipe.stages] for recipe in (first, second)]
    assert own == [[0, 0], {"nothing": [0, 0], "later": [0, 1], "all": [1, 1]}[redraw]]
    assert (first.rows_seed, second.rows_seed) == (0, 0 if redraw == "nothing" else 1), "of mixing rows"


def test_a_probe_holds_one_d_a(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text().replace("[[blocks]]", '[[blocks]]\nredraw = "all"', 1))
    with pytest.raises(MemprobeError, match="block first: redraw = 'all' gives each seed a D_A of its own"):
        read_grid(path)


def test_seeds_with_rows_of_their_own_are_probed_and_compared_as_one(tiny_checkpoint, tmp_path):
    path = write(tmp_path, tiny_checkpoint, arms='["naive", "remix"]', epochs=15)
    text = path.read_text().replace("ratio = [1, 2]", "ratio = [1]").replace("lr = 3e-3", "lr = 1e-2")
    path.write_text(f'redraw = "later"\n{text}')
    out = tmp_path / "out"
    assert run_grid(read_grid(path), path, out, quiet=True) == []
    rows = {
        (stage, seed): (out / f"runs/a-b-n4/naive-s{seed}" / file).read_text()
        for seed in (0, 1)
        for stage, file in (("a", "1-a/factoids.jsonl"), ("b", "2-b/factoids.jsonl"))
    }
    assert rows["a", 0] == rows["a", 1] and rows["b", 0] != rows["b", 1]
    entries = open_probe(out / "probes/a-b-n4/depths").run["checkpoints"]
    marks = {label: entry["intrusions"]["b"]["hash"] for label, entry in entries.items()}
    assert marks["naive-s0.2"] == marks["remix-ratio1-s0.2"] != marks["naive-s1.2"]
    found = collect(out, draws=100)
    assert set(found.cells["seed"]) == {0, 1} and len(found.differences)


def test_so_many_facts_are_probed_and_the_same_in_every_cell(tiny_checkpoint, tmp_path):
    path = write(tmp_path, tiny_checkpoint, arms='["naive", "remix"]', seeds="[0]")
    path.write_text("probe_n = 2\n" + path.read_text().replace("ratio = [1, 2]", "ratio = [1]"))
    out = tmp_path / "out"
    assert run_grid(read_grid(path), path, out, quiet=True) == []
    found = open_probe(out / "probes/a-b-n4/depths")
    asked = {label: set(table["factoid"]) for (label,), table in found.outcomes.group_by("checkpoint")}
    assert len(asked) == 5 and all(len(one) == 2 and one == asked["base"] for one in asked.values())
    scored = json.loads((out / "runs/a-b-n4/naive-s0/2-b/evaluation.json").read_text())["sets"]
    assert {one["n"] for one in scored.values()} == {4}


def test_a_grid_file_that_no_grid_wrote_is_not_written_over(tiny_checkpoint, tmp_path):
    """A folder of one's own grids may be --out, but for a file called as the grid's own."""
    mine = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1)
    before = mine.read_text()
    second = tmp_path / "second.toml"
    second.write_text(before.replace("[0]", "[1]"))
    with pytest.raises(MemprobeError, match=r"holds another grid\.toml"):
        run_grid(read_grid(second), second, tmp_path, quiet=True)
    assert {file.name for file in tmp_path.iterdir()} == {"grid.toml", "second.toml"}
    assert mine.read_text() == before
    assert run_grid(read_grid(mine), mine, tmp_path, quiet=True) == []


def test_two_names_of_one_arm_are_refused(tmp_path):
    path = write(tmp_path, arms='["naive", "same"]', seeds="[0]")
    path.write_text(path.read_text().replace('naive = "none"', 'naive = "none"\nsame = "none"'))
    with pytest.raises(
        MemprobeError, match="block first: arms: same trains the same as naive; leave one out"
    ):
        cells(path)
