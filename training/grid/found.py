"""Whether what lies in a grid's directory is what its file asks for: the same recipe, on the same rows.

A node is named after its data, arm and seed, not after all that its recipe says. So a name alone vouches for nothing:
with another learning rate in the file the same names stand for other stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError
from memprobe.files import read_toml, read_valid
from memprobe.manifests import MANIFEST
from memprobe.runs import RECIPE, ManifestFile
from memprobe.sources.origins import file_revision
from training.grid.cells import Node
from training.prepared import Prepared
from training.recipe import Recipe, differences, file_of, parse_recipe, settled_as
from training.row_files import rows_hash_of

_SHOWN = 4  # differences that an error lists


def differing(folder: Path, node: Node) -> list[str]:
    """What tells the stage in a node's run directory from the one that the node trains; nothing where none lies there.

    The recipe as the stage was trained with it, or as its run was begun, but for where a file of rows lies; and of
    files of rows their content.

    Raises:
        MemprobeError: what lies there cannot be read.
    """
    stage = folder / node.stage
    path = next((file for file in (stage / RECIPE, folder / RECIPE) if file.exists()), None)
    if path is None:
        return []
    changed = _differences(path, path.stat().st_mtime_ns, node.recipe)
    return list(changed) or _edited(stage / MANIFEST, node)


def check_found(folder: Path, node: Node) -> None:
    """Raises a MemprobeError where another stage lies in a node's run directory."""
    if changed := differing(folder, node):
        raise MemprobeError(
            f"{folder}: was begun with another recipe or file of rows than the grid has now "
            f"({'; '.join(changed[:_SHOWN])}): give another --out, or the arm or data another name, or take that back"
        )


def check_rows(stage: Path, node: Node, prepared: Prepared) -> None:
    """Checks that a run which goes on from a stage has the rows that the stage was trained on.

    Args:
        stage: the directory of the stage that ``node`` trains, one before the run's own.
        prepared: the run's rows.

    Raises:
        MemprobeError: it has others: their source changed since.
    """
    entries = read_valid(stage / MANIFEST, ManifestFile).get("stages", [])
    for one, entry, data in zip(node.recipe.stages, entries, prepared.stages, strict=False):
        mixed = [
            [origin.get("hash") for origin in origins[1:]] for origins in (entry["origins"], data.origins)
        ]
        if entry["hash"] != rows_hash_of(data.rows) or mixed[0] != mixed[1]:
            raise MemprobeError(
                f"{stage}: was trained on other rows of {one.name} ({one.data}) than are read now: give another --out, "
                "or put the source back as it was"
            )


@cache
def _differences(path: Path, changed: int, recipe: Recipe) -> tuple[str, ...]:
    """In what a stored recipe differs from a node's. Asked of every cell at every look, so it is read once.

    Args:
        changed: the time at which its file did.
    """
    old = parse_recipe(read_toml(path), str(path))
    new = settled_as(recipe, old).model_copy(update={"arm": old.arm})  # a name; its stages say what it does
    return tuple(differences(_without_places(old), _without_places(new)))


def _without_places(recipe: Recipe) -> Recipe:
    """A recipe whose files of rows are named without their folders: the same ones may be named in several ways."""

    def bare(source: str) -> str:
        file = file_of(source)
        return source if file is None else file.name

    stages = [
        stage.model_copy(
            update={
                "data": bare(stage.data),
                "mixing": tuple(
                    part.model_copy(update={"source": bare(part.source)}) for part in stage.mixing
                ),
            }
        )
        for stage in recipe.stages
    ]
    texts = recipe.evaluate.texts
    evaluate = {
        "texts": None if texts is None else bare(texts),
        "known_source": bare(recipe.evaluate.known_source),
    }
    return recipe.model_copy(
        update={"stages": tuple(stages), "evaluate": recipe.evaluate.model_copy(update=evaluate)}
    )


def _edited(manifest: Path, node: Node) -> list[str]:
    """The files of rows that are no longer those that a stage was trained on."""
    files = list(_files(node.recipe))
    if not files or not manifest.exists():
        return []
    entries: Sequence[Any] = read_valid(manifest, ManifestFile).get("stages", [])
    edited = []
    for number, place, file in files:
        origins = entries[number]["origins"] if number < len(entries) else []
        then = origins[place].get("revision") if place < len(origins) else None
        if then is not None and file.is_file() and then != _revision(file, file.stat().st_mtime_ns):
            edited.append(f"{file}: was another file then")
    return list(dict.fromkeys(edited))


def _files(recipe: Recipe) -> Iterator[tuple[int, int, Path]]:
    """Every file of rows that stages train on: the stage, from 0, its place among the stage's origins, and the file."""
    for number, stage in enumerate(recipe.stages):
        for place, source in enumerate((stage.data, *(part.source for part in stage.mixing))):
            if (file := file_of(source)) is not None:
                yield number, place, file


@cache
def _revision(file: Path, changed: int) -> str:
    return file_revision(file)
