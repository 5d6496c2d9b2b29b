"""A probe directory to and from a data set on the Hugging Face hub, or a folder that others can reach.

    probe ── checked ──> run.json without paths of this machine, tables, a card, a report ──> hub or folder
                                          │ a folder: whole beside what is there, then file by file in its place
    hub or folder ──> tables held against their marks ──> probe, with a report written here

Weights never travel: what is shared is what was read of them. Only the files of a probe are taken, in both directions;
a report that somebody else wrote holds scripts, so that it is made anew from the tables.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from memprobe import sentences
from memprobe.dashboard import write_report
from memprobe.errors import MemprobeError, first_line
from memprobe.files import pointed_at, write_text
from memprobe.grafts import is_graft, parse_graft
from memprobe.locks import one_process
from memprobe.probe_writer import LOCK, REPORT, write_run
from memprobe.probes import FACTOIDS_FILE, RUN, SUMMARY, Probe, open_probe, probe_of, read_run
from memprobe.residuals import without_residuals
from memprobe.run_file import read_summary

CARD = "README.md"
_HUB = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")
_TABLES = ("records", "controls", "outcomes", "attributions")
_PATTERNS = (RUN, SUMMARY, FACTOIDS_FILE, *(f"{table}/*.parquet" for table in _TABLES), CARD)
_TAGS = "tags: [memprobe, interpretability, logit-lens]"
_COPYING, _COPIED = ".pushing", ".pushed"  # a push's copy within a folder: under way, whole
_KEPT = ("tokens", "template")
_START = r"(?:file:/|~|/|\.{1,2}[\\/]|[A-Za-z]:[\\/])"
_PATH = re.compile(rf"{_START}(?:(?!: |[\s(,;'\"=]{_START}).)*")
"""A whole value that is a path, in which there may be spaces: not a sentence on a path, or several."""
_SPECS = ("spec", "base", "parent", "location", "readout", "tokenizer_from", "corpus")
"""Keys whose values are checkpoints or files, so that a space in one belongs to it."""
_SPEC = re.compile(rf"(\w+=)?({_START}.*?)(?:@({_START}.*))?")
_INSIDE = re.compile(
    r"(?<![\w/:.~])(?:file:/{0,2}|~|[A-Za-z]:)?[/\\](?:[^\s/\\,;'\"()]+[/\\])+([^\s/\\,;'\"()]+)"
)
"""A path within a sentence, such as a note."""


def push(folder: str | Path, to: str, *, private: bool = True, message: str | None = None) -> str:
    """Shares a probe directory whose checkpoints are all finished.

    A folder that a former push wrote is brought to this probe; what else lies there stays. A push that is killed
    there loses nothing, and the next one mends it.

    Args:
        to: ``OWNER/NAME`` of a data set on the hub, made where there is none; or a folder (``./…``, ``/…``, ``~/…``).
        private: whether a data set that is made is.
        message: of the commit.

    Returns:
        Where it is now.

    Raises:
        MemprobeError: no probe, an unfinished or changed one; the hub refuses; or the folder is the probe's own, lies
            in it or holds it, is in another process's hands, or holds what no push wrote.
    """
    probe = open_probe(folder)
    if unfinished := [label for label in probe.checkpoints if label not in probe.finished]:
        raise MemprobeError(f"{folder}: {unfinished[0]} is not finished; probe it to the end first")
    with tempfile.TemporaryDirectory() as name:
        ready = Path(name)
        _prepare(probe, ready, to)
        if not on_hub(to):
            return str(_into_folder(ready, _local(to), probe.path))
        return _to_hub(ready, to, private, message or f"memprobe: {', '.join(probe.checkpoints)}")


def pull(source: str, out: str | Path) -> Probe:
    """Fetches a probe that :func:`push` shared.

    Args:
        source: ``OWNER/NAME[@REVISION]``, or a folder.
        out: a directory that is not there yet, or an empty one. Where it is a link, the link stays.

    Raises:
        MemprobeError: ``out`` holds something, lies in the folder or cannot be written, there is no such data set or
            folder, or what came is no whole probe.
    """
    out = Path(out)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise MemprobeError(f"{out}: exists already; use another --out")
        if not on_hub(source):
            _refuse_inside(out, _local(source))
        place = pointed_at(out)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as name:
            here = Path(name) / "probe"
            _fetch(source, here)
            if place.exists():
                place.rmdir()
            here.replace(place)
    except OSError as error:
        raise MemprobeError(f"{out}: cannot be written ({error.strerror}); use another --out") from error
    return open_probe(out)


def _fetch(source: str, here: Path) -> None:
    """A whole probe from elsewhere in a new folder, with a report of its own."""
    if on_hub(source):
        _from_hub(source, here)
    else:
        _copy(_local(source), here)
    if not (here / RUN).exists():
        raise MemprobeError(f"{source}: holds no probe (no {RUN})")
    try:
        probe = open_probe(here)
        (here / CARD).unlink(missing_ok=True)
        write_report(probe, here / REPORT)
    except MemprobeError as error:  # of a copy that is gone when this is read
        raise MemprobeError(str(error).replace(str(here), source)) from error


def on_hub(name: str) -> bool:
    """Whether a name is of a data set on the hub, and not of a folder."""
    return _HUB.fullmatch(name) is not None


def _local(name: str) -> Path:
    if not name.startswith((".", "/", "~")) and not PureWindowsPath(name).drive:
        raise MemprobeError(f"{name}: neither OWNER/NAME of a data set nor a folder (write ./{name})")
    return Path(name).expanduser()


def _prepare(probe: Probe, ready: Path, to: str) -> None:
    """A copy of a probe as it may be seen elsewhere."""
    for file in probe.files():
        target = ready / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(probe.path / file, target)
    if not (probe.path / SUMMARY).exists():
        raise MemprobeError(f"{probe.path}: has no {SUMMARY}; give the command that made it again")
    read_summary(probe.path, probe.run)  # what is wrong with it is named here, not in the copy
    shutil.copyfile(probe.path / SUMMARY, ready / SUMMARY)
    run = without_paths(probe.run)
    run["checkpoints"] = {label: without_residuals(entry) for label, entry in run["checkpoints"].items()}
    write_run(run, ready)
    here = probe_of(ready, run)
    write_text(card(here, to if on_hub(to) else None), ready / CARD)
    write_report(here, ready / REPORT)


def without_paths(value: Any, key: str = "") -> Any:
    """JSON in which a path of this machine is its last part alone; token texts and templates stay.

    Args:
        key: that the value stands under.
    """
    if isinstance(value, dict):
        return {name: one if name in _KEPT else without_paths(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one, key) for one in value]
    if not isinstance(value, str):
        return value
    if is_graft(value):
        return _graft_without_paths(value)
    if (spec := _SPEC.fullmatch(value)) and (key in _SPECS or spec[1]):
        kind, path, other = spec.groups()
        return f"{kind or ''}{_last(path)}{f'@{_last(other)}' if other else ''}"
    return _last(value) if _PATH.fullmatch(value) else _INSIDE.sub(r"\1", value)


def _graft_without_paths(spec: str) -> str:
    """A graft's spec, whose checkpoints' paths may have spaces; what only begins like one is a sentence."""
    try:
        into, other, _ = parse_graft(spec)
    except MemprobeError:
        return _INSIDE.sub(r"\1", spec)
    before, _, after = spec.partition(into)
    return before + without_paths(into, "spec") + after.replace(other, without_paths(other, "spec"), 1)


def _last(path: str) -> str:
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return kind(path).name or path


def card(probe: Probe, name: str | None = None) -> str:
    """What a data set of a probe says of itself, as Markdown with the hub's front matter.

    Args:
        name: ``OWNER/NAME``, where it has one.
    """
    run, summary = probe.run, probe.summary
    k, facts = summary["k"], run["factoids"]
    configs = [
        line
        for table in ("outcomes", "records")
        for line in (f"  - config_name: {table}", f'    data_files: "{table}/*.parquet"')
    ]
    front = ["---", _TAGS, "configs:", *configs, "---"]
    lines = [
        f"- {sentences.of_summary(label, entry, k=k)}" for label, entry in summary["checkpoints"].items()
    ]
    where = name or "FOLDER"
    return "\n".join(
        [
            *front,
            "",
            "# A memprobe probe",
            "",
            f"At which depth {facts['n']:,} facts ({facts.get('source') or 'a file'}) become "
            f"{_readable_in(probe.checkpoints)} Template `{run['template']}`, lenses {', '.join(probe.lenses)}, made "
            f"with memprobe {run.get('memprobe', '?')}.",
            "",
            *lines,
            "",
            "```",
            f"memprobe pull {where} --out probes/{where.rpartition('/')[2]}",
            "```",
            "",
            "`records/` holds a row for each checkpoint, lens, fact, answer token and depth; `outcomes/` what each "
            f"checkpoint says; `{FACTOIDS_FILE}` what was asked, under the licence of its source. No weights are here.",
            "",
        ]
    )


def _copy(source: Path, target: Path) -> None:
    """The files of a probe in a folder, and no others."""
    if not source.is_dir():
        raise MemprobeError(f"{source}: no such folder")
    target.mkdir(parents=True)
    for pattern in _PATTERNS:
        for file in source.glob(pattern):
            (target / file.relative_to(source)).parent.mkdir(exist_ok=True)
            try:
                shutil.copyfile(file, target / file.relative_to(source))
            except OSError as error:
                raise MemprobeError(f"{file}: cannot be copied ({error.strerror})") from error


def _readable_in(labels: Iterable[str]) -> str:
    """How a card names the checkpoints of its probe."""
    return f"readable in {', '.join(labels)}."


def _into_folder(ready: Path, target: Path, source: Path) -> Path:
    """Puts a push's files into a folder: nothing there goes before all that is new lies beside it."""
    _refuse_folder(target, source)
    try:
        with one_process(target, "probing", lock=LOCK):
            _refuse_folder(target, source)  # as it is now that nobody else writes here
            for name in (_COPYING, _COPIED):  # of a push that was killed
                shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(ready, target / _COPYING)
            (target / _COPYING).rename(target / _COPIED)
            new = [file.relative_to(ready) for file in sorted(ready.rglob("*")) if file.is_file()]
            for file in new:
                (target / file).parent.mkdir(exist_ok=True)
                (target / _COPIED / file).replace(target / file)
            for pattern in (*_PATTERNS, REPORT):
                for old in target.glob(pattern):
                    if old.relative_to(target) not in new:
                        old.unlink()
            for table in _TABLES:
                with suppress(OSError):  # not there, or it holds something
                    (target / table).rmdir()
            shutil.rmtree(target / _COPIED)
    except OSError as error:
        raise MemprobeError(f"{target}: cannot be written ({error.strerror})") from error
    return target


def _refuse_folder(target: Path, source: Path) -> None:
    """Raises a MemprobeError for a folder that holds anything but what a former push wrote.

    That leaves a card which names its checkpoints: a probe without one, or one that went on since, is somebody's own.
    """
    _refuse_inside(target, source)
    if not target.exists():
        return
    if not target.is_dir():
        raise MemprobeError(f"{target}: exists and holds no probe; name another folder")
    names = {file.name for file in target.iterdir()}
    if not names - {LOCK, _COPYING} or _COPIED in names:  # empty, or a push was killed here
        return
    _refuse_others(target, str(target), "name another folder")


def _refuse_others(folder: Path, name: str, instead: str) -> None:
    """Raises a MemprobeError where ``run.json`` and the card in a folder are not what a push wrote there."""
    if not (folder / RUN).exists():
        raise MemprobeError(f"{name}: exists and holds no probe; {instead}")
    card_ = folder / CARD
    says = card_.read_text(encoding="utf-8", errors="replace") if card_.exists() else ""
    if _TAGS not in says or _readable_in(read_run(folder)["checkpoints"]) not in says:
        raise MemprobeError(f"{name}: holds another probe, which no push wrote; {instead}")


def _refuse_inside(target: Path, source: Path) -> None:
    """Raises a MemprobeError for a folder that is a probe's own, lies in it or holds it: each would be found in the
    other."""
    there, probe = target.resolve(), source.resolve()
    if there == probe or (there.exists() and there.samefile(probe)):
        raise MemprobeError(f"{target}: is the probe itself; name another folder")
    if probe in there.parents:
        raise MemprobeError(f"{target}: lies in the probe {source}; name another folder")
    if there in probe.parents:
        raise MemprobeError(f"{target}: holds the probe {source}; name another folder")


def _to_hub(ready: Path, name: str, private: bool, message: str) -> str:
    """One commit that puts the new files in place and takes a former probe's away."""
    if "@" in name:
        raise MemprobeError(f"{name}: a push makes a revision of its own; give OWNER/NAME")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = {file.relative_to(ready).as_posix(): file for file in sorted(ready.rglob("*")) if file.is_file()}
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        before = api.list_repo_files(name, repo_type="dataset")
        if set(before) - {".gitattributes"}:
            _refuse_other_set(name)
        gone = [old for old in before if old not in files and any(fnmatch(old, one) for one in _PATTERNS)]
        operations = [CommitOperationAdd(where, str(file)) for where, file in files.items()]
        operations += [CommitOperationDelete(old) for old in gone]
        api.create_commit(name, operations, commit_message=message, repo_type="dataset")
    except MemprobeError:
        raise
    except Exception as error:  # the hub's client, HTTP and the file system each have their own
        raise MemprobeError(f"{name}: the hub refuses ({first_line(error)}); hf auth login?") from error
    return f"https://huggingface.co/datasets/{name}"


def _refuse_other_set(name: str) -> None:
    """Raises a MemprobeError for a data set on the hub that holds anything but what a former push wrote."""
    with tempfile.TemporaryDirectory() as folder:
        _from_hub(name, Path(folder), (RUN, CARD))
        _refuse_others(Path(folder), name, "name another data set")


def _from_hub(name: str, target: Path, patterns: Sequence[str] = _PATTERNS) -> None:
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision or None,
            local_dir=target,
            allow_patterns=list(patterns),
        )
    except Exception as error:  # see above
        raise MemprobeError(f"{name}: cannot be fetched from the hub ({first_line(error)})") from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
