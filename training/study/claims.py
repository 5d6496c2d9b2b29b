"""Claim by claim, what a study found: each is held against intervals over seeds, never against a mean alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
from scipy.stats import spearmanr

from memprobe.arms import Arm
from memprobe.retention import forgetting, interference
from memprobe.statistics.arms import MIN_SEEDS
from training.study.collect import NAIVE, READOUTS, Results
from training.study.tables import kept_before, of_arms, spread

SEEN, NOT_SEEN, NOT_TESTED = "seen", "not seen at this scale", "not tested"
PAPER = {
    "naive": {"kvr": 17.8, "popqa": 46.0, "triviaqa": 37.8},
    "kl": {"kvr": 17.5, "popqa": 40.7, "triviaqa": 38.9},
    "ewc": {"kvr": 27.3, "popqa": 52.1, "triviaqa": 48.9},
    "remix": {"kvr": 67.4, "popqa": 85.7, "triviaqa": 88.4},
}
"""Per cent of D_A kept after stage 2 by Llama-3-8B, over D_B, in Chen et al. 2024 (arXiv 2411.07175); as others
quote it."""


def claims(results: Results) -> pl.DataFrame:
    """Claim by claim, what was found. A claim about an arm needs three seeds.

    ============  =============================================================================================
    forgets       naive keeps less than half of D_A
    keeps more    retention above naive's: the interval of the difference lies above 0
    beats …       a mixing arm's retention above that of its matched control, naive with as many steps or tokens
    earlier       restricted mean LoF below naive's in the checkpoints' own readout, in the base model's, and in the
                  own one net of shuffled answers (the base model's LoF is the same for every arm). Never counts as
                  one more than the last depth, so after a later stage an arm is earlier by keeping more alone;
                  after stage 1, where every arm has all facts, it is not
    kept earlier  the facts that a stage left had surfaced earlier before it than those that it took, all of them said
                  then: mean LoF, in both readouts, and net of shuffled answers
    more diverse  sd of the LoF above what the ceiling explains in every seed, in both readouts
    gradients     a larger cosine of gradients at the start of the last stage goes with more retention (Spearman's rank
                  correlation, p < 0.05), over cells whose last stage is plain training: what is done in the last
                  stage alone does not change the cosine at its start
    ============  =============================================================================================

    Returns:
        [setup, claim, arm, against, k, token, finding, evidence, paper]; ``paper`` is what it says of the same D_A
        (:data:`PAPER`), where it says anything.
    """
    rows: list[dict[str, Any]] = []
    for row in forgetting(results.retention).filter(pl.col("arm_text") == NAIVE).iter_rows(named=True):
        seeds = row["cells"] - row["failed"]
        finding = NOT_TESTED if seeds < MIN_SEEDS else SEEN if row["retention"] < 0.5 else NOT_SEEN
        evidence = f"retention {_listed(row['by_seed'])}" if seeds else "no learned cell"
        rows.append(_claim(row["setup"], "forgets", NAIVE, "", finding, evidence))
    rows += (
        _differences_found(results)
        + _kept_found(results)
        + _spread_found(results)
        + _gradients_found(results)
    )
    d_a = dict(results.cells.select("setup", "d_a").iter_rows())
    rows = [row | {"paper": _in_paper(row["claim"], d_a[row["setup"]], row["arm"])} for row in rows]
    schema = ["setup", "claim", "arm", "against", "k", "token", "finding", "evidence", "paper"]
    return pl.DataFrame(rows, schema=schema, infer_schema_length=None)


def _in_paper(claim: str, d_a: str, arm: str) -> str:
    """What the paper says of a claim: of naive training, and of single methods against it."""
    alone = Arm.of(arm).alone
    family = "naive" if arm == NAIVE else alone.name if alone else ""
    if claim in ("forgets", "keeps more") and d_a in PAPER.get(family, {}):
        return f"{PAPER[family][d_a]:.1f} % kept" + (
            "" if arm == NAIVE else f", naive {PAPER['naive'][d_a]:.1f} %"
        )
    if Arm.of(arm).mixes and claim.startswith(("earlier", "more diverse")):
        return "so in its figure 4"
    return "so in its figure 2" if claim == "gradients" else ""


def _claim(
    setup: str,
    claim: str,
    arm: str,
    against: str,
    finding: str,
    evidence: str,
    k: int | None = None,
    token: str = "",
) -> dict[str, Any]:
    values = (setup, claim, arm, against, k, token, finding, evidence)
    return dict(
        zip(("setup", "claim", "arm", "against", "k", "token", "finding", "evidence"), values, strict=True)
    )


def _differences_found(results: Results) -> list[dict[str, Any]]:
    if not len(results.differences):
        return []
    rows = []
    table = results.differences.with_columns(pl.col("stage").cast(pl.Int64))
    exact = of_arms(table, "exact", last=True)
    for row in exact.iter_rows(named=True):
        if not Arm.of(row["arm_text"]).is_held_against(Arm.of(row["reference"])):
            continue
        finding = NOT_TESTED if row["low"] is None else SEEN if row["low"] > 0 else NOT_SEEN
        claim = "keeps more" if row["reference"] == NAIVE else "beats its matched control"
        rows.append(_claim(row["setup"], claim, row["arm_text"], row["reference"], finding, _interval(row)))
    net = pl.lit("net of shuffled answers").alias("readout")
    depths = pl.concat(
        [
            table.filter(pl.col("statistic") == "lof_restricted"),
            table.filter(
                pl.col("difference").is_not_null(), statistic="lof_restricted_net", readout=READOUTS[0]
            ).with_columns(net),
        ]
    ).filter(pl.col("reference") == NAIVE)
    for key, group in depths.group_by("setup", "k", "token", "stage", "arm", maintain_order=True):
        setup, k, token, stage, arm = key
        both = {row["readout"]: row for row in group.iter_rows(named=True)}
        if not both.keys() >= set(READOUTS) or any(row["low"] is None for row in both.values()):
            finding = NOT_TESTED
        else:
            finding = SEEN if all(row["high"] < 0 for row in both.values()) else NOT_SEEN
        evidence = "; ".join(f"{readout}: {_interval(row)}" for readout, row in both.items())
        name = f"earlier after stage {stage}"
        rows.append(_claim(str(setup), name, str(arm), NAIVE, finding, evidence, k, str(token)))  # type: ignore[arg-type]
    return rows


def _kept_found(results: Results) -> list[dict[str, Any]]:
    rows = []
    table = kept_before(results)
    for key, group in (
        table.group_by("setup", "k", "token", "stage", "arm", maintain_order=True) if len(table) else ()
    ):
        setup, k, token, stage, arm = key
        both = {row["readout"]: row for row in group.iter_rows(named=True)}
        own = both.get(READOUTS[0])
        if own is None:
            continue
        highs = [row["high"] for row in both.values()] + [own["net_high"]]
        if not both.keys() >= set(READOUTS) or any(high is None for high in highs):
            finding = NOT_TESTED
        else:
            finding = SEEN if max(highs) < 0 else NOT_SEEN
        told = [f"{readout}: {_interval(row | {'difference': row['lof']})}" for readout, row in both.items()]
        net = {
            "difference": own["lof_net"],
            "low": own["net_low"],
            "high": own["net_high"],
            "seeds": own["seeds"],
        }
        told += [] if own["lof_net"] is None else [f"net of shuffled answers: {_interval(net)}"]
        name = f"kept facts were earlier before stage {stage}"
        rows.append(_claim(str(setup), name, str(arm), "", finding, "; ".join(told), k, str(token)))  # type: ignore[arg-type]
    return rows


def _spread_found(results: Results) -> list[dict[str, Any]]:
    table, rows = spread(results), []
    if not len(table):
        return []
    for key, group in table.group_by("setup", "k", "token", "stage", "arm", maintain_order=True):
        setup, k, token, stage, arm = key
        known = group.filter(pl.col("low").is_not_null())  # else too few facts occur at any depth
        seeds = known.group_by("readout").agg(pl.col("seed").n_unique())["seed"].to_list()
        if len(seeds) < len(READOUTS) or min(seeds) < MIN_SEEDS:
            finding = NOT_TESTED
        else:
            finding = SEEN if (known["low"] > 0).all() else NOT_SEEN
        own = group.filter(pl.col("readout") == READOUTS[0]).sort("seed")
        evidence = f"sd - expected (own readout, by seed) {_listed(own['difference'].to_list(), '{:+.2f}')}"
        name = f"more diverse after stage {stage}"
        rows.append(_claim(str(setup), name, str(arm), NAIVE, finding, evidence, k, str(token)))  # type: ignore[arg-type]
    return rows


def _gradients_found(results: Results) -> list[dict[str, Any]]:
    rows = []
    cells = results.cells.filter("plain_last")
    table = interference(results.retention).join(cells, on=["setup", "arm", "seed"], how="semi")
    for (setup,), group in table.group_by("setup", maintain_order=True):
        enough = group["seed"].n_unique() >= MIN_SEEDS and len(group) >= 4
        if enough:
            rho, p = spearmanr(group["cosine_start"], group["retention"])
            finding = SEEN if p < 0.05 and rho > 0 else NOT_SEEN
            evidence = f"rho {rho:+.2f}, p {p:.3f}, {len(group)} cells"
        else:
            finding, evidence = NOT_TESTED, f"{len(group)} cells"
        rows.append(_claim(str(setup), "gradients", "", "", finding, evidence))
    return rows


def _interval(row: dict[str, Any]) -> str:
    edges = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['difference']:+.3f}{edges}, {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"


def _listed(values: Sequence[float | None], pattern: str = "{:.1%}") -> str:
    return ", ".join("–" if value is None else pattern.format(value) for value in values)
