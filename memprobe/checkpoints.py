"""A checkpoint spec becomes files on disk, a fingerprint, and the manifest that training left there.

Specs: a Hugging Face directory, a hub id (``owner/name`` or ``owner/name@revision``), a PEFT adapter
directory, a run directory of ``training`` or one of its stages, a GGUF file or its directory, and the alias
``smollm2-135m``. ``LABEL=SPEC`` names it. No weights are loaded here (see :mod:`memprobe.models`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memprobe import smollm2
from memprobe.errors import MemprobeError
from memprobe.files import read_json

MANIFEST = "memprobe.json"
MANIFEST_SCHEMA = 1

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_STAGE = re.compile(r"([1-9]\d*)-(.+)")  # 0 is the base model's evaluation, no checkpoint
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What training wrote beside the weights (``memprobe.json``).

    Attributes:
        path: the file.
        template: prompt template of the run.
        arm: what was done against forgetting.
        seed: training seed.
        stage: index of the stage, from 1.
        stage_name: its name.
        steps: optimiser steps of the stage.
        data: everything in the file.
    """

    path: Path
    template: str
    arm: str
    seed: int
    stage: int
    stage_name: str
    steps: int
    data: dict[str, Any]

    def stage_factoids(self, stage: int = 1) -> Path:
        """The factoid file of a stage.

        Raises:
            MemprobeError: the manifest names none, or the file is gone or was changed.
        """
        for entry in self.data.get("stages", []):
            if entry["index"] == stage:
                path = self.path.parent / entry["factoids"]
                if not path.exists():
                    raise MemprobeError(
                        f"{self.path}: stage {stage}'s factoids {path} are gone; give --factoids"
                    )
                if hashlib.sha256(path.read_bytes()).hexdigest() != entry["hash"]:
                    raise MemprobeError(
                        f"{path}: changed since {self.path.name} was written; give --factoids"
                    )
                return path
        raise MemprobeError(f"{self.path}: names no factoids of stage {stage}; give --factoids")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A resolved spec: local files that can be read without the network.

    Attributes:
        spec: as the user gave it.
        label: its name in tables and plots.
        path: directory with ``config.json`` (or ``adapter_config.json``), or of a GGUF file.
        kind: ``weights`` (safetensors), ``pickle``, ``gguf`` or ``adapter``.
        gguf_file: the file's name, for ``gguf``.
        base: the checkpoint that an adapter is merged onto.
        manifest: what training left there, if anything.
        note: what a reader of results must know about the weights.
    """

    spec: str
    label: str
    path: Path
    kind: Literal["weights", "pickle", "gguf", "adapter"]
    gguf_file: str | None = None
    base: Checkpoint | None = None
    manifest: Manifest | None = None
    note: str | None = None


def split_label(text: str) -> tuple[str | None, str]:
    """``LABEL=SPEC`` as (label, spec); a text without ``=`` (or an existing path) has no label."""
    label, equals, spec = text.partition("=")
    if not equals or Path(text).exists():
        return None, text
    if not label.strip() or not spec.strip():
        raise MemprobeError(f"--ckpt {text!r}: write SPEC or LABEL=SPEC")
    return label.strip(), spec.strip()


def resolve(spec: str, *, allow_pickle: bool = False) -> Checkpoint:
    """Finds a checkpoint's files, fetching them where the spec is a hub id.

    Args:
        spec: ``SPEC`` or ``LABEL=SPEC``.
        allow_pickle: read pickled weights, which can run code.

    Raises:
        MemprobeError: nothing there, no config, no weights, pickled weights without the option, a torn file.
    """
    label, spec = split_label(spec)
    if spec == smollm2.ALIAS:
        return Checkpoint(spec, label or spec, smollm2.folder(cache_dir()), "weights", note=smollm2.NOTE)
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return Checkpoint(spec, label or path.stem, path.parent, "gguf", gguf_file=path.name)
    if not path.exists():
        path = _stage_by_name(path) or _from_hub(spec, allow_pickle)
    if not path.is_dir():
        raise MemprobeError(f"{spec}: not a directory, a GGUF file or a hub id")
    path = _last_stage(path)
    name = label or (spec if _HUB_ID.fullmatch(spec) and not Path(spec).exists() else path.resolve().name)
    return _inspect(spec, name, path, allow_pickle)


def resolve_all(specs: Iterable[str], *, allow_pickle: bool = False) -> list[Checkpoint]:
    """:func:`resolve` for each.

    Raises:
        MemprobeError: two checkpoints share a label.
    """
    checkpoints = [resolve(spec, allow_pickle=allow_pickle) for spec in specs]
    labels = [checkpoint.label for checkpoint in checkpoints]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise MemprobeError(f"two checkpoints are called {repeated[0]!r}; name them, as in --ckpt LABEL=SPEC")
    return checkpoints


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a checkpoint directory; ``None`` where there is none.

    Raises:
        MemprobeError: it is broken, or of another schema.
    """
    file = path / MANIFEST
    if not file.exists():
        return None
    data = read_json(file)
    if not isinstance(data, dict) or data.get("schema") != MANIFEST_SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise MemprobeError(f"{file}: manifest schema {found!r}; this memprobe reads {MANIFEST_SCHEMA}")
    try:
        return Manifest(
            path=file,
            template=data["template"],
            arm=data["arm"],
            seed=data["seed"],
            stage=data["stage"],
            stage_name=data["stage_name"],
            steps=data["steps"],
            data=data,
        )
    except KeyError as error:
        raise MemprobeError(f"{file}: the manifest lacks {error.args[0]!r}") from error


def common_template(checkpoints: Iterable[Checkpoint]) -> str | None:
    """The template that all manifests name; ``None`` where there is no manifest.

    Raises:
        MemprobeError: they differ.
    """
    named = {
        checkpoint.label: checkpoint.manifest.template for checkpoint in checkpoints if checkpoint.manifest
    }
    if len(set(named.values())) > 1:
        said = ", ".join(f"{label}: {template!r}" for label, template in named.items())
        raise MemprobeError(
            f"the checkpoints were trained with different templates ({said}); give --template"
        )
    return next(iter(named.values()), None)


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over the tensors' names, types, shapes and bytes, in the order of their names.

    Two checkpoints with the same weights have the same fingerprint, however the files are sharded. GGUF and
    pickled files are hashed as they are; an adapter together with its base.
    """
    digest = hashlib.sha256()
    if checkpoint.kind == "adapter":
        assert checkpoint.base is not None
        digest.update(fingerprint(checkpoint.base).encode())
    if checkpoint.kind == "gguf":
        assert checkpoint.gguf_file is not None
        return _hash_files([checkpoint.path / checkpoint.gguf_file], digest)
    if checkpoint.kind == "pickle":
        return _hash_files(_weight_files(checkpoint.path, _PICKLES), digest)
    for name, meta, content in sorted(_tensors(_weight_files(checkpoint.path, ("*.safetensors",)))):
        digest.update(f"{name} {meta}".encode())
        file, start, end = content
        with file.open("rb") as handle:
            handle.seek(start)
            left = end - start
            while left > 0:
                block = handle.read(min(left, 1 << 24))
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def _tensors(files: Iterable[Path]) -> Iterable[tuple[str, str, tuple[Path, int, int]]]:
    """(name, dtype and shape, where its bytes are), read from the safetensors headers."""
    for file in files:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                yield name, f"{entry['dtype']} {entry['shape']}", (file, start, end)


def _hash_files(files: Iterable[Path], digest: Any) -> str:
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _weight_files(path: Path, patterns: Iterable[str]) -> list[Path]:
    skip = {"training_args.bin"}
    return sorted(file for pattern in patterns for file in path.glob(pattern) if file.name not in skip)


def _inspect(spec: str, label: str, path: Path, allow_pickle: bool) -> Checkpoint:
    manifest = read_manifest(path)
    safetensors = _weight_files(path, ("*.safetensors",))
    for file in safetensors:
        _check_safetensors(file)
    for index in path.glob("*.safetensors.index.json"):
        for name in set(read_json(index)["weight_map"].values()):
            if not (path / name).exists():
                raise MemprobeError(f"{path}: {index.name} names {name}, which is missing")
    if (path / "adapter_config.json").exists():
        base_spec = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        if not base_spec:
            raise MemprobeError(f"{path / 'adapter_config.json'}: names no base model")
        if not safetensors:
            raise MemprobeError(f"{path}: an adapter without safetensors weights")
        beside = path / base_spec
        base = resolve(str(beside) if beside.is_dir() else base_spec, allow_pickle=allow_pickle)
        return Checkpoint(spec, label, path, "adapter", base=base, manifest=manifest)
    ggufs = sorted(path.glob("*.gguf"))
    if not (path / "config.json").exists():
        if len(ggufs) == 1:
            return Checkpoint(spec, label, path, "gguf", gguf_file=ggufs[0].name, manifest=manifest)
        raise MemprobeError(f"{path}: no config.json, so this is no Hugging Face checkpoint")
    read_json(path / "config.json")
    if safetensors:
        return Checkpoint(spec, label, path, "weights", manifest=manifest)
    if pickles := _weight_files(path, _PICKLES):
        if not allow_pickle:
            raise MemprobeError(
                f"{path}: the weights are pickled ({pickles[0].name}), which can run code; "
                "--allow-pickle reads them if you trust their origin"
            )
        return Checkpoint(spec, label, path, "pickle", manifest=manifest)
    raise MemprobeError(f"{path}: has a config.json but no weights (*.safetensors)")


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise MemprobeError(f"{file}: truncated or corrupt ({error})") from error


def _last_stage(path: Path) -> Path:
    """The last finished stage of a run directory; any other directory is itself."""
    if not (path / "recipe.toml").exists() or (path / "config.json").exists():
        return path
    stages = sorted(
        (int(match[1]), child)
        for child in path.iterdir()
        if (match := _STAGE.fullmatch(child.name)) and (child / MANIFEST).exists()
    )
    if not stages:
        raise MemprobeError(f"{path}: a run directory without a finished stage yet")
    return stages[-1][1]


def _stage_by_name(path: Path) -> Path | None:
    """``RUN/NAME`` for the stage directory ``RUN/2-NAME``."""
    if not (path.parent / "recipe.toml").exists():
        return None
    matches = [
        child
        for child in path.parent.iterdir()
        if (match := _STAGE.fullmatch(child.name)) and match[2] == path.name
    ]
    return matches[0] if len(matches) == 1 else None


def _from_hub(spec: str, allow_pickle: bool) -> Path:
    first = Path(spec).parts[0] if Path(spec).parts else ""
    if not _HUB_ID.fullmatch(spec) or first in (".", "..") or Path(first).exists():
        raise MemprobeError(f"{spec}: no such file or directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = spec.partition("@")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *(_PICKLES if allow_pickle else ())]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise MemprobeError(
            f"{spec}: no such directory, and the hub gave no model of that id ({str(error).splitlines()[0]})"
        ) from error


def cache_dir() -> Path:
    """Where memprobe keeps what it converts: ``MEMPROBE_CACHE``, else ``memprobe`` in the user's cache folder."""
    if chosen := os.environ.get("MEMPROBE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memprobe"
