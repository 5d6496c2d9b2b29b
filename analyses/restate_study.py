"""States a stored study again with the intervals of today, from what was stored of each seed; no records are needed.

    python analyses/restate_study.py analyses/study figures/study

For results that were collected before shares had a model of their own, seeds were paired and latent depths replaced the
sd of first occurrences: their records are gone, so that what needs facts one by one cannot be had again.

- yes-or-no statistics and retention: the share model on each seed's count;
- ``exact_unseen``: the same of the facts that replay does not show again, against all facts of the other arm;
- other differences: where the seeds of two arms start from one checkpoint, Student's t over pairs of seeds (without
  what facts do to every seed alike, which seeds' means do not show); else the interval as it was stored;
- kept against lost facts: the interval as it was stored, and Student's t over seeds where a draw without kept facts
  had removed it;
- p is that of the interval shown, with one degree of freedom less than there are seeds;
- spread: not estimable, since first occurrences were not stored; its figures go;
- figures: the same in the JSON beside each, from which ``python -m training report`` draws them again.

Results that are stated already are left as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import polars as pl
from scipy import special

from memprobe.arms import arm_names, by_kind
from memprobe.files import read_json, write_json
from memprobe.retention.runs import ALL_ROWS, UNSEEN_ROWS
from memprobe.statistics.arms import MIN_SEEDS, PREFIX, ROWS
from memprobe.statistics.power import detectable
from memprobe.statistics.shares import share_difference, share_over_seeds
from training.study.unseen import unseen_differences

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
    found = pl.DataFrame(rows, schema=schema, orient="row").select(order)
    return pl.concat([found, unseen_differences(found, cells)])


def retained(table: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """Datasets after each stage; of D_A also the rows that replay does not show again."""
    n = int(cells["n"][0])
    ratios = dict(cells.drop_nulls("replay_ratio").select("arm", "replay_ratio").iter_rows())
    rows = []
    for row in table.iter_rows(named=True):
        size = n if row["rows"] == ALL_ROWS else n - round(n * ratios[row["arm"]])
        shares = np.array(row["by_seed"], float)
        if len(shares) >= MIN_SEEDS:
            row |= {"low": None, "high": None}
            _, row["low"], row["high"], _ = share_over_seeds(np.rint(shares * size), size)
        rows.append(row)
    if not any(row["rows"] == UNSEEN_ROWS for row in rows):
        rows += _not_replayed(table, cells.filter("learned"))
    return pl.DataFrame(rows, schema=table.schema, orient="row")


def _not_replayed(table: pl.DataFrame, learned: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows of D_A that replay does not show again, after the last stage."""
    rows = []
    last = table.filter(pl.col("dataset").str.starts_with("1-")).filter(
        pl.col("stage") == pl.col("stage").max()
    )
    for row in last.iter_rows(named=True):
        group = learned.filter(arm=row["arm"]).sort("seed")
        if group["replay_ratio"].null_count() or group["retention_unseen"].null_count():
            continue
        n = int(group["n"][0])
        size = n - round(n * float(group["replay_ratio"][0]))
        shares = group["retention_unseen"].to_numpy()
        _, low, high, _ = share_over_seeds(np.rint(shares * size), size)
        told = {"rows": UNSEEN_ROWS, "value": float(shares.mean()), "low": low, "high": high}
        rows.append({**row, **told, "by_seed": shares.tolist()})
    return rows


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


def figures(folder: Path, over: pl.DataFrame, n: int) -> None:
    """The data of stored figures."""
    names = arm_names(by_kind(set(over["arm"])))
    naive = over.filter(k=10, token="first", reference="none")
    told = {
        (row["readout"], f"{names[row['arm']]}, stage {row['stage']}", row["statistic"]): (
            row["low"],
            row["high"],
        )
        for row in naive.iter_rows(named=True)
    }
    for path in sorted(folder.glob("*.json")):
        drawn = read_json(path)
        data = drawn["data"]
        if drawn["figure"] == "spread":
            path.unlink()
            for kind in (".pdf", ".png"):
                path.with_suffix(kind).unlink(missing_ok=True)
            continue
        if "low" not in data:
            continue
        for i, (low, high) in enumerate(zip(data["low"], data["high"], strict=True)):
            seeds = np.array(data["by_seed"][i] if "by_seed" in data and data["by_seed"][i] else [], float)
            statistic = data["statistic"][i] if "statistic" in data else ""
            edges = (low, high)
            if drawn["figure"] == "differences":
                readout = path.stem.removeprefix("differences-").partition("n64-")[2]
                edges = told.get((readout, data["row"][i], statistic), edges)
            elif drawn["figure"] in ("forgetting", "stages") or statistic == "share_never":
                if len(seeds) >= MIN_SEEDS and not np.isnan(seeds).any():
                    edges = share_over_seeds(np.rint(seeds * n), n)[1:3]
            elif drawn["figure"] == "kept" and low is None and not np.isnan(seeds).any():
                edges = over_seeds(seeds)
            elif low is not None and high - low < 1e-9:
                edges = (None, None)
            data["low"][i], data["high"][i] = edges
        write_json(drawn, path)


def main() -> None:
    folder = Path(sys.argv[1])
    read = {
        name: pl.read_parquet(folder / f"{name}.parquet")
        for name in ("cells", "arms", "differences", "kept", "spread")
    }
    over_seeds = retained(pl.read_parquet(folder / "retained.parquet"), read["cells"])
    over_seeds.write_parquet(folder / "retained.parquet")
    print(f"retained: {len(over_seeds)} rows")
    if "in_common" in read["differences"].columns:
        print("the others are stated already")
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
    for pictures in sys.argv[2:]:
        figures(Path(pictures), made["differences"], int(read["cells"]["n"][0]))


if __name__ == "__main__":
    main()
