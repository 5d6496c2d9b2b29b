"""Figures for papers: tables in, matplotlib figures out, and files beside the JSON of what made them.

    figure = figures.recall(table, k=10, width=89)       # a pure function of a table
    figures.write_figures(["probes/demo"], "figures")    # what ``memprobe figures`` does
    figures.redraw("figures/recall.json")                # from the data kept beside a figure

::

    look      the style, the widths, the palette shared with the dashboard
    drawing   table -> figure: by_depth, by_checkpoint, by_step, by_arm, by_question, curves
    tables    comparison -> tables
    runs      training runs -> tables
    patches   patches -> tables and figures
    writing   figures -> files
"""

from memprobe.figures.drawing import (
    DRAWN,
    differences,
    first_occurrence,
    forgetting,
    frequency,
    grafts,
    heatmap,
    interference,
    kept,
    mixing_length,
    mixing_ratio,
    other_questions,
    penalty_strength,
    recall,
    replay_ratio,
    restoration,
    spread,
    stages,
    steps,
    survival,
)
from memprobe.figures.look import STYLE, WIDTHS
from memprobe.figures.tables import of_comparison
from memprobe.figures.writing import redraw, save, write_figures

__all__ = [
    "DRAWN",
    "STYLE",
    "WIDTHS",
    "differences",
    "first_occurrence",
    "forgetting",
    "frequency",
    "grafts",
    "heatmap",
    "interference",
    "kept",
    "mixing_length",
    "mixing_ratio",
    "of_comparison",
    "other_questions",
    "penalty_strength",
    "recall",
    "redraw",
    "replay_ratio",
    "restoration",
    "save",
    "spread",
    "stages",
    "steps",
    "survival",
    "write_figures",
]
