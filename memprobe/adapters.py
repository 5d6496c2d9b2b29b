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
_NOT_REPEATED = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Beginnings of those ``init_lora_weights`` that take something off the base which nobody can take off it again: by a
randomised decomposition, by data, by a quantisation."""
_OF_THE_WRAPPER = ("XLORA", "POLY")
_PROMPT_LEARNING = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT")


class AdapterFile(BaseModel):
    """``adapter_config.json``: of what PEFT writes, what finding the base asks for."""

    model_config = ConfigDict(extra="allow", strict=True)

    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_type: str | None = None
    init_lora_weights: bool | str | None = None


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
        MemprobeError: it is broken, there are no weights, it adds virtual tokens instead of weights, or it belongs to
            a base that cannot be made again.
    """
    file = path / CONFIG
    config = AdapterFile.model_validate(read_valid(file, AdapterFile, own=False))
    if config.peft_type in _PROMPT_LEARNING:
        raise MemprobeError(f"{file}: {_virtual_tokens(config.peft_type)}")
    if str(config.init_lora_weights).lower().startswith(_NOT_REPEATED):
        raise MemprobeError(
            f"{file}: init_lora_weights={config.init_lora_weights!r} changed the base model in a way that cannot be "
            "repeated; save the adapter as plain LoRA (PEFT's path_initial_model_for_weight_conversion), or merged"
        )
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
        MemprobeError: its wrapper does something that is no part of its blocks: virtual tokens before every text,
            an adapter that waits for some tokens, weights for several adapters that are found by a pass of their own.
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(model, "get_base_model"):
        return model
    for config in configs.values():
        if config.is_prompt_learning:
            raise MemprobeError(f"{label}: {_virtual_tokens(str(config.peft_type.value))}")
        if getattr(config, "alora_invocation_tokens", None):
            raise MemprobeError(
                f"{label}: an activated LoRA works after its invocation tokens alone; not supported"
            )
        if config.peft_type.value in _OF_THE_WRAPPER:
            raise MemprobeError(
                f"{label}: {config.peft_type.value} chooses among adapters for each text; not supported"
            )
    return model.get_base_model()


def _virtual_tokens(kind: str) -> str:
    return f"{kind} adds virtual tokens before every text; a lens that reads tokens cannot place them"
