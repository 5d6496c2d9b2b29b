"""A study's tables of what is kept, each from :class:`~memprobe.retention.runs.Retention` alone.

Means are over learned cells. Intervals are those of shares over seeds (:mod:`memprobe.statistics.shares`), and need
three seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import polars as pl

from memprobe.arms import NAIVE, Arm, Part
from memprobe.evaluations import SHARES
from memprobe.retention.runs import ALL_ROWS, UNSEEN_ROWS, Retention
from memprobe.statistics.intervals import MIN_SEEDS
from memprobe.statistics.shares import share_difference
from memprobe.statistics.vocabulary import QUESTIONS, log_prob_of, repeats_of

CURVES = ("replay_ratio", "mixing_ratio", "mixing_words", "penalty_strength")
"""Settings over which :func:`curve` is drawn."""
STAGES = 2 + pl.col("d_c").is_not_null().cast(pl.Int64)
"""How many stages a cell has."""
SETTINGS = pl.col("setup").str.strip_prefix(
    pl.concat_str("d_a", "d_b", "d_c", separator="-", ignore_nulls=True)
)
"""What a grid's set-up is called behind its datasets, ``-lr0.0001-n64``."""
_UNSEEN = ("unseen", "unseen_low", "unseen_high", "unseen_by_seed")


def titles(cells: pl.DataFrame) -> dict[str, str]:
    """Set-ups as figures call them: ``kvr → lama``, with the number of facts, or the name, where two share that."""
    rows = cells.select("setup", "d_a", "d_b", "d_c", "n").unique("setup", maintain_order=True).rows()
    plain = {setup: " → ".join(name for name in chain if name) for setup, *chain, _ in rows}
    sizes = {setup: f"{plain[setup]}, n = {n}" for setup, *_, n in rows}
    named = {}
    for setup, title in plain.items():
        if list(plain.values()).count(title) > 1:
            title = sizes[setup] if list(sizes.values()).count(sizes[setup]) == 1 else setup
        named[setup] = title
    return named


def _learned(retention: Retention) -> pl.DataFrame:
    return retention.cells.filter("learned") if len(retention.cells) else retention.cells


def _means(cells: pl.DataFrame, keys: list[str], values: list[str]) -> pl.DataFrame:
    means = [pl.col(name).mean() for name in values]
    return cells.group_by(keys, maintain_order=True).agg(pl.len().alias("seeds"), *means)


def _of_d_a(retention: Retention, rows: str = ALL_ROWS) -> pl.DataFrame:
    """[setup, arm, low, high] of D_A after the last stage."""
    first = retention.cells.select("setup", dataset=pl.format("1-{}", "d_a")).unique()
    last = pl.col("stage") == pl.col("stage").max().over("setup")
    kept = retention.over_seeds.join(first, on=["setup", "dataset"], how="semi").filter(rows=rows)
    return kept.filter(last).select("setup", "arm", "low", "high")


def forgetting(retention: Retention) -> pl.DataFrame:
    """Retention of D_A after the last stage, D_B's score and the cost beside it, by arm.

    Returns:
        [setup, arm, arm_text, cells, failed, d_a_after_1, retention, low, high, by_seed, unseen, unseen_low,
        unseen_high, unseen_by_seed, last_metric, last_score, steps, tokens]; ``unseen`` is retention of the rows that
        replay does not show again, null without replay; steps and tokens are multiples of naive's.
    """
    learned = _learned(retention)
    over = _means(learned, ["setup", "arm", "last_metric"], ["d_a_after_1", "last_score"])
    costs = costs_of(retention.cells, "setup", "arm")
    kept = learned.group_by("setup", "arm", maintain_order=True).agg(
        retention=pl.col("retention").mean(), by_seed=pl.col("retention").sort_by("seed")
    )
    counts = retention.cells.group_by("setup", "arm", maintain_order=True).agg(
        pl.col("arm_text").first(), cells=pl.len(), failed=pl.col("learned").not_().sum()
    )
    naive = costs.join(counts.filter(arm_text=NAIVE), on=["setup", "arm"], how="semi").select(
        "setup", naive_steps="steps", naive_tokens="tokens"
    )
    table = (
        counts.join(kept, on=["setup", "arm"], how="left", maintain_order="left")
        .join(over, on=["setup", "arm"], how="left", maintain_order="left")
        .join(costs, on=["setup", "arm"], how="left", maintain_order="left")
        .join(_of_d_a(retention), on=["setup", "arm"], how="left", maintain_order="left")
        .join(_unseen(retention), on=["setup", "arm"], how="left", maintain_order="left")
        .join(naive, on="setup", how="left", maintain_order="left")
    )
    ratios = [(pl.col(name) / pl.col(f"naive_{name}")).alias(name) for name in ("steps", "tokens")]
    front = ["setup", "arm", "arm_text", "cells", "failed", "d_a_after_1"]
    edges = ["retention", "low", "high", "by_seed", *_UNSEEN]
    return table.with_columns(ratios).select(*front, *edges, "last_metric", "last_score", "steps", "tokens")


def _unseen(retention: Retention) -> pl.DataFrame:
    """Of arms that replay: rows of D_A that they do not show again, after the last stage."""
    rows = retention.over_seeds.filter(pl.col("rows") == UNSEEN_ROWS)
    last = rows.filter(pl.col("stage") == pl.col("stage").max().over("setup", "arm"))
    numbers = zip(("value", "low", "high", "by_seed"), _UNSEEN, strict=True)
    return last.select("setup", "arm", *(pl.col(name).alias(shown) for name, shown in numbers))


def curve(retention: Retention, over: str) -> pl.DataFrame:
    """Retention by a setting of one arm, all else equal; naive is its zero.

    Replay and penalties are those in every later stage; mixing that in stage 1 alone. Arms are of one curve where
    their texts are the same but for this setting (:meth:`memprobe.arms.Arm.without`), and each point is one arm.

    Args:
        over: one of :data:`CURVES`.

    Returns:
        [setup, kind, other settings, others, over, seeds, retention, low, high, by_seed, last_score, tokens,
        seed_numbers, last_metric, last_by_seed]; of replay ``rows`` says of which rows of D_A (all, or those that were
        not replayed). ``others`` names what else is held equal and no other column tells, as ``prompt sentence``; it
        is mostly empty. ``seed_numbers`` are the seeds of ``by_seed``, in its order. ``last_metric``, ``last_score``
        and ``last_by_seed`` are of the last stage's own rows. ``mixing_words`` are those of a row's answer; its
        prompt has as many, unless ``others`` says how many.
    """
    learned = _learned(retention)
    if not len(learned):
        return pl.DataFrame()
    told = _TOLD_BESIDE.get(over, [])
    if over == "penalty_strength":
        learned = learned.with_columns(_penalties(learned["arm_text"]))
    keys = ["setup", *told, "others", "rest"]
    n = learned.select(STAGES).to_series()
    held = [_held_equal(Arm.of(text), over, k) for text, k in zip(learned["arm_text"], n, strict=True)]
    kind = pl.List(pl.Struct({"rest": pl.String, "others": pl.String}))
    some = learned.with_columns(pl.Series("held", held, dtype=kind)).explode("held")
    some = some.filter(pl.col("held").is_not_null(), pl.col(over).is_not_null()).unnest("held")
    groups = some.group_by(keys, maintain_order=True).agg(pl.col(over).n_unique().alias("values"))
    groups = groups.filter(pl.col("values") > 1).drop("values")
    some = some.join(groups, on=keys, how="semi", nulls_equal=True)
    if not len(some):
        return pl.DataFrame()
    naive = learned.filter(pl.col("arm_text") == NAIVE).drop(told)
    zeros = some.select(keys).unique(maintain_order=True).join(naive, on="setup", how="inner")
    zeros = zeros.with_columns(pl.lit(0).cast(some.schema[over]).alias(over))
    points = pl.concat([zeros, some], how="diagonal_relaxed")
    means = points.group_by(*keys, over, "arm", maintain_order=True).agg(
        pl.len().alias("seeds"),
        pl.col("retention").mean(),
        pl.col("retention").sort_by("seed").alias("by_seed"),
        pl.col("seed").sort().alias("seed_numbers"),
        pl.col("last_score").mean(),
        pl.col("tokens").mean(),
        pl.col("last_metric").first(),
        pl.col("last_score").sort_by("seed").alias("last_by_seed"),
    )
    table = means.join(_of_d_a(retention), on=["setup", "arm"], how="left", maintain_order="left")
    front = ["setup", *told, "others", over]
    if over == "replay_ratio":
        table = pl.concat([table.with_columns(rows=pl.lit(ALL_ROWS)), _not_replayed(retention, table)])
        front = ["setup", "rows", "others", over]
    numbers = ["retention", "low", "high", "by_seed", "last_score", "tokens", "seed_numbers"]
    return table.select(*front, "seeds", *numbers, "last_metric", "last_by_seed").sort(front)


_TOLD_BESIDE = {
    "mixing_ratio": ["mixing", "mixing_words"],
    "mixing_words": ["mixing", "mixing_ratio"],
    "penalty_strength": ["penalty"],
}
"""Columns of a curve that tell what it is of, beside its set-up."""


def _penalties(arms: pl.Series) -> list[pl.Series]:
    """The penalty that each arm is and its strength; null of other arms."""
    alone = [Arm.of(text).alone for text in arms]
    parts = [part if part is not None and part.is_penalty else None for part in alone]
    return [
        pl.Series("penalty", [part and part.name for part in parts], dtype=pl.String),
        pl.Series(
            "penalty_strength", [part and float(part.options["strength"]) for part in parts], dtype=pl.Float64
        ),
    ]


_TOLD = frozenset({"data", "stages", "ratio", "words"})
"""Options of an arm that columns of a curve tell, or that all its arms share."""


_OF_LATER_STAGES: dict[str, Callable[[Part], bool]] = {
    "replay_ratio": lambda part: part.name == "replay",
    "penalty_strength": lambda part: part.is_penalty,
}
"""Curves over what is done in every later stage, and which part of an arm it is."""


def _held_equal(arm: Arm, over: str, n: int) -> list[dict[str, str]]:
    """Curves over a setting that an arm is a point of: ``rest``, the arm but for it, and ``others``, what to say of it.

    Mixing rows have two lengths. An arm whose prompts are as long as its answers is a point of the curve along which
    both grow, and of that along which its prompts stay as they are.

    Args:
        n: stages of the chain.
    """
    if over in _OF_LATER_STAGES:
        alone = arm.alone
        if alone is None or not _OF_LATER_STAGES[over](alone) or alone.stages_of(n) != tuple(range(2, n + 1)):
            return []
    elif not arm.mixes_in_stage_1_alone():
        return []
    rest = arm.in_chain(n).without(over.rpartition("_")[2])
    more = [
        f"{key} {value}" for part in rest.parts for key, value in part.options.items() if key not in _TOLD
    ]
    if len(rest.parts) > 1:
        more = [rest.text]
    prompts = ",".join(dict.fromkeys(part.words[0] for part in arm.parts))
    fixed = f"prompts of {prompts} words"
    as_long = all(prompts == part.words[1] for part in arm.parts)
    plain, with_prompts = ({"rest": rest.text, "others": ", ".join(some)} for some in (more, [*more, fixed]))
    if over in _OF_LATER_STAGES:
        return [plain]
    if over != "mixing_words":
        return [plain if as_long else with_prompts]
    return [plain, with_prompts] if as_long else [with_prompts]


def _not_replayed(retention: Retention, table: pl.DataFrame) -> pl.DataFrame:
    """The same curve of the rows of D_A that are not replayed; at naive that is all of them."""
    numbers = ["retention", "by_seed", "low", "high"]
    unseen = retention.over_seeds.filter(pl.col("rows") != ALL_ROWS).rename({"value": "retention"})
    unseen = unseen.select("setup", "arm", *numbers)
    replaying = table.filter(pl.col("replay_ratio") > 0).drop(numbers)
    replaying = replaying.join(unseen, on=["setup", "arm"], how="inner", maintain_order="left")
    naive = table.filter(pl.col("replay_ratio") == 0)
    naive = naive.join(replaying, on=["setup", "rest"], how="semi")
    rows = pl.lit("those not replayed").alias("rows")
    return pl.concat([naive, replaying.select(naive.columns)]).with_columns(rows)


def stages(retention: Retention) -> pl.DataFrame:
    """Every dataset's score after every stage, for the cells of the most stages; means over seeds.

    Returns:
        [setup, arm, dataset, metric, stage, seeds, value, low, high, by_seed, seed_numbers]; ``seed_numbers`` are the
        seeds of ``by_seed``, in its order.
    """
    learned = _learned(retention)
    if not len(learned):
        return pl.DataFrame()
    three = learned.filter(pl.col("d_c").is_not_null())
    long = (three if len(three) else learned).select("setup", "arm", "seed")
    rows = retention.scores.join(long, on=["setup", "arm", "seed"], how="semi")
    keys = ["setup", "arm", "dataset", "metric", "stage"]
    means = rows.group_by(keys, maintain_order=True).agg(
        pl.len().alias("seeds"),
        pl.col("value").mean(),
        pl.col("value").sort_by("seed").alias("by_seed"),
        pl.col("seed").sort().alias("seed_numbers"),
    )
    edges = retention.over_seeds.filter(rows=ALL_ROWS).select(*keys, "low", "high")
    table = means.join(edges, on=keys, how="left", maintain_order="left")
    return table.select(*keys, "seeds", "value", "low", "high", "by_seed", "seed_numbers")


def interference(retention: Retention) -> pl.DataFrame:
    """Gradient conflict of D_A and the last stage's rows beside retention, cell by cell (the paper's figure 2).

    Returns:
        [setup, arm, seed, cosine_start, cosine_end, first_order_harm, weight_change, retention]; ``cosine`` is
        cos(∇L_A, ∇L_B) at the stage's start and end, ``first_order_harm`` ∇L_A·Δθ at its end.
    """
    columns = ["cosine_start", "cosine_end", "first_order_harm", "weight_change", "retention"]
    known = _learned(retention)
    if not len(known):
        return pl.DataFrame()
    return known.filter(pl.col("cosine_start").is_not_null()).select("setup", "arm", "seed", *columns)


def first_stages(retention: Retention) -> pl.DataFrame:
    """What an arm keeps of one D_A less what it keeps of another, before the same later stages, all else equal.

    Returns:
        [arm, d_a, against, d_b, d_c, n, seeds, kept, kept_of_other, difference, low, high, p], the better kept D_A
        first; ``seeds`` is the smaller number of both, the interval that of
        :func:`memprobe.statistics.shares.share_difference`, over seeds, from three on; ``kept`` counts facts by seed.
        A D_A whose rows are scored otherwise than by yes or no (an overlap, a loss) is not compared.
    """
    learned = counted(_learned(retention), retention.scores)
    rows = []
    keys = ["arm", "d_b", "d_c", "n", SETTINGS.alias("settings")]
    for (arm, d_b, d_c, n, _), group in learned.group_by(keys, maintain_order=True):
        parts = group.partition_by("d_a", maintain_order=True)
        parts.sort(key=lambda cells: -cells["retention"].sum() / len(cells))
        for one, other in combinations(parts, 2):
            pair = {
                "arm": arm,
                "d_a": one["d_a"][0],
                "against": other["d_a"][0],
                "d_b": d_b,
                "d_c": d_c,
                "n": n,
            }
            rows.append(pair | kept_less(one, other)._asdict())
    return pl.DataFrame(rows, infer_schema_length=None)


def counted(cells: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """The cells of which so many rows of D_A are kept: each row is scored yes or no, and it is known how many they are.

    Args:
        scores: of :class:`~memprobe.retention.runs.Retention`, of the same set-ups.
    """
    if not len(cells) or not len(scores):
        return cells.clear()
    by_row = scores.filter(pl.col("metric").is_in(SHARES)).select("setup", "dataset").unique()
    known = cells.filter(pl.col("n").is_not_null(), pl.col("retention").is_not_null())
    named = known.with_columns(dataset=pl.format("1-{}", "d_a"))
    return named.join(by_row, on=["setup", "dataset"], how="semi").drop("dataset")


class KeptLess(NamedTuple):
    """What some cells keep less what others do: facts by seed, and the difference of their shares.

    ``seeds`` is the smaller number of both; under three of them there is no interval.
    """

    seeds: int
    kept: list[int]
    kept_of_other: list[int]
    difference: float
    low: float | None
    high: float | None
    p: float | None


def kept_less(cells: pl.DataFrame, others: pl.DataFrame) -> KeptLess:
    """The difference of two set-ups that are asked as many facts.

    By :func:`~memprobe.statistics.shares.share_difference`, over seeds.

    Args:
        cells, others: [seed, n, retention], of which retention is the share of a count; see :func:`counted`.
    """
    n = int(cells["n"][0])
    kept, other = (
        one.sort("seed").select((pl.col("retention") * n).round().cast(pl.Int64)).to_series()
        for one in (cells, others)
    )
    found = share_difference(kept.to_numpy(), other.to_numpy(), n)
    seeds = min(len(kept), len(other))
    edges = [float(end) if seeds >= MIN_SEEDS else None for end in (found.low, found.high, found.p)]
    return KeptLess(seeds, kept.to_list(), other.to_list(), float(found.value), *edges)


def other_losses(retention: Retention) -> pl.DataFrame:
    """What else was lost: facts that the base model knew, and perplexity on held-out text, after stage 1 and last."""
    names = ["known_after_1", "known", "perplexity_after_1", "perplexity"]
    table = _means(_learned(retention), ["setup", "arm"], names)
    return table.filter(pl.any_horizontal(pl.col(names).is_not_null()))


def other_questions(retention: Retention) -> pl.DataFrame:
    """How D_A is answered when it is asked otherwise, by arm and stage; the base model's stage is 0.

    Returns:
        [setup, question, stage, arm, seeds, share, low, high, by_seed, difference, difference_low, difference_high, p,
        log_prob, repeats, log_prob_difference, log_prob_difference_low, log_prob_difference_high, log_prob_p]:
        ``share`` of the facts is answered, ``log_prob`` is the mean log-probability of a right answer in nats,
        ``repeats`` the share to which the fact's own answer is said, as to the question that was learned (in other
        words that is the right one); differences are against naive training, with p before any correction.
    """
    arms, differences = retention.asked
    if not len(arms):
        return pl.DataFrame()
    keys = ["setup", "arm", "stage"]
    parts = []
    for question in QUESTIONS:
        names = (question, log_prob_of(question), repeats_of(question))
        shares, nats, repeats = (arms.filter(statistic=name) for name in names)
        table = shares.select(
            *keys,
            pl.lit(question).alias("question"),
            "seeds",
            pl.col("mean").alias("share"),
            "low",
            "high",
            "by_seed",
        )
        table = table.join(
            _against_naive(differences, question, ""), on=keys, how="left", maintain_order="left"
        )
        for more in (
            nats.select(*keys, pl.col("mean").alias("log_prob")),
            repeats.select(*keys, pl.col("mean").alias("repeats")),
            _against_naive(differences, log_prob_of(question), "log_prob_"),
        ):
            table = table.join(more, on=keys, how="left", maintain_order="left")
        parts.append(table.with_columns(pl.col("stage").cast(pl.Int64)).sort("stage", maintain_order=True))
    front = ["setup", "question", "stage", "arm"]
    return pl.concat(parts).select(*front, pl.exclude(front)).sort("setup", maintain_order=True)


def _against_naive(differences: pl.DataFrame, statistic: str, front: str) -> pl.DataFrame:
    """[setup, arm, stage] and a statistic's difference from naive training, under names that begin with ``front``."""
    keys = {"setup": pl.String, "arm": pl.String, "stage": pl.String}
    named = {"difference": "difference", "low": "difference_low", "high": "difference_high", "p": "p"}
    called = {name: f"{front}{to}" for name, to in named.items()}
    if not len(differences):
        return pl.DataFrame(schema=keys | dict.fromkeys(called.values(), pl.Float64))
    rows = differences.filter(statistic=statistic, reference=NAIVE)
    return rows.select(*keys, *(pl.col(name).alias(to) for name, to in called.items()))


def costs_of(cells: pl.DataFrame, *keys: str, of: Sequence[str] = ("steps", "tokens")) -> pl.DataFrame:
    """What a learned cell costs, a mean by these keys: [*keys, *of], null where none learned.

    A cell that fails trains for as long as it may, which says nothing of what its arm costs.
    """
    means = [pl.col(name).filter("learned").mean() for name in of]
    return cells.group_by(keys, maintain_order=True).agg(means)


def cost(retention: Retention) -> pl.DataFrame:
    """Optimiser steps, input tokens and wall time of all stages of a cell, by arm.

    Returns:
        [setup, arm, seeds, failed, steps, tokens, seconds]: means over ``seeds`` learned cells, null where there is
        none; ``failed`` counts the others.
    """
    counts = retention.cells.group_by("setup", "arm", maintain_order=True).agg(
        seeds=pl.col("learned").sum().cast(pl.UInt32), failed=pl.col("learned").not_().sum()
    )
    means = costs_of(retention.cells, "setup", "arm", of=("steps", "tokens", "seconds"))
    return counts.join(means, on=["setup", "arm"], how="left", maintain_order="left")
