"""The study's tables: laid out by hand from made-up cells, and end to end from a grid."""

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

from memprobe.arms import Arm
from memprobe.errors import MemprobeError
from memprobe.readings import Readings
from memprobe.retention import curve, forgetting
from memprobe.retention.runs import OVER_SEEDS, UNSEEN_ROWS
from memprobe.statistics.margins import GIVEN_MARGIN
from memprobe.statistics.shares import share_difference, share_over_seeds
from memprobe.studies import open_study, with_cells
from tests.disk import contents
from tests.probes import write_probe
from tests.training.grids import AGAIN, write
from tests.training.runs import ROOT
from training.__main__ import app
from training.grid import read_grid, run_grid
from training.study.collect import _read_out, collect
from training.study.published import TABLES, _names, _with_names, check_page, markdown, tables
from training.study.results import COLUMNS, Results, read_results
from training.study.tables import depth_and_retention, kept_before, lost_facts, nats
from training.study.unseen import unseen_differences

REMIX = "remix(data=generic, stages=1)"


def cell(arm, seed, retention, text="none", learned=True, **more):
    row = {
        "setup": "kvr-lama",
        "arm": arm,
        "seed": seed,
        "d_a": "kvr",
        "d_c": None,
        "arm_text": text,
        "plain_last": True,
        "mixing": None,
        "mixing_ratio": None,
        "mixing_words": None,
        "replay_ratio": None,
        "learned": learned,
        "d_a_after_1": 1.0,
        "retention": retention,
        "retention_unseen": None,
        "n": 64,
        "last_metric": "exact_match",
        "last_score": 1.0,
        "known_after_1": 0.5,
        "known": 0.25,
        "perplexity_after_1": None,
        "perplexity": None,
        "steps": 160,
        "tokens": 1000,
        "seconds": 10.0,
        "cosine_start": None,
        "cosine_end": None,
        "first_order_harm": None,
        "weight_change": None,
    }
    return row | more


def difference(statistic, low, high, readout="own", **more):
    row = {
        "setup": "kvr-lama",
        "k": 10,
        "token": "first",
        "readout": readout,
        "arm": REMIX,
        "reference": "none",
    }
    row |= {"stage": "2", "statistic": statistic, "seeds": 3, "difference": 0.0, "low": low, "high": high}
    return row | more


def retained(arm, low, high, **more):
    row = {"setup": "kvr-lama", "arm": arm, "dataset": "1-kvr", "rows": "all rows of D_A", "stage": 2}
    return (
        row
        | {"metric": "exact_match", "seeds": 3, "value": 0.5, "low": low, "high": high, "by_seed": [0.5]}
        | more
    )


def results(cells, differences=(), arms=(), spread=(), placement=(), lost=(), kept=(), over_seeds=()):
    def frame(rows):
        return pl.DataFrame(list(rows), infer_schema_length=None) if rows else pl.DataFrame()

    over = pl.DataFrame(list(over_seeds), schema=OVER_SEEDS, orient="row")
    return Results(
        frame(cells), frame([]), over, *map(frame, (placement, arms, differences, spread, lost, kept))
    )


NAIVE = [cell("naive", seed, retention) for seed, retention in ((2, 0.25), (0, 0.0), (1, 0.125))]
MIXED = [cell("remix", seed, 0.5, REMIX, tokens=3000, steps=320) for seed in (0, 1, 2)]


def row_of(table, **where):
    found = table.filter(**where)
    assert len(found) == 1
    return found.row(0, named=True)


def test_forgetting_lays_seeds_and_costs_beside_retention():
    failed = cell("remix", 3, 1.0, REMIX, learned=False)
    over = [retained("remix", 0.4, 0.6), retained("naive", 0.0, 0.3), retained("naive", 0.9, 1.0, stage=1)]
    table = forgetting(results([*NAIVE, *MIXED, failed], over_seeds=over).retention)
    naive, remix = row_of(table, arm="naive"), row_of(table, arm="remix")
    assert naive["retention"] == 0.125 and naive["by_seed"] == [0.0, 0.125, 0.25]
    assert (remix["retention"], remix["cells"], remix["failed"]) == (0.5, 4, 1)
    assert (remix["steps"], remix["tokens"], naive["tokens"]) == (2, 3, 1)
    assert (remix["low"], remix["high"], naive["high"]) == (0.4, 0.6, 0.3)


def mixing_cell(arm, retention, text, seed=0):
    """A cell whose columns say of its mixing what its arm does."""
    (part,) = Arm.parse(text).parts
    ratio, words = float(part.options.get("ratio", 2)), int(part.words[1])
    told = {"mixing": part.options["data"], "mixing_ratio": ratio, "mixing_words": words}
    return cell(arm, seed, retention, text, **told)


def test_each_set_up_has_the_interval_of_its_own_last_stage():
    """One of three stages beside one of two takes no interval from it."""
    chains = [("two", 2, 0.1), ("three", 2, 0.3), ("three", 3, 0.5)]
    cells = [cell("naive", seed, 0.5, setup=setup) for setup in ("two", "three") for seed in range(3)]
    over = [retained("naive", low, low + 0.1, setup=setup, stage=stage) for setup, stage, low in chains]
    table = forgetting(results(cells, over_seeds=over).retention)
    assert dict(table.select("setup", "low").iter_rows()) == {"two": 0.1, "three": 0.5}


def test_a_point_of_a_curve_is_one_arm_and_a_curve_differs_in_one_option():
    text = "remix(data=generic, stages=1, ratio={}, words=12,12{})"
    rest = {"": 0.1, ", prompt=sentence": 0.3, ", redraw=true": 0.5}
    cells = [
        mixing_cell(f"{ratio}{more}", kept + ratio / 100, text.format(ratio, more))
        for ratio in (1, 4)
        for more, kept in rest.items()
    ]
    # A prompt of another length is another setting, though the answer is as long.
    cells.append(mixing_cell("long", 0.9, "remix(data=generic, stages=1, ratio=4, words=50,12)"))
    over = [retained(one["arm"], one["retention"] - 0.01, one["retention"] + 0.01) for one in cells]
    table = curve(results([*NAIVE, *cells], over_seeds=over).retention, "mixing_ratio")
    points = table.filter(pl.col("mixing_ratio") > 0).select("others", "mixing_ratio", "retention", "low")
    assert points.rows() == [
        (others, ratio, pytest.approx(kept + ratio / 100), pytest.approx(kept + ratio / 100 - 0.01))
        for others, kept in (("", 0.1), ("prompt sentence", 0.3), ("redraw true", 0.5))
        for ratio in (1, 4)
    ]
    assert table.filter(mixing_ratio=0)["retention"].to_list() == [0.125] * 3


def test_a_curve_over_replay_holds_redrawing_equal():
    texts = {"a": "replay(ratio=0.1)", "b": "replay(ratio=0.5, stages=2)"}
    texts |= {"c": "replay(ratio=0.1, stages=2, redraw=true)", "d": "replay(ratio=0.5, redraw=true)"}
    cells = [
        cell(arm, 0, i / 10, text, replay_ratio=0.1 if "0.1" in text else 0.5)
        for i, (arm, text) in enumerate(texts.items())
    ]
    table = curve(results([*NAIVE, *cells]).retention, "replay_ratio")
    assert table.select("others", "replay_ratio", "retention").rows() == [
        ("", 0.0, 0.125), ("", 0.1, 0.0), ("", 0.5, 0.1),
        ("redraw true", 0.0, 0.125), ("redraw true", 0.1, 0.2), ("redraw true", 0.5, 0.3),
    ]  # fmt: skip


def test_a_curve_over_words_lets_prompts_grow_with_answers_or_stay():
    lengths = {"12,12": 0.1, "50,50": 0.2, "12,50": 0.3, "50,12": 0.4, "7,30": 0.5}
    cells = [
        mixing_cell(words, kept, f"remix(data=generic, stages=1, words={words})")
        for words, kept in lengths.items()
    ]
    table = curve(results([*NAIVE, *cells]).retention, "mixing_words")
    points = table.filter(pl.col("mixing_words") > 0).select("others", "mixing_words", "retention")
    assert points.rows() == [
        ("", 12, 0.1), ("", 50, 0.2),
        ("prompts of 12 words", 12, 0.1), ("prompts of 12 words", 50, 0.3),
        ("prompts of 50 words", 12, 0.4), ("prompts of 50 words", 50, 0.2),
    ]  # fmt: skip


def test_a_curve_over_strengths_lays_what_is_learned_beside_what_is_kept():
    """Each penalty's strengths, all else equal; naive training is the zero of each. Losses are not shares."""
    strengths = {"ewc": (1e4, 3e5), "kl": (0.1, 1)}
    cells = [
        cell(f"{name}{strength:g}", seed, kept, f"{name}(strength={strength:g})", last_score=lost + seed)
        for name, both in strengths.items()
        for strength, kept, lost in zip(both, (0.25, 0.75), (1.0, 1.5), strict=True)
        for seed in (1, 0)
    ]
    cells.append(cell("fisher", 0, 0.5, "ewc(strength=1e5, fisher_draws=4)"))  # alone of its kind
    cells.append(cell("with", 0, 0.5, "ewc(strength=1e5)+replay(ratio=0.5)", replay_ratio=0.5))
    cells.append(cell("late", 0, 0.5, "ewc(strength=1e6, stages=3)", d_c="webqa"))  # not in every later stage
    cells = [one | {"last_metric": "loss"} for one in [*NAIVE, *cells]]
    table = curve(results(cells).retention, "penalty_strength")
    rows = table.select(
        "penalty", "others", "penalty_strength", "retention", "last_score", "last_by_seed"
    ).rows()
    assert rows == [
        ("ewc", "", 0, 0.125, 1.0, [1.0] * 3), ("ewc", "", 1e4, 0.25, 1.5, [1.0, 2.0]),
        ("ewc", "", 3e5, 0.75, 2.0, [1.5, 2.5]), ("kl", "", 0, 0.125, 1.0, [1.0] * 3),
        ("kl", "", 0.1, 0.25, 1.5, [1.0, 2.0]), ("kl", "", 1, 0.75, 2.0, [1.5, 2.5]),
    ]  # fmt: skip
    assert set(table["last_metric"]) == {"loss"}
    assert table["seed_numbers"].to_list()[:2] == [[0, 1, 2], [0, 1]]


def test_a_curve_says_which_seeds_its_values_are_of():
    texts = {0.1: "replay(ratio=0.1)", 0.5: "replay(ratio=0.5)"}
    learned = {0.1: (0, 2), 0.5: (1, 2)}
    cells = [
        cell(f"r{ratio}", seed, ratio + seed / 100, texts[ratio], seed in learned[ratio], replay_ratio=ratio)
        for ratio in texts
        for seed in range(3)
    ]
    table = curve(results([*NAIVE, *cells]).retention, "replay_ratio")
    assert table["seed_numbers"].to_list() == [[0, 1, 2], [0, 2], [1, 2]]
    wanted = [[0.0, 0.125, 0.25], [0.1, 0.12], [0.51, 0.52]]
    assert table["by_seed"].to_list() == [pytest.approx(values) for values in wanted]


def test_a_curve_starts_at_naive_and_holds_all_else_equal():
    replays = [
        cell("r", s, x, f"replay(ratio={x}, stages=2)", replay_ratio=x) for s in (0, 1) for x in (0.1, 0.5)
    ]
    both = cell("b", 0, 0.9, f"{REMIX}+replay(ratio=0.2, stages=2)", replay_ratio=0.2, mixing="generic")
    table = curve(results([*NAIVE, *replays, both]).retention, "replay_ratio")
    assert table["replay_ratio"].to_list() == [0, 0.1, 0.5] and table["seeds"].to_list() == [3, 2, 2]
    assert table["retention"].to_list() == [0.125, 0.1, 0.5]
    mixed = [
        mixing_cell("m1", 0.1, "remix(data=generic, stages=1, ratio=1, words=12,12)"),
        mixing_cell("m2", 0.2, "remix(data=generic, stages=1, words=12,12)"),
    ]
    other = mixing_cell("w", 0.7, "remix(data=generic, stages=1)")  # two rows of 50 words, as is not said
    by_ratio = curve(results([*NAIVE, *mixed, other]).retention, "mixing_ratio")
    assert by_ratio.select("mixing_words", "mixing_ratio").rows() == [(12, 0), (12, 1), (12, 2)]
    by_words = curve(results([*NAIVE, *mixed, other]).retention, "mixing_words")
    assert by_words.select("mixing_ratio", "mixing_words").rows() == [(2, 0), (2, 12), (2, 50)]
    assert not len(curve(results([*NAIVE, *replays[:1]]).retention, "replay_ratio"))


def kept(difference, high, readout="own", statistic="lof_restricted", **more):
    numbers = {"difference": difference, "low": None if high is None else 2 * difference - high, "high": high}
    keys = {"setup": "kvr-lama", "k": 10, "token": "first", "readout": readout, "stage": "2", "arm": REMIX}
    counts = {
        "detectable": None,
        "seeds": 3,
        "kept": [30, 31, 32],
        "lost": [34, 33, 32],
        "by_seed": [difference] * 3,
    }
    return keys | counts | {"statistic": statistic} | numbers | more


def test_kept_facts_lie_beside_what_can_be_seen_and_their_net():
    rows = [
        kept(-0.5, -0.1, detectable=0.9),
        kept(-0.5, 0.1, readout="base-readout"),
        kept(-0.4, -0.1, statistic="lof_restricted_net"),
        kept(-0.9, -0.5, statistic="settled_restricted"),
    ]
    table = kept_before(results([*NAIVE, *MIXED], kept=rows))
    assert table["readout"].to_list() == ["own", "base-readout"]
    assert table["lof_net"].to_list() == [-0.4, None] and table["detectable"].to_list() == [0.9, None]


def test_results_of_before_a_table_was_there_are_read(stored, tmp_path):
    folder = shutil.copytree(stored, tmp_path / "results")
    made = read_results(folder)
    (folder / "depth_and_retention.parquet").unlink()
    again = read_results(folder)
    assert again.kept.equals(made.kept) and not len(again.depth_and_retention)
    (folder / "kept.parquet").unlink()
    with pytest.raises(MemprobeError, match=r"kept\.parquet"):
        read_results(folder)


def test_ranks_lie_beside_their_net():
    def row(correlation, **more):
        told = {"correlation": correlation, "facts": [64, 64, 63]}
        return (
            {key: value for key, value in kept(correlation, 0.0).items() if key != "difference"} | told | more
        )

    rows = [
        row(-0.5),
        row(-0.4, readout="base-readout"),
        row(-0.3, statistic="lof_restricted_net"),
        row(-0.9, statistic="settled_restricted"),
    ]
    table = depth_and_retention(replace(results(NAIVE), depth_and_retention=pl.DataFrame(rows)))
    assert table.select("readout", "correlation", "net").rows() == [
        ("own", -0.5, -0.3),
        ("base-readout", -0.4, None),
    ]
    assert table["facts"].to_list() == [[64, 64, 63]] * 2
    assert not len(depth_and_retention(results(NAIVE)))


def test_nats_of_the_first_token_and_of_the_whole_answer_stand_apart():
    def row(value, **told):
        return difference("log_prob_full", value - 1, value + 1, **told) | {"difference": value} | MORE

    first, whole = row(2.0), row(9.0, k=1, token="all")
    given = row(1.5) | {"statistic": GIVEN_MARGIN}
    base = row(3.0, readout="base-readout")
    found = row_of(nats(results(NAIVE, [first, whole, given, base])), arm=REMIX)
    assert (found["difference"], found["given_margin"], found["whole"]) == (2.0, 1.5, 9.0)
    assert (found["low"], found["whole_low"], found["whole_high"]) == (1.0, 8.0, 10.0)


MORE = {"in_common": "rows", "detectable": 0.5}


def test_lost_facts_are_counted_over_the_seeds_of_an_arm():
    keys = {"setup": "kvr-lama", "k": 10, "token": "first", "readout": "own"}
    seeds = [2, 0, 1, 3]
    placement = [
        keys
        | {"checkpoint": f"r.{s}", "arm": REMIX, "stage": 2, "seed": s, "chance_recall_full": 0.12}
        | {
            "share_never": 0.25,
            "lof_mean": 29.0,
            "lof_restricted_mean": 29.5,
        }  # so that never is 31
        for s in seeds
    ]
    numbers = {
        "surfaces": [0.2, None, 0.4, 0.5],
        "deepest": [28.0, None, 29.0, 30.0],
        "intruded": [0.5, None, 1.0, 0],
    }
    numbers |= {"full": [0.1, None, 0.2, 0.3], "intruder_rank": [3.0, None, 8.0, 15.0]}
    lost = [
        keys
        | {"checkpoint": f"r.{s}", "n_lost": 10 * s}
        | {name: found[i] for name, found in numbers.items()}
        for i, s in enumerate(seeds)
    ]
    row = row_of(lost_facts(results([*MIXED], placement=placement, lost=lost)))
    assert row["lost"] == [0, 10, 20, 30] and row["seeds"] == 4 and row["chance_full"] == pytest.approx(0.12)
    # 4 of 20, 4 of 10 and 15 of 30; the seed that lost none has no share.
    assert row["surfaces"] == pytest.approx(23 / 60) and row["deepest"] == 29
    assert row["surfaces_low"] < 23 / 60 < row["surfaces_high"]
    assert row["full"] == pytest.approx((2 + 2 + 9) / 60)
    logs = np.log([4.0, 9, 16])
    half = stats.t.ppf(0.975, 2) * stats.sem(logs)
    ends = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]) - 1
    ranks = [row[f"intruder_rank{end}"] for end in ("", "_low", "_high")]
    assert ranks == pytest.approx([*ends]) and row["deepest_low"] < 29 < row["deepest_high"] == 30
    few = lost_facts(results([*MIXED], placement=placement[:2], lost=lost[:2]))
    assert few["surfaces_low"].to_list() == [None]
    # Of 4, 2 and 6 facts D_B's answers were watched for; results of old do not say so.
    some = [one | {"n_intruded": n} for one, n in zip(lost, (4, 0, 2, 6), strict=True)]
    watched = row_of(lost_facts(results([*MIXED], placement=placement, lost=some)))
    assert watched["intruded"] == pytest.approx((2 + 2 + 0) / 12) and row["intruded"] == pytest.approx(
        20 / 60
    )
    share = share_over_seeds(np.array([2.0, 2.0, 0.0]), np.array([2.0, 4.0, 6.0]))
    assert [watched["intruded_low"], watched["intruded_high"]] == pytest.approx([share.low, share.high])
    assert watched["surfaces_low"] == row["surfaces_low"]


def test_steps_that_cells_share_count_once(tmp_path):
    """Arms that differ in stage 3 alone have one stage 2: of one seed, which is no three."""
    arms = {"none": "none", "replay": "replay(ratio=0.1, stages=3)", "ewc": "ewc(strength=1, stages=3)"}
    made = {"base": {}} | {f"n.{stage}": {"arm": "none", "seed": 0, "stage": stage} for stage in (1, 2)}
    made |= {f"{name}.3": {"arm": text, "seed": 0, "stage": 3} for name, text in arms.items()}
    depths = {label: 6.0 - 0.5 * place for place, label in enumerate(made)}
    gone = dict.fromkeys(made, 0.4) | {"n.1": 0.0}
    manifests = {label: manifest for label, manifest in made.items() if manifest}
    probe = write_probe(tmp_path / "p", depths, manifests=manifests, n=40, never=gone)
    chains = [["n.1", "n.2", f"{name}.3"] for name in arms]
    readings = Readings.of([probe.only(made)], k=10, token="first", draws=100)
    found = list(_read_out(readings, made, chains, readings))
    lost = pl.concat([table for name, table in found if name == "lost"], how="diagonal_relaxed")
    assert lost.select("reference", "checkpoint").is_duplicated().sum() == 0
    kept = pl.concat([table for name, table in found if name == "kept"], how="diagonal_relaxed")
    assert set(kept["seeds"]) == {1} and kept["low"].null_count() == len(kept)
    ranks = pl.concat([table for name, table in found if name == "depth_and_retention"])
    assert ranks.group_by("arm", "stage", "statistic").len()["len"].unique().to_list() == [1]


def test_replay_shows_what_it_keeps_of_facts_not_shown_again():
    text = "replay(ratio=0.25, stages=2)"
    cells = [
        cell("replay", seed, 0.5, text, replay_ratio=0.25, retention_unseen=kept / 12, n=16, n_unseen=12)
        for seed, kept in enumerate((3, 4, 5))
    ]
    plain = [row | {"n": 16, "retention_unseen": None} for row in NAIVE]
    over = [retained("replay", 0.1, 0.6, rows=UNSEEN_ROWS, value=1 / 3, by_seed=[3 / 12, 4 / 12, 5 / 12])]
    table = forgetting(results([*plain, *cells], over_seeds=[*over, retained("replay", 0.3, 0.7)]).retention)
    row = row_of(table, arm="replay")
    assert (row["low"], row["unseen_low"], row["unseen_high"]) == (0.3, 0.1, 0.6)
    assert row["unseen"] == pytest.approx(1 / 3) and row["unseen_by_seed"] == [3 / 12, 4 / 12, 5 / 12]
    assert row_of(table, arm="naive")["unseen"] is None
    exact = difference("exact", 0.1, 0.3, arm=text, p=0.01, significant=True, detectable=0.2, paired=False)
    rows = unseen_differences(pl.DataFrame([exact]), pl.DataFrame([*plain, *cells], infer_schema_length=None))
    found = rows.row(0, named=True)
    model = share_difference(np.array([3, 4, 5]), np.array([0, 2, 4]), 12, others_n=16)
    assert found["statistic"] == "exact_unseen" and found["difference"] == pytest.approx(1 / 3 - 1 / 8)
    assert [found["low"], found["high"], found["p"]] == pytest.approx([model.low, model.high, model.p])
    few = pl.DataFrame([*plain[:2], *cells[:2]], infer_schema_length=None)
    of_two = unseen_differences(pl.DataFrame([exact | {"low": None, "high": None, "p": None}]), few).row(
        0, named=True
    )
    assert of_two["difference"] == pytest.approx(3.5 / 12 - 1 / 8), (
        "of the same facts, whatever the number of seeds"
    )
    assert (of_two["low"], of_two["high"], of_two["p"], of_two["significant"]) == (None, None, None, False)
    other = unseen_differences(
        pl.DataFrame([exact | {"arm": REMIX}]), pl.DataFrame([*plain], infer_schema_length=None)
    )
    assert other.is_empty()


def test_what_is_kept_of_facts_not_shown_again_is_the_mean_over_seeds_whatever_their_number():
    """Seeds that are shown other rows of a sample again, 8 and 12 not: shares were rounded to eighths."""
    text = "replay(ratio=0.25, stages=2)"
    cells = [
        cell("replay", seed, 0.5, text, replay_ratio=0.25, retention_unseen=kept / of, n=16, n_unseen=of)
        for seed, (kept, of) in enumerate(((2, 8), (4, 12), (5, 12), (7, 12), (2, 12)))
    ]
    plain = [row | {"n": 16, "retention_unseen": None} for row in NAIVE]
    exact = difference("exact", 0.1, 0.3, arm=text, p=0.01, significant=True, detectable=0.2, paired=True)
    exact |= {"seeds": 3, "reference_seeds": 3}
    learned = pl.DataFrame([*plain, *cells], infer_schema_length=None)
    [row] = unseen_differences(pl.DataFrame([exact]), learned).to_dicts()
    kept, naive = (
        np.mean([one[name] for one in some])
        for some, name in ((cells, "retention_unseen"), (plain, "retention"))
    )
    assert row["difference"] == pytest.approx(kept - naive) and row["low"] < row["difference"] < row["high"]
    assert (row["paired"], row["seeds"], row["reference_seeds"]) == (False, 5, len(plain)), (
        "all of either arm"
    )


def test_each_set_up_is_answered_after_its_own_last_stage():
    """One of three stages beside one of two; and no formula says how many facts were not shown again."""
    text = "replay(ratio=0.25)"
    cells, differences = [], []
    for setup, last in (("two", 2), ("three", 3)):
        named = {"setup": setup, "n": 16}
        cells += [cell("naive", seed, 0.5, **named, retention_unseen=None) for seed in range(3)]
        cells += [
            cell("replay", seed, 0.5, text, **named, replay_ratio=0.25, retention_unseen=0.4, n_unseen=10)
            for seed in range(3)
        ]
        flags = {
            "arm": text,
            "setup": setup,
            "p": 0.01,
            "significant": True,
            "detectable": 0.2,
            "paired": False,
        }
        differences += [
            difference("exact", 0.1, 0.3, **flags, stage=str(stage)) for stage in range(2, last + 1)
        ]
    learned = pl.DataFrame(cells, infer_schema_length=None)
    rows = unseen_differences(pl.DataFrame(differences), learned)
    assert rows.select("setup", "stage").rows() == [("two", "2"), ("three", "3")]
    model = share_difference(np.full(3, 4.0), np.full(3, 8.0), 10, others_n=16)
    assert rows["low"].to_list() == pytest.approx([model.low] * 2)


def test_stored_results_give_the_same_tables(done, tmp_path):
    _, out = done
    found = collect(out, draws=100)
    assert found.cells["labels"].to_list()[0][-1].endswith(".2")
    assert set(found.placement["readout"]) == {"own", "base-readout"} and set(found.placement["k"]) == {1, 10}
    assert found.spread["reference"].n_unique() == 2  # naive after each stage
    found.write(tmp_path)
    fresh, stored = tables(found), tables(read_results(tmp_path))
    assert set(fresh) == set(stored) >= {"forgetting", "placement", "mixing_ratio", "cost", "claims"}
    given = found.differences.filter(pl.col("statistic") == GIVEN_MARGIN, pl.col("stage") == "2")
    assert given["difference"].is_not_null().any() and "nats" in fresh
    for name, table in fresh.items():
        assert markdown({name: table}, "x") == markdown({name: stored[name]}, "x")
    (tmp_path / "depth_and_retention.parquet").unlink(missing_ok=True)  # as before there was such a table
    read_results(tmp_path).write(tmp_path / "again")
    names = [{file.name for file in folder.glob("*.parquet")} for folder in (tmp_path, tmp_path / "again")]
    assert names[0] == names[1] and "depth_and_retention.parquet" not in names[1]
    (tmp_path / "arms.parquet").unlink()
    with pytest.raises(MemprobeError, match=r"arms\.parquet"):
        read_results(tmp_path)


@pytest.fixture(scope="module")
def stored(done, tmp_path_factory):
    """Results of a grid, with its tables and figures."""
    folder = tmp_path_factory.mktemp("stored") / "results"
    told = CliRunner().invoke(app, ["report", str(done[1]), "--out", str(folder), "--draws", "100"])
    assert told.exit_code == 0, told.exception
    return folder


@pytest.mark.parametrize("folder", ["stored", *sorted((ROOT / "analyses").glob("*/cells.parquet"))], ids=str)
def test_results_have_the_columns_that_reports_read(folder, stored):
    found = read_results(stored if folder == "stored" else folder.parent)
    assert set(COLUMNS) == set(Results.__dataclass_fields__) and len(found.cells)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_of_results_that_does_not_fit_is_named_by_file_and_column(name, stored, tmp_path):
    shutil.copytree(stored, tmp_path / "results")
    path = tmp_path / "results" / f"{name}.parquet"
    whole, column = pl.read_parquet(path), next(reversed(COLUMNS[name]))
    whole = whole if whole.columns else pl.DataFrame(schema=dict.fromkeys(COLUMNS[name]))
    before = (tmp_path / "results" / "README.md").read_bytes()
    for broken, said in (
        (whole.drop(column), f"has no column '{column}'"),
        (
            whole.with_columns(pl.lit(None, pl.Date).alias(column)),
            f"column '{column}' holds Date, and should hold",
        ),
    ):
        broken.write_parquet(path)
        for out in ("results", "new"):
            told = CliRunner().invoke(
                app, ["report", str(tmp_path / "results"), "--out", str(tmp_path / out)]
            )
            assert isinstance(told.exception, MemprobeError), told.exception
            assert f"{path}: {said}" in str(told.exception)
        assert (tmp_path / "results" / "README.md").read_bytes() == before
        assert not (tmp_path / "new").exists()


def test_nothing_is_written_before_all_tables_are_made(stored, tmp_path, monkeypatch):
    def broken(results):
        raise MemprobeError("a claim that cannot be tested")

    monkeypatch.setattr("training.study.published.claims", broken)
    told = CliRunner().invoke(app, ["report", str(stored), "--out", str(tmp_path / "new")])
    assert str(told.exception) == "a claim that cannot be tested" and not (tmp_path / "new").exists()


def test_what_an_older_report_left_is_neither_kept_nor_drawn_again(stored, tmp_path):
    """Tables that the command could have written go; figures of other set-ups stay, and so do files of others."""
    folder = tmp_path / "results"
    shutil.copytree(stored, folder)
    tables_, figures = folder / "tables", folder / "figures"
    assert not (tables_ / "penalty_strength.csv").exists()
    for name in ("penalty_strength", "mine"):
        (tables_ / f"{name}.csv").write_text("setup\nold\n")
    drawn = {path.name for path in figures.glob("*.json")}
    shutil.copy(figures / "forgetting.json", figures / "old-study.json")
    shutil.copy(figures / "kept-a-b-n4.json", figures / "kept-a-b-n8.json")
    lof = json.loads((figures / "lof-a-b-n4-own.json").read_text())
    for one in lof["inputs"]:
        one["path"] = one["path"].replace("a-b-n4", "a-b-n8")
    (figures / "lof-a-b-n8-own.json").write_text(json.dumps(lof))
    told = CliRunner().invoke(app, ["report", str(folder)])
    assert told.exit_code == 0, told.exception
    assert not (tables_ / "penalty_strength.csv").exists() and (tables_ / "mine.csv").exists()
    for name in ("old-study", "kept-a-b-n8", "lof-a-b-n8-own"):
        assert not (figures / f"{name}.png").exists()
        assert f"{name}.json: is no figure of these results" in " ".join(told.output.split())
    assert f"figures  {2 * len(drawn)} in" in told.output


@pytest.mark.parametrize("mine", ["# my notes\n", ""])
def test_a_page_that_no_report_wrote_stays(mine, tmp_path):
    study = ROOT / "analyses" / "study"
    (tmp_path / "README.md").write_text(mine)
    told = CliRunner().invoke(app, ["report", str(study), "--out", str(tmp_path)])
    assert isinstance(told.exception, MemprobeError) and "README.md: is no page that report wrote" in str(
        told.exception
    )
    assert contents(tmp_path) == {"README.md": mine.encode()}
    check_page(study)
    check_page(tmp_path / "new")


def test_the_names_of_tables_are_those_that_are_made(stored):
    assert set(TABLES) >= {path.stem for path in (stored / "tables").glob("*.csv")}


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(MemprobeError, match=r"absent: no such folder$"):
        read_results(tmp_path / "absent")
    with pytest.raises(MemprobeError, match=r"holds neither a grid \(grid\.toml\) nor the results"):
        read_results(tmp_path)


def test_the_command_writes_tables_from_a_grid_and_again_from_its_results(done, tmp_path):
    _, out = done
    first = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path), "--draws", "100"])
    assert first.exit_code == 0 and "replay" in first.output
    page = (tmp_path / "README.md").read_text()
    assert "| a-b-n4 | naive | none |" in page and "## Placement" in page
    csv = (tmp_path / "tables" / "forgetting.csv").read_text()
    drawn = sorted((tmp_path / "figures").glob("*.png"))
    names = {path.stem for path in drawn}
    assert names >= {"forgetting", "stages", "mixing_ratio", "lof-a-b-n4-own", "lof-a-b-n4-base-readout"}
    assert {path.stem for path in (tmp_path / "figures").glob("*.json")} == names
    images = {path: path.read_bytes() for path in drawn}
    for path in drawn:
        path.unlink()
    again = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert again.exit_code == 0 and f"{2 * len(drawn)} in" in again.output  # a PDF beside each
    assert {path: path.read_bytes() for path in drawn} == images
    assert (tmp_path / "README.md").read_text() == page and (
        tmp_path / "tables/forgetting.csv"
    ).read_text() == csv
    empty = CliRunner().invoke(app, ["report", str(tmp_path / "tables")])
    assert isinstance(empty.exception, MemprobeError)


def test_a_report_of_one_block_has_its_cells_alone(done, tmp_path):
    """Of blocks that are under way single seeds are there, of which nothing is to be said."""
    _, whole = done
    out = tmp_path / "out"
    shutil.copytree(whole, out, symlinks=True)
    grid = (out / "grid.toml").read_text()
    more = '\n[[blocks]]\nname = "more"\nlike = "first"\narms = ["replay", "remix"]\n'
    (out / "grid.toml").write_text(grid.replace('"naive", "replay", "remix"', '"naive"') + more)

    def report(*blocks, to):
        options = [word for name in blocks for word in ("--block", name)]
        told = CliRunner().invoke(app, ["report", str(out), "--out", str(to), "--draws", "100", *options])
        assert told.exit_code == 0, told.exception
        drawn = {path.stem: json.loads(path.read_text()) for path in (to / "figures").glob("*.json")}
        return pl.read_parquet(to / "cells.parquet"), pl.read_parquet(to / "placement.parquet"), drawn

    cells, placement, drawn = report("first", to=tmp_path / "one")
    assert cells["arm"].to_list() == ["naive"] and set(placement["checkpoint"]) == {
        "base",
        "naive-s0.1",
        "naive-s0.2",
    }
    lof = drawn["lof-a-b-n4-own"]
    assert "remix" not in json.dumps(lof) and "replay" not in json.dumps(lof) and "base" in json.dumps(lof)
    assert lof["command"] == f"python -m training report {out} --block first --figures {tmp_path}/one/figures"
    both, all_placed, _ = report("first", "more", to=tmp_path / "both")
    assert sorted(set(both["arm_text"])) == sorted(set(collect(whole, draws=100).cells["arm_text"]))
    assert len(all_placed) > len(placement)
    for folder, name, said in (
        (out, "frist", "no block 'frist'; it has first, more; did you mean first?"),
        (tmp_path / "one", "first", "--block: "),
    ):
        error = CliRunner().invoke(app, ["report", str(folder), "--block", name]).exception
        assert isinstance(error, MemprobeError) and said in str(error)


def test_a_cell_with_which_a_longer_one_begins_is_shown_in_its_own_set_up(done, tmp_path):
    """First stages that are nobody's cell are not."""
    path, whole = done
    out = tmp_path / "out"
    shutil.copytree(whole, out, symlinks=True)
    longer = tmp_path / "grid.toml"
    longer.write_text(path.read_text() + AGAIN)
    assert run_grid(read_grid(longer), longer, out, quiet=True) == []
    for cells in (None, {"a-b-n4/naive-s0"}):
        study = open_study([out])
        study = study if cells is None else with_cells(study, cells)
        shown = {str(run.path.relative_to(out / "runs")) for run in study.runs}
        assert "a-b-n4/naive-s0" in shown and "a-n4/naive-s0" not in shown
        assert ("a-b-c-n4/naive-s0" in shown) == (cells is None)
        labels = [
            label for probe in study.probes if "a-b-n4" in probe.path.parts for label in probe.checkpoints
        ]
        assert {"base", "naive-s0.1", "naive-s0.2"} <= set(labels)


def test_a_study_of_which_nothing_was_learned_is_told_as_that(tiny_checkpoint, tmp_path):
    path, out = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1), tmp_path / "out"
    assert run_grid(read_grid(path), path, out, quiet=True) == []
    for folder in (out, out / "results"):
        told = CliRunner().invoke(app, ["report", str(folder), "--draws", "100"])
        assert told.exit_code == 0, told.exception
        assert "0/1" in told.output and "no claim is tested" in told.output


def test_an_arm_has_its_name_in_the_grid_file_at_every_stage():
    cells = pl.DataFrame(
        {"arm_text": ["lora(rank=8, alpha=32, stages=1,2)", "none"], "arm": ["lora", "naive"]}
    )
    names = _names(cells.with_columns(d_c=pl.lit(None, pl.String)))
    table = pl.DataFrame(
        {
            "arm": ["lora(rank=8, alpha=32, stages=1)", "lora(rank=8, alpha=32, stages=1,2)", "base", None],
            "against": ["none", "none", "", None],
            "stage": ["1", "2", "0", None],
        }
    )
    found = _with_names(table, names)
    assert found["arm"].to_list() == ["lora", "lora", "base", None]
    assert found["against"].to_list() == ["naive", "naive", "", None]
