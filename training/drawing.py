"""A study's figures: what :mod:`memprobe.figures` draws of a grid, and what is drawn of its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from memprobe.figures import write_figures
from memprobe.figures.writing import Drawing, write_figure
from training.tables import NAIVE, READOUTS, SETTINGS, Results

OF_GRIDS = (
    "forgetting",
    "replay_ratio",
    "mixing_ratio",
    "mixing_length",
    "stages",
    "interference",
    "lof",
    "differences",
)
"""Of what :func:`memprobe.figures.write_figures` draws, the figures that tell of arms."""
WIDTH, FORMATS = 183, ("png",)


def draw(
    results: Results,
    tables: Mapping[str, pl.DataFrame],
    grid: Path | None,
    out: Path,
    *,
    draws: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Draws a study.

    Args:
        results, tables: of :mod:`training.tables`.
        grid: the grid's directory; ``None`` draws the figures that ``out`` holds again, from the JSON beside each.
        out: folder of the figures.
        draws: of the bootstrap.
        say: called with one line about each figure that is left out.

    Returns:
        The images.
    """
    if grid is None:
        stored = sorted(out.glob("*.json"))
        files = write_figures(stored, out, formats=FORMATS) if stored else []
    else:
        naive = results.cells.filter("learned", arm_text=NAIVE)["labels"].to_list()
        options = {"reference": naive[0][-1] if naive else None, "draws": draws, "say": say}
        files = write_figures([grid], out, only=OF_GRIDS, width=WIDTH, formats=FORMATS, **options)
        for drawing in _spread(tables, grid):
            command = f"python -m training report {grid} --figures {out}"
            files += write_figure(drawing, out, width=WIDTH, formats=FORMATS, command=command)
    return [path for path in files if path.suffix.removeprefix(".") in FORMATS]


def _spread(tables: Mapping[str, pl.DataFrame], grid: Path) -> list[Drawing]:
    """Spread by arm and seed, a figure for each pair of datasets and reading."""
    if "spread" not in tables:
        return []
    drawings = []
    named = tables["spread"].with_columns(
        pl.format("after stage {}", "stage").alias("panel"),
        pl.col("arm").alias("row"),
        pl.col("readout")
        .replace(dict(zip(READOUTS, ("own readout", "base readout"), strict=True)))
        .alias("series"),
        pl.lit("naive of the same seed").alias("reference"),
    )
    for setup in named["setup"].unique(maintain_order=True):
        for k, token in SETTINGS:
            table = named.filter(pl.col("difference").is_not_null(), setup=setup, k=k, token=token)
            table = table.select("panel", "row", "series", "reference", "difference", "low", "high")
            if len(table):
                options = {"k": k, "token": token}
                inputs = [{"kind": "grid", "path": grid.as_posix()}]
                drawings.append(Drawing("spread", f"{setup}-k{k}-{token}", table, options, options, inputs))
    return drawings
