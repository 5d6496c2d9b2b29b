"""A recipe becomes checkpoints: stage after stage, each from the one before, resumable at any moment.

::

    RUN/recipe.toml          as resolved, every default written out
    RUN/log.txt
    RUN/1-NAME/              a Hugging Face checkpoint with memprobe.json; there only when it is whole
        factoids.jsonl       the stage's rows; earlier stages' beside it as factoids-1-NAME.jsonl
        metrics.jsonl  evaluation.json  recipe.toml
    RUN/along/1-NAME/step-N  checkpoints along the way, where the recipe wants them

What starts with a dot is state, and goes when it is no longer needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe import __version__
from memprobe.checkpoints import MANIFEST, MANIFEST_SCHEMA, Checkpoint, fingerprint, resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.records import read_json, write_json, write_text
from memprobe.sources.kinds import AnyRow
from training.data import PREPARED, Prepared, parts_of, prepare, row_to_json
from training.mixing import Part, Schedule
from training.recipe import Recipe, differences, parse_recipe, to_toml
from training.report import Report

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memprobe.models import LensModel
    from training.evaluate import EvaluationSet
    from training.stage import Ewc, Kl, StageTrainer

RECIPE, LOG, STATE = "recipe.toml", "log.txt", ".state"
EVALUATION = "evaluation.json"
_INTERFERENCE_ROWS = 64  # of each dataset, the same at both ends of a stage


def run(
    recipe: Recipe, out: Path, *, fresh: bool = False, data_dir: Path | None = None, quiet: bool = False
) -> Path:
    """Trains every stage of a recipe that is not there yet.

    Args:
        out: the run directory; an interrupted run in it goes on.
        fresh: delete the run that is there.
        quiet: say nothing but into the log file.

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
        if state.is_main_process and fresh:
            _delete_run(out)
        main = state.is_main_process
        report = Report(out / LOG if main else None, quiet=quiet or not main)
        if state.is_main_process:
            _check_directory(recipe, out)
        return _Run(recipe, out, data_dir, state, report).train()
    except OSError as error:
        raise MemprobeError(
            f"{out}: {error.strerror or error}; what is finished is kept, the same command goes on"
        ) from error
    finally:
        if lock.is_locked:
            lock.release()


def _check_directory(recipe: Recipe, out: Path) -> None:
    """Raises a MemprobeError for a directory that holds something else, or a run of another recipe."""
    if not (out / RECIPE).exists():
        if others := [
            path.name for path in out.iterdir() if not path.name.startswith(".") and path.name != LOG
        ]:
            raise MemprobeError(f"{out}: holds {others[0]!r} and is no run directory; give another --out")
        return
    old = parse_recipe(tomllib.loads((out / RECIPE).read_text(encoding="utf-8")), str(out / RECIPE))
    if changed := differences(old, recipe):
        raise MemprobeError(
            f"{out}: was begun with another recipe ({'; '.join(changed[:4])}); give another --out, or --fresh "
            "deletes it"
        )


def _delete_run(out: Path) -> None:
    """Deletes what runs write, and nothing else."""
    if not (out / RECIPE).exists() and not (out / PREPARED).exists():
        return
    for path in out.glob("*"):
        if path.is_dir() and ((path / MANIFEST).exists() or path.name == "along"):
            shutil.rmtree(path)
    for path in out.glob(".*"):
        if path.is_dir() and path.name != ".lock":
            shutil.rmtree(path)
    for name in (RECIPE, LOG, PREPARED):
        (out / name).unlink(missing_ok=True)


class _Run:
    """The stages of one recipe in one directory."""

    def __init__(self, recipe: Recipe, out: Path, data_dir: Path | None, state: PartialState, report: Report):
        self.recipe, self.out, self.data_dir, self.state = recipe, out, data_dir, state
        self.report = report
        self.base = resolve(recipe.base)
        _check_causal(self.base)

    @property
    def main(self) -> bool:
        return self.state.is_main_process

    def train(self) -> Path:
        """All stages that are missing; the last one's directory."""
        recipe = self.recipe
        self._say_versions()
        if self.main:
            prepare(recipe, self.out, self._load_base, data_dir=self.data_dir, say=self.report.say)
            self.__dict__.pop("_base_model", None)
            if not (self.out / RECIPE).exists():
                write_text(to_toml(recipe), self.out / RECIPE)
        self.state.wait_for_everyone()
        prepared = prepare(recipe, self.out, self._load_base, data_dir=self.data_dir)
        numbers = [len(recipe.stages)] if recipe.joint else list(range(1, len(recipe.stages) + 1))
        parent = self.base
        for number in numbers:
            folder = self.out / self.directory(number)
            if (folder / MANIFEST).exists():
                self.report.say(f"stage {number} {folder.name}: done before")
            else:
                self._stage(number, parent, prepared, folder)
            self.state.wait_for_everyone()
            parent = resolve(str(folder))
        if self.main:
            shutil.rmtree(self.out / STATE, ignore_errors=True)
            shutil.rmtree(self.out / ".asked", ignore_errors=True)
        self.report.say(f"done: memprobe layers --ckpt {self.out}")
        return self.out / self.directory(numbers[-1])

    def directory(self, number: int) -> str:
        """``1-NAME``."""
        return f"{number}-joint" if self.recipe.joint else f"{number}-{self.recipe.stages[number - 1].name}"

    def _say_versions(self) -> None:
        recipe = self.recipe
        self.report.say(
            f"{self.out}: arm {recipe.arm_name}, seed {recipe.seed}, base {recipe.base}, "
            f"{self.state.num_processes} process(es)"
        )

    def _load_base(self) -> LensModel:
        return self._base_model

    @cached_property
    def _base_model(self) -> LensModel:
        from memprobe.models import load

        return load(self.base)

    @cached_property
    def base_fingerprint(self) -> str:
        """Of the base model's weights."""
        return fingerprint(self.base)

    # ------------------------------------------------------------------------------------ one stage

    def _stage(self, number: int, parent: Checkpoint, prepared: Prepared, folder: Path) -> None:
        import torch
        from transformers import set_seed

        from memprobe.models import load_pretrained
        from training.stage import StageRun, remove_torn, train

        recipe, stage = self.recipe, self.recipe.stages[number - 1]
        name = folder.name
        seed = recipe.seed * 1009 + number
        state = self.out / STATE / name
        if self.main:
            state.mkdir(parents=True, exist_ok=True)
            for torn in remove_torn(state):
                self.report.say(f"{name}: {torn} was half-written, deleted")
        self.state.wait_for_everyone()
        set_seed(seed)
        weights = getattr(torch, recipe.precision.weights)
        model, tokenizer = load_pretrained(parent, weights)
        if not recipe.precision.fsdp:
            model.to(self.device)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        max_length = min(recipe.max_length, limit or recipe.max_length)
        own, extra, replayed = parts_of(recipe, prepared, number, tokenizer, max_length)
        per_step = math.ceil(
            recipe.optimiser.batch / (recipe.optimiser.micro_batch * self.state.num_processes)
        )
        schedule = Schedule(
            own,
            extra,
            epochs=stage.epochs,
            batch=recipe.optimiser.batch,
            micro_batches=per_step * self.state.num_processes,
            seed=seed,
            match=stage.match,
        )
        self.report.say(
            f"{name}: {own.per_epoch} own rows, {sum(part.per_epoch for part in extra)} others an epoch"
            + (f" (matched by {stage.match}, not trained)" if stage.match else "")
            + f", {schedule.steps} steps at most"
        )
        measure = _Interference(self, number, parent, prepared, own, tokenizer, max_length, state)
        measure.at_start(model)
        penalty = self._penalty(number, model, parent, prepared, tokenizer, max_length)
        if stage.lora:
            model = _with_adapter(
                model, stage.lora.rank, stage.lora.alpha, recipe.precision.gradient_checkpointing
            )
        about = _About(self, number, prepared, parent, replayed, schedule)

        def due(step: int) -> bool:
            along = stage.checkpoints
            if along is None or step >= schedule.steps:
                return False
            if along.steps is not None:
                return step % along.steps == 0
            return step % (schedule.steps_per_epoch * (along.epochs or 1)) == 0

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
                due=due,
                along=save_along,
                report=self.report,
            ),
        )
        steps, stopped = trainer.progress.step, trainer.progress.stopped
        self.report.say(f"{name}: {steps} steps ({stopped}), saving")
        self._save(
            trainer, tokenizer, folder, about, steps, finish=lambda at: self._finish(at, about, measure)
        )
        self.report.say(f"{name}: {folder}")

    def _penalty(
        self,
        number: int,
        model: PreTrainedModel,
        parent: Checkpoint,
        prepared: Prepared,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> Ewc | Kl | None:
        """What holds the stage to the one before it, made from the checkpoint at the boundary.

        EWC takes the Fisher information over rows of all earlier stages there: it uses D_A once, at the
        boundary. Nothing of this is random beyond the seed, so a run that goes on makes the same again.
        """
        from memprobe.models import load_pretrained
        from training.data import ExampleMaker
        from training.objectives import fisher_diagonal
        from training.stage import Ewc, Kl, micro_batches

        penalty = self.recipe.stages[number - 1].penalty
        if penalty is None:
            return None
        if penalty.method == "kl":
            frozen, _ = load_pretrained(parent, model.dtype)
            return Kl(penalty.strength, frozen.to(self.device).eval().requires_grad_(False))
        from memprobe.sources import subset

        earlier = list({row.id: row for data in prepared.stages[: number - 1] for row in data.rows}.values())
        chosen = subset(earlier, min(len(earlier), penalty.fisher_rows), self.recipe.seed, "fisher")
        make = ExampleMaker(self.recipe.template, tokenizer, max_length)
        self.report.say(f"{self.directory(number)}: Fisher information of {len(chosen)} earlier rows")
        batches = micro_batches([make(row) for row in chosen], self.recipe.optimiser.micro_batch)
        fisher = fisher_diagonal(model, batches, seed=self.recipe.seed)
        named = dict(model.named_parameters())
        return Ewc(penalty.strength, {name: named[name].detach().clone() for name in fisher}, fisher)

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
        about: _About,
        steps: int,
        finish: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Writes a checkpoint beside its place and moves it there when all of it is on the disk."""
        from training.stage import sync_folder

        weights = _weights(trainer, getattr(_torch(), self.recipe.precision.save_dtype))
        if not self.main:
            return
        partial = self.out / STATE / f"saving-{target.parent.name}-{target.name}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            _save_model(trainer, weights, partial, self.recipe.precision.save_dtype)
            tokenizer.save_pretrained(partial)
            about.write(partial, trainer, steps, self.out / STATE / about.name)
            finish(partial)
            sync_folder(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)
        except MemprobeError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except Exception as error:  # torch, safetensors and the file system each have their own
            shutil.rmtree(partial, ignore_errors=True)
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MemprobeError(
                f"{target}: the checkpoint could not be saved ({said}); the same command goes on from the last state"
            ) from error
        if target.parent == self.out:
            shutil.rmtree(self.out / STATE / about.name, ignore_errors=True)

    def _finish(self, partial: Path, about: _About, measure: _Interference) -> None:
        """Evaluates a stage's checkpoint as it lies on the disk."""
        from memprobe.models import load
        from training.evaluate import evaluate

        lens_model = load(str(partial), device=str(self.device), dtype=self.recipe.precision.save_dtype)
        sets = _evaluation_sets(about.prepared, self.recipe, about.number)
        self.report.say(f"{about.name}: evaluating {', '.join(sets)}")
        results = evaluate(lens_model, sets)
        result: dict[str, Any] = {
            "schema": 1,
            "stage": about.number,
            "stage_name": about.name,
            "arm": self.recipe.arm_name,
            "sets": results,
            **_retention(about, results),
        }
        if (found := measure.at_end(lens_model.model)) is not None:
            result["interference"] = found
        write_json(result, partial / EVALUATION)
        for name, one in results.items():
            value = one["scores"][one["metric"]]["value"]
            self.report.say(f"{about.name}: {name}: {one['metric']} {value:.3f} (n {one['n']})")


class _About:
    """What a checkpoint says of itself: its manifest, and the rows of every stage up to it."""

    def __init__(
        self,
        run: _Run,
        number: int,
        prepared: Prepared,
        parent: Checkpoint,
        replayed: list[str],
        schedule: Schedule,
    ):
        self.run, self.number, self.prepared, self.parent = run, number, prepared, parent
        self.replayed, self.schedule = replayed, schedule
        self.name = run.directory(number)

    def write(self, folder: Path, trainer: StageTrainer, steps: int, state: Path) -> None:
        """Manifest, rows, resolved recipe and metrics, into a checkpoint's folder."""
        run, recipe = self.run, self.run.recipe
        stages = []
        for number in range(1, self.number + 1):
            stage, data = recipe.stages[number - 1], self.prepared.stages[number - 1]
            kind = stage.kind
            file = f"{kind}.jsonl" if number == self.number else f"{kind}-{number}-{stage.name}.jsonl"
            if recipe.joint:
                file = f"{kind}-{number}-{stage.name}.jsonl"
            stages.append(
                {
                    "index": number,
                    "name": stage.name,
                    "factoids": file,
                    "hash": _write_rows(data.rows, folder / file),
                    "kind": kind,
                    "n": len(data.rows),
                    "origins": data.origins,
                    "counts": data.counts,
                }
            )
        base = {"spec": recipe.base, "fingerprint": run.base_fingerprint}
        first = self.parent is run.base
        parent = {
            "spec": recipe.base if first else f"../{self.parent.path.name}",
            "fingerprint": base["fingerprint"] if first else fingerprint(self.parent),
        }
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "run": run.out.resolve().name,
            "template": recipe.template,
            "arm": recipe.arm_name,
            "seed": recipe.seed,
            "stage": self.number,
            "stage_name": recipe.stages[self.number - 1].name if not recipe.joint else "joint",
            "steps": steps,
            "steps_planned": self.schedule.steps,
            "stopped": trainer.progress.stopped,
            "tokens": trainer.progress.tokens,
            "processes": run.state.num_processes,
            "base": base,
            "parent": parent,
            "stages": stages,
            "replayed": self.replayed,
            "recipe": recipe.model_dump(mode="json"),
            "versions": _versions(),
            "commit": _commit(),
        }
        write_json(manifest, folder / MANIFEST)
        write_text(to_toml(recipe), folder / RECIPE)
        metrics = state / "metrics.jsonl"
        if metrics.exists():
            shutil.copyfile(metrics, folder / "metrics.jsonl")


class _Interference:
    """Gradients of D_A, D_B and mixing rows held against each other, at both ends of a stage.

    In stage 1 D_A is the stage's own data and there is no D_B; later D_A is stage 1's and D_B the stage's own.
    The batches are fixed, so that both ends measure the same rows.
    """

    def __init__(
        self,
        run: _Run,
        number: int,
        parent: Checkpoint,
        prepared: Prepared,
        own: Part,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        state: Path,
    ):
        from training.data import ExampleMaker

        self.number = number
        self.run, self.wanted = run, run.recipe.evaluate.interference and run.main
        self.file, self.parent = state / "interference.json", parent
        make = ExampleMaker(run.recipe.template, tokenizer, max_length)
        first: list[AnyRow] = prepared.stages[0].rows[:_INTERFERENCE_ROWS]
        mixing = prepared.stages[number - 1].mixing
        self.m = [make(row, own=False) for rows in mixing for row in rows[:_INTERFERENCE_ROWS]]
        self.a = [make(row) for row in first]
        self.b = list(own.examples[:_INTERFERENCE_ROWS]) if number > 1 else self.m
        self.m = self.m if number > 1 else []

    def at_start(self, model: PreTrainedModel) -> None:
        """Before the stage; a run that goes on keeps what was measured then."""
        if self.wanted and self.b and not self.file.exists():
            write_json(self._measure(model, None), self.file)

    def at_end(self, model: PreTrainedModel) -> dict[str, Any] | None:
        """After the stage, with the change of the weights; both ends."""
        if not self.wanted or not self.b:
            return None
        from memprobe.models import load_pretrained

        start = dict(load_pretrained(self.parent, model.dtype)[0].named_parameters())
        delta = {
            name: p.detach().cpu().float() - start[name].detach().float()
            for name, p in model.named_parameters()
        }
        sets = {"a": "stage 1", "b": "own rows", "m": "mixing rows"}
        if self.number == 1:
            sets = {"a": "stage 1", "b": "mixing rows"}
        return {"sets": sets, "start": read_json(self.file), "end": self._measure(model, delta)}

    def _measure(self, model: PreTrainedModel, delta: dict[str, Any] | None) -> dict[str, Any]:
        from training.interference import interference
        from training.stage import micro_batches

        size = self.run.recipe.optimiser.micro_batch
        m = micro_batches(self.m, size) if self.m else None
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return interference(model, micro_batches(self.a, size), micro_batches(self.b, size), m, delta)


# ---------------------------------------------------------------------------------------------- pieces


def _evaluation_sets(prepared: Prepared, recipe: Recipe, number: int) -> dict[str, EvaluationSet]:
    """Every dataset seen so far, and what else the recipe watches."""
    from memprobe.sources import subset
    from memprobe.sources.evaluation import manipulations, paraphrases
    from training.evaluate import EvaluationSet

    wanted = recipe.evaluate
    kinds: dict[str, Any] = {"factoids": "factoids", "tasks": "task", "texts": "text"}

    def make(kind: Any, rows: Sequence[AnyRow]) -> EvaluationSet:
        chosen = subset(rows, min(len(rows), wanted.limit), recipe.seed, "evaluation")
        return EvaluationSet(kind, chosen, recipe.template, max_length=recipe.max_length)

    sets = {
        f"{place}-{stage.name}": make(kinds[stage.kind], data.held_out or data.rows)
        for place, (stage, data) in enumerate(zip(recipe.stages, prepared.stages, strict=True), 1)
        if place <= number
    }
    first = [row for row in prepared.stages[0].rows if isinstance(row, Factoid)]
    if wanted.paraphrases and first:
        sets["paraphrases"] = make("factoids", paraphrases(first))
    if wanted.manipulations and first:
        sets["manipulations"] = make("factoids", manipulations(first, recipe.seed))
    if prepared.known:
        sets["known"] = EvaluationSet("factoids", prepared.known, "plain")
    if prepared.texts:
        sets["texts"] = make("text", prepared.texts)
    return sets


def _retention(about: _About, results: dict[str, Any]) -> dict[str, Any]:
    """Earlier stages' factoids, on replayed and on unseen rows apart."""
    from training.evaluate import retention

    found = {}
    for place in range(1, about.number):
        stage = about.run.recipe.stages[place - 1]
        if stage.kind == "factoids" and not about.run.recipe.joint:
            result = results[f"{place}-{stage.name}"]
            ids = {row["id"] for row in result["rows"]}
            found[f"{place}-{stage.name}"] = retention(result, ids & set(about.replayed))
    return {"retention": found} if found else {}


def _check_causal(base: Checkpoint) -> None:
    """Raises a MemprobeError for a base model that does not predict the next token."""
    if base.kind in ("gguf", "adapter"):
        return
    config = read_json(base.path / "config.json")
    heads = config.get("architectures") or []
    causal = [head for head in heads if head.endswith(("ForCausalLM", "LMHeadModel"))]
    if config.get("is_encoder_decoder") or (heads and not causal):
        raise MemprobeError(
            f"base: {base.spec} is a {', '.join(heads) or 'encoder-decoder'}, not a causal LM"
        )


def _with_adapter(model: PreTrainedModel, rank: int, alpha: float, checkpointing: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    if checkpointing:
        model.enable_input_require_grads()
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyrefly: ignore  # any number is taken
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _weights(trainer: StageTrainer, dtype: Any) -> dict[str, Any]:
    """The trained weights as they are saved; adapters are merged into a copy. Every process takes part."""
    import copy

    model: Any = trainer.model
    if trainer.is_fsdp_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    elif hasattr(model, "merge_and_unload"):
        whole: Any = copy.deepcopy(trainer.accelerator.unwrap_model(model))
        state = whole.merge_and_unload().state_dict()
    else:
        state = trainer.accelerator.unwrap_model(model).state_dict()
    converted: dict[int, Any] = {}
    # Tied weights stay one tensor, so that they are written once.
    return {
        name: converted.setdefault(tensor.data_ptr(), tensor.detach().cpu().to(dtype))
        for name, tensor in state.items()
    }


def _save_model(trainer: StageTrainer, weights: dict[str, Any], folder: Path, dtype: str) -> None:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.save_pretrained(folder, state_dict=weights)
    config = read_json(folder / "config.json")
    write_json(config | {"dtype": dtype}, folder / "config.json")


def _write_rows(rows: Sequence[AnyRow], path: Path) -> str:
    """Writes rows as JSONL; the SHA-256 of the file."""
    write_text("".join(json.dumps(row_to_json(row), ensure_ascii=False) + "\n" for row in rows), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "accelerate", "peft")
    return {"memprobe": __version__} | {name: importlib.metadata.version(name) for name in names}


def _commit() -> str | None:
    """The commit of this code, with ``+`` where files differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        if head.returncode:
            return None
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
        return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _torch() -> Any:
    import torch

    return torch
