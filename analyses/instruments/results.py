"""What a run left, as one table of facts: read from its folder, or from what a report keeps of it.

A report keeps ``cells.json`` (what every cell says of itself) and ``verdicts.parquet`` (all rows, by cell).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from analyses.instruments.marking import VERDICTS, with_all_columns
from analyses.instruments.plan import CellFile, CellsFile, PlanStored
from memprobe.errors import MemprobeError
from memprobe.files import check_valid, read_json, read_valid, write_json, write_parquet

CELLS, STORED, LENSES = "cells.json", "verdicts.parquet", "lenses.json"


@dataclass(frozen=True)
class Results:
    """Attributes:
    cells: what every cell says of itself.
    verdicts: :data:`analyses.instruments.marking.VERDICTS` with ``cell``.
    lenses: by kind, what a fitted lens says of itself.
    """

    cells: list[dict[str, Any]]
    verdicts: pl.DataFrame
    lenses: dict[str, Any]


def read_results(folders: Sequence[Path]) -> Results:
    """The results of run folders, or of one that a report keeps; a cell in several of them counts once.

    Raises:
        MemprobeError: there are none.
    """
    cells: dict[str, dict[str, Any]] = {}
    frames: dict[str, pl.DataFrame] = {}
    lenses: dict[str, Any] = {}
    for folder in folders:
        if (folder / CELLS).exists():
            verdicts = with_all_columns(pl.read_parquet(folder / STORED))
            by_cell = {name[0]: part for name, part in verdicts.partition_by("cell", as_dict=True).items()}
            found = read_json(folder / CELLS)
            check_valid(found, CellsFile, folder / CELLS)
            lenses |= read_valid(folder / LENSES, PlanStored) if (folder / LENSES).exists() else {}
        else:
            found, by_cell = [], {}
            for path in sorted((folder / "cells").glob("*.json")):
                found.append(read_valid(path, CellFile))
                table = folder / "verdicts" / f"{path.stem}.parquet"
                if table.exists():
                    one = with_all_columns(pl.read_parquet(table))
                    by_cell[path.stem] = one.with_columns(cell=pl.lit(path.stem))
            lenses |= {
                path.stem: read_valid(path, PlanStored) for path in sorted((folder / "lenses").glob("*.json"))
            }
        for cell in found:
            name = cell["name"]
            if name in cells and (cells[name]["finished"] or not cell["finished"]):
                continue
            cells[name] = cell
            if name in by_cell:
                frames[name] = by_cell[name]
    if not cells:
        raise MemprobeError(
            f"{', '.join(map(str, folders))}: no results; python -m analyses.instruments run makes them"
        )
    empty = pl.DataFrame(schema=VERDICTS | {"cell": pl.String})
    table = pl.concat([empty, *(frames[name].select(empty.columns) for name in cells if name in frames)])
    return Results(list(cells.values()), table, lenses)


def keep(results: Results, folder: Path) -> None:
    """Stores results, small enough for a repository."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(results.cells, folder / CELLS)
    write_json({kind: {k: v for k, v in one.items() if k != "seconds"} for kind, one in results.lenses.items()},
               folder / LENSES)  # fmt: skip
    write_parquet(results.verdicts, folder / STORED)


def facts_of(results: Results) -> pl.DataFrame:
    """One row per cell, instrument and fact, with the truth beside the verdict and its marks.

    Facts with a truth come from valid models and from sets that were learned; others keep their rows with
    ``counts`` false.

    Returns:
        the columns of VERDICTS, then cell, kind, source, planted (the part that was trained), size (facts of a set),
        seed, n_layers, places (all trained blocks, as text), first, last (the true blocks), counts, exact, within1
        (0 or 1; naming none is 0), error (blocks to the nearest true one, null where none is named), named (0 or
        1), right_part (0 or 1, null where unknown)
    """
    rows = [_of_cell(cell) for cell in results.cells]
    places = pl.concat([row for one in rows for row in one], how="vertical_relaxed")
    joined = results.verdicts.join(places, on=["cell", "set"], how="inner", maintain_order="left")
    depth = pl.col("depth")
    error = pl.max_horizontal(pl.col("first") - depth, depth - pl.col("last"), pl.lit(0.0))
    true = pl.col("first").is_not_null()
    # A horizontal maximum passes over nulls, so that a fact without a depth would come out at 0.
    marked = joined.with_columns(
        error=pl.when(true & depth.is_not_null()).then(error),
        named=depth.is_not_null().cast(pl.Float64),
    )
    error = pl.col("error")
    return marked.with_columns(
        exact=pl.when(true).then((error == 0).fill_null(False).cast(pl.Float64)),
        within1=pl.when(true).then((error <= 1).fill_null(False).cast(pl.Float64)),
        right_part=pl.when(true & (pl.col("planted") != "all")).then(
            (pl.col("part") == pl.col("planted")).cast(pl.Float64)
        ),
    )


def _of_cell(cell: Mapping[str, Any]) -> list[pl.DataFrame]:
    shared = {
        "cell": cell["name"],
        "kind": cell["kind"],
        "source": cell["source"],
        "planted": cell["part"],
        "size": cell["facts"],
        "seed": cell["seed"],
        "n_layers": cell["n_layers"],
        "places": ", ".join(f"{first}-{last}" for first, last in cell["blocks"]),
    }
    known = cell["kind"] not in ("full", "null")
    sets = range(cell["sets"]) if known else [-1]
    return [
        pl.DataFrame(
            [
                shared
                | {
                    "set": number,
                    "first": cell["blocks"][number][0] if known else None,
                    "last": cell["blocks"][number][1] if known else None,
                    "counts": bool(cell["valid"] and cell["learned"][number])
                    if known
                    else cell["valid"] is not False,
                }
            ],
            schema_overrides={"set": pl.Int16, "first": pl.Float64, "last": pl.Float64},
        )
        for number in sets
    ]
