"""Patches and grafts: the share that is moved, by depth or by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from memprobe.figures import look as style
from memprobe.patch_tables import tables_of
from memprobe.patches import Patches
from memprobe.plots.patches import sweep_names
from memprobe.statistics.patches import SWEEP
from memprobe.statistics.vocabulary import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("restoration", "grafts")
FLOOR, TOP = -0.25, 1.1
"""Of the axis, unless a patch itself goes beyond. A control may take away many times what separates the two: what lies
below is drawn on the floor."""
_MARGIN = 0.05


@style.in_style
def restoration(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """The share that states of the source move, by depth, with 95 % bands; dotted, what the control moves.

    Args:
        table: of :func:`of_patches`: [panel, line, seed, depth, moved, low, high, control]; ``seed`` is null where a
            line is one pair of checkpoints, or the mean of an arm; ``control`` is another factoid's states.
        width: millimetres.
    """
    return _moved(table, "depth", "another fact’s states", width)


@style.in_style
def grafts(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """The share that grafted blocks move, by the first of them, with 95 % bands; dotted, random weights.

    Args:
        table: as of :func:`restoration`; ``control`` is random weights as far from the target's own.
        width: millimetres.
    """
    return _moved(table, "first grafted block", "random weights", width)


def of_patches(patches: Patches, *, facts: str, threshold: float, draws: int) -> dict[str, pl.DataFrame]:
    """The tables of :data:`NAMES` of which there is anything.

    Where an arm has several seeds, lines are arms and their seeds; else they are the sweeps of each pair.

    Args:
        facts, threshold, draws: of :func:`memprobe.patch_tables.tables_of`.
    """
    tables = tables_of(patches, facts=facts, threshold=threshold, draws=draws)
    by_depth, curves = tables["by_depth"], tables["arm_curves"]
    made = {}
    for name in NAMES:
        weights = name == "grafts"
        rows, seeded = (
            table if table.is_empty() else table.filter((pl.col("what") == "weights") == weights)
            for table in (by_depth, curves)
        )
        if not seeded.is_empty() and seeded["seeds"].to_numpy().max() > 1:
            made[name] = _over_seeds(_inner(seeded, weights))
        elif not rows.is_empty():
            made[name] = _by_pair(_inner(rows, weights), "random" if weights else "other")
    return made


def _inner(table: pl.DataFrame, weights: bool) -> pl.DataFrame:
    """Of grafts, those of blocks: embeddings and head have no place on their axis."""
    return table.filter(~pl.col("parts").is_in(["embeddings", "head"])) if weights else table


def _by_pair(rows: pl.DataFrame, control: str) -> pl.DataFrame:
    parts = []
    for pair in rows.partition_by(["source", "target", "direction"], maintain_order=True):
        head = pair.row(0, named=True)
        panel = f"{head['source']} into {head['target']}: {head['direction']}"
        for sweep, line in zip(pair.partition_by(SWEEP, maintain_order=True), sweep_names(pair), strict=True):
            parts.append(
                sweep.select(
                    pl.lit(panel).alias("panel"),
                    pl.lit(line).alias("line"),
                    pl.lit(None, pl.String).alias("seed"),
                    "depth",
                    "moved",
                    "low",
                    "high",
                    pl.col(control).alias("control"),
                )
            )
    return pl.concat(parts)


def _over_seeds(curves: pl.DataFrame) -> pl.DataFrame:
    keys = ["what", "positions", "parts", "window", "direction", "stage"]
    several = [key for key in keys if curves[key].n_unique() > 1] or ["direction"]
    panel = pl.concat_str([pl.col(key).cast(pl.String) for key in several], separator=", ")
    empty = {name: pl.lit(None, pl.Float64).alias(name) for name in ("low", "high", "control")}
    means = curves.select(
        panel.alias("panel"),
        pl.col("arm").alias("line"),
        pl.lit(None, pl.String).alias("seed"),
        "depth",
        "moved",
        "low",
        "high",
        empty["control"],
    )
    seeds = (
        curves.with_columns(panel.alias("panel"), seed=pl.int_ranges(pl.col("by_seed").list.len()))
        .explode("by_seed", "seed")
        .select(
            "panel",
            pl.col("arm").alias("line"),
            pl.col("seed").cast(pl.String),
            "depth",
            pl.col("by_seed").alias("moved"),
            *empty.values(),
        )
    )
    return pl.concat([means, seeds])


def _moved(table: pl.DataFrame, x_label: str, control: str, width: int) -> Figure:
    style.not_empty(table, "moved")
    names = table["panel"].unique(maintain_order=True).to_list()
    lines = table["line"].unique(maintain_order=True).to_list()
    handles = [style.handle(line, **style.look(position)) for position, line in enumerate(lines)]
    moved = table["moved"].drop_nulls()
    floor = min(FLOOR, float(moved.min()) - _MARGIN)  # type: ignore[arg-type]
    top = max(TOP, float(moved.max()) + _MARGIN)  # type: ignore[arg-type]
    controlled = table["control"].cast(pl.Float64).drop_nulls()
    if len(controlled):
        below = ", below the axis" if (controlled < floor).any() else ""
        handles.append(style.handle(control + below, color=style.FAINT, linestyle=style.DOTTED))
    figure, every = style.panels(
        len(names),
        width,
        columns=(2, 3),
        height=(50 if style.is_narrow(width) else 62) if len(names) == 1 else 40,
        above=style.legend_height(handles, width),
        sharex=True,
        sharey=True,
    )
    for axes, name in zip(every, names, strict=True):
        axes.axhline(0.5, color=style.FAINT, linewidth=0.4)
        for (line, seed), rows in style.groups(table.filter(panel=name), "line", "seed"):
            rows = rows.sort("depth")
            marks, where = style.look(lines.index(line)), f"{name}/{line}/{seed or ''}"
            x, y = rows["depth"].to_list(), style.numbers(rows, "moved")
            if seed is None:
                style.band(axes, rows, "depth", ("low", "high"), where, color=marks["color"])
                held = style.numbers(
                    rows.with_columns(pl.col("control").cast(pl.Float64).clip(floor)), "control"
                )
                axes.plot(
                    x, held, color=marks["color"], linestyle=style.DOTTED, lw=0.9, gid=f"{where}/control"
                )
                axes.plot(x, y, **marks, markersize=2.4, zorder=3, gid=f"{where}/line")
            else:
                axes.plot(x, y, color=marks["color"], linewidth=0.5, alpha=0.6, gid=f"{where}/line")
        if len(names) > 1:
            style.panel_title(axes, name, 22 if style.is_narrow(width) else 34, names)
        style.depth_axis(axes, table["depth"])
        axes.set_ylim(floor, top)
        style.percent_axis(axes.yaxis)
    style.name_axes(figure, every, x_label, f"share {label('moved', short=True)}")
    style.legend(figure, handles, width)
    return figure
