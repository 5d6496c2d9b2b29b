"""What a checkpoint is known by: hashes of its weights, its settings and its tokenizer, made of its files or in memory.

They stand where numbers of it are stored; :mod:`memprobe.sameness` compares them.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from memprobe.checkpoints import Checkpoint, fingerprint
from memprobe.settings import of_config, settings_of
from memprobe.weights import TOKENIZER_FILES

CHAT_TEMPLATE = "chat_template.jinja"
_OF_TOKENIZERS = sorted({*TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json", CHAT_TEMPLATE})


class Loaded(Protocol):
    """What a :class:`memprobe.models.LensModel` is known by."""

    @property
    def fingerprint(self) -> str:
        """Of its tensors."""
        ...

    @property
    def settings(self) -> str | None:
        """See :func:`memprobe.settings.settings_of`."""
        ...

    @property
    def tokenizer_mark(self) -> str | None:
        """See :func:`tokenizer_of`."""
        ...


def identity_of(item: Checkpoint | Loaded) -> dict[str, str]:
    """What a checkpoint is known by, for the entry that stands where its numbers are.

    Returns:
        ``fingerprint`` of its tensors; ``settings``, which turn them into a model
        (:func:`memprobe.settings.settings_of`); ``tokenizer`` (:func:`tokenizer_of`). Those that nothing says are
        left out.
    """
    if isinstance(item, Checkpoint):
        said = {
            "fingerprint": fingerprint(item),
            "settings": settings_of(item),
            "tokenizer": tokenizer_of(item),
        }
    else:
        said = {"fingerprint": item.fingerprint, "settings": item.settings, "tokenizer": item.tokenizer_mark}
    return {key: value for key, value in said.items() if value is not None}


def tokenizer_source(checkpoint: Checkpoint) -> tuple[Checkpoint, Path | None]:
    """The checkpoint whose tokenizer is taken, and an adapter's own chat template that goes over that one's."""
    template = None
    while checkpoint.tokenizer is not None or checkpoint.base is not None:
        if checkpoint.tokenizer is not None:
            checkpoint, template = checkpoint.tokenizer, None
        else:
            assert checkpoint.base is not None
            own = checkpoint.path / CHAT_TEMPLATE
            template = own if template is None and own.is_file() else template
            checkpoint = checkpoint.base
    return checkpoint, template


def tokenizer_of(checkpoint: Checkpoint) -> str:
    """SHA-256 of the files that a checkpoint's tokenizer is read from: those of ``--tokenizer`` where it was given."""
    source, template = tokenizer_source(checkpoint)
    files = [(name, source.path / name) for name in _OF_TOKENIZERS]
    files += [("over it", template)] if template is not None else []
    stats = [(name, path, path.stat()) for name, path in files if path.is_file()]
    mark = [(name, str(path), (one.st_ino, one.st_size, one.st_mtime_ns)) for name, path, one in stats]
    return _hash_of_files(tuple(mark), fingerprint(source) if source.kind == "gguf" else "")


@lru_cache(maxsize=64)  # a process asks the same files many times
def _hash_of_files(mark: tuple[tuple[str, str, Any], ...], weights: str) -> str:
    digest = hashlib.sha256(weights.encode())
    for name, path, _ in mark:
        digest.update(f"{name} ".encode() + hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()


def marks_of(
    checkpoint: Checkpoint | None, model: Any, tokenizer: Any, vouched: str | None = None
) -> tuple[str | None, str | None]:
    """Settings and tokenizer of a model in memory, as hashes; ``None`` for what is not known.

    Args:
        checkpoint: whose files say both; without one, the model and the tokenizer do.
        model: as it was given: PEFT's wrapper says how strong its adapters are.
        vouched: the fingerprint by which somebody else knows the model, whose files may say otherwise than it does.
    """
    if checkpoint is not None:
        return settings_of(checkpoint), tokenizer_of(checkpoint)
    if vouched is not None:
        return None, None
    return settings_in_memory(model), _tokenizer_in_memory(tokenizer)


def settings_in_memory(model: Any) -> str:
    """The settings of a model in memory: those of a checkpoint that it would be saved as; see
    :func:`memprobe.settings.settings_of`."""
    adapters = getattr(model, "peft_config", None)
    by_name = (
        {name: _plain(one.to_dict()) for name, one in adapters.items()} if isinstance(adapters, dict) else {}
    )
    if by_name:
        by_name["active"] = {"names": _plain(getattr(model, "active_adapters", None))}
    generation = getattr(model, "generation_config", None)
    ends = {"eos_token_id": getattr(generation, "eos_token_id", None)}
    return of_config(_plain(model.config.to_diff_dict()), ends, by_name)


def _plain(value: Any) -> Any:
    """As JSON gives it back; sets in order."""
    return json.loads(
        json.dumps(value, default=lambda one: sorted(one) if isinstance(one, set) else str(one))
    )


def _tokenizer_in_memory(tokenizer: Any) -> str | None:
    """Without what padding and truncation a training loop set on it, which no prompt here gets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and not hasattr(tokenizer, "get_vocab"):
        return None
    made = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(made, dict):
        made = {key: value for key, value in made.items() if key not in ("padding", "truncation")}
    named = [
        getattr(tokenizer, name, None) for name in ("special_tokens_map", "chat_template", "add_bos_token")
    ]
    said = json.dumps([type(tokenizer).__name__, made, *named], sort_keys=True, default=str)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
