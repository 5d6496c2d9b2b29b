"""Several processes at one grid: the same results, and nothing lost when one of them, or all of them, end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from memprobe.errors import MemprobeError
from tests.training.grids import write
from training.grid import read_grid, run_grid, run_workers, workers
from training.grid.crew import Crew
from training.grid.workers import TRIES
from training.run_log import RunLog
from training.study.collect import collect

ROOT = Path(__file__).parents[2]
COMMAND = workers._command

# What a worker does when its cell is trained: the first one that comes to a cell of the arm dies, as often as told.
DIES = """
import os, pathlib, signal
def after(run):
    if "replay" not in run.name:
        return
    here = pathlib.Path(__file__).parent
    deaths = len(list(here.glob("death-*")))
    if deaths < {times}:
        (here / f"death-{{deaths}}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _importable(tmp_path, monkeypatch, quick_python):
    monkeypatch.setattr(workers, "_command", lambda *given: [*quick_python, *COMMAND(*given)[1:]])
    monkeypatch.setattr("training.grid.workers._PAUSE", 0.1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(tmp_path)


def grid_that_dies(tmp_path, tiny_checkpoint, times):
    path = write(tmp_path, tiny_checkpoint, seeds="[0]", arms='["naive", "replay"]', epochs=1)
    (tmp_path / f"dies_{times}.py").write_text(DIES.format(times=times))
    path.write_text(f'after = "dies_{times}:after"\n{path.read_text()}')
    return path


def ended(out):
    return {str(path.parent.relative_to(out / "runs")) for path in out.rglob("cell.json")}


def test_three_workers_find_what_one_process_finds(done, tiny_checkpoint, tmp_path):
    _, alone = done
    path = write(tmp_path, tiny_checkpoint, seeds="[0]", epochs=40)
    out = tmp_path / "out"
    assert run_workers(read_grid(path), path, out, workers=3, quiet=True) == []
    assert ended(out) == ended(alone)
    log = (out / "log.txt").read_text()
    assert "4 cells, 0 done before; 3 workers" in log and "4 of 4 cells are done" in log
    assert len({Crew(out, number).log.exists() for number in (1, 2, 3)}) == 1
    one, three = collect(alone, draws=100), collect(out, draws=100)
    for name in ("stages", "placement", "arms", "differences", "kept"):
        first, second = (
            getattr(found, name).drop("seconds", strict=False).rows_by_key(["setup"])
            for found in (one, three)
        )
        assert {key: sorted(map(repr, rows)) for key, rows in first.items()} == {
            key: sorted(map(repr, rows)) for key, rows in second.items()
        }, name


def test_workers_train_a_stage_again_once_for_all_that_start_from_it(tiny_checkpoint, tmp_path):
    path, out = write(tmp_path, tiny_checkpoint, seeds="[0]", arms='["naive"]', epochs=2), tmp_path / "out"
    assert run_grid(read_grid(path), path, out, quiet=True) == []
    text = path.read_text().replace('arms = ["naive"]', 'arms = ["naive", "replay", "more", "most"]')
    path.write_text(text.replace("[arms]", '[arms]\nmore = "replay(ratio=0.75)"\nmost = "replay(ratio=1)"'))
    assert run_workers(read_grid(path), path, out, workers=2, quiet=True) == []
    assert ended(out) == {f"a-b-n4/{arm}-s0" for arm in ("naive", "replay", "more", "most")}
    assert (out / "log.txt").read_text().count("is trained again") == 1
    assert not list(out.rglob("*.safetensors")) and not list(out.glob(".again/*/*"))


def test_a_worker_that_dies_is_named_and_its_cell_tried_again(tiny_checkpoint, tmp_path):
    path = grid_that_dies(tmp_path, tiny_checkpoint, times=1)
    out = tmp_path / "out"
    assert run_workers(read_grid(path), path, out, workers=2, quiet=True) == []
    assert ended(out) == {"a-b-n4/naive-s0", "a-b-n4/replay-s0"}
    log = (out / "log.txt").read_text()
    assert log.count("died (signal SIGKILL") == 1 and "at a-b-n4/replay-s0; another takes its place" in log


def test_a_worker_that_was_killed_comes_back_when_there_is_memory(tmp_path, monkeypatch):
    """At once, it would be as short as it was, unless something else had taken it."""
    free = [10 << 30]
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: SimpleNamespace(available=free[0]))

    def coming(code):
        crew = Crew(tmp_path)
        crew.start()
        for number in (1, 2, 3):
            Crew(tmp_path, number).at(f"cell-{number}")
        crowd = workers._Crowd(crew, [], [], RunLog(tmp_path / "log.txt", quiet=True), grace=1)
        crowd.running = [workers._Worker(number, None) for number in (2, 3)]
        crowd._died(workers._Worker(1, None, held=9 << 30), code)
        (one,) = crowd.coming
        return crowd, lambda: crowd._may_come(one, one.due)

    killed = -signal.SIGKILL
    assert not coming(killed)[1]()
    _, may_come = coming(killed)
    Crew(tmp_path, 3).at("cell-4")
    assert may_come()
    crowd, may_come = coming(killed)
    crowd.running.pop()
    assert may_come()
    assert coming(1)[1]() and coming(-signal.SIGSEGV)[1]()
    log = (tmp_path / "log.txt").read_text()
    assert log.count("another takes its place when a cell beside it ends or memory is free") == 3
    free[0] = 14 << 30
    assert coming(killed)[1]()


def test_of_a_worker_it_is_known_how_much_memory_it_held():
    code = "some = b'x' * (200 << 20); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    worker = workers._Worker(1, process)
    process.stdout.readline()
    worker.look()
    process.communicate(b"\n")
    worker.look()
    assert 200 << 20 <= worker.held < 300 << 20


def test_what_a_worker_launched_ends_with_it(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    worker = workers._Worker(1, subprocess.Popen([sys.executable, script], start_new_session=True))
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.05)
    child = int((tmp_path / "child").read_text())
    worker.end()

    def runs(pid):
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    until = time.monotonic() + 30
    while runs(child):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_one_worker_is_watched_too(tiny_checkpoint, tmp_path, quick_python):
    path, out = grid_that_dies(tmp_path, tiny_checkpoint, times=1), tmp_path / "out"
    command = [*quick_python, "-m", "training", "grid", str(path), "--out", str(out)]
    assert subprocess.run([*command, "--workers", "1"], cwd=ROOT, capture_output=True).returncode == 0
    assert "another takes its place" in (out / "log.txt").read_text()
    assert ended(out) == {"a-b-n4/naive-s0", "a-b-n4/replay-s0"}


def test_a_cell_at_which_workers_die_is_left_out(tiny_checkpoint, tmp_path):
    path = grid_that_dies(tmp_path, tiny_checkpoint, times=9)
    out = tmp_path / "out"
    (why,) = run_workers(read_grid(path), path, out, workers=1, quiet=True)
    assert why.startswith("a-b-n4/replay-s0: worker 1 died (signal SIGKILL")
    assert ended(out) == {"a-b-n4/naive-s0"} and (out / "log.txt").read_text().count("died") == TRIES


def test_whatever_a_cell_raises_in_a_worker_stops_no_other(tiny_checkpoint, tmp_path):
    """What it raised may have left the process unfit to go on, so another worker tries the cell."""
    path = write(tmp_path, tiny_checkpoint, seeds="[0]", arms='["replay", "naive"]', epochs=1)
    body = "if 'replay' in run.name: raise ValueError('a broken hook')"
    (tmp_path / "raises.py").write_text(f"def after(run):\n    {body}\n")
    path.write_text(f'after = "raises:after"\n{path.read_text()}')
    out = tmp_path / "out"
    (why,) = run_workers(read_grid(path), path, out, workers=1, quiet=True)
    assert why.startswith("a-b-n4/replay-s0: worker 1 died (exit code ") and "a broken hook" in why
    assert ended(out) == {"a-b-n4/naive-s0"} and "in after" in (out / "log.txt").read_text()


def test_workers_that_do_not_start_end_the_command(tiny_checkpoint, tmp_path, monkeypatch):
    path = write(tmp_path, tiny_checkpoint, seeds="[0]", arms='["naive"]')
    monkeypatch.setattr("training.grid.workers._command", lambda *_: ["false"])
    with pytest.raises(MemprobeError, match=r"worker \d died \(exit code 1\) before it came to a cell"):
        run_workers(read_grid(path), path, tmp_path / "out", workers=2, quiet=True)


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_all_with_their_states_and_the_command_goes_on(
    tiny_checkpoint, tmp_path, quick_python, sent, code
):
    path = write(tmp_path, tiny_checkpoint, seeds="[0, 1]", arms='["naive"]', epochs=3000)
    out = tmp_path / "out"
    command = [*quick_python, "-m", "training", "grid", str(path), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = lambda: list(out.rglob(".state/*/metrics.jsonl"))  # noqa: E731
    wait_for(lambda: len(metrics()) == 2 and all(path.stat().st_size for path in metrics()))
    process.send_signal(sent)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert "the same command goes on" in said and "Traceback" not in said
    states = list(out.rglob(".state/*/checkpoint-*/complete"))
    assert len(states) == 2 and all(json.loads(state.read_text())["step"] > 0 for state in states)
    steps = [json.loads(state.read_text())["step"] for state in states]
    path.write_text(path.read_text().replace("epochs = 3000", f"epochs = {max(steps) + 2}"))
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode != 0 and "begun with another recipe" in again.stderr, "states are of one recipe"


def test_after_the_time_limit_no_cell_begins_and_states_are_kept(tiny_checkpoint, tmp_path, monkeypatch):
    path = write(tmp_path, tiny_checkpoint, seeds="[0, 1]", arms='["naive"]', epochs=3000)
    out = tmp_path / "out"
    for number in (1, 2):
        assert run_workers(read_grid(path), path, out, workers=number, minutes=0, grace=60, quiet=True) == []
    log = out / "log.txt"
    assert log.read_text().count("0 minutes are over") == 2 and "2 are left" in log.read_text()
    assert not (out / "runs").exists(), "not even a worker was started"
    # An hour goes by when the first cell has come to its training.
    clock = time.monotonic
    trains = lambda: any(file.stat().st_size for file in out.rglob(".state/*/metrics.jsonl"))  # noqa: E731
    monkeypatch.setattr("training.grid.workers.time.monotonic", lambda: clock() + (3600 if trains() else 0))
    run_workers(read_grid(path), path, out, workers=1, minutes=50, grace=60, quiet=True)
    assert "time is up" in log.read_text() and "its state is kept" in log.read_text()
    (state,) = out.rglob("checkpoint-*/complete")
    assert json.loads(state.read_text())["step"] > 0 and log.read_text().count("a-n4/naive") == 0
