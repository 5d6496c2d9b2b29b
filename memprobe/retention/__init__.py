"""What training runs keep: the tables of a study, once; figures and published tables draw the same rows.

::

    run directories ─ runs.py ─> Retention ─ tables.py ─> forgetting, curves, stages, first stages, interference,
                      asked.py      │                     other losses, other questions, cost
                                    └─ cells, scores, over_seeds, asked: frames that can be stored
"""

from memprobe.retention.asked import AskedOtherwise, asked_otherwise
from memprobe.retention.runs import Retention, ended_runs, retention_of
from memprobe.retention.tables import (
    CURVES,
    SETTINGS,
    STAGES,
    KeptLess,
    cost,
    costs_of,
    counted,
    curve,
    first_stages,
    forgetting,
    interference,
    kept_less,
    other_losses,
    other_questions,
    stages,
)

__all__ = [
    "CURVES",
    "SETTINGS",
    "STAGES",
    "AskedOtherwise",
    "KeptLess",
    "Retention",
    "asked_otherwise",
    "cost",
    "costs_of",
    "counted",
    "curve",
    "ended_runs",
    "first_stages",
    "forgetting",
    "interference",
    "kept_less",
    "other_losses",
    "other_questions",
    "retention_of",
    "stages",
]
