"""A grid on a Ray cluster of several nodes gives what one process gives, whatever is lost on the way."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from memprobe.cluster import Engine
from memprobe.errors import Interrupted, MemprobeError
from tests.clusters import SMALL, at_work, clients_of, cluster_of, files_of, wait_until
from tests.training.grids import AGAIN, write
from tests.training.runs import ROOT
from training.__main__ import app
from training.grid import cells_of, on_ray, read_grid, run_grid, run_on_ray
from training.grid.stages import directory
from training.run_log import RunLog

BREAKS = """
from pathlib import Path
from memprobe.errors import MemprobeError

def look(run):
    # Every try leaves a mark; the naive cell breaks as long as the file "broken" stands beside the grid.
    beside = Path(__file__).parent
    with (beside / run.name).open("a") as file:
        file.write("x")
    if run.name.startswith("naive") and (beside / "broken").exists():
        raise MemprobeError("the disk is full")
"""


@pytest.fixture(scope="module")
def hooks(tmp_path_factory):
    """A folder that workers find modules in: they look where they did when they began."""
    folder = tmp_path_factory.mktemp("hooks")
    (folder / "breaks.py").write_text(BREAKS)
    return folder


@pytest.fixture(scope="module")
def cluster(hooks, forks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{hooks}:{ROOT}")
        with cluster_of(2, forks) as made:
            yield made


@pytest.fixture(scope="module")
def here(tiny_checkpoint, tmp_path_factory):
    """The grid file, and what one process leaves."""
    folder = tmp_path_factory.mktemp("grid")
    path = write(folder, tiny_checkpoint, arms='["naive", "replay"]', seeds="[0]", epochs=2, keep="weights")
    text = path.read_text().replace("[recipe.optimiser]", "[recipe.resources]\ncpus = 1\n[recipe.optimiser]")
    path.write_text(text)
    assert run_grid(read_grid(path), path, folder / "out", quiet=True) == []
    return path, left_in(folder / "out")


def left_in(out: Path) -> dict[str, object]:
    """What a grid leaves, but for seconds and for logs that tell of them."""
    found: dict[str, object] = {}
    for name, content in files_of(out).items():
        if name.rpartition("/")[2] in ("log.txt", "metrics.jsonl", ".lock") or name.startswith("."):
            continue
        content = content.replace(str(out).encode(), b"OUT")  # specs name the folder
        found[name] = without_seconds(json.loads(content)) if name.endswith(".json") else content
    return found


def without_seconds(value):
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if "second" not in key and key != "commit"}
        return {key: without_seconds(one) for key, one in kept.items()}
    return [without_seconds(one) for one in value] if isinstance(value, list) else value


def test_a_grid_on_a_cluster_that_loses_a_node(cluster, here, tmp_path, monkeypatch):
    path, wanted = here
    out = tmp_path / "out"
    node = list(cluster.worker_nodes)[-1]
    first_cells = on_ray._Tasks._with_base

    def lose():
        wait_until(lambda: list(out.glob("runs/*/*/*/memprobe.json")), 240)
        cluster.remove_node(node, allow_graceful=False)

    def begins(self, left):  # just before the tasks are handed out
        threads.append(threading.Thread(target=lose))
        threads[0].start()
        return first_cells(self, left)

    threads = []
    monkeypatch.setattr(on_ray._Tasks, "_with_base", begins)
    try:
        assert run_on_ray(read_grid(path), path, out, engine=Engine(), quiet=True) == []
    finally:
        threads[0].join()
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    assert left_in(out) == wanted


def test_a_killed_driver_outside_goes_on(cluster, here, tmp_path, quick_python):
    path, wanted = here
    out = tmp_path / "out"
    command = [
        *quick_python,
        "-m",
        "training",
        "grid",
        str(path),
        "--out",
        str(out),
        "--engine",
        cluster.outside,
    ]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: driver.poll() is not None or list(out.glob("runs/*/*/1-a/memprobe.json")), 300)
    finally:
        driver.send_signal(signal.SIGKILL)
        said = driver.communicate()[1]
    assert driver.returncode == -signal.SIGKILL, said.decode()[-2000:]
    wait_until(lambda: not clients_of(cluster))  # and with that process its tasks
    assert run_on_ray(read_grid(path), path, out, engine=Engine(), quiet=True) == []
    assert left_in(out) == wanted


def test_nodes_that_share_a_storage_alone(cluster, here, tmp_path):
    path, wanted = here
    out, storage = tmp_path / "out", tmp_path / "storage"
    assert (
        run_on_ray(read_grid(path), path, out, engine=Engine(storage=f"file://{storage}"), quiet=True) == []
    )
    assert left_in(out) == wanted
    left = {file.name for file in storage.rglob("*")}
    assert "model.safetensors" in left, "a cell that is added later goes on from it"
    assert not left & {".state", ".lock"} and not any(name.endswith(".half") for name in left)


def test_a_storage_whose_directory_is_gone(cluster, here, tmp_path):
    """It holds every stage, and said of every probe that it was there."""
    path, wanted = here
    engine = Engine(storage=str(tmp_path / "storage"))
    for out in (tmp_path / "gone", tmp_path / "out"):
        assert run_on_ray(read_grid(path), path, out, engine=engine, quiet=True) == []
        found = left_in(out)
        assert found.keys() == wanted.keys() and found == wanted
        shutil.rmtree(out)


def test_a_cell_that_ends_without_all_that_is_asked_is_named(cluster, here, tmp_path, monkeypatch):
    path, _ = here
    monkeypatch.setattr(on_ray, "_call", without_probe)
    broken = run_on_ray(read_grid(path), path, tmp_path / "out", engine=Engine(), quiet=True)
    cells = ["a-b-n4/naive-s0: ended without its probe", "a-b-n4/replay-s0: ended without its probe"]
    assert sorted(broken) == cells


def without_probe(work, method, about, *arguments):
    """In the place of a task's body: trains and probes nothing of a cell."""
    stage = work.stage if method == "stage" else work.ask
    return stage(about, None, False) if method == "stage" else stage(about)


def test_a_base_model_that_cannot_be_probed_is_one_line(cluster, here, tmp_path, monkeypatch):
    path, _ = here
    monkeypatch.setattr(on_ray, "_call", without_base)
    broken = run_on_ray(read_grid(path), path, tmp_path / "out", engine=Engine(), quiet=True)
    assert broken == [
        "a-b-n4/naive-s0: failed 3 times: the first cell breaks",
        "a-b-n4: the base model is not probed: its file is gone",
    ]


def without_base(work, method, about, *arguments):
    """In the place of a task's body: the cell that probes the base model breaks, and so does that probe alone."""
    if method == "stage" and arguments[1]:
        raise MemprobeError("the first cell breaks")
    if method == "base":
        raise MemprobeError("its file is gone")
    return getattr(work, method)(about, *arguments)


def test_a_stage_that_no_node_can_hold_is_said(cluster, here, tmp_path):
    import ray

    path = tmp_path / "grid.toml"
    path.write_text(here[0].read_text().replace("cpus = 1", "cpus = 1\ngpus = 4"))
    grid, said = read_grid(path), []
    work = on_ray._Work(grid, path, tmp_path, None, str(tmp_path))
    report = SimpleNamespace(say=said.append)
    tasks = on_ray._Tasks(ray, Engine(), work, cells_of(grid, path), report)
    for cell in tasks.cells[:2]:
        tasks._task(cell.node, "stage", "a stage")
    assert said == [
        f"{tasks.cells[0].node.name}: no node of the cluster has GPU 4, CPU 1 (at most GPU 0, CPU 1): "
        "waiting until one joins it"
    ]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_finished_grid_takes_another_arm(cluster, here, tmp_path, elsewhere):
    """The stage that it starts from, without weights by then, is a task before it."""
    path, wanted = here
    grid, out = read_grid(path), tmp_path / "out"
    engine = Engine(storage=str(tmp_path / "storage") if elsewhere else None)
    (tmp_path / "one.toml").write_text(
        path.read_text().replace('["naive", "replay"]', '["naive"]').replace('"weights"', '"records"')
    )
    one = tmp_path / "one.toml"
    assert run_on_ray(read_grid(one), one, out, engine=engine, quiet=True) == []
    assert list(out.rglob("evaluation.json")) and not list(tmp_path.rglob("*.safetensors"))
    assert run_on_ray(grid, path, out, engine=engine, quiet=True) == []
    stage = "runs/a-b-n4/replay-s0/2-b"
    found = left_in(out)
    for name in ("evaluation.json", "memprobe.json", "model.safetensors"):
        assert found[f"{stage}/{name}"] == wanted[f"{stage}/{name}"]


def test_one_block_leaves_the_others(cluster, here, tmp_path):
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(here[0].read_text().replace('"weights"', '"records"') + AGAIN.replace("again", "later"))
    assert run_on_ray(read_grid(path), path, out, engine=Engine(), blocks=["later"], quiet=True) == []
    assert {file.parent.parent.name for file in out.glob("runs/*/*/cell.json")} == {"a-b-c-n4"}
    kept = {file.parent.name for file in (out / "runs").rglob("*.safetensors")}
    assert kept == {"1-a", "2-b"}, "cells of the other block start from them"


def assigned(work, method):
    """In the place of a task's body: what it was given, and what a process that it starts sees."""
    import ray

    seen = subprocess.run(
        [sys.executable, "-c", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ray.get_runtime_context().get_assigned_resources(), seen.stdout.strip()


def test_a_stage_takes_what_its_recipe_names(cluster, tmp_path, monkeypatch):
    """GPUs that a node only says it has; processes that ``launch`` starts see those of their task."""
    import ray

    cases = [
        ("gpus = 2\ncpus = 0.5\nmemory = '64MiB'", {"GPU": 2.0, "CPU": 0.5, "memory": 64.0 * 2**20}, 2),
        ("cpus = 1", {"GPU": 1.0, "CPU": 1.0}, 1),
        ("gpus = 0", {"CPU": 1.0}, 0),
    ]
    monkeypatch.setattr(on_ray, "_call", assigned)
    node = cluster.add_node(num_gpus=3, **SMALL | {"num_cpus": 2})
    refs = []
    try:
        for number, (asked, _, _) in enumerate(cases):
            folder = tmp_path / str(number)
            folder.mkdir()
            path = write(folder, arms='["naive"]', seeds="[0]")
            text = path.read_text()
            path.write_text(
                text.replace("[recipe.optimiser]", f"[recipe.resources]\n{asked}\n[recipe.optimiser]")
            )
            grid = read_grid(path)
            work = on_ray._Work(grid, path, tmp_path, None, str(tmp_path))
            tasks = on_ray._Tasks(ray, Engine(), work, cells_of(grid, path), RunLog(None, quiet=True))
            task = tasks._task(tasks.cells[0].node, "stage", "a stage")
            refs.append(task.remote(tasks.work_ref, "stage"))
        given = ray.get(refs)
    finally:
        cluster.remove_node(node)
    for (found, seen), (_, wanted, visible) in zip(given, cases, strict=True):
        assert found == wanted
        assert len([one for one in seen.split(",") if one.isdigit()]) == visible


def test_a_stage_that_fails_three_times_is_named_and_the_others_finish(
    cluster, hooks, here, tmp_path, monkeypatch
):
    path, wanted = here
    (hooks / "broken").write_text("")
    grid = read_grid(path).model_copy(update={"after": "breaks:look"})
    monkeypatch.syspath_prepend(hooks)
    out = tmp_path / "out"
    broken = run_on_ray(grid, path, out, engine=Engine(), quiet=True)
    assert broken == ["a-b-n4/naive-s0: failed 3 times: the disk is full"]
    assert (hooks / "naive-s0").read_text() == "xxx" and (hooks / "replay-s0").read_text() == "x"
    (hooks / "broken").unlink()
    assert run_on_ray(grid, path, out, engine=Engine(), quiet=True) == []
    found = left_in(out)
    for cell in (name for name in found if name.endswith("cell.json")):
        assert found[cell].pop("after") == "breaks:look" and wanted[cell]["after"] is None
        found[cell]["after"] = None
    assert found == wanted


def test_processes_of_a_launch_shard_a_model_within_one_task(
    cluster, tiny_checkpoint, tmp_path, quick_python
):
    """FSDP of two processes in a task of one core: what they train is what one process trains."""
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1, keep="weights")
    text = path.read_text().replace("micro_batch = 4", "micro_batch = 2")
    path.write_text(text)
    alone = tmp_path / "alone"
    assert run_grid(read_grid(path), path, alone, quiet=True) == []
    python = shlex.join(quick_python)
    launch = f"{python} -m torch.distributed.run --standalone --nproc-per-node 2 --no-python {python}"
    sharded = text.replace("[recipe.optimiser]", "[recipe.precision]\nfsdp = true\n[recipe.optimiser]")
    path.write_text(f"launch = '{launch}'\n{sharded}")
    out = tmp_path / "out"
    assert run_on_ray(read_grid(path), path, out, engine=Engine(), quiet=True) == []
    (cell,) = cells_of(read_grid(path), path)
    stage = directory(out, cell.node) / "2-b"
    told = json.loads((stage / "memprobe.json").read_text())
    assert told["processes"] == 2 and told["recipe"]["precision"]["fsdp"]
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (stage, directory(alone, cell.node) / "2-b")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-4, rtol=0)


def test_the_command_of_the_manual_and_ctrl_c(cluster, here, tmp_path, monkeypatch):
    path, wanted = here
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("python -m training grid "))
    words = shlex.split(line)[3:]
    monkeypatch.chdir(tmp_path)
    named = Path(words[1])
    named.parent.mkdir(parents=True)
    named.write_text(path.read_text())
    (tmp_path / "data").mkdir()
    out = Path(words[words.index("--out") + 1]).absolute()
    sent = []

    def interrupt(*given):
        # While a later stage is at work: between two stages nothing may be.
        if not sent and list(out.glob("runs/*/*/1-a/memprobe.json")) and at_work():
            sent.append(True)
            raise KeyboardInterrupt  # as Ctrl-C does
        return some_done(*given)

    some_done = on_ray.some_done
    monkeypatch.setattr(on_ray, "some_done", interrupt)
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, Interrupted) and sent, ended.output
    assert f"is kept in {words[words.index('--out') + 1]}, the same command goes on" in str(ended.exception)
    wait_until(lambda: not at_work())
    assert not list(out.glob("runs/*/*/cell.json"))
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    assert left_in(out) == wanted
    logs = [log.read_text() for log in out.glob("runs/*/*/log.txt")]
    # What stages ask, tasks before them have asked: no two stages ask beside each other.
    assert logs and not any("evaluating the base model" in log for log in logs)


def test_stages_are_asked_apart_unless_what_differs_is_known_not_to_matter(tmp_path):
    """A stage of shuffled answers is asked of the base model itself: it is evaluated on other rows."""
    path = write(tmp_path, arms='["naive", "replay"]', seeds="[0, 1]")
    text = path.read_text()

    def questions(old="", new=""):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return {on_ray._question(cell.node) for cell in cells_of(read_grid(path), path)}

    plain = questions()
    assert len(plain) == 1, "arms and seeds ask alike"
    for same in ("lr = 4e-3", "lr = 3e-3\nclip = 2.0"):
        assert questions("lr = 3e-3", same) == plain
    assert questions("epochs = 3", 'epochs = 4\ntrain = "blocks=1"\nstop = { exact_match = true }') == plain
    for other in ('answers = "shuffled"', 'unknown = { template = "plain" }', "data_seed = 5"):
        assert questions("epochs = 3", f"epochs = 3\n{other}").isdisjoint(plain), other
    assert questions("[recipe]", '[recipe]\ntemplate = "plain"').isdisjoint(plain)
