"""Model × factoids → records: the one inference loop.

    batch of factoids ──one forward pass──> residuals at answer positions [n_layers + 1, positions, d_model]
                                                  │ a few rows at a time
                                                  └──lens──> logits [rows, vocab] ──> rank, log_prob, entropy, top1

The vocabulary axis dies inside the loop: the largest tensor is [rows of a chunk, vocab], whatever the number
of factoids. Sequences are padded on the right and sent without a mask: causal attention never lets a
position see what stands after it, so padding cannot reach a position that is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memprobe.answers import answer, shown
from memprobe.batching import batches_by_tokens, rope_border
from memprobe.checkpoints import checkpoints_of, default_template
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.lenses import Lens
from memprobe.models import LensModel, decoder_of, evaluating, residual_hooks
from memprobe.records import CONTROLS, OUTCOMES, RECORDS
from memprobe.templates import Template, TokenisedFactoid, tokenise_all

if TYPE_CHECKING:
    BatchSize = int | Literal["auto"]

SHUFFLES = 5
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 1024, 16384
# The unembedding is fastest on many rows, reading what it made is fastest while a block fits the cache.
_CHUNK_ROWS, _CPU_BLOCK_ROWS = 512, 32


@dataclass(frozen=True)
class Tables:
    """What one capture gives: the tables of :mod:`memprobe.records`."""

    records: pl.DataFrame
    controls: pl.DataFrame
    outcomes: pl.DataFrame

    @classmethod
    def concat(cls, parts: Sequence[Tables]) -> Tables:
        """Parts one below the other."""
        if not parts:
            return cls(
                pl.DataFrame(schema=RECORDS), pl.DataFrame(schema=CONTROLS), pl.DataFrame(schema=OUTCOMES)
            )
        return cls(*(pl.concat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Reading:
    """Numbers read from logits [rows, vocab].

    Attributes:
        rank: [rows, targets] other tokens whose logit is at least the target's: a tie counts against it.
        ties: [rows] other tokens with exactly the first target's logit.
        log_prob: [rows] of the first target, nats.
        entropy: [rows], nats; not finite where any logit is not.
        top1: [rows] id of the argmax.
    """

    rank: np.ndarray
    ties: np.ndarray
    log_prob: np.ndarray
    entropy: np.ndarray
    top1: np.ndarray


def capture(
    lens_model: LensModel,
    factoids: Sequence[Factoid],
    template: str | Template | None = None,
    *,
    readout: Lens | None = None,
    intrusions: Mapping[str, Sequence[Factoid]] | None = None,
    batch_size: BatchSize = "auto",
    seed: int = 0,
    predictions: bool = True,
) -> Tables:
    """Probes one model on factoids, in memory.

    Args:
        template: how a factoid is put before the model; ``None``: as the checkpoint's manifest says, else plain.
        readout: reads with another model's norm and unembedding instead of its own.
        intrusions: by name, factoids whose answers are watched for at the same positions.
        seed: of the shuffled controls.
        predictions: also generate what the model says where teacher forcing has not shown it; without,
            ``exact_match`` is null there.

    Raises:
        MemprobeError: a factoid that cannot be tokenised, or one that stands twice.
    """
    if not isinstance(template, Template):
        template = Template.parse(template or default_template(checkpoints_of([lens_model])))
    plan = plan_capture(lens_model, factoids, template, intrusions=intrusions, seed=seed)
    batches = capture_batches(
        lens_model, plan, readout=readout, batch_size=batch_size, predictions=predictions
    )
    return Tables.concat(list(batches))


@dataclass(frozen=True)
class Plan:
    """Tokenised factoids and the control tokens of each, before any model runs.

    Attributes:
        items: in the order of the factoids given.
        shuffled: per factoid id, the answer ids of ``shuffled:0`` …; ``None`` where no other answer fits.
        intrusions: by name, the distinct first answer tokens to watch for.
    """

    items: list[TokenisedFactoid]
    shuffled: dict[str, list[tuple[int, ...] | None]]
    intrusions: dict[str, list[int]]


def plan_capture(
    lens_model: LensModel,
    factoids: Sequence[Factoid],
    template: Template,
    *,
    intrusions: Mapping[str, Sequence[Factoid]] | None = None,
    seed: int = 0,
) -> Plan:
    """Tokenises factoids and draws their controls.

    Raises:
        MemprobeError: see :func:`capture`.
    """
    ids = [factoid.id for factoid in factoids]
    if not ids:
        raise MemprobeError("there are no factoids to probe")
    if len(set(ids)) < len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise MemprobeError(f"the factoid id {repeated!r} stands twice")
    items = tokenise_all(factoids, template, lens_model.tokenizer, lens_model.max_length)
    watched = {}
    for name, others in (intrusions or {}).items():
        answers = tokenise_all(others, template, lens_model.tokenizer)
        watched[name] = sorted({item.answer[0] for item in answers})
    return Plan(items, shuffled_answers(items, seed), watched)


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


def capture_batches(
    lens_model: LensModel,
    plan: Plan,
    *,
    readout: Lens | None = None,
    batch_size: BatchSize = "auto",
    done: frozenset[str] = frozenset(),
    predictions: bool = True,
) -> Iterator[Tables]:
    """Probes a plan batch by batch, shortest factoids first.

    Args:
        readout: see :func:`capture`.
        batch_size: factoids a batch; ``auto`` fills batches up to a number of tokens, fewer where a GPU runs
            out of memory.
        done: ids of factoids to leave out.
        predictions: see :func:`capture`.

    Yields:
        The tables of one batch; ``error`` in the outcomes says where a logit was not finite.
    """
    lens = readout if readout is not None else lens_model.lens
    items = sorted(
        (item for item in plan.items if item.factoid.id not in done),
        key=lambda item: (len(item.inputs), item.factoid.id),
    )
    size = None if batch_size == "auto" else batch_size
    tokens = _CPU_BATCH_TOKENS if lens_model.device.type == "cpu" else _GPU_BATCH_TOKENS
    border = rope_border(lens_model.model)
    waiting = batches_by_tokens(
        range(len(items)), lambda index: len(items[index].inputs), tokens, size, border=border
    )[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            with evaluating(lens_model.model):
                tables = _capture_batch(
                    lens_model, lens, [items[index] for index in batch], plan, predictions
                )
        except torch.OutOfMemoryError:
            if size is not None or len(batch) == 1:
                raise MemprobeError(
                    f"{lens_model.label}: out of memory at a batch of {len(batch)}; "
                    "use a smaller --batch-size, --dtype bfloat16 or --device cpu"
                ) from None
            torch.cuda.empty_cache()
            half = len(batch) // 2
            waiting += [batch[half:], batch[:half]]
            continue
        yield tables


def _capture_batch(
    lens_model: LensModel,
    lens: Lens,
    batch: Sequence[TokenisedFactoid],
    plan: Plan,
    predictions: bool,
) -> Tables:
    positions = [(row, item, j) for row, item in enumerate(batch) for j in range(len(item.targets))]
    targets, names = _targets(positions, plan)
    residuals = _residuals(lens_model, batch, positions)
    depths = residuals.shape[0]
    hidden = rearrange(lens.transform_hidden(residuals), "depth position d -> (depth position) d")
    readings, best = _read(
        lens,
        hidden,
        repeat(targets, "position target -> (depth position) target", depth=depths),
        plan.intrusions,
    )

    keys = pl.DataFrame(
        {
            "checkpoint": [lens_model.label] * len(positions),
            "factoid": [item.factoid.id for _, item, _ in positions],
            "token": [item.target_indices[j] for _, item, j in positions],
            "token_id": targets[:, 0].tolist(),
        },
        schema_overrides={"token": pl.Int16, "token_id": pl.Int32},
    )
    keys = pl.concat([keys.with_columns(depth=pl.lit(depth, pl.Int16)) for depth in range(depths)])
    records = keys.with_columns(
        rank=readings.rank[:, 0],
        log_prob=readings.log_prob,
        entropy=readings.entropy,
        top1=readings.top1,
        ties=readings.ties,
    ).cast(RECORDS)
    controls = [
        keys.with_columns(
            token_id=pl.Series(targets[:, column].repeat(depths).numpy()),
            control=pl.lit(name),
            rank=readings.rank[:, column],
        ).filter(pl.col("token_id") >= 0)
        for column, name in enumerate(names, 1)
    ]
    controls += [
        keys.with_columns(token_id=ids, control=pl.lit(f"intrusion:{name}"), rank=rank).filter(
            pl.col("token") == 0
        )
        for name, (ids, rank) in best.items()
    ]
    failed = set(records.filter(~pl.col("entropy").is_finite())["factoid"])
    if lens is lens_model.lens:
        own = readings
    else:  # what the model itself says is read with its own norm and unembedding, whatever the lens
        hidden = lens_model.lens.transform_hidden(residuals[-1])
        own = _read(lens_model.lens, hidden, targets[:, :1], {})[0]
    exact = {item.factoid.id: True for item in batch}
    at_full_depth = (
        own.rank[-len(positions) :, 0].tolist(),
        np.isfinite(own.entropy[-len(positions) :]).tolist(),
    )
    for (_, item, _), rank, finite in zip(positions, *at_full_depth, strict=True):
        exact[item.factoid.id] &= rank == 0
        if not finite:
            failed.add(item.factoid.id)
    outcomes = _outcomes(lens_model, batch, exact, failed, predictions)
    kept = ~pl.col("factoid").is_in(sorted(failed))
    beside = pl.concat(
        [
            pl.DataFrame(schema=CONTROLS),
            *(table.select(list(CONTROLS)).cast(CONTROLS) for table in controls),
        ]
    )
    return Tables(records.filter(kept), beside.filter(kept), outcomes)


def _targets(positions: Sequence[tuple[int, TokenisedFactoid, int]], plan: Plan) -> tuple[Tensor, list[str]]:
    """Token ids [positions, 1 + controls]: the answer's, then each shuffled draw's; -1 where there is none."""
    draws = len(next(iter(plan.shuffled.values()), []))
    rows = []
    for _, item, j in positions:
        others = plan.shuffled[item.factoid.id]
        in_answer = j < len(item.answer)  # the end token has no control
        rows.append(
            [item.targets[j]]
            + [other[j] if in_answer and other is not None and j < len(other) else -1 for other in others]
        )
    return torch.tensor(rows), [f"shuffled:{draw}" for draw in range(draws)]


def _residuals(
    lens_model: LensModel,
    batch: Sequence[TokenisedFactoid],
    positions: Sequence[tuple[int, TokenisedFactoid, int]],
) -> Float[Tensor, "depth position d_model"]:
    """The residual stream at the positions that predict a target, at every depth."""
    device = lens_model.device
    ids = torch.full((len(batch), max(len(item.inputs) for item in batch)), lens_model.pad_id())
    for row, item in enumerate(batch):
        ids[row, : len(item.inputs)] = torch.tensor(item.inputs)
    rows = torch.tensor([row for row, _, _ in positions], device=device)
    columns = torch.tensor([len(item.prompt) - 1 + j for _, item, j in positions], device=device)
    streams: dict[int, Tensor] = {}

    def keep(depth: int, residual: Tensor) -> None:
        streams[depth] = residual[rows, columns]

    with residual_hooks(lens_model.blocks, keep):
        decoder_of(lens_model.model)(input_ids=ids.to(device), use_cache=False)
    return torch.stack([streams[depth] for depth in range(lens_model.n_layers + 1)])


def _read(
    lens: Lens,
    hidden: Float[Tensor, "row d_head"],
    targets: Int[Tensor, "row target"],
    intrusions: Mapping[str, Sequence[int]],
) -> tuple[Reading, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Reads every row, a chunk of logits at a time; for each intrusion, its best token and that token's rank."""
    targets = targets.to(hidden.device)
    watched = {name: torch.tensor(ids, device=hidden.device) for name, ids in intrusions.items()}
    block_rows = _CPU_BLOCK_ROWS if hidden.device.type == "cpu" else _CHUNK_ROWS
    readings: list[Reading] = []
    best_ids: list[Tensor] = []
    for start in range(0, len(hidden), _CHUNK_ROWS):
        chunk = lens.unembed(hidden[start : start + _CHUNK_ROWS])
        for offset in range(0, len(chunk), block_rows):
            logits = chunk[offset : offset + block_rows]
            wanted = targets[start + offset : start + offset + block_rows]
            strongest = [_strongest(logits, ids, wanted[:, 0]) for ids in watched.values()]
            readings.append(read_logits(logits, torch.column_stack([wanted, *strongest])))
            best_ids.append(torch.stack(strongest, 1) if strongest else wanted[:, :0])
    merged = Reading(
        *(np.concatenate([getattr(r, name) for r in readings]) for name in Reading.__dataclass_fields__)
    )
    ids = torch.cat(best_ids).cpu().numpy()
    first = targets.shape[1]
    return merged, {name: (ids[:, i], merged.rank[:, first + i]) for i, name in enumerate(watched)}


def _strongest(logits: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """Of the watched tokens, the one with the largest logit in each row; the answer's own does not count."""
    values = logits[:, ids].masked_fill(ids == answer[:, None], -torch.inf)
    best = values.max(1)
    return torch.where(best.values > -torch.inf, ids[best.indices], -1)


def read_logits(logits: Float[Tensor, "row vocab"], targets: Int[Tensor, "row target"]) -> Reading:
    """Rank, ties, log-probability, entropy and argmax, in few passes over the logits. Overwrites them.

    With m = max l and S = Σ exp(l − m): log p = l − m − log S and H = log S − Σ exp(l − m)(l − m) / S.

    Args:
        targets: token ids; the first of a row is its answer, an id of -1 is skipped (rank -1).
    """
    rank, ties, top1 = _order(logits, logits.gather(1, targets.clamp(min=0)), targets >= 0)
    answer = logits.gather(1, targets[:, :1])
    largest = logits.gather(1, top1)
    shifted = logits.sub_(largest)
    weights = shifted.exp()
    total = weights.sum(1)
    entropy = total.log() - weights.mul_(shifted).sum(1) / total
    log_prob = (answer - largest)[:, 0] - total.log()
    return Reading(
        rank=rank.cpu().numpy(),
        ties=ties.cpu().numpy(),
        log_prob=log_prob.cpu().numpy(),
        entropy=entropy.cpu().numpy(),
        top1=top1[:, 0].to(torch.int32).cpu().numpy(),
    )


def _order(
    logits: Float[Tensor, "row vocab"],
    values: Float[Tensor, "row target"],
    wanted: Bool[Tensor, "row target"],
) -> tuple[Int[Tensor, "row target"], Int[Tensor, " row"], Int[Tensor, "row 1"]]:
    """Other logits that reach each value (-1 where not wanted), those equal to the first, and the argmax."""
    if logits.device.type != "cpu":
        larger = [(logits >= column[:, None]).sum(1) - 1 for column in values.unbind(1)]
        rank = torch.where(wanted, torch.stack(larger, 1), -1)
        return (
            rank.to(torch.int32),
            ((logits == values[:, :1]).sum(1) - 1).to(torch.int32),
            logits.argmax(1, True),
        )
    # On a CPU numpy counts several times faster than torch: one row at a time stays in the cache.
    rank = np.full(values.shape, -1, np.int32)
    ties, top1 = np.empty(len(logits), np.int32), np.empty((len(logits), 1), np.int64)
    mask = np.empty(logits.shape[1], bool)
    asked = wanted.numpy()
    for row, (line, thresholds) in enumerate(zip(logits.numpy(), values.numpy(), strict=True)):
        for target in asked[row].nonzero()[0]:
            rank[row, target] = np.count_nonzero(np.greater_equal(line, thresholds[target], out=mask)) - 1
        ties[row] = np.count_nonzero(np.equal(line, thresholds[0], out=mask)) - 1
        top1[row] = line.argmax()
    return torch.from_numpy(rank), torch.from_numpy(ties), torch.from_numpy(top1)


def _outcomes(
    lens_model: LensModel,
    batch: Sequence[TokenisedFactoid],
    exact: Mapping[str, bool],
    failed: set[str],
    predictions: bool,
) -> pl.DataFrame:
    """What the model says in full. Greedy generation runs only where teacher forcing has not shown it already."""
    verdicts = {item.factoid.id: shown(item) for item in batch if exact[item.factoid.id]}
    open_items = [item for item in batch if item.factoid.id not in failed | verdicts.keys()]
    if predictions:
        for said in answer(lens_model, open_items):
            # Teacher forcing has the word on exact tokens: two logits may be equal up to rounding.
            verdicts |= {key: replace(verdict, exact_tokens=False) for key, verdict in said.items()}
    rows = []
    for item in batch:
        row: dict[str, Any] = {"checkpoint": lens_model.label, "factoid": item.factoid.id}
        if item.factoid.id in failed:
            row["error"] = "a logit is not finite"
        elif item.factoid.id in verdicts:
            row |= asdict(verdicts[item.factoid.id])
        else:
            row["exact_tokens"] = False
        rows.append(row)
    return pl.DataFrame(rows, schema=OUTCOMES)
