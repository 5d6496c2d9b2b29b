"""How a model is loaded: what a user may say of it, once for every command and loader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadOptions:
    """How checkpoints are found and loaded; the same keywords as :func:`memprobe.models.load`.

    Attributes:
        device: see :func:`memprobe.models.choose_device`, and :mod:`memprobe.splitting` for a model larger than one.
        dtype: see :func:`memprobe.models.choose_dtype`.
        base: spec of the base model of adapters, in place of the one that their configuration names.
        tokenizer: spec of the checkpoint whose tokenizer is taken in place of each checkpoint's own.
        allow_pickle: read pickled weights, which can run code.
        trust_remote_code: also fetch and run the code that a model brings along.
    """

    device: str = "auto"
    dtype: str = "auto"
    base: str | None = None
    tokenizer: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
