"""Whether instruments agree, fact by fact: on verdicts made by hand, and against SciPy."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from analyses.instruments.agreement import FEWEST, agreement, correlation, ought_to_agree
from analyses.instruments.results import facts_of
from analyses.instruments.scores import scores
from tests.instruments import cell, results


def facts(**depths: list[list[float | None]]) -> pl.DataFrame:
    """Facts of models with ordinary fine-tuning. depths: of each instrument, by model and fact."""
    frames = [
        pl.DataFrame({"depth": of_model, "fact": range(len(of_model))}, schema_overrides={"depth": pl.Float32})
        .with_columns(instrument=pl.lit(name), cell=pl.lit(f"model {number}"))
        for name, models in depths.items()
        for number, of_model in enumerate(models)
    ]  # fmt: skip
    shared = {"set": -1, "kind": "full", "source": "popqa", "planted": "all", "size": 16, "counts": True}
    return pl.concat(frames).with_columns(**{name: pl.lit(value) for name, value in shared.items()})


def pair(table: pl.DataFrame, one: str = "a", other: str = "b", **keys):
    [row] = table.filter(one=one, other=other, **keys).iter_rows(named=True)
    return row


def test_one_model_is_spearmans_correlation():
    rng = np.random.default_rng(0)
    one = rng.integers(1, 9, 60).astype(float)
    other = np.where(rng.random(60) < 0.4, one, rng.integers(1, 9, 60)).astype(float)
    row = pair(agreement(facts(a=[one.tolist()], b=[other.tolist()]), draws=200))
    assert row["correlation"] == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert row["correlation_low"] < row["correlation"] < row["correlation_high"]
    assert (row["models"], row["n"]) == (1, 60)
    assert row["within1"] == pytest.approx((np.abs(one - other) <= 1).mean())
    assert row["within1_shuffled"] == pytest.approx((np.abs(one[:, None] - other[None, :]) <= 1).mean())


def test_what_tells_models_apart_is_no_agreement():
    """Both name 3 in one model and 9 in the other, and within a model go against each other, or do not vary."""
    up = [3.0, 4.0] * 20
    opposite = facts(a=[up, [depth + 6 for depth in up]], b=[up[::-1], [depth + 6 for depth in up[::-1]]])
    row = pair(agreement(opposite, draws=50))
    assert row["correlation"] == pytest.approx(-1) and row["within1"] == 1 and row["within1_shuffled"] == 1
    fixed = facts(a=[[3.0] * 40, [9.0] * 40], b=[up, [depth + 6 for depth in up]])
    row = pair(agreement(fixed, draws=50))
    assert row["correlation"] is row["correlation_low"] is row["correlation_high"] is None
    assert row["within1"] == 1


def test_a_draw_is_as_if_its_facts_stood_there_so_often():
    rng = np.random.default_rng(1)
    ranks = rng.random((30, 2))
    models = [np.arange(30) < 12, np.arange(30) >= 12]
    weights = rng.integers(0, 4, (5, 30)).astype(float)
    for draw, found in zip(weights, correlation(ranks, models, weights), strict=True):
        parts = [np.repeat(ranks[mine], draw[mine].astype(int), axis=0) for mine in models]
        centred = np.concatenate([part - part.mean(0) for part in parts])
        assert found == pytest.approx(np.corrcoef(centred.T)[0, 1], abs=1e-9)


def test_facts_that_one_alone_names_do_not_count_and_too_few_say_nothing():
    depths = [float(depth) for depth in range(1, FEWEST + 6)]
    silent = [None] * 5 + depths[5:]
    row = pair(agreement(facts(a=[depths], b=[silent]), draws=50))
    assert row["n"] == FEWEST and row["correlation"] == pytest.approx(1)
    assert agreement(facts(a=[depths], b=[[None] * 6 + depths[6:]]), draws=50).is_empty()


def test_pairs_that_ought_to_agree_are_right_about_planted_truth():
    """A late instrument goes with the right one in every fact, and is never right; null models are not asked."""
    both = results(*(cell(seed) for seed in range(3)), cell(kind="full"), cell(kind="null"))
    table = facts_of(both)
    pairs = agreement(table, draws=50)
    assert set(pairs["kind"]) == {"several", "full"}
    late = pair(pairs, "right", "late", kind="several")
    assert late["correlation"] == pytest.approx(1) and late["within1"] == 0
    assert abs(pair(pairs, "right", "shuffled", kind="several")["correlation"]) < 0.3
    main = scores(table, draws=50).filter(kind="several")
    assert ought_to_agree(pairs, main).is_empty()
    as_late = main.with_columns(exact=pl.when(pl.col("instrument") == "late").then(1.0).otherwise("exact"))
    [row] = ought_to_agree(pairs, as_late).iter_rows(named=True)
    assert (row["one"], row["other"], row["kind"]) == ("right", "late", "full")
    assert row["correlation"] == pytest.approx(1) and row["correlation_planted"] == pytest.approx(1)
    nobody = agreement(facts_of(results(cell())), draws=50)
    assert nobody.is_empty() and ought_to_agree(nobody, main).is_empty()
