"""The sentences that come first, against rows worked by hand."""

from __future__ import annotations

import html

import polars as pl
import pytest

import memprobe
from memprobe import sentences, wording
from memprobe.compare import compare, read_comparison
from memprobe.compare.beside import lens_cells
from memprobe.errors import among, there_are
from memprobe.sentences import checkpoints
from tests.probes import write_probe


def said(**changes):
    facts = {"n": 295, "n_layers": 30, "k": 10, "exact": 0.44, "median": 30.0, "never": 0.2}
    return sentences.of_checkpoint("SmolLM2", **(facts | changes))


def test_a_checkpoint_in_a_sentence():
    assert said(chance_never=0.81) == (
        "SmolLM2 recalls 44% of 295 facts (exact match). The median fact reaches the top 10 only at the last depth, "
        "30 of 30; 20% never do (chance: 81%)."
    )
    assert "at depth 12 of 30;" in said(median=12.0)
    some = said(chance_never=0.81, net=[-0.6, -1.6, 0.3], net_n=120)
    assert "(chance: 81% of the 120 that have shuffled answers)" in some
    assert "over the 120 of 295 facts that have any" in some
    assert "of the" not in said(chance_never=0.81, net_n=295)
    assert "Fewer than half of them ever reach" in said(median=None)


def test_where_nothing_surfaces_none_does():
    none = said(exact=0.0, median=None, never=1.0, chance_never=1.0)
    assert none == (
        "SmolLM2 recalls 0% of 295 facts (exact match). None of them ever reaches the top 10 "
        "(chance: 100% never do)."
    )
    assert said(median=None, never=1.0).endswith("None of them ever reaches the top 10.")
    few = said(median=None, never=294 / 295)
    assert few.endswith("Fewer than half of them ever reach the top 10; 99.7% never do.")


@pytest.mark.parametrize(
    ("of", "none", "some", "most"),
    [(295, "0%", "0.3%", "99.7%"), (3000, "0%", "0.03%", "99.97%"), (30_000, "0%", "0.003%", "99.997%")],
)
def test_one_fact_is_not_rounded_away(of, none, some, most):
    """One of three thousand facts that surfaces was said not to: 100.0% never do."""
    assert f"recalls {none} of {of:,} facts" in said(n=of, exact=0.0)
    assert f"recalls {some} of" in said(n=of, exact=1 / of) and f"; {most} never do" in said(never=1 - 1 / of)
    assert f"recalls {most} of" in said(n=of, exact=1 - 1 / of) and f"; {some} never do" in said(never=1 / of)
    assert f"(chance: {most})" in said(chance_never=1 - 1 / of)
    assert "recalls 100% of" in said(exact=1.0) and "recalls 44% of" in said(exact=0.4449)


@pytest.mark.parametrize(
    ("seeds_of_depth", "wanted"),
    [
        ((3, 3), "naive after stage 2, 3 seeds: +40 [+30, +50] points of exact match; facts surface"),
        ((5, 3), "naive after stage 2: +40 [+30, +50] points of exact match (3 seeds); facts surface 2.0 [1.0, 3.0] "
                 "depths earlier (5 and 3 seeds)."),
    ],
)  # fmt: skip
def test_arms_in_a_sentence_say_over_how_many_seeds_of_either(seeds_of_depth, wanted):
    row = {"arm": "replay(ratio=0.1)", "reference": "none", "stage": "2", "seeds": 3, "reference_seeds": 3}
    exact = row | {"statistic": "exact", "difference": 0.4, "low": 0.3, "high": 0.5}
    depth = row | {"statistic": "lof_restricted", "difference": -2.0, "low": -3.0, "high": -1.0}
    depth |= dict(zip(("seeds", "reference_seeds"), seeds_of_depth, strict=True))
    [line] = checkpoints._of_arms(pl.DataFrame([exact, depth]))
    assert wanted in line


def arms_at(*told, seeds=3):
    """Rows of differences from naive training: (arm, stage, difference in depths, low, high)."""
    rows = [
        {"arm": arm, "reference": "none", "stage": stage, "seeds": seeds, "reference_seeds": 3}
        | {"statistic": "lof_restricted", "difference": value, "low": low, "high": high}
        for arm, stage, value, low, high in told
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def test_an_arm_without_the_last_stage_is_told_at_its_own_last_one():
    table = arms_at(("replay(ratio=0.1)", "2", -4.0, -5.0, -3.0), ("ewc(strength=1)", "2", -2.0, -3.0, -1.0),
                    ("ewc(strength=1)", "3", -1.0, -1.5, -0.5))  # fmt: skip
    assert checkpoints._of_arms(table) == [
        "EWC 1 against naive after stage 3, 3 seeds: facts surface 1.0 [0.5, 1.5] depths earlier.",
        "replay 0.1 against naive after stage 2, 3 seeds: facts surface 4.0 [3.0, 5.0] depths earlier.",
    ]


@pytest.mark.parametrize(
    ("seeds", "value", "facts", "wanted"),
    [
        (3, -1.0, 40, "a against naive after stage 2, 3 seeds: facts surface 1.0 depths earlier (no interval: nothing "
                      "scatters)."),
        (2, -1.0, 40, "No interval after stage 2, too few seeds: a."),
        (3, -1.0, 1, "No interval after stage 2, too few facts: a."),
        (3, None, 40, "No interval after stage 2, not known under every seed: a."),
    ],
)  # fmt: skip
def test_an_arm_without_an_interval_says_why(seeds, value, facts, wanted):
    table = pl.concat([arms_at(("b", "2", -2.0, -3.0, -1.0)), arms_at(("a", "2", value, None, None), seeds=seeds)],
                      how="vertical_relaxed")  # fmt: skip
    assert checkpoints._of_arms(table, facts)[1:] == [wanted]


@pytest.mark.parametrize(
    ("net", "wanted"),
    [
        (
            (-4.0, -5.0, -3.0),
            "On average facts surface 4.0 [3.0, 5.0] depths earlier than shuffled answers, counting never as 31.",
        ),
        ((2.0, 1.0, 3.0), "2.0 [1.0, 3.0] depths later than shuffled answers"),
        (
            (-1.1, None, None),
            "1.1 depths earlier than shuffled answers, counting never as 31 "
            "(too few different answers for an interval).",
        ),
        (
            (0.0, None, None),
            "as deep as shuffled answers surface, counting never as 31 (too few different answers for an interval).",
        ),
        (
            (-0.5, -1.5, 0.5),
            "No difference in depth from shuffled answers is seen (-0.5 [-1.5, +0.5] depths on average, "
            "counting never as 31).",
        ),
        (
            (0.0, -20.0, 20.0),
            "No difference in depth from shuffled answers is seen (+0.0 [-20.0, +20.0] depths",
        ),
        ((0.03, 0.02, 0.04), "On average facts surface 0.03 [0.02, 0.04] depths later than shuffled answers"),
        ((0.0, 0.0, 0.0), "On average that is as deep as shuffled answers surface, counting never as 31."),
    ],
)
def test_a_difference_says_which_way_and_how_sure(net, wanted):
    assert wanted in said(net=net)


def kept(**retention):
    """The sentence on arms and what they keep, in this order; naive training is called plain here."""
    rows = [
        {"setup": "ab", "arm": arm, "arm_text": "none" if arm == "plain" else f"x({arm})", "retention": share}
        | {"low": None, "high": None, "missing": None if share is not None else "did not learn D_B"}
        for arm, share in retention.items()
    ]
    schema = dict.fromkeys(("retention", "low", "high"), pl.Float64) | {"missing": pl.String}
    (line,) = sentences.of_retention(pl.DataFrame(rows, schema_overrides=schema))
    return line


def test_what_is_kept_names_the_best_of_all_arms_wherever_naive_training_stands():
    keeps = "After the last stage, plain keeps 50% of the facts of stage 1 (D_A)."
    assert kept(plain=0.5, a=0.9, b=0.1) == f"{keeps} Most is kept by a, 90%."
    assert kept(b=0.1, a=0.9, c=0.7, plain=0.5) == f"{keeps} Most is kept by a, 90%; c, 70%."
    assert kept(plain=0.5, a=0.5, b=0.1) == f"{keeps} No arm keeps more; next is a, 50%."
    assert kept(plain=0.5) == keeps


def test_the_last_kept_facts_are_not_rounded_away_and_arms_that_rank_apart_are_not_written_alike():
    rows = [("naive", "none", 0.004, 0.0, 0.01), ("EWC", "ewc(strength=1)", 0.0041, 0.0004, 0.012)]
    columns = ["arm", "arm_text", "retention", "low", "high"]
    table = pl.DataFrame(rows, schema=columns, orient="row").with_columns(setup=pl.lit("ab"))
    assert sentences.of_retention(table) == [
        "After the last stage, naive keeps 0.40% [0.00, 1.00] of the facts of stage 1 (D_A). "
        "Most is kept by EWC, 0.41% [0.04, 1.20]."
    ]
    assert "plain keeps 0.1% of" in kept(plain=1 / 1500) and "plain keeps 0% of" in kept(plain=0.0)
    assert "plain keeps 99.7% of" in kept(plain=0.997) and "plain keeps 100% of" in kept(plain=1.0)
    assert kept(plain=0.44, a=0.44 + 1e-15, b=0.4).endswith(" Most is kept by a, 44%.")


def test_what_is_kept_where_an_arm_has_no_number():
    best = "After the last stage, most of the facts of stage 1 (D_A) is kept by a, 90%; b, 10%."
    assert kept(plain=None, b=0.1, a=0.9) == f"{best} plain did not learn D_B."
    assert kept(b=0.1, a=0.9) == best
    nothing = "Nothing can be said of what is kept: plain did not learn D_B; a did not learn D_B."
    assert kept(plain=None, a=None) == nothing


def test_naive_training_is_known_by_its_name_where_a_table_has_no_texts():
    rows = {"setup": ["ab"] * 2, "arm": ["a", "naive"], "retention": [0.1, 0.5], "low": [None] * 2}
    (line,) = sentences.of_retention(pl.DataFrame(rows | {"high": [None] * 2}))
    assert line.startswith("After the last stage, naive keeps 50%")


def test_where_facts_surface_over_seeds():
    claim = {"setup": "ab", "claim": "surfaces earlier after stage 1", "against": "naive", "seeds": 3}
    found = [
        ("a", "seen", -3.1, -4.0, -2.2),
        ("b", "undecided", 0.2, -0.1, 0.5),
        ("c", "not tested", 9.0, 8.0, 10.0),
    ]
    rows = [
        claim | dict(zip(("arm", "verdict", "estimate", "low", "high"), one, strict=True)) for one in found
    ]
    assert sentences.of_placements(pl.DataFrame(rows)) == [
        "Do facts surface earlier after stage 1 than with naive (3 seeds)? Seen for a, 3.1 [2.2, 4.0] depths earlier; "
        "undecided for b, +0.2 [-0.1, +0.5] depths."
    ]
    more = [one | {"setup": setup, "verdict": "undecided"} for setup in ("ab", "cd") for one in rows[:2]]
    assert sentences.of_placements(pl.DataFrame(more))[1] == (
        "cd: do facts surface earlier after stage 1 than with naive (3 seeds)? Undecided for all 2 arms "
        "(most: a, 3.1 [2.2, 4.0] depths earlier)."
    )
    assert sentences.of_placements(pl.DataFrame(rows[2:])) == []
    # b has more seeds than a: neither is said to have the other's
    assert sentences.of_placements(pl.DataFrame([rows[0], rows[1] | {"seeds": 5}])) == [
        "Do facts surface earlier after stage 1 than with naive? Seen for a, 3.1 [2.2, 4.0] depths earlier, 3 seeds; "
        "undecided for b, +0.2 [-0.1, +0.5] depths, 5 seeds."
    ]
    unsure = [
        one | {"verdict": "undecided", "seeds": seeds} for one, seeds in zip(rows[:2], (3, 5), strict=True)
    ]
    assert sentences.of_placements(pl.DataFrame(unsure))[0].endswith(
        "Undecided for all 2 arms (most: a, 3.1 [2.2, 4.0] depths earlier, 3 seeds)."
    )


def test_what_does_not_change_is_said_so():
    same, row = {"difference": 0.0, "low": 0.0, "high": 0.0}, {"difference": 1.0, "low": 0.5, "high": 1.5}
    assert "b against a: exact match is the same; facts surface" in sentences.against(
        "b", "a", same, row, None
    )
    unsure = {"difference": 0.0, "low": None, "high": None}
    assert sentences.against("b", "a", unsure, unsure, None) == (
        "b against a: exact match is the same (too few facts for an interval); "
        "first occurrence is the same (too few facts for an interval)."
    )


def test_many_pairs_say_what_changed_first():
    moved = {"difference": -2.0, "low": -3.0, "high": -1.0}
    still = {"difference": 0.1, "low": -0.2, "high": 0.4}
    pairs = [("b", "a", still, still, None), ("c", "b", still, moved, True)]
    assert sentences.of_pairs(pairs) == [sentences.against(*pair) for pair in pairs]
    more = [*pairs, ("d", "c", still, still, None), ("e", "d", moved, still, None)]
    assert sentences.of_pairs(more) == [
        sentences.against(*more[1]),
        sentences.against(*more[3]),
        "No clear difference in exact match or in depth: b against a; d against c.",
    ]


def test_a_small_difference_is_not_written_as_none():
    small = {"difference": -0.03, "low": -0.05, "high": -0.01}
    said = sentences.against(
        "b", "a", small | {"difference": 0.001, "low": 0.0005, "high": 0.002}, small, True
    )
    assert "+0.1 [+0.1, +0.2] points of exact match" in said
    assert "facts surface 0.03 [0.01, 0.05] depths earlier, also" in said


@pytest.mark.parametrize(
    "name,counts,few",
    [
        ("lof_restricted_mean", {"lof_n": 19}, True),
        ("lof_restricted_mean", {"lof_n": 20}, False),
        ("settled_restricted_mean", {"lof_n": 100, "settled_n": 12}, True),
        ("settled_restricted_mean", {"lof_n": 12, "settled_n": 20}, False),
        ("settled_restricted_mean", {"lof_n": 12}, True),
        ("lof_sd", {"lof_n": 59}, True),
        ("effective_layers", {"lof_n": 59}, True),
        ("depths_per_factoid", {"lof_n": 59}, False),
        ("lof_median", {"lof_n": 2}, False),
        ("area", {}, False),
    ],
)
def test_too_few_is_said_by_the_rule_that_leaves_the_interval_out(name, counts, few):
    text = wording.of_row(counts | {name: 5.0}, name)
    assert text == ("5.00 (too few)" if few else "5.00")


def test_numbers_are_written_one_way():
    assert wording.interval(0.5, 0.25, 0.75) == "0.50 [0.25, 0.75]"
    assert wording.interval(3.0, 2.0, None, ".0f", open_ended=True) == "3 [2, ∞]"
    assert (wording.interval(3.0, None, None), wording.interval(None, 1.0, 2.0)) == ("3.00", "–")
    assert wording.spans([1, 2, 3, 7]) == "1–3, 7"


def test_a_comparison_reads_in_ten_lines(tmp_path):
    probe = write_probe(tmp_path / "own", {"base": 7.0, "early": 3.0}, summary=False)
    result = compare([probe], draws=200)
    lines = result.verdict()
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
    assert again.verdict() == lines
    assert all(again.tables[name].schema == table.schema for name, table in result.tables.items())


def along_steps(path):
    never = {"run/step-0": 0.9, "run/step-10": 0.3, "run/step-20": 0.05}
    depths = {"run/step-0": 8.0, "run/step-10": 5.0, "run/step-20": 3.0}
    return write_probe(path, depths, n=60, never=never, summary=False)


def test_checkpoints_of_one_run_are_told_as_one(tmp_path):
    result = compare([along_steps(tmp_path / "probe")], draws=200)
    steps = result.tables["steps"]
    assert steps["step"].to_list() == [0, 10, 20] and set(steps["run"]) == {"run"}
    (line,) = sentences.of_steps(steps)
    first, _, last = steps.to_dicts()
    assert line.startswith(
        f"From step 0 to 20 of run, 3 checkpoints: exact match goes from {first['exact']:.0%} to {last['exact']:.0%}, "
        "half of the facts by step 10;"
    )
    assert f"from depth {first['lof_restricted_mean']:.1f} to {last['lof_restricted_mean']:.1f} of 8" in line
    lines = result.verdict()
    assert line in lines
    assert [one.partition(" against")[0] for one in lines if " against run/step-0" in one] == ["run/step-20"]


def test_the_same_answer_as_markdown_and_html(tmp_path):
    result = compare([along_steps(tmp_path / "probe")], draws=200)
    text, page = result.markdown(), result._repr_html_()
    for line in result.verdict():
        assert line in text and html.escape(line) in page
    row = result.tables["placement"].row(0, named=True)
    cells = [
        cell.strip()
        for cell in text.splitlines()
        if cell.startswith("| run/step-0")
        for cell in cell.split("|")
    ]
    assert cells[2:4] == [f"{row['exact']:.0%}", f"{row['share_never']:.0%}"]
    assert f"{row['net_lof_restricted_mean']:+.1f}" in cells[6]
    assert "counting never as depth 9" in text
    result.write(tmp_path / "out")
    assert (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8") == text


def test_what_there_is_instead_of_a_name_is_said():
    assert among("relatoin", ["relation", "source"]) == "choose relation, source; did you mean relation?"
    assert among("Base", ["base", "tuned"], before="there are") == "there are base, tuned; did you mean base?"
    assert among("zzz", []) == "choose none"
    assert there_are("x", range(30)).endswith("18, 19, 10 more")
    assert there_are("Base", ["base"], before="it has") == "it has base; did you mean base?"
    assert among("x", range(30), before="there are").endswith("28, 29"), "no choice is hidden"


def test_a_difference_from_chance_without_an_interval_says_why():
    row = {"net": -1.5, "net_low": None, "net_high": None, "n": 5}
    assert wording.net_of_row(row, "net", "+.1f") == "-1.5 (too few)"
    assert wording.net_of_row(row | {"net": None}, "net", "+.1f") == wording.MISSING
    assert wording.net_of_row(row | {"net_low": -2.0, "net_high": -1.0}, "net", "+.1f") == "-1.5 [-2.0, -1.0]"
    lens = row | {"lens": "tuned", "lof": 3.0, "lof_low": None, "never": 0.0, "difference": None}
    assert "-1.5 (too few)" in lens_cells(lens | {"agree": None, "floor": None})
