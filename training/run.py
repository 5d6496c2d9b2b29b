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

import shlex
import shutil
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.evaluations import EvaluationFile
from memprobe.files import csv_text, read_valid, write_json, write_text
from memprobe.locks import one_process
from memprobe.manifests import MANIFEST
from memprobe.runs import EVALUATION, MATRIX, RECIPE, STATE
from memprobe.starting_over import Before, starting_over
from training.autocast import as_begun, settled
from training.checkpoint import base_entry, check_causal
from training.context import RunContext
from training.data import ASKED, prepare
from training.directories import LOG, TRAINED, check_directory
from training.machine import check_machine
from training.measures import evaluate_base
from training.memory import Memory
from training.one_stage import OneStage
from training.prepared import Prepared
from training.recipe import Recipe, to_toml
from training.run_log import RunLog
from training.starts import BASE, check_rows, check_weights, has_begun

if TYPE_CHECKING:
    from memprobe.models import LensModel


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
        fresh: start over; the run that is there goes once the base model is evaluated, when all input is checked.
        quiet: say nothing but into the log file.
        asked: folder of what was asked once: the base model's answers, and which products pay on this machine
            (default: in the run directory, for its duration); runs may share one, and then answer alike.
        memory: the weights that this process holds already; afterwards those of the last stage, where they can be.

    Returns:
        The last stage's checkpoint.

    Raises:
        MemprobeError: bad input, or what these processes cannot train; a directory in use, or of another recipe, base
            model or files of rows; a loss that is not finite, or a full disk. What is finished stays.
    """
    if asked is not None and asked.exists() and not asked.is_dir():
        raise MemprobeError(f"--asked {asked}: is no folder; what the base model is asked is kept in one")
    import torch
    from accelerate import PartialState
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar for the stage is enough
    logging.set_verbosity_error()  # a tied unembedding is no missing weight
    # The others wait while the first process asks and evaluates.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    main = state.is_main_process
    with ExitStack() as stack:
        old = None
        if main:
            stack.enter_context(one_process(out, "training"))
            old = stack.enter_context(starting_over(out, TRAINED, fresh=fresh))
        try:
            report = RunLog(out / LOG if main else None, quiet=quiet or not main)
            with state.main_process_first():
                recipe = as_begun(recipe, out)
                if old is not None and not old.there:
                    check_directory(recipe, out)
                check_machine(recipe, out, state)
                recipe = settled(recipe, asked or out / ASKED, torch.device(str(state.device)), report.say)
            base = resolve(recipe.base)
            check_causal(base)
            context = RunContext(recipe, out, state, report, memory or Memory(state.device), base)
            return _train(context, data_dir, asked or out / ASKED, old)
        except OSError as error:
            raise MemprobeError(
                f"{error.filename or out}: {error.strerror or error}; what is finished is kept, the same command "
                "goes on"
            ) from error


def _train(context: RunContext, data_dir: Path | None, asked: Path, old: Before | None) -> Path:
    """All stages that are missing; the last one's directory."""
    recipe, out, report, state = context.recipe, context.out, context.report, context.state
    names = [context.directory(number) for number in context.numbers]
    if context.main:
        check_weights(out, names, context.base)
    report.say(
        f"{out}: arm {recipe.arm_name}, seed {recipe.seed}, base {recipe.base}, "
        f"{state.num_processes} process(es)"
    )
    if context.main:
        prepared = prepare(recipe, out, context.load_base, data_dir=data_dir, say=report.say, asked=asked)
        for name in names:
            if (out / name / MANIFEST).exists():
                check_rows(out / name, recipe, prepared)
        if not has_begun(out) or not (out / RECIPE).exists():
            write_text(to_toml(recipe), out / RECIPE)
        _evaluate_base(context, prepared, asked)
        if old is not None:
            old.settle()
    state.wait_for_everyone()
    prepared = prepare(recipe, out, context.load_base, data_dir=data_dir)
    before: Path | None = None
    for number in context.numbers:
        folder = out / context.directory(number)
        if (folder / MANIFEST).exists():
            check_weights(out, names, context.base)  # a stage before it may have been trained again
            report.say(f"stage {number} {folder.name}: done before")
        else:
            parent = context.base if before is None else resolve(str(before))
            OneStage(context, number, parent, prepared).train()
        if context.main:
            _write_matrix(context)
        state.wait_for_everyone()
        before = folder
    if context.main:
        shutil.rmtree(out / STATE, ignore_errors=True)
        shutil.rmtree(out / ASKED, ignore_errors=True)
    if not _in_grid(out, asked):
        stages = " ".join(f"--ckpt {shlex.quote(str(out / name))}" for name in names)
        report.say(f"done: memprobe layers {stages}")
    return out / context.directory(len(recipe.stages))


def _in_grid(out: Path, asked: Path) -> bool:
    """Whether a run is a cell's, ``OUT/runs/SETUP/CELL``: it is probed there, and its weights may go then."""
    return asked.resolve().parent in out.resolve().parents[2:3]


def _evaluate_base(context: RunContext, prepared: Prepared, asked: Path) -> None:
    """Evaluates the base model, unless that is done."""
    recipe, path = context.recipe, context.out / BASE / EVALUATION
    if path.exists():
        return
    context.check_places()

    def loaded() -> LensModel:
        model = context.load_base()
        context.check_rows(prepared, model.tokenizer, context.max_length(model.max_length))
        return model

    results = evaluate_base(recipe, prepared, context.base, loaded, asked, context.report.say)
    keys = {"schema": 1, "stage": 0, "stage_name": BASE, "arm": recipe.arm_name}
    write_json(keys | {"base": base_entry(recipe, context.base), "sets": results}, path)
    context.say_scores(BASE, results)


def _write_matrix(context: RunContext) -> None:
    """Lays the evaluations that are there side by side."""
    from training.evaluate import accuracy_matrix

    names = [BASE, *map(context.directory, context.numbers)]
    paths = [context.out / name / EVALUATION for name in names]
    sets = {path.parent.name: read_valid(path, EvaluationFile)["sets"] for path in paths if path.exists()}
    write_text(csv_text(accuracy_matrix(sets)), context.out / MATRIX)
