"""What a run started from beside its recipe: the weights of its base model, and what its files of rows said.

A recipe names both, and a name vouches for neither: another model may lie under the same path by now, and a file may
have been edited. What was trained says what it was trained from: each stage's manifest, the evaluation of the base
model, and the rows that are kept. A run, or another cell of a grid, goes on only from the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from memprobe.checkpoints import Checkpoint, fingerprint, resolve
from memprobe.errors import MemprobeError
from memprobe.evaluations import EvaluationFile
from memprobe.files import read_valid
from memprobe.manifests import MANIFEST
from memprobe.runs import EVALUATION, STATE, ManifestFile
from memprobe.sameness import differ
from memprobe.settings import settings_of
from memprobe.sources.origins import data_folder, file_revision
from memprobe.weights import safetensors_in
from training.prepared import Prepared
from training.recipe import Recipe, file_of
from training.recipe_tables import Stage
from training.row_files import rows_hash_of

BASE = "0-base"
"""Of a run directory: where the evaluation of the base model lies."""
_SHOWN = 12  # digits of a fingerprint


def other_base(run: Path, stages: Sequence[str], base: Checkpoint) -> str | None:
    """What a run started from in place of a base model; ``None`` where it is the same, or nothing says.

    Args:
        stages: names of the stages' directories, those that are not there yet too.
    """
    manifests = [path for name in stages if (path := run / name / MANIFEST).exists()]
    said: list[Any] = [read_valid(path, ManifestFile).get("base") for path in manifests]
    if not said and (run / BASE / EVALUATION).exists():  # a run of which no stage has ended
        said = [read_valid(run / BASE / EVALUATION, EvaluationFile).get("base")]
    return next((other for one in said if (other := _other(one, base))), None)


def other_parent(stage: Path, parent: Checkpoint) -> str | None:
    """What a stage that has ended was trained from in place of a checkpoint; ``None`` where it is the same."""
    return _other(read_valid(stage / MANIFEST, ManifestFile).get("parent"), parent)


def other_than_saved(stage: Path) -> str | None:
    """What lies in a stage's directory in place of the checkpoint that was saved there; ``None`` where it is the same,
    where no weights lie there, and where nothing says (manifests of older versions)."""
    there = checkpoint_in(stage)
    return (
        None if there is None else _other(read_valid(stage / MANIFEST, ManifestFile).get("checkpoint"), there)
    )


def _other(said: Mapping[str, Any] | None, now: Checkpoint) -> str | None:
    then = (said or {}).get("fingerprint")
    if then is None:
        return None
    if then != (mark := fingerprint(now)):
        return f"{now.spec} had other weights then: fingerprint {then[:_SHOWN]} -> {mark[:_SHOWN]}"
    if differ(said or {}, {"settings": settings_of(now)}, "settings"):
        return f"{now.spec} had the same weights with other settings then (config.json, adapter_config.json)"
    return None


def check_weights(run: Path, stages: Sequence[str], base: Checkpoint) -> None:
    """Checks that the stages of a run that have ended are as they were saved, and go back, one after another, to its
    base model.

    Args:
        stages: names of the stages' directories in order, those that are not there yet too.

    Raises:
        MemprobeError: one was trained from another checkpoint, or is one.
    """
    advice = "put those weights back, give another --out, or --fresh to start over"
    if other := other_base(run, stages, base):
        raise MemprobeError(f"{run}: was begun with another base model ({other}); {advice}")
    parent: Checkpoint | None = base
    for name in stages:
        ended = (run / name / MANIFEST).exists()
        if ended and parent is not None and (other := other_parent(run / name, parent)):
            raise MemprobeError(f"{run / name}: was trained from another checkpoint ({other}); {advice}")
        if other := other_than_saved(run / name):
            raise MemprobeError(
                f"{run / name}: is not the checkpoint that was saved there ({other}); {advice}"
            )
        parent = checkpoint_in(run / name)


def checkpoint_in(stage: Path) -> Checkpoint | None:
    """A stage's checkpoint; ``None`` where its weights are gone or not there yet."""
    try:
        there = (stage / "config.json").exists() and bool(safetensors_in(stage))
        return resolve(str(stage)) if there and (stage / MANIFEST).exists() else None
    except MemprobeError:  # what a killed process left
        return None


def has_begun(run: Path) -> bool:
    """Whether anything was measured or trained in a run directory. A link is a stage of another run (training.grid)."""
    return (
        (run / BASE / EVALUATION).exists()
        or any(not path.parent.is_symlink() for path in run.glob(f"*/{MANIFEST}"))
        or any((run / STATE).glob("*/checkpoint-*"))
    )


def edited_files(
    recipe: Recipe, origins: Sequence[Sequence[Mapping[str, Any]]], data_dir: Path | None = None
) -> list[Path]:
    """The files that a recipe's stages train on and that are no longer those that rows were read from.

    Args:
        origins: of each stage's rows and of each of its mixing, as :class:`training.prepared.StageData` has them.
        data_dir: the folder of datasets, where those are to be held against it too.
    """
    edited: dict[Path, None] = {}
    for stage, then in zip(recipe.stages, origins, strict=False):
        for source, origin in zip(_sources(stage), then, strict=False):
            file = _file_of(source, origin, data_dir)
            if file is not None and _is_edited(file, origin.get("revision")):
                edited[file] = None
    return list(edited)


def trains_on_files(recipe: Recipe) -> bool:
    """Whether a recipe names a file of rows that a stage trains on."""
    return any(file_of(source) is not None for stage in recipe.stages for source in _sources(stage))


def evaluates_on_files(recipe: Recipe) -> bool:
    """Whether a recipe names a file that is evaluated on and not trained on."""
    return bool(_evaluated(recipe))


def revisions_of(recipe: Recipe) -> dict[str, str]:
    """Of the files that are evaluated on and not trained on, by the recipe's key: their content."""
    return {key: revision_of(file) for key, file in _evaluated(recipe).items() if file.is_file()}


def edited_since(recipe: Recipe, revisions: Mapping[str, str]) -> list[Path]:
    """The files that are no longer as :func:`revisions_of` found them."""
    return [file for key, file in _evaluated(recipe).items() if _is_edited(file, revisions.get(key))]


def check_rows(stage: Path, recipe: Recipe, prepared: Prepared) -> None:
    """Checks that a run which goes on from a stage has the rows that the stage was trained on.

    Args:
        stage: the directory of a stage that has ended.
        recipe: of the stages up to that one, or of more.
        prepared: the run's rows.

    Raises:
        MemprobeError: it has others: their source changed since.
    """
    entries: Sequence[Any] = read_valid(stage / MANIFEST, ManifestFile).get("stages", [])
    for one, entry, data in zip(recipe.stages, entries, prepared.stages, strict=False):
        mixed = [
            [origin.get("hash") for origin in origins[1:]]
            for origins in (entry.get("origins", []), data.origins)
        ]
        if entry.get("hash") != rows_hash_of(data.rows) or mixed[0] != mixed[1]:
            raise MemprobeError(
                f"{stage}: was trained on other rows of {one.name} ({one.data}) than are read now: give another --out, "
                "or put the source back as it was"
            )


def revision_of(file: Path) -> str:
    """A file's content; asked of every cell of a grid, so it is read once."""
    return _revision(file, file.stat().st_mtime_ns)


@cache
def _revision(file: Path, changed: int) -> str:
    return file_revision(file)


def _is_edited(file: Path, then: str | None) -> bool:
    return then is not None and file.is_file() and then != revision_of(file)


def _sources(stage: Stage) -> list[str]:
    """What a stage trains on, in the order of its origins."""
    return [stage.data, *(part.source for part in stage.mixing)]


def _file_of(source: str, origin: Mapping[str, Any], data_dir: Path | None) -> Path | None:
    """The file that rows were read from: named by the recipe, or a dataset's in the folder of datasets."""
    if (file := file_of(source)) is not None:
        return file
    if data_dir is None or origin.get("via") != "folder" or not origin.get("location"):
        return None
    folder = data_folder(data_dir)
    return None if folder is None else folder / str(origin["location"])


def _evaluated(recipe: Recipe) -> dict[str, Path]:
    evaluate = recipe.evaluate
    named = {"evaluate.texts": evaluate.texts, "evaluate.known_source": evaluate.known_source}
    return {key: file for key, name in named.items() if name and (file := file_of(name)) is not None}
