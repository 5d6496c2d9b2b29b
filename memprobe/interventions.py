"""Edits of a forward pass, as context managers on a model.

    with applied(lens_model, Put(5, states, positions=[3]), Ablate(7, part="mlp")):
        capture(lens_model, factoids)

While an edit is applied, everything that reads the model reads the edited one: ``capture``, ``generate``, another
edit. Where two edits touch the same place the later one has the last word. Each says in :meth:`Edit.to_dict` what
it was. Patching one run into another factoid by factoid, at every depth, is :mod:`memprobe.patching`'s, which needs
no second forward pass for it.

    Put      states put into the residual stream, or into the output of a block's attention or MLP
    Corrupt  seeded noise on the embeddings of some tokens (Meng et al. 2022, arXiv 2202.05262, section 2.1)
    Ablate   a block's contribution to the stream, or its attention's or MLP's output, as zero or as a mean

Blocks are counted from 1, depths from 0: block b turns the stream at depth b - 1 into that at depth b.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memprobe.blocks import decoder_of, first_of, with_first
from memprobe.errors import MemprobeError, among
from memprobe.models import LensModel
from memprobe.modes import evaluating
from memprobe.noise import corruption, spread_of
from memprobe.parts import PARTS, Part, check_rows, part_of
from memprobe.subjects import subject_positions
from memprobe.templates import Template, TokenisedFactoid

Where = Callable[[Int[Tensor, "row position"]], Bool[Tensor, "row position"]]
"""Given the token ids of a forward pass, which of its positions are meant."""

NOISE = 3.0
"""Standard deviations of the embeddings: what Meng et al. corrupt with."""


@dataclass
class Pass:
    """The forward pass under way: its token ids [row, position], and how many positions of each row came before
    them (in generation, which goes on from what it has cached)."""

    ids: Int[Tensor, "row position"]
    start: int


class Edit(Protocol):
    """What can be applied to a model."""

    def install(self, lens_model: LensModel, now: Callable[[], Pass]) -> list[Any]:
        """Puts the edit's hooks on the model.

        Args:
            now: gives the forward pass under way.

        Returns:
            The handles that take the hooks off again.

        Raises:
            MemprobeError: the edit does not fit the model.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """What the edit is, as JSON."""
        ...


@contextlib.contextmanager
def applied(lens_model: LensModel, *edits: Edit) -> Iterator[LensModel]:
    """The model with some edits; afterwards it is as it was.

    Raises:
        MemprobeError: an edit does not fit the model, or the forward pass within.
    """
    # Not every family's causal LM goes through its own base model (OPT), so both are watched.
    outer = [lens_model.model, decoder_of(lens_model.model)]
    seen: list[Pass] = []

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        if given is None:
            raise MemprobeError(
                f"{lens_model.label}: an edit needs token ids, and the model was given embeddings"
            )
        cache = kwargs.get("past_key_values")
        seen[:] = [Pass(given, 0 if cache is None else int(cache.get_seq_length()))]

    handles = [module.register_forward_pre_hook(entering, with_kwargs=True) for module in outer]
    try:
        for edit in edits:
            handles += edit.install(lens_model, lambda: seen[-1])
        yield lens_model
    finally:
        for handle in handles:
            handle.remove()


def everywhere(ids: Int[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
    """Every position."""
    return torch.ones_like(ids, dtype=torch.bool)


@dataclass(frozen=True)
class Spans:
    """The positions of some sequences of tokens, wherever a row holds them; a row's last match counts.

    Attributes:
        sequences: token ids; in a row that holds several, the longest is meant.
        name: what they are, for :meth:`Edit.to_dict`.
    """

    sequences: tuple[tuple[int, ...], ...]
    name: str = "tokens"

    def __call__(self, ids: Int[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
        """Which positions are meant."""
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(ids.tolist()):
            for sequence in sorted(self.sequences, key=len, reverse=True):
                size = len(sequence)
                if starts := _starts(sequence, tokens):
                    mask[row, starts[-1] : starts[-1] + size] = True
                    break
        return mask


@dataclass(frozen=True)
class Subjects:
    """The tokens of each row's own subject, whatever other subjects its prompt or its answer names.

    A row is known by the factoid whose tokens it holds: the longest prompt that fits, and of two that fit alike the one
    whose forced answer tokens stand in the row as well.

    Attributes:
        places: by the tokens of an input, how many of them are its prompt, and its subject's positions.
        name: what they are, for :meth:`Edit.to_dict`.
    """

    places: Mapping[tuple[int, ...], tuple[int, range]]
    name: str = "subject"

    @classmethod
    def of(cls, items: Sequence[TokenisedFactoid], template: Template, lens_model: LensModel) -> Subjects:
        """Those of factoids.

        Raises:
            MemprobeError: a factoid without a subject, or whose prompt does not hold it; or two that a model is asked
                alike name other subjects.
        """
        places: dict[tuple[int, ...], tuple[int, range]] = {}
        for item in items:
            place = len(item.prompt), subject_positions(item, template, lens_model.tokenizer)
            if places.setdefault(tuple(item.inputs), place) != place:
                raise MemprobeError(
                    f"factoid {item.factoid.id}: another one asks the same of another subject; leave one of them out"
                )
        return cls(places)

    def __call__(self, ids: Int[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
        """Which positions are meant: none in a row of no factoid."""
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(ids.tolist()):
            fits: list[tuple[int, bool, int, range]] = []
            for inputs, (size, subject) in self.places.items():
                for length in dict.fromkeys((len(inputs), size)):
                    if starts := _starts(inputs[:length], tokens):
                        fits.append((length, length == len(inputs), starts[0], subject))
                        break
            if fits:
                *_, start, subject = max(fits, key=lambda fit: fit[:2])
                mask[row, start + subject.start : start + subject.stop] = True
        return mask


def _starts(sequence: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Where a sequence begins within tokens."""
    size = len(sequence)
    return [i for i in range(len(tokens) - size + 1) if tuple(tokens[i : i + size]) == tuple(sequence)]


@dataclass(frozen=True, eq=False)
class Put:
    """States put in the place of a model's own.

    Attributes:
        depth: 0 … n_layers for the residual stream; the block's number, from 1, for ``attn`` and ``mlp``.
        states: [d_model], [position, d_model] or [row, position, d_model]; whatever is missing is the same for all.
        positions: columns of the batch, the same in every row, or a :data:`Where` (``states`` then is [d_model],
            or one row for every position meant, in the order of rows and columns).
        part: the stream, or a part of the block.
    """

    depth: int
    states: Float[Tensor, "*entry d_model"]
    positions: Sequence[int] | Where = everywhere
    part: Part = "residual"

    def install(self, lens_model: LensModel, now: Callable[[], Pass]) -> list[Any]:
        """See :class:`Edit`."""
        _check_place(lens_model, self.part, self.depth)
        if self.states.shape[-1] != lens_model.d_model:
            raise MemprobeError(
                f"{lens_model.label}: states of width {self.states.shape[-1]} put into a stream of "
                f"{lens_model.d_model}"
            )

        def edit(stream: Tensor) -> Tensor:
            check_rows(stream, f"{lens_model.label}: {self.part}")
            states = self.states.to(stream.device, stream.dtype)
            edited = stream.clone()
            if callable(self.positions):
                here = self.positions(now().ids).to(stream.device)
                meant = int(here.sum())
                if states.dim() > 1 and meant and len(states) != meant:
                    raise MemprobeError(
                        f"{lens_model.label}: {len(states)} states for {meant} positions; give one for each, or one "
                        "for all"
                    )
                if meant:  # none in a pass that goes on from what was read before
                    edited[here] = states
                return edited
            start, size = now().start, stream.shape[1]
            wanted = list(self.positions)
            if start == 0 and wanted and not -size <= min(wanted) <= max(wanted) < size:
                raise MemprobeError(
                    f"{lens_model.label}: positions {wanted} are asked for where there are {size} positions"
                )
            here = [i for i, column in enumerate(wanted) if start <= column < start + size or start == 0]
            if here:
                columns = [wanted[i] - start for i in here]
                edited[:, columns] = states if states.dim() == 1 else states[..., here, :]
            return edited

        return [hook_output(lens_model, self.part, self.depth, edit)]

    def to_dict(self) -> dict[str, Any]:
        """What the edit is, as JSON; the states by their shape and hash."""
        content = self.states.detach().float().cpu().contiguous().numpy().tobytes()
        return {
            "edit": "put",
            "part": self.part,
            "depth": self.depth,
            "positions": _positions_text(self.positions),
            "shape": list(self.states.shape),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


@dataclass(frozen=True)
class Corrupt:
    """Gaussian noise on the input embeddings of some tokens.

    A row's noise follows from the seed and from the tokens that get it, so that it does not depend on batches, their
    order or padding.

    Attributes:
        positions: which tokens; :meth:`Subjects.of` for subjects.
        noise: in standard deviations of the embeddings, as the model's embedding module gives them.
        seed: of the noise.
    """

    positions: Where
    noise: float = NOISE
    seed: int = 0

    def install(self, lens_model: LensModel, now: Callable[[], Pass]) -> list[Any]:
        """See :class:`Edit`."""
        embedding = lens_model.model.get_input_embeddings()
        unit = spread_of(embedding)

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            given = now().ids
            noise = corruption(given, self.positions(given), output.shape[-1], self.seed)
            return output + (self.noise * unit * noise).to(output.device, output.dtype)

        return [embedding.register_forward_hook(hook)]

    def to_dict(self) -> dict[str, Any]:
        """What the edit is, as JSON."""
        return {
            "edit": "corrupt",
            "positions": _positions_text(self.positions),
            "noise": self.noise,
            "unit": "sd of the embeddings",
            "seed": self.seed,
        }


@dataclass(frozen=True, eq=False)
class Ablate:
    """What a block adds to the stream, or its attention's or MLP's output, replaced at every position.

    Attributes:
        block: from 1.
        part: ``residual`` is all that the block adds: with zero it is skipped.
        value: [d_model] to put there; ``None`` is zero. See :func:`mean_output`.
        positions: which positions.
    """

    block: int
    part: Part = "residual"
    value: Float[Tensor, " d_model"] | None = None
    positions: Where = everywhere
    name: str = field(default="", compare=False)

    def install(self, lens_model: LensModel, now: Callable[[], Pass]) -> list[Any]:
        """See :class:`Edit`."""
        _check_place(lens_model, self.part, self.block if self.block > 0 else -1)
        entered: list[Tensor] = []

        def edit(output: Tensor) -> Tensor:
            check_rows(output, f"{lens_model.label}: {self.part}")
            value = torch.zeros((), device=output.device, dtype=output.dtype)
            if self.value is not None:
                value = self.value.to(output.device, output.dtype)
            replaced = (entered[0] + value) if self.part == "residual" else value.expand_as(output)
            return torch.where(self.positions(now().ids).to(output.device)[..., None], replaced, output)

        handles = []
        if self.part == "residual":

            def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
                entered[:] = [args[0] if args else kwargs["hidden_states"]]

            block = lens_model.blocks[self.block - 1]
            # Behind the block, so that it is what all other edits made of its input.
            handles.append(block.register_forward_hook(entering, with_kwargs=True))
        return [*handles, hook_output(lens_model, self.part, self.block, edit)]

    def to_dict(self) -> dict[str, Any]:
        """What the edit is, as JSON."""
        value = "zero" if self.value is None else self.name or "given"
        return {
            "edit": "ablate",
            "block": self.block,
            "part": self.part,
            "value": value,
            "positions": _positions_text(self.positions),
        }


def mean_output(
    lens_model: LensModel, texts: Sequence[str], block: int, part: Part = "residual"
) -> Float[Tensor, " d_model"]:
    """What a block (or its attention or MLP) gives on average over every token of some texts, for :class:`Ablate`.

    Raises:
        MemprobeError: no text, or no such block or part.
    """
    _check_place(lens_model, part, block if block > 0 else -1)
    total, count = torch.zeros(lens_model.d_model, dtype=torch.float64), 0
    kept: list[Tensor] = []
    entered: list[Tensor] = []

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered[:] = [args[0] if args else kwargs["hidden_states"]]

    def keep(output: Tensor) -> Tensor:
        check_rows(output, f"{lens_model.label}: {part}")
        # Some models (Falcon) go on to change it in place.
        kept[:] = [output - entered[0] if part == "residual" else output.clone()]
        return output

    handles = [lens_model.blocks[block - 1].register_forward_pre_hook(entering, with_kwargs=True)]
    handles.append(hook_output(lens_model, part, block, keep))
    try:
        with evaluating(lens_model.model):
            for text in texts:
                ids = lens_model.tokenizer.encode(text)[: lens_model.max_length]
                if not ids:
                    continue
                given = torch.tensor([ids], device=lens_model.device)
                decoder_of(lens_model.model)(input_ids=given, use_cache=False)
                total += kept[0][0].double().sum(0).cpu()
                count += len(ids)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise MemprobeError("a mean over texts needs at least one text with tokens")
    return (total / count).float()


def hook_output(lens_model: LensModel, part: Part, depth: int, edit: Callable[[Tensor], Tensor]) -> Any:
    """Lets ``edit`` replace the residual stream at a depth, or the output of a part of block ``depth``."""
    if part == "residual" and depth == 0:

        def entering(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": edit(kwargs["hidden_states"])}

        return lens_model.blocks[0].register_forward_pre_hook(entering, with_kwargs=True)

    def leaving(_: nn.Module, __: Any, output: Any) -> Any:
        return with_first(output, edit(first_of(output)))

    block = lens_model.blocks[depth - 1]
    module = block if part == "residual" else part_of(block, part, lens_model.label)
    return module.register_forward_hook(leaving)


def _check_place(lens_model: LensModel, part: Part, depth: int) -> None:
    if part not in PARTS:
        raise MemprobeError(f"{part!r} is not a part of a block; {among(part, PARTS)}")
    if part == "residual":
        if not 0 <= depth <= lens_model.n_layers:
            raise MemprobeError(f"{lens_model.label}: has depths 0 to {lens_model.n_layers}, not {depth}")
        return
    if not 1 <= depth <= lens_model.n_layers:
        raise MemprobeError(f"{lens_model.label}: has blocks 1 to {lens_model.n_layers}, not {depth}")
    part_of(lens_model.blocks[depth - 1], part, lens_model.label)


def _positions_text(positions: Any) -> Any:
    if isinstance(positions, Spans | Subjects):
        return positions.name
    return getattr(positions, "__name__", "given") if callable(positions) else list(positions)
