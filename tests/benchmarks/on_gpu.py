"""Reading and capture on a GPU in one process and one report, within some 90 s of its time.

    python -m tests.benchmarks.on_gpu --out DIR
    python -m tests.benchmarks.on_gpu --out DIR --device cpu --tiny     # the same paths, on a CPU

Eager against fused reading at [512, 49152] and [512, 262144] with other tiles of the kernel beside it, then capture
against its floor, itself with the eager reading, TransformerLens and stock hidden states: SmolLM2 in fp32 and bf16, and
a Llama of 1.2 billion random parameters with a vocabulary of 128,256 in bf16. Four warm-ups, medians; a section that
fails is said in the report, and the others go on.
"""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from memprobe.models import choose_device
from tests.benchmarks import capture_speed, reading_speed
from tests.benchmarks.timing import write

CAPTURES = (("smollm2-135m", "float32"), ("smollm2-135m", "bfloat16"), ("random:1b", "bfloat16"))


def main() -> None:
    """Runs it and writes ``on_gpu.md`` and ``on_gpu.json`` after every section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n", type=int, default=512, help="factoids")
    parser.add_argument("--limit", type=float, default=4.0, help="see capture_speed")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script out")
    options = parser.parse_args()
    device = choose_device(options.device)
    begun = time.perf_counter()
    found: dict[str, Any] = {"sections": {}}
    parts: list[str] = ["# On a GPU"]

    def section(name: str, run: Any, report: Any) -> None:
        start = time.perf_counter()
        try:
            result = run()
            parts.append(report(result))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            parts.append(f"## {name}\n\nFailed: {result['error']}")
            traceback.print_exc()
        result["section_seconds"] = time.perf_counter() - start
        found["sections"][name] = result
        found["seconds"] = time.perf_counter() - begun
        write(found, "\n\n".join([*parts, f"{found['seconds']:.0f} s in all."]), options.out, "on_gpu")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    shapes = ["8x3000"] if options.tiny else ["512x49152", "512x262144"]
    section(
        "reading",
        lambda: reading_speed.measure_all(device, shapes, 15, 16 if options.tiny else 2048, True),
        reading_speed.report,
    )
    captures = (("random:tiny", "float32"), ("random:tiny", "bfloat16")) if options.tiny else CAPTURES
    for spec, dtype in captures:
        asked = capture_speed.options_of(
            ["--ckpt", spec, "--dtype", dtype, "--device", str(device), "--n", str(8 if options.tiny else options.n),
             "--repeats", "5", "--warm-ups", "4", "--limit", str(options.limit)]
        )  # fmt: skip
        section(
            f"capture {spec} {dtype}", lambda asked=asked: capture_speed.measure(asked), capture_speed.report
        )


if __name__ == "__main__":
    main()
