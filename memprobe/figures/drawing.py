"""Tables -> matplotlib figures. Nothing is computed here but positions on paper, nothing is read or written.

Each function takes one table and gives one figure; :mod:`memprobe.figures.tables` says where its columns come
from. A line is told by colour *and* marker *and* dashes. Where an arm has several training seeds each seed is
drawn; a mean over seeds and its interval are drawn where the table has them, which it does from three seeds on.

Artists that hold data carry a ``gid`` such as ``naive/base/line``, so that what is drawn can be read back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memprobe.figures.by_arm import forgetting, interference, stages
from memprobe.figures.by_checkpoint import differences, first_occurrence, kept, spread
from memprobe.figures.by_depth import frequency, heatmap, recall, survival
from memprobe.figures.by_lens import contributions, lenses, positions
from memprobe.figures.by_question import other_questions
from memprobe.figures.by_step import steps
from memprobe.figures.curves import mixing_length, mixing_ratio, penalty_strength, replay_ratio
from memprobe.figures.patches import grafts, restoration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN: dict[str, Callable[..., Figure]] = {
    "recall": recall,
    "frequency": frequency,
    "lof": first_occurrence,
    "survival": survival,
    "heatmap": heatmap,
    "differences": differences,
    "spread": spread,
    "kept": kept,
    "steps": steps,
    "lenses": lenses,
    "positions": positions,
    "contributions": contributions,
    "forgetting": forgetting,
    "replay_ratio": replay_ratio,
    "mixing_ratio": mixing_ratio,
    "mixing_length": mixing_length,
    "penalty_strength": penalty_strength,
    "stages": stages,
    "other_questions": other_questions,
    "interference": interference,
    "restoration": restoration,
    "grafts": grafts,
}
"""Every figure by the name that its files have."""
