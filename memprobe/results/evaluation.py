"""What every tool's results come down to: facts, and a score for each under some metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, make_factoid


@dataclass
class Evaluation:
    """One model on one task.

    Attributes:
        tool: ``lm-evaluation-harness``, ``Inspect`` or ``OpenUnlearning``.
        task: its name there.
        file: where it was read.
        model: what the tool calls the model.
        factoids: what was asked, by id.
        scores: by metric, then by factoid: one number for each time it was asked.
        predictions: what was answered, by factoid, the first time.
        errors: why a factoid has no score, by factoid.
    """

    tool: str
    task: str
    file: Path
    model: str | None = None
    factoids: dict[str, Factoid] = field(default_factory=dict)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    predictions: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def ask(self, id: str, prompt: str, answer: str, where: str, aliases: Iterable[str] = ()) -> None:
        """Adds a fact, or the same one asked again.

        Raises:
            MemprobeError: the id stands for another fact already, or the fact is empty.
        """
        try:
            factoid = make_factoid(prompt, answer, self.task, aliases=aliases, id=id)
        except MemprobeError as error:
            raise MemprobeError(f"{where}: {error}") from error
        before = self.factoids.setdefault(id, factoid)
        if (before.prompt, before.answer) != (factoid.prompt, factoid.answer):
            raise MemprobeError(f"{where}: id {id!r} is used above for another question")

    def score(self, metric: str, id: str, value: Any) -> None:
        """Adds a number; what is none is left out."""
        if isinstance(value, bool | int | float) and math.isfinite(value):
            self.scores.setdefault(metric, {}).setdefault(id, []).append(float(value))

    def chosen(self, metric: str | None) -> str:
        """The metric to go by: the one named, ``exact_match``, or the only one.

        Raises:
            MemprobeError: it has no such metric, none, or several to choose from.
        """
        there = list(self.scores)
        if not there:
            why = next(iter(self.errors.values()), None)
            failed = f"; {len(self.errors)} of its samples failed, first {why}" if why else ""
            raise MemprobeError(f"{self.file}: task {self.task} has no score of single facts{failed}")
        if metric is None:
            metric = "exact_match" if "exact_match" in there else there[0] if len(there) == 1 else None
        if metric not in there:
            asked = f"no metric {metric!r}; " if metric is not None else "name one metric; "
            raise MemprobeError(f"{self.file}: {asked}task {self.task} has {', '.join(there)} (`metric`)")
        return metric

    def means(self, metric: str) -> dict[str, float]:
        """Mean of a metric over the times that each fact was asked."""
        return {id: sum(values) / len(values) for id, values in self.scores[metric].items()}
