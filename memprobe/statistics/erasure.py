"""The erasure score of Lee et al. 2026 (arXiv 2605.24614): how deep a fact is erased, with their own threshold."""

from __future__ import annotations

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError
from memprobe.statistics.ends import SHARE, within
from memprobe.statistics.intervals import Resamples, bootstrap_mean, of_unanimous_shares
from memprobe.statistics.patches import DRAWS

TAU = 0.05
"""Nats a token that a block must lack to count as encoding the fact (Lee et al. 2026, section 3.2)."""


def erasure_scores(
    table: pl.DataFrame, *, full: str, reference: str, unlearned: str, tau: float = TAU
) -> pl.DataFrame:
    """The Unlearning Depth Score per factoid (Lee et al. 2026, section 3): how deep a fact is erased.

    With Δ(l) the mean over answer tokens of what a patch at depth l takes from the full model's log-probability,

        score = Σ Δ1 · clip(Δ2 / Δ1, 0, 1) / Σ Δ1,    over the depths l ≥ 1 with Δ1(l) > τ,

    where Δ1 is of patches from a reference that never had the fact and Δ2 of those from the checkpoint that lost it. 0
    says that the fact stands there as it did, 1 that it is as absent as from the reference. The patches are of the
    residual stream at the positions that predict the answer's tokens. Facts and depths are
    those that were patched from both; a fact of one alone has no row.

    Args:
        table: in the schema of :data:`memprobe.records.PATCHES`.
        full: label of the checkpoint that knows the facts, into which both are patched.
        reference: label of the one that never had them (the base model).
        unlearned: label of the one that lost them.
        tau: nats a token.

    Returns:
        [factoid, depths (how many encode it), score]; the score of a fact that no depth encodes is null.

    Raises:
        MemprobeError: the table lacks one of the two patches.
    """
    sides = {}
    for name, source in (("reference", reference), ("unlearned", unlearned)):
        rows = table.filter(
            (pl.col("source") == source)
            & (pl.col("target") == full)
            & (pl.col("what") == "residual")
            & (pl.col("positions") == "last")
            & (pl.col("control") == "")
            & (pl.col("token") >= 0)
            & (pl.col("depth") >= 1)
        )
        if rows.is_empty():
            raise MemprobeError(
                f"the erasure score needs the residual stream of {source} patched into {full} at the last positions"
            )
        lost = pl.col("target_log_prob").cast(pl.Float64) - pl.col("log_prob").cast(pl.Float64)
        sides[name] = rows.group_by("factoid", "depth", maintain_order=True).agg(lost.mean().alias(name))
    # A fact or depth of one side alone says nothing: a null would count as not erased.
    both = sides["reference"].join(
        sides["unlearned"], on=["factoid", "depth"], how="inner", maintain_order="left"
    )
    encodes = pl.col("reference") > tau
    kept = pl.col("reference") * (pl.col("unlearned") / pl.col("reference")).clip(0, 1)
    return both.group_by("factoid", maintain_order=True).agg(
        depths=encodes.sum(),
        score=pl.when(encodes.any()).then(
            kept.filter(encodes).sum() / pl.col("reference").filter(encodes).sum()
        ),
    )


def erasure_summary(
    scores: pl.DataFrame, answers: pl.DataFrame | None = None, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, float | int | None]:
    """:func:`erasure_scores` in one row: facts, n (those that some depth encodes), mean score, low, high.

    Bootstrapped; where all have one score Wilson's.

    Args:
        answers: [factoid, answer], see :func:`memprobe.statistics.patches.alike_of`: factoids of one answer are
            resampled together. Without it every factoid counts for itself.
    """
    known = scores.drop_nulls("score")
    if answers is not None:
        known = known.join(answers, on="factoid", how="left", maintain_order="left")
    values = known["score"].to_numpy()
    row: dict[str, float | int | None] = {"facts": len(scores), "n": len(values)}
    if not len(values):
        return row | {"score": None, "low": None, "high": None}
    alike = None if answers is None else known["answer"].to_numpy()
    resamples = Resamples.of(len(values), answers=alike, draws=draws, seed=seed)
    mean, low, high = bootstrap_mean(values[:, None], resamples)
    low, high = within(*of_unanimous_shares(mean, low, high, np.array(resamples.units)), [SHARE])
    ends = (float(edge[0]) if np.isfinite(edge[0]) else None for edge in (low, high))
    return row | {"score": float(mean[0])} | dict(zip(("low", "high"), ends, strict=True))
