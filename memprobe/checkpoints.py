"""A checkpoint spec becomes files on disk, a fingerprint, and the manifest that training left there.

Specs: a Hugging Face directory, a hub id (``owner/name`` or ``owner/name@revision``), a PEFT adapter
directory, a run directory of ``training`` or one of its stages, a GGUF file or its directory, the alias of a
packaged model (:mod:`memprobe.packaged`), and ``graft(INTO, FROM, blocks=5-10)`` of two of them
(:mod:`memprobe.grafts`). ``LABEL=SPEC`` names it. No weights are loaded here (see :mod:`memprobe.models`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from memprobe import adapters, quantised
from memprobe.errors import MemprobeError, among, first_line
from memprobe.files import exists
from memprobe.grafts import Graft, is_graft, parse_graft
from memprobe.labels import split_name
from memprobe.load_options import LoadOptions
from memprobe.manifests import Manifest, last_stage, read_manifest, stage_by_name, without_weights
from memprobe.packaged import PACKAGED, folder
from memprobe.templates import PLAIN
from memprobe.weights import (
    PICKLES,
    check_config,
    files_like,
    has_tokenizer,
    hash_files,
    hash_tensors,
    safetensors_in,
)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PATH = re.compile(r"\.{0,2}/|~")
# Models from before the hub had owners, by what everyone still calls them.
OLD_NAMES = {
    name: f"{owner}/{name}"
    for owner, names in {
        "openai-community": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "openai-gpt"),
        "distilbert": ("distilgpt2",),
        "Salesforce": ("ctrl",),
    }.items()
    for name in names
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A resolved spec: local files that can be read without the network.

    Attributes:
        spec: as the user gave it.
        label: its name in tables and plots.
        path: directory with ``config.json`` (or ``adapter_config.json``), or of a GGUF file.
        kind: ``weights`` (safetensors), ``pickle``, ``gguf``, ``adapter`` or ``graft``.
        gguf_file: the file's name, for ``gguf``.
        base: the checkpoint that an adapter is merged onto, or that weights are grafted into.
        manifest: what training left there, if anything.
        note: what a reader of results must know about the weights.
        tokenizer: the checkpoint whose tokenizer is taken; ``None`` for its own.
        donor: the checkpoint that grafted weights come from.
        graft: which weights do.
    """

    spec: str
    label: str
    path: Path
    kind: Literal["weights", "pickle", "gguf", "adapter", "graft"]
    gguf_file: str | None = None
    base: Checkpoint | None = None
    manifest: Manifest | None = None
    note: str | None = None
    tokenizer: Checkpoint | None = None
    donor: Checkpoint | None = None
    graft: Graft | None = None


def made_of(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """A checkpoint and all that it is read from: its base, its donor, the one whose tokenizer is taken, and theirs."""
    yield checkpoint
    for part in (checkpoint.base, checkpoint.donor, checkpoint.tokenizer):
        if part is not None:
            yield from made_of(part)


def split_label(text: str) -> tuple[str | None, str]:
    """``LABEL=SPEC`` as (label, spec); a text without ``=`` (or an existing path) has no label.

    A label may hold ``=`` itself: the split is at the last one that leaves something that exists, or a hub id after
    a label without slashes; else at the first.
    """
    if is_graft(text) or exists(text):
        return None, text
    label, spec = split_name(
        text,
        lambda label, spec: (
            exists(spec) or spec in PACKAGED or ("/" not in label and _HUB_ID.fullmatch(spec) is not None)
        ),
    )
    if label == "" or not spec:
        raise MemprobeError(f"--ckpt {text!r}: write SPEC or LABEL=SPEC")
    return label, spec


def resolve(spec: str, loading: LoadOptions = LoadOptions()) -> Checkpoint:
    """Finds a checkpoint's files, fetching them where the spec is a hub id.

    Args:
        spec: ``SPEC`` or ``LABEL=SPEC``.

    Raises:
        MemprobeError: nothing there, no config, no weights, pickled weights without the option, a torn file, or an
            adapter whose base is not here.
    """
    how = _How(loading.allow_pickle, loading.trust_remote_code, loading.base)
    checkpoint = _resolve(spec, how)
    if loading.tokenizer is None:
        return checkpoint
    return replace(checkpoint, tokenizer=_resolve_tokenizer(loading.tokenizer, how))


@dataclass(frozen=True, slots=True)
class _How:
    """What a user allowed, and whether the hub may be asked: only where a spec of the user's names it."""

    allow_pickle: bool
    trust_remote_code: bool
    base: str | None
    offline: bool = False
    above: tuple[Path, ...] = ()  # adapters that led here


def _resolve(text: str, how: _How) -> Checkpoint:
    label, spec = split_label(text)
    if is_graft(spec):
        return _graft(spec, label, how)
    if (model := PACKAGED.get(spec)) is not None:
        return Checkpoint(spec, label or spec, folder(model, cache_dir()), "weights", note=model.note)
    path = Path(spec).expanduser() if exists(spec) else Path(spec)
    if path.suffix == ".gguf" and _is_file(path):
        return Checkpoint(spec, label or path.stem, path.parent, "gguf", gguf_file=path.name)
    fetched = False
    if not exists(spec):
        if (stage := stage_by_name(path)) is not None:
            path = stage
        else:
            path, fetched = _from_hub(spec, how), True
    if not path.is_dir():
        raise MemprobeError(f"{spec}: not a directory, a GGUF file or a hub id")
    path = last_stage(path)
    typed = path.name if path.name not in ("", "..") else path.resolve().name  # a link keeps its own
    name = label or (spec if fetched else typed)
    return _inspect(spec, name, path, how if fetched else replace(how, offline=True))


def _graft(spec: str, label: str | None, how: _How) -> Checkpoint:
    """A graft's checkpoint: where INTO's are, with INTO's manifest."""
    into, donor, graft = parse_graft(spec)
    base, other = (_resolve(part, how) for part in (into, donor))
    name = label or f"{base.label} with {other.label}'s {graft.short}"
    return Checkpoint(
        spec, name, base.path, "graft", base=base, manifest=base.manifest, donor=other, graft=graft
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # links in a circle
        return False


def _resolve_tokenizer(text: str, how: _How) -> Checkpoint:
    """A checkpoint, or a folder with a tokenizer alone."""
    path = Path(text).expanduser()
    if exists(text) and path.is_dir() and not (path / "config.json").exists():
        return Checkpoint(text, path.resolve().name, path, "weights")
    return _resolve(text, replace(how, base=None))


def resolve_all(specs: Iterable[str], loading: LoadOptions = LoadOptions()) -> list[Checkpoint]:
    """A checkpoint for each spec.

    Raises:
        MemprobeError: two checkpoints share a label.
    """
    checkpoints = [resolve(spec, loading) for spec in specs]
    check_labels(checkpoint.label for checkpoint in checkpoints)
    return checkpoints


def check_labels(labels: Iterable[str]) -> None:
    """Refuses labels that stand twice.

    Raises:
        MemprobeError: so.
    """
    counts = Counter(labels)
    if repeated := [label for label, count in counts.items() if count > 1]:
        raise MemprobeError(
            f"two checkpoints are called {repeated[0]!r}; give each a label of its own, as in --ckpt LABEL=SPEC or "
            "wrap(label=...)"
        )


def refuse_unused_base(loading: LoadOptions, items: Iterable[Any]) -> None:
    """Raises a MemprobeError for a base model of adapters where nothing that a call reads is one.

    Args:
        items: all that it reads; of what is found later nothing is known yet.
    """
    read = list(items)
    if loading.base is None or any(getattr(item, "find", None) is not None for item in read):
        return
    if not any(part.kind == "adapter" for one in checkpoints_of(read) for part in made_of(one)):
        raise MemprobeError(
            f"`base` {loading.base}: is of adapters, and no checkpoint here is one; leave it out"
        )


def checkpoints_of(items: Iterable[Any]) -> list[Checkpoint]:
    """The checkpoints themselves, and those that models in memory were loaded from."""
    given = [item if isinstance(item, Checkpoint) else getattr(item, "checkpoint", None) for item in items]
    return [checkpoint for checkpoint in given if checkpoint is not None]


def common_template(checkpoints: Iterable[Checkpoint]) -> str | None:
    """The template that all manifests name; ``None`` where there is no manifest.

    Raises:
        MemprobeError: they differ.
    """
    named = {
        checkpoint.label: checkpoint.manifest.template for checkpoint in checkpoints if checkpoint.manifest
    }
    if len(set(named.values())) > 1:
        templates = ", ".join(f"{label}: {template!r}" for label, template in named.items())
        raise MemprobeError(
            f"the checkpoints were trained with different templates ({templates}); give --template"
        )
    return next(iter(named.values()), None)


def default_template(checkpoints: Iterable[Checkpoint]) -> str:
    """The template that is taken where the user names none: the manifests' own, else ``plain``.

    Raises:
        MemprobeError: the manifests differ.
    """
    return common_template(checkpoints) or PLAIN


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over the tensors' names, types, shapes and bytes, in the order of their names.

    Two checkpoints with the same weights have the same fingerprint, however the files are sharded. GGUF and
    pickled files are hashed as they are; an adapter together with its base. What turns the tensors into a model is
    hashed apart (:func:`memprobe.settings.settings_of`).
    """
    mark = _state_of_files(checkpoint)
    if mark not in _FINGERPRINTS:
        _FINGERPRINTS[mark] = _fingerprint(checkpoint)
    return _FINGERPRINTS[mark]


_FINGERPRINTS: dict[Any, str] = {}  # a process asks the same files many times, and reading them takes seconds


def _state_of_files(checkpoint: Checkpoint) -> Any:
    """What changes whenever a checkpoint's files do."""
    pattern = "*.safetensors" if checkpoint.kind == "weights" else "*"
    files = sorted(file for file in checkpoint.path.glob(pattern) if file.is_file())
    stats = [
        (file.name, (status := file.stat()).st_ino, status.st_size, status.st_mtime_ns) for file in files
    ]
    others = [_state_of_files(other) for other in (checkpoint.base, checkpoint.donor) if other is not None]
    return (checkpoint.kind, checkpoint.gguf_file, str(checkpoint.graft), tuple(stats), tuple(others))


def _fingerprint(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    if checkpoint.kind == "adapter":
        assert checkpoint.base is not None
        digest.update(fingerprint(checkpoint.base).encode())
        if not (checkpoint.path / adapters.SAFETENSORS).is_file():
            hash_files([checkpoint.path / adapters.PICKLE], digest)
            return digest.hexdigest()
    if checkpoint.kind == "graft":
        assert checkpoint.base is not None and checkpoint.donor is not None
        parts = [fingerprint(checkpoint.base), fingerprint(checkpoint.donor), str(checkpoint.graft)]
        digest.update(" ".join(parts).encode())
        return digest.hexdigest()
    if checkpoint.kind == "gguf":
        assert checkpoint.gguf_file is not None
        hash_files([checkpoint.path / checkpoint.gguf_file], digest)
    elif checkpoint.kind == "pickle":
        hash_files(files_like(checkpoint.path, PICKLES), digest)
    else:
        hash_tensors(files_like(checkpoint.path, ("*.safetensors",)), digest)
    return digest.hexdigest()


def _inspect(spec: str, label: str, path: Path, how: _How) -> Checkpoint:
    manifest = read_manifest(path)
    safetensors = safetensors_in(path)
    if (path / adapters.CONFIG).exists():
        return _inspect_adapter(spec, label, path, manifest, how)
    ggufs = sorted(file for file in path.glob("*.gguf") if _is_file(file))
    if not (path / "config.json").exists():
        if len(ggufs) == 1:
            return Checkpoint(spec, label, path, "gguf", gguf_file=ggufs[0].name, manifest=manifest)
        if manifest is not None and not ggufs and not safetensors:
            raise MemprobeError(without_weights(path))
        many = f", and {len(ggufs)} GGUF files: name one" if ggufs else ""
        raise MemprobeError(f"{path}: no config.json, so this is not a Hugging Face checkpoint{many}")
    check_config(path, safetensors)
    if safetensors:
        return Checkpoint(spec, label, path, "weights", manifest=manifest, note=quantised.note(path))
    if pickles := files_like(path, PICKLES):
        _refuse_pickle(path, pickles[0].name, how)
        return Checkpoint(spec, label, path, "pickle", manifest=manifest)
    raise MemprobeError(f"{path}: has a config.json but no weights (*.safetensors)")


def _refuse_pickle(path: Path, name: str, how: _How) -> None:
    if not how.allow_pickle:
        raise MemprobeError(
            f"{path}: the weights are pickled ({name}), which can run code; "
            "--allow-pickle reads them if you trust their origin"
        )


def _inspect_adapter(spec: str, label: str, path: Path, manifest: Manifest | None, how: _How) -> Checkpoint:
    config = adapters.read_config(path)
    if config.pickled:
        _refuse_pickle(path, adapters.PICKLE, how)
    here = path.resolve()
    if here in how.above:
        raise MemprobeError(f"{path}: its chain of base models leads back to itself")
    base = _adapter_base(path, config, replace(how, above=(*how.above, here)))
    adapter = Checkpoint(spec, label, path, "adapter", base=base, manifest=manifest, note=base.note)
    own = Checkpoint(spec, label, path, "weights")  # as a folder with a tokenizer
    return replace(adapter, tokenizer=own) if has_tokenizer(path) else adapter


def _adapter_base(path: Path, config: adapters.AdapterConfig, how: _How) -> Checkpoint:
    """The base model that the user names, else the one that the adapter's configuration names, if it is here.

    The hub is not asked for a model that only a file names.
    """
    if how.base is not None:
        return _resolve(how.base, replace(how, base=None, offline=False))
    name = config.base
    if name is None:
        raise MemprobeError(f"{path / adapters.CONFIG}: names no base model; give --base SPEC")
    beside = path / name
    if exists(str(beside)) and beside.is_dir():
        return _resolve(str(beside), how)
    if exists(name) or name in PACKAGED:
        return _resolve(name, how)
    if not _HUB_ID.fullmatch(name) or _is_local(name):
        raise MemprobeError(f"{path}: its base model {name!r} is not here; give --base SPEC")
    revised = f"{name}@{config.revision}" if config.revision and "@" not in name else name
    try:
        return _resolve(revised, how)
    except _NotCached as error:
        raise MemprobeError(
            f"{path}: its base model is {name} on the hub, which is fetched only when you name it: --base {revised}"
        ) from error


class _NotCached(MemprobeError):
    """A hub model that has not been fetched before, where the hub may not be asked."""


def _is_local(spec: str) -> bool:
    """Whether a text that could be a hub id is written as a path, or begins with a folder that exists."""
    first = Path(spec).parts[0] if Path(spec).parts else ""
    return _PATH.match(spec) is not None or exists(first)


def _from_hub(spec: str, how: _How) -> Path:
    spec = OLD_NAMES.get(spec, spec)
    if not _HUB_ID.fullmatch(spec) or _is_local(spec):
        bare = re.fullmatch(r"[\w.-]+", spec)
        hint = (
            f"; a hub id has an owner: OWNER/NAME; {among(spec, PACKAGED, before='packaged are')}"
            if bare
            else ""
        )
        raise MemprobeError(f"{spec[:200]}: no such file or directory{hint}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = spec.partition("@")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
    patterns += [*(PICKLES if how.allow_pickle else ()), *(("*.py",) if how.trust_remote_code else ())]
    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=patterns, local_files_only=how.offline
            )
        )
    except LocalEntryNotFoundError as error:
        kind = _NotCached if how.offline else MemprobeError
        raise kind(
            f"{spec}: no such directory, and the hub gave no model of that id ({first_line(error)})"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise MemprobeError(
            f"{spec}: no such directory, and the hub gave no model of that id ({first_line(error)})"
        ) from error


def cache_dir() -> Path:
    """Where memprobe keeps what it converts: ``MEMPROBE_CACHE``, else ``memprobe`` in the user's cache folder."""
    if chosen := os.environ.get("MEMPROBE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memprobe"
