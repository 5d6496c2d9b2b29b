"""What a recipe needs of the processes and packages here, looked at before a run measures or trains anything.

A run that is whole needs none of it: it is reported as done on any machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memprobe.errors import MemprobeError, among
from memprobe.manifests import MANIFEST
from training.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import PartialState


def check_machine(recipe: Recipe, out: Path, state: PartialState) -> None:
    """Checks that what is missing of a run can be trained by these processes.

    Raises:
        MemprobeError: the model is to be sharded over several processes and there is one, or a logger is unknown or
            not installed.
    """
    if all((out / name / MANIFEST).exists() for name in recipe.directories.values()):
        return
    from accelerate import DistributedType

    if recipe.precision.fsdp and state.distributed_type == DistributedType.NO:
        raise MemprobeError(
            "precision.fsdp: shards the model over several processes, and this is one; start the command with torchrun "
            "--nproc-per-node N, or leave fsdp out"
        )
    _check_loggers(recipe.loggers)


def _check_loggers(names: tuple[str, ...]) -> None:
    if names in (("all",), ("none",)):  # Trainer's own words
        return
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
    from transformers.integrations.integration_utils import is_azureml_available, is_flytekit_available

    usable = set(get_available_reporting_integrations())
    usable |= {"azure_ml"} if is_azureml_available() else set()  # not listed beside mlflow
    usable |= {"flyte"} if is_flytekit_available() else set()  # never listed
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise MemprobeError(
                f"loggers: no logger {name!r}; {among(name, sorted(INTEGRATION_TO_CALLBACK))}"
            )
        if name not in usable:
            raise MemprobeError(f"loggers: {name} cannot be used here; install it, or leave it out")
