"""The directory of patches as it is written: locked for one process, begun, filled batch by batch, never torn.

Killed at any moment, the same call goes on: what is finished lies in ``patches/parts`` until its file is whole.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.files import parquet_errors, write_json, write_parquet
from memprobe.locks import one_process
from memprobe.parquet import mark_of
from memprobe.patches import FOLDER, LOCK, NOT_FINITE, PATCHING, open_patches, read_rows
from memprobe.records import PATCHES, factoids_frame, factoids_from_frame
from memprobe.sameness import other_checkpoint, other_facts, without
from memprobe.starting_over import settle

FLUSH_SECONDS = 20
"""At most so much work is lost when patching is killed."""

Progress = Callable[[str, int, int], None]
"""Called with (what is patched, factoids done, factoids in all)."""

Batches = Callable[[frozenset[str]], "tuple[int, Iterator[pl.DataFrame]]"]
"""From the ids of factoids that are done to the models' blocks and the tables of the others."""

_SAME = ("template", "tokenisation", "dtype", "seed", "factoids")
_OPTIONS = ("depths", "controls", "corrupt", "noise", "windows", "parts")


def write_pair(
    out: Path,
    run: dict[str, Any],
    key: str,
    wanted: dict[str, Any],
    start: Batches,
    factoids: Sequence[Factoid],
    progress: Progress | None,
) -> None:
    """Writes one file: finished batches first, then the whole, then the entry that calls it complete.

    Args:
        factoids: those asked; of which no batch has rows, a logit was not finite.
    """
    total = len(factoids)
    parts = parts_dir(out, key)
    written = sorted(parts.glob("batch-*.parquet"))
    done = {name for file in written for name in read_rows(file)["factoid"].unique()}
    n_layers, batches = start(frozenset(done))
    title = " ".join([wanted["source"], "into", wanted["into"], wanted["what"], wanted["positions"]])
    if progress is not None:
        progress(title, len(done), total)  # before the first batch, whose time counts in the rate
    # What is asked for is checked when the first batch is made: a refusal leaves no entry.
    first = next(batches, None)
    run["pairs"][key] = wanted | {"n_layers": n_layers, "complete": False}
    write_json(run, out / FOLDER / "run.json")
    waiting: list[pl.DataFrame] = []
    number, flushed = len(written), time.monotonic()

    def flush() -> None:
        nonlocal number, flushed
        if waiting:
            write_parquet(pl.concat(waiting), parts / f"batch-{number:06}.parquet")
            number += 1
            waiting.clear()
        flushed = time.monotonic()

    try:
        for table in itertools.chain([] if first is None else [first], batches):
            waiting.append(table)
            done |= set(table["factoid"])
            if time.monotonic() - flushed > FLUSH_SECONDS:
                flush()
            if progress is not None:
                progress(title, len(done), total)
    finally:
        flush()  # what is finished stays, also after Ctrl-C
    files = sorted(parts.glob("batch-*.parquet"))
    whole = pl.concat([pl.DataFrame(schema=PATCHES), *(read_rows(file) for file in files)])
    order = pl.DataFrame({"factoid": whole["factoid"].unique().sort()}).with_row_index("_place")
    keys = ["_place", "parts", "depth", "last", "control", "token"]
    whole = whole.join(order, on="factoid", maintain_order="left").sort(keys).drop("_place")
    write_parquet(whole.select(list(PATCHES)), out / FOLDER / f"{key}.parquet")
    failed = sorted({factoid.id for factoid in factoids} - set(whole["factoid"]))
    if failed:
        run["pairs"][key]["errors"] = dict.fromkeys(failed, NOT_FINITE)
        if progress is not None:
            progress(title, total, total)
    run["pairs"][key] |= {"complete": True, "mark": mark_of(out / FOLDER / f"{key}.parquet")}
    write_json(run, out / FOLDER / "run.json")
    shutil.rmtree(parts, ignore_errors=True)


def open_or_start(out: Path, wanted: dict[str, Any], factoids: Sequence[Factoid]) -> dict[str, Any]:
    """What ``patches/run.json`` says, of patches that are there or begun now.

    Raises:
        MemprobeError: ``out`` holds patches made otherwise, or other factoids.
    """
    file = out / "factoids.parquet"
    if (out / FOLDER / "run.json").exists():
        run = dict(open_patches(out).run)
        for key in _SAME:
            if without(run.get(key), "content") != without(wanted[key], "content"):
                raise MemprobeError(
                    f"{out}: these patches have {key} {_short(run.get(key))}; you asked for {_short(wanted[key])}; "
                    "use another --out, or --fresh to start over"
                )
        if changed := other_facts(run["factoids"], wanted["factoids"], lambda: _facts_in(file), factoids):
            raise MemprobeError(
                f"{out}: these patches have the same facts with other {changed}; "
                "use another --out, or --fresh to start over"
            )
        run |= {key: wanted[key] for key in ("memprobe", "versions")}
    else:
        run = wanted
    frame = factoids_frame(factoids)
    if file.exists():
        with parquet_errors(file):
            known = set(pl.read_parquet(file, columns=["id"])["id"])
        if not set(frame["id"]) <= known:
            raise MemprobeError(f"{out}: holds a probe of other factoids; use another --out")
    else:
        write_parquet(frame, file)
    write_json(run, out / FOLDER / "run.json")
    return run


def _facts_in(file: Path) -> list[Factoid]:
    if not file.exists():
        return []
    with parquet_errors(file):
        return factoids_from_frame(pl.read_parquet(file))


def check_same(out: Path, entry: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses to go on with a pair that was patched with other weights or options.

    Raises:
        MemprobeError: so.
    """
    pair = f"{wanted['source']} into {wanted['into']}, {wanted['what']} {wanted['positions']}"
    for side in ("source", "target"):
        if held := other_checkpoint(entry, wanted, f"{side}_"):
            raise MemprobeError(
                f"{out}: holds {held} under the label {wanted[side]!r}; use another label or --out"
            )
    for key in _OPTIONS:
        if entry.get(key) != wanted[key]:
            raise MemprobeError(
                f"{out}: {pair} was patched with {key} {_short(entry.get(key))}, now {_short(wanted[key])}; "
                "use another --out, or --fresh to start over"
            )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds a directory's patches for one process; inside, the same thread may lock it again.

    Patches that a killed process had set aside come back.

    Raises:
        MemprobeError: another process patches into it, it holds other files, or it cannot be written.
    """
    known = (FOLDER, "factoids.parquet", "patches.html", "patches.json")
    mine = not out.exists() or (out / "run.json").exists()
    if not mine and (
        not out.is_dir() or any(file.name not in known and file.name[0] != "." for file in out.iterdir())
    ):
        raise MemprobeError(f"{out}: exists and holds no patches; use another --out")
    with one_process(out, "patching", lock=f"{FOLDER}/{LOCK}") as first:
        if first:
            settle(out, PATCHING)
        yield


def key_of(wanted: dict[str, Any]) -> str:
    """A file name that says what is in it; a hash tells apart labels that differ in what a file name may not hold."""
    text = f"{wanted['source']} into {wanted['into']}"
    mark = hashlib.sha256(text.encode()).hexdigest()[:6]
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")[:100]
    return ".".join([f"{plain}-{mark}", wanted["what"], wanted["positions"]])


def parts_dir(out: Path, key: str) -> Path:
    """Where a pair's finished batches lie while it is under way."""
    return out / FOLDER / "parts" / key


def _short(value: Any) -> str:
    if isinstance(value, dict) and "hash" in value:
        return f"{value['n']}, hash {value['hash'][:8]}"
    return "all" if value is None else str(value)
