"""Where a factoid's subject stands among the tokens that a model is given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.templates import Template, TokenisedFactoid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def subject_in(factoid: Factoid) -> tuple[str, int]:
    """A factoid's subject, and where it begins in the prompt, the last time that it stands there; needs no tokenizer.

    Raises:
        MemprobeError: it names none, or one that is not in its prompt.
    """
    subject = (factoid.subject or "").strip()
    if not subject:
        raise MemprobeError(
            f"{_where(factoid)}: names no subject; give the field `subject`, or ask for other positions"
        )
    if (within := _last(subject, factoid.prompt)) is None:
        raise MemprobeError(f"{_where(factoid)}: the subject {subject!r} is not in the prompt")
    return subject, within


def _where(factoid: Factoid) -> str:
    return f"factoid {factoid.id} ({factoid.prompt[:60]!r})"


def subject_positions(
    item: TokenisedFactoid, template: Template, tokenizer: PreTrainedTokenizerBase
) -> range:
    """Positions in ``item.inputs`` of the subject's tokens.

    The subject is looked for in the prompt as it is written, else without regard to case; where it stands more than
    once, the last time counts, for only from there has the model read it whole. A token belongs to it that holds any
    of its characters.

    Raises:
        MemprobeError: the factoid names no subject, its prompt does not hold it, or the template writes it otherwise.
    """
    factoid = item.factoid
    subject, within = subject_in(factoid)
    context = template.render(factoid.prompt, factoid.answer, tokenizer).context
    if (prompt := context.rfind(factoid.prompt)) >= 0:
        start = prompt + within
    elif (
        found := _last(subject, context)
    ) is not None:  # a template may write the prompt in another form, as JSON
        start = found
    else:
        raise MemprobeError(f"{_where(factoid)}: the template writes the subject {subject!r} in another form")
    spans = _token_spans(context, tokenizer)
    skipped = len(item.prompt) - len(spans)  # BOS, where it is no part of the text
    stop = start + len(subject)
    first = next((i for i, (_, end) in enumerate(spans) if end > start), len(spans) - 1)
    # A character may be several tokens, all of which end with it.
    last = max((i for i, (begin, end) in enumerate(spans) if begin < stop and end > start), default=first)
    return range(first + skipped, last + 1 + skipped)


def _last(subject: str, text: str) -> int | None:
    """Where a subject stands in a text for the last time, as it is written, else without regard to case."""
    if (start := text.rfind(subject)) >= 0:
        return start
    starts = [match.start() for match in re.finditer(re.escape(subject), text, re.IGNORECASE)]
    return starts[-1] if starts else None


def _token_spans(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """For each token of a text, with which of its characters it begins, and how many end with it."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(begin, end) for begin, end in encoded["offset_mapping"]]
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    spans = [(0, 0)]
    for n in range(len(ids)):
        read = tokenizer.decode(ids[: n + 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        begin, end = spans[-1]
        # A token that ends no further is of the character before, of which the tokens until then were a part.
        spans.append((end if len(read) > end else begin, len(str(read))))
    return spans[1:]
