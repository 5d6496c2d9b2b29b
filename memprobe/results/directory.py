"""The results directory: what was asked, and what each checkpoint made of it according to another tool.

results.json        by label: tool, task, model, metric, and from which score on a fact counts as known
outcomes/           one file a checkpoint: the outcomes of a probe, and the `score` itself
factoids.parquet    what was asked
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from memprobe import __version__
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, SameFacts
from memprobe.files import check_pages, parquet_errors, read_valid, write_json, write_parquet
from memprobe.probes import FACTOIDS_FILE, table_file
from memprobe.records import FACTOIDS, OUTCOMES, factoids_frame, factoids_from_frame
from memprobe.results.evaluation import Evaluation
from memprobe.run_file import Count, Open

RESULTS = "results.json"
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
        return self._table(self.path / FACTOIDS_FILE, FACTOIDS)

    def outcomes(self, label: str) -> pl.DataFrame:
        """One row a factoid; see :data:`SCORED`."""
        return self._table(table_file(self.path, label, "outcomes"), SCORED)

    def _table(self, path: Path, schema: pl.Schema) -> pl.DataFrame:
        if not path.is_file():
            raise MemprobeError(f"{path}: missing, so this results directory is incomplete; import again")
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
) -> ResultsDirectory:
    """Writes evaluations of one set of facts; labels that the directory holds already are kept beside them.

    Args:
        evaluations: by label.
        metric: by what a fact is judged (default: ``exact_match``, or the only one).
        at_least: the score from which on a fact counts as known; needed where scores lie between 0 and 1.

    Raises:
        MemprobeError: no such metric, scores between 0 and 1 without ``at_least``, one id for two questions, or no
            fact that two of them share; ``out`` holds something else.
    """
    out = Path(out)
    before: dict[str, Any] = {}
    facts: dict[str, Factoid] = {}
    if is_results(out):
        opened = open_results(out)
        before, facts = opened.about["checkpoints"], {f.id: f for f in factoids_from_frame(opened.factoids)}
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MemprobeError(f"{out}: exists and is not a results directory; use another --out")
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
    write_parquet(factoids_frame(facts.values()), out / FACTOIDS_FILE)
    for label, table in tables.items():
        write_parquet(table, table_file(out, label, "outcomes"))
    about = {"schema": SCHEMA, "memprobe": __version__, "checkpoints": {**before, **entries}}
    write_json(about, out / RESULTS)
    return ResultsDirectory(out, about)


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
