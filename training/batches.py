"""Examples as the tensors of one micro-batch: rows side by side, or packed into one sequence without padding.

A packed micro-batch holds what its rows have in common once::

    row 1   <user> The value of key 3k is? <assistant> p0        <user> The value of key ─┬─ 3k is? <assistant> p0
    row 2   <user> The value of key 7d is? <assistant> x9   ─>                            └─ 7d is? <assistant> x9

Each token attends to those before it in its own row alone, and keeps its position there, so that what a causal model
computes of a row is what it computes of the row by itself, and the gradient through a shared token is the sum of those
that its rows would have given. Of short rows in one template a third to a half of all tokens are padding or prefix.

Either way a micro-batch is a dict of tensors::

    input_ids       int64 [row, position]; packed: [1, token]
    position_ids    int64 [1, token]               packed only
    attention_mask  [1, 1, token, token]           packed only: bool, or what is added to attention scores;
                    or int64 [1, 1, row, position]: the rows' tokens, see :mod:`training.row_attention`
    logits_to_keep  bool, of the shape of input_ids: positions whose next token carries loss
    labels          int64 [kept]  those next tokens, row after row (shift_labels: the same, under the name that
                                  Hugging Face's loss does not shift again)
    kept_row        int64 [kept]  the index of their row
    own             bool [row]

Padding needs no attention mask: it stands at the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from training.mixing import IGNORED, Example
from training.row_attention import may_take_paths, understand_paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    MicroBatch = dict[str, Tensor]

_TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}  # in standard deviations of logits
_AS_COSTLY_AS_MOVING = 80
"""So many tokens in sight of a token cost as much, in attention, as putting it beside its row's others and back: fitted
to the times of packs of 2 to 64 rows of 20 to 200 tokens (``python -m tests.benchmarks.row_attention``)."""
_HELD: WeakKeyDictionary[nn.Module, dict[tuple[str, str, torch.dtype], int]] = WeakKeyDictionary()
"""Of each model, for each way of packing, attention and precision: the tokens of the longest row for which it held."""
_INPUTS = ("input_ids", "position_ids", "attention_mask", "logits_to_keep")


def padded(rows: Sequence[Example]) -> MicroBatch:
    """Rows side by side, filled at the right. Without rows: one position that carries no loss."""
    width = max((len(row.ids) for row in rows), default=1)
    ids = torch.zeros(max(len(rows), 1), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.labels)] = torch.tensor(row.labels)
    keep = labels != IGNORED
    return {"input_ids": ids, "logits_to_keep": keep, **_loss_of(rows, labels[keep], keep.nonzero()[:, 0])}


def packed(
    rows: Sequence[Example], *, additive: torch.dtype | None = None, by_rows: bool = False
) -> MicroBatch:
    """Rows as one sequence; only what stands before a row's first loss is shared.

    Args:
        additive: the mask as scores of this type, 0 or the lowest number; default: as booleans.
        by_rows: the mask as each row's tokens, for :mod:`training.row_attention`.
    """
    ids: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    keep: list[bool] = []
    labels: list[int] = []
    kept_row: list[int] = []
    paths: list[list[int]] = []
    children: dict[tuple[int, int], int] = {}
    for index, row in enumerate(rows):
        first = _first_loss(row)
        node = -1
        path: list[int] = []
        for position, (token, label) in enumerate(zip(row.ids, row.labels, strict=True)):
            shared = children.get((node, token)) if position < first else None
            if shared is None:
                if position < first:
                    children[node, token] = len(ids)
                parents.append(node)
                node = len(ids)
                ids.append(token)
                positions.append(position)
                keep.append(label != IGNORED)
                if label != IGNORED:
                    labels.append(label)
                    kept_row.append(index)
            else:
                node = shared
            path.append(node)
        paths.append(path)
    if not ids:  # one position that carries no loss
        ids, positions, parents, keep, paths = [0], [0], [-1], [False], [[0]]
    mask = _side_by_side(paths) if by_rows else _seen(parents, additive)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": mask[None, None],
        "logits_to_keep": torch.tensor([keep]),
        **_loss_of(rows, torch.tensor(labels, dtype=torch.long), torch.tensor(kept_row, dtype=torch.long)),
    }


def _side_by_side(paths: Sequence[Sequence[int]]) -> Tensor:
    """Paths of different lengths as one tensor, [row, position]; -1 behind a row's end."""
    width = max(map(len, paths))
    return torch.tensor([[*path, *[-1] * (width - len(path))] for path in paths])


def _seen(parents: Sequence[int], additive: torch.dtype | None) -> Tensor:
    """Which tokens each one sees, [token, token]; bool, or as scores of a type."""
    rows_seen = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            rows_seen[node] |= rows_seen[parent]
    seen = torch.from_numpy(rows_seen)
    if additive is None:
        return seen
    return torch.zeros(seen.shape, dtype=additive).masked_fill_(~seen, torch.finfo(additive).min)


def packed_tokens(rows: Sequence[Example]) -> int:
    """Tokens of :func:`packed`."""
    prefixes = {row.ids[:end] for row in rows for end in range(1, _first_loss(row) + 1)}
    return len(prefixes) + sum(len(row.ids) - _first_loss(row) for row in rows)


def collator(
    model: PreTrainedModel,
    rows: Sequence[Example],
    *,
    packing: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Callable[[Sequence[Example]], MicroBatch]:
    """How rows of one model become micro-batches: packed where that is less work, else padded.

    A model is packed for if it says so itself: what it computes of packed rows is compared with what it computes of
    padded ones, on the longest row and two more, once for rows of that length and shorter ones. There are two ways for
    attention to keep packed rows apart. A mask leaves the square of all tokens to be scored; row by row
    (:mod:`training.row_attention`), on a CPU where the model attends by torch's ``sdpa``, it costs what it costs of
    padded rows. Each micro-batch goes the way that is least work.

    Args:
        rows: that will be trained on.
        say: told where a model cannot be packed for.
    """
    if not packing or not rows:
        return padded
    masked = partial(packed, additive=None if _attention(model) == "sdpa" else next(model.parameters()).dtype)
    some = [max(rows, key=lambda row: len(row.ids)), rows[0], rows[-1]]
    ways: dict[str, Callable[[Sequence[Example]], MicroBatch]] = {}
    if _packs_alike(model, "masked", masked, some):
        ways["masked"] = masked
    if may_take_paths(model):
        understand_paths()
        by_rows = partial(packed, by_rows=True)
        if _packs_alike(model, "by rows", by_rows, some):
            ways["by rows"] = by_rows
    if not ways:
        say(f"{type(model).__name__} computes something else from packed rows, so they are padded")
        return padded
    ways["padded"] = padded
    size = _tokens_as_costly_as_attention(model)

    def collate(some: Sequence[Example]) -> MicroBatch:
        width = max((len(row.ids) for row in some), default=1)
        tokens, places = packed_tokens(some), len(some) * width
        work = {
            "by rows": tokens * size + places * (width + _AS_COSTLY_AS_MOVING),
            "masked": tokens * (size + tokens),
            "padded": places * (size + width),
        }
        return ways[min(ways, key=lambda way: work[way])](some)

    return collate


def rows_exact(logits: Tensor, labels: Tensor, kept_row: Tensor, rows: int) -> Tensor:
    """For each of so many rows [row] whether the argmax is right at every position that carries loss.

    Args:
        logits: [kept, vocab]. labels, kept_row: [kept], the next token of each position and its row's index; a label
            that is ignored fills a batch up and belongs to no row.
    """
    return all_right(logits.argmax(-1) == labels, labels, kept_row, rows)


def all_right(right: Tensor, labels: Tensor, kept_row: Tensor, rows: int) -> Tensor:
    """:func:`rows_exact` of what is known of each position.

    Args:
        right: [kept] bool, whether its argmax is its label.
    """
    counts = labels != IGNORED
    wrong = counts & ~right
    per_row = torch.zeros(2, rows, device=right.device)
    per_row.index_add_(1, kept_row, torch.stack([counts, wrong]).to(per_row.dtype))
    return (per_row[0] > 0) & (per_row[1] == 0)


def own_rows_exact(logits: Tensor, labels: Tensor, kept_row: Tensor, own: Tensor) -> Tensor:
    """[2]: own rows that are exact (see :func:`rows_exact`), and all own rows."""
    return own_rows_right(logits.argmax(-1) == labels, labels, kept_row, own)


def own_rows_right(right: Tensor, labels: Tensor, kept_row: Tensor, own: Tensor) -> Tensor:
    """:func:`own_rows_exact` of what is known of each position, see :func:`all_right`."""
    exact = all_right(right, labels, kept_row, len(own)) & own
    return torch.stack([exact.sum(), own.sum()])


def own_nats(nats: Tensor, labels: Tensor, kept_row: Tensor, own: Tensor) -> Tensor:
    """[2]: the summed loss of own rows' tokens, and of how many.

    Args:
        nats: [kept], the loss of each position.
    """
    mine = own[kept_row] & (labels != IGNORED)
    return torch.stack([torch.where(mine, nats, 0.0).sum(), mine.sum().to(nats.dtype)])


def model_inputs(batch: Mapping[str, Tensor]) -> MicroBatch:
    """What of a micro-batch the model takes."""
    return {key: batch[key] for key in _INPUTS if key in batch}


def micro_batches(
    examples: Sequence[Example],
    size: int,
    collate: Callable[[Sequence[Example]], MicroBatch] = padded,
) -> list[MicroBatch]:
    """Examples as micro-batches of so many rows, for measurements: longest first."""
    rows = sorted(examples, key=lambda example: -len(example.ids))
    return [collate(rows[start : start + size]) for start in range(0, len(rows), size)]


def _loss_of(rows: Sequence[Example], labels: Tensor, kept_row: Tensor) -> MicroBatch:
    own = torch.tensor([row.own for row in rows] or [False])
    return {"labels": labels, "shift_labels": labels, "kept_row": kept_row, "own": own}


def _first_loss(row: Example) -> int:
    """The first position whose next token carries loss."""
    return next((place for place, label in enumerate(row.labels) if label != IGNORED), len(row.ids))


def _attention(model: PreTrainedModel) -> str:
    return str(getattr(model.config.get_text_config(), "_attn_implementation", ""))


def _packs_alike(
    model: PreTrainedModel,
    way: str,
    collate: Callable[[Sequence[Example]], MicroBatch],
    rows: Sequence[Example],
) -> bool:
    """Whether packed rows are to a model what padded ones are.

    A way of packing that holds for a length holds for shorter rows. One that fails may do so for the length alone (a
    window of attention), so that it is tried again.
    """
    longest = max(len(row.ids) for row in rows)
    held = _HELD.setdefault(model, {})
    key = (way, _attention(model), next(model.parameters()).dtype)
    if held.get(key, 0) < longest and _same_logits(model, padded(rows), collate(rows)):
        held[key] = longest
    return held.get(key, 0) >= longest


def _same_logits(model: PreTrainedModel, first: MicroBatch, second: MicroBatch) -> bool:
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            read = [
                model(**{key: value.to(device) for key, value in model_inputs(one).items()}, use_cache=False)
                for one in (first, second)
            ]
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
    ):  # it takes no positions, or no mask of this shape
        return False
    finally:
        model.train(training)
    one, other = (result.logits.float() for result in read)
    if one.shape != other.shape:
        return False
    allowed = _TOLERANCE.get(next(model.parameters()).dtype, 0.1) * one.std()
    return bool((one - other).abs().max() <= allowed)


def _tokens_as_costly_as_attention(model: Any) -> float:
    """So many tokens in sight of a token cost as much, in attention, as all other products for that token."""
    config = model.config.get_text_config()
    outside = {
        id(layer.weight)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None
    }
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in outside)
    return weights / (2 * config.num_hidden_layers * config.hidden_size)
