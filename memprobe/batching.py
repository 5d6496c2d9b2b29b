"""Which prompts may share a forward pass, so that nothing a model says depends on its neighbours.

Most families may be filled up on the left, and prompts that begin alike may have their beginning read once. Some
may not: local attention counts the filling, ALiBi and state-space caches have no place for it, longrope changes
every position once one prompt is long. So it is measured, once for each model: a few tokens are generated together
and held against plain forward passes over each prompt alone (:func:`sharing`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from memprobe.models import CHECK_TEXT
from memprobe.quantised import is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memprobe.models import LensModel

SHARED = 16  # tokens: prompts that begin with so many alike (solved examples) have them read once
_STEPS = 4  # tokens generated to find out what may be shared


class Sharing(IntEnum):
    """How prompts may be generated together, from the least to the most."""

    NO_CACHE = 0  # one at a time, every token from a whole forward pass
    ALONE = 1  # one at a time
    EQUAL = 2  # prompts of one length, without filling
    FILLED = 3  # any prompts, filled up on the left


def tokens_at_once(device: torch.device, on_cpu: int, elsewhere: int) -> int:
    """Padded tokens of one batch: a CPU is busy with few, an accelerator takes as long for few as for many."""
    return on_cpu if device.type == "cpu" else elsewhere


def batches_by_tokens(
    order: Sequence[int],
    length: Callable[[int], int],
    batch_tokens: int,
    batch_size: int | None = None,
    most: int | None = None,
    *,
    border: int | None,
) -> list[list[int]]:
    """Consecutive batches of at most ``batch_tokens`` padded tokens (at least one item each).

    Args:
        order: indices, sorted by length so that padding stays small.
        length: tokens of an index.
        batch_size: a fixed number of items instead.
        most: at most so many items, however short.
        border: items of more tokens come alone; see :func:`rope_border`.
    """
    batches: list[list[int]] = []
    width, open_ = 0, False
    for index in order:
        own = length(index)
        alone = border is not None and own > border
        width = max(width, own)
        full = (
            not open_
            or alone
            or (
                len(batches[-1]) >= batch_size
                if batch_size is not None
                else width * (len(batches[-1]) + 1) > batch_tokens or len(batches[-1]) == most
            )
        )
        if full:
            batches.append([])
            width = own
        batches[-1].append(index)
        open_ = not alone
    return batches


def rope_border(*models: PreTrainedModel) -> int | None:
    """Tokens up to which models' position embeddings are the same for every text; ``None``: for all.

    Under longrope and dynamic NTK scaling one text beyond the original context changes the frequencies of every
    position of its forward pass, so it must not share one.
    """
    layers = []
    for config in (model.config.get_text_config() for model in models):
        parameters = getattr(config, "rope_parameters", None) or {}
        inner = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
        layers += [(config, layer) for layer in inner]
    borders = [
        original
        for config, layer in layers
        if layer.get("rope_type") in ("longrope", "dynamic")
        and isinstance(
            original := layer.get(
                "original_max_position_embeddings", getattr(config, "max_position_embeddings", None)
            ),
            int,
        )
    ]
    return min(borders, default=None)


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids of different lengths as ids and attention mask, both [row, position], filled at the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The longest prefix that all prompts share and that leaves each at least one token of its own."""
    if not prompts:
        return []
    rows = [tuple(prompt) for prompt in prompts]
    first, last = min(rows), max(rows)  # in lexical order, what these two share all share
    limit = min(map(len, rows)) - 1
    pairs = zip(first[:limit], last[:limit], strict=False)
    return list(first[: next((place for place, (a, b) in enumerate(pairs) if a != b), limit)])


@contextlib.contextmanager
def own_settings(model: Any) -> Iterator[None]:
    """The checkpoint's generation settings out of the way: penalties, suppressed tokens, beams, stop strings.

    ``generate`` fills in whatever a call leaves open from ``model.generation_config``.
    """
    from transformers import GenerationConfig

    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def run_greedy(
    lens_model: LensModel,
    rows: Sequence[Sequence[int]],
    n: int,
    stops: Sequence[int],
    *,
    prefix: tuple[Sequence[int], Any] | None = None,
    logits: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Greedy continuations of one batch.

    Args:
        rows: token ids after the prefix.
        n: new tokens at most.
        stops: ids that end a row.
        prefix: its ids and :func:`prefix_cache`.
        logits: also give those of every step.

    Returns:
        New ids [row, step], and the logits [row, vocab] of each step where asked for.
    """
    pad = lens_model.pad_id()
    ids, mask = left_padded(rows, pad)
    options: dict[str, Any] = {}
    if prefix is not None:  # the filling stands between the prefix and the rest, and the mask hides it
        shared, cache = prefix
        ids = torch.cat([torch.tensor([list(shared)] * len(rows)), ids], dim=1)
        mask = torch.cat([torch.ones(len(rows), len(shared), dtype=mask.dtype), mask], dim=1)
        options["past_key_values"] = copy.deepcopy(cache)
        options["past_key_values"].batch_repeat_interleave(len(rows))
    run: Any = lens_model.model.generate
    with torch.inference_mode(), own_settings(lens_model.model):
        output = run(
            **options,
            input_ids=ids.to(lens_model.device),
            attention_mask=mask.to(lens_model.device),
            max_new_tokens=n,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(stops) or None,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_logits=logits,
        )
    return output.sequences[:, ids.shape[1] :], list(output.logits or ()) if logits else []


def run_without_cache(
    lens_model: LensModel, prompt: Sequence[int], n: int, stops: Sequence[int]
) -> list[int]:
    """The greedy continuation of one prompt, every token from a whole forward pass."""
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + n and (len(ids) == len(prompt) or ids[-1] not in stops):
            whole = torch.tensor([ids], device=lens_model.device)
            ids.append(int(lens_model.model(input_ids=whole, use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


# --------------------------------------------------------------------------------------- what was measured

_MEASURED: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()
_PREFIXED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def sharing(lens_model: LensModel) -> Sharing:
    """The most that prompts may share without a change of what is said, measured once for each model."""
    model = lens_model.model
    if model not in _MEASURED:
        long, middle, short = check_prompts(lens_model)
        trials: list[tuple[Sharing, list[list[list[int]]]]] = [
            (Sharing.FILLED, [[long, middle, short]]),
            (Sharing.EQUAL, [[long, [*long[:1], *long[:0:-1]]]]),
            (Sharing.ALONE, [[long], [short]]),
        ]
        passed = (
            level for level, batches in trials if all(_as_alone(lens_model, batch) for batch in batches)
        )
        _MEASURED[model] = next(passed, Sharing.NO_CACHE)
    return _MEASURED[model]


def prefix_cache(lens_model: LensModel, shared: Sequence[int]) -> Any:
    """Keys and values of a prefix, computed once; ``None`` where prompts may not share them."""
    model = lens_model.model
    if sharing(lens_model) is not Sharing.FILLED or not may_begin_apart(model):
        return None
    if model not in _PREFIXED:
        long, middle, short = check_prompts(lens_model)
        cache = plain_cache(lens_model, long)
        _PREFIXED[model] = cache is not None and _as_alone(lens_model, [middle, short], prefix=(long, cache))
    return plain_cache(lens_model, shared) if _PREFIXED[model] else None


def plain_cache(lens_model: LensModel, shared: Sequence[int]) -> Any:
    """Keys and values of a beginning; ``None`` where a model keeps anything else."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    with torch.inference_mode():
        ids = torch.tensor([list(shared)], device=lens_model.device)
        output: Any = lens_model.model(input_ids=ids, use_cache=True)
    cache = getattr(output, "past_key_values", None)
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if plain else None


def may_begin_apart(model: PreTrainedModel) -> bool:
    """Whether the beginning of a prompt may be read before the rest; whether it comes out alike is measured then.

    A window counts the filling between the two, a text beyond :func:`rope_border` turns the positions of its beginning
    too, and who edits or watches a forward pass counts positions from a prompt's first token.
    """
    return (
        not has_window(model)
        and rope_border(model) is None
        and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    )


def has_window(model: PreTrainedModel) -> bool:
    """Whether the configuration names a window or chunk of attention shorter than the context."""
    config = model.config.get_text_config().to_dict()
    return any(
        isinstance(value, int) and not isinstance(value, bool) and value > 0
        for name, value in config.items()
        if "window" in name or name == "attention_chunk_size"
        if name != "max_window_layers"
    )


def check_prompts(lens_model: LensModel) -> tuple[list[int], list[int], list[int]]:
    """Three texts of different lengths."""
    ids = list(lens_model.tokenizer.encode(CHECK_TEXT))
    room = (lens_model.max_length or len(ids)) - _STEPS
    long = ids[: max(1, min(24, room // 2))]  # also a prefix and what follows it must fit
    return long, long[: max(1, len(long) // 2)], long[: max(1, len(long) // 4)]


def _as_alone(
    lens_model: LensModel,
    rows: list[list[int]],
    *,
    prefix: tuple[list[int], Any] | None = None,
) -> bool:
    """Whether every step's logits are those of a forward pass over that row alone."""
    before = prefix[0] if prefix is not None else []
    try:
        new, steps = run_greedy(lens_model, rows, _STEPS, [], prefix=prefix, logits=True)
    except Exception:  # families fail in many ways where their cache has no place for filling or prefixes
        return False
    for index, row in enumerate(rows):
        ids = torch.tensor([[*before, *row, *new[index].tolist()]], device=lens_model.device)
        with torch.inference_mode():
            logits = lens_model.model(input_ids=ids, use_cache=False).logits[0].float()
        alone = logits[len(before) + len(row) - 1 : -1]
        together = torch.stack([step[index] for step in steps]).float().to(alone.device)
        if not torch.allclose(together, alone, rtol=0, atol=close(alone, lens_model.model)):
            return False
    return True


def close(logits: Tensor, model: PreTrainedModel) -> float:
    """What sums in another order may change: 1e-4 of the largest logit in fp32, 5 % in shorter numbers."""
    largest = max(1.0, float(logits.abs().max()))
    return (1e-4 if model.dtype == torch.float32 and not is_quantised(model) else 0.05) * largest
