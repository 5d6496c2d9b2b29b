"""What a model says after one prompt, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memprobe import wording

if TYPE_CHECKING:
    from memprobe.prompt_lens import PromptReading


def of_prompt(reading: PromptReading, *, named: bool = False) -> str:
    """What a model says after a prompt, from which depth on, and where the answer stands.

    Args:
        named: whether to say through which lens also where it is the model's own Logit Lens.
    """
    last = reading.n_layers
    token, share = reading.best[last][-1][0]
    choices = [row[-1] for row in reading.top1]
    since = next(depth for depth in range(last + 1) if all(one == choices[last] for one in choices[depth:]))
    lens = f"Read through {reading.lens}, the" if named or names_lens([reading]) else "The"
    parts = [
        f"{lens} model says {_quoted(token)} with {wording.percent(share, 0)}, its first choice "
        f"{f'only at the last depth, {last} of {last}' if since == last else f'from depth {_of(since, last)} on'}."
    ]
    if reading.answer is not None and reading.answer_ranks is not None:
        ranks = [row[-1] for row in reading.answer_ranks]
        if ranks[last] == 0 and reading.answer == token:
            parts.append("That is the answer.")
        else:
            parts.append(
                f"The answer begins with {_quoted(reading.answer)}, at rank {ranks[last]:,} at the end."
            )
        if (first := next((depth for depth in range(1, last + 1) if ranks[depth] < 10), None)) is not None:
            parts.append(f"It first enters the top 10 at depth {_of(first, last)}.")
        else:
            parts.append("It is never among the top 10.")
    return " ".join(parts)


def names_lens(readings: Sequence[PromptReading]) -> bool:
    """Whether readings of a prompt are told apart by their lenses: several, or one that is not the Logit Lens."""
    return [reading.lens for reading in readings] != ["logit"]


def _of(depth: int, last: int) -> str:
    return f"{depth} of {last}"


def _quoted(token: str) -> str:
    return f"“{token.strip() or repr(token)[1:-1]}”"
