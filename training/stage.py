"""One stage: a schedule of micro-batches through ``transformers.Trainer``.

Trainer brings sharding, mixed precision, gradient checkpointing and loggers. It never decides data order: it
reads the schedule item by item. The loss is the model's own, over the positions that carry one alone; only EWC and KL
add to it. On a CPU it is computed a few positions at a time where that is the same loss.

A stage can be killed at any moment. Its state is saved by time into ``checkpoint-N`` folders, of which only
those count that hold the file ``complete``, which is written last.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from memprobe.errors import MemprobeError, first_line
from memprobe.modes import evaluating
from memprobe.runs import METRICS
from training.allocation import freed_memory_kept, nothing
from training.batches import (
    collator,
    micro_batches,
    model_inputs,
    own_nats,
    own_rows_exact,
    own_rows_right,
    padded,
    rows_exact,
)
from training.graphs import GraphedSteps, Unfit, in_shapes
from training.head_loss import BlockwiseHead
from training.kernels import fewer_kernels
from training.mixing import IGNORED, Example, Schedule
from training.penalties import InForce, Step
from training.progress import Progress, cut_metrics, saved_progress
from training.run_log import RunLog
from training.states import COMPLETE, complete_states, mark_complete, newest_state, remove_state
from training.stopping import Stopped
from training.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.batches import MicroBatch
    from training.recipe import Recipe
    from training.recipe_tables import Stop

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""transformers' names; its ``constant`` passes over the warm-up."""
_NO_CLIP = 1e30  # no gradient is longer, and its length is still measured
_ROWS_AT_ONCE = 128
_KEPT = 2  # states from which a run can go on


@dataclass(frozen=True)
class StageRun:
    """All that training one stage needs.

    Attributes:
        name: for the bar.
        folder: where the resumable state goes.
        own: rows of the stop rule ``exact_match``.
        along: called with the trainer and the step where a checkpoint along the way is due.
        alone: one process trains the whole model, see :attr:`training.context.RunContext.alone`.
    """

    recipe: Recipe
    name: str
    folder: Path
    schedule: Schedule
    accumulation: int
    seed: int
    stop: Stop
    own: Sequence[Example]
    penalty: InForce | None = None
    alone: bool = True
    due: Callable[[int], bool] = lambda _: False
    along: Callable[[StageTrainer, int], None] = lambda trainer, step: None
    report: RunLog = field(default_factory=lambda: RunLog(None, quiet=True))


class StageTrainer(Trainer):
    """Trainer over a schedule. It adds penalties, counts exact rows, and saves states that are whole or absent."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, run: StageRun):
        """Checks that the model can be trained this way.

        Raises:
            MemprobeError: its loss cannot be normalised over a whole step.
        """
        self.run = run
        self.progress = Progress()
        self.penalty_sum: Tensor | None = None
        # Both stay where the model is until a step is logged: reading them before its end would make the device wait.
        self.own_nats: Tensor | None = (
            None  # [2], of own rows in this step: their sum, and of how many tokens
        )
        self.own_rows: Tensor | None = None  # [2], of own rows in this step: exact ones, and all
        self.counted = time.monotonic()
        self.after_step: Callable[[], None] = nothing
        # Whether steps go through CUDA graphs: on one device, where the loss is that of the rows alone.
        self.graphing = (
            run.recipe.precision.graphs and run.alone and run.penalty is None and torch.cuda.is_available()
        )
        self.graphs: GraphedSteps | None = None  # from the first step on
        self.collate = in_shapes(padded) if self.graphing else self._collator(model)
        super().__init__(
            model,
            trainer_arguments(run),
            data_collator=partial(_only, collate=self.collate),
            train_dataset=run.schedule,  # type: ignore[arg-type]
            processing_class=tokenizer,
            callbacks=[Watch(self)],
        )
        self.blockwise = self._blockwise_head()
        self.remove_callback(PrinterCallback)
        if not self.model_accepts_loss_kwargs:
            raise MemprobeError(
                f"{type(model).__name__}: its loss cannot be normalised over a step, so it cannot train"
            )

    def _collator(self, model: PreTrainedModel) -> Callable[[Sequence[Example]], MicroBatch]:
        run, precision = self.run, self.run.recipe.precision
        return collator(
            model,
            run.schedule.rows,
            packing=precision.packing and not precision.fsdp,
            say=lambda line: run.report.say(f"{run.name}: {line}"),
        )

    def _blockwise_head(self) -> BlockwiseHead | None:
        """The model's unembedding, where one process computes on a CPU what needs no logits but for the loss."""
        run = self.run
        logits_read = run.penalty is not None and run.penalty.penalty.reads_logits
        if not run.alone or self.args.device.type != "cpu" or logits_read:
            return None
        head = BlockwiseHead(self.model, _autocast(run.recipe))
        rows = sorted(run.schedule.rows, key=lambda row: len(row.ids))[:2]
        problem = head.unfit(self.model, padded(rows)) if rows else "there are no rows"
        if problem is not None:
            run.report.say(f"{run.name}: {type(self.model).__name__}: all logits at once: {problem}")
        return None if problem is not None else head

    def training_step(self, model, inputs, num_items_in_batch=None):  # noqa: D102
        if not self.graphing:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        items = num_items_in_batch if num_items_in_batch is not None else len(inputs["labels"])
        if self.graphs is None:
            return self._first_step(model, inputs, items)
        counted = self.graphs(inputs, items)
        self._count(counted.rows, counted.nats)
        return counted.loss

    def _first_step(self, model: Any, inputs: Any, items: Any) -> Tensor:
        """A stage's first micro-batch through the model itself and through a graph, which is kept if both agree."""
        loss = super().training_step(model, dict(inputs), items)
        unwrapped = self.accelerator.unwrap_model(self.model)
        cast = _autocast(self.run.recipe)
        try:
            longest = max(len(row.ids) for row in self.run.schedule.rows)
            graphs = GraphedSteps(unwrapped, cast, longest=longest)
            differs = graphs.differs(inputs, items, loss)
        except (Unfit, RuntimeError, AttributeError, TypeError) as error:
            differs = first_line(error)[:200]
        else:
            self.graphs = graphs
        if differs is None:
            return loss
        self.run.report.say(f"{self.run.name}: trained without CUDA graphs: {differs}")
        self.graphing, self.graphs = False, None
        model.zero_grad()
        self.own_rows = self.own_nats = None
        return super().training_step(model, dict(inputs), items)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: D102
        inputs.pop("kept_at", None)
        own, kept_row, labels = inputs.pop("own"), inputs.pop("kept_row"), inputs["labels"]
        seen = model_inputs(inputs)
        place = (labels, kept_row, own)
        if self.blockwise is not None and not return_outputs:
            items = len(labels) if num_items_in_batch is None else num_items_in_batch
            counted = self.blockwise(model, seen, labels, own[kept_row], items)
            loss, outputs, logits = counted.loss, None, None
            self._count(own_rows_right(counted.right, *place), own_nats(counted.nats, *place))
        else:
            inputs["use_cache"] = False
            result: Any = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss, outputs = result
            logits = outputs.logits
            if logits.ndim != 2 or len(logits) != len(labels):
                raise MemprobeError(f"{type(self.model).__name__} does not take a boolean logits_to_keep")
            seen_logits, nats = logits.detach(), None
            if self.run.stop.loss is not None:
                nats = own_nats(F.cross_entropy(seen_logits.float(), labels, reduction="none"), *place)
            self._count(own_rows_exact(seen_logits, *place), nats)
        penalty = self._penalty(seen, logits, own[kept_row])
        if penalty is not None:
            before = self.penalty_sum
            self.penalty_sum = penalty.detach() if before is None else before + penalty.detach()
            loss = loss + penalty
        return (loss, outputs) if return_outputs else loss

    def _penalty(self, seen: MicroBatch, logits: Tensor | None, mine: Tensor) -> Tensor | None:
        """This micro-batch's share of the step's penalty, such that the shares add up to it."""
        held = self.run.penalty
        if held is None:
            return None
        step = self.run.schedule.step(self.state.global_step)
        of_step = sum(label != IGNORED for row in step if row.own for label in row.labels)
        share = mine.sum() * (self.accelerator.num_processes / of_step) if of_step else 0.0
        model = self.accelerator.unwrap_model(self.model)
        value = held.term(Step(model, seen, logits, mine, share, self.run.accumulation))
        return None if value is None else held.penalty.strength * value

    def _count(self, rows: Tensor, nats: Tensor | None) -> None:
        """What stop rules see: own rows alone, whatever is trained beside them."""
        self.own_rows = rows if self.own_rows is None else self.own_rows + rows
        if self.run.stop.loss is not None and nats is not None:
            self.own_nats = nats if self.own_nats is None else self.own_nats + nats

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: D102
        if "loss" in logs:
            if self.run.penalty is not None:  # also where this process had no row to be penalised for
                mine = self.penalty_sum
                mine = torch.zeros((), device=self.args.device) if mine is None else mine
                penalty = float(self.accelerator.reduce(mine, "mean"))
                logs = {**logs, "penalty": penalty, "data_loss": logs["loss"] - penalty}
                self.penalty_sum = None
            if self.own_rows is not None:
                right, seen = self.own_rows.tolist()
                self.progress.right += right
                self.progress.seen += seen
                self.own_rows = None
            if self.run.stop.loss is not None:
                sums = torch.zeros(2, device=self.args.device) if self.own_nats is None else self.own_nats
                nats, tokens = self.accelerator.reduce(sums).tolist()
                if tokens:  # else the step holds mixing rows alone, and says nothing of the own ones
                    logs = {**logs, "own_loss": nats / tokens}
                self.own_nats = None
            rows = self.run.schedule.step(self.state.global_step - 1)
            self.progress.tokens += sum(len(row.ids) for row in rows)
            logs = {**logs, "tokens": self.progress.tokens}
        super().log(logs, start_time)

    @property
    def _rows_at_once(self) -> int:
        """Rows of a forward pass without gradients: an accelerator takes as long for few."""
        size = self.run.recipe.optimiser.micro_batch
        return size if self.args.device.type == "cpu" else max(size, _ROWS_AT_ONCE)

    def release(self) -> None:
        """Lets go of gradients and the optimiser's state, when training is over."""
        self.model_wrapped.zero_grad(set_to_none=True)
        self.optimizer = self.lr_scheduler = None  # pyrefly: ignore[bad-override-mutable-attribute]
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        if not self.is_fsdp_enabled:
            self.accelerator.free_memory()

    def count_seconds(self) -> None:
        """Adds the time since the last call, or since this process began to train."""
        now = time.monotonic()
        self.progress.seconds += now - self.counted
        self.counted = now

    def own_exact(self) -> float:
        """The share of the stage's own rows whose answer tokens are all the argmax, at the present weights.

        In the weights' own precision, as the stage will be evaluated: a row that is exact in training's mixed precision
        alone has not been learned. (Sharded weights compute as they train.)
        """
        sharded = self.is_fsdp_enabled
        model: Any = self.model_wrapped if sharded else self.accelerator.unwrap_model(self.model)
        rows, right = self.run.own, 0
        with torch.no_grad() if sharded else evaluating(model):
            for batch in micro_batches(rows, self._rows_at_once, self.collate):
                batch = {key: value.to(self.args.device) for key, value in batch.items()}
                logits = model(**model_inputs(batch), use_cache=False).logits
                exact = rows_exact(logits.float(), batch["labels"], batch["kept_row"], len(batch["own"]))
                right += int(exact.sum())
        return right / len(rows)

    def _save_checkpoint(self, model, trial):
        """Saves a state and marks it complete; a state that could not be written is taken away again.

        Raises:
            MemprobeError: the disk is full or cannot be written; earlier states are untouched.
        """
        folder = self.run.folder / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.progress.step = self.state.global_step
                self.count_seconds()
                mark_complete(folder, asdict(self.progress))
                for old in complete_states(folder.parent)[:-_KEPT]:
                    remove_state(old)
        except Exception as error:  # torch, safetensors and the file system each have their own
            shutil.rmtree(folder, ignore_errors=True)
            raise MemprobeError(
                f"{folder.parent}: the state at step {self.state.global_step} could not be saved "
                f"({first_line(error)[:200]}); free some space, the same command goes on from the state before"
            ) from error
        self.accelerator.wait_for_everyone()


def _only(items: Sequence[Sequence[Example]], collate: Callable[[Sequence[Example]], dict[str, Tensor]]):
    """One micro-batch, which comes as a list of one, for DataLoader."""
    (rows,) = items
    return collate(rows)


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: StageRun) -> StageTrainer:
    """Trains a stage, from its newest complete state if there is one.

    Returns:
        The trainer, with the trained model and ``progress``.

    Raises:
        MemprobeError: the loss is not finite, or a state cannot be saved.
        Stopped: the process was asked to stop; the state is saved.
    """
    state = newest_state(run.folder)
    trainer = StageTrainer(model, tokenizer, run)
    if state is not None:
        trainer.progress = saved_progress(state / COMPLETE)
        run.report.say(f"{run.name}: goes on after step {trainer.progress.step}")
    if trainer.is_world_process_zero():
        cut_metrics(run.folder / METRICS, trainer.progress.step)
    cuda = trainer.args.device.type == "cuda"
    fewer = run.recipe.precision.fewer_kernels and cuda
    try:
        with (
            fewer_kernels(trainer.accelerator.unwrap_model(model)) if fewer else nullcontext(),
            nullcontext(nothing) if cuda else freed_memory_kept() as trainer.after_step,
        ):
            trainer.train(resume_from_checkpoint=str(state) if state else None)
    finally:
        run.report.stop()
    if trainer.progress.stopped is None and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(f"{run.name}: stopped after step {trainer.state.global_step}; its state is kept")
    if trainer.progress.stopped is None:
        trainer.progress.stopped = "all epochs"
    trainer.progress.step = trainer.state.global_step
    trainer.count_seconds()
    return trainer


def _autocast(recipe: Recipe) -> torch.dtype | None:
    return torch.bfloat16 if recipe.precision.autocast == "bfloat16" else None


def trainer_arguments(run: StageRun) -> TrainingArguments:
    """What Trainer is told of a stage: data order, stop rules and saving are not its own."""
    recipe = run.recipe
    optimiser, precision = recipe.optimiser, recipe.precision
    unclipped = run.penalty is not None and run.penalty.penalty.holds_weights
    return TrainingArguments(
        output_dir=str(run.folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=run.accumulation,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        learning_rate=optimiser.lr,
        adam_beta1=optimiser.betas[0],
        adam_beta2=optimiser.betas[1],
        adam_epsilon=optimiser.eps,
        weight_decay=optimiser.weight_decay,
        max_grad_norm=_NO_CLIP if unclipped else optimiser.clip,
        lr_scheduler_type=_SCHEDULES[optimiser.schedule],
        warmup_steps=math.ceil(optimiser.warmup * run.schedule.steps),
        optim="adamw_torch_fused",
        bf16=precision.autocast == "bfloat16",
        activation_checkpointing=precision.gradient_checkpointing,
        fsdp=True if precision.fsdp else None,  # type: ignore[arg-type]
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=list(recipe.loggers) or "none",
        disable_tqdm=True,
        seed=run.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
    )
