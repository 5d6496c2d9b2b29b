"""What a capture will ask, before any model runs: token ids, the positions to read, and control tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from memprobe.batching import common_prefix
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, check_factoids
from memprobe.records import POSITION, POSITIONS, SUBJECT, in_order
from memprobe.subjects import subject_positions
from memprobe.templates import Template, TokenisedFactoid, tokenise_all, tokenise_for

if TYPE_CHECKING:
    from memprobe.models import LensModel

SHUFFLES = 5


@dataclass(frozen=True, slots=True)
class Site:
    """One place where the lenses read: a factoid's answer token at a position of its input.

    Attributes:
        item: the factoid.
        position: name in :data:`memprobe.records.POSITIONS`.
        column: index in ``item.inputs``.
        target: index in ``item.targets``.
    """

    item: TokenisedFactoid
    position: str
    column: int
    target: int


@dataclass(frozen=True)
class CapturePlan:
    """Tokenised factoids, where each is read, and the control tokens of each, before any model runs.

    Attributes:
        items: in the order of the factoids given.
        shuffled: per factoid id, the answer ids of ``shuffled:0`` …; ``None`` where no other answer fits.
        intrusions: by name, the distinct first answer tokens to watch for.
        positions: what is read of each factoid.
        subjects: per factoid id, the index in its input of its subject's last token, where that is read.
        without_subject: per factoid id, why it is not read at its subject.
    """

    items: list[TokenisedFactoid]
    shuffled: dict[str, list[tuple[int, ...] | None]]
    intrusions: dict[str, list[int]]
    positions: tuple[str, ...] = (POSITION,)
    subjects: dict[str, int] = field(default_factory=dict)
    without_subject: dict[str, str] = field(default_factory=dict)

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """The tokens that all inputs begin with, up to the first position that is read in any."""
        inputs = [item.inputs for item in self.items]
        if len(inputs) < 2:
            return ()
        return tuple(common_prefix(inputs)[: min(s.column for item in self.items for s in self.sites(item))])

    def sites(self, item: TokenisedFactoid) -> list[Site]:
        """Where a factoid is read; the end token and a bare space belong to the answer's own position alone."""
        before = len(item.prompt) - 1
        places = [Site(item, POSITION, before + target, target) for target in range(len(item.targets))]
        if (column := self.subjects.get(item.factoid.id)) is not None:
            first = len(item.lead)
            places += [Site(item, SUBJECT, column, first + target) for target in range(len(item.answer))]
        return places


def plan_capture(
    lens_model: LensModel,
    factoids: Sequence[Factoid],
    template: Template,
    *,
    positions: Sequence[str] = (POSITION,),
    intrusions: Mapping[str, Sequence[Factoid]] | None = None,
    seed: int = 0,
) -> CapturePlan:
    """Tokenises factoids, finds what is to be read of each, and draws their controls.

    Raises:
        MemprobeError: see :func:`memprobe.capturing.capture`.
    """
    positions = check_positions(positions)
    check_factoids(factoids, "probe")
    items = tokenise_for(lens_model, factoids, template)
    watched = {}
    for name, others in (intrusions or {}).items():
        # Of these only answers are looked for: their prompts need not fit the context.
        answers = tokenise_all(others, template, lens_model.tokenizer, n_ids=lens_model.n_ids)
        watched[name] = sorted({item.answer[0] for item in answers})
    subjects, without = {}, {}
    if SUBJECT in positions:
        for item in items:
            try:
                subjects[item.factoid.id] = subject_positions(item, template, lens_model.tokenizer)[-1]
            except MemprobeError as error:
                without[item.factoid.id] = str(error)
        if not subjects:
            raise MemprobeError(f"no factoid can be read at its subject: {next(iter(without.values()))}")
    return CapturePlan(items, shuffled_answers(items, seed), watched, positions, subjects, without)


def check_positions(positions: Sequence[str]) -> tuple[str, ...]:
    """Positions in the order of :data:`memprobe.records.POSITIONS`, whatever order they were asked for in.

    Raises:
        MemprobeError: one does not exist or stands twice, or the answer's own, which says what is known, is missing.
    """
    unknown = [name for name in positions if name not in POSITIONS]
    if unknown or POSITION not in positions or len(set(positions)) < len(positions):
        raise MemprobeError(
            f"positions {', '.join(positions) or '(none)'}: choose {POSITION}, or {','.join(POSITIONS)}, each once"
        )
    return tuple(in_order(positions))


def shuffled_answers(
    items: Sequence[TokenisedFactoid], seed: int, draws: int = SHUFFLES
) -> dict[str, list[tuple[int, ...] | None]]:
    """For each factoid id, other factoids' answers: the chance level of everything that is read.

    Each draw is a derangement within (source, relation) whose pairs differ in their first token: a group is
    laid out in runs of equal first tokens and rotated by at least its longest run, so that no run meets
    itself. Where one first token holds more than half a group, those left over have no control.
    """
    groups: dict[tuple[str, str], list[TokenisedFactoid]] = {}
    for item in sorted(items, key=lambda item: item.factoid.id):  # the draw must not depend on row order
        groups.setdefault((item.factoid.source, item.factoid.relation or ""), []).append(item)
    chosen: dict[str, list[tuple[int, ...] | None]] = {item.factoid.id: [None] * draws for item in items}
    for number, group in enumerate(groups[key] for key in sorted(groups)):
        firsts = np.array([item.answer[0] for item in group])
        values, runs = np.unique(firsts, return_counts=True)
        longest = int(runs.max())
        for draw in range(draws):
            random = np.random.default_rng([seed, draw, number])
            place = dict(zip(values.tolist(), random.permutation(len(values)).tolist(), strict=True))
            within = random.permutation(len(group))
            order = sorted(range(len(group)), key=lambda index: (place[int(firsts[index])], within[index]))
            last = len(group) - longest
            shift = int(random.integers(longest, last + 1)) if last >= longest else longest
            for position, index in enumerate(order):
                other = order[(position + shift) % len(group)]
                if firsts[other] != firsts[index]:
                    chosen[group[index].factoid.id][draw] = group[other].answer
    return chosen
