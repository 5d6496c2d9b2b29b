"""A stage's checkpoint on the disk: weights, rows, manifest."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe import __version__
from memprobe.checkpoints import Checkpoint, fingerprint, resolve
from memprobe.errors import MemprobeError, first_line
from memprobe.files import read_json, read_valid, write_json, write_text
from memprobe.manifests import MANIFEST, MANIFEST_SCHEMA
from memprobe.runs import METRICS, RECIPE
from memprobe.settings import settings_of
from memprobe.sources.kinds import AnyRow
from memprobe.weights import ConfigFile
from training.prepared import Prepared
from training.recipe import Recipe, to_toml
from training.row_files import rows_hash_of, rows_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.mixing import Schedule
    from training.progress import Progress
    from training.stage import StageTrainer


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself.

    Attributes:
        run: name of the run directory.
        number: of the stage, from 1.
        name: of the stage's directory.
        parent: the checkpoint that the stage started from, which is ``base`` for the first.
        replayed: ids of the rows of earlier stages that were trained again.
        processes: that trained together.
        metrics: the stage's log of every step so far.
    """

    run: str
    recipe: Recipe
    number: int
    name: str
    prepared: Prepared
    base: Checkpoint
    parent: Checkpoint
    replayed: list[str]
    schedule: Schedule
    processes: int
    metrics: Path

    def write(self, folder: Path, progress: Progress, steps: int) -> None:
        """Manifest, the rows of every stage up to this one, resolved recipe and metrics, beside saved weights."""
        stages = [self._stage(number, folder) for number in range(1, self.number + 1)]
        recipe, first = self.recipe, self.parent is self.base
        base = base_entry(recipe, self.base)
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "run": self.run,
            "template": recipe.template,
            "arm": recipe.arm_name,
            "seed": recipe.seed,
            "stage": self.number,
            "stage_name": "joint" if recipe.joint else recipe.stages[self.number - 1].name,
            "steps": steps,
            "steps_planned": self.schedule.steps,
            "stopped": progress.stopped,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            "processes": self.processes,
            "base": base,
            "parent": base if first else _entry(f"../{self.parent.path.name}", self.parent),
            "checkpoint": _entry(".", resolve(str(folder))),
            "stages": stages,
            "replayed": self.replayed,
            "recipe": recipe.model_dump(mode="json"),
            "versions": _versions(),
            "commit": _commit(),
        }
        write_json(manifest, folder / MANIFEST)
        write_text(to_toml(recipe), folder / RECIPE)
        if self.metrics.exists():
            shutil.copyfile(self.metrics, folder / METRICS)

    def _stage(self, number: int, folder: Path) -> dict[str, Any]:
        """Writes a stage's rows; its entry in the manifest."""
        stage, data = self.recipe.stages[number - 1], self.prepared.stages[number - 1]
        last = number == self.number and not self.recipe.joint
        file = f"{stage.kind}.jsonl" if last else f"{stage.kind}-{number}-{stage.name}.jsonl"
        return {
            "index": number,
            "name": stage.name,
            "factoids": file,
            "hash": _write_rows(data.rows, folder / file),
            "kind": stage.kind,
            "n": len(data.rows),
            "origins": data.origins,
            "counts": data.counts,
        }


def base_entry(recipe: Recipe, base: Checkpoint) -> dict[str, str]:
    """What a run says of its base model wherever it names it."""
    return _entry(recipe.base, base)


def _entry(spec: str, checkpoint: Checkpoint) -> dict[str, str]:
    """What a run says of any checkpoint, so that it is known again: its weights and what makes them a model.

    Args:
        spec: as the reader of the file finds it.
    """
    said = {"spec": spec, "fingerprint": fingerprint(checkpoint)}
    settings = settings_of(checkpoint)
    return said if settings is None else said | {"settings": settings}


def weights_of(trainer: StageTrainer, dtype: str) -> dict[str, Any]:
    """The trained weights as they are saved; adapters are merged into a copy. Every process takes part."""
    import copy

    import torch

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
        name: converted.setdefault(tensor.data_ptr(), tensor.detach().cpu().to(getattr(torch, dtype)))
        for name, tensor in state.items()
    }


def weights_at(
    checkpoint: Checkpoint, model: PreTrainedModel, kept: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Any]]:
    """The weights of a checkpoint in fp32, tensor after tensor, for each parameter of a model of the same kind.

    Read from safetensors as they lie there; without building a model, where names on the disk are the model's own.

    Args:
        kept: the same weights by name, where they are in memory.
    """
    import torch
    from safetensors import safe_open

    names = [name for name, _ in model.named_parameters()]
    if kept is not None and set(names) <= set(kept):
        yield from ((name, kept[name].float()) for name in names)
        return
    place = {}
    for file in sorted(checkpoint.path.glob("*.safetensors")) if checkpoint.kind == "weights" else ():
        with safe_open(file, "pt") as held:
            place |= dict.fromkeys(held.keys(), file)
    if set(names) <= set(place):
        for file in sorted(set(place.values())):
            with safe_open(file, "pt") as held:
                for name in names:
                    if place[name] == file:
                        yield name, held.get_tensor(name).float()
        return
    from memprobe.models import load_pretrained

    start = dict(load_pretrained(checkpoint, torch.float32)[0].named_parameters())
    yield from ((name, start[name].detach()) for name in names)


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def dtypes_in(checkpoint: Checkpoint) -> set[str]:
    """The dtypes of a checkpoint's tensors, by torch's names; nothing where they do not lie in safetensors."""
    from safetensors import safe_open

    found = set()
    for file in sorted(checkpoint.path.glob("*.safetensors")) if checkpoint.kind == "weights" else ():
        with safe_open(file, "pt") as held:
            found |= {held.get_slice(name).get_dtype() for name in held.keys()}  # noqa: SIM118
    return {_DTYPES.get(name, name) for name in found}


def save_model(trainer: StageTrainer, weights: dict[str, Any], folder: Path, dtype: str) -> None:
    """Writes weights and configuration in Hugging Face format."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.save_pretrained(folder, state_dict=weights)
    config = read_json(folder / "config.json", own=False)
    write_json(config | {"dtype": dtype}, folder / "config.json")


def save_whole(
    trainer: StageTrainer,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    about: About,
    steps: int,
    scratch: Path,
    dtype: str,
    finish: Callable[[Path], None],
    *,
    write: bool,
) -> bool:
    """Writes a checkpoint to ``scratch`` and moves it to its place when all of it is on the disk.

    Args:
        finish: what else is written there before it moves.
        write: whether this process writes; every one must call, to hand over its weights.

    Returns:
        Whether this process wrote.

    Raises:
        MemprobeError: it cannot be saved; nothing half-written stays.
    """
    import torch

    from training.states import sync_folder

    weights = weights_of(trainer, dtype)
    if not write:
        return False
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        save_model(trainer, weights, scratch, dtype)
        tokenizer.save_pretrained(scratch)
        about.write(scratch, trainer.progress, steps)
        finish(scratch)
        sync_folder(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(target)
    except (MemprobeError, torch.OutOfMemoryError):  # out of memory beside others, it may fit the next time
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    except Exception as error:  # torch, safetensors and the file system each have their own
        shutil.rmtree(scratch, ignore_errors=True)
        raise MemprobeError(
            f"{target}: the checkpoint could not be saved ({first_line(error)}); "
            "the same command goes on from the last state"
        ) from error
    return True


def _write_rows(rows: Sequence[AnyRow], path: Path) -> str:
    """Writes rows as JSONL; the SHA-256 of the file."""
    write_text(rows_text(rows), path)
    return rows_hash_of(rows)


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "accelerate", "peft")
    return {"memprobe": __version__} | {name: importlib.metadata.version(name) for name in names}


def _commit() -> str | None:
    """The commit of this code, with ``+`` where files differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        # Without optional locks: killed while it refreshes the index, git would leave a lock in somebody's repository.
        git = ["git", "--no-optional-locks", "-C", str(here)]
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


def check_causal(base: Checkpoint) -> None:
    """Raises a MemprobeError for a base model that does not predict the next token."""
    if base.kind in ("gguf", "adapter"):
        return
    config = read_valid(base.path / "config.json", ConfigFile, own=False)
    heads = config.get("architectures") or []
    causal = [head for head in heads if head.endswith(("ForCausalLM", "LMHeadModel"))]
    if config.get("is_encoder_decoder") or (heads and not causal):
        raise MemprobeError(
            f"base: {base.spec} is a {', '.join(heads) or 'encoder-decoder'}, not a causal LM"
        )


def with_adapter(model: PreTrainedModel, rank: int, alpha: float, checkpointing: bool) -> Any:
    """The model with low-rank adapters, which alone are trained: W + (alpha / rank) B A (Hu et al. 2021)."""
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


def train_only(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, places: str, label: str) -> int:
    """Freezes every weight but those of some blocks or parts; how many numbers are trained.

    Args:
        places, label: see :func:`weights_in`.

    Raises:
        MemprobeError: the model has no such block or part.
    """
    chosen = weights_in(model, tokenizer, places, label)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def weights_in(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, places: str, label: str
) -> Collection[str]:
    """Names of the weights of some blocks or parts.

    Args:
        places: see :func:`memprobe.grafts.parse_places`.
        label: of what asks for them.

    Raises:
        MemprobeError: the model has no such block or part.
    """
    from memprobe.blocks import blocks_of
    from memprobe.grafts import parse_places
    from memprobe.models import after_blocks
    from memprobe.parts import chosen_names, parameter_places

    final = after_blocks(model, tokenizer, label)
    known = parameter_places(model, blocks_of(model, label), final)
    return chosen_names(known, parse_places(places), label)
