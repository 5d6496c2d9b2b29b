"""What runs keep: one set of tables for figures and for what is published; run directories read by their files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from memprobe import retention
from memprobe.errors import MemprobeError
from memprobe.figures import runs as drawn
from memprobe.files import read_json, write_json
from memprobe.retention import ended_runs, retention_of
from memprobe.runs import RunDirectory
from memprobe.statistics.shares import share_difference, share_over_seeds
from memprobe.studies import cells_by_setup, open_study, without_failed_cells
from tests.probes import write_probe
from tests.trained import write_run

REPLAY = "[stages.replay]\nratio = {}\n"


def write_cell(grid, name, scores, *, setup="kvr-lama", learned=True, **options):
    """A finished cell of a grid, without the weights."""
    run = write_run(grid / "runs" / setup / name, scores, **options)
    stages = [{"stage": f"{i}-x", "label": f"{name}.{i}", "steps": 80, "tokens": 4000} for i in (1, 2)]
    keys = {"setup": setup, "arm": name.partition("-s")[0], "seed": options.get("seed", 0)}
    write_json(keys | {"learned": learned, "stages": stages}, run / "cell.json")
    return run


@pytest.fixture
def grid(tmp_path):
    """Three seeds of naive and of two replay ratios, one of which failed once."""
    for seed in range(3):
        write_cell(tmp_path / "g", f"naive-s{seed}", [[1.0], [seed / 32, 1.0]], seed=seed, cosine=-0.5)
        for ratio in (0.25, 0.5):
            failed = ratio == 0.5 and seed == 2
            write_cell(
                tmp_path / "g",
                f"r{ratio}-s{seed}",
                [[1.0], [ratio + seed / 32, 0.5 if failed else 1.0]],
                arm=f"replay(ratio={ratio:g}, stages=2)",
                seed=seed,
                additions={2: REPLAY.format(ratio)},
                replayed=int(32 * ratio),
                learned=not failed,
            )
    return tmp_path / "g"


def of(*folders):
    return retention_of(ended_runs(open_study(folders).runs))


def test_figures_draw_the_rows_that_are_published(grid):
    found = of(grid)
    shown = drawn.of_retention(found)
    published = {
        "forgetting": retention.forgetting(found),
        "replay_ratio": retention.curve(found, "replay_ratio"),
        "stages": retention.stages(found),
        "interference": retention.interference(found).rename({"cosine_start": "cosine"}),
    }
    for name, table in published.items():
        numbers = [
            column
            for column in ("retention", "value", "low", "high", "by_seed", "cosine", "last_score", "tokens")
            if column in table.columns and column in shown[name].columns
        ]
        assert len(numbers) >= 2
        assert shown[name].select(numbers).rows() == table.select(numbers).rows(), name
    row = published["forgetting"].filter(arm="r0.5").row(0, named=True)
    assert (row["cells"], row["failed"], row["by_seed"], row["low"]) == (3, 1, [0.5, 0.53125], None)
    naive = published["forgetting"].filter(arm="naive").row(0, named=True)
    assert naive["retention"] == pytest.approx(1 / 32) and 0 <= naive["low"] < 1 / 32 < naive["high"]


def test_what_a_failed_cell_cost_is_in_no_mean(grid):
    """As of what is kept; the cell is counted, and an arm of which none learned has no mean."""
    for place, run in enumerate(sorted((grid / "runs" / "kvr-lama").iterdir())):
        cell = read_json(run / "cell.json")
        cell["stages"][1]["steps"] = 10 * place
        cell["learned"] = cell["learned"] and cell["arm"] != "naive"
        write_json(cell, run / "cell.json")
    table = retention.cost(of(grid))
    rows = {arm: numbers for arm, *numbers in table.select("arm", "seeds", "failed", "steps").iter_rows()}
    assert rows == {"naive": [0, 3, None], "r0.25": [3, 0, 80 + 40], "r0.5": [2, 1, 80 + 65]}


def test_a_curve_over_replay_tells_rows_apart_and_starts_at_naive(grid):
    table = retention.curve(of(grid), "replay_ratio")
    assert table.select("rows", "replay_ratio").rows() == [
        (rows, ratio) for rows in ("all rows of D_A", "those not replayed") for ratio in (0.0, 0.25, 0.5)
    ]
    # Seed 0 keeps the first 8 of 32 rows, which are those that are replayed: none of the others.
    assert table.filter(rows="those not replayed", replay_ratio=0.25)["by_seed"].to_list()[0][0] == 0


@pytest.mark.parametrize("cell", [True, False])
def test_replay_in_every_later_stage_is_one_arm_whatever_the_length_of_the_chain(cell, tmp_path):
    chains = {
        "kvr-lama": ([[1.0], [0.5, 1.0]], "2"),
        "kvr-lama-webqa": ([[1.0], [0.5, 1.0], [0.25, 1.0, 1.0]], "2,3"),
    }
    for setup, (scores, stages) in chains.items():
        for arm in ("none", f"replay(ratio=0.1, stages={stages})"):
            options = {"names": ("kvr", "lama", "webqa")[: len(scores)], "arm": arm}
            name = f"{'naive' if arm == 'none' else 'r'}-s0"
            if cell:
                write_cell(tmp_path / "g", name, scores, setup=setup, **options)
            else:
                write_run(tmp_path / f"{setup}-{name}", scores, **options)
    found = of(tmp_path)
    rows = drawn.of_retention(found)["forgetting"].select("setup", "arm").sort("setup", "arm").rows()
    assert rows == [
        (setup, arm) for setup in ("kvr → lama", "kvr → lama → webqa") for arm in ("naive", "replay 0.1")
    ]
    assert set(found.cells["arm"]) == ({"naive", "r"} if cell else {"naive", "replay 0.1"})


def test_what_any_later_stage_replayed_is_not_unseen(tmp_path):
    """Rows that stage 2 trained on again were seen twice, though stage 3 replays others."""
    run = write_cell(
        tmp_path / "g",
        "r0.25-s0",
        [[1.0], [0.5, 1.0], [0.5, 1.0, 1.0]],
        setup="kvr-lama-webqa",
        names=("kvr", "lama", "webqa"),
        arm="replay(ratio=0.25, stages=2,3)",
        additions={2: REPLAY.format(0.25), 3: REPLAY.format(0.25)},
        replayed=8,
    )
    manifest = read_json(run / "2-lama" / "memprobe.json")
    manifest["replayed"] = [f"row {i}" for i in range(8, 16)]
    write_json(manifest, run / "2-lama" / "memprobe.json")
    # The first half of 32 rows is exact, and each of it was replayed.
    found = of(tmp_path / "g").over_seeds.filter(dataset="1-kvr", rows="those not replayed")
    assert found.select("stage", "by_seed").rows() == [(3, [0.0])]


def test_first_stages_are_compared_before_the_same_later_ones_alone(tmp_path):
    kept = {"kvr": [0, 1, 0], "popqa": [20, 24, 22], "triviaqa": [30, 28]}
    for d_a, counts in kept.items():
        for seed, count in enumerate(counts):
            scores, setup = [[1.0], [count / 32, 1.0]], f"{d_a}-lama-n32"
            write_cell(tmp_path / "g", f"naive-s{seed}", scores, setup=setup, names=(d_a, "lama"), seed=seed)
    elsewhere = {"setup": "kvr-webqa-n32", "names": ("kvr", "webqa")}
    write_cell(tmp_path / "g", "naive-s0", [[1.0], [0.5, 1.0]], **elsewhere)
    write_cell(tmp_path / "g", "naive-s3", [[1.0], [1.0, 0.5]], setup="kvr-lama-n32", seed=3, learned=False)
    table = retention.first_stages(of(tmp_path / "g"))
    rows = table.select("d_a", "against", "d_b", "seeds", "kept", "kept_of_other").rows()
    assert rows == [
        ("triviaqa", "popqa", "lama", 2, kept["triviaqa"], kept["popqa"]),
        ("triviaqa", "kvr", "lama", 2, kept["triviaqa"], kept["kvr"]),
        ("popqa", "kvr", "lama", 3, kept["popqa"], kept["kvr"]),
    ]
    assert table["low"].is_null().to_list() == [True, True, False]
    last = table.row(2, named=True)
    found = share_difference(np.array(kept["popqa"]), np.array(kept["kvr"]), 32)
    assert last["difference"] == pytest.approx(65 / 96) and (last["low"], last["high"]) == (
        found.low,
        found.high,
    )
    assert 0 < last["low"] < last["difference"] < last["high"] < 1 and last["p"] < 0.01
    alone = tmp_path / "alone"
    write_cell(alone, "naive-s0", [[1.0], [0.5, 1.0]])
    assert not len(retention.first_stages(of(alone)))


@pytest.mark.parametrize("metric", ["exact_match", "final_answer", "rouge_l", "loss", "perplexity"])
def test_what_is_no_count_is_not_compared_as_one(metric, tmp_path):
    """A mean of overlaps or a loss times the number of rows counts nothing."""
    for d_a, shares in {"kvr": (0.0, 0.25, 0.5), "popqa": (0.5, 0.75, 1.0)}.items():
        for seed, share in enumerate(shares):
            setup = {"setup": f"{d_a}-lama-n32", "names": (d_a, "lama"), "seed": seed}
            run = write_cell(tmp_path / "g", f"naive-s{seed}", [[1.0], [share, 1.0]], **setup)
            for stage in (f"1-{d_a}", "2-lama"):
                evaluation = read_json(run / stage / "evaluation.json")
                one = evaluation["sets"][f"1-{d_a}"]
                one["metric"], one["scores"] = metric, {metric: one["scores"]["exact_match"]}
                for row in one["rows"]:
                    row[metric] = row.pop("exact_match")
                write_json(evaluation, run / stage / "evaluation.json")
    found = of(tmp_path / "g")
    unknown = found.cells["retention"].null_count() + found.cells["d_a_after_1"].null_count()
    assert unknown == (2 * len(found.cells) if metric in ("loss", "perplexity") else 0), (
        "no share of it is kept"
    )
    table = retention.first_stages(found)
    assert len(table) == (1 if metric in ("exact_match", "final_answer") else 0)


@pytest.mark.parametrize("shared", [0, 1, 32])
def test_the_interval_of_seeds_that_were_asked_other_rows(shared, tmp_path):
    """Of rows that no two seeds share it is that of independent seeds; where some are shared there is none."""
    kept = (8, 12, 13)
    for seed, count in enumerate(kept):
        run = write_cell(tmp_path / "g", f"naive-s{seed}", [[1.0], [count / 32, 1.0]], seed=seed)
        for stage in ("1-kvr", "2-lama"):
            evaluation = read_json(run / stage / "evaluation.json")
            for place, row in enumerate(evaluation["sets"]["1-kvr"]["rows"]):
                row["id"] = row["id"] if place < shared else f"{row['id']} of seed {seed}"
            write_json(evaluation, run / stage / "evaluation.json")
    found = of(tmp_path / "g").over_seeds.filter(dataset="1-kvr", stage=2)
    assert found["value"].item() == pytest.approx(33 / 96)
    interval = (found["low"].item(), found["high"].item())
    apart = share_over_seeds(np.array(kept), 32)
    if shared == 1:
        assert interval == (None, None)
    elif shared == 0:
        assert interval == pytest.approx((apart.low, apart.high))
    else:
        assert interval[0] < 33 / 96 < interval[1]
        assert interval != pytest.approx((apart.low, apart.high)), "what facts have in common counts"


def test_known_facts_are_those_that_every_arm_of_a_seed_is_asked(tmp_path):
    """After stage 1 and last, and in arms that mix facts in, others may be watched: their shares are of other facts."""
    asked = {  # by arm, of each stage: known facts, and whether they are recalled still
        "naive-s0": (
            {"a": True, "b": True, "c": False, "d": True},
            {"b": True, "c": False, "d": False, "e": True},
        ),
        "r0.5-s0": ({"b": True, "c": True, "e": True}, {"b": False, "c": True, "e": True}),
        "naive-s1": ({"x": True}, {"x": False}),
    }
    for name, stages in asked.items():
        seed, replay = int(name[-1]), name.startswith("r")
        options = (
            {"arm": "replay(ratio=0.5, stages=2)", "additions": {2: REPLAY.format(0.5)}} if replay else {}
        )
        run = write_cell(tmp_path / "g", name, [[1.0], [0.5, 1.0]], seed=seed, **options)
        for stage, facts in zip(("1-kvr", "2-lama"), stages, strict=True):
            evaluation = read_json(run / stage / "evaluation.json")
            value = sum(facts.values()) / len(facts)
            evaluation["sets"]["known"] = {
                "kind": "factoids", "metric": "exact_match", "n": len(facts),
                "scores": {"exact_match": {"value": value}},
                "rows": [{"id": key, "exact_match": right} for key, right in facts.items()],
            }  # fmt: skip
            write_json(evaluation, run / stage / "evaluation.json")
    cells = of(tmp_path / "g").cells.sort("arm", "seed")
    assert cells.select("arm", "seed", "known_after_1", "known").rows() == [
        ("naive", 0, 0.5, 0.5),  # of b and c
        ("naive", 1, 1.0, 0.0),
        ("r0.5", 0, 1.0, 0.5),
    ]


def test_nothing_is_known_after_a_first_stage_of_training_in_one(tmp_path):
    run = write_cell(tmp_path / "g", "joint-s0", [[1.0, 1.0]], arm="joint")
    [stage] = [path.parent for path in run.glob("*/evaluation.json")]
    evaluation = read_json(stage / "evaluation.json")
    evaluation["sets"]["texts"] = {
        "kind": "texts",
        "metric": "perplexity",
        "n": 4,
        "scores": {"perplexity": {"value": 9}},
    }
    write_json(evaluation, stage / "evaluation.json")
    cells = of(tmp_path / "g").cells
    assert cells.select("perplexity_after_1", "perplexity").rows() == [(None, 9.0)]


def test_set_ups_of_two_grids_stay_apart(tmp_path):
    """A failed cell is not learned because a cell of that name in another grid is."""
    for name, learned in (("one", True), ("two", False)):
        write_cell(tmp_path / name, "naive-s0", [[1.0], [0.5, 1.0 if learned else 0.5]], learned=learned)
        write_probe(tmp_path / name / "probes" / "kvr-lama" / "own", {"base": 4.0, "naive-s0.2": 3.0}, n=4)
    study = open_study([tmp_path])
    cells = cells_by_setup(study)
    assert len(cells) == 2
    said = []
    left = [without_failed_cells(probe, cells, said.append).checkpoints for probe in study.probes]
    assert left == [["base", "naive-s0.2"], ["base"]] and len(said) == 1
    table = retention.forgetting(of(tmp_path))
    assert table.select("setup", "failed").rows() == [("one/kvr-lama", 0), ("two/kvr-lama", 1)]


@pytest.mark.parametrize(
    ("setting", "values", "named"),
    [
        ("[optimiser]\nlr = {}", (0.003, 0.5, 1e-6), "optimiser.lr = {:g}"),
        ("[precision]\nautocast = {}", ('"none"', '"bfloat16"', '"none"'), None),
        ("[evaluate]\nlimit = {}", (10, 20, 30), ""),
        ("[optimiser]\nmicro_batch = {}", (10, 20, 30), ""),
        ("data_seed = {}", (0, 1, 2), ""),
        ("max_length = {}", (64, 128, 256), "max_length = {}"),
    ],
)
def test_seeds_differ_in_the_seed_alone(setting, values, named, tmp_path):
    """Runs of no grid are seeds of one arm where all that changes what is learned agrees."""
    for seed, value in enumerate(values):
        run = write_run(tmp_path / f"r{seed}", [[1.0], [seed / 32, 1.0]], seed=seed)
        recipe = (run / "recipe.toml").read_text()
        (run / "recipe.toml").write_text(
            f"{setting.format(value)}\n".join(["", recipe])
            if "[" not in setting
            else recipe + f"\n{setting.format(value)}\n"
        )
    table = retention.forgetting(of(tmp_path))
    if named is None:
        assert dict(table.select("setup", "by_seed").iter_rows()) == {
            "kvr → lama, precision.autocast = none": [0.0, 2 / 32],
            "kvr → lama, precision.autocast = bfloat16": [1 / 32],
        }
    elif named:
        assert set(table["setup"]) == {f"kvr → lama, {named.format(value)}" for value in values}
        assert set(table["low"]) == {None}
    else:
        assert table["setup"].to_list() == ["kvr → lama"] and len(table["by_seed"][0]) == 3


def test_arms_of_one_set_up_may_train_their_stages_otherwise(tmp_path):
    """What an arm unfolds into is the arm's, and no other set-up; settings of a stage that it does not name are."""
    write_run(tmp_path / "naive", [[1.0], [0.0, 1.0]])
    more = {2: REPLAY.format(0.5)}
    write_run(tmp_path / "replay", [[1.0], [0.5, 1.0]], arm="replay(ratio=0.5, stages=2)", additions=more)
    assert set(retention.forgetting(of(tmp_path))["setup"]) == {"kvr → lama"}
    write_run(tmp_path / "longer", [[1.0], [0.0, 1.0]], additions={2: "epochs = 60\n"})
    assert set(retention.forgetting(of(tmp_path))["setup"]) == {
        "kvr → lama, stages.2.epochs unset",
        "kvr → lama, stages.2.epochs = 60",
    }


def test_a_run_of_its_own_displaces_no_cell(tmp_path):
    """Such as one of a recipe of that name, in the folder that the grid was put in later."""
    write_run(tmp_path / "tiny", [[1.0], [0.0, 0.5]])  # has not learned D_B
    write_cell(tmp_path / "tiny", "naive-s0", [[1.0], [0.75, 1.0]])
    table = retention.forgetting(of(tmp_path))
    assert table.select("setup", "cells", "failed", "retention").rows() == [
        ("kvr → lama", 1, 1, None),
        ("kvr-lama", 1, 0, 0.75),
    ]


def test_learned_means_every_factoid_stage_was_exact_on_its_own_rows(tmp_path):
    runs = {
        "yes": ([[1.0], [0.5, 1.0]], {}),
        "no": ([[1.0], [0.5, 0.5]], {}),
        "task": ([[1.0], [0.5, 0.5]], {"tasks": ("lama",)}),
        "joint": ([[1.0, 0.5]], {"arm": "joint"}),
        "part": ([[1.0]], {}),
    }
    for name, (scores, options) in runs.items():
        write_run(tmp_path / name, scores, **options)
    found = {name: RunDirectory(tmp_path / name, name) for name in runs}
    assert {name for name, run in found.items() if run.learned} == {"yes", "task"}
    assert {name for name, run in found.items() if not run.has_ended} == {"part"}


def test_how_far_a_stage_moved_the_weights_needs_no_measured_gradients(tmp_path):
    for name, change in {"naive-s0": {"stage": 3.5, "base": 7.0}, "naive-s1": None}.items():
        run = write_cell(tmp_path / "g", name, [[1.0], [0.5, 1.0]], seed=int(name[-1]))
        path = run / "2-lama" / "evaluation.json"
        held = read_json(path)
        held.pop("interference", None)
        write_json(held | ({"weight_change": change} if change else {}), path)
    assert of(tmp_path / "g").cells.sort("seed")["weight_change"].to_list() == [3.5, None]


BROKEN = {
    "recipe.toml": [
        ("arm", 3, r"recipe\.toml: arm: "),
        ("joint", 1, r"recipe\.toml: joint: "),
    ],
    "2-lama/evaluation.json": [
        ("sets", None, r"evaluation\.json: sets: "),
        ("sets", {}, "lacks its own rows, 2-lama"),
        ("sets", {"1-kvr": {"kind": "factoids"}}, r"evaluation\.json: sets\.1-kvr\.metric: "),
        ("interference", {"start": 1}, r"evaluation\.json: interference\.start: "),
    ],
    "2-lama/memprobe.json": [("steps", "80", r"memprobe\.json: steps: "), ("replayed", 1, "replayed: ")],
    "1-kvr/memprobe.json": [
        ("parent", "base", r"memprobe\.json: parent: "),
        ("stages", [{"hash": 1}], r"memprobe\.json: stages\.0\.hash: "),
    ],
    "cell.json": [
        ("learned", "yes", r"cell\.json: learned: "),
        ("stages", [{}], r"cell\.json: stages\.0\.label: "),
    ],
}


@pytest.mark.parametrize(
    ("file", "key", "value", "said"), [(file, *rest) for file, cases in BROKEN.items() for rest in cases]
)
def test_what_does_not_fit_is_named_by_file_and_key(tmp_path, file, key, value, said):
    run = write_cell(tmp_path, "naive-s0", [[1.0], [0.5, 1.0]])
    if file.endswith(".toml"):
        text = (run / file).read_text().splitlines()
        kept = [line for line in text if not line.startswith(f"{key} =")]
        (run / file).write_text("\n".join([f"{key} = {json.dumps(value)}", *kept]))
    else:
        write_json(json.loads((run / file).read_text()) | {key: value}, run / file)
    with pytest.raises(MemprobeError, match=said) as error:
        of(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("id"), r"sets\.1-kvr\.rows\.0\.id: missing"),
        (lambda row: row.update(id=3), r"sets\.1-kvr\.rows\.0\.id: should be a valid string"),
        (lambda row: row.pop("exact_match"), r"sets\.1-kvr: rows\.0: has no exact_match"),
        (lambda row: row.update(exact_match=None), r"sets\.1-kvr: rows\.0: has no exact_match"),
        (lambda row: row.update(exact_match="yes"), r"sets\.1-kvr\.rows\.0\.exact_match"),
        (lambda row: row.update(exact_match=7.0), r"sets\.1-kvr\.rows\.0\.exact_match"),
        (lambda row: row.update(nats="x"), r"sets\.1-kvr\.rows\.0\.nats: should be a valid number"),
    ],
)
def test_a_row_that_says_no_answer_is_named(change, said, tmp_path):
    run = write_cell(tmp_path, "naive-s0", [[1.0], [0.5, 1.0]])
    evaluation = read_json(run / "2-lama" / "evaluation.json")
    change(evaluation["sets"]["1-kvr"]["rows"][0])
    write_json(evaluation, run / "2-lama" / "evaluation.json")
    with pytest.raises(MemprobeError, match=rf"2-lama/evaluation\.json: {said}"):
        of(tmp_path)


@pytest.mark.parametrize("row", [{"id": "x", "exact_match": True}, {"id": "x/reversed"}])
def test_a_question_of_no_fact_is_named(row, tmp_path):
    run = write_cell(tmp_path, "naive-s0", [[1.0], [0.5, 1.0]])
    evaluation = read_json(run / "2-lama" / "evaluation.json")
    score = {"exact_match": {"value": 1.0}}
    asked = {"kind": "factoids", "metric": "rouge_l", "n": 1, "scores": score, "rows": [row]}
    evaluation["sets"]["manipulations"] = asked
    write_json(evaluation, run / "2-lama" / "evaluation.json")
    with pytest.raises(
        MemprobeError, match=r"sets\.manipulations\.rows\.0: needs an id of the form FACT/QUESTION"
    ):
        of(tmp_path)


def test_a_recipe_that_names_other_stages_is_refused(tmp_path):
    run = write_cell(tmp_path, "naive-s0", [[1.0], [0.5, 1.0]])
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"lama"', '"other"'))
    with pytest.raises(MemprobeError, match=r"calls stage 2 'other', and its folder 'lama'"):
        of(tmp_path)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "null", '{"sets": {"a": 1e999}}'])
def test_no_json_breaks_the_reader(tmp_path, text):
    run = write_cell(tmp_path, "naive-s0", [[1.0], [0.5, 1.0]])
    (run / "2-lama" / "evaluation.json").write_text(text)
    with pytest.raises(MemprobeError, match=r"evaluation\.json"):
        of(tmp_path)


def test_probes_of_no_grid_lose_nothing(tmp_path):
    probe = write_probe(tmp_path / "probe", {"base": 4.0}, n=4)
    assert without_failed_cells(probe, {}).checkpoints == ["base"]
