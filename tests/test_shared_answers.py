"""Facts that share an answer are resampled together: by hand, by statsmodels, by scipy, and where nothing is true."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from memprobe.compare import compare
from memprobe.compare.outcomes import compare_outcomes
from memprobe.factoids import Factoid, make_factoid
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.intervals import Resamples, bootstrap, bootstrap_mean, median_interval
from memprobe.statistics.occurrence import Occurrence, effective_layers_of, placement, placement_of
from memprobe.statistics.paired import differences, differences_by_depth, mean_difference, sign_flip
from tests.probes import retell, write_probe


def sharing(answers: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Answers [fact] of one to four facts each in no order, and values [fact, 2] that go together; some lack one."""
    rng = np.random.default_rng(seed)
    answer = rng.permutation(np.repeat(np.arange(answers), rng.integers(1, 5, answers)))
    values = rng.normal(0, 1, (answers, 2))[answer] + rng.normal(0, 0.5, (len(answer), 2))
    values[rng.random(len(answer)) < 0.2, 1] = np.nan
    values[answer == 3, 1] = np.nan  # an answer without any
    return answer, values


def named(answer: np.ndarray) -> np.ndarray:
    return np.array([f"answer {number:03}" for number in answer])


def by_hand(answer: np.ndarray, resamples: Resamples) -> list[np.ndarray]:
    """Rows of the facts of each draw."""
    rows = [np.flatnonzero(answer == one) for one in range(resamples.counts.shape[1])]
    return [np.concatenate([np.tile(rows[i], n) for i, n in enumerate(draw)]) for draw in resamples.counts]


def expanded(draws: np.ndarray, n: int) -> np.ndarray:
    """Percentiles as Hesterberg 2015 moves them out."""
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    return np.nanquantile(draws, [tail, 1 - tail], axis=0, method="weibull")


def test_means_are_those_of_whole_answers_drawn_by_hand():
    answer, values = sharing(40)
    resamples = Resamples.of(len(answer), answers=named(answer), draws=400, seed=1)
    assert resamples.counts.shape == (400, 40) and (resamples.counts.sum(1) == 40).all()
    drawn = by_hand(answer, resamples)
    assert [len(rows) for rows in drawn] == resamples.sizes.tolist()
    means = np.array([np.nanmean(values[rows], axis=0) for rows in drawn])
    mean, low, high = bootstrap_mean(values, resamples)
    assert mean == pytest.approx(np.nanmean(values, axis=0))
    there = len(np.unique(answer[~np.isnan(values[:, 1])]))
    assert there < 40
    whole, torn = expanded(means[:, 0], 40), expanded(means[:, 1], there)
    assert [low[0], high[0]] == pytest.approx(whole, abs=1e-5)
    assert [low[1], high[1]] == pytest.approx(torn, abs=1e-5)


def test_few_answers_have_student_s_interval_of_clusters():
    api = pytest.importorskip("statsmodels.api")
    answer, values = sharing(14)
    for column, answers in ((0, 14), (1, 12)):
        there = ~np.isnan(values[:, column])
        fit = api.OLS(values[there, column], np.ones(there.sum())).fit(
            cov_type="cluster", cov_kwds={"groups": answer[there]}, use_t=True
        )
        resamples = Resamples.of(len(answer), answers=named(answer), draws=200)
        mean, low, high = bootstrap_mean(values, resamples)
        assert len(np.unique(answer[there])) == answers
        assert [mean[column], low[column], high[column]] == pytest.approx([fit.params[0], *fit.conf_int()[0]])
    nine = answer < 9
    resamples = Resamples.of(nine.sum(), answers=answer[nine], draws=200)
    assert nine.sum() > 12 and np.isnan(bootstrap_mean(values[nine], resamples)[1]).all()
    assert np.isnan(bootstrap(values[nine], resamples, lambda sums, n: sums / n)[1]).all()


def test_what_is_no_mean_leaves_out_one_answer_at_a_time():
    answer, values = sharing(60)
    values = np.exp(values[:, :1])  # skewed
    rows = [np.flatnonzero(answer == one) for one in range(60)]

    def ratio(picked):
        some = values[np.concatenate([rows[int(i)] for i in picked]), 0]
        return (some**2).sum() / some.sum()

    picked = stats.bootstrap(
        (np.arange(60),),
        ratio,
        vectorized=False,
        n_resamples=2000,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    resamples = Resamples.of(len(answer), answers=named(answer), draws=4000)
    squares = np.column_stack([values**2, values])
    value, low, high = bootstrap(squares, resamples, lambda sums, _: sums[:, :1] / sums[:, 1:])
    assert value[0] == pytest.approx(ratio(range(60)))
    width = picked.high - picked.low
    assert [low[0], high[0]] == pytest.approx([picked.low, picked.high], abs=0.12 * width)


def test_effective_layers_of_shared_answers_have_the_error_of_answers():
    answer, _ = sharing(70)
    rng = np.random.default_rng(0)
    held = (rng.random((70, 5)) < [0.05, 0.2, 0.5, 0.7, 0.9])[answer]
    resamples = Resamples.of(len(answer), answers=answer, draws=300, seed=1)

    def entropy(counts):
        shares = counts[counts > 0] / counts.sum()
        return -(shares * np.log(shares)).sum()

    def error(picked):
        sums = held[np.concatenate([np.flatnonzero(answer == one) for one in picked])].sum(0)
        left = [sums - held[answer == one].sum(0) for one in picked]
        parts = np.array([entropy(one) for one in left]) - entropy(sums)
        return entropy(sums), math.sqrt((parts**2).sum())

    value, own = error(range(70))
    drawn = [error(np.repeat(np.arange(70), draw)) for draw in resamples.counts]
    near, far = np.quantile([(h - value) / e for h, e in drawn], [0.025, 0.975], method="weibull")
    _, low, high = effective_layers_of(held, resamples)
    ends = math.exp(value - far * own), min(5, math.exp(value - near * own))
    assert [low, high] == pytest.approx(ends, rel=0.02)


def test_an_answer_of_its_own_each_changes_no_bit():
    rng = np.random.default_rng(0)
    for n in (25, 70):
        values = rng.normal(0.2, 1, (n, 3))
        values[:7, 2] = np.nan
        own = named(rng.permutation(n))
        alone = Resamples.of(n, draws=300, seed=2)
        each = Resamples.of(n, answers=own, draws=300, seed=2)
        assert (alone.counts == each.counts).all()
        for one, other in zip(bootstrap_mean(values, alone), bootstrap_mean(values, each), strict=True):
            np.testing.assert_array_equal(one, other)
        one, other = (bootstrap(values, drawn, lambda sums, count: sums / count) for drawn in (alone, each))
        np.testing.assert_array_equal(one, other)
        held = rng.random((n, 6)) < 0.4
        assert effective_layers_of(held[:, 1:], alone) == effective_layers_of(held[:, 1:], each)
        table = differences(values, each, seed=4)
        assert table.drop("p").equals(differences(values, alone, seed=4).drop("p"))
        assert table["p"].to_list() == sign_flip(values, own, draws=300, seed=4).tolist()
        assert median_interval(values[:, 0], each.answer) == median_interval(values[:, 0])


@pytest.mark.parametrize("share", [2, 4, 8])
@pytest.mark.parametrize("correlation", [1.0, 0.5])
def test_a_true_null_with_shared_answers_is_rejected_as_often_as_promised(share, correlation):
    """80 facts without a difference, 400 times: 5 %, and where facts were drawn one by one 12 to 50 %."""
    rng = np.random.default_rng(share)
    answer = np.arange(80) // share
    of_answer, of_fact = rng.normal(0, 1, (80 // share, 400))[answer], rng.normal(0, 1, (80, 400))
    values = np.sqrt(correlation) * of_answer + np.sqrt(1 - correlation) * of_fact
    table = differences(values, Resamples.of(80, answers=answer, draws=600))
    seen = ((table["low"] > 0) | (table["high"] < 0)).to_numpy()
    assert 0.02 < seen.mean() < 0.09
    # The interval and p of a row are of the same answers: they part where p is close to 5 % only.
    apart = seen != (table["p"] < 0.05).to_numpy()
    assert apart.mean() < 0.03 and table["p"].to_numpy()[apart] == pytest.approx(0.05, abs=0.04)


def test_a_median_of_shared_answers_reaches_farther():
    rng = np.random.default_rng(0)
    answer = np.arange(80) // 4
    missed = alone = 0
    for _ in range(200):
        values = rng.normal(0, 1, 20)[answer]
        median, low, high = median_interval(values, answer)
        one = median_interval(values)
        assert median == one[0] and low <= one[1] and high >= one[2]
        missed, alone = missed + (not low <= 0 <= high), alone + (not one[1] <= 0 <= one[2])
    assert missed < 14 < 40 < alone
    assert all(map(math.isnan, median_interval(np.arange(36.0), np.arange(36) // 4)[1:]))  # nine answers
    rank = np.where(np.arange(80)[:, None] < 52, [[40, 9]], [[40, 90]]).astype(np.int32)
    ids, none = np.arange(80).astype(str), np.zeros((80, 2), np.float32)
    new, old = (Trajectories("m", None, ids, one, none, none) for one in (rank, np.full_like(rank, 50)))
    for answers, side in ((None, True), (answer, False)):
        drawn = Resamples.of(80, answers=answers, draws=400)
        row = differences_by_depth(new, old, k=10, resamples=drawn).filter(measure="rank", depth=1)
        assert (row["high"].item() < 0) == side == (row["p"].item() < 0.05)


def test_answers_that_all_agree_are_so_many_and_no_more():
    """Of a share, 15 answers of four facts each that all are lost are 15 answers."""
    answers = np.arange(60) // 4
    lost = mean_difference(np.full((60, 1), -1.0), Resamples.of(60, answers=answers, draws=200), True)
    alone = mean_difference(np.full((15, 1), -1.0), Resamples.of(15, draws=200), True)
    assert [float(part[0]) for part in lost] == pytest.approx([float(part[0]) for part in alone])


def test_what_counts_for_an_interval_of_depths_are_answers():
    rng = np.random.default_rng(0)
    lof = rng.integers(3, 12, 120).astype(float)
    held = np.arange(13) >= lof[:, None]
    found = Occurrence(np.arange(120).astype(str), 12, lof, lof, held)
    for share, without in ((1, []), (2, []), (3, ["lof_sd", "effective_layers"]), (8, None)):
        row = placement_of(found, Resamples.of(120, answers=np.arange(120) // share, draws=200))
        assert (row["lof_n"], row["lof_answers"], row["settled_answers"]) == (120, 120 // share, 120 // share)
        names = ("lof_mean", "lof_restricted_mean", "lof_sd", "effective_layers", "depths_per_factoid")
        lacking = [name for name in names if row[f"{name}_low"] is None]
        assert lacking == (list(names) if without is None else without)
        assert row["share_never_low"] is not None and row["lof_median_low"] is not None


def facts(n: int, share: int) -> list[Factoid]:
    """So many, of which so many in a row have one answer."""
    return [make_factoid(f"The capital of place {i} is", f"answer{i // share}", "made") for i in range(n)]


def with_losses(folder: Path, given: list[Factoid], lost: int) -> Path:
    """Two checkpoints of one probe, of which the second does not recall the first facts that the first one does."""
    probe = write_probe(folder, {"a": 5.0, "b": 5.0}, never=0.0, factoids=given)
    gone = pl.col("factoid").is_in(probe.factoids["id"].head(lost)) & (pl.col("checkpoint") == "b")
    names = ("exact_match", "alias_match", "exact_tokens")
    (folder / "summary.json").unlink()
    retell(folder, "outcomes", probe.outcomes.with_columns((~gone).alias(name) for name in names))
    return folder


@pytest.mark.parametrize("ask", [compare, compare_outcomes])
def test_a_sentence_says_no_more_than_p(tmp_path, ask):
    """Twelve of 60 facts are lost, all facts of three answers: that is three of fifteen."""
    found = ask([with_losses(tmp_path / "p", facts(60, 4), 12)], draws=500)
    row = found.tables["differences"].filter(statistic="exact", on="all").row(0, named=True)
    assert (row["n"], row["difference"], row["p"]) == (60, -0.2, pytest.approx(0.25, abs=0.05))
    assert row["low"] < row["difference"] < 0 < row["high"]
    assert any("no clear difference in exact match" in line for line in found.verdict())


def test_few_labels_are_no_answers_that_facts_share(tmp_path):
    """Of a choice among four, other tools' results and what a probe answers: a fact counts for itself."""
    given = [make_factoid(f"Question {i}:", "ABCD"[i % 4], "made") for i in range(60)]
    path = with_losses(tmp_path / "p", given, 12)
    row = compare_outcomes([path], draws=500).tables["differences"].row(0, named=True)
    assert row["p"] < 0.01 and row["high"] < 0
    # A probe says where answers surface, and that they share: four of them carry no interval.
    found = compare([path], draws=500)
    row = found.tables["differences"].filter(statistic="exact", on="all").row(0, named=True)
    assert row["p"] > 0.05 and row["low"] is None
    assert any("too few different answers for an interval" in line for line in found.verdict())
    assert "(too few)" in found.markdown()


def test_placement_of_a_probe_is_that_of_its_answers(tmp_path):
    probe = write_probe(tmp_path / "p", {"a": 5.0}, factoids=facts(80, 2))
    own, table = placement(probe, draws=300), compare([probe], draws=300).tables["placement"]
    for name in ("lof_answers", "lof_mean_low", "lof_restricted_mean_high", "depths_per_factoid_low"):
        assert own[name].to_list() == table[name].to_list()
    alone = placement(probe.records, k=10, token="first", draws=300)
    assert alone["lof_answers"].item() == alone["lof_n"].item() > own["lof_answers"].item()
    with_answers = placement(probe.records, k=10, token="first", answers=probe.factoids, draws=300)
    assert with_answers.equals(own)
