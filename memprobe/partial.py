"""A forward pass that is taken up again at a depth: only the blocks above it are computed.

    run_whole ─> Whole: the stream at every depth, what attention or MLP gave, keys and values
                   │  a few copies of the batch, each leaving the run at a depth of its own with edited states
                   └─ finish ─> the stream after the last block, for every copy

The copies go through the blocks together: block b sees all that left below it, so that d depths cost one pass over
the blocks each above its own depth, in batches as large as the copies are many. Where the edited positions stand at
the end of the sequences, the positions before them are the run's own, and their keys and values are used again.

The blocks are called as the model itself calls them (its own masks, rotary angles and caches), so that no family
needs code of its own; :func:`check_partial` holds the result against the model before anything is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from memprobe.batching import tokens_at_once
from memprobe.blocks import decoder_of, first_of, residual_hooks, with_first
from memprobe.errors import MemprobeError, first_line
from memprobe.models import CHECK_TEXT, LensModel, tolerance
from memprobe.modes import another_forward, evaluating
from memprobe.parts import Part, check_rows, part_of

_CPU_WAVE_TOKENS, _GPU_WAVE_TOKENS = 2048, 32768
_BREAKS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What blocks raise that are called otherwise than they can be."""


@dataclass(frozen=True)
class Whole:
    """One forward pass over a batch, kept.

    Attributes:
        ids: [row, position].
        streams: [depth, row, position, d_model].
        outputs: by part, what each block's gave: [block, row, position, d_model].
        keys_values: per block, [row, head, position, d_head] twice; empty where the model keeps them otherwise.
        returned: what a block returns, without what is in it: the stream, or a tuple or list that begins with it.
    """

    ids: Int[Tensor, "row position"]
    streams: Float[Tensor, "depth row position d_model"]
    outputs: dict[Part, Float[Tensor, "block row position d_model"]]
    keys_values: list[tuple[Tensor, Tensor]]
    returned: Any


@dataclass(frozen=True)
class Inside:
    """What is put into the output of a part of the block that a copy enters first.

    Attributes:
        part: ``attn`` or ``mlp``.
        values: [row, position, d_model].
        mask: which positions get them.
    """

    part: Part
    values: Float[Tensor, "row position d_model"]
    mask: Bool[Tensor, "row position"]


@dataclass(frozen=True)
class Swap:
    """Other weights for a copy on its way through some blocks.

    Attributes:
        name: what they are; copies that share it go through a block together.
        blocks: numbers, from 1.
        weights: gives a block's parameters and what they hold meanwhile.
    """

    name: str
    blocks: range
    weights: Callable[[int], Sequence[tuple[nn.Parameter, Tensor]]]


@dataclass(frozen=True)
class Copy:
    """A copy of the batch that leaves the run at a depth.

    Attributes:
        depth: 0 … n_layers.
        stream: what it leaves with, at the positions from ``start`` on; a function, called when it is needed.
        inside: an edit inside block depth + 1.
        swap: other weights in some of the blocks above.
    """

    depth: int
    stream: Callable[[], Float[Tensor, "row position d_model"]]
    inside: Inside | None = None
    swap: Swap | None = None


def run_whole(
    lens_model: LensModel,
    ids: Int[Tensor, "row position"],
    *,
    parts: Sequence[Part] = (),
    keys_values: bool = False,
) -> Whole:
    """Runs a batch, padded on the right, and keeps what it passes through. Edits that are applied are in it.

    Raises:
        MemprobeError: a block without the part that is asked for.
    """
    streams: dict[int, Tensor] = {}
    outputs: dict[Part, list[Tensor]] = {part: [] for part in parts}
    cache = DynamicCache() if keys_values else None
    returned: list[Any] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(residual_hooks(lens_model.blocks, streams.__setitem__))
        handle = lens_model.blocks[0].register_forward_hook(
            lambda _, __, output: returned.append(_emptied(output))
        )
        stack.callback(handle.remove)
        for part in parts:
            for block in lens_model.blocks:
                module = part_of(block, part, lens_model.label)
                handle = module.register_forward_hook(_keep(outputs[part], f"{lens_model.label}: {part}"))
                stack.callback(handle.remove)
        options: dict[str, Any] = {"past_key_values": cache} if cache is not None else {}
        decoder_of(lens_model.model)(
            input_ids=ids.to(lens_model.device), use_cache=cache is not None, **options
        )
    return Whole(
        ids,
        torch.stack([streams[depth] for depth in range(lens_model.n_layers + 1)]),
        {part: torch.stack(depths) for part, depths in outputs.items()},
        _keys_values(cache, lens_model.n_layers, ids.shape[1]),
        returned[0],
    )


def finish(
    lens_model: LensModel,
    run: Whole,
    copies: Sequence[Copy],
    *,
    start: int = 0,
    at_once: int | None = None,
) -> Iterator[Float[Tensor, "copy row position d_model"]]:
    """The stream after the last block for copies that leave a run, in their order, some at once.

    Args:
        start: positions before it are the run's own (its keys and values are needed then).
        at_once: how many copies go together; by default as many as fill a batch. With 1 and ``start`` 0 the blocks see
            batches of the run's own shape, so that fp32 results of unedited copies are the run's, bit for bit.
    """
    size = run.ids.shape[0] * (run.ids.shape[1] - start)
    budget = tokens_at_once(lens_model.device, _CPU_WAVE_TOKENS, _GPU_WAVE_TOKENS)
    step = at_once or max(1, budget // size)
    for first in range(0, len(copies), step):
        yield _wave(lens_model, run, copies[first : first + step], start)


_ROUNDING = 4.0
"""Times that a pass from a depth on may be further from the model's own than the model is from itself, row by row.

Never more than :data:`_MOST_ROUNDING` times what a lens may be: blocks that change from call to call are no rounding.
"""
_MOST_ROUNDING = 10.0


def check_partial(lens_model: LensModel) -> bool:
    """Holds taking up a pass against the model itself, on the check prompt.

    Returns:
        Whether keys and values of a run can be used again.

    Raises:
        MemprobeError: the blocks cannot be called apart from the model.
    """
    limit = lens_model.max_length or 32
    ids = torch.tensor([lens_model.tokenizer.encode(CHECK_TEXT)[: min(limit, 12)]] * 2)
    ids[1] = ids[1].flip(0)
    with evaluating(lens_model.model):
        try:
            run = run_whole(lens_model, ids, keys_values=True)
        except _BREAKS:  # a state-space or sparse attention keeps a cache of its own
            run = run_whole(lens_model, ids)
        whole = lens_model.lens(run.streams[-1])
        # Other batches take other kernels on an accelerator, and rounding grows in weights that were trained hard.
        alone = torch.cat([lens_model.lens(run_whole(lens_model, row[None]).streams[-1]) for row in ids])
        least = tolerance(whole, lens_model.model.dtype)
        apart = float((whole - alone).abs().max())
        allowed = max(least, min(_ROUNDING * apart, _MOST_ROUNDING * least))

        def off(start: int) -> float:
            copies = [
                Copy(depth, lambda depth=depth: run.streams[depth][:, start:])
                for depth in range(lens_model.n_layers + 1)
            ]
            logits = torch.cat(list(finish(lens_model, run, copies, start=start, at_once=2)))
            wanted = lens_model.lens(run.streams[-1][:, start:])
            return float((lens_model.lens(logits) - wanted).abs().max())

        try:
            difference = off(0)
        except _BREAKS as error:
            raise MemprobeError(
                f"{lens_model.label}: the blocks of {type(lens_model.model).__name__} cannot be run from a depth on "
                f"({first_line(error, at_most=160)})"
            ) from error
        if not difference <= allowed:
            raise MemprobeError(
                f"{lens_model.label}: {type(lens_model.model).__name__} taken up at a depth does not give its own "
                f"logits (largest difference {difference:.2g}), so it cannot be patched"
            )
        if not run.keys_values:
            return False
        try:
            return off(ids.shape[1] // 2) <= allowed
        except _BREAKS:
            return False


def _wave(
    lens_model: LensModel, run: Whole, copies: Sequence[Copy], start: int
) -> Float[Tensor, "copy row position d_model"]:
    """Some copies, together through the blocks."""
    device = lens_model.device
    rows = run.ids.shape[0]
    on_way: dict[int, Tensor] = {}  # number of the copy -> its stream
    beside = _Given(len(copies))
    waiting = sorted(range(len(copies)), key=lambda number: copies[number].depth, reverse=True)

    def leave_run(depth: int) -> None:
        while waiting and copies[waiting[-1]].depth == depth:
            number = waiting.pop()
            on_way[number] = copies[number].stream()

    def step(depth: int, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Block depth + 1. What it is given and gives back to the model is never looked at."""
        leave_run(depth)
        groups: dict[str, list[int]] = {}
        for number in on_way:
            swap = copies[number].swap
            groups.setdefault(swap.name if swap and depth + 1 in swap.blocks else "", []).append(number)
        bare: Any = args[0] if args else kwargs["hidden_states"]
        output = run.returned  # where no copy has left yet
        for name, numbers in groups.items():
            swap = copies[numbers[0]].swap if name else None
            streams = torch.cat([on_way[number] for number in numbers])
            given = [beside.of(arg, len(numbers)) for arg in args[1:]]
            named = {
                key: beside.of(value, len(numbers)) for key, value in kwargs.items() if key != "hidden_states"
            }
            inside = [
                (place, copies[number].inside)
                for place, number in enumerate(numbers)
                if copies[number].depth == depth
            ]
            with (
                exchanged(swap.weights(depth + 1) if swap else ()),
                _edited_inside(lens_model, depth, inside, rows),
            ):
                output = call(streams, *given, **named)
            on_way.update(zip(numbers, first_of(output).split(rows), strict=True))
        return with_first(output, bare)

    ids = run.ids[:, start:].to(device).repeat(len(copies), 1)
    options: dict[str, Any] = {"use_cache": False}
    if start:
        options = {"use_cache": True, "past_key_values": _Before(run.keys_values, start, rows)}
    with _blocks_replaced(lens_model.blocks, step):
        decoder_of(lens_model.model)(input_ids=ids, **options)
    leave_run(lens_model.n_layers)
    return torch.stack([on_way[number] for number in range(len(copies))])


class _Before(DynamicCache):
    """Keys and values of the positions before the edited ones: the same for every copy, never grown."""

    def __init__(self, keys_values: Sequence[tuple[Tensor, Tensor]], start: int, rows: int):
        super().__init__()
        self.rows = rows
        for number, (keys, values) in enumerate(keys_values):
            super().update(keys[..., :start, :], values[..., :start, :], number)

    def update(  # pyrefly: ignore[bad-override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        copies = key_states.shape[0] // self.rows
        layer: Any = self.layers[layer_idx]
        before = [part.repeat(copies, 1, 1, 1) for part in (layer.keys, layer.values)]
        return torch.cat([before[0], key_states], -2), torch.cat([before[1], value_states], -2)


def _keys_values(cache: DynamicCache | None, n_layers: int, length: int) -> list[tuple[Tensor, Tensor]]:
    """Per block, where every block keeps keys and values of every position; else nothing."""
    if cache is None or len(cache.layers) != n_layers:
        return []
    pairs: list[tuple[Tensor, Tensor]] = []
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.shape[-2] != length or values.shape[-2] != length:
            return []
        pairs.append((keys, values))
    return pairs


@contextlib.contextmanager
def exchanged(weights: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Parameters hold other tensors meanwhile. Nothing is copied, so they get back the very bits that they had."""
    own = [parameter.data for parameter, _ in weights]
    try:
        for parameter, other in weights:
            parameter.data = other
        yield
    finally:
        for (parameter, _), tensor in zip(weights, own, strict=True):
            parameter.data = tensor


@contextlib.contextmanager
def _edited_inside(
    lens_model: LensModel, depth: int, copies: Sequence[tuple[int, Inside | None]], rows: int
) -> Iterator[None]:
    """Puts values into the output of parts of block depth + 1, for the copies that ask for it."""
    handles = []
    for part in {inside.part for _, inside in copies if inside}:

        def hook(_: nn.Module, __: Any, output: Any, part: Part = part) -> Any:
            whole = first_of(output).clone()
            for place, inside in copies:
                if inside and inside.part == part:
                    here = whole[place * rows : (place + 1) * rows]
                    here.copy_(torch.where(inside.mask[..., None], inside.values, here))
            return with_first(output, whole)

        module = part_of(lens_model.blocks[depth], part, lens_model.label)
        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _blocks_replaced(blocks: Sequence[nn.Module], step: Callable[..., Any]) -> Iterator[None]:
    """Each block's forward becomes ``step(depth, its own forward, args, kwargs)``."""

    def replaced(depth: int, own: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: step(depth, own, args, kwargs)

    with contextlib.ExitStack() as stack:
        for depth, block in enumerate(blocks):
            stack.enter_context(another_forward(block, replaced(depth, block.forward)))
        yield


def _emptied(output: Any) -> Any:
    """What a block returned, with ``None`` in the place of each thing in it."""
    return type(output)(None for _ in output) if isinstance(output, tuple | list) else None


class _Given:
    """What blocks are given beside the stream, for some copies of the batch: all copies are given the same.

    A tensor with a batch has its rows first (BLOOM's ALiBi has rows times heads), so that it is its first part once for
    each copy. One that all rows share has 1 there, or something else that differs along it (MPT's ALiBi: heads).
    """

    def __init__(self, copies: int):
        self.copies = copies
        self._seen: dict[int, tuple[Tensor, bool]] = {}  # all blocks are given the same few

    def of(self, value: Any, wanted: int) -> Any:
        """``value`` for the first ``wanted`` copies."""
        if wanted == self.copies:
            return value
        if isinstance(value, Tensor):
            return value[: value.shape[0] // self.copies * wanted] if self._has_rows(value) else value
        if isinstance(value, tuple | list):
            return type(value)(self.of(part, wanted) for part in value)
        if type(value) is dict:
            return {key: self.of(part, wanted) for key, part in value.items()}
        return value

    def _has_rows(self, value: Tensor) -> bool:
        if value.dim() < 2 or value.shape[0] == 1 or value.shape[0] % self.copies:
            return False
        if id(value) not in self._seen:
            parts = value.unflatten(0, (self.copies, -1))
            self._seen[id(value)] = (value, bool((parts == parts[:1]).all()))
        return self._seen[id(value)][1]


def _keep(kept: list[Tensor], where: str) -> Callable[..., None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        given = first_of(output)
        check_rows(given, where)
        kept.append(given.clone())  # some models (Falcon) go on to change it in place

    return hook
