"""The schedule: what goes through the model, how often, and in which order."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memprobe.errors import MemprobeError
from training.mixing import IGNORED, Example, Part, Schedule


def rows(n: int, name: str = "own", own: bool = True) -> list[Example]:
    """Rows of different lengths: row i has 1 + i % 7 tokens."""
    return [
        Example(tuple(range(1 + i % 7)), (IGNORED,) * (i % 7) + (1,), f"{name}-{i}", own) for i in range(n)
    ]


def every(schedule: Schedule) -> list[list[Example]]:
    return [schedule[item] for item in range(len(schedule))]


def counts(schedule: Schedule) -> Counter:
    return Counter(example.id for batch in every(schedule) for example in batch)


def test_every_row_comes_once_in_every_epoch():
    own, mixing = Part(rows(13), 13), Part(rows(26, "mix", own=False), 26)
    schedule = Schedule(own, [mixing], epochs=3, batch=8, micro_batches=2, seed=1)
    assert schedule.steps == 3 * 5  # ceil(39 / 8) steps an epoch
    assert set(counts(schedule).values()) == {3}
    assert len(counts(schedule)) == 39
    first_epoch = Counter(row.id for item in range(10) for row in schedule[item])
    assert set(first_epoch.values()) == {1} and len(first_epoch) == 39


def test_epochs_are_reshuffled():
    schedule = Schedule(Part(rows(30), 30), epochs=2, batch=30, seed=0)
    first, second = ([row.id for row in schedule.step(step)] for step in (0, 1))
    assert first != second and sorted(first) == sorted(second)
    assert first != sorted(first)


def test_a_fixed_subset_stays_and_a_redrawn_one_moves():
    replay = rows(50, "old", own=False)
    fixed = Schedule(Part(rows(10), 10), [Part(replay, 5)], epochs=20, batch=5, seed=0)
    seen = {key for key in counts(fixed) if key.startswith("old")}
    assert seen == {f"old-{i}" for i in range(5)}
    redrawn = Schedule(Part(rows(10), 10), [Part(replay, 5, redraw=True)], epochs=20, batch=5, seed=0)
    seen = {key for key in counts(redrawn) if key.startswith("old")}
    assert 38 <= len(seen) <= 50  # 1 − 0.9^20 = 88 % of 50 are expected
    per_epoch = Counter(row.id for step in range(3) for row in redrawn.step(step) if row.id.startswith("old"))
    assert set(per_epoch.values()) == {1} and len(per_epoch) == 5


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 23),
    batch=st.integers(1, 9),
    micro=st.integers(1, 5),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_micro_batches_hold_each_step_exactly(n, batch, micro, epochs, seed):
    schedule = Schedule(Part(rows(n), n), epochs=epochs, batch=batch, micro_batches=micro, seed=seed)
    assert len(schedule) == schedule.steps * micro
    for step in range(schedule.steps):
        batches = [schedule[step * micro + place] for place in range(micro)]
        assert sorted(row.id for some in batches for row in some) == sorted(
            row.id for row in schedule.step(step)
        )
        sizes = [len(some) for some in batches]
        assert max(sizes) - min(sizes) <= 1
        lengths = [len(row.ids) for some in batches for row in some]
        assert lengths == sorted(lengths, reverse=True)


def test_items_do_not_depend_on_what_was_read_before():
    make = lambda: Schedule(  # noqa: E731
        Part(rows(11), 11), [Part(rows(9, "m"), 4, True)], epochs=6, batch=4, micro_batches=2, seed=3
    )
    forward = every(make())
    schedule = make()
    backward = [schedule[item] for item in reversed(range(len(schedule)))]
    assert forward == backward[::-1]


def test_the_split_into_micro_batches_leaves_the_steps_alone():
    one, four = (Schedule(Part(rows(11), 11), epochs=2, batch=4, micro_batches=m, seed=3) for m in (1, 4))
    assert [one.step(step) for step in range(one.steps)] == [four.step(step) for step in range(four.steps)]


def test_seeds_differ():
    one, other = (Schedule(Part(rows(20), 20), epochs=1, batch=20, seed=seed) for seed in (0, 1))
    assert one.step(0) != other.step(0)


def test_matched_controls_train_own_rows_as_long_as_the_mixing():
    own = Part(rows(10), 10)
    mixing = Part([Example((0,) * 70, (1,) * 70, f"m{i}", False) for i in range(20)], 20)
    whole = Schedule(own, [mixing], epochs=4, batch=5, seed=0)
    steps = Schedule(own, (), [mixing], epochs=4, batch=5, seed=0, match="steps")
    assert steps.steps == whole.steps == 24
    assert all(example.own for batch in every(steps) for example in batch)
    tokens = Schedule(own, (), [mixing], epochs=4, batch=5, seed=0, match="tokens")
    largest_step = max(sum(len(row.ids) for row in tokens.step(step)) for step in range(tokens.steps))
    assert abs(tokens.tokens - whole.tokens) <= largest_step
    assert tokens.steps > 5 * steps.steps


def test_what_is_replayed_is_trained_beside_what_is_only_matched():
    own, replay = Part(rows(10), 10), Part(rows(6, "old", own=False), 3)
    mixing = Part([Example((0,) * 70, (1,) * 70, f"m{i}", False) for i in range(20)], 20)
    whole = Schedule(own, [mixing, replay], epochs=4, batch=5, seed=0)
    for match in ("steps", "tokens"):
        schedule = Schedule(own, [replay], [mixing], epochs=4, batch=5, seed=0, match=match)
        seen = {key.partition("-")[0] for key in counts(schedule)}
        assert seen == {"own", "old"}, "every step is of both, and none of what is matched"
        if match == "steps":
            assert schedule.steps == whole.steps == 28
        else:
            largest = max(sum(len(row.ids) for row in schedule.step(step)) for step in range(schedule.steps))
            assert abs(schedule.tokens - whole.tokens) <= largest


def test_ends_of_epochs():
    schedule = Schedule(Part(rows(7), 7), epochs=2, batch=3, seed=0)
    assert [step for step in range(1, schedule.steps + 1) if schedule.ends_epoch(step)] == [3, 6]


def test_the_last_epoch_of_a_matched_stage_ends_with_it():
    """It may be cut short, and what is done at an epoch's end is done then too."""
    schedule = Schedule(Part(rows(7), 7), (), [Part(rows(6), 6)], epochs=1, batch=3, seed=0, match="steps")
    assert (schedule.steps_per_epoch, schedule.steps) == (3, 5)
    assert [step for step in range(1, 6) if schedule.ends_epoch(step)] == [3, 5]


def test_parts_that_are_redrawn_are_drawn_apart():
    """Two sources of as many rows would else be shown at the same places."""
    parts = [Part(rows(50, name, own=False), 5, redraw=True) for name in ("mix", "old")]
    schedule = Schedule(Part(rows(2), 2), parts, epochs=1, batch=12, seed=0)
    drawn = [
        {row.id.removeprefix(f"{name}-") for row in schedule.step(0) if row.id.startswith(name)}
        for name in ("mix", "old")
    ]
    assert [len(some) for some in drawn] == [5, 5] and drawn[0] != drawn[1]


@pytest.mark.parametrize(("extra", "steps"), [(4, 4), (6, 5), (14, 5), (16, 6)])
def test_a_stage_matched_in_tokens_ends_at_the_nearest_step(extra, steps):
    """Not at the last step before: a control that trained less would be no control."""
    own = [Example((0,) * 10, (1,) * 10, f"own-{i}") for i in range(4)]
    matched = Part([Example((0,) * extra, (1,) * extra, "m", False)], 1)
    schedule = Schedule(Part(own, 4), (), [matched], epochs=1, batch=1, seed=0, match="tokens")
    assert schedule.steps == steps


@pytest.mark.parametrize(
    ("part", "said"), [(Part([], 0), "no rows to train on"), (Part(rows(2), 3), "3 rows")]
)
def test_too_few_rows_are_refused(part, said):
    with pytest.raises(MemprobeError, match=said):
        Schedule(part, epochs=1, batch=1, seed=0)


def test_items_beyond_the_end_are_refused():
    schedule = Schedule(Part(rows(3), 3), epochs=1, batch=3, seed=0)
    with pytest.raises(IndexError):
        schedule[len(schedule)]


@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize("match", [None, "steps", "tokens"])
def test_tokens_are_those_of_every_step(redraw, match):
    own, extra = Part(rows(5), 5), Part(rows(7, "mix", own=False), 3, redraw=redraw)
    trained, matched = ([extra], []) if match is None else ([], [extra])
    schedule = Schedule(own, trained, matched, epochs=5, batch=4, seed=0, match=match)
    counted = sum(len(row.ids) for step in range(schedule.steps) for row in schedule.step(step))
    assert schedule.tokens == counted
