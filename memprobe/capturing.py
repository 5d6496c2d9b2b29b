"""Model × factoids → records: the one inference loop.

    batch of factoids ──one forward pass──> residuals where something is read [n_layers + 1, sites, d_model]
                                                  │ a few rows at a time
                                                  └──each lens──> logits [rows, vocab] ──> rank, log_prob, …

The vocabulary axis dies inside the loop: the largest tensor is [rows of a chunk, vocab], whatever the number
of factoids and lenses. Sequences are padded on the right and sent without a mask: causal attention never lets a
position see what stands after it, so padding cannot reach a position that is read. What all prompts begin with is read
once (:mod:`memprobe.prefixes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from memprobe.answers import answer, shown
from memprobe.batching import batches_by_tokens, rope_border, tokens_at_once
from memprobe.blocks import decoder_of, residual_hooks
from memprobe.checkpoints import checkpoints_of, default_template
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.lens_specs import parse_lenses
from memprobe.lenses import Lens
from memprobe.logits import LogitReading, read_rows
from memprobe.models import LensModel, load
from memprobe.modes import evaluating
from memprobe.planning import CapturePlan, Site, plan_capture
from memprobe.prefixes import Prefix, read_beginning, shared_beginning
from memprobe.records import CONTROLS, LENS, OUTCOMES, POSITION, RECORDS
from memprobe.templates import Template, TokenisedFactoid

if TYPE_CHECKING:
    BatchSize = int | Literal["auto"]
    Batch = Sequence[TokenisedFactoid]

_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 1024, 16384
# So many times a batch's own tokens may stand before it as a shared beginning: each layer joins its keys and values.
_PREFIXES = 16


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


def capture(
    lens_model: LensModel,
    factoids: Sequence[Factoid],
    template: str | Template | None = None,
    *,
    lenses: Sequence[str | Lens] = (LENS,),
    positions: Sequence[str] = (POSITION,),
    intrusions: Mapping[str, Sequence[Factoid]] | None = None,
    batch_size: BatchSize = "auto",
    seed: int = 0,
    predictions: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tables:
    """Probes one model on factoids, in memory.

    Args:
        template: how a factoid is put before the model; ``None``: as the checkpoint's manifest says, else plain.
        lenses: what reads the residual stream, as texts (:func:`memprobe.lens_specs.parse_lens`) or made already.
        positions: where, see :data:`memprobe.records.POSITIONS`.
        intrusions: by name, factoids whose answers are watched for at the same positions.
        seed: of the shuffled controls.
        predictions: also generate what the model says where teacher forcing has not shown it; without,
            ``exact_match`` is null there.
        progress: called with (factoids done, of how many).

    Returns:
        ``records``, ``controls`` and ``outcomes``, polars frames with the columns of a probe directory's tables.

    Raises:
        MemprobeError: a factoid that cannot be tokenised, or one that stands twice; a lens or position that does
            not exist or does not fit.
    """
    if not isinstance(template, Template):
        template = Template.parse(template or default_template(checkpoints_of([lens_model])))
    plan = plan_capture(lens_model, factoids, template, positions=positions, intrusions=intrusions, seed=seed)
    made = [lens for lens in lenses if isinstance(lens, Lens)]
    specs = (
        parse_lenses([lens for lens in lenses if isinstance(lens, str)]) if len(made) < len(lenses) else []
    )
    built = [*made, *(spec.build(lens_model, load) for spec in specs)]
    progress(0, len(plan.items))
    done, batches = 0, []
    for tables in capture_batches(
        lens_model, plan, lenses=built, batch_size=batch_size, predictions=predictions
    ):
        batches.append(tables)
        done += len(tables.outcomes)
        progress(done, len(plan.items))
    return Tables.concat(batches)


def batches_of(lens_model: LensModel, plan: CapturePlan, batch_size: BatchSize = "auto") -> list[Batch]:
    """A plan's factoids in batches, shortest first: of the plan and the model alone, whatever was read before.

    Args:
        batch_size: factoids a batch; ``auto`` fills batches up to a number of tokens.
    """
    items = sorted(plan.items, key=lambda item: (len(item.inputs), item.factoid.id))
    size = None if batch_size == "auto" else batch_size
    tokens = tokens_at_once(lens_model.device, _CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS)
    border = rope_border(lens_model.model)
    shared = len(shared_beginning(lens_model, plan))
    most = max(1, _PREFIXES * tokens // shared) if shared else None
    indices = batches_by_tokens(
        range(len(items)), lambda index: len(items[index].inputs) - shared, tokens, size, most, border=border
    )
    return [[items[index] for index in batch] for batch in indices]


def capture_batches(
    lens_model: LensModel,
    plan: CapturePlan,
    *,
    lenses: Sequence[Lens] = (),
    batch_size: BatchSize = "auto",
    batches: Sequence[Batch] | None = None,
    done: frozenset[str] = frozenset(),
    predictions: bool = True,
) -> Iterator[Tables]:
    """Probes a plan batch by batch.

    Args:
        lenses: what reads the residual stream; by default the Logit Lens.
        batch_size: see :func:`batches_of`; with ``auto``, fewer where a GPU runs out of memory.
        batches: of :func:`batches_of`; by default all.
        done: ids of factoids to leave out.
        predictions: see :func:`capture`.

    Yields:
        The tables of one batch; ``error`` in the outcomes says where a logit was not finite.
    """
    if batches is None:
        batches = batches_of(lens_model, plan, batch_size)
    remaining = [[item for item in batch if item.factoid.id not in done] for batch in batches]
    waiting = [batch for batch in remaining if batch][::-1]
    prefix = read_beginning(lens_model, shared_beginning(lens_model, plan)) if waiting else None
    while waiting:
        batch = waiting.pop()
        try:
            with evaluating(lens_model.model):
                tables = _capture_batch(
                    lens_model, lenses or [lens_model.lens], batch, plan, predictions, prefix
                )
        except torch.OutOfMemoryError:
            if batch_size != "auto" or len(batch) == 1:
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
    lenses: Sequence[Lens],
    batch: Sequence[TokenisedFactoid],
    plan: CapturePlan,
    predictions: bool,
    prefix: Prefix | None,
) -> Tables:
    sites = [(row, site) for row, item in enumerate(batch) for site in plan.sites(item)]
    targets, draws = _targets([site for _, site in sites], plan)
    residuals = residuals_at(lens_model, batch, sites, prefix)
    depths = residuals.shape[0]
    every = repeat(targets, "site target -> (depth site) target", depth=depths)
    keys = _keys(lens_model.label, [site for _, site in sites], targets, depths)
    records, controls = [], []
    read: dict[object, tuple[LogitReading, dict[str, tuple[np.ndarray, np.ndarray]]]] = {}
    own: LogitReading | None = None
    for lens in lenses:
        # Two names for one lens, such as a base model's own readout and the base's, are read once.
        same = lens.computes
        if same not in read:
            # A leading axis stays: DeepSeek V4's head takes streams as [batch, position, stream, d_model] only.
            hidden = [lens.transform_hidden(residuals[depth, None], depth)[0] for depth in range(depths)]
            read[same] = read_rows(
                lens, rearrange(hidden, "depth site d -> (depth site) d"), every, plan.intrusions
            )
        readings, best = read[same]
        named = keys.with_columns(lens=pl.lit(lens.name))
        records.append(_records(named, readings))
        controls += _controls(named, readings, best, targets, draws, depths)
        if lens.readout is lens_model.lens.readout:
            own = own or readings
    table = pl.concat(records)
    failed = set(table.filter(~pl.col("entropy").is_finite())["factoid"])
    argmax, finite = _model_says(lens_model, residuals[-1], targets, own)
    exact = {item.factoid.id: True for item in batch}
    for (_, site), is_argmax, is_finite in zip(sites, argmax, finite, strict=True):
        if site.position == POSITION:
            exact[site.item.factoid.id] &= is_argmax
        if not is_finite:
            failed.add(site.item.factoid.id)
    outcomes = _outcomes(lens_model, batch, exact, failed, predictions)
    kept = ~pl.col("factoid").is_in(sorted(failed))
    return Tables(
        table.filter(kept), pl.concat([pl.DataFrame(schema=CONTROLS), *controls]).filter(kept), outcomes
    )


def _keys(label: str, sites: Sequence[Site], targets: Tensor, depths: int) -> pl.DataFrame:
    """The keys of a lens's rows, depth by depth."""
    at_one_depth = pl.DataFrame(
        {
            "checkpoint": [label] * len(sites),
            "factoid": [site.item.factoid.id for site in sites],
            "position": [site.position for site in sites],
            "token": [site.item.target_indices[site.target] for site in sites],
            "token_id": targets[:, 0].tolist(),
        },
        schema_overrides={"token": pl.Int16, "token_id": pl.Int32},
    )
    return pl.concat([at_one_depth.with_columns(depth=pl.lit(depth, pl.Int16)) for depth in range(depths)])


def _records(keys: pl.DataFrame, readings: LogitReading) -> pl.DataFrame:
    columns = {name: getattr(readings, name) for name in ("log_prob", "entropy", "top1", "ties")}
    return keys.with_columns(rank=readings.rank[:, 0], **columns).select(list(RECORDS)).cast(RECORDS)


def _controls(
    keys: pl.DataFrame,
    readings: LogitReading,
    best: Mapping[str, tuple[np.ndarray, np.ndarray]],
    targets: Tensor,
    draws: Sequence[str],
    depths: int,
) -> list[pl.DataFrame]:
    """Ranks of other tokens at the same sites: of each shuffled draw, and of what intrudes."""
    tables = [
        keys.with_columns(
            token_id=pl.Series(targets[:, column].repeat(depths).numpy()),
            control=pl.lit(name),
            rank=readings.rank[:, column],
        )
        for column, name in enumerate(draws, 1)
    ]
    tables += [
        keys.with_columns(token_id=ids, control=pl.lit(f"intrusion:{name}"), rank=rank).filter(
            pl.col("token") == 0
        )
        for name, (ids, rank) in best.items()
    ]
    # Where there is no other token, such as where all that intrudes begins as the answer does, there is no control.
    there = pl.col("token_id") >= 0
    return [table.filter(there).select(list(CONTROLS)).cast(CONTROLS) for table in tables]


def _model_says(
    lens_model: LensModel, last: Float[Tensor, "site d_model"], targets: Tensor, own: LogitReading | None
) -> tuple[list[bool], list[bool]]:
    """Whether the model itself says the answer token at each site, and whether its logits are finite there.

    That is read with its own norm and unembedding, whatever the lenses: at full depth none of them has a map.
    """
    if own is None:
        hidden = lens_model.lens.transform_hidden(last[None])[0]
        own = read_rows(lens_model.lens, hidden, targets[:, :1], {})[0]
    return (own.rank[-len(last) :, 0] == 0).tolist(), np.isfinite(own.entropy[-len(last) :]).tolist()


def _targets(sites: Sequence[Site], plan: CapturePlan) -> tuple[Tensor, list[str]]:
    """Token ids [sites, 1 + controls]: the answer's, then each shuffled draw's; -1 where there is none."""
    draws = len(next(iter(plan.shuffled.values()), []))
    rows = []
    for site in sites:
        item, j = site.item, site.target
        others = plan.shuffled[item.factoid.id]
        index = item.target_indices[j]  # below 0: the end token and the bare space have no control
        rows.append(
            [item.targets[j]]
            + [other[index] if other is not None and 0 <= index < len(other) else -1 for other in others]
        )
    return torch.tensor(rows), [f"shuffled:{draw}" for draw in range(draws)]


def residuals_at(
    lens_model: LensModel,
    batch: Sequence[TokenisedFactoid],
    sites: Sequence[tuple[int, Site]],
    prefix: Prefix | None = None,
) -> Float[Tensor, "depth site d_model"]:
    """The residual stream at the sites, at every depth; behind a beginning that was read before, if one is given."""
    device = lens_model.device
    start = len(prefix.ids) if prefix else 0
    ids = torch.full((len(batch), max(len(item.inputs) for item in batch) - start), lens_model.pad_id())
    for row, item in enumerate(batch):
        ids[row, : len(item.inputs) - start] = torch.tensor(item.inputs[start:])
    rows = torch.tensor([row for row, _ in sites], device=device)
    columns = torch.tensor([site.column - start for _, site in sites], device=device)
    streams: dict[int, Tensor] = {}

    def keep(depth: int, residual: Tensor) -> None:
        streams[depth] = residual[rows, columns]

    with residual_hooks(lens_model.blocks, keep):
        options = prefix.options() if prefix else {"use_cache": False}
        decoder_of(lens_model.model)(input_ids=ids.to(device), **options)
    return torch.stack([streams[depth] for depth in range(lens_model.n_layers + 1)])


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
        for judged in answer(lens_model, open_items):
            # Teacher forcing has the word on exact tokens: two logits may be equal up to rounding.
            verdicts |= {key: replace(verdict, exact_tokens=False) for key, verdict in judged.items()}
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
