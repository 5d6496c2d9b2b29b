"""Greedy generation in batches, and where an answer ends.

A template that ends in a token stops there. Plain text has no such token: an answer ends with the line or
the sentence, and an end token ends it too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memprobe.models import LensModel

_CPU_ROWS = 32  # a processor gains nothing from more, and a batch goes on until its last row ends
_SHARED = 16  # tokens: prompts that begin with so many alike (solved examples) have them read once
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def generate(
    lens_model: LensModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end: int | None = None,
    batch_tokens: int = 4096,
) -> list[str]:
    """Greedy continuations of token prompts, in the order given; arguments as in :func:`generate_batches`."""
    texts = [""] * len(prompts)
    for indices, batch in generate_batches(
        lens_model, prompts, max_new_tokens=max_new_tokens, end=end, batch_tokens=batch_tokens
    ):
        for index, text in zip(indices, batch, strict=True):
            texts[index] = text
    return texts


def generate_batches(
    lens_model: LensModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end: int | None = None,
    batch_tokens: int = 4096,
) -> Iterator[tuple[list[int], list[str]]]:
    """Greedy continuations as they get ready, batch by batch, shortest prompts first.

    Args:
        prompts: token ids, each at least one.
        max_new_tokens: at most so many new tokens for each, or one number for each.
        end: id of the token that ends an answer; ``None`` stops at the end of the line instead.
        batch_tokens: padded tokens of one batch; on a CPU it has 32 prompts at most.

    Yields:
        Indices into ``prompts``, and their texts without special tokens. Without ``end`` a text may run on past
        the sentence: see :func:`cut`.
    """
    stops = stop_ids(lens_model.tokenizer, end)
    run: Any = lens_model.model.generate
    shared = common_prefix(prompts)
    prefix = _prefix_cache(lens_model, shared) if len(shared) >= _SHARED and len(prompts) > 1 else None
    start = len(shared) if prefix is not None else 0
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if (context := lens_model.max_length) is not None:  # a prompt near the context's end has less to say
        limits = [
            min(limit, context + 1 - len(prompt)) for limit, prompt in zip(limits, prompts, strict=True)
        ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    most = _CPU_ROWS if lens_model.device.type == "cpu" else None
    batches = batches_by_tokens(
        order, lambda index: len(prompts[index]) + limits[index], batch_tokens, most=most
    )
    # A batch runs to its largest limit, for which its longest prompt may have no room.
    batches = [
        part
        for batch in batches
        for part in (
            [[index] for index in batch]
            if context is not None
            and len(prompts[batch[-1]]) + max(limits[index] for index in batch) > context + 1
            else [batch]
        )
    ]
    for batch in batches:
        ids, mask = left_padded([prompts[index][start:] for index in batch], lens_model.pad_id())
        cache: dict[str, Any] = {}
        if prefix is not None:  # the filling stands between the prefix and the rest, and the mask hides it
            ids = torch.cat([torch.tensor([shared] * len(batch)), ids], dim=1)
            mask = torch.cat([torch.ones(len(batch), start, dtype=mask.dtype), mask], dim=1)
            cache["past_key_values"] = copy.deepcopy(prefix)
            cache["past_key_values"].batch_repeat_interleave(len(batch))
        with torch.inference_mode():
            output = run(
                **cache,
                input_ids=ids.to(lens_model.device),
                attention_mask=mask.to(lens_model.device),
                max_new_tokens=max(limits[index] for index in batch),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                eos_token_id=sorted(stops) or None,
                pad_token_id=lens_model.pad_id(),
            )
        new_ids = zip(batch, output[:, ids.shape[1] :].tolist(), strict=True)
        # Cut to each prompt's own limit: what it says must not depend on its neighbours.
        yield batch, [_text(new[: limits[index]], stops, end, lens_model.tokenizer) for index, new in new_ids]


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The longest prefix that all prompts share and that leaves each at least one token of its own."""
    if not prompts:
        return []
    rows = [tuple(prompt) for prompt in prompts]
    first, last = min(rows), max(rows)  # in lexical order, what these two share all share
    limit = min(map(len, rows)) - 1
    pairs = zip(first[:limit], last[:limit], strict=False)
    return list(first[: next((place for place, (a, b) in enumerate(pairs) if a != b), limit)])


def _prefix_cache(lens_model: LensModel, shared: Sequence[int]) -> Any:
    """Keys and values of a prefix, computed once; ``None`` for models whose cache is of another kind.

    A sliding window counts the filling that follows the prefix, so such caches are not shared.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    with torch.inference_mode():
        ids = torch.tensor([list(shared)], device=lens_model.device)
        cache = lens_model.model(input_ids=ids, use_cache=True).past_key_values
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if plain else None


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids of different lengths as ids and attention mask, both [row, position], filled at the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def sample(
    lens_model: LensModel, start: Sequence[int], n: int, *, max_new_tokens: int, seed: int
) -> list[str]:
    """``n`` continuations of one prompt at temperature 1 from the whole vocabulary, as one batch.

    The same seed, n and device give the same texts; the global random state is left as it was.
    """
    ids = torch.tensor([list(start)] * n, device=lens_model.device)
    eos = lens_model.tokenizer.eos_token_id
    run: Any = lens_model.model.generate
    devices = [lens_model.device] if lens_model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        output = run(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=True,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            repetition_penalty=1.0,
            eos_token_id=eos,
            pad_token_id=lens_model.pad_id(),
        )
    return [
        _text(new, frozenset() if eos is None else frozenset([eos]), eos, lens_model.tokenizer)
        for new in output[:, ids.shape[1] :].tolist()
    ]


def _text(
    new: Sequence[int], stops: frozenset[int], end: int | None, tokenizer: PreTrainedTokenizerBase
) -> str:
    """New tokens up to the first stop, as text; without an end token, up to the end of the line."""
    stop = next((position for position, token in enumerate(new) if token in stops), len(new))
    kept = new[:stop] if end is not None else new[: stop + 1]  # a newline token may carry text before it
    text = str(tokenizer.decode(list(kept), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return text if end is not None else text.split("\n")[0]


def cut(text: str, answer: str) -> str:
    """A plain continuation up to the end of its sentence, stripped.

    Full stops inside the expected answer ("St. Lucia", "U.S. dollar") do not end it.
    """
    text = text.strip()
    start = len(answer) if text.lower().startswith(answer.lower()) else 0
    match = _SENTENCE_END.search(text, start)
    return text[: match.start()] if match else text


def stop_ids(tokenizer: PreTrainedTokenizerBase, end: int | None) -> frozenset[int]:
    """Ids at which generation stops: the end token, or else every token with a line break, and EOS always."""
    eos = frozenset() if tokenizer.eos_token_id is None else frozenset([int(tokenizer.eos_token_id)])
    return eos | (frozenset([end]) if end is not None else _newline_ids(tokenizer))


@lru_cache(maxsize=8)
def _newline_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    return frozenset(index for index, text in enumerate(texts) if "\n" in text and text.strip("\n \t") == "")


def batches_by_tokens(
    order: Sequence[int],
    length: Callable[[int], int],
    batch_tokens: int,
    batch_size: int | None = None,
    most: int | None = None,
) -> list[list[int]]:
    """Consecutive batches of at most ``batch_tokens`` padded tokens (at least one item each).

    Args:
        order: indices, sorted by length so that padding stays small.
        length: tokens of an index.
        batch_size: a fixed number of items instead.
        most: at most so many items, however short.
    """
    batches: list[list[int]] = []
    width = 0
    for index in order:
        width = max(width, length(index))
        full = not batches or (
            len(batches[-1]) >= batch_size
            if batch_size is not None
            else width * (len(batches[-1]) + 1) > batch_tokens or len(batches[-1]) == most
        )
        if full:
            batches.append([])
            width = length(index)
        batches[-1].append(index)
    return batches
