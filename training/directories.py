"""A run's directory: what may lie there before it begins, and what a fresh one replaces."""

from __future__ import annotations

import tomllib
from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.files import read_toml, read_valid
from memprobe.manifests import MANIFEST
from memprobe.runs import EVALUATION, MATRIX, RECIPE, STATE
from memprobe.starting_over import Work
from training.alike import differences, settled_as
from training.data import ASKED, PREPARED
from training.prepared import PreparedFile
from training.recipe import Recipe, parse_recipe
from training.starts import BASE, has_begun

LOG = "log.txt"


def check_directory(recipe: Recipe, out: Path) -> None:
    """Raises a MemprobeError for a directory that holds something else, or a run of another recipe.

    Until something was measured or trained, a recipe may be mended.
    """
    if not is_run(out):
        # A link is a stage of another run, from which this one goes on (training.grid).
        paths = [path for path in out.iterdir() if not path.is_symlink()]
        if others := [path.name for path in paths if not path.name.startswith(".") and path.name != LOG]:
            raise MemprobeError(f"{out}: holds {others[0]!r} and is not a run directory; give another --out")
    elif has_begun(out) and (changed := differences(begun(out), recipe)):
        raise MemprobeError(
            f"{out}: was begun with another recipe ({'; '.join(changed[:4])}); give another --out, or --fresh "
            "deletes it"
        )


def check_read(recipe: Path, out: Path, *, fresh: bool) -> None:
    """Checks that what a run writes is not the recipe that it is read from.

    Args:
        recipe: the file that is read.

    Raises:
        MemprobeError: it is.
    """
    if not (out / RECIPE).exists() or not recipe.samefile(out / RECIPE):
        return
    if not is_run(out):
        raise MemprobeError(
            f"{out}: a run writes its own {RECIPE} there, resolved; give another --out than the folder of the recipe"
        )
    if fresh:
        raise MemprobeError(f"--fresh: replaces {recipe}, which is read; copy it elsewhere and give that")


def is_run(out: Path) -> bool:
    """Whether a run was begun in a directory: its rows were read, or more."""
    return (out / PREPARED).exists() or has_begun(out)


def begun(out: Path) -> Recipe:
    """The recipe that a run was begun with, whatever its ``recipe.toml`` says by now: that of its rows.

    Raises:
        MemprobeError: nothing that is there says it.
    """
    own = [path for path in sorted(out.glob(f"*/{RECIPE}")) if not path.parent.is_symlink()]
    path = next((path for path in (*own, out / RECIPE) if path.exists()), None)
    as_trained = None if path is None else parse_recipe(read_toml(path), str(path))
    kept = out / PREPARED
    if not kept.exists():
        if as_trained is None:
            raise MemprobeError(f"{out}: holds a run without its {RECIPE}; give another --out")
        return as_trained
    recipe = parse_recipe(tomllib.loads(read_valid(kept, PreparedFile)["recipe"]), str(kept))
    # Rows are read before it is measured which precision pays.
    return recipe if as_trained is None else settled_as(recipe, as_trained)


def _files(out: Path) -> list[Path]:
    """What a run wrote into its directory; stages, and links to those of other runs, as wholes."""
    return [
        path
        for path in out.glob("*")
        if path.is_symlink()
        or (path.is_dir() and ((path / MANIFEST).exists() or path.name in ("along", BASE)))
        or path.name in (STATE, ASKED, RECIPE, LOG, PREPARED, MATRIX)
    ]


def _shows(out: Path) -> bool:
    """Whether the base model is evaluated, before which everything that a recipe names is read and checked."""
    return (out / BASE / EVALUATION).exists() or any(out.glob(f"*/{MANIFEST}"))


TRAINED = Work(
    "run",
    there=is_run,
    files=_files,
    shows=_shows,
)
"""A run, as ``--fresh`` starts it over."""
