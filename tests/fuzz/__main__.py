"""``python -m tests.fuzz``: as many inputs as asked, in worker processes that are watched from here."""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
HANG = 60.0  # seconds of an input's own
BATCH = 1000  # inputs of one process
MEMORY = 4 << 30  # bytes of one process


def main() -> int:
    """Tries inputs and prints what failed; the exit code says whether anything did."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="only these, with commas between them")
    parser.add_argument("--only", help="KIND:NUMBER")
    parser.add_argument("--keep", type=Path, help="folder that --only leaves the input in")
    parser.add_argument("--log", type=Path, help="every failure as a line of JSON")
    parser.add_argument("--work", nargs=2, metavar=("SEEDS", "LIST"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return _work(Path(asked.work[0]), asked.work[1], asked.seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as folder:
        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        _python(
            "from pathlib import Path; from tests.fuzz.seeds import make; import sys; make(Path(sys.argv[1]))",
            seeds,
        )
        if asked.only:
            from tests.fuzz.trying import attempt

            kind, number = asked.only.split(":")
            ended = attempt(kind, int(number), seeds, seed=asked.seed, keep=asked.keep)
            print(f"{ended.wrong or 'well'} (exit code {ended.code}): {ended.input.what}\n{ended.said}")
            return int(bool(ended.wrong))
        return _all(asked, seeds)


def _all(asked: argparse.Namespace, seeds: Path) -> int:
    from tests.fuzz.inputs import kind_of

    todo = [(kind_of(number), number) for number in range(asked.start, asked.start + asked.inputs)]
    wanted = [one for one in asked.kinds.split(",") if one]
    todo = [one for one in todo if not wanted or one[0] in wanted]
    tried, refused, wrong = Counter[str](), Counter[str](), Counter[str]()
    began = time.monotonic()
    for at in range(0, len(todo), BATCH):
        for kind, number, ended in _batch(todo[at : at + BATCH], seeds, asked.seed):
            tried[kind] += 1
            refused[kind] += ended["code"] != 0
            if ended["wrong"]:
                wrong[ended["wrong"]] += 1
                line = {"input": f"{kind}:{number}", **ended}
                print(json.dumps(line)[:600], flush=True)
                if asked.log:
                    with asked.log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
        print(
            f"{tried.total()} of {len(todo)} inputs, {time.monotonic() - began:.0f} s, failures {dict(wrong)}",
            flush=True,
        )
    for kind, count in tried.items():
        print(f"{kind:12} {count:6} inputs, {refused[kind]:6} refused")
    print(f"{tried.total()} inputs under seed {asked.seed}: {wrong.total()} failures {dict(wrong)}")
    return int(bool(wrong))


def _batch(todo, seeds, seed):
    """Runs inputs in a process that is killed where one of them hangs, and goes on after it."""
    while todo:
        names = ",".join(f"{kind}:{number}" for kind, number in todo)
        command = [sys.executable, "-m", "tests.fuzz", "--seed", str(seed), "--work", str(seeds), names]
        said = seeds.parent / f"{seeds.name}.said"
        with said.open("wb") as file:
            worker = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, cwd=ROOT, env=_environment()
            )
        done = 0
        while done < len(todo):
            line, used = _line(worker)
            if line:
                yield *todo[done], json.loads(line)
                done += 1
                continue
            worker.kill()
            why = "hang" if used >= HANG else f"the process died (exit code {worker.wait()})"
            told = said.read_text(errors="replace")[-700:]
            yield *todo[done], {"wrong": why, "code": -1, "said": told, "what": ""}
            done += 1
            break
        worker.kill()
        worker.wait()
        todo = todo[done:]


def _line(worker) -> tuple[bytes, float]:
    """The next line of a worker, or none where it ended or has computed for too long: the machine may be busy."""
    import psutil

    start = None
    while True:
        ready, _, _ = select.select([worker.stdout], [], [], 2.0)
        if ready:
            return worker.stdout.readline(), 0.0
        try:
            times = psutil.Process(worker.pid).cpu_times()
        except psutil.NoSuchProcess:
            return b"", 0.0
        used = times.user + times.system
        waited = time.monotonic()
        start = start or (used, waited)
        if used - start[0] > HANG or (waited - start[1] > 20 * HANG):
            return b"", HANG


def _work(seeds: Path, names: str, seed: int) -> int:
    """A worker: one line of JSON for each input."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    from tests.fuzz.trying import attempt

    answers = os.fdopen(os.dup(1), "w")
    for name in names.split(","):
        kind, number = name.split(":")
        ended = attempt(kind, int(number), seeds, seed=seed)
        line = {"wrong": ended.wrong, "code": ended.code, "what": ended.input.what[:300]}
        line["said"] = ended.said[-700:] if ended.wrong else ""
        answers.write(json.dumps(line) + "\n")
        answers.flush()
    return 0


def _environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "POLARS_MAX_THREADS": "1",
    }


def _python(code: str, *arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, cwd=ROOT, env=_environment()
    )


if __name__ == "__main__":
    sys.exit(main())
