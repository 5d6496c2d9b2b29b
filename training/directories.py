"""A run's directory: what may lie there before it begins, and what a fresh one deletes."""

from __future__ import annotations

import shutil
from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.files import read_toml
from memprobe.manifests import MANIFEST
from memprobe.runs import MATRIX, RECIPE, STATE
from training.data import ASKED, PREPARED
from training.recipe import Recipe, differences, parse_recipe

LOG, BASE = "log.txt", "0-base"


def check_directory(recipe: Recipe, out: Path) -> None:
    """Raises a MemprobeError for a directory that holds something else, or a run of another recipe."""
    if not (out / RECIPE).exists():
        # A link is a stage of another run, from which this one goes on (training.grid).
        paths = [path for path in out.iterdir() if not path.is_symlink()]
        if others := [path.name for path in paths if not path.name.startswith(".") and path.name != LOG]:
            raise MemprobeError(f"{out}: holds {others[0]!r} and is not a run directory; give another --out")
        return
    if changed := differences(begun(out), recipe):
        raise MemprobeError(
            f"{out}: was begun with another recipe ({'; '.join(changed[:4])}); give another --out, or --fresh "
            "deletes it"
        )


def begun(out: Path) -> Recipe:
    """The recipe that a run directory was begun with."""
    return parse_recipe(read_toml(out / RECIPE), str(out / RECIPE))


def delete_run(out: Path) -> bool:
    """Deletes what a run wrote, and nothing else; whether there was a run."""
    if not (out / RECIPE).exists() and not (out / PREPARED).exists():
        return False
    for path in out.glob("*"):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir() and ((path / MANIFEST).exists() or path.name in ("along", BASE)):
            shutil.rmtree(path)
    for name in (STATE, ASKED):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (RECIPE, LOG, PREPARED, MATRIX):
        (out / name).unlink(missing_ok=True)
    return True
