"""Where a factoid's subject stands among the tokens that a model is given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from memprobe.errors import MemprobeError
from memprobe.templates import Template, TokenisedFactoid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def subject_positions(
    item: TokenisedFactoid, template: Template, tokenizer: PreTrainedTokenizerBase
) -> range:
    """Positions in ``item.inputs`` of the subject's tokens.

    The subject is looked for in the prompt as it is written, else without regard to case; where it stands more than
    once, the last time counts, for only from there has the model read it whole. A token belongs to it that holds any
    of its characters.

    Raises:
        MemprobeError: the factoid names no subject, or its prompt does not hold it.
    """
    factoid = item.factoid
    where = f"factoid {factoid.id} ({factoid.prompt[:60]!r})"
    subject = (factoid.subject or "").strip()
    if not subject:
        raise MemprobeError(
            f"{where}: names no subject; give the field `subject`, or ask for other positions"
        )
    within = factoid.prompt.rfind(subject)
    if within < 0:
        starts = [match.start() for match in re.finditer(re.escape(subject), factoid.prompt, re.IGNORECASE)]
        if not starts:
            raise MemprobeError(f"{where}: the subject {subject!r} is not in the prompt")
        within = starts[-1]
    context = template.render(factoid.prompt, factoid.answer, tokenizer).context
    start = context.rfind(factoid.prompt) + within
    ends = _token_ends(context, tokenizer)
    skipped = len(item.prompt) - len(ends)  # BOS, where it is no part of the text
    first = next((i for i, end in enumerate(ends) if end > start), len(ends) - 1)
    last = next((i for i, end in enumerate(ends) if end >= start + len(subject)), len(ends) - 1)
    return range(first + skipped, last + 1 + skipped)


def _token_ends(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """For each token of a text, how many of its characters end with it."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [end for _, end in encoded["offset_mapping"]]
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    return [
        len(
            str(tokenizer.decode(ids[: n + 1], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        )
        for n in range(len(ids))
    ]
