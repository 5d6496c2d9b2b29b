"""Restoration, erasure, first depths and graft effects, on tables worked by hand."""

import numpy as np
import polars as pl
import pytest

from memprobe import wording
from memprobe.errors import MemprobeError
from memprobe.records import PATCHES
from memprobe.statistics import erasure
from memprobe.statistics import patches as statistics
from memprobe.statistics.paired import false_discovery


def table(rows, **changes):
    """Rows of (factoid, token, depth, control, log_prob, source_log_prob, target_log_prob)."""
    filled = []
    for factoid, token, depth, control, log_prob, source, target in rows:
        row = {
            "source": "s",
            "target": "t",
            "what": "residual",
            "positions": "last",
            "parts": "",
            "control": control,
            "depth": depth,
            "last": depth,
            "factoid": factoid,
            "token": token,
            "token_id": sum(map(ord, factoid)),  # each has an answer of its own
            "rank": 0,
            "log_prob": log_prob,
            "source_rank": 0,
            "source_log_prob": source,
            "target_rank": 3,
            "target_log_prob": target,
        }
        filled.append(row | changes)
    return pl.DataFrame(filled, schema=PATCHES)


def curve(factoid, values, source, target, control=""):
    return [(factoid, 0, depth, control, value, source, target) for depth, value in enumerate(values)]


def test_shares_are_of_the_whole_answer():
    rows = [
        ("a", 0, 1, "", -1.0, -0.5, -2.0),
        ("a", 1, 1, "", -2.0, -0.5, -4.0),
        ("a", -1, 1, "", -9.0, -1.0, -9.0),
    ]
    [row] = statistics.moved_shares(statistics.answers(table(rows))).iter_rows(named=True)
    assert (row["log_prob"], row["gap"], row["direction"]) == (
        -3.0,
        5.0,
        "restoration",
    )  # the end token is no answer
    assert row["moved"] == pytest.approx(3 / 5)


def test_both_directions_and_what_does_not_separate():
    rows = [
        *curve("back", [-10, -6, -1], source=0.0, target=-10.0),
        *curve("away", [-1, -6, -9], source=-11.0, target=-1.0),
        *curve("same", [-1, -1, -1], source=-1.2, target=-1.0),
    ]
    found = statistics.by_depth(table(rows), draws=50)
    assert found["facts"].unique().to_list() == [3] and found["n"].unique().to_list() == [1]
    restored = found.filter(pl.col("direction") == "restoration")["moved"].to_list()
    erased = found.filter(pl.col("direction") == "erasure")["moved"].to_list()
    np.testing.assert_allclose(restored, [0, 0.4, 0.9])
    np.testing.assert_allclose(erased, [0, 0.5, 0.8])
    nothing = statistics.by_depth(table(curve("same", [-1, -1], source=-1.2, target=-1.0)))
    assert nothing.is_empty()
    with pytest.raises(MemprobeError, match="above 0"):
        statistics.by_depth(table(rows), threshold=0.0)


def test_net_is_paired_with_its_control():
    rows = [
        *curve("a", [-10, 0], 0.0, -10.0),
        *curve("b", [-10, -5], 0.0, -10.0),
        *curve("a", [-10, -8], 0.0, -10.0, "other"),
        *curve("b", [-10, -9], 0.0, -10.0, "other"),
        *curve("a", [-12, -12], 0.0, -10.0, "random"),
    ]
    found = statistics.by_depth(table(rows), draws=200)
    assert found["moved"].to_list() == [0.0, 0.75]
    np.testing.assert_allclose(found["net_other"].to_list(), [0.0, 0.6], atol=1e-6)
    np.testing.assert_allclose(
        found["net_random"].to_list(), [0.2, 1.2], atol=1e-6
    )  # a alone has that control
    assert found["p"][1] == pytest.approx(0.5)  # two facts of one sign prove no more


def test_first_depth_is_censored_where_nothing_brings_a_fact_back():
    rows = [
        *curve("a", [-10, -4, -1], 0.0, -10.0),
        *curve("b", [-10, -9, -4.9], 0.0, -10.0),
        *curve("c", [-10, -9, -8], 0.0, -10.0),
    ]
    first = statistics.first_depths(table(rows), n_layers=2)
    assert dict(first.select("factoid", "first").iter_rows()) == {"a": 1, "b": 2, "c": None}
    [row] = statistics.first_depth_summary(first, draws=200).iter_rows(named=True)
    assert (row["n"], row["mean"], row["restricted"]) == (3, 1.5, 2.0)
    assert row["never"] == pytest.approx(1 / 3) and row["median"] == 2.0
    assert row["restricted_low"] is None and row["restricted_high"] is None  # of three facts, and never NaN


def of_depths(kept, *, factoid="a", **changes):
    """A fact that moves from depth 2 of 3 on, patched at some depths alone."""
    rows = curve(factoid, [-10, -9, -1, -1], 0.0, -10.0)
    return table([row for row in rows if row[2] in kept], **changes)


@pytest.mark.parametrize("kept", [(0, 1), (3,), (1, 2, 3), (0, 3)])
def test_patches_at_some_depths_know_no_first_one(kept):
    for n_layers in (3, {("s", "t"): 3}):
        first = statistics.first_depths(of_depths(kept), n_layers=n_layers)
        [row] = statistics.first_depth_summary(first, draws=50).iter_rows(named=True)
        assert row["patched"] == list(kept) and row["never_low"] is not None
        assert row["never"] == (0 if max(kept) >= 2 else 1)
        assert {row[name] for name in ("mean", "restricted", "restricted_low", "median", "median_high")} == {
            None
        }
    whole = of_depths(range(4), target="u")
    both = pl.concat([of_depths(kept), whole, of_depths(range(4), target="v")])
    first = statistics.first_depths(both, n_layers=3)
    rows = statistics.first_depth_summary(first, draws=50).to_dicts()
    assert [(row["median"], row["patched"]) for row in rows] == [(None, list(kept)), (2, None), (2, None)]
    apart = statistics.first_depth_differences(first, draws=50)
    assert apart.select("target", "reference").rows() == [("s → v", "s → u")]


def test_each_pair_has_the_depths_of_its_own_models():
    small = of_depths(range(4))
    large = table(curve("a", [-9, -9, -9, -9, -9], 0.0, -10.0), target="u")
    first = statistics.first_depths(pl.concat([small, large]), n_layers={("s", "t"): 3, ("s", "u"): 4})
    assert first.select("never_as", "patched").rows() == [(4, None), (5, None)]


@pytest.mark.parametrize(("what", "kept", "whole"), [("attn", (1, 2, 3), True), ("mlp", (2, 3), False)])
def test_a_blocks_outputs_have_no_depth_before_the_first_block(what, kept, whole):
    first = statistics.first_depths(of_depths(kept, what=what), n_layers=3)
    assert first["patched"].is_null().all() == whole


def test_first_depths_of_two_targets_are_paired():
    near = table([*curve("a", [-9, 0, 0], 0.0, -10.0), *curve("b", [-9, -9, 0], 0.0, -10.0)])
    far = table([*curve("a", [-9, -9, 0], 0.0, -10.0), *curve("b", [-9, -9, -9], 0.0, -10.0)], target="u")
    first = statistics.first_depths(pl.concat([near, far]), n_layers=2)
    [row] = statistics.first_depth_differences(first, draws=100).iter_rows(named=True)
    assert (row["n"], row["difference"]) == (2, 1.0)
    assert (row["target"], row["reference"]) == ("s → u", "s → t")


def test_facts_of_one_answer_are_no_evidence_of_their_own():
    """What makes an answer easy to bring back is the same in all of its facts, which are flipped together."""
    names = [f"f{i}" for i in range(12)]
    near = [row for name in names for row in curve(name, [-9, 0, 0], 0.0, -10.0)]
    far = [row for name in names for row in curve(name, [-9, -9, 0], 0.0, -10.0)]
    other = [row for name in names for row in curve(name, [-9, -9, -9], 0.0, -10.0, "other")]
    apart = pl.concat([table(near), table(far, target="u"), table(other)])
    one_answer = apart.with_columns(token_id=pl.lit(7, pl.Int32))
    for rows, p in ((apart, 2**-11), (one_answer, 1.0)):
        first = statistics.first_depths(rows, n_layers=2)
        assert statistics.first_depth_differences(first, draws=5000)["p"].to_list() == pytest.approx([p])
        moved = statistics.by_depth(rows, draws=5000).filter(target="t", depth=1)
        assert moved["p"].to_list() == pytest.approx([p])


@pytest.mark.parametrize(("reached", "known"), [(0, False), (1, False), (19, False), (20, True)])
def test_few_facts_that_come_back_do_not_tell_how_deep_the_others_are(reached, known):
    """Forty facts that no depth brings back had [3, 3], as if that were sure of all facts."""
    rows = []
    for i in range(40):
        values = [-9, 0, 0] if i < min(reached, 3) else [-9, -9, 0] if i < reached else [-9, -9, -9]
        rows += curve(f"f{i}", values, 0.0, -10.0)
    first = statistics.first_depths(table(rows), n_layers=2)
    [row] = statistics.first_depth_summary(first, draws=200).iter_rows(named=True)
    assert (row["restricted_low"] is not None) == (row["restricted_high"] is not None) == known
    assert row["never"] == (40 - reached) / 40 and row["never_low"] is not None


def test_the_interval_of_an_erasure_score_ends_where_such_scores_do():
    """Twelve facts, of which most are gone: Student's interval would reach beyond 100 %."""
    scores = pl.DataFrame({"score": [1.0] * 10 + [0.2, 0.3]})
    summary = erasure.erasure_summary(scores)
    assert summary["low"] < summary["score"] < summary["high"] == 1
    assert erasure.erasure_summary(scores.select(score=1 - pl.col("score")))["low"] == 0
    gone = erasure.erasure_summary(pl.DataFrame({"score": [1.0] * 64}))
    assert gone["score"] == gone["high"] == 1 and 0.9 < gone["low"] < 0.96, "64 facts, not all that there are"


def test_overwritten_and_retained_facts():
    both = table([("a", 0, 0, "", -5.0, -1.0, -9.0), ("a", 1, 0, "", -5.0, -1.0, -9.0)])
    kept = table([("b", 0, 0, "", -5.0, -1.0, -1.0)], target_rank=0)
    never = table([("c", 0, 0, "", -5.0, -9.0, -9.0)], source_rank=5)
    whole = pl.concat([both, kept, never])
    assert statistics.answers(whole, facts="overwritten")["factoid"].to_list() == ["a"]
    assert statistics.answers(whole, facts="retained")["factoid"].to_list() == ["b"]
    with pytest.raises(MemprobeError, match="choose all, overwritten, retained"):
        statistics.answers(whole, facts="some")


def test_erasure_score_by_hand():
    """Δ1 = (0.04, 0.5, 2.0), Δ2 = (0.5, 0.1, 3.0): depth 1 is below 0.05, depth 3 is clipped to 1:
    (0.5 · 0.2 + 2.0 · 1) / (0.5 + 2.0) = 0.84. Δ is the mean over two tokens."""
    rows = []
    for source, deltas in (("base", (0.04, 0.5, 2.0)), ("after", (0.5, 0.1, 3.0))):
        for depth, delta in enumerate((9.0, *deltas)):  # depth 0 is no block's
            for token, share in ((0, 0.5), (1, 1.5)):
                rows.append(
                    table(
                        [("a", token, depth, "", -1.0 - share * delta, -9.0, -1.0)],
                        source=source,
                        target="full",
                    )
                )
        rows.append(table([("b", 0, 1, "", -1.01, -9.0, -1.0)], source=source, target="full"))
    whole = pl.concat(rows)
    scores = erasure.erasure_scores(whole, full="full", reference="base", unlearned="after")
    by_fact = {factoid: (depths, score) for factoid, depths, score in scores.iter_rows()}
    assert by_fact["a"][0] == 2 and by_fact["a"][1] == pytest.approx(0.84, abs=1e-6)
    assert by_fact["b"] == (0, None)
    summary = erasure.erasure_summary(scores)
    assert (summary["facts"], summary["n"]) == (2, 1) and summary["score"] == pytest.approx(0.84, abs=1e-6)
    intact = erasure.erasure_scores(
        pl.concat([whole.filter(pl.col("source") == "base"), whole.filter(pl.col("source") == "base").with_columns(
            source=pl.lit("same"), log_prob=pl.lit(-1.0, pl.Float32))]),
        full="full", reference="base", unlearned="same",
    )  # fmt: skip
    assert intact.filter(pl.col("factoid") == "a")["score"].item() == 0.0
    with pytest.raises(MemprobeError, match="needs the residual stream of nobody"):
        erasure.erasure_scores(whole, full="full", reference="base", unlearned="nobody")


def test_an_erasure_score_is_of_what_both_were_patched_for():
    """Depth 2 and fact b of the reference alone would count as not erased: the score would be 0.1 / 2.5, and 0."""
    base = [
        ("a", 0, 1, "", -1.5, -9.0, -1.0),
        ("a", 0, 2, "", -3.0, -9.0, -1.0),
        ("b", 0, 1, "", -2.0, -9.0, -1.0),
    ]
    whole = pl.concat(
        [
            table(base, source="base", target="full"),
            table([("a", 0, 1, "", -1.1, -9.0, -1.0)], source="after", target="full"),
        ]
    )
    scores = erasure.erasure_scores(whole, full="full", reference="base", unlearned="after")
    assert scores.rows() == [("a", 1, pytest.approx(0.2, abs=1e-6))]


def test_the_largest_graft_and_how_sure_it_is():
    rows = []
    for values, factoids in (((-9, -2, -8), "abcd"), ((-9, -3, -8), "efgh"), ((-9, -8, -1), "ijkl")):
        for factoid in factoids:
            rows += [(factoid, 0, block, "", value, 0.0, -10.0) for block, value in enumerate(values, 1)]
            rows += [(factoid, 0, block, "random", -10.0, 0.0, -10.0) for block in (1, 2, 3)]

    def largest(facts: str) -> dict:
        of = table([row for row in rows if row[0] in facts], what="weights", positions="all", parts="all")
        return statistics.graft_effects(of, draws=500).row(0, named=True)

    row = largest("abcdefghijkl")
    assert (row["depth"], row["n"]) == (2, 12) and row["moved"] == pytest.approx((0.8 + 0.7 + 0.2) / 3)
    assert row["net_random"] == pytest.approx(row["moved"]) and row["facts_share"] == pytest.approx(2 / 3)
    assert 0.5 < row["support"] < 1
    assert wording.wins(row) == f"in {row['support']:.0%} of resamples and for 67% of 12 facts"
    row = largest("a")  # of one fact every resample is the same
    assert row["support"] is row["low"] is None
    assert wording.wins(row) == "for 100% of 1 fact, whose answers are too few to resample"


def test_the_q_of_several_targets_is_over_all_of_them():
    """Three targets are two tests against the first: four facts are later in one, two in another."""
    rows = [
        table(curve(f"f{i}", [-9, -9 if i < later else 0, 0], 0.0, -10.0), target=target)
        for target, later in (("t", 0), ("u", 4), ("v", 2))
        for i in range(4)
    ]
    first = statistics.first_depths(pl.concat(rows), n_layers=2)
    found = statistics.first_depth_differences(first, draws=100)
    assert found["p"].to_list() == [2 / 2**4, 2 / 2**2]
    np.testing.assert_allclose(found["q"], false_discovery(found["p"].to_numpy()))
    assert found["q"][0] == 2 * found["p"][0]


def test_embeddings_and_head_are_no_blocks_of_which_one_moves_most():
    rows = [("a", 0, 0, control, -2.0, 0.0, -10.0) for control in ("", "random")]
    for parts in ("embeddings", "head"):
        assert statistics.graft_effects(
            table(rows, what="weights", positions="all", parts=parts), draws=50
        ).is_empty()


def test_half_is_brought_back_and_the_threshold_is_not_above_itself():
    """A share of exactly a half counts; a gap of exactly the threshold separates nothing."""
    first = statistics.first_depths(table(curve("a", [-10, -5, -1], 0.0, -10.0)), n_layers=2)
    assert first["first"].to_list() == [1]
    apart = table([("a", 0, 1, "", -1.5, -1.0, -2.0), ("b", 0, 1, "", -1.5, -1.0, -2.5)])
    shares = statistics.moved_shares(statistics.answers(apart), threshold=1.0)
    assert dict(shares.select("factoid", "direction").iter_rows()) == {"a": None, "b": "restoration"}


def test_a_block_that_lacks_just_tau_does_not_encode_the_fact():
    rows = [("a", 0, 1, "", -1.5, -9.0, -1.0), ("a", 0, 2, "", -2.0, -9.0, -1.0)]
    whole = pl.concat([table(rows, source=source, target="full") for source in ("base", "after")])
    scores = erasure.erasure_scores(whole, full="full", reference="base", unlearned="after", tau=0.5)
    assert scores["depths"].to_list() == [1]
