"""How much memory and time large probes take: many checkpoints, many factoids, many appends.

    python -m tests.benchmarks.load [read] [append] [--checkpoints 200] [--factoids 500] [--depths 33]
        [--appends 300] [--through python layers 'layers --no-report']
    python -m tests.benchmarks.load stream [--stream 20000 100000] [--ckpt smollm2-135m --source popqa --data-dir DIR]
        [--out DIR]

"read": ``dashboard``, ``compare`` and ``layers``' report over synthetic records of so many checkpoints, then over one
checkpoint of 20,000 factoids; each in a process of its own, with its peak resident memory.
"append": a tiny model is probed under 300 labels, one call after another into one directory: in Python, by ``layers``,
or by ``layers --no-report`` (``--through``); the time of a call must not grow with what is there, but for ``layers``,
whose page shows all that is.
"stream": ``layers`` probes so many factoids in one call, a process for each number; without ``--ckpt`` made-up ones
whose answers have two to four tokens, through a tiny model of 30 blocks, and without generating what the model says
(each batch's own, and four fifths of the time there). The peak must grow by what the factoids themselves take, not by
their records. With ``--out`` the probes are kept, and one that was broken off goes on (its figures are of the rest
alone).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

_THROUGH = ("python", "layers", "layers --no-report")
ROOT = Path(__file__).parents[2]
_PAGE = (
    "import sys; from memprobe.probes import open_probe; from memprobe.dashboard import write_report;"
    "write_report(open_probe(sys.argv[1]), sys.argv[2])"
)
_SUMMARY = (
    "import sys; from memprobe.probes import open_probe; from memprobe.summary import summarise;"
    "summarise(open_probe(sys.argv[1]))"
)

_WITHOUT_ANSWERS = (
    "from memprobe import capturing; capturing.answer = lambda *_: iter(());"
    "from memprobe.cli import main; main()"
)


def measured(name: str, command: list[str], page: Path | None = None) -> None:
    """Runs a command and prints what it took."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    _, status, used = os.wait4(process.pid, 0)
    size = f", page {page.stat().st_size / 1e6:.1f} MB" if page and page.exists() else ""
    print(
        f"{name:34} peak {used.ru_maxrss / 2**10:6.0f} MiB, {used.ru_utime + used.ru_stime:6.1f} s of processor, "
        f"{time.monotonic() - start:6.1f} s{size}{'' if status == 0 else f'; FAILED ({status})'}",
        flush=True,
    )


def read(checkpoints: int, factoids: int, depths: int) -> None:
    """The commands that read a probe."""
    from tests.benchmarks.report_load import write_large_probe

    with tempfile.TemporaryDirectory() as folder:
        for count, facts in ((checkpoints, factoids), (1, 20_000)):
            path = write_large_probe(Path(folder) / f"{count}", count, facts, depths, answer_tokens=1).path
            page, out = path / "page.html", path / "compared"
            shape = f"{count} x {facts:,} x {depths}"
            memprobe = ["-m", "memprobe"]
            measured(f"dashboard {shape}", [*memprobe, "dashboard", str(path), "--out", str(page)], page)
            measured(f"compare {shape}", [*memprobe, "compare", str(path), "--out", str(out)])
            measured(f"report {shape}", ["-c", _PAGE, str(path), str(page)], page)
            measured(f"summary {shape}", ["-c", _SUMMARY, str(path)])


def append(checkpoints: int, through: str) -> None:
    """One call after another into one directory, then what reads it."""
    import memprobe
    from memprobe.cli import main
    from tests.tiny import save_tiny

    rows = [{"prompt": f"The river of land {i} is the", "answer": f"River {i}"} for i in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        out, facts, seconds = Path(folder) / "probe", Path(folder) / "facts.jsonl", []
        facts.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        spec = save_tiny(Path(folder) / "model")
        options = ["--factoids", str(facts), "--out", str(out), *through.split()[1:]]
        for number in range(checkpoints):
            start = time.process_time()
            if through == "python":
                memprobe.probe([f"step{number}={spec}"], str(facts), out=out, device="cpu")
            else:
                sys.argv = ["memprobe", "layers", "--ckpt", f"step{number}={spec}", *options]
                with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(SystemExit):
                    main()
            seconds.append(time.process_time() - start)
        assert len(memprobe.open_probe(out).checkpoints) == checkpoints
        fifth = max(1, checkpoints // 5)
        for name, part in (("first", seconds[1 : 1 + fifth]), ("last", seconds[-fifth:])):
            print(
                f"append by {through}, {name} {fifth:3} of {checkpoints}: "
                f"{sum(part) / len(part):.3f} s of processor a call",
                flush=True,
            )
        if through == "python":
            measured(f"compare of {checkpoints} appended", ["-m", "memprobe", "compare", str(out)])


def stream(
    numbers: list[int], ckpt: str | None, source: str | None, data_dir: str | None, kept: str | None
) -> None:
    """One probe of each number of factoids, its report and tables with it."""
    import polars as pl

    from tests.tiny import tiny_model, tiny_tokenizer

    rivers = ("Lunn", "Brack", "Ister", "Paris")
    with nullcontext(kept) if kept else tempfile.TemporaryDirectory() as name:
        folder, command = Path(name), ["-m", "memprobe"]
        folder.mkdir(parents=True, exist_ok=True)
        if ckpt is None:
            command = ["-c", _WITHOUT_ANSWERS]
            ckpt = str(folder / "tiny")
            tokenizer = tiny_tokenizer()
            if not Path(ckpt).exists():
                tiny_model(vocab_size=len(tokenizer), n_layers=30).save_pretrained(ckpt)
                tokenizer.save_pretrained(ckpt)
        for number in numbers:
            facts, out = source, folder / f"probe-{number}"
            if facts is None:
                facts = str(folder / f"{number}.jsonl")
                rows = (
                    {"prompt": f"The river of land {i} is the", "answer": rivers[i % len(rivers)]}
                    for i in range(number)
                )
                Path(facts).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            asked = ["--ckpt", ckpt, "--factoids", facts, "--n", str(number), "--out", str(out)]
            measured(
                f"layers of {number:,}",
                [*command, "layers", *asked, *(["--data-dir", data_dir] if data_dir else [])],
                out / "report.html",
            )
            records = pl.scan_parquet(out / "records" / "*.parquet").select(pl.len()).collect().item()
            size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
            print(f"  {records:,} rows of records; the probe has {size / 2**20:,.0f} MiB", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["read", "append"], choices=["read", "append", "stream"])
    parser.add_argument("--checkpoints", type=int, default=200)
    parser.add_argument("--factoids", type=int, default=500)
    parser.add_argument("--depths", type=int, default=33)
    parser.add_argument("--appends", type=int, default=300)
    parser.add_argument("--through", nargs="+", default=["python"], choices=[*_THROUGH])
    parser.add_argument("--stream", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--ckpt", help="of stream; by default a tiny model")
    parser.add_argument("--source", help="of stream's factoids")
    parser.add_argument("--data-dir", help="of that source")
    parser.add_argument("--out", help="folder that keeps stream's probes; default: a temporary one")
    asked = parser.parse_args()
    if "read" in asked.parts:
        read(asked.checkpoints, asked.factoids, asked.depths)
    if "append" in asked.parts:
        for through in asked.through:
            append(asked.appends, through)
    if "stream" in asked.parts:
        stream(asked.stream, asked.ckpt, asked.source, asked.data_dir, asked.out)


if __name__ == "__main__":
    main()
