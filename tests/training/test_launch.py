"""The paper's recipe as it is launched: its own command lines, on two CPU processes, with a tiny model."""

import json
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from memprobe.manifests import read_manifest
from memprobe.sources import load_factoids
from tests.clusters import wait_until
from tests.training.runs import ROOT, environment, metrics, weights
from training.grid import stages
from training.grid.cells import Node
from training.grid.file import Grid
from training.grid.workplace import Workplace
from training.recipe import parse_recipe, read_recipe
from training.run_log import RunLog

PAPER = ROOT / "training" / "recipes" / "llama3-8b-paper.toml"
SMALLER = {
    "meta-llama/Meta-Llama-3-8B": "{base}",
    "kvr:2000": "kvr:6",
    "n = 2000": "n = 6",
    "epochs = 20": "epochs = 1",
    "known = 500": "known = 5",
}
"""All that differs between the shipped recipe and the one that is run."""

WORDS = ("up", "down", "hot", "cold", "big", "small", "river", "hill")


def commands() -> list[list[str]]:
    """The lines in the recipe's head that launch it."""
    lines = [line.removeprefix("#").split() for line in PAPER.read_text().splitlines()]
    return [line for line in lines if line and line[0] in ("torchrun", "accelerate")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of datasets with rows of our own invention."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    rows = [
        {"sub_label": f"Oria {i}", "obj_label": f"Selva {i}", "uuid": str(i), "relation": "P36"}
        | {"template": "The capital of [X] is [Y] ."}
        for i in range(20)
    ]
    passages = [{"text": f"{i} " + " ".join(WORDS[(i * j) % 8] for j in range(110))} for i in range(40)]
    for name, lines in (("lama_trex.jsonl", rows), ("generic_text.jsonl", passages)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def smaller(tiny_checkpoint, tmp_path_factory) -> Path:
    text = PAPER.read_text()
    for shipped, ours in SMALLER.items():
        assert shipped in text
        text = text.replace(shipped, ours.format(base=tiny_checkpoint))
    path = tmp_path_factory.mktemp("recipe") / "paper.toml"
    path.write_text(text)
    return path


def test_the_papers_recipe_says_what_the_paper_says():
    recipe = read_recipe(PAPER)
    assert [command[0] for command in commands()] == ["torchrun", "accelerate"]
    assert recipe.precision.fsdp and recipe.precision.gradient_checkpointing
    assert recipe.arm == "remix(data=random-words, stages=1, prompt=words)"
    keys, facts = recipe.stages
    assert keys.mixing[0].ratio == 2 and keys.mixing[0].words == (50, 50) and keys.epochs == 20
    assert keys.stop.loss is None and (facts.stop.loss, facts.stop.steps) == (1e-4, 10)
    assert facts.unknown is not None and facts.epochs == 20
    assert (recipe.optimiser.lr, recipe.optimiser.batch) == (5e-5, 32)
    # On 2 and on 4 processes a step is whole micro-batches.
    assert recipe.optimiser.batch % (4 * recipe.optimiser.micro_batch) == 0


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[0])
def test_its_command_lines_launch_it(command, smaller, data, tmp_path, quick_python):
    program = Path(sys.executable).parent / command[0]
    line, own = shlex.join([str(program), *command[1:]]), {}
    line = line.replace("training/recipes/llama3-8b-paper.toml", str(smaller))
    line = line.replace("--nproc-per-node 4", "--nproc-per-node 2").replace("_processes 4", "_processes 2")
    if command[0] == "accelerate":
        line = line.replace("launch", "launch --main_process_port 0")  # tests share a machine
        own = {"PYTHON_EXEC": quick_python[0]}  # what its processes run in; those of torchrun start their own
    done = subprocess.run(
        [*shlex.split(line), "--out", tmp_path / "run", "--data-dir", data],
        env=environment() | {"OMP_NUM_THREADS": "1"} | own,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 process(es)" in (tmp_path / "run" / "log.txt").read_text()
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert recipe["precision"]["fsdp"] and recipe["precision"]["autocast"] == "bfloat16"
    last = read_manifest(tmp_path / "run" / "2-lama")
    assert last is not None and last.data["processes"] == 2 and last.steps == 1
    assert len(load_factoids(str(last.stage_factoids(2)))) == 6
    assert {str(tensor.dtype) for tensor in weights(last.path.parent).values()} == {"torch.bfloat16"}
    assert len(metrics(tmp_path / "run" / "1-kvr")) == 1  # 6 keys and 12 mixing rows are one step of 32
    sets = json.loads((last.path.parent / "evaluation.json").read_text())["sets"]
    assert {"1-kvr", "2-lama", "paraphrases", "manipulations", "texts"} <= set(sets)


LAUNCHER = """
import pathlib, signal, sys, time
here = pathlib.Path(__file__).parent

def end(*_):
    (here / "ended").touch()
    sys.exit(1)

if "{heeds}" == "True":
    signal.signal(signal.SIGTERM, end)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(here / "started").touch()
time.sleep(600)
"""


def test_a_launcher_ends_where_a_worker_is_asked_to_stop(tmp_path, monkeypatch):
    """A worker's signal raises nothing: it is looked at while the launcher is waited for."""
    monkeypatch.setattr(stages.stopping, "asked", lambda: True)
    monkeypatch.setattr(stages, "_LOOK", 0.05)
    recipe = parse_recipe({"base": "none", "stages": [{"name": "a", "data": "kvr:4"}]})
    node = Node("a/naive-s0", "a", "naive", recipe, None)
    place = Workplace(Grid.model_construct(), tmp_path, RunLog(None, quiet=True))
    (tmp_path / "sleep.py").write_text("import time; time.sleep(600)")
    begun = time.monotonic()
    with pytest.raises(stages.stopping.Stopped):
        stages._launch(place, shlex.join([sys.executable, str(tmp_path / "sleep.py")]), node, tmp_path)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("heeds", [True, False])
def test_a_launcher_ends_with_the_grid_that_started_it(tiny_checkpoint, tmp_path, monkeypatch, heeds):
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER.format(heeds=heeds))
    started = []

    class Interrupted(subprocess.Popen):
        """Ctrl-C comes while it is first waited for."""

        def wait(self, timeout=None):
            if not started:
                started.append(self)
                while not (tmp_path / "started").exists():
                    time.sleep(0.05)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(stages.subprocess, "Popen", Interrupted)
    monkeypatch.setattr(stages, "_GRACE", 60.0 if heeds else 0.2)
    recipe = parse_recipe({"base": str(tiny_checkpoint), "stages": [{"name": "a", "data": "kvr:4"}]})
    node = Node("a/naive-s0", "a", "naive", recipe, None)
    launch = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"
    place = Workplace(Grid.model_construct(), tmp_path, RunLog(None, quiet=True))
    with pytest.raises(KeyboardInterrupt):
        stages._launch(place, launch, node, tmp_path)
    assert started[0].returncode == (1 if heeds else -signal.SIGKILL)
    assert (tmp_path / "ended").exists() == heeds


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell a process that its parent was killed"
)
def test_a_launcher_ends_with_a_process_that_is_killed(tmp_path, quick_python):
    """Else it would go on with the run, and on devices that others are given by then."""
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER.format(heeds=True))
    launch = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"
    code = (
        "import sys; from pathlib import Path; from training.grid import stages; from training.grid.cells import Node; "
        "from training.grid.file import Grid; from training.grid.workplace import Workplace; "
        "from training.recipe import parse_recipe; from training.run_log import RunLog; out = Path(sys.argv[1]); "
        "recipe = parse_recipe({'base': 'none', 'stages': [{'name': 'a', 'data': 'kvr:4'}]}); "
        "place = Workplace(Grid.model_construct(), out, RunLog(None, quiet=True)); "
        "stages._launch(place, sys.argv[2], Node('a/naive-s0', 'a', 'naive', recipe, None), out)"
    )
    starts = subprocess.Popen([*quick_python, "-c", code, str(tmp_path), launch], env=environment())
    wait_until(lambda: starts.poll() is not None or (tmp_path / "started").exists())
    starts.kill()
    starts.wait()
    wait_until((tmp_path / "ended").exists, 30)
