"""The schedule: which rows go through the model together, laid out for a whole stage before it starts.

    examples ─ Part, Part, … ─> epochs (reshuffled) ─> optimiser steps ─> micro-batches, item 0, 1, 2, …

Item i is one micro-batch and a pure function of (recipe, seed, i), so the order of the data needs no state of
its own: a run that was killed goes on at item i. Step s is the items s·m … s·m + m − 1, for m = accumulation ×
processes; the rows of a step are sorted by length before they are dealt, so that little is lost on padding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from memprobe.errors import MemprobeError

IGNORED = -100  # the label of a position that carries no loss, as everywhere in Hugging Face


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens.

    Attributes:
        ids: the input, without the last token.
        labels: for each position of ``ids`` the token after it, or :data:`IGNORED`.
        id: of the factoid, task or text.
        own: one of the stage's own rows, not a mixing or replay row.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    id: str
    own: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """One ingredient of a stage.

    Attributes:
        examples: what rows are taken from.
        per_epoch: how many each epoch takes: the same first ones, or, with ``redraw``, others each time.
    """

    examples: Sequence[Example]
    per_epoch: int
    redraw: bool = False


class Schedule:
    """Every micro-batch of a stage, as a sequence of lists of examples (a map-style dataset for torch).

    The last step of an epoch may hold fewer rows, and then some of its micro-batches may hold none.

    Attributes:
        steps: optimiser steps in all.
        steps_per_epoch: in each epoch but perhaps the last.
        micro_batches: items of one step.
    """

    def __init__(
        self,
        own: Part,
        mixing: Sequence[Part] = (),
        matched: Sequence[Part] = (),
        *,
        epochs: int,
        batch: int,
        micro_batches: int = 1,
        seed: int,
        match: Literal["steps", "tokens"] | None = None,
    ):
        """Lays out a stage.

        Args:
            own: the stage's own rows.
            mixing: mixing and replay rows.
            matched: rows that are not trained: the stage takes as long as if they were.
            batch: rows of one optimiser step.
            micro_batches: accumulation steps × processes.
            match: in what it takes as long: steps, or tokens; None where nothing is matched.

        Raises:
            MemprobeError: a part has no rows, or fewer than one epoch takes.
        """
        whole = (own, *matched, *mixing)
        for part in whole:
            if part.per_epoch > len(part.examples):
                raise MemprobeError(
                    f"mixing needs {part.per_epoch} rows an epoch, and its source has {len(part.examples)}"
                )
        if not own.per_epoch:
            raise MemprobeError("the stage has no rows to train on")
        self.seed, self.batch, self.micro_batches = seed, batch, micro_batches
        self.parts = (own, *mixing)
        self.steps_per_epoch = math.ceil(sum(part.per_epoch for part in self.parts) / batch)
        self.steps = self.steps_per_epoch * epochs
        if match == "steps":
            self.steps = math.ceil(sum(part.per_epoch for part in whole) / batch) * epochs
        elif match == "tokens":
            reference = Schedule(own, whole[1:], epochs=epochs, batch=batch, seed=seed)
            self.steps = self._steps_for(reference.tokens)
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def __len__(self) -> int:
        """Micro-batches in all."""
        return self.steps * self.micro_batches

    def __getitem__(self, item: int) -> list[Example]:
        """One micro-batch, its longest row first."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        step, place = divmod(item, self.micro_batches)
        rows = sorted(self.step(step), key=lambda example: -len(example.ids))
        start, stop = (len(rows) * end // self.micro_batches for end in (place, place + 1))
        return rows[start:stop]

    def step(self, step: int) -> list[Example]:
        """The rows of an optimiser step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place * self.batch : (place + 1) * self.batch]

    def ends_epoch(self, steps_done: int) -> bool:
        """Whether an epoch, or all of the schedule, ends after so many steps."""
        return steps_done % self.steps_per_epoch == 0 or steps_done == self.steps

    @property
    def rows(self) -> list[Example]:
        """Every row that may be trained on."""
        return [row for part in self.parts for row in part.examples]

    def pieces(self, most: int) -> int:
        """Into how many micro-batches a step is dealt so that none has many more than ``most`` tokens with padding.

        As a step of the first epoch at its most needs; later epochs are shuffled otherwise.
        """
        steps = [self.step(step) for step in range(min(self.steps, self.steps_per_epoch))]
        return max(-(-sum(len(row.ids) for row in rows) // most) for rows in steps)

    @property
    def tokens(self) -> int:
        """Input tokens of all steps, without padding."""
        steps, whole = range(self.steps), 0
        if not any(part.redraw for part in self.parts):  # every epoch has the same rows
            epochs = self.steps // self.steps_per_epoch
            whole = epochs * sum(len(example.ids) for example in self._lay_out(0))
            steps = range(epochs * self.steps_per_epoch, self.steps)
        return whole + sum(len(example.ids) for step in steps for example in self.step(step))

    def _lay_out(self, epoch: int) -> list[Example]:
        """The rows of an epoch, in order."""
        rows: list[Example] = []
        for number, part in enumerate(self.parts):
            if part.redraw:
                draw = random.Random(f"{self.seed} part {number} epoch {epoch}")
                rows += draw.sample(part.examples, part.per_epoch)
            else:
                rows += part.examples[: part.per_epoch]
        random.Random(f"{self.seed} order {epoch}").shuffle(rows)
        return rows

    def _steps_for(self, tokens: int) -> int:
        """Steps whose tokens come closest to a number."""
        per_epoch = sum(len(example.ids) for example in self._lay_out(0))
        epoch, left = divmod(tokens, per_epoch)
        rows = self._lay_out(epoch)
        done = [0]
        for place in range(self.steps_per_epoch):
            step = rows[place * self.batch : (place + 1) * self.batch]
            done.append(done[-1] + sum(len(example.ids) for example in step))
        nearest = min(range(len(done)), key=lambda steps: abs(done[steps] - left))
        return max(1, epoch * self.steps_per_epoch + nearest)
