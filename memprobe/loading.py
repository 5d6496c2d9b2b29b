"""Checkpoints one after another: the next one's files are read while a model computes.

    announce(next) ─> a thread finds it, hashes it and reads its tensors      get(next) ─> into the model that is there

Where two checkpoints have the same configuration, and the files of the first were seen to hold the very tensors of the
model that transformers made of them, name by name, the second's tensors are put into that model in place; everything
else is loaded anew, as :func:`memprobe.models.load` does. What is given back has passed the same check either way.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from memprobe.checkpoints import Checkpoint, fingerprint
from memprobe.errors import MemprobeError
from memprobe.files import read_json
from memprobe.identity import tokenizer_of
from memprobe.models import LensModel, choose_device, choose_dtype, load_tokenizer, placed_model, wrap
from memprobe.quantised import described
from memprobe.sequences import Deferred
from memprobe.settings import SAYS_NOTHING
from memprobe.splitting import is_split
from memprobe.weights import files_like

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class _Read:
    """What was read ahead: ``tensors`` by name where they may fit the model that is there."""

    checkpoint: Checkpoint
    fingerprint: str
    tensors: dict[str, Tensor] | None


class Loader:
    """Loads checkpoints in turn, one model in memory at a time.

    Args:
        device, dtype, trust_remote_code: see :func:`memprobe.models.load`; a split model's files are found ahead, and
            read when their turn comes.

    Attributes:
        reused: how many checkpoints went into a model that was there.
    """

    def __init__(self, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False):
        self.placement = device
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.trust_remote_code = trust_remote_code
        self.reused = 0
        self._model: PreTrainedModel | None = None
        self._of: Checkpoint | None = None
        self._plain: bool | None = None
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._next: tuple[str, Future[_Read]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="next-checkpoint")

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.release()

    def announce(self, item: Checkpoint | Deferred, beside: int = 1) -> None:
        """Begins to read what will be asked for next; what goes wrong is raised by :meth:`get`.

        Args:
            beside: processes of this machine that may do so at once: tensors are read where there is memory for all.
        """
        if self._next is None:
            self._next = item.label, self._pool.submit(self._read_ahead, item, beside)

    def forget(self, label: str) -> Checkpoint | None:
        """Drops what was read ahead of a checkpoint; where its files are, if it was found."""
        if self._next is None or self._next[0] != label:
            return None
        ahead, self._next = self._next[1], None
        try:
            return ahead.result().checkpoint
        except Exception:  # whoever reads that checkpoint says what is wrong with it
            return None

    def find(self, item: Checkpoint | Deferred) -> Checkpoint:
        """The checkpoint, fetched where it must be.

        Raises:
            MemprobeError: it cannot be found.
        """
        if isinstance(item, Checkpoint):
            return item
        ahead = self._ahead(item.label)
        return item.find() if ahead is None else ahead.checkpoint

    def get(self, item: Checkpoint | Deferred) -> LensModel:
        """A checkpoint as a model. The one before must not be used any more.

        Raises:
            MemprobeError: see :func:`memprobe.models.load`.
        """
        ahead = self._ahead(item.label)
        self._next = None
        checkpoint = ahead.checkpoint if ahead else self.find(item)
        into = self._model if ahead and ahead.tensors is not None else None
        if into is None or not _put(into, ahead.tensors or {}):  # type: ignore[union-attr]
            self.release()
            into = placed_model(checkpoint, self.dtype, self.trust_remote_code, self.placement)
            self._model, self._of, self._plain = into, checkpoint, None
        else:
            self.reused += 1
        del ahead
        return wrap(
            into,
            self.tokenizer(checkpoint),
            label=checkpoint.label,
            weights_fingerprint=fingerprint(checkpoint),
            checkpoint=checkpoint,
        )

    def release(self) -> None:
        """Lets go of the model."""
        self._model = self._of = self._plain = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _ahead(self, label: str) -> _Read | None:
        if self._next is None or self._next[0] != label:
            return None
        return self._next[1].result()

    def _read_ahead(self, item: Checkpoint | Deferred, beside: int) -> _Read:
        checkpoint = item.find() if isinstance(item, Deferred) else item
        mark = fingerprint(checkpoint)  # kept by files: asked for again, it costs nothing
        model, before = self._model, self._of
        if model is None or before is None or is_split(self.placement) or not same_shape(before, checkpoint):
            return _Read(checkpoint, mark, None)  # of a split model, some tensors are not in memory
        size = sum(file.stat().st_size for file in files_like(checkpoint.path, ("*.safetensors",)))
        if 2 * size * beside > psutil.virtual_memory().available:
            return _Read(checkpoint, mark, None)
        if self._plain is None:
            self._plain = _holds(model, read_tensors(before.path, self.dtype))
        tensors = read_tensors(checkpoint.path, self.dtype) if self._plain else None
        return _Read(checkpoint, mark, tensors)

    def tokenizer(self, checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
        """Of equal files, the same tokenizer: what it made of factoids holds for both."""
        mark = tokenizer_of(checkpoint)
        if mark not in self._tokenizers:
            self._tokenizers[mark] = load_tokenizer(checkpoint, self.trust_remote_code)
        return self._tokenizers[mark]


def same_shape(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints of safetensors have one configuration and one set of generation settings."""
    if one.kind != "weights" or other.kind != "weights" or described(one.path) is not None:
        return False  # quantised weights have more to them than tensors
    return all(
        _config(one.path / name) == _config(other.path / name)
        for name in ("config.json", "generation_config.json")
    )


def read_tensors(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files by name, floating ones in a precision.

    None where a name stands twice: an older copy may lie beside the files that transformers takes.
    """
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    for file in files_like(path, ("*.safetensors",)):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (no mapping)
                if name in tensors:
                    return {}
                tensor = handle.get_tensor(name)
                tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


def _put(model: PreTrainedModel, tensors: dict[str, Tensor]) -> bool:
    """Puts tensors into a model in place; ``False``, and nothing done, where they are not just what it holds."""
    own = _matched(model, tensors)
    if own is None:
        return False
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return True


def _holds(model: PreTrainedModel, tensors: dict[str, Tensor]) -> bool:
    """Whether a model is made of just these tensors, each as it is."""
    own = _matched(model, tensors)
    return own is not None and all(torch.equal(own[name].cpu(), tensor) for name, tensor in tensors.items())


def _matched(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The model's tensors by name, if these are all of them, tied ones once, in their shapes and types."""
    own = model.state_dict()
    if not tensors or not tensors.keys() <= own.keys():
        return None
    given = [own[name].data_ptr() for name in tensors]
    if len(set(given)) < len(given):
        return None
    if any(own[name].data_ptr() not in given for name in own.keys() - tensors.keys()):
        return None
    fits = all(
        own[name].shape == tensor.shape and own[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )
    return own if fits else None


def _config(path: Path) -> Any:
    if not path.is_file():
        return None
    config = read_json(path, own=False)
    if not isinstance(config, dict):
        raise MemprobeError(f"{path}: holds no JSON object")
    return {key: value for key, value in config.items() if key not in SAYS_NOTHING}
