"""Everything that memprobe's speed is judged by, in one run and one report: ``bench.md`` and ``bench.json``.

    make bench
    python -m tests.benchmarks.all --out DIR --sections reading capture --n 64 --device cuda
    python -m tests.benchmarks.all --out DIR --data-dir DATA --factoids popqa kvr --peers-python VENV/bin/python

``reading``    logits in one fused pass against the eager passes
``capture``    against its floor, TransformerLens' logit_lens, stock hidden states and, where a second environment has
               them, nnsight and nnterp; ranks are held against each other before a time counts
``memory``     what each of these holds at the most, in a process of its own
``training``   a stage against a stock Trainer on the same rows; losses are held against each other
``shared``     few-shot prompts whose beginning is read once, against whole ones
``many``       checkpoints that are added to a probe one by one: the time of the first and of the last
``ray``        a probe of several checkpoints by Ray's actors on this machine, against one process
``compare``    tables of several large probes     ``dashboard``  the page of a probe (needs Chromium)
``start``      importing memprobe, the first help text, a probe of one factoid

Each section runs in a process of its own; one that fails is said, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memprobe.checkpoints import resolve
from memprobe.models import choose_device
from tests.benchmarks import capture_speed, reading_speed
from tests.benchmarks.timing import about, machine, run, table, write

SECTIONS = (
    "reading",
    "capture",
    "memory",
    "training",
    "shared",
    "many",
    "ray",
    "compare",
    "dashboard",
    "start",
)
PEERS = ("nnsight", "nnterp")


def module(name: str, *options: Any) -> str:
    """Standard output of another benchmark."""
    return run(sys.executable, "-m", f"tests.benchmarks.{name}", *map(str, options))


def written(name: str, file: str, *options: Any) -> dict[str, Any]:
    """What another benchmark writes as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        module(name, *options, "--out", folder)
        return json.loads((Path(folder) / f"{file}.json").read_text(encoding="utf-8"))


def reading(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    found = written(
        "reading_speed", "reading", "--device", options.device, "--threads", options.threads,
        "--repeats", max(5, options.repeats), "--shapes", *options.shapes,
    )  # fmt: skip
    return found, reading_speed.report(found)


def capture_options(options: argparse.Namespace) -> list[Any]:
    chosen = [
        "--ckpt", options.ckpt, "--device", options.device, "--dtype", options.dtype, "--n", options.n,
        "--threads", options.threads,
    ]  # fmt: skip
    if options.factoids:
        chosen += ["--factoids", *options.factoids]
    return chosen + (["--data-dir", options.data_dir] if options.data_dir else [])


def capture(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    found = written(
        "capture_speed", "capture", *capture_options(options),
        "--repeats", options.repeats, "--warm-ups", options.warm_ups, "--keep-ranks",
    )  # fmt: skip
    notes = []
    for peer in PEERS:
        failed = []
        for place, python in enumerate(options.peers_python, 1):
            try:
                found["methods"][peer] = of_peer(peer, python, found, options)
                break
            except (RuntimeError, OSError) as error:
                failed.append(f"in environment {place}: {error}")
        else:
            why = "; ".join(failed) or "--peers-python names an environment that has it"
            notes.append(f"Not run: {peer} ({why}).")
    found.pop("kept")
    found["notes"] = notes
    told = [
        f"{peer}: " + ", ".join(f"{name} {number}" for name, number in sorted(one["versions"].items()))
        for peer, one in found["methods"].items()
        if "versions" in one
    ]
    return found, "\n\n".join([capture_speed.report(found), *told, *notes])


def of_peer(peer: str, python: str, found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The times of a tool in another environment, its ranks held against memprobe's."""
    kept = found["kept"]
    job = {
        "method": peer,
        "path": str(resolve(options.ckpt).path),
        "dtype": found["dtype"],
        "device": str(choose_device(options.device)),
        "threads": options.threads,
        "repeats": options.repeats,
        "warm_ups": options.warm_ups,
        "batches": kept["batches"],
    }
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        run(python, Path(__file__).with_name("peers.py").resolve(), asked, answered)
        result = json.loads(answered.read_text(encoding="utf-8"))
    ranks = {split(key): rank for key, rank in result.pop("ranks").items()}
    ours = {split(key): rank for key, rank in kept["ranks"].items()}
    within = {split(key): slack for key, slack in kept["within"].items()} if kept["within"] else None
    times = {"median": statistics.median(result["seconds"]), "fastest": min(result["seconds"])}
    return {**result, **times, "ranks": capture_speed.differing(ours, ranks, within)}


def split(key: str) -> tuple[str, int]:
    name, _, depth = key.rpartition(" ")
    return name, int(depth)


def memory(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """On a GPU what the capture section says; on a CPU the whole process, model and libraries included."""
    peaks = {}
    for method in capture_speed.METHODS:
        found = written(
            "capture_speed", "capture", *capture_options(options), "--repeats", 1, "--warm-ups", 0, "--methods", method
        )  # fmt: skip
        peaks[method] = found["methods"][method]["peak_mib"]
    rows = [[method, peak, peak / peaks["memprobe"]] for method, peak in peaks.items()]
    head = f"## Peak memory: {options.ckpt}, {options.n} factoids, each in a process of its own"
    return {"peak_mib": peaks}, f"{head}\n\n" + table(("method", "MiB", "x memprobe"), rows)


def training(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    said = module(
        "training_speed", "--base", options.ckpt, "--repeats", options.training_repeats, "--steps", options.steps,
        "--words", 12, *(["--data-dir", options.data_dir] if options.data_dir else ["--source", "known"]),
        *(["--micro-batch", options.micro_batch] if options.micro_batch else []),
    )  # fmt: skip
    lines = [line for line in said.splitlines() if " x stock" in line]
    return {"lines": lines}, "## Training against a stock Trainer\n\n" + "\n".join(
        f"- {line}" for line in lines
    )


def shared(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    said = module("shared_beginning", "--ckpt", options.ckpt, "--threads", options.threads)
    return in_words("Few-shot prompts: their common beginning once, or whole prompts", said)


def many(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    ways = ("python", "layers", "layers --no-report")
    said = module("load", "append", "--appends", options.appends, "--through", *ways)
    return in_words("Checkpoints added one by one", said)


def ray(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    said = module("ray_speed", "--ckpt", options.ckpt, "--n", options.n, "--cores", options.threads)
    return in_words("On Ray, against one process", said)


def in_words(title: str, said: str) -> tuple[dict[str, Any], str]:
    """A section that is what another benchmark prints."""
    return {"lines": said.splitlines()}, f"## {title}\n\n```\n{said.rstrip()}\n```"


def compare(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    found = json.loads(module("compare_speed", options.checkpoints).splitlines()[-1])
    rows = [[name.replace("_", " "), value] for name, value in found.items()]
    return found, "## compare\n\n" + table(("what", "value"), rows)


def dashboard(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    said = module(
        "report_load", "--checkpoints", options.checkpoints, "--factoids", 10 * options.n, "--repeats", 1
    )
    return in_words("The dashboard's page", said)


def start(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands: dict[str, Callable[[int], list[Any]]] = {
            "python -c pass": lambda _: ["-c", "pass"],
            "import memprobe": lambda _: ["-c", "import memprobe"],
            "memprobe --help": lambda _: ["-m", "memprobe", "--help"],
            "memprobe layers --help": lambda _: ["-m", "memprobe", "layers", "--help"],
            "memprobe layers, one factoid": lambda turn: [
                "-m", "memprobe", "layers", "--ckpt", options.ckpt, "--factoids", "known", "--n", 1,
                "--device", options.device, "--out", Path(folder) / str(turn),
            ],
        }  # fmt: skip
        for turn in range(max(3, options.repeats)):
            for name, command in commands.items():
                begun = time.perf_counter()
                run(sys.executable, *command(turn))
                times.setdefault(name, []).append(time.perf_counter() - begun)
    rows = [[name, statistics.median(taken), min(taken)] for name, taken in times.items()]
    return {"seconds": times}, "## Start\n\n" + table(("command", "median s", "fastest s"), rows)


def main() -> None:
    """Runs the sections and writes the report after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for bench.md and bench.json")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ckpt", default="smollm2-135m")
    parser.add_argument("--n", type=int, default=64, help="factoids of a capture (default 64)")
    parser.add_argument("--factoids", nargs="*", help="their sources; by default known facts behind others")
    parser.add_argument("--data-dir")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shapes", nargs="+", default=["512x49152", "512x262144"], help="of the reading")
    parser.add_argument("--steps", type=int, default=4, help="of a training run")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--training-repeats", type=int, default=1)
    parser.add_argument("--checkpoints", type=int, default=6, help="of compare and the dashboard")
    parser.add_argument("--appends", type=int, default=40, help="of many")
    parser.add_argument(
        "--peers-python", action="append", default=[], metavar="PATH",
        help="Python of an environment with nnsight or nnterp; may be given again (nnterp 1.3.0 does not import beside "
        "nnsight 0.8.1, but does beside 0.7.0)",
    )  # fmt: skip
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(choose_device(options.device)), "sections": {}}
    parts = [f"# Benchmarks\n\n{about(found['machine'])}."]
    failed = False
    for name in options.sections:
        begun = time.perf_counter()
        try:
            result, text = globals()[name](options)
        except Exception as error:
            failed = True
            result, text = {"error": str(error)}, f"## {name}\n\nFailed: {error}"
        result["section_seconds"] = time.perf_counter() - begun
        found["sections"][name] = result
        parts.append(text)
        write(found, "\n\n".join(parts), options.out, "bench")
    sys.exit(failed)


if __name__ == "__main__":
    main()
