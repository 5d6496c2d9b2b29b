"""Pairs of checkpoints × factoids → ``patches/`` in a probe directory: resumable, appendable, opened with one call.

    patches/run.json                what was patched: by pair and kind, with fingerprints and options
    patches/KEY.parquet             one file per pair and kind, never written again; rows of memprobe.records.PATCHES
    patches/parts/                  only while a pair is under way: finished batches
    factoids.parquet                what was asked

A kind is one of ``residual``, ``attn`` and ``mlp`` at one set of positions, or ``weights`` (the sweep of grafts), so
that a later call adds what an earlier one left out. Killed at any moment, the same call goes on.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe import __version__
from memprobe.checkpoints import Checkpoint, fingerprint, resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, factoids_hash
from memprobe.files import check_valid, parquet_errors, read_json, write_json, write_parquet
from memprobe.lineage import trained_as
from memprobe.parquet import check_mark, mark_of
from memprobe.records import PATCHES, factoids_frame
from memprobe.run_file import PatchesFile
from memprobe.templates import TOKENISATION, Template

if TYPE_CHECKING:
    from memprobe.models import LensModel

SCHEMA_VERSION = 1
FLUSH_SECONDS = 20
"""At most so much work is lost when patching is killed."""
FOLDER = "patches"

Progress = Callable[[str, int, int], None]
"""Called with (what is patched, factoids done, factoids in all)."""

_SAME = ("template", "tokenisation", "dtype", "seed", "factoids")
_PACKAGES = ("torch", "transformers", "polars")
_OPTIONS = ("depths", "controls", "corrupt", "noise", "windows", "parts")


@dataclass(frozen=True)
class Patches:
    """A directory of patches, opened.

    ``run`` says what was patched; ``run["pairs"]`` has an entry per file, with source, target, what, positions,
    n_layers, fingerprints and options.
    """

    path: Path
    run: dict[str, Any]

    @cached_property
    def table(self) -> pl.DataFrame:
        """All finished rows; see :data:`memprobe.records.PATCHES`."""
        frames = []
        marks = [entry.get("mark") for entry in self.run["pairs"].values() if entry["complete"]]
        for file, mark in zip(self.files(), marks, strict=True):
            if mark:  # older ones have none
                check_mark(file, mark)
            frames.append(_read(file))
        return pl.concat([pl.DataFrame(schema=PATCHES), *frames])

    @cached_property
    def factoids(self) -> pl.DataFrame:
        """What was asked; see :data:`memprobe.records.FACTOIDS`."""
        file = self.path / "factoids.parquet"
        with parquet_errors(file):
            return pl.read_parquet(file)

    def files(self) -> list[Path]:
        """The finished files, in the order in which they were patched."""
        finished = [key for key, entry in self.run["pairs"].items() if entry["complete"]]
        return [self.path / FOLDER / f"{key}.parquet" for key in finished]

    @property
    def n_layers(self) -> int:
        """Blocks of the models."""
        return max((entry["n_layers"] for entry in self.run["pairs"].values()), default=0)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(source, target) labels as the table has them, in the order in which they were patched."""
        return list(dict.fromkeys((entry["source"], entry["into"]) for entry in self.run["pairs"].values()))


def open_patches(path: str | Path) -> Patches:
    """Opens a directory that ``memprobe patch`` wrote.

    Raises:
        MemprobeError: there are no patches, or they are of another schema.
    """
    path = Path(path)
    file = path / FOLDER / "run.json"
    if not file.exists():
        raise MemprobeError(f"{path}: holds no patches (memprobe patch --out makes them)")
    run = read_json(file)
    found = run.get("schema") if isinstance(run, dict) else None
    if found != SCHEMA_VERSION:
        raise MemprobeError(f"{file}: schema {found!r}, this memprobe reads {SCHEMA_VERSION}; patch again")
    check_valid(run, PatchesFile, file)
    return Patches(path, run)


@dataclass(frozen=True)
class Pair:
    """Which checkpoint's states or weights are put into which."""

    source: Checkpoint | LensModel
    target: Checkpoint | LensModel


def pair_up(sources: Sequence[str], targets: Sequence[str], *, allow_pickle: bool = False) -> list[Pair]:
    """``--from`` and ``--into`` in the order given; one that stands once goes with every one of the other.

    Raises:
        MemprobeError: their numbers do not fit, or a label means two things.
    """
    if len(sources) != len(targets) and 1 not in (len(sources), len(targets)):
        raise MemprobeError(
            f"--from stands {len(sources)} times and --into {len(targets)} times; "
            "give one of them once, or both as often"
        )
    known = {spec: resolve(spec, allow_pickle=allow_pickle) for spec in dict.fromkeys([*sources, *targets])}
    labels: dict[str, Checkpoint] = {}
    for checkpoint in known.values():
        other = labels.setdefault(checkpoint.label, checkpoint)
        if (other.spec, other.path) != (checkpoint.spec, checkpoint.path):
            raise MemprobeError(
                f"two checkpoints are called {checkpoint.label!r}; name them, as in --from LABEL=SPEC"
            )
    size = max(len(sources), len(targets))
    froms, intos = (list(given) * (size if len(given) == 1 else 1) for given in (sources, targets))
    return [Pair(known[source], known[target]) for source, target in zip(froms, intos, strict=True)]


def patch(
    pairs: Sequence[Pair],
    factoids: Sequence[Factoid],
    out: str | Path,
    *,
    what: Sequence[str] = ("residual",),
    positions: Sequence[str] = ("last",),
    depths: Sequence[int] | None = None,
    controls: bool = True,
    corrupt: bool = False,
    noise: float = 3.0,
    windows: Sequence[int] = (1,),
    parts: Sequence[str] = ("all",),
    template: str = "plain",
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Patches:
    """Patches every pair into a directory.

    Args:
        what: ``residual``, ``attn``, ``mlp``; ``weights`` for the sweep of grafts.
        positions: ``last``, ``subject``, ``prompt``; see :mod:`memprobe.patching`. Not for weights.
        depths: all by default. Not for weights.
        controls: also patch another factoid's states and random ones (random weights).
        corrupt: causal tracing: the target's run has noise on the subject's embeddings. Not for weights.
        noise: in standard deviations of the embeddings.
        windows, parts: see :func:`memprobe.grafting.sweep_batches`.
        progress: told of every batch.

    Raises:
        MemprobeError: bad input, ``out`` holds patches made otherwise, is in use, or cannot be written.
    """
    from memprobe import models

    out = Path(out)
    parsed = Template.parse(template)
    where = models.choose_device(device)
    precision = str(models.choose_dtype(dtype, where)).removeprefix("torch.")
    cache: dict[str, LensModel] = {}

    def loaded(item: Checkpoint | LensModel, keep: Sequence[str]) -> LensModel:
        if isinstance(item, models.LensModel):
            return item
        if item.label not in cache:
            for label in [label for label in cache if label not in keep]:
                del cache[label]  # no more than two models at a time
            cache[item.label] = models.load(
                item,
                device=str(where),
                dtype=precision,
                allow_pickle=allow_pickle,
                trust_remote_code=trust_remote_code,
            )
        return cache[item.label]

    unit_kinds = [(part, name) for part in what if part != "weights" for name in positions]
    if "weights" in what:
        unit_kinds.append(("weights", "all"))
    if not pairs or not unit_kinds:
        raise MemprobeError("there is nothing to patch")
    with _locked(out):
        run = _open_or_start(
            out,
            {
                "schema": SCHEMA_VERSION,
                "memprobe": __version__,
                "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
                "template": parsed.name,
                "tokenisation": TOKENISATION,
                "dtype": precision,
                "seed": seed,
                "factoids": {"n": len(factoids), "hash": factoids_hash(factoids)},
                "pairs": {},
            },
            factoids,
        )
        for pair in pairs:
            for part, name in unit_kinds:
                grafted = part == "weights"
                wanted: dict[str, Any] = {
                    "source": pair.source.label,
                    "target": pair.target.label,
                    "into": f"{pair.target.label} corrupted"
                    if corrupt and not grafted
                    else pair.target.label,
                    "what": part,
                    "positions": name,
                    "source_fingerprint": _fingerprint(pair.source),
                    "target_fingerprint": _fingerprint(pair.target),
                    "source_manifest": _made(pair.source),
                    "target_manifest": _made(pair.target),
                    "depths": None if grafted or depths is None else sorted(set(depths)),
                    "controls": controls,
                    "corrupt": corrupt and not grafted,
                    "noise": noise if corrupt and not grafted else None,
                    "windows": list(windows) if grafted else None,
                    "parts": list(parts) if grafted else None,
                }
                key = _key(wanted)
                entry = run["pairs"].get(key)
                if entry is not None:
                    _check_same(out, entry, wanted)
                    if entry["complete"]:
                        shutil.rmtree(_parts_dir(out, key), ignore_errors=True)
                        continue
                batches = (
                    _weights(pair, loaded, factoids, parsed, wanted, seed, batch_size)
                    if grafted
                    else _states(pair, loaded, factoids, parsed, wanted, seed, batch_size)
                )
                _write(out, run, key, wanted, batches, len(factoids), progress)
        shutil.rmtree(out / FOLDER / "parts", ignore_errors=True)
        return open_patches(out)


_Load = Callable[["Checkpoint | LensModel", Sequence[str]], "LensModel"]
_Batches = Callable[[frozenset[str]], "tuple[int, Iterator[pl.DataFrame]]"]


def _states(
    pair: Pair, loaded: _Load, factoids: Sequence[Factoid], template: Template, wanted: dict[str, Any],
    seed: int, batch_size: int | None,
) -> _Batches:  # fmt: skip
    def start(done: frozenset[str]) -> tuple[int, Iterator[pl.DataFrame]]:
        from memprobe.patching import CONTROLS, patch_batches, plan_patches

        labels = (pair.source.label, pair.target.label)
        source, target = loaded(pair.source, labels), loaded(pair.target, labels)
        plan = plan_patches(
            source,
            target,
            factoids,
            template,
            what=[wanted["what"]],
            positions=[wanted["positions"]],
            depths=wanted["depths"],
            controls=CONTROLS if wanted["controls"] else (),
            corrupt=wanted["corrupt"],
            noise=wanted["noise"] or 0.0,
            seed=seed,
        )
        return target.n_layers, patch_batches(source, target, plan, batch_size=batch_size, done=done)

    return start


def _weights(
    pair: Pair, loaded: _Load, factoids: Sequence[Factoid], template: Template, wanted: dict[str, Any],
    seed: int, batch_size: int | None,
) -> _Batches:  # fmt: skip
    def start(done: frozenset[str]) -> tuple[int, Iterator[pl.DataFrame]]:
        from memprobe.grafting import donor_of, sweep_batches
        from memprobe.patching import check_same_tokens
        from memprobe.templates import tokenise_all

        source = loaded(pair.source, ())
        theirs = tokenise_all(factoids, template, source.tokenizer, source.max_length)
        donor = donor_of(source, theirs)
        del source  # from here on its weights are kept, and no second model
        target = loaded(pair.target, ())
        items = tokenise_all(factoids, template, target.tokenizer, target.max_length)
        check_same_tokens(f"{pair.source.label} into {pair.target.label}", items, theirs)
        batches = sweep_batches(
            donor,
            target,
            items,
            windows=wanted["windows"],
            parts=wanted["parts"],
            control=wanted["controls"],
            seed=seed,
            batch_size=batch_size,
            done=done,
        )
        return target.n_layers, batches

    return start


def _write(
    out: Path,
    run: dict[str, Any],
    key: str,
    wanted: dict[str, Any],
    start: _Batches,
    total: int,
    progress: Progress | None,
) -> None:
    """Writes one file: finished batches first, then the whole, then the entry that calls it complete."""
    parts = _parts_dir(out, key)
    written = sorted(parts.glob("batch-*.parquet"))
    done = {name for file in written for name in _read(file)["factoid"].unique()}
    n_layers, batches = start(frozenset(done))
    run["pairs"][key] = wanted | {"n_layers": n_layers, "complete": False}
    write_json(run, out / FOLDER / "run.json")
    said = " ".join([wanted["source"], "into", wanted["into"], wanted["what"], wanted["positions"]])
    if progress is not None:
        progress(said, len(done), total)
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
        for table in batches:
            waiting.append(table)
            done |= set(table["factoid"])
            if time.monotonic() - flushed > FLUSH_SECONDS:
                flush()
            if progress is not None:
                progress(said, len(done), total)
    finally:
        flush()  # what is finished stays, also after Ctrl-C
    files = sorted(parts.glob("batch-*.parquet"))
    whole = pl.concat([pl.DataFrame(schema=PATCHES), *(_read(file) for file in files)])
    order = pl.DataFrame({"factoid": whole["factoid"].unique().sort()}).with_row_index("_place")
    keys = ["_place", "parts", "depth", "last", "control", "token"]
    whole = whole.join(order, on="factoid", maintain_order="left").sort(keys).drop("_place")
    write_parquet(whole.select(list(PATCHES)), out / FOLDER / f"{key}.parquet")
    run["pairs"][key] |= {"complete": True, "mark": mark_of(out / FOLDER / f"{key}.parquet")}
    write_json(run, out / FOLDER / "run.json")
    shutil.rmtree(parts, ignore_errors=True)


def _open_or_start(out: Path, wanted: dict[str, Any], factoids: Sequence[Factoid]) -> dict[str, Any]:
    if (out / FOLDER / "run.json").exists():
        run = dict(open_patches(out).run)
        for key in _SAME:
            if run.get(key) != wanted[key]:
                raise MemprobeError(
                    f"{out}: these patches have {key} {_short(run.get(key))}; you asked for {_short(wanted[key])}; "
                    "use another --out, or --fresh to start over"
                )
        run |= {key: wanted[key] for key in ("memprobe", "versions")}
    else:
        run = wanted
    frame = factoids_frame(factoids)
    file = out / "factoids.parquet"
    if file.exists():
        known = set(pl.read_parquet(file, columns=["id"])["id"])
        if not set(frame["id"]) <= known:
            raise MemprobeError(f"{out}: holds a probe of other factoids; use another --out")
    else:
        write_parquet(frame, file)
    write_json(run, out / FOLDER / "run.json")
    return run


def _check_same(out: Path, entry: dict[str, Any], wanted: dict[str, Any]) -> None:
    pair = f"{wanted['source']} into {wanted['into']}, {wanted['what']} {wanted['positions']}"
    for side in ("source", "target"):
        if entry[f"{side}_fingerprint"] != wanted[f"{side}_fingerprint"]:
            raise MemprobeError(
                f"{out}: holds other weights under the label {wanted[side]!r}; use another label or --out"
            )
    for key in _OPTIONS:
        if entry.get(key) != wanted[key]:
            raise MemprobeError(
                f"{out}: {pair} was patched with {key} {_short(entry.get(key))}, now {_short(wanted[key])}; "
                "use another --out, or --fresh to start over"
            )


def delete_patches(out: Path) -> None:
    """Deletes the patches of a directory, and its factoids where no probe needs them."""
    if (out / FOLDER / "run.json").exists():
        shutil.rmtree(out / FOLDER)
        if not (out / "run.json").exists():
            for name in ("factoids.parquet", "patches.html"):
                (out / name).unlink(missing_ok=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds a directory's patches for one process.

    Raises:
        MemprobeError: another process patches into it, it holds other files, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    known = (FOLDER, "factoids.parquet", "patches.html", "patches.json")
    mine = not out.exists() or (out / "run.json").exists()
    if not mine and (not out.is_dir() or any(not _is_ours(file, known) for file in out.iterdir())):
        raise MemprobeError(f"{out}: exists and holds no patches; use another --out")
    lock = FileLock(out / FOLDER / ".lock", timeout=0)
    try:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise MemprobeError(f"{out}: another process is patching here; wait for it, or give --out") from error
    except OSError as error:
        raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            (out / FOLDER / ".lock").unlink()
            (out / FOLDER).rmdir()  # where nothing came of it
            out.rmdir()


def _is_ours(file: Path, known: Sequence[str]) -> bool:
    return file.name in known or file.name.startswith(".")


def _read(file: Path) -> pl.DataFrame:
    try:
        found = pl.read_parquet(file)
    except Exception as error:  # polars raises several kinds for a torn file
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise MemprobeError(f"{file}: cannot be read as Parquet ({said})") from error
    if found.schema != PATCHES:
        raise MemprobeError(f"{file}: its columns are not those of patches")
    return found


def _fingerprint(item: Checkpoint | LensModel) -> str:
    return fingerprint(item) if isinstance(item, Checkpoint) else item.fingerprint


def _made(item: Checkpoint | LensModel) -> dict[str, Any] | None:
    """How a checkpoint was trained; a graft is no stage of a run."""
    checkpoint = item if isinstance(item, Checkpoint) else item.checkpoint
    manifest = checkpoint.manifest if checkpoint and checkpoint.kind != "graft" else None
    return None if manifest is None else trained_as(manifest)


def _key(wanted: dict[str, Any]) -> str:
    """A file name that says what is in it; a hash tells apart labels that differ in what a file name may not hold."""
    text = f"{wanted['source']} into {wanted['into']}"
    mark = hashlib.sha256(text.encode()).hexdigest()[:6]
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")[:100]
    return ".".join([f"{plain}-{mark}", wanted["what"], wanted["positions"]])


def _parts_dir(out: Path, key: str) -> Path:
    return out / FOLDER / "parts" / key


def _short(value: Any) -> str:
    if isinstance(value, dict) and "hash" in value:
        return f"{value['n']}, hash {value['hash'][:8]}"
    return "all" if value is None else str(value)
