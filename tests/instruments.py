"""Verdicts of instruments that are right, broken or silent, on facts whose block is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from analyses.instruments.instruments import Verdict, near
from analyses.instruments.marking import marked
from analyses.instruments.results import Results

BLOCKS, N, DEPTHS = (5, 12, 19, 26), 16, 30


def cell(
    seed: int = 0, kind: str = "several", source: str = "kvr", part: str = "all", **changes: Any
) -> dict[str, Any]:
    """What a planted model says of itself."""
    sets = len(BLOCKS)
    return {
        "name": f"{kind}-{source}-{part}-{seed}",
        "kind": kind,
        "source": source,
        "part": part,
        "facts": N,
        "sets": sets,
        "seed": seed,
        "blocks": [] if kind == "full" else [[block, block] for block in BLOCKS],
        "n_layers": DEPTHS,
        "base": "model",
        "device": "cpu",
        "steps": 40,
        "said": [1.0] * sets,
        "learned": [True] * sets,
        "reset_own": [None if kind == "full" else 0.0] * sets,
        "reset_others": [None if kind == "full" else 1.0] * sets,
        "valid": None if kind == "full" else True,
        "costs": {
            name: {"forwards": 1.0, "backwards": 0.0, "seconds": 0.5} for name in ("right", "shuffled")
        },
        "finished": True,
    } | changes


def verdicts_of(one: dict[str, Any]) -> pl.DataFrame:
    """Instruments that are right, broken (its verdicts are shuffled), always the same, two blocks late, and silent."""
    rng = np.random.default_rng(one["seed"])
    sets = np.repeat(np.arange(len(BLOCKS)), N)
    right = np.array(BLOCKS, float)[sets]
    said = {
        "right": right,
        "shuffled": rng.permutation(right),
        "constant": np.full(len(sets), 12.0),
        "late": right + 2,
        "silent": np.full(len(sets), np.nan),
    }
    known = one["kind"] not in ("null", "full")
    places = sets.tolist() if known else [-1] * len(sets)
    truth = [(block, block) for block in BLOCKS] if known else None
    frames = [
        marked(name, Verdict(depth, near(depth, DEPTHS)), places, truth) for name, depth in said.items()
    ]
    return pl.concat(frames).with_columns(cell=pl.lit(one["name"]))


def results(*cells: dict[str, Any]) -> Results:
    """As a run leaves them."""
    return Results(list(cells), pl.concat([verdicts_of(one) for one in cells]), {})
