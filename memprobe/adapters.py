"""PEFT adapters as they lie in a folder or stand in memory; :mod:`memprobe.merging` merges one into its base.

An adapter that adds virtual tokens instead of weights is refused: a lens that reads tokens cannot place them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from memprobe.errors import MemprobeError
from memprobe.files import read_valid

CONFIG = "adapter_config.json"
SAFETENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_PROMPT_LEARNING = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT")


class AdapterFile(BaseModel):
    """``adapter_config.json``: of what PEFT writes, what finding the base asks for."""

    model_config = ConfigDict(extra="allow", strict=True)

    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_type: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What ``adapter_config.json`` says.

    Attributes:
        base: the base model, as it was called where the adapter was trained.
        revision: of the base model on the hub.
        pickled: whether the weights are pickled.
    """

    base: str | None
    revision: str | None
    pickled: bool


def read_config(path: Path) -> AdapterConfig:
    """The configuration of the adapter in a folder.

    Raises:
        MemprobeError: it is broken, there are no weights, or it adds virtual tokens instead of weights.
    """
    file = path / CONFIG
    config = AdapterFile.model_validate(read_valid(file, AdapterFile, own=False))
    if config.peft_type in _PROMPT_LEARNING:
        raise MemprobeError(f"{file}: {_said_of_virtual_tokens(config.peft_type)}")
    if not (path / SAFETENSORS).is_file() and not (path / PICKLE).is_file():
        raise MemprobeError(f"{path}: an adapter without weights ({SAFETENSORS})")
    return AdapterConfig(
        base=config.base_model_name_or_path or None,
        revision=config.revision or None,
        pickled=not (path / SAFETENSORS).is_file(),
    )


def check_in_memory(model: Any, label: str) -> Any:
    """The model without PEFT's wrapper, its adapters in place; any other model is itself.

    Raises:
        MemprobeError: it adds virtual tokens, which stand before every text and are no part of its blocks.
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(model, "get_base_model"):
        return model
    for config in configs.values():
        if config.is_prompt_learning:
            raise MemprobeError(f"{label}: {_said_of_virtual_tokens(str(config.peft_type.value))}")
    return model.get_base_model()


def _said_of_virtual_tokens(kind: str) -> str:
    return f"{kind} adds virtual tokens before every text; a lens that reads tokens cannot place them"
