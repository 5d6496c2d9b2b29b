"""A study's tables, each from stored results alone: forgetting, curves, three stages, placement, interference, cost."""

from __future__ import annotations

import polars as pl

from memprobe.arms import Arm
from training.study.collect import NAIVE, READOUTS, SETTINGS, Results

_KEYS = ["setup", "k", "token", "readout"]


def forgetting(results: Results) -> pl.DataFrame:
    """Retention of D_A after the last stage, D_B's score and the cost beside it, by arm.

    Means are over learned cells. Intervals resample seeds, then factoids, and need three seeds.

    Returns:
        [setup, arm, arm_text, cells, failed, d_a_after_1, retention, low, high, by_seed, last_metric, last_score,
        steps, tokens]; steps and tokens as multiples of naive's.
    """
    learned = results.cells.filter("learned")
    found = _over_seeds(
        learned, ["setup", "arm", "arm_text", "last_metric"], ["d_a_after_1", "last_score", "steps", "tokens"]
    )
    kept = learned.group_by("setup", "arm", maintain_order=True).agg(
        retention=pl.col("retention").mean(), by_seed=pl.col("retention").sort_by("seed")
    )
    counts = results.cells.group_by("setup", "arm", maintain_order=True).agg(
        cells=pl.len(), failed=pl.col("learned").not_().sum()
    )
    edges = of_arms(results.arms, "exact", last=True).select("setup", "arm_text", "low", "high")
    naive = found.filter(pl.col("arm_text") == NAIVE).select(
        "setup", naive_steps="steps", naive_tokens="tokens"
    )
    table = (
        counts.join(kept, on=["setup", "arm"], how="left", maintain_order="left")
        .join(found, on=["setup", "arm"], how="left", maintain_order="left")
        .join(edges, on=["setup", "arm_text"], how="left", maintain_order="left")
        .join(naive, on="setup", how="left", maintain_order="left")
    )
    ratios = [(pl.col(name) / pl.col(f"naive_{name}")).alias(name) for name in ("steps", "tokens")]
    front = [
        "setup",
        "arm",
        "arm_text",
        "cells",
        "failed",
        "d_a_after_1",
        "retention",
        "low",
        "high",
        "by_seed",
    ]
    return table.with_columns(ratios).select(*front, "last_metric", "last_score", "steps", "tokens")


def placement(results: Results) -> pl.DataFrame:
    """Where D_A surfaces, by arm and stage: the paper's figure 4 as numbers. Means over seeds, seeds beside them.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, exact, lof_mean, lof_mean_by_seed, lof_sd, lof_sd_by_seed,
        share_never, lof_restricted_mean, chance_lof_restricted_mean, effective_layers, depths_per_factoid]
    """
    if not len(results.placement):
        return pl.DataFrame()
    table = results.placement.with_columns(pl.col("arm").fill_null("base"), pl.col("stage").fill_null(0))
    means = ["exact", "share_never", "lof_restricted_mean", "chance_lof_restricted_mean", "effective_layers"]
    return (
        table.group_by(*_KEYS, "stage", "arm", maintain_order=True)
        .agg(
            pl.len().alias("seeds"),
            pl.col("lof_mean").mean(),
            pl.col("lof_mean").sort_by("seed").alias("lof_mean_by_seed"),
            pl.col("lof_sd").mean(),
            pl.col("lof_sd").sort_by("seed").alias("lof_sd_by_seed"),
            *(pl.col(name).mean() for name in [*means, "depths_per_factoid"]),
        )
        .sort(*_KEYS, "stage", maintain_order=True)
    )


def curve(results: Results, over: str) -> pl.DataFrame:
    """Retention by a setting of one arm, all else equal; naive is its zero.

    Args:
        over: ``replay_ratio``, ``mixing_ratio`` or ``mixing_words``.

    Returns:
        [setup, kind, other settings, over, seeds, retention, by_seed, last_score, tokens]
    """
    learned = results.cells.filter("learned")
    if over == "replay_ratio":
        wanted = {text for text in learned["arm_text"] if Arm.of(text).kinds == ("replay",)}
        keys = ["setup"]
    else:
        wanted = {text for text in learned["arm_text"] if Arm.of(text).mixes_in_stage_1_alone()}
        keys = ["setup", "mixing", "mixing_words" if over == "mixing_ratio" else "mixing_ratio"]
    some = learned.filter(pl.col("arm_text").is_in(wanted))
    groups = some.group_by(keys, maintain_order=True).agg(pl.col(over).n_unique().alias("values"))
    some = some.join(groups.filter(pl.col("values") > 1).drop("values"), on=keys, how="semi")
    if not len(some):
        return pl.DataFrame()
    found = some.group_by(*keys, over, maintain_order=True).agg(
        pl.len().alias("seeds"),
        pl.col("retention").mean(),
        pl.col("retention").sort_by("seed").alias("by_seed"),
        pl.col("last_score").mean(),
        pl.col("tokens").mean(),
    )
    naive = (
        learned.filter(pl.col("arm_text") == NAIVE)
        .group_by("setup")
        .agg(
            pl.lit(0).alias(over),
            pl.len().alias("seeds"),
            pl.col("retention").mean(),
            pl.col("retention").sort_by("seed").alias("by_seed"),
            pl.col("last_score").mean(),
            pl.col("tokens").mean(),
        )
    )
    zeros = found.select(keys).unique(maintain_order=True).join(naive, on="setup", how="inner")
    return pl.concat([zeros, found], how="diagonal_relaxed").sort(*keys, over)


def spread(results: Results) -> pl.DataFrame:
    """Spread of the LoF over depths, seed by seed: its sd minus the sd that the ceiling explains, against naive's.

    Returns:
        [setup, k, token, readout, arm, stage, seed, sd, sd_expected, difference, low, high]; see
        :func:`memprobe.statistics.paired.spread_against_shift`.
    """
    if not len(results.spread):
        return pl.DataFrame()
    who = results.placement.select(*_KEYS, "checkpoint", "arm", "stage", "seed").drop_nulls()
    order = list(dict.fromkeys(results.cells["arm_text"]))
    table = results.spread.join(who, on=[*_KEYS, "checkpoint"], how="inner", maintain_order="left")
    rank = pl.col("arm").replace_strict({arm: place for place, arm in enumerate(order)}, default=len(order))
    table = table.sort(
        "setup",
        "k",
        "token",
        "readout",
        "stage",
        rank,
        "seed",
        descending=[False, True, False, True, False, False, False],
    )
    numbers = ["sd", "sd_expected", "difference", "low", "high"]
    return table.select(*_KEYS, "arm", "stage", "seed", *numbers)


def kept_before(results: Results) -> pl.DataFrame:
    """Where the facts that a stage left had surfaced before it, against those that it took; negative is earlier.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, kept, lost, lof, low, high, by_seed, lof_net, net_low, net_high,
        net_by_seed]; ``lof`` is the difference of mean LoF in depths (never as n + 1), ``lof_net`` the same net of
        shuffled answers.
    """
    if not len(results.kept):
        return pl.DataFrame()
    keys = [*_KEYS, "stage", "arm"]
    rows = results.kept.filter(statistic="lof_restricted").rename({"difference": "lof"}).drop("statistic")
    net = results.kept.filter(statistic="lof_restricted_net").select(
        *keys, lof_net="difference", net_low="low", net_high="high", net_by_seed="by_seed"
    )
    table = rows.join(net, on=keys, how="left", maintain_order="left")
    counts = ["seeds", "kept", "lost"]
    edges = ["lof", "low", "high", "by_seed", "lof_net", "net_low", "net_high", "net_by_seed"]
    return table.select(*keys, *counts, *edges).sort(
        _KEYS, descending=[False, True, False, True], maintain_order=True
    )


def lost_facts(results: Results) -> pl.DataFrame:
    """Of the facts that a stage took, those that still surface at some depth, and those that D_B's answers outrank.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, lost, surfaces, deepest, intruded]: ``lost`` counts facts in each
        seed; ``surfaces``, ``deepest`` (mean depth of those that surface) and ``intruded`` are means over seeds.
    """
    if not len(results.lost):
        return pl.DataFrame()
    who = results.placement.select(*_KEYS, "checkpoint", "arm", "stage", "seed").drop_nulls()
    table = results.lost.join(who, on=[*_KEYS, "checkpoint"], how="inner", maintain_order="left")
    return (
        table.group_by(*_KEYS, "stage", "arm", maintain_order=True)
        .agg(
            pl.len().alias("seeds"),
            pl.col("n_lost").sort_by("seed").alias("lost"),
            pl.col("surfaces", "deepest", "intruded").mean(),
        )
        .sort(_KEYS, descending=[False, True, False, True], maintain_order=True)
    )


def three_stages(results: Results) -> pl.DataFrame:
    """Every dataset's score after every stage, for cells of three stages; means over seeds.

    Returns:
        [setup, arm, dataset, metric, stage, seeds, value, by_seed]
    """
    long = results.cells.filter(pl.col("learned") & pl.col("d_c").is_not_null()).select(
        "setup", "arm", "seed"
    )
    rows = results.stages.join(long, on=["setup", "arm", "seed"], how="semi")
    return rows.group_by("setup", "arm", "dataset", "metric", "stage", maintain_order=True).agg(
        pl.len().alias("seeds"), pl.col("value").mean(), pl.col("value").sort_by("seed").alias("by_seed")
    )


def interference(results: Results) -> pl.DataFrame:
    """Gradient conflict of D_A and the last stage's rows beside retention, cell by cell (the paper's figure 2).

    Returns:
        [setup, arm, seed, cosine_start, cosine_end, first_order_harm, weight_change, retention]; ``cosine`` is
        cos(∇L_A, ∇L_B) at the stage's start and end, ``first_order_harm`` ∇L_A·Δθ at its end.
    """
    columns = ["cosine_start", "cosine_end", "first_order_harm", "weight_change", "retention"]
    known = results.cells.filter(pl.col("learned") & pl.col("cosine_start").is_not_null())
    return known.select("setup", "arm", "seed", *columns)


def other_losses(results: Results) -> pl.DataFrame:
    """What else was lost: facts that the base model knew, and perplexity on held-out text, after stage 1 and last."""
    names = ["known_after_1", "known", "perplexity_after_1", "perplexity"]
    table = _over_seeds(results.cells.filter("learned"), ["setup", "arm"], names)
    return table.filter(pl.any_horizontal(pl.col(names).is_not_null()))


def cost(results: Results) -> pl.DataFrame:
    """Optimiser steps, input tokens and wall time of all stages of a cell, by arm; means over seeds."""
    return _over_seeds(results.cells, ["setup", "arm"], ["steps", "tokens", "seconds"])


def _over_seeds(cells: pl.DataFrame, keys: list[str], values: list[str]) -> pl.DataFrame:
    means = [pl.col(name).mean() for name in values]
    return cells.group_by(keys, maintain_order=True).agg(pl.len().alias("seeds"), *means)


def of_arms(table: pl.DataFrame, statistic: str, *, last: bool) -> pl.DataFrame:
    """Rows of a table over arms in the headline reading; ``last``: after each set-up's last stage."""
    if not len(table):
        columns = dict.fromkeys(("setup", "arm_text"), pl.String) | dict.fromkeys(("low", "high"), pl.Float64)
        return pl.DataFrame(schema=columns)
    k, token = SETTINGS[0]
    rows = table.filter(
        pl.col("statistic") == statistic,
        pl.col("k") == k,
        pl.col("token") == token,
        pl.col("readout") == READOUTS[0],
    ).with_columns(pl.col("stage").cast(pl.Int64))
    if last:
        rows = rows.filter(pl.col("stage") == pl.col("stage").max().over("setup"))
    return rows.rename({"arm": "arm_text"})
