"""The report on stored patches between real stages: made from them alone, and the same as what is kept."""

import shutil

import polars as pl
import pytest

from analyses.where.report import HERE, report, sections
from memprobe.errors import MemprobeError
from memprobe.patches import open_patches
from tests.patched import N_LAYERS, write_patched


def test_the_report_is_made_of_the_stored_patches(tmp_path):
    """Fact i comes back at depth 1 + i % N_LAYERS, and the target kept the first: so says every row."""
    for name in ("states", "weights", "erasure"):
        write_patched(tmp_path / name)
    shutil.copy(HERE / "relearn.parquet", tmp_path)
    made = {title: (head, rows) for title, _, head, rows in sections(tmp_path)}
    first = {row[1]: row for row in made["From which depth stage 1's state gives half of a fact back"][1]}
    assert first["overwritten"][:3] == ["s2", "overwritten", "11 of 11"] and first["retained"][2] == "1 of 1"
    depths = [1 + i % N_LAYERS for i in range(1, 12)]
    assert first["overwritten"][4] == f"{sum(depths) / len(depths):.1f}", "of eleven, without an interval"
    [graft] = made["Grafts of stage 1's blocks"][1]
    assert graft[2] == "2" and graft[4].startswith("90.0%")
    assert not made["Does the arm matter?"][1] and not made["How much is erased"][1], "one pair, no reference"
    by_depth = {row[1]: row for row in made["Share given back by depth"][1]}
    assert by_depth["0"][3].startswith("10.0%") and by_depth["0"][4] == "-1200%"
    with pytest.raises(MemprobeError, match="holds no patches"):
        report(tmp_path / "none")


def test_what_is_stored_is_whole_and_says_what_the_report_says():
    for name in ("states", "weights", "erasure"):
        found = open_patches(HERE / name)
        assert found.pairs and all(entry["complete"] for entry in found.run["pairs"].values())
        assert set(found.factoids["source"]) == {"kvr"}, "made-up keys alone"
        assert len(found.table) and not any("/" in str(label) for pair in found.pairs for label in pair)
    assert len(pl.read_parquet(HERE / "relearn.parquet"))
    assert (HERE / "report.md").read_text(encoding="utf-8") == report(HERE)
