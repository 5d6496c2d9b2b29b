"""Checkpoints whose weights are quantised: bitsandbytes, GPTQ, AWQ and whatever else transformers reads.

They are read as they run: weights stay in their few bits, and the check at load holds for them as for all. Products of
some kinds depend on what else is computed with them (LLM.int8 chooses for a whole batch, later tokens among it, which
columns it computes apart): :func:`moved_by_company` measures by how much.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memprobe.errors import MemprobeError
from memprobe.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEY = "quantization_config"
_LIBRARIES = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
}
"""By quantisation method, the packages that transformers reads it with."""
_NEAR, _FAR = 1e-4, 0.05  # of the largest logit: what rounding may do, and what is too far
_BITS = {"load_in_4bit": 4, "load_in_8bit": 8}


def described(folder: Path) -> dict[str, Any] | None:
    """What ``config.json`` says of a checkpoint's quantisation; ``None`` where its weights are plain."""
    file = folder / "config.json"
    config = read_json(file, own=False) if file.is_file() else None
    settings = config.get(_KEY) if isinstance(config, dict) else None
    return settings if isinstance(settings, dict) else None


def method(settings: dict[str, Any]) -> str:
    """The name of a quantisation method, as transformers writes it."""
    if settings.get("quant_method") in (None, "bitsandbytes_4bit", "bitsandbytes_8bit"):
        return "bitsandbytes"
    return str(settings["quant_method"])


def note(folder: Path) -> str | None:
    """What readers of results must know of a checkpoint's weights."""
    settings = described(folder)
    if settings is None:
        return None
    bits = settings.get("bits") or next((bits for name, bits in _BITS.items() if settings.get(name)), None)
    return f"weights quantised by {method(settings)}" + (f" to {bits} bits" if bits else "")


def placement(folder: Path, device: torch.device, name: str) -> dict[str, Any]:
    """How quantised weights are loaded: straight to their device. Nothing for plain ones.

    Args:
        name: what errors call the checkpoint.

    Raises:
        MemprobeError: packages that read them are not installed.
    """
    settings = described(folder)
    if settings is None:
        return {}
    needed = _LIBRARIES.get(method(settings), ())
    missing = [one for one in needed if not _installed(one)]
    if missing:
        raise MemprobeError(
            f"{name}: its weights are quantised ({method(settings)}), which is read with {' and '.join(needed)}: "
            f"python -m pip install {' '.join(missing)}"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says at every product that inputs are cast
    return {"device_map": {"": device}}


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package.replace("-", ".")) is not None
    except ModuleNotFoundError:  # of "optimum-quanto" where there is no optimum either
        return False


def is_quantised(model: Any) -> bool:
    """Whether a model computes with quantised weights; a GGUF file's are plain once it is read."""
    named = getattr(model, "quantization_method", None)
    return named is not None and getattr(named, "value", named) != "gguf"


def moved_by_company(model: PreTrainedModel, ids: Tensor, label: str) -> float:
    """How far a prompt's logits move when a longer text stands beside it in the batch: 0 if no more than by rounding.

    Args:
        ids: [1, position].

    Raises:
        MemprobeError: so far that a batch would say nothing of one prompt.
    """
    length = max(1, ids.shape[1] // 2)
    short, whole = ids[:, :length], ids.flip(1)
    filled = torch.cat([short, short.new_zeros(1, ids.shape[1] - length)], dim=1)
    alone = model(input_ids=short, use_cache=False).logits[0].float()
    beside = model(input_ids=torch.cat([filled, whole]), use_cache=False).logits[0, :length].float()
    moved, largest = float((alone - beside).abs().max()), float(alone.abs().max())
    if not moved <= _FAR * max(1.0, largest):
        raise MemprobeError(
            f"{label}: in a batch, the logits of {type(model).__name__} differ by {moved:.2g} from those of a prompt "
            "alone, as quantised products may; its depths would be read wrongly"
        )
    return moved if moved > max(_NEAR, _NEAR * largest) else 0.0


def notes_on_company(moved: float) -> list[str]:
    """What readers of results must know of it."""
    if not moved:
        return []
    return [
        f"quantised products depend on the batch: a prompt's logits move by {moved:.2g} beside another text"
    ]
