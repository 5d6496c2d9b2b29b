"""Factoids with each other's answers: nothing but the training that follows speaks for them.

The control task of Hewitt & Liang (2019, "Designing and Interpreting Probes with Control Tasks"), for memorising: the
prompts and the answers are those of real facts, and what a model may know or guess of either does not tell which belong
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, make_factoid
from memprobe.metrics import normalise


def shuffle_answers(factoids: Sequence[Factoid], seed: int) -> list[Factoid]:
    """The same prompts in the same order, each with the answer (and aliases) of another.

    No prompt gets an answer that is right for it, be it by an alias; ids are new ones. Of all such assignments one is
    drawn by the least sum of random costs.

    Raises:
        MemprobeError: there is none, as where most answers are one and the same.
    """
    right = [{normalise(text) for text in (row.answer, *row.aliases)} for row in factoids]
    who: dict[str, list[int]] = {}
    for place, row in enumerate(factoids):
        who.setdefault(normalise(row.answer), []).append(place)
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
        make_factoid(
            row.prompt,
            other.answer,
            row.source,
            aliases=other.aliases,
            relation=row.relation,
            subject=row.subject,
            popularity=row.popularity,
        )
        for row, other in zip(factoids, (factoids[place] for place in answers), strict=True)
    ]
