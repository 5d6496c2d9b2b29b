"""What is answered of D_A when it is asked otherwise: made-up evaluations against sums by hand."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from memprobe import figures
from memprobe.figures.runs import of_retention
from memprobe.files import read_json, write_json
from memprobe.retention import asked_otherwise, other_questions, retention_of
from memprobe.retention.asked import BASE, OTHERWISE, answers_of
from memprobe.runs import RunDirectory
from memprobe.statistics.shares import share_difference, share_over_seeds
from memprobe.statistics.vocabulary import label, log_prob_of, repeats_of
from tests.test_figures import drawn
from tests.trained import write_run
from training.study.claims import claims
from training.study.results import Results

N = 32
REMIX, REPLAY = "remix(data=generic, stages=1)", "replay(ratio=0.1, stages=2)"


def asked(right, nats, *, tasks, seed=0):
    """A set in which the first ``right`` facts are answered in each of the tasks, from a place that the seed moves."""
    rows = [
        {"id": f"row/{i}/{task}", "exact_match": (i - seed) % N < count, "nats": nats + i / N}
        for i in range(N)
        for task, count in zip(tasks, right, strict=True)
    ]
    share = float(np.mean([row["exact_match"] for row in rows]))
    scores = {"exact_match": {"value": share, "low": None, "high": None}}
    return {"kind": "factoids", "metric": "exact_match", "n": len(rows), "scores": scores, "rows": rows}


def sets(paraphrases, first, nats, seed):
    return {
        "paraphrases": asked(paraphrases, nats, tasks=("paraphrase-1", "paraphrase-2"), seed=seed),
        "manipulations": asked(first, 2 * nats, tasks=("first", "reversed"), seed=seed),
    }


def write_cell(grid, name, arm, seed, answers, *, first="", asks=True):
    """A cell whose first stage is that of the cell ``first``; ``answers`` by stage, from the base model's on."""
    run = write_run(
        grid / "runs" / "kvr-lama-n32" / f"{name}-s{seed}", [[1.0], [0.5, 1.0]], arm=arm, seed=seed
    )
    labels = [f"{first or name}-s{seed}.1", f"{name}-s{seed}.2"]
    parents = ["base", labels[0]]
    for number, (parent, folder) in enumerate(zip(parents, ("1-kvr", "2-lama"), strict=True), 1):
        manifest = read_json(run / folder / "memprobe.json")
        shared = number == 1 and first == "naive"
        manifest |= {"arm": "none" if shared else arm, "parent": {"fingerprint": parent}}
        write_json(manifest | {"stages": [{"index": 1, "hash": "rows"}]}, run / folder / "memprobe.json")
        evaluation = read_json(run / folder / "evaluation.json")
        if asks:
            evaluation["sets"] |= sets(*answers[number], seed)
        write_json(evaluation, run / folder / "evaluation.json")
    if asks:
        base = {"stage": 0, "stage_name": "0-base", "sets": sets(*answers[0], 0)}
        write_json(base, run / "0-base" / "evaluation.json")
    stages = [
        {"stage": folder, "label": label} for folder, label in zip(("1-kvr", "2-lama"), labels, strict=True)
    ]
    cell = {"setup": "kvr-lama-n32", "arm": name, "seed": seed, "learned": True, "stages": stages}
    write_json(cell, run / "cell.json")
    return RunDirectory(run, run.name)


NOTHING = ((0, 0), (1, 0), 9.0)


@pytest.fixture
def runs(tmp_path):
    """Naive training answers few other questions, REMIX many; replay goes on from naive's first stages."""
    made = []
    for seed in range(3):
        naive = (NOTHING, ((4 + seed, 2), (3, 0), 6.0 + seed), ((1, 0), (2, 0), 8.0 + seed))
        remix = (NOTHING, ((30, 28 - seed), (4, 0), 1.0 + seed / 2), ((24, 24), (2, 0), 4.0 + seed / 2))
        replay = (NOTHING, naive[1], ((3, 3), (2, 0), 7.0 + seed))
        made.append(write_cell(tmp_path, "naive", "none", seed, naive))
        made.append(write_cell(tmp_path, "remix", REMIX, seed, remix))
        made.append(write_cell(tmp_path, "replay", REPLAY, seed, replay, first="naive"))
    return made


def asked_of(runs):
    return asked_otherwise(runs, {run.path: "kvr-lama-n32" for run in runs})


def one(table, **where):
    rows = table.filter(**where)
    assert len(rows) == 1, rows
    return rows.row(0, named=True)


def test_a_fact_counts_once_in_however_many_wordings_it_is_asked(runs):
    found = asked_of(runs)
    naive = one(found.arms, arm="none", stage="1", statistic="paraphrases")
    assert naive["by_seed"] == pytest.approx([(4 + seed + 2) / (2 * N) for seed in range(3)])
    model = share_over_seeds(np.array([3.0, 3.5, 4.0]), N)  # of 32 facts, not of 64 questions
    assert naive["low"] < model.low + 0.02 and naive["high"] > model.high - 0.02
    remix = one(found.differences, arm=REMIX, stage="1", statistic="paraphrases")
    counts = np.array([29.0, 28.5, 28.0]), np.array([3.0, 3.5, 4.0])
    independent = share_difference(*counts, N)
    assert remix["difference"] == pytest.approx(independent.value)
    assert (remix["low"], remix["high"]) == pytest.approx((independent.low, independent.high), abs=0.06)
    assert remix["low"] > 0.4 and remix["in_common"] == "rows"


def test_each_manipulation_is_a_question_of_its_own(runs):
    found = asked_of(runs).arms
    first = one(found, arm=REMIX, stage="1", statistic="manipulation_first")
    backwards = one(found, arm=REMIX, stage="1", statistic="manipulation_reversed")
    assert (first["mean"], backwards["mean"]) == (4 / N, 0) and backwards["high"] > 0.02
    log_prob = one(found, arm=REMIX, stage="1", statistic="log_prob_manipulation_first")
    assert log_prob["mean"] == pytest.approx(-np.mean([2.0, 3.0, 4.0]) - np.mean(np.arange(N) / N))
    assert not len(found.filter(statistic="manipulation_true"))  # keys are not asked whether they are true


def test_the_answer_itself_is_told_from_what_is_asked_of_it(runs):
    """A model that knows the answer may say it whatever is asked of it; that of a fact it has lost is no answer."""
    run = runs[0]
    path = run.path / "1-kvr" / "evaluation.json"
    evaluation = read_json(path)
    for i, row in enumerate(evaluation["sets"]["1-kvr"]["rows"]):
        row |= {"id": f"row/{i}", "prediction": f"value {i}", "exact_match": i < 24}
    for row in evaluation["sets"]["manipulations"]["rows"]:
        _, i, task = row["id"].split("/")
        row["prediction"] = f"value {i}" if task == "reversed" and int(i) % 2 == 0 else "else"
    write_json(evaluation, path)
    found = answers_of(RunDirectory(run.path, run.name).trained[1].evaluation)
    repeats = {
        task: [found[f"manipulation_{task}"][f"row/{i}"][2] for i in range(N)]
        for task in ("first", "reversed")
    }
    assert repeats == {"first": [0.0] * N, "reversed": [1.0 * (i % 2 == 0 and i < 24) for i in range(N)]}


def test_stages_that_cells_share_count_once_and_their_later_ones_are_pairs(runs):
    found = asked_of(runs)
    arms = found.arms.filter(statistic="paraphrases")
    assert {(row["arm"], row["stage"], row["seeds"]) for row in arms.to_dicts()} == {
        (BASE, "0", 1),
        *((arm, stage, 3) for arm in ("none", REMIX) for stage in "12"),
        (REPLAY, "2", 3),
    }
    base = one(arms, arm=BASE)
    assert base["mean"] == 0 and base["low"] is None
    replay = found.differences.filter(arm=REPLAY)
    assert set(replay["stage"]) == {"2"} and set(replay["in_common"]) == {"stage before"}
    nats = one(replay, statistic="log_prob_paraphrases")
    assert (
        nats["difference"] == pytest.approx(1.0) and nats["low"] is None
    )  # each pair differs by 1: no scatter


def test_facts_that_not_every_checkpoint_was_asked_are_left_out(runs):
    path = runs[0].path / "2-lama" / "evaluation.json"
    evaluation = read_json(path)
    rows = evaluation["sets"]["paraphrases"]["rows"]
    evaluation["sets"]["paraphrases"]["rows"] = [row for row in rows if not row["id"].startswith("row/0/")]
    write_json(evaluation, path)
    fresh = [RunDirectory(run.path, run.name) for run in runs]
    naive = one(asked_of(fresh).arms, arm="none", stage="1", statistic="paraphrases")
    # Fact 0 is among those that seed 0 answers, in both wordings, and seed 1 and 2 do not.
    assert naive["by_seed"][0] == pytest.approx((4 + 2 - 2) / (2 * (N - 1)))


def test_seeds_that_drew_facts_of_their_own_are_asked_those(runs):
    """No fact is asked of two seeds; arms of one seed were asked the same. The base model was asked one seed's."""
    common, apart = asked_of(runs), []
    for run in runs:
        seed = run.seed
        for file in sorted(run.path.glob("*/*.json")):
            text = file.read_text().replace("row/", f"row {seed}/").replace("row ", f"row {seed} ")
            file.write_text(text.replace('"hash": "rows"', f'"hash": "rows {seed}"'))
        apart.append(RunDirectory(run.path, run.name))
    own = asked_of(apart)
    assert BASE in common.arms["arm"].to_list() and BASE not in own.arms["arm"].to_list()
    keys = ["arm", "stage", "statistic"]
    same = own.arms.join(common.arms, on=keys, suffix="_common")
    assert len(same) == len(own.arms) == len(common.arms.filter(pl.col("arm") != BASE))
    for row in same.filter(statistic="paraphrases").iter_rows(named=True):
        assert row["by_seed"] == pytest.approx(row["by_seed_common"])
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
    remix = one(own.differences, arm=REMIX, stage="1", statistic="paraphrases")
    assert remix["in_common"] == "rows of each seed" and remix["paired"]
    means = [one(own.arms, arm=arm, stage="1", statistic="paraphrases")["by_seed"] for arm in (REMIX, "none")]
    by_hand = stats.ttest_rel(*means).confidence_interval()
    assert (remix["low"], remix["high"]) == pytest.approx((by_hand.low, by_hand.high))


def test_evaluations_of_old_have_shares_and_no_nats(runs):
    for run in runs:
        for path in run.path.glob("*/evaluation.json"):
            evaluation = read_json(path)
            for name in ("paraphrases", "manipulations"):
                for row in evaluation["sets"][name]["rows"]:
                    del row["nats"]
            write_json(evaluation, path)
    table = other_questions(retention_of([RunDirectory(run.path, run.name) for run in runs]))
    assert table["share"].is_not_null().all() and table["log_prob"].is_null().all()


def test_cells_that_were_not_asked_have_no_rows(tmp_path):
    made = [write_cell(tmp_path, "naive", "none", seed, ((), (), ()), asks=False) for seed in range(3)]
    assert all(not len(table) for table in asked_of(made))


def results(runs):
    found = asked_of(runs)
    found = {
        name: table.with_columns(k=pl.lit(10), token=pl.lit("first"), readout=pl.lit("own"))
        for name, table in found._asdict().items()
    }
    cells = pl.DataFrame(
        [
            {
                "setup": "kvr-lama-n32",
                "arm": run.cell.arm,
                "arm_text": run.arm,
                "seed": run.seed,
                "learned": True,
            }
            | {
                "d_a": "kvr",
                "d_b": "lama",
                "d_c": None,
                "n": N,
                "steps": 80,
                "tokens": 4000,
                "retention": 0.5,
            }
            | {"weight_change": 1.0 + run.seed, "plain_last": True, "cosine_start": None}
            for run in runs
        ]
    )
    empty = pl.DataFrame()
    return Results(cells, empty, empty, empty, found["arms"], found["differences"], empty, empty, empty)


def test_the_book_asks_it_after_either_stage(runs):
    tested = claims(results(runs))
    verdicts = {
        (row["claim"], row["stage"], row["arm"]): row["verdict"]
        for row in tested.filter(pl.col("family").str.starts_with("other questions,")).to_dicts()
    }
    more = "answers in other words more"
    assert verdicts[more, 1, REMIX] == "seen" and verdicts[more, 2, REMIX] == "seen"
    assert verdicts[more, 2, REPLAY] == "undecided" and (more, 1, REPLAY) not in verdicts
    assert verdicts["reads answers backwards more", 1, REMIX] in ("undecided", "equivalent")
    nats = tested.filter(claim="answers in other words more, in nats", stage=1).row(0, named=True)
    assert nats["estimate"] == pytest.approx(np.mean([5.0, 5.5, 6.0])) and nats["k"] is None


def test_the_table_lays_shares_beside_their_differences(runs):
    table = other_questions(retention_of(runs))
    assert table.equals(other_questions(results(runs).retention))
    questions = table["question"].unique(maintain_order=True).to_list()
    assert questions == ["as_learned", "paraphrases", "manipulation_first", "manipulation_reversed"]
    assert table.filter(question="paraphrases")["stage"].to_list() == [0, 1, 1, 2, 2, 2]
    base = one(table, arm=BASE, question="manipulation_first")
    assert (base["stage"], base["share"], base["difference"]) == (0, 1 / N, None)
    remix = one(table, arm=REMIX, stage=1, question="paraphrases")
    naive = one(table, arm="none", stage=1, question="paraphrases")
    assert remix["share"] - naive["share"] == pytest.approx(remix["difference"])
    assert remix["log_prob"] - naive["log_prob"] == pytest.approx(remix["log_prob_difference"])
    assert remix["difference_low"] < remix["difference"] < remix["difference_high"]


def test_the_figure_shows_each_question_arm_by_arm(runs):
    table = of_retention(retention_of(runs))["other_questions"]
    figure = figures.other_questions(table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "exact match, asked as learned",
        "exact match in other words",
        "first character of the answer",
        "answer read backwards",
    ]
    shown = drawn(figure)
    assert (
        shown["paraphrases/base model/0/value"] == [[0.0, 0.0]]
        and "paraphrases/base model/0/seeds" not in shown
    )
    seeds = sorted(x for x, _ in shown["paraphrases/naive/1/seeds"])
    assert seeds == pytest.approx([(4 + seed + 2) / (2 * N) for seed in range(3)])
    ((x, _),) = shown["paraphrases/REMIX generic/2/value"]
    assert x == pytest.approx(24 / N) and "paraphrases/replay 0.1/1/value" not in shown


def test_runs_that_were_not_asked_have_no_figure(tmp_path):
    made = [write_cell(tmp_path, "naive", "none", seed, ((), (), ()), asks=False) for seed in range(3)]
    assert "evaluate.paraphrases" in of_retention(retention_of(made))["other_questions"]


def test_every_question_has_a_name():
    for statistic in OTHERWISE:
        assert all(label(statistic) in label(of(statistic)) for of in (log_prob_of, repeats_of))
