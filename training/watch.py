"""What is watched while a stage is trained: its metrics, its stop rules, and when a state is due."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from transformers import TrainerCallback

from memprobe.errors import MemprobeError
from memprobe.runs import METRICS, data_loss
from training.progress import add_metrics
from training.stopping import asked


class Watch(TrainerCallback):
    """Metrics, stop rules, and when to save."""

    def __init__(self, trainer: Any):  # the StageTrainer, which imports this module
        self.trainer, self.run = trainer, trainer.run
        self.saved = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clocks and the bar."""
        self.saved = self.trainer.counted = time.monotonic()
        if state.is_world_process_zero:
            self.run.report.start(self.run.name, state.max_steps, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        """Saving is decided by the first process's clock, for all."""
        self.trainer.after_step()
        due = time.monotonic() - self.saved >= 60 * self.run.recipe.save_minutes
        if self.trainer.accelerator.num_processes > 1:
            decision = torch.tensor(float(due), device=self.trainer.args.device)
            torch.distributed.broadcast(decision, 0)
            due = bool(decision)
        elif asked():
            due = control.should_training_stop = True
        if due and state.global_step < state.max_steps:
            control.should_save = True
            self.saved = time.monotonic()
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Checks the numbers of a step, applies the stop rules, and writes the line of metrics."""
        if logs is None or "loss" not in logs:
            return control
        step, run = state.global_step, self.run
        for key in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(key, 0.0)):
                raise MemprobeError(
                    f"{run.name}: {key} is {logs[key]} at step {step}, so training stops; the last state that was "
                    "saved is kept. Lower optimiser.lr, or compute in float32"
                )
        progress = self.trainer.progress
        own_loss = logs.get("own_loss")
        if run.stop.loss is not None and own_loss is not None:
            progress.below = progress.below + 1 if own_loss < run.stop.loss else 0
            if progress.below >= run.stop.steps:
                progress.stopped = f"loss below {run.stop.loss:g} for {run.stop.steps} steps"
        if run.schedule.ends_epoch(step):
            self._end_epoch()
        if progress.stopped is not None:  # the stage's checkpoint follows at once, so no state is needed
            control.should_training_stop, control.should_save = True, False
        if state.is_world_process_zero:
            epoch = step / run.schedule.steps_per_epoch
            add_metrics(run.folder / METRICS, step, epoch, progress.exact, logs)
            share = progress.right / progress.seen if progress.seen else progress.exact
            run.report.step(step, data_loss(logs), share)
        if run.due(step):
            run.along(self.trainer, step)
        return control

    def _end_epoch(self) -> None:
        trainer = self.trainer
        progress = trainer.progress
        progress.exact = progress.right / progress.seen if progress.seen else None
        progress.right = progress.seen = 0
        if self.run.stop.exact_match:
            progress.exact = trainer.own_exact()
            if progress.exact == 1.0:
                progress.stopped = "every own row is exact"

    def on_train_end(self, args, state, control, **kwargs):
        """Ends the bar."""
        self.run.report.stop()
