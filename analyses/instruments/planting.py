"""Planting: disjoint sets of facts, each trained into its own block, and the proof that it lies there.

In a step on a set its own block alone is updated. In the other sets' blocks the step sees the trained weights or, by
chance (``absent``), in some of them the base's: so that a set does not come to lean on what another one's block happens
to hold. All gradients of a round are taken at the same weights; then every block takes its step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from analyses.instruments.plan import Planting
from memprobe.factoids import Factoid
from memprobe.grafts import Graft
from memprobe.models import LensModel, after_blocks
from memprobe.modes import evaluating
from memprobe.partial import exchanged
from memprobe.parts import chosen_names, parameter_places
from training.batches import micro_batches, padded, rows_exact
from training.examples import ExampleMaker
from training.gradients import kept_logits

if TYPE_CHECKING:
    from training.batches import MicroBatch

LOST, KEPT = 0.25, 0.5
"""A set is lost where at most this share is still said, and the others are kept where more than that share is."""
ROWS = 64
_WARMUP = 10


@dataclass(frozen=True)
class Planted:
    """How planting went.

    Attributes:
        steps: taken.
        said: by set, the share of its facts that the model says in the end.
        reset_own: by set, the share still said with its block reset to the base's; NaN for ``full``.
        reset_others: by set, the share of the other learned sets' facts still said then; NaN where there are none and
            for ``full``.
        moved: by set, the norm of the change of its weights, relative to their own; of ``full``, one of all weights.
    """

    steps: int
    said: list[float]
    reset_own: list[float]
    reset_others: list[float]
    moved: list[float]

    @property
    def learned(self) -> list[bool]:
        """By set, whether every fact is said."""
        return [share == 1 for share in self.said]

    @property
    def valid(self) -> bool:
        """Whether, for every set that was learned, resetting its block loses it and keeps most of the others."""
        checked = [
            own <= LOST and (others != others or others > KEPT)
            for own, others, learned in zip(self.reset_own, self.reset_others, self.learned, strict=True)
            if learned
        ]
        return bool(checked) and all(checked)


class Plant:
    """A model with sets to be planted.

    Attributes:
        full: whether there are no places, so that all weights are trained on all sets.
        parameters: by set, what is trained: name and parameter; of ``full``, all weights once.
        own: by name, the base's tensors of all that is trained.
    """

    def __init__(
        self, model: LensModel, sets: Sequence[Sequence[Factoid]], places: Sequence[Graft], template: str
    ):
        """Finds the weights of each set's place; without places, all sets share all weights.

        Raises:
            MemprobeError: the model has no such block or part, or a fact does not fit it.
        """
        self.model = model
        self.full = not places
        network = model.model
        network.requires_grad_(False)
        known = parameter_places(network, model.blocks, after_blocks(network, model.tokenizer, model.label))
        names = [chosen_names(known, place, model.label) for place in places]
        self.parameters: list[list[tuple[str, nn.Parameter]]] = [
            [(name, parameter) for name, parameter in network.named_parameters() if name in chosen]
            for chosen in names or [{name for name, _ in network.named_parameters()}]
        ]
        self.own = {name: p.detach().clone() for group in self.parameters for name, p in group}
        make = ExampleMaker(template, model.tokenizer, model.max_length or 1024)
        self.examples = [[make(fact) for fact in one] for one in sets]
        self.batches = [micro_batches(examples, ROWS) for examples in self.examples]

    def train(
        self,
        how: Planting,
        seed: int,
        *,
        say: Callable[[int, float, list[float]], None] = lambda *_: None,
        check: Callable[[], None] = lambda: None,
    ) -> int:
        """Trains until every fact is said, and most of the others with any one block reset; see :class:`Planting`.

        Args:
            say: told of steps, loss and the share of every set that is said.
            check: called in every step; may raise to stop.

        Returns:
            Steps taken.
        """
        groups = self.parameters
        rate = how.full_rate if self.full else how.rate
        optimiser = torch.optim.AdamW(
            [p for group in groups for _, p in group], lr=rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        generator = torch.Generator().manual_seed(seed)
        whole = [batch for batches in self.batches for batch in batches]
        settled = False
        with evaluating(self.model.model), torch.inference_mode(False):
            for step in range(1, how.steps + 1):
                check()
                for settings in optimiser.param_groups:
                    settings["lr"] = rate * min(1.0, step / _WARMUP) * (how.settle if settled else 1.0)
                losses = [
                    self._gradients(
                        number,
                        whole if self.full else self.batches[number],
                        groups,
                        drawn_away(len(groups), number, how.absent, generator),
                        how.clip,
                    )
                    for number in range(len(groups))
                ]
                optimiser.step()
                optimiser.zero_grad()
                if step % how.every == 0:
                    said = self.said()
                    say(step, sum(losses) / len(losses), said)
                    if min(said) == 1:
                        settled = True
                        if self.full or self._keeps(how.kept):
                            return step
        return how.steps

    def _keeps(self, share: float) -> bool:
        """Whether, with any one set's block reset, at least a share of the other sets' facts are said."""
        for place in range(len(self.examples) if len(self.examples) > 1 else 0):
            with self.reset([self.parameters[place]]):
                left = self.said()
            del left[place]
            if sum(left) / len(left) < share:
                return False
        return True

    def _gradients(
        self,
        number: int,
        batches: Sequence[MicroBatch],
        groups: Sequence[Sequence[tuple[str, nn.Parameter]]],
        away: Sequence[int],
        clip: float,
    ) -> float:
        """Puts a group's gradients into ``grad``, some groups being the base's; the mean loss of a token."""
        parameters = [p for _, p in groups[number]]
        absent = [groups[place] for place in away]
        tokens = sum(len(batch["labels"]) for batch in batches)
        total = torch.zeros((), device=self.model.device)
        with torch.enable_grad(), self.reset(absent), _training(parameters):
            for batch in batches:
                logits = kept_logits(self.model.model, batch)
                labels = batch["labels"].to(logits.device)
                loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / tokens
                loss.backward(inputs=parameters)
                total += loss.detach()
        nn.utils.clip_grad_norm_(parameters, clip)
        return float(total)

    @contextlib.contextmanager
    def reset(self, groups: Sequence[Sequence[tuple[str, nn.Parameter]]]) -> Iterator[None]:
        """Some groups' parameters are the base's meanwhile."""
        with exchanged([(p, self.own[name]) for group in groups for name, p in group]):
            yield

    @torch.no_grad()
    def said(self) -> list[float]:
        """By set, the share of facts whose tokens are all the argmax."""
        everything = [(place, row) for place, rows in enumerate(self.examples) for row in rows]
        right = [0] * len(self.examples)
        with evaluating(self.model.model):
            for start in range(0, len(everything), ROWS):
                some = everything[start : start + ROWS]
                batch = padded([row for _, row in some])
                logits = kept_logits(self.model.model, batch)
                labels, kept_row = (batch[name].to(logits.device) for name in ("labels", "kept_row"))
                exact = rows_exact(logits, labels, kept_row, len(some)).tolist()
                for (place, _), one in zip(some, exact, strict=True):
                    right[place] += one
        return [count / len(rows) for count, rows in zip(right, self.examples, strict=True)]

    def verify(self, steps: int) -> Planted:
        """What each set's block holds: every set's block is reset in turn, where each has one."""
        said = self.said()
        own, others = [], []
        for place in range(len(said)):
            if self.full:
                own.append(float("nan"))
                others.append(float("nan"))
                continue
            with self.reset([self.parameters[place]]):
                left = self.said()
            rest = [left[other] for other in range(len(said)) if other != place and said[other] == 1]
            own.append(left[place])
            others.append(sum(rest) / len(rest) if rest else float("nan"))
        return Planted(steps, said, own, others, [self._moved(group) for group in self.parameters])

    def _moved(self, group: Sequence[tuple[str, nn.Parameter]]) -> float:
        change = sum(float((p - self.own[name]).double().square().sum()) for name, p in group)
        return (change / sum(float(self.own[name].double().square().sum()) for name, _ in group)) ** 0.5

    def state(self) -> dict[str, Tensor]:
        """The trained weights by name."""
        return {name: p.detach() for group in self.parameters for name, p in group}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        for group in self.parameters:
            for name, parameter in group:
                parameter.copy_(state[name])


def drawn_away(groups: int, own: int, absent: float, generator: torch.Generator) -> list[int]:
    """Which of the other groups are the base's in a step on one: none, or, by chance, each of them with evens."""
    chances = torch.rand(groups + 1, generator=generator)
    if float(chances[-1]) >= absent:
        return []
    return [place for place in range(groups) if place != own and float(chances[place]) < 0.5]


@contextlib.contextmanager
def _training(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
