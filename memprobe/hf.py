"""Files in Hugging Face's formats become models and tokenizers, or one line that says why not.

Nothing here knows checkpoint specs: callers give folders (:mod:`memprobe.checkpoints` finds them).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memprobe.errors import MemprobeError, first_line
from memprobe.weights import has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_model(
    path: Path,
    dtype: torch.dtype,
    *,
    name: str,
    gguf_file: str | None = None,
    safetensors: bool = True,
    trust_remote_code: bool = False,
    **placement: Any,
) -> PreTrainedModel:
    """A causal LM from a folder.

    Args:
        name: what errors call it.
        gguf_file: the file in the folder, for GGUF.
        safetensors: read these and nothing else.
        placement: transformers' ``device_map``, ``max_memory``, ``offload_folder``.

    Raises:
        MemprobeError: it cannot be loaded, or the files hold fewer or more weights than its configuration names.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    with quiet(bars=gguf_file is not None):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=safetensors or None,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **options,
                **placement,
            )
        except Exception as error:  # transformers raises many kinds; every one means these files are unusable
            raise MemprobeError(f"{name}: cannot be loaded as a causal LM ({first_line(error)})") from error
    if missing := sorted(info["missing_keys"]):
        raise MemprobeError(f"{name}: {len(missing)} weights are missing, the first is {missing[0]}")
    if unexpected := sorted(map(str, info["unexpected_keys"])):
        raise MemprobeError(
            f"{name}: {len(unexpected)} weights belong to no part of {type(model).__name__} as config.json describes "
            f"it, the first is {unexpected[0]}"
        )
    if wrong := sorted(info["mismatched_keys"]):
        raise MemprobeError(f"{name}: the shape of {wrong[0]} does not fit config.json")
    return model


def read_tokenizer(
    path: Path, *, name: str, gguf_file: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        MemprobeError: its files are not there (some families would get an empty one), or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if gguf_file is None and not has_tokenizer(path):
        raise MemprobeError(_no_tokenizer(name, path))
    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        with quiet(bars=gguf_file is not None):
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
            if tokenizer is not None:  # some settings are only looked at when a text is read
                tokenizer.decode(tokenizer("a text").input_ids)
    except Exception as error:  # transformers raises many kinds
        raise MemprobeError(
            f"{name}: no usable tokenizer ({first_line(error)}); --tokenizer SPEC takes another's"
        ) from error
    if tokenizer is None:
        raise MemprobeError(f"{name}: no usable tokenizer; --tokenizer SPEC takes another's")
    files = [*getattr(tokenizer, "vocab_files_names", {}).values(), "tokenizer.json"]
    if gguf_file is None and len(files) > 1 and not any((path / str(file)).is_file() for file in files):
        raise MemprobeError(_no_tokenizer(name, path))
    return tokenizer


def _no_tokenizer(name: str, path: Path) -> str:
    return (
        f"{name}: no tokenizer files in {path} (tokenizer.json, or tokenizer.model or another vocabulary); "
        "--tokenizer SPEC takes another checkpoint's, such as that of the base model"
    )


def convert_gguf(source: Path, target: Path) -> None:
    """Writes a GGUF file as a Hugging Face directory with dequantised fp32 weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(bars=True):
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        # The weights are plain fp32 now; only these marks make save_pretrained refuse.
        del model.config.quantization_config
        for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
            if mark in model.__dict__:
                delattr(model, mark)
        assert tokenizer is not None
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)


@contextlib.contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """transformers without progress bars and load reports: errors come as exceptions.

    Args:
        bars: also hold back what is written to standard error: the GGUF reader's bar obeys no option.
    """
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()) if bars else contextlib.nullcontext():
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
