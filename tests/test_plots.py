"""Figures draw the numbers of their tables, and nothing else."""

from __future__ import annotations

import polars as pl
import pytest

from memprobe import plots, statistics
from memprobe.errors import MemprobeError
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
    assert (line.line.color, line.marker.symbol) == (plots.COLOURS[1], plots.MARKERS[1])


def test_lof_distribution_sets_never_apart():
    table = pl.DataFrame({"checkpoint": ["a"] * 3, "lof": [2, 1, None], "share": [0.25, 0.5, 0.25]})
    line, never = plots.lof_distribution(table).data
    assert (list(line.x), list(line.y)) == ([1, 2], [0.5, 0.25])
    assert list(never.y) == [0.25]
    assert never.x[0] > 2


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


def test_lens_heatmap_holds_each_cell_and_refuses_other_shapes():
    figure = plots.lens_heatmap(
        ["The", " capital"], [[" a", "b"], ["<i>", "d"], ["e", "f"]], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]],
        answer=" Paris", ranks=[[5, 6], [7, 8], [9, 10]],
    )  # fmt: skip
    (heat,) = figure.data
    assert [list(row) for row in heat.z] == [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    assert heat.text[0][0] == "·a"
    assert heat.text[1][0] == "&lt;i&gt;"
    assert list(heat.customdata[2][1]) == ["·capital", "f", 10]
    with pytest.raises(MemprobeError, match=r"\[depth\]\[position\]"):
        plots.lens_heatmap(["The"], [["a", "b"]], [[0.1, 0.2]])
