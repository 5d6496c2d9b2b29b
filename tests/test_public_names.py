"""What a notebook meets: every public name is what it says, whatever was imported before it."""

import itertools
import random
import subprocess
import sys
from types import ModuleType

import memprobe

KINDS = """
import importlib, os, sys, types
import peft, polars, scipy.stats, torch, transformers.trainer
for names in sys.argv[1:]:
    if os.fork():  # each order in a process that has imported what memprobe imports, and nothing of memprobe
        assert os.wait()[1] == 0
        continue
    assert not any(name.partition(".")[0] == "memprobe" for name in sys.modules)
    import memprobe
    for name in names.split(","):
        if name.startswith("import "):
            importlib.import_module(name.removeprefix("import "))
        else:
            print(name, isinstance(getattr(memprobe, name), types.ModuleType))
    break
"""


def kinds(orders: list[list[str]]) -> list[tuple[str, str]]:
    """Of each name in each order, each order in a process of its own, what it is."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KINDS, *(",".join(names) for names in orders)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(line.split()) for line in run.stdout.splitlines()]


def test_every_name_stays_what_it_is_in_any_order_and_twice():
    modules = {name for name in memprobe.__all__ if isinstance(getattr(memprobe, name), ModuleType)}
    every, orders = list(memprobe.__all__), []
    submodules = [
        f"import memprobe.{name}" for name in ("capturing", "probing", "compare", "filter", "dashboard")
    ]
    for seed in range(2):
        random.Random(seed).shuffle(every)
        orders.append([*every, *submodules, *every])
    found = kinds(orders)
    assert len(found) == 2 * 2 * len(every)
    for name, is_module in found:
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
