"""Factoids with each other's answers: nothing but the training that follows speaks for them.

The control task of Hewitt & Liang (2019, "Designing and Interpreting Probes with Control Tasks"), for memorising: the
prompts and the answers are those of real facts, and what a model may know or guess of either does not tell which belong
together. Answers move between relations, so that neither does their kind (a city, a person). The controls of a probe
(:func:`memprobe.planning.shuffled_answers`) stay within one: they are read at a prompt, and nobody learns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, factoid_id
from memprobe.metrics import normalise


def shuffle_answers(factoids: Sequence[Factoid], seed: int) -> list[Factoid]:
    """The same prompts in the same order, each with the answer (and aliases) of another.

    No prompt gets an answer that is right for it, be it by an alias of either; ids are new ones. Of all such
    assignments one is drawn by the least sum of random costs.

    Raises:
        MemprobeError: there is none, as where most answers are one and the same.
    """
    from scipy.optimize import linear_sum_assignment

    right = [{normalise(text) for text in (row.answer, *row.aliases)} for row in factoids]
    who: dict[str, list[int]] = {}
    for place, texts in enumerate(right):
        for text in texts:
            who.setdefault(text, []).append(place)
    count = len(factoids)
    costs = np.random.default_rng(seed).random((count, count))
    for place, texts in enumerate(right):
        costs[place, [other for text in texts for other in who.get(text, ())]] += count
    prompts, answers = linear_sum_assignment(costs)
    if count == 0 or costs[prompts, answers].max() >= count:
        raise MemprobeError(
            f"{count} rows cannot be shuffled so that each prompt gets a wrong answer: too many share one"
        )
    return [
        replace(
            row,
            answer=other.answer,
            aliases=other.aliases,
            id=factoid_id(row.source, row.prompt, other.answer),
        )
        for row, other in zip(factoids, (factoids[place] for place in answers), strict=True)
    ]
