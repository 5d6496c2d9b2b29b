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
- ``log_prob_given_margin``: seeds in the place of facts: the slope within arms over seeds' means, its error included,
  and Student's t over seeds with Satterthwaite's degrees of freedom;
- p is that of the interval shown, with one degree of freedom less than there are seeds;
- spread: not estimable, since first occurrences were not stored; its figures go;
- first occurrences of each checkpoint: no interval where too few facts occur;
- figures: the same in the JSON beside each, from which ``python -m training report`` draws them again.

Results that are stated already are left as they are.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import polars as pl
from scipy import special

from memprobe.arms import arm_names, by_kind
from memprobe.figures.tables import lof_markdown, lof_table
from memprobe.files import csv_text, read_json, write_json, write_text
from memprobe.retention.runs import ALL_ROWS, UNSEEN_ROWS
from memprobe.statistics.arms import MIN_SEEDS, PREFIX, ROWS, student
from memprobe.statistics.intervals import FEWEST
from memprobe.statistics.margins import GIVEN_MARGIN, margin
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
                row["low"], row["high"] = student(one - other)
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
            row["low"], row["high"] = student(by_seed)
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


def given_margins(
    over: pl.DataFrame, apart: pl.DataFrame, cells: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both tables with the log-probability given the margin after stage 1: a slope for each reading and stage."""
    if GIVEN_MARGIN in over["statistic"]:
        return over, apart
    seeds = {key: group.sort("seed") for key, group in cells.group_by("setup", "arm_text")}
    known = over.filter(statistic="log_prob_full")
    means = {
        tuple(row[name] for name in (*KEYS, "arm")): np.array(row["by_seed"], float)
        for row in known.iter_rows(named=True)
    }
    first = {  # by reading and label, the mean log-probability after stage 1
        (*key[:4], label): value
        for key, values in means.items()
        if key[4] == "1"
        for value, label in zip(values, seeds[key[0], key[5]]["labels"].list.first(), strict=True)
    }
    of: dict[tuple[Any, ...], dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for key, after in means.items():
        labels = seeds[key[0], key[5]]["labels"].list.first()
        if key[4] != "1" and all((*key[:4], label) in first for label in labels):
            margins = margin(np.array([first[*key[:4], label] for label in labels]))
            of.setdefault(key[:5], {})[key[5]] = margins, after
    fits = {key: _fit(arms) for key, arms in of.items()}
    rows, pairs = [], []
    for row in known.iter_rows(named=True):
        fit = fits.get(tuple(row[name] for name in KEYS))
        values = fit.given.get(row["arm"]) if fit else None
        numbers = {"mean": None, "low": None, "high": None, "p": None, "detectable": None}
        if values is not None:
            low, high = student(values)
            p, seen = of_interval(float(values.mean()), low, high, len(values))
            numbers = {"mean": float(values.mean()), "low": low, "high": high, "p": p, "detectable": seen}
        by_seed = [None] * row["seeds"] if values is None else values.tolist()
        rows.append({**row, "statistic": GIVEN_MARGIN, **numbers, "by_seed": by_seed})
    for row in apart.filter(statistic="log_prob_full").iter_rows(named=True):
        fit = fits.get(tuple(row[name] for name in KEYS))
        numbers = dict.fromkeys(("difference", "low", "high", "p", "significant", "detectable"))
        if fit and {row["arm"], row["reference"]} <= fit.given.keys():
            numbers = fit.difference(row["arm"], row["reference"], row["paired"])
        pairs.append({**row, "statistic": GIVEN_MARGIN, **numbers})
    more = pl.DataFrame(rows, schema=over.schema), pl.DataFrame(pairs, schema=apart.schema)
    return pl.concat([over, more[0]]), pl.concat([apart, more[1]])


@dataclass(frozen=True)
class _Fit:
    """Analysis of covariance over seeds: values at one margin, by arm, and the slope's variance with its freedom."""

    given: dict[str, np.ndarray]
    margins: dict[str, np.ndarray]
    variance: float
    freedom: int

    def difference(self, arm: str, reference: str, paired: bool) -> dict[str, Any]:
        """As a row of differences; pairs start from one checkpoint, so that the slope has no part in them."""
        one, other = self.given[arm], self.given[reference]
        value = float(one.mean() - other.mean())
        if paired:
            low, high = student(one - other)
            p, seen = of_interval(value, low, high, len(one))
        else:
            apart = self.margins[arm].mean() - self.margins[reference].mean()
            terms = [(values.var(ddof=1) / len(values), len(values) - 1) for values in (one, other)]
            terms.append((apart**2 * self.variance, self.freedom))
            whole = sum(term for term, _ in terms)
            freedom = whole**2 / sum(term**2 / f for term, f in terms)
            half = float(special.stdtrit(freedom, 0.975) * np.sqrt(whole))
            low, high = value - half, value + half
            p = float(2 * special.stdtr(freedom, -abs(value) / np.sqrt(whole)))
            seen = detectable(np.sqrt(whole), freedom)
        significant = None if low is None else bool(low > 0 or high < 0)
        ends = {"difference": value, "low": low, "high": high, "p": p}
        return ends | {"significant": significant, "detectable": seen}


def _fit(arms: dict[str, tuple[np.ndarray, np.ndarray]]) -> _Fit:
    apart = [(x - x.mean(), y - y.mean()) for x, y in arms.values()]
    over = sum(float((x**2).sum()) for x, _ in apart)
    slope = sum(float((x * y).sum()) for x, y in apart) / over
    freedom = sum(len(x) - 1 for x, _ in apart) - 1
    rest = sum(float(((y - slope * x) ** 2).sum()) for x, y in apart) / freedom
    middle = np.concatenate([x for x, _ in arms.values()]).mean()
    given = {arm: y - slope * (x - middle) for arm, (x, y) in arms.items()}
    return _Fit(given, {arm: x for arm, (x, _) in arms.items()}, rest / over, freedom)


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
                edges = student(seeds)
            elif low is not None and high - low < 1e-9:
                edges = (None, None)
            data["low"][i], data["high"][i] = edges
        write_json(drawn, path)


def depth_tables(folder: Path) -> None:
    """The tables beside the figures of first occurrences, without intervals of too few."""
    fewest = dict.fromkeys(("lof_mean", "depths_per_factoid"), FEWEST["mean of those that occur"])
    fewest |= {"lof_restricted_mean": fewest["lof_mean"]}
    fewest |= {"lof_sd": FEWEST["sd"], "effective_layers": FEWEST["effective layers"]}
    for path in sorted(folder.glob("lof-*.csv")):
        table = pl.read_csv(path)
        if "lof_n" in table.columns:
            continue
        occur = (pl.col("n") * (1 - pl.col("share_never"))).round().cast(pl.Int64)
        blank = [
            pl.when(occur >= least).then(pl.col(f"{name}_{end}")).name.keep()
            for name, least in fewest.items()
            for end in ("low", "high")
        ]
        lacking = pl.lit(None, pl.Int64).alias("settled_n")
        table = lof_table(table.with_columns(*blank, occur.alias("lof_n"), lacking))
        options = read_json(path.with_suffix(".json"))["options"]
        write_text(csv_text(table), path)
        write_text(lof_markdown(table, k=options["k"], token=options["token"]), path.with_suffix(".md"))
        print(f"{path.name}: {len(table)} rows")


def main() -> None:
    folder = Path(sys.argv[1])
    read = {
        name: pl.read_parquet(folder / f"{name}.parquet")
        for name in ("cells", "arms", "differences", "kept", "spread")
    }
    over_seeds = retained(pl.read_parquet(folder / "retained.parquet"), read["cells"])
    over_seeds.write_parquet(folder / "retained.parquet")
    print(f"retained: {len(over_seeds)} rows")
    learned = read["cells"].filter("learned")
    for pictures in sys.argv[2:]:
        depth_tables(Path(pictures))
    if "in_common" in read["differences"].columns:
        told = given_margins(read["arms"], read["differences"], learned)
        for name, table in zip(("arms", "differences"), told, strict=True):
            table.write_parquet(folder / f"{name}.parquet")
        print("the others are stated already")
        return
    over = arms(read["arms"], int(read["cells"]["n"][0]))
    over, apart = given_margins(over, differences(read["differences"], read["arms"], learned), learned)
    made = {
        "arms": over,
        "differences": apart,
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
