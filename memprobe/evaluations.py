"""``evaluation.json`` as a contract: what was answered after a stage of training, set by set and row by row.

Keys that memprobe does not know are kept: they are only ever added.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from memprobe.run_file import Count, Open

EXACT = "exact_match"
SHARES = (EXACT, "exact_tokens", "alias_match", "final_answer")
"""Scores of rows that are yes or no."""
WITHIN_ONE = (*SHARES, "rouge_l")
"""Scores that lie between 0 and 1: those, and a mean of overlaps."""
PARAPHRASES, MANIPULATIONS = "paraphrases", "manipulations"
"""Sets of stage 1's facts, asked otherwise: the id of a row is its fact's, a slash, and what is asked."""

_ROUNDING, _LARGEST = 1e-6, 1e300  # a percentage of the largest is a number, too


def _not_too_large(value: float) -> float:
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{value:g} is no score")
    return value


Number = Annotated[float, AfterValidator(_not_too_large)]


class Score(Open):
    """A score and its 95 % interval; null where there is none."""

    value: Number | None
    low: Number | None = None
    high: Number | None = None


def _in_range(scores: dict[str, Score]) -> dict[str, Score]:
    for name in WITHIN_ONE:
        if name in scores:
            for value in (scores[name].value, scores[name].low, scores[name].high):
                if value is not None and not -_ROUNDING <= value <= 1 + _ROUNDING:
                    raise ValueError(f"{name} is {value:g}, which is no share")
    return scores


Scores = Annotated[dict[str, Score], AfterValidator(_in_range)]


Share = bool | Annotated[float, Field(ge=-_ROUNDING, le=1 + _ROUNDING)]
"""A row's own score that is yes or no, or the share of its questions that are answered."""


class EvaluatedRow(Open):
    """One row of an evaluated set.

    Attributes:
        nats: of its answer, all tokens together.
    """

    id: str
    prediction: str | None = None
    exact_match: Share | None = None
    exact_tokens: Share | None = None
    alias_match: Share | None = None
    final_answer: Share | None = None
    nats: Number | None = None

    def share(self, name: str) -> float | None:
        """One of its own scores that are yes or no (:data:`SHARES`)."""
        value = getattr(self, name)
        return None if value is None else float(value)


class EvaluatedSet(Open):
    """One evaluated set; ``metric`` names the score that stands for it, and each row's own under the same name."""

    kind: str
    metric: str
    n: Count
    scores: Scores
    rows: list[EvaluatedRow] = Field(default_factory=list)

    @model_validator(mode="after")
    def _each_row_has_its_score(self) -> EvaluatedSet:
        if self.metric in SHARES:
            for number, row in enumerate(self.rows):
                if row.share(self.metric) is None:
                    raise ValueError(f"rows.{number}: has no {self.metric}, which stands for the set")
        return self

    @property
    def score(self) -> Score:
        """The score that stands for the set."""
        return self.scores.get(self.metric) or Score(value=None)


class PartOfSet(Open):
    """Scores of some rows of a set; none where there are no such rows."""

    n: Count
    scores: Scores = Field(default_factory=dict)


class EvaluationFile(Open):
    """``evaluation.json``: every set that was evaluated after a stage."""

    sets: dict[str, EvaluatedSet]
    stage: int | None = None
    base: Parent | None = None
    retention: dict[str, dict[str, PartOfSet]] = Field(default_factory=dict)
    weight_change: dict[str, float | None] = Field(default_factory=dict)
    interference: dict[str, dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _otherwise_of_a_fact(self) -> EvaluationFile:
        for name in (PARAPHRASES, MANIPULATIONS):
            for number, row in enumerate(self.sets[name].rows if name in self.sets else ()):
                if "/" not in row.id or row.share(EXACT) is None:
                    raise ValueError(
                        f"sets.{name}.rows.{number}: needs an id of the form FACT/QUESTION, and {EXACT}"
                    )
        return self


class Parent(Open):
    """The checkpoint that a stage started from, or its base model."""

    fingerprint: str | None = None
