"""Verdicts: what an interval says of a claim that was written down beforehand.

    seen          the interval lies on the claim's side of 0
    contradicted  it lies on the other side
    equivalent    it lies within the bounds that the claim calls as good as nothing
    undecided     none of these: a wide interval is no evidence of no difference
    not tested    there is no interval, or the arm did nothing (:func:`is_inert`)

A permutation test gives a p and no interval; what it says of a claim is :func:`verdict_without_interval`.

Claims of one family are tested together: p is Holm's, and "seen" and "contradicted" need it below 5 % as well as the
interval. "Equivalent" needs the whole 95 % interval inside the bounds, which is stricter than two one-sided tests at
5 % (Schuirmann 1987) and needs no correction: to call a difference nothing it must be nothing in each claim alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memprobe.statistics.intervals import LEVEL

SEEN = "seen"
CONTRADICTED = "contradicted"
EQUIVALENT = "equivalent"
UNDECIDED = "undecided"
NOT_TESTED = "not tested"
VERDICTS = (SEEN, CONTRADICTED, EQUIVALENT, UNDECIDED, NOT_TESTED)
ABOVE, BELOW = "above", "below"
"""Which side of 0 a claim is on."""
_INERT = 0.005  # relative difference of how far the weights moved
_ABSURD = 1e-12


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for the family-wise error (Holm 1979); ``None`` stays and is not counted among the tests."""
    adjusted: list[float | None] = [None] * len(p)
    known = sorted((value, i) for i, value in enumerate(p) if value is not None and np.isfinite(value))
    highest = 0.0
    for rank, (value, i) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        adjusted[i] = highest
    return adjusted


def side_of(low: float | None, high: float | None) -> int | None:
    """On which side of 0 an interval lies: 1 above, -1 below, 0 where it holds 0; ``None`` where there is none."""
    if low is None or high is None or not (np.isfinite(low) and np.isfinite(high)):
        return None
    return int(low > 0) - int(high < 0)


def on_one_side(*intervals: tuple[float | None, float | None]) -> bool | None:
    """Whether intervals lie on the same side of 0, with all of each; ``None`` where one of them is not known.

    So a placement claim is held: in the checkpoint's own readout and in the base model's.
    """
    sides = {side_of(low, high) for low, high in intervals}
    return None if None in sides else len(sides) == 1 and sides != {0}


def verdict(
    low: float | None,
    high: float | None,
    *,
    side: str,
    equivalent: float | None,
    p: float | None = None,
) -> str:
    """What an interval of a difference says of the claim that it lies on ``side`` of 0.

    Args:
        low, high: of the 95 % interval; ``None`` where there is none.
        side: :data:`ABOVE` or :data:`BELOW`.
        equivalent: the largest difference, either way, that the claim calls as good as nothing; ``None`` where it names
            none.
        p: adjusted for the claim's family; ``None`` where the claim is tested alone.
    """
    if low is None or high is None or not (np.isfinite(low) and np.isfinite(high)):
        return NOT_TESTED
    if side == BELOW:
        low, high = -high, -low
    certain = p is None or _is_below(p)
    if low > 0 and certain:
        return SEEN
    if high < 0 and certain:
        return CONTRADICTED
    if equivalent is not None and max(-low, high) <= equivalent:
        return EQUIVALENT
    return UNDECIDED


def verdict_without_interval(estimate: float | None, p: float | None, *, side: str) -> str:
    """What a test that has no interval says of the claim that its estimate lies on ``side`` of 0.

    Nothing is called equivalent: that needs an interval.

    Args:
        estimate: ``None`` where there is none.
        p: two-sided, adjusted for the claim's family; ``None`` where there is none.
        side: :data:`ABOVE` or :data:`BELOW`.
    """
    if estimate is None or p is None or not (np.isfinite(estimate) and np.isfinite(p)):
        return NOT_TESTED
    if not _is_below(p) or estimate == 0:
        return UNDECIDED
    return SEEN if (estimate > 0) == (side == ABOVE) else CONTRADICTED


def _is_below(p: float) -> bool:
    """Whether a p is below 5 %, and not 5 % but for rounding."""
    return p < 1 - LEVEL - _ABSURD


def together(verdicts: Sequence[str]) -> str:
    """The verdict of a claim that must hold in every one of several readings at once.

    Where one of them is not tested, the claim is not. Seen in all is seen. Contradicted needs one reading that
    contradicts and none that sees. Equivalent in all is equivalent, and the rest is undecided.
    """
    if not verdicts or NOT_TESTED in verdicts:
        return NOT_TESTED
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if CONTRADICTED in verdicts and SEEN not in verdicts:
        return CONTRADICTED
    return UNDECIDED


def is_inert(moved: Sequence[float | None], naive: Sequence[float | None]) -> bool:
    """Whether an arm moves the weights just as far as naive training does, seed by seed: then its setting does nothing,
    and that it keeps as little says nothing of the method.

    Args:
        moved, naive: norms of the change of the weights, of the same seeds in the same order.

    Returns:
        Whether the median over seeds of their relative difference is below half a per cent.
    """
    apart = [abs(a / b - 1) for a, b in zip(moved, naive, strict=True) if a is not None and b]
    return bool(apart) and float(np.median(apart)) < _INERT
