"""The puzzle's results: a grid's directory as one small table, and the verdicts of ``rules.toml`` on it.

``python analyses/puzzle/results.py runs/smollm2-puzzle`` reads the grid's directory and writes ``cells.csv``, then, as
it does without a directory, makes ``results.md`` from it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from memprobe.files import read_toml, read_valid
from memprobe.runs import EVALUATION, MANIFEST, CellFile, EvaluationFile, ManifestFile
from memprobe.statistics.verdicts import holm, verdict
from memprobe.wording import markdown_table

HERE = Path(__file__).parent
CELLS, RESULTS = HERE / "cells.csv", HERE / "results.md"
MEASURES = {"exact_match": "bound_exact_match", "nats": "bound_nats"}
SETTING = ("lr", "n", "epochs")


def collect(grid: Path) -> pl.DataFrame:
    """One row for each cell that has ended: D_A and D_B after each stage, and how far the weights moved."""
    rows = []
    for path in sorted(grid.glob("runs/*/*/cell.json")):
        cell = read_valid(path, CellFile)
        folders = [path.parent / one["stage"] for one in cell["stages"]]
        stages = [read_valid(folder / EVALUATION, EvaluationFile) for folder in folders]
        manifests = [read_valid(folder / MANIFEST, ManifestFile) for folder in folders]
        d_a, d_b = list(stages[-1]["sets"])[:2]
        row = {
            "arm": path.parent.name.rsplit("-s", 1)[0],
            "seed": cell["seed"],
            "arm_text": manifests[-1]["arm"],
        }
        row |= {key: cell["axes"].get(key) for key in SETTING} | {"learned": cell["learned"]}
        for number, (stage, manifest) in enumerate(zip(stages, manifests, strict=True), 1):
            row |= {f"{key}_{number}": _score(stage, d_a, key) for key in ("exact_match", "nats")}
            row |= {f"moved_{number}": stage["weight_change"]["stage"], f"steps_{number}": manifest["steps"]}
            row |= {f"tokens_{number}": manifest["tokens"], f"seconds_{number}": manifest["seconds"]}
        row |= {f"d_b_{key}": _score(stages[-1], d_b, key) for key in ("exact_match", "nats")}
        rows.append(row | {"commit": manifests[-1]["commit"], "torch": manifests[-1]["versions"]["torch"]})
    return pl.DataFrame(rows, infer_schema_length=None)


def _score(stage: dict[str, Any], name: str, key: str) -> float:
    return stage["sets"][name]["scores"][key]["value"]


def verdicts(cells: pl.DataFrame, rules: dict[str, Any]) -> pl.DataFrame:
    """Each claim of the rules, by setting and measure, as a paired Student's t over seeds.

    A difference in nats is turned around, so that above 0 always means: keeps more.
    """
    rows = []
    for setting, some in cells.group_by(SETTING, maintain_order=True):
        for claim in rules["claims"]:
            arm, other = claim["arms"]
            names = sorted({one for one in some["arm"] if one == arm or one.startswith(f"{arm}-{arm}")})
            for measure, bound in MEASURES.items():
                found = [_difference(some, name, other, measure) for name in names or [arm]]
                adjusted = holm([one["p"] for one in found]) if "family" in claim else [None] * len(found)
                for name, one, p in zip(names or [arm], found, adjusted, strict=True):
                    enough = one["n"] >= rules["least_seeds"] and not one["failed"]
                    said = verdict(
                        one["low"] if enough else None,
                        one["high"] if enough else None,
                        side=claim["side"],
                        equivalent=rules["verdict"][bound],
                        p=p,
                    )
                    head = dict(zip(SETTING, setting, strict=True)) | {"claim": claim["name"], "arm": name}
                    rows.append(head | {"against": other, "measure": measure, **one, "verdict": said})
    return pl.DataFrame(rows, infer_schema_length=None)


def _difference(cells: pl.DataFrame, arm: str, other: str, measure: str) -> dict[str, Any]:
    """Seed by seed, how much more the first keeps; the interval of the mean."""
    column, sign = f"{measure}_2", -1 if measure == "nats" else 1
    pair = cells.filter(arm=arm).join(cells.filter(arm=other), on="seed", suffix="_other").sort("seed")
    learned = pair.filter(pl.col("learned") & pl.col("learned_other"))
    values = sign * (learned[column] - learned[f"{column}_other"]).to_numpy()
    listed = ", ".join(f"{value:+.3g}" for value in sign * (pair[column] - pair[f"{column}_other"]))
    found = {"n": len(values), "failed": len(pair) - len(values), "by_seed": listed}
    found |= {"mean": None, "low": None, "high": None, "p": None}
    if len(values) >= 3:  # with fewer each seed is shown, and nothing more
        mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
        reach = error * float(stats.t.ppf(0.975, len(values) - 1))
        p = float(2 * stats.t.sf(abs(mean) / error, len(values) - 1)) if error else None
        found |= {"mean": mean, "low": mean - reach, "high": mean + reach, "p": p}
    return found


def markdown(cells: pl.DataFrame, found: pl.DataFrame) -> Iterator[str]:
    """Every cell, then every claim that has at least one pair of seeds."""
    shown = {
        "arm": "arm", "seed": "seed", "exact_match_1": "D_A after 1", "nats_1": "nats", "exact_match_2": "D_A after 2",
        "nats_2": "nats", "d_b_exact_match": "D_B", "moved_1": "moved in 1", "moved_2": "moved in 2",
        "steps_2": "steps in 2", "learned": "learned",
    }  # fmt: skip
    for setting, some in cells.group_by(SETTING, maintain_order=True):
        yield "Learning rate {:g}, {} keys, {} epochs of stage 1:\n".format(*setting)
        yield from _table([*shown.values()], some.sort("arm", "seed").select(*shown).rows())
        yield ""
    columns = ["claim", "arm", "against", "measure", "by_seed", "mean", "low", "high", "verdict"]
    tested = found.filter(pl.col("by_seed") != "").select(*columns)
    yield from _table(
        ["claim", "arm", "against", "measure", "by seed", "mean", "low", "high", "verdict"], tested.rows()
    )
    untested = found.filter(pl.col("by_seed") == "")["claim"].unique(maintain_order=True)
    yield "\nNot run: " + "; ".join(untested) if len(untested) else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return markdown_table(head, [[_cell(value) for value in row] for row in rows], gap="")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.3g}" if isinstance(value, float) and np.isfinite(value) else str(value)


def main() -> None:
    """See the module."""
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1])).write_csv(CELLS)
    RESULTS.write_text(results(pl.read_csv(CELLS)), encoding="utf-8")


def results(cells: pl.DataFrame) -> str:
    """The whole of ``results.md``."""
    rules = read_toml(HERE / "rules.toml")
    head = "Made by `python analyses/puzzle/results.py` from `cells.csv` and `rules.toml`.\n"
    return "\n".join([head, *markdown(cells, verdicts(cells, rules))]).rstrip() + "\n"


if __name__ == "__main__":
    main()
