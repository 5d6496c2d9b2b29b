"""What a notebook meets: every public name is what it says, whatever was imported before it."""

import itertools
import random
import subprocess
import sys
from types import ModuleType

import memprobe

KINDS = """
import importlib, sys, types
import memprobe
for name in sys.argv[1].split(","):
    if name.startswith("import "):
        importlib.import_module(name.removeprefix("import "))
    else:
        print(name, isinstance(getattr(memprobe, name), types.ModuleType))
"""


def kinds(names: list[str]) -> list[tuple[str, str]]:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KINDS, ",".join(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(line.split()) for line in run.stdout.splitlines()]


def test_every_name_stays_what_it_is_in_any_order_and_twice():
    modules = {name for name in memprobe.__all__ if isinstance(getattr(memprobe, name), ModuleType)}
    every = list(memprobe.__all__)
    for seed in range(2):
        random.Random(seed).shuffle(every)
        submodules = [
            f"import memprobe.{name}" for name in ("capturing", "probing", "compare", "filter", "dashboard")
        ]
        for name, is_module in kinds([*every, *submodules, *every]):
            assert is_module == str(name in modules), name


def test_no_function_has_the_name_of_a_module():
    homes = {path.stem for path in __import__("pathlib").Path(memprobe.__path__[0]).iterdir()}
    functions = {name for name in memprobe.__all__ if not isinstance(getattr(memprobe, name), ModuleType)}
    assert not functions & homes
    assert len(set(itertools.chain(memprobe.__all__))) == len(memprobe.__all__)


def test_python_dash_m_is_the_command_line():
    run = subprocess.run(
        [sys.executable, "-m", "memprobe", "--help"], capture_output=True, text=True, check=True
    )
    assert "layers" in run.stdout
