"""What many tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memprobe.cli import main
from tests.forks import program
from tests.once import once
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


@pytest.fixture(scope="session")
def forks() -> Iterator[str]:
    """The socket of a process that has imported everything and forks for who asks (tests.forks)."""
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:
        socket = Path(folder) / "socket"
        code = f"from tests.forks import serve; serve({str(socket)!r})"
        server = subprocess.Popen(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdin=subprocess.PIPE
        )
        try:
            while not socket.exists():
                assert server.poll() is None, "the server of forks did not start"
                time.sleep(0.05)
            yield str(socket)
        finally:
            server.communicate()


@pytest.fixture(scope="session")
def quick_python(forks) -> list[str]:
    """Stands where ``[sys.executable]`` would."""
    return [str(program(forks))]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The documentation's site, built as ``make docs`` builds it."""

    def build(folder: Path) -> None:
        built = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        )
        assert built.returncode == 0, built.stderr

    return once(tmp_path_factory, "site", build)


@pytest.fixture
def few_k(monkeypatch):
    """Pages have one top-k beside the probe's own, for tests of other things: each more is made in the same way."""
    monkeypatch.setattr("memprobe.dashboard.writing.K_VALUES", (1,))


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
