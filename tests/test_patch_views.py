"""Patches as a room of the dashboard, in the explorer, and as figures for papers."""

import json

import numpy as np
import polars as pl
import pytest

from memprobe import figures
from memprobe.dashboard.patches import TITLE, patches_data
from memprobe.dashboard.writing import dashboard_text
from memprobe.figures.patches import FLOOR, of_patches
from memprobe.files import write_parquet
from memprobe.patch_tables import tables_of
from memprobe.patches import open_patches
from memprobe.plots.patches import restoration_curves, restoration_heatmap
from memprobe.studies import open_study
from tests.pages import chromium, opened
from tests.patched import write_patched
from tests.test_patch_arms import study
from tests.tiny import N_LAYERS

__all__ = ["study"]  # the fixture
RUNS = ("naive-0", "naive-1", "kl-0")


@pytest.fixture(scope="module")
def top(study, tmp_path_factory):
    """Patches of states and of weights, and a probe of two of the checkpoints on the same facts."""
    from typer.testing import CliRunner

    from memprobe.cli.app import app

    top = tmp_path_factory.mktemp("top")
    printed = []
    pairs = []
    for run in RUNS:
        pairs += ["--from", f"{run}.1={study / run / '1-a'}", "--into", f"{run}.2={study / run / '2-b'}"]
    facts = ["--factoids", str(study / "facts.jsonl")]
    shared = [*facts, "--threshold", "0.01", "--device", "cpu"]
    commands = (
        ["patch", *pairs, *shared, "--positions", "last,subject", "--out", str(top / "states")],
        ["patch", *pairs[:4], *shared, "--weights", "--windows", "1,2", "--out", str(top / "weights")],
        [
            "layers",
            "--ckpt",
            pairs[1],
            "--ckpt",
            pairs[3],
            *facts,
            "--device",
            "cpu",
            "--out",
            str(top / "probe"),
        ],
    )
    for command in commands:
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        printed.append(done.output)
    (top / "weights.txt").write_text(printed[1], encoding="utf-8")
    return top


def test_a_graft_has_no_column_for_what_it_has_not(top):
    """Grafts have no control by another fact's weights, and one block is a block."""
    shown = (top / "weights.txt").read_text(encoding="utf-8")
    assert "random" in shown and "other fact's" not in shown
    assert "all of 1 block)" in shown and "all of 2 blocks)" in shown


def test_what_is_drawn_is_what_the_tables_say(top):
    found = open_patches(top / "states")
    tables = tables_of(found, threshold=0.01)
    data = patches_data([found], threshold=0.01)
    assert {view["kind"] for view in data["views"]} == {"states"}
    for view in data["views"]:
        source, _, rest = view["name"].partition(" → ")
        target, _, direction = rest.partition(": ")
        rows = tables["by_depth"].filter(
            (pl.col("source") == source) & (pl.col("target") == target) & (pl.col("direction") == direction)
        )
        lines = {
            trace["name"]: trace["y"]
            for trace in view["curves"]["data"]
            if trace["meta"].get("role") == "line"
        }
        for positions, part in rows.group_by("positions"):
            line = lines.get(positions[0]) or next(iter(lines.values()))
            assert line == part.sort("depth")["moved"].to_list()
        [heatmap] = view["heatmap"]["data"]
        assert {len(line) for line in heatmap["z"]} == {N_LAYERS + 1}
    arms = data["arms"]
    assert {row[0] for row in arms[1:]} == {"none", "kl(0.1)"} and "seeds" in arms[0]


def test_figures_draw_pairs_and_arms_and_say_what_made_them(top, tmp_path):
    files = figures.write_figures([top], tmp_path, draws=50, formats=["png"], only=["restoration", "grafts"])
    names = {path.name for path in files}
    assert names == {
        f"{name}.{kind}" for name in ("restoration-states", "grafts-weights") for kind in ("png", "json")
    }
    made = json.loads((tmp_path / "restoration-states.json").read_text())
    assert made["inputs"][0]["kind"] == "patches" and len(made["inputs"][0]["sha256"]) == 2 * len(RUNS)
    states = of_patches(open_patches(top / "states"), facts="all", threshold=0.01, draws=50)["restoration"]
    assert states["seed"].n_unique() == 3, "arms have a mean and each of their seeds"
    figure = figures.restoration(states)
    lines = {
        artist.get_gid(): np.asarray(artist.get_ydata())
        for axes in figure.axes
        for artist in axes.get_lines()
    }
    for (panel, line, seed), rows in states.group_by("panel", "line", "seed"):
        drawn = lines[f"{panel}/{line}/{seed or ''}/line"]
        np.testing.assert_allclose(drawn, rows.sort("depth")["moved"].cast(pl.Float64).to_numpy())
    weights = of_patches(open_patches(top / "weights"), facts="all", threshold=0.01, draws=50)["grafts"]
    for axes in figures.grafts(weights).axes:
        assert axes.get_ylim()[0] <= min(FLOOR, weights["moved"].min()), "what patches do is on the axis"
    assert figures.redraw(tmp_path / "grafts-weights.json").axes


def test_a_study_of_patches_alone_has_its_room(top):
    found = open_study([top])
    assert [one.path.name for one in found.patches] == ["states", "weights"]
    assert [one.path.name for one in found.probes] == ["probe"]
    text = dashboard_text(open_study([top / "weights"]), draws=50)
    assert 'id="block-patches"' in text and TITLE in text


@pytest.mark.browser
def test_the_room_and_the_explorer_show_patches(top, tmp_path, monkeypatch):
    from memprobe.statistics import patches

    monkeypatch.setattr(patches, "GAP", 0.01)
    monkeypatch.setattr(patches_data, "__kwdefaults__", {"facts": "all", "threshold": 0.01})
    path = tmp_path / "page.html"
    path.write_text(dashboard_text(open_study([top]), draws=100), encoding="utf-8")
    with chromium() as browser:
        for width in (1440, 390):
            with opened(browser, path, width=width, height=900, hash="#room=patches") as shown:
                shown.wait_for_selector("#patches .js-plotly-plot >> visible=true")
                assert shown.locator("#patches .js-plotly-plot").count() == 2
                assert shown.evaluate("document.documentElement.scrollWidth") <= width
                names = shown.locator("#patches select[aria-label=Patched] option").all_inner_texts()
                assert any("grafts" in name for name in names) and any(
                    "restoration" in name for name in names
                )
                last = names[-1]
                shown.select_option("#patches select[aria-label=Patched]", label=last)
                assert "pair=" in shown.evaluate("location.hash")
                assert "Arms, over training seeds" in shown.inner_text("#patches")
                assert shown.locator("#patches table.patched tbody tr").count() >= 1
        with opened(browser, path, hash="#factoid=Selva") as shown:
            shown.wait_for_selector("#detail h4:has-text('What patches move')")
            assert shown.locator("#detail svg[role=img]").count() >= len(RUNS)


def write_grafts(folder):
    """Patches of :func:`tests.patched.write_patched`, whose grafts are of two blocks each."""
    write_patched(folder)
    path = folder / "patches" / "s1-into-s2.weights.all.parquet"
    write_parquet(
        pl.read_parquet(path).with_columns(last=pl.col("depth") + 1).filter(pl.col("depth") < 4), path
    )
    return folder


def test_grafts_of_several_blocks_are_named_by_all_of_them(tmp_path):
    views = patches_data([open_patches(write_grafts(tmp_path))])["views"]
    (grafts,) = [view for view in views if view["kind"] == "weights" and view["name"].endswith("by grafts")]
    (sweep,) = grafts["sweeps"]
    assert sweep["places"] == ["1–2", "2–3", "3–4"] and {row[6] for row in sweep["rows"]} == {"2–3"}
    assert "block 2–3 moves most" in grafts["sentences"][0]
    states = [view for view in views if view["kind"] == "states"]
    assert {row[6] for view in states for sweep in view["sweeps"] for row in sweep["rows"]} <= {
        *"01234",
        None,
    }


@pytest.mark.parametrize("depths", [[0, 10, 20, 30], [0, 1, 2, 3], [5], list(range(0, 40, 2))])
def test_cells_and_ticks_stand_at_the_depths_that_were_patched(depths):
    sweep = {"source": "a", "target": "b", "what": "residual", "positions": "last", "parts": "", "window": 1}
    rows = [
        sweep
        | {"direction": "restoration", "depth": depth, "moved": 0.5, "low": 0.4, "high": 0.6, "other": 0.1}
        for depth in depths
    ]
    table = pl.DataFrame(rows).with_columns(random=pl.lit(None, pl.Float64))
    heatmap, curves = restoration_heatmap(table), restoration_curves(table)
    (cells,) = heatmap.data
    every = depths == list(range(depths[0], depths[-1] + 1))
    assert list(cells.x) == (depths if every else [str(depth) for depth in depths])
    assert heatmap.layout.xaxis.type == (None if every else "category")
    assert list(curves.layout.xaxis.tickvals) == depths
    (line,) = [trace for trace in curves.data if trace.meta["role"] == "line"]
    assert list(line.x) == depths
    (half,) = curves.layout.shapes
    assert half.line.dash is None and half.y0 == 0.5, "what is dotted is the control"
    assert [note.text for note in curves.layout.annotations] == ["half"]
    alone = restoration_curves(table.with_columns(other=pl.lit(None, pl.Float64)))
    assert not [trace for trace in alone.data if trace.meta["role"] == "control"]


def test_depths_that_were_not_patched_are_not_said_to_move_nothing(top, study, tmp_path):
    from typer.testing import CliRunner

    from memprobe.cli.app import app

    pair = ["--from", f"s1={study / 'naive-0' / '1-a'}", "--into", f"s2={study / 'naive-0' / '2-b'}"]
    shared = ["--factoids", str(study / "facts.jsonl"), "--threshold", "0.01", "--device", "cpu"]
    done = CliRunner().invoke(app, ["patch", *pair, *shared, "--depths", "0-1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "median and mean need every depth; at none of those patched (0–1)" in done.output
    assert "median depth" not in done.output and "one depth further" not in done.output
    found = open_patches(tmp_path)
    assert tables_of(found, threshold=0.01)["arms"].is_empty()
    views = patches_data([found], threshold=0.01)["views"]
    assert all("depths patched (0–1)" in view["sentences"][0] for view in views)
    assert not any(sweep["every"] for view in views for sweep in view["sweeps"])
    views = patches_data([open_patches(top / "states")], threshold=0.01)["views"]
    assert all(sweep["every"] for view in views for sweep in view["sweeps"])
