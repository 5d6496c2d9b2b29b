"""A probe of several checkpoints by Ray's actors on this machine, against the same in one process.

    python -m tests.benchmarks.ray_speed [--ckpt smollm2-135m] [--n 64] [--checkpoints 4] [--cores 1]

Prints seconds by the clock of each, and ends with an error where their records are not the same bytes. The same weights
stand under several labels. Ray's own start and the actors' imports count: they are what a short probe pays for it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import memprobe
from memprobe.cluster import Engine, Resources
from memprobe.sources import load_factoids


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="smollm2-135m")
    for name, default in {"n": 64, "checkpoints": 4, "cores": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    specs = [f"step{number}={asked.ckpt}" for number in range(asked.checkpoints)]
    facts = load_factoids("known")[: asked.n]
    found, seconds = {}, {}
    engines = {"one process": None, "ray": Engine(each=Resources(cpus=asked.cores))}
    with tempfile.TemporaryDirectory() as folder:
        for name, engine in engines.items():
            out, start = Path(folder) / name, time.perf_counter()
            memprobe.probe(specs, facts, out, device="cpu", engine=engine)
            seconds[name] = time.perf_counter() - start
            print(f"{name}: {seconds[name]:.1f} s", flush=True)
            found[name] = [file.read_bytes() for file in sorted(out.glob("records/*.parquet"))]
    assert found["one process"] and found["one process"] == found["ray"], "records differ"
    ratio = seconds["one process"] / seconds["ray"]
    print(
        f"{asked.checkpoints} checkpoints, {len(facts)} factoids: {ratio:.2f} x as fast on Ray; the same bytes"
    )


if __name__ == "__main__":
    main()
