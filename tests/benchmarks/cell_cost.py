"""What a cell of a study costs beside its training, in processor seconds of one thread.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.cell_cost --data-dir DATA [--facts 16] [--epochs 2] [--arms naive]
        [--autocast bfloat16]

Cells of one seed, KVR keys → LAMA facts on SmolLM2-135M as in training/grids/smollm2-study.toml, training cut short:
what stands beside it does not depend on that. Each part counts without the parts within it. The first cell alone pays
for the base model being asked, evaluated and probed. Run the same file on two commits to compare them.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

GRID = """
keep = "weights"
[recipe]
base = "smollm2-135m"
max_length = 512
[recipe.optimiser]
lr = 1e-4
batch = 16
micro_batch = 16
[recipe.precision]
autocast = "{autocast}"
[recipe.evaluate]
known = {known}
texts = "generic"
texts_n = 16
limit = {facts}
interference = true
[data.kvr]
data = "kvr:{facts}"
epochs = {epochs}
[data.lama]
data = "lama"
n = {facts}
unknown = {{ template = "plain" }}
epochs = {epochs}
stop = {{ exact_match = true }}
[arms]
naive = "none"
replay = "replay(ratio=0.1)"
remix-generic = "remix(data=generic, stages=1, words=12)"
remix-random = "remix(data=random-words, stages=1, words=12)"
[[blocks]]
name = "cost"
stages = [["kvr", "lama"]]
arms = {arms}
seeds = [0]
"""
# (part, module, what it is called there); where a module takes the name for itself, there too.
PARTS = (
    ("training", "training.stage", "train"),
    ("evaluation", "training.evaluate", "evaluate"),
    ("interference", "training.interference", "interference"),
    ("asking", "memprobe.filter", "ask"),
    ("probing", "memprobe.probing", "probe"),
    ("models made", "memprobe.models", "load_pretrained"),
    ("fingerprints", "memprobe.checkpoints", "fingerprint"),
    ("fingerprints", "training.checkpoint", "fingerprint"),
    ("fingerprints", "training.measures", "fingerprint"),
    ("fingerprints", "training.one_stage", "fingerprint"),
    ("fingerprints", "training.memory", "fingerprint"),
    ("fingerprints", "memprobe.models", "fingerprint"),
    ("fingerprints", "memprobe.probing", "fingerprint"),
    ("rows", "training.data", "load"),
)


class Clock:
    """Processor seconds by part, each without the parts within it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.open: list[str] = ["the rest"]
        self.at = time.process_time()

    def switch(self) -> None:
        """Counts the time since the last switch for the innermost part."""
        now = time.process_time()
        self.seconds[self.open[-1]] += now - self.at
        self.at = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time counts for a part."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            self.switch()
            self.calls[part] += 1
            self.open.append(part)
            try:
                return function(*arguments, **options)
            finally:
                self.switch()
                self.open.pop()

        return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--facts", type=int, default=16)
    parser.add_argument("--known", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--arms", nargs="+", default=["naive", "replay"])
    parser.add_argument("--autocast", default="none", choices=["none", "bfloat16"])
    asked = parser.parse_args()
    from training.grid import read_grid, run_grid

    clock = Clock()
    for part, module, name in PARTS:
        try:
            place = importlib.import_module(module)
        except ModuleNotFoundError:
            continue  # of another commit
        if hasattr(place, name):
            setattr(place, name, clock.timed(part, getattr(place, name)))
    taken: list[tuple[str, Counter[str]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count, arm in enumerate(asked.arms, 1):
            path = Path(folder) / "grid.toml"
            options = vars(asked) | {"arms": str(asked.arms[:count]).replace("'", '"')}
            path.write_text(GRID.format(**options), encoding="utf-8")
            clock.switch()
            clock.seconds.clear()
            if broken := run_grid(
                read_grid(path), path, Path(folder) / "out", data_dir=asked.data_dir, quiet=True
            ):
                raise SystemExit("; ".join(broken))
            clock.switch()
            taken.append((arm, Counter(clock.seconds)))
    parts = sorted({part for _, seconds in taken for part in seconds}, key=lambda part: -taken[0][1][part])
    print(f"{'processor seconds':18}" + "".join(f"{arm:>14}" for arm, _ in taken))
    for part in parts:
        print(f"{part:18}" + "".join(f"{seconds[part]:14.1f}" for _, seconds in taken))
    beside = [sum(seconds.values()) - seconds["training"] for _, seconds in taken]
    print(f"{'beside training':18}" + "".join(f"{value:14.1f}" for value in beside))


if __name__ == "__main__":
    main()
