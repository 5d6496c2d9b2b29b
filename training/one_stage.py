"""One stage of a run: from its parent's weights to a checkpoint that is whole, with its evaluation."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe.checkpoints import Checkpoint, fingerprint, resolve
from memprobe.files import read_valid, write_json
from memprobe.manifests import MANIFEST
from memprobe.runs import EVALUATION, METRICS, STATE, ManifestFile
from memprobe.wording import listed
from training.checkpoint import About, save_whole, train_only, with_adapter
from training.context import RunContext
from training.data import StageParts, parts_of
from training.examples import ExampleMaker
from training.measures import (
    Interference,
    evaluation_sets,
    kept_of_earlier,
    learned,
    shares_learned,
    weight_change,
)
from training.memory import free
from training.mixing import Schedule
from training.penalties import Boundary, InForce
from training.prepared import Prepared
from training.recipe_tables import Along

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memprobe.models import LensModel
    from training.batches import MicroBatch
    from training.stage import StageTrainer

_TOKENS_AT_ONCE = 2048  # keep an accelerator busy, and leave room for other processes


class OneStage:
    """One stage of a run.

    Attributes:
        number: from 1.
        parent: the checkpoint that it starts from.
        name: of its directory, ``folder``.
        state: where the state of a stage lies that is not finished.
    """

    def __init__(self, context: RunContext, number: int, parent: Checkpoint, prepared: Prepared):
        self.context, self.recipe, self.report = context, context.recipe, context.report
        self.number, self.parent, self.prepared = number, parent, prepared
        self.stage = self.recipe.stages[number - 1]
        self.name = context.directory(number)
        self.folder, self.state = context.out / self.name, context.out / STATE / self.name

    def train(self) -> None:
        """Trains it, or goes on with it, and writes its checkpoint.

        Raises:
            MemprobeError: its rows cannot be trained, the loss is not finite, or the disk is full.
        """
        from transformers import set_seed

        from training.stage import StageRun, train
        from training.states import remove_torn

        context, recipe, stage, number = self.context, self.recipe, self.stage, self.number
        name, prepared, parent, state = self.name, self.prepared, self.parent, self.state
        # What every generator takes; 1009 is odd, so that no two meet.
        seed = (recipe.seed * 1009 + number) % 2**32
        if context.main:
            state.mkdir(parents=True, exist_ok=True)
            for torn in remove_torn(state):
                self.report.say(f"{name}: {torn} was half-written, deleted")
        context.state.wait_for_everyone()
        set_seed(seed)
        model, tokenizer = self._load()
        start = context.weights(parent)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        max_length = context.max_length(limit)
        context.check_rows(prepared, tokenizer, max_length)
        parts = parts_of(recipe, prepared, number, tokenizer, max_length)
        schedule, per_step = self._schedule(parts, seed)
        others, matched = (sum(part.per_epoch for part in some) for some in (parts.others, parts.matched))
        self.report.say(
            f"{name}: {parts.own.per_epoch} own rows, {others} others an epoch"
            + (f" (and {matched} matched by {stage.match}, not trained)" if stage.match else "")
            + f", {schedule.steps} steps at most"
        )
        make = ExampleMaker(recipe.template, tokenizer, max_length)
        measure = Interference(recipe, number, parent, prepared, parts.own, make, state, start)
        if context.main:
            measure.at_start(model)
        if stage.train is not None:
            if recipe.precision.gradient_checkpointing:
                model.enable_input_require_grads()
            trained = train_only(model, tokenizer, stage.train, f"stages.{number}.train")
            self.report.say(f"{name}: {stage.train} alone: {trained:,} of {model.num_parameters():,} weights")
        penalty = self._penalty(model, make)
        if stage.lora:
            model = with_adapter(
                model, stage.lora.rank, stage.lora.alpha, recipe.precision.gradient_checkpointing
            )
            context.memory.forget()  # the adapters are built into it
        context.memory.changed()
        about = About(
            run=context.out.resolve().name,
            recipe=recipe,
            number=number,
            name=name,
            prepared=prepared,
            base=context.base,
            parent=parent,
            replayed=parts.replayed,
            schedule=schedule,
            processes=context.state.num_processes,
            metrics=state / METRICS,
        )

        def save_along(trainer: StageTrainer, step: int) -> None:
            target = context.out / "along" / name / f"step-{step}"
            if not (target / MANIFEST).exists():
                self._save(trainer, tokenizer, target, about, step)

        trainer = train(
            model,
            tokenizer,
            StageRun(
                recipe=recipe,
                name=name,
                folder=state,
                schedule=schedule,
                accumulation=per_step,
                seed=seed,
                stop=stage.stop,
                own=parts.own.examples,
                penalty=penalty,
                alone=context.alone,
                due=lambda step: _due(stage.checkpoints, step, schedule),
                along=save_along,
                report=self.report,
            ),
        )
        trainer.release()
        steps, stopped = trainer.progress.step, trainer.progress.stopped
        self.report.say(f"{name}: {steps} steps ({stopped}), saving")
        self._save(
            trainer,
            tokenizer,
            self.folder,
            about,
            steps,
            finish=lambda at: self._finish(at, about, measure, start, trainer),
        )
        self.report.say(f"{name}: {self.folder}")
        del trainer, model, penalty
        free()

    def _schedule(self, parts: StageParts, seed: int) -> tuple[Schedule, int]:
        """The stage's schedule, and the micro-batches of one step that this process sees."""
        stage, optimiser = self.stage, self.recipe.optimiser
        processes = self.context.state.num_processes
        options: dict[str, Any] = {
            "epochs": self.recipe.epochs_of(stage),
            "batch": optimiser.batch,
            "seed": seed,
        }
        options |= {"matched": parts.matched, "match": stage.match}
        per_step = math.ceil(optimiser.batch / (optimiser.micro_batch * processes))
        most = optimiser.micro_tokens or (None if self.context.device.type == "cpu" else _TOKENS_AT_ONCE)
        if most is not None:
            whole = Schedule(parts.own, parts.others, **options)
            per_step = max(per_step, math.ceil(whole.pieces(most) / processes))
        micro_batches = per_step * processes
        return Schedule(parts.own, parts.others, micro_batches=micro_batches, **options), per_step

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model that the stage trains, with the weights that it starts from."""
        import torch

        from memprobe.models import load_pretrained

        weights = getattr(torch, self.recipe.precision.weights)
        if self.context.alone:
            return self.context.memory.load(self.parent, weights)
        self.context.memory.forget()
        model, tokenizer = load_pretrained(self.parent, weights)
        if not self.recipe.precision.fsdp:
            model.to(self.context.device)  # pyrefly: ignore[bad-argument-type]
        return model, tokenizer

    def _penalty(self, model: PreTrainedModel, make: ExampleMaker) -> InForce | None:
        """What holds the stage to the one before it, made at the boundary between them."""
        import copy

        import torch

        from memprobe.models import load_pretrained
        from training.batches import micro_batches

        penalty = self.stage.penalty
        if penalty is None:
            return None

        def earlier(most: int) -> list[MicroBatch]:
            rows = self.prepared.before(self.number, self.recipe.rows_seed, "penalty")
            return micro_batches([make(row) for row in rows[:most]], self.recipe.optimiser.micro_batch)

        def again() -> PreTrainedModel:
            if self.context.alone:
                return copy.deepcopy(model)
            return load_pretrained(self.parent, model.dtype)[0]

        boundary = Boundary(
            model=model,
            copy=again,
            earlier=earlier,
            seed=self.recipe.seed,
            say=lambda line: self.report.say(f"{self.name}: {line}"),
            autocast=torch.bfloat16 if self.recipe.precision.autocast == "bfloat16" else None,
        )
        return InForce(penalty, penalty.term(boundary))

    def _save(
        self,
        trainer: StageTrainer,
        tokenizer: PreTrainedTokenizerBase,
        target: Path,
        about: About,
        steps: int,
        finish: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Writes a checkpoint; of a stage that is whole, its states go."""
        scratch = self.context.out / STATE / f"saving-{target.parent.name}-{target.name}"
        dtype = self.recipe.precision.save_dtype
        if not save_whole(
            trainer, tokenizer, target, about, steps, scratch, dtype, finish, write=self.context.main
        ):
            return
        if target == self.folder:
            shutil.rmtree(self.state, ignore_errors=True)

    def _finish(
        self,
        partial: Path,
        about: About,
        measure: Interference,
        start: dict[str, Tensor] | None,
        trainer: StageTrainer,
    ) -> None:
        """Evaluates a stage's checkpoint."""
        from training.evaluate import evaluate

        lens_model = self._as_saved(partial, trainer)
        sets = evaluation_sets(self.prepared, self.recipe, self.number)
        self.report.say(f"{self.name}: evaluating {', '.join(sets)}")
        results = evaluate(lens_model, sets)
        result: dict[str, Any] = {
            "schema": 1,
            "stage": self.number,
            "stage_name": self.name,
            "arm": self.recipe.arm_name,
            "sets": results,
            "retention": kept_of_earlier(
                self.recipe, self.number, results, self._shown_again(about.replayed)
            ),
            "learned": learned(self.recipe, self.number, results),
        }
        result["weight_change"] = weight_change(lens_model.model, self._starts(start))
        if (interference := measure.at_end(lens_model.model)) is not None:
            result["interference"] = interference
        write_json(result, partial / EVALUATION)
        self.context.say_scores(self.name, results)
        if result["learned"] is False:
            shares = [
                f"{share:.1%} of {name}"
                for name, share in shares_learned(self.recipe, self.number, results).items()
            ]
            self.report.say(
                f"{self.name}: learned {listed(shares)}, so what it keeps of earlier facts cannot be interpreted; "
                "train longer"
            )

    def _shown_again(self, replayed: Sequence[str]) -> set[str]:
        """Ids of the rows of earlier stages that this stage, or one before it, showed again, as their manifests say."""
        shown = set(replayed)
        for number in self.context.numbers:
            if number < self.number:
                manifest = self.context.out / self.context.directory(number) / MANIFEST
                shown |= set(read_valid(manifest, ManifestFile).get("replayed", []))
        return shown

    def _as_saved(self, partial: Path, trainer: StageTrainer) -> LensModel:
        """The model that was saved: still in memory where its weights there are those on the disk, else read again."""
        from memprobe.models import load, load_tokenizer, wrap

        context, precision = self.context, self.recipe.precision
        saved = resolve(str(partial))
        if self.stage.lora or precision.fsdp or precision.save_dtype != precision.weights:
            if context.alone:
                return context.memory.lens_model(saved, context.saved_dtype)
            return load(saved, device=str(context.device), dtype=precision.save_dtype)
        # Without accelerate's wrapper, which would compute in the precision of training.
        model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if context.alone:
            context.memory.holds(model, saved)
            return context.memory.lens_model(saved, context.saved_dtype)
        return wrap(model, load_tokenizer(saved), label=self.name, weights_fingerprint=fingerprint(saved))

    def _starts(
        self, start: Mapping[str, Tensor] | None
    ) -> dict[str, tuple[Checkpoint, Mapping[str, Tensor] | None]]:
        """What the weights are held against when the stage ends: where it started, and the base model."""
        base = self.context.base
        held = start if self.parent is base else self.context.weights(base)
        return {"stage": (self.parent, start), "base": (base, held)}


def _due(along: Along | None, step: int, schedule: Schedule) -> bool:
    """Whether a checkpoint along the way is saved after so many steps; the last one is the stage's own."""
    if along is None or step >= schedule.steps:
        return False
    return step % (along.steps or schedule.steps_per_epoch * (along.epochs or 1)) == 0
