"""The tables of a recipe: what TOML says of a stage and of a run, one class each. See :mod:`training.recipe`.

Every key has a sentence here, of which the page of keys is made (``docs/reference/recipes.md``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from memprobe.grafts import parse_places
from memprobe.sizes import parse_size
from memprobe.sources import kind_of
from memprobe.sources.kinds import Kind
from memprobe.sources.named import named_file
from memprobe.sources.passages import PromptForm, WordOrder
from training.penalties import AnyPenalty
from training.settings import Name, Settings, parsed_by

Words = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]], "prompt and answer words"]
Share = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
Pieces = Annotated[int, Field(ge=1, le=10_000_000)]  # rows or tokens of a step: no machine takes more


class Optimiser(Settings):
    """AdamW and its learning rate over time; the defaults are the paper's (arXiv 2411.07175).

    Attributes:
        lr: the learning rate that the schedule rises to and falls from.
        betas, eps, weight_decay: of AdamW.
        schedule: how the learning rate falls after the warmup.
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
        gradient_checkpointing: activations are computed again in the backward pass: less memory, more time.
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
        source: one that ``memprobe sources`` names, or a file of rows.
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
    """Rows of all earlier stages, trained again.

    Attributes:
        ratio: the share of them that is, one fixed seeded subset.
        redraw: drawn anew in every epoch instead: 10 % then show 88 % of the rows in 20 epochs.
    """

    ratio: float = Field(gt=0, le=1)
    redraw: bool = False


class Lora(Settings):
    """Low-rank adapters (Hu et al. 2021) on every linear layer but the unembedding, merged when the stage ends.

    Attributes:
        rank: of the two matrices whose product is added to a layer's weight.
        alpha: the product is added ``alpha / rank`` times.
    """

    rank: int = Field(16, ge=1, le=2**16)  # far beyond any model's width, and within memory
    alpha: float = Field(32.0, gt=0)


class Stop(Settings):
    """Stops a stage before its last epoch. What comes first counts.

    Attributes:
        loss: stop after ``steps`` optimiser steps in a row with a lower loss on the stage's own rows (mixing rows
            may be past learning; a step without own rows neither counts nor breaks the row).
        steps: how many for ``loss``, one after another.
        exact_match: stop after an epoch when every answer token of the own rows is the argmax.
    """

    loss: float | None = Field(None, gt=0)
    steps: int = Field(10, ge=1)
    exact_match: bool = False


class Unknown(Settings):
    """Keep only factoids that the base model does not answer (the paper's filter).

    Attributes:
        template: how the base model is asked.
        shots: solved examples before each question.
    """

    template: str = "plain"
    shots: int = Field(0, ge=0, le=5)


class Along(Settings):
    """Checkpoints along the way, for learning curves.

    Attributes:
        steps, epochs: one after every so many; give one of the two.
    """

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
        name: of its directory, behind its number.
        data: the source of its own rows: one that ``memprobe sources`` names, or a file of rows.
        kind: what the rows are, and so how they are evaluated: ``factoids`` by exact match; ``tasks`` by their final
            answers, or by the loss of their solutions where they have none; ``texts`` by perplexity.
        n: a seeded subset of so many rows; default: all.
        data_seed: of which own rows are drawn, instead of the run's.
        answers: ``shuffled``: of the rows that are drawn, each prompt gets the answer of another, a wrong one.
        held_out: rows of tasks and texts beside the n, never trained, on which the stage is evaluated
            (factoids are to be memorised, so they are evaluated on the very rows).
        metric: ``loss``: tasks with a final answer (GSM8K, MATH) are evaluated by the loss of their solutions alone,
            without generating any, which takes far longer than training on them.
        words: of a stage of texts, how many words a row's prompt and its answer have.
        unknown: keep only factoids that the base model does not answer.
        epochs: how often its own rows are trained, at most.
        stop: what ends it before its last epoch.
        mixing: what is trained beside its own rows; an arm says it as ``remix(…)``.
        match: train own rows alone, for as many steps or tokens as with the mixing; ``matched(…)``.
        replay: rows of all earlier stages are trained again; ``replay(…)``.
        penalty: a term added to the loss; ``ewc(…)`` or ``kl(…)``.
        lora: adapters are trained in the weights' place; ``lora(…)``.
        train: the weights that are trained, every other one staying as it is: ``blocks=5``, ``blocks=5-10``, or
            ``blocks=5, parts=mlp`` (also ``attn``, ``norms``); blocks count from 1. Default: all.
        checkpoints: weights along the way, for learning curves.
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
        known: factoids that the base model answers before stage 1, at most so many.
        known_source: where these are from.
        paraphrases: stage 1's factoids are asked in other words, too.
        manipulations: tasks that need the answers of stage 1's factoids are asked, too.
        texts: source of held-out generic text, of which the perplexity is measured.
        texts_n: passages of ``texts``.
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
