"""What is to be patched, before any model runs: questions, their positions, and the controls drawn for them.

A set of positions is of the input that the model is given, prompt and forced answer tokens together, so that each token
is asked under the same patch:

    last     the prompt's last token and, after it, the forced answer tokens: the positions that predict an answer
    subject  the subject's tokens
    prompt   every position: with it, a patch at depth d runs the source up to d and the target from there
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memprobe.errors import MemprobeError, among
from memprobe.factoids import Factoid, check_factoids
from memprobe.interventions import NOISE
from memprobe.models import LensModel
from memprobe.partial import check_partial
from memprobe.parts import PARTS, Part
from memprobe.subjects import subject_positions
from memprobe.templates import Template, TokenisedFactoid, tokenise_for

Positions = Literal["last", "subject", "prompt"]
POSITIONS: tuple[Positions, ...] = ("last", "subject", "prompt")
Control = Literal["other", "random"]
CONTROLS: tuple[Control, ...] = ("other", "random")


@dataclass(frozen=True)
class Question:
    """A factoid as it is asked, with the positions of each set and the factoid whose states are its control.

    Attributes:
        item: its tokens.
        sets: by name of the set, positions in ``item.inputs``; where the subject is corrupted, its own as well.
        other: the control's tokens and sets; ``None`` where :func:`draw_others` finds none.
    """

    item: TokenisedFactoid
    sets: dict[Positions, tuple[int, ...]]
    other: Question | None = None


@dataclass(frozen=True)
class PatchPlan:
    """What is to be patched, before any model runs.

    Attributes:
        questions: in the order of the factoids given.
        what: residual stream, attention or MLP outputs.
        positions: the sets.
        depths: depths of the stream; for attention and MLP the blocks of the same number.
        controls: which controls stand beside.
        noise: on the embeddings of each question's own subject in the target's run, in standard deviations of the
            embeddings; ``None`` where it is not corrupted.
        seed: of the controls and the noise.
        reuse: whether the target's keys and values can be used again.
    """

    questions: list[Question]
    what: tuple[Part, ...]
    positions: tuple[Positions, ...]
    depths: tuple[int, ...]
    controls: tuple[Control, ...]
    noise: float | None
    seed: int
    reuse: bool


def plan_patches(
    source: LensModel,
    target: LensModel,
    factoids: Sequence[Factoid],
    template: str | Template = "plain",
    *,
    what: Sequence[Part] = ("residual",),
    positions: Sequence[Positions] = ("last",),
    depths: Sequence[int] | None = None,
    controls: Sequence[Control] = CONTROLS,
    corrupt: bool = False,
    noise: float = NOISE,
    seed: int = 0,
) -> PatchPlan:
    """Tokenises factoids, finds their positions and draws their controls.

    Args:
        depths: all of them by default.
        corrupt: the target's run has noise on the subject's embeddings.
        noise: in standard deviations of the embeddings.

    Raises:
        MemprobeError: models that do not fit together, a factoid that cannot be asked, one without a subject where that
            is needed, a depth that is none, or blocks that cannot be run from a depth on.
    """
    template = Template.parse(template) if isinstance(template, str) else template
    check_states(what, positions)
    _check_choices(controls, CONTROLS, "--controls")
    items = fitting_items(source, target, factoids, template)
    chosen = tuple(range(target.n_layers + 1)) if depths is None else tuple(sorted(set(depths)))
    if wrong := [depth for depth in chosen if not 0 <= depth <= target.n_layers]:
        raise MemprobeError(f"--depths {wrong[0]}: {target.label} has depths 0 to {target.n_layers}")
    if "residual" not in what and max(chosen, default=0) < 1:
        raise MemprobeError(
            f"--depths 0: {', '.join(what)} is of blocks, which are 1 to {target.n_layers}; depth 0 is before them"
        )
    sets: list[Positions] = [*positions, "subject"] if corrupt else [*positions]
    plain = [
        Question(item, {name: _columns(name, item, template, target) for name in sets}) for item in items
    ]
    subjects = (
        [tuple(one.item.inputs[c] for c in one.sets["subject"]) for one in plain]
        if "subject" in sets
        else None
    )
    others = draw_others(items, seed, subjects) if "other" in controls else [None] * len(items)
    questions = [
        Question(question.item, question.sets, None if other is None else plain[other])
        for question, other in zip(plain, others, strict=True)
    ]
    return PatchPlan(
        questions,
        tuple(dict.fromkeys(what)),
        tuple(dict.fromkeys(positions)),
        chosen,
        tuple(dict.fromkeys(controls)),
        noise if corrupt else None,
        seed,
        check_partial(target),
    )


def fitting_items(
    source: LensModel, target: LensModel, factoids: Sequence[Factoid], template: Template
) -> list[TokenisedFactoid]:
    """Factoids' tokens, which must be the same in both models.

    Raises:
        MemprobeError: the models differ in shape or tokenizer, or a factoid cannot be asked.
    """
    pair = f"{source.label} into {target.label}"
    for name in ("n_layers", "d_model"):
        ours, theirs = getattr(source, name), getattr(target, name)
        if ours != theirs:
            unit = {"n_layers": "blocks", "d_model": "wide"}[name]
            raise MemprobeError(
                f"{pair}: one has {ours} {unit}, the other {theirs}; states cannot be moved between them"
            )
    check_factoids(factoids, "patch")
    items = tokenise_for(target, factoids, template)
    theirs = tokenise_for(source, factoids, template)
    check_same_tokens(pair, items, theirs)
    return items


def check_same_tokens(
    pair: str, items: Sequence[TokenisedFactoid], theirs: Sequence[TokenisedFactoid]
) -> None:
    """Refuses factoids that two models' tokenizers write differently.

    Raises:
        MemprobeError: so.
    """
    for ours, other in zip(items, theirs, strict=True):
        if ours.inputs != other.inputs or ours.targets != other.targets:
            raise MemprobeError(
                f"{pair}: their tokenizers differ (first in factoid {ours.factoid.id}), so that positions do not "
                "correspond"
            )


def draw_others(
    items: Sequence[TokenisedFactoid], seed: int, subjects: Sequence[tuple[int, ...]] | None = None
) -> list[int | None]:
    """For each factoid the index of another one whose states are its control; ``None`` where there is none.

    It has another first answer token and another prompt, for the states of the same prompt are the patch itself, and
    another subject where there are ``subjects``. Of these one of the same source and relation is taken if there is any,
    and of these one with as many prompt tokens if there is any. Which, the seed and the factoid's id decide.

    Args:
        subjects: the tokens of each one's subject, where states of subjects are patched or corrupted.
    """
    chosen: list[int | None] = []
    for place, item in enumerate(items):
        fit = [
            index
            for index, other in enumerate(items)
            if other.answer[0] != item.answer[0]
            and other.prompt != item.prompt
            and (subjects is None or subjects[index] != subjects[place])
        ]
        for same in (
            lambda other, item=item: (
                (other.factoid.source, other.factoid.relation) == (item.factoid.source, item.factoid.relation)
            ),
            lambda other, item=item: len(other.prompt) == len(item.prompt),
        ):
            fit = [index for index in fit if same(items[index])] or fit
        fit.sort(key=lambda index: items[index].factoid.id)
        chosen.append(fit[seeded(seed, item.factoid.id, "other") % len(fit)] if fit else None)
    return chosen


def check_states(what: Sequence[str], positions: Sequence[str]) -> None:
    """Raises a MemprobeError for states that are none, or a set of positions that is none; see :func:`plan_patches`."""
    _check_choices(what, PARTS, "--what")
    _check_choices(positions, POSITIONS, "--positions")


def _check_choices(chosen: Sequence[str], known: Sequence[str], option: str) -> None:
    if wrong := [name for name in chosen if name not in known]:
        raise MemprobeError(f"{option} {wrong[0]}: {among(wrong[0], known)}")


def _columns(
    name: Positions, item: TokenisedFactoid, template: Template, lens_model: LensModel
) -> tuple[int, ...]:
    if name == "prompt":
        return tuple(range(len(item.inputs)))
    if name == "last":
        return tuple(range(len(item.prompt) - 1, len(item.inputs)))
    return tuple(subject_positions(item, template, lens_model.tokenizer))


def seeded(seed: int, factoid: str, purpose: str) -> int:
    """A number that a seed, a factoid and what it is for decide."""
    return int(hashlib.sha256(f"{purpose} {seed} {factoid}".encode()).hexdigest()[:12], 16)
