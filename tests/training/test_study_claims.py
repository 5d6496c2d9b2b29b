"""The book of claims, and what a study's tables say of them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from analyses.claims import verdicts_table
from memprobe.errors import MemprobeError
from memprobe.statistics.shares import share_difference
from training.show import print_results
from training.study.claim_book import BOOK, Book, read_book
from training.study.claims import claims, specification
from training.study.results import Results

BOTH = ("own", "base-readout")
GENERIC, CONTROL = "remix(data=generic, stages=1)", "matched(to=steps, data=generic, stages=1)"


def difference(arm: str, value: float, half: float | None, p: float | None, **told) -> dict:
    row = {
        "setup": "s",
        "k": 10,
        "token": "first",
        "readout": "own",
        "arm": arm,
        "reference": "none",
        "stage": "2",
        "statistic": "exact",
        "seeds": 3,
        "reference_seeds": 3,
        "in_common": "rows",
        "paired": False,
        "difference": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
        "p": p,
        "detectable": 0.2,
    }
    return row | told


def cell(arm: str, seed: int, **told) -> dict:
    row = {"setup": "s", "arm": arm, "arm_text": arm, "seed": seed, "learned": True, "plain_last": True}
    row |= {
        "steps": 100,
        "tokens": 1000,
        "weight_change": 5.0 + seed,
        "cosine_start": 0.1,
        "retention": 0.5,
    }
    row |= {"d_a": "kvr", "d_b": "lama", "d_c": None, "n": 64}
    return row | told


CELLS = [cell("none", seed) for seed in range(3)]
NUMBERS = dict.fromkeys(("ratio", "error"), pl.Float64)


def tables(differences=(), cells=CELLS, arms=(), kept=(), spread=(), ranks=()) -> Results:
    def frame(rows, **options) -> pl.DataFrame:
        return pl.DataFrame(list(rows), infer_schema_length=None, **options)

    where = ["setup", "k", "token", "readout", "checkpoint", "arm", "stage", "seed"]
    widths = frame(spread, schema_overrides=NUMBERS if spread else None)
    return Results(
        cells=frame(cells),
        stages=frame(
            {"setup": row["setup"], "dataset": f"1-{row['d_a']}", "metric": "exact_match"} for row in cells
        ),
        retained=frame([]),
        placement=widths.select(where) if spread else frame([]),
        arms=frame(arms),
        differences=frame(differences),
        spread=widths.drop("arm", "stage", "seed") if spread else frame([]),
        lost=frame([]),
        kept=frame(kept),
        depth_and_retention=frame(ranks),
    )


def book(*claims: dict, readings=((10, "first"),)) -> Book:
    base = {"family": "f", "says": "", "about": "difference", "side": "above", "statistic": "exact"}
    return Book(
        schema=1,
        readings=[{"k": k, "token": token} for k, token in readings],
        families={"f": "", "g": ""},
        claims=[{"against": "naive", **base, **claim} for claim in claims],
    )


def verdicts(found: pl.DataFrame) -> dict:
    return dict(found.select("arm", "verdict").iter_rows())


def test_the_shipped_book_is_whole():
    found = read_book(BOOK)
    assert found.readings[0].k == 10 and len(found.readings) == 2
    assert {claim.family for claim in found.claims} == set(found.families)
    assert all(
        claim.equivalent is not None
        for claim in found.claims
        if claim.about != "gradients" and not claim.threshold
    )


def test_five_verdicts_of_arms():
    rows = [
        difference(GENERIC, 0.4, 0.1, 0.001),
        difference("kl(strength=1)", -0.3, 0.1, 0.001),
        difference("replay(ratio=0.1)", 0.01, 0.03, 0.6),
        difference("lora(rank=1)", 0.15, 0.3, 0.3),
        difference("joint", 0.9, None, None),
    ]
    found = claims(tables(rows), book({"name": "keeps more", "equivalent": 0.05}))
    assert list(verdicts(found).values()) == ["seen", "contradicted", "equivalent", "undecided", "not tested"]
    assert found["evidence"][0] == "own: +0.400 [+0.300, +0.500]; 3 seeds"
    more = claims(tables([rows[0] | {"seeds": 5}]), book({"name": "keeps more"}))
    assert more["seeds"].to_list() == [3] and more["evidence"][0].endswith("; 3 seeds"), "naive has three"


def test_an_inert_arm_is_not_tested_and_says_why():
    cells = [
        *CELLS,
        *(cell("ewc(strength=1)", seed, weight_change=(5.0 + seed) * 1.0002) for seed in range(3)),
    ]
    found = claims(
        tables([difference("ewc(strength=1)", 0.0, 0.01, 0.9)], cells),
        book({"name": "x", "equivalent": 0.05}),
    )
    assert found["verdict"].to_list() == ["not tested"]
    assert "inert" in found["evidence"][0]


def test_a_family_is_tested_together():
    """Three arms with p of 0.03: alone each is seen, together none."""
    rows = [difference(arm, 0.4, 0.1, 0.03) for arm in (GENERIC, "joint", "kl(strength=1)")]
    one = claims(tables(rows[:1]), book({"name": "x"}))
    every = claims(tables(rows), book({"name": "x"}))
    assert set(one["verdict"]) == {"seen"} and set(every["verdict"]) == {"undecided"}
    assert every["p_family"].to_list() == pytest.approx([0.09] * 3)
    apart = claims(
        tables(rows),
        book({"name": "x", "arms": "mixing"}, {"name": "y", "family": "g", "arms": "not mixing"}),
    )
    assert verdicts(apart)[GENERIC] == "seen"


def test_a_claim_must_hold_in_every_lens():
    lenses = {"lenses": ["own", "base-readout", "net"], "statistic": "lof_restricted", "side": "below"}
    told = {"statistic": "lof_restricted"}
    rows = [
        difference(GENERIC, -1.0, 0.2, 0.001, **told),
        difference(GENERIC, -0.9, 0.2, 0.001, readout="base-readout", **told),
        difference(GENERIC, -0.1, 0.2, 0.3, statistic="lof_restricted_net"),
    ]
    assert verdicts(claims(tables(rows), book({"name": "x", **lenses})))[GENERIC] == "undecided"
    rows[2] = difference(GENERIC, -0.8, 0.2, 0.001, statistic="lof_restricted_net")
    found = claims(tables(rows), book({"name": "x", **lenses}))
    assert verdicts(found)[GENERIC] == "seen"
    assert found["evidence"][0].startswith("own: -1.000") and "net: -0.800" in found["evidence"][0]
    one_lacks_it = difference(GENERIC, -0.8, None, None, statistic="lof_restricted_net") | {
        "difference": None
    }
    without = claims(tables([*rows[:2], one_lacks_it]), book({"name": "x", **lenses}))
    assert "not known under every seed in: net" in without["evidence"][0]
    without = claims(tables(rows[:2]), book({"name": "x", **lenses}))
    assert without["verdict"].to_list() == ["not tested"] and "not read in: net" in without["evidence"][0]


def test_replay_is_asked_of_what_it_does_not_show_again():
    rows = [
        difference("replay(ratio=0.1)", 0.3, 0.1, 0.001),
        difference("replay(ratio=0.1)", 0.02, 0.1, 0.7, statistic="exact_unseen"),
    ]
    found = claims(tables(rows), book({"name": "x", "equivalent": 0.05}))
    assert found["verdict"].to_list() == ["undecided"] and found["estimate"].to_list() == [0.02]
    assert found["evidence"][0].endswith("of facts that are not shown again; 3 seeds")
    for arm in ("replay(ratio=1)", "joint"):
        all_again = claims(tables([difference(arm, 0.9, 0.1, 0.001)]), book({"name": "x"}))
        assert all_again["evidence"][0].endswith("every fact is shown again; 3 seeds"), "said, if it is so"
    assert (
        "shown again"
        not in claims(tables([difference(GENERIC, 0.9, 0.1, 0.001)]), book({"name": "x"}))["evidence"][0]
    )


def test_each_set_up_is_claimed_of_after_its_own_last_stage():
    """One of three stages beside one of two takes no claim from it."""
    rows = [
        difference(GENERIC, 0.4, 0.1, 0.001, setup="two"),
        difference(GENERIC, 0.3, 0.1, 0.001, setup="three"),
        difference(GENERIC, 0.2, 0.1, 0.001, setup="three", stage="3"),
    ]
    cells = [cell("none", seed, setup=setup) for setup in ("two", "three") for seed in range(3)]
    found = claims(tables(rows, cells), book({"name": "x"}))
    assert found.select("setup", "stage", "estimate").rows() == [("two", 2, 0.4), ("three", 3, 0.2)]


def test_matched_controls_and_mixing_arms():
    rows = [
        difference(GENERIC, 0.4, 0.1, 0.001, reference=CONTROL),
        difference("joint", 0.4, 0.1, 0.001, reference=CONTROL),
        difference(CONTROL, 0.1, 0.01, 0.001),
    ]
    cells = [cell(arm, seed) for arm in ("none", GENERIC, "joint", CONTROL) for seed in range(3)]
    found = claims(
        tables(rows, cells), book({"name": "x", "against": "matched", "arms": "mixing"}, {"name": "y"})
    )
    assert found.select("claim", "arm", "against").rows() == [("x", GENERIC, CONTROL)]


@pytest.mark.parametrize(
    ("arm", "tokens", "controls"),
    [
        (GENERIC, 1000, ["steps", "tokens"]),
        (GENERIC, 700, ["steps"]),  # its rows are shorter than those that the control was matched to
        ("remix(data=generic, stages=2)", 1000, []),
        ("remix(data=generic, stages=1)+ewc(strength=1)", 1000, ["steps", "tokens"]),
    ],
)
def test_an_arm_is_held_against_controls_of_its_own(arm, tokens, controls):
    references = [CONTROL.replace("steps", to) for to in ("steps", "tokens")]
    rows = [difference(arm, 0.4, 0.1, 0.001, reference=reference) for reference in references]
    cells = [cell(reference, seed) for reference in ("none", *references) for seed in range(3)]
    cells += [cell(arm, seed, tokens=tokens) for seed in range(3)]
    found = claims(tables(rows, cells), book({"name": "x", "against": "matched", "arms": "mixing"}))
    assert [text.split("=")[1].split(",")[0] for text in found["against"]] == controls


def test_what_a_failed_cell_cost_takes_no_control_from_an_arm():
    """A cell that never learned trains as long as it may, and what an arm costs is that of those that did."""
    cells = [cell(arm, seed) for arm in ("none", CONTROL, GENERIC) for seed in range(3)]
    cells.append(cell(GENERIC, 3, learned=False, steps=400))
    rows = [difference(GENERIC, 0.4, 0.1, 0.001, reference=CONTROL)]
    wanted = book({"name": "x", "against": "matched", "arms": "mixing"})
    assert claims(tables(rows, cells), wanted)["against"].to_list() == [CONTROL]
    none = [one | {"learned": one["learned"] and one["arm"] != CONTROL} for one in cells]
    assert not len(claims(tables(rows, none), wanted)), (
        "a control that never learned costs nothing that is known"
    )


@pytest.mark.parametrize("arm", [GENERIC, "replay(ratio=0.1)"])
def test_only_a_penalty_is_inert(arm):
    """Other rows may well move the weights as far as naive training moves them."""
    cells = [*CELLS, *(cell(arm, seed) for seed in range(3))]
    found = claims(tables([difference(arm, 0.4, 0.1, 0.001)], cells), book({"name": "x"}))
    assert found["verdict"].to_list() == ["seen"]


@pytest.mark.parametrize("statistic", ["lof_restricted", "log_prob_full"])
def test_readings_stand_beside_each_other(statistic):
    """How probable an answer is depends on whether its first token is meant, or all of them."""
    told = {"statistic": statistic, "arm": GENERIC}
    rows = [
        difference(value=-1.0, half=0.2, p=0.001, **told),
        difference(value=0.5, half=0.2, p=0.001, k=1, token="all", **told),
    ]
    readings = ((10, "first"), (1, "all"))
    of = book({"name": "x", "statistic": statistic, "side": "below"}, readings=readings)
    found = claims(tables(rows), of)
    assert found.select("headline", "verdict").rows() == [(True, "seen"), (False, "contradicted")]
    page = specification(found, of)
    assert page.columns[-2:] == ["top 10, first", "top 1, all"]
    assert page.row(0)[-2:] == ("seen -1.00 [-1.20, -0.80]", "contradicted +0.50 [+0.30, +0.70]")


@pytest.mark.parametrize("statistic", ["exact", "paraphrases", "log_prob_paraphrases"])
def test_what_is_said_has_one_reading(statistic):
    rows = [difference(GENERIC, 0.4, 0.1, 0.001, statistic=statistic)]
    of = book({"name": "x", "statistic": statistic}, readings=((10, "first"), (1, "all")))
    found = claims(tables(rows), of)
    assert found.select("k", "token", "headline", "verdict").rows() == [(None, None, True, "seen")]


def test_a_mean_against_a_threshold():
    row = {"setup": "s", "k": 10, "token": "first", "readout": "own", "arm": "none", "stage": "2", "seeds": 3}
    row |= {"statistic": "exact", "mean": 0.01, "low": 0.0, "high": 0.15}
    of = {
        "name": "forgets",
        "about": "mean",
        "against": None,
        "arms": "naive",
        "threshold": 0.5,
        "side": "below",
    }
    found = claims(tables(arms=[row]), book(of))
    assert found["verdict"].to_list() == ["seen"]
    assert found["evidence"].to_list() == ["own: -0.490 [-0.500, -0.350]; less the threshold 0.5; 3 seeds"]
    wide = claims(tables(arms=[row | {"mean": 0.3, "high": 0.6}]), book(of))
    assert wide["verdict"].to_list() == ["undecided"]


def test_spread_over_seeds():
    def seed(i: int, ratio: float | None, lens: str, why: str = "") -> dict:
        keys = {
            "setup": "s",
            "k": 10,
            "token": "first",
            "readout": lens,
            "arm": GENERIC,
            "stage": "1",
            "seed": i,
        }
        others = ("sd", "sd_reference", "censored", "reference_censored", "low", "high", "p")
        keys |= {"checkpoint": f"r{i}", "ratio": ratio, "error": 0.05, "why": why}
        return keys | dict.fromkeys(others, 1.0)

    of = book(
        {
            "name": "x",
            "about": "spread",
            "against": None,
            "lenses": BOTH,
            "stages": "every",
            "equivalent": 0.18,
        }
    )
    wide = [seed(i, 1.5 + 0.05 * i, lens) for i in range(3) for lens in BOTH]
    assert claims(tables(spread=wide), of)["verdict"].to_list() == ["seen"]
    none = [seed(i, None, lens, "70% at the last depth or never") for i in range(3) for lens in BOTH]
    found = claims(tables(spread=none), of)
    assert found["verdict"].to_list() == ["not tested"]
    assert "not estimable: 70% at the last depth or never" in found["evidence"][0]


def test_kept_facts_without_an_interval_say_why():
    row = {
        "setup": "s",
        "k": 10,
        "token": "first",
        "readout": "own",
        "arm": GENERIC,
        "stage": "2",
        "seeds": 2,
    }
    row |= {
        "statistic": "lof_restricted",
        "difference": -0.4,
        "low": None,
        "high": None,
        "p": None,
        "detectable": None,
    }
    of = book({"name": "x", "about": "kept", "against": None, "statistic": "lof_restricted", "side": "below"})
    found = claims(tables(kept=[row]), of)
    assert found["verdict"].to_list() == ["not tested"] and "fewer than 3 seeds" in found["evidence"][0]
    both = tables(kept=[row, row | {"arm": "none"}])
    assert claims(both, of)["arm"].to_list() == [GENERIC]
    every = {"name": "x", "about": "kept", "against": None, "statistic": "lof_restricted", "side": "below"}
    assert claims(both, book(every | {"arms": "all"}))["arm"].to_list() == [GENERIC, "none"]


def test_ranks_are_asked_of_every_lens_and_of_all_arms():
    def row(correlation, readout="own", **more):
        keys = {"setup": "s", "k": 10, "token": "first", "readout": readout, "arm": GENERIC, "stage": "2"}
        told = {"statistic": "lof_restricted", "correlation": correlation, "detectable": 0.2, "seeds": 3}
        edges = {"low": correlation - 0.1, "high": correlation + 0.1, "p": 0.01}
        return keys | told | edges | more

    claim = {"name": "x", "about": "ranks", "against": None, "statistic": "lof_restricted", "side": "below"}
    of = book(claim | {"arms": "all", "lenses": [*BOTH, "net"], "equivalent": 0.1})
    net = row(-0.3, statistic="lof_restricted_net")
    seen = claims(tables(ranks=[row(-0.4), row(-0.3, "base-readout"), net]), of).row(0, named=True)
    assert (seen["verdict"], seen["estimate"], seen["detectable"]) == ("seen", -0.4, 0.2)
    assert seen["evidence"].startswith("own: -0.400 [-0.500, -0.300]")
    split = [row(-0.4), row(0.05, "base-readout"), net]
    assert verdicts(claims(tables(ranks=split), of)) == {GENERIC: "undecided"}
    later = [row(0.4), row(0.3, "base-readout"), net | {"correlation": 0.3, "low": 0.2, "high": 0.4}]
    assert verdicts(claims(tables(ranks=later), of)) == {GENERIC: "contradicted"}
    both = [*later, *(one | {"arm": "none"} for one in later)]
    assert set(verdicts(claims(tables(ranks=both), of))) == {GENERIC, "none"}
    other = [one | {"k": 1, "token": "all"} for one in later]
    assert not len(claims(tables(ranks=other), of)), "of another reading than the book's"


def test_gradients_count_arms():
    of = book({"name": "gradients", "about": "gradients", "against": None, "statistic": None})
    few = [
        cell(arm, seed, cosine_start=0.1 * i, retention=0.1 * i)
        for i, arm in enumerate("abc")
        for seed in range(5)
    ]
    found = claims(tables(cells=few), of)
    assert found["verdict"].to_list() == ["not tested"]
    assert found["evidence"].to_list() == ["3 arms; fewer than 4 arms end in plain training"]
    alike = [cell(arm, seed, cosine_start=0.1) for arm in "abcdef" for seed in range(3)]
    found = claims(tables(cells=alike), of)
    assert found["verdict"].to_list() == ["not tested"] and "all values are the same" in found["evidence"][0]
    four = [cell(arm, 0, cosine_start=0.1 * i, retention=0.1 * i) for i, arm in enumerate("abcd")]
    found = claims(tables(cells=four), of)
    assert found["verdict"].to_list() == ["not tested"], "of 24 orders 2 are as extreme, 8 %"
    assert "no order of 4 arms is unlikely enough" in found["evidence"][0]
    many = [
        cell(arm, seed, cosine_start=0.1 * i, retention=0.1 * i)
        for i, arm in enumerate("abcdef")
        for seed in range(3)
    ]
    assert claims(tables(cells=many), of)["verdict"].to_list() == ["seen"]
    other_side = book(
        {"name": "x", "about": "gradients", "against": None, "statistic": None, "side": "below"}
    )
    assert claims(tables(cells=many), other_side)["verdict"].to_list() == ["contradicted"]
    mixed = [row | {"retention": [0.3, 0.1, 0.4, 0.0, 0.5, 0.2][i // 3]} for i, row in enumerate(many)]
    assert claims(tables(cells=mixed), of)["verdict"].to_list() == ["undecided"]


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (3, 1, 4, 0, 5, 2)])
def test_a_permutation_test_has_no_interval_and_its_cells_are_no_seeds(order, capsys):
    of = book({"name": "gradients", "about": "gradients", "against": None, "statistic": None})
    cells = [
        cell(arm, seed, cosine_start=0.1 * i, retention=0.1 * order[i])
        for i, arm in enumerate("abcdef")
        for seed in range(3)
    ]
    found = claims(tables(cells=cells), of)
    (row,) = found.to_dicts()
    assert (row["low"], row["high"], row["seeds"]) == (None, None, None)
    assert row["evidence"] == f"own: {row['estimate']:+.3f}; 6 arms"
    # The site shows the estimate alone, and the terminal does.
    (shown,) = verdicts_table(found).splitlines()[2:]
    assert f"| {round(row['estimate'], 2)} |" in shown and "[" not in shown
    named = found.with_columns(family=pl.lit("gradients"))
    print_results({"forgetting": pl.DataFrame(schema={"setup": pl.String}), "claims": named})
    printed = capsys.readouterr().out
    assert f"{row['estimate']:+.2f}" in printed and "[" not in printed


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("schema = 2", "schema"),
        ("no toml", "cannot be read as TOML"),
        ("schema = 1\nreadings = []\nclaims = []\n[families]", "no reading"),
        (
            'schema = 1\nreadings = [{k = 1, token = "all"}]\n[families]\n[[claims]]\nname = "x"\nfamily = "f"\n'
            'says = ""\nabout = "gradients"\nside = "above"',
            "family 'f'",
        ),
        (
            'schema = 1\nreadings = [{k = 1, token = "all"}]\n[families]\nf = ""\n[[claims]]\nname = "x"\n'
            'family = "f"\nsays = ""\nabout = "mean"\nside = "above"\nbounds = 3',
            "bounds",
        ),
    ],
)
def test_a_broken_book_is_one_line(tmp_path, text, told):
    path = tmp_path / "claims.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MemprobeError, match=told) as error:
        read_book(path)
    assert "\n" not in str(error.value)
    with pytest.raises(MemprobeError, match="no such file"):
        read_book(tmp_path / "none.toml")


def test_the_page_of_changed_verdicts_is_made_of_the_stored_results():
    from analyses.changed_verdicts import PAGE, page, table

    assert PAGE.read_text(encoding="utf-8") == page()
    changed = table()
    assert not (changed["before"] == changed["verdict"]).any() and not changed["why"].is_in(["", None]).any()


def second_stage(
    d_b: str, kept: tuple[float, ...], *, d_a: str = "kvr", n: int = 64, arm: str = "none"
) -> list[dict]:
    who = {"setup": f"{d_a}-{d_b}-n{n}", "d_a": d_a, "d_b": d_b, "d_c": None, "n": n}
    return [cell(arm, seed, retention=share, **who) for seed, share in enumerate(kept)]


def test_second_stages_are_held_against_the_one_that_the_claim_names():
    claim = {"name": "x", "about": "second stage", "against": None, "reference": "lama", "arms": "naive"}
    lama, gsm8k = (0.0, 2 / 64, 0.0), (40 / 64, 50 / 64, 44 / 64)
    cells = [
        *second_stage("gsm8k", gsm8k),
        *second_stage("lama", lama),
        *second_stage("webqa", (1 / 64, 0.0, 0.0)),
        *second_stage("math", gsm8k[:2]),
        *second_stage("gsm8k", gsm8k, n=500),  # no such set-up with LAMA
        *second_stage("gsm8k", gsm8k, arm="replay(ratio=0.1)"),  # the claim is about naive training
        *(row | {"setup": "kvr-gsm8k-webqa-n64", "d_c": "webqa"} for row in second_stage("gsm8k", gsm8k)),
    ]
    found = claims(tables(cells=cells), book({**claim, "equivalent": 0.05}))
    rows = {row["setup"]: row for row in found.iter_rows(named=True)}
    assert {setup: row["verdict"] for setup, row in rows.items()} == {
        "kvr-gsm8k-n64": "seen",
        "kvr-webqa-n64": "undecided",
        "kvr-math-n64": "not tested",
    }
    assert {row["against"] for row in rows.values()} == {"kvr-lama-n64"}
    one = share_difference(np.array([40, 50, 44]), np.array([0, 2, 0]), 64)
    gsm = rows["kvr-gsm8k-n64"]
    assert (gsm["estimate"], gsm["low"], gsm["high"]) == (one.value, one.low, one.high)
    assert gsm["p_family"] == pytest.approx(2 * one.p)  # two set-ups have three seeds
    assert "fewer than 3 seeds" in rows["kvr-math-n64"]["evidence"]


def test_a_claim_about_second_stages_names_its_reference():
    claim = {"name": "x", "about": "second stage", "against": None}
    with pytest.raises(ValueError, match="'reference' belongs to claims about second stages"):
        book(claim)


def test_what_set_ups_share_is_tested_once():
    """After the stages that they share, and only there; not between other settings, nor against another D_B."""

    def placed(setup: str, stage: str, **told) -> dict:
        return difference(
            GENERIC, -0.4, 0.1, 0.001, setup=setup, stage=stage, statistic="lof_restricted", **told
        )

    def trained(*datasets: str, n: int = 64) -> list[dict]:
        d_a, d_b, d_c = (*datasets, None)[:3]
        who = {"setup": "-".join([*datasets, f"n{n}"]), "d_a": d_a, "d_b": d_b, "d_c": d_c, "n": n}
        return [cell("none", seed, **who) for seed in range(3)]

    chains = [("kvr", "lama"), ("kvr", "webqa"), ("kvr", "webqa", "math"), ("popqa", "lama")]
    cells = [row for chain in chains for row in trained(*chain)] + trained("kvr", "lama", n=500)
    rows = [
        placed("kvr-lama-n64", "1", seeds=3),
        placed("kvr-lama-n64", "2"),
        placed("kvr-webqa-n64", "1", seeds=4, reference_seeds=4),
        placed("kvr-webqa-n64", "2"),
        placed("kvr-webqa-math-n64", "1", seeds=3),
        placed("kvr-webqa-math-n64", "2"),
        placed("kvr-webqa-math-n64", "3"),
        placed("popqa-lama-n64", "1"),
        placed("kvr-lama-n500", "1"),
    ]
    # One set-up's family is larger, and with it the p of what it shares.
    more = {"setup": "kvr-lama-n64", "stage": "1", "statistic": "lof_restricted"}
    rows += [difference(arm, 0.0, 0.1, 0.9, **more) for arm in ("joint", "kl(strength=1)")]
    of = book({"name": "x", "statistic": "lof_restricted", "side": "below", "stages": "every"})
    found = claims(tables(rows, cells), of)
    assert found.filter(arm=GENERIC).select("setup", "stage").rows() == [
        ("kvr-webqa-n64", 1),
        ("kvr-lama-n64", 2),
        ("kvr-webqa-n64", 2),
        ("kvr-webqa-math-n64", 3),
        ("popqa-lama-n64", 1),
        ("kvr-lama-n500", 1),
    ]
    first, second = (found.filter(setup="kvr-webqa-n64", stage=stage).row(0, named=True) for stage in (1, 2))
    assert first["p_family"] == pytest.approx(4 * 0.001) and second["p_family"] == pytest.approx(3 * 0.001)
    assert "the same stages in 3 set-ups" in first["evidence"] and "in 2 set-ups" in second["evidence"]
    assert "set-ups" not in found.filter(setup="popqa-lama-n64")["evidence"][0]
