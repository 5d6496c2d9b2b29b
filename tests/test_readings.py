"""Readings: what belongs together, and tables made alone."""

from __future__ import annotations

from memprobe.compare import TABLES, compare
from memprobe.members import chains_of
from memprobe.readings import Readings
from tests.probes import write_probe

STAGES = {
    "s1": {"arm": "none", "seed": 0, "stage": 1, "stage_name": "a"},
    "s2b": {"arm": "none", "seed": 0, "stage": 2, "stage_name": "b"},
    "s2c": {"arm": "none", "seed": 0, "stage": 2, "stage_name": "c"},
}


def test_a_table_made_alone_is_the_comparison_s(tmp_path):
    probe = write_probe(
        tmp_path / "own",
        {"base": 7, "s1": 4, "s2b": 6},
        manifests={"s1": STAGES["s1"], "s2b": STAGES["s2b"]},
        summary=False,
    )
    whole = compare([probe], draws=200).tables
    readings = Readings.of([probe], draws=200)
    for name, table in TABLES.items():
        alone = table(readings)
        assert alone.schema == table.schema == whole[name].schema
        assert alone.equals(whole[name]), name
    pair = TABLES["differences"](readings, [("s1", "s2b")])
    other = compare([probe], reference="s1", draws=200).tables["differences"]
    assert pair.equals(other.filter(reference="s1", checkpoint="s2b"))


def test_another_k_is_another_reading_of_the_same_records(tmp_path):
    probe = write_probe(tmp_path / "own", {"base": 7, "s1": 4}, summary=False)
    strict = Readings.of([probe], draws=200).under(k=1)
    assert TABLES["placement"](strict).equals(compare([probe], k=1, draws=200).tables["placement"])
    every = Readings.of([probe], draws=200).under(token="all")
    assert TABLES["placement"](every).equals(compare([probe], token="all", draws=200).tables["placement"])


def test_runs_that_end_on_different_data_are_a_chain_each(tmp_path):
    probe = write_probe(
        tmp_path / "own", {"base": 7, "s1": 4, "s2b": 6, "s2c": 5}, manifests=STAGES, summary=False
    )
    readings = Readings.of([probe], draws=200)
    assert [chain.labels for chain in chains_of(readings.members)] == [["s1", "s2b"], ["s1", "s2c"]]
    assert readings.before == [("s1", "s2b"), ("s1", "s2c")]
    assert readings.base is not None and readings.base.label == "base"
