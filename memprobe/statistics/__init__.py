"""Records to tables. No torch, no plotting.

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
