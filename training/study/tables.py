"""A study's tables of where facts surface, each from stored results alone; those of retention are
:mod:`memprobe.retention`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from memprobe.statistics.arms import MIN_SEEDS, student
from memprobe.statistics.ends import Ends
from memprobe.statistics.margins import GIVEN_MARGIN
from memprobe.statistics.shares import share_over_seeds
from training.study.results import SETTINGS, Results

_KEYS = ["setup", "k", "token", "readout"]


def placement(results: Results) -> pl.DataFrame:
    """Where D_A surfaces, by arm and stage: the paper's figure 4 as numbers. Means over seeds, seeds beside them.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, exact, lof_mean, lof_mean_by_seed, lof_sd, lof_sd_by_seed,
        share_never, lof_restricted_mean, lof_restricted_mean_low, lof_restricted_mean_high,
        chance_lof_restricted_mean, effective_layers, depths_per_factoid]; the interval is over seeds, from three on.
    """
    if not len(results.placement):
        return pl.DataFrame()
    table = results.placement.with_columns(pl.col("arm").fill_null("base"), pl.col("stage").fill_null(0))
    means = ["exact", "share_never", "lof_restricted_mean", "chance_lof_restricted_mean", "effective_layers"]
    ends = ("lof_restricted_mean_low", "lof_restricted_mean_high")
    over = results.arms.filter(statistic="lof_restricted").select(
        *_KEYS,
        "arm",
        pl.col("stage").cast(table["stage"].dtype),
        **dict(zip(ends, ("low", "high"), strict=True)),
    )
    made = (
        table.group_by(*_KEYS, "stage", "arm", maintain_order=True)
        .agg(
            pl.len().alias("seeds"),
            pl.col("lof_mean").mean(),
            pl.col("lof_mean").sort_by("seed").alias("lof_mean_by_seed"),
            pl.col("lof_sd").mean(),
            pl.col("lof_sd").sort_by("seed").alias("lof_sd_by_seed"),
            *(pl.col(name).mean() for name in [*means, "depths_per_factoid"]),
        )
        .join(over, on=[*_KEYS, "stage", "arm"], how="left", maintain_order="left")
        .sort(*_KEYS, "stage", maintain_order=True)
    )
    place = made.columns.index("lof_restricted_mean") + 1
    named = [name for name in made.columns if name not in ends]
    return made.select(*named[:place], *ends, *named[place:])


def spread(results: Results) -> pl.DataFrame:
    """Spread of latent depths, seed by seed, as a multiple of naive's of the same seed.

    Returns:
        [setup, k, token, readout, arm, stage, seed, sd, sd_reference, censored, reference_censored, ratio, low, high,
        p, error, why]; see :class:`memprobe.statistics.latent.LatentSpread`. sds are of first occurrences as seen.
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
    numbers = [
        "sd",
        "sd_reference",
        "censored",
        "reference_censored",
        "ratio",
        "low",
        "high",
        "p",
        "error",
        "why",
    ]
    return table.select(*_KEYS, "arm", "stage", "seed", *numbers)


def kept_before(results: Results) -> pl.DataFrame:
    """Where the facts that a stage left had surfaced before it, against those that it took; negative is earlier.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, kept, lost, lof, low, high, detectable, by_seed, lof_net, net_low,
        net_high, net_by_seed]; ``lof`` is the difference of mean LoF in depths (never as n + 1), ``detectable`` the one
        that so many facts and seeds see in 80 %, ``lof_net`` the difference net of shuffled answers.
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
    edges = ["lof", "low", "high", "detectable", "by_seed", "lof_net", "net_low", "net_high", "net_by_seed"]
    return table.select(*keys, *counts, *edges).sort(
        _KEYS, descending=[False, True, False, True], maintain_order=True
    )


def depth_and_retention(results: Results) -> pl.DataFrame:
    """Whether facts that had surfaced earlier before a stage are left more probable by it; negative says that they are.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, facts, correlation, low, high, detectable, by_seed, net, net_low,
        net_high, net_by_seed]: Spearman's over the ``facts`` that were recalled before, a mean over seeds; ``net`` is
        that of depths net of shuffled answers.
    """
    if not len(results.depth_and_retention):
        return pl.DataFrame()
    keys = [*_KEYS, "stage", "arm"]
    found = results.depth_and_retention.filter(statistic="lof_restricted")
    net = results.depth_and_retention.filter(statistic="lof_restricted_net").select(
        *keys, net="correlation", net_low="low", net_high="high", net_by_seed="by_seed"
    )
    table = found.join(net, on=keys, how="left", maintain_order="left")
    numbers = [
        "correlation",
        "low",
        "high",
        "detectable",
        "by_seed",
        "net",
        "net_low",
        "net_high",
        "net_by_seed",
    ]
    return table.select(*keys, "seeds", "facts", *numbers).sort(
        _KEYS, descending=[False, True, False, True], maintain_order=True
    )


def nats(results: Results) -> pl.DataFrame:
    """How probable D_A's answers are after the last stage, against naive and its controls: in nats, which see more than
    exact match does, and the same given how wide a margin stage 1 left.

    Returns:
        [setup, arm, against, seeds, in_common, difference, low, high, detectable, given_margin, given_margin_low,
        given_margin_high, given_margin_detectable, whole, whole_low, whole_high, whole_detectable], of the own readout:
        of the first token of an answer, as the headline's reading has it, and ``whole`` of all its tokens together.
    """
    if not len(results.differences):
        return pl.DataFrame()
    stage = pl.col("stage").cast(pl.Int64)
    last = results.differences.filter(stage == stage.max().over("setup"), readout="own")
    keys = ["setup", "arm", "reference"]
    numbers = ["difference", "low", "high", "detectable"]

    def of(statistic: str, token: str, named: Mapping[str, str]) -> pl.DataFrame:
        (k,) = (k for k, rule in SETTINGS if rule == token)
        rows = last.filter(statistic=statistic, k=k, token=token)
        return rows.select(*keys, *(pl.col(name).alias(to) for name, to in named.items()))

    shown = ["seeds", "in_common", *numbers]
    table = of("log_prob_full", "first", dict(zip(shown, shown, strict=True)))
    for statistic, token, called in (
        (GIVEN_MARGIN, "first", "given_margin"),
        ("log_prob_full", "all", "whole"),
    ):
        named = {name: called if name == "difference" else f"{called}_{name}" for name in numbers}
        more = of(statistic, token, named)
        table = table.join(more, on=keys, how="left", maintain_order="left")
    return table.rename({"reference": "against"})


def lost_facts(results: Results) -> pl.DataFrame:
    """Of the facts that a stage took, those that still surface at some depth, and those that D_B's answers outrank.

    Shares are over all lost facts of all seeds, with the interval of shares over seeds; depths and ranks are means over
    seeds, with Student's.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, lost, surfaces, surfaces_low, surfaces_high, full, full_low,
        full_high, chance_full, deepest, deepest_low, deepest_high, intruded, intruded_low, intruded_high,
        intruder_rank, intruder_rank_low, intruder_rank_high]: ``lost`` counts facts in each seed; ``full`` is the share
        that full depth still holds, ``chance_full`` that of shuffled answers; ``deepest`` is the mean depth of those
        that surface, ``intruder_rank`` the rank of D_B's answers there, over seeds and facts a geometric mean;
        intervals from three seeds with lost facts on.
    """
    if not len(results.lost):
        return pl.DataFrame()
    columns = [*_KEYS, "checkpoint", "arm", "stage", "seed"]
    chance = [name for name in ("chance_recall_full",) if name in results.placement.columns]
    who = results.placement.select(*columns, *chance).drop_nulls(columns)
    table = results.lost.join(who, on=[*_KEYS, "checkpoint"], how="inner", maintain_order="left")
    shares = [name for name in ("surfaces", "full", "intruded") if name in table.columns]
    layers, rows = _layers(results.placement), []
    for key, group in table.group_by(*_KEYS, "stage", "arm", maintain_order=True):
        group = group.sort("seed")
        row = dict(zip([*_KEYS, "stage", "arm"], key, strict=True))
        row |= {"seeds": len(group), "lost": group["n_lost"].to_list()}
        for name in shares:
            row |= _share_of(group, name)
        row |= {"chance_full": group[chance[0]].mean()} if chance else {}
        row |= _mean_of(group, "deepest", ends=(1.0, layers.get(key[0], np.inf)))
        if ranked := "intruder_rank" in table.columns:
            row |= _mean_of(group, "intruder_rank", np.log1p, np.expm1, ends=(0.0, np.inf))
        rows.append(row)
    edges = {name: [name, f"{name}_low", f"{name}_high"] for name in shares}
    ends = [*edges["surfaces"], *edges.get("full", []), *(["chance_full"] if chance else [])]
    ends += ["deepest", "deepest_low", "deepest_high", *edges["intruded"]]
    ends += ["intruder_rank", "intruder_rank_low", "intruder_rank_high"] if ranked else []
    losses = pl.DataFrame(rows, infer_schema_length=None).select(
        *_KEYS, "stage", "arm", "seeds", "lost", *ends
    )
    return losses.sort(_KEYS, descending=[False, True, False, True], maintain_order=True)


def _layers(placement: pl.DataFrame) -> dict[str, float]:
    """n_layers by set-up, which stored results do not name: where facts never surface, a restricted mean is made of
    theirs, n_layers + 1, and of those that do."""
    some = placement.filter(pl.col("share_never") > 0).sort("share_never").group_by("setup").last()
    surfacing = (1 - pl.col("share_never")) * pl.col("lof_mean").fill_null(0)
    never = (pl.col("lof_restricted_mean") - surfacing) / pl.col("share_never")
    return dict(some.select("setup", never.round() - 1).iter_rows())


def _mean_of(
    group: pl.DataFrame,
    name: str,
    there: Callable[..., Any] = np.asarray,
    back: Callable[..., Any] = float,
    *,
    ends: Ends,
) -> dict[str, float | None]:
    """A mean over seeds with Student's interval, taken on another scale, given back on its own and cut to ``ends``."""
    values = there(group[name].drop_nulls().to_numpy())
    numbers: dict[str, float | None] = dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    if len(values):
        low, high = student(values)
        numbers = {
            key: None if number is None else float(np.clip(back(number), *ends))
            for key, number in zip(numbers, (values.mean(), low, high), strict=True)
        }
    return numbers


def _share_of(group: pl.DataFrame, name: str) -> dict[str, float | None]:
    """A share of lost facts, over seeds that lost any; a seed counts by how many it is a share of."""
    # Only facts that D_B's answers were watched for can be outranked by one; results of old do not say how many.
    of = "n_intruded" if name == "intruded" and "n_intruded" in group.columns else "n_lost"
    known = group.with_columns(of=pl.coalesce(of, "n_lost")).filter(
        pl.col(name).is_not_null(), pl.col("of") > 0
    )
    numbers: dict[str, float | None] = dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    if not len(known):
        return numbers
    sizes = known["of"].to_numpy().astype(float)
    counts = known[name].to_numpy() * sizes
    numbers[name] = float(counts.sum() / sizes.sum())
    if len(known) >= MIN_SEEDS:
        share = share_over_seeds(counts, sizes)
        numbers |= {f"{name}_low": share.low, f"{name}_high": share.high}
    return numbers
