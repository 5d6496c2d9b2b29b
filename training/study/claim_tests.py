"""Each claim as tests: one per arm and reading, with what each lens says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import polars as pl

from memprobe.arms import NAIVE, Arm
from memprobe.retention import SETTINGS, costs_of, counted, kept_less
from memprobe.retention.asked import OTHERWISE
from memprobe.statistics.arms import MIN_SEEDS
from memprobe.statistics.clusters import MIN_CLUSTERS, clustered_rank_correlation
from memprobe.statistics.latent import ratio_over_seeds
from memprobe.statistics.margins import GIVEN_MARGIN
from memprobe.statistics.power import detectable_within
from memprobe.statistics.verdicts import is_inert
from memprobe.statistics.vocabulary import log_prob_of
from memprobe.wording import count, why_without_interval
from training.study.claim_book import NET, OWN, Book, Claim, Criterion
from training.study.results import Results
from training.study.tables import spread
from training.study.unseen import UNSEEN

_OF_NO_READING = {"exact", *OTHERWISE, *map(log_prob_of, OTHERWISE)}
AS_MANY = 0.1
"""How far the steps, or tokens, of an arm and its control may be apart, as a share."""


@dataclass
class LensSays:
    """What one lens says; of a permutation test there is a p, and no interval.

    Attributes:
        read: whether there are numbers of this lens at all.
    """

    lens: str
    estimate: float | None
    low: float | None
    high: float | None
    p: float | None
    read: bool = True


@dataclass
class Test:
    """One claim about one arm in one reading.

    Attributes:
        seeds: of the arm, or of what it is held against, if those are fewer; ``None`` where what is counted is arms.
        together: tests of one family that name the same are corrected together (default: those of one set-up).
    """

    claim: Claim
    setup: str
    arm: str
    against: str
    stage: int | None
    reading: Criterion | None
    parts: list[LensSays]
    seeds: int | None
    in_common: str = ""
    detectable: float | None = None
    why: str = ""
    beside: str = ""
    p_family: float | None = field(default=None)
    together: str = ""

    @property
    def p(self) -> float | None:
        """Of a claim that all lenses must carry: the largest of theirs."""
        known = [part.p for part in self.parts if part.p is not None]
        return max(known) if len(known) == len(self.parts) and known else None


def finite(value: float | None) -> float | None:
    """A number that is one, for a table."""
    return float(value) if value is not None and np.isfinite(value) else None


def tests_of(claim: Claim, results: Results, book: Book) -> Iterator[Test]:
    """A claim about every arm that it is about, in every reading of the book."""
    of = {
        "mean": _means,
        "difference": _differences,
        "kept": partial(_before_a_stage, of="kept", estimate="difference"),
        "ranks": partial(_before_a_stage, of="depth_and_retention", estimate="correlation"),
        "spread": _spread,
        "gradients": _gradients,
        "second stage": _second_stages,
    }
    yield from of[claim.about](claim, results, book)


def _about(claim: Claim, text: str) -> bool:
    """Whether the claim is about this arm."""
    arm = Arm.of(text)
    if claim.arms == "all":
        return True
    if arm.is_naive or arm.is_control:
        return claim.arms == "naive" and arm.is_naive
    mixing = arm.mixes and not arm.sees_again
    return claim.arms == "every" or claim.arms == ("mixing" if mixing else "not mixing")


def _is_against(
    claim: Claim, text: str, reference: str, costs: Mapping[str, Mapping[str, float | None]]
) -> bool:
    """Whether the claim holds the arm against this reference: naive training, or a control of its own.

    That is one that trains longer in the stages in which the arm mixes, and took as many steps, or tokens, as the arm.
    """
    if claim.against == "naive":
        return reference == NAIVE
    control = Arm.of(reference)
    if not control.is_control_of(Arm.of(text)):
        return False
    own, other = (costs[arm][control.parts[0].options["to"]] for arm in (text, reference))
    return own is not None and other is not None and abs(other / own - 1) <= AS_MANY


def _costs(cells: pl.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """By set-up and arm, the steps and tokens of a cell."""
    means = costs_of(cells, "setup", "arm_text")
    costs: dict[str, dict[str, dict[str, float | None]]] = {}
    for setup, arm, steps, tokens in means.iter_rows():
        costs.setdefault(setup, {})[arm] = {"steps": steps, "tokens": tokens}
    return costs


def _readings(claim: Claim, book: Book) -> Sequence[Criterion | None]:
    """What is said depends on no reading; how probable an answer is, by its first token or as a whole, does."""
    return [None] if claim.statistic in _OF_NO_READING else book.readings


def _stages(claim: Claim, table: pl.DataFrame) -> pl.DataFrame:
    stage = pl.col("stage")
    table = table.with_columns(stage.cast(pl.Int64))
    if claim.stages == "last":
        return table.filter(stage == stage.max().over("setup"))
    return table.filter(stage == 1) if claim.stages == "first" else table


def _in(table: pl.DataFrame, reading: Criterion | None, book: Book) -> pl.DataFrame:
    at = reading or book.readings[0]
    return table.filter(pl.col("k") == at.k, pl.col("token") == at.token)


def _means(claim: Claim, results: Results, book: Book) -> Iterator[Test]:
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
                part = LensSays(OWN, mean, low, high, None)
                less = f"less the threshold {claim.threshold:g}" if claim.threshold else ""
                yield Test(
                    claim,
                    row["setup"],
                    row["arm"],
                    "",
                    row["stage"],
                    reading,
                    [part],
                    row["seeds"],
                    beside=less,
                )


def _differences(claim: Claim, results: Results, book: Book) -> Iterator[Test]:
    if not len(results.differences):
        return
    idle, costs = _idle(results.cells), _costs(results.cells)
    for reading in _readings(claim, book):
        rows = _stages(claim, _in(results.differences, reading, book))
        for key, group in rows.group_by("setup", "arm", "reference", "stage", maintain_order=True):
            setup, arm, reference, stage = str(key[0]), str(key[1]), str(key[2]), int(key[3])  # type: ignore[arg-type]
            if not _about(claim, arm) or not _is_against(claim, arm, reference, costs[setup]):
                continue
            # What replay keeps is asked of the facts that it does not show again, if there are any.
            unseen = group.filter(statistic=UNSEEN) if claim.statistic == "exact" else group.clear()
            of = unseen if len(unseen) else group.filter(statistic=claim.statistic)
            own = of.filter(readout=OWN)
            if not len(own):
                continue
            first = own.row(0, named=True)
            parts = [_part(lens, of, group, claim) for lens in claim.lenses]
            beside = ""
            if claim.statistic == "exact" and Arm.of(arm).sees_again:
                beside = "of facts that are not shown again" if len(unseen) else "every fact is shown again"
            if claim.statistic == "log_prob_full":
                beside = _beside(group.filter(statistic=GIVEN_MARGIN, readout=OWN))
            seeds = min(first["seeds"], first["reference_seeds"])
            why = idle.get((setup, arm), "") or _without_interval(parts, seeds)
            yield Test(
                claim,
                setup,
                arm,
                reference,
                stage,
                reading,
                parts,
                seeds,
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


def _part(
    lens: str, rows: pl.DataFrame, every: pl.DataFrame, claim: Claim, estimate: str = "difference"
) -> LensSays:
    """One lens of a table with a row per statistic and readout; net is a statistic of the own readout."""
    net = every.filter(statistic=f"{claim.statistic}_net", readout=OWN)
    part = net if lens == NET else rows.filter(readout=lens)
    if not len(part):
        return LensSays(lens, None, None, None, None, read=False)
    row = part.row(0, named=True)
    return LensSays(lens, row[estimate], row["low"], row["high"], row["p"])


def _without_interval(parts: list[LensSays], seeds: int) -> str:
    """Why there is no interval, if so."""
    without = [part for part in parts if part.low is None]
    if without and seeds < MIN_SEEDS:
        return f"fewer than {MIN_SEEDS} seeds"
    reasons: dict[str, list[str]] = {}
    for part in without:
        why = why_without_interval(part.estimate, seeds) if part.read else "not read"
        reasons.setdefault(why, []).append(part.lens)
    return "; ".join(f"{why} in: {', '.join(lenses)}" for why, lenses in reasons.items())


def _before_a_stage(claim: Claim, results: Results, book: Book, *, of: str, estimate: str) -> Iterator[Test]:
    """A claim about where facts had surfaced before a stage, by what became of them in it.

    Args:
        of: the table of results that says so.
        estimate: its column.
    """
    table: pl.DataFrame = getattr(results, of)
    if not len(table):
        return
    for reading in _readings(claim, book):
        rows = _stages(claim, _in(table, reading, book))
        for key, group in rows.group_by("setup", "arm", "stage", maintain_order=True):
            setup, arm, stage = str(key[0]), str(key[1]), int(key[2])  # type: ignore[arg-type]
            of_claim = group.filter(statistic=claim.statistic)
            own = of_claim.filter(readout=OWN)
            if not len(own) or not _about(claim, arm):
                continue
            first = own.row(0, named=True)
            parts = [_part(lens, of_claim, group, claim, estimate) for lens in claim.lenses]
            why = _without_interval(parts, first["seeds"])
            yield Test(
                claim, setup, arm, "", stage, reading, parts, first["seeds"], "", first["detectable"], why
            )


def _spread(claim: Claim, results: Results, book: Book) -> Iterator[Test]:
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
                ratio = ratio_over_seeds(known["ratio"].log().to_list(), known["error"].to_list())
                fewest = min(fewest, ratio.seeds)
                reasons += of.filter(pl.col("why") != "")["why"].to_list()
                estimate, low, high, p = (finite(value) for value in ratio[:4])
                parts.append(LensSays(lens, estimate, low, high, p))
            why = ""
            if fewest < MIN_SEEDS:
                why = f"not estimable: {reasons[0]}" if reasons else f"fewer than {MIN_SEEDS} seeds"
            yield Test(claim, setup, arm, NAIVE, stage, reading, parts, fewest, why=why)


def _gradients(claim: Claim, results: Results, book: Book) -> Iterator[Test]:
    """One test over the arms of each set-up: cells of one arm count once, and a permutation test has no interval."""
    del book
    known = results.cells.filter(
        pl.col("learned"), pl.col("plain_last"), pl.col("cosine_start").is_not_null()
    )
    for (setup,), group in known.group_by("setup", maintain_order=True):
        correlation = clustered_rank_correlation(
            group["cosine_start"].to_numpy(), group["retention"].to_numpy(), group["arm"].to_numpy()
        )
        why = (
            ""
            if correlation.clusters >= MIN_CLUSTERS
            else f"fewer than {MIN_CLUSTERS} arms end in plain training"
        )
        if not why and np.isnan(correlation.rho):
            why = "no order: all values are the same"
        if not why and correlation.least_p > 0.05:
            why = f"no order of {correlation.clusters} arms is unlikely enough"
        part = LensSays(OWN, finite(correlation.rho), None, None, finite(correlation.p))
        arms = count(correlation.clusters, "arm")
        yield Test(claim, str(setup), "", "", None, None, [part], None, why=why, beside=arms)


def _second_stages(claim: Claim, results: Results, book: Book) -> Iterator[Test]:
    """Set-ups of two stages against that whose D_B is the reference: what the same arm keeps of the same D_A."""
    del book
    cells = counted(results.cells.filter(pl.col("learned"), pl.col("d_c").is_null()), results.stages)
    two = cells.with_columns(settings=SETTINGS)
    for (*_, text), group in two.group_by("settings", "d_a", "n", "arm_text", maintain_order=True):
        if not _about(claim, str(text)):
            continue
        of = {str(key): cells for (key,), cells in group.group_by("setup", maintain_order=True)}
        like = [setup for setup, cells in of.items() if cells["d_b"][0] == claim.reference]
        for setup, cells in of.items():
            if not like or setup in like:
                continue
            found = kept_less(cells, of[like[0]])
            if found.low is None or found.high is None:
                why, detectable = f"fewer than {MIN_SEEDS} seeds", None
            else:
                why, detectable = "", detectable_within(found.low, found.high)
            part = LensSays(OWN, found.difference, found.low, found.high, found.p)
            yield Test(
                claim,
                setup,
                str(text),
                like[0],
                2,
                None,
                [part],
                found.seeds,
                detectable=detectable,
                why=why,
                together=like[0],
            )


def _idle(cells: pl.DataFrame) -> dict[tuple[str, str], str]:
    """Penalties that did nothing: those that moved the weights in the last stage as far as naive training did.

    Other arms train on other rows or for longer, so that a distance like naive's is chance.
    """
    idle = {}
    learned = cells.filter("learned")
    naive = learned.filter(pl.col("arm_text") == NAIVE).select("setup", "seed", naive="weight_change")
    arms = {text: Arm.of(text).parts for text in learned["arm_text"].unique()}
    penalised = [text for text, parts in arms.items() if parts and all(part.is_penalty for part in parts)]
    others = learned.filter(pl.col("arm_text").is_in(penalised))
    for (setup, arm), group in others.group_by("setup", "arm_text", maintain_order=True):
        both = group.join(naive, on=["setup", "seed"], how="inner").sort("seed")
        if is_inert(both["weight_change"].to_list(), both["naive"].to_list()):
            idle[str(setup), str(arm)] = "inert: it moved the weights as far as naive training did"
    return idle
