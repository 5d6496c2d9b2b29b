"""Figures of a report: what each instrument finds, and whether instruments agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from memprobe.figures.look import FAINT, INK, MM, in_style, percent_axis
from memprobe.palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_style
def draw_found(main: pl.DataFrame) -> Figure:
    """Share of facts whose block each instrument names exactly, with intervals; the best constant guess dashed."""
    from matplotlib.figure import Figure

    names = main["instrument"].unique(maintain_order=True).to_list()[::-1]
    sources = main["source"].unique().sort().to_list()
    figure = Figure(figsize=(120 * MM, (12 + 4.2 * len(names)) * MM), layout="constrained")
    axes = figure.subplots()
    for number, source in enumerate(sources):
        rows = main.filter(source=source)
        at = [
            names.index(name) + 0.16 * (number - (len(sources) - 1) / 2) * -2 for name in rows["instrument"]
        ]
        for place, low, high in zip(at, rows["exact_low"], rows["exact_high"], strict=True):
            if low is not None:
                axes.plot([low, high], [place, place], color=COLOURS[number], linewidth=0.9)
        axes.plot(rows["exact"], at, "o", markersize=3, color=COLOURS[number], label=source)
        axes.axvline(rows["exact_constant"].max(), color=FAINT, linewidth=0.7, linestyle="--", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlim(-0.02, 1.02)
    percent_axis(axes.xaxis)
    axes.set_xlabel("facts whose block is named exactly (dashed: the best constant guess)", color=INK)
    axes.legend(loc="lower right")
    return figure


@in_style
def draw_agreement(pairs: pl.DataFrame) -> Figure:
    """Correlations of every two instruments after ordinary fine-tuning, beside those where the truth is known.

    Where every model holds one planted set alone, nothing in it varies for right instruments: no such panel is drawn.

    Args:
        pairs: kind, one, other, correlation, of facts of one source.
    """
    from matplotlib.figure import Figure

    titles = {"several": "planted: the truth is known", "full": "ordinary fine-tuning: nobody knows"}
    panels = {kind: rows for kind in titles if len(rows := pairs.filter(kind=kind))}
    full = panels["full"]
    names = pl.concat([full["one"], full["other"]]).unique(maintain_order=True).to_list()
    figure = Figure(figsize=((61 + 61 * len(panels)) * MM, 106 * MM), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (kind, rows) in zip(all_axes, panels.items(), strict=True):
        grid = np.full((len(names), len(names)), np.nan)
        shown = rows.filter(pl.col("one").is_in(names), pl.col("other").is_in(names))
        for one, other, value in shown.select("one", "other", "correlation").iter_rows():
            at = names.index(one), names.index(other)
            grid[at] = grid[at[::-1]] = np.nan if value is None else value
        np.fill_diagonal(grid, 1)
        image = axes.imshow(grid, cmap="RdBu", vmin=-1, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
        axes.set_yticks(range(len(names)), names, fontsize=5)
        axes.set_title(titles[kind], color=INK)
    bar = figure.colorbar(image, ax=list(all_axes), shrink=0.6, pad=0.02)
    bar.set_label("rank correlation of the named depths, within models")
    return figure
