"""A PEFT adapter merged into its base model.

The merged model must be the one that PEFT runs unmerged; that is checked, and weights that would be lost on the way
are refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memprobe.adapters import CONFIG
from memprobe.errors import MemprobeError, first_line
from memprobe.files import read_json
from memprobe.quantised import is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.")  # held once, though many modules name them


def merge_adapter(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """A model with the adapter of a folder merged into its weights; laid over them where they are quantised.

    Tied embeddings are taken apart first where the adapter changes one of them, and the base gets as many embedding
    rows as were saved with the adapter.

    Raises:
        MemprobeError: weights of the adapter find no module or are missing, shapes differ, its kind cannot be merged,
            or merging changes what the model says.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import load_peft_weights
    from peft.utils.other import AuxiliaryTrainingWrapper

    config = _config(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing keys, which are refused below
            saved = load_peft_weights(str(path), device="cpu")
            _resize(model, saved)
            adapted: Any = PeftModel.from_pretrained(model, str(path), config=config)
            result = adapted.load_adapter(str(path), "default")
    except Exception as error:  # PEFT raises many kinds
        raise MemprobeError(
            f"{path}: this adapter does not fit its base model ({first_line(error)})"
        ) from error
    if lost := sorted(result.unexpected_keys):
        raise MemprobeError(
            f"{path}: {len(lost)} of {len(saved)} adapter weights fit no module of the base model, the first is "
            f"{lost[0]}; was it saved from a compiled or renamed model?"
        )
    missing = sorted(key for key in result.missing_keys if not any(part in key for part in _SHARED))
    if missing:
        raise MemprobeError(f"{path}: {len(missing)} adapter weights are missing, the first is {missing[0]}")
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type.value
        raise MemprobeError(f"{path}: an adapter of kind {kind} cannot be merged into its base model")
    adapted.eval()
    if is_quantised(model):  # rounded to few bits, the sum would be another model
        return adapted.get_base_model()
    before = _logits(adapted)
    inner = adapted.get_base_model()
    ends = (inner.get_input_embeddings(), inner.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer | AuxiliaryTrainingWrapper) for end in ends):
        _untie(inner)
    try:
        merged = adapted.merge_and_unload()
    except Exception as error:
        raise MemprobeError(f"{path}: the adapter cannot be merged ({first_line(error)})") from error
    difference = float((before - _logits(merged)).abs().max())
    largest = max(1.0, float(before.abs().max()))
    if not difference <= (1e-3 if merged.dtype == torch.float32 else 0.05) * largest:
        raise MemprobeError(
            f"{path}: merged into its base model, the adapter gives other logits than beside it "
            f"(they differ by {difference:.2g})"
        )
    return merged


def _config(path: Path) -> Any:
    """The adapter's configuration. PEFT leaves out with a warning what it does not know, and reads another adapter.

    Raises:
        MemprobeError: it cannot be read, or says something that the installed PEFT does not know.
    """
    from peft import PeftConfig, __version__

    file = path / CONFIG
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(path))
    except Exception as error:  # PEFT raises many kinds
        raise MemprobeError(f"{file}: PEFT cannot read it ({first_line(error)})") from error
    settings = read_json(file, own=False)
    unknown = sorted(key for key, value in settings.items() if value and not hasattr(config, key))
    if unknown:
        raise MemprobeError(
            f"{file}: the installed PEFT {__version__} does not know {', '.join(unknown)}; a later one does"
        )
    return config


def _resize(model: PreTrainedModel, saved: dict[str, torch.Tensor]) -> None:
    """Gives the base the embedding rows that were saved with an adapter whose tokens were added."""
    embeddings: Any = model.get_input_embeddings()
    rows, width = embeddings.weight.shape
    ends = [module for module in (embeddings, model.get_output_embeddings()) if module is not None]
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    sizes = {
        len(tensor)
        for key, tensor in saved.items()
        if any(key.endswith((f".{name}.weight", f".{name}.base_layer.weight")) for name in names)
        and tensor.ndim == 2
        and tensor.shape[1] == width
    }
    if len(sizes) == 1 and (wanted := sizes.pop()) != rows:
        model.resize_token_embeddings(wanted, mean_resizing=False)


def _untie(model: PreTrainedModel) -> None:
    """Gives every module that shares a parameter with an earlier one a copy of its own."""
    seen: set[int] = set()
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) in seen:
            owner, _, leaf = name.rpartition(".")
            copy = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(model.get_submodule(owner), leaf, copy)
        seen.add(id(parameter))
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False


def _logits(model: Any) -> torch.Tensor:
    """Logits of a few fixed tokens."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(3, 19, device=model.device)[None] % vocabulary
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits.float()
