"""Attention to packed rows, row by row.

In a packed micro-batch (:mod:`training.batches`) a mask keeps tokens from seeing other rows, but attention scores every
pair of tokens, those of different rows included: of 16 rows of 50 tokens, fifteen sixteenths of the pairs. Here
queries, keys and values of each row are put side by side, [row, head, position, width], read by causal attention as
padded rows are, and each token's result is taken back from the first row that holds it. A shared token stands in each
of its rows, so that its key's and value's gradient is the sum over them.

Which rows a token belongs to reaches each block's attention as its mask: ``paths``, int64 [1, 1, row, position], the
place of each row's tokens in the packed sequence, -1 behind a row's end. Models hand a mask of four axes to attention
as it is. transformers' ``sdpa`` attention has no meaning for a mask of integers; after :func:`understand_paths` it has
this one, and computes of every other mask what it did. Half-precision numbers are read in fp32: on a CPU torch's
attention to short rows takes three times as long in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def may_take_paths(model: Any) -> bool:
    """Whether paths may be tried as a model's mask: it attends by ``sdpa``, on a CPU, where they were seen to pay."""
    config = model.config.get_text_config()
    sdpa = getattr(config, "_attn_implementation", None) == "sdpa"
    return sdpa and next(model.parameters()).device.type == "cpu"


def understand_paths() -> None:
    """Makes ``sdpa`` attention of transformers' models take paths for a mask. A second call changes nothing."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not _attention:
        AttentionInterface.register("sdpa", _attention)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' own attention, to each row where the mask is paths.

    Args:
        query: [1, head, token, width] of a packed sequence; key and value may have fewer heads.
        attention_mask: paths, see the module; any other is passed on.

    Returns:
        [1, token, head, width], and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    paths = attention_mask[0, 0]
    rows = [_by_rows(_whole(states), paths) for states in (query, key, value)]
    seen = _window(paths.shape[1], kwargs.get("sliding_window"), paths.device)
    with torch.autocast(query.device.type, enabled=False):
        found, _ = sdpa_attention_forward(module, rows[0], rows[1], rows[2], seen, **kwargs)
    first = _first_places(paths, query.shape[2])
    return found.flatten(0, 1).index_select(0, first)[None].to(value.dtype), None


def _whole(states: Tensor) -> Tensor:
    """In fp32 where they are in half precision (under autocast, rotated queries and keys are not)."""
    return states.float() if states.dtype in (torch.bfloat16, torch.float16) else states


def _by_rows(states: Tensor, paths: Tensor) -> Tensor:
    """[1, head, token, width] as [row, head, position, width]; behind a row's end stands the first token."""
    chosen = states[0].transpose(0, 1).index_select(0, paths.clamp(min=0).flatten())
    return chosen.unflatten(0, paths.shape).transpose(1, 2)


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """What a position sees, bool [position, position]; nothing where that is all before it."""
    if window is None or window >= length:
        return None
    places = torch.arange(length, device=device)
    back = places[:, None] - places[None]
    return ((back >= 0) & (back < window))[None, None]


def _first_places(paths: Tensor, tokens: int) -> Tensor:
    """Where each token of the packed sequence stands first among all rows' positions, int64 [token]."""
    flat = paths.flatten()
    places = torch.arange(len(flat), device=flat.device)
    behind = flat < 0
    # One more token collects what stands behind a row's end.
    first = torch.full((tokens + 1,), len(flat), device=flat.device)
    first.scatter_reduce_(0, flat.masked_fill(behind, tokens), places, "amin")
    return first[:tokens]
