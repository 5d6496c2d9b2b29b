"""What is measured at the ends of a stage: which sets are evaluated, what is kept, and how gradients interfere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from memprobe.checkpoints import Checkpoint
from memprobe.evaluations import EvaluatedSet
from memprobe.factoids import Factoid
from memprobe.files import read_valid, write_json
from memprobe.sources.kinds import AnyRow
from training.asking import answers_file
from training.examples import ExampleMaker
from training.mixing import Part
from training.prepared import Prepared
from training.recipe import Recipe
from training.row_files import row_to_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from memprobe.models import LensModel
    from training.evaluate import EvaluationSet, Metric


class InterferenceFile(BaseModel):
    """``interference.json``: what was measured at the start of a stage; see :mod:`training.interference`."""

    model_config = ConfigDict(extra="allow", strict=True)

    loss_a: float
    loss_b: float
    gradient_norm_a: dict[str, Any]
    gradient_norm_b: dict[str, Any]
    cosine_a_b: dict[str, Any]


INTERFERENCE_ROWS = 64
"""Of each dataset, the same at both ends of a stage."""


def evaluation_sets(prepared: Prepared, recipe: Recipe, number: int) -> dict[str, EvaluationSet]:
    """Every dataset seen so far, and what else the recipe watches."""
    from memprobe.sources import subset
    from memprobe.sources.evaluation import manipulations, paraphrases
    from training.evaluate import EvaluationSet

    wanted = recipe.evaluate
    kinds: dict[str, Any] = {"factoids": "factoids", "tasks": "task", "texts": "text"}

    def make(
        kind: Any, rows: Sequence[AnyRow], metric: Metric | None = None, seed: int = recipe.rows_seed
    ) -> EvaluationSet:
        chosen = subset(rows, min(len(rows), wanted.limit), seed, "evaluation")
        return EvaluationSet(kind, chosen, recipe.template, metric, recipe.max_length)

    # Chosen by the seed that the stage's own rows are drawn by, so that seeds with the same rows are asked the same.
    seeds = [recipe.own_rows_seed(stage) for stage in recipe.stages]
    sets = {
        f"{place}-{stage.name}": make(kinds[stage.kind], data.held_out or data.rows, stage.metric, seed)
        for place, (stage, data, seed) in enumerate(
            zip(recipe.stages, prepared.stages, seeds, strict=True), 1
        )
        if place <= number
    }
    first = [row for row in prepared.stages[0].rows if isinstance(row, Factoid)]
    if wanted.paraphrases and first:
        sets["paraphrases"] = make("factoids", paraphrases(first), seed=seeds[0])
    if wanted.manipulations and first:
        sets["manipulations"] = make("factoids", manipulations(first, seeds[0]), seed=seeds[0])
    if prepared.known:
        sets["known"] = EvaluationSet("factoids", prepared.known, "plain")
    if prepared.texts:
        sets["texts"] = make("text", prepared.texts)
    return sets


def evaluate_base(
    recipe: Recipe,
    prepared: Prepared,
    base: Checkpoint,
    load: Callable[[], LensModel],
    asked: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The base model on every set of the run, those of all stages: the row of stage 0 in the accuracy matrix.

    Args:
        load: loads the base model; called only where a set has not been evaluated yet.
        asked: folder of the base model's answers, one file for each set; runs may share it.
    """
    from filelock import FileLock

    from training.evaluate import evaluate

    asked.mkdir(parents=True, exist_ok=True)
    results, loaded = {}, None
    for name, one in evaluation_sets(prepared, recipe, len(recipe.stages)).items():
        rows = [row_to_json(row) for row in one.rows]
        question = (one.kind, one.headline, one.template, one.max_length, one.new_tokens, rows)
        path = answers_file(asked, base, recipe.precision.save_dtype, question, "base-")
        if not path.exists():
            with FileLock(path.with_suffix(".lock")):  # another run may be at it
                if not path.exists():
                    say(f"evaluating the base model on {name}")
                    loaded = loaded or load()
                    write_json(evaluate(loaded, {name: one})[name], path)
        results[name] = read_valid(path, EvaluatedSet)
    return results


def learned(recipe: Recipe, number: int, results: dict[str, Any]) -> bool | None:
    """Whether a stage ended with all its own factoids exact (joint: those of every stage) that were evaluated.

    With more factoids than ``evaluate.limit`` these are a seeded sample of so many. What a stage did not learn, nothing
    can be said to keep: an arm that holds the model back too strongly looks like one that forgets nothing. None for a
    stage of tasks or texts.
    """
    shares = shares_learned(recipe, number, results)
    return all(share == 1.0 for share in shares.values()) if shares else None


def shares_learned(recipe: Recipe, number: int, results: dict[str, Any]) -> dict[str, float]:
    """By name, the share of a factoid stage's own rows that are exact when it ends (joint: of every stage's).

    Of the rows that were evaluated: with more than ``evaluate.limit`` a seeded sample of so many.
    """
    places = range(1, len(recipe.stages) + 1) if recipe.joint else [number]
    return {
        stage.name: results[f"{place}-{stage.name}"]["scores"]["exact_match"]["value"]
        for place in places
        if (stage := recipe.stages[place - 1]).kind == "factoids"
    }


def kept_of_earlier(
    recipe: Recipe, number: int, results: dict[str, Any], replayed: Set[str]
) -> dict[str, Any]:
    """Earlier stages' factoids by stage, on replayed and on unseen rows apart; nothing for the arm joint.

    Args:
        replayed: ids of the rows that this stage or one before it showed again.
    """
    from training.evaluate import retention

    kept = {}
    for place, stage in enumerate(recipe.stages[: number - 1], 1):
        if stage.kind == "factoids" and not recipe.joint:
            result = results[f"{place}-{stage.name}"]
            ids = {row["id"] for row in result["rows"]}
            kept[f"{place}-{stage.name}"] = retention(result, ids & replayed)
    return kept


class Interference:
    """Gradients of D_A, D_B and mixing rows held against each other, at both ends of a stage.

    In stage 1 D_A is the stage's own data and D_B the mixing rows, if any; later D_A is stage 1's and D_B the
    stage's own. The batches are fixed, so that both ends measure the same rows. The arm ``joint`` has none: its one
    stage's own rows begin with D_A, and nothing pulls against it.
    """

    def __init__(
        self,
        recipe: Recipe,
        number: int,
        parent: Checkpoint,
        prepared: Prepared,
        own: Part,
        make: ExampleMaker,
        state: Path,
        start: Mapping[str, Any] | None = None,
    ):
        """Chooses the rows.

        Args:
            state: folder of what a run that goes on needs.
            start: the parent's weights by name, where they are in memory.
        """
        self.size, self.number, self.parent = recipe.optimiser.micro_batch, number, parent
        self.start = start
        self.file = state / "interference.json"
        mixing = [
            make(row, own=False)
            for rows in prepared.stages[number - 1].mixing
            for row in rows[:INTERFERENCE_ROWS]
        ]
        self.a = [make(row) for row in prepared.stages[0].rows[:INTERFERENCE_ROWS]]
        self.b = list(own.examples[:INTERFERENCE_ROWS]) if number > 1 else mixing
        self.m = mixing if number > 1 else []
        self.wanted = recipe.evaluate.interference and bool(self.b) and not recipe.joint

    def at_start(self, model: PreTrainedModel) -> None:
        """Before the stage; a run that goes on keeps what was measured then."""
        if self.wanted and not self.file.exists():
            write_json(self._measure(model, None), self.file)

    def at_end(self, model: PreTrainedModel) -> dict[str, Any] | None:
        """After the stage, with the change of the weights; both ends."""
        if not self.wanted:
            return None
        from training.checkpoint import weights_at

        delta = {
            name: (now := model.get_parameter(name).detach()).float() - start.to(now.device)
            for name, start in weights_at(self.parent, model, self.start)
        }
        sets = {"a": "stage 1", "b": "mixing rows"}
        if self.number > 1:
            sets = {"a": "stage 1", "b": "own rows", "m": "mixing rows"}
        return {
            "sets": sets,
            "start": read_valid(self.file, InterferenceFile),
            "end": self._measure(model, delta),
        }

    def _measure(self, model: PreTrainedModel, delta: dict[str, Any] | None) -> dict[str, Any]:
        from training.batches import collator, micro_batches
        from training.interference import interference

        for parameter in model.parameters():
            parameter.requires_grad_(True)
        collate = collator(model, [*self.a, *self.b, *self.m])
        m = micro_batches(self.m, self.size, collate) if self.m else None
        a, b = (micro_batches(rows, self.size, collate) for rows in (self.a, self.b))
        return interference(model, a, b, m, delta)


def weight_change(
    model: PreTrainedModel, starts: Mapping[str, tuple[Checkpoint, Mapping[str, Tensor] | None]]
) -> dict[str, float]:
    """How far weights are from those of each checkpoint named: Euclidean norms.

    Args:
        starts: by name, a checkpoint and its weights where they are in memory.
    """
    import torch

    from training.checkpoint import weights_at

    change = {}
    for name, (checkpoint, held) in starts.items():
        squares = [
            _square(model.get_parameter(key).detach(), before)
            for key, before in weights_at(checkpoint, model, held)
        ]
        change[name] = math.sqrt(math.fsum(torch.stack(squares).tolist()))
    return change


def _square(weights: Tensor, before: Tensor) -> Tensor:
    """The squared distance between two tensors in fp64, on the first one's device."""
    return (weights.float() - before.to(weights.device)).double().square().sum()
