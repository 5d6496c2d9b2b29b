"""The sweep of grafts: which blocks of one checkpoint give another its facts.

Every block, window of blocks and part is grafted in turn. Only the blocks from the grafted ones on are computed, one
model is in memory (with the weights of the other that differ), and weights are exchanged in place and put back bit
for bit. A graft that lasts is a checkpoint spec, ``graft(…)``; see :mod:`memprobe.grafts`.

A graft's control is the same graft with random weights: as far from the target's own as the source's are, tensor by
tensor, in a random direction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor, nn

from memprobe.batching import batches_by_tokens, rope_border, tokens_at_once
from memprobe.errors import MemprobeError, among
from memprobe.grafts import BLOCK_PARTS, OUTER_PARTS, Graft
from memprobe.models import LensModel, after_blocks
from memprobe.modes import evaluating
from memprobe.partial import Copy, Swap, check_partial, exchanged, finish, run_whole
from memprobe.parts import Beside, beside_weights, check_beside, chosen_names, parameter_places
from memprobe.patching import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    answer_keys,
    own_log_probs,
    padded,
    read_answers,
    with_own,
)
from memprobe.templates import TokenisedFactoid


@dataclass(frozen=True)
class Donor:
    """What a sweep needs of the source once its model is gone.

    Attributes:
        label: the source's.
        weights: by name, its parameters; a sweep drops those that are the target's too.
        shapes: of all of them.
        readout: by name, the parameters of its lens, in fp32.
        own: what it says itself: [factoid, token, rank, log_prob].
        beside: what it computes with beside its weights, which the target must have too.
    """

    label: str
    weights: dict[str, Tensor]
    shapes: dict[str, torch.Size]
    readout: dict[str, Tensor]
    own: pl.DataFrame
    beside: Beside


def donor_of(source: LensModel, items: Sequence[TokenisedFactoid]) -> Donor:
    """Asks the source and keeps its weights."""
    weights = {name: parameter.data for name, parameter in source.model.named_parameters()}
    readout = {name: parameter.data for name, parameter in source.lens.readout.named_parameters()}
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    beside = beside_weights(source.model)
    return Donor(source.label, weights, shapes, readout, own_log_probs(source, items), beside)


def check_sweep(windows: Sequence[int], parts: Sequence[str]) -> None:
    """Raises a MemprobeError for what no model can be swept by; see :func:`sweep_batches`."""
    for option, names in (("--parts", parts), ("--windows", windows)):
        if not names and not (set(parts) and set(parts) <= set(OUTER_PARTS)):
            raise MemprobeError(f"{option}: names none, so that no block is grafted")
    if wrong := [size for size in windows if size < 1]:
        raise MemprobeError(f"--windows {wrong[0]}: give whole numbers of at least 1")
    if unknown := [part for part in parts if part not in (*BLOCK_PARTS, *OUTER_PARTS)]:
        raise MemprobeError(f"--parts {unknown[0]}: {among(unknown[0], (*BLOCK_PARTS, *OUTER_PARTS))}")


def sweep_batches(
    donor: Donor,
    target: LensModel,
    items: Sequence[TokenisedFactoid],
    *,
    windows: Sequence[int] = (1,),
    parts: Sequence[str] = ("all",),
    control: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    at_once: int | None = None,
    done: frozenset[str] = frozenset(),
) -> Iterator[pl.DataFrame]:
    """Grafts every window of blocks in turn, and each part, and asks the target.

    Args:
        windows: how many blocks in a row; every start is taken.
        parts: of :data:`memprobe.grafts.BLOCK_PARTS`, each swept over the blocks, and of
            :data:`memprobe.grafts.OUTER_PARTS`, each grafted once (depth 0 and n_layers + 1 in the table).
        control: also with random weights.
        seed: of the control.

    Yields:
        Rows of :data:`memprobe.records.PATCHES`.

    Raises:
        MemprobeError: models of different shape, a window that is too wide, or a part that is none.
    """
    final = after_blocks(target.model, target.tokenizer, target.label)
    places = parameter_places(target.model, target.blocks, final)
    n_layers = target.n_layers
    check_sweep(windows, parts)
    if wrong := [size for size in windows if size > n_layers]:
        raise MemprobeError(f"--windows {wrong[0]}: {target.label} has {n_layers} blocks")
    parameters = dict(target.model.named_parameters())
    if {name: p.shape for name, p in parameters.items()} != donor.shapes:
        raise MemprobeError(f"{donor.label} into {target.label}: the two models differ in shape")
    check_beside(beside_weights(target.model), donor.beside, f"{donor.label} into {target.label}")
    check_partial(target)
    same = [
        n for n, w in donor.weights.items() if torch.equal(parameters[n].data, w.to(parameters[n].device))
    ]
    for name in same:
        del donor.weights[name]  # what is the same need not wait beside the model

    def weights(part: str, block: int, random: bool) -> list[tuple[nn.Parameter, Tensor]]:
        named = [n for n, (b, known) in places.items() if b == block and part in known and n in donor.weights]
        return [
            (parameters[name], _other(parameters[name], donor.weights[name], random, seed, name))
            for name in named
        ]

    inner = [part for part in parts if part in BLOCK_PARTS]
    spans = [(first, first + size - 1) for size in windows for first in range(1, n_layers - size + 2)]
    for part in inner:
        chosen_names(places, Graft((1, n_layers), (part,)), target.label)
    kinds = [False, True] if control else [False]
    there = {(block, part) for block, known in places.values() for part in known}
    # Blocks of a hybrid lack parts that others have; that nothing is exchanged there is not that nothing is moved.
    plan = [
        (part, (first, last), random)
        for part in inner
        for first, last in spans
        if any((block, part) in there for block in range(first, last + 1))
        for random in kinds
    ]
    outer = [(part, random) for part in parts if part in OUTER_PARTS for random in kinds]
    order = sorted(
        (item for item in items if item.factoid.id not in done),
        key=lambda item: (len(item.inputs), item.factoid.id),
    )
    tokens = tokens_at_once(target.device, CPU_BATCH_TOKENS, GPU_BATCH_TOKENS)
    border = rope_border(target.model)
    for indices in batches_by_tokens(
        range(len(order)), lambda i: len(order[i].inputs), tokens, batch_size, border=border
    ):
        batch = [order[i] for i in indices]
        keys = answer_keys(batch)
        ids = padded(batch, target.pad_id())
        frames: list[pl.DataFrame] = []

        def add(reading: tuple, part: str, first: int, last: int, random: bool, row: int = 0) -> None:
            frames.append(  # noqa: B023 (used within its own turn of the loop)
                pl.DataFrame(keys | {"rank": reading[0][row], "log_prob": reading[1][row]}).with_columns(  # noqa: B023
                    parts=pl.lit(part),
                    control=pl.lit("random" if random else ""),
                    depth=pl.lit(first),
                    last=pl.lit(last),
                )
            )

        with evaluating(target.model):
            base = run_whole(target, ids)
            own = read_answers(target.lens, base.streams[-1:], batch)
            copies = [
                Copy(
                    span[0] - 1,
                    lambda depth=span[0] - 1: base.streams[depth],  # noqa: B023
                    swap=Swap(
                        f"{part} {random}",
                        range(span[0], span[1] + 1),
                        lambda block, part=part, random=random: weights(part, block, random),
                    ),
                )
                for part, span, random in plan
            ]
            numbers = iter(plan)
            for finished in finish(target, base, copies, at_once=at_once):
                reading = read_answers(target.lens, finished, batch)
                for row in range(len(finished)):
                    part, span, random = next(numbers)
                    add(reading, part, *span, random, row)
            for part, random in outer:
                if part == "embeddings":
                    with exchanged(weights(part, 0, random)):
                        streams = run_whole(target, ids).streams[-1:]
                    add(read_answers(target.lens, streams, batch), part, 0, 0, random)
                else:
                    lens = dict(target.lens.readout.named_parameters())
                    pairs = [
                        (lens[name], _other(lens[name], tensor, random, seed, name))
                        for name, tensor in donor.readout.items()
                    ]
                    with exchanged(pairs):
                        reading = read_answers(target.lens, base.streams[-1:], batch)
                    add(reading, part, n_layers + 1, n_layers + 1, random)
        table = pl.concat(frames).with_columns(
            source=pl.lit(donor.label),
            target=pl.lit(target.label),
            what=pl.lit("weights"),
            positions=pl.lit("all"),
        )
        asked = pl.DataFrame(keys).drop("token_id")
        theirs = asked.join(donor.own, on=["factoid", "token"], how="left", maintain_order="left")
        source = theirs["rank"].to_numpy()[None], theirs["log_prob"].to_numpy()[None]
        yield with_own(table, keys, {"source": source, "target": own})


def _other(own: nn.Parameter, given: Tensor, random: bool, seed: int, name: str) -> Tensor:
    """The source's tensor, or a random one as far from the target's own."""
    given = given.to(own.device, own.dtype)
    if not random:
        return given
    number = int(hashlib.sha256(f"graft {seed} {name}".encode()).hexdigest()[:12], 16)
    direction = torch.randn(own.shape, generator=torch.Generator().manual_seed(number)).to(own.device)
    distance = (given.float() - own.data.float()).norm()
    return (own.data.float() + direction * (distance / direction.norm())).to(own.dtype)
