"""How long the page takes to write and to open, and how large it is.

    python -m tests.benchmarks.report_load [--checkpoints 1 12] [--factoids 200 2000] [--depths 31]

"table" is when the numbers on top stand; "usable" when every figure of the first room is drawn; both from
navigation on, in a fresh headless Chromium. A ROOM's "k" and "checkpoint" are from choosing another k, or one
checkpoint less, until its figures have been drawn anew; "factoid" from a click on a factoid until it is drawn, the
first with inflating the explorer's data. All but one checkpoint have manifests: arms in two stages.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from memprobe.dashboard import write_report
from memprobe.factoids import factoids_hash, make_factoid
from memprobe.files import write_json, write_parquet
from memprobe.probes import Probe, probe_of
from memprobe.records import OUTCOMES, factoids_frame
from tests.pages import chromium, opened
from tests.probes import write_tables

VOCABULARY = 49_152


def write_large_probe(
    path: Path, checkpoints: int, n: int, depths: int, answer_tokens: int = 2, steps: bool = False
) -> Probe:
    """Records with ranks that fall with depth, as in a real model; incompressible where real ones are.

    Args:
        steps: whether the checkpoints lie along one training run; else they are arms in stages.
    """
    rng = np.random.default_rng(0)
    facts = [
        make_factoid(f"The capital of country {i} is the city of", f"City {i}", "made") for i in range(n)
    ]
    ids = [fact.id for fact in facts]
    labels = [f"run/step-{100 * i}" if steps else f"checkpoint {i}" for i in range(checkpoints)]
    records, controls = [], []
    for label in labels:
        start, fall = rng.uniform(6, 10.5, (n, answer_tokens, 1)), rng.uniform(0, 12, (n, answer_tokens, 1))
        depth = np.arange(depths)
        late = np.maximum(0, depth / depths - rng.uniform(0.4, 0.9, (n, answer_tokens, 1))) * 2
        level = start - fall * late + rng.normal(0, 0.4, (n, answer_tokens, depths))
        rank = np.clip(np.exp(level) - 1, 0, VOCABULARY - 1).astype(np.int32)
        keys = {
            "checkpoint": pl.repeat(label, rank.size, eager=True),
            "factoid": pl.Series(ids).gather(np.repeat(np.arange(n), answer_tokens * depths)),
            "token": np.tile(np.repeat(np.arange(answer_tokens), depths), n),
            "token_id": np.repeat(rng.integers(0, VOCABULARY, n * answer_tokens), depths),
            "depth": np.tile(depth, n * answer_tokens),
        }
        measures = {
            "rank": rank.ravel(),
            "log_prob": np.minimum(0, -level - rng.uniform(0, 3, level.shape)).ravel(),
            "entropy": np.ones(rank.size),
            "top1": rng.zipf(1.3, rank.size) % 8_000,
            "ties": np.zeros(rank.size),
        }
        records.append(pl.DataFrame(keys | measures))
        for draw in range(5):
            other = {"control": pl.repeat(f"shuffled:{draw}", rank.size, eager=True)}
            other["rank"] = rng.integers(0, VOCABULARY, rank.size)
            controls.append(pl.DataFrame(keys | other))
    outcomes = [[label, fact, True, True, "City", None, True] for label in labels for fact in ids]
    write_parquet(factoids_frame(facts), path / "factoids.parquet")
    entry = {"spec": "made", "fingerprint": "0" * 64, "n_layers": depths - 1, "complete": True}
    entries = {
        label: entry
        | {
            "manifest": {"arm": f"arm{(i + 1) // 2}", "seed": 0, "stage": 2 - i % 2, "stage_name": "made"}
            if i and not steps
            else None
        }
        for i, label in enumerate(labels)
    }
    run = {
        "schema": 2, "memprobe": "", "versions": {}, "lens": "logit", "readout": "own",
        "template": "plain", "tokenisation": "", "dtype": "float32", "k": 10, "token": "first", "seed": 0,
        "factoids": {"source": "made", "n": n, "hash": factoids_hash(facts)},
        "checkpoints": entries,
        "tokens": {str(i): f" token{i}" for i in range(VOCABULARY)},
    }  # fmt: skip
    tables = {
        "records": pl.concat(records),
        "controls": pl.concat(controls),
        "outcomes": pl.DataFrame(outcomes, schema=OUTCOMES, orient="row"),
    }
    write_tables(path, tables, run, 2)
    write_json(run, path / "run.json")
    return probe_of(path, run)


def time_page(browser, path: Path) -> dict[str, float]:
    """Seconds, in a context of its own."""
    start = time.perf_counter()
    with opened(browser, path) as page:
        ready = time.perf_counter()
        table = page.evaluate("performance.getEntriesByName('table')[0]?.startTime / 1000")
        usable = page.evaluate("performance.getEntriesByName('figures')[0].startTime / 1000")
        times = {"table": table, "usable": usable, "goto": ready - start}

        def timed(part: str) -> float:
            return page.evaluate(
                f"""async () => {{ const start = performance.now(); await change({part});
                await new Promise(requestAnimationFrame); return (performance.now() - start) / 1000 }}"""
            )

        fewer = "{checkpoints: [...checkpoints.keys()].slice(checkpoints.size > 1 ? 1 : 0)}"
        every = "{checkpoints: [...checkpoints.keys()]}"
        for room in page.evaluate("openRooms()"):
            if room in ("run", "training"):
                continue
            times[f"{room}: open"] = timed(f"{{room: '{room}'}}")
            times[f"{room}: k"] = timed("{k: state.k === 20 ? 10 : 20}")
            times[f"{room}: checkpoint"] = timed(fewer)
            timed(every)
        times["factoid"] = timed("{room: 'factoids', factoid: explorer.factoids.id[7]}")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[1, 12])
    parser.add_argument("--factoids", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--depths", type=int, default=31)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        for checkpoints in options.checkpoints:
            for n in options.factoids:
                probe = write_large_probe(Path(folder) / f"{checkpoints}-{n}", checkpoints, n, options.depths)
                start = time.perf_counter()
                write_report(probe, probe.path / "report.html")
                wrote = time.perf_counter() - start
                size = (probe.path / "report.html").stat().st_size / 1e6
                runs = [time_page(browser, probe.path / "report.html") for _ in range(options.repeats)]
                times = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
                print(f"{checkpoints} x {n} x {options.depths}: {size:.1f} MB, written in {wrote:.1f} s")
                for name, seconds in times.items():
                    print(f"    {name:24} {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
