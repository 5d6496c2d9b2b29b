"""Checkpoints × factoids → a probe directory: resumable, appendable, always readable.

A checkpoint under way leaves finished batches in ``parts/``; when it is complete they are merged into the
three tables, and only then does ``run.json`` call it complete. Killed at any moment, the same call goes on.
A second process on the same directory is refused.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe import __version__
from memprobe.checkpoints import (
    Checkpoint,
    Manifest,
    check_labels,
    checkpoints_of,
    default_template,
    fingerprint,
    resolve,
)
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, factoids_hash
from memprobe.files import write_json, write_parquet
from memprobe.probes import Probe, open_probe, part_files, parts_dir, scan_table
from memprobe.records import SCHEMA_VERSION, TABLES, factoids_frame
from memprobe.sources import load_factoids
from memprobe.statistics.holding import TokenRule
from memprobe.templates import TOKENISATION, Template

if TYPE_CHECKING:
    import torch

    from memprobe.capturing import BatchSize, Tables
    from memprobe.models import LensModel

FLUSH_SECONDS = 20
"""At most so much work is lost when a probe is killed."""

PRECISION_SAMPLE = 16
"""Factoids whose ranks are held against fp32 where a probe computes in less."""

LOCK = ".lock"

_PACKAGES = ("torch", "transformers", "transformer-lens", "polars")
_SAME = ("lens", "readout", "template", "tokenisation", "dtype", "seed", "factoids", "intrusions")

Progress = Callable[[str, int, int], None]
"""Called with (label, factoids done, factoids in all)."""


def probe(
    checkpoints: Sequence[str | Checkpoint | LensModel],
    factoids: Sequence[Factoid] | str,
    out: str | Path,
    *,
    template: str | None = None,
    readout: str | Checkpoint | LensModel | None = None,
    intrusions: Mapping[str, Sequence[Factoid]] | None = None,
    k: int = 10,
    token: TokenRule = "first",
    batch_size: BatchSize = "auto",
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    steps: Mapping[str, int] | None = None,
    origin: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Probe:
    """Probes checkpoints into a directory, one model in memory at a time.

    A directory that already holds checkpoints probed in the same way keeps them; finished ones are not
    probed again, so that the same call continues a killed one and further checkpoints can be added.

    In bf16 or fp16, a checkpoint is loaded once more in fp32 for its first :data:`PRECISION_SAMPLE` factoids, and
    ``run.json`` says by checkpoint, under ``precision``, how many ranks the shorter numbers changed. Models in
    memory are taken as they are.

    Args:
        checkpoints: specs, resolved checkpoints, or models in memory.
        factoids: what is asked; a text is a source's name or a file.
        out: the probe directory.
        template: see :class:`memprobe.templates.Template`; ``None``: that of the manifests, else ``plain``.
        readout: reads every checkpoint with this one's norm and unembedding instead of its own.
        intrusions: by name, factoids whose answers are watched for.
        k: the top-k of the summary.
        token: the token rule of the summary.
        batch_size: factoids a batch.
        seed: of the shuffled controls.
        allow_pickle, trust_remote_code: see :mod:`memprobe.models`.
        steps: training steps by label, for probes along a training run.
        origin: where the factoids came from, for ``run.json`` (:meth:`memprobe.sources.Origin.to_dict`).
        progress: told of every batch.

    Raises:
        MemprobeError: bad input, ``out`` holds something else, is in use, or cannot be written.
    """
    from memprobe import models
    from memprobe.capturing import capture_batches, plan_capture

    out = Path(out)
    where = models.choose_device(device)
    precision = str(models.choose_dtype(dtype, where)).removeprefix("torch.")

    def loaded(checkpoint: str | Checkpoint | LensModel, exactly: bool = False) -> LensModel:
        if isinstance(checkpoint, models.LensModel):
            return checkpoint
        return models.load(
            checkpoint,
            device=str(where),
            dtype="float32" if exactly else precision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )

    if isinstance(factoids, str):
        factoids = load_factoids(factoids, seed=seed)
    named = _named(checkpoints, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    parsed = Template.parse(template or default_template(checkpoints_of(named)))
    in_memory = [item for item in named if isinstance(item, models.LensModel)]
    if in_memory:
        precision = str(in_memory[0].model.dtype).removeprefix("torch.")
    other = None if readout is None else loaded(readout)
    wanted = {
        "schema": SCHEMA_VERSION,
        "memprobe": __version__,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "lens": "logit",
        "readout": "own" if other is None else other.label,
        "template": parsed.name,
        "tokenisation": TOKENISATION,
        "dtype": precision,
        "seed": seed,
        "factoids": _describe(factoids),
        "origin": dict(origin) if origin is not None else None,
        "intrusions": {name: _describe(others) for name, others in (intrusions or {}).items()},
        "k": k,
        "token": token,
        "checkpoints": {},
        "tokens": {},
    }

    def capture_one(item: Checkpoint | LensModel, run: dict[str, Any]) -> None:
        lens_model = loaded(item)
        _check_readout(lens_model, other)
        plan = plan_capture(lens_model, factoids, parsed, intrusions=intrusions, seed=seed)
        if item.label not in run["checkpoints"]:
            run["checkpoints"][item.label] = _entry(lens_model, other, (steps or {}).get(item.label))
            write_json(run, out / "run.json")
        writer = _Parts(out, item.label)
        if progress is not None:
            progress(item.label, len(writer.done), len(plan.items))
        batches = capture_batches(
            lens_model,
            plan,
            readout=other.lens if other else None,
            batch_size=batch_size,
            done=frozenset(writer.done),
        )
        try:
            for tables in batches:
                writer.add(tables)
                if progress is not None:
                    progress(item.label, len(writer.done), len(plan.items))
        finally:
            writer.flush()  # what is finished stays, also after Ctrl-C
        _finish(out, run, lens_model)

    with locked(out):
        run = _open_or_start(out, wanted, factoids)
        for item in named:
            mark = item.fingerprint if isinstance(item, models.LensModel) else fingerprint(item)
            entry = run["checkpoints"].get(item.label)
            if entry is not None and (entry["fingerprint"], entry["readout_fingerprint"]) != (
                mark,
                other.fingerprint if other else mark,
            ):
                raise MemprobeError(
                    f"{out}: holds other weights under the label {item.label!r}; use another label or --out"
                )
            if entry is not None and entry["complete"]:
                _remove_parts(out, item.label)
            else:
                capture_one(item, run)  # one model at a time: it is gone when this returns
            entry = run["checkpoints"][item.label]
            if isinstance(item, models.LensModel) or isinstance(readout, models.LensModel):
                continue
            if precision != "float32" and "precision" not in entry:
                sample = factoids[:PRECISION_SAMPLE]
                exact = partial(loaded, exactly=True)
                entry["precision"] = _precision(out, run, item, readout, sample, exact, where)
                write_json(run, out / "run.json")
        summarise_run(out, run)
        return open_probe(out)


def _named(items: Sequence[str | Checkpoint | LensModel], **options: Any) -> list[Checkpoint | LensModel]:
    """Checkpoints and models with labels of their own.

    Raises:
        MemprobeError: a spec that cannot be resolved, something else than a spec or a model to read, or one label
            twice.
    """
    from memprobe.models import LensModel

    if isinstance(items, str | Checkpoint | LensModel):
        raise MemprobeError("give checkpoints as a list, also a single one: [checkpoint]")
    named: list[Checkpoint | LensModel] = []
    for item in items:
        if not isinstance(item, str | Checkpoint | LensModel):
            raise MemprobeError(
                f"a {type(item).__name__} is no checkpoint; memprobe.wrap(model, tokenizer, label=...) makes one"
            )
        named.append(resolve(item, **options) if isinstance(item, str) else item)
    check_labels(item.label for item in named)
    return named


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds a probe directory for one process; inside, the same thread may lock it again.

    Raises:
        MemprobeError: another process probes into it, it holds other files, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    _refuse_other_files(out)
    lock = FileLock(out / LOCK, timeout=0, is_singleton=True)
    outermost = not lock.is_locked
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise MemprobeError(f"{out}: another process is probing here; wait for it, or give --out") from error
    except OSError as error:
        raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        if outermost:
            with suppress(OSError):  # Windows keeps a file that is open
                (out / LOCK).unlink()
                out.rmdir()  # where nothing came of it
        lock.release()


def _precision(
    out: Path,
    run: dict[str, Any],
    item: Checkpoint,
    readout: str | Checkpoint | None,
    factoids: Sequence[Factoid],
    exact: Callable[[str | Checkpoint], LensModel],
    device: torch.device,
) -> dict[str, Any]:
    """How many of the stored ranks of some factoids are other ones in fp32.

    Args:
        exact: loads a checkpoint in fp32.

    Returns:
        ``dtype``, ``k``; ``factoids``, ``ranks``: how many were compared; ``changed``: share of ranks that differ;
        ``crossed``: share in the top k in one of the two alone. Where fp32 weights do not fit into memory the
        shares are null and ``why`` says so.
    """
    from memprobe.capturing import capture

    found = {
        "dtype": run["dtype"],
        "k": run["k"],
        "factoids": 0,
        "ranks": 0,
        "changed": None,
        "crossed": None,
    }
    needed = 4 * run["checkpoints"][item.label]["parameters"] * (1 if readout is None else 2)
    if needed > (free := _free_memory(device)):
        return found | {"why": f"fp32 weights need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free"}
    lens = None if readout is None else exact(readout).lens
    table = capture(exact(item), factoids, run["template"], readout=lens, seed=run["seed"], predictions=False)
    stored = pl.scan_parquet(out / "records.parquet").filter(pl.col("checkpoint") == item.label)
    keys = ["factoid", "token", "depth"]
    both = table.records.lazy().join(stored, on=keys, suffix="_stored").collect()
    ranks, k = (pl.col("rank"), pl.col("rank_stored")), run["k"]
    shares = both.select(
        changed=(ranks[0] != ranks[1]).mean(), crossed=((ranks[0] < k) != (ranks[1] < k)).mean()
    )
    return found | {"factoids": both["factoid"].n_unique(), "ranks": len(both)} | shares.row(0, named=True)


def _free_memory(device: torch.device) -> int:
    """Bytes that weights may still take: they are read into main memory, then moved to the device."""
    import psutil
    import torch

    free = psutil.virtual_memory().available
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return free


def summarise_run(out: Path, run: dict[str, Any]) -> None:
    """Writes ``summary.json`` from the tables."""
    from memprobe.statistics import summarise

    opened = Probe(out, run)
    checkpoints = summarise(opened, k=run["k"], token=run["token"])
    summary = {"schema": SCHEMA_VERSION, "k": run["k"], "token": run["token"], "checkpoints": checkpoints}
    write_json(summary, out / "summary.json")


class _Parts:
    """Collects batches and writes them out every :data:`FLUSH_SECONDS`."""

    def __init__(self, out: Path, label: str):
        self.out, self.label = out, label
        self.waiting: list[Tables] = []
        self.flushed = time.monotonic()
        finished = part_files(out, label, "outcomes")
        self.number = len(finished)
        self.done = {name for file in finished for name in pl.read_parquet(file)["factoid"]}

    def add(self, tables: Tables) -> None:
        self.waiting.append(tables)
        self.done |= set(tables.outcomes["factoid"])
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        from memprobe.capturing import Tables

        if self.waiting:
            merged = Tables.concat(self.waiting)
            for table in ("records", "controls", "outcomes"):  # outcomes last: they say that a part is whole
                file = parts_dir(self.out, self.label) / f"{table}-{self.number:06}.parquet"
                write_parquet(getattr(merged, table), file)
            self.number += 1
            self.waiting = []
        self.flushed = time.monotonic()


def _finish(out: Path, run: dict[str, Any], lens_model: LensModel) -> None:
    """Merges a checkpoint's parts into the tables, then calls it complete."""
    label = lens_model.label
    for table in ("records", "controls", "outcomes"):
        whole = out / f"{table}.parquet"
        old = (
            [scan_table(whole, TABLES[table]).filter(pl.col("checkpoint") != label)] if whole.exists() else []
        )
        new = [pl.scan_parquet(file) for file in part_files(out, label, table)]
        write_parquet(pl.concat([pl.LazyFrame(schema=TABLES[table]), *old, *new]), whole)
    entry = run["checkpoints"][label]
    texts = _token_texts(out, lens_model)
    shared = run["tokens"]
    entry["tokens"] = {key: text for key, text in texts.items() if shared.setdefault(key, text) != text}
    entry["complete"] = True
    write_json(run, out / "run.json")
    _remove_parts(out, label)


def _remove_parts(out: Path, label: str) -> None:
    """Removes what a finished checkpoint no longer needs; a kill in between leaves it to the next call."""
    if not (out / "parts").exists():
        return
    shutil.rmtree(parts_dir(out, label), ignore_errors=True)
    if not any((out / "parts").iterdir()):
        shutil.rmtree(out / "parts", ignore_errors=True)


def _token_texts(out: Path, lens_model: LensModel) -> dict[str, str]:
    own = pl.col("checkpoint") == lens_model.label
    records = pl.scan_parquet(out / "records.parquet").filter(own)
    controls = pl.scan_parquet(out / "controls.parquet").filter(own)
    columns = [records.select(id="top1"), records.select(id="token_id"), controls.select(id="token_id")]
    ids = pl.concat(columns).unique().sort("id").collect()["id"].to_list()
    texts = lens_model.tokenizer.batch_decode([[index] for index in ids], clean_up_tokenization_spaces=False)
    return {str(index): text for index, text in zip(ids, texts, strict=True)}


def _open_or_start(out: Path, wanted: dict[str, Any], factoids: Sequence[Factoid]) -> dict[str, Any]:
    """The run.json to go on with.

    Raises:
        MemprobeError: ``out`` was probed otherwise, or holds other files.
    """
    if (out / "run.json").exists():
        run = dict(open_probe(out).run)
        for key in _SAME:
            if run.get(key) != wanted[key]:
                raise MemprobeError(
                    f"{out}: probed with another {key} ({_short(run.get(key))}, now {_short(wanted[key])}); "
                    "use another --out, or --fresh to start over"
                )
        if not (out / "factoids.parquet").exists():  # killed between the two first writes
            write_parquet(factoids_frame(factoids), out / "factoids.parquet")
        return run | {key: wanted[key] for key in ("k", "token", "memprobe", "versions")}
    _refuse_other_files(out)
    write_json(wanted, out / "run.json")  # first: from here on the directory is a probe's, whatever happens
    write_parquet(factoids_frame(factoids), out / "factoids.parquet")
    return wanted


def _refuse_other_files(out: Path) -> None:
    """Raises a MemprobeError for what exists and is no probe directory."""
    if (out / "run.json").exists() or not out.exists():
        return
    if not out.is_dir() or any(not _unfinished(file) for file in out.iterdir()):
        raise MemprobeError(f"{out}: exists and is no probe directory; use another --out")


def _unfinished(file: Path) -> bool:
    """Whether a file is the lock or the first write of a probe, killed before it was whole."""
    return file.name == LOCK or file.name.startswith(".run.json.")


def _entry(lens_model: LensModel, other: LensModel | None, step: int | None) -> dict[str, Any]:
    checkpoint = lens_model.checkpoint
    manifest = checkpoint.manifest if checkpoint else None
    return {
        "spec": checkpoint.spec if checkpoint else None,
        "note": checkpoint.note if checkpoint else None,
        "architecture": type(lens_model.model).__name__,
        "fingerprint": lens_model.fingerprint,
        "readout_fingerprint": other.fingerprint if other else lens_model.fingerprint,
        "n_layers": lens_model.n_layers,
        "d_model": lens_model.d_model,
        "vocab": lens_model.vocab_size,
        "parameters": lens_model.model.num_parameters(),
        "difference": lens_model.difference,
        "manifest": _manifest_entry(manifest) if manifest else None,
        "step": step,
        "complete": False,
    }


def _manifest_entry(manifest: Manifest) -> dict[str, Any]:
    keys = ("arm", "seed", "stage", "stage_name", "steps", "template")
    return {key: getattr(manifest, key) for key in keys} | {"run": manifest.data.get("run")}


def _check_readout(lens_model: LensModel, other: LensModel | None) -> None:
    if other is None:
        return
    ours, theirs = (lens_model.d_model, lens_model.vocab_size), (other.d_model, other.vocab_size)
    if ours != theirs:
        raise MemprobeError(
            f"--readout {other.label}: reads {theirs[0]} x {theirs[1]}, "
            f"but {lens_model.label} is {ours[0]} x {ours[1]} (d_model x vocabulary)"
        )


def _describe(factoids: Sequence[Factoid]) -> dict[str, Any]:
    sources = sorted({factoid.source for factoid in factoids})
    return {"source": ", ".join(sources), "n": len(factoids), "hash": factoids_hash(factoids)}


def _short(value: Any) -> str:
    if isinstance(value, dict) and "hash" in value:
        return f"{value['n']} of {value['source']}, hash {value['hash'][:8]}"
    return str(value)
