"""How long ``compare`` takes, and how much memory: ``python tests/benchmarks/compare_speed.py [CHECKPOINTS]``.

Invented records of 2,000 factoids x 33 depths x 3 answer tokens, five shuffled controls, 10,000 draws; 6
checkpoints unless told otherwise. Prints seconds (by the clock, and of CPU: others use the machine too) and the
process's peak resident memory. Nothing is asserted: times depend on the machine.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import polars as pl

from memprobe.compare import compare
from memprobe.factoids import factoids_hash, make_factoid
from memprobe.files import write_json, write_parquet
from memprobe.parquet import mark_of
from memprobe.probes import table_file
from memprobe.records import BY_CHECKPOINT, TABLES, factoids_frame

FACTOIDS_N, DEPTHS, TOKENS, DRAWS_OF_CONTROLS = 2000, 33, 3, 5


def write_big_probe(path: Path, labels: list[str]) -> None:
    """A probe's directory, written a checkpoint at a time."""
    rng = np.random.default_rng(0)
    facts = [
        make_factoid(f"The key {i} is", f"answer {i // 2}", "invented", relation=f"r{i % 8}", id=f"{i:016x}")
        for i in range(FACTOIDS_N)
    ]
    ids = np.array([fact.id for fact in facts])
    f, t, d = (axis.ravel() for axis in np.indices((FACTOIDS_N, TOKENS, DEPTHS)))
    write_parquet(factoids_frame(facts), path / "factoids.parquet")
    run: dict[str, Any] = {
        "schema": 2, "memprobe": "", "versions": {}, "lens": "logit", "readout": "own",
        "lenses": {"logit": {"kind": "logit", "readout": "own"}}, "positions": ["answer"], "template": "plain",
        "tokenisation": "t", "dtype": "float32", "k": 10, "token": "first", "seed": 0,
        "factoids": {"source": "invented", "n": FACTOIDS_N, "hash": factoids_hash(facts)}, "intrusions": {},
        "tables": {"factoids": mark_of(path / "factoids.parquet")}, "checkpoints": {}, "tokens": {},
    }  # fmt: skip
    for label in labels:
        keys = pl.DataFrame({"factoid": ids[f], "token": t, "depth": d}).with_columns(
            checkpoint=pl.lit(label), lens=pl.lit("logit"), position=pl.lit("answer"), token_id=pl.lit(7)
        )
        surfaces = np.clip(rng.normal(22, 6, FACTOIDS_N).round(), 1, DEPTHS + 3)[f]
        rank = np.where(d >= surfaces, rng.integers(0, 9, len(f)), rng.integers(20, 49_152, len(f)))
        measures = {
            "rank": rank, "log_prob": -rng.random(len(f)) * 10, "entropy": rng.random(len(f)) * 8,
            "top1": rng.integers(0, 49_152, len(f)), "ties": np.zeros(len(f)),
        }  # fmt: skip
        controls = [
            keys.with_columns(
                control=pl.lit(f"shuffled:{i}"), rank=pl.Series(rng.integers(0, 49_152, len(f)))
            )
            for i in range(DRAWS_OF_CONTROLS)
        ]
        known = rng.random(FACTOIDS_N) < 0.8
        outcomes = pl.DataFrame(
            {"factoid": ids, "exact_tokens": known, "exact_match": known, "alias_match": known}
        ).with_columns(checkpoint=pl.lit(label), prediction=pl.lit("x"), error=pl.lit(None, pl.String))
        marks = {}
        frames = (
            keys.with_columns(**{name: pl.Series(one) for name, one in measures.items()}),
            pl.concat(controls),
        )
        for name, frame in zip(BY_CHECKPOINT, (*frames, outcomes), strict=True):
            file = table_file(path, label, name)
            write_parquet(frame.select(list(TABLES[name])).cast(dict(TABLES[name])), file)
            marks[name] = mark_of(file)
        run["checkpoints"][label] = {
            "spec": label, "fingerprint": f"{label:0>64}", "readout_fingerprint": "", "n_layers": DEPTHS - 1,
            "d_model": 8, "vocab": 49_152, "manifest": None, "complete": True, "tables": marks,
        }  # fmt: skip
    write_json(run, path / "run.json")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe"
        path.mkdir()
        write_big_probe(path, [f"checkpoint-{i}" for i in range(count)])
        written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**20
        start, busy = time.perf_counter(), time.process_time()
        result = compare([path])
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print(
        json.dumps(
            {
                "checkpoints": count,
                "factoids": FACTOIDS_N,
                "depths": DEPTHS,
                "tokens": TOKENS,
                "draws": result.settings["draws"],
                "seconds": round(seconds, 1),
                "cpu_seconds": round(busy, 1),
                "load_average": round(os.getloadavg()[0], 1),
                "probe_mib": round(size),
                "peak_rss_mib_after_writing": round(written),
                "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
