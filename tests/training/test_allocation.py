"""Memory that training steps free stays with the process until they end."""

import platform
import subprocess
import sys

import pytest

GIVEN_BACK = """
import numpy, psutil
from training.allocation import freed_memory_kept

def given_back():
    block = numpy.ones(2**26)  # 512 MiB
    held = psutil.Process().memory_info().rss
    del block
    return held - psutil.Process().memory_info().rss

before = given_back()
with freed_memory_kept() as after_step:
    held = psutil.Process().memory_info().rss
    after_step()
    inside = given_back()
    more = given_back()
    grown = psutil.Process().memory_info().rss - held
    after_step()
    left = psutil.Process().memory_info().rss - held
    again = given_back()
    after_step()
    kept = psutil.Process().memory_info().rss - held
    given_back()
    after_step()
    kept_on = psutil.Process().memory_info().rss - held
print(before, inside, more, grown, left, again, kept, kept_on, psutil.Process().memory_info().rss - held, given_back())
"""
BLOCK, LITTLE = 2**29, 2**24


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the settings")
def test_memory_that_steps_free_stays_until_they_end():
    run = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    before, inside, more, grown, left, again, kept, kept_on, at_the_end, after = map(int, run.stdout.split())
    assert before > BLOCK - LITTLE and after > BLOCK - LITTLE
    assert max(map(abs, (inside, more, again))) < LITTLE
    assert abs(grown - BLOCK) < LITTLE  # the second block lies where the first lay
    assert left < LITTLE and at_the_end < LITTLE  # so much more than the first step took is given back
    assert abs(kept - BLOCK) < LITTLE and abs(kept_on - BLOCK) < LITTLE  # a step that needs it takes it once


def test_nothing_is_kept_while_the_machine_is_short_of_memory(monkeypatch):
    from collections import namedtuple

    from training import allocation

    class Libc:
        trimmed = 0

        def malloc_trim(self, pad):
            self.trimmed += 1

    Machine = namedtuple("Machine", "total available")
    heap, libc = None, Libc()
    for available, trimmed in ((50, 0), (50, 0), (9, 1), (9, 2), (11, 2), (50, 2)):
        monkeypatch.setattr(allocation.psutil, "virtual_memory", lambda left=available: Machine(100, left))
        heap = heap or allocation._Heap(libc)
        heap.after_step()
        assert libc.trimmed == trimmed


def test_where_the_c_library_has_no_such_settings_nothing_changes(monkeypatch):
    from training import allocation

    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
    with allocation.freed_memory_kept() as after_step:
        assert after_step is allocation.nothing


def test_a_stage_on_a_cpu_looks_after_each_step(tiny_checkpoint, tmp_path, monkeypatch):
    from contextlib import contextmanager

    from training import stage
    from training.recipe import parse_recipe
    from training.run import run

    told = []

    @contextmanager
    def kept():
        told.append("kept")
        yield lambda: told.append("looked")
        told.append("ended")

    monkeypatch.setattr(stage, "freed_memory_kept", kept)
    one = {"name": "a", "data": "kvr:4", "epochs": 5}
    optimiser = {"batch": 4, "micro_batch": 4}
    recipe = parse_recipe({"base": str(tiny_checkpoint), "optimiser": optimiser, "stages": [one]})
    run(recipe, tmp_path / "run", quiet=True)
    assert told == ["kept", *["looked"] * 5, "ended"]
