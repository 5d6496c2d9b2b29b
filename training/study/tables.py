"""A study's tables of where facts surface, each from stored results alone; those of retention are
:mod:`memprobe.retention`'s."""

from __future__ import annotations

import polars as pl

from training.study.collect import READOUTS, SETTINGS, Results

_KEYS = ["setup", "k", "token", "readout"]


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
