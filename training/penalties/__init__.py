"""Penalties: terms added to a later stage's loss that hold the model to the one before it. One file each.

A module of this package defines one subclass of :class:`Penalty`: its fields are what a recipe's ``penalty`` table and
an arm may say (``ewc(strength=…)``), and :meth:`Penalty.term` makes the term at the boundary between two stages. It is
found by being there. Modules import torch inside their functions, as recipes are read without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from memprobe.errors import among
from training.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from training.batches import MicroBatch


class Penalty(Settings):
    """What a recipe says of a penalty.

    Attributes:
        method: its name, in arms too.
        strength: what the term is multiplied with; to be chosen on a seed and a D_B that no result uses, such that
            D_B is still learned.
    """

    holds_weights: ClassVar[bool] = False
    """Whether it holds every weight to its start.

    Low-rank adapters leave it nothing to hold. And gradients are not clipped then: the pull back to the start grows
    with the distance, and clipped to the length of the first steps, which led away, it does not bring them back.
    """

    reads_logits: ClassVar[bool] = True
    """Whether its term is made of a step's logits, which then are all held at once."""

    method: str
    strength: float = Field(gt=0)

    def term(self, boundary: Boundary) -> Term:
        """The term of a stage, made from the checkpoint that it starts from.

        Nothing in it may be random beyond the boundary's seed: a run that goes on makes it again.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Boundary:
    """Where one stage ends and the next begins.

    Attributes:
        model: with the weights of the end of the stage before; it is going to be trained.
        copy: makes another model with the same weights.
        earlier: at most so many rows of all earlier stages, drawn from all of them alike, as padded micro-batches.
        seed: of whatever is drawn.
        say: into the log.
        autocast: of the matrix products of training; None where they are in the weights' own precision.
    """

    model: PreTrainedModel
    copy: Callable[[], PreTrainedModel]
    earlier: Callable[[int], list[MicroBatch]]
    seed: int
    say: Callable[[str], None]
    autocast: torch.dtype | None = None


@dataclass(frozen=True)
class Step:
    """One micro-batch in training.

    Attributes:
        model: that is trained, unwrapped.
        inputs: what the model saw of the micro-batch.
        logits: [kept, vocab], what it said; None where the penalty does not read them.
        own: [kept] bool, positions of the stage's own rows: mixing and replay rows must not water a term down.
        own_share: of the own positions of the whole optimiser step, over all processes, times their number: the
            shares of the micro-batches that one process sees add up to 1 on average over the processes.
        accumulation: micro-batches that one process sees in an optimiser step.
    """

    model: nn.Module
    inputs: MicroBatch
    logits: Tensor | None
    own: Tensor
    own_share: Tensor | float
    accumulation: int


Term = Callable[[Step], "Tensor | None"]
"""A micro-batch's part of the step's penalty, before its strength, such that the parts add up; None for nothing."""


@dataclass(frozen=True)
class InForce:
    """A stage's penalty, with its term."""

    penalty: Penalty
    term: Term


@cache
def penalties() -> dict[str, type[Penalty]]:
    """Every penalty of this package by its method."""
    methods: dict[str, type[Penalty]] = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, Penalty) and value.__module__ == loaded.__name__:
                methods[str(value.model_fields["method"].default)] = value
    return methods


def _penalty(value: Any) -> Any:
    """A table of a recipe as the penalty that its ``method`` names."""
    if not isinstance(value, dict):
        return value
    kinds = penalties()
    method = value.get("method")
    if method not in kinds:
        raise ValueError(f"method: {among(method, sorted(kinds))}")
    return kinds[method].model_validate(value)


AnyPenalty = Annotated[SerializeAsAny[Penalty], BeforeValidator(_penalty)]
