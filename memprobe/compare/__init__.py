"""Do the same facts surface at different depths in these checkpoints, and how sure are we?

Probe directories in, tables out; no model is needed.

    comparison     compare: every table, checkpoint by checkpoint; what tables there are
    by_checkpoint  curves, placement, survival, net of controls, groups
    by_pair        differences, spread, overlap, fates, kept and lost facts, claims of placement
    outcomes       compare_outcomes: answers alone, also of other evaluation tools
    over_runs      paths through stages, arms over seeds, training steps, kept facts of arms, depth and retention
    headline       the one table that stands below a verdict
    table          a function of readings, with a schema

A table is a function of :class:`memprobe.readings.Readings` and can be made alone: ``TABLES["spread"](readings)``.
"""

from memprobe.compare.comparison import (
    ANSWER,
    PAIRS,
    TABLES,
    Comparison,
    TablesOnDemand,
    compare,
    compare_readings,
    read_comparison,
    settings_of,
)
from memprobe.compare.over_runs import depth_and_retention, kept_facts
from memprobe.compare.table import Table
from memprobe.readings import ARM_STATISTICS, BASE, SHUFFLED

__all__ = [
    "ANSWER",
    "ARM_STATISTICS",
    "BASE",
    "PAIRS",
    "SHUFFLED",
    "TABLES",
    "Comparison",
    "Table",
    "TablesOnDemand",
    "compare",
    "compare_readings",
    "depth_and_retention",
    "kept_facts",
    "read_comparison",
    "settings_of",
]
