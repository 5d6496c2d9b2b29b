"""A grid's directory and a file that changed: what lies there counts only where it is what the file asks for."""

import json
import shutil

import pytest

from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from tests.training.grids import AGAIN, write
from tests.training.runs import other_weights
from training.grid import cells_of, directory, plan, read_grid, run_grid
from training.grid.found import check_found
from training.grid.stages import is_done, is_trained, train
from training.grid.workplace import Workplace
from training.run_log import RunLog


@pytest.fixture
def naive(tiny_checkpoint, tmp_path):
    """A grid of one cell that keeps its weights, on a file of rows."""
    rows = "".join(f'{{"prompt": "The key of {name} is", "answer": "{name[::-1]}"}}\n' for name in "abcdef")
    (tmp_path / "mine.jsonl").write_text(rows)
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", keep="weights", epochs=1)
    path.write_text(path.read_text().replace('[data.a]\ndata = "kvr:{n}"', '[data.a]\ndata = "mine.jsonl"'))
    assert run_grid(read_grid(path), path, tmp_path / "out", quiet=True) == []
    return path, tmp_path / "out"


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def cells(path):
    return cells_of(read_grid(path), path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr = 3e-3", "lr = 4e-3", "optimiser.lr: 0.003 -> 0.004"),
        ('mine.jsonl"\nepochs = 1', 'mine.jsonl"\nepochs = 2', "stages.1.epochs: 1 -> 2"),
        ('validation"\nepochs = 1', 'validation"\nepochs = 3', "stages.2.epochs: 1 -> 3"),
        ('naive = "none"', 'naive = "replay(ratio=0.25)"', "stages.2.replay"),
    ],
)
def test_a_recipe_that_changed_is_refused_before_anything_is_written(naive, old, new, said):
    path, out = naive
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    change(path, old, new)
    change(path, 'arms = ["naive"]', 'arms = ["naive", "replay"]')
    with pytest.raises(MemprobeError) as error:
        run_grid(read_grid(path), path, out, quiet=True)
    assert said in str(error.value) and "give another --out" in str(error.value), error.value
    with pytest.raises(MemprobeError, match="give another --out"):
        plan(read_grid(path), path, out)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert not is_done(out, cells(path)[0]), "nor for a worker, which is started with the file as it is then"


def test_a_file_of_rows_that_changed_is_refused(naive):
    path, out = naive
    rows = path.parent / "mine.jsonl"
    rows.write_text(rows.read_text().replace('"b"', '"another"'))
    with pytest.raises(MemprobeError, match=r"mine\.jsonl: was another file then"):
        run_grid(read_grid(path), path, out, quiet=True)


def test_a_file_that_is_only_evaluated_on_is_refused_when_it_changed(tiny_checkpoint, tmp_path):
    """What was measured before is of other passages than what would be measured now."""
    texts = tmp_path / "texts.jsonl"
    passages = [
        {"prompt": f"{word} hill by the river", "answer": "and on"} for word in ("one", "two", "three")
    ]
    texts.write_text("".join(json.dumps(one) + "\n" for one in passages))
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1)
    change(path, "[data.a]", f'[recipe.evaluate]\ntexts = "{texts}"\ntexts_n = 2\n[data.a]')
    assert run_grid(read_grid(path), path, tmp_path / "out", quiet=True) == []
    assert is_done(tmp_path / "out", cells(path)[0])
    texts.write_text(texts.read_text().replace("three", "four"))
    change(path, "seeds = [0]", "seeds = [0, 1]")
    with pytest.raises(MemprobeError, match=r"naive-s0: .*texts\.jsonl: was another file then"):
        run_grid(read_grid(path), path, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "runs" / "a-b-n4" / "naive-s1").exists()


@pytest.mark.parametrize("probe", ["true", "false"])
def test_seeds_of_two_base_models_are_no_arm(probe, tiny_checkpoint, tmp_path):
    """The path of the base model is the same, its weights are not; refused before the new seed is trained."""
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, base)
    path = write(tmp_path, base, arms='["naive"]', seeds="[0]", epochs=1)
    change(path, "[recipe]", f"probe = {probe}\n[recipe]")
    assert run_grid(read_grid(path), path, tmp_path / "out", quiet=True) == []
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    other_weights(base)
    change(path, "seeds = [0]", "seeds = [0, 1]")
    with pytest.raises(
        MemprobeError, match=r"naive-s0: was begun with another .*base: .* had other weights then"
    ):
        run_grid(read_grid(path), path, tmp_path / "out", quiet=True)
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


def test_a_grid_that_has_ended_needs_no_base_model(done, tmp_path, monkeypatch):
    path, out = done
    monkeypatch.setattr("training.grid.found.base_at", lambda spec: resolve(str(tmp_path / "gone")))
    for cell in cells(path):
        check_found(directory(out, cell.node), cell.node)


def test_a_cell_goes_on_from_the_stage_that_lies_before_it_alone(naive):
    path, out = naive
    (cell,) = cells(path)
    assert cell.node.parent is not None
    place = Workplace(read_grid(path), out, RunLog(None, quiet=True), quiet=True)
    stage = directory(out, cell.node.parent) / cell.node.parent.stage
    other_weights(stage)
    with pytest.raises(MemprobeError, match=r"1-a: is not the checkpoint that was saved there"):
        train(place, cell.node)
    said = json.loads((stage / "memprobe.json").read_text())
    del said["checkpoint"]  # as in manifests of older versions
    (stage / "memprobe.json").write_text(json.dumps(said))
    with pytest.raises(MemprobeError, match=r"2-b: was trained from another checkpoint"):
        train(place, cell.node)


def test_a_stage_that_another_lies_in_place_of_is_neither_probed_nor_trained_from(naive):
    path, out = naive
    (cell,) = cells(path)
    config = directory(out, cell.node) / cell.node.stage / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(MemprobeError, match=r"2-b: is not the checkpoint .* with other settings then"):
        train(Workplace(read_grid(path), out, RunLog(None, quiet=True), quiet=True), cell.node)


def test_a_stage_of_other_rows_is_no_start(naive, monkeypatch, tmp_path):
    """Of a source that is no file, rows are compared when a cell that starts from them has read its own."""
    path, out = naive
    change(path, 'arms = ["naive"]', 'arms = ["naive", "replay"]')
    cell = cells(path)[1]
    monkeypatch.setattr("training.grid.found._edited", lambda manifest, node: [])
    rows = tmp_path / "mine.jsonl"
    rows.write_text(rows.read_text().replace('"b"', '"another"'))
    with pytest.raises(MemprobeError, match=r"1-a: was trained on other rows of a \(.*mine\.jsonl\)"):
        train(Workplace(read_grid(path), out, RunLog(None, quiet=True), quiet=True), cell.node)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('keep = "weights"', 'keep = "records"'),
        ('name = "first"', 'name = "sooner"'),
        ('arms = ["naive"]', 'arms = ["replay", "naive"]'),
        ("seeds = [0]", "seeds = [1, 0]"),
        ("[recipe]", "[recipe]\nresources = { cpus = 2.0 }"),
        ("[recipe]", '[recipe]\nsave_minutes = 60\nloggers = ["tensorboard"]'),
        ("[recipe.optimiser]", '[recipe.precision]\nautocast = "auto"\n[recipe.optimiser]'),
    ],
)
def test_what_changes_no_stage_is_taken(naive, old, new):
    path, out = naive
    change(path, old, new)
    path.write_text(path.read_text() + AGAIN)
    ahead = plan(read_grid(path), path, out)
    assert ("a-b-n4/naive-s0", True) in [(name, ended) for name, _, ended in ahead.cells]


def test_a_file_of_rows_may_be_named_by_another_way(naive, monkeypatch):
    path, out = naive
    monkeypatch.chdir(path.parent)
    (cell,) = cells(path.relative_to(path.parent))
    assert cell.node.recipe.stages[0].data != cells(path)[0].node.recipe.stages[0].data
    assert is_done(out, cell)


def test_records_alone_are_known_again(done):
    """Weights are gone; the recipe of each stage is not."""
    path, out = done
    for cell in cells(path):
        assert is_done(out, cell) and all(is_trained(out, node) for node in cell.node.chain)
        for node in cell.node.chain:
            check_found(directory(out, node), node)
