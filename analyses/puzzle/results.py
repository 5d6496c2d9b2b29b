"""The puzzle's results: a grid's directory as one small table, and the verdicts of ``rules.toml`` on it.

``python analyses/puzzle/results.py runs/smollm2-puzzle-grid`` puts the cells of the grid's directory into
``cells.csv``, in the place of the same ones if they stood there; those of other directories stay.
Then, as it does without a directory, it makes ``results.md`` and the figure from them and from ``rows.csv`` (see
``rows.py``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from memprobe.errors import MemprobeError
from memprobe.figures.drawings import Drawing
from memprobe.figures.writing import write_figure
from memprobe.files import csv_text, read_toml, read_valid, write_text
from memprobe.runs import EVALUATION, MANIFEST, CellFile, EvaluationFile, ManifestFile
from memprobe.statistics.arms import MIN_SEEDS, student
from memprobe.statistics.clusters import clustered_rank_correlation
from memprobe.statistics.shares import Share, share_difference, share_over_seeds
from memprobe.statistics.verdicts import holm, verdict, verdict_without_interval
from memprobe.wording import interval, listed, markdown_table, number, p_value

HERE = Path(__file__).parent
CELLS, ROWS, RESULTS = HERE / "cells.csv", HERE / "rows.csv", HERE / "results.md"
FIGURES = HERE.parents[1] / "figures" / "puzzle"
SETTING = ("lr", "n", "epochs")
CELL = ("arm", "seed", *SETTING)
EXACT, NATS = "exact_match", "nats"
_ORDER = [True, False, False, False, False]  # settings, arms and seeds, from the largest learning rate
FORMS = {EXACT: "+.1%", NATS: "+.2f"}
NAMES = {
    "naive": "naive",
    "matched-steps": "naive, as many steps",
    "matched-steps-214-rows": "naive, as many steps as 214 rows",
    "generic-words": "generic text",
    "generic-words-214-rows": "generic text, 214 rows",
    "generic-words-shuffled": "generic text, shuffled",
    "generic-sentence": "generic text, sentence",
    "random-words": "random words",
    "random-sentence": "random words, sentence",
    "random-words-redrawn": "random words, redrawn",
    "random-sentence-redrawn": "random words, sentence, redrawn",
    "random-words-50": "random words, 50 + 50",
    "random-words-6": "random words, 6 + 6",
    "random-words-3": "random words, 3 + 3",
    "random-words-19-rows": "random words, 19 rows",
}
"""Of the grid's arms, in order; 12 + 12 words, some of them in the prompt, where nothing else is said."""


def collect(grid: Path) -> pl.DataFrame:
    """One row for each cell that has ended: D_A and D_B after each stage, and how far the weights moved.

    Raises:
        MemprobeError: none has, or a file of one is broken.
    """
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
        for place, (stage, manifest) in enumerate(zip(stages, manifests, strict=True), 1):
            row |= {f"{key}_{place}": _score(stage, d_a, key) for key in (EXACT, NATS)}
            row |= {
                f"moved_{place}": stage["weight_change"]["stage"],
                f"steps_{place}": manifest["steps"],
            }
            row |= {f"tokens_{place}": manifest["tokens"], f"seconds_{place}": manifest["seconds"]}
        row |= {f"d_b_{key}": _score(stages[-1], d_b, key) for key in (EXACT, NATS)}
        rows.append(row | {"commit": manifests[-1]["commit"], "torch": manifests[-1]["versions"]["torch"]})
    if not rows:
        raise MemprobeError(f"{grid}: no cell of a grid has ended there")
    return pl.DataFrame(rows, infer_schema_length=None)


def merged(found: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    """All cells, in order; where both have one, it is the one that was found."""
    others = stored.join(found, on=CELL, how="anti")
    return pl.concat([found, others], how="diagonal_relaxed").sort(*SETTING, "arm", "seed", descending=_ORDER)


def _score(stage: dict[str, Any], name: str, key: str) -> float:
    return stage["sets"][name]["scores"][key]["value"]


def verdicts(cells: pl.DataFrame, rules: dict[str, Any]) -> pl.DataFrame:
    """Each claim of the rules, by measure; above 0 always means that the first arm keeps more.

    A claim that has no pair of seeds is in no family, so that what did not run corrects nothing.
    """
    rows = []
    for claim in rules["claims"]:
        at = rules["setting"] | claim.get("at", {})
        against_at = at | claim.get("against_at", {})
        arm, other = (
            cells.filter(arm=name, **setting)
            for name, setting in zip(claim["arms"], (at, against_at), strict=True)
        )
        for measure in (EXACT, NATS):
            said = {key: claim[key] for key in ("family", "says", "side")} | {"measure": measure}
            rows.append(said | _difference(arm, other, measure, rules["least_seeds"], at["n"]))
    for family, measure in {(row["family"], row["measure"]): None for row in rows}:
        one = [row for row in rows if (row["family"], row["measure"]) == (family, measure)]
        for row, p in zip(one, holm([row["p"] for row in one]), strict=True):
            row["p_family"] = p
            bound = rules["equivalent"][measure]
            row["verdict"] = verdict(row["low"], row["high"], side=row["side"], equivalent=bound, p=p)
    return pl.DataFrame(rows, infer_schema_length=None)


def _difference(arm: pl.DataFrame, other: pl.DataFrame, measure: str, least: int, n: int) -> dict[str, Any]:
    """How much more the first arm keeps, seed by seed and over the seeds that both have; see ``rules.toml``."""
    pair = arm.join(other, on="seed", suffix="_other").sort("seed")
    column, sign = f"{measure}_2", -1 if measure == NATS else 1
    values = sign * (pair[column] - pair[f"{column}_other"]).to_numpy()
    failed = int((~(pair["learned"] & pair["learned_other"])).sum()) if len(pair) else 0
    form = FORMS[measure]
    found = {"by_seed": ", ".join(number(value, form) for value in values), "n": len(pair), "failed": failed}
    found |= {"mean": None, "low": None, "high": None, "p": None}
    if len(pair) < least or failed:  # each seed is shown, and nothing more
        return found
    if measure == EXACT:
        share = share_difference(*(_counts(pair[name], n) for name in (column, f"{column}_other")), n)
        return found | dict(zip(("mean", "low", "high", "p"), map(float, share), strict=True))
    low, high = student(values)
    p = float(stats.ttest_1samp(values, 0.0).pvalue) if low is not None else None
    return found | {"mean": float(values.mean()), "low": low, "high": high, "p": p}


def _counts(shares: pl.Series, n: int) -> np.ndarray:
    return np.rint(shares.to_numpy() * n)


def _kept(learned: pl.DataFrame) -> Share | None:
    """What is left of D_A after stage 2, over seeds that learned all; None where there are too few."""
    if len(learned) < MIN_SEEDS:
        return None
    n = int(learned["n"][0])
    return share_over_seeds(_counts(learned["exact_match_2"], n), n)


def covariates(cells: pl.DataFrame, rules: dict[str, Any], mixed: pl.DataFrame) -> pl.DataFrame:
    """Rank correlations over the means of arms and settings, with the nats of D_A after stage 2; p is exact.

    Args:
        mixed: of each arm, seed and n that mixes rows in, the ``tokens`` of their answers and ``nats`` a token. Arms
            without are left out where these are correlated.
    """
    mixed = mixed.select("arm", "seed", "n", mixed_nats="nats", mixed_total=pl.col("nats") * pl.col("tokens"))
    some = (
        cells.filter("learned", n=rules["setting"]["n"])
        .join(mixed, on=("arm", "seed", "n"), how="left")
        .filter(pl.len().over("arm", *SETTING) >= rules["least_seeds"])
        .with_columns(pl.struct("arm", *SETTING).rank("dense").alias("cluster"))
    )
    rows = []
    for one in rules["covariates"]:
        both = some.drop_nulls(one["of"])
        found = clustered_rank_correlation(
            *(both[name].to_numpy() for name in (one["of"], "nats_2", "cluster"))
        )
        rho, p = (None if math.isnan(value) else value for value in (found.rho, found.p))
        rows.append(
            {"says": one["says"], "arms": found.clusters, "correlation": rho, "p": p, "side": one["side"]}
        )
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        said = verdict_without_interval(row["correlation"], p, side=row["side"])
        row |= {"p_family": p, "verdict": said}
    return pl.DataFrame(rows, infer_schema_length=None)


def results(cells: pl.DataFrame, mixed: pl.DataFrame) -> str:
    """The whole of ``results.md``: arms, claims by family, covariates, what is mixed in, and every cell."""
    rules = read_toml(HERE / "rules.toml")
    parts = [
        "Made by `python analyses/puzzle/results.py` from `cells.csv`, `rows.csv` and `rules.toml`.",
        "## Arms",
    ]
    parts += ["\n".join(_arms(cells)), *_claims(verdicts(cells, rules), "")]
    again = verdicts(cells.filter(pl.col("seed").is_in(rules["repeat"])), rules)
    seeds = f" (seeds {listed([str(seed) for seed in rules['repeat']])} alone)"
    parts += _claims(again.filter(pl.col("n") >= rules["least_seeds"]), seeds)
    parts += ["## Candidate causes", "\n".join(_causes(covariates(cells, rules, mixed)))]
    parts += ["## What is mixed in", "\n".join(_mixed(mixed))]
    parts += ["## Cells", "\n".join(_cells(cells))]
    return "\n\n".join(parts) + "\n"


def _arms(cells: pl.DataFrame) -> list[str]:
    head = [
        "learning rate", "keys", "epochs", "arm", "seeds", "D_A kept", "by seed", "nats", "nats after stage 1",
        "moved in 1", "moved in 2", "steps in 2", "tokens in 1",
    ]  # fmt: skip
    rows = []
    for (lr, n, epochs, arm), some in cells.sort("seed").group_by(*SETTING, "arm", maintain_order=True):
        learned = some.filter("learned")
        kept = _kept(learned)
        means = [
            number(learned[name].mean() if len(learned) else None, form)
            for name, form in {"nats_2": ".2f", "nats_1": ".3f", "moved_1": ".1f", "moved_2": ".1f",
                               "steps_2": ".0f", "tokens_1": ",.0f"}.items()
        ]  # fmt: skip
        rows.append(
            [
                f"{lr:g}",
                str(n),
                str(epochs),
                str(arm),
                _seeds(some),
                interval(kept.value, kept.low, kept.high, ".1%") if kept else "–",
                ", ".join(number(value, ".0%") for value in learned["exact_match_2"]),
                *means,
            ]
        )
    return markdown_table(head, sorted(rows), gap="")


def _seeds(some: pl.DataFrame) -> str:
    failed = int((~some["learned"]).sum())
    return f"{len(some)}, of which {failed} failed" if failed else str(len(some))


def _claims(found: pl.DataFrame, seeds: str) -> Iterator[str]:
    for (family,), some in found.group_by("family", maintain_order=True):
        yield f"## {str(family).capitalize()}{seeds}"
        tested = some.filter(pl.col("n") > 0)
        if len(tested):
            head = ["claim", "measure", "by seed", "more is kept by", "p", "p in family", "verdict"]
            yield "\n".join(
                markdown_table(head, [_claim(row) for row in tested.iter_rows(named=True)], gap="")
            )
        untested = some.filter(n=0)["says"].unique(maintain_order=True).to_list()
        if untested:
            yield "Not run: " + "; ".join(untested) + "."


def _claim(row: Mapping[str, Any]) -> list[str]:
    said = interval(row["mean"], row["low"], row["high"], FORMS[row["measure"]])
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    name = {EXACT: "exact match", NATS: "nats"}[row["measure"]]
    return [
        row["says"], name, row["by_seed"] + failed, said, p_value(row["p"]), p_value(row["p_family"]),
        row["verdict"],
    ]  # fmt: skip


def _causes(found: pl.DataFrame) -> list[str]:
    head = ["claim", "arms and settings", "rank correlation", "p", "p in family", "verdict"]
    rows = [
        [row["says"], str(row["arms"]), number(row["correlation"], "+.2f"), p_value(row["p"]),
         p_value(row["p_family"]), row["verdict"]]
        for row in found.iter_rows(named=True)
    ]  # fmt: skip
    return markdown_table(head, rows, gap="")


def _mixed(mixed: pl.DataFrame) -> list[str]:
    head = ["arm", "seeds", "rows", "tokens of an answer", "nats a token, by the base model"]
    rows = []
    for (arm,), some in mixed.sort("arm", "seed").group_by("arm", maintain_order=True):
        nats = ", ".join(number(value, ".2f") for value in some["nats"])
        length = number((some["tokens"] / some["rows"]).mean(), ".1f")
        rows.append([str(arm), str(len(some)), str(some["rows"][0]), length, nats])
    return markdown_table(head, rows, gap="")


def _cells(cells: pl.DataFrame) -> list[str]:
    shown = {
        "lr": "learning rate", "n": "keys", "epochs": "epochs", "arm": "arm", "seed": "seed",
        "exact_match_1": "D_A after 1", "nats_1": "nats", "exact_match_2": "D_A after 2", "nats_2": "nats",
        "d_b_exact_match": "D_B", "moved_1": "moved in 1", "moved_2": "moved in 2", "steps_2": "steps in 2",
        "learned": "learned",
    }  # fmt: skip
    ordered = cells.sort(*SETTING, "arm", "seed", descending=_ORDER)
    return markdown_table(
        [*shown.values()], [[_cell(v) for v in row] for row in ordered.select(*shown).rows()], gap=""
    )


def _cell(value: Sequence[Any] | Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def figure_table(cells: pl.DataFrame) -> pl.DataFrame:
    """What :func:`memprobe.figures.forgetting` draws, a panel for each setting; of failed cells the number alone."""
    rows = []
    for (lr, epochs), some in cells.sort("lr", "epochs", descending=True).group_by(
        "lr", "epochs", maintain_order=True
    ):
        naive = _costs(some.filter("learned", arm_text="none"))
        for name, label in NAMES.items():
            arm = some.filter(arm=name).sort("seed")
            if len(arm):
                setup = f"{epochs} epochs of stage 1, learning rate {lr:g}"
                rows.append(
                    {"setup": setup, "arm": label, "arm_text": arm["arm_text"][0]} | _drawn(arm, naive)
                )
    return pl.DataFrame(rows, infer_schema_length=None)


def _drawn(arm: pl.DataFrame, naive: dict[str, float | None]) -> dict[str, Any]:
    learned = arm.filter("learned")
    kept = _kept(learned)
    ratios = {
        name: cost / naive[name] if cost and naive[name] else None for name, cost in _costs(learned).items()
    }
    return ratios | {
        "retention": kept and kept.value,
        "low": kept and kept.low,
        "high": kept and kept.high,
        "by_seed": learned["exact_match_2"].to_list(),
        "failed": len(arm) - len(learned),
        "last_metric": "exact_match",
        "last_score": learned["d_b_exact_match"].mean(),
    }


def _costs(cells: pl.DataFrame) -> dict[str, float | None]:
    """Steps and tokens of both stages, a mean over seeds."""
    return {name: (cells[f"{name}_1"] + cells[f"{name}_2"]).mean() for name in ("steps", "tokens")}


def main() -> None:
    """See the module."""
    try:
        cells = pl.read_csv(CELLS)
        if len(sys.argv) > 1:
            cells = merged(collect(Path(sys.argv[1])), cells)
    except MemprobeError as error:
        sys.exit(str(error))
    write_text(csv_text(cells), CELLS)
    write_text(results(cells, pl.read_csv(ROWS)), RESULTS)
    made_of = [{"kind": "results", "path": "analyses/puzzle"}]
    drawing = Drawing("forgetting", "", figure_table(cells), {}, {}, made_of)
    write_figure(drawing, FIGURES, width=183, formats=["png"], command="python analyses/puzzle/results.py")


if __name__ == "__main__":
    main()
