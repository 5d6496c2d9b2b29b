"""What a grid takes: tokens, time and disk, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe.checkpoints import Checkpoint, resolve
from memprobe.errors import MemprobeError
from memprobe.files import read_valid
from memprobe.manifests import MANIFEST
from memprobe.runs import ManifestFile
from memprobe.weights import ConfigFile, safetensors_in
from training.data import parts_of, prepare
from training.drawing import goes_around
from training.grid.cells import Cell, Node, cells_in, cells_of
from training.grid.file import Grid
from training.grid.stages import check_cells, directory, has_weights, is_done, is_trained, needed
from training.mixing import Schedule
from training.recipe import Recipe, to_toml
from training.recipe_tables import Evaluate

if TYPE_CHECKING:
    from memprobe.models import LensModel


@dataclass(frozen=True)
class GridPlan:
    """What a grid takes.

    Attributes:
        cells: name, block, whether it is done.
        shared: node -> how many cells start from it.
        tokens: input tokens of all stages that are still to be trained.
        per_second: tokens trained a second, measured on the stages that are there; None while there are none.
        stages: to be trained.
        again: of these, were trained before: their weights went, and a new cell starts from them.
        along: whether stages leave checkpoints along the way.
        stage_bytes: of one stage's weights on the disk.
        peak_stages: whose weights lie there at once, at most; without those of checkpoints along the way.
    """

    cells: list[tuple[str, str, bool]]
    shared: dict[str, int]
    tokens: int
    per_second: float | None
    stages: int
    stage_bytes: int
    peak_stages: int
    again: int = 0
    along: bool = False


def plan(
    grid: Grid,
    path: Path,
    out: Path,
    *,
    blocks: Sequence[str] = (),
    data_dir: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> GridPlan:
    """What is to be done, and what it takes at the rate of what is done. Loads rows and a tokenizer, no model.

    Tokens are those of the longest course that a stage may take; a stop rule may end it before.

    Args:
        path, blocks: see :func:`training.grid.run_grid`.
        say: told of each stage whose rows are read; large datasets take seconds each.

    Raises:
        MemprobeError: bad input, or ``out`` holds stages of another recipe.
    """
    every = cells_of(grid, path)
    check_cells(every, out)
    cells = cells_in(every, blocks, path)
    nodes = _nodes(cells)
    missing = [node for node in needed(cells, out).values() if not has_weights(out, node)]
    shared = {
        name: count
        for name in nodes
        if (count := sum(name in [node.name for node in cell.node.chain[:-1]] for cell in cells)) > 1
    }
    return GridPlan(
        [(cell.node.name, cell.block, is_done(out, cell)) for cell in cells],
        shared,
        _tokens(missing, data_dir, say),
        _rate(_nodes(every).values(), out),
        len(missing),
        _stage_bytes(nodes.values()),
        _peak(cells),
        sum(is_trained(out, node) for node in missing),
        any(stage.checkpoints for cell in cells for stage in cell.node.recipe.stages),
    )


def _nodes(cells: Iterable[Cell]) -> dict[str, Node]:
    return {node.name: node for cell in cells for node in cell.node.chain}


def _tokens(nodes: Sequence[Node], data_dir: Path | None, say: Callable[[str], None] | None) -> int:
    """Input tokens of the stages, with rows as they come: what the base model knows is not asked."""
    from memprobe.models import load_tokenizer

    counted: dict[str, int] = {}
    tokenizers: dict[str, Any] = {}
    total = 0
    for node in nodes:
        recipe = _last_alone(node.recipe)
        key = to_toml(recipe)
        if key not in counted:
            if say is not None:
                say(
                    f"counting tokens of stage {len(node.recipe.stages)} of {node.name}, {recipe.stages[-1].data}"
                )
            if recipe.base not in tokenizers:
                tokenizers[recipe.base] = load_tokenizer(resolve(recipe.base))
            try:
                counted[key] = _tokens_of_last(recipe, tokenizers[recipe.base], data_dir)
            except MemprobeError as error:
                raise MemprobeError(f"{node.name}: {error}") from error
        total += counted[key]
    return total


def _last_alone(recipe: Recipe) -> Recipe:
    """Of a recipe, what the tokens of its last stage depend on: equal for cells that differ in all else."""
    last = recipe.stages[-1]
    around = any(goes_around(part, stage) for part in last.mixing for stage in recipe.stages[:-1])
    stages = recipe.stages if recipe.joint or last.replay or around else recipe.stages[-1:]
    plain, later = (
        tuple(stage.model_copy(update={"unknown": None}) for stage in some) for some in (stages, recipe.later)
    )
    changed = {
        "seed": 0,
        "data_seed": recipe.rows_seed,
        "evaluate": Evaluate(),
        "stages": plain,
        "later": later,
    }
    return recipe.model_copy(update=changed)


def _tokens_of_last(recipe: Recipe, tokenizer: Any, data_dir: Path | None) -> int:
    import tempfile

    def never() -> LensModel:
        raise AssertionError("nothing is asked")

    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(recipe, Path(folder), never, data_dir=data_dir)
    parts = parts_of(recipe, prepared, len(recipe.stages), tokenizer, recipe.max_length)
    stage = recipe.stages[-1]
    schedule = Schedule(
        parts.own,
        parts.others,
        parts.matched,
        epochs=recipe.epochs_of(stage),
        batch=recipe.optimiser.batch,
        seed=0,
        match=stage.match,
    )
    return schedule.tokens


def _rate(nodes: Any, out: Path) -> float | None:
    tokens = seconds = 0.0
    for node in nodes:
        if is_trained(out, node):
            manifest = read_valid(directory(out, node) / node.stage / MANIFEST, ManifestFile)
            if manifest.get("seconds"):
                tokens += manifest["tokens"]
                seconds += manifest["seconds"]
    return tokens / seconds if seconds else None


def _stage_bytes(nodes: Iterable[Node]) -> int:
    """Of the largest stage's weights: a base model's parameters in the format in which stages are saved."""
    import torch

    kinds = {(node.recipe.base, node.recipe.precision.save_dtype) for node in nodes}
    return max(
        (parameters_of(resolve(base)) * getattr(torch, dtype).itemsize for base, dtype in kinds), default=0
    )


def parameters_of(checkpoint: Checkpoint) -> int:
    """How many parameters a checkpoint has, read without its weights; an adapter's are those that it is merged into."""
    if checkpoint.base is not None:
        return parameters_of(checkpoint.base)
    if checkpoint.gguf_file is not None:
        from gguf import GGUFReader

        tensors = GGUFReader(checkpoint.path / checkpoint.gguf_file).tensors
        return sum(math.prod(map(int, tensor.shape)) for tensor in tensors)
    config = read_valid(checkpoint.path / "config.json", ConfigFile, own=False)
    files = safetensors_in(checkpoint.path)
    if files and "quantization_config" not in config:
        return sum(map(_numbers_in, files))
    # Pickled weights are not opened, and quantised ones are packed: the configuration says what they become.
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.path))
    return model.num_parameters()


def _numbers_in(file: Path) -> int:
    """Numbers in the tensors of a safetensors file, from its header."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as held:
        return sum(math.prod(held.get_slice(name).get_shape()) for name in held.keys())  # noqa: SIM118


def _peak(cells: Sequence[Cell]) -> int:
    """The most stages whose weights lie on the disk at once, when cells are done in order."""
    most, there = 0, set()
    for place, cell in enumerate(cells):
        there |= {node.name for node in cell.node.chain}
        most = max(most, len(there))
        there &= {
            node.name
            for position, other in enumerate(cells)
            if position > place or other.keep == "weights"
            for node in other.node.chain
        }
    return most
