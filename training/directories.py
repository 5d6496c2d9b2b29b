"""A run's directory: what may lie there before it begins, and what a fresh one replaces."""

from __future__ import annotations

from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.files import read_toml
from memprobe.manifests import MANIFEST
from memprobe.runs import EVALUATION, MATRIX, RECIPE, STATE
from memprobe.starting_over import Work
from training.data import ASKED, PREPARED
from training.recipe import Recipe, differences, parse_recipe
from training.starts import BASE

LOG = "log.txt"


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
    there=lambda out: (out / RECIPE).exists() or (out / PREPARED).exists(),
    files=_files,
    shows=_shows,
)
"""A run, as ``--fresh`` starts it over."""
