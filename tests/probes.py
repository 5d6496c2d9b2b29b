"""Synthetic probe directories: records with a planted depth, no model needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memprobe.factoids import Factoid, factoids_hash, make_factoid
from memprobe.files import write_json, write_parquet
from memprobe.parquet import mark_of
from memprobe.probes import Probe, open_probe, table_file
from memprobe.records import CONTROLS, FACTOIDS, OUTCOMES, RECORDS, TABLES, factoids_frame
from memprobe.summary import summarise
from memprobe.vouching import CHECKSUMS

VOCABULARY = 1000
RELATIONS = ("capital", "currency", "author")


def synthetic_factoids(n: int) -> list[Factoid]:
    """Invented facts in three relations; the first two share an answer."""
    return [
        make_factoid(
            f"The {RELATIONS[i % 3]} of place {i} is",
            f"answer{max(i, 1)}",
            "synthetic",
            relation=RELATIONS[i % 3],
            subject=f"place {i}",
            popularity=float(i * i),
        )
        for i in range(n)
    ]


def write_probe(
    path: Path,
    depths: Mapping[str, float],
    *,
    n: int = 40,
    n_layers: int = 8,
    spread: float = 1.5,
    never: float | Mapping[str, float] = 0.1,
    tokens: Sequence[int] = (1, 2, 3),
    manifests: Mapping[str, dict[str, Any]] | None = None,
    intrusion: bool = False,
    readout: str = "own",
    factoids: Sequence[Factoid] | None = None,
    seed: int = 0,
    summary: bool = True,
    weights: str = "",
    schema: int = 1,
) -> Probe:
    """Writes a probe directory whose checkpoints surface their facts around the given depths.

    Args:
        depths: by label, the mean first occurrence; a fact's own depth is drawn around it with ``spread``.
        never: the share of facts that never surface, of all checkpoints or by label.
        tokens: how many answer tokens a factoid has, taken in turn.
        manifests: by label, e.g. ``{"arm": "none", "seed": 1, "stage": 2}``; absent is null.
        intrusion: adds ``intrusion:b`` controls, which win where the fact is lost.
        weights: tells checkpoints of one label apart, as their fingerprints do.
        schema: of the directory: 1 has a file a table, 2 a file a checkpoint.
    """
    rng = np.random.default_rng(seed)
    asked = list(factoids) if factoids is not None else synthetic_factoids(n)
    count = len(asked)
    lengths = np.array([tokens[i % len(tokens)] for i in range(count)])
    answers = {factoid.answer: i for i, factoid in enumerate(asked)}
    token_ids = [[(answers[factoid.answer] * 7 + j) % VOCABULARY for j in range(4)] for factoid in asked]
    own = rng.normal(0, spread, count)  # a fact that is deep in one checkpoint is deep in all
    luck = rng.random(count)
    records, controls, outcomes = [], [], []
    for label, depth in depths.items():
        surfaces = np.clip(np.round(depth + own + rng.normal(0, 0.5, count)), 1, n_layers)
        absent = never[label] if isinstance(never, Mapping) else never
        surfaces[luck + rng.normal(0, 0.02, count) < absent] = n_layers + 1
        for i, factoid in enumerate(asked):
            known = surfaces[i] <= n_layers
            for j in range(lengths[i]):
                d = np.arange(n_layers + 1)
                there = d >= surfaces[i]
                ranks = np.where(there, rng.integers(0, 5, len(d)), rng.integers(60, VOCABULARY, len(d)))
                ranks[-1] = 0 if known else ranks[-1]
                log_prob = -0.5 * np.log1p(ranks) - np.where(there, 0.5, 5.0) + rng.normal(0, 0.1, len(d))
                keys = {
                    "checkpoint": [label] * len(d),
                    "factoid": [factoid.id] * len(d),
                    "token": [j] * len(d),
                    "token_id": [token_ids[i][j]] * len(d),
                    "depth": d,
                }
                top1 = np.where(ranks == 0, token_ids[i][j], rng.integers(0, VOCABULARY, len(d)))
                measures = {
                    "rank": ranks,
                    "log_prob": log_prob,
                    "entropy": 6 - 5 * d / n_layers,
                    "top1": top1,
                }
                measures["ties"] = np.zeros(len(d), int)
                records.append(pl.DataFrame(keys | measures, schema_overrides=RECORDS))
                for draw in range(5):
                    control = {
                        "control": [f"shuffled:{draw}"] * len(d),
                        "rank": rng.integers(0, VOCABULARY, len(d)),
                    }
                    controls.append(pl.DataFrame(keys | control, schema_overrides=CONTROLS))
                if intrusion:
                    control = {
                        "control": ["intrusion:b"] * len(d),
                        "rank": np.full(len(d), 7 if known else 0),
                    }
                    controls.append(pl.DataFrame(keys | control, schema_overrides=CONTROLS))
            said = factoid.answer if known else "something else"
            outcomes.append([label, factoid.id, bool(known), bool(known), said, None, bool(known)])
    write_parquet(factoids_frame(asked).select(list(FACTOIDS)), path / "factoids.parquet")
    run = {
        "schema": 1,
        "memprobe": "0.1.0",
        "versions": {},
        "lens": "logit",
        "readout": readout,
        "template": "plain",
        "tokenisation": "joint-suffix-1",
        "dtype": "float32",
        "k": 10,
        "token": "first",
        "seed": seed,
        "factoids": {"source": "synthetic", "n": count, "hash": factoids_hash(asked)},
        "checkpoints": {
            label: {
                "spec": f"models/{label}",
                "fingerprint": hashlib.sha256(f"{weights}{label}".encode()).hexdigest(),
                "readout_fingerprint": hashlib.sha256(f"{weights}{label}".encode()).hexdigest(),
                "n_layers": n_layers,
                "d_model": 16,
                "vocab": VOCABULARY,
                "manifest": (manifests or {}).get(label),
                "complete": True,
            }
            for label in depths
        },
        "tokens": {str(i): f" token{i}" for i in range(VOCABULARY)},
    }
    tables = {
        "records": pl.concat(records),
        "controls": pl.concat(controls),
        "outcomes": pl.DataFrame(outcomes, schema=OUTCOMES, orient="row"),
    }
    write_tables(path, tables, run, schema)
    write_json(run, path / "run.json")
    probe = open_probe(path)
    if summary:
        checkpoints = summarise(probe, draws=200)
        write_json(
            {"schema": schema, "k": 10, "token": "first", "checkpoints": checkpoints}, path / "summary.json"
        )
    return probe


def retell(path: Path, table: str, frame: pl.DataFrame) -> None:
    """Writes another table into a probe of schema 1, as if it had always been so."""
    write_parquet(frame, path / f"{table}.parquet")
    (path / CHECKSUMS).unlink(missing_ok=True)


def write_tables(path: Path, tables: Mapping[str, pl.DataFrame], run: dict[str, Any], schema: int) -> None:
    """Writes the tables of one lens at the answer's position under a schema, and into ``run`` what it says of them."""
    if schema == 1:
        for name, table in tables.items():
            write_parquet(table.drop("lens", "position", strict=False), path / f"{name}.parquet")
        return
    lens = "logit" if run["readout"] == "own" else f"logit@{run['readout']}"
    run |= {
        "schema": schema,
        "lenses": {lens: {"kind": "logit", "readout": run["readout"]}},
        "positions": ["answer"],
        "tables": {"factoids": mark_of(path / "factoids.parquet")},
    }
    for label, entry in run["checkpoints"].items():
        entry["tables"] = {}
        for name, table in tables.items():
            rows = table.filter(pl.col("checkpoint") == label)
            if name != "outcomes":
                rows = rows.with_columns(lens=pl.lit(lens), position=pl.lit("answer"))
            file = table_file(path, label, name)
            write_parquet(rows.select(list(TABLES[name])).cast(dict(TABLES[name])), file)
            entry["tables"][name] = mark_of(file)


def write_setups(out: Path) -> None:
    """A grid whose two set-ups share factoids and labels; training made its facts early in one, late in the other."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "grid.toml").touch()
    for setup, depth in (("a-b", 2.0), ("a-c", 7.0)):
        for readout in ("own", "base"):
            path = out / "probes" / setup / readout
            write_probe(
                path, {"start": 5.0, "end": depth}, n=12, readout=readout, weights=setup, summary=False
            )
