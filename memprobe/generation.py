"""Greedy generation in batches, and where an answer ends.

A template that ends in a token stops there. Plain text has no such token: an answer ends with the line or
the sentence, and an end token ends it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memprobe.models import LensModel

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def generate(
    lens_model: LensModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end: int | None = None,
    batch_tokens: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy continuations of token prompts, in the order given.

    Args:
        prompts: token ids, each at least one.
        max_new_tokens: at most so many new tokens for each.
        end: id of the token that ends an answer; ``None`` stops at the end of the line instead.
        batch_tokens: padded tokens of one batch.
        progress: called with the number of prompts just finished.

    Returns:
        Texts without special tokens. Without ``end`` a text may run on past the sentence: see :func:`cut`.
    """
    texts = [""] * len(prompts)
    tokenizer = lens_model.tokenizer
    stops = stop_ids(tokenizer, end)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for batch in batches_by_tokens(order, lambda index: len(prompts[index]) + max_new_tokens, batch_tokens):
        width = max(len(prompts[index]) for index in batch)
        ids = torch.full((len(batch), width), lens_model.pad_id())
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        with torch.inference_mode():
            output = lens_model.model.generate(
                input_ids=ids.to(lens_model.device),
                attention_mask=mask.to(lens_model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                eos_token_id=sorted(stops) or None,
                pad_token_id=lens_model.pad_id(),
            )
        for index, new in zip(batch, output[:, width:].tolist(), strict=True):
            kept = next((new[:position] for position, token in enumerate(new) if token in stops), new)
            last = (
                new[len(kept) : len(kept) + 1] if end is None else []
            )  # a newline token may carry text before it
            text = str(
                tokenizer.decode(kept + last, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )
            texts[index] = text if end is not None else text.split("\n")[0]
        if progress is not None:
            progress(len(batch))
    return texts


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
    order: Sequence[int], length: Callable[[int], int], batch_tokens: int, batch_size: int | None = None
) -> list[list[int]]:
    """Consecutive batches of at most ``batch_tokens`` padded tokens (at least one item each).

    Args:
        order: indices, sorted by length so that padding stays small.
        length: tokens of an index.
        batch_size: a fixed number of items instead.
    """
    batches: list[list[int]] = []
    width = 0
    for index in order:
        width = max(width, length(index))
        full = not batches or (
            len(batches[-1]) >= batch_size
            if batch_size is not None
            else width * (len(batches[-1]) + 1) > batch_tokens
        )
        if full:
            batches.append([])
            width = length(index)
        batches[-1].append(index)
    return batches
