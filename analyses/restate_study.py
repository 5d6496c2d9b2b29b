"""States a stored study again with the intervals of today, from what was stored of each seed; no records are needed.

    python analyses/restate_study.py analyses/study

For results that were collected before shares had a model of their own, seeds were paired and latent depths replaced the
sd of first occurrences: their records are gone, so that what needs facts one by one cannot be had again.

- yes-or-no statistics: the share model on each seed's count;
- ``exact_unseen``: the same of the facts that replay does not show again, against all facts of the other arm;
- other differences: where the seeds of two arms start from one checkpoint, Student's t over pairs of seeds (without
  what facts do to every seed alike, which seeds' means do not show); else the interval as it was stored;
- kept against lost facts: the interval as it was stored, and Student's t over seeds where a draw without kept facts
  had removed it;
- p is that of the interval shown, with one degree of freedom less than there are seeds;
- spread: not estimable, since first occurrences were not stored.

Results that are stated already are left as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from memprobe.statistics.arms import MIN_SEEDS, PREFIX, ROWS
from memprobe.statistics.power import detectable
from memprobe.statistics.shares import share_difference, share_over_seeds

BINARY = ("exact", "recall_full")
KEYS = ["setup", "k", "token", "readout", "stage"]


def of_interval(value: float | None, low: float | None, high: float | None, seeds: int) -> tuple[Any, Any]:
    """p and detectable difference of a symmetric interval, as if it were Student's over so many seeds."""
    if value is None or low is None or high is None or seeds < MIN_SEEDS or high - low < 1e-9:
        return None, None
    error = (high - low) / 2 / special.stdtrit(seeds - 1, 0.975)
    return float(2 * special.stdtr(seeds - 1, -abs(value) / error)), detectable(error, seeds - 1)


def over_seeds(values: np.ndarray) -> tuple[Any, Any]:
    """Student's interval of a mean; none without scatter."""
    if len(values) < MIN_SEEDS or np.ptp(values) < 1e-9:
        return None, None
    half = special.stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def arms(table: pl.DataFrame, n: int) -> pl.DataFrame:
    """Means over seeds."""
    rows = []
    for row in table.iter_rows(named=True):
        if row["statistic"] in BINARY and row["seeds"] >= MIN_SEEDS:
            _, row["low"], row["high"], _ = share_over_seeds(np.rint(np.array(row["by_seed"]) * n), n)
            p = seen = None
        else:
            none = row["statistic"] in (*BINARY, "area") or row["high"] == row["low"]
            p, seen = (
                (None, None) if none else of_interval(row["mean"], row["low"], row["high"], row["seeds"])
            )
            if row["low"] is not None and row["high"] - row["low"] < 1e-9:
                row["low"] = row["high"] = None
        rows.append({**row, "p": p, "detectable": seen})
    order = ["mean", "low", "high", "p", "detectable", "by_seed"]
    found = pl.DataFrame(rows, schema={**table.schema, "p": pl.Float64, "detectable": pl.Float64})
    return found.select(*[name for name in table.columns if name not in order], *order)


def differences(table: pl.DataFrame, over: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """Arms against arms."""
    n = int(cells["n"][0])
    starts = {
        (row["setup"], row["arm_text"], row["seed"]): row["labels"][0] for row in cells.iter_rows(named=True)
    }
    seeds_of = {key: group["seed"].sort().to_list() for key, group in cells.group_by("setup", "arm_text")}
    values = {
        tuple(row[name] for name in (*KEYS, "arm", "statistic")): row["by_seed"]
        for row in over.iter_rows(named=True)
    }
    rows = []
    for row in table.iter_rows(named=True):
        where = tuple(row[name] for name in KEYS)
        one, other = (
            np.array(values[*where, row[name], row["statistic"]], float) for name in ("arm", "reference")
        )
        seeds = [seeds_of[row["setup"], row[name]] for name in ("arm", "reference")]
        shared = seeds[0] == seeds[1] and all(
            starts[row["setup"], row["arm"], seed] == starts[row["setup"], row["reference"], seed]
            for seed in seeds[0]
        )
        paired = shared and len(one) == len(other) and row["stage"] != "1"
        row |= {"in_common": PREFIX if paired else ROWS, "paired": False}
        if row["low"] is None:
            row |= {"p": None, "significant": None, "detectable": None}
        elif row["statistic"] in BINARY:
            found = share_difference(np.rint(one * n), np.rint(other * n), n)
            row |= {"low": found.low, "high": found.high, "p": found.p}
            row["detectable"] = detectable((found.high - found.low) / 2 / special.ndtri(0.975), 1e9)
            rows += unseen(row, other, cells)
        else:
            if paired and not np.isnan(one - other).any():
                row["low"], row["high"] = over_seeds(one - other)
                row["paired"] = True
            elif row["high"] - row["low"] < 1e-9:
                row["low"] = row["high"] = None
            fewest = min(row["seeds"], row["reference_seeds"])
            row["p"], row["detectable"] = of_interval(row["difference"], row["low"], row["high"], fewest)
        if row["low"] is not None:
            row["significant"] = bool(row["low"] > 0 or row["high"] < 0)
        else:
            row["significant"] = None
        rows.append(row)
    order = [
        *KEYS[:4],
        "arm",
        "reference",
        "stage",
        "statistic",
        "seeds",
        "reference_seeds",
        "in_common",
        "paired",
    ]
    order += ["difference", "low", "high", "p", "significant", "detectable"]
    schema = {**table.schema, "in_common": pl.String, "paired": pl.Boolean, "detectable": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").select(order)


def unseen(row: dict[str, Any], other: np.ndarray, cells: pl.DataFrame) -> list[dict[str, Any]]:
    """The row of exact match over facts that replay does not show again, for an arm with replay."""
    of = cells.filter(setup=row["setup"], arm_text=row["arm"]).sort("seed")
    if row["statistic"] != "exact" or of["replay_ratio"][0] is None or row["stage"] == "1":
        return []
    n = int(of["n"][0])
    size = n - round(n * of["replay_ratio"][0])
    shares = of["retention_unseen"].to_numpy()
    found = share_difference(np.rint(shares * size), np.rint(other * n), size, others_n=n)
    edges = {"difference": found.value, "low": found.low, "high": found.high, "p": found.p}
    seen = detectable((found.high - found.low) / 2 / special.ndtri(0.975), 1e9)
    told = bool(found.low > 0 or found.high < 0)
    return [{**row, **edges, "statistic": "exact_unseen", "detectable": seen, "significant": told}]


def kept(table: pl.DataFrame) -> pl.DataFrame:
    """Facts kept against facts lost."""
    rows = []
    for row in table.iter_rows(named=True):
        by_seed = np.array(row["by_seed"], float)
        if row["low"] is None and not np.isnan(by_seed).any():
            row["low"], row["high"] = over_seeds(by_seed)
        elif row["low"] is not None and row["high"] - row["low"] < 1e-9:
            row["low"] = row["high"] = None
        p, seen = of_interval(row["difference"], row["low"], row["high"], row["seeds"])
        rows.append({**row, "p": p, "detectable": seen})
    found = pl.DataFrame(rows, schema={**table.schema, "p": pl.Float64, "detectable": pl.Float64})
    last = ["difference", "low", "high", "p", "detectable", "by_seed"]
    return found.select(*[name for name in table.columns if name not in last], *last)


def spread(table: pl.DataFrame) -> pl.DataFrame:
    """What is left of the spread of first occurrences: their sds."""
    numbers = ["shift", "ratio", "low", "high", "p", "error"]
    keys = ["setup", "k", "token", "readout", "reference", "checkpoint"]
    return table.select(
        *keys,
        "sd",
        "sd_reference",
        *(pl.lit(None, pl.Float64).alias(name) for name in ("censored", "reference_censored", *numbers)),
        pl.lit("first occurrences were not stored").alias("why"),
    )


def main() -> None:
    folder = Path(sys.argv[1])
    read = {
        name: pl.read_parquet(folder / f"{name}.parquet")
        for name in ("cells", "arms", "differences", "kept", "spread")
    }
    if "in_common" in read["differences"].columns:
        print(f"{folder}: is stated already")
        return
    learned = read["cells"].filter("learned")
    made = {
        "arms": arms(read["arms"], int(read["cells"]["n"][0])),
        "differences": differences(read["differences"], read["arms"], learned),
        "kept": kept(read["kept"]),
        "spread": spread(read["spread"]),
    }
    for name, table in made.items():
        table.write_parquet(folder / f"{name}.parquet")
        print(f"{name}: {len(table)} rows")


if __name__ == "__main__":
    main()
