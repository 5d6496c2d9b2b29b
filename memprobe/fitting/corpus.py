"""Text for fitting a lens: sequences of one length, in two halves to fit on and two sets held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from memprobe.errors import MemprobeError
from memprobe.sources import TooLarge, load, subset

if TYPE_CHECKING:
    from memprobe.models import LensModel
    from memprobe.sources.kinds import AnyRow

HELD_OUT = 16
"""Sequences that choose a fit's strength, and as many again that judge it."""


@dataclass(frozen=True)
class Corpus:
    """Token ids of a corpus, cut to one length.

    Attributes:
        halves: [sequence, position] each; the lens is fitted on both, its floor is how far they differ alone.
        validation: [sequence, position], what a fit's strength is chosen on.
        test: [sequence, position], what it is judged on.
        about: where the texts came from, how many tokens, and a hash over all ids in order.
    """

    halves: tuple[Int[Tensor, "sequence position"], Int[Tensor, "sequence position"]]
    validation: Int[Tensor, "sequence position"]
    test: Int[Tensor, "sequence position"]
    about: dict[str, Any]


def load_texts(
    name: str, length: int, *, seed: int = 0, data_dir: str | Path | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Passages of a source or a file (column ``text``), in a seeded order, and where they came from.

    A passage is cut to ``length`` words, as many tokens at least. Of a file's, those of fewer words are kept, which may
    have as many tokens all the same; of a named source's they are left out.

    Raises:
        MemprobeError: see :func:`memprobe.sources.load`.
    """
    try:
        loaded = load(name, "texts", seed=seed, data_dir=data_dir, words=(0, length), whole=True)
    except TooLarge as error:
        raise error.where_all_is_read("--texts FILE") from error
    rows: list[AnyRow] = subset(loaded.rows, len(loaded.rows), seed, name)
    return [getattr(row, "answer") for row in rows], loaded.origin.to_dict() | {"seed": seed}  # noqa: B009


def check_sizes(*, tokens: int, length: int, held_out: int) -> None:
    """Raises a MemprobeError for sizes that no corpus has; see :func:`make_corpus`."""
    least = {"length": (length, 3), "tokens": (tokens, 1), "held_out": (held_out, 2)}
    for name, (given, bound) in least.items():
        if given < bound:
            raise MemprobeError(f"`{name}` {given}: give a whole number of at least {bound}")


def make_corpus(
    lens_model: LensModel,
    texts: Sequence[str],
    *,
    tokens: int,
    length: int,
    held_out: int = HELD_OUT,
    origin: dict[str, Any] | None = None,
) -> Corpus:
    """Tokenises texts and deals them out: test first, then validation, then the halves in turn.

    Args:
        tokens: to fit on, in both halves together; rounded up to whole sequences, the same number in each.
        length: tokens of a sequence, at least 3, for a fit is judged between the first and the last; texts with fewer
            are left out, and those that begin like an earlier one.
        held_out: sequences of the validation set, and as many of the test set.

    Raises:
        MemprobeError: too few texts, or a length past the model's context.
    """
    check_sizes(tokens=tokens, length=length, held_out=held_out)
    if lens_model.max_length is not None and length > lens_model.max_length:
        raise MemprobeError(f"--length {length}: {lens_model.label} reads {lens_model.max_length} tokens")
    each = -(-tokens // (2 * length))
    wanted = 2 * each + 2 * held_out
    # Texts that begin alike are one where they are cut: twice, it would be fitted on and held out.
    distinct: dict[tuple[int, ...], None] = {}
    long = 0
    for text in texts:
        ids = lens_model.tokenizer.encode(text)[:length]
        if len(ids) == length:
            long += 1
            distinct[tuple(ids)] = None
        if len(distinct) == wanted:
            break
    sequences = list(distinct)
    if len(sequences) < wanted:
        room = (len(sequences) - 2 * held_out) * length
        mend = (
            f"--tokens {room} at most, or a smaller --length"
            if room > 0
            else "a smaller --length, or more texts"
        )
        repeated = f", {long - len(sequences)} of which begin like another" if long > len(sequences) else ""
        raise MemprobeError(
            f"the corpus is too small: {wanted} texts of {length} tokens are needed and {long} of "
            f"{len(texts)} are that long{repeated}; give {mend}"
        )
    ids = torch.tensor(sequences)
    rest = ids[2 * held_out :]
    about = {
        "origin": origin,
        "hash": hashlib.sha256(ids.numpy().astype("<i4").tobytes()).hexdigest(),
        "length": length,
        "tokens": rest.numel(),
        "held out": held_out * length,
    }
    return Corpus((rest[0::2], rest[1::2]), ids[held_out : 2 * held_out], ids[:held_out], about)
