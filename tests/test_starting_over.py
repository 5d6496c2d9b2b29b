"""Starting over loses nothing: old work comes back until the new has something to show, wherever it is killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memprobe.errors import MemprobeError
from memprobe.starting_over import Work, settle, starting_over

TOY = Work(
    "toy",
    there=lambda out: (out / "mark").exists(),
    files=lambda out: [
        file for name in ("mark", "tables/a", "tables/b", "all") if (file := out / name).exists()
    ],
    shows=lambda out: (out / "tables" / "b").exists(),
)
OLD = {"mark": "old", "tables/a": "old", "tables/b": "old", "all/x/y": "old", "tables/theirs": "kept"}
NEW = {"mark": "new", "tables/b": "new", "tables/theirs": "kept"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def out(tmp_path) -> Path:
    write(tmp_path / "out", OLD)
    return tmp_path / "out"


def test_the_old_comes_back_where_the_new_shows_nothing(out):
    with (
        pytest.raises(MemprobeError, match=r"no such depth; .*out is as it was before --fresh"),
        starting_over(out, TOY, fresh=True) as before,
    ):
        assert before.there and not TOY.files(out)
        write(out, {"mark": "new", "all/z": "new"})
        before.settle()  # nothing to show yet
        raise MemprobeError("no such depth")
    assert read(out) == OLD
    with pytest.raises(KeyboardInterrupt), starting_over(out, TOY, fresh=True):
        raise KeyboardInterrupt
    assert read(out) == OLD and not list(out.glob(".*"))


def test_the_old_goes_once_the_new_shows_something(out):
    told = []
    with pytest.raises(MemprobeError) as error, starting_over(out, TOY, fresh=True) as before:
        write(out, {"mark": "new", "tables/b": "new"})
        before.watching(told.append)("half")
        assert told == ["half"] and not TOY.before(out).exists()
        raise MemprobeError("the disk is full")
    assert read(out) == NEW and str(error.value) == "the disk is full"
    with starting_over(out, TOY, fresh=True):
        pass
    assert read(out) == {"tables/theirs": "kept"}


def test_without_fresh_nothing_is_touched(out):
    with starting_over(out, TOY, fresh=False) as before:
        assert not before.there and read(out) == OLD
    assert read(out) == OLD


class Killed(BaseException):
    """The process is gone: nothing that it would do now is done."""


@pytest.mark.parametrize("shows", [False, True])
def test_killed_anywhere_one_of_both_is_whole(out, monkeypatch, shows):
    ends = set()
    for last in range(200):
        shutil.rmtree(out)
        write(out, OLD)
        steps = 0

        def dying(function):
            def step(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps > last:  # noqa: B023
                    raise Killed
                return function(*args, **kwargs)

            return step

        with monkeypatch.context() as patched:
            for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
                patched.setattr(Path, name, dying(getattr(Path, name)))
            patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
            try:
                with starting_over(out, TOY, fresh=True) as before:
                    for name in ("mark", "all", "tables/b") if shows else ("mark", "all"):
                        write(out, {name: "new"})
                        before.settle()
                    raise MemprobeError("bad input")
            except Killed:
                finished = False
            except MemprobeError:
                finished = True
        settle(out, TOY)
        assert read(out) in (OLD, NEW | {"all": "new"}) and not list(out.glob(".*")), last
        ends.add(read(out)["mark"])
        if finished:
            break
    assert finished and ends == ({"old", "new"} if shows else {"old"})
