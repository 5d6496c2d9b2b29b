"""One process at a time: whatever way it ends, and whoever waits."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memprobe.errors import MemprobeError
from memprobe.locks import held, one_process

DIES = """
import os, sys
from pathlib import Path
from memprobe.locks import one_process
with one_process(Path(sys.argv[1]), "probing"):
    os._exit(9)
"""


def elsewhere(out: Path) -> str:
    """What another thread is told; a lock is a thread's own."""

    def take() -> str:
        try:
            with one_process(out, "probing"):
                return "took it"
        except MemprobeError as error:
            return str(error)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(take).result()


def test_a_folder_is_one_thread_s_until_its_outermost_block_ends(tmp_path):
    out = tmp_path / "probe"
    with one_process(out, "probing") as first:
        assert first and elsewhere(out).startswith(f"{out}: another process is probing here")
        with one_process(out, "probing") as again:
            assert not again
        assert "another process" in elsewhere(out)
        (out / "run.json").write_text("{}")
    assert [path.name for path in out.iterdir()] == ["run.json"]
    assert elsewhere(out) == "took it"


def test_where_nothing_came_of_it_nothing_stays(tmp_path):
    with one_process(tmp_path / "a", "patching", lock="patches/.lock"):
        pass
    with pytest.raises(ZeroDivisionError), one_process(tmp_path / "b", "patching"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_lock_dies_with_its_process(tmp_path):
    killed = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert killed.returncode == 9 and (tmp_path / ".lock").exists()
    assert elsewhere(tmp_path) == "took it"


def test_of_many_threads_one_at_a_time_holds_a_piece_of_work(tmp_path):
    inside, most, times = [], 0, 0

    def work(_: int) -> None:
        nonlocal most, times
        with held(tmp_path / ".claims" / "cell.lock") as mine:
            if mine:
                inside.append(1)
                most, times = max(most, len(inside)), times + 1
                inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))
    assert most == 1 and times > 1 and not (tmp_path / ".claims" / "cell.lock").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MemprobeError, match="cannot be written"),
        one_process(tmp_path / "file" / "x", "probing"),
    ):
        pass
