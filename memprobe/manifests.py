"""What training wrote beside weights: the manifest, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from memprobe.errors import MemprobeError
from memprobe.files import check_valid, exists, read_json
from memprobe.stages import STAGE
from memprobe.weights import (
    is_beside,
    sha256,
)

MANIFEST = "memprobe.json"


MANIFEST_SCHEMA = 1


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
        """The factoid file of a stage, which stands beside the manifest.

        Raises:
            MemprobeError: the manifest names none, or one elsewhere, or the file is gone or was changed.
        """
        for entry in self.data["stages"]:
            if entry["index"] == stage:
                if not is_beside(entry["factoids"]):
                    raise MemprobeError(
                        f"{self.path}: stage {stage}'s factoids {entry['factoids']!r} are not in its folder; "
                        "give --factoids"
                    )
                path = self.path.parent / entry["factoids"]
                if not path.is_file():
                    raise MemprobeError(
                        f"{self.path}: stage {stage}'s factoids {path} are gone; give --factoids"
                    )
                if sha256(path) != entry["hash"]:
                    raise MemprobeError(
                        f"{path}: changed since {self.path.name} was written; give --factoids"
                    )
                return path
        raise MemprobeError(f"{self.path}: names no factoids of stage {stage}; give --factoids")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class StageEntry(_Strict):
    """One stage in a manifest: its factoid file, beside the manifest, and that file's SHA-256."""

    index: int
    factoids: str
    hash: str


class ManifestEntries(_Strict):
    """``memprobe.json``: what probing asks of it."""

    version: int = Field(alias="schema")
    template: str
    arm: str
    seed: int
    stage: int
    stage_name: str
    steps: int
    stages: list[StageEntry] = []


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a checkpoint directory; ``None`` where there is none.

    Raises:
        MemprobeError: it is broken, or of another schema; the message names the key.
    """
    file = path / MANIFEST
    if not file.exists():
        return None
    data = read_json(file)
    version = data.get("schema") if isinstance(data, dict) else None
    if version != MANIFEST_SCHEMA:
        raise MemprobeError(f"{file}: manifest schema {version!r}; this memprobe reads {MANIFEST_SCHEMA}")
    check_valid(data, ManifestEntries, file)
    data.setdefault("stages", [])
    keys = ("template", "arm", "seed", "stage", "stage_name", "steps")
    return Manifest(path=file, **{key: data[key] for key in keys}, data=data)


def without_weights(path: Path) -> str:
    """What became of a checkpoint of which its manifest is left: a grid deletes weights and keeps what they said."""
    gone = f'{path}: its weights were deleted after it was probed; keep = "weights" in a grid file keeps them'
    above = path.resolve().parents  # OUT/runs/SETUP/CELL/STAGE
    if len(above) < 4 or not (above[3] / "grid.toml").exists():
        return gone
    places = (above[3] / "probes" / above[1].name, above[3] / "probes")
    return next((f"{gone}; its probe is in {place}" for place in places if place.is_dir()), gone)


def last_stage(path: Path) -> Path:
    """The last finished stage of a run directory; any other directory is itself."""
    # A stage has a recipe as well.
    if not (path / "recipe.toml").exists() or any(
        (path / name).exists() for name in ("config.json", MANIFEST)
    ):
        return path
    stages = sorted(
        (int(match[1]), child)
        for child in path.iterdir()
        if (match := STAGE.fullmatch(child.name)) and int(match[1]) and (child / MANIFEST).exists()
    )
    if not stages:
        raise MemprobeError(f"{path}: a run directory without a finished stage yet")
    return stages[-1][1]


def stage_by_name(path: Path) -> Path | None:
    """``RUN/NAME`` for the stage directory ``RUN/2-NAME``."""
    if not exists(str(path.parent / "recipe.toml")):
        return None
    matches = [
        child
        for child in path.parent.iterdir()
        if (match := STAGE.fullmatch(child.name)) and int(match[1]) and match[2] == path.name
    ]
    return matches[0] if len(matches) == 1 else None
