"""Results of other evaluation tools, so that they can be compared fact by fact.

    lm-evaluation-harness, Inspect, OpenUnlearning ──> Evaluation ──> results directory ──> compare
       (one module each: what their files say)        (one metric)    (outcomes, factoids)

A results directory holds what was asked and what each checkpoint made of it, as a probe directory does, but no records:
another tool has looked at answers, not at depths.
"""

from __future__ import annotations

from memprobe.results.directory import ResultsDirectory, is_results, open_results, write_results
from memprobe.results.evaluation import Evaluation
from memprobe.results.reading import read_evaluations, read_one

__all__ = [
    "Evaluation",
    "ResultsDirectory",
    "is_results",
    "open_results",
    "read_evaluations",
    "read_one",
    "write_results",
]
