"""How far the rows that each arm mixes in can be foretold: nats a token of their answers, by the base model.

``python analyses/puzzle/rows.py --data-dir DIR`` draws the mixing rows of every arm and seed in ``cells.csv`` as
training does, and adds those that are not there to ``rows.csv``. Of rows that are drawn anew in every epoch it reads as
many as one epoch takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
import torch.nn.functional as F

from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.files import csv_text, write_text
from memprobe.models import LensModel, load
from training.batches import padded
from training.drawing import mixing_rows, wanted_rows
from training.examples import ExampleMaker
from training.gradients import kept_logits
from training.grid.cells import Cell, cells_of
from training.grid.file import read_grid

HERE = Path(__file__).parent
GRID, ROWS = HERE.parents[1] / "training" / "grids" / "smollm2-puzzle.toml", HERE / "rows.csv"
CELLS = HERE / "cells.csv"
KEY = ["arm", "seed", "n"]
SCHEMA = {
    "arm": pl.String,
    "seed": pl.Int64,
    "n": pl.Int64,
    "rows": pl.Int64,
    "tokens": pl.Int64,
    "nats": pl.Float64,
}
_AT_ONCE = 16


def measured(cells: list[Cell], base: LensModel, data_dir: Path | None) -> Iterator[dict[str, Any]]:
    """The arm, seed and keys of each cell, which mixes rows in, and what their answers cost the base model."""
    for cell in cells:
        recipe, (arm, seed, n) = cell.node.chain[0].recipe, _key(cell)
        stage = recipe.stages[0]
        for part in stage.mixing:
            drawn, _ = mixing_rows(recipe, stage, part, n, data_dir)
            make = ExampleMaker(recipe.template, base.tokenizer, recipe.max_length)
            rows = [make(row, own=False) for row in drawn[: wanted_rows(part.ratio, n)]]
            rows.sort(key=lambda row: len(row.ids))
            nats, tokens = 0.0, 0
            for start in range(0, len(rows), _AT_ONCE):
                batch = padded(rows[start : start + _AT_ONCE])
                with torch.no_grad():
                    logits = kept_logits(base.model, batch)
                nats += F.cross_entropy(logits, batch["labels"], reduction="sum").item()
                tokens += len(logits)
            yield {
                "arm": arm,
                "seed": seed,
                "n": n,
                "rows": len(rows),
                "tokens": tokens,
                "nats": nats / tokens,
            }


def _mixes(cell: Cell) -> bool:
    """Whether its stage 1 trains mixing rows; those of a matched stage give it its length alone."""
    first = cell.node.recipe.stages[0]
    return bool(first.mixing) and not first.match


def _key(cell: Cell) -> tuple[str, int, int]:
    """What its mixing rows depend on."""
    recipe = cell.node.recipe
    return cell.node.arm, recipe.seed, int(recipe.stages[0].data.partition(":")[2])


def main() -> None:
    """See the module."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("--data-dir", type=Path)
    data_dir = asked.parse_args().data_dir
    stored = pl.read_csv(ROWS) if ROWS.exists() else pl.DataFrame(schema=SCHEMA)
    lacking = set(pl.read_csv(CELLS).join(stored, on=KEY, how="anti").select(KEY).iter_rows())
    try:
        every = {_key(cell): cell for cell in cells_of(read_grid(GRID), GRID)}
        cells = [cell for key, cell in every.items() if key in lacking and _mixes(cell)]
        if not cells:
            print(f"{ROWS}: has the rows of every cell already")
            return
        base = load(resolve(cells[0].node.recipe.base))
        rows = pl.DataFrame([*measured(cells, base, data_dir)], schema=SCHEMA)
    except MemprobeError as error:
        sys.exit(str(error))
    write_text(csv_text(pl.concat([stored, rows]).sort(KEY)), ROWS)


if __name__ == "__main__":
    main()
