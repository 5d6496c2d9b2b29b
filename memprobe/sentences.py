"""The answer first: what the tables say, in sentences, for the terminal, the page, notebooks and Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memprobe import wording
from memprobe.arms import arm_names
from memprobe.statistics.vocabulary import STATISTICS

if TYPE_CHECKING:
    import polars as pl

    from memprobe.prompt_lens import PromptReading

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
) -> str:
    """How much a checkpoint says, at which depth that surfaces, and whether it is above chance.

    Args:
        median: first occurrence of the median fact; ``None`` where half never occur.
        never: share of facts that never reach the top k; ``chance_never`` of shuffled answers.
        net: first occurrence minus that of shuffled answers, with its interval, in depths; negative is earlier.
    """
    facts = wording.count(n, "fact")
    opening = (
        f"{label} says {wording.percent(exact, 0)} of {facts}." if exact is not None else f"{label}: {facts}."
    )
    if median is None:
        placed = f"Fewer than half of them ever reach the top {k}"
    elif median >= n_layers:
        placed = f"The median fact reaches the top {k} only at the last depth, {n_layers} of {n_layers}"
    else:
        placed = f"The median fact reaches the top {k} at depth {median:.0f} of {n_layers}"
    if never is not None:
        placed += f"; {wording.percent(never, 0)} never do"
        placed += f" (chance: {wording.percent(chance_never, 0)})" if chance_never is not None else ""
    sentences = [opening, f"{placed}."]
    if net is not None and net[0] is not None:
        sentences.append(_against_chance(n_layers, *net))
    return " ".join(sentences)


def _against_chance(n_layers: int, value: float | None, low: float | None, high: float | None) -> str:
    if low is not None and high is not None and low <= 0 <= high:
        apart = wording.interval(value, low, high, "+.1f")
        return f"On average that is as deep as shuffled answers surface ({apart} depths)."
    if value is not None and abs(value) < 0.05:
        return f"On average that is as deep as shuffled answers surface, counting never as {n_layers + 1}."
    moved = _moved(value, low, high)
    return f"On average facts surface {moved} than shuffled answers, counting never as {n_layers + 1}."


def _surfaces(value: float | None, low: float | None, high: float | None) -> str:
    """A difference in depths, in words: how far, which way, how sure."""
    if value is None:
        return "first occurrence is not known"
    if low is None or high is None:
        moved = f"facts surface {_moved(value, low, high)}" if value else "first occurrence is the same"
        return f"{moved} ({NO_INTERVAL})"
    if value == low == high == 0:
        return "first occurrence is the same"
    if low <= 0 <= high:
        return f"no clear difference in depth ({wording.interval(value, low, high, '+.1f')})"
    return f"facts surface {_moved(value, low, high)}"


NO_INTERVAL = "too few facts for an interval"


def _moved(value: float | None, low: float | None, high: float | None) -> str:
    """How far, and which way; with its interval where there is one."""
    if value is None:
        return "at a depth not known"
    form = _form(value, 1)
    if low is None or high is None:
        return f"{abs(value):{form}} depths {_way('lof', value)}"
    near, far = sorted((abs(low), abs(high)))
    return f"{wording.interval(abs(value), near, far, form)} depths {_way('lof', value)}"


def _form(value: float, digits: int) -> str:
    """A format with so many digits, or with as many more as a small difference needs not to be written as 0."""
    wanted = next((more for more in range(digits, 4) if float(f"{value:.{more}f}")), digits)
    return f".{wanted}f"


def _way(statistic: str, value: float) -> str:
    row = STATISTICS[statistic]
    return row.more if value > 0 else row.less


def of_placement(row: Mapping[str, Any], k: int) -> str:
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
    )


def of_retention(table: pl.DataFrame) -> list[str]:
    """What is left of D_A after the last stage, by arm, a sentence for each pair of datasets.

    Args:
        table: [setup, arm, retention, low, high, by_seed]; naive training first, as in the table ``forgetting``.
    """
    lines = []
    for (setup,), part in table.group_by("setup", maintain_order=True):
        with_setup = _with_setup(setup, table)
        known = part.drop_nulls("retention").to_dicts()
        if not known:
            lines.append(with_setup("no arm has three seeds, so each seed is shown alone."))
            continue
        first, *others = known
        best = sorted(others, key=lambda row: -row["retention"])[:MOST_ARMS]
        kept = "; ".join(f"{row['arm']}, {_share_of(row)}" for row in best)
        sentence = (
            f"after the last stage, {first['arm']} keeps {_share_of(first)} of the facts of stage 1 (D_A)."
        )
        lines.append(with_setup(sentence + (f" Most is kept by {kept}." if kept else "")))
    return lines


MOST_ARMS = 4
"""Arms that a sentence on a study names."""


def _with_setup(setup: str, table: pl.DataFrame) -> Callable[[str], str]:
    """Puts before a sentence which pair of datasets it speaks of; nothing where a study has one."""
    if table["setup"].n_unique() > 1:
        return lambda said: f"{setup}: {said}"
    return lambda said: said[0].upper() + said[1:]


def of_placements(claims: pl.DataFrame) -> list[str]:
    """Where facts surface, arm against arm over seeds, a sentence for each pair of datasets and stage.

    Args:
        claims: [setup, claim, arm, against, verdict, estimate, low, high, seeds] of those claims of a study that say
            where facts surface earlier, in depths.
    """
    lines = []
    for (setup, claim, against), part in claims.group_by("setup", "claim", "against", maintain_order=True):
        rows = part.filter(part["verdict"] != "not tested").drop_nulls("estimate").to_dicts()
        if not rows:
            continue
        rows.sort(key=lambda row: -abs(row["estimate"]))
        decided = [f"{row['verdict']} for {_over_seeds(row)}" for row in rows if row["verdict"] != UNDECIDED]
        verdicts = [
            *decided[:MOST_ARMS],
            *([f"and {len(decided) - MOST_ARMS} more"] if len(decided) > MOST_ARMS else []),
        ]
        if open_ := [row for row in rows if row["verdict"] == UNDECIDED]:
            verdicts.append(f"undecided for {_undecided(open_, alone=len(open_) == len(rows))}")
        when = claim.removeprefix(SURFACES).strip()
        seeds = min(row["seeds"] for row in rows)
        asked = f"do facts surface earlier {when} than with {against} ({seeds} seeds)?"
        answer = "; ".join(verdicts)
        lines.append(_with_setup(setup, claims)(f"{asked} {answer[0].upper() + answer[1:]}."))
    return lines


SURFACES = "surfaces earlier"
"""How the names of claims about depth begin."""
UNDECIDED = "undecided"


def _over_seeds(row: Mapping[str, Any]) -> str:
    """An arm, and how many depths earlier or later its facts surface."""
    edges = row["estimate"], row["low"], row["high"]
    clear = None not in edges and not row["low"] <= 0 <= row["high"]
    moved = _moved(*edges) if clear else f"{wording.interval(*edges, '+.1f')} depths"
    return f"{row['arm']}, {moved}"


def _undecided(rows: Sequence[Mapping[str, Any]], *, alone: bool) -> str:
    """The arms of which a claim is undecided, by name where they are few, with the largest difference among them."""
    most = _over_seeds(rows[0])
    if len(rows) == 1:
        return most
    of = f"{'all' if alone else 'the other'} {len(rows)} arms"
    return f"{of} (most: {most})"


def of_verdicts(verdicts: Sequence[str]) -> str:
    """How many claims came out how."""
    counts = {name: verdicts.count(name) for name in dict.fromkeys(verdicts)}
    tested = len(verdicts) - counts.pop("not tested", 0)
    listed = wording.listed([f"{n} {name}" for name, n in counts.items()]) if counts else "none"
    return f"Of {wording.count(tested, 'claim')} tested: {listed}."


def _share_of(row: Mapping[str, Any]) -> str:
    edges = [None if row[end] is None else 100 * row[end] for end in ("low", "high")]
    value, *rest = wording.interval(100 * row["retention"], *edges, form=".0f").split(" ", 1)
    return " ".join([f"{value}%", *rest])


def of_prompt(reading: PromptReading, *, named: bool = False) -> str:
    """What a model says after a prompt, from which depth on, and where the answer stands.

    Args:
        named: whether to say through which lens.
    """
    last = reading.n_layers
    token, share = reading.best[last][-1][0]
    choices = [row[-1] for row in reading.top1]
    since = next(depth for depth in range(last + 1) if all(one == choices[last] for one in choices[depth:]))
    lens = f"Read through {reading.lens}, the" if named else "The"
    parts = [
        f"{lens} model says {_quoted(token)} with {wording.percent(share, 0)}, its first choice "
        f"{f'only at the last depth, {last} of {last}' if since == last else f'from depth {_of(since, last)} on'}."
    ]
    if reading.answer is not None and reading.answer_ranks is not None:
        ranks = [row[-1] for row in reading.answer_ranks]
        if ranks[last] == 0 and reading.answer == token:
            parts.append("That is the answer.")
        else:
            parts.append(
                f"The answer begins with {_quoted(reading.answer)}, at rank {ranks[last]:,} at the end."
            )
        if (first := next((depth for depth in range(1, last + 1) if ranks[depth] < 10), None)) is not None:
            parts.append(f"It first enters the top 10 at depth {_of(first, last)}.")
        else:
            parts.append("It is never among the top 10.")
    return " ".join(parts)


def _of(depth: int, last: int) -> str:
    return f"{depth} of {last}"


def _quoted(token: str) -> str:
    return f"“{token.strip() or repr(token)[1:-1]}”"


def verdict(comparison: Any) -> list[str]:
    """What a :class:`memprobe.compare.Comparison` finds: the reference, what differs from it, and how sure that is."""
    import polars as pl

    settings, tables = comparison.settings, comparison.tables
    reference = settings["reference"]
    placed = tables["placement"]
    lines = [
        of_placement(placed.row(by_predicate=pl.col("checkpoint") == reference, named=True), settings["k"])
    ]
    lines += of_steps(tables["steps"])
    over = tables["arm_differences"].drop_nulls("low")
    if len(over):
        return lines + _of_arms(over)
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
        lines.append(against(label, reference, exact, depth, held.get((label, "lof_restricted"))))
    if len(others) > MOST:
        lines.append(f"And {len(others) - MOST} more.")
    return lines


def against(
    label: str, reference: str, exact: Mapping[str, Any], depth: Mapping[str, Any], held: bool | None
) -> str:
    """What differs between two checkpoints, by how much, how sure, and whether it holds in both readouts.

    Args:
        exact, depth: difference, low and high of exact match and of first occurrence, checkpoint minus reference.
        held: whether the latter is on the same side of 0 in both readouts; ``None`` where one was not probed.
    """
    return (
        f"{label} against {reference}: {recalled(exact)}; {_surfaces(*_edges(depth))}{_in_both(held, depth)}."
    )


FEW_PAIRS = 3
"""Up to so many pairs of checkpoints, each has a sentence of its own, whatever it says."""


def of_pairs(
    pairs: Sequence[tuple[str, str, Mapping[str, Any], Mapping[str, Any], bool | None]],
) -> list[str]:
    """:func:`against` of several pairs; of many, those without a clear difference share a sentence at the end.

    Args:
        pairs: (label, reference, exact, depth, held), see :func:`against`.
    """
    quiet = [pair for pair in pairs if not (_is_clear(pair[2]) or _is_clear(pair[3]))]
    if len(pairs) <= FEW_PAIRS or len(quiet) < 2:
        return [against(*pair) for pair in pairs]
    named = "; ".join(f"{label} against {reference}" for label, reference, *_ in quiet)
    lines = [against(*pair) for pair in pairs if pair not in quiet]
    return [*lines, f"No clear difference in exact match or in depth: {named}."]


def _is_clear(row: Mapping[str, Any]) -> bool:
    """Whether a difference is known and its interval leaves out 0."""
    value, low, high = _edges(row)
    return value is not None and low is not None and high is not None and not low <= 0 <= high


def of_steps(steps: pl.DataFrame) -> list[str]:
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
        ends = [wording.percent(row["exact"], 0) for row in (first, last)]
        recalled = [
            f"exact match goes from {ends[0]} to {ends[1]}"
            if ends[0] != ends[1]
            else f"exact match begins and ends at {ends[0]}"
        ]
        most = max(rows, key=lambda row: row["exact"] or 0)
        if (
            min(first["exact"] or 0, last["exact"] or 0) + 0.05 < (most["exact"] or 0) - 0.05
            and most is not last
        ):
            recalled.append(f"with {wording.percent(most['exact'], 0)} at step {most['step']:,}")
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


def _of_arms(over: pl.DataFrame) -> list[str]:
    lines = []
    last = over["stage"].to_list()[-1]
    rows = {(row["arm"], row["statistic"]): row for row in over.filter(stage=last).iter_rows(named=True)}
    arms = list(dict.fromkeys(arm for arm, _ in rows))
    names = arm_names(list(dict.fromkeys([*arms, *over["reference"]])))
    for arm in arms[:MOST]:
        exact, depth = rows.get((arm, "exact")), rows.get((arm, "lof_restricted"))
        parts = [recalled(exact)] if exact else []
        parts += [_surfaces(*_edges(depth))] if depth else []
        one = exact or depth
        if one and parts:
            against = (
                f"{names[arm]} against {names[one['reference']]} after stage {last}, {one['seeds']} seeds"
            )
            lines.append(f"{against}: {'; '.join(parts)}.")
    if len(arms) > MOST:
        lines.append(f"And {len(arms) - MOST} more arms.")
    return lines


def recalled(row: Mapping[str, Any]) -> str:
    """A difference of exact match, in words: by how many points, how sure."""
    value, low, high = _edges(row)
    if value is None:
        return "exact match is not known"
    edges = wording.interval(
        100 * value,
        None if low is None else 100 * low,
        None if high is None else 100 * high,
        f"+{_form(100 * value, 0)}",
    )
    if value == low == high == 0:
        return "exact match is the same"
    if low is None or high is None:
        return f"{f'{edges} points of exact match' if value else 'exact match is the same'} ({NO_INTERVAL})"
    if low <= 0 <= high:
        return f"no clear difference in exact match ({edges} points)"
    return f"{edges} points of exact match"


def _in_both(held: bool | None, row: Mapping[str, Any]) -> str:
    """Whether a claim of placement is held; nothing where none is made."""
    _, low, high = _edges(row)
    if low is None or high is None or low <= 0 <= high:
        return ""
    if held is None:
        return " (not checked in the base model's readout)"
    return ", also in the base model's readout" if held else ", but not in the base model's readout"


def _edges(row: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    return row["difference"], row["low"], row["high"]


def _against(table: pl.DataFrame, reference: str) -> list[dict[str, Any]]:
    return table.filter(reference=reference).to_dicts()
