"""What each arm of the puzzle keeps, as a figure: ``python analyses/puzzle/figure.py`` draws it from ``cells.csv``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memprobe.figures.drawings import Drawing
from memprobe.figures.writing import write_figure
from memprobe.statistics.shares import share_over_seeds

HERE = Path(__file__).parent
CELLS, FIGURES = HERE / "cells.csv", HERE.parents[1] / "figures" / "puzzle"
SETTING = ["lr", "epochs"]
NAMES = {
    "naive": "naive",
    "matched-steps": "naive, as many steps",
    "generic-words": "generic text",
    "generic-words-shuffled": "generic text, shuffled",
    "generic-sentence": "generic text, sentence",
    "random-words": "random words",
    "random-sentence": "random words, sentence",
    "random-words-redrawn": "random words, redrawn",
    "random-words-50": "random words, 50 + 50",
    "random-words-6": "random words, 6 + 6",
    "random-words-3": "random words, 3 + 3",
}
"""Of the grid's arms, in order; 12 + 12 words, some of them in the prompt, where nothing else is said."""
LEAST_SEEDS = 3


def table(cells: pl.DataFrame) -> pl.DataFrame:
    """What :func:`memprobe.figures.forgetting` draws, a panel for each setting; of failed cells the number alone."""
    rows = []
    for (lr, epochs), some in cells.sort("lr", "epochs", descending=True).group_by(
        SETTING, maintain_order=True
    ):
        naive = _costs(some.filter("learned", arm_text="none"))
        for name, label in NAMES.items():
            arm = some.filter(arm=name).sort("seed")
            if len(arm):
                setup = f"{epochs} epochs of stage 1, learning rate {lr:g}"
                rows.append(
                    {"setup": setup, "arm": label, "arm_text": arm["arm_text"][0]} | _kept(arm, naive)
                )
    return pl.DataFrame(rows, infer_schema_length=None)


def _kept(arm: pl.DataFrame, naive: dict[str, float | None]) -> dict[str, Any]:
    learned, n = arm.filter("learned"), int(arm["n"][0])
    kept: dict[str, Any] = dict.fromkeys(("retention", "low", "high"))
    if len(learned) >= LEAST_SEEDS:
        share = share_over_seeds(np.rint(learned["exact_match_2"].to_numpy() * n), n)
        kept = {"retention": share.value, "low": share.low, "high": share.high}
    ratios = {
        name: cost / naive[name] if cost and naive[name] else None for name, cost in _costs(learned).items()
    }
    return (
        kept
        | ratios
        | {
            "by_seed": learned["exact_match_2"].to_list(),
            "failed": len(arm) - len(learned),
            "last_metric": "exact_match",
            "last_score": learned["d_b_exact_match"].mean(),
        }
    )


def _costs(cells: pl.DataFrame) -> dict[str, float | None]:
    """Steps and tokens of both stages, a mean over seeds."""
    return {name: (cells[f"{name}_1"] + cells[f"{name}_2"]).mean() for name in ("steps", "tokens")}


def main() -> None:
    """See the module."""
    drawing = Drawing(
        "forgetting", "", table(pl.read_csv(CELLS)), {}, {}, [{"kind": "results", "path": "analyses/puzzle"}]
    )
    write_figure(drawing, FIGURES, width=183, formats=["png"], command="python analyses/puzzle/figure.py")


if __name__ == "__main__":
    main()
