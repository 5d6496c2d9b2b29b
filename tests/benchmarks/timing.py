"""What the benchmarks share: synchronised timing in turns, peak memory, and reports as Markdown and JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


def run(*command: str | Path, **options: Any) -> str:
    """Standard output of a Python command; what it says of a failure ends in its last line."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise RuntimeError(f"exit code {done.returncode}: {said}")
    return done.stdout


def synchronise(device: torch.device) -> None:
    """Waits for what a GPU was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    """Seconds by the clock, seconds of processor time, and what the run gave."""
    synchronise(device)
    start, busy = time.perf_counter(), time.process_time()
    result = run()
    synchronise(device)
    return time.perf_counter() - start, time.process_time() - busy, result


@dataclass
class Timed:
    """One method's repeats.

    Attributes:
        clock, processor: seconds of each repeat.
        peak_mib: of the GPU's memory in a repeat; of the whole process on a CPU, so only where it runs alone.
        result: what the last repeat gave.
    """

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    warm_ups: int = 0
    result: Any = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seconds": self.clock,
            "processor_seconds": self.processor,
            "warm_ups": self.warm_ups,
            "median": statistics.median(self.clock),
            "fastest": min(self.clock),
            "peak_mib": self.peak_mib,
        }


def in_turns(
    methods: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm_ups: int,
    device: torch.device,
    limit_s: float = float("inf"),
) -> dict[str, Timed]:
    """Every method in turn, so that a busy spell hits all.

    Args:
        warm_ups: rounds that do not count.
        limit_s: a method that took longer is left out of further warm-ups, and of further repeats after three.
    """
    timed = {name: Timed() for name in methods}
    spent = dict.fromkeys(methods, 0.0)
    for turn in range(warm_ups + repeats):
        for name, method in methods.items():
            one = timed[name]
            if spent[name] > limit_s and (one.warm_ups if turn < warm_ups else len(one.clock) >= 3):
                continue
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            clock, processor, one.result = seconds(method, device)
            spent[name] += clock
            if turn < warm_ups:
                one.warm_ups += 1
                continue
            one.clock.append(clock)
            one.processor.append(processor)
            one.peak_mib = peak_mib(device)
            print(f"{name}: {clock:.3f} s", flush=True)
    return timed


def peak_mib(device: torch.device) -> float:
    """The most memory held at once: a GPU's since its counter was set back, this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over repeats of the ratio within each."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=False))


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    names = ("torch", "triton", "numba", "transformers", "transformer-lens", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions,
    }


def about(found: Mapping[str, Any]) -> str:
    """One line of :func:`machine`."""
    versions = ", ".join(f"{name} {version or '–'}" for name, version in found["versions"].items())
    return (
        f"{found['device']}, {found['cores']} cores, {found['threads']} threads, load average "
        f"{found['load_average']}; Python {found['python']}, {versions}"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats with three figures, what is not there as a dash."""

    def text(value: Any) -> str:
        if value is None:
            return "–"
        return (
            f"{value:.3g}"
            if isinstance(value, float) and abs(value) < 1000
            else (f"{value:.0f}" if isinstance(value, float) else str(value))
        )

    lines = [columns, ["---"] * len(columns), *([text(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(found: Mapping[str, Any], markdown: str, out: str | Path | None, name: str) -> None:
    """Prints a report, and writes ``NAME.md`` and ``NAME.json`` into a folder where one is given."""
    print(f"\n{markdown}", flush=True)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
