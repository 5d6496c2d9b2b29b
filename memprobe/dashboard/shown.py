"""Which statistics the page shows, and what they are called there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

DRAWS = 2_000  # bootstrap draws per interval: the page has 18 times as many intervals as summary.json
SHOWN = {
    "exact": ("exact match", True),
    "recall_full": ("recall@k at full depth", True),
    "lof": ("first occurrence (depth)", False),
    "lof_restricted": ("first occurrence, never as one deeper (depths)", False),
    "settled_restricted": ("settled depth, never as one deeper (depths)", False),
    "depths_per_factoid": ("depths held per factoid", False),
    "log_prob_full": ("log-probability at full depth (nats)", False),
}
"""Statistics that are drawn: what they are with their unit, and whether they are shares."""
COMPARED = (
    "exact",
    "recall_full",
    "lof_restricted",
    "settled_restricted",
    "depths_per_factoid",
    "log_prob_full",
)
"""Statistics whose differences are drawn; depths of "never" count as n_layers + 1, so that every factoid has one."""
STAGED = ("exact", "recall_full", "lof", "depths_per_factoid")
"""Statistics that are followed from stage to stage."""


def difference_unit(statistic: str) -> str:
    """The axis of a difference: its unit."""
    label, share = SHOWN[statistic]
    unit = label.rpartition("(")[2].rstrip(")") if "(" in label else "depths"
    return "difference in percentage points" if share else f"difference in {unit}"
