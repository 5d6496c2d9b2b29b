"""Savings and cueing: facts that a stage took against never-learned ones, from the same weights."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from typer.testing import CliRunner

from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.sources import load_factoids
from memprobe.statistics.shares import share_over_seeds
from tests.disk import contents
from tests.training.runs import small
from training.__main__ import app
from training.never_learned import never_learned
from training.relearn import Relearned, _savings, relearn
from training.relearn_arms import BY_SIZE, NAMES, arm_table
from training.relearn_files import relearn_table
from training.run import run
from training.show import _back, print_relearned, relearned_line


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_checkpoint):
    """Two stages, the second of which takes all that the first had learned."""
    folder = tmp_path_factory.mktemp("relearn") / "run"
    run(two_stages(tiny_checkpoint), folder, quiet=True)
    return folder


def two_stages(base, epochs=40, **changes):
    """Enough training for six keys; a second stage that takes them."""
    stages = [
        {"name": "a", "data": "kvr:6", "epochs": epochs},
        {"name": "b", "data": "kvr:6:validation", "epochs": 12},
    ]
    optimiser = {"lr": 1e-2, "batch": 4, "micro_batch": 4}
    return small(base, **{"stages": stages, "optimiser": optimiser} | changes)


def digest(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def test_nothing_comes_back_without_learning(trained):
    row = relearn(str(trained / "2-b"), lr=0.0, limit=2)
    assert row.steps_lost == row.steps_fresh == 3
    assert row.savings is row.savings_low is row.savings_high is None, "nothing was seen of either set"
    assert row.why == "nothing of either set came within 2 steps"
    assert f"savings not known ({row.why})" in relearned_line(row)
    assert relearn_table([row])["savings"].dtype == pl.Float64
    assert row.back_lost == row.back_fresh == 0
    assert row.lost == row.asked == row.n == 6 and row.unlearned == 0


def test_facts_come_back_and_the_checkpoint_stays(trained):
    before = digest(trained)
    said = []
    row = relearn(str(trained / "2-b"), lr=3e-3, limit=60, say=said.append)
    assert row.back_lost == 1 and 1 <= row.steps_lost <= 60
    assert row.examples_lost == row.steps_lost * min(4, row.n)
    assert row.savings == pytest.approx(1 - row.steps_lost / row.steps_fresh)
    assert row.savings_low is row.savings_high is None, "two to six facts are too few"
    assert digest(trained) == before
    again = relearn(str(trained / "2-b"), lr=3e-3, limit=60)
    assert again == row, "both sets start from the same weights, whatever was done before"
    table = relearn_table([row, again])
    assert table.height == 2 and any("fresh" in line for line in said)
    assert table["savings_low"].dtype == pl.Float64, "also where no row has an interval"


def test_savings_by_hand():
    """Only the lost scatter: a draw saves 1 - (2 + B / 6) / 6 with B binomial (12, 1/2), whose expanded percentiles
    of 12, Φ(∓2.299) = 1.08 and 98.92 %, are 2 and 10; the plain ones, 2.5 and 97.5 %, are 3 and 9."""
    value, low, high = _savings(np.array([2, 4] * 6), np.array([6] * 12), 60, seed=0)
    assert value == pytest.approx(0.5)
    assert low == pytest.approx(1 - (2 + 10 / 6) / 6) and high == pytest.approx(1 - (2 + 2 / 6) / 6)


def test_savings_of_too_few_have_no_interval():
    assert _savings(np.array([2, 4] * 5), np.array([6] * 10), 60, seed=0)[1] is not None
    assert _savings(np.array([2, 4] * 4 + [3]), np.array([6] * 9), 60, seed=0) == (
        pytest.approx(0.5),
        None,
        None,
    )


def test_savings_need_something_that_came_back():
    """Facts that never come count as a step more than the limit; of both sets that compares a limit with itself."""
    never, some = np.full(20, 61), np.array([5] + [61] * 19)
    assert _savings(never, never, 60, seed=0) == (None, None, None)
    for lost, fresh in ((some, never), (never, some)):
        value, low, high = _savings(lost, fresh, 60, seed=0)
        assert value == pytest.approx(1 - lost.mean() / fresh.mean()) and low is not None and low < high


def test_a_seed_of_which_nothing_is_known_leaves_its_arm_without_a_mean():
    rows = three_seeds()
    rows[0] = replace(rows[0], savings=None, back_lost=0.0, back_fresh=0.0, why="nothing came")
    table = arm_table(rows)
    naive, remix = table.filter(pl.col("statistic") == "savings").iter_rows(named=True)
    assert remix["by_seed"] == [*REMIX_SAVINGS[:2], None] and naive["mean"] is not None
    unknown = ("mean", "low", "high", "difference", "difference_low", "difference_high", "p", "significant")
    assert [remix[name] for name in unknown] == [None] * len(unknown)


def test_a_loss_that_is_not_finite_is_refused(trained):
    with pytest.raises(
        MemprobeError, match=r"2-b: lost: (loss|grad_norm) is (nan|inf) at step \d+.*lower --lr"
    ):
        relearn(str(trained / "2-b"), lr=1e30, limit=20)


def test_what_cannot_be_asked_is_said(trained, tiny_checkpoint):
    with pytest.raises(MemprobeError, match="stage 2 or later"):
        relearn(str(trained / "1-a"))
    with pytest.raises(MemprobeError, match="stage 2 or later"):
        relearn(str(tiny_checkpoint))


@pytest.mark.parametrize("lr", ["-1", "0", "nan", "inf"])
def test_a_learning_rate_that_is_none_is_refused_at_the_option(lr, trained):
    told = CliRunner().invoke(app, ["relearn", str(trained / "2-b"), "--lr", lr], env={"COLUMNS": "160"})
    assert told.exit_code == 2 and "--lr" in told.output and "above 0" in told.output


@pytest.mark.parametrize("moved", [False, True])
def test_never_learned_facts_are_of_no_stage_and_no_mixing(moved, tiny_checkpoint, tmp_path):
    """Of the kind that is made for KVR, two stages and the mixing of a third taught some."""
    data = ("kvr:6", "kvr:6:test", "kvr:6:validation")
    stages = [{"name": name, "data": source, "epochs": 1} for name, source in zip("abc", data, strict=True)]
    stages[2]["mixing"] = [{"source": "kvr:15:test", "ratio": 1.5}]
    last = run(small(tiny_checkpoint, stages=stages), tmp_path / "run", quiet=True)
    if moved:  # away from its run, whose rows of mixing are then drawn again
        last = shutil.copytree(last, tmp_path / "elsewhere" / "3-c")
    checkpoint = resolve(str(last))
    manifest = checkpoint.manifest
    first = load_factoids("kvr:6")
    said = []
    others = never_learned(checkpoint, manifest, first, 6, None, None, 0, said.append)
    assert [fact.prompt for fact in others] == [fact.prompt for fact in load_factoids("kvr:21:test")[15:]]
    for source, left in (("kvr:18:test", 3), ("kvr:6:validation", 0), (str(last / "factoids-2-b.jsonl"), 0)):
        assert len(never_learned(checkpoint, manifest, first, 6, source, None, 0, said.append)) == left, (
            source
        )
    assert "never-learned: left out 15 of 18 facts of kvr:18:test: taught before" in said and len(said) == 3


def test_never_learned_facts_of_a_file_are_drawn_by_the_seed(trained, tmp_path):
    """A file has them by relation: its first ones alone would be facts of one kind."""
    checkpoint = resolve(str(trained / "2-b"))
    lines = [
        f'{{"prompt": "The {relation} of land {number} is", "answer": "Lunn"}}'
        for relation in ("capital", "river")
        for number in range(30)
    ]

    def drawn(seed: int, lines: list[str]) -> list[str]:
        file = tmp_path / "facts.jsonl"
        file.write_text("\n".join(lines))
        others = never_learned(checkpoint, checkpoint.manifest, [], 20, str(file), None, seed, print)
        assert len(others) == len(lines)
        return [fact.prompt for fact in others[:20]]

    first = drawn(0, lines)
    assert {prompt.split()[1] for prompt in first} == {"capital", "river"}
    assert drawn(0, lines[::-1]) == first != drawn(1, lines)


@pytest.mark.parametrize("place", ["/2-b", "/run/2-b", "/"])
def test_a_checkpoint_may_lie_at_the_root_of_the_file_system(place, trained):
    checkpoint = resolve(str(trained / "2-b"))
    there = replace(checkpoint, path=Path(place))
    first = load_factoids("kvr:6")
    others = never_learned(there, checkpoint.manifest, first, 6, None, None, 0, lambda line: None)
    assert len(others) == 6


def relearned(arm, seed, steps, fresh, *, cued=0.0, stage=2, n=8, checkpoint=None, before=(), rows="same"):
    return Relearned(
        checkpoint=checkpoint or f"{arm}-{seed}",
        arm=arm,
        seed=seed,
        stage=stage,
        asked=16,
        lost=n,
        n=n,
        steps_lost=steps,
        steps_fresh=fresh,
        examples_lost=4 * steps,
        examples_fresh=4 * fresh,
        back_lost=1.0,
        back_fresh=1.0,
        savings=1 - steps / fresh,
        savings_low=None,
        savings_high=None,
        cued_lost=cued,
        cued_fresh=0.0,
        gain_lost=1.0,
        gain_fresh=0.5,
        limit=60,
        stage_name="lama",
        before=before,
        rows=rows,
    )


REMIX = "remix(data=generic, stages=1)"
NAIVE_SAVINGS, REMIX_SAVINGS = [0.1, 0.2, 0.25], [0.4, 0.55, 0.7]


def three_seeds(**how):
    """Of two arms, the later one and its last seed first, so that order is the table's own."""
    sides = ((REMIX, REMIX_SAVINGS), ("none", NAIVE_SAVINGS))
    return [
        relearned(arm, seed, 20 * (1 - saved[seed]), 20.0, cued=seed / 4 if arm == REMIX else 0.0, **how)
        for arm, saved in sides
        for seed in (2, 0, 1)
    ]


def test_arms_over_three_seeds():
    table = arm_table(three_seeds())
    assert table["arm"].unique(maintain_order=True).to_list() == ["none", REMIX]
    assert {*table["stage"]} == {"2-lama"} and {*table["seeds"]} == {3}
    naive, remix = table.filter(pl.col("statistic") == "savings").iter_rows(named=True)
    for row, values in ((naive, NAIVE_SAVINGS), (remix, REMIX_SAVINGS)):
        assert row["by_seed"] == pytest.approx(values), "in the order of seeds"
        assert row["mean"] == pytest.approx(np.mean(values))
        by_scipy = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (row["low"], row["high"]) == pytest.approx(by_scipy)
    welch = stats.ttest_ind(REMIX_SAVINGS, NAIVE_SAVINGS, equal_var=False)
    assert remix["reference"] == "none" and remix["p"] == pytest.approx(welch.pvalue)
    assert remix["difference"] == pytest.approx(np.mean(REMIX_SAVINGS) - np.mean(NAIVE_SAVINGS))
    ends = welch.confidence_interval()
    assert (remix["difference_low"], remix["difference_high"]) == pytest.approx((ends.low, ends.high))
    assert ends.low > 0 and remix["significant"] is True
    assert naive["reference"] is naive["difference"] is naive["significant"] is None
    (cued,) = table.filter(pl.col("arm") == REMIX, pl.col("statistic") == "cued_lost").iter_rows(named=True)
    by_hand = share_over_seeds(np.array([0.0, 2.0, 4.0]), 8)
    assert (cued["low"], cued["high"]) == pytest.approx((by_hand.low, by_hand.high))
    assert cued["mean"] == pytest.approx(0.25) and cued["low"] >= 0 and cued["difference_low"] >= -1


def test_seeds_that_start_from_one_checkpoint_are_pairs():
    found = [replace(row, before=(f"stage 1 of {row.seed}", "base")) for row in three_seeds()]
    (remix,) = (
        arm_table(found)
        .filter(pl.col("arm") == REMIX, pl.col("statistic") == "savings")
        .iter_rows(named=True)
    )
    ends = stats.ttest_rel(REMIX_SAVINGS, NAIVE_SAVINGS).confidence_interval()
    assert (remix["difference_low"], remix["difference_high"]) == pytest.approx((ends.low, ends.high))


def test_what_depends_on_the_size_of_a_set_is_compared_between_sets_of_one_size():
    """Six facts take more steps than two; savings are held against as many facts, and a cue is given to one alone."""
    alike, found = three_seeds(), three_seeds()
    found[0] = replace(found[0], n=2)  # a seed of REMIX
    table, before = arm_table(found), arm_table(alike)
    assert before["note"].to_list() == [""] * len(before)
    apart, told = (one.filter(pl.col("arm") == REMIX) for one in (table, before))
    differences = ["difference", "difference_low", "difference_high", "p", "significant"]
    by_size = pl.col("statistic").is_in(BY_SIZE)
    assert told.filter(by_size)["difference"].null_count() == 0, "of sets of one size it is there"
    for name in differences:
        assert apart.filter(by_size)[name].null_count() == len(BY_SIZE), name
    others = ~by_size & ~pl.col("statistic").str.starts_with("cued")  # whose means weigh sizes
    assert apart.filter(others).select(differences).equals(told.filter(others).select(differences))
    assert {*apart["reference"]} == {"none"} and "sets of 2, 8 facts" in apart["note"][0]
    assert apart["n_by_seed"][0].to_list() == [8, 8, 2], "in the order of seeds"
    # So it is where either arm's sets are of one size, but not of the other's.
    smaller = arm_table([replace(row, n=2) if row.arm == "none" else row for row in alike])
    assert smaller.filter(by_size)["difference"].null_count() == 2 * len(BY_SIZE)


def test_seeds_of_other_settings_are_not_pooled():
    """Another learning rate or base model: no seed of the arm, be its label the others' and its seed its own."""
    found = [replace(row, checkpoint="2-lama", recipe_mark="one") for row in three_seeds()]
    found[1] = replace(found[1], recipe_mark="other")
    table = arm_table(found).filter(pl.col("statistic") == "savings")
    assert {row["arm"]: row["seeds"] for row in table.iter_rows(named=True)} == {
        "none": 3,
        **{f"{REMIX} (2-lama, no. {place})": 1 for place in (1, 2, 3)},
    }
    notes = {row["arm"]: row["note"] for row in table.iter_rows(named=True)}
    assert "other settings" in notes[f"{REMIX} (2-lama, no. 2)"]
    assert notes["none"] == notes[f"{REMIX} (2-lama, no. 1)"] == ""
    unknown = [replace(row, recipe_mark=None) for row in found]
    assert {*arm_table(unknown)["seeds"]} == {3}, "where nothing says the settings"


def test_the_printed_table_says_why_there_is_no_difference(capsys):
    found = three_seeds()
    found[0] = replace(found[0], n=2)
    print_relearned(arm_table(found))
    said = " ".join(capsys.readouterr().out.split())
    assert "8, 2" in said and "are not held against naive's" in said


def test_one_seed_is_shown_and_has_no_interval():
    table = arm_table([relearned("none", 3, 15.0, 20.0), relearned(REMIX, 3, 5.0, 20.0)])
    naive, remix = table.filter(pl.col("statistic") == "savings").iter_rows(named=True)
    assert naive["by_seed"] == pytest.approx([0.25]) and remix["by_seed"] == pytest.approx([0.75])
    assert remix["difference"] == pytest.approx(0.5) and remix["significant"] is None
    for end in ("low", "high", "difference_low", "difference_high", "p"):
        assert table[end].null_count() == table.height, end
    alone = arm_table([relearned(REMIX, 3, 5.0, 20.0)])
    assert alone["reference"].null_count() == alone.height == len(NAMES), (
        "without naive there is no difference"
    )
    assert alone.columns == table.columns and alone.schema == table.schema


def test_what_is_no_seed_of_an_arm_is_an_arm_of_its_own():
    """Two checkpoints of one arm, stage and seed; and stages, which are never meaned together."""
    found = [
        relearned("none", 0, 15.0, 20.0, checkpoint="slow"),
        relearned("none", 0, 10.0, 20.0, checkpoint="fast"),
        relearned("none", 0, 5.0, 20.0, stage=3),
        relearned(REMIX, 0, 4.0, 20.0, checkpoint="2-lama"),
        relearned(REMIX, 0, 2.0, 20.0, checkpoint="2-lama"),
    ]
    table = arm_table(found).filter(pl.col("statistic") == "savings")
    means = {(row["arm"], row["stage"]): row["mean"] for row in table.iter_rows(named=True)}
    assert means == pytest.approx(
        {
            ("none", "3-lama"): 0.75,
            ("none (slow)", "2-lama"): 0.25,
            ("none (fast)", "2-lama"): 0.5,
            (f"{REMIX} (2-lama, no. 4)", "2-lama"): 0.8,
            (f"{REMIX} (2-lama, no. 5)", "2-lama"): 0.9,
        }
    )
    assert {*table["seeds"]} == {1}


def test_the_line_of_a_checkpoint_says_how_many_came_back():
    row = replace(relearned("none", 0, 20.0, 61.0, n=4), back_lost=0.75, back_fresh=0.0)
    assert _back(row, "lost") == (
        "3 of 4 tried are back after 20.0 steps on average (80 examples), "
        "the rest, not within the limit of 60, counted as 61"
    )
    assert _back(row, "fresh") == "0 of 4 tried are learned within 60 steps"
    assert _back(replace(row, back_lost=1.0), "lost").endswith("(80 examples)")
    assert "4 of 16 facts lost; " in relearned_line(row)
    assert "4 of 16 facts lost (3 were never learned); " in relearned_line(replace(row, unlearned=3))


def test_the_command_writes_and_prints_both_tables(monkeypatch, tmp_path):
    rows = {row.checkpoint: row for row in three_seeds()}
    monkeypatch.setattr("training.relearn.relearn", lambda spec, **_: rows[spec])
    monkeypatch.setattr("training.relearn.later_stage", lambda spec: (None, None, []))
    out = tmp_path / "again.parquet"
    done = CliRunner().invoke(app, ["relearn", *rows, "--out", str(out)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert pl.read_parquet(out).height == 6
    assert pl.read_parquet(tmp_path / "again-arms.parquet").equals(arm_table(list(rows.values())))
    text = " ".join(done.output.split())
    assert "steps saved in learning again, over training seeds" in text
    low, high = stats.t.interval(0.95, 2, np.mean(REMIX_SAVINGS), stats.sem(REMIX_SAVINGS))
    assert f"55.0% [{low:.1%}, {high:.1%}]" in text and "40.0%, 55.0%, 70.0%" in text


@pytest.mark.parametrize(
    ("specs", "out", "said"),
    [
        (["2-b"], "again.csv", "again.csv: the table is written as Parquet"),
        (["2-b"], "again", "a name that ends in .parquet"),
        (["2-b"], "folder.parquet", "folder.parquet: is a folder"),
        (["2-b"], "other.parquet", "other-arms.parquet: is a folder"),
        (["2-b"], "file/again.parquet", "cannot be written"),
        (
            ["2-b", "1-a"],
            "again.parquet",
            "1-a: give a checkpoint of `python -m training`, of stage 2 or later",
        ),
        (["2-b", "3-c"], "again.parquet", "3-c: no such file"),
    ],
)
def test_what_ends_the_command_is_said_before_anything_is_measured(
    specs, out, said, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr("training.relearn.relearn", lambda spec, **_: pytest.fail("it was begun"))
    for name in ("folder.parquet", "other-arms.parquet"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    told = CliRunner().invoke(
        app, ["relearn", *(str(trained / name) for name in specs), "--out", str(tmp_path / out)]
    )
    assert isinstance(told.exception, MemprobeError) and said in str(told.exception), told.exception
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("read", "out"),
    [
        ("facts.parquet", "facts.parquet"),
        ("facts.parquet", "link/facts.parquet"),
        ("facts.parquet:new", "facts.parquet"),
        ("facts-arms.parquet", "facts.parquet"),
    ],
)
def test_tables_are_not_written_over_the_facts_that_are_read(read, out, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("training.relearn.relearn", lambda spec, **_: pytest.fail("it was begun"))
    pl.DataFrame({"prompt": ["a"], "answer": ["b"]}).write_parquet(tmp_path / read.partition(":")[0])
    (tmp_path / "link").symlink_to(tmp_path)
    before = contents(tmp_path)
    named = ["--never-learned", str(tmp_path / read), "--out", str(tmp_path / out)]
    told = CliRunner().invoke(app, ["relearn", str(trained / "2-b"), *named])
    assert isinstance(told.exception, MemprobeError), told.exception
    assert "--never-learned and" in str(told.exception) and "give two files" in str(told.exception)
    assert contents(tmp_path) == before


def test_what_cannot_be_written_is_printed_all_the_same(monkeypatch, tmp_path):
    row = three_seeds()[0]
    monkeypatch.setattr("training.relearn.relearn", lambda spec, **_: row)
    monkeypatch.setattr("training.relearn.later_stage", lambda spec: (None, None, []))

    def full(*_):
        raise MemprobeError("the disk is full")

    monkeypatch.setattr("training.relearn_files.write_parquet", full)
    told = CliRunner().invoke(app, ["relearn", row.checkpoint, "--out", str(tmp_path / "again.parquet")])
    assert relearned_line(row) in told.output and "the disk is full" in str(told.exception)
