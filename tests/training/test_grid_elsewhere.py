"""What a task on a node brings from a storage and leaves there, whatever its end."""

import json

import pytest

from memprobe.errors import MemprobeError
from memprobe.manifests import MANIFEST
from memprobe.runs import MATRIX, STATE
from tests.training.grids import write
from training.grid import cells_of, read_grid
from training.grid.elsewhere import Home, on_node
from training.grid.stages import directory
from training.states import COMPLETE, newest_state


@pytest.fixture
def cells(tmp_path):
    path = write(tmp_path, arms='["naive", "replay"]', seeds="[0]")
    return cells_of(read_grid(path), path)


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def trained(out, node, *more):
    """As a stage is left that was trained."""
    folder = directory(out, node)
    put(
        folder,
        MATRIX,
        "log.txt",
        *(f"{node.stage}/{name}" for name in (MANIFEST, "config.json", "model.safetensors")),
    )
    put(folder, *more)


def test_another_try_goes_on_from_the_state_that_a_node_left(cells, tmp_path):
    storage, out = str(tmp_path / "storage"), tmp_path / "out"
    node = cells[0].node
    first = node.chain[0]
    with on_node(storage, first, out) as here:
        trained(here, first)
    state = f"{STATE}/{node.stage}/checkpoint-4"
    with pytest.raises(MemprobeError), on_node(storage, node, out) as here:
        assert (directory(here, first) / first.stage / "model.safetensors").exists()
        put(
            directory(here, node),
            f"{state}/weights",
            f"{state}/{COMPLETE}",
            f"{node.stage}/model.safetensors",
        )
        raise MemprobeError("lost")
    with on_node(storage, node, out) as here:
        folder = directory(here, node)
        assert newest_state(folder / STATE / node.stage) == folder / state
        assert not (folder / node.stage).exists(), "a stage without its manifest was not whole"
    assert not here.exists() and not out.exists()


def test_a_state_that_is_gone_here_goes_there(cells, tmp_path):
    storage, out, node = str(tmp_path / "storage"), tmp_path / "out", cells[0].node.chain[0]
    with on_node(storage, node, out) as here:
        put(directory(here, node), f"{STATE}/x/checkpoint-4/{COMPLETE}")
    with on_node(storage, node, out) as here:
        (directory(here, node) / f"{STATE}/x/checkpoint-4/{COMPLETE}").unlink()
        trained(here, node)
    with on_node(storage, node, out) as here:
        assert not (directory(here, node) / STATE).exists() and (directory(here, node) / MATRIX).exists()


def test_a_storage_says_of_probes_what_is_here(cells, tmp_path):
    """Of a directory that is gone, it would say that they need not be probed again."""
    home = Home(str(tmp_path / "storage"), tmp_path / "out")
    setup = cells[0].node.setup
    run = f"probes/{setup}/depths/run.json"
    put(tmp_path / "storage", run)
    home.begin(cells)
    assert not home.mirror.listed("probes")
    put(tmp_path / "out", run)
    home.begin(cells)
    assert home.mirror.listed("probes") == [run]


@pytest.mark.parametrize("keep", ["records", "weights"])
def test_what_comes_home_and_what_is_dropped(cells, tmp_path, keep):
    storage, out = str(tmp_path / "storage"), tmp_path / "out"
    cells = [type(cell)(**{**vars(cell), "keep": keep}) for cell in cells]
    home = Home(storage, out)
    cell, other = cells
    for node in cell.node.chain:
        with on_node(storage, node, out) as here:
            trained(here, node, "along/step-3/model.safetensors", f"{STATE}/x/weights")
    assert not home.is_ready(cell.node.chain[0]), "nothing is known of it here"
    home.take(cell, cells)
    last, first = cell.node, cell.node.chain[0]
    kept = {"naive": keep == "weights"}
    stage = directory(out, last) / last.stage
    assert (stage / MANIFEST).exists() and (stage / "model.safetensors").exists() == kept["naive"]
    assert (directory(out, last) / "along/step-3/model.safetensors").exists()
    assert not list(out.rglob(STATE))
    link = directory(out, last) / first.stage
    assert link.is_symlink() and (link / MANIFEST).exists()
    put(directory(out, last), "cell.json")
    (directory(out, last) / "cell.json").write_text(json.dumps({"learned": True, "stages": []}))
    home.drop(cells)
    there = home.mirror.listed("runs")
    weights = {path for path in there if path.endswith("model.safetensors") and "along" not in path}
    # The first stage's are needed by the other cell as yet; the last one's by nobody, where they are not kept.
    shared = f"runs/{first.name}/{first.stage}/model.safetensors"
    assert (shared in weights) == (keep == "weights" or first in other.node.chain)
    assert (f"runs/{last.name}/{last.stage}/model.safetensors" in weights) == (keep == "weights")
    assert f"runs/{last.name}/{last.stage}/{MANIFEST}" in there
