"""The stages that a checkpoint was trained from, as far as they are still there: each manifest names the one before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memprobe.checkpoints import Checkpoint, fingerprint, resolve
from memprobe.errors import MemprobeError
from memprobe.evaluations import EvaluatedSet
from memprobe.manifests import Manifest, read_manifest
from memprobe.runs import StageDirectory


@dataclass(frozen=True)
class Ancestor:
    """A stage that a checkpoint was trained from.

    Attributes:
        folder: of the stage.
        manifest: what training wrote there.
        fingerprint: of its weights, as the stage after it names them.
        checkpoint: ``None`` where the weights are gone.
    """

    folder: Path
    manifest: Manifest
    fingerprint: str
    checkpoint: Checkpoint | None

    def evaluated(self) -> EvaluatedSet | None:
        """Its own rows in its ``evaluation.json``; ``None`` where that is gone.

        Raises:
            MemprobeError: the file is broken.
        """
        stage = StageDirectory(self.manifest.stage, self.manifest.stage_name, self.folder)
        return stage.evaluation.sets.get(f"{stage.number}-{stage.name}") if stage.evaluation else None


def ancestors(checkpoint: Checkpoint) -> list[Ancestor]:
    """The stages before a checkpoint's, the nearest first. The base model is none of them, whatever made it.

    Raises:
        MemprobeError: a manifest is broken.
    """
    found: list[Ancestor] = []
    folder, manifest = checkpoint.path, checkpoint.manifest
    while manifest is not None and (parent := _parent(folder, manifest)) is not None:
        found.append(parent)
        folder, manifest = parent.folder, parent.manifest
    return found


def _parent(folder: Path, manifest: Manifest) -> Ancestor | None:
    parent, base = (manifest.data.get(key) or {} for key in ("parent", "base"))
    spec, mark = parent.get("spec"), parent.get("fingerprint")
    if not spec or not mark or mark == base.get("fingerprint"):
        return None
    # A manifest names it from its stage's folder, and a checkpoint along the way lies two folders deeper.
    for start in (folder, *folder.resolve().parents[1:2]):
        place = start / spec
        made = read_manifest(place) if place.is_dir() else None
        if made is None or made.stage >= manifest.stage or _rows(made) != _rows(manifest):
            continue
        try:
            checkpoint = resolve(str(place))
        except MemprobeError:  # its weights are gone; what was measured of it may stay
            return Ancestor(place, made, mark, None)
        if fingerprint(checkpoint) == mark:
            return Ancestor(place, made, mark, checkpoint)
    return None


def _rows(manifest: Manifest) -> str | None:
    """The hash of stage 1's rows."""
    return next((entry["hash"] for entry in manifest.data["stages"]), None)
