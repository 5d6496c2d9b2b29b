"""Fitted lenses as files: memprobe's own, and those that tuned-lens and the Jacobian lens publish.

    DIR/lens.safetensors   weight [depth, d_model, d_model] and, where the kind has one, bias [depth, d_model];
                           row d is the map of depth d, for depths 0 … n_layers - 1
    DIR/lens.json          what it was fitted on, how well it predicts by depth, and its floor
    DIR/half-1.safetensors, half-2.safetensors   the two fits on disjoint halves of the corpus

A map takes the residual stream at a depth to an estimate of the last one, before the final norm. Two other
formats are read: a directory of ``tuned-lens`` (``config.json`` and ``params.pt``; Belrose et al. 2023), and a
``.pt`` file of ``anthropics/jacobian-lens``, which TransformerLens writes and ``neuronpedia/jacobian-lens`` holds.
Files that Python pickled are read with ``weights_only``: tensors and plain values, nothing that can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from memprobe.errors import MemprobeError, first_line, one_of
from memprobe.files import read_valid, replacing, sha256_of, write_json
from memprobe.lens_kinds import FITTED_KINDS

LENS_SCHEMA = 1
WEIGHTS, ABOUT = "lens.safetensors", "lens.json"
HALVES = ("half-1.safetensors", "half-2.safetensors")
_PUBLISHED = ("config.json", "params.pt")


class _About(BaseModel):
    """Of a file that may say more."""

    model_config = ConfigDict(extra="allow", strict=True)


class FloorAt(_About):
    """How far two fits differ in where answers surface, under one top-k."""

    lof: float | None = None
    lof_mean: float | None = None


class FloorFile(_About):
    """How far two fits on disjoint halves differ."""

    facts: int | None = None
    factoids: str | None = None
    template: str | None = None
    k: dict[str, FloorAt] = {}


class AboutFile(_About):
    """``lens.json``; ``depths`` and ``floor`` are null until they were measured."""

    lens_schema: Literal[1] = Field(1, alias="schema")
    kind: Annotated[str, one_of(FITTED_KINDS)]
    seconds: float | None = None
    corpus: dict[str, Any] | None = None
    depths: list[Any] | dict[str, Any] | None = None
    floor: FloorFile | None = None


class TunedLensFile(_About):
    """``config.json`` of tuned-lens 0.2: of what it says, what its translators are read by."""

    num_hidden_layers: int = Field(ge=1)
    d_model: int = Field(ge=1)
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    unembed_hash: str | None = None


def read_about(folder: Path) -> dict[str, Any]:
    """``lens.json`` of a folder.

    Raises:
        MemprobeError: it is missing or broken, or says what it may not.
    """
    return {"depths": None, "floor": None} | read_valid(folder / ABOUT, AboutFile)


@dataclass(frozen=True, eq=False)
class AffineMap:
    """From the stream at one depth to an estimate of the last one: ``weight @ residual + bias``."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"] | None = None

    def __call__(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The map, in the precision of its weights."""
        return torch.nn.functional.linear(residual, self.weight, self.bias)

    def to(self, device: torch.device) -> AffineMap:
        """The map on a device."""
        return AffineMap(self.weight.to(device), None if self.bias is None else self.bias.to(device))


@dataclass(frozen=True, eq=False)
class LensFile:
    """A fitted lens, read.

    Attributes:
        kind: what was fitted.
        maps: by depth, in fp32.
        n_layers: blocks of the model that it was fitted on; ``None`` where the file does not say.
        about: what the file says of itself: for memprobe's own, ``lens.json``.
        digest: SHA-256 of the file with the tensors.
    """

    kind: str
    maps: Mapping[int, AffineMap]
    n_layers: int | None
    about: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def d_model(self) -> int:
        """Width of the residual stream that it maps."""
        return next(iter(self.maps.values())).weight.shape[0]


def read_lens(path: str | Path, kind: str) -> LensFile:
    """Reads a fitted lens.

    Args:
        path: a directory of ``memprobe fit`` or a ``.safetensors`` file in it, a directory of tuned-lens, or a
            ``.pt`` file of a Jacobian lens.
        kind: what it is held to be.

    Raises:
        MemprobeError: nothing there, a torn or pickled file, values that are not finite, or another kind.
    """
    path = Path(path).expanduser()
    if path.is_dir() and (path / WEIGHTS).exists():
        file = _read_own(path / WEIGHTS)
    elif path.is_dir() and all((path / name).exists() for name in _PUBLISHED):
        file = _read_tuned_lens(path)
    elif path.suffix == ".safetensors" and path.is_file():
        file = _read_own(path)
    elif path.suffix in (".pt", ".pth") and path.is_file():
        file = _read_jacobian_lens(path)
    elif not path.exists():
        raise MemprobeError(f"{path}: no such file or directory, so there is no {kind} lens to read with")
    else:
        raise MemprobeError(
            f"{path}: not a lens: it holds neither {WEIGHTS} (memprobe fit), {' and '.join(_PUBLISHED)} (tuned-lens), "
            "nor a .pt file (Jacobian lens)"
        )
    if file.kind != kind:
        raise MemprobeError(f"{path}: a {file.kind} lens, not a {kind} one; write {file.kind}={path}")
    for depth, map_ in file.maps.items():
        if not all(torch.isfinite(part).all() for part in (map_.weight, map_.bias) if part is not None):
            raise MemprobeError(f"{path}: the map of depth {depth} holds NaN or infinity")
    return file


def write_maps(path: Path, kind: str, maps: Mapping[int, AffineMap]) -> None:
    """Writes the tensors of a lens; see the module for the format.

    Args:
        maps: of depths 0 … n_layers - 1, every one.

    Raises:
        MemprobeError: the file cannot be written.
    """
    from safetensors.torch import save_file

    depths = range(len(maps))
    tensors = {"weight": torch.stack([maps[depth].weight for depth in depths])}
    biases = [maps[depth].bias for depth in depths]
    if all(bias is not None for bias in biases):
        tensors["bias"] = torch.stack([bias for bias in biases if bias is not None])
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # One key only: the order of several differs from write to write, and with it the file's hash.
        save_file(tensors, temporary, metadata={"memprobe": f"{kind} {LENS_SCHEMA}"})


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes ``lens.json``."""
    write_json({"schema": LENS_SCHEMA, **about}, folder / ABOUT)


def in_short(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a fitted lens says of itself, for a probe's ``run.json``: plain values, its corpus, and its floor."""
    short = {key: value for key, value in about.items() if not isinstance(value, dict | list)}
    if corpus := about.get("corpus"):
        short["corpus"] = {key: corpus.get(key) for key in ("hash", "tokens", "held out")}
    if floor := about.get("floor"):
        by_k = floor.get("k", {})
        short["floor"] = {
            "facts": floor.get("facts"),
            "k": {
                k: {name: at.get(name) for name in ("lof", "lof_mean", "recall")} for k, at in by_k.items()
            },
        }
    return short


def _read_own(path: Path) -> LensFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MemprobeError(f"{path}: truncated or corrupt ({first_line(error)})") from error
    kind, _, schema = metadata.get("memprobe", "").partition(" ")
    if kind not in FITTED_KINDS or schema != str(LENS_SCHEMA):
        raise MemprobeError(
            f"{path}: not a lens of memprobe (its header says kind {kind!r}, schema {schema!r})"
        )
    weight, bias = tensors.get("weight"), tensors.get("bias")
    square = (
        weight is not None and weight.dim() == 3 and weight.shape[1] == weight.shape[2] and weight.numel()
    )
    if weight is None or not square or (bias is not None and bias.shape != weight.shape[:2]):
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise MemprobeError(f"{path}: not one square map for each depth ({shapes})")
    try:
        weight, bias = _real(weight), None if bias is None else _real(bias)
    except ValueError as error:
        raise MemprobeError(f"{path}: not a lens ({first_line(error)})") from error
    about = read_about(path.parent)
    if about["kind"] != kind:
        raise MemprobeError(f"{path.parent / ABOUT}: does not belong to the {kind} lens in {path.name}")
    maps = {
        depth: AffineMap(weight[depth], None if bias is None else bias[depth])
        for depth in range(weight.shape[0])
    }
    return LensFile(kind, maps, weight.shape[0], about, sha256_of(path))


def _read_tuned_lens(folder: Path) -> LensFile:
    """tuned-lens 0.2: translator d adds ``weight @ h + bias`` to the stream h at depth d."""
    config = read_valid(folder / _PUBLISHED[0], TunedLensFile, own=False)
    file = folder / _PUBLISHED[1]
    state = _load_pickled(file)
    try:
        n_layers, d_model = config["num_hidden_layers"], config["d_model"]
        maps = {}
        for depth in range(n_layers):
            weight, bias = _real(state[f"{depth}.weight"]), state.get(f"{depth}.bias")
            bias = None if bias is None else _real(bias)
            if weight.shape != (d_model, d_model) or (bias is not None and bias.shape != (d_model,)):
                raise MemprobeError(
                    f"{file}: translator {depth} is not {d_model} x {d_model}, as config.json says"
                )
            maps[depth] = AffineMap(weight + torch.eye(d_model), bias)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MemprobeError(f"{folder}: not a lens of tuned-lens ({_missing(error)})") from error
    about = {
        "made by": "tuned-lens",
        "model": config.get("base_model_name_or_path"),
        "revision": config.get("base_model_revision"),
        "unembedding hash": config.get("unembed_hash"),
    }
    return LensFile("tuned", maps, n_layers, about, sha256_of(file))


def _read_jacobian_lens(path: Path) -> LensFile:
    """``J[l]`` takes the output of block l, counted from 0, to the last stream: it is the map of depth l + 1."""
    payload = _load_pickled(path)
    matrices, count = payload.get("J"), payload.get("n_prompts")
    summed = matrices is None and "jacobian_sum" in payload  # a fit under way: sums over prompts
    if summed:
        matrices, count = payload["jacobian_sum"], payload.get("n_done")
    try:
        divisor = int(count) if summed else 1  # pyrefly: ignore[bad-argument-type]
        if not isinstance(matrices, dict) or not matrices or divisor < 1:
            raise ValueError("no matrix J")
        maps = {int(layer) + 1: AffineMap(_real(matrix) / divisor) for layer, matrix in matrices.items()}
        width = {tuple(map_.weight.shape) for map_ in maps.values()}
        if len(width) != 1 or len(shape := width.pop()) != 2 or shape[0] != shape[1]:
            raise ValueError("its matrices are not square, of one size")
        metadata = payload.get("metadata") or {}
        plain = {key: value for key, value in metadata.items() if isinstance(value, str | int | float | bool)}
        target = metadata.get("target_layer", payload.get("target_layer"))
        target = None if target is None else int(target)
    except (AttributeError, TypeError, ValueError) as error:
        raise MemprobeError(f"{path}: not a Jacobian lens ({first_line(error)})") from error
    if target not in (None, max(maps), -1):
        raise MemprobeError(f"{path}: maps to layer {target}, not to the last stream")
    about = {
        "made by": "jacobian-lens",
        "model": plain.get("model_name"),
        "prompts": count,
        "metadata": plain,
    }
    return LensFile("jacobian", dict(sorted(maps.items())), None, about, sha256_of(path))


def _real(value: Any) -> Tensor:
    """A tensor of a file in fp32.

    Raises:
        ValueError: it is none, or not one of real numbers, each written out.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{type(value).__name__} in place of a tensor")
    if value.layout != torch.strided or not value.is_floating_point():
        raise ValueError(f"a tensor of {str(value.dtype).removeprefix('torch.')}, {value.layout}")
    return value.float()


def _load_pickled(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a file that torch wrote; code in it is never run."""
    import pickle
    import warnings
    import zipfile

    try:
        with warnings.catch_warnings(action="ignore"):  # of old pickle protocols
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MemprobeError(f"{path}: damaged, or holds pickled code, which memprobe does not run") from error
    except (RuntimeError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise MemprobeError(f"{path}: truncated or corrupt ({first_line(error)})") from error
    if not isinstance(loaded, dict):
        raise MemprobeError(f"{path}: holds a {type(loaded).__name__}, not the tensors of a lens")
    return loaded


def _missing(error: Exception) -> str:
    return f"it lacks {error.args[0]!r}" if isinstance(error, KeyError) else first_line(error)
