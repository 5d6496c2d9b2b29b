"""Direct logit attribution: what each block writes towards the answer's logit.

The last residual stream is the sum of what stands there before the first block and of what every block adds. With the
final norm's scale held at that stream, norm and unembedding are affine, so that the answer's logit is a sum as well:

    logit(t) − mean over the vocabulary = Σ over parts of  u(t) · part  + constant,     u(t) = Lᵀ (w_t − mean w)

with w the rows of the unembedding and L the linear part of the held norm (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; Wang et al. 2022, arXiv 2211.00593). Logits are those before a softcap; scales on
them are counted in. What a block adds is split into its attention's and its MLP's part where both can be found among
the outputs of its modules and add up; :func:`find_split` tries, and a model is split at every block or at none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memprobe.batching import batches_by_tokens, rope_border
from memprobe.blocks import decoder_of, first_of, residual_hooks
from memprobe.errors import MemprobeError
from memprobe.models import CHECK_TEXT, tolerance
from memprobe.modes import evaluating
from memprobe.parts import MODULE_NAMES
from memprobe.records import ATTRIBUTIONS, POSITION

if TYPE_CHECKING:
    from memprobe.lenses import Readout
    from memprobe.models import LensModel
    from memprobe.planning import CapturePlan
    from memprobe.templates import TokenisedFactoid

BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Source:
    """Where a part of a block can be read.

    Attributes:
        module: name of the module within the block.
        factor: what its output is multiplied with before it is added (Granite).
        less: ``block`` where the output holds the block's input too, ``attn`` where it holds the stream after the
            attention (BLOOM); empty where it is the part alone.
    """

    module: str
    factor: float = 1.0
    less: str = ""


@dataclass(frozen=True)
class Split:
    """How every block of a model is taken apart."""

    attn: Source
    mlp: Source


@dataclass(frozen=True, eq=False)
class HeldReadout:
    """A readout whose norm keeps the scale that it has at given last streams.

    Attributes:
        direction: [row, token, d_model], the u(t) of the module's formula.
        constant: [row, token], what no part of the stream contributes: biases of norm and unembedding.
        logit: [row, token], the centred logits themselves, before a softcap.
    """

    direction: Float[Tensor, "row token d_model"]
    constant: Float[Tensor, "row token"]
    logit: Float[Tensor, "row token"]


def attribute(
    lens_model: LensModel,
    plan: CapturePlan,
    *,
    split: Split | None = None,
    done: frozenset[str] = frozenset(),
) -> Iterator[pl.DataFrame]:
    """The attributions of a plan's factoids, batch by batch; see :data:`memprobe.records.ATTRIBUTIONS`.

    Args:
        split: of :func:`find_split`; without, contributions are given by block.
        done: ids of factoids to leave out.

    Raises:
        MemprobeError: a final norm that is neither an RMS nor a layer norm.
    """
    items = sorted(
        (item for item in plan.items if item.factoid.id not in done),
        key=lambda item: (len(item.inputs), item.factoid.id),
    )
    border = rope_border(lens_model.model)
    for batch in batches_by_tokens(
        range(len(items)), lambda index: len(items[index].inputs), BATCH_TOKENS, border=border
    ):
        with evaluating(lens_model.model):
            yield _attribute_batch(lens_model, [items[index] for index in batch], plan, split)


def attribute_all(lens_model: LensModel, plan: CapturePlan) -> tuple[pl.DataFrame, dict[str, Any]]:
    """:func:`attribute` with the split that the model allows.

    Returns:
        The table, without factoids whose logits are not finite; and for ``run.json``, which ``parts`` blocks are taken
        into.
    """
    split = find_split(lens_model)
    rows = pl.concat([pl.DataFrame(schema=ATTRIBUTIONS), *attribute(lens_model, plan, split=split)])
    broken = rows.filter(~pl.col("logit").is_finite())["factoid"].unique()
    parts = ["block"] if split is None else ["block", "attn", "mlp"]
    return rows.filter(~pl.col("factoid").is_in(broken.to_list())), {"parts": parts}


def _attribute_batch(
    lens_model: LensModel, batch: Sequence[TokenisedFactoid], plan: CapturePlan, split: Split | None
) -> pl.DataFrame:
    places = [
        (row, site.item, site.column, j)
        for row, item in enumerate(batch)
        for site in plan.sites(item)
        if site.position == POSITION and (j := item.target_indices[site.target]) >= 0
    ]
    device = lens_model.device
    ids = torch.full((len(batch), max(len(item.inputs) for item in batch)), lens_model.pad_id())
    for row, item in enumerate(batch):
        ids[row, : len(item.inputs)] = torch.tensor(item.inputs)
    rows = torch.tensor([row for row, _, _, _ in places], device=device)
    columns = torch.tensor([column for _, _, column, _ in places], device=device)
    streams, parts = _parts(lens_model, ids, rows, columns, split)
    tokens = torch.tensor([_tokens(item, j, plan) for _, item, _, j in places], device=device)
    held = hold(lens_model.lens.readout, streams[-1], tokens.clamp(min=0))
    n_layers = lens_model.n_layers
    written: list[tuple[int, str, Tensor]] = [
        (0, "embedding", torch.einsum("rtd,rd->rt", held.direction, streams[0])),
        (0, "constant", held.constant),
    ]
    for depth in range(1, n_layers + 1):
        added = {"block": streams[depth] - streams[depth - 1]} | {
            name: values[depth - 1] for name, values in parts.items()
        }
        written += [
            (depth, name, torch.einsum("rtd,rd->rt", held.direction, value)) for name, value in added.items()
        ]
    keys = pl.DataFrame(
        {
            "checkpoint": [lens_model.label] * len(places),
            "factoid": [item.factoid.id for _, item, _, _ in places],
            "token": [j for _, _, _, j in places],
            "token_id": tokens[:, 0].tolist(),
        }
    )
    present = tokens[:, 1:] >= 0
    frames = []
    for depth, part, values in written:
        draws = torch.where(present, values[:, 1:], torch.nan)
        frames.append(
            keys.with_columns(
                depth=pl.lit(depth),
                part=pl.lit(part),
                logit=pl.Series(values[:, 0].cpu().numpy()),
                shuffled=pl.Series(draws.nanmean(1).cpu().numpy()).fill_nan(None),
                shuffled_draws=pl.Series(draws.tolist(), dtype=pl.List(pl.Float32)).list.eval(
                    pl.element().fill_nan(None)
                ),
            )
        )
    return pl.concat(frames).select(list(ATTRIBUTIONS)).cast(ATTRIBUTIONS)  # pyrefly: ignore[bad-argument-type]


def _tokens(item: TokenisedFactoid, j: int, plan: CapturePlan) -> list[int]:
    """The answer's token and those of the shuffled answers at the same place; -1 where there is none."""
    others = plan.shuffled[item.factoid.id]
    return [item.answer[j], *(other[j] if other is not None and j < len(other) else -1 for other in others)]


def _parts(
    lens_model: LensModel, ids: Tensor, rows: Tensor, columns: Tensor, split: Split | None
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Streams at depths 0 … n_layers [row, d_model] at some places, and each block's parts, in fp32."""
    streams: dict[int, Tensor] = {}

    def keep(depth: int, stream: Tensor) -> None:
        streams[depth] = stream[rows, columns].float()

    wanted = {} if split is None else {"attn": split.attn, "mlp": split.mlp}
    with (
        residual_hooks(lens_model.blocks, keep),
        _outputs(
            lens_model.blocks, tuple(ids.shape), {source.module for source in wanted.values()}
        ) as outputs,
    ):
        # Outputs are cut to the places at once: a later module may change them in place (Falcon).
        outputs.cut = lambda output: output[rows, columns].float()
        decoder_of(lens_model.model)(input_ids=ids.to(lens_model.device), use_cache=False)
    depths = range(lens_model.n_layers)
    parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for block in depths:
        for name, source in wanted.items():
            attn = parts["attn"][block] if name == "mlp" else None
            parts[name].append(_part(source, outputs.kept[block][source.module], streams[block], attn))
    return [streams[depth] for depth in range(lens_model.n_layers + 1)], parts


def _part(source: Source, output: Tensor, before: Tensor, attn: Tensor | None) -> Tensor:
    part = output * source.factor
    if source.less:
        part = part - before
    if source.less == "attn":
        assert attn is not None
        part = part - attn
    return part


class _Outputs:
    """What modules of each block gave in a forward pass, by block and name, and what they were given."""

    def __init__(self, n_blocks: int):
        self.kept: list[dict[str, Tensor]] = [{} for _ in range(n_blocks)]
        self.given: list[dict[str, Tensor]] = [{} for _ in range(n_blocks)]
        self.cut: Any = lambda output: output.float().clone()


@contextmanager
def _outputs(
    blocks: Sequence[nn.Module], shape: tuple[int, ...], names: set[str] | None = None
) -> Iterator[_Outputs]:
    """Watches modules of every block in a pass over ids of a shape; all direct children where none are named."""
    outputs = _Outputs(len(blocks))
    handles = []

    def watch(block: int, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = first_of(output)
            first = args[0] if args else kwargs.get("hidden_states")
            if isinstance(value, Tensor):
                # OPT lays the positions of all rows in one axis.
                outputs.kept[block][name] = outputs.cut(value.reshape(*shape, value.shape[-1]))
            if names is None and isinstance(first, Tensor):
                outputs.given[block][name] = outputs.cut(first.reshape(*shape, first.shape[-1]))

        return hook

    for number, block in enumerate(blocks):
        children = dict(block.named_children())
        handles += [
            children[name].register_forward_hook(watch(number, name), with_kwargs=True)
            for name in (children if names is None else sorted(names))
        ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def find_split(lens_model: LensModel) -> Split | None:
    """How the blocks can be taken apart, so that attention and MLP add up to what the block adds on a real prompt.

    A part is the output of the module known as the attention (or MLP), or of a norm that was given that output
    (Gemma 2 and 3, OLMo 2), perhaps times the model's residual multiplier (Granite), or less the stream that it was
    added to (BLOOM). ``None`` where nothing adds up at every block.
    """
    ids = torch.tensor([lens_model.tokenizer.encode(CHECK_TEXT)[: lens_model.max_length]])
    streams: dict[int, Tensor] = {}

    def keep(depth: int, stream: Tensor) -> None:
        streams[depth] = stream.float().clone()

    with (
        evaluating(lens_model.model),
        residual_hooks(lens_model.blocks, keep),
        _outputs(lens_model.blocks, tuple(ids.shape)) as outputs,
    ):
        decoder_of(lens_model.model)(input_ids=ids.to(lens_model.device), use_cache=False)
    factor = getattr(lens_model.model.config.get_text_config(), "residual_multiplier", None) or 1.0
    rounding = 1e-5 if lens_model.model.dtype == torch.float32 else 2e-2
    first = lens_model.blocks[0]
    splits = [
        Split(attn, mlp)
        for attn in _sources(first, outputs, "attn", factor)
        for mlp in _sources(first, outputs, "mlp", factor)
    ]
    # Coarse formats let more than one pass, such as what stands before a norm beside what it gives.
    missed = [
        max(
            _missing(split, outputs, block, streams[block], streams[block + 1], rounding)
            for block in range(lens_model.n_layers)
        )
        for split in splits
    ]
    best = min(range(len(splits)), key=missed.__getitem__, default=None)
    return None if best is None or missed[best] > rounding else splits[best]


def _sources(block: nn.Module, outputs: _Outputs, part: str, factor: float) -> list[Source]:
    """Modules of a block that may give a part, as they were seen in the first one."""
    kept, given = outputs.kept[0], outputs.given[0]
    module = next((name for name in MODULE_NAMES[part] if name in kept), None)
    if module is None:  # OPT has no module around its MLP: its last layer gives what is added
        if part == "attn":
            return []
        names = [name for name in kept if isinstance(getattr(block, name), nn.Linear)][-1:]
    else:
        after = [
            name for name in kept if name in given and name != module and _same(given[name], kept[module])
        ]
        names = [module, *after]
    factors = [1.0] if factor == 1.0 else [1.0, factor]
    whole = [Source(name, times) for name in names for times in factors]
    return [*whole, *(Source(name, 1.0, "block" if part == "attn" else "attn") for name in names)]


def _missing(
    split: Split, outputs: _Outputs, block: int, before: Tensor, after: Tensor, rounding: float
) -> float:
    """By how much the parts of a block miss what it adds, of the size of the stream at the position where it is worst;
    infinite where they are no parts of it. Rounding is of each position's own size: the first ones may be a thousand
    times as large as all others."""
    kept = outputs.kept[block]
    if split.attn.module not in kept or split.mlp.module not in kept:
        return math.inf
    attn = _part(split.attn, kept[split.attn.module], before, None)
    mlp = _part(split.mlp, kept[split.mlp.module], before, attn)
    size = torch.stack([part.abs().amax(-1) for part in (before, after, attn, mlp)]).amax(0)

    def apart(one: Tensor, other: Tensor) -> float:
        return float(((one - other).abs().amax(-1) / size.clamp_min(torch.finfo(size.dtype).tiny)).max())

    missed = apart(before + attn + mlp, after)
    if not split.mlp.less:
        return missed
    # An MLP's output less all else adds up whatever the attention's part is: that must then be seen elsewhere.
    middle = before + attn
    seen = any(
        given.shape == middle.shape and apart(given, middle) <= rounding
        for name, given in outputs.given[block].items()
        if name not in (split.attn.module, split.mlp.module)
    )
    return missed if seen else math.inf


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def hold(
    readout: Readout, last: Float[Tensor, "row d_model"], tokens: Int[Tensor, "row token"]
) -> HeldReadout:
    """The readout as an affine map of the stream, with the norm's scale held at ``last``.

    Raises:
        MemprobeError: what stands before the unembedding is not an RMS or layer norm and linear layers, or the
            unembedding is more than its weight and bias.
    """
    first = readout.final[0] if len(readout.final) else None
    norm = None if isinstance(first, nn.Linear) else first
    rest = list(readout.final)[0 if norm is None else 1 :]
    linear = [module for module in rest if isinstance(module, nn.Linear)]
    if len(linear) < len(rest):
        names = ", ".join(type(module).__name__ for module in readout.final)
        raise MemprobeError(f"attributions: cannot be taken apart before the unembedding ({names})")
    weight, bias = readout.unembedding.weight, getattr(readout.unembedding, "bias", None)
    assert isinstance(weight, Tensor)
    pull = weight[tokens] - weight.mean(0)
    constant = torch.zeros(tokens.shape, device=last.device)
    if bias is not None:
        constant = bias[tokens] - bias.mean()
    hidden = readout.norm(last)
    logit = torch.einsum("rtd,rd->rt", pull, hidden) + constant
    finite = torch.isfinite(hidden).all(1).nonzero()[:1, 0]
    if len(finite):
        _check_head(readout, hidden[finite], tokens[finite], logit[finite])
    for module in reversed(linear):
        if module.bias is not None:
            constant = constant + pull @ module.bias
        pull = pull @ module.weight
    if norm is not None:
        scale, gain, centred, shift = _held_norm(norm, last)
        constant = constant + pull @ shift
        pull = pull * gain * scale[:, None, None]
        if centred:
            pull = pull - pull.mean(-1, keepdim=True)
    factor = readout.scale
    return HeldReadout(pull * factor, constant * factor, logit * factor)


def _check_head(
    readout: Readout,
    hidden: Float[Tensor, "row d_model"],
    tokens: Int[Tensor, "row token"],
    logit: Float[Tensor, "row token"],
) -> None:
    """Holds centred logits by the head's weight against those that the head itself gives.

    Raises:
        MemprobeError: the head adds what its weight does not hold, such as a LoRA adapter that is not merged.
    """
    head = readout.unembedding
    weight = head.weight
    assert isinstance(weight, Tensor)
    given = head(hidden.to(weight.dtype)).float()
    own = (given - given.mean(-1, keepdim=True)).gather(1, tokens)
    if (own - logit).abs().max() > tolerance(given, weight.dtype):
        raise MemprobeError(
            f"attributions: the output head ({type(head).__name__}) adds to the logits what its weight does not hold; "
            "merge its adapter first"
        )


def _held_norm(norm: nn.Module, last: Float[Tensor, "row d_model"]) -> tuple[Tensor, Tensor, bool, Tensor]:
    """A norm as ``scale · gain ⊙ (x, or x less its mean) + shift``: learnt from its outputs, then checked.

    Returns:
        scale [row] at ``last``; gain [d_model], up to a factor that the scale makes good; whether the mean is taken
        off; shift [d_model].
    """
    width = last.shape[1]
    zero = torch.zeros(1, width, device=last.device)
    shift = norm(zero)[0]
    signs = torch.ones(1, width, device=last.device)
    signs[:, ::2] = -1
    centred = bool(
        (norm(torch.ones_like(signs))[0] - shift).abs().max() < 1e-3 * (norm(signs)[0] - shift).abs().max()
    )

    def less_mean(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if centred else x

    gain = (norm(signs)[0] - shift) / less_mean(signs)[0]
    shape = gain * less_mean(last)
    given = norm(last) - shift
    scale = (given * shape).sum(1) / shape.square().sum(1)
    known = torch.isfinite(last).all(1)  # a row that is not tells nothing of the norm
    if known.any():
        off = (given - scale[:, None] * shape)[known].abs().max()
        if not torch.isfinite(scale[known]).all() or off > 1e-3 * given[known].abs().max():
            raise MemprobeError(f"attributions: {type(norm).__name__} is neither an RMS nor a layer norm")
    return scale, gain, centred, shift
