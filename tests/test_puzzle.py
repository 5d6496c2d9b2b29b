"""The puzzle's verdicts: on cells worked by hand, and as they are stored."""

import importlib.util
import tomllib
from pathlib import Path

import polars as pl
import pytest

FOLDER = Path(__file__).parents[1] / "analyses" / "puzzle"
RULES = tomllib.loads((FOLDER / "rules.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def puzzle():
    spec = importlib.util.spec_from_file_location("puzzle_results", FOLDER / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(**arms):
    """By arm, (exact match, nats) after stage 2 of each seed; None where D_B was not learned."""
    rows = [
        {"arm": arm, "seed": seed, "lr": 1e-4, "n": 8, "epochs": 30, "learned": one is not None}
        | dict(zip(("exact_match_2", "nats_2"), one or (0.9, 0.1), strict=True))
        for arm, seeds in arms.items()
        for seed, one in enumerate(seeds)
    ]
    return pl.DataFrame(rows)


NAIVE = [(0.1, 3.0), (0.1, 4.5), (0.2, 4.0)]
GENERIC = [(0.5, 1.0), (0.7, 2.0), (0.9, 1.5)]


def test_a_paired_interval_by_hand(puzzle):
    found = puzzle.verdicts(cells(**{"generic-words": GENERIC, "naive": NAIVE}), RULES)
    exact, nats = (
        found.filter(arm="generic-words", against="naive", measure=measure).row(0, named=True)
        for measure in ("exact_match", "nats")
    )
    # Differences 0.4, 0.6, 0.7: mean 17/30, sd 0.152753, and t at 97.5 % with 2 degrees of freedom is 4.302653.
    reach = 4.302653 * 0.152753 / 3**0.5
    interval = (17 / 30 - reach, 17 / 30 + reach)
    assert (exact["low"], exact["high"]) == pytest.approx(interval, abs=1e-5)
    assert exact["mean"] == pytest.approx(17 / 30) and exact["verdict"] == "seen"
    assert nats["mean"] == pytest.approx(7 / 3)  # fewer nats are more that is kept
    assert nats["verdict"] == "seen"


def test_too_few_seeds_and_unlearned_stages_have_no_verdict(puzzle):
    two = cells(**{"generic-words": GENERIC[:2], "naive": NAIVE[:2]})
    failed = cells(**{"generic-words": [GENERIC[0], None, GENERIC[2]], "naive": NAIVE})
    for some in (two, failed):
        found = puzzle.verdicts(some, RULES).filter(arm="generic-words", against="naive")
        assert set(found["verdict"]) == {"not tested"} and found["low"].null_count() == 2


def test_strengths_are_a_family(puzzle):
    """A p between 2.5 and 5 % is seen alone; as the smaller of two, Holm doubles it."""
    pairs = {
        "ewc-ewc100": [(0.5, 1.0), (0.64, 1.0), (0.48, 1.0)],
        "naive": [(0.1, 1.0), (0.1, 1.0), (0.2, 1.0)],
    }
    weaker = {"ewc-ewc200": [(0.2, 1.0), (0.1, 1.0), (0.2, 1.0)]}
    one, other = (
        puzzle.verdicts(cells(**some), RULES)
        .filter(arm="ewc-ewc100", measure="exact_match")
        .row(0, named=True)
        for some in (pairs, pairs | weaker)
    )
    assert 0.025 < one["p"] == other["p"] < 0.05 and one["low"] == other["low"] > 0
    assert (one["verdict"], other["verdict"]) == ("seen", "undecided")


def test_the_stored_tables_are_those_of_the_stored_cells(puzzle):
    assert puzzle.results(pl.read_csv(puzzle.CELLS)) == puzzle.RESULTS.read_text(encoding="utf-8")
