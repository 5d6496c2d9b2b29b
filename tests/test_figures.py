"""Paper figures draw the numbers of their tables, and their files say what made them."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

import memprobe
from memprobe import figures
from memprobe.arms import arm_names
from memprobe.compare import compare
from memprobe.errors import MemprobeError
from memprobe.figures import by_lens, look, patches, runs, tables
from memprobe.figures.look import STYLE
from memprobe.figures.placing import checkpoint_layout
from memprobe.files import read_json, write_json
from memprobe.palette import ALONG, COLOURS
from memprobe.probes import open_probe
from memprobe.retention import ended_runs, retention_of
from memprobe.studies import open_study
from tests.probes import retell, write_probe, write_setups
from tests.trained import write_run

ARMS = {"none": 6.0, "remix(data=generic, stages=1)": 3.0}
MIXING = '[[stages.mixing]]\nsource = "{}"\nratio = {}\nwords = [{}, {}]\n'
REPLAY = "[stages.replay]\nratio = {}\n"


def drawn(figure):
    """What a figure shows, by gid: the numbers of lines, bars, bands and cells, and the words of texts."""
    found = {}
    for axes in figure.axes:
        for artist in axes.get_children():
            gid = artist.get_gid()
            if gid is None:
                continue
            if isinstance(artist, Line2D):
                found[gid] = artist.get_xydata().tolist()
            elif isinstance(artist, QuadMesh):
                found[gid] = np.asarray(artist.get_array()).tolist()
            elif isinstance(artist, Collection):
                found[gid] = [path.vertices.tolist() for path in artist.get_paths()]
            elif isinstance(artist, Rectangle):
                found[gid] = [artist.get_width()]
            else:
                found[gid] = artist.get_text()
    return found


def values(figure, gid):
    return [y for _, y in drawn(figure)[gid]]


def of_probe(*probes, **options):
    result = compare(probes, draws=200, **options)
    return result, tables.of_comparison(result.tables, result.settings)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """Two checkpoints, of which the second does not say what the first says of a third of the facts."""
    made = write_probe(
        tmp_path_factory.mktemp("figures") / "two", {"late": 6, "early": 2}, n=36, summary=False
    )
    lost = pl.col("factoid").is_in(made.factoids["id"][::3].implode()) & (pl.col("checkpoint") == "early")
    outcomes = made.outcomes.with_columns(pl.col("exact_match", "exact_tokens") & ~lost)
    retell(made.path, "outcomes", outcomes)
    return open_probe(made.path)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A probe of a base model and of two arms with three seeds and two stages each."""
    depths, manifests = {"base": 7.0}, {}
    for arm, depth in ARMS.items():
        for seed in range(3):
            for stage in (1, 2):
                label = f"{arm[:5]}-{seed}.{stage}"
                depths[label] = depth + stage - 1
                manifests[label] = {"arm": arm, "seed": seed, "stage": stage}
    path = tmp_path_factory.mktemp("study") / "own"
    return write_probe(path, depths, manifests=manifests, n=16, tokens=(1,), summary=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run directories: three seeds of naive and two REMIX arms, one of them failed once, and two replay ratios."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        write_run(root / f"naive-{seed}", [[1.0], [0.25, 1.0]], seed=seed, cosine=-0.5)
        arm = "remix(data=generic, stages=1, words=12,12)"
        last = [0.75, 1.0 if seed else 0.5]
        mixing = {1: MIXING.format("generic", 2.0, 12, 12)}
        write_run(root / f"remix-{seed}", [[1.0], last], arm=arm, seed=seed, additions=mixing, tokens=12_000)
        for ratio, kept in ((0.1, 0.5), (0.5, 0.75)):
            arm = f"replay(ratio={ratio:g}, stages=2)"
            write_run(
                root / f"replay-{ratio}-{seed}",
                [[1.0], [kept, 1.0]],
                arm=arm,
                seed=seed,
                additions={2: REPLAY.format(ratio)},
                replayed=round(32 * ratio),
            )
    return root


def ended(root, say=lambda text: None):
    return ended_runs(open_study([root]).runs, say)


def of_runs(root):
    return runs.of_retention(retention_of(ended(root)))


# By depth


def test_a_table_of_something_else_is_one_line(probe):
    with pytest.raises(MemprobeError, match=r"figure 'recall' has no column 'panel'.*of_comparison"):
        figures.recall(memprobe.statistics.recall_by_depth(probe))


def test_recall_draws_recall_its_band_and_the_chance_level(probe):
    result, found = of_probe(probe)
    figure = figures.recall(found["recall"])
    shown = drawn(figure)
    for position, label in enumerate(("late", "early")):
        rows = result.tables["curves"].filter(checkpoint=label)
        assert shown[f"/{label}//line"] == [list(row) for row in rows.select("depth", "recall").rows()]
        assert [y for _, y in shown[f"/{label}//chance"]] == rows["chance"].to_list()
        band = np.array(shown[f"/{label}//band"][0])
        assert {round(y, 9) for y in band[:, 1]} == {
            round(y, 9) for name in ("recall_low", "recall_high") for y in rows[name]
        }
        (line,) = [line for line in figure.axes[0].lines if line.get_gid() == f"/{label}//line"]
        assert line.get_color() == COLOURS[position]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["late", "early", "shuffled answers"]


def test_lines_differ_without_colour(probe):
    figure = figures.recall(of_probe(probe)[1]["recall"])
    lines = [line for line in figure.axes[0].lines if line.get_gid().endswith("/line")]
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2


def test_frequency_has_accuracy_in_the_legend_and_leaves_out_the_embedding(probe):
    result, found = of_probe(probe)
    figure = figures.frequency(found["frequency"])
    rows = result.tables["curves"].filter(checkpoint="early").filter(pl.col("depth") > 0)
    assert values(figure, "/early//line") == rows["frequency"].to_list()
    exact = dict(result.tables["placement"].select("checkpoint", "exact").rows())
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f"{label}, {100 * exact[label]:.3g}% exact" for label in ("late", "early")]


def test_survival_and_heatmap_draw_their_tables(probe):
    result, found = of_probe(probe)
    rows = result.tables["survival"].filter(checkpoint="early", of="lof")
    figure = figures.survival(found["survival"])
    assert values(figure, "/early//line") == rows["survival"].to_list()
    [[(_, low), (_, high)]] = drawn(figure)["/early//last"]  # where the band has no width left
    assert (low, high) == pytest.approx(rows.select("low", "high").row(-1))
    cells = drawn(figures.heatmap(found["heatmap"]))["/cells"]
    curves = result.tables["curves"]
    assert cells == [curves.filter(checkpoint=label)["recall"].to_list() for label in ("late", "early")]


@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 2), (1, 1), (1, 30)])
def test_depths_are_whole_and_begin_where_there_is_one(first, last):
    figure = Figure()
    axes = figure.subplots()
    for beside in (None, 0.5):
        look.depth_axis(axes, pl.Series(range(first, last + 1)), beside)
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) and first <= tick <= last for tick in ticks)
        assert first - 0.6 < low < first and last < high < last + 0.7


def test_titles_of_panels_do_not_run_into_each_other():
    figure = figures.redraw(Path(__file__).parents[1] / "figures" / "study-500" / "stages.json")
    with plt.rc_context(STYLE):
        FigureCanvasAgg(figure).draw()  # lays the panels out
    boxes = []
    for axes in figure.axes:
        told = axes.get_title(loc="left")
        (title,) = [
            one for one in axes.get_children() if isinstance(one, Text) and told and one.get_text() == told
        ]
        boxes.append(title.get_window_extent())
    assert len(boxes) == 12 and max(box.x1 for box in boxes) <= figure.bbox.x1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize("along", [False, True])
def test_a_legend_leaves_out_only_what_colours_that_go_on_say(along):
    rows = [
        ["", f"c{at}", None, at / 8 if along else None, 0.5, depth, 0.1 * depth]
        for at in range(9)
        for depth in range(4)
    ]
    names = ["panel", "line", "seed", "along", "exact", "depth", "recall"]
    no = pl.lit(None, pl.Float64)
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        recall_low=no, recall_high=no, chance=no
    )
    (legend,) = figures.recall(table).legends
    assert len(legend.get_texts()) == (5 if along else 9)


def test_names_that_are_too_long_are_told_apart_wherever_they_stand():
    labels = [f"runs/smollm2-study/remix-generic-stage-{at}/seed-0/2-lama-lr0.0001" for at in range(3)]
    curves = [["", label, None, 0.5, depth, 0.1 * depth] for label in labels for depth in range(4)]
    names = ["panel", "line", "seed", "exact", "depth", "recall"]
    edges = {"recall_low": pl.lit(None, pl.Float64), "recall_high": pl.lit(None, pl.Float64)}
    table = pl.DataFrame(curves, schema=names, orient="row").with_columns(**edges, chance=pl.lit(0.01))
    (legend,) = figures.recall(table).legends
    assert len({text.get_text() for text in legend.get_texts()}) == len(labels) + 1
    cells = table.select("panel", "depth", "recall", group="line", row="line")
    axes = figures.heatmap(cells).axes[0]
    assert len({text.get_text() for text in axes.get_yticklabels()}) == len(labels)
    rows = [[label, "base", "exact", 0.1, 0.0, 0.2, None] for label in labels]
    names = ["row", "reference", "statistic", "difference", "low", "high", "held"]
    axes = figures.differences(pl.DataFrame(rows, schema=names, orient="row")).axes[0]
    assert len({text.get_text() for text in axes.get_yticklabels()}) == len(labels)
    by_position = table.select(
        "depth", "recall", *edges, "chance", checkpoint="line", position=pl.lit("answer")
    )
    panels = by_lens.positions(by_position).axes
    assert len({axes.get_title(loc="left") for axes in panels if axes.axison}) == len(labels)


def test_many_checkpoints_get_a_panel_by_arm_with_every_seed(study):
    result, found = of_probe(study)
    figure = figures.recall(found["recall"], width=183)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["naive", "REMIX generic"]
    shown = drawn(figure)
    for seed in range(3):
        rows = result.tables["curves"].filter(checkpoint=f"remix-{seed}.2")
        line = shown[f"REMIX generic/after stage 2/{seed}/line"]
        assert [y for _, y in line] == rows["recall"].to_list()
    assert "naive/base model//line" in shown and "REMIX generic/base model//line" in shown
    accuracy = drawn(figures.frequency(found["frequency"]))["after stage 2/exact"]
    exact = dict(result.tables["placement"].select("checkpoint", "exact").rows())
    assert accuracy == ", ".join(f"{100 * exact[f'remix-{seed}.2']:.3g}" for seed in range(3)) + " % exact"


def test_many_checkpoints_of_unknown_arms_are_six_to_a_panel():
    checkpoints = [{"label": f"c{i}", "arm": None, "seed": None, "stage": None} for i in range(8)]
    layout = checkpoint_layout(checkpoints, None)
    assert layout.group_by("panel", maintain_order=True).len()["len"].to_list() == [6, 2]


# Training steps


def along_a_stage(path, steps, seeds=(1,)):
    """Checkpoints along stage 1 of some runs, as a recipe's ``checkpoints`` leave them."""
    depths, made = {}, {}
    for seed in seeds:
        for step in steps:
            label = f"s{seed}-step-{step}"
            depths[label] = 7.0 - step / max(steps) - seed / 4
            made[label] = {"arm": "none", "seed": seed, "stage": 1, "stage_name": "kvr", "step": step}
    probe = write_probe(path, depths, n=24, manifests=made, tokens=(1,), summary=False)
    result = compare([probe], draws=200)
    return result, tables.of_comparison(result.tables, result.settings)


@pytest.mark.parametrize("steps", [3, 26])
def test_checkpoints_along_a_stage_are_no_seeds(steps, tmp_path):
    result, found = along_a_stage(tmp_path, [10 * step for step in range(1, steps + 1)])
    placed = result.tables["placement"]
    shown = found["lof"].filter(statistic="lof_mean")
    assert shown["row"].to_list() == placed["checkpoint"].to_list() and shown["by_seed"].null_count() == steps
    for column, name in {"value": "lof_mean", "low": "lof_mean_low", "high": "lof_mean_high"}.items():
        assert shown[column].to_list() == placed[name].to_list()
    assert shown["along"].to_list() == pytest.approx(np.linspace(0, 1, steps))
    heat = found["heatmap"]
    assert heat.group_by("panel", "row").len()["len"].to_list() == [9] * steps, "a row for each checkpoint"
    assert found["differences"]["row"].n_unique() == steps - 1
    assert "seed" not in str(found["spread"]), "left out, if at all, for want of facts"


def test_of_seeds_along_a_stage_the_last_checkpoints_stand_for_their_arm(tmp_path):
    result, found = along_a_stage(tmp_path, [10, 20, 30], seeds=(1, 2, 3))
    (row,) = found["lof"].filter(statistic="lof_mean").to_dicts()
    ends = result.tables["placement"].filter(pl.col("checkpoint").str.ends_with("30"))
    (over,) = result.tables["arms"].filter(statistic="lof").to_dicts()
    assert row["by_seed"] == ends["lof_mean"].to_list() and row["row"] == "naive"
    assert (row["value"], row["low"], row["high"]) == (over["mean"], over["low"], over["high"])


def test_steps_are_the_axis_with_what_became_of_the_facts(tmp_path):
    depths = {f"step-{step}": 7.0 - step / 100 for step in (50, 100, 200, 400)}
    write_probe(tmp_path, depths, n=24, never=0.25, summary=False)
    result = compare([open_probe(tmp_path)], draws=200)
    found = tables.of_comparison(result.tables, result.settings)
    figure = figures.steps(found["steps"], width=183)
    shown = drawn(figure)
    (run,) = set(found["steps"]["run"])
    exact = dict(result.tables["placement"].select("checkpoint", "exact").iter_rows())
    assert shown[f"{run}/exact/line"] == [[step, exact[f"step-{step}"]] for step in (50, 100, 200, 400)]

    # Apart from the tables: a fact is absent where no depth from 1 on holds its first token, and it is not said.
    records, outcomes = open_probe(tmp_path).records, open_probe(tmp_path).outcomes
    for label in depths:
        best = (
            records.filter(pl.col("checkpoint") == label, pl.col("token") == 0, pl.col("depth") > 0)
            .group_by("factoid")
            .agg(pl.col("rank").min())
        )
        said = set(outcomes.filter(pl.col("exact_match"), checkpoint=label)["factoid"])
        held = set(best.filter(pl.col("rank") < 10)["factoid"])
        expected = {"said": len(said), "surfaces": len(held - said), "absent": 24 - len(held | said)}
        states = result.tables["states"].filter(checkpoint=label)
        assert dict(states.select("state", "n").iter_rows()) == expected
    assert expected["absent"]
    tops = found["steps"].filter(statistic="fates").group_by("step").agg(pl.col("value").sum())["value"]
    np.testing.assert_allclose(tops.to_numpy(), 1)


def test_checkpoints_along_a_run_have_one_panel_and_colours_that_go_on(tmp_path):
    depths = {f"step-{step}": 7.0 - step / 500 for step in range(0, 1000, 100)}
    write_probe(tmp_path, depths, n=12, summary=False)
    result = compare([open_probe(tmp_path)], draws=200)
    found = tables.of_comparison(result.tables, result.settings)
    assert set(found["recall"]["panel"]) == {""} and found["recall"]["line"].n_unique() == 10
    figure = figures.recall(found["recall"])
    (axes,) = figure.axes
    colours = {
        line.get_gid(): line.get_color() for line in axes.lines if (line.get_gid() or "").endswith("/line")
    }
    assert len(set(colours.values())) == 10
    assert colours["/step 0//line"] == ALONG[0] and colours["/step 900//line"] == ALONG[-1]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[0] == "step 0" and "step 900" in named and len(named) <= 6
    rows = figures.first_occurrence(found["lof"], width=183)
    dots = {line.get_gid(): line.get_markerfacecolor() for line in rows.axes[0].lines if line.get_gid()}
    assert dots["step-0//lof_mean/value"] == ALONG[0] and dots["step-900//lof_mean/value"] == ALONG[-1]
    # What was stored before steps had a colour is drawn as it was.
    assert figures.recall(found["recall"].drop("along"))
    assert figures.first_occurrence(found["lof"].drop("along"))


# First occurrence and differences


def test_first_occurrence_of_checkpoints(probe):
    result, found = of_probe(probe)
    figure = figures.first_occurrence(found["lof"], width=183)
    shown = drawn(figure)
    for row in result.tables["placement"].iter_rows(named=True):
        label = row["checkpoint"]
        assert shown[f"{label}//lof_mean/value"][0][0] == row["lof_mean"]
        # Of so few occurrences the sd and the effective layers have no interval, and none is drawn.
        assert row["lof_n"] < 60 and row["effective_layers_low"] is None
        assert f"{label}//effective_layers/value" in shown
        assert f"{label}//effective_layers/interval" not in shown
        spread = [x for x, _ in shown[f"{label}//lof_mean/sd"]]
        ends = [row["lof_mean"] - row["lof_sd"], row["lof_mean"] + row["lof_sd"]]
        assert spread == pytest.approx(np.clip(ends, 1, row["n_layers"]))


def test_a_bar_of_the_sd_ends_at_the_last_depth():
    numbers = {"value": 29.0, "low": 28.5, "high": 29.5, "sd": 4.0, "by_seed": None, "n_layers": 30}
    table = pl.DataFrame([{"row": "a", "series": "", "statistic": "lof_mean", **numbers}])
    shown = drawn(figures.first_occurrence(table))
    assert [x for x, _ in shown["a//lof_mean/sd"]] == [25, 30]
    old = drawn(figures.first_occurrence(table.drop("n_layers")))
    assert [x for x, _ in old["a//lof_mean/sd"]] == [25, 33]


def test_first_occurrence_of_arms_shows_seeds_and_the_interval_over_them(study):
    result, found = of_probe(study)
    shown = drawn(figures.first_occurrence(found["lof"], width=183))
    arm = result.tables["arms"].filter(statistic="lof", arm="none", stage="2").row(0, named=True)
    seeds = [x for x, _ in shown["naive/after stage 2/lof_mean/seeds"]]
    assert seeds == pytest.approx(arm["by_seed"])
    assert shown["naive/after stage 2/lof_mean/value"][0][0] == arm["mean"]
    assert [x for x, _ in shown["naive/after stage 2/lof_mean/interval"]] == [arm["low"], arm["high"]]
    # No interval over seeds is computed for these: seeds alone.
    assert "naive/after stage 2/share_never/seeds" in shown
    assert "naive/after stage 2/share_never/value" not in shown


@pytest.mark.parametrize("seeds", [None, [0.1, 0.2, 0.3]])
def test_a_note_on_intervals_speaks_of_what_is_shown_and_of_why(seeds):
    """One column has no panel of the sd; and what has no interval over seeds has not too few of anything."""
    row = {"row": "a", "series": "", "value": 3.0, "sd": None, "by_seed": seeds, "along": None}
    known, unknown = {"low": 2.0, "high": 4.0}, {"low": None, "high": None}
    never = row | {"statistic": "share_never"}
    rows = [
        row | known | {"statistic": "lof_mean"},
        row | unknown | {"statistic": "lof_sd"},
        never | known if seeds is None else never | unknown | {"value": None},
    ]
    table = pl.DataFrame(rows, schema_overrides={"by_seed": pl.List(pl.Float64), "sd": pl.Float64})
    said = figures.first_occurrence(table).get_supxlabel()
    assert said == ("" if seeds is None else "seeds alone for never")
    wide = figures.first_occurrence(table, width=183).get_supxlabel()
    assert wide == (
        "without a line: too few for an interval, or without scatter"
        if seeds is None
        else "seeds alone for sd and never"
    )


def test_the_lof_table_as_markdown(probe):
    result, _ = of_probe(probe)
    table = tables.lof_table(result.tables["placement"])
    text = tables.lof_markdown(table, k=10, token="first")
    row = table.row(by_predicate=pl.col("checkpoint") == "early", named=True)
    (line,) = [line for line in text.splitlines() if line.startswith("| early")]
    assert f"{row['lof_mean']:.2f} ± {row['lof_sd']:.2f}" in line
    assert f"{row['share_never']:.1%} [{row['share_never_low']:.1%}, {row['share_never_high']:.1%}]" in line
    assert len({line.count("|") for line in text.splitlines()[2:]}) == 1


def test_differences_are_filled_only_where_both_readouts_agree(tmp_path):
    depths = {"base": 6, "deep": 6.2, "early": 2}
    own = write_probe(tmp_path / "own", depths, n=40, summary=False)
    fixed = write_probe(tmp_path / "fixed", depths, n=40, readout="base", summary=False)
    for given, fill in (([fixed], COLOURS[0]), ([], "white")):
        result, found = of_probe(own, fixed_readout=given)
        figure = figures.differences(found["differences"], width=183)
        row = result.tables["differences"].filter(
            checkpoint="early", statistic="lof_restricted", on="all", reference="base"
        )
        shown = drawn(figure)
        assert shown["early/lof_restricted/value"][0][0] == row["difference"][0]
        assert [x for x, _ in shown["early/lof_restricted/interval"]] == [row["low"][0], row["high"][0]]
        points = {line.get_gid(): line for axes in figure.axes for line in axes.lines}
        assert points["early/lof_restricted/value"].get_markerfacecolor() == fill


@pytest.mark.parametrize("few", [False, True])
def test_a_difference_of_too_few_facts_does_not_pass_for_one_whose_interval_holds_0(few):
    """Both are grey; below it stands why there is no line."""
    row = {"row": "a", "reference": "b", "statistic": "lof_restricted", "difference": -3.0, "held": None}
    edges = {"low": None, "high": None} if few else {"low": -4.0, "high": 1.0}
    types = {"low": pl.Float64, "high": pl.Float64}
    figure = figures.differences(pl.DataFrame([row | edges], schema_overrides=types))
    assert ("a/lof_restricted/interval" in drawn(figure)) is not few
    assert ("without a line: too few" in figure.get_supxlabel()) is few
    kept = pl.DataFrame([row | edges | {"panel": "", "series": "", "by_seed": None}], schema_overrides=types)
    assert ("without a line: too few" in figures.kept(kept).get_supxlabel()) is few
    seeds = kept.with_columns(by_seed=pl.Series([[-3.5, -2.5]]))
    assert "without a line" not in figures.kept(seeds).get_supxlabel(), "two seeds are drawn themselves"


@pytest.mark.parametrize("readout", ["own", "base"])
@pytest.mark.parametrize("held", [None, False, True])
def test_the_legend_of_differences_says_what_is_drawn(held, readout):
    rows = [["a", "b", name, 2.0, 1.0, 3.0, held, readout] for name in ("exact", "lof_restricted")]
    names = ["row", "reference", "statistic", "difference", "low", "high", "held", "readout"]
    figure = figures.differences(
        pl.DataFrame(rows, schema=names, orient="row", schema_overrides={"held": pl.Boolean})
    )
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    points = {line.get_gid(): line.get_markerfacecolor() for axes in figure.axes for line in axes.lines}
    assert (points["a/exact/value"], points["a/lof_restricted/value"]) == {
        None: ("white", "white"),
        False: (COLOURS[0], "white"),
        True: (COLOURS[0], COLOURS[0]),
    }[held]
    alone = "in the own readout" if readout == "own" else "in this readout"
    assert (
        legend[:-1]
        == {
            None: ["interval leaves 0 out"],
            False: ["exact match, interval leaves 0 out", alone],
            True: ["in both readouts, or exact match"],
        }[held]
    )
    assert ("own readout" if readout == "own" else "read out by base") in figure.get_supxlabel()


def test_differences_of_many_checkpoints_are_between_arms(study, tmp_path):
    result, _ = of_probe(study)
    settings = result.settings | {"checkpoints": result.settings["checkpoints"] * 3}
    table = tables.of_comparison(result.tables, settings)["differences"]
    row = result.tables["arm_differences"].filter(statistic="lof_restricted", stage="2").row(0, named=True)
    shown = drawn(figures.differences(table))
    assert shown["REMIX generic, stage 2/lof_restricted/value"][0][0] == row["difference"]
    assert table["reference"].unique().to_list() == ["naive"]


def test_spread_draws_each_checkpoint_against_the_reference(probe, study):
    result, found = of_probe(probe)
    rows = result.tables["spread"].filter(on="all", reference=result.settings["reference"])
    (row,) = rows.iter_rows(named=True)
    shown = drawn(figures.spread(found["spread"]))
    assert shown[f"/{row['checkpoint']}//0/value"][0][0] == pytest.approx(math.log2(row["ratio"]))
    edges = [math.log2(row["low"]), math.log2(row["high"])]
    assert [x for x, _ in shown[f"/{row['checkpoint']}//0/interval"]] == pytest.approx(edges)
    _, found = of_probe(study)
    assert "naive of its own" in found["spread"], "one reference cannot serve several seeds"


def test_spread_draws_ratios_in_powers_of_2():
    row = {
        "panel": "",
        "row": "remix",
        "series": "",
        "reference": "naive",
        "ratio": 2.0,
        "low": 1.0,
        "high": 8.0,
    }
    names = ["panel", "row", "series", "reference"]
    shown = drawn(figures.spread(pl.DataFrame([row]).select(*names, *tables.log2_ratio())))
    assert shown["/remix//0/value"][0][0] == 1
    assert [x for x, _ in shown["/remix//0/interval"]] == [0, 3]


def test_kept_facts_are_drawn_where_some_were_lost(probe, tmp_path):
    result, found = of_probe(probe)
    rows = result.tables["kept"].filter(statistic="lof_restricted")
    shown = drawn(figures.kept(found["kept"]))
    for row in rows.iter_rows(named=True):
        where = f"/{row['checkpoint']}/first occurrence/0"
        assert shown[f"{where}/value"][0][0] == pytest.approx(row["difference"])
        assert [x for x, _ in shown[f"{where}/interval"]] == pytest.approx([row["low"], row["high"]])
    whole = write_probe(tmp_path / "whole", {"a": 3, "b": 3}, n=8, never=0.0, summary=False)
    assert "keeps some and loses some" in of_probe(whole)[1]["kept"]


def test_spread_of_seeds_and_readouts_stands_in_one_row():
    keys = {"row": "remix", "reference": "naive of the same seed"}
    points = [
        keys | {"panel": panel, "series": series, "difference": value, "low": value - 1, "high": value + 1}
        for panel in ("after stage 1", "after stage 2")
        for series, values in (("own", (0.5, 1.5)), ("base", (2.5, 3.5)))
        for value in values
    ]
    shown = drawn(figures.spread(pl.DataFrame(points), width=183))
    places = [("own", 0), ("own", 1), ("base", 2), ("base", 3)]
    found = [shown[f"after stage 2/remix/{series}/{place}/value"][0] for series, place in places]
    assert [x for x, _ in found] == [0.5, 1.5, 2.5, 3.5]
    assert len({y for _, y in found}) == 4 and all(abs(y) < 0.5 for _, y in found)


# Training runs


def test_forgetting_draws_means_from_three_seeds_on_and_counts_what_was_not_learned(trained):
    table = of_runs(trained)["forgetting"]
    shown = drawn(figures.forgetting(table))
    assert shown["kvr → lama/naive/mean"] == pytest.approx([0.25])
    low, high = (x for x, _ in shown["kvr → lama/naive/interval"])
    assert 0 <= low < 0.25 < high <= 1
    # One of three REMIX seeds has not learned D_B: two seeds are left, and no mean is drawn.
    assert [x for x, _ in shown["kvr → lama/REMIX generic/seeds"]] == [0.75, 0.75]
    assert "kvr → lama/REMIX generic/mean" not in shown
    row = table.filter(arm="REMIX generic").row(0, named=True)
    assert (row["failed"], row["tokens"], row["last_score"]) == (1, 3.0, 1.0)


def test_a_d_b_of_which_no_share_is_measured_is_named_by_what_is_measured(trained):
    table = of_runs(trained)["forgetting"]
    loss = table.with_columns(
        setup=pl.lit("kvr → math"), last_metric=pl.lit("loss"), last_score=pl.lit(1.264)
    )
    third = loss.with_columns(setup=pl.lit("kvr → webqa → math"))
    figure = figures.forgetting(pl.concat([table, loss, third], how="diagonal_relaxed"))
    lama, math, after = ({text.get_text() for text in axes.texts} for axes in figure.axes[:3])
    assert "100%" in lama and "$D_{\\mathrm{B}}$" in lama
    assert "1.26" in math and "$D_{\\mathrm{B}}$ loss" in math
    assert "$D_{\\mathrm{C}}$ loss" in after and "$D_{\\mathrm{B}}$ loss" not in after


def test_forgetting_of_runs_that_learned_nothing_is_left_out_with_its_reason(tmp_path):
    write_run(tmp_path / "naive", [[0.2], [0.1, 0.3]])
    made = of_runs(tmp_path)
    assert made["forgetting"] == made["stages"] == "no run has learned all its stages"
    write_run(tmp_path / "other", [[1.0], [0.5, 1.0]], names=("kvr", "webqa"))
    assert of_runs(tmp_path)["forgetting"]["setup"].to_list() == ["kvr → webqa"]


def test_the_interval_over_seeds_needs_the_same_rows_in_each(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), [[1.0], [0.5, 1.0]], seed=seed, n=32 if seed else 16)
    table = of_runs(tmp_path)["forgetting"]
    # Another size is another set-up.
    assert set(table["setup"]) == {"kvr → lama, n = 16", "kvr → lama, n = 32"}
    assert table["low"].to_list() == [None, None]


def test_replay_ratio_tells_replayed_rows_apart(trained):
    table = of_runs(trained)["replay_ratio"]
    shown = drawn(figures.replay_ratio(table))
    assert shown["all rows of D_A/mean"] == [[0.0, 0.25], [0.1, 0.5], [0.5, 0.75]]
    # Seed 0: the first 24 rows of 32 are kept and the first 16 are replayed, so that 8 of 16 others are kept.
    assert shown["those not replayed/seed 0"][-1] == [0.5, 0.5]


def test_a_line_over_a_setting_joins_the_values_of_one_seed():
    """Two seeds learned each setting, and only one of them both."""
    told = {
        "setup": "s",
        "rows": "all rows of D_A",
        "others": "",
        "retention": 0.5,
        "low": None,
        "high": None,
    }
    points = [(0.0, [0.0, 0.5], [0, 2]), (0.5, [0.25, 0.75], [1, 2])]
    table = pl.DataFrame(
        [
            told | {"replay_ratio": ratio, "by_seed": values, "seed_numbers": seeds}
            for ratio, values, seeds in points
        ]
    )
    shown = drawn(figures.replay_ratio(table))
    assert {name: line for name, line in shown.items() if "/seed" in name} == {
        "all rows of D_A/seed 0": [[0.0, 0.0]],
        "all rows of D_A/seed 1": [[0.5, 0.25]],
        "all rows of D_A/seed 2": [[0.0, 0.5], [0.5, 0.75]],
    }
    before = drawn(figures.replay_ratio(table.drop("seed_numbers", "others")))
    assert before["all rows of D_A/seeds at 0.5"] == [[0.5, 0.25], [0.5, 0.75]]


def test_a_line_of_means_breaks_where_too_few_seeds_have_a_mean():
    """At 0.5 two seeds of three have learned, so that nothing is known of their mean."""
    told = {"setup": "s", "rows": "all rows of D_A", "others": ""}
    points = [(0.0, 0.25, 3), (0.5, 0.9, 2), (1.0, 0.75, 3)]
    table = pl.DataFrame(
        [
            told
            | {
                "replay_ratio": ratio,
                "retention": mean,
                "by_seed": [mean] * n,
                "seed_numbers": list(range(n)),
            }
            | {"low": 0.1 if n > 2 else None, "high": 0.95 if n > 2 else None}
            for ratio, mean, n in points
        ]
    )
    means = dict(drawn(figures.replay_ratio(table))["all rows of D_A/mean"])
    assert (means[0.0], means[1.0]) == (0.25, 0.75) and np.isnan(means[0.5])


def test_a_curve_names_what_else_is_held_equal_and_its_axis_what_is_counted():
    told = {"setup": "s", "mixing": "generic", "mixing_ratio": 2.0, "low": None, "high": None}
    table = pl.DataFrame(
        [
            told
            | {"others": others, "mixing_words": float(words), "retention": 0.5}
            | {"by_seed": [0.5], "seed_numbers": [0]}
            for others in ("", "prompt sentence")
            for words in (0, 12)
        ]
    )
    figure = figures.mixing_length(table)
    assert figure.axes[0].get_xlabel() == "words of a mixing row's answer"
    assert set(drawn(figure)) == {"generic/seed 0", "generic, prompt sentence/seed 0"}


@pytest.mark.parametrize("metric", ["loss", "exact_match"])
def test_strengths_are_drawn_over_what_is_kept_and_what_is_learned(metric):
    told = {"setup": "s", "penalty": "ewc", "others": "", "last_metric": metric, "seed_numbers": [0, 1, 2]}
    kept = {0.0: [0.0, 0.25, 0.5], 1e4: [0.25, 0.5, 0.75], 3e5: [0.5, 0.75, 1.0]}
    table = pl.DataFrame(
        [
            told
            | {"penalty_strength": strength, "retention": values[1], "low": values[0], "high": values[2]}
            | {
                "by_seed": values,
                "last_score": 1 - values[0],
                "last_by_seed": [1 - value for value in values],
            }
            for strength, values in kept.items()
        ]
    )
    figure = figures.penalty_strength(table)
    shown = drawn(figure)
    assert shown["ewc/mean"] == [[0.0, 0.25], [1e4, 0.5], [3e5, 0.75]]
    assert shown["D_B/ewc/mean"] == [[0.0, 1.0], [1e4, 0.75], [3e5, 0.5]]
    assert shown["D_B/ewc/seed 2"] == [[0.0, 0.5], [1e4, 0.25], [3e5, 0.0]]
    upper, lower = figure.axes
    assert lower.get_ylabel().partition("\n")[0].endswith(f"}}$ {metric.replace('_', ' ')}")
    assert upper.get_ylim() == (0, 1) and (lower.get_ylim() == (0, 1)) is (metric == "exact_match")
    at = [lower.transData.transform((strength, 0))[0] for strength in kept]
    assert at[1] - at[0] < 2 * (at[2] - at[1]), "strengths are on a logarithmic axis"


def test_strengths_of_several_set_ups_are_a_figure_each(tmp_path):
    """What is measured of D_B differs between them."""
    for setup in ("lama", "gsm8k"):
        for strength in (0, 100, 1000):
            penalty = f'[stages.penalty]\nmethod = "ewc"\nstrength = {strength}\n'
            write_run(
                tmp_path / f"{setup}-{strength}",
                [[1.0], [strength / 1024, 1.0]],
                names=("kvr", setup),
                tasks=("gsm8k",),
                arm=f"ewc(strength={strength})" if strength else "none",
                additions={2: penalty} if strength else {},
            )
    table = of_runs(tmp_path)["penalty_strength"]
    assert isinstance(table, pl.DataFrame)
    assert set(runs.pages("penalty_strength", table, 89)) == {"kvr → gsm8k", "kvr → lama"}


def test_interference_has_a_point_for_each_learned_run_that_measured_it(trained):
    shown = drawn(figures.interference(of_runs(trained)["interference"]))
    assert shown == {f"kvr → lama/naive/{seed}": [[-0.5, 0.25]] for seed in range(3)}


def test_joint_training_has_no_conflict_of_gradients(tmp_path):
    write_run(tmp_path / "naive", [[1.0], [0.25, 1.0]], cosine=-0.5)
    write_run(tmp_path / "joint", [[1.0, 1.0]], arm="joint", cosine=1.0)
    found = of_runs(tmp_path)
    assert found["interference"]["arm"].to_list() == ["naive"]
    assert set(found["forgetting"]["arm"]) == {"naive", "joint"}


def test_mixing_curves_vary_one_setting_at_a_time(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"n{seed}", [[1.0], [0.125, 1.0]], seed=seed)
        for source, ratio, words, kept in (
            ("generic", 1, 12, 0.25),
            ("generic", 2, 12, 0.5),
            ("generic", 2, 50, 0.75),
        ):
            arm = f"remix(data={source}, stages=1, ratio={ratio}, words={words},{words})"
            mixing = {1: MIXING.format(source, float(ratio), words, words)}
            write_run(
                tmp_path / f"{ratio}-{words}-{seed}",
                [[1.0], [kept, 1.0]],
                arm=arm,
                seed=seed,
                additions=mixing,
            )
    found = of_runs(tmp_path)
    assert drawn(figures.mixing_ratio(found["mixing_ratio"]))["generic/mean"] == [
        [0, 0.125],
        [1, 0.25],
        [2, 0.5],
    ]
    assert drawn(figures.mixing_length(found["mixing_length"]))["generic/mean"] == [
        [0, 0.125],
        [12, 0.5],
        [50, 0.75],
    ]
    assert isinstance(found["replay_ratio"], str)


def test_stages_draw_each_dataset_after_each_stage(tmp_path):
    for seed in range(2):
        scores = [[1.0], [0.5, 1.0], [0.25, 0.75, 0.125]]
        write_run(tmp_path / str(seed), scores, names=("kvr", "lama", "gsm8k"), tasks=("gsm8k",), seed=seed)
    shown = drawn(figures.stages(of_runs(tmp_path)["stages"]))
    where = "kvr → lama → gsm8k/naive"
    assert shown[f"{where}/kvr/seed 1"] == [[1, 1.0], [2, 0.5], [3, 0.25]]
    assert shown[f"{where}/gsm8k/seed 0"] == [[3, 0.125]]
    assert not any(gid.endswith("/mean") for gid in shown)


def test_stages_join_values_of_one_seed_where_seeds_miss_a_stage():
    told = {
        "setup": "s",
        "arm": "naive",
        "dataset": "kvr",
        "metric": "exact_match",
        "low": None,
        "high": None,
    }
    table = pl.DataFrame(
        [
            told | {"stage": 1, "value": 0.75, "by_seed": [1.0, 0.5], "seed_numbers": [0, 2]},
            told | {"stage": 2, "value": 0.25, "by_seed": [0.25, 0.0], "seed_numbers": [1, 2]},
        ],
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )
    shown = drawn(figures.stages(table))
    assert {of: shown[f"s/naive/kvr/seed {of}"] for of in range(3)} == {
        0: [[1, 1.0]],
        1: [[2, 0.25]],
        2: [[1, 0.5], [2, 0.0]],
    }
    before = drawn(figures.stages(table.drop("seed_numbers")))
    assert before["s/naive/kvr/seeds at 1"] == [[1, 1.0], [1, 0.5]]


def test_runs_that_have_not_ended_or_are_there_twice_are_named(tmp_path):
    said = []
    write_run(tmp_path / "a", [[1.0], [0.5, 1.0]])
    write_run(tmp_path / "b", [[1.0], [0.5, 1.0]])
    write_run(tmp_path / "c", [[1.0]], seed=1)
    write_run(tmp_path / "d", [[0.5, 1.0]], arm="joint")
    write_json({"stage": 0, "sets": {}}, tmp_path / "a" / "0-base" / "evaluation.json")  # of the base model
    assert [run.path.name for run in ended(tmp_path, said.append)] == ["a", "d"]
    assert len(said) == 2 and "again" in said[1] and "has not ended" in said[0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("none", "naive"),
        ("remix(data=random-words, stages=1, words=12,12)", "REMIX random-words"),
        ("remix(data=generic, stages=2)", "REMIX generic (stage 2)"),
        ("matched(to=steps, data=generic, stages=1)", "matched steps"),
        ("ewc(strength=1e+07, stages=2)", "EWC 1e+07"),
        ("remix(data=generic, stages=1)+replay(ratio=0.1, stages=2)", "REMIX generic + replay 0.1"),
        ("my own arm", "my own arm"),
    ],
)
def test_arm_names(text, name):
    assert arm_names([text]) == {text: name}


def test_arms_that_would_share_a_name_keep_their_options():
    one, two = (f"remix(data=generic, stages=1, ratio={ratio})" for ratio in (1, 4))
    assert arm_names([one, two]) == {one: "REMIX generic ratio 1", two: "REMIX generic ratio 4"}


# Files


@pytest.fixture(scope="module")
def written(probe, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    said = []
    files = figures.write_figures([probe.path, trained], out, draws=200, say=said.append)
    return out, files, said


def reasons_in(said):
    """What was said of figures left out: the reason by the name of each figure."""
    told = [text.split(": left out, ") for text in said if ": left out, " in text]
    assert len({why for _, why in told}) == len(told), "a reason is said once"
    return {name: why for names, why in told for name in names.split(", ")}


def test_every_figure_is_there_in_each_format_beside_its_json(written):
    out, files, said = written
    names = {path.stem for path in files}
    without = {
        "mixing_ratio",
        "mixing_length",
        "penalty_strength",
        "other_questions",
        "steps",
        "lenses",
        "positions",
        "contributions",
    }
    without |= set(patches.NAMES)
    assert names == set(figures.DRAWN) - without
    assert {path.name for path in out.iterdir()} == {path.name for path in files}
    assert {path.suffix for path in files if path.stem == "recall"} == {".pdf", ".png", ".json"}
    assert {path.suffix for path in files if path.stem == "lof"} == {".pdf", ".png", ".json", ".csv", ".md"}
    assert {"mixing_ratio", "mixing_length", "steps"} <= set(reasons_in(said))


ENDS = {"low": [0.2, None], "high": [0.4, None]}
SEEDS = {"retention": [0.3, None], "by_seed": [[0.3], [0.4]], "seed_numbers": [[0], [0]], **ENDS}
MIXED = {"setup": ["a"] * 2, "mixing": ["generic"] * 2, "others": [""] * 2}
PENALTY = {"setup": ["a"] * 2, "penalty": ["ewc"] * 2, "others": [""] * 2, "penalty_strength": [0.0, 1.0]}
LEARNED = {"last_metric": ["exact_match"] * 2, "last_score": [0.5, 0.6], "last_by_seed": [[0.5], [0.6]]}
AT = {"checkpoint": ["a"] * 2, "depth": [0, 1]}
RECALL = {"recall": [0.1, 0.9], "recall_low": [0.0, 0.8], "recall_high": [0.2, 1.0], "chance": [0.1, 0.2]}
OTHERS: dict[str, dict[str, list]] = {
    "mixing_ratio": MIXED | SEEDS | {"mixing_ratio": [0.5, 1.0], "mixing_words": [8, 8]},
    "mixing_length": MIXED | SEEDS | {"mixing_words": [8, 16], "mixing_ratio": [1.0, 1.0]},
    "penalty_strength": PENALTY | SEEDS | LEARNED,
    "steps": {
        "run": ["a"] * 2,
        "step": [0, 9],
        "statistic": ["exact"] * 2,
        "state": [None] * 2,
        "value": [0.1, 0.9],
    }
    | {"low": [None] * 2, "high": [None] * 2},
    "positions": AT | RECALL | {"position": ["answer"] * 2},
    "contributions": AT | {"part": ["block"] * 2, "value": [0.1, 0.9], "net": [True] * 2, **ENDS},
}
"""Tables of figures that neither :func:`written` nor the repository holds."""
STORED = {
    "other_questions": "study-questions/other_questions-popqa-lama.json",
    "lenses": "lenses/lenses.json",
    "restoration": "where/restoration.json",
    "grafts": "where/grafts.json",
}


@pytest.mark.parametrize("width", figures.WIDTHS)
def test_labels_of_axes_lie_within_the_figure_and_beside_its_legend(written, width):
    """Whatever the figure, with the longest name of a token rule."""
    folder = Path(__file__).parents[1] / "figures"
    paths = {path.stem: path for path in written[1] if path.suffix == ".json"}
    paths |= {name: folder / path for name, path in STORED.items()}
    found = {name: read_json(path) for name, path in paths.items()}
    tables_of = {name: (pl.DataFrame(made["data"]), made["options"]) for name, made in found.items()}
    tables_of |= {name: (pl.DataFrame(table), {}) for name, table in OTHERS.items()}
    assert set(tables_of) == set(figures.DRAWN)
    for name, (table, options) in tables_of.items():
        draw = figures.DRAWN[name]
        rule = {"token": "all"} if "token" in inspect.signature(draw).parameters else {}
        figure = draw(table, **options | rule | {"width": width})
        with plt.rc_context(STYLE):
            FigureCanvasAgg(figure).draw()
        labels = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
        labels += [one for one in figure.texts if one.get_text()]  # those of all panels together
        boxes = {one.get_text(): one.get_window_extent() for one in labels if one.get_text()}
        legend = [one.get_window_extent() for one in figure.legends]
        for text, box in boxes.items():
            assert box.x0 >= 0 and box.y0 >= 0, (name, text)
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, (name, text)
            assert not any(box.overlaps(one) for one in legend), (name, text)


def test_fonts_are_embedded_and_pages_have_the_width_asked_for(written, probe, tmp_path):
    figures.write_figures([probe.path], tmp_path, width=183, formats=["pdf"], draws=200, only=["recall"])
    for path, width in ((written[0] / "recall.pdf", 89), (tmp_path / "recall.pdf", 183)):
        content = path.read_bytes()
        assert b"/FontFile2" in content and b"/Type3" not in content
        assert b"CreationDate" not in content
        (box,) = re.findall(rb"/MediaBox \[ ([^\]]+) \]", content)
        assert float(box.split()[2]) == pytest.approx(width / 25.4 * 72, abs=0.01)


def test_the_same_inputs_give_the_same_bytes(written, probe, trained, tmp_path):
    again = figures.write_figures([probe.path, trained], tmp_path, draws=200)
    for path in again:
        before = (written[0] / path.name).read_bytes()
        if path.suffix == ".json":
            before = before.replace(str(written[0]).encode(), str(tmp_path).encode())
        assert path.read_bytes() == before, path.name


def test_json_says_what_made_a_figure_and_draws_it_again(written, probe):
    out, _, _ = written
    whole = compare([probe], draws=200)
    found = tables.of_comparison(whole.tables, whole.settings)
    for name in ("recall", "frequency", "lof", "survival", "heatmap", "differences"):
        made_of = read_json(out / f"{name}.json")
        (made_from,) = made_of["inputs"]
        assert set(made_from["checkpoints"]) == {"late", "early"}
        assert len(made_from["sha256"]["records.parquet"]) == 64
        assert made_of["settings"]["k"] == 10 and "--only " + name in made_of["command"]
        first = drawn(figures.DRAWN[name](found[name], k=10, token="first", width=89))
        assert json.dumps(drawn(figures.redraw(out / f"{name}.json"))) == json.dumps(first)
    for name in ("forgetting", "stages", "replay_ratio"):
        assert drawn(figures.redraw(out / f"{name}.json"))
        assert len(read_json(out / f"{name}.json")["inputs"]) == 12
    with pytest.raises(MemprobeError, match="describes no figure"):
        figures.redraw(probe.path / "run.json")


def test_the_command_draws_a_json_again_at_another_width(written, tmp_path):
    out, _, _ = written
    again = figures.write_figures(
        [out / "recall.json", out / "stages.json"], tmp_path, width=183, formats=["pdf"]
    )
    assert [path.name for path in again] == ["recall.pdf", "recall.json", "stages.pdf", "stages.json"]
    before, after = (read_json(folder / "recall.json") for folder in (out, tmp_path))
    assert (before.pop("options")["width"], after.pop("options")["width"]) == (89, 183)
    assert before == after
    figures.write_figures([out / "recall.json"], tmp_path, formats=["pdf"])
    assert (tmp_path / "recall.pdf").read_bytes() == (out / "recall.pdf").read_bytes()


def test_two_figures_of_one_name_are_refused_before_one_is_lost(written, probe, tmp_path):
    out, _, _ = written
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(out / "recall.json", tmp_path / folder)
    twice = [tmp_path / "a" / "recall.json", tmp_path / "b" / "recall.json"]
    with pytest.raises(MemprobeError, match=r"a/recall\.json and .*b/recall\.json: both would be"):
        figures.write_figures(twice, tmp_path / "out", formats=["svg"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(MemprobeError, match=r"a/recall\.json and a figure of .*: both would be"):
        figures.write_figures([twice[0], probe.path], tmp_path / "out", formats=["svg"], only=["recall"])
    assert (tmp_path / "out" / "recall.json").read_bytes() == twice[0].read_bytes()


@pytest.mark.parametrize(
    "option",
    [
        ["-k", "1"],
        ["--token", "all"],
        ["--reference", "nobody"],
        ["--lens", "x"],
        ["--position", "subject"],
        ["--draws", "10000"],
    ],
)
def test_options_that_change_nothing_of_a_stored_figure_are_refused(cli, written, tmp_path, option):
    out, _, _ = written
    code, _, err = cli("figures", out / "recall.json", "--out", tmp_path / "out", *option)
    assert code == 2 and f"{option[0]} {option[1]}: is of probes, and the JSON beside a figure" in err, err
    assert not (tmp_path / "out").exists()


def test_a_stored_figure_takes_width_and_format_from_the_command(cli, written, tmp_path):
    given = [written[0] / "recall.json", "--out", tmp_path, "--width", "183", "--format", "svg"]
    code, out, err = cli("figures", *given)
    assert code == 0, err
    assert out.split() == [str(tmp_path / "recall.svg"), str(tmp_path / "recall.json")]


def test_a_stored_comparison_is_drawn_like_its_probe(written, probe, tmp_path):
    compare([probe], draws=200).write(tmp_path / "tables")
    figures.write_figures([tmp_path / "tables"], tmp_path / "out", only=["recall", "lof"], draws=200)
    for name in ("recall", "lof"):
        ours, theirs = (read_json(folder / f"{name}.json") for folder in (tmp_path / "out", written[0]))
        assert ours["data"] == theirs["data"]
        assert ours["inputs"][0]["kind"] == "comparison"


def test_readouts_are_drawn_apart_and_meet_in_the_differences(tmp_path):
    for name in ("own", "base"):
        write_probe(tmp_path / "probes" / name, {"base": 6, "early": 2}, readout=name, summary=False)
    out = tmp_path / "out"
    figures.write_figures(
        [tmp_path / "probes"], out, only=["differences", "recall"], formats=["pdf"], draws=200
    )
    names = {path.stem for path in out.glob("*.pdf")}
    assert names == {"differences-own", "recall-own", "differences-base", "recall-base"}
    assert True in read_json(out / "differences-own.json")["data"]["held"]
    assert set(read_json(out / "differences-base.json")["data"]["held"]) == {None}


def test_set_ups_of_a_grid_are_drawn_apart_and_meet_their_own_second_readout(tmp_path):
    write_setups(tmp_path / "grid")
    figures.write_figures(
        [tmp_path / "grid"], tmp_path / "out", only=["differences"], formats=["pdf"], draws=200
    )
    names = {path.stem for path in (tmp_path / "out").glob("*.pdf")}
    assert names == {
        f"differences-{setup}-{readout}" for setup in ("a-b", "a-c") for readout in ("own", "base")
    }
    for setup, sign in (("a-b", -1), ("a-c", 1)):
        data = pl.DataFrame(read_json(tmp_path / "out" / f"differences-{setup}-own.json")["data"])
        row = data.row(by_predicate=pl.col("statistic") == "lof_restricted", named=True)
        assert row["difference"] * sign > 1 and row["held"] is True


def test_a_grid_leaves_out_what_was_not_learned_and_shows_shared_stages(tmp_path):
    depths, manifests, setup = {"base": 7.0}, {}, "kvr-lama-n32"
    arms = {"naive": "none", "replay": "replay(ratio=0.1, stages=2)", "kl": "kl(strength=1, stages=2)"}
    for seed in range(2):
        depths[f"naive-s{seed}.1"] = 3.0
        manifests[f"naive-s{seed}.1"] = {"arm": "none", "seed": seed, "stage": 1}
        for name, arm in arms.items():
            label = f"{name}-s{seed}.2"
            depths[label], manifests[label] = 5.0, {"arm": arm, "seed": seed, "stage": 2}
            learned = label != "kl-s1.2"
            run = write_run(
                tmp_path / "runs" / setup / f"{name}-s{seed}", [[1.0], [0.5, 1.0]], arm=arm, seed=seed
            )
            stages = [{"label": f"naive-s{seed}.1"}, {"label": label}]
            write_json({"learned": learned, "stages": stages}, run / "cell.json")
    write_probe(
        tmp_path / "probes" / setup / "own", depths, manifests=manifests, n=12, tokens=(1,), summary=False
    )
    said = []
    figures.write_figures(
        [tmp_path], tmp_path / "out", only=["recall"], formats=["pdf"], draws=200, say=said.append
    )
    assert any("kl-s1.2 left out" in text for text in said)
    data = pl.DataFrame(read_json(tmp_path / "out" / "recall.json")["data"])
    lines = data.select("panel", "line", "seed").unique(maintain_order=True).rows()
    of = {arm: [one[1:] for one in lines if one[0] == arm] for arm in ("KL 1", "replay 0.1")}
    # Both start from naive's stage 1; the failed seed is there with neither stage.
    assert of["KL 1"] == [("base model", None), ("after stage 1", "0"), ("after stage 2", "0")]
    assert of["replay 0.1"][1:] == [(f"after stage {stage}", seed) for stage in (1, 2) for seed in "01"]


def test_no_figure_stays_open_and_the_users_style_is_left_alone(probe, tmp_path):
    before = dict(plt.rcParams)
    figures.write_figures([probe.path], tmp_path, formats=["pdf"], only=["recall"], draws=200)
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before
    with plt.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        figure = figures.recall(of_probe(probe)[1]["recall"])
    assert figure.axes[0].xaxis.label.get_size() == STYLE["axes.labelsize"]


def test_labels_are_text_whatever_they_hold(tmp_path):
    label = "$x^2 & <b>_{a}\\frac"
    probe = write_probe(tmp_path / "probe", {label: 5, "b|c": 3}, n=8, summary=False)
    figures.write_figures([probe.path], tmp_path / "out", draws=200)
    figure = figures.redraw(tmp_path / "out" / "recall.json")
    assert figure.legends[0].get_texts()[0].get_text() == label
    assert "b\\|c" in (tmp_path / "out" / "lof.md").read_text()


def test_a_probe_of_one_checkpoint_in_which_nothing_surfaces(tmp_path):
    probe = write_probe(tmp_path / "probe", {"only": 5}, n=6, never=2.0, summary=False)
    retell(probe.path, "controls", probe.controls.clear())
    said = []
    files = figures.write_figures([probe.path], tmp_path / "out", formats=["png"], draws=200, say=said.append)
    assert {path.stem for path in files} == {"recall", "heatmap", "lof"}
    for path in (tmp_path / "out").glob("*.json"):
        figures.redraw(path)
    assert "half never" in (tmp_path / "out" / "lof.md").read_text()
    reasons = reasons_in(said)
    assert "no answer occurs" in reasons["frequency"] and "one checkpoint" in reasons["differences"]


def test_command_line(cli, probe, tmp_path):
    code, out, err = cli(
        "figures", probe.path, "--out", tmp_path, "--draws", 200, "--format", "png", "--only", "recall"
    )
    assert code == 0, err
    assert [line.rsplit("/")[-1] for line in out.splitlines()] == ["recall.png", "recall.json"]
    said: list[str] = []
    figures.write_figures(
        [probe.path],
        tmp_path,
        only=["recall", "restoration", "steps"],
        formats=["png"],
        draws=200,
        say=said.append,
    )
    assert set(reasons_in(said)) == {"restoration", "steps"}
    code, out, err = cli("figures", probe.path, "--out", tmp_path, "--only", "forgetting", "--only", "stages")
    assert code == 2 and "nothing there can be drawn" in err
    assert "forgetting, stages: left out, " in err and err.count("left out") == 1, "a reason is said once"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"only": ["pie"]}, "--only 'pie'"),
        ({"width": 100}, "--width 100"),
        ({"width": 0}, "--width 0"),
        ({"formats": ["gif"]}, "--format 'gif'"),
        ({"reference": "nobody"}, "no such checkpoint"),
    ],
)
def test_bad_options_are_refused(probe, tmp_path, options, says):
    with pytest.raises(MemprobeError, match=re.escape(says)):
        figures.write_figures([probe.path], tmp_path, draws=200, **options)


def test_a_figure_of_nothing_is_refused():
    with pytest.raises(MemprobeError, match="needs a table"):
        figures.recall(pl.DataFrame())


def test_numbers_beyond_any_axis_are_refused_with_their_file(probe, tmp_path):
    """Such a comparison was drawn as an empty page, or ended in an OverflowError of the axis."""
    compare([probe], draws=100).write(tmp_path / "tables")
    stored = read_json(tmp_path / "tables" / "comparison.json")
    stored["tables"]["curves"][-1]["recall"] = 1e308
    (tmp_path / "tables" / "comparison.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(MemprobeError, match=r"tables.*: .* cannot be drawn \(recall: 1e\+308"):
        figures.write_figures([tmp_path / "tables"], tmp_path / "out", formats=["svg"])


FIGURE_FILES = {
    "describes no figure": {"schema": 1, "figure": "recall", "options": {}},
    "schema: should be 1": {"schema": 2, "figure": "recall", "options": {}, "data": {}},
    "figure: should be a valid string": {"schema": 1, "figure": [], "options": {}, "data": {}},
    "figure: 'pie' is none of recall": {"schema": 1, "figure": "pie", "options": {}, "data": {}},
    "options: lof has no 'zz'": {"schema": 1, "figure": "lof", "options": {"zz": 1}, "data": {}},
    r"options\.k: Input should be": {"schema": 1, "figure": "recall", "options": {"k": "1"}, "data": {}},
    r"options\.width: 10": {"schema": 1, "figure": "recall", "options": {"width": 10}, "data": {}},
    r"data\.x: should be a valid list": {
        "schema": 1,
        "figure": "recall",
        "options": {},
        "data": {"x": 1},
    },
    "cannot be drawn as heatmap": {"schema": 1, "figure": "heatmap", "options": {}, "data": {"depth": ["a"]}},
    r"cannot be drawn as lof \(n: 1e\+308 is beyond any axis": {
        "schema": 1,
        "figure": "lof",
        "options": {},
        "data": {"n": [1.0, 1e308]},
    },
    "cannot be drawn as lof": {"schema": 1, "figure": "lof", "options": {}, "data": {"a": [1], "b": [1, 2]}},
}


@pytest.mark.parametrize("problem", FIGURE_FILES)
def test_a_stored_figure_that_says_what_it_may_not_is_named(tmp_path, problem):
    path = tmp_path / "figure.json"
    path.write_text(json.dumps(FIGURE_FILES[problem]), encoding="utf-8")
    with pytest.raises(MemprobeError, match=problem) as caught:
        figures.write_figures([path], tmp_path / "out")
    assert "figure.json" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
