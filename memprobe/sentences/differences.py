"""Differences in words: how far, which way, how sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memprobe import wording
from memprobe.statistics.intervals import FEWEST
from memprobe.statistics.vocabulary import STATISTICS

EXACT = STATISTICS["exact"].label
"""What being recalled is called where it was judged by what is generated."""
FEW_PAIRS = 3
"""Up to so many pairs of checkpoints, each has a sentence of its own, whatever it says."""


def no_interval(n: int | None) -> str:
    """Why a mean of so many facts has no interval: they are too few, or share too few answers."""
    few = n is None or n < FEWEST["mean"]
    return f"too few {'facts' if few else 'different answers'} for an interval"


def against(
    label: str,
    reference: str,
    exact: Mapping[str, Any],
    depth: Mapping[str, Any],
    held: bool | None,
    *,
    measure: str = EXACT,
) -> str:
    """What differs between two checkpoints, by how much, how sure, and whether it holds in both readouts.

    Args:
        exact, depth: difference, low and high of exact match and of first occurrence, checkpoint minus reference.
        held: whether the latter is on the same side of 0 in both readouts; ``None`` where one was not probed.
        measure: what the former is called, by what answers were judged.
    """
    placed = surfaces(*edges_of(depth), n=depth.get("n"))
    return (
        f"{label} against {reference}: {recalled(exact, measure=measure)}; {placed}{_in_both(held, depth)}."
    )


def of_pairs(
    pairs: Sequence[tuple[str, str, Mapping[str, Any], Mapping[str, Any], bool | None]],
    *,
    measure: str = EXACT,
) -> list[str]:
    """:func:`against` of several pairs; of many, those without a clear difference share a sentence at the end.

    Args:
        pairs: (label, reference, exact, depth, held), see :func:`against`.
    """
    quiet = [pair for pair in pairs if not (_is_clear(pair[2]) or _is_clear(pair[3]))]
    if len(pairs) <= FEW_PAIRS or len(quiet) < 2:
        return [against(*pair, measure=measure) for pair in pairs]
    named = "; ".join(f"{label} against {reference}" for label, reference, *_ in quiet)
    lines = [against(*pair, measure=measure) for pair in pairs if pair not in quiet]
    return [*lines, f"No clear difference in {measure} or in depth: {named}."]


def _is_clear(row: Mapping[str, Any]) -> bool:
    """Whether a difference is known and its interval leaves out 0."""
    value, low, high = edges_of(row)
    return value is not None and low is not None and high is not None and not low <= 0 <= high


def recalled(row: Mapping[str, Any], why: str = "", *, measure: str = EXACT) -> str:
    """A difference of exact match, in words: by how many points, how sure.

    Args:
        why: it has no interval, where it has none.
        measure: what it is called, by what answers were judged.
    """
    value, low, high = edges_of(row)
    if value is None:
        return f"{measure} is not known"
    edges = wording.interval(
        100 * value,
        None if low is None else 100 * low,
        None if high is None else 100 * high,
        f"+{_form(100 * value, 0)}",
    )
    if value == low == high == 0:
        return f"{measure} is the same"
    if low is None or high is None:
        apart = f"{edges} points of {measure}" if value else f"{measure} is the same"
        return f"{apart} ({why or no_interval(row.get('n'))})"
    if low <= 0 <= high:
        return f"no clear difference in {measure} ({edges} points)"
    return f"{edges} points of {measure}"


def surfaces(
    value: float | None, low: float | None, high: float | None, *, n: int | None = None, why: str = ""
) -> str:
    """A difference in depths of ``n`` facts, in words: how far, which way, how sure; see :func:`recalled`."""
    if value is None:
        return "first occurrence is not known"
    if low is None or high is None:
        apart = f"facts surface {moved(value, low, high)}" if value else "first occurrence is the same"
        return f"{apart} ({why or no_interval(n)})"
    if value == low == high == 0:
        return "first occurrence is the same"
    if low <= 0 <= high:
        return f"no clear difference in depth ({wording.interval(value, low, high, '+.1f')})"
    return f"facts surface {moved(value, low, high)}"


def moved(value: float | None, low: float | None, high: float | None) -> str:
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


def _in_both(held: bool | None, row: Mapping[str, Any]) -> str:
    """Whether a claim of placement is held; nothing where none is made."""
    _, low, high = edges_of(row)
    if low is None or high is None or low <= 0 <= high:
        return ""
    if held is None:
        return " (not checked in the base model's readout)"
    return ", also in the base model's readout" if held else ", but not in the base model's readout"


def seeds_of(row: Mapping[str, Any]) -> str:
    """Over how many seeds of either arm a difference is: ``3 seeds``, ``5 and 3 seeds``."""
    own, other = row["seeds"], row["reference_seeds"]
    return wording.count(own, "seed") if own == other else f"{own} and {wording.count(other, 'seed')}"


def edges_of(row: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """A difference with the ends of its interval."""
    return row["difference"], row["low"], row["high"]
