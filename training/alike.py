"""Whether two recipes train the same: what a run, or a cell of a grid, was begun with, and what is asked for now.

Files of rows count by their names alone, wherever they lie: what they say is held against what was read
(:mod:`training.starts`), and the same file may be named from several folders.
"""

from __future__ import annotations

from memprobe.recipes import RUN_ONLY
from training.recipe import Recipe, without_folder
from training.recipe_tables import Precision, Stage
from training.settings import changes


def settled_as(recipe: Recipe, old: Recipe) -> Recipe:
    """The recipe with ``auto`` as one that was begun before has it."""
    if recipe.precision.autocast != "auto":
        return recipe
    precision = recipe.precision.model_copy(update={"autocast": old.precision.autocast})
    return recipe.model_copy(update={"precision": precision})


def same_rows(old: Recipe, new: Recipe) -> bool:
    """Whether two recipes draw the same rows: all that they say counts, but for where stages run and in which precision
    they are trained. ``save_dtype`` counts, as the base model is asked in it what it knows."""
    without = {
        "arm": True,
        **dict.fromkeys(RUN_ONLY, True),
        "precision": set(Precision.model_fields) - {"save_dtype"},
    }
    before, after = (without_places(recipe).model_dump(mode="json", exclude=without) for recipe in (old, new))
    return before == after


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Keys in which two recipes differ, as ``optimiser.lr: 5e-05 -> 0.0001``; but for :data:`RUN_ONLY`, and for
    where files of rows lie."""
    before, after = (
        without_places(recipe).model_dump(mode="json", exclude=set(RUN_ONLY)) for recipe in (old, new)
    )
    return changes(before, after)


def without_places(recipe: Recipe) -> Recipe:
    """A recipe whose files of rows are named without their folders: the same ones may be named in several ways."""
    stages, later = (tuple(map(_without_places, stages)) for stages in (recipe.stages, recipe.later))
    texts = recipe.evaluate.texts
    evaluate = {
        "texts": None if texts is None else without_folder(texts),
        "known_source": without_folder(recipe.evaluate.known_source),
    }
    evaluated = recipe.evaluate.model_copy(update=evaluate)
    return recipe.model_copy(update={"stages": stages, "later": later, "evaluate": evaluated})


def _without_places(stage: Stage) -> Stage:
    mixing = (part.model_copy(update={"source": without_folder(part.source)}) for part in stage.mixing)
    return stage.model_copy(update={"data": without_folder(stage.data), "mixing": tuple(mixing)})
