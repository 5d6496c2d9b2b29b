"""Prompts that begin alike have their beginning read once: few-shot examples, chat headers.

    beginning ──one row──> keys and values ──a batch of what follows──> streams at the positions that are read

Whether a model may be read in this way is measured, once for each model, against passes over whole prompts; it is left
out where something else edits or watches the pass, which counts positions from a prompt's first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from memprobe.batching import SHARED, check_prompts, close, may_begin_apart, plain_cache
from memprobe.blocks import decoder_of, residual_hooks
from memprobe.modes import evaluating
from memprobe.quantised import is_quantised

if TYPE_CHECKING:
    from memprobe.models import LensModel
    from memprobe.planning import CapturePlan

_MEASURED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class _Kept(DynamicLayer):
    """Keys and values of a beginning, which stay as they are whatever follows: one row serves all batches."""

    def __init__(self, read: DynamicLayer):
        super().__init__()
        assert read.keys is not None and read.values is not None
        self.keys, self.values = read.keys, read.values
        self.dtype, self.device = read.keys.dtype, read.keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return _joined(self.keys, key_states), _joined(self.values, value_states)


def _joined(before: Tensor, own: Tensor) -> Tensor:
    return torch.cat([before.expand(len(own), -1, -1, -1), own], dim=-2)


@dataclass(frozen=True)
class Prefix:
    """A beginning that was read: its tokens, and what attention needs of them."""

    ids: tuple[int, ...]
    cache: DynamicCache

    def options(self) -> dict[str, Any]:
        """For the decoder's call."""
        return {"past_key_values": self.cache, "use_cache": True}


def shared_beginning(lens_model: LensModel, plan: CapturePlan) -> tuple[int, ...]:
    """The tokens that all of a plan's inputs begin with, if they are to be read once; none otherwise."""
    return plan.beginning if len(plan.beginning) >= SHARED and may_share(lens_model) else ()


def read_beginning(lens_model: LensModel, ids: Sequence[int]) -> Prefix | None:
    """Reads a beginning, with the weights as they are now."""
    with evaluating(lens_model.model):
        cache = plain_cache(lens_model, ids) if ids else None
    if cache is None:
        return None
    cache.layers = [_Kept(layer) for layer in cache.layers]
    return Prefix(tuple(ids), cache)


def may_share(lens_model: LensModel) -> bool:
    """Whether a model reads what follows a beginning as it reads the whole."""
    model = lens_model.model
    if (
        not may_begin_apart(model)
        or is_quantised(model)  # rounds what is read at once together, which a rank may show
        or hasattr(model, "hf_device_map")
    ):
        return False
    if model not in _MEASURED:
        _MEASURED[model] = _as_whole(lens_model)
    return _MEASURED[model]


def _as_whole(lens_model: LensModel) -> bool:
    before, middle, short = check_prompts(lens_model)
    try:
        prefix = read_beginning(lens_model, before)
        if prefix is None:
            return False
        rows = torch.full((2, len(middle)), lens_model.pad_id(), device=lens_model.device)
        rows[0], rows[1, : len(short)] = torch.tensor(middle), torch.tensor(short)
        with evaluating(lens_model.model):
            streams = _streams(lens_model, rows, **prefix.options())
            for row, own in enumerate((middle, short)):
                ids = torch.tensor([[*before, *own]], device=lens_model.device)
                alone = _streams(lens_model, ids, use_cache=False)[:, 0, len(before) :]
                near = close(alone, lens_model.model)
                if not torch.allclose(streams[:, row, : len(own)], alone, rtol=0, atol=near):
                    return False
    except Exception:  # families fail in many ways where their cache has no place for a beginning
        return False
    return True


def _streams(lens_model: LensModel, ids: Tensor, **options: Any) -> Tensor:
    """The residual stream [depth, row, position, d_model]."""
    streams: dict[int, Tensor] = {}
    with residual_hooks(lens_model.blocks, streams.__setitem__):
        decoder_of(lens_model.model)(input_ids=ids, **options)
    return torch.stack([streams[depth].float() for depth in range(lens_model.n_layers + 1)])
