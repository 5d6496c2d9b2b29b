"""Times reading logits in one fused pass against the eager passes, at several sizes.

    python -m tests.benchmarks.reading_speed --device cuda --shapes 512x49152 512x262144
    python -m tests.benchmarks.reading_speed --device cuda --grid          # other tiles of the kernel beside it

Six targets a row, as a capture with its five controls has. What both find is held against each other before a time
counts. The least that must be moved is each logit once; the share of the bandwidth is that over the rate of a large
copy on the same device (bytes read and written). Several sets of logits in turn, so that no cache holds them.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch

from memprobe.models import choose_device
from memprobe.sweeps import Swept, sweep_name, sweep_named
from tests.benchmarks.timing import about, machine, seconds, table, write

TARGETS = 6


def bandwidth(device: torch.device, mib: int) -> float:
    """Bytes a second of a copy, read and written."""
    source = torch.randn(mib * 2**18, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device)[0] for _ in range(13)][3:]
    return 2 * source.nbytes / statistics.median(times)


def kernel_times(run: Callable[[int], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each run: by events on a GPU, so that what the host does between them is left out."""
    for turn in range(4):
        run(turn)
    if device.type != "cuda":
        return [seconds(functools.partial(run, turn), device)[0] for turn in range(repeats)]
    pairs = []
    for turn in range(repeats):
        torch.cuda._sleep(2_000_000)  # the host gets ahead, so that launches are not what is measured
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(turn)
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) / 1000 for begin, end in pairs]


def differences(ours: Swept, theirs: Swept, logits: torch.Tensor) -> dict[str, Any]:
    """Whether two sweeps agree."""
    largest = logits.amax(1)
    return {
        "ranks_equal": torch.equal(ours.rank, theirs.rank),
        "ties_equal": torch.equal(ours.ties, theirs.ties),
        "argmax_equal": torch.equal(logits.gather(1, ours.top1.long()[:, None])[:, 0], largest),
        "log_prob_apart": float((ours.log_prob - theirs.log_prob).abs().max()),
        "entropy_apart": float((ours.entropy - theirs.entropy).abs().max()),
    }


def measure(rows: int, vocab: int, device: torch.device, repeats: int, rate: float, grid: bool) -> list[dict]:
    """One shape, by each sweep."""
    random = torch.Generator(device).manual_seed(0)
    sets = max(2, min(8, int(512e6 // (rows * vocab * 4)) + 1)) if device.type == "cuda" else 2
    logits = [torch.randn(rows, vocab, device=device, generator=random) * 4 for _ in range(sets)]
    targets = torch.randint(0, vocab, (rows, TARGETS), device=device, generator=random)
    fused = sweep_name(device)
    eager = sweep_named("eager")
    # The eager passes overwrite what they read: the same work on any finite logits, once it was checked.
    expected = eager(logits[0].clone(), targets)
    methods: dict[str, Callable[[torch.Tensor], Swept]] = {}
    if fused != "eager":
        methods[fused] = lambda x: sweep_named(fused)(x, targets)
    if fused == "triton" and grid:
        from memprobe.sweeps import with_triton

        for block, warps in ((512, 4), (1024, 4), (1024, 8), (2048, 8), (2048, 16), (4096, 16)):
            for parts in (1, 2, 4, 8):
                methods[f"triton {block}/{warps} warps/{parts} parts"] = functools.partial(
                    lambda x, **shape: with_triton.sweep(x, targets, **shape),
                    block=block, warps=warps, parts=parts,
                )  # fmt: skip
    methods["eager"] = lambda x: eager(x, targets)
    found = []
    least = rows * vocab * 4
    for name, method in methods.items():
        agreed = differences(method(logits[0].clone()), expected, logits[0])
        times = kernel_times(lambda turn, method=method: method(logits[turn % sets]), device, repeats)
        median = statistics.median(times)
        found.append(
            {
                "shape": [rows, vocab],
                "sweep": name,
                "median_us": median * 1e6,
                "fastest_us": min(times) * 1e6,
                "least_bytes": least,
                "bandwidth_share": least / median / rate,
                **agreed,
            }
        )
        torch.cuda.empty_cache()
    return found


def main() -> None:
    """Runs and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shapes", nargs="+", default=["512x49152", "512x262144"], metavar="ROWSxVOCAB")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--copy-mib", type=int, default=256, help="size of the copy that the bandwidth is of")
    parser.add_argument("--grid", action="store_true", help="time other tiles of the Triton kernel as well")
    parser.add_argument("--out", help="folder for reading.md and reading.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure_all(
        choose_device(options.device), options.shapes, options.repeats, options.copy_mib, options.grid
    )
    write(found, report(found), options.out, "reading")


def measure_all(
    device: torch.device, shapes: list[str], repeats: int, copy_mib: int, grid: bool
) -> dict[str, Any]:
    """Every shape, ``ROWSxVOCAB``."""
    rate = bandwidth(device, copy_mib)
    rows = []
    for shape in shapes:
        n, _, vocab = shape.partition("x")
        with torch.inference_mode():
            rows += measure(int(n), int(vocab), device, repeats, rate, grid)
    return {"machine": machine(device), "copy_bytes_per_second": rate, "rows": rows}


def report(found: dict[str, Any]) -> str:
    """As Markdown."""
    rows, rate = found["rows"], found["copy_bytes_per_second"]
    eager = {tuple(row["shape"]): row["median_us"] for row in rows if row["sweep"] == "eager"}
    lines = [
        [
            "{} x {}".format(*row["shape"]),
            row["sweep"],
            row["median_us"],
            row["fastest_us"],
            eager[tuple(row["shape"])] / row["median_us"],
            row["least_bytes"] / 1e6,
            f"{row['bandwidth_share']:.0%}",
            "yes" if row["ranks_equal"] and row["ties_equal"] and row["argmax_equal"] else "NO",
            f"{max(row['log_prob_apart'], row['entropy_apart']):.1e}",
        ]
        for row in rows
    ]
    columns = (
        "rows x vocabulary", "sweep", "median µs", "fastest µs", "x eager", "least MB", "of the bandwidth",
        "ranks, ties, argmax equal", "nats apart",
    )  # fmt: skip
    return f"## Reading logits\n\n{about(found['machine'])}; a copy moves {rate / 1e9:.0f} GB/s.\n\n" + table(
        columns, lines
    )


if __name__ == "__main__":
    main()
