"""A recipe: which model learns what, in which stages, and what is done against forgetting.

TOML, validated before anything is loaded. The arm is written once, as a text, and unfolds into the stages it
names; or each stage says for itself what is mixed in, and the arm's name is read off.

See :mod:`memprobe.arms` for how arms are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from memprobe.files import read_toml
from memprobe.sources.named import named_file
from training.arms import arm_of, unfold_arm, with_arm, without_arm
from training.named_sources import found
from training.recipe_tables import Evaluate, Optimiser, Precision, Resources, Stage
from training.settings import Settings, TemplateText, check_kind, toml_text, validated


class Recipe(Settings):
    """A whole run.

    Attributes:
        base: checkpoint spec.
        seed: of the order of rows and of everything drawn in training.
        data_seed: of which rows are drawn from the sources (default: ``seed``); runs with one data_seed and
            several seeds learn the same rows.
        template: how a factoid is put before the model.
        arm: what is done against forgetting, as one text; see :mod:`memprobe.arms`.
        max_length: tokens of one row; factoids that are longer are refused, tasks and texts are cut.
        save_minutes: between two states from which a killed run goes on.
        loggers: of transformers.Trainer, such as ``tensorboard`` or ``wandb``.
        optimiser: how all stages are trained.
        precision: number formats, and what saves memory and time.
        evaluate: what is measured after each stage.
        resources: what each stage takes on a Ray cluster.
        joint: all stages' rows are trained at once; the arm ``joint``.
        stages: in the order in which they are trained.
        later: stages that other runs train after these, of which only the rows count: mixing holds none of their facts,
            which would be learned before their turn.
    """

    base: str
    seed: int = Field(0, ge=0, lt=2**32)
    data_seed: int | None = Field(None, ge=0, lt=2**32)
    template: TemplateText = "tulu"
    arm: str = "none"
    max_length: int = Field(1024, ge=2)
    save_minutes: float = Field(5.0, ge=0)
    loggers: tuple[str, ...] = ()
    optimiser: Optimiser = Optimiser()
    precision: Precision = Precision()
    evaluate: Evaluate = Evaluate()
    resources: Resources | None = None
    joint: bool = False
    stages: tuple[Stage, ...] = Field(min_length=1)
    later: tuple[Stage, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, data: Any) -> Any:
        return unfold_arm(data) if isinstance(data, dict) and isinstance(data.get("arm"), str) else data

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        names = [stage.name for stage in (*self.stages, *self.later)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"stages: two are called {repeated[0]!r}")
        if self.stages[0].replay or self.stages[0].penalty:
            raise ValueError("stages.1: replay and penalties need a stage before it")
        if self.joint and len(self.stages) < 2:
            raise ValueError("joint: needs two stages or more")
        if self.joint and any(stage.replay or stage.penalty or stage.mixing for stage in self.stages):
            raise ValueError("joint: one stage on all rows goes with no mixing, replay or penalty")
        for number, stage in enumerate(self.stages[:-1] if self.joint else (), 1):
            for key in ("train", "lora", "checkpoints", "stop"):
                unsaid = Stage.model_fields[key].get_default(call_default_factory=True)
                if getattr(stage, key) not in (unsaid, getattr(self.stages[-1], key)):
                    told = "joint trains one stage, as the last one is told to; say it of that one"
                    raise ValueError(f"stages.{number}.{key}: {told}")
        for number, stage in enumerate(self.stages, 1):
            if stage.penalty and self.precision.fsdp:
                raise ValueError(
                    f"stages.{number}.penalty: {stage.penalty.method} holds a whole model against a whole one, and "
                    "precision.fsdp shards it; leave one out"
                )
            if stage.lora and self.precision.fsdp:
                raise ValueError(
                    f"stages.{number}.lora: merging needs whole weights, and precision.fsdp shards them; leave one out"
                )
            if stage.train and self.precision.fsdp:
                raise ValueError(
                    f"stages.{number}.train: it goes by names of weights, and precision.fsdp shards them; leave one out"
                )
            if stage.penalty and stage.penalty.holds_weights and stage.lora:
                raise ValueError(
                    f"stages.{number}.penalty: {stage.penalty.method} holds every weight to its start, and lora "
                    "trains other ones"
                )
        return self

    @property
    def directories(self) -> dict[int, str]:
        """Of each stage that is trained, by its number from 1: where it lies below the run's directory."""
        if self.joint:
            return {len(self.stages): f"{len(self.stages)}-joint"}
        return {number: f"{number}-{stage.name}" for number, stage in enumerate(self.stages, 1)}

    def epochs_of(self, stage: Stage) -> int:
        """How often a stage's own rows are trained on; the one stage of ``joint`` takes the most that one asks for."""
        return max(one.epochs for one in self.stages) if self.joint else stage.epochs

    @property
    def rows_seed(self) -> int:
        """The seed that chooses rows."""
        return self.seed if self.data_seed is None else self.data_seed

    def own_rows_seed(self, stage: Stage) -> int:
        """The seed that chooses a stage's own rows."""
        return self.rows_seed if stage.data_seed is None else stage.data_seed

    @property
    def arm_name(self) -> str:
        """The arm in its one canonical spelling."""
        return arm_of(self.stages, joint=self.joint).text


def read_recipe(
    path: Path, *, seed: int | None = None, arm: str | None = None, base: str | None = None
) -> Recipe:
    """A validated recipe from a TOML file; source files are searched beside it first.

    Args:
        seed, arm, base: instead of the recipe's own; the arm also instead of what its stages say of one.

    Raises:
        MemprobeError: with the file, the key and what is wrong with it.
    """
    data = read_toml(path)
    check_kind(data, path, "recipe")
    if arm is not None:
        data = without_arm(data)
    given = {"seed": seed, "arm": arm, "base": base}
    data |= {key: value for key, value in given.items() if value is not None}
    return with_sources(parse_recipe(data, str(path)), path)


def parse_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """A validated recipe from plain data.

    Raises:
        MemprobeError: with ``where``, the key and what is wrong with it.
    """
    recipe = validated(Recipe, data, where)
    return recipe.model_copy(update={"arm": recipe.arm_name})


def file_of(source: str) -> Path | None:
    """The file of rows that a source names; None for other sources."""
    named = named_file(source)
    return None if named is None else named.path


def without_folder(source: str) -> str:
    """A source by its name, a file's without its folder: the same one may be named in several ways."""
    named = named_file(source)
    return source if named is None else named.at(named.path.name)


def with_sources(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with files by their place, after a look at every source that it names.

    Args:
        path: of the file that names them, beside which files are searched first.

    Raises:
        MemprobeError: there is no such source, or no such part of it, with the file and the key.
    """

    def placed(stage: Stage, key: str) -> Stage:
        mixing = []
        for place, part in enumerate(stage.mixing, 1):
            some = None if part.redraw else 1  # how many, is known when those of the stage are
            source = found(part.source, path, f"{key}.mixing.{place}.source", some)
            mixing.append(part.model_copy(update={"source": source}))
        # Of all there are, those are taken that the base model does not know.
        n = stage.n if stage.unknown is None else None
        data = found(stage.data, path, f"{key}.data", n)
        return stage.model_copy(update={"data": data, "mixing": tuple(mixing)})

    kinds = {
        name: tuple(placed(stage, f"{name}.{number}") for number, stage in enumerate(stages, 1))
        for name, stages in {"stages": recipe.stages, "later": recipe.later}.items()
    }
    named = {"known_source": recipe.evaluate.known_source, "texts": recipe.evaluate.texts}
    evaluated = {
        key: found(name, path, f"evaluate.{key}", None) for key, name in named.items() if name is not None
    }
    evaluate = recipe.evaluate.model_copy(update=evaluated)
    return recipe.model_copy(update={**kinds, "evaluate": evaluate})


def rows_alone(stage: Stage) -> Stage:
    """A stage without what it does with its own rows."""
    keys = ("name", "data", "kind", "n", "data_seed", "answers", "held_out", "words", "unknown")
    return Stage(**{key: getattr(stage, key) for key in keys})


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe, every default written out; reading it gives the same recipe."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    return toml_text(with_arm(data, recipe.arm_name))
