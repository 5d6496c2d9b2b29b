"""A recipe becomes checkpoints: stage after stage, each from the one before, resumable at any moment.

::

    RUN/recipe.toml          as resolved, every default written out
    RUN/log.txt
    RUN/accuracy.csv         accuracy matrix: a row for the base model and each stage, a column for each dataset
    RUN/0-base/              no checkpoint; evaluation.json of the base model on the datasets of all stages
    RUN/1-NAME/              a Hugging Face checkpoint with memprobe.json; there only when it is whole
        factoids.jsonl       the stage's rows; earlier stages' beside it as factoids-1-NAME.jsonl
        metrics.jsonl  evaluation.json  recipe.toml
    RUN/along/1-NAME/step-N  checkpoints along the way, where the recipe wants them

What starts with a dot is state, and goes when it is no longer needed. ``evaluation.json`` holds ``sets`` (see
:func:`training.evaluate.evaluate`), and of a stage also ``retention``, ``learned`` (:mod:`training.measures`),
``weight_change`` (how far from the parent and from the base) and, where the recipe wants it, ``interference``.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe.checkpoints import Checkpoint, fingerprint, resolve
from memprobe.errors import MemprobeError
from memprobe.files import csv_text, read_valid, write_json, write_text
from memprobe.manifests import MANIFEST
from memprobe.runs import EVALUATION, MATRIX, STATE, EvaluationFile
from training.checkpoint import (
    METRICS,
    RECIPE,
    About,
    check_causal,
    save_whole,
    train_only,
    weights_at,
    with_adapter,
)
from training.data import ASKED, Prepared, parts_of, prepare
from training.directories import BASE, LOG, check_directory, delete_run
from training.examples import ExampleMaker
from training.measures import Interference, evaluate_base, evaluation_sets, kept_of_earlier, learned
from training.memory import Memory, free
from training.mixing import Part, Schedule
from training.recipe import Along, Recipe, Stage, to_toml
from training.run_log import RunLog

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memprobe.models import LensModel
    from training.batches import MicroBatch
    from training.penalties import Term
    from training.stage import StageTrainer

_TOKENS_AT_ONCE = 2048  # keep an accelerator busy, and leave room for other processes


def run(
    recipe: Recipe,
    out: Path,
    *,
    fresh: bool = False,
    data_dir: Path | None = None,
    quiet: bool = False,
    asked: Path | None = None,
    memory: Memory | None = None,
) -> Path:
    """Trains every stage of a recipe that is not there yet.

    Args:
        out: the run directory; an interrupted run in it goes on.
        fresh: delete the run that is there.
        quiet: say nothing but into the log file.
        asked: folder of the base model's answers (default: in the run directory, for its duration); runs may
            share one, and then the base model is asked and evaluated once.
        memory: the weights that this process holds already; afterwards those of the last stage, where they can be.

    Returns:
        The last stage's checkpoint.

    Raises:
        MemprobeError: bad input, a directory in use or of another recipe, a loss that is not finite, or a full
            disk; what is finished stays.
    """
    import torch
    from accelerate import PartialState
    from filelock import FileLock, Timeout
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar for the stage is enough
    logging.set_verbosity_error()  # a tied unembedding is no missing weight
    # The others wait while the first process asks and evaluates.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    lock = FileLock(out / ".lock", timeout=0)
    if state.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise MemprobeError(
                f"{out}: another process is training here; wait for it, or give --out"
            ) from error
        except OSError as error:
            raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        deleted = state.is_main_process and fresh and delete_run(out)
        main = state.is_main_process
        report = RunLog(out / LOG if main else None, quiet=quiet or not main)
        if main and not deleted:
            check_directory(recipe, out)
        return _Run(recipe, out, data_dir, state, report, asked, memory).train()
    except OSError as error:
        raise MemprobeError(
            f"{out}: {error.strerror or error}; what is finished is kept, the same command goes on"
        ) from error
    finally:
        if lock.is_locked:
            lock.release()


class _Run:
    """The stages of one recipe in one directory."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        data_dir: Path | None,
        state: PartialState,
        report: RunLog,
        asked: Path | None,
        memory: Memory | None,
    ):
        self.recipe, self.out, self.data_dir, self.state = recipe, out, data_dir, state
        self.report, self.asked = report, asked or out / ASKED
        self.memory = memory or Memory(state.device)
        self.base = resolve(recipe.base)
        check_causal(self.base)

    @property
    def main(self) -> bool:
        return self.state.is_main_process

    def train(self) -> Path:
        """All stages that are missing; the last one's directory."""
        recipe = self.recipe
        self._say_versions()
        if self.main:
            prepared = prepare(
                recipe,
                self.out,
                self._load_base,
                data_dir=self.data_dir,
                say=self.report.say,
                asked=self.asked,
            )
            if not (self.out / RECIPE).exists():
                write_text(to_toml(recipe), self.out / RECIPE)
            self._evaluate_base(prepared)
        self.state.wait_for_everyone()
        prepared = prepare(recipe, self.out, self._load_base, data_dir=self.data_dir)
        before: Path | None = None
        for number in self._numbers:
            folder = self.out / self.directory(number)
            if (folder / MANIFEST).exists():
                self.report.say(f"stage {number} {folder.name}: done before")
            else:
                parent = self.base if before is None else resolve(str(before))
                self._stage(number, parent, prepared, folder)
            if self.main:
                self._write_matrix()
            self.state.wait_for_everyone()
            before = folder
        if self.main:
            shutil.rmtree(self.out / STATE, ignore_errors=True)
            shutil.rmtree(self.out / ASKED, ignore_errors=True)
        self.report.say(f"done: memprobe layers --ckpt {self.out}")
        return self.out / self.directory(len(recipe.stages))

    def directory(self, number: int) -> str:
        """``1-NAME``."""
        return f"{number}-joint" if self.recipe.joint else f"{number}-{self.recipe.stages[number - 1].name}"

    def _say_versions(self) -> None:
        recipe = self.recipe
        self.report.say(
            f"{self.out}: arm {recipe.arm_name}, seed {recipe.seed}, base {recipe.base}, "
            f"{self.state.num_processes} process(es)"
        )

    @property
    def alone(self) -> bool:
        """Whether stages are trained in the one model that this process holds."""
        precision = self.recipe.precision
        return self.state.num_processes == 1 and not precision.fsdp and not precision.gradient_checkpointing

    @property
    def saved_dtype(self) -> torch.dtype:
        """Of every checkpoint; the base model is asked and evaluated in it too."""
        import torch

        return getattr(torch, self.recipe.precision.save_dtype)

    def _load_base(self) -> LensModel:
        return self.memory.lens_model(self.base, self.saved_dtype)

    def _evaluate_base(self, prepared: Prepared) -> None:
        """Evaluates the base model, unless that is done."""
        path = self.out / BASE / EVALUATION
        if path.exists():
            return

        def loaded() -> LensModel:
            model = self._load_base()
            self._check_rows(prepared, model.tokenizer, self._max_length(model.max_length))
            return model

        results = evaluate_base(self.recipe, prepared, self.base, loaded, self.asked, self.report.say)
        result = {"schema": 1, "stage": 0, "stage_name": BASE, "arm": self.recipe.arm_name, "sets": results}
        write_json(result, path)
        self._say_scores(BASE, results)

    def _say_scores(self, name: str, results: dict[str, Any]) -> None:
        for dataset, one in results.items():
            value = one["scores"][one["metric"]]["value"]
            self.report.say(f"{name}: {dataset}: {one['metric']} {value:.3f} (n {one['n']})")

    def _write_matrix(self) -> None:
        """Lays the evaluations that are there side by side."""
        from training.evaluate import accuracy_matrix

        names = [BASE, *map(self.directory, self._numbers)]
        paths = [self.out / name / EVALUATION for name in names]
        found = {
            path.parent.name: read_valid(path, EvaluationFile)["sets"] for path in paths if path.exists()
        }
        write_text(csv_text(accuracy_matrix(found)), self.out / MATRIX)

    def _check_rows(self, prepared: Prepared, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Finds rows that cannot be trained, in whatever stage, before anything is trained."""
        for number in self._numbers:
            parts_of(self.recipe, prepared, number, tokenizer, max_length)

    def _max_length(self, context: int | None) -> int:
        """Tokens of one row; ``context`` is the model's limit, None where it has none."""
        return min(self.recipe.max_length, context or self.recipe.max_length)

    @property
    def _numbers(self) -> list[int]:
        """The stages that are trained, from 1."""
        last = len(self.recipe.stages)
        return [last] if self.recipe.joint else list(range(1, last + 1))

    # ------------------------------------------------------------------------------------ one stage

    def _stage(self, number: int, parent: Checkpoint, prepared: Prepared, folder: Path) -> None:
        from transformers import set_seed

        from training.stage import StageRun, train
        from training.states import remove_torn

        recipe, stage = self.recipe, self.recipe.stages[number - 1]
        name = folder.name
        seed = (
            recipe.seed * 1009 + number
        ) % 2**32  # what every generator takes; 1009 is odd, so that no two meet
        state = self.out / STATE / name
        if self.main:
            state.mkdir(parents=True, exist_ok=True)
            for torn in remove_torn(state):
                self.report.say(f"{name}: {torn} was half-written, deleted")
        self.state.wait_for_everyone()
        set_seed(seed)
        model, tokenizer = self._load(parent)
        start = self._start(parent)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        max_length = self._max_length(limit)
        self._check_rows(prepared, tokenizer, max_length)
        own, extra, replayed = parts_of(recipe, prepared, number, tokenizer, max_length)
        schedule, per_step = self._schedule(stage, own, extra, seed)
        self.report.say(
            f"{name}: {own.per_epoch} own rows, {sum(part.per_epoch for part in extra)} others an epoch"
            + (f" (matched by {stage.match}, not trained)" if stage.match else "")
            + f", {schedule.steps} steps at most"
        )
        make = ExampleMaker(recipe.template, tokenizer, max_length)
        measure = Interference(recipe, number, parent, prepared, own, make, state, start)
        if self.main:
            measure.at_start(model)
        if stage.train is not None:
            if recipe.precision.gradient_checkpointing:
                model.enable_input_require_grads()
            trained = train_only(model, tokenizer, stage.train, f"stages.{number}.train")
            self.report.say(f"{name}: {stage.train} alone: {trained:,} of {model.num_parameters():,} weights")
        penalty = self._penalty(number, model, parent, prepared, make)
        if stage.lora:
            model = with_adapter(
                model, stage.lora.rank, stage.lora.alpha, recipe.precision.gradient_checkpointing
            )
            self.memory.forget()  # the adapters are built into it
        self.memory.changed()
        about = About(
            run=self.out.resolve().name,
            recipe=recipe,
            number=number,
            name=name,
            prepared=prepared,
            base=self.base,
            parent=parent,
            replayed=replayed,
            schedule=schedule,
            processes=self.state.num_processes,
            metrics=state / METRICS,
        )

        def save_along(trainer: StageTrainer, step: int) -> None:
            target = self.out / "along" / name / f"step-{step}"
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
                own=own.examples,
                penalty=penalty,
                unclipped=stage.penalty is not None and stage.penalty.holds_weights,
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
            folder,
            about,
            steps,
            finish=lambda at: self._finish(at, about, measure, start, trainer),
        )
        self.report.say(f"{name}: {folder}")
        del trainer, model, penalty
        free()

    def _schedule(self, stage: Stage, own: Part, extra: list[Part], seed: int) -> tuple[Schedule, int]:
        """A stage's schedule, and the micro-batches of one step that this process sees."""
        optimiser, processes = self.recipe.optimiser, self.state.num_processes
        options: dict[str, Any] = {"epochs": stage.epochs, "batch": optimiser.batch, "seed": seed}
        per_step = math.ceil(optimiser.batch / (optimiser.micro_batch * processes))
        most = optimiser.micro_tokens or (None if self.device.type == "cpu" else _TOKENS_AT_ONCE)
        if most is not None:
            whole = Schedule(own, extra, match=stage.match, **options)
            per_step = max(per_step, math.ceil(whole.pieces(most) / processes))
        micro_batches = per_step * processes
        return Schedule(own, extra, micro_batches=micro_batches, match=stage.match, **options), per_step

    def _load(self, parent: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model that a stage trains, with the weights that it starts from."""
        import torch

        from memprobe.models import load_pretrained

        weights = getattr(torch, self.recipe.precision.weights)
        if self.alone:
            return self.memory.load(parent, weights)
        self.memory.forget()
        model, tokenizer = load_pretrained(parent, weights)
        if not self.recipe.precision.fsdp:
            model.to(self.device)  # pyrefly: ignore[bad-argument-type]
        return model, tokenizer

    def _start(self, checkpoint: Checkpoint) -> dict[str, Tensor] | None:
        """The weights of a checkpoint by parameter name on the CPU, where memory holds them just as they are saved."""
        precision = self.recipe.precision
        if not self.alone or precision.weights != precision.save_dtype:
            return None
        return self.memory.weights(checkpoint)

    def _penalty(
        self,
        number: int,
        model: PreTrainedModel,
        parent: Checkpoint,
        prepared: Prepared,
        make: ExampleMaker,
    ) -> tuple[float, Term] | None:
        """What holds the stage to the one before it: its strength, and the term made at the boundary."""
        import copy

        from memprobe.models import load_pretrained
        from memprobe.sources import subset
        from training.batches import micro_batches
        from training.penalties import Boundary

        penalty = self.recipe.stages[number - 1].penalty
        if penalty is None:
            return None

        def earlier(most: int) -> list[MicroBatch]:
            rows = list({row.id: row for data in prepared.stages[: number - 1] for row in data.rows}.values())
            chosen = subset(rows, min(len(rows), most), self.recipe.rows_seed, "penalty")
            return micro_batches([make(row) for row in chosen], self.recipe.optimiser.micro_batch)

        def again() -> PreTrainedModel:
            return copy.deepcopy(model) if self.alone else load_pretrained(parent, model.dtype)[0]

        boundary = Boundary(
            model=model,
            copy=again,
            earlier=earlier,
            seed=self.recipe.seed,
            say=lambda line: self.report.say(f"{self.directory(number)}: {line}"),
        )
        return penalty.strength, penalty.term(boundary)

    @property
    def device(self) -> Any:
        """Where this process trains."""
        return self.state.device

    # ------------------------------------------------------------------------------------ checkpoints

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
        scratch = self.out / STATE / f"saving-{target.parent.name}-{target.name}"
        dtype = self.recipe.precision.save_dtype
        if not save_whole(trainer, tokenizer, target, about, steps, scratch, dtype, finish, write=self.main):
            return
        if target.parent == self.out:
            shutil.rmtree(self.out / STATE / about.name, ignore_errors=True)

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

        lens_model = self._as_saved(partial, about, trainer)
        sets = evaluation_sets(about.prepared, self.recipe, about.number)
        self.report.say(f"{about.name}: evaluating {', '.join(sets)}")
        results = evaluate(lens_model, sets)
        result: dict[str, Any] = {
            "schema": 1,
            "stage": about.number,
            "stage_name": about.name,
            "arm": self.recipe.arm_name,
            "sets": results,
            "retention": kept_of_earlier(self.recipe, about.number, results, about.replayed),
            "learned": learned(self.recipe, about.number, results),
        }
        result["weight_change"] = self._weight_change(lens_model.model, about.parent, start)
        if (found := measure.at_end(lens_model.model)) is not None:
            result["interference"] = found
        write_json(result, partial / EVALUATION)
        self._say_scores(about.name, results)
        if result["learned"] is False:
            self.report.say(
                f"{about.name}: NOT LEARNED: not all of its own factoids are exact, so that what it keeps of earlier "
                "ones proves nothing"
            )

    def _as_saved(self, partial: Path, about: About, trainer: StageTrainer) -> LensModel:
        """The model that was saved: still in memory where its weights there are those on the disk, else read again."""
        from memprobe.models import load, load_tokenizer, wrap

        precision = self.recipe.precision
        lora = self.recipe.stages[about.number - 1].lora
        saved = resolve(str(partial))
        if lora or precision.fsdp or precision.save_dtype != precision.weights:
            if self.alone:
                return self.memory.lens_model(saved, self.saved_dtype)
            return load(saved, device=str(self.device), dtype=precision.save_dtype)
        # Without accelerate's wrapper, which would compute in the precision of training.
        model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if self.alone:
            self.memory.holds(model, fingerprint(saved))
            return self.memory.lens_model(saved, self.saved_dtype)
        return wrap(model, load_tokenizer(saved), label=about.name, weights_fingerprint=fingerprint(saved))

    def _weight_change(
        self, model: PreTrainedModel, parent: Checkpoint, start: dict[str, Tensor] | None
    ) -> dict[str, float]:
        """How far a stage moved the weights from where it started, and from the base model: Euclidean norms."""
        import torch

        found = {}
        for name, (checkpoint, held) in {
            "stage": (parent, start),
            "base": (self.base, start if parent is self.base else self._start(self.base)),
        }.items():
            squares = [
                _square(model.get_parameter(key).detach(), before)
                for key, before in weights_at(checkpoint, model, held)
            ]
            found[name] = math.sqrt(math.fsum(torch.stack(squares).tolist()))
        return found


def _square(weights: Tensor, before: Tensor) -> Tensor:
    """The squared distance between two tensors in fp64, on the first one's device."""
    return (weights.float() - before.to(weights.device)).double().square().sum()


def _due(along: Along | None, step: int, schedule: Schedule) -> bool:
    """Whether a checkpoint along the way is saved after so many steps; the last one is the stage's own."""
    if along is None or step >= schedule.steps:
        return False
    return step % (along.steps or schedule.steps_per_epoch * (along.epochs or 1)) == 0
