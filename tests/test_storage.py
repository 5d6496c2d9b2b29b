"""A folder and its like in a storage, whatever kind of storage it is."""

import threading
import uuid

import fsspec
import pytest

from memprobe.errors import MemprobeError
from memprobe.storage import Mirror, storage_at


@pytest.fixture(params=["file", "memory", "folder"])
def url(request, tmp_path):
    if request.param == "memory":
        name = f"memory://{uuid.uuid4().hex}/grid"
        yield name
        fsspec.filesystem("memory").rm(name.rpartition("/")[0], recursive=True)
    else:
        folder = tmp_path / "storage"
        yield f"file://{folder}" if request.param == "file" else str(folder)


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def held(mirror, under):
    return {path: mirror.files.cat_file(f"{mirror.root}/{path}").decode() for path in mirror.listed(under)}


def test_what_is_new_or_changed_goes_there_and_comes_back(url, tmp_path):
    one, other = Mirror(url, tmp_path / "one"), Mirror(url, tmp_path / "other")
    assert one.listed("runs") == []
    one.push("runs")  # nothing is here
    write(one.here, runs__a__x="1", runs__a__deep__y="2", runs__ab__z="3", elsewhere="4")
    one.push("runs/a")
    assert held(one, "runs") == {"runs/a/x": "1", "runs/a/deep/y": "2"}, "runs/ab is another folder"
    other.pull("runs/a")
    assert (other.here / "runs/a/deep/y").read_text() == "2"
    write(other.here, runs__a__x="changed", runs__a__new="5")
    (other.here / "runs/a/deep/y").unlink()
    other.push("runs/a")
    assert held(one, "runs") == {"runs/a/x": "changed", "runs/a/new": "5"}
    one.pull("runs/a", lambda path: path.endswith("x"))
    assert (one.here / "runs/a/x").read_text() == "changed" and not (one.here / "runs/a/new").exists()


def test_what_it_did_not_bring_stays_in_the_storage(url, tmp_path):
    """Another machine's files are not deleted for not being here."""
    one, other = Mirror(url, tmp_path / "one"), Mirror(url, tmp_path / "other")
    write(one.here, runs__x="1")
    one.push("runs")
    write(other.here, runs__y="2")
    other.push("runs")
    assert held(one, "runs") == {"runs/x": "1", "runs/y": "2"}


def test_one_file_by_its_path(url, tmp_path):
    one, other = Mirror(url, tmp_path / "one"), Mirror(url, tmp_path / "other")
    write(one.here, probe__run="1", probe__report="2")
    one.push("probe/run")
    other.pull("probe/run")
    assert held(other, "probe") == {"probe/run": "1"} and (other.here / "probe/run").read_text() == "1"


def test_links_and_locks_stay(url, tmp_path):
    one = Mirror(url, tmp_path / "one")
    write(one.here, runs__x="1", other__inside="2")
    write(one.here, **{"runs__.lock": "", "runs__deep__a.lock": ""})
    (one.here / "runs/linked").symlink_to("../other", target_is_directory=True)
    (one.here / "runs/file").symlink_to("x")
    one.push("runs")
    assert held(one, "runs") == {"runs/x": "1"}


def test_marks_go_last_and_leave_first(url, tmp_path, monkeypatch):
    one = Mirror(url, tmp_path / "one", last=lambda path: path.endswith("mark"))
    write(one.here, runs__a_mark="1", runs__b="2", runs__c="3")
    done = []
    put, gone = one._put, one.files.rm_file
    monkeypatch.setattr(one, "_put", lambda path: done.append(path) or put(path))
    one.push("runs")
    assert done == ["runs/b", "runs/c", "runs/a_mark"]
    done.clear()
    monkeypatch.setattr(one.files, "rm_file", lambda path: (done.append(path.rpartition("/")[2]), gone(path)))
    for path in list((one.here / "runs").iterdir()):
        path.unlink()
    one.push("runs")
    assert done == ["a_mark", "c", "b"] and one.listed("runs") == []


def test_half_a_file_is_none(tmp_path):
    """Where a storage shows a file that is being written, as a folder does."""
    one = Mirror(f"file://{tmp_path / 'storage'}", tmp_path / "one")
    write(tmp_path / "storage", **{"runs__x.half": "1"})
    assert one.listed("runs") == []
    one.pull("runs")
    assert not (one.here / "runs").exists()


def test_files_go_there_meanwhile_and_at_the_end_also_of_what_failed(url, tmp_path):
    one = Mirror(url, tmp_path / "one")
    came = threading.Event()
    push = one.push

    def pushed(under):
        push(under)
        if one.listed(under):
            came.set()

    one.push = pushed
    with pytest.raises(ValueError, match="in the middle"), one.pushing("runs", seconds=0.02):
        write(one.here, runs__state="1")
        assert came.wait(20) and held(one, "runs") == {"runs/state": "1"}
        write(one.here, runs__state="longer")
        raise ValueError("in the middle")
    assert held(one, "runs") == {"runs/state": "longer"}


def test_a_file_that_goes_meanwhile_is_passed_over_and_a_storage_that_is_not_there_is_not(
    tmp_path, monkeypatch
):
    one = Mirror(f"file://{tmp_path / 'storage'}", tmp_path / "one")
    write(one.here, runs__a="1", runs__b="2")
    put = one.files.put_file

    def goes(source, target):
        if source.endswith("a"):
            (one.here / "runs/a").unlink(missing_ok=True)
        put(source, target)

    def no_bucket(*_):
        raise FileNotFoundError("the bucket does not exist")

    monkeypatch.setattr(one.files, "put_file", goes)
    one.push("runs")
    assert held(one, "runs") == {"runs/b": "2"}
    write(one.here, runs__c="3")
    monkeypatch.setattr(one.files, "put_file", no_bucket)
    with pytest.raises(MemprobeError, match="the bucket does not exist"):
        one.push("runs")


@pytest.mark.parametrize("error", [PermissionError("no key"), ValueError("no key")])
def test_what_goes_wrong_there_is_one_line(tmp_path, monkeypatch, error):
    one = Mirror(f"file://{tmp_path / 'storage'}", tmp_path / "one")
    write(one.here, runs__x="1")
    one.push("runs")

    def fails(*_, **__):
        raise error

    for name in ("find", "get_file", "put_file", "rm_file"):
        with (
            monkeypatch.context() as patch,
            pytest.raises(MemprobeError, match=r"^--storage file://.*: no key$"),
        ):
            patch.setattr(one.files, name, fails)
            one.pull("runs")
            write(one.here, runs__x="changed")
            one.push("runs")
            (one.here / "runs/x").unlink()
            one.push("runs")


def test_what_no_storage_is(tmp_path):
    with pytest.raises(MemprobeError, match=r"^--storage nothing://bucket: Protocol not known: nothing"):
        storage_at("nothing://bucket")
