"""What a model says in full, and whether it is right: greedy generation and verdicts, for every command.

    prompts ──generate──> continuations ──judge──> prediction, exact_tokens, exact_match, alias_match

A template that ends in a token stops there. Plain text has no such token: an answer ends with the line or the
sentence, and an end token ends it too. There is one budget (:func:`budget`) and one rule (:func:`judge`), so that
capture, the filter and the evaluations of training say the same of the same model.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from memprobe.batching import (
    SHARED,
    Sharing,
    batches_by_tokens,
    common_prefix,
    own_settings,
    prefix_cache,
    rope_border,
    run_greedy,
    run_without_cache,
    sharing,
    tokens_at_once,
)
from memprobe.metrics import folded, normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memprobe.models import LensModel
    from memprobe.templates import TokenisedFactoid

RULE = "answers-2"
"""Name of the budget and the rule; what is kept between runs is kept under it."""

NEW_TOKENS, SLACK = 16, 4

_CPU_TOKENS, _GPU_TOKENS = 4096, 16384
_CPU_ROWS = 32  # a processor gains nothing from more, and a batch goes on until its last row ends
_CLOSERS = "\"'”’»›」』)）]】"
# White space or the end must follow the first kind; scripts with the second put none there.
_STOP, _WIDE_STOP, _AFTER = "[.!?؟۔।॥．]", "[。！？｡]", f"[{re.escape(_CLOSERS)}]*"
_SENTENCE_END = re.compile(rf"{_STOP}{_AFTER}(?=\s|$)|{_WIDE_STOP}")
_WIDE_END = re.compile(rf"{_WIDE_STOP}{_AFTER}$")
_ENDS = re.compile(rf"(?:{_STOP}|{_WIDE_STOP}){_AFTER}$")


# ------------------------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a model said to a factoid.

    Attributes:
        prediction: the continuation up to the end of the answer, stripped.
        exact_tokens: it begins with the answer's own tokens, and the end token where the template has one.
        exact_match: :func:`exact_match`, or ``exact_tokens``, which implies it: plain text has no end token, and a
            model may well go on after the answer.
        alias_match: :func:`alias_match` with the answer or an alias; ``exact_match`` implies it.
    """

    prediction: str
    exact_tokens: bool
    exact_match: bool
    alias_match: bool


class Continuation(NamedTuple):
    """What a model goes on with after a prompt: new ids up to the stop, and their text."""

    ids: tuple[int, ...]
    text: str


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are equal, stripped and in lower case (the rule of the paper's code).

    Letters that Unicode can write in two ways (é as one character or two) are the same letters.
    """
    return folded(prediction) == folded(answer)


def alias_match(prediction: str, answers: Iterable[str]) -> bool:
    """Whether the prediction equals one of the answers after :func:`memprobe.metrics.normalise`."""
    prediction = normalise(prediction)
    return any(prediction == normalise(answer) for answer in answers)


def shown(item: TokenisedFactoid) -> Verdict:
    """The verdict where every target is the argmax: greedy decoding can only repeat them."""
    return Verdict(item.factoid.answer, True, True, True)


def judge(item: TokenisedFactoid, continuation: Continuation) -> Verdict:
    """The verdict on a continuation."""
    if continuation.ids[: len(item.targets)] == item.targets:
        return shown(item)
    factoid = item.factoid

    def until(answer: str) -> str:
        return cut(continuation.text, answer) if item.end is None else continuation.text.strip()

    prediction = until(factoid.answer)
    exact = exact_match(prediction, factoid.answer)
    # A full stop inside an alias must not end the answer either, so each is held against its own cut.
    alias = exact or any(
        alias_match(until(answer), [answer]) for answer in (factoid.answer, *factoid.aliases)
    )
    return Verdict(prediction, False, exact, alias)


def cut(text: str, answer: str) -> str:
    """A plain continuation up to the end of its sentence, stripped.

    Full stops inside the expected answer ("St. Lucia", "U.S. dollar") do not end it, and one that the answer
    itself ends in ("Yahoo!", "Washington, D.C.") does.
    """
    text, answer = (unicodedata.normalize("NFC", one).strip() for one in (text, answer))
    start = len(answer) if text.lower().startswith(answer.lower()) else 0
    if start and _ENDS.search(answer) and (_WIDE_END.search(answer) or not text[start : start + 1].strip()):
        return text[:start]
    match = _SENTENCE_END.search(text, start)
    return text[: match.start()].rstrip() if match else text


# ---------------------------------------------------------------------------------------------- generation


def budget(item: TokenisedFactoid, tokenizer: PreTrainedTokenizerBase) -> int:
    """New tokens for an answer: room for the longest right answer and a few more, at least 16."""
    longest = max((item.factoid.answer, *item.factoid.aliases), key=len)
    return max(
        NEW_TOKENS,
        len(item.targets) + SLACK,
        len(tokenizer.encode(f" {longest}", add_special_tokens=False)) + SLACK,
    )


def answer(
    lens_model: LensModel,
    items: Sequence[TokenisedFactoid],
    *,
    batch_tokens: int | None = None,
    apart: frozenset[str] = frozenset(),
) -> Iterator[dict[str, Verdict]]:
    """Verdicts by factoid id, batch by batch: items of like length together.

    Those whose ids are ``apart`` have other examples before them; without them, the prompts of the rest begin
    alike, and that beginning is read once.
    """
    groups: dict[tuple[int | None, bool], list[TokenisedFactoid]] = defaultdict(list)
    for item in items:
        groups[item.end, item.factoid.id in apart].append(item)
    for (end, _), group in groups.items():
        limits = [budget(item, lens_model.tokenizer) for item in group]
        prompts = [item.prompt for item in group]
        for indices, continuations in generate_batches(
            lens_model, prompts, max_new_tokens=limits, end=end, batch_tokens=batch_tokens
        ):
            yield {
                group[index].factoid.id: judge(group[index], one)
                for index, one in zip(indices, continuations, strict=True)
            }


def generate(
    lens_model: LensModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end: int | None = None,
    batch_tokens: int | None = None,
) -> list[str]:
    """Greedy continuations of token prompts as texts, in the order given; see :func:`generate_batches`."""
    texts = [""] * len(prompts)
    for indices, batch in generate_batches(
        lens_model, prompts, max_new_tokens=max_new_tokens, end=end, batch_tokens=batch_tokens
    ):
        for index, continuation in zip(indices, batch, strict=True):
            texts[index] = continuation.text
    return texts


def generate_batches(
    lens_model: LensModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end: int | None = None,
    batch_tokens: int | None = None,
) -> Iterator[tuple[list[int], list[Continuation]]]:
    """Greedy continuations as they get ready, batch by batch, shortest prompts first.

    Greedy is the argmax of the model's own logits, whatever its ``generation_config`` says. What a prompt gets does
    not depend on the others: see :mod:`memprobe.batching`.

    Args:
        prompts: token ids, each at least one.
        max_new_tokens: at most so many new tokens for each, or one number for each.
        end: id of the token that ends an answer; ``None`` stops at the end of the line instead.
        batch_tokens: padded tokens of one batch, by default as many as suit the device; on a CPU it has 32 prompts at
            most.

    Yields:
        Indices into ``prompts``, and their continuations; texts are without special tokens. Without ``end`` a text
        may run on past the sentence: see :func:`cut`.
    """
    if not prompts:
        return
    if batch_tokens is None:
        batch_tokens = tokens_at_once(lens_model.device, _CPU_TOKENS, _GPU_TOKENS)
    level = sharing(lens_model)
    stops = stop_ids(lens_model, end)
    shared = common_prefix(prompts)
    cache = prefix_cache(lens_model, shared) if len(shared) >= SHARED and len(prompts) > 1 else None
    prefix = (shared, cache) if cache is not None else None
    start = len(shared) if prefix is not None else 0
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if (context := lens_model.max_length) is not None:  # a prompt near the context's end has less to say
        limits = [
            min(limit, context + 1 - len(prompt)) for limit, prompt in zip(limits, prompts, strict=True)
        ]
    for batch in _batches(lens_model, prompts, limits, level, batch_tokens):
        most = max(limits[index] for index in batch)
        if level is Sharing.NO_CACHE:
            new = [run_without_cache(lens_model, prompts[index], most, sorted(stops)) for index in batch]
        else:
            rows = [list(prompts[index][start:]) for index in batch]
            new = run_greedy(lens_model, rows, most, sorted(stops), prefix=prefix)[0].tolist()
        # Cut to each prompt's own limit: what it says must not depend on its neighbours.
        continuations = [
            _continuation(ids[: limits[index]], stops, end, lens_model.tokenizer)
            for index, ids in zip(batch, new, strict=True)
        ]
        yield batch, continuations


def _batches(
    lens_model: LensModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    level: Sharing,
    batch_tokens: int,
) -> Iterator[list[int]]:
    """Indices that are generated together, shortest prompts first."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    most = _CPU_ROWS if lens_model.device.type == "cpu" else None
    if level <= Sharing.ALONE:
        most = 1
    groups: dict[int, list[int]] = defaultdict(list)
    for index in order:
        groups[len(prompts[index]) if level is Sharing.EQUAL else 0].append(index)
    # A batch runs to its largest limit, for which its longest prompt may have no room before the context's end, or
    # before its positions change.
    context, border = lens_model.max_length, rope_border(lens_model.model)
    edges = [edge for edge in (None if context is None else context + 1, border) if edge is not None]
    for group in groups.values():
        for batch in batches_by_tokens(
            group,
            lambda index: len(prompts[index]) + limits[index],
            batch_tokens,
            most=most,
            border=None,  # split below
        ):
            reach = max(len(prompts[index]) for index in batch) + max(limits[index] for index in batch)
            if edges and reach > min(edges):
                yield from ([index] for index in batch)
            else:
                yield batch


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
    with torch.inference_mode(), torch.random.fork_rng(devices), own_settings(lens_model.model):
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
            eos_token_id=eos,
            pad_token_id=lens_model.pad_id(),
        )
    stops = frozenset() if eos is None else frozenset([eos])
    return [
        _continuation(new, stops, eos, lens_model.tokenizer).text
        for new in output[:, ids.shape[1] :].tolist()
    ]


def _continuation(
    new: list[int], stops: frozenset[int], end: int | None, tokenizer: PreTrainedTokenizerBase
) -> Continuation:
    """New tokens up to and with the first stop; their text, without an end token up to the end of the line."""
    stop = next((position for position, token in enumerate(new) if token in stops), len(new))
    ids = tuple(new[: stop + 1])
    text = str(tokenizer.decode(new[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return Continuation(ids, text if end is not None else text.split("\n")[0])


def stop_ids(lens_model: LensModel, end: int | None) -> frozenset[int]:
    """Ids at which generation stops: the end token, or else every token with a line break; and always every end
    token that the tokenizer or the checkpoint's ``generation_config`` names."""
    named = [
        lens_model.tokenizer.eos_token_id,
        getattr(lens_model.model.generation_config, "eos_token_id", None),
        getattr(lens_model.model.config.get_text_config(), "eos_token_id", None),
    ]
    ids = [one for name in named for one in (name if isinstance(name, list) else [name]) if one is not None]
    lines = _newline_ids(lens_model.tokenizer) if end is None else frozenset([end])
    return frozenset(int(one) for one in ids) | lines


@lru_cache(maxsize=8)
def _newline_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    return frozenset(index for index, text in enumerate(texts) if "\n" in text and text.strip("\n \t") == "")
