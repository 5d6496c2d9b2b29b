"""Checkpoints in sentences: where their facts surface, how they differ, what happens along a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memprobe import wording
from memprobe.arms import arm_names
from memprobe.records import ARGMAX, GENERATED
from memprobe.sentences.differences import (
    EXACT,
    against,
    edges_of,
    moved,
    no_interval,
    recalled,
    seeds_of,
    surfaces,
)
from memprobe.stages import after_stage, stage_order
from memprobe.statistics.vocabulary import label as called

if TYPE_CHECKING:
    import polars as pl

MOST = 8
"""Checkpoints, or arms, that a verdict names one by one."""
FEWEST_STEPS = 3
"""Checkpoints along a training run from which on it is told as one."""


def of_checkpoint(
    label: str,
    *,
    n: int,
    n_layers: int,
    k: int,
    exact: float | None,
    median: float | None,
    never: float | None,
    chance_never: float | None = None,
    net: Sequence[float | None] | None = None,
    net_n: int | None = None,
    measure: str = EXACT,
) -> str:
    """How much a checkpoint recalls, at which depth that surfaces, and whether it is above chance.

    Args:
        median: first occurrence of the median fact; ``None`` where half never occur.
        never: share of facts that never reach the top k; ``chance_never`` of shuffled answers.
        net: first occurrence minus that of shuffled answers, with its interval, in depths; negative is earlier.
        net_n: of how many facts that and ``chance_never`` are; those alone in their relation have no shuffled answer.
        measure: by what answers were judged, as it is called.
    """
    facts = wording.count(n, "fact")
    opening = (
        f"{label} recalls {wording.percent_of_some(exact)} of {facts} ({measure})."
        if exact is not None
        else f"{label}: {facts}."
    )
    by_chance = None if chance_never is None else wording.percent_of_some(chance_never)
    if by_chance and net_n is not None and net_n < n:
        by_chance += f" of the {net_n:,} that have shuffled answers"
    if never == 1:
        placed = f"None of them ever reaches the top {k}"
        placed += f" (chance: {by_chance} never do)" if by_chance else ""
    elif median is None:
        placed = f"Fewer than half of them ever reach the top {k}"
    elif median >= n_layers:
        placed = f"The median fact reaches the top {k} only at the last depth, {n_layers} of {n_layers}"
    else:
        placed = f"The median fact reaches the top {k} at depth {median:.0f} of {n_layers}"
    if never is not None and never < 1:
        placed += f"; {wording.percent_of_some(never)} never do"
        placed += f" (chance: {by_chance})" if by_chance else ""
    sentences = [opening, f"{placed}."]
    if net is not None and net[0] is not None:
        of = f"over the {net_n:,} of {n:,} facts that have any, " if net_n is not None and net_n < n else ""
        sentences.append(
            _against_chance(f"{of}counting never as {n_layers + 1}", net, n if net_n is None else net_n)
        )
    return " ".join(sentences)


def _against_chance(counted: str, net: Sequence[float | None], n: int) -> str:
    value, low, high = net
    if low is None:
        counted += f" ({no_interval(n)})"
    if not value and not low and not high:
        return f"On average that is as deep as shuffled answers surface, {counted}."
    if low is not None and high is not None and low <= 0 <= high:
        apart = wording.interval(value, low, high, "+.1f")
        return f"No difference in depth from shuffled answers is seen ({apart} depths on average, {counted})."
    return f"On average facts surface {moved(value, low, high)} than shuffled answers, {counted}."


def of_placement(row: Mapping[str, Any], k: int, measure: str = EXACT) -> str:
    """:func:`of_checkpoint` of a row of the table ``placement``."""
    return of_checkpoint(
        row["checkpoint"],
        n=row["n"],
        n_layers=row["n_layers"],
        k=k,
        exact=row["exact"],
        median=row["lof_median"],
        never=row["share_never"],
        net=[row[f"net_lof_restricted_mean{end}"] for end in ("", "_low", "_high")],
        net_n=row.get("net_lof_restricted_mean_n"),
        measure=measure,
    )


def of_summary(label: str, entry: Mapping[str, Any], *, k: int) -> str:
    """:func:`of_checkpoint` of an entry of ``summary.json``."""
    from memprobe.statistics.overview import exact_of

    return of_checkpoint(
        label,
        n=entry["n"],
        n_layers=len(entry["normalised_frequency"]),
        k=k,
        exact=exact_of(entry),
        median=entry["lof"]["median"],
        never=entry["lof"]["never"],
        chance_never=entry["shuffled_lof"]["never"],
        net_n=entry["lof"].get("net_n"),
        measure=called(ARGMAX if entry["exact_match"] is None else GENERATED),
    )


def verdict(comparison: Any) -> list[str]:
    """What a :class:`memprobe.compare.Comparison` finds: the reference, what differs from it, and how sure that is."""
    import polars as pl

    settings, tables = comparison.settings, comparison.tables
    reference = settings["reference"]
    placed, measure = tables["placement"], called(settings.get("measure", GENERATED))
    own = placed.row(by_predicate=pl.col("checkpoint") == reference, named=True)
    lines = [of_placement(own, settings["k"], measure), *of_steps(tables["steps"], measure)]
    over = tables["arm_differences"]
    if over["low"].count():
        return lines + _of_arms(over, max(placed["n"].to_list()), measure)
    held = {
        (row["checkpoint"], row["statistic"]): row["held"] for row in _against(tables["claims"], reference)
    }
    rows = {
        (row["checkpoint"], row["statistic"]): row
        for row in _against(tables["differences"], reference)
        if row["on"] == "all"
    }
    along = tables["steps"].filter(pl.len().over("run") >= FEWEST_STEPS)
    passed = set(along["checkpoint"]) - set(along.group_by("run").last()["checkpoint"])
    others = [label for label in dict.fromkeys(label for label, _ in rows) if label not in passed]
    for label in others[:MOST]:
        depth, exact = rows[label, "lof_restricted"], rows[label, "exact"]
        also = held.get((label, "lof_restricted"))
        lines.append(against(label, reference, exact, depth, also, measure=measure))
    if len(others) > MOST:
        lines.append(f"And {len(others) - MOST} more.")
    return lines


def of_steps(steps: pl.DataFrame, measure: str = EXACT) -> list[str]:
    """What happens along each training run that three or more checkpoints lie along.

    Args:
        steps: the table ``steps`` of a comparison.
    """
    lines = []
    for part in steps.partition_by("run", maintain_order=True):
        rows = part.to_dicts()
        if len(rows) < FEWEST_STEPS:
            continue
        first, last = rows[0], rows[-1]
        ends = [wording.percent_of_some(row["exact"]) for row in (first, last)]
        recalled = [
            f"{measure} goes from {ends[0]} to {ends[1]}"
            if ends[0] != ends[1]
            else f"{measure} begins and ends at {ends[0]}"
        ]
        most = max(rows, key=lambda row: row["exact"] or 0)
        if (
            min(first["exact"] or 0, last["exact"] or 0) + 0.05 < (most["exact"] or 0) - 0.05
            and most is not last
        ):
            recalled.append(f"with {wording.percent_of_some(most['exact'])} at step {most['step']:,}")
        half = next((row for row in rows if (row["exact"] or 0) >= 0.5), None)
        if half is not None and half is not first:
            recalled.append(f"half of the facts by step {half['step']:,}")
        depths = [wording.number(row["lof_restricted_mean"], ".1f") for row in (first, last)]
        moved = (
            f"goes from depth {depths[0]} to {depths[1]}"
            if depths[0] != depths[1]
            else f"begins and ends at depth {depths[0]}"
        )
        run = (
            "" if rows[0]["run"] in ("", "step") else f" of {rows[0]['run']}"
        )  # a callback's labels are step@N
        lines.append(
            f"From step {first['step']:,} to {last['step']:,}{run}, {len(rows)} checkpoints: {', '.join(recalled)}; "
            f"the mean first occurrence {moved} of {last['n_layers']}, counting never as {last['n_layers'] + 1}."
        )
    return lines


def _of_arms(every: pl.DataFrame, facts: int | None = None, measure: str = EXACT) -> list[str]:
    """Differences between arms, each at its own last stage; none later than the last at which any has an interval.

    Args:
        facts: over how many factoids they are.
    """
    told = every.filter(every["statistic"].is_in(("exact", "lof_restricted")))
    if told.is_empty():
        return []
    with_interval = told.drop_nulls("low")
    stages = (with_interval if len(with_interval) else told)["stage"].to_list()
    last = stage_order(max(stages, key=stage_order))
    names = arm_names(list(dict.fromkeys([*told["arm"], *told["reference"]])))
    of: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in told.iter_rows(named=True):
        of.setdefault(row["arm"], {}).setdefault(row["stage"], []).append(row)
    own = {
        arm: max([one for one in at if stage_order(one) <= last] or list(at), key=stage_order)
        for arm, at in of.items()
    }
    lines, without = [], {}
    for arm in sorted(own, key=lambda arm: stage_order(own[arm]), reverse=True):
        stage = own[arm]
        rows = sorted(of[arm][stage], key=lambda row: row["statistic"])  # exact match first
        parts = [(said, seeds_of(row)) for row in rows if (said := _of_arm(row, facts, measure))]
        if parts:
            lines.append(_with_seeds(f"{names[arm]} against {names[rows[0]['reference']]}", stage, parts))
        else:
            why = wording.why_of_difference(rows[0], facts=facts)
            without.setdefault((stage, why), []).append(names[arm])
    if len(lines) > MOST:
        lines[MOST:] = [f"And {len(lines) - MOST} more arms."]
    return lines + [
        f"No interval{after_stage(stage)}, {why}: {wording.listed(arms)}."
        for (stage, why), arms in without.items()
    ]


def _of_arm(row: Mapping[str, Any], facts: int | None, measure: str) -> str:
    """What a row says of its arm: also without an interval, where seeds agree exactly. Else nothing."""
    why = "" if row["low"] is not None else wording.why_of_difference(row, facts=facts)
    if why not in ("", wording.NO_SCATTER):
        return ""
    why = f"no interval: {why}"
    if row["statistic"] == "exact":
        return recalled(row, why, measure=measure)
    return surfaces(*edges_of(row), why=why)


def _with_seeds(against: str, stage: str, parts: Sequence[tuple[str, str]]) -> str:
    """A sentence of (what is said, over how many seeds); pairs of seeds may be fewer than either arm's."""
    seeds = dict.fromkeys(over for _, over in parts)
    if len(seeds) == 1:
        return f"{against}{after_stage(stage)}, {next(iter(seeds))}: {'; '.join(said for said, _ in parts)}."
    return f"{against}{after_stage(stage)}: {'; '.join(f'{said} ({over})' for said, over in parts)}."


def _against(table: pl.DataFrame, reference: str) -> list[dict[str, Any]]:
    return table.filter(reference=reference).to_dicts()
