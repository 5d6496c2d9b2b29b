"""Probes to and from a hub that a local folder stands in for."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from memprobe.errors import MemprobeError
from memprobe.probe_writer import locked
from memprobe.probes import open_probe
from memprobe.sharing import pull, push, without_paths
from tests.disk import contents
from tests.elsewhere import elsewhere

pytestmark = pytest.mark.usefixtures("few_k")


@pytest.fixture
def probe(cli, tiny_checkpoint, tmp_path) -> Path:
    out = tmp_path / "probe"
    code, _, err = cli(
        "layers", "--ckpt", f"tiny={tiny_checkpoint}", "--n", 6, "--attributions", "--out", out
    )
    assert code == 0, err
    return out


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """A folder with a folder for each data set, behind the calls of huggingface_hub that are made."""
    root = tmp_path / "hub"

    class Api:
        def create_repo(self, name, *, repo_type, private, exist_ok):
            assert repo_type == "dataset" and exist_ok
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / ".private").write_text(str(private))

        def list_repo_files(self, name, *, repo_type):
            files = [file for file in (root / name).rglob("*") if file.is_file() and file.name != ".private"]
            return [file.relative_to(root / name).as_posix() for file in files]

        def create_commit(self, name, operations, *, commit_message, repo_type):
            assert commit_message
            for operation in operations:
                target = root / name / operation.path_in_repo
                if isinstance(operation, huggingface_hub.CommitOperationDelete):
                    target.unlink()
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(operation.path_or_fileobj, target)

    def snapshot_download(name, *, repo_type, revision, local_dir, allow_patterns):
        assert repo_type == "dataset" and revision in (None, "v1")
        if not (root / name).is_dir():
            raise OSError("404 no such data set\nand much more")
        for file in (root / name).rglob("*"):
            inside = file.relative_to(root / name).as_posix()
            if file.is_file() and any(fnmatch(inside, pattern) for pattern in allow_patterns):
                target = Path(local_dir) / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def same(one: Path, other: Path) -> None:
    ours, theirs = open_probe(one), open_probe(other)
    for table in ("records", "controls", "outcomes", "factoids", "attributions"):
        assert getattr(ours, table).equals(getattr(theirs, table)), table
    assert ours.summary == theirs.summary


def test_there_and_back(cli, hub, probe, tmp_path):
    code, text, err = cli("push", probe, "me/rivers")
    assert code == 0 and text.strip().endswith("datasets/me/rivers"), err
    assert (hub / "me/rivers/.private").read_text() == "True"
    card = (hub / "me/rivers/README.md").read_text()
    assert card.startswith("---\n") and "memprobe pull me/rivers" in card and "tiny recalls" in card
    back = tmp_path / "back"
    code, text, err = cli("pull", "me/rivers@v1", "--out", back)
    assert code == 0 and "Probe of tiny" in text, err
    same(probe, back)
    assert (back / "report.html").exists() and not (back / "README.md").exists()


def test_no_path_of_this_machine_travels(hub, probe, tmp_path):
    push(probe, "me/rivers")
    for file in (hub / "me/rivers").rglob("*"):
        if file.is_file():
            assert str(tmp_path.parent).encode() not in file.read_bytes(), file.name
    run = json.loads((hub / "me/rivers/run.json").read_text())
    assert run["checkpoints"]["tiny"]["spec"] == "tiny"
    note = {
        "note": "merged onto /home/me/base model, see https://hub.co/a/b/c",
        "template": "/say/it {prompt}",
    }
    assert without_paths(note) == note | {"note": "merged onto base model, see https://hub.co/a/b/c"}
    spaces = {
        "spec": "/Users/Al Smith/secret work/base",
        "base": "../../al/base",
        "of": "linear=/Al Smith/a b/fit",
    }
    spaces |= {"location": "facts of mine.jsonl", "readout": "tuned=/Al S/fit@~/my work/base"}
    assert without_paths(spaces) == {"spec": "base", "base": "base", "of": "linear=fit"} | {
        "location": "facts of mine.jsonl",
        "readout": "tuned=fit@base",
    }
    anywhere = {"source": "/home/Al Smith/my data/facts.jsonl", "note": "/home/al/a: not ./b, which is c/d"}
    assert without_paths(anywhere) == {"source": "facts.jsonl", "note": "a: not ./b, which is c/d"}
    inner = "graft(/home/al/my work/a, ~/b c/d, blocks=2-3)"
    grafts = {
        "spec": f"graft({inner}, file:///home/Al S/e, parts=mlp, blocks=1)",
        "note": "graft(/home/al/x of y",
    }
    assert without_paths(grafts) == {
        "spec": "graft(graft(a, d, blocks=2-3), e, parts=mlp, blocks=1)",
        "note": "graft(x of y",
    }
    address = {"location": "file:///home/Al Smith/facts.jsonl", "note": "read file:/home/al/a, then b/c"}
    assert without_paths(address) == {"location": "facts.jsonl", "note": "read a, then b/c"}
    value = {"spec": "C:\\models\\mine", "tokens": {"5": "/"}, "of": ["~/x/y", "a/b", "/"], "share": 0.5}
    assert without_paths(value) == {
        "spec": "mine",
        "tokens": {"5": "/"},
        "of": ["y", "a/b", "/"],
        "share": 0.5,
    }


def test_a_folder_does_as_well(cli, probe, tmp_path):
    shared = tmp_path / "shared" / "rivers"
    assert cli("push", probe, shared)[0] == 0 and cli("push", probe, shared)[0] == 0  # replaces itself
    same(probe, pull(str(shared), tmp_path / "back").path)
    other = tmp_path / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    code, _, err = cli("push", probe, other)
    assert code == 2 and "holds no probe" in err and (other / "letter.txt").exists()


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_probe_is_not_pushed_onto_itself(probe, tmp_path, through_a_link):
    folder = probe
    if through_a_link:
        (folder := tmp_path / "link").symlink_to(probe)
    before = contents(probe)
    with pytest.raises(MemprobeError, match="is the probe itself"):
        push(probe, str(folder))
    assert contents(probe) == before


def test_a_probe_is_not_shared_into_itself_or_around_itself(cli, probe, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(probe)
    before = contents(tmp_path)
    for target, why in (
        (probe / "inner", "lies in the probe"),
        (probe / "a" / "b", "lies in the probe"),
        (tmp_path / "link" / "inner", "lies in the probe"),
        (probe / "records", "lies in the probe"),
        (probe / ".." / probe.name / "inner", "lies in the probe"),
        (tmp_path, "holds the probe"),
    ):
        code, _, err = cli("push", probe, target)
        assert code == 2 and why in err and len(err.splitlines()) == 1, err
    code, _, err = cli("pull", probe, "--out", probe / "inner")
    assert code == 2 and "lies in the probe" in err, err
    assert contents(tmp_path) == before
    monkeypatch.chdir(probe)
    code, _, err = cli("push", ".", "./inner")
    assert code == 2 and "lies in the probe" in err
    assert (
        cli("push", ".", "../shared")[0] == 0
        and cli("dashboard", probe, "--out", tmp_path / "p.html")[0] == 0
    )


@pytest.mark.parametrize("with_readme", [False, True])
def test_a_probe_that_no_push_wrote_is_left_alone(probe, tmp_path, with_readme):
    other = tmp_path / "other"
    shutil.copytree(probe, other)
    (other / "notes.md").write_text("mine")
    if with_readme:
        (other / "README.md").write_text("What I probed, and why: it is readable in tiny.")
    before = contents(other)
    with pytest.raises(MemprobeError, match="no push wrote"):
        push(probe, str(other))
    assert contents(other) == before


def test_a_pushed_probe_that_went_on_is_left_alone(cli, probe, tiny_checkpoint, tmp_path):
    shared = tmp_path / "shared"
    push(probe, str(shared))
    assert cli("layers", "--ckpt", f"mine={tiny_checkpoint}", "--n", 6, "--out", shared)[0] == 0
    before = contents(shared)
    with pytest.raises(MemprobeError, match="no push wrote"):
        push(probe, str(shared))
    assert contents(shared) == before


def test_a_folder_in_another_process_is_left_alone(probe, tmp_path):
    shared = tmp_path / "shared"
    push(probe, str(shared))
    before = contents(shared)
    with elsewhere(locked(shared)), pytest.raises(MemprobeError, match="another process"):
        push(probe, str(shared))
    assert contents(shared) == before


def test_what_is_not_a_pushs_stays_in_its_folder(cli, probe, tiny_checkpoint, tmp_path):
    shared = tmp_path / "shared"
    push(probe, str(shared))
    (shared / "notes.md").write_text("mine")
    (shared / "records" / "sums.csv").write_text("1,2")
    other = tmp_path / "other"
    assert cli("layers", "--ckpt", f"another={tiny_checkpoint}", "--n", 6, "--out", other)[0] == 0
    push(other, str(shared))
    assert open_probe(shared).checkpoints == ["another"] and len(list(shared.glob("records/*.parquet"))) == 1
    assert not (shared / "attributions").exists()
    assert (shared / "notes.md").read_text() == "mine" and (shared / "records/sums.csv").exists()
    assert {file.name for file in shared.glob(".*")} == set()


@pytest.mark.parametrize("there", [False, True])
def test_a_push_that_is_killed_is_mended_by_the_next(
    cli, probe, tiny_checkpoint, tmp_path, monkeypatch, there
):
    """Killed while it copies, and while files take their places."""
    other, left = tmp_path / "other", 0
    cli("layers", "--ckpt", f"another={tiny_checkpoint}", "--n", 6, "--attributions", "--out", other)

    def dying(change):
        def call(*arguments, **options):
            nonlocal left
            inside = any(
                folder.name == "shared" for path in arguments if path for folder in Path(path).parents
            )
            left -= inside
            if inside and left < 0:
                raise KeyboardInterrupt
            return change(*arguments, **options)

        return call

    for left in range(0, 18, 3):
        shared = tmp_path / str(left) / "shared"
        if there:
            push(other, str(shared))
            (shared / "notes.md").write_text("mine")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(shutil, "copyfile", dying(shutil.copyfile))
            patched.setattr(Path, "replace", dying(Path.replace))
            push(probe, str(shared))
        if there and not (shared / ".pushed").exists():  # nothing went before the copy was whole
            same(other, shared)
        push(probe, str(shared))
        same(probe, shared)
        assert (shared / "notes.md").exists() == there and not list(shared.glob(".*"))


def test_a_second_push_takes_away_what_went(cli, hub, probe, tiny_checkpoint, tmp_path):
    push(probe, "me/rivers")
    other = tmp_path / "other"
    assert cli("layers", "--ckpt", f"another={tiny_checkpoint}", "--n", 6, "--out", other)[0] == 0
    push(other, "me/rivers", private=False)
    assert pull("me/rivers", tmp_path / "back").checkpoints == ["another"]
    assert not list((hub / "me/rivers/attributions").glob("*"))


@pytest.mark.parametrize("there", ["files", "a probe"])
def test_a_data_set_that_no_push_wrote_is_left_as_it_is(cli, hub, probe, there):
    """A name that is mistyped may be that of something else that one has."""
    mine = hub / "me/other"
    (mine / "records").mkdir(parents=True)
    for name in ("README.md", "records/mine.parquet", "outcomes.csv"):
        (mine / name).write_text("mine")
    if there == "a probe":
        shutil.copyfile(probe / "run.json", mine / "run.json")
    before = {file: file.read_bytes() for file in mine.rglob("*") if file.is_file()}
    code, _, err = cli("push", str(probe), "me/other")
    assert code == 2 and "me/other" in err and "name another data set" in err and len(err.splitlines()) == 1
    assert {f: f.read_bytes() for f in mine.rglob("*") if f.is_file() and f.name != ".private"} == before


def test_only_a_probes_files_come_and_a_strangers_page_is_not_kept(hub, probe, tmp_path):
    push(probe, "me/rivers")
    (hub / "me/rivers/report.html").write_text("<script>steal()</script>")
    (hub / "me/rivers/setup.py").write_text("import os")
    back = pull("me/rivers", tmp_path / "back").path
    assert "steal" not in (back / "report.html").read_text() and not (back / "setup.py").exists()


def test_what_is_damaged_missing_or_in_the_way_is_one_line(cli, hub, probe, tmp_path):
    push(probe, "me/rivers")
    (table,) = (hub / "me/rivers/records").glob("*.parquet")
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    back = tmp_path / "back"
    for arguments, words in (
        (("pull", "me/rivers", "--out", back), "checksum"),
        (("pull", "me/nothing", "--out", back), "404 no such data set"),
        (("pull", "nothing", "--out", back), "neither OWNER/NAME"),
        (("pull", "./nothing", "--out", back), "no such folder"),
        (("pull", "me/rivers", "--out", probe), "exists already"),
        (("push", tmp_path, "me/x"), "not a probe directory"),
        (("push", probe, "me/x@v1"), "revision of its own"),
    ):
        code, _, err = cli(*arguments)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err
    err = cli("pull", "me/rivers", "--out", back)[2]
    assert f"error: me/rivers/records/{table.name}: " in err, "and not a copy that is gone"
    assert not back.exists() and not list(tmp_path.glob(".back*"))


@pytest.mark.parametrize("end", ["empty", "not there yet"])
def test_a_probe_is_pulled_to_where_a_link_leads(cli, hub, probe, tmp_path, end):
    push(probe, "me/rivers")
    link, there = tmp_path / "link", tmp_path / "far" / "away"
    there.parent.mkdir()
    if end == "empty":
        there.mkdir()
    link.symlink_to(there)
    assert cli("pull", "me/rivers", "--out", link)[0] == 0
    assert link.is_symlink() and not there.is_symlink() and [*there.parent.iterdir()] == [there]
    same(probe, there)


def test_a_place_where_no_probe_can_be_pulled_is_one_line(cli, hub, probe, tmp_path):
    push(probe, "me/rivers")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = contents(tmp_path)
    for out, words in (
        (tmp_path / "file", "exists already"),
        (tmp_path / "file" / "x", "cannot be written"),
        (tmp_path / "circle", "leads back to itself"),
        (Path("/proc/memprobe"), "cannot be written"),
    ):
        code, _, err = cli("pull", "me/rivers", "--out", out)
        assert code == 2 and f"{out}: " in err and words in err and len(err.splitlines()) == 1, err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", [["--public"], ["--message", "all of it"]])
def test_what_is_of_the_hub_is_refused_of_a_folder(cli, probe, tmp_path, option):
    code, _, err = cli("push", probe, tmp_path / "shared", *option)
    assert code == 2 and f"{' '.join(option)}: is of a data set on the hub" in err, err
    assert not (tmp_path / "shared").exists()


def test_an_unfinished_probe_is_not_shared(hub, probe):
    run = json.loads((probe / "run.json").read_text())
    run["checkpoints"]["tiny"]["complete"] = False
    (probe / "run.json").write_text(json.dumps(run))
    with pytest.raises(MemprobeError, match="not finished"):
        push(probe, "me/rivers")
