"""Rows that a tokenizer cannot write, left out before anything is probed: every checkpoint is asked the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from memprobe.errors import MemprobeError
from memprobe.load_options import LoadOptions
from memprobe.sources import Loaded
from memprobe.sources.kinds import AnyRow, rows_hash
from memprobe.templates import Template, tokenise

if TYPE_CHECKING:
    from memprobe.checkpoints import Checkpoint


def writable(
    loaded: Loaded, template: str, checkpoints: Iterable[Checkpoint], loading: LoadOptions = LoadOptions()
) -> Loaded:
    """The factoids that every checkpoint's tokenizer can write and whose context has room for them.

    The others are named in ``bad`` and counted there.

    Raises:
        MemprobeError: none is left, or a tokenizer cannot be loaded.
    """
    from memprobe.models import load_tokenizer

    parsed = Template.parse(template)
    readers = [
        (load_tokenizer(checkpoint, loading.trust_remote_code), _context(checkpoint))
        for checkpoint in checkpoints
    ]
    kept: list[AnyRow] = []
    named = list(loaded.bad)
    for factoid in loaded.factoids:
        try:
            for tokenizer, context in readers:
                tokenise(factoid, parsed, tokenizer, context)
        except MemprobeError as problem:
            named.append(str(problem))
        else:
            kept.append(factoid)
    if not kept:
        raise MemprobeError(f"no factoid is left that these checkpoints can be asked: {named[-1]}")
    counts = loaded.counts | {"bad": len(named), "kept": len(kept)}
    origin = replace(loaded.origin, n=len(kept), hash=rows_hash(kept))
    return replace(loaded, rows=kept, bad=named, counts=counts, origin=origin)


def _context(checkpoint: Checkpoint) -> int | None:
    """Tokens of a checkpoint's context, where its configuration names them."""
    from memprobe.files import read_json

    while checkpoint.base is not None:
        checkpoint = checkpoint.base
    file = checkpoint.path / "config.json"
    config = read_json(file, own=False) if file.is_file() else {}
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    context = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    return context if isinstance(context, int) and context > 0 else None
