"""A recipe: which model learns what, in which stages, and what is done against forgetting.

TOML, validated before anything is loaded. The arm is written once, as a text, and unfolds into the stages it
names; or each stage says for itself what is mixed in, and the arm's name is read off.

See :mod:`memprobe.arms` for how arms are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from memprobe.files import read_toml
from memprobe.grafts import parse_places
from memprobe.sizes import parse_size
from memprobe.sources import kind_of
from memprobe.sources.kinds import Kind
from memprobe.sources.named import named_file
from memprobe.sources.passages import PromptForm, WordOrder
from training.arms import arm_of, unfold_arm, with_arm, without_arm
from training.named_sources import found
from training.penalties import AnyPenalty
from training.settings import Name, Settings, TemplateText, check_kind, parsed_by, toml_text, validated

Words = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]], "prompt and answer words"]
Share = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
Pieces = Annotated[int, Field(ge=1, le=10_000_000)]  # rows or tokens of a step: no machine takes more


class Optimiser(Settings):
    """AdamW and its learning rate over time; the defaults are the paper's (arXiv 2411.07175).

    Attributes:
        batch: rows of one optimiser step, over all processes.
        micro_batch: at most so many rows go through the model at a time.
        micro_tokens: nor many more tokens than this, padding included: a step of long rows is taken in more pieces, of
            which memory holds one (default: 2048 on an accelerator, no limit on a CPU).
        clip: gradients are shortened to this length; not in a stage whose penalty holds the weights (EWC).
        warmup: share of the steps in which the learning rate rises from 0.
    """

    lr: float = Field(5e-5, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)
    batch: Pieces = 32
    micro_batch: Pieces = 32
    micro_tokens: Pieces | None = None


class Precision(Settings):
    """Number formats and the memory they cost.

    Attributes:
        weights: of the weights in training (optimiser state is kept in the same, so float16 is none: the squares of
            gradients fall below what it holds, and steps grow without bound).
        autocast: of the matrix products; ``none`` computes in the weights' own, ``auto`` in bfloat16 where that pays on
            the machine that the run begins on; see :mod:`training.autocast`.
        packing: rows of a micro-batch as one sequence in which common prefixes stand once, where the model computes
            the same from that and where it is less work; see :mod:`training.batches`.
        fewer_kernels: on a CUDA device, fused norms and flash attention; see :mod:`training.kernels`.
        graphs: on one CUDA device, a step's forward and backward pass as one CUDA graph, where that computes the same;
            rows are padded then, not packed; see :mod:`training.graphs`.
        save_dtype: of the checkpoints, which the next stage starts from.
        fsdp: shard the model over the processes.
    """

    weights: Literal["float32", "bfloat16"] = "float32"
    autocast: Literal["none", "bfloat16", "auto"] = "none"
    packing: bool = True
    fewer_kernels: bool = True
    graphs: bool = True
    save_dtype: Dtype = "float32"
    gradient_checkpointing: bool = False
    fsdp: bool = False


class Mixing(Settings):
    """Rows trained beside a stage's own.

    Attributes:
        ratio: rows per own row.
        words: words of the prompt and of the answer.
        prompt: ``words``, the passage's first words, which the answer continues (the paper's form), or
            ``sentence``, one instruction for every row; see :mod:`memprobe.sources.passages`.
        order: of the words of texts: as ``written``, or ``shuffled``, within the prompt and within the answer.
        redraw: drawn anew in every epoch instead of one fixed set, from ``epochs`` times as many rows where they are
            made, else from all there are. One may come again: 20 epochs show 64 % of those that are made.
    """

    source: str
    ratio: float = Field(2.0, ge=0)
    words: Words = (50, 50)
    prompt: PromptForm = "words"
    order: WordOrder = "written"
    redraw: bool = False

    @property
    def kind(self) -> Kind:
        """What is mixed in. Rows of a file or of the hub, which may be of every kind, are read as texts, but for a file
        whose facts are chosen by their answers."""
        file = named_file(self.source)
        if file is not None:
            return "texts" if file.answers is None else "factoids"
        return kind_of(self.source, "texts" if self.source.startswith("hub:") else None)

    @model_validator(mode="after")
    def _consistent(self) -> Mixing:
        if self.order == "shuffled" and self.kind != "texts":
            raise ValueError(f'{self.source}: order = "shuffled" is of texts, and it holds {self.kind}')
        return self


class Replay(Settings):
    """Rows of all earlier stages, trained again: ``ratio`` × their number.

    One fixed seeded subset of all of them. Redrawn in each epoch, 10 % shows 88 % of the rows in 20 epochs.
    """

    ratio: float = Field(gt=0, le=1)
    redraw: bool = False


class Lora(Settings):
    """Low-rank adapters (Hu et al. 2021) on every linear layer but the unembedding, merged when the stage ends."""

    rank: int = Field(16, ge=1, le=2**16)  # far beyond any model's width, and within memory
    alpha: float = Field(32.0, gt=0)


class Stop(Settings):
    """Stops a stage before its last epoch. What comes first counts.

    Attributes:
        loss: stop after ``steps`` optimiser steps in a row with a lower loss on the stage's own rows (mixing rows
            may be past learning; a step without own rows neither counts nor breaks the row).
        exact_match: stop after an epoch when every answer token of the own rows is the argmax.
    """

    loss: float | None = Field(None, gt=0)
    steps: int = Field(10, ge=1)
    exact_match: bool = False


class Unknown(Settings):
    """Keep only factoids that the base model does not answer (the paper's filter).

    Attributes:
        shots: solved examples before each question.
    """

    template: str = "plain"
    shots: int = Field(0, ge=0, le=5)


class Along(Settings):
    """Checkpoints along the way, for learning curves: every so many steps or epochs."""

    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> Along:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of them")
        return self


class Resources(Settings):
    """What a stage takes where Ray places it; nothing that is trained depends on it.

    Attributes:
        gpus: default: one where the cluster has any.
        cpus: cores.
        memory: main memory, such as ``40GiB``.
    """

    gpus: float | None = Field(None, ge=0)
    cpus: float = Field(1.0, ge=0)
    memory: Annotated[str | None, parsed_by(parse_size)] = None


class Stage(Settings):
    """One fine-tuning run on one dataset, from the checkpoint before it.

    Attributes:
        n: a seeded subset of so many rows; default: all.
        data_seed: of which own rows are drawn, instead of the run's.
        answers: ``shuffled``: of the rows that are drawn, each prompt gets the answer of another, a wrong one.
        held_out: rows of tasks and texts beside the n, never trained, on which the stage is evaluated
            (factoids are to be memorised, so they are evaluated on the very rows).
        metric: ``loss``: tasks with a final answer (GSM8K, MATH) are evaluated by the loss of their solutions alone,
            without generating any, which takes far longer than training on them.
        train: the weights that are trained, every other one staying as it is: ``blocks=5``, ``blocks=5-10``, or
            ``blocks=5, parts=mlp`` (also ``attn``, ``norms``); blocks count from 1. Default: all.
    """

    name: Name
    data: str
    kind: Literal["factoids", "tasks", "texts"] = "factoids"
    n: int | None = Field(None, ge=1)
    data_seed: int | None = Field(None, ge=0, lt=2**32)
    answers: Literal["shuffled"] | None = None
    held_out: int = Field(64, ge=1)
    metric: Literal["loss"] | None = None
    words: Words = (50, 50)
    unknown: Unknown | None = None
    epochs: int = Field(20, ge=1, le=10_000)
    stop: Stop = Stop()
    mixing: tuple[Mixing, ...] = ()
    match: Literal["steps", "tokens"] | None = None
    replay: Replay | None = None
    penalty: AnyPenalty | None = None
    lora: Lora | None = None
    train: Annotated[str | None, parsed_by(parse_places)] = None
    checkpoints: Along | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        if self.unknown is not None and self.kind != "factoids":
            raise ValueError("unknown: only factoids can be asked")
        if self.answers is not None and self.kind != "factoids":
            raise ValueError(f"answers: only factoids have answers to shuffle, and this stage is {self.kind}")
        if self.metric is not None and self.kind != "tasks":
            raise ValueError(f"metric: {self.metric} is of tasks; {self.kind} have a metric of their own")
        if self.train is not None and self.lora is not None:
            raise ValueError("train: lora trains adapters and none of the model's own weights; leave one out")
        if self.match is not None and not self.mixing:
            raise ValueError("match: names the mixing whose length is matched; give mixing")
        if self.match is not None and (self.stop.loss is not None or self.stop.exact_match):
            raise ValueError("match: a stage that stops early matches nothing; leave out stop")
        return self


class Evaluate(Settings):
    """What is measured after each stage, beside exact match on every stage's own rows.

    Attributes:
        known: factoids that the base model answers before stage 1, at most so many, from ``known_source``.
        paraphrases, manipulations: stage 1's factoids asked in other words, and tasks that need their answers.
        texts: held-out generic text for perplexity, with ``texts_n`` passages.
        limit: rows of one evaluation at most, a seeded sample.
        interference: gradients of the stages' rows held against each other, but for the arm ``joint``; see
            :mod:`training.interference`.
    """

    known: int = Field(0, ge=0)
    known_source: str = "known"
    paraphrases: bool = False
    manipulations: bool = False
    texts: str | None = None
    texts_n: int = Field(32, ge=1)
    limit: int = Field(1000, ge=1)
    interference: bool = False


class Recipe(Settings):
    """A whole run.

    Attributes:
        base: checkpoint spec.
        seed: of the order of rows and of everything drawn in training.
        data_seed: of which rows are drawn from the sources (default: ``seed``); runs with one data_seed and
            several seeds learn the same rows.
        template: how a factoid is put before the model.
        max_length: tokens of one row; factoids that are longer are refused, tasks and texts are cut.
        save_minutes: between two states from which a killed run goes on.
        loggers: of transformers.Trainer, such as ``tensorboard`` or ``wandb``.
        resources: what each stage takes on a Ray cluster.
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
