"""``python -m tests.fuzz.kills``: commands killed at random moments, again and again, then left to end.

    python -m tests.fuzz.kills --n 100 [--seed 0] [--only layers,run,grid,workers,patch,fit]

Each command is run once unbroken. Then chains: the command is begun, its process group gets SIGKILL at a random moment,
and the same command is given anew, killed again (up to three times), and at last left to end. What it leaves must be
what the unbroken one left: the same files, the same tables and weights byte for byte, and the same JSON and lines but
for times and paths. Commands run in forks of one process that has imported everything, so that a kill hits the work
and not the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.forks import import_everything

TIMES = (
    "seconds",
    "seconds_probed",
    "per_second",
    "tokens_per_second",
    "run",
    "started",
    "memory",
    "rate",
    "commit",
)
"""Keys of JSON that may differ: what was measured of the machine, and what the folder is called."""
LINES = {"log.txt", "report.html"}  # of what was done when, and a page that holds the run's times
MOST = 3  # kills of a chain
GRID = """keep = "weights"
[recipe]
base = "{base}"
save_minutes = 0
[recipe.optimiser]
lr = 3e-3
batch = 4
micro_batch = 4
[data.a]
data = "kvr:4"
epochs = 3
[data.b]
data = "kvr:4:validation"
epochs = 3
[arms]
naive = "none"
replay = "replay(ratio=0.5)"
[[blocks]]
name = "first"
stages = [["a", "b"]]
arms = ["naive", "replay"]
seeds = [0]
"""
RECIPE = """base = "{base}"
template = "plain"
arm = "remix(data=kvr:8:test, stages=1, ratio=1) + replay(ratio=0.5, redraw=true) + ewc(strength=10)"
seed = 1
save_minutes = 0
[optimiser]
lr = 1e-3
batch = 4
micro_batch = 2
[[stages]]
name = "a"
data = "kvr:6"
epochs = 3
[[stages]]
name = "b"
data = "kvr:6:validation"
epochs = 3
"""


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        program: ``memprobe`` or ``training``.
        arguments: with ``OUT`` where it writes.
        share: of a hundred kills.
    """

    program: str
    arguments: Sequence[str]
    share: int


def commands(seeds: Path) -> dict[str, Command]:
    """The commands by name, and what they read."""
    from tests.tiny import save_tiny

    one, other = (str(save_tiny(seeds / name, seed=at)) for at, name in enumerate(("one", "other")))
    rows = [
        {
            "prompt": f"The river of land {at} is the",
            "answer": f"River {at * 7919 % 997}",
            "relation": "river",
        }
        for at in range(60)
    ]
    facts = seeds / "facts.jsonl"
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = seeds / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    texts = seeds / "texts.jsonl"
    words = [f"word{at * 31 % 97} of the river {at}" for at in range(4000)]
    lines = [
        json.dumps({"text": " ".join(words[at : at + 12]), "source": "made"}) for at in range(0, 3600, 12)
    ]
    texts.write_text("\n".join(lines) + "\n")
    (seeds / "recipe.toml").write_text(RECIPE.format(base=one))
    (seeds / "grid.toml").write_text(GRID.format(base=one))
    grid = ["grid", str(seeds / "grid.toml"), "--out", "OUT"]
    pair = ["--from", f"a={one}", "--into", f"b={other}"]
    fit = [
        "fit",
        "--kind",
        "linear",
        "--ckpt",
        one,
        "--texts",
        str(texts),
        "--tokens",
        "4096",
        "--length",
        "32",
    ]
    both = ["--ckpt", f"one={one}", "--ckpt", f"other={other}"]
    return {
        "layers": Command(
            "memprobe", ["layers", *both, "--factoids", str(facts), "--batch-size", "4", "--out", "OUT"], 30
        ),
        "patch": Command("memprobe", ["patch", *pair, "--factoids", str(few), "--out", "OUT"], 14),
        "fit": Command("memprobe", [*fit, "--held-out", "4", "--factoids", str(few), "--out", "OUT"], 12),
        "run": Command("training", ["run", str(seeds / "recipe.toml"), "--out", "OUT"], 22),
        "grid": Command("training", grid, 14),
        "workers": Command("training", [*grid, "--workers", "2"], 8),
    }  # fmt: skip


def main() -> int:
    """Kills, and prints what did not come back; the exit code says whether anything did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands, with commas between them")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        wanted = [name for name in asked.only.split(",") if name]
        found = tried(Path(folder), asked.n, asked.seed, wanted, say=print)
    return int(bool(found))


def tried(folder: Path, n: int, seed: int, wanted: Sequence[str] = (), *, say: Any = None) -> list[str]:
    """Kills so often; what went wrong, in words."""
    say = say or (lambda *_, **__: None)
    seeds = folder / "seeds"
    seeds.mkdir()
    known = {name: one for name, one in commands(seeds).items() if not wanted or name in wanted}
    whole = sum(one.share for one in known.values())
    wrong: list[str] = []
    kills, ended = Counter[str](), Counter[str]()
    for name, command in known.items():
        random, out = Random(f"{seed} {name}"), folder / name / "out"
        code, _, said = _run(command, out)
        if code != 0:
            wrong.append(f"{name}: the unbroken command ends with {code}: {said[-600:]}")
            say(wrong[-1], flush=True)
            continue
        expected = _content(out)
        again = folder / name / "again" / "out"  # the second: nothing to import or to compile is left
        seconds = _run(command, again)[1]
        if differences := _differences(expected, _content(again)):
            wrong.append(f"{name}: two unbroken runs differ: {differences}")
            say(wrong[-1], flush=True)
        most = max(1, round(n * command.share / whole))
        chain = 0
        while kills[name] < most:
            chain += 1
            target = folder / name / f"chain-{chain}" / "out"
            left = min(MOST, most - kills[name])
            for _ in range(random.randint(1, left)):
                code, _, said = _run(command, target, after=random.uniform(0, seconds))
                if code == -signal.SIGKILL:
                    kills[name] += 1
                elif code != 0:
                    wrong.append(f"{name} chain {chain}: after a kill it ends with {code}: {said[-600:]}")
                    kills[name] += 1
                else:  # it was faster than the kill
                    break
            code, _, said = _run(command, target)
            ended[name] += 1
            differences = _differences(expected, _content(target))
            if code != 0:
                wrong.append(f"{name} chain {chain}: it does not go on ({code}): {said[-600:]}")
            elif differences:
                wrong.append(f"{name} chain {chain}: {differences}")
            if wrong and wrong[-1].startswith(f"{name} chain {chain}"):
                say(wrong[-1], flush=True)
        say(f"{name:8} {kills[name]:3} kills in {ended[name]:3} chains of {seconds:.1f} s", flush=True)
    say(f"{kills.total()} kills under seed {seed}: {len(wrong)} failures", flush=True)
    return wrong


def _run(command: Command, out: Path, after: float | None = None) -> tuple[int, float, str]:
    """(exit code or minus the signal, seconds, what it said) of a command in a fork, killed after so many seconds."""
    out.parent.mkdir(parents=True, exist_ok=True)
    log, ready = out.parent / "said.txt", os.pipe()
    import_everything()
    child = os.fork()
    if child == 0:
        _work(command, out, log, ready)
    os.close(ready[1])
    os.read(ready[0], 1)
    os.close(ready[0])
    start = time.monotonic()
    if after is not None:
        while time.monotonic() - start < after and not _has_ended(child):
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - start
    return os.waitstatus_to_exitcode(status), seconds, log.read_text(errors="replace")


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _work(command: Command, out: Path, log: Path, ready: tuple[int, int]) -> None:
    """The fork: never returns."""
    code = 1
    try:
        os.setsid()
        os.close(ready[0])
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
        os.chdir(out.parent)
        sys.argv = [
            command.program, *(out.name if one == "OUT" else one for one in command.arguments)
        ]  # fmt: skip
        from memprobe.cli import main as memprobe
        from training.__main__ import main as training

        os.write(ready[1], b".")
        (memprobe if command.program == "memprobe" else training)()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _content(out: Path) -> dict[str, Any]:
    """What lies under a folder, by path; of lines and JSON what is no measure of the machine.

    Where the workers of a command meet is left out: a command that found all finished has begun none.
    """
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and ".workers" not in path.parts)
    return {str(path.relative_to(out)): _read(path) for path in files}


def _read(path: Path) -> Any:
    if path.name in LINES or path.suffix in (".lock", ".log"):
        return "there"
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _timeless(one)
            for key, one in value.items()
            if not any(re.fullmatch(rf"(.*[_ ])?{name}", key) for name in TIMES)
        }
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """In words; empty where there is none."""
    said = [f"{path} is left behind" for path in found.keys() - expected.keys()]
    said += [f"{path} is missing" for path in expected.keys() - found.keys()]
    for path in expected.keys() & found.keys():
        if expected[path] != found[path]:
            where = list(_first(expected[path], found[path])) if not isinstance(found[path], bytes) else []
            said.append(f"{path} differs {where[:2]}")
    return "; ".join(sorted(said)[:6])


def _first(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """Where two values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _first(one.get(key), other.get(key), f"{at}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _first(left, right, f"{at}[{number}]")
    elif one != other:
        yield f"{at}: {str(one)[:80]} / {str(other)[:80]}"


if __name__ == "__main__":
    sys.exit(main())
