"""Tables -> plotly figures: drawn, returned, never shown.

Nothing is computed here but positions on a page: every number comes from a table of
:mod:`memprobe.statistics` or from the records. The report and the notebooks draw with the same functions.

Each trace says in ``meta`` which checkpoint (or run) it belongs to and its role (``line``, ``band``, ``control`` …),
so that a page can show some of a figure without drawing it anew. ``meta`` of a layout gives the size in pixels of
figures that have a row for each checkpoint.
"""

from memprobe.plots.curves import (
    normalised_frequency,
    recall_curves,
    stage_lines,
    survival_curves,
    training_curves,
)
from memprobe.plots.depths import depth_distribution, depth_heatmap, lof_distribution
from memprobe.plots.differences import accuracy_matrix, difference_forest, fate_flows
from memprobe.plots.patches import restoration_curves, restoration_heatmap
from memprobe.plots.prompts import LENS_STATISTICS, lens_heatmap
from memprobe.plots.results import placement_points, retention_points
from memprobe.plots.sketch import Sketch
from memprobe.plots.steps import fate_areas, step_lines
from memprobe.plots.tokens import rank_trajectory, visible
from memprobe.plots.written import contribution_curves

__all__ = [
    "LENS_STATISTICS",
    "Sketch",
    "accuracy_matrix",
    "contribution_curves",
    "depth_distribution",
    "depth_heatmap",
    "difference_forest",
    "fate_areas",
    "fate_flows",
    "lens_heatmap",
    "lof_distribution",
    "normalised_frequency",
    "placement_points",
    "rank_trajectory",
    "recall_curves",
    "restoration_curves",
    "restoration_heatmap",
    "retention_points",
    "stage_lines",
    "step_lines",
    "survival_curves",
    "training_curves",
    "visible",
]
