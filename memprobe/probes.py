"""The probe directory: opened, and read table by table.

A probe directory holds::

    records/           one row per (checkpoint, lens, factoid, position, answer token, depth)
    controls/          the same keys and `control`: ranks of other tokens at the same positions
    outcomes/          one row per (checkpoint, factoid): what the model says in full
    factoids.parquet   what was asked
    summary.json       the numbers in short
    run.json           what was run
    report.html        the interactive report
    parts/             only while a checkpoint is being probed: finished batches

The folders hold one file per checkpoint, which is never written again. Under schema 1 they were one file each
(``records.parquet`` …), with one lens and one position; such directories open alike.

No torch here: these tables open on any laptop.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.errors import MemprobeError, there_are
from memprobe.files import check_pages
from memprobe.parquet import check_mark, check_rows, parquet_errors, scan_table
from memprobe.records import ADDED, BY_CHECKPOINT, POSITION, TABLES, WHERE_ASKED, in_order
from memprobe.run_file import MAX_TOKENS, read_run_file, read_summary
from memprobe.vouching import kept_marks, vouch

RUN, SUMMARY, FACTOIDS_FILE, PARTS = "run.json", "summary.json", "factoids.parquet", "parts"


@dataclass(frozen=True, repr=False)
class Probe:
    """A probe directory, opened, and looked at through one of its lenses at one position.

    Tables are read when first asked for. ``run`` says what was run: per checkpoint its fingerprint and n_layers, the
    template, lens, readout, tokenisation rule, factoid hash and versions. ``tokens`` in it maps token ids to their
    text.

    Attributes:
        path: the directory.
        run: ``run.json``; ``lens``, ``readout`` and ``position`` in it are those of this view.
        lens: name of the lens that is looked through; at first the first one (:meth:`under` changes it).
        position: where it is read; at first the position that predicts the answer.
        note: what a reader must know of its tables; empty where their checksums stand in ``run.json``.
    """

    path: Path
    run: dict[str, Any]
    lens: str
    position: str = POSITION
    note: str = ""
    _checked: set[tuple[Path, str]] = field(default_factory=set, repr=False, compare=False)

    def __repr__(self) -> str:
        facts = self.run["factoids"]
        return (
            f"Probe of {', '.join(self.checkpoints)} on {facts['n']:,} facts ({facts.get('source', 'a file')}), "
            f"lens {self.lens}, in {self.path}"
        )

    def _repr_html_(self) -> str:
        """A line for each checkpoint of what ``summary.json`` says, for a notebook."""
        from memprobe import sentences

        known = self.summary["checkpoints"] if (self.path / SUMMARY).exists() else {}
        lines = [
            sentences.of_summary(label, known[label], k=self.summary["k"])
            if label in known
            else f"{label}: not probed to the end yet"
            for label in self.checkpoints
        ]
        return "".join(f"<p>{escape(line)}</p>" for line in [repr(self), *lines])

    @property
    def checkpoints(self) -> list[str]:
        """Labels, in the order in which they were named."""
        return list(self.run["checkpoints"])

    @property
    def finished(self) -> list[str]:
        """Labels of the checkpoints that were probed to the end."""
        return [label for label, entry in self.run["checkpoints"].items() if entry["complete"]]

    @property
    def lenses(self) -> list[str]:
        """Names of the lenses that were read, in order."""
        return list(self.run["lenses"])

    @property
    def positions(self) -> list[str]:
        """Where they were read, in order; see :data:`memprobe.records.POSITIONS`."""
        return list(self.run["positions"])

    @cached_property
    def records(self) -> pl.DataFrame:
        """One row per (checkpoint, factoid, answer token, depth) under the lens; see :data:`RECORDS`."""
        return self._collect("records")

    @cached_property
    def controls(self) -> pl.DataFrame:
        """Ranks of control tokens at the same positions under the lens; see :data:`CONTROLS`."""
        return self._collect("controls")

    @cached_property
    def outcomes(self) -> pl.DataFrame:
        """One row per (checkpoint, factoid); see :data:`OUTCOMES`."""
        return self._collect("outcomes")

    @cached_property
    def attributions(self) -> pl.DataFrame:
        """What each block writes towards the answer's logit, of the checkpoints that it was asked of; see
        :data:`ATTRIBUTIONS`.

        Raises:
            MemprobeError: it was asked of none.
        """
        files = [table_file(self.path, label, "attributions") for label in self._with("attributions")]
        if not files:
            raise MemprobeError(
                f"{self.path}: holds no attributions (memprobe layers --attributions makes them)"
            )
        return pl.concat([self.scan_file(file, "attributions") for file in files]).collect()

    @cached_property
    def factoids(self) -> pl.DataFrame:
        """What was asked; see :data:`FACTOIDS`."""
        return self._collect("factoids")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``, of the checkpoints that are here."""
        whole = read_summary(self.path, self.run)
        ours = self.run["checkpoints"]
        return whole | {
            "checkpoints": {label: one for label, one in whole["checkpoints"].items() if label in ours}
        }

    def occurrence(self, *, k: int | None = None, token: str | None = None) -> pl.DataFrame:
        """First occurrence, settled depth and the number of depths that hold the answer, fact by fact.

        Args:
            k, token: by default those that the probe was made with.

        Returns:
            [checkpoint, factoid, n_layers, lof, settled, n_depths]; null where there is none.
        """
        from memprobe.statistics.occurrence import occurrence

        return occurrence(self, k=k, token=token)

    @property
    def tokens(self) -> dict[int, str]:
        """Text of every token id that occurs in the records; where tokenizers differ, see :meth:`token_text`."""
        return {int(key): text for key, text in self.run.get("tokens", {}).items()}

    def token_text(self, label: str, token_id: int) -> str:
        """Text of a token id as a checkpoint's own tokenizer writes it; ``[id]`` while that is being probed."""
        key = str(token_id)
        own = self.run["checkpoints"][label].get("tokens", {})
        return own.get(key, self.run.get("tokens", {}).get(key, f"[{token_id}]"))

    @property
    def n_layers(self) -> dict[str, int]:
        """Depth of the model's own readout, by checkpoint."""
        return {label: entry["n_layers"] for label, entry in self.run["checkpoints"].items()}

    def fingerprint(self, label: str) -> str:
        """Of the checkpoint's weights, however they are read out."""
        return str(self.run["checkpoints"][label]["fingerprint"])

    def only(self, labels: Iterable[str]) -> Probe:
        """This probe with some of its checkpoints, in the order given."""
        entries = self.run["checkpoints"]
        return replace(self, run=self.run | {"checkpoints": {label: entries[label] for label in labels}})

    def under(self, lens: str | None = None, position: str | None = None) -> Probe:
        """This probe through another of its lenses, or at another position.

        Raises:
            MemprobeError: it was not read so.
        """
        lens, position = lens or self.lens, position or self.position
        for name, known, what in ((lens, self.lenses, "lens"), (position, self.positions, "position")):
            if name not in known:
                raise MemprobeError(
                    f"{self.path}: was not read with {what} {name!r}; {there_are(name, known)}"
                )
        view = _view_of(self.run["lenses"][lens]) | {"position": position}
        return replace(self, run=self.run | view, lens=lens, position=position)

    def views(self) -> list[Probe]:
        """This probe through each of its lenses, in order."""
        return [self.under(lens) for lens in self.lenses]

    def second_readouts(self) -> list[Probe]:
        """This probe through each lens that differs from its own in whose norm and unembedding it reads with."""
        if self.run["readout"] != "own":
            return []
        return [
            view
            for view in self.views()
            if view.run["lens"] == self.run["lens"] and view.run["readout"] != "own"
        ]

    def read(
        self,
        table: str,
        *,
        lens: str | Sequence[str] | None = None,
        position: str | Sequence[str] | None = None,
        checkpoints: Iterable[str] | None = None,
    ) -> pl.LazyFrame:
        """A table as a lazy frame: finished checkpoints, and the finished batches of those under way.

        Args:
            table: records, controls, outcomes or factoids.
            lens, position: one or several; by default those of this view.
            checkpoints: labels, by default all; only their files are touched.

        Raises:
            MemprobeError: a table is missing, torn, changed, of another schema, or says what cannot be; a lens,
                position or checkpoint that the probe does not have.
        """
        if table == "factoids":
            return self.scan_file(self.path / FACTOIDS_FILE, table)
        labels = self.checkpoints if checkpoints is None else list(checkpoints)
        if unknown := [label for label in labels if label not in self.run["checkpoints"]]:
            raise MemprobeError(
                f"{self.path}: no checkpoint {unknown[0]!r}; {there_are(unknown[0], self.checkpoints)}"
            )
        frames = [self.scan_file(file, table, only) for file, only in self._files(table, labels)]
        rows = pl.concat([pl.LazyFrame(schema=TABLES[table]), *frames])
        if table not in ("records", "controls"):
            return rows
        for name, chosen in (("lens", lens or self.lens), ("position", position or self.position)):
            wanted = [chosen] if isinstance(chosen, str) else list(chosen)
            known = self.run["lenses" if name == "lens" else "positions"]
            if unknown := [one for one in wanted if one not in known]:
                raise MemprobeError(
                    f"{self.path}: was not read with {name} {unknown[0]!r}; {there_are(unknown[0], known)}"
                )
            if len(known) > 1:
                rows = rows.filter(pl.col(name).is_in(wanted))
        return rows

    def files(self) -> list[Path]:
        """The tables of finished checkpoints and the factoids, as paths within the directory."""
        files = [file for table in BY_CHECKPOINT for file, _ in self._files(table, self.finished)]
        files += [table_file(self.path, label, name) for name in WHERE_ASKED for label in self._with(name)]
        return [file.relative_to(self.path) for file in [*files, self.path / FACTOIDS_FILE]]

    def check(self) -> None:
        """Holds every finished table against its mark: in ``run.json``, under schema 1 in ``checksums.json``.

        Raises:
            MemprobeError: a table is missing or was changed.
        """
        marks: dict[Path, dict[str, Any] | None] = {
            self.path / FACTOIDS_FILE: self.run.get("tables", {}).get("factoids")
        }
        if self.run["schema"] == 1:
            marks |= {
                self.path / f"{table}.parquet": mark for table, mark in (kept_marks(self.path) or {}).items()
            }
        for label in self.finished:
            for table in BY_CHECKPOINT if self.run["schema"] > 1 else ():
                mark = self.run["checkpoints"][label].get("tables", {}).get(table)
                if mark is None:
                    raise MemprobeError(
                        f"{self.path / RUN}: checkpoints.{label}.tables: says nothing of {table}; probe again"
                    )
                marks[table_file(self.path, label, table)] = mark
            for table in WHERE_ASKED:
                marks[table_file(self.path, label, table)] = tables_of(self.run, label).get(table)
        for file, mark in marks.items():
            if mark is not None:
                check_mark(file, mark)

    def _with(self, table: str) -> list[str]:
        """Finished checkpoints that have a table which is there only where it was asked for."""
        return [label for label in self.finished if table in tables_of(self.run, label)]

    def _files(self, table: str, labels: Sequence[str]) -> list[tuple[Path, list[str]]]:
        """Files that hold a table of some checkpoints, with the labels that count in each."""
        finished = [label for label in labels if self.run["checkpoints"][label]["complete"]]
        if self.run["schema"] == 1:
            files = [(self.path / f"{table}.parquet", finished)] if finished else []
        else:
            files = [(table_file(self.path, label, table), [label]) for label in finished]
        for label in labels:
            if label not in finished:
                files += [(file, [label]) for file in part_files(self.path, label, table)]
        return files

    def scan_file(self, path: Path, table: str, labels: Sequence[str] = ()) -> pl.LazyFrame:
        """One file of the directory, under the present schema; what it says is checked the first time.

        Raises:
            MemprobeError: see :meth:`read`.
        """
        rows = scan_table(path, table, ADDED | {"lens": next(iter(self.run["lenses"]))})
        if table == "factoids":
            return rows
        if self.run["schema"] == 1:
            rows = rows.filter(pl.col("checkpoint").is_in(list(labels)))
        for label in labels:
            if (path, label) not in self._checked:
                entries = {label: self.run["checkpoints"][label] for label in labels}
                check_rows(
                    rows,
                    table,
                    path,
                    last={label: entry["n_layers"] for label, entry in entries.items()},
                    vocabulary={label: entry.get("vocab", MAX_TOKENS) for label, entry in entries.items()},
                    lenses=self.lenses,
                    positions=self.positions,
                )
                self._checked.update((path, label) for label in labels)
        return rows

    def _collect(self, table: str) -> pl.DataFrame:
        rows = self.read(table)
        with parquet_errors(self.path):
            return rows.collect()


def open_probe(path: str | Path, *, lens: str | None = None, position: str | None = None) -> Probe:
    """Opens a probe directory, through its first lens at the position that predicts the answer.

    Args:
        lens, position: another view of it; see :meth:`Probe.under`.

    Raises:
        MemprobeError: there is none, a later memprobe wrote it, or its files were changed.
    """
    opened = probe_of(Path(path), read_run(Path(path)))
    opened.check()
    if (
        opened.run["schema"] == 1
        and opened.finished == opened.checkpoints
        and kept_marks(opened.path) is None
    ):
        for table in (*BY_CHECKPOINT, "factoids"):
            if (file := opened.path / f"{table}.parquet").is_file():
                check_pages(file)
        tables = {table: opened.read(table) for table in BY_CHECKPOINT}
        opened = replace(opened, note=vouch(opened.path, opened.run, tables, opened.factoids))
    return opened.under(lens, position) if lens or position else opened


def in_another_readout(probe: Probe | str | Path) -> Probe:
    """A probe as it was read with another checkpoint's norm and unembedding.

    Raises:
        MemprobeError: it was not.
    """
    opened = probe if isinstance(probe, Probe) else open_probe(probe)
    if opened.run["readout"] != "own":
        return opened
    if not (others := opened.second_readouts()):
        raise MemprobeError(
            f"{opened.path}: read with each checkpoint's own unembedding; `fixed_readout` needs a probe "
            "made with memprobe layers --readout BASE"
        )
    return others[0]


def probe_of(path: Path, run: Mapping[str, Any]) -> Probe:
    """A probe directory by what its ``run.json`` says; nothing else is read.

    Schema 1 named one lens and its readout; it is read as a probe of that lens.
    """
    settings = dict(run)
    if run["schema"] == 1:
        kind, readout = run.get("lens", "logit"), run.get("readout", "own")
        name = kind if readout == "own" else f"{kind}@{readout}"
        settings |= {"lenses": {name: {"kind": kind, "readout": readout}}, "positions": [POSITION]}
    first = next(iter(settings["lenses"]))
    settings["positions"] = in_order(settings["positions"])  # older probes kept the order of the call
    position = settings["positions"][0]
    return Probe(
        path, settings | _view_of(settings["lenses"][first]) | {"position": position}, first, position
    )


def _view_of(lens: Mapping[str, Any]) -> dict[str, Any]:
    """``lens`` and ``readout`` of a view: two fitted lenses of one kind are two lenses."""
    mark = f" {lens['sha256'][:8]}" if lens.get("sha256") else ""
    return {"lens": f"{lens['kind']}{mark}", "readout": lens["readout"]}


def read_run(path: Path) -> dict[str, Any]:
    """``run.json`` of a directory that should be a probe's.

    Raises:
        MemprobeError: it is not, or it was written by a later memprobe.
    """
    if not (path / RUN).exists():
        raise MemprobeError(
            f"{path}: no run.json, so this is not a probe directory (memprobe layers --out makes one)"
        )
    return read_run_file(path)


def nothing_yet(path: Path) -> str:
    """What is true of a probe directory without a checkpoint: it may be at work, or have failed before it was."""
    return (
        f"{path}: holds no checkpoint yet: the first one is being loaded, or could not be read; memprobe layers "
        f"--out {shlex.quote(str(path))} begins it then, also with other options"
    )


def tables_of(run: dict[str, Any], label: str) -> dict[str, Any]:
    """The marks of a checkpoint's tables, by name."""
    return run["checkpoints"][label].get("tables", {})


def table_file(path: Path, label: str, table: str) -> Path:
    """The file of a finished checkpoint; a label may hold characters that a file name may not."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", label).strip("-.")[:60]
    return path / table / f"{plain}-{_short_hash(label)}.parquet".lstrip("-")


def part_files(path: Path, label: str, table: str) -> list[Path]:
    """The finished batches of a checkpoint under way, in order."""
    folder = parts_dir(path, label)  # the outcomes of a batch are written last, and say that it is whole
    names = sorted(file.name for file in folder.glob("outcomes-*.parquet"))
    return [folder / name.replace("outcomes", table, 1) for name in names]


def parts_dir(path: Path, label: str) -> Path:
    """Where a checkpoint's finished batches wait."""
    return path / PARTS / _short_hash(label)


def _short_hash(label: str) -> str:
    return hashlib.sha256(label.encode()).hexdigest()[:12]
