"""What a statistic can be at all: its interval ends there, of which Student's knows nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Ends = tuple[float, float]
"""The least and the most that a statistic can be."""
SHARE: Ends = (0.0, 1.0)
FREE: Ends = (-np.inf, np.inf)


def less(ends: Ends, other: Ends | None = None) -> Ends:
    """The ends of a difference: of what ends there less what ends at ``other`` (default: the same)."""
    least, most = other or ends
    return ends[0] - most, ends[1] - least


def within(low: np.ndarray, high: np.ndarray, ends: Sequence[Ends]) -> tuple[np.ndarray, np.ndarray]:
    """Intervals cut to what is possible.

    Args:
        low, high: [..., statistic]; NaN stays.
        ends: [statistic].
    """
    least, most = np.array(ends, float).reshape(-1, 2).T
    return np.clip(low, least, most), np.clip(high, least, most)
