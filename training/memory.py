"""The weights that a process holds: one model for all stages of all runs, and the base model's weights in main memory.

    load(checkpoint) ── they are in the model already ──> nothing to do
                     ├─ of the base model ──────────────> copied from main memory
                     ├─ of a stage trained from it ─────> copied from its file
                     └─ of anything else, or of a model
                        with other settings ────────────> a new model

Building a model from files costs more than copying weights into one that is there, and a grid does it for every stage,
every evaluation and every probe.
"""

from __future__ import annotations

import copy
import gc
from typing import TYPE_CHECKING, Any, NamedTuple

from memprobe.checkpoints import Checkpoint, fingerprint
from memprobe.identity import settings_in_memory
from memprobe.manifests import Manifest
from memprobe.sameness import same_model
from memprobe.settings import settings_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memprobe.models import LensModel


class _Mark(NamedTuple):
    """What a checkpoint is known by: its tensors, and what turns them into a model."""

    fingerprint: str
    settings: str | None


def _mark_of(checkpoint: Checkpoint) -> _Mark:
    return _Mark(fingerprint(checkpoint), settings_of(checkpoint))


class Memory:
    """What is loaded.

    Attributes:
        device: where models are; default: the first accelerator, or the CPU.
    """

    def __init__(self, device: torch.device | str | None = None):
        self.device = device
        self._model: Any = None
        self._dtype: torch.dtype | None = None
        self._mark: _Mark | None = None  # of the weights in the model; None: no checkpoint's
        self._base: _Mark | None = None  # of the base model that it was built for
        # What the settings of the model are hashed as, and those of the base model's: a base may be of another form
        # (an adapter, GGUF) or an older configuration than the stages that are saved of it, with the same settings.
        self._settings: frozenset[str | None] = frozenset()
        self._of_base: frozenset[str | None] = frozenset()
        self._state: dict[str, Tensor] = {}  # the base model's weights, on the CPU
        self._tokenizer: Any = None

    def load(
        self, checkpoint: Checkpoint, dtype: torch.dtype
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model with a checkpoint's weights, in eval mode with every parameter trainable, and its tokenizer.

        It is the model that was given before, if that can be: what was done with it is over.

        Raises:
            MemprobeError: see :func:`memprobe.models.load_pretrained`.
        """
        mark = _mark_of(checkpoint)
        if self._model is not None and dtype == self._dtype and self._fits(checkpoint, mark):
            self._clean()
            if self._mark == mark or self._put(self._model, checkpoint, mark):
                self._mark = mark
                return self._model, self._tokenizer
        self._build(checkpoint, dtype, mark)
        return self._model, self._tokenizer

    def lens_model(self, checkpoint: Checkpoint, dtype: torch.dtype) -> LensModel:
        """A checkpoint that can be read at every depth, in the one model; see :meth:`load`."""
        from memprobe.models import wrap

        model, tokenizer = self.load(checkpoint, dtype)
        return wrap(
            model,
            tokenizer,
            label=checkpoint.label,
            weights_fingerprint=fingerprint(checkpoint),
            checkpoint=checkpoint,
        )

    def second(self, checkpoint: Checkpoint, dtype: torch.dtype) -> LensModel:
        """A checkpoint in a model of its own, beside the one that :meth:`load` gives, which stays as it is."""
        from memprobe.models import load_pretrained, wrap

        mark = _mark_of(checkpoint)
        model, tokenizer = None, self._tokenizer
        if self._model is not None and dtype == self._dtype and self._fits(checkpoint, mark):
            self._clean()
            model = copy.deepcopy(self._model)
            if mark != self._mark and not self._put(model, checkpoint, mark):
                model = None
        if model is None:
            model, tokenizer = load_pretrained(checkpoint, dtype)
            model.to(self._device)  # pyrefly: ignore[bad-argument-type]
        return wrap(
            model,
            tokenizer,
            label=checkpoint.label,
            weights_fingerprint=mark.fingerprint,
            checkpoint=checkpoint,
        )

    def weights(self, checkpoint: Checkpoint) -> dict[str, Tensor] | None:
        """The weights of a checkpoint by parameter name on the CPU, where they are held; they are not to be changed."""
        mark = _mark_of(checkpoint)
        if mark == self._base and self._state:
            return self._state
        if self._model is not None and mark == self._mark:
            return {name: tensor.detach().cpu().clone() for name, tensor in _weights(self._model).items()}
        return None

    def changed(self) -> None:
        """The model is being trained: it holds no checkpoint's weights."""
        self._mark = None

    def holds(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        """The model was saved as this checkpoint, just as it is."""
        if model is self._model:
            self._mark = _mark_of(checkpoint)
            self._settings |= {self._mark.settings}

    def forget(self) -> None:
        """Lets go of the model, such as when something was built into it; the base model's weights stay."""
        self._model = self._tokenizer = self._mark = None
        free()

    @property
    def _device(self) -> torch.device | str:
        from memprobe.models import choose_device

        return choose_device("auto") if self.device is None else self.device

    def _fits(self, checkpoint: Checkpoint, mark: _Mark) -> bool:
        """Whether a checkpoint is the base model that is held, or was trained from it, and has the model's settings."""
        if mark.settings not in self._settings:
            return False
        if mark == self._base or mark == self._mark:
            return True
        if self._base is None or checkpoint.kind != "weights" or checkpoint.manifest is None:
            return False
        return self._is_of_base(checkpoint.manifest)

    def _is_of_base(self, manifest: Manifest) -> bool:
        """Whether a stage was trained from the base model that is held."""
        base = manifest.data.get("base", {})
        return self._base is not None and "fingerprint" in base and same_model(base, self._base._asdict())

    def _clean(self) -> None:
        """Takes off what a training loop left on the model."""
        model = self._model
        while "_original_forward" in model.__dict__:  # accelerate's mixed precision
            model.__dict__.pop("_original_forward")
        for name in ("forward", "_is_accelerate_prepared"):
            model.__dict__.pop(name, None)
        model.eval()
        model.zero_grad(set_to_none=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    def _put(self, model: PreTrainedModel, checkpoint: Checkpoint, mark: _Mark) -> bool:
        """Copies a checkpoint's weights into a model; whether its files name them as the model does."""
        import torch

        state = self._state if mark == self._base else _read(checkpoint)
        weights = _weights(model)
        if not set(weights) <= set(state):
            return False
        if model is self._model:
            self._mark = None
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(state[name])
        return True

    def _build(self, checkpoint: Checkpoint, dtype: torch.dtype, mark: _Mark) -> None:
        """Makes a new model; of a base model its weights are kept as well."""
        from memprobe.models import load_pretrained

        self.forget()
        if dtype != self._dtype:
            self._state = {}  # rounded, or not rounded, as another dtype does it
        model, self._tokenizer = load_pretrained(checkpoint, dtype)
        self._model, self._dtype, self._mark = model, dtype, mark
        self._settings = frozenset({mark.settings, settings_in_memory(model)})
        if checkpoint.manifest is None:
            self._base, self._of_base = mark, self._settings
            self._state = {name: tensor.detach().cpu().clone() for name, tensor in _weights(model).items()}
        elif not self._is_of_base(checkpoint.manifest):
            self._base, self._state, self._of_base = None, {}, frozenset()
        elif self._settings & self._of_base:
            self._settings |= self._of_base
        model.to(self._device)  # pyrefly: ignore[bad-argument-type]
        self._clean()


def free() -> None:
    """Gives memory back that nothing refers to any more: a trainer and its model refer to each other."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and stored buffers by name, tied ones once, under the first of their names."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor
    return tensors


def _read(checkpoint: Checkpoint) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(checkpoint.path.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors
