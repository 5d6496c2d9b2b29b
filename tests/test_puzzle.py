"""The puzzle's verdicts: on cells worked by hand, and as they are stored."""

import importlib.util
import json
import tomllib
from pathlib import Path

import polars as pl
import pytest

from memprobe.statistics.shares import share_difference, share_over_seeds

FOLDER = Path(__file__).parents[1] / "analyses" / "puzzle"
RULES = tomllib.loads((FOLDER / "rules.toml").read_text(encoding="utf-8"))
GENERIC_KEEPS = "generic text with words in the prompt keeps more than naive training"


@pytest.fixture(scope="module")
def puzzle():
    """The script, whose folder is no package."""
    spec = importlib.util.spec_from_file_location("puzzle_results", FOLDER / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(*, epochs=20, **arms):
    """By arm, (exact match, nats) after stage 2 of each seed; None where D_B was not learned."""
    rows = [
        {"arm": arm, "seed": seed, "lr": 1e-4, "n": 32, "epochs": epochs, "learned": one is not None}
        | dict(zip(("exact_match_2", "nats_2"), one or (0.9, 0.1), strict=True))
        | {"nats_1": 0.1 * seed, "moved_1": 9.0 - seed, "moved_2": 2.0}
        for arm, seeds in arms.items()
        for seed, one in enumerate(seeds)
    ]
    return pl.DataFrame(rows)


NAIVE = [(4 / 32, 3.0), (4 / 32, 4.5), (6 / 32, 4.0)]
GENERIC = [(16 / 32, 1.0), (22 / 32, 2.0), (29 / 32, 1.5)]


def claim(found, says, measure):
    return found.filter(says=says, measure=measure).row(0, named=True)


def test_a_difference_by_hand(puzzle):
    found = puzzle.verdicts(cells(**{"generic-words": GENERIC, "naive": NAIVE}), RULES)
    exact, nats = (claim(found, GENERIC_KEEPS, measure) for measure in ("exact_match", "nats"))
    # Differences 2, 2.5, 2.5: mean 7/3, sd 0.288675, and t at 97.5 % with 2 degrees of freedom is 4.302653.
    reach = 4.302653 * 0.288675 / 3**0.5
    assert (nats["low"], nats["high"]) == pytest.approx((7 / 3 - reach, 7 / 3 + reach), abs=1e-5)
    assert (
        nats["mean"] == pytest.approx(7 / 3) and nats["verdict"] == "seen"
    )  # fewer nats are more that is kept
    share = share_difference(pl.Series([16, 22, 29]).to_numpy(), pl.Series([4, 4, 6]).to_numpy(), 32)
    assert (exact["mean"], exact["low"], exact["high"], exact["p"]) == pytest.approx(tuple(share))
    assert exact["mean"] == pytest.approx(53 / 96, abs=0.03) and exact["verdict"] == "seen"


def test_arms_that_keep_nothing_are_not_certain_to_keep_nothing(puzzle):
    """Three seeds at 0 scatter by nothing; the interval is binomial."""
    found = puzzle.verdicts(cells(**{"generic-words": [(0.0, 9.0)] * 3, "naive": [(0.0, 8.0)] * 3}), RULES)
    exact = claim(found, GENERIC_KEEPS, "exact_match")
    assert exact["low"] < -0.02 and exact["high"] > 0.02


def test_too_few_seeds_and_unlearned_stages_have_no_verdict(puzzle):
    two = cells(**{"generic-words": GENERIC[:2], "naive": NAIVE[:2]})
    failed = cells(**{"generic-words": [GENERIC[0], None, GENERIC[2]], "naive": NAIVE})
    for some in (two, failed):
        found = puzzle.verdicts(some, RULES).filter(says=GENERIC_KEEPS)
        assert set(found["verdict"]) == {"not tested"} and found["low"].null_count() == 2


def test_an_arm_is_held_against_itself_at_another_setting(puzzle):
    some = pl.concat([cells(**{"random-words": NAIVE}), cells(epochs=40, **{"random-words": GENERIC})])
    found = puzzle.verdicts(some, RULES)
    twice = claim(found, "twice the epochs of stage 1 keep more, words in the prompt", "nats")
    assert (twice["mean"], twice["verdict"]) == (pytest.approx(7 / 3), "seen")
    assert found.filter(pl.col("n") > 0)["says"].n_unique() == 1


def test_claims_of_a_family_are_corrected_together(puzzle):
    """A p between 2.5 and 5 % is seen alone; as the smaller of two, Holm doubles it."""
    naive = [(0.5, 4.0), (0.5, 4.0), (0.5, 4.0)]
    pairs = {"generic-words": [(0.5, 3.0), (0.5, 2.0), (0.5, 2.4)], "naive": naive}
    weaker = {"generic-sentence": [(0.5, 4.0), (0.5, 3.8), (0.5, 4.3)]}
    one, other = (
        claim(puzzle.verdicts(cells(**some), RULES), GENERIC_KEEPS, "nats")
        for some in (pairs, pairs | weaker)
    )
    assert 0.025 < one["p"] == other["p"] < 0.05 and one["low"] == other["low"] > 0
    assert (one["verdict"], other["verdict"]) == ("seen", "undecided")


def test_covariates_rank_arms_not_cells(puzzle):
    """An arm of one seed is none of them; nor, where rows that are mixed in count, is one without any."""
    arms = {f"random-words-{i}": [(0.5, 1.0 + i)] * 3 for i in range(7)}
    some = cells(**arms, alone=[(0.1, 30.0)]).with_columns(
        nats_1=pl.col("nats_2") / 10, moved_1=-pl.col("nats_2"), moved_2=pl.col("nats_2") % 3
    )
    mixed = pl.DataFrame(
        [
            {"arm": arm, "seed": s, "n": 32, "nats": 9.0 - int(arm[-1]), "tokens": 10 ** int(arm[-1])}
            for arm in arms
            for s in range(3)
        ]
    )
    found = puzzle.covariates(some, RULES, mixed.filter(pl.col("nats") > 5.0))
    assert found["arms"].to_list() == [7, 7, 7, 4, 4]
    assert found["correlation"][:2].to_list() == pytest.approx([1.0, -1.0])
    assert found["verdict"][:2].to_list() == ["seen", "contradicted"]
    four = found.row(3, named=True)  # of 24 orders two are as far from 0, whatever a distribution says
    assert (four["correlation"], four["p"]) == (pytest.approx(-1.0), pytest.approx(1 / 12))
    assert four["verdict"] == "undecided"
    assert found["correlation"][4] == pytest.approx(1.0)  # of all rows: the more tokens, at fewer nats each


def test_cells_of_another_machine_stay(puzzle):
    """And one that was trained again takes the place of what it was."""
    stored = pl.concat([cells(naive=NAIVE), cells(naive=NAIVE, epochs=40)])
    again = cells(naive=[(0.5, 2.0)], **{"random-words": GENERIC[:1]})
    found = puzzle.merged(again, stored)
    assert len(found) == 7 and found["epochs"].to_list() == [20] * 4 + [40] * 3
    assert found["exact_match_2"][:4].to_list() == [0.5, NAIVE[1][0], NAIVE[2][0], GENERIC[0][0]]
    assert puzzle.merged(again, found).equals(found)


def test_the_stored_rows_are_those_of_the_stored_cells(puzzle):
    """Naive training and its controls train on their own rows alone."""
    mixes = (
        pl.read_csv(puzzle.CELLS).filter(pl.col("arm_text").str.contains("remix")).select("arm", "seed", "n")
    )
    assert set(mixes.rows()) == set(pl.read_csv(puzzle.ROWS).select("arm", "seed", "n").rows())


def test_the_stored_tables_are_those_of_the_stored_cells(puzzle):
    stored = pl.read_csv(puzzle.CELLS), pl.read_csv(puzzle.ROWS)
    assert puzzle.results(*stored) == puzzle.RESULTS.read_text(encoding="utf-8")


def test_the_page_quotes_the_stored_cells(puzzle):
    page = (FOLDER.parents[1] / "docs" / "findings" / "random-words.md").read_text(encoding="utf-8")
    stored = pl.read_csv(puzzle.CELLS)
    tested = stored.filter(pl.col("learned").all().over("arm", "lr", "epochs"), epochs=40).sort("seed")
    for (arm, _), some in tested.filter(pl.len().over("arm", "lr") > 2).group_by("arm", "lr"):
        kept = share_over_seeds((some["exact_match_2"] * 32).round().to_numpy(), 32)
        interval = f"{100 * kept.value:.1f} % [{100 * kept.low:.1f}, {100 * kept.high:.1f}]"
        seeds = ", ".join(f"{100 * one:.0f}" for one in some["exact_match_2"])
        nats, first, last = (some[name].mean() for name in ("nats_2", "moved_1", "moved_2"))
        assert f"| {interval} | {seeds} | {nats:.2f} | {first:.1f}, {last:.1f} |" in page, arm
    flat = " ".join(page.split())
    for claim in (
        puzzle.verdicts(stored, RULES).filter(family="words and prompt, twice the epochs").rows(named=True)
    ):
        form = "{:.0f}" if claim["measure"] == "exact_match" else "{:.1f}"
        scale = 100 if claim["measure"] == "exact_match" else 1
        numbers = sorted(abs(scale * claim[key]) for key in ("mean", "low", "high"))
        if claim["measure"] == "exact_match" or claim["verdict"] == "seen":
            assert all(form.format(number) in flat for number in numbers), claim["says"]
    first = stored.filter(epochs=20)["arm"].unique().to_list()
    before = stored.filter(pl.col("arm").is_in(first), pl.col("seed") < 3, lr=1e-4, epochs=40)
    assert before["commit"].unique().to_list() == ["d60a86d90947ae68f4132b0afaf468dc886be545"]
    assert stored.filter(pl.col("seed") > 2)["commit"].str.slice(0, 7).unique().to_list() == ["1ec1106"]
    assert all(commit[:7] in readme() for commit in stored["commit"].unique())


def readme():
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_stored_figure_is_that_of_the_stored_cells(puzzle):
    stored = json.loads((puzzle.FIGURES / "forgetting.json").read_text(encoding="utf-8"))
    table = puzzle.figure_table(pl.read_csv(puzzle.CELLS))
    drawn = json.loads(json.dumps(table.to_dict(as_series=False)))
    assert stored["data"] == drawn
    drawn_arms = table.filter(pl.col("setup").str.starts_with("40"))["arm"].n_unique()
    assert drawn_arms == pl.read_csv(puzzle.CELLS).filter(epochs=40)["arm"].n_unique(), "each arm has a name"
    failed = table.filter(pl.col("failed") > 0)
    assert failed["failed"].sum() == int((~pl.read_csv(puzzle.CELLS)["learned"]).sum()) > 0
