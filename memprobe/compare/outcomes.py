"""Which facts checkpoints give, compared fact by fact: of probes, and of what other evaluation tools say.

    results directories, probes ──> Answers, one a checkpoint ──> the facts that all of them were asked ──> tables

No records and no depths: this is what can be said of answers alone, with the same pairing by fact, the same fates and
the same arms over seeds as in :func:`memprobe.compare.compare`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from memprobe import sentences, wording
from memprobe.arms import arm_names
from memprobe.chains import chains_of
from memprobe.compare.by_pair import differences, fates
from memprobe.compare.headline import Headline
from memprobe.compare.over_runs import arm_differences, arms, path_of, paths
from memprobe.compare.table import floats
from memprobe.compare.written import (
    as_html,
    as_json,
    as_markdown,
    notes_on_arms,
    write_comparison,
)
from memprobe.errors import MemprobeError, there_are
from memprobe.factoids import SameFacts
from memprobe.files import read_valid, short_names
from memprobe.lineage import lineage
from memprobe.members import TrainingPoint, check_apart, ends_of, made_by, step_of, trained_from
from memprobe.probes import Probe, open_probe
from memprobe.records import ARGMAX, GENERATED, measure_of
from memprobe.results.directory import ResultsDirectory, is_results, open_results
from memprobe.results.measures import Measure, notes_on_measures
from memprobe.stages import after_stage
from memprobe.statistics.arms import Run, arm_means
from memprobe.statistics.arms import arm_differences as arm_differences_of
from memprobe.statistics.ends import SHARE
from memprobe.statistics.fates import fates as fates_of
from memprobe.statistics.intervals import FEWEST, Resamples, check_draws, wilson
from memprobe.statistics.occurrence import DRAWS
from memprobe.statistics.paired import differences as differences_of

FILE, SCHEMA = "outcomes.json", 1
RECALLED, SCORE = "exact", "score"
SCHEMAS: dict[str, pl.Schema] = {
    "outcomes": pl.Schema(
        {"checkpoint": pl.String, "n": pl.Int64} | floats("exact", "exact_low", "exact_high", "score")
    ),
    "differences": differences.schema,
    "fates": fates.schema,
    "paths": paths.schema,
    "arms": arms.schema,
    "arm_differences": arm_differences.schema,
}
"""The tables; all but the first have the columns that :func:`memprobe.compare.compare` gives them."""


@dataclass(frozen=True)
class Answers(TrainingPoint):
    """What one checkpoint answers.

    Attributes:
        exact: by factoid, whether it is given; without what could not be judged.
        score: by factoid, the metric behind that; 0 and 1 where there is no other.
        measure: what given means.
        before, rows: of its manifest, see :func:`memprobe.lineage.lineage`; empty where nothing says them.
    """

    path: Path
    factoids: pl.DataFrame
    exact: Mapping[str, bool]
    score: Mapping[str, float]
    measure: Measure
    before: tuple[str, ...] = ()
    rows: str = ""


@dataclass(frozen=True)
class OutcomeComparison:
    """What :func:`compare_outcomes` finds.

    Attributes:
        settings: what was compared, and how.
        notes: what a reader must know beside the numbers, one line each.
        tables: by name, all of :data:`SCHEMAS`; empty where there is nothing to say.
    """

    settings: dict[str, Any]
    notes: list[str]
    tables: dict[str, pl.DataFrame]

    def verdict(self) -> list[str]:
        """The reference, then what differs from it, and how sure that is."""
        reference = self.settings["reference"]
        own = self.tables["outcomes"].row(by_predicate=pl.col("checkpoint") == reference, named=True)
        lines = [f"{reference} recalls {_percent(own)} of {wording.count(own['n'], 'fact')}."]
        paired = self.tables["differences"].filter(statistic=RECALLED).iter_rows(named=True)
        lines += [f"{row['checkpoint']} against {reference}: {sentences.recalled(row)}." for row in paired]
        over = self.tables["arm_differences"]
        names = arm_names(list(dict.fromkeys([*over["arm"], *over["reference"]])))
        for row in over.filter(statistic=RECALLED).drop_nulls("low").iter_rows(named=True):
            arms = f"{names[row['arm']]} against {names[row['reference']]}{after_stage(row['stage'])}"
            lines.append(f"{arms}: {sentences.recalled(row)} ({sentences.seeds_of(row)}).")
        return lines

    def headline(self) -> Headline:
        """The main table: what each checkpoint gives, and what became of the reference's facts."""
        fate: dict[str, dict[str, int]] = {}
        for row in self.tables["fates"].iter_rows(named=True):
            fate.setdefault(row["checkpoint"], {})[row["path"]] = row["n"]
        rows = []
        for row in self.tables["outcomes"].iter_rows(named=True):
            paths = fate.get(row["checkpoint"], {})
            counts = [str(paths.get(path, "")) for path in ("1→1", "1→0", "0→1", "0→0")]
            rows.append((row["checkpoint"], wording.of_row(row, "exact", ".1%"), *counts))
        says = f"Facts that {self.settings['reference']} recalls (1) or not (0) → the checkpoint."
        columns = ("", "exact match", "1→1", "1→0", "0→1", "0→0")
        return Headline("What is recalled, and what became of each fact", says, columns, tuple(rows))

    def markdown(self) -> str:
        """The verdict, its table and the notes."""
        return as_markdown(self.verdict(), [self.headline()], self.notes)

    def _repr_html_(self) -> str:
        return as_html(self.verdict(), [self.headline()])

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON: tables are lists of rows."""
        return as_json(SCHEMA, self.settings, self.notes, self.tables)

    def write(self, folder: Path) -> None:
        """``outcomes.json``, ``outcomes.md``, and each table that has rows as ``NAME.csv``."""
        write_comparison(folder, FILE, self.as_json(), self.markdown(), self.tables, SCHEMAS)


class OutcomesFile(BaseModel):
    """``outcomes.json``: its settings, what a reader must know, and its tables, column by column or row by row."""

    model_config = ConfigDict(extra="allow", strict=True)

    notes: list[str]
    tables: dict[str, list[Any] | dict[str, list[Any]]]


def read_outcomes(path: Path) -> OutcomeComparison:
    """An ``outcomes.json`` as :meth:`OutcomeComparison.write` left it.

    Raises:
        MemprobeError: the file is missing, broken, or something else.
    """
    whole = read_valid(path, OutcomesFile)
    try:
        tables = {
            name: pl.DataFrame(whole["tables"][name], schema=schema) for name, schema in SCHEMAS.items()
        }
        settings = {key: value for key, value in whole.items() if key not in ("tables", "notes", "schema")}
        comparison = OutcomeComparison(settings, list(whole["notes"]), tables)
        comparison.markdown()
    except (KeyError, AttributeError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise MemprobeError(
            f"{path}: is not a comparison of outcomes; memprobe compare --out writes one"
        ) from error
    return comparison


def outcomes_of(path: Path, *, draws: int = DRAWS) -> OutcomeComparison:
    """What is known of answers alone at a path: an ``outcomes.json`` as it was made, a results directory compared.

    Raises:
        MemprobeError: broken files.
    """
    return compare_outcomes([path], draws=draws) if path.is_dir() else read_outcomes(path)


def compare_outcomes(
    sources: Sequence[Probe | ResultsDirectory | str | Path],
    *,
    reference: str | None = None,
    arms: Mapping[str, tuple[str, str, str]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> OutcomeComparison:
    """Compares which facts checkpoints give.

    Facts that share an answer are resampled, and flipped, together. But fewer than ten distinct answers
    (:data:`~memprobe.statistics.intervals.FEWEST` of a mean) are no more than the labels of a choice, such as A, B, C
    and D, and not what facts share: there every fact counts for itself.

    Args:
        sources: results directories (``memprobe import``) and probe directories, with the same ids for the same facts.
        reference: label of the checkpoint that differences are taken from (default: the first).
        arms: (arm, seed, stage) by label; without it, what the manifests of probes say.

    Raises:
        MemprobeError: no fact in common, one id for two facts, an unknown label, broken files.
    """
    check_draws(draws, seed)
    answers = _named(list(_answers(sources)), arms or {})
    if not answers:
        raise MemprobeError("name at least one results directory or probe")
    first = next((one for one in answers if reference in (None, one.label)), None)
    if first is None:
        raise MemprobeError(
            f"`reference` {reference!r}: no such checkpoint; "
            f"{there_are(reference, [one.label for one in answers])}"
        )
    notes = notes_on_measures({one.label: one.measure for one in answers})
    ids = _common(answers, notes)
    facts = answers[0].factoids.filter(pl.col("id").is_in(ids))
    ids = facts["id"].to_list()
    right = np.array([answer.casefold() for answer in facts["answer"]])
    alike = right if len(np.unique(right)) >= FEWEST["mean"] else None
    values = {one.label: np.array([[one.exact[id], one.score[id]] for id in ids], float) for one in answers}
    plain = all((table[:, 0] == table[:, 1]).all() for table in values.values())
    names = [RECALLED] if plain else [RECALLED, SCORE]
    values = {label: table[:, : len(names)] for label, table in values.items()}
    drawn = Resamples.of(len(ids), answers=alike, draws=draws, seed=seed)
    others = [one.label for one in answers if one is not first]
    shares = [RECALLED]
    is_share = np.array([name in shares for name in names])
    limits = dict.fromkeys(shares, SHARE)
    parts: dict[str, list[pl.DataFrame]] = {name: [] for name in SCHEMAS}
    for one in answers:
        parts["outcomes"].append(_outcomes(one.label, values[one.label]))
    for label in others:
        keys = [pl.lit(first.label).alias("reference"), pl.lit(label).alias("checkpoint")]
        apart = values[label] - values[first.label]
        compared = differences_of(apart, drawn, shares=is_share, seed=seed)
        front = [pl.lit("all").alias("on"), pl.Series("statistic", names)]
        parts["differences"].append(compared.select(*keys, *front, pl.all()))
        both = np.column_stack([values[first.label][:, 0], values[label][:, 0]]).astype(bool)
        parts["fates"].append(fates_of(both).select(*keys, pl.all()))
    parts["paths"] += [
        path_of(chain, [values[label][:, 0].astype(bool) for label in chain.labels])
        for chain in chains_of(answers)
        if len(chain.members) > 1
    ]
    if runs := _runs(answers, values):
        n = len(ids)
        parts["arms"].append(arm_means(runs, names, n, ends=limits, binary=shares))
        arm = first.arm or runs[0].arm
        parts["arm_differences"].append(
            arm_differences_of(runs, names, n, reference=arm, ends=limits, binary=shares)
        )
        notes += notes_on_arms(answers)
        if len({run.arm for run in runs}) > 1 and (
            bare := next((run for run in runs if not run.before), None)
        ):
            notes.append(
                f"Nothing says which checkpoint {bare.label} was trained from: seeds of the arms that it is compared "
                "with count as independent, which widens their intervals where they start from one."
            )
    tables = {
        name: pl.concat([pl.DataFrame(schema=schema), *(part.cast(schema) for part in parts[name])])
        for name, schema in SCHEMAS.items()
    }
    settings = {
        "draws": draws,
        "seed": seed,
        "factoids": len(ids),
        "reference": first.label,
        "checkpoints": [
            {"label": one.label, "arm": one.arm, "seed": one.seed, "stage": one.stage} for one in answers
        ],
    }
    return OutcomeComparison(settings, notes, tables)


def _answers(sources: Sequence[Probe | ResultsDirectory | str | Path]) -> Iterator[Answers]:
    """Of every checkpoint of some directories; where it comes from is asked of all of them."""
    opened = [
        (open_results(one) if is_results(Path(one)) else open_probe(one))
        if isinstance(one, str | Path)
        else one
        for one in sources
    ]
    # Probes are judged by what all of them have; other tools by what they say.
    lacking = (measure_of(one.outcomes) == ARGMAX for one in opened if isinstance(one, Probe))
    judged = ARGMAX if any(lacking) else GENERATED
    entries = {
        f"{place}/{label}": entry
        for place, source in enumerate(opened)
        if isinstance(source, Probe)
        for label, entry in source.run["checkpoints"].items()
    }
    for place, source in enumerate(opened):
        for one in _of(source, judged):
            name = f"{place}/{one.label}"
            before, rows = lineage(entries, name) if name in entries else ((), "")
            yield replace(one, before=before, rows=rows)


def _of(source: Probe | ResultsDirectory, judged: str) -> Iterator[Answers]:
    for label in source.checkpoints:
        if isinstance(source, ResultsDirectory):
            table, measure = source.outcomes(label), source.measure(label)
            entry: Mapping[str, Any] = {}
            step = None
        else:
            table, measure = source.outcomes.filter(pl.col("checkpoint") == label), Measure(judged)
            exact = pl.col(judged)
            table = table.with_columns(exact.alias("exact_match"), exact.cast(pl.Float64).alias("score"))
            entry = source.run["checkpoints"][label]
            step = step_of(label, entry)
        known = table.filter(pl.col("exact_match").is_not_null())
        exact = dict(known.select("factoid", "exact_match").iter_rows())
        score = dict(known.select("factoid", "score").iter_rows())
        made = made_by(entry.get("manifest") or {})
        at = (source.path, source.factoids, exact, score, measure)
        yield Answers(label, *made, step, *at, **trained_from(entry))


def _named(answers: list[Answers], arms: Mapping[str, tuple[str, str, str]]) -> list[Answers]:
    """With labels of their own, and what is said of how they were made."""
    labels = [one.label for one in answers]
    paths = list(dict.fromkeys(one.path for one in answers))
    folders = dict(zip(paths, short_names(paths), strict=True))
    named = [
        replace(one, label=f"{folders[one.path]}/{one.label}") if labels.count(one.label) > 1 else one
        for one in answers
    ]
    labels = [one.label for one in named]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise MemprobeError(f"checkpoint {twice[0]!r} is given twice; name each directory once")
    if unknown := [label for label in arms if label not in labels]:
        raise MemprobeError(f"`arms`: no checkpoint {unknown[0]!r}; {there_are(unknown[0], labels)}")
    return [
        replace(one, arm=arms[one.label][0], seed=arms[one.label][1], stage=arms[one.label][2], settings=None)
        if one.label in arms
        else one
        for one in named
    ]


def _common(answers: Sequence[Answers], notes: list[str]) -> list[str]:
    """The facts that every checkpoint was judged on.

    Raises:
        MemprobeError: there is none, or one id stands for two facts.
    """
    first = answers[0]
    common = set(first.exact)
    for one in answers:
        common &= set(one.exact)
        if not common:
            raise MemprobeError(
                f"{one.path}: {one.label} has no judged fact in common (by id) with {first.label}"
            )
    same = SameFacts()
    for one in answers:
        rows = one.factoids.filter(pl.col("id").is_in(list(common))).select("id", "prompt", "answer")
        same.add(rows.iter_rows(), str(one.path))
    most = max(len(one.exact) for one in answers)
    if len(common) < most:
        notes.append(
            f"Compared on the {len(common)} facts that every checkpoint was judged on, of up to {most}."
        )
    notes += same.note()
    return sorted(common)


def _outcomes(label: str, values: np.ndarray) -> pl.DataFrame:
    n = len(values)
    share = values[:, 0].mean()
    low, high = wilson(np.array(share), np.array(n))
    row = {
        "checkpoint": label,
        "n": n,
        "exact": float(share),
        "exact_low": float(low),
        "exact_high": float(high),
    }
    return pl.DataFrame([row | {"score": float(values[:, -1].mean())}], schema=SCHEMAS["outcomes"])


def _runs(answers: Sequence[Answers], values: Mapping[str, np.ndarray]) -> list[Run]:
    check_apart(answers)
    return [
        Run.of(
            one.arm,
            one.stage or "",
            one.seed or "",
            one.label,
            values[one.label],
            before=one.before,
            rows=one.rows,
        )
        for one in ends_of(answers)
        if one.arm is not None
    ]


def _percent(row: Mapping[str, Any]) -> str:
    return wording.of_row(row, "exact", ".1%")
