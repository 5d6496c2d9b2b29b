"""Source × target × depth × positions → patches: what a fact's log-probability becomes when states of one run stand
in another.

    source's run ──states at the patched positions──┐
    target's run ──everything else──────────────────┴─> the blocks above ─> log_prob and rank of every answer token

Activation patching (Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; practice after Zhang &
Nanda 2024, arXiv 2309.16042). Source and target may be two checkpoints that differ by a stage of training: then no
noise is to be chosen and both see the same prompt. Or they are one checkpoint whose target run has its subject
corrupted: causal tracing.

Every answer token is asked, teacher-forced. What is asked, at which positions, :mod:`memprobe.patch_plan` says.

Each patch has its controls: the source's states of another factoid (``other``), and random states of the same norm
(``random``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memprobe.batching import batches_by_tokens, rope_border, tokens_at_once
from memprobe.interventions import Corrupt, applied
from memprobe.lenses import Lens
from memprobe.logits import read_logits
from memprobe.models import LensModel
from memprobe.modes import evaluating
from memprobe.partial import Copy, Inside, Whole, finish, run_whole
from memprobe.parts import PARTS, Part
from memprobe.patch_plan import PatchPlan, Positions, Question, seeded
from memprobe.patches import finite_only
from memprobe.records import PATCHES
from memprobe.templates import TokenisedFactoid

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 4096
_READ_ROWS = 256


def patch_batches(
    source: LensModel,
    target: LensModel,
    plan: PatchPlan,
    *,
    batch_size: int | None = None,
    at_once: int | None = None,
    reuse: bool = True,
    done: frozenset[str] = frozenset(),
) -> Iterator[pl.DataFrame]:
    """Patches batch by batch, shortest factoids first; the source's states of a batch are captured once for all depths.

    Args:
        batch_size: factoids a batch; by default as many as fill one.
        at_once: copies of the batch that go through the blocks together; see :func:`memprobe.partial.finish`.
        reuse: use keys and values before the patched positions again; without, every position above the patch is
            computed anew.
        done: ids of factoids to leave out.

    Yields:
        Rows of :data:`memprobe.records.PATCHES`, without the order of factoids given, and without facts of which a
        logit is not finite.
    """
    questions = sorted(
        (question for question in plan.questions if question.item.factoid.id not in done),
        key=lambda question: (len(question.item.inputs), len(question.item.prompt), question.item.factoid.id),
    )
    tokens = tokens_at_once(target.device, CPU_BATCH_TOKENS, GPU_BATCH_TOKENS)
    for batch in batches_by_tokens(
        range(len(questions)),
        lambda index: len(questions[index].item.inputs),
        tokens,
        batch_size,
        border=rope_border(source.model, target.model),
    ):
        with evaluating(source.model), evaluating(target.model):
            yield _patch_batch(
                source, target, plan, [questions[index] for index in batch], at_once, reuse and plan.reuse
            )


def own_log_probs(
    lens_model: LensModel, items: Sequence[TokenisedFactoid], *, batch_size: int | None = None
) -> pl.DataFrame:
    """What a model itself gives every answer token.

    Returns:
        [factoid, token, rank, log_prob]
    """
    order = sorted(range(len(items)), key=lambda index: len(items[index].inputs))
    tokens = tokens_at_once(lens_model.device, CPU_BATCH_TOKENS, GPU_BATCH_TOKENS)
    frames = []
    border = rope_border(lens_model.model)
    for batch in batches_by_tokens(
        order, lambda index: len(items[index].inputs), tokens, batch_size, border=border
    ):
        asked = [items[index] for index in batch]
        with evaluating(lens_model.model):
            run = run_whole(lens_model, padded(asked, lens_model.pad_id()))
            rank, log_prob = read_answers(lens_model.lens, run.streams[-1:], asked)
        frames.append(
            pl.DataFrame(answer_keys(asked) | {"rank": rank[0], "log_prob": log_prob[0]}).drop("token_id")
        )
    return pl.concat(frames)


def padded(items: Sequence[TokenisedFactoid], pad: int) -> Int[Tensor, "row position"]:
    """Inputs as a batch, padded on the right."""
    ids = torch.full((len(items), max(len(item.inputs) for item in items)), pad)
    for row, item in enumerate(items):
        ids[row, : len(item.inputs)] = torch.tensor(item.inputs)
    return ids


def _patch_batch(
    source: LensModel,
    target: LensModel,
    plan: PatchPlan,
    batch: Sequence[Question],
    at_once: int | None,
    reuse: bool,
) -> pl.DataFrame:
    items = [question.item for question in batch]
    ids = padded(items, target.pad_id())
    parts = [part for part in plan.what if part != "residual"]
    edits = []
    if plan.noise is not None:
        subjects = _mask([question.sets["subject"] for question in batch], ids.shape[1])
        edits.append(Corrupt(lambda given: subjects.to(given.device), plan.noise, plan.seed))
    with applied(target, *edits):
        base = run_whole(target, ids, parts=parts, keys_values=reuse)
    # Each with its own filling: one may have a token more, added to fill rows with.
    given = run_whole(source, padded(items, source.pad_id()), parts=parts)
    own = {
        "source": read_answers(source.lens, given.streams[-1:], items),
        "target": read_answers(target.lens, base.streams[-1:], items),
    }
    others = None
    if "other" in plan.controls:
        partners = [question.other or question for question in batch]
        others = run_whole(
            source, padded([partner.item for partner in partners], source.pad_id()), parts=parts
        )

    keys = answer_keys(items)
    frames: list[pl.DataFrame] = []
    for name in plan.positions:
        mask = _mask([question.sets[name] for question in batch], ids.shape[1]).to(target.device)
        start = min(min(question.sets[name]) for question in batch) if base.keys_values else 0
        aligned = _aligned(batch, name, ids.shape[1]).to(target.device)
        seeds = [seeded(plan.seed, question.item.factoid.id, "random") for question in batch]
        made: list[tuple[Part, int, str]] = []
        copies: list[Copy] = []
        for part in plan.what:
            for depth in plan.depths:
                if part != "residual" and depth == 0:
                    continue
                for control in ("", *plan.controls):
                    put = partial(_states, given, others, part, depth, control, mask, aligned, seeds)
                    copies.append(_copy(base, part, depth, mask, start, put, target.device))
                    made.append((part, depth, control))
        numbers = iter(made)
        for finished in finish(target, base, copies, start=start, at_once=at_once):
            rank, log_prob = read_answers(target.lens, finished, items, start=start)
            for row in range(len(finished)):
                part, depth, control = next(numbers)
                frames.append(
                    pl.DataFrame(keys | {"rank": rank[row], "log_prob": log_prob[row]}).with_columns(
                        what=pl.lit(part),
                        positions=pl.lit(name),
                        control=pl.lit(control),
                        depth=pl.lit(depth),
                    )
                )
    table = pl.concat(frames).with_columns(
        source=pl.lit(source.label),
        target=pl.lit(target.label if plan.noise is None else f"{target.label} corrupted"),
        parts=pl.lit(""),
        last=pl.col("depth"),
    )
    lonely = [question.item.factoid.id for question in batch if question.other is None]
    table = table.filter(~((pl.col("control") == "other") & pl.col("factoid").is_in(lonely)))
    return with_own(table, keys, own)


def with_own(
    table: pl.DataFrame,
    keys: Mapping[str, Sequence[str | int]],
    own: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> pl.DataFrame:
    """Adds what source and target themselves say, and the schema's types; see :func:`memprobe.patches.finite_only` for
    what goes."""
    columns = {}
    for side, (rank, log_prob) in own.items():
        columns |= {f"{side}_rank": rank[0], f"{side}_log_prob": log_prob[0]}
    beside = pl.DataFrame(dict(keys) | columns).drop("token_id")
    whole = table.join(beside, on=["factoid", "token"], maintain_order="left")
    return finite_only(whole.select(list(PATCHES)).cast(PATCHES))  # pyrefly: ignore


def _copy(
    base: Whole,
    part: Part,
    depth: int,
    mask: Bool[Tensor, "row position"],
    start: int,
    put: partial[Tensor],
    device: torch.device,
) -> Copy:
    if part == "residual":
        return Copy(
            depth,
            lambda: torch.where(mask[:, start:, None], put()[:, start:], base.streams[depth][:, start:]),
        )
    # Inside block `depth`: the copy leaves the run below that block.
    values = put().to(device)[:, start:]
    return Copy(depth - 1, lambda: base.streams[depth - 1][:, start:], Inside(part, values, mask[:, start:]))


def _states(
    given: Whole,
    others: Whole | None,
    part: Part,
    depth: int,
    control: str,
    mask: Bool[Tensor, "row position"],
    aligned: Int[Tensor, "row position"],
    seeds: Sequence[int],
) -> Float[Tensor, "row position d_model"]:
    """What is put in: the source's states, or a control's."""

    def of(run: Whole) -> Tensor:
        return run.streams[depth] if part == "residual" else run.outputs[part][depth - 1]

    own = of(given).to(mask.device)
    if control == "other" and others is not None:
        states = of(others).to(mask.device)
        return states.gather(1, aligned[..., None].expand(-1, -1, states.shape[-1]))
    if control == "random":
        random = torch.zeros(own.shape)
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed + PARTS.index(part) * 1_000_003 + depth)
            columns = mask[row].nonzero()[:, 0].cpu()
            random[row, columns] = torch.randn(len(columns), own.shape[-1], generator=generator)
        random = random.to(own.device)
        norm = random.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        return (random / norm * own.float().norm(dim=-1, keepdim=True)).to(own.dtype)
    return own


def _mask(columns: Sequence[Sequence[int]], width: int) -> Bool[Tensor, "row position"]:
    mask = torch.zeros(len(columns), width, dtype=torch.bool)
    for row, wanted in enumerate(columns):
        mask[row, list(wanted)] = True
    return mask


def _aligned(batch: Sequence[Question], name: Positions, width: int) -> Int[Tensor, "row position"]:
    """Which position of the control's factoid stands for each position: counted from the end of the prompt, in
    ``subject`` from the end of the subject; the nearest one where the control is shorter."""
    places = torch.zeros(len(batch), width, dtype=torch.int64)
    for row, question in enumerate(batch):
        other = question.other or question
        anchor = (lambda q: q.sets[name][-1]) if name == "subject" else (lambda q: len(q.item.prompt) - 1)
        moved = torch.arange(width) - anchor(question) + anchor(other)
        first, last = 0, len(other.item.inputs) - 1
        if name == "subject":
            first, last = other.sets[name][0], other.sets[name][-1]
        places[row] = moved.clamp(first, last)
    return places


def answer_keys(items: Sequence[TokenisedFactoid]) -> dict[str, list[str] | list[int]]:
    """factoid, token and token_id of every target of a batch, in the order in which :func:`read_answers` reads."""
    asked = [(item, j) for item in items for j in range(len(item.targets))]
    return {
        "factoid": [item.factoid.id for item, _ in asked],
        "token": [item.target_indices[j] for item, j in asked],
        "token_id": [item.targets[j] for item, j in asked],
    }


def read_answers(
    lens: Lens,
    streams: Float[Tensor, "copy row position d_model"],
    items: Sequence[TokenisedFactoid],
    *,
    start: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank and log_prob of every target, [copy, target], read from streams of full depth; log_prob is no number where
    any logit is not finite."""
    asked = [(row, len(item.prompt) - 1 + j, item.targets[j]) for row, item in enumerate(items)
             for j in range(len(item.targets))]  # fmt: skip
    rows, columns, targets = torch.tensor(asked, device=streams.device).unbind(1)
    hidden = lens.transform_hidden(streams[:, rows, columns - start])
    copies, count, width = hidden.shape
    hidden = hidden.reshape(copies * count, width)
    wanted = targets.repeat(copies)[:, None]
    rank, log_prob = [], []
    for first in range(0, len(hidden), _READ_ROWS):
        reading = read_logits(
            lens.unembed(hidden[first : first + _READ_ROWS]), wanted[first : first + _READ_ROWS]
        )
        rank.append(reading.rank[:, 0])
        log_prob.append(np.where(np.isfinite(reading.entropy), reading.log_prob, np.nan))
    return np.concatenate(rank).reshape(copies, count), np.concatenate(log_prob).reshape(copies, count)
