"""Claim by claim, what a study found: the book of claims (``claims.toml``) held against its tables.

claims.toml -> Book ─┐
tables of a study ───┴─> tests, one per claim, arm and reading ─ Holm by family ─> verdicts ─> specification
"""

from __future__ import annotations

from typing import Any, NamedTuple

import polars as pl

from memprobe.retention import SETTINGS
from memprobe.statistics.verdicts import NOT_TESTED, holm, together, verdict, verdict_without_interval
from training.study.claim_book import OWN, Book, Criterion, read_book
from training.study.claim_tests import LensSays, Test, finite, tests_of
from training.study.results import Results


def claims(results: Results, book: Book | None = None) -> pl.DataFrame:
    """Every claim about every arm, in every reading.

    Returns:
        [setup, family, claim, arm, against, stage, k, token, headline, verdict, estimate, low, high, p, p_family,
        equivalent, detectable, seeds, in_common, evidence]: estimate and interval are those of the checkpoints' own
        readout, of which (and of the other lenses) ``evidence`` tells; for spread they are logs of ratios. For
        gradients the estimate is a rank correlation over arms, whose permutation test has a p, but no interval and no
        seeds. k and token are null where the claim does not depend on them. What is tested after stages that set-ups
        share is one test, and one row: that of the set-up with most seeds.
    """
    book = book or read_book()
    tests = [test for claim in book.claims for test in tests_of(claim, results, book)]
    groups: dict[tuple[Any, ...], list[Test]] = {}
    for test in tests:
        groups.setdefault((test.together or test.setup, test.claim.family, test.reading), []).append(test)
    for members in groups.values():
        tried = [None if test.why else test.p for test in members]
        for test, p in zip(members, holm(tried), strict=True):
            test.p_family = p
    once = _once(tests, results.cells)
    return pl.DataFrame([_row(test, book) for test in once], schema=_SCHEMA, orient="row")


def _once(tests: list[Test], cells: pl.DataFrame) -> list[Test]:
    """Tests after stages that set-ups share, once each.

    Each was corrected with the family of its own set-up; the one that is left has the largest p of them.
    """
    trained = _trained(cells)
    same: dict[tuple[Any, ...], list[Test]] = {}
    for place, test in enumerate(tests):
        chain = trained.get(test.setup)
        # A test of set-ups against each other, or of no stage, is a set-up's own.
        own = chain is None or test.stage is None or test.together
        until = place if own else (chain.settings, chain.datasets[: test.stage])
        same.setdefault(
            (until, test.claim.family, test.claim.name, test.arm, test.against, test.reading), []
        ).append(test)
    left = []
    for group in same.values():
        first = max(group, key=lambda test: test.seeds or 0)
        if len(group) > 1:
            first.p_family = max((p for test in group if (p := test.p_family) is not None), default=None)
            shared = f"the same stages in {len(group)} set-ups"
            first.beside = "; ".join(text for text in (first.beside, shared) if text)
        left.append(first)
    return left


class _Trained(NamedTuple):
    """What a set-up trains: its settings with the number of facts, and its stages' datasets in order."""

    settings: tuple[str, int | None]
    datasets: tuple[str, ...]


def _trained(cells: pl.DataFrame) -> dict[str, _Trained]:
    """By set-up."""
    rows = cells.select("setup", SETTINGS.alias("settings"), "n", "d_a", "d_b", "d_c").unique(
        maintain_order=True
    )
    return {
        setup: _Trained((settings, n), tuple(name for name in datasets if name))
        for setup, settings, n, *datasets in rows.iter_rows()
    }


_SCHEMA = {
    **dict.fromkeys(("setup", "family", "claim", "arm", "against"), pl.String),
    "stage": pl.Int64,
    "k": pl.Int64,
    "token": pl.String,
    "headline": pl.Boolean,
    "verdict": pl.String,
    **dict.fromkeys(("estimate", "low", "high", "p", "p_family", "equivalent", "detectable"), pl.Float64),
    "seeds": pl.Int64,
    "in_common": pl.String,
    "evidence": pl.String,
}


def specification(tested: pl.DataFrame, book: Book | None = None) -> pl.DataFrame:
    """Claims about depth beside themselves: one row per claim, arm and stage, one column per reading.

    Returns:
        [setup, claim, arm, against, stage, "top K, TOKEN" …]: the verdict, with estimate and interval.
    """
    book = book or read_book()
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    columns = [str(reading) for reading in book.readings]
    for row in tested.filter(pl.col("k").is_not_null()).iter_rows(named=True):
        keys = {name: row[name] for name in ("setup", "claim", "arm", "against", "stage")}
        cells = rows.setdefault(tuple(keys.values()), keys | dict.fromkeys(columns, ""))
        interval = (
            "" if row["low"] is None else f" {row['estimate']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        )
        cells[str(Criterion(k=row["k"], token=row["token"]))] = row["verdict"] + interval
    return pl.DataFrame(list(rows.values()), infer_schema_length=None)


def _row(test: Test, book: Book) -> list[Any]:
    claim = test.claim
    outcome = NOT_TESTED if test.why else together([_verdict(part, test) for part in test.parts])
    own = test.parts[0] if test.parts else LensSays(OWN, None, None, None, None)
    k, token = (test.reading.k, test.reading.token) if test.reading else (None, None)
    headline = test.reading is None or test.reading == book.readings[0]
    return [
        test.setup,
        claim.family,
        claim.name,
        test.arm,
        test.against,
        test.stage,
        k,
        token,
        headline,
        outcome,
        *(finite(value) for value in (own.estimate, own.low, own.high, test.p, test.p_family)),
        claim.equivalent,
        finite(test.detectable),
        test.seeds,
        test.in_common,
        _evidence(test),
    ]


def _verdict(part: LensSays, test: Test) -> str:
    """What one lens says of a claim that is tested."""
    claim = test.claim
    if claim.about == "gradients":
        return verdict_without_interval(part.estimate, test.p_family, side=claim.side)
    alone = claim.about == "mean"  # against a threshold; no other claim is tested with it
    p = None if alone else test.p_family
    return verdict(part.low, part.high, side=claim.side, equivalent=claim.equivalent, p=p)


def _evidence(test: Test) -> str:
    parts = []
    for part in test.parts:
        if part.estimate is None:
            continue
        edges = "" if part.low is None else f" [{part.low:+.3f}, {part.high:+.3f}]"
        parts.append(f"{part.lens}: {part.estimate:+.3f}{edges}")
    parts += [test.beside] if test.beside else []
    parts += [f"{test.seeds} seed{'' if test.seeds == 1 else 's'}"] if test.seeds else []
    return "; ".join([*parts, *([test.why] if test.why else [])])
