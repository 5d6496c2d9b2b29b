"""The residual stream itself, kept for those who want to train probes or dictionaries on it.

    plan ──forward──> residuals at the positions that are read ──chosen depths, bf16──> safetensors shards with ids

    PROBE/residuals/LABEL-…/00000.safetensors
        residuals  bf16 [row, depth, d_model]   at the depths that the metadata name
        token      int16 [row]                  index of the answer token that the position predicts
        metadata   depths, and by row the factoid and the position, as JSON

A shard holds :data:`SHARD` factoids in the probe's order and is not written again: a killed call goes on at the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from memprobe.errors import MemprobeError, first_line
from memprobe.files import replacing, sha256_of
from memprobe.probes import read_run, table_file

if TYPE_CHECKING:
    from torch import Tensor

    from memprobe.models import LensModel
    from memprobe.planning import CapturePlan
    from memprobe.templates import TokenisedFactoid

FOLDER = "residuals"
ALL = "all"
SHARD = 512
"""Factoids a file."""
_BATCH_TOKENS = 1024
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class Residuals(NamedTuple):
    """What :func:`read_residuals` gives.

    ``rows`` is [factoid, position, token]; ``depths`` the depths kept; ``values`` bf16 [row, depth, d_model].
    """

    rows: pl.DataFrame
    depths: list[int]
    values: Tensor


def parse_depths(text: str, option: str = "`keep_residuals`") -> list[int] | None:
    """Depths as a command line names them, ``0,10,20-25``; ``None`` for ``all``.

    Args:
        option: that they are given by.

    Raises:
        MemprobeError: the text is neither.
    """
    if text.strip() == ALL:
        return None
    depths: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise MemprobeError(f"{option} {text}: write all, or depths as in 0,10,20-25")
        depths |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(depths)


def depths_of(asked: str, lens_model: LensModel) -> list[int]:
    """The depths that are asked of a model.

    Raises:
        MemprobeError: it has no such depth.
    """
    depths = parse_depths(asked)
    if depths is None:
        return list(range(lens_model.n_layers + 1))
    if depths[-1] > lens_model.n_layers:
        raise MemprobeError(
            f"`keep_residuals`: {lens_model.label} has depths 0 to {lens_model.n_layers}, not {depths[-1]}"
        )
    return depths


def refuse_other_depths(entry: Mapping[str, Any], asked: str, where: str) -> None:
    """Holds the depths that are asked of a checkpoint against those that its entry in ``run.json`` has kept.

    Raises:
        MemprobeError: they are others.
    """
    wanted = parse_depths(asked) or list(range(entry["n_layers"] + 1))
    if "residuals" in entry and entry["residuals"]["depths"] != wanted:
        kept = ", ".join(map(str, entry["residuals"]["depths"]))
        raise MemprobeError(f"{where}: residuals were kept at other depths ({kept}); use another --out")


def keep_residuals(
    lens_model: LensModel, plan: CapturePlan, depths: Sequence[int], out: Path
) -> dict[str, Any]:
    """Writes the shards of one checkpoint into a probe directory, in forward passes of their own.

    Returns:
        For ``run.json``: depths, dtype, rows and, by file name, bytes and SHA-256.

    Raises:
        MemprobeError: a shard cannot be written.
    """
    folder = folder_of(out, lens_model.label)
    files: dict[str, Any] = {}
    total = 0
    for number, start in enumerate(range(0, len(plan.items), SHARD)):
        items = plan.items[start : start + SHARD]
        path = folder / f"{number:05}.safetensors"
        rows = [
            (site.item.factoid.id, site.position, site.item.target_indices[site.target])
            for item in items
            for site in plan.sites(item)
        ]
        metadata = {
            "format": "pt",
            "label": lens_model.label,
            "fingerprint": lens_model.fingerprint,
            "depths": json.dumps(list(depths)),
            "factoids": json.dumps([row[0] for row in rows]),
            "positions": json.dumps([row[1] for row in rows]),
        }
        if not _is_there(path, metadata):
            _write(path, lens_model, plan, items, depths, [row[2] for row in rows], metadata)
        files[path.name] = {"rows": len(rows), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        total += len(rows)
    return {"depths": list(depths), "dtype": "bfloat16", "rows": total, "files": files}


def folder_of(out: Path, label: str) -> Path:
    """Where a checkpoint's shards are."""
    return table_file(out, label, FOLDER).with_suffix("")


def are_kept(entry: Mapping[str, Any], out: Path, label: str) -> bool:
    """Whether a checkpoint's entry in ``run.json`` names shards, and all of them lie in the probe directory."""
    folder = folder_of(out, label)
    return FOLDER in entry and all((folder / name).is_file() for name in entry[FOLDER]["files"])


def without_residuals(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's entry as it is where its shards do not travel along with it."""
    return {key: value for key, value in entry.items() if key != FOLDER}


def read_residuals(probe: str | Path, label: str) -> Residuals:
    """The residual stream that was kept of a checkpoint, checked against its marks.

    Raises:
        MemprobeError: none was kept, or a shard is missing or changed.
    """
    from safetensors import SafetensorError, safe_open
    from torch import cat

    probe = Path(probe)
    entry = read_run(probe)["checkpoints"].get(label, {}).get("residuals")
    if entry is None:
        raise MemprobeError(
            f"{probe}: no residuals of {label!r} (memprobe layers --keep-residuals keeps them)"
        )
    values, parts = [], []
    for name, mark in entry["files"].items():
        path = folder_of(probe, label) / name
        if not path.is_file():
            raise MemprobeError(f"{path}: missing; memprobe layers --keep-residuals keeps them again")
        if sha256_of(path) != mark["sha256"]:
            raise MemprobeError(f"{path}: changed since it was written; copy it again, or probe again")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata()
                values.append(file.get_tensor("residuals"))
                token = file.get_tensor("token").tolist()
        except SafetensorError as error:
            raise MemprobeError(f"{path}: cannot be read ({first_line(error)})") from error
        try:
            columns = {"factoid": json.loads(about["factoids"]), "position": json.loads(about["positions"])}
            schema = {"factoid": pl.String, "position": pl.String, "token": pl.Int16}
            parts.append(pl.DataFrame(columns | {"token": token}, schema=schema))
        except (KeyError, TypeError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
            raise MemprobeError(f"{path}: its header is not valid ({first_line(error)})") from error
    return Residuals(pl.concat(parts), entry["depths"], cat(values))


def _is_there(path: Path, metadata: dict[str, str]) -> bool:
    """Whether a shard of the same rows, depths and weights was written before."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() == metadata
    except (SafetensorError, OSError):
        return False


def _write(
    path: Path,
    lens_model: LensModel,
    plan: CapturePlan,
    items: Sequence[TokenisedFactoid],
    depths: Sequence[int],
    token: list[int],
    metadata: dict[str, str],
) -> None:
    import torch
    from safetensors.torch import save_file

    kept = dict(_streams(lens_model, plan, items, depths))
    rows = torch.cat([kept[item.factoid.id] for item in items])
    with replacing(path) as temporary:
        save_file(
            {"residuals": rows.contiguous(), "token": torch.tensor(token, dtype=torch.int16)},
            temporary,
            metadata=metadata,
        )


def _streams(
    lens_model: LensModel, plan: CapturePlan, items: Sequence[TokenisedFactoid], depths: Sequence[int]
) -> Iterator[tuple[str, Tensor]]:
    """By factoid, bf16 [site, depth, d_model], in the order of its sites."""
    import torch

    from memprobe.batching import batches_by_tokens, rope_border
    from memprobe.capturing import residuals_at
    from memprobe.modes import evaluating

    order = sorted(range(len(items)), key=lambda index: len(items[index].inputs))
    border = rope_border(lens_model.model)
    for batch in batches_by_tokens(
        order, lambda index: len(items[index].inputs), _BATCH_TOKENS, None, border=border
    ):
        chosen = [items[index] for index in batch]
        sites = [(row, site) for row, item in enumerate(chosen) for site in plan.sites(item)]
        with evaluating(lens_model.model):
            streams = residuals_at(lens_model, chosen, sites)[list(depths)]
        streams = streams.transpose(0, 1).to(device="cpu", dtype=torch.bfloat16)
        for row, item in enumerate(chosen):
            yield item.factoid.id, streams[[i for i, (at, _) in enumerate(sites) if at == row]]
