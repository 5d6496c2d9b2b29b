"""A seeded few of the kills; ``python -m tests.fuzz.kills`` makes a hundred."""

import subprocess

from tests.fuzz.__main__ import ROOT, _environment


def test_killed_commands_go_on_to_the_same_bytes(quick_python):
    """In a process of its own: forks of one that has used polars would wait for its threads."""
    command = [*quick_python, "-m", "tests.fuzz.kills", "--n", "2", "--only", "layers,fit"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=_environment(), timeout=600)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-500:]
    assert "2 kills under seed 0: 0 failures" in ended.stdout
