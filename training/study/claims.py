"""Claim by claim, what a study found: the book of claims (``claims.toml``) held against its tables.

claims.toml -> Book ─┐
tables of a study ───┴─> tests, one per claim, arm and reading ─ Holm by family ─> verdicts ─> specification
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from memprobe.arms import Arm
from memprobe.errors import MemprobeError
from memprobe.statistics.arms import MIN_SEEDS
from memprobe.statistics.clusters import MIN_CLUSTERS, clustered_rank_correlation
from memprobe.statistics.latent import ratio_over_seeds
from memprobe.statistics.margins import GIVEN_MARGIN
from memprobe.statistics.verdicts import NOT_TESTED, holm, is_inert, together, verdict
from training.study.collect import NAIVE, READOUTS, Results
from training.study.tables import spread

BOOK = Path(__file__).with_name("claims.toml")
OWN, NET = READOUTS[0], "net"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reading(_Strict):
    """What counts as holding an answer."""

    k: int
    token: str


class Claim(_Strict):
    """One claim; the fields are explained at the head of ``claims.toml``."""

    name: str
    family: str
    says: str
    about: Literal["mean", "difference", "kept", "spread", "gradients"]
    side: Literal["above", "below"]
    statistic: str | None = None
    against: Literal["naive", "matched"] | None = None
    arms: Literal["every", "naive", "mixing", "not mixing"] = "every"
    stages: Literal["first", "last", "every"] = "last"
    threshold: float = 0.0
    equivalent: float | None = None
    lenses: tuple[str, ...] = (OWN,)

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        if self.about in ("mean", "difference", "kept") and self.statistic is None:
            raise ValueError(f"claim {self.name!r}: say which statistic")
        if (self.about == "difference") != (self.against is not None):
            raise ValueError(
                f"claim {self.name!r}: 'against' belongs to claims about differences, and only there"
            )
        return self


class Book(_Strict):
    """The claims of a study, the readings that each is shown in (the headline first), and the families."""

    schema_: Literal[1]
    readings: tuple[Reading, ...]
    families: dict[str, str]
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _known(self) -> Book:
        if not self.readings:
            raise ValueError("no reading: give at least the headline")
        for claim in self.claims:
            if claim.family not in self.families:
                raise ValueError(
                    f"claim {claim.name!r}: family {claim.family!r} is not one of {[*self.families]}"
                )
        return self


def read_book(path: Path = BOOK) -> Book:
    """The claims of a file.

    Raises:
        MemprobeError: the file is missing, no TOML, or holds what no claim has.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        return Book(**{"schema_" if key == "schema" else key: value for key, value in told.items()})
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise MemprobeError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MemprobeError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error


@dataclass
class _Part:
    """What one lens says."""

    lens: str
    estimate: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass
class _Test:
    """One claim about one arm in one reading."""

    claim: Claim
    setup: str
    arm: str
    against: str
    stage: int | None
    reading: Reading | None
    parts: list[_Part]
    seeds: int
    in_common: str = ""
    detectable: float | None = None
    why: str = ""
    beside: str = ""
    p_family: float | None = field(default=None)

    @property
    def p(self) -> float | None:
        """Of a claim that all lenses must carry: the largest of theirs."""
        known = [part.p for part in self.parts if part.p is not None]
        return max(known) if len(known) == len(self.parts) and known else None


def claims(results: Results, book: Book | None = None) -> pl.DataFrame:
    """Every claim about every arm, in every reading.

    Returns:
        [setup, family, claim, arm, against, stage, k, token, headline, verdict, estimate, low, high, p, p_family,
        equivalent, detectable, seeds, in_common, evidence]: estimate and interval are those of the checkpoints' own
        readout, of which (and of the other lenses) ``evidence`` tells; for spread they are logs of ratios, for
        gradients a rank correlation. k and token are null where the claim does not depend on them.
    """
    book = book or read_book()
    tests = [test for claim in book.claims for test in _tests(claim, results, book)]
    groups: dict[tuple[Any, ...], list[_Test]] = {}
    for test in tests:
        groups.setdefault((test.setup, test.claim.family, test.reading), []).append(test)
    for members in groups.values():
        tried = [None if test.why else test.p for test in members]
        for test, p in zip(members, holm(tried), strict=True):
            test.p_family = p
    return pl.DataFrame([_row(test, book) for test in tests], schema=_SCHEMA, orient="row")


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


def specification(found: pl.DataFrame, book: Book | None = None) -> pl.DataFrame:
    """Claims about depth beside themselves: one row per claim, arm and stage, one column per reading.

    Returns:
        [setup, claim, arm, against, stage, "top K, TOKEN" …]: the verdict, with estimate and interval.
    """
    book = book or read_book()
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    columns = [_called(reading) for reading in book.readings]
    for row in found.filter(pl.col("k").is_not_null()).iter_rows(named=True):
        keys = {name: row[name] for name in ("setup", "claim", "arm", "against", "stage")}
        cells = rows.setdefault(tuple(keys.values()), keys | dict.fromkeys(columns, ""))
        interval = (
            "" if row["low"] is None else f" {row['estimate']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        )
        cells[_called(Reading(k=row["k"], token=row["token"]))] = row["verdict"] + interval
    return pl.DataFrame(list(rows.values()), infer_schema_length=None)


def _called(reading: Reading) -> str:
    return f"top {reading.k}, {reading.token}"


def _row(test: _Test, book: Book) -> list[Any]:
    claim = test.claim
    if test.why:
        said = NOT_TESTED
    else:
        alone = claim.about == "mean"  # against a threshold; no other claim is tested with it
        said = together(
            [
                verdict(
                    part.low,
                    part.high,
                    side=claim.side,
                    equivalent=claim.equivalent,
                    p=None if alone else test.p_family,
                )
                for part in test.parts
            ]
        )
    own = test.parts[0] if test.parts else _Part(OWN, None, None, None, None)
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
        said,
        *(_number(value) for value in (own.estimate, own.low, own.high, test.p, test.p_family)),
        claim.equivalent,
        _number(test.detectable),
        test.seeds,
        test.in_common,
        _evidence(test),
    ]


def _evidence(test: _Test) -> str:
    told = []
    for part in test.parts:
        if part.estimate is None:
            continue
        edges = "" if part.low is None else f" [{part.low:+.3f}, {part.high:+.3f}]"
        told.append(f"{part.lens}: {part.estimate:+.3f}{edges}")
    told += [test.beside] if test.beside else []
    told += [f"{test.seeds} seed{'' if test.seeds == 1 else 's'}"] if test.seeds else []
    return "; ".join([*told, *([test.why] if test.why else [])])


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


# ------------------------------------------------------------------------------------------- tests of each kind


def _tests(claim: Claim, results: Results, book: Book) -> Iterator[_Test]:
    of = {
        "mean": _means,
        "difference": _differences,
        "kept": _kept,
        "spread": _spread,
        "gradients": _gradients,
    }
    yield from of[claim.about](claim, results, book)


def _about(claim: Claim, text: str) -> bool:
    """Whether the claim is about this arm."""
    arm = Arm.of(text)
    if arm.is_naive or arm.is_control:
        return claim.arms == "naive" and arm.is_naive
    mixing = arm.mixes and not arm.sees_again
    return claim.arms == "every" or claim.arms == ("mixing" if mixing else "not mixing")


def _readings(claim: Claim, book: Book) -> Sequence[Reading | None]:
    """Retention and the log-probability of whole answers do not depend on the reading."""
    return [None] if claim.statistic in ("exact", "log_prob_full") else book.readings


def _stages(claim: Claim, table: pl.DataFrame) -> pl.DataFrame:
    stage = pl.col("stage")
    table = table.with_columns(stage.cast(pl.Int64))
    if claim.stages == "last":
        return table.filter(stage == stage.max().over("setup"))
    return table.filter(stage == 1) if claim.stages == "first" else table


def _in(table: pl.DataFrame, reading: Reading | None, book: Book) -> pl.DataFrame:
    at = reading or book.readings[0]
    return table.filter(pl.col("k") == at.k, pl.col("token") == at.token)


def _means(claim: Claim, results: Results, book: Book) -> Iterator[_Test]:
    if not len(results.arms):
        return
    for reading in _readings(claim, book):
        rows = _stages(claim, _in(results.arms, reading, book)).filter(statistic=claim.statistic, readout=OWN)
        for row in rows.iter_rows(named=True):
            if _about(claim, row["arm"]):
                mean, low, high = (
                    None if row[name] is None else row[name] - claim.threshold
                    for name in ("mean", "low", "high")
                )
                part = _Part(OWN, mean, low, high, None)
                yield _Test(claim, row["setup"], row["arm"], "", row["stage"], reading, [part], row["seeds"])


def _differences(claim: Claim, results: Results, book: Book) -> Iterator[_Test]:
    if not len(results.differences):
        return
    idle = _idle(results.cells)
    for reading in _readings(claim, book):
        rows = _stages(claim, _in(results.differences, reading, book))
        for key, group in rows.group_by("setup", "arm", "reference", "stage", maintain_order=True):
            setup, arm, reference, stage = str(key[0]), str(key[1]), str(key[2]), int(key[3])  # type: ignore[arg-type]
            if not _about(claim, arm) or (claim.against == "naive") != (reference == NAIVE):
                continue
            # What replay keeps is asked of the facts that it does not show again, where that is known.
            unseen = group.filter(statistic="exact_unseen") if claim.statistic == "exact" else group.clear()
            of = unseen if len(unseen) else group.filter(statistic=claim.statistic)
            own = of.filter(readout=OWN)
            if not len(own):
                continue
            first = own.row(0, named=True)
            parts = [_part(lens, of, group, claim) for lens in claim.lenses]
            beside = ""
            if claim.statistic == "log_prob_full":
                beside = _beside(group.filter(statistic=GIVEN_MARGIN, readout=OWN))
            why = idle.get((setup, arm), "") or _untold(parts, min(first["seeds"], first["reference_seeds"]))
            yield _Test(
                claim,
                setup,
                arm,
                reference,
                stage,
                reading,
                parts,
                first["seeds"],
                first["in_common"] or "",
                first["detectable"],
                why,
                beside,
            )


def _beside(given: pl.DataFrame) -> str:
    """The same difference given the margin, where that is known."""
    for row in given.drop_nulls("low").iter_rows(named=True):
        edges = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        return f"given the margin after stage 1: {row['difference']:+.3f} {edges}"
    return ""


def _part(lens: str, rows: pl.DataFrame, every: pl.DataFrame, claim: Claim) -> _Part:
    """One lens of a table with a row per statistic and readout; net is a statistic of the own readout."""
    net = every.filter(statistic=f"{claim.statistic}_net", readout=OWN)
    found = net if lens == NET else rows.filter(readout=lens)
    if not len(found):
        return _Part(lens, None, None, None, None)
    row = found.row(0, named=True)
    return _Part(lens, row["difference"], row["low"], row["high"], row["p"])


def _untold(parts: list[_Part], seeds: int) -> str:
    """Why there is no interval, if so."""
    without = [part.lens for part in parts if part.low is None]
    if not without:
        return ""
    if seeds < MIN_SEEDS:
        return f"fewer than {MIN_SEEDS} seeds"
    missing = [part.lens for part in parts if part.estimate is None]
    if missing:
        return f"not read in: {', '.join(missing)}"
    return f"nothing scatters in: {', '.join(without)}"


def _kept(claim: Claim, results: Results, book: Book) -> Iterator[_Test]:
    if not len(results.kept):
        return
    for reading in _readings(claim, book):
        rows = _stages(claim, _in(results.kept, reading, book))
        for key, group in rows.group_by("setup", "arm", "stage", maintain_order=True):
            setup, arm, stage = str(key[0]), str(key[1]), int(key[2])  # type: ignore[arg-type]
            own = group.filter(statistic=claim.statistic, readout=OWN)
            if not len(own):
                continue
            first = own.row(0, named=True)
            parts = [
                _part(lens, group.filter(statistic=claim.statistic), group, claim) for lens in claim.lenses
            ]
            why = _untold(parts, first["seeds"])
            yield _Test(
                claim, setup, arm, "", stage, reading, parts, first["seeds"], "", first["detectable"], why
            )


def _spread(claim: Claim, results: Results, book: Book) -> Iterator[_Test]:
    table = spread(results)
    if not len(table):
        return
    for reading in book.readings:
        rows = _stages(claim, _in(table, reading, book))
        for key, group in rows.group_by("setup", "arm", "stage", maintain_order=True):
            setup, arm, stage = str(key[0]), str(key[1]), int(key[2])  # type: ignore[arg-type]
            if not _about(claim, arm):
                continue
            parts, fewest, reasons = [], 10**9, []
            for lens in claim.lenses:
                of = group.filter(readout=lens)
                known = of.filter(pl.col("ratio").is_not_null())
                found = ratio_over_seeds(known["ratio"].log().to_list(), known["error"].to_list())
                fewest = min(fewest, found.seeds)
                reasons += of.filter(pl.col("why") != "")["why"].to_list()
                estimate, low, high, p = (_number(value) for value in found[:4])
                parts.append(_Part(lens, estimate, low, high, p))
            why = ""
            if fewest < MIN_SEEDS:
                why = f"not estimable: {reasons[0]}" if reasons else f"fewer than {MIN_SEEDS} seeds"
            yield _Test(claim, setup, arm, NAIVE, stage, reading, parts, fewest, why=why)


def _gradients(claim: Claim, results: Results, book: Book) -> Iterator[_Test]:
    del book
    known = results.cells.filter(
        pl.col("learned"), pl.col("plain_last"), pl.col("cosine_start").is_not_null()
    )
    for (setup,), group in known.group_by("setup", maintain_order=True):
        found = clustered_rank_correlation(
            group["cosine_start"].to_numpy(), group["retention"].to_numpy(), group["arm"].to_numpy()
        )
        why = (
            "" if found.clusters >= MIN_CLUSTERS else f"fewer than {MIN_CLUSTERS} arms end in plain training"
        )
        if not why and found.least_p > 0.05:
            why = f"no order of {found.clusters} arms is unlikely enough"
        # A permutation test has no interval: on one side of 0 where it rejects, on both where it does not.
        sure = not np.isnan(found.p) and found.p < 0.05
        edges = (found.rho, found.rho) if sure else (-1.0, 1.0)
        part = _Part(OWN, _number(found.rho), *edges, _number(found.p))
        yield _Test(claim, str(setup), "", "", None, None, [part], len(group), why=why)


def _idle(cells: pl.DataFrame) -> dict[tuple[str, str], str]:
    """Arms that did nothing: those that moved the weights as far as naive training did."""
    found = {}
    learned = cells.filter("learned")
    naive = learned.filter(pl.col("arm_text") == NAIVE).select("setup", "seed", naive="weight_change")
    for (setup, arm), group in learned.filter(pl.col("arm_text") != NAIVE).group_by(
        "setup", "arm_text", maintain_order=True
    ):
        both = group.join(naive, on=["setup", "seed"], how="inner").sort("seed")
        if is_inert(both["weight_change"].to_list(), both["naive"].to_list()):
            found[str(setup), str(arm)] = "inert: it moved the weights as far as naive training did"
    return found
