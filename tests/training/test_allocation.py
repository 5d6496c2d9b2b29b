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
with freed_memory_kept() as kept:
    held = psutil.Process().memory_info().rss
    inside = given_back()
    more = given_back()
    grown = psutil.Process().memory_info().rss - held
print(kept, before, inside, more, grown, psutil.Process().memory_info().rss - held, given_back())
"""
BLOCK, LITTLE = 2**29, 2**24


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the settings")
def test_memory_that_steps_free_stays_until_they_end():
    run = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    kept, before, inside, more, grown, left, after = run.stdout.split()
    assert kept == "True"
    assert int(before) > BLOCK - LITTLE and int(after) > BLOCK - LITTLE
    assert abs(int(inside)) < LITTLE and abs(int(more)) < LITTLE
    assert abs(int(grown) - BLOCK) < LITTLE  # the second block lies where the first lay
    assert int(left) < LITTLE


def test_where_the_c_library_has_no_such_settings_nothing_changes(monkeypatch):
    from training import allocation

    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
    with allocation.freed_memory_kept() as kept:
        assert not kept
