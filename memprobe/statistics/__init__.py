"""Records to tables. No torch, no plotting.

Each takes a probe, with the top k and the token rule that it was made with, or a table with both named:
``recall_by_depth(probe)``, ``recall_by_depth(probe, k=1)``, ``recall_by_depth(records, k=1, token="all")``.

asking       what a statistic is asked of: a probe, or a table with k and token rule
holding      token rules; which depths hold which answers
curves       recall@k, normalised frequency and other curves over depth
occurrence   first occurrence, settled depth, diversity
intervals    Wilson, bootstrap, order statistics
"""

from memprobe.statistics.curves import normalised_frequency, recall_by_depth, shuffled_recall
from memprobe.statistics.holding import K_VALUES, TOKEN_RULES, held
from memprobe.statistics.occurrence import occurrence, placement

__all__ = [
    "K_VALUES",
    "TOKEN_RULES",
    "held",
    "normalised_frequency",
    "occurrence",
    "placement",
    "recall_by_depth",
    "shuffled_recall",
]
