"""Whether what lies in a grid's directory is what its file asks for: the same recipe, base model and rows.

A node is named after its data, arm and seed, not after all that its recipe says. So a name alone vouches for nothing:
with another learning rate in the file the same names stand for other stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from memprobe.checkpoints import Checkpoint, resolve
from memprobe.errors import MemprobeError
from memprobe.files import read_toml, read_valid
from memprobe.manifests import MANIFEST
from memprobe.runs import RECIPE, ManifestFile
from training.alike import differences, settled_as
from training.data import PREPARED
from training.grid.cells import Node
from training.prepared import PreparedFile
from training.recipe import Recipe, parse_recipe
from training.starts import (
    checkpoint_in,
    edited_files,
    edited_since,
    evaluates_on_files,
    has_begun,
    other_base,
    other_parent,
    other_than_saved,
    trains_on_files,
)

_SHOWN = 4  # differences that an error lists


def differing(folder: Path, node: Node) -> list[str]:
    """What tells the stage in a node's run directory from the one that the node trains; nothing where none lies there.

    The recipe as the stage was trained with it, or as its run was begun, but for where a file of rows lies; and of
    files of rows, those that are only evaluated on too, their content.

    Raises:
        MemprobeError: what lies there cannot be read.
    """
    stage = folder / node.stage
    path = next((file for file in (stage / RECIPE, folder / RECIPE) if file.exists()), None)
    if path is None:
        return []
    changed = _differences(path, path.stat().st_mtime_ns, node.recipe)
    return list(changed) or _edited(folder, node)


def check_found(folder: Path, node: Node) -> None:
    """Checks that what lies in a node's run directory is of its recipe, its rows and its base model.

    Raises:
        MemprobeError: it is not.
    """
    changed = differing(folder, node)
    if not changed and (other := _other_base(folder, node)):
        changed = [f"base: {other}"]
    if changed:
        raise MemprobeError(
            f"{folder}: was begun with another recipe, base model or file of rows than the grid has now "
            f"({'; '.join(changed[:_SHOWN])}): give another --out, or the arm or data another name, or take that back"
        )


def check_start(out: Path, node: Node) -> None:
    """Checks that a node's stage, where it has ended, is as it was saved, and was trained from the stage that lies
    before it now.

    Args:
        out: the directory of the runs.

    Raises:
        MemprobeError: it is or was not.
    """
    stage = out / node.name / node.stage
    advice = "give another --out, or put those weights back"
    if other := other_than_saved(stage):
        raise MemprobeError(f"{stage}: is not the checkpoint that was saved there ({other}): {advice}")
    if node.parent is None or not (stage / MANIFEST).exists():
        return
    parent = checkpoint_in(out / node.parent.name / node.parent.stage)
    if parent is not None and (other := other_parent(stage, parent)):
        raise MemprobeError(f"{stage}: was trained from another checkpoint ({other}): {advice}")


def _other_base(folder: Path, node: Node) -> str | None:
    """What a node's run started from in place of its base model.

    Where that model cannot be read, nothing is compared: what is to be trained from it will say so.
    """
    if not has_begun(folder):
        return None
    try:
        base = base_at(node.recipe.base)
    except MemprobeError:
        return None
    return other_base(folder, [node.stage], base)


@cache
def base_at(spec: str) -> Checkpoint:
    """A base model's place; the hub is asked once for all cells.

    Raises:
        MemprobeError: see :func:`memprobe.checkpoints.resolve`.
    """
    return resolve(spec)


@cache
def _differences(path: Path, changed: int, recipe: Recipe) -> tuple[str, ...]:
    """In what a stored recipe differs from a node's. Asked of every cell at every look, so it is read once.

    Args:
        changed: the time at which its file did.
    """
    old = parse_recipe(read_toml(path), str(path))
    new = settled_as(recipe, old).model_copy(update={"arm": old.arm})  # a name; its stages say what it does
    return tuple(differences(old, new))


def _edited(folder: Path, node: Node) -> list[str]:
    """The files of rows that are no longer those that a stage was trained, or is evaluated, on."""
    files: list[Path] = []
    manifest, prepared = folder / node.stage / MANIFEST, folder / PREPARED
    if trains_on_files(node.recipe) and manifest.exists():
        entries: Sequence[Any] = read_valid(manifest, ManifestFile).get("stages", [])
        files += edited_files(node.recipe, [entry.get("origins", []) for entry in entries])
    if evaluates_on_files(node.recipe) and prepared.exists():
        files += edited_since(node.recipe, _revisions(prepared, prepared.stat().st_mtime_ns))
    return [f"{file}: was another file then" for file in files]


@cache
def _revisions(prepared: Path, changed: int) -> dict[str, str]:
    """What the files that a run is evaluated on said when its rows were read; read once, as rows are many."""
    return read_valid(prepared, PreparedFile).get("revisions", {})
