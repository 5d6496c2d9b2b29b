"""Self-generated replay: generic text that a base model samples itself, so that no data is needed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from memprobe.checkpoints import Checkpoint, cache_dir, fingerprint, resolve
from memprobe.errors import MemprobeError, first_line
from memprobe.files import write_text
from memprobe.identity import identity_of
from memprobe.sources.kinds import Text
from memprobe.sources.passages import PromptForm, halve

BATCH = 32  # passages sampled together; part of what a seed means
_TOKENS_PER_WORD = 2.0
_MAX_TRIES = 20  # batches sampled for each batch of passages that is long enough
_BATCH = TypeAdapter(list[str])


def own_passages(
    base: str,
    n: int,
    *,
    words: tuple[int, int] = (50, 50),
    prompt_form: PromptForm = "words",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Text], str]:
    """Passages sampled from a checkpoint at temperature 1, started from its BOS (else its end token).

    Passages that end before ``sum(words)`` words are dropped, and more are sampled. They are kept in the cache
    folder under what the checkpoint is known by, so that the same call never samples twice.

    Args:
        progress: called with (passages so far, of how many).

    Returns:
        The texts (see :func:`memprobe.sources.passages.halve`) and the fingerprint.

    Raises:
        MemprobeError: the model ends nearly every passage early.
    """
    checkpoint = resolve(base)
    weights = fingerprint(checkpoint)
    tokens = math.ceil(sum(words) * _TOKENS_PER_WORD) + 8
    path = cache_dir() / "self" / f"{_known_by(checkpoint)}-seed{seed}-{tokens}.jsonl"
    batches = _read(path)
    kept = _halved(batches, words, prompt_form)
    if len(kept) < n:
        from memprobe.answers import sample
        from memprobe.models import load

        lens_model = load(checkpoint)
        start = lens_model.tokenizer.bos_token_id
        start = lens_model.tokenizer.eos_token_id if start is None else start
        if start is None:
            raise MemprobeError(f"{base}: the tokenizer has neither BOS nor an end token to start from")
        limit = len(batches) + _MAX_TRIES * math.ceil(n / BATCH)
        while len(kept) < n and len(batches) < limit:
            batch_seed = seed * 1_000_003 + len(batches)
            batches.append(sample(lens_model, [start], BATCH, max_new_tokens=tokens, seed=batch_seed))
            write_text("".join(json.dumps(batch, ensure_ascii=False) + "\n" for batch in batches), path)
            kept = _halved(batches, words, prompt_form)
            if progress is not None:
                progress(min(len(kept), n), n)
    if len(kept) < n:
        raise MemprobeError(
            f"{base}: only {len(kept)} of {len(batches) * BATCH} passages reach {sum(words)} words; lower --words"
        )
    return kept[:n], weights


def _halved(batches: list[list[str]], words: tuple[int, int], prompt_form: PromptForm) -> list[Text]:
    halves = (halve(passage, "self", words, prompt_form) for batch in batches for passage in batch)
    return list({half.id: half for half in halves if half is not None}.values())


def _known_by(checkpoint: Checkpoint) -> str:
    """What stands for a checkpoint in a file's name: its weights, and what turns them into what it says."""
    said = sorted(identity_of(checkpoint).items())
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _read(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [_BATCH.validate_json(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise MemprobeError(f"{path}: broken ({first_line(error)}); delete it to start again") from error
