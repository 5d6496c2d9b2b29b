"""Figures draw the numbers of their tables, and nothing else."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from memprobe import figures, palette, plots, statistics
from memprobe.errors import MemprobeError
from memprobe.plots.sketch import depth_ticks, log_ticks
from memprobe.prompt_lens import PromptReading
from memprobe.statistics.occurrence import kaplan_meier
from memprobe.statistics.overview import flows
from tests.probes import write_probe


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    return write_probe(tmp_path_factory.mktemp("plots") / "probe", {"late": 6, "early": 2}, n=24)


def traces(figure, label, role):
    return [
        trace for trace in figure.data if trace.meta["checkpoint"] == label and trace.meta["role"] == role
    ]


def test_recall_curves_draw_recall_its_band_and_the_chance_level(probe):
    recall = statistics.recall_by_depth(probe.records, k=10, token="first")
    chance = statistics.shuffled_recall(probe.controls, k=10, token="first")
    figure = plots.recall_curves(recall, chance)
    for label in ("late", "early"):
        rows = recall.filter(pl.col("checkpoint") == label).sort("depth")
        (line,) = traces(figure, label, "line")
        assert list(line.x) == rows["depth"].to_list()
        assert list(line.y) == rows["recall"].to_list()
        (band,) = traces(figure, label, "band")
        assert list(band.y) == rows["high"].to_list() + rows["low"].to_list()[::-1]
        (control,) = traces(figure, label, "control")
        expected = chance.filter(pl.col("checkpoint") == label).sort("depth")["recall"]
        assert list(control.y) == expected.to_list()
    assert not traces(plots.recall_curves(recall), "late", "control")


def test_a_checkpoint_keeps_its_look_where_another_has_no_rows(probe):
    recall = statistics.recall_by_depth(probe.records, k=10, token="first")
    alone = plots.recall_curves(recall.filter(pl.col("checkpoint") == "early"), checkpoints=["late", "early"])
    (line,) = traces(alone, "early", "line")
    assert (line.line.color, line.marker.symbol) == (palette.COLOURS[1], palette.MARKERS[1])


def test_lof_distribution_sets_never_apart():
    table = pl.DataFrame({"checkpoint": ["a"] * 3, "lof": [2, 1, None], "share": [0.25, 0.5, 0.25]})
    line, never = plots.lof_distribution(table).data
    assert (list(line.x), list(line.y)) == ([1, 2], [0.5, 0.25])
    assert list(never.y) == [0.25]
    assert never.x[0] > 2
    assert line.offsetgroup == never.offsetgroup == "a", "else its bars would stand off their depth"


def test_rank_trajectory_draws_the_records_and_shifts_ranks_only_on_the_axis(probe):
    factoid = probe.records["factoid"][0]
    rows = probe.records.filter((pl.col("factoid") == factoid) & (pl.col("token") == 0))
    figure = plots.rank_trajectory(rows, k=10)
    late = rows.filter(pl.col("checkpoint") == "late").sort("depth")
    rank, log_prob = traces(figure, "late", "line")
    assert list(rank.customdata) == late["rank"].to_list()
    assert list(rank.y) == [value + 1 for value in late["rank"]]
    assert list(log_prob.y) == pytest.approx(late["log_prob"].to_list())
    with pytest.raises(MemprobeError, match="one factoid"):
        plots.rank_trajectory(probe.records)


def prompt_reading(**changes):
    told = {
        "lens": "logit",
        "tokens": ["The", " capital"],
        "top1": [[" a", "b"], ["<i>", "d"], ["e", " Paris"]],
        "probability": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]],
        "entropy": [[3.0, 2.5], [2.0, 1.5], [1.0, 0.5]],
        "kl": [[9.0, 8.0], [4.0, 3.0], [0.0, 0.0]],
        "answer": " Paris",
        "answer_ranks": [[5, 60], [7, 8], [9, 0]],
        "answer_probability": [0.0, 0.1, 0.6],
    } | changes
    told["best"] = [
        [[(text, share), ("other", 0.01)] for text, share in zip(texts, shares, strict=True)]
        for texts, shares in zip(told["top1"], told["probability"], strict=True)
    ]
    return PromptReading(**told)


def test_lens_heatmap_holds_each_cell_under_each_statistic():
    reading = prompt_reading()
    figure = plots.lens_heatmap(reading)
    (heat,) = figure.data
    assert [list(row) for row in heat.z] == reading.probability
    assert (heat.text[0][0], heat.text[1][0]) == ("·a", "&lt;i&gt;")
    for told in (
        "·capital",
        "·Paris</b> 60.0%",
        "other 1.0%",
        "rank of ·Paris: 0",
        "entropy 0.50",
        "depth 2",
    ):
        assert told in heat.customdata[2][1]
    assert figure.layout.yaxis.tickvals[-1] == 2, "the last depth is ticked"
    (frame,) = figure.layout.shapes
    assert frame.x0 < 1 < frame.x1 and frame.y0 < 2 < frame.y1, "the cell that says the answer"
    (ranks,) = plots.lens_heatmap(reading, "rank").data
    assert ranks.z[2][0] == pytest.approx(1) and ranks.reversescale
    for name, values in (("entropy", reading.entropy), ("kl", reading.kl)):
        assert [list(row) for row in plots.lens_heatmap(reading, name).data[0].z] == values
    with pytest.raises(MemprobeError, match="did you mean entropy"):
        plots.lens_heatmap(reading, "entropie")
    with pytest.raises(MemprobeError, match="read the prompt with `answer`"):
        plots.lens_heatmap(prompt_reading(answer=None, answer_ranks=None), "rank")


@pytest.mark.parametrize(("last", "wanted"), [(30, 30), (1, 1), (8, 8), (126, 126)])
def test_the_last_depth_is_ticked(last, wanted):
    ticks = depth_ticks(last)
    assert ticks[0] == 0 and ticks[-1] == wanted and ticks == sorted(set(ticks)) and len(ticks) <= 10


def test_thirty_six_checkpoints_look_apart():
    looks = [palette.style(position) for position in range(36)]
    assert len({(look["colour"], look["marker"]) for look in looks}) == 36
    assert len({(look["colour"], look["dash"]) for look in looks}) == 36


def test_a_sketch_and_its_figure_are_the_same(probe):
    recall = statistics.recall_by_depth(probe.records, k=10, token="first")
    sketch = plots.recall_curves.sketch(recall, accuracy={"late": 0.5625})
    figure = plots.recall_curves(recall, accuracy={"late": 0.5625})
    assert [trace.name for trace in figure.data] == [trace.get("name") for trace in sketch.data]
    assert figure.data[1].name == "late (56.3% exact)"
    assert figure.data[3].name == "early"


def test_survival_curves_are_stairs_and_so_are_their_bands():
    table = kaplan_meier(np.array([1.0, 2.0, np.nan]), 2).with_columns(checkpoint=pl.lit("a"))
    band, end, line = plots.survival_curves(table).data
    bar, last = end.error_y, table.row(-1, named=True)
    assert 2 < end.x[0] < 2.5 and list(end.y) == [last["survival"]], "the band has no width left there"
    assert last["survival"] + bar.array[0] == pytest.approx(last["high"])
    assert last["survival"] - bar.arrayminus[0] == pytest.approx(last["low"])
    assert end.meta == band.meta, "it comes and goes with the band"
    assert list(line.y) == table["survival"].to_list()
    assert line.line.shape == "hv"
    assert list(band.x) == [0, 1, 1, 2, 2, 2, 2, 1, 1, 0]
    high = table["high"].to_list()
    assert list(band.y)[:5] == [high[0], high[0], high[1], high[1], high[2]]


def test_a_forest_has_a_row_for_each_checkpoint_and_each_readout():
    row = {"against": "reference", "reference": "base", "checkpoint": "a", "n": 8}
    row |= {"difference": -0.25, "low": -0.5, "high": 0.125}
    table = pl.DataFrame([row, row | {"checkpoint": "b", "n": 3, "low": None, "high": None}])
    one, two = plots.difference_forest(table, x="points", percent=True).data
    assert (one.x[0], one.error_x.arrayminus[0], one.error_x.array[0]) == (-25, 25, 37.5)
    assert (one.y[0], two.y[0], two.error_x.array[0]) == ("a", "b (n = 3)", 0)
    both = table.with_columns(fixed_difference=pl.lit(0.5), fixed_low=pl.lit(0.25), fixed_high=pl.lit(1.0))
    figure = plots.difference_forest(both, x="depths")
    assert [trace.meta["role"] for trace in figure.data] == ["difference", "fixed"] * 2
    assert len({trace.y[0] for trace in figure.data}) == 4


@pytest.mark.parametrize("last", [2, 12, 30, 31])
def test_bars_have_a_tick_at_the_last_depth(last):
    table = pl.DataFrame(
        [["a", depth, 0.1] for depth in range(1, last + 1)],
        schema=["checkpoint", "depth", "share"],
        orient="row",
    )
    assert list(plots.depth_distribution(table).layout.xaxis.ticktext)[-2:] == [str(last), "never"]


@pytest.mark.parametrize("depths", [range(1, 31), [1, 7, 30], [], range(1, 5)])
def test_rows_of_many_checkpoints_stand_at_their_depths_with_never_behind(depths):
    labels = [f"c{at}" for at in range(7)]
    rows = [[label, depth, 0.01 * (depth or 9)] for label in labels for depth in [*depths, None]]
    schema = {"checkpoint": pl.String, "depth": pl.Int64, "share": pl.Float64}
    figure = plots.depth_distribution(pl.DataFrame(rows, schema=schema, orient="row"))
    (cells,), axis = figure.data, figure.layout.xaxis
    places = list(cells.x)
    assert places == list(
        range(places[0], places[-1] + 1)
    )  # an axis of numbers, on which a range is one of depths
    low, high = axis.range
    assert axis.type != "category"
    assert low < places[0] <= places[-1] < high
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True))[places[-1]] == "never"
    assert all(places[-1] - tick >= (high - low) / 10 for tick in axis.tickvals[:-1])  # else texts overprint
    assert [row[places.index(depth)] for depth in depths for row in cells.z] == [
        0.01 * depth for depth in depths for _ in labels
    ]


@pytest.mark.parametrize(
    ("shares", "largest"), [([0.2, 0.3], 0.3), ([None, 0.1], 0.1), ([0.0, 0.0], 1), ([None] * 2, 1)]
)
def test_colours_of_a_heatmap_begin_at_0_and_end_at_the_largest_share(shares, largest):
    schema = {"checkpoint": pl.String, "depth": pl.Int64, "share": pl.Float64}
    table = pl.DataFrame([["a", 1, shares[0]], ["a", 2, shares[1]]], schema=schema, orient="row")
    axis = plots.depth_heatmap(table, "share", title="of facts", largest=None).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0, largest)


def test_a_heatmap_leaves_depths_blank_that_a_checkpoint_lacks():
    table = pl.DataFrame({"checkpoint": ["a", "a", "b"], "depth": [0, 1, 0], "recall": [0.0, 1.0, 0.5]})
    (cells,) = plots.depth_heatmap(table, "recall", title="recall").data
    assert [list(line) for line in cells.z] == [[0.0, 1.0], [0.5, None]]
    assert list(cells.y) == ["a", "b"]


def test_stage_lines_draw_seeds_thin_beside_their_mean():
    rows = [
        ["ewc", seed, f"ewc-{seed}", 1, "1 kvr", value, value - 0.1, value + 0.1]
        for seed, value in (("0", 0.5), ("1", 0.7))
    ]
    rows.append(["ewc", None, "", 1, "1 kvr", 0.6, None, None])
    names = ["arm", "seed", "checkpoint", "stage", "stage_name", "value", "low", "high"]
    figure = plots.stage_lines(pl.DataFrame(rows, schema=names, orient="row"), y="", percent=True)
    assert [(trace.meta["role"], trace.y[0]) for trace in figure.data] == [
        ("seed", 0.5),
        ("seed", 0.7),
        ("line", 0.6),
    ]
    assert list(figure.layout.xaxis.ticktext) == ["1 kvr"]


def test_flows_are_bands_between_the_states_that_occur():
    states = np.array([[0, 0], [0, 1], [2, 0]])
    names = {"said": "exact", "surfaces": "surfaces only", "absent": "absent"}
    (trace,) = plots.fate_flows(flows(states), ["one", "two"], names=names).data
    assert list(trace.node.label) == ["2 exact", "1 absent", "2 exact", "1 surfaces only"]
    bands = zip(trace.link.source, trace.link.target, trace.link.value, strict=True)
    assert sorted(bands) == [(0, 2, 1), (0, 3, 1), (1, 2, 1)]


def test_a_matrix_has_a_blank_where_nothing_was_evaluated():
    cell = {"row": "run, 1 kvr", "dataset": "1-kvr", "value": 0.125, "low": 0.0, "high": 0.4, "n": 16}
    table = pl.DataFrame([cell, cell | {"row": "run, 2 b"}, cell | {"row": "run, 2 b", "dataset": "2-b"}])
    (trace,) = plots.accuracy_matrix(table.with_columns(metric=pl.lit("exact_match"))).data
    assert [list(line) for line in trace.z] == [[0.125, None], [0.125, 0.125]]
    assert trace.text[0][0] == "12.5%"


@pytest.mark.parametrize(
    ("low", "high"),
    [(1e-4, 3.0), (0.17, 3.0), (1.4, 1.9), (0.08, 0.12), (2.31, 2.35), (0.9, 40.0), (1, 1.0001)],
)
def test_a_logarithmic_axis_has_some_round_ticks(low, high):
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 12 and all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)
    assert log_ticks(2.0, 2.0) == [2.0]


def test_training_curves_leave_out_steps_without_the_measure():
    table = pl.DataFrame({"run": ["a"] * 3, "step": [1, 2, 3], "exact": [None, 0.5, 1.0]})
    (line,) = plots.training_curves(table, "exact", y="own rows exact").data
    assert (list(line.x), list(line.y)) == ([2, 3], [0.5, 1.0])


def test_a_control_below_the_chart_of_patches_is_marked_with_its_value():
    columns = {
        "source": "a", "target": "b", "what": "residual", "positions": "last", "parts": "all", "window": 1,
        "direction": "restore",
    }  # fmt: skip
    rows = [
        columns | {"depth": depth, "moved": 0.5, "low": 0.4, "high": 0.6, "other": other, "random": None}
        for depth, other in enumerate([0.0, -12.0, -3.0, -0.1])
    ]
    figure = plots.restoration_curves(pl.DataFrame(rows, schema_overrides={"random": pl.Float64}))
    (marks,) = [trace for trace in figure.data if trace.mode == "markers"]
    floor, _ = figure.layout.yaxis.range
    assert list(marks.x) == [1, 2] and [value for (value,) in marks.customdata] == [-12.0, -3.0]
    assert all(y >= floor for y in marks.y)
    assert "-1,200%" in figure.layout.annotations[0].text


@pytest.mark.parametrize("moved,low,high", [([0.5, 0.4, 0.2], -0.4, 1.08), ([-0.9, 1.6, 1.0], -0.94, 1.62)])
def test_a_patch_that_makes_it_worse_or_overshoots_is_on_the_chart(moved, low, high):
    columns = {
        "source": "a", "target": "b", "what": "residual", "positions": "last", "parts": "all", "window": 1,
        "direction": "restore", "low": None, "high": None, "other": None, "random": None,
    }  # fmt: skip
    rows = [columns | {"depth": depth, "moved": value} for depth, value in enumerate(moved)]
    numbers = dict.fromkeys(("low", "high", "other", "random"), pl.Float64)
    figure = plots.restoration_curves(pl.DataFrame(rows, schema_overrides=numbers))
    assert figure.layout.yaxis.range == pytest.approx((low, high))
    printed = {"panel": ["a"] * 3, "line": ["b"] * 3, "seed": [None] * 3, "depth": [0, 1, 2], "moved": moved}
    table = pl.DataFrame(printed | dict.fromkeys(("low", "high", "control"), [None] * 3))
    (axes,) = figures.DRAWN["restoration"](table).axes
    assert axes.get_ylim()[0] < min(moved) and axes.get_ylim()[1] > max(moved)
