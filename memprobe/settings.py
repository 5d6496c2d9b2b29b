"""The settings that turn a checkpoint's tensors into a model: what of its configuration a forward pass reads.

Two adapters of the same tensors and another ``lora_alpha``, or two models of another ``rope_theta``, are two models,
which their tensors' fingerprint does not tell. What is hashed here is brought into one form first, so that the same
model saved by another version of transformers or PEFT stays the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe import adapters
from memprobe.files import read_json

if TYPE_CHECKING:
    from memprobe.checkpoints import Checkpoint

SAYS_NOTHING = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
"""Keys of ``config.json`` that change nothing of what is computed; the tensors' types are in their fingerprint."""

_NOT_READ = SAYS_NOTHING | {
    *(
        "architectures",
        "auto_map",
        "initializer_range",
        "pretraining_tp",
        "gradient_checkpointing",
        "torchscript",
    ),
    *("output_attentions", "output_hidden_states", "return_dict", "problem_type", "id2label", "label2id"),
    *("task_specific_params", "finetuning_task", "attn_implementation", "tie_encoder_decoder"),
    *("pad_token_id", "bos_token_id", "sep_token_id", "unk_token_id"),
    *(
        "eos_token_id",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
    ),  # in another form
}
_NOT_READ_OF_ADAPTERS = {
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode", "task_type"),
    *("runtime_config", "megatron_config", "megatron_core", "loftq_config"),
}
_OF_SIZE = {"max_position_embeddings", "vocab_size"}
_OF_TRAINING = ("dropout", "pdrop", "layerdrop")  # parts of names
_BEGIN = ("_", "summary_")  # private notes, and a head that no causal LM has


def settings_of(checkpoint: Checkpoint) -> str | None:
    """SHA-256 of the settings that a checkpoint's forward pass and its answers' end are read from.

    In it are ``config.json`` (``adapter_config.json`` and the base's of an adapter, both sides' of a graft) and the end
    tokens that ``config.json`` and ``generation_config.json`` name. Left out is what changes no number: versions,
    dtype, names and paths, architectures, dropout, initialisation, other special tokens; and keys that say nothing
    (null, empty, false where that is the default), as later versions write more of them. Rotary settings count alike in
    the old form (``rope_theta``, ``rope_scaling``) and the new one (``rope_parameters``), and so does a default that is
    written out (``head_dim``, ``num_key_value_heads``, ``layer_types``).

    Returns:
        ``None`` where the weights' own file says all of it (GGUF), or nothing says it.

    Raises:
        MemprobeError: a configuration that is no JSON.
    """
    if checkpoint.kind == "graft":
        assert checkpoint.base is not None and checkpoint.donor is not None
        return _joined([settings_of(checkpoint.base), settings_of(checkpoint.donor)])
    if checkpoint.kind == "adapter":
        assert checkpoint.base is not None
        own = _hash(_of_adapter(_read(checkpoint.path / adapters.CONFIG)))
        return _joined([settings_of(checkpoint.base), own])
    config = {} if checkpoint.kind == "gguf" else _read(checkpoint.path / "config.json")
    if not config:
        return None
    return of_config(config, _read(checkpoint.path / "generation_config.json"))


def of_config(config: Mapping[str, Any], generation: Mapping[str, Any], adapter: Any = None) -> str:
    """SHA-256 of a model's settings as its configuration says them; see :func:`settings_of`.

    Args:
        config, generation: as JSON.
        adapter: of a model in memory, the configurations of its adapters by name.
    """
    text = config.get("text_config")
    named = [one.get("eos_token_id") for one in (config, text or {}, generation)]
    ends = {one for name in named for one in (name if isinstance(name, list) else [name]) if one is not None}
    said = {"model": _of_model(config), "ends": sorted(ends)}
    if adapter:
        said["adapters"] = {name: _of_adapter(one) for name, one in adapter.items()}
    return _hash(said)


def forward_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward pass reads of a configuration beside tensors, whose shapes tell the rest, in one form."""
    return {key: value for key, value in _of_model(config).items() if key not in _OF_SIZE}


def _of_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in one form, and those within it (``text_config``)."""
    said = {
        key: _of_model(value) if key.endswith("_config") and isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NOT_READ
        and not key.startswith(_BEGIN)
        and not any(part in key for part in _OF_TRAINING)
    }
    said["rope"] = _rotary(config)
    if config.get("tie_word_embeddings") is False:
        said["own_head"] = True
    said.pop("tie_word_embeddings", None)  # true where it is not written
    heads, width = said.get("num_attention_heads"), said.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads and said.get("head_dim") == width // heads:
        del said["head_dim"]
    if heads is not None and said.get("num_key_value_heads") == heads:
        del said["num_key_value_heads"]
    if isinstance(said.get("layer_types"), list) and set(said["layer_types"]) == {"full_attention"}:
        del said["layer_types"]
    switched_off = [key for key, value in said.items() if value is False]
    if switched_off:
        on = _on_by_default(str(config.get("model_type")))
        said |= {key: "false" for key in switched_off if key in on}
    return _spoken(said)


@cache
def _on_by_default(model_type: str) -> frozenset[str]:
    """Keys of a kind of model that are true where they are not written; none of a kind that is not known."""
    from transformers import CONFIG_MAPPING

    with suppress(Exception):  # of some kinds no configuration can be made of nothing
        return frozenset(
            key for key, value in CONFIG_MAPPING[model_type]().to_dict().items() if value is True
        )
    return frozenset()


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings in one form, whether they stand beside each other or in ``rope_parameters``."""
    rope = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for name in ("rope_scaling", "rope_parameters"):
        found = config.get(name)
        rope |= found if isinstance(found, Mapping) else {}
    kind = rope.pop("type", None)
    rope["rope_type"] = rope.get("rope_type") or kind
    return {key: value for key, value in rope.items() if (key, value) != ("rope_type", "default")}


def _of_adapter(config: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's configuration in one form; names of modules stand in the order of a set."""
    said = {
        key: sorted(value)
        if isinstance(value, list) and all(isinstance(one, str) for one in value)
        else value
        for key, value in config.items()
        if key not in _NOT_READ_OF_ADAPTERS and not any(part in key for part in _OF_TRAINING)
    }
    # How training began, but for beginnings that change the base.
    if not isinstance(said.get("init_lora_weights"), str):
        said.pop("init_lora_weights", None)
    if not said.get("use_qalora"):
        said.pop("qalora_group_size", None)
    return {key: value for key, value in _spoken(said).items() if (key, value) != ("bias", "none")}


def _spoken(value: Any) -> Any:
    """Without keys that say nothing, and each number as one kind of number."""
    if isinstance(value, Mapping):
        plain = {str(key): _spoken(one) for key, one in value.items()}
        return {key: one for key, one in plain.items() if one is not False and one not in (None, {}, [], "")}
    if isinstance(value, list | tuple):
        return [_spoken(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path, own=False) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _joined(parts: Iterable[str | None]) -> str:
    return _hash(list(parts))


def _hash(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
