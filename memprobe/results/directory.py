"""The results directory: what was asked, and what each checkpoint made of it according to another tool.

results.json        by label: tool, task, model, metric, and from which score on a fact counts as known
outcomes/           one file a checkpoint: the outcomes of a probe, and the `score` itself
factoids.parquet    what was asked
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from memprobe import __version__
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, SameFacts
from memprobe.files import check_pages, parquet_errors, read_valid, write_json, write_parquet
from memprobe.locks import one_process
from memprobe.probes import FACTOIDS_FILE, table_file
from memprobe.records import FACTOIDS, OUTCOMES, factoids_frame, factoids_from_frame
from memprobe.results.evaluation import Evaluation
from memprobe.results.measures import Measure
from memprobe.run_file import Count, Open

RESULTS = "results.json"
LOCK = ".lock"
SCORED = pl.Schema({**OUTCOMES, "score": pl.Float64, "times": pl.Int32})
"""Outcomes, the mean of the metric, and how many times the factoid was asked."""
SCHEMA = 1


class ResultEntry(Open):
    """One checkpoint."""

    tool: str
    task: str
    metric: str
    model: str | None = None
    at_least: float
    n: Count


class ResultsFile(Open):
    """``results.json``."""

    version: Literal[1] = Field(alias="schema")
    checkpoints: dict[str, ResultEntry]


@dataclass(frozen=True)
class ResultsDirectory:
    """A results directory, opened.

    Attributes:
        about: ``results.json``.
    """

    path: Path
    about: dict[str, Any]

    @property
    def checkpoints(self) -> list[str]:
        """Labels, in the order in which they came."""
        return list(self.about["checkpoints"])

    @property
    def factoids(self) -> pl.DataFrame:
        """What was asked; see :data:`memprobe.records.FACTOIDS`."""
        return self._table(self.path / FACTOIDS_FILE, FACTOIDS, *self.checkpoints)

    def measure(self, label: str) -> Measure:
        """How a checkpoint's facts were judged."""
        return Measure.of(self.about["checkpoints"][label])

    def outcomes(self, label: str) -> pl.DataFrame:
        """One row a factoid; see :data:`SCORED`."""
        return self._table(table_file(self.path, label, "outcomes"), SCORED, label)

    def _table(self, path: Path, schema: pl.Schema, *again: str) -> pl.DataFrame:
        """A table of the directory; ``again`` are the labels that bring it back where it is gone."""
        if not path.is_file():
            raise MemprobeError(
                f"{path}: missing, so this results directory is incomplete; import {', '.join(again)} again"
            )
        check_pages(path)
        with parquet_errors(path):
            table = pl.read_parquet(path)
        if {name: table.schema.get(name) for name in schema} != dict(schema):
            raise MemprobeError(f"{path}: its columns are not those of a results directory")
        return table.select(list(schema))


def is_results(path: Path) -> bool:
    """Whether a folder is a results directory."""
    return (path / RESULTS).is_file()


def open_results(path: str | Path) -> ResultsDirectory:
    """Opens a results directory.

    Raises:
        MemprobeError: it is none, or its ``results.json`` says what it may not.
    """
    path = Path(path)
    if not is_results(path):
        raise MemprobeError(
            f"{path}: no {RESULTS}, so this is not a results directory (memprobe import makes one)"
        )
    return ResultsDirectory(path, read_valid(path / RESULTS, ResultsFile))


def write_results(
    evaluations: Mapping[str, Evaluation],
    out: str | Path,
    *,
    metric: str | None = None,
    at_least: float | None = None,
    replace: bool = False,
) -> ResultsDirectory:
    """Writes evaluations of one set of facts; labels that the directory holds already are kept beside them.

    Args:
        evaluations: by label.
        metric: by what a fact is judged (default: ``exact_match``, or the only one).
        at_least: the score from which on a fact counts as known; needed where scores lie between 0 and 1.
        replace: take these in place of other results that the directory holds under their labels.

    Raises:
        MemprobeError: no such metric, scores between 0 and 1 without ``at_least``, a limit that is not finite, one id
            for two questions, or no fact that two of them share; ``out`` holds something else, another result under a
            label, or is in use.
    """
    if at_least is not None and not math.isfinite(at_least):
        raise MemprobeError(f"`at_least` {at_least}: give a finite number")
    out = Path(out)
    _refuse_other_files(out)
    with one_process(out, "importing", lock=LOCK):
        _refuse_other_files(out)  # as it is now that nobody else writes here
        return _write(evaluations, out, metric, at_least, replace)


def _write(
    evaluations: Mapping[str, Evaluation],
    out: Path,
    metric: str | None,
    at_least: float | None,
    replace: bool,
) -> ResultsDirectory:
    opened = open_results(out) if is_results(out) else None
    before: dict[str, Any] = opened.about["checkpoints"] if opened else {}
    facts = {} if opened is None else _facts(opened, evaluations)
    same = SameFacts()
    same.add(((id, fact.prompt, fact.answer) for id, fact in facts.items()), str(out))
    tables, entries = {}, {}
    for label, evaluation in evaluations.items():
        name = evaluation.chosen(metric)
        limit = _limit(evaluation, name, at_least)
        if facts and not facts.keys() & evaluation.factoids.keys():
            raise MemprobeError(
                f"{evaluation.file}: {label} has no fact in common (by id) with the results before it"
            )
        for id, fact in evaluation.factoids.items():
            facts.setdefault(id, fact)
        same.add(
            ((id, fact.prompt, fact.answer) for id, fact in evaluation.factoids.items()), str(evaluation.file)
        )
        tables[label] = _outcomes(label, evaluation, name, limit)
        entries[label] = {
            "tool": evaluation.tool,
            "task": evaluation.task,
            "model": evaluation.model,
            "metric": name,
            "at_least": limit,
            "n": len(tables[label]),
        }
    others = {} if opened is None else _others(opened, entries, tables)
    if others and not replace:
        label, differs = next(iter(others.items()))
        raise MemprobeError(
            f"{out}: holds another result under the label {label!r} ({differs}); use another label, or `replace`"
        )
    if others:  # killed in between, nothing is said of tables that may be old or new
        write_json(_about({label: before[label] for label in before if label not in others}), out / RESULTS)
    write_parquet(factoids_frame(facts.values()), out / FACTOIDS_FILE)
    for label, table in tables.items():
        write_parquet(table, table_file(out, label, "outcomes"))
    about = _about({**before, **entries})
    write_json(about, out / RESULTS)
    return ResultsDirectory(out, about)


def _facts(opened: ResultsDirectory, again: Collection[str]) -> dict[str, Factoid]:
    """By id, what those of a directory's checkpoints were asked that do not come again.

    Raises:
        MemprobeError: that is gone.
    """
    staying = [label for label in opened.checkpoints if label not in again]
    if not staying:
        return {}
    if not (opened.path / FACTOIDS_FILE).is_file():
        raise MemprobeError(
            f"{opened.path / FACTOIDS_FILE}: missing, so nobody knows what was asked; import "
            f"{', '.join(staying)} again in the same command"
        )
    facts = {fact.id: fact for fact in factoids_from_frame(opened.factoids)}
    if not all(table_file(opened.path, label, "outcomes").is_file() for label in staying):
        return facts  # a table that is gone may have been of any of them
    asked = set().union(*(opened.outcomes(label)["factoid"] for label in staying))
    return {id: fact for id, fact in facts.items() if id in asked}


def _about(checkpoints: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, "memprobe": __version__, "checkpoints": dict(checkpoints)}


def _refuse_other_files(out: Path) -> None:
    """Raises a MemprobeError for what exists and is not a results directory, whole or killed before it was."""
    if is_results(out) or not out.exists():
        return
    own = (FACTOIDS_FILE, "outcomes")
    if not out.is_dir() or any(file.name not in own and file.name[0] != "." for file in out.iterdir()):
        raise MemprobeError(f"{out}: exists and is not a results directory; use another --out")


def _others(
    opened: ResultsDirectory, entries: Mapping[str, Mapping[str, Any]], tables: Mapping[str, pl.DataFrame]
) -> dict[str, str]:
    """The labels that a directory holds for results other than those given, and what differs first."""
    others: dict[str, str] = {}
    for label, entry in entries.items():
        held = opened.about["checkpoints"].get(label)
        if held is None:
            continue
        changed = [key for key in entry if held.get(key) != entry[key]]
        if changed:
            others[label] = f"{changed[0]} {held.get(changed[0])}, now {entry[changed[0]]}"
        # A table that is gone can only be imported again.
        elif (file := table_file(opened.path, label, "outcomes")).is_file() and not opened.outcomes(
            label
        ).equals(tables[label]):
            others[label] = f"other scores or answers in {file.name}"
    return others


def _limit(evaluation: Evaluation, metric: str, at_least: float | None) -> float:
    """The score from which on a fact is known; 1 where there is nothing between.

    Raises:
        MemprobeError: there is, and it is not said.
    """
    if at_least is not None:
        return at_least
    values = set(evaluation.means(metric).values())
    if not values <= {0.0, 1.0}:
        some = sorted(values - {0.0, 1.0})[0]
        raise MemprobeError(
            f"{evaluation.file}: {metric} has values other than 0 and 1 ({some:.3g}); say from which on a fact "
            "counts as known: `at_least`"
        )
    return 1.0


def _outcomes(label: str, evaluation: Evaluation, metric: str, limit: float) -> pl.DataFrame:
    means, rows = evaluation.means(metric), []
    for id in evaluation.factoids:
        score = means.get(id)
        rows.append(
            {
                "checkpoint": label,
                "factoid": id,
                "exact_match": None if score is None else score >= limit,
                "prediction": evaluation.predictions.get(id),
                "error": None if score is not None else evaluation.errors.get(id, f"no {metric}"),
                "score": score,
                "times": len(evaluation.scores[metric].get(id, [])),
            }
        )
    return pl.DataFrame(rows, schema=SCORED)
