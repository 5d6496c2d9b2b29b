"""The study's tables: laid out by hand from made-up cells, and end to end from a grid."""

import polars as pl
import pytest
from typer.testing import CliRunner

from memprobe.errors import MemprobeError
from memprobe.retention import curve, forgetting
from memprobe.retention.runs import OVER_SEEDS
from training.__main__ import app
from training.study.claims import claims
from training.study.collect import Results, collect, read_results
from training.study.published import markdown, tables
from training.study.tables import kept_before, lost_facts

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


def test_a_curve_starts_at_naive_and_holds_all_else_equal():
    replays = [
        cell("r", s, x, f"replay(ratio={x}, stages=2)", replay_ratio=x) for s in (0, 1) for x in (0.1, 0.5)
    ]
    both = cell("b", 0, 0.9, f"{REMIX}+replay(ratio=0.2, stages=2)", replay_ratio=0.2, mixing="generic")
    table = curve(results([*NAIVE, *replays, both]).retention, "replay_ratio")
    assert table["replay_ratio"].to_list() == [0, 0.1, 0.5] and table["seeds"].to_list() == [3, 2, 2]
    assert table["retention"].to_list() == [0.125, 0.1, 0.5]
    mixed = [
        cell("m", 0, ratio / 10, REMIX, mixing="generic", mixing_ratio=ratio, mixing_words=12)
        for ratio in (1, 2)
    ]
    other = cell("w", 0, 0.7, REMIX, mixing="generic", mixing_ratio=2, mixing_words=50)
    by_ratio = curve(results([*NAIVE, *mixed, other]).retention, "mixing_ratio")
    assert by_ratio.select("mixing_words", "mixing_ratio").rows() == [(12, 0), (12, 1), (12, 2)]
    by_words = curve(results([*NAIVE, *mixed, other]).retention, "mixing_words")
    assert by_words.select("mixing_ratio", "mixing_words").rows() == [(2, 0), (2, 12), (2, 50)]
    assert not len(curve(results([*NAIVE, *replays[:1]]).retention, "replay_ratio"))


@pytest.mark.parametrize(
    ("edges", "finding"),
    [((0.1, 0.3), "seen"), ((-0.1, 0.3), "not seen at this scale"), ((None, None), "not tested")],
)
def test_an_arm_keeps_more_only_where_its_interval_says_so(edges, finding):
    table = claims(results([*NAIVE, *MIXED], [difference("exact", *edges)]))
    assert row_of(table, claim="keeps more")["finding"] == finding


def test_naive_forgets_only_with_three_seeds():
    assert row_of(claims(results(NAIVE)), claim="forgets")["finding"] == "seen"
    assert row_of(claims(results(NAIVE[:2])), claim="forgets")["finding"] == "not tested"
    kept = [cell("naive", seed, 0.9) for seed in range(3)]
    assert row_of(claims(results(kept)), claim="forgets")["finding"] == "not seen at this scale"


@pytest.mark.parametrize(
    ("own", "fixed", "finding"),
    [
        ((-2.0, -1.0), (-2.0, -0.5), "seen"),
        ((-2.0, -1.0), (-2.0, 0.5), "not seen at this scale"),
        ((-2.0, -1.0), None, "not tested"),
        ((None, None), (None, None), "not tested"),
    ],
)
def test_earlier_must_hold_in_both_readouts(own, fixed, finding):
    rows = [difference("lof_restricted", *own)]
    if fixed is not None:
        rows.append(difference("lof_restricted", *fixed, readout="base-readout"))
    assert row_of(claims(results(NAIVE, rows)), claim="earlier after stage 2")["finding"] == finding


@pytest.mark.parametrize(
    ("edges", "finding"), [((-2.0, -0.5), "seen"), ((-2.0, 0.5), "not seen at this scale")]
)
def test_earlier_must_hold_net_of_shuffled_answers(edges, finding):
    rows = [difference("lof_restricted", -2.0, -1.0, readout=name) for name in ("own", "base-readout")]
    rows += [difference("lof_restricted_net", *edges)]
    # What shuffled answers do in the base readout is not asked.
    rows += [difference("lof_restricted_net", -1.0, 1.0, readout="base-readout")]
    row = row_of(claims(results(NAIVE, rows)), claim="earlier after stage 2")
    assert row["finding"] == finding and "net of shuffled answers" in row["evidence"]


def test_more_diverse_must_hold_in_every_seed_and_both_readouts():
    keys = {"setup": "kvr-lama", "k": 10, "token": "first"}

    def found(lows):
        spread, placed = [], []
        for place, low in enumerate(lows):
            seed, readout = place % 3, ("own", "base-readout")[place // 3]
            spread.append(
                keys
                | {"readout": readout, "checkpoint": f"r{seed}", "difference": 1.0, "low": low}
                | dict.fromkeys(("sd", "sd_expected", "high"), 2.0)
            )
            placed.append(
                keys | {"readout": readout, "checkpoint": f"r{seed}", "arm": REMIX, "stage": 2, "seed": seed}
            )
        table = claims(results(NAIVE, spread=spread, placement=_complete(placed)))
        return row_of(table, claim="more diverse after stage 2")["finding"]

    assert found([0.1] * 6) == "seen"
    assert found([0.1] * 5 + [-0.1]) == "not seen at this scale"
    assert found([0.1] * 3) == "not tested"
    assert found([0.1, 0.1, None] * 2) == "not tested", "two seeds have facts that occur at all"


def _complete(rows):
    names = (
        "exact",
        "lof_mean",
        "lof_sd",
        "share_never",
        "lof_restricted_mean",
        "chance_lof_restricted_mean",
    )
    return [row | dict.fromkeys((*names, "effective_layers", "depths_per_factoid"), 0.5) for row in rows]


def test_only_mixing_arms_are_held_against_matched_controls():
    control = "matched(to=steps, data=generic, stages=1)"
    rows = [
        difference("exact", 0.1, 0.3, arm=arm, reference=control)
        for arm in (REMIX, "none", "kl(strength=0.1)")
    ]
    table = claims(results([*NAIVE, *MIXED], rows))
    assert row_of(table, claim="beats its matched control")["arm"] == REMIX


def kept(difference, high, readout="own", statistic="lof_restricted", **more):
    numbers = {"difference": difference, "low": None if high is None else 2 * difference - high, "high": high}
    keys = {"setup": "kvr-lama", "k": 10, "token": "first", "readout": readout, "stage": "2", "arm": REMIX}
    counts = {"seeds": 3, "kept": [30, 31, 32], "lost": [34, 33, 32], "by_seed": [difference] * 3}
    return keys | counts | {"statistic": statistic} | numbers | more


@pytest.mark.parametrize(
    "highs, finding",
    [
        ((-0.1, -0.1, -0.1), "seen"),
        ((-0.1, -0.1, 0.1), "not seen at this scale"),
        ((-0.1, 0.1, -0.1), "not seen at this scale"),
        ((-0.1, None, -0.1), "not tested"),
    ],
)
def test_kept_facts_were_earlier_only_where_readouts_and_control_say_so(highs, finding):
    rows = [
        kept(-0.5, highs[0]),
        kept(-0.5, highs[1], readout="base-readout"),
        kept(-0.4, highs[2], statistic="lof_restricted_net"),
        kept(-0.9, -0.5, statistic="settled_restricted"),
    ]
    table = kept_before(results([*NAIVE, *MIXED], kept=rows))
    assert table["readout"].to_list() == ["own", "base-readout"] and table["lof_net"].to_list() == [
        -0.4,
        None,
    ]
    row = row_of(claims(results([*NAIVE, *MIXED], kept=rows)), claim="kept facts were earlier before stage 2")
    assert (row["finding"], row["arm"], row["k"]) == (finding, REMIX, 10)
    assert "net of shuffled answers: -0.400" in row["evidence"]


def test_lost_facts_are_means_over_the_seeds_of_an_arm():
    keys = {"setup": "kvr-lama", "k": 10, "token": "first", "readout": "own"}
    seeds = [2, 0, 1]
    placement = [keys | {"checkpoint": f"r.{s}", "arm": REMIX, "stage": 2, "seed": s} for s in seeds]
    numbers = {"surfaces": [0.2, 0.4, None], "deepest": [28.0, 29.0, None], "intruded": [0.5, 1.0, None]}
    lost = [
        keys
        | {"checkpoint": f"r.{s}", "n_lost": 10 * s}
        | {name: found[i] for name, found in numbers.items()}
        for i, s in enumerate(seeds)
    ]
    row = row_of(lost_facts(results([*MIXED], placement=placement, lost=lost)))
    assert row["lost"] == [0, 10, 20] and row["seeds"] == 3
    assert (row["surfaces"], row["deepest"], row["intruded"]) == pytest.approx((0.3, 28.5, 0.75))


def test_gradient_conflict_goes_with_forgetting_where_ranks_agree():
    agree = [cell(f"a{i}", i % 3, i / 10, f"ewc(strength={i})", cosine_start=i - 5.0) for i in range(8)]
    assert row_of(claims(results(agree)), claim="gradients")["finding"] == "seen"
    against = [row | {"cosine_start": -row["cosine_start"]} for row in agree]
    assert row_of(claims(results(against)), claim="gradients")["finding"] == "not seen at this scale"
    assert row_of(claims(results(agree[:3])), claim="gradients")["finding"] == "not tested"
    penalised = [row | {"plain_last": False, "retention": 0.0, "arm": f"p{i}"} for i, row in enumerate(agree)]
    assert row_of(claims(results([*agree, *penalised])), claim="gradients")["evidence"].endswith("8 cells")


def test_a_claim_stands_beside_what_the_paper_says_of_the_same_facts():
    both = f"{REMIX}+replay(ratio=0.1, stages=2)"
    arms = [difference("exact", 0.1, 0.3, arm=arm) for arm in (REMIX, both, "kl(strength=0.1)")]
    table = claims(results([*NAIVE, *MIXED], arms))
    assert row_of(table, claim="forgets")["paper"] == "17.8 % kept"
    assert row_of(table, claim="keeps more", arm=REMIX)["paper"] == "67.4 % kept, naive 17.8 %"
    assert row_of(table, claim="keeps more", arm="kl(strength=0.1)")["paper"] == "17.5 % kept, naive 17.8 %"
    assert row_of(table, claim="keeps more", arm=both)["paper"] == "", "the paper did not run it"
    other = claims(results([row | {"d_a": "known"} for row in (*NAIVE, *MIXED)], arms))
    assert set(other.filter(claim="keeps more")["paper"]) == {""}


def test_stored_results_give_the_same_tables(done, tmp_path):
    _, out = done
    found = collect(out, draws=100)
    assert found.cells["labels"].to_list()[0][-1].endswith(".2")
    assert set(found.placement["readout"]) == {"own", "base-readout"} and set(found.placement["k"]) == {1, 10}
    assert found.spread["reference"].n_unique() == 2  # naive after each stage
    found.write(tmp_path)
    fresh, stored = tables(found), tables(read_results(tmp_path))
    assert set(fresh) == set(stored) >= {"forgetting", "placement", "mixing_ratio", "cost", "claims"}
    for name, table in fresh.items():
        assert markdown({name: table}, "x") == markdown({name: stored[name]}, "x")
    (tmp_path / "arms.parquet").unlink()
    with pytest.raises(MemprobeError, match=r"arms\.parquet"):
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
    assert again.exit_code == 0 and f"{len(drawn)} in" in again.output
    assert {path: path.read_bytes() for path in drawn} == images
    assert (tmp_path / "README.md").read_text() == page and (
        tmp_path / "tables/forgetting.csv"
    ).read_text() == csv
    empty = CliRunner().invoke(app, ["report", str(tmp_path / "tables")])
    assert isinstance(empty.exception, MemprobeError)
