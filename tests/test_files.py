"""Writing files: what is left alone, what is swept up, what a full disk costs; and tables that run nothing."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from memprobe import files
from memprobe.errors import MemprobeError


def test_a_link_stays_and_what_it_points_at_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "page.html"
    link.symlink_to("there/real.html")
    files.write_text("page", link)
    assert link.is_symlink()
    assert (tmp_path / "there" / "real.html").read_text() == "page"


def test_folders_devices_pipes_and_circles_are_refused_and_stay(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "null").symlink_to(os.devnull)
    for name, why in {
        "folder": "is a folder",
        "pipe": "is no ordinary file",
        "null": "is a device",
        "circle": "leads back to itself",
        "n" * 300: "cannot be written",
    }.items():
        with pytest.raises(MemprobeError, match=why) as caught:
            files.write_text("page", tmp_path / name)
        assert name in str(caught.value)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "folder", "null", "pipe"]


def test_a_long_name_that_the_disk_takes_is_written(tmp_path):
    files.write_text("x", tmp_path / ("n" * 255))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_process_left_goes_with_the_next_write_of_any_file(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from memprobe import files\n"
        "with files.replacing(Path('report.html')) as path: path.write_text('half'); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".gitignore.old-1-x").write_text("a file of the user's")
    files.write_text("whole", tmp_path / "run.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore.old-1-x", "run.json"]


def full(error: type[Exception]):
    """A library that meets a full disk and says so in its own way."""
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        raise error("'Stream' object has no attribute 'pos'")  # noqa: B904


@pytest.mark.parametrize("error", [AttributeError, OSError, pl.exceptions.ComputeError])
def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, error):
    path = tmp_path / "figure.pdf"
    path.write_text("old")
    with pytest.raises(MemprobeError, match=r"figure\.pdf: cannot be written"), files.replacing(path):
        full(error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_bug_is_no_full_disk(tmp_path):
    with pytest.raises(AttributeError), files.replacing(tmp_path / "a"):
        try:
            (tmp_path / "none").read_text()
        except OSError:
            [].nothing  # noqa: B018


def test_files_that_belong_together_are_replaced_together_or_not_at_all(tmp_path, monkeypatch):
    files.write_together({"all.json": "1", "a.csv": "1", "b.csv": "1"}, tmp_path, mark="all.json")
    (tmp_path / "mine.txt").write_text("kept")

    def state():
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    before = state()
    with pytest.raises(MemprobeError, match=r"b\.csv"):
        files.write_together({"all.json": "2", "a.csv": "2", "b.csv": "\ud800"}, tmp_path, mark="all.json")
    assert state() == before
    order = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda one, other: (order.append(other.name), replace(one, other))[1]
    )
    files.write_together({"all.json": "3", "c.csv": "3"}, tmp_path, mark="all.json", stale=["a.csv", "b.csv"])
    assert state() == {"all.json": "3", "c.csv": "3", "mine.txt": "kept"}
    assert order[-1] == "all.json"


def test_a_csv_holds_no_formula_and_numbers_stay_numbers():
    table = pl.DataFrame(
        {"label": ["=1+1", "+x", "-x", "@x", "\tx", "a=b", None], "difference": [-1.5, 0, 1, 2, 3, 4, None]}
    )
    text = files.csv_text(table)
    read = pl.read_csv(text.encode(), quote_char='"')
    assert read["label"].to_list() == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "a=b", None]
    assert read["difference"].to_list() == [-1.5, 0, 1, 2, 3, 4, None]
    rows = ["-", "- 0.5", "-0.5 1e-3 +2", "-1+1", "-0.5 [-1, 2]", "- 1 =x"]
    safe = pl.read_csv(files.csv_text(pl.DataFrame({"by_seed": rows})).encode())["by_seed"].to_list()
    assert safe == [*rows[:3], *("'" + text for text in rows[3:])]


def test_half_a_character_is_no_text_to_write(tmp_path):
    with pytest.raises(MemprobeError, match=r"run\.json: cannot be written .*half a character"):
        files.write_json({"label": "\udcff"}, tmp_path / "run.json")


def _inside(depth):
    value = 0
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("name", ["a.json", "a.toml"])
def test_what_is_nested_too_deeply_is_refused_before_anything_walks_it(tmp_path, name):
    """TOML's dotted keys are read without recursion, and so deep that nothing else can walk what comes of them."""
    path = tmp_path / name
    read = files.read_json if name == "a.json" else files.read_toml
    for depth in (files.DEEPEST, files.DEEPEST + 1, 900):
        path.write_text(json.dumps(_inside(depth)) if name == "a.json" else f"{'a.' * (depth - 1)}a = 0")
        if depth == files.DEEPEST:
            assert read(path) == _inside(depth)
        else:
            with pytest.raises(MemprobeError, match=f"{name}: nested too deeply"):
                read(path)


@pytest.mark.parametrize("read", [files.read_json, files.read_toml])
def test_a_device_is_not_read(read):
    with pytest.raises(MemprobeError, match=r"zero: cannot be read as \w+ \(it is a device"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize("read", [files.read_json, files.read_toml])
def test_a_missing_file_is_named_once_and_in_words(tmp_path, read):
    with pytest.raises(MemprobeError) as caught:
        read(tmp_path / "none")
    assert str(caught.value).count(str(tmp_path)) == 1
    assert "no such file" in str(caught.value).lower()
