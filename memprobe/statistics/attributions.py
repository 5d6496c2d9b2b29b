"""What blocks write towards answers: means and shares by depth, where the most is written, and paired differences.

Only the parts ``block``, ``attn`` and ``mlp`` have a depth. A factoid's contribution is the mean over its answer tokens
that a token rule keeps: ``first``, ``last``, or ``all`` of them.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError, among, there_are
from memprobe.statistics.asking import Probed, answers_of
from memprobe.statistics.ends import FREE, within
from memprobe.statistics.holding import check_rule
from memprobe.statistics.intervals import Resamples, bootstrap, bootstrap_mean
from memprobe.statistics.paired import differences

PARTS = ("block", "attn", "mlp")
_FACT = ["checkpoint", "factoid"]


def contributions(
    table: pl.DataFrame | Probed, *, token: str | None = None, part: str = "block"
) -> pl.DataFrame:
    """One row per (checkpoint, factoid, depth): the part's mean contribution over the tokens of a rule, in logits.

    Args:
        table: see :data:`memprobe.records.ATTRIBUTIONS`; or a probe that holds it.
        token: the token rule; by default that of the probe, and of a table ``first``.

    Returns:
        [checkpoint, factoid, depth, logit, shuffled], by depth from 1; ``shuffled`` null where there is no control.

    Raises:
        MemprobeError: an unknown token rule or part, or a part that no block was taken into.
    """
    keys = [*_FACT, "depth"]
    rows = _of_rule(*_asked(table, token), part)
    return rows.group_by(keys).agg(pl.col("logit", "shuffled").cast(pl.Float64).mean()).sort(keys)


def _of_rule(table: pl.DataFrame, token: str, part: str) -> pl.DataFrame:
    """The rows of a part, of the answer tokens that a rule keeps."""
    check_rule(token)
    if part not in PARTS:
        raise MemprobeError(f"{part!r} is not a part of a block; {among(part, PARTS)}")
    rows = table.filter(pl.col("part") == part)
    if rows.is_empty() and not table.is_empty():
        raise MemprobeError(f"these attributions are given by block; there is no {part} in them")
    edge = {"first": pl.col("token").min(), "last": pl.col("token").max()}
    if token in edge:
        rows = rows.filter(pl.col("token") == edge[token].over(_FACT))
    return rows


def contribution_by_depth(
    table: pl.DataFrame | Probed,
    *,
    token: str | None = None,
    answers: pl.DataFrame | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> pl.DataFrame:
    """Mean contribution, its share, and both net of shuffled answers, by part and depth; 95 % over factoids.

    ``share`` is the mean contribution over the sum of the mean contributions of all blocks, in per one of what blocks
    write in all: parts of one depth add up, and depths of ``block`` to 1. ``net`` is contribution less that to shuffled
    answers, paired by factoid, over those that have any; ``net_share`` is the share of that.

    Args:
        answers: [id, answer] of the factoids (``factoids.parquet``), by default those of a probe: factoids of one
            answer are resampled together. Without it every factoid counts for itself.

    Returns:
        [checkpoint, part, depth, n, logit, low, high, share, share_low, share_high, n_net, net, net_low, net_high,
        net_share, net_share_low, net_share_high]
    """
    answer_of = answers_of(table, answers)
    table, token = _asked(table, token)
    parts = []
    for label in table["checkpoint"].unique(maintain_order=True):
        of_label = table.filter(pl.col("checkpoint") == label)
        blocks, by_chance = _wide(of_label, token, "block")
        alike = answer_of(of_label["factoid"].unique().sort())  # in the order of contributions
        resamples = Resamples.of(len(blocks), answers=alike, draws=draws, seed=seed)
        for part in parts_of(of_label):
            values, shuffled = _wide(of_label, token, part)
            mean = bootstrap_mean(values, resamples)
            net = bootstrap_mean(values - shuffled, resamples)
            depths = values.shape[1]
            share, net_share = (
                bootstrap(
                    np.column_stack([of_part, of_blocks]),
                    resamples,
                    lambda sums, counts, depths=depths: sums[:, :depths] / sums[:, depths:].sum(1)[:, None],
                )
                for of_part, of_blocks in ((values, blocks), (values - shuffled, blocks - by_chance))
            )
            columns = {"depth": np.arange(1, depths + 1), "n": np.full(depths, len(values))}
            for name, edges in (
                ("logit", mean),
                ("share", share),
                ("net", net),
                ("net_share", net_share),
            ):
                ends = ("", "low", "high") if name == "logit" else ("", f"{name}_low", f"{name}_high")
                columns |= {end or name: edge for end, edge in zip(ends, edges, strict=True)}
                if name == "share":
                    columns["n_net"] = (~np.isnan(shuffled)).sum(0)
            frame = pl.DataFrame(columns).fill_nan(None)
            parts.append(
                frame.select(pl.lit(label).alias("checkpoint"), pl.lit(part).alias("part"), pl.all())
            )
    return pl.concat(parts) if parts else pl.DataFrame()


def largest_contribution(
    table: pl.DataFrame | Probed, *, token: str | None = None, part: str = "block"
) -> pl.DataFrame:
    """The depth at which most is written towards each factoid's answer: a placement, as the first occurrence is one.

    The first of equal depths counts.

    Returns:
        [checkpoint, factoid, depth, logit, depth_shuffled]: ``depth_shuffled``, the chance level, is the mean over
        draws of shuffled answers of each draw's own largest; null where there is none. It is not the largest of the
        draws' mean: a mean is smoother than a draw, and its largest lies elsewhere. So it is null, too, of tables that
        older versions wrote, which hold that mean alone.
    """
    rows = _of_rule(*_asked(table, token), part)
    numbered = rows.filter(pl.col("shuffled_draws").list.len() > 0).with_columns(
        draw=pl.int_ranges(pl.col("shuffled_draws").list.len())
    )
    draws = numbered.explode("shuffled_draws", "draw").drop_nulls("shuffled_draws")
    draws = draws.group_by(*_FACT, "draw", "depth").agg(pl.col("shuffled_draws").cast(pl.Float64).mean())
    draws = _largest(draws, [*_FACT, "draw"], "shuffled_draws")
    chance = draws.group_by(_FACT).agg(depth_shuffled=pl.col("depth").cast(pl.Float64).mean())
    own = _largest(
        rows.group_by(*_FACT, "depth").agg(pl.col("logit").cast(pl.Float64).mean()), _FACT, "logit"
    )
    return own.join(chance, on=_FACT, how="left", maintain_order="left").select(
        *_FACT, "depth", "logit", "depth_shuffled"
    )


def _largest(rows: pl.DataFrame, by: list[str], column: str) -> pl.DataFrame:
    """[*by, depth, column]: of each group the depth at which the column is largest, the first of equal ones."""
    return (
        rows.sort(*by, "depth")
        .group_by(by, maintain_order=True)
        .agg(pl.col("depth").get(pl.col(column).arg_max()), pl.col(column).max())
    )


def parts_of(table: pl.DataFrame) -> list[str]:
    """The parts with a depth that attributions are given by."""
    return [name for name in PARTS if name in table["part"].unique()]


def placed_in_short(
    placed: pl.DataFrame, resamples: Resamples, n_layers: float
) -> dict[str, float | int | None]:
    """Where the most is written, over the facts of one checkpoint.

    Args:
        placed: of :func:`largest_contribution`.

    Returns:
        n, n_net, the mean ``depth`` with its ends, ``sd``, and, over the facts that have shuffled answers, their mean
        ``chance`` and the mean difference ``net`` with its ends; 95 % over factoids.
    """
    depth = placed["depth"].cast(pl.Float64).to_numpy()
    chance = placed["depth_shuffled"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    mean, low, high = bootstrap_mean(np.column_stack([depth, chance, depth - chance]), resamples)
    low, high = within(low, high, [(1.0, n_layers), (1.0, n_layers), FREE])
    summary: dict[str, float | int | None] = {"n": len(depth), "n_net": int((~np.isnan(chance)).sum())}
    numbers = {"depth": mean[0], "depth_low": low[0], "depth_high": high[0]}
    numbers |= {"sd": depth.std(ddof=1) if len(depth) > 1 else np.nan, "chance": mean[1]}
    numbers |= {"net": mean[2], "net_low": low[2], "net_high": high[2]}
    return summary | {name: None if np.isnan(value) else float(value) for name, value in numbers.items()}


def paired_contributions(
    table: pl.DataFrame | Probed,
    reference: str,
    answers: pl.DataFrame,
    *,
    token: str | None = None,
    part: str = "block",
    draws: int = 10_000,
    seed: int = 0,
) -> pl.DataFrame:
    """Contributions of each checkpoint less the reference's, factoid by factoid: by depth, and where most is written.

    Args:
        answers: [id, answer] of the factoids (``factoids.parquet``): those with one answer are resampled and
            flipped together.

    Returns:
        [checkpoint, measure, depth, n, difference, low, high, p, effect, dominance]: measure ``logit`` at depths from
        1, and ``largest``, the depth of :func:`largest_contribution`, without a depth of its own. See
        :func:`memprobe.statistics.paired.differences`.

    Raises:
        MemprobeError: the reference has no attributions.
    """
    table, token = _asked(table, token)
    rows = contributions(table, token=token, part=part)
    largest = largest_contribution(table, token=token, part=part)
    labels = rows["checkpoint"].unique(maintain_order=True).to_list()
    if reference not in labels:
        raise MemprobeError(f"no attributions of {reference!r}; {there_are(reference, labels)}")
    parts = []
    for label in (name for name in labels if name != reference):
        wide = _difference(rows, label, reference, "logit", on=["factoid", "depth"])
        wide = wide.pivot("depth", index="factoid", values="difference", sort_columns=True)
        placed = _difference(largest, label, reference, "depth", on=["factoid"])
        both = wide.join(placed, on="factoid").join(answers, left_on="factoid", right_on="id").sort("factoid")
        names = [name for name in wide.columns if name != "factoid"]
        values = both.select(*names, "difference").to_numpy().astype(float)
        alike = both["answer"].to_numpy()
        resamples = Resamples.of(len(both), answers=alike, draws=draws, seed=seed)
        paired = differences(values, resamples, seed=seed)
        keys = {
            "checkpoint": [label] * len(paired),
            "measure": ["logit"] * len(names) + ["largest"],
            "depth": pl.Series([*map(int, names), None], dtype=pl.Int16),
        }
        parts.append(pl.concat([pl.DataFrame(keys), paired], how="horizontal"))
    return pl.concat(parts) if parts else pl.DataFrame()


def _difference(
    rows: pl.DataFrame, label: str, reference: str, column: str, *, on: list[str]
) -> pl.DataFrame:
    one, other = (rows.filter(pl.col("checkpoint") == name) for name in (label, reference))
    difference = pl.col(column).cast(pl.Float64) - pl.col(f"{column}_reference").cast(pl.Float64)
    return one.join(other, on=on, suffix="_reference").select(*on, difference=difference)


def _asked(source: pl.DataFrame | Probed, token: str | None) -> tuple[pl.DataFrame, str]:
    """The table and the token rule of a question."""
    if isinstance(source, pl.DataFrame):
        return source, token or "first"
    return source.attributions, token or str(source.run["token"])


def _wide(table: pl.DataFrame, token: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Contributions [factoid, depth] of one checkpoint, to answers and to shuffled ones (NaN without any)."""
    rows = contributions(table, token=token, part=part)
    depths, facts = rows["depth"].n_unique(), rows["factoid"].n_unique()
    values, shuffled = (
        rows[name].fill_null(np.nan).to_numpy().reshape(facts, depths) for name in ("logit", "shuffled")
    )
    return values, shuffled
