"""Freed memory that stays with a process that trains."""

import platform
import subprocess
import sys

import pytest

AFTER_FREEING = """
import numpy, psutil, sys
{first}
process, block = psutil.Process(), numpy.ones(2**27)  # 1 GiB
with_block = process.memory_info().rss
del block
print(with_block - process.memory_info().rss)
"""
KEEP = "from training.allocation import keep_freed_memory; assert keep_freed_memory()"
COMMAND = """
from contextlib import suppress
from training.__main__ import main
sys.argv = ["training", "--help"]
with suppress(SystemExit):
    main()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the settings")
@pytest.mark.parametrize(("first", "stays"), [("", False), (KEEP, True), (COMMAND, True)])
def test_memory_that_is_freed_stays_with_a_process_that_trains(first, stays):
    code = AFTER_FREEING.format(first=first)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    given_back = int(printed.splitlines()[-1])
    assert given_back < 2**24 if stays else given_back > 2**29


def test_where_the_c_library_has_no_such_settings_nothing_changes(monkeypatch):
    from training import allocation

    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
    assert not allocation.keep_freed_memory()
