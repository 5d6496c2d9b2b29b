"""What every stage of a run shares: its recipe, its directory, its processes, and the models in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe.checkpoints import Checkpoint
from training.data import parts_of
from training.memory import Memory
from training.prepared import Prepared
from training.recipe import Recipe
from training.run_log import RunLog

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from memprobe.models import LensModel


@dataclass(frozen=True)
class RunContext:
    """One recipe in one directory.

    Attributes:
        state: of the processes that train together.
        memory: the weights that this process holds.
        base: the recipe's base model.
    """

    recipe: Recipe
    out: Path
    state: PartialState
    report: RunLog
    memory: Memory
    base: Checkpoint

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.state.is_main_process

    @property
    def device(self) -> Any:
        """Where this process trains."""
        return self.state.device

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

    @property
    def numbers(self) -> list[int]:
        """The stages that are trained, from 1."""
        return list(self.recipe.directories)

    def directory(self, number: int) -> str:
        """``1-NAME``."""
        return self.recipe.directories[number]

    def max_length(self, context: int | None) -> int:
        """Tokens of one row; ``context`` is the model's limit, None where it has none."""
        return min(self.recipe.max_length, context or self.recipe.max_length)

    def check_rows(self, prepared: Prepared, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Finds rows that cannot be trained, in whatever stage, before anything is trained."""
        for number in self.numbers:
            parts_of(self.recipe, prepared, number, tokenizer, max_length)

    def check_places(self) -> None:
        """Finds blocks and parts that the base model does not have, in whatever stage, before anything is trained."""
        from training.checkpoint import weights_in

        for number, stage in enumerate(self.recipe.stages, 1):
            if stage.train is not None:
                base = self.load_base()
                weights_in(base.model, base.tokenizer, stage.train, f"stages.{number}.train")

    def load_base(self) -> LensModel:
        """The base model, as it is asked and evaluated."""
        return self.memory.lens_model(self.base, self.saved_dtype)

    def weights(self, checkpoint: Checkpoint) -> dict[str, Tensor] | None:
        """The weights of a checkpoint by parameter name on the CPU, where memory holds them just as they are saved."""
        from training.checkpoint import dtypes_in

        precision = self.recipe.precision
        if not self.alone or precision.weights != precision.save_dtype:
            return None
        if precision.weights != "float32" and dtypes_in(checkpoint) != {precision.weights}:
            return None  # memory holds them rounded
        return self.memory.weights(checkpoint)

    def say_scores(self, name: str, results: dict[str, Any]) -> None:
        """One line for each dataset that was evaluated."""
        for dataset, one in results.items():
            value = one["scores"][one["metric"]]["value"]
            self.report.say(f"{name}: {dataset}: {one['metric']} {value:.3f} (n {one['n']})")
