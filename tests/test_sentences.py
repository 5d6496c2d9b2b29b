"""The sentences that come first, against rows worked by hand."""

from __future__ import annotations

import pytest

import memprobe
from memprobe import sentences, wording
from memprobe.compare import compare, read_comparison
from tests.probes import write_probe


def said(**changes):
    facts = {"n": 295, "n_layers": 30, "k": 10, "exact": 0.44, "median": 30.0, "never": 0.2}
    return sentences.of_checkpoint("SmolLM2", **(facts | changes))


def test_a_checkpoint_in_a_sentence():
    assert said(chance_never=0.81) == (
        "SmolLM2 recalls 44% of 295 facts. The median fact reaches the top 10 only at the last depth, 30 of 30; "
        "20% never do (chance: 81%)."
    )
    assert "at depth 12 of 30;" in said(median=12.0)
    assert "Fewer than half of them ever reach" in said(median=None)


@pytest.mark.parametrize(
    ("net", "wanted"),
    [
        ((-4.0, -5.0, -3.0), "4.0 [3.0, 5.0] depths earlier"),
        ((2.0, 1.0, 3.0), "2.0 [1.0, 3.0] depths later"),
        ((-0.5, -1.5, 0.5), "no earlier and no later beyond chance"),
    ],
)
def test_a_difference_says_which_way_and_how_sure(net, wanted):
    assert wanted in said(net=net)


def test_numbers_are_written_one_way():
    assert wording.interval(0.5, 0.25, 0.75) == "0.50 [0.25, 0.75]"
    assert wording.interval(3.0, 2.0, None, ".0f", open_ended=True) == "3 [2, ∞]"
    assert (wording.interval(3.0, None, None), wording.interval(None, 1.0, 2.0)) == ("3.00", "–")
    assert wording.spans([1, 2, 3, 7]) == "1–3, 7"


def test_a_comparison_reads_in_ten_lines(tmp_path):
    probe = write_probe(tmp_path / "own", {"base": 7.0, "early": 3.0}, summary=False)
    result = compare([probe], draws=200)
    lines = sentences.verdict(result)
    assert len(lines) == 2 and lines[1].startswith("early against base:")
    table = result.tables["differences"].filter(statistic="lof_restricted", on="all")
    row = table.row(0, named=True)
    assert row["high"] < 0, "the truth planted: facts surface earlier"
    assert f"{-row['difference']:.1f} [{-row['high']:.1f}, {-row['low']:.1f}] depths earlier" in lines[1]
    assert "not checked in the base model's readout" in lines[1]
    assert len(repr(result)) < 500 and "<p>" in result._repr_html_()
    assert "base, early" in repr(memprobe.open_probe(tmp_path / "own"))
    result.write(tmp_path / "out")
    again = read_comparison(tmp_path / "out" / "comparison.json")
    assert sentences.verdict(again) == lines
    assert all(again.tables[name].schema == table.schema for name, table in result.tables.items())
