"""The probe directory as it is written: locked for one process, begun, filled batch by batch, never torn.

    parts/HASH/{records,controls,outcomes}-PLACE.parquet    finished batches of the checkpoint under way, named by the
        │                                                   place of their first factoid in the plan
        └─ merged in the order of their names into one file a table when the checkpoint is complete; then they go

The tables of a checkpoint are the same bytes however its batches were spread over parts, and whoever wrote them.

``run.json`` is written last, so that what it calls complete is there. A file of a finished checkpoint is not written
again, whatever joins it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.files import write_parquet, write_rows, write_text
from memprobe.locks import one_process
from memprobe.parquet import mark_of, parquet_errors, scan_table
from memprobe.probes import (
    FACTOIDS_FILE,
    PARTS,
    RUN,
    SUMMARY,
    Probe,
    part_files,
    parts_dir,
    probe_of,
    read_run,
    table_file,
)
from memprobe.records import (
    BY_CHECKPOINT,
    SCHEMA_VERSION,
    TABLES,
    WHERE_ASKED,
    factoids_frame,
    factoids_from_frame,
)
from memprobe.sameness import differ, other_checkpoint, other_facts, said_to_hold, without
from memprobe.starting_over import Work, settle
from memprobe.vouching import CHECKSUMS

if TYPE_CHECKING:
    from memprobe.capturing import Tables

FLUSH_SECONDS = 20
"""At most so much work is lost when a probe is killed."""

LOCK = ".lock"
REPORT = "report.html"
_OWN = (RUN, SUMMARY, REPORT, FACTOIDS_FILE)
_COUNTED = ("k", "token")
_ADDITIVE = (*_COUNTED, "memprobe", "versions")  # of the call, not of what was probed
_SAME = ("template", "chat_date", "tokenisation", "dtype", "seed", "factoids", "intrusions", "positions")
_MEND = "; use another --out, or --fresh to start over"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds a probe directory for one process; inside, the same thread may lock it again.

    What a killed process left half written is removed, and a probe that it had set aside comes back.

    Raises:
        MemprobeError: another process probes into it, it holds other files, or it cannot be written.
    """
    _refuse_other_files(out)
    with one_process(out, "probing", lock=LOCK) as first:
        if first:
            settle(out, PROBE)
            _remove_leftovers(out)
        yield


def _remove_leftovers(out: Path) -> None:
    """Temporary files of a process that was killed: nobody else writes here now."""
    folders = [out, *(out / table for table in BY_CHECKPOINT), *(out / PARTS).glob("*")]
    for folder in folders:
        for file in folder.glob(".*"):
            own = any(file.name.startswith(f".{name}.") for name in _OWN)
            if own or (folder != out and ".parquet." in file.name):
                file.unlink(missing_ok=True)


def _files(out: Path) -> list[Path]:
    """What probing wrote into a directory; the parts as a whole."""
    tables = (*BY_CHECKPOINT, *WHERE_ASKED)
    names = (*(f"{table}.parquet" for table in tables), FACTOIDS_FILE, SUMMARY, REPORT, CHECKSUMS, RUN)
    patterns = ("residuals/*/*.safetensors", *(f"{table}/*.parquet" for table in tables))
    found = [file for pattern in patterns for file in out.glob(pattern)]
    return [*found, *(out / name for name in (PARTS, *names) if (out / name).exists())]


def _shows(out: Path) -> bool:
    """Whether some factoids of a checkpoint are read."""
    return any(any(out.glob(pattern)) for pattern in (f"{PARTS}/*/*.parquet", "outcomes/*.parquet"))


PROBE = Work("probe", there=lambda out: (out / RUN).exists(), files=_files, shows=_shows)
"""A probe, as ``--fresh`` starts it over."""


def open_or_start(out: Path, wanted: Mapping[str, Any], factoids: Sequence[Factoid]) -> dict[str, Any]:
    """The ``run.json`` to go on with. A directory of schema 1 is brought to the present one.

    One that no checkpoint was ever read in, as its template or plan could not be, is begun again, whatever is asked.

    Raises:
        MemprobeError: ``out`` was probed otherwise, or holds other files.
    """
    if (out / RUN).exists() and not _is_empty(out):
        run = read_run(out)
        probe = probe_of(out, run)  # whose `run` says, beside what the file does, how it is looked at
        _refuse_other_run(probe, wanted, factoids)
        run = dict(run) if run["schema"] == SCHEMA_VERSION else _upgraded(probe, run, wanted)
        counted_otherwise = any(run[key] != wanted[key] for key in _COUNTED)
        run |= {key: wanted[key] for key in _ADDITIVE}
        if counted_otherwise:  # the summary of this call is told under them, and so is what is read after it
            write_run(run, out)
        # The summary of an older probe may begin with another position.
        if run["positions"] != probe.run["positions"]:
            (out / SUMMARY).unlink(missing_ok=True)
            run["positions"] = probe.run["positions"]
            write_run(run, out)
    else:
        _refuse_other_files(out)
        run = dict(wanted)
        (out / SUMMARY).unlink(missing_ok=True)
        write_run(run, out)  # first: from here on the directory is a probe's, whatever happens
    file = out / FACTOIDS_FILE
    if "factoids" not in run["tables"] or not file.exists():  # new, or killed between the two first writes
        write_parquet(factoids_frame(factoids), file)
        run["tables"] = {"factoids": mark_of(file)}
    return run


def _is_empty(out: Path) -> bool:
    """Whether a probe directory says what was asked alone: it names no checkpoint and holds no table."""
    # One that is named may have parts in a storage of a cluster.
    return not read_run(out)["checkpoints"] and {*_files(out)} <= {out / name for name in _OWN}


def _refuse_other_run(probe: Probe, wanted: Mapping[str, Any], factoids: Sequence[Factoid]) -> None:
    for key in _SAME:
        ours, theirs = (without(run.get(key), "content") for run in (probe.run, wanted))
        # Probes of old said nothing of intrusions where there were none.
        if ours != theirs and (ours or theirs):
            raise MemprobeError(f"{probe.path}: {said_to_hold(key, ours, theirs)}{_MEND}")
    changed = other_facts(
        probe.run["factoids"], wanted["factoids"], lambda: factoids_from_frame(probe.factoids), factoids
    )
    if changed:
        raise MemprobeError(f"{probe.path}: this probe has the same facts with other {changed}{_MEND}")
    _refuse_other_lenses(probe, wanted["lenses"])


def _refuse_other_lenses(probe: Probe, wanted: Mapping[str, Any]) -> None:
    if probe.lenses != list(wanted):
        raise MemprobeError(f"{probe.path}: {said_to_hold('lens', probe.lenses, list(wanted))}{_MEND}")
    ours, theirs = _lens_marks(probe.run["lenses"]), _lens_marks(wanted)
    for name in wanted if probe.run["schema"] > 1 else ():  # schema 1 said nothing of the readout's weights
        if ours[name] != theirs[name] or differ(probe.run["lenses"][name], wanted[name], "readout_settings"):
            raise MemprobeError(
                f"{probe.path}: the lens {name!r} of this probe is not the one that you gave{_MEND}"
            )


def _lens_marks(lenses: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a lens the same one: everything but what is only told of it."""
    names = ("kind", "readout", "readout_fingerprint", "sha256")
    return {name: {key: entry.get(key) for key in names} for name, entry in lenses.items()}


def _refuse_other_files(out: Path) -> None:
    """Raises a MemprobeError for what exists and is not a probe directory; one whose probe is set aside is one."""
    if (out / RUN).exists() or PROBE.before(out).is_dir() or not out.exists():
        return
    # A probe that was killed before it was whole has its lock and its first write, and perhaps the one before it.
    if not out.is_dir() or any(
        file.name != LOCK and not file.name.startswith(f".{RUN}.") and not PROBE.owns(file.name)
        for file in out.iterdir()
    ):
        raise MemprobeError(f"{out}: exists and is not a probe directory; use another --out")


def _upgraded(probe: Probe, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A directory of schema 1 under the present one: tables by checkpoint, then ``run.json``, then the old tables go.

    Killed in between, it is still one of schema 1. Batches of a checkpoint under way are taken over as they are.
    """
    run = dict(before) | {"schema": SCHEMA_VERSION, "tables": {}}
    run |= {key: wanted[key] for key in ("lens", "readout", "lenses", "positions")}
    run["checkpoints"] = {label: dict(entry) for label, entry in probe.run["checkpoints"].items()}
    run["tables"]["factoids"] = mark_of(probe.path / FACTOIDS_FILE)
    for label in probe.finished:
        marks = {}
        for table in BY_CHECKPOINT:
            file = table_file(probe.path, label, table)
            write_parquet(probe.read(table, checkpoints=[label]), file)
            marks[table] = mark_of(file)
        run["checkpoints"][label]["tables"] = marks
    for label in probe.checkpoints:
        for table in BY_CHECKPOINT if label not in probe.finished else ():
            for file in part_files(probe.path, label, table):
                rows = probe.scan_file(file, table, [label])
                with parquet_errors(file):
                    write_parquet(rows.collect(), file)
    write_run(run, probe.path)
    for table in BY_CHECKPOINT:
        (probe.path / f"{table}.parquet").unlink(missing_ok=True)
    (probe.path / CHECKSUMS).unlink(missing_ok=True)  # of the tables that are gone
    return run


class Parts:
    """Collects a checkpoint's batches and writes them out every :data:`FLUSH_SECONDS`.

    Attributes:
        done: ids of the factoids in finished batches. A batch that cannot be read any more is removed, so that its
            factoids are probed again.
    """

    def __init__(self, out: Path, label: str):
        self.folder = parts_dir(out, label)
        self.waiting: list[Tables] = []
        self.flushed = time.monotonic()
        self.done: set[str] = set()
        self.place = 0
        for file in part_files(out, label, "outcomes"):
            self.take(file)

    def take(self, file: Path) -> bool:
        """Counts a part in, by the file of its outcomes, after reading it whole; whether it could be read."""
        names = {table: file.with_name(file.name.replace("outcomes", table, 1)) for table in BY_CHECKPOINT}
        try:
            tables = [_factoids_in(path, table) for table, path in names.items()]
        except MemprobeError:
            for path in reversed(names.values()):  # outcomes first: without them a part does not count
                path.unlink(missing_ok=True)
            return False
        self.done |= tables[-1]
        return True

    def add(self, place: int, tables: Tables) -> None:
        """Takes a batch in.

        Args:
            place: of its first factoid in the plan.
        """
        if not self.waiting:
            self.place = place
        self.waiting.append(tables)
        self.done |= set(tables.outcomes["factoid"])
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes out what waits."""
        from memprobe.capturing import Tables

        if self.waiting:
            write_part(self.folder, self.place, Tables.concat(self.waiting))
            self.waiting = []
        self.flushed = time.monotonic()


def _factoids_in(path: Path, table: str) -> set[str]:
    rows = scan_table(path, table)
    with parquet_errors(path):
        return set(rows.collect()["factoid"])


def write_part(folder: Path, place: int, tables: Tables) -> str:
    """Writes finished batches as a part; the name of its outcomes, which come last and say that it is whole."""
    name = ""
    for table in BY_CHECKPOINT:
        name = f"{table}-{place:08}.parquet"
        write_parquet(getattr(tables, table), folder / name)
    return name


def mark_of_parts(run: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """What parts are known by where the directory that they belong to does not lie: what was asked of which weights.

    Args:
        entry: of the checkpoint; see :func:`memprobe.identity.identity_of`.
    """
    asked = [*(run.get(key) for key in _SAME), _lens_marks(run["lenses"])]
    weights = [entry.get(part) for part in ("fingerprint", "settings", "tokenizer")]
    return hashlib.sha256(json.dumps([asked, weights], sort_keys=True).encode()).hexdigest()


def merge(out: Path, run: Mapping[str, Any], label: str) -> list[int]:
    """Merges a checkpoint's parts into its tables.

    Returns:
        The tokens that they name.

    Raises:
        MemprobeError: the parts say what cannot be, or the tables cannot be written.
    """
    probe = probe_of(out, run)
    for table in BY_CHECKPOINT:
        write_rows(_rows(probe, label, table), TABLES[table], table_file(out, label, table))
    records, controls = (pl.scan_parquet(table_file(out, label, table)) for table in ("records", "controls"))
    columns = [records.select(id="top1"), records.select(id="token_id"), controls.select(id="token_id")]
    return pl.concat(columns).unique().sort("id").collect()["id"].to_list()


def _rows(probe: Probe, label: str, table: str) -> Iterator[pl.DataFrame]:
    """A table of a checkpoint under way, part by part."""
    for file in part_files(probe.path, label, table):
        rows = probe.scan_file(file, table, [label])
        with parquet_errors(file):
            yield rows.collect()


def finish(out: Path, run: dict[str, Any], label: str, texts: Mapping[str, str]) -> None:
    """Calls a checkpoint complete whose parts are merged.

    Args:
        texts: what the tokens of its tables say.
    """
    entry, shared = run["checkpoints"][label], run["tokens"]
    entry["tokens"] = {key: text for key, text in texts.items() if shared.setdefault(key, text) != text}
    run["tokens"] = dict(sorted(shared.items(), key=lambda item: int(item[0])))
    entry["tables"] = {table: mark_of(table_file(out, label, table)) for table in BY_CHECKPOINT}
    entry["complete"] = True
    write_run(run, out)
    remove_parts(out, label)


def discard_other(out: Path, label: str, given: Mapping[str, Any]) -> None:
    """Forgets a checkpoint under way that is another one; a finished one stays.

    Args:
        given: what it is known by now; see :func:`memprobe.identity.identity_of`.
    """
    if not (out / RUN).exists():
        return
    with locked(out):
        run = dict(read_run(out))
        entry = run["checkpoints"].get(label)
        if entry is None or entry["complete"] or not other_checkpoint(entry, given):
            return
        run["checkpoints"] = {name: one for name, one in run["checkpoints"].items() if name != label}
        write_run(run, out)
        remove_parts(out, label)


def remove_parts(out: Path, label: str) -> None:
    """Removes what a finished checkpoint no longer needs; a kill in between leaves it to the next call."""
    if not (out / PARTS).exists():
        return
    shutil.rmtree(parts_dir(out, label), ignore_errors=True)
    if not any((out / PARTS).iterdir()):
        shutil.rmtree(out / PARTS, ignore_errors=True)


def write_run(run: Mapping[str, Any], out: Path) -> None:
    """Writes ``run.json``, a checkpoint a line."""
    entries = {label: _one_line(entry) for label, entry in run["checkpoints"].items()}
    write_text(_by_line(run, entries), out / RUN)


def write_summary(out: Path, run: Mapping[str, Any], known: Path | None = None) -> None:
    """Brings ``summary.json`` up to date: entries of finished checkpoints that it has are kept as they stand.

    Args:
        known: another probe directory whose entries of the same checkpoints are taken over.
    """
    head = {"schema": SCHEMA_VERSION, "k": run["k"], "token": run["token"], "lens": next(iter(run["lenses"]))}
    probe = probe_of(out, run)
    lines = _known_lines(out / SUMMARY, head)
    if known is not None:
        lines = _known_lines(known / SUMMARY, head) | lines
    lines = {label: lines[label] for label in probe.finished if label in lines}
    if missing := [label for label in probe.finished if label not in lines]:
        for label in missing:
            entry = _summary_of(probe.only([label]))
            if entry is not None:
                lines[label] = _one_line(entry)
    ordered = {label: lines[label] for label in probe.finished if label in lines}
    write_text(_by_line({**head, "checkpoints": {}}, ordered), out / SUMMARY)


def _summary_of(one: Probe) -> dict[str, Any] | None:
    """A checkpoint's entry; ``lenses`` and ``positions`` in it hold the same for what else was read."""
    from memprobe.summary import summarise

    (label,) = one.checkpoints

    def entry(view: Probe) -> dict[str, Any] | None:
        return summarise(view, k=one.run["k"], token=one.run["token"]).get(label)

    numbers = entry(one)
    if numbers is None:
        return None
    for name, views in (
        ("lenses", {lens: one.under(lens) for lens in one.lenses[1:]}),
        ("positions", {place: one.under(position=place) for place in one.positions[1:]}),
    ):
        if views:
            numbers[name] = {key: entry(view) for key, view in views.items()}
    return numbers


def _known_lines(path: Path, head: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a summary under the same head, each as the line that it is."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return {}
    beginning = _by_line({**head, "checkpoints": {}}, {}).split("\n")[:-3]
    if lines[: len(beginning)] != beginning or lines[-3:] != [" }", "}", ""]:
        return {}
    known = {}
    for line in lines[len(beginning) : -3]:
        try:
            label, end = json.JSONDecoder().raw_decode(line, 2)
        except ValueError:
            return {}
        known[label] = line[end + 2 :].removesuffix(",")
    return known


def _one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _by_line(whole: Mapping[str, Any], entries: Mapping[str, str]) -> str:
    """JSON with a key a line, and under ``checkpoints``, which come last, an entry a line."""
    lines = [
        f" {_one_line(key)}: {_one_line(value)}," for key, value in whole.items() if key != "checkpoints"
    ]
    inner = ",\n".join(f"  {_one_line(label)}: {text}" for label, text in entries.items())
    return "\n".join(["{", *lines, ' "checkpoints": {', *([inner] if inner else []), " }", "}", ""])
