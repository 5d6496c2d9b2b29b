"""What many tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import sys
from pathlib import Path

import pytest

from memprobe.cli import main
from tests.pages import find_chromium
from tests.tiny import save_tiny


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that open pages where there is no Chromium."""
    if item.get_closest_marker("browser") and find_chromium() is None:
        pytest.skip("Chromium is not installed; MEMPROBE_CHROMIUM can name one")


def pytest_collection_finish() -> None:
    """What the modules imported stays, so that collections leave it alone: they were half of training's tests."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores, since tests of other processes wait for them; four use some 6 GB of memory."""
    return min((os.cpu_count() or 1) + 1, 4)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A tiny Llama with a byte-level tokenizer, as a Hugging Face directory. Copy it before changing it."""
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command in this process; gives (exit code, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["memprobe", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
            sys.exit(0)
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run
