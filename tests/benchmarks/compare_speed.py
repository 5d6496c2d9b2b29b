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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from memprobe.compare import compare
from memprobe.files import write_json, write_parquet
from memprobe.records import CONTROLS, FACTOIDS, OUTCOMES, RECORDS

FACTOIDS_N, DEPTHS, TOKENS, DRAWS_OF_CONTROLS = 2000, 33, 3, 5


def write_big_probe(path: Path, labels: list[str]) -> None:
    """One row group per checkpoint, as a probe that ran them one after another has."""
    rng = np.random.default_rng(0)
    ids = np.array([f"{i:016x}" for i in range(FACTOIDS_N)])
    f, t, d = (axis.ravel() for axis in np.indices((FACTOIDS_N, TOKENS, DEPTHS)))
    answers = pl.DataFrame(
        {
            "id": ids,
            "answer": [f"answer {i // 2}" for i in range(FACTOIDS_N)],
            "relation": [f"r{i % 8}" for i in range(FACTOIDS_N)],
        }
    ).with_columns(
        source=pl.lit("invented"),
        prompt=pl.col("id"),
        aliases=pl.lit([], pl.List(pl.String)),
        subject=pl.lit(None, pl.String),
        popularity=pl.lit(None, pl.Float64),
    )
    write_parquet(answers.select(list(FACTOIDS)), path / "factoids.parquet")
    writers: dict[str, pq.ParquetWriter] = {}
    outcomes = []
    for label in labels:
        surfaces = np.clip(rng.normal(22, 6, FACTOIDS_N).round(), 1, DEPTHS + 3)[f]
        rank = np.where(d >= surfaces, rng.integers(0, 8, len(f)), rng.integers(20, 50_000, len(f)))
        keys = pl.DataFrame({"factoid": ids[f], "token": t, "token_id": f * 3 + t, "depth": d})
        keys = keys.with_columns(checkpoint=pl.lit(label))
        records = keys.with_columns(
            rank=pl.Series(rank),
            log_prob=pl.Series(-np.log1p(rank)),
            entropy=pl.Series(rng.random(len(f)) * 8),
            top1=pl.Series(rng.integers(0, 50_000, len(f))),
            ties=pl.lit(0),
        )
        controls = [
            keys.with_columns(
                control=pl.lit(f"shuffled:{i}"), rank=pl.Series(rng.integers(0, 50_000, len(f)))
            )
            for i in range(DRAWS_OF_CONTROLS)
        ]
        for name, frame, schema in (
            ("records", records, RECORDS),
            ("controls", pl.concat(controls), CONTROLS),
        ):
            table = frame.select(
                [pl.col(key).cast(dtype) for key, dtype in schema.items() if key in frame.columns]
            ).to_arrow()
            if name not in writers:
                writers[name] = pq.ParquetWriter(path / f"{name}.parquet", table.schema)
            writers[name].write_table(table)
        known = rng.random(FACTOIDS_N) < 0.8
        outcomes.append(
            pl.DataFrame(
                {"factoid": ids, "exact_tokens": known, "exact_match": known, "alias_match": known}
            ).with_columns(checkpoint=pl.lit(label), prediction=pl.lit("x"), error=pl.lit(None, pl.String))
        )
    for writer in writers.values():
        writer.close()
    write_parquet(pl.concat(outcomes).select(list(OUTCOMES)), path / "outcomes.parquet")
    entries = {
        label: {"fingerprint": label, "n_layers": DEPTHS - 1, "manifest": None, "complete": True}
        for label in labels
    }
    run = {
        "schema": 1,
        "lens": "logit",
        "readout": "own",
        "template": "plain",
        "tokenisation": "t",
        "k": 10,
        "token": "first",
        "factoids": {"n": FACTOIDS_N, "hash": "invented"},
    }
    write_json({**run, "checkpoints": entries, "tokens": {}}, path / "run.json")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe"
        path.mkdir()
        write_big_probe(path, [f"checkpoint-{i}" for i in range(count)])
        written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
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
