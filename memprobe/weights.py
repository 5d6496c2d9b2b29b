"""The weight files of a checkpoint as files: which there are, whether they are whole, and their fingerprint.

Nothing is loaded: names, shapes and bytes come from the safetensors headers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from memprobe.errors import MemprobeError, first_line
from memprobe.files import read_valid

if TYPE_CHECKING:
    from torch import nn

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
_NOT_WEIGHTS = {"training_args.bin"}
_LAYER_NAMES = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "decoder_layers")
_MOST_LAYERS = 10_000


class IndexFile(BaseModel):
    """``model.safetensors.index.json``: which file holds each weight."""

    model_config = ConfigDict(extra="allow", strict=True)

    weight_map: dict[str, str]


Id = Annotated[int, Field(ge=-(2**31), lt=2**31)]  # whatever is read of it becomes a 32- or 64-bit number
Ids = Id | list[Id] | None


class GenerationFile(BaseModel):
    """``generation_config.json``: what ends an answer; the rest of it is not used."""

    model_config = ConfigDict(extra="allow", strict=True)

    eos_token_id: Ids = None


class ConfigFile(BaseModel):
    """``config.json``: what is read of it before transformers does."""

    model_config = ConfigDict(extra="allow", strict=True)

    eos_token_id: Ids = None
    architectures: list[str] | None = None
    model_type: str | None = None
    is_encoder_decoder: bool | None = None


def files_like(path: Path, patterns: Iterable[str]) -> list[Path]:
    """Files (or links to some) in a folder by name, in order."""
    files = (file for pattern in patterns for file in path.glob(pattern) if file.is_file())
    return sorted(file for file in files if file.name not in _NOT_WEIGHTS)


def safetensors_in(path: Path) -> list[Path]:
    """The safetensors files of a folder, each of which is whole, as are those that an index names.

    Raises:
        MemprobeError: one is truncated, corrupt or missing, or an index is broken.
    """
    from safetensors import SafetensorError, safe_open

    files = files_like(path, ("*.safetensors",))
    for file in files:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise MemprobeError(f"{file}: truncated or corrupt ({first_line(error)})") from error
    for index in path.glob("*.safetensors.index.json"):
        named = read_valid(index, IndexFile, own=False)["weight_map"]
        for name in sorted(set(named.values())):
            if not is_beside(name):
                raise MemprobeError(f"{index}: names {name!r}, which is not in this folder")
            if not (path / name).is_file():
                raise MemprobeError(f"{path}: {index.name} names {name}, which is missing")
    return files


def is_beside(name: str) -> bool:
    """Whether a file name stays within its folder: no absolute path, no way up."""
    pure = PurePosixPath(name.replace("\\", "/"))
    return bool(name) and not pure.is_absolute() and ".." not in pure.parts and ":" not in name


def tensors(files: Iterable[Path]) -> Iterable[tuple[str, str, tuple[Path, int, int]]]:
    """(name, dtype and shape, where its bytes are) of every tensor in safetensors files."""
    for file in files:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                yield name, f"{entry['dtype']} {entry['shape']}", (file, start, end)


def check_config(path: Path, files: list[Path]) -> None:
    """Refuses a configuration of more layers than any weights could fill: building them would never end.

    Raises:
        MemprobeError: so, or ``config.json`` says what it may not.
    """
    config = read_valid(path / "config.json", ConfigFile, own=False)
    if (generation := path / "generation_config.json").exists():
        read_valid(generation, GenerationFile, own=False)
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    most = max(256, sum(1 for _ in tensors(files))) if files else _MOST_LAYERS
    for part in parts:
        for name in _LAYER_NAMES:
            layers = part.get(name)
            if isinstance(layers, int) and layers > most:
                held = (
                    f"the files hold {sum(1 for _ in tensors(files))} weights"
                    if files
                    else "no model has so many"
                )
                raise MemprobeError(f"{path / 'config.json'}: {name} is {layers}, and {held}")


def has_tokenizer(path: Path) -> bool:
    """Whether a folder holds a tokenizer's own files."""
    return any((path / name).is_file() for name in TOKENIZER_FILES)


def hash_tensors(files: Iterable[Path], digest: Any) -> None:
    """Adds tensors' names, types, shapes and bytes to a digest, in the order of their names."""
    for name, meta, (file, start, end) in sorted(tensors(files)):
        digest.update(f"{name} {meta}".encode())
        with file.open("rb") as handle:
            handle.seek(start)
            remaining = end - start
            while remaining > 0:
                block = handle.read(min(remaining, 1 << 24))
                digest.update(block)
                remaining -= len(block)


def hash_files(files: Iterable[Path], digest: Any) -> None:
    """Adds the bytes of files to a digest."""
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(1 << 24):
                digest.update(block)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    hash_files([path], digest)
    return digest.hexdigest()


def fingerprint_model(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's tensors, tied ones once."""
    import torch

    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
