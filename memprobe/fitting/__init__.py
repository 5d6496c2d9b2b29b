"""Fitting a lens: corpus → maps for each depth → how well they predict → how far two fits differ.

    texts ──> two halves, validation, test ──> a kind of memprobe.lens_kinds, unit by unit
                                                   │ state.safetensors, now and then
                                                   └──> lens.safetensors, half-1, half-2, lens.json

Killed at any moment, the same call goes on. What a fit is judged on is held out from it, and the floor says how much
of what the lens shows would be different had the corpus been another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from memprobe.errors import MemprobeError, among, first_line
from memprobe.factoids import check_made
from memprobe.files import replacing
from memprobe.fitting.corpus import Corpus, check_sizes, load_texts, make_corpus
from memprobe.fitting.floor import floor_of, measured_on
from memprobe.fitting.held_out import judge
from memprobe.identity import identity_of
from memprobe.lens_files import (
    ABOUT,
    HALVES,
    LENS_SCHEMA,
    WEIGHTS,
    AffineMap,
    read_about,
    read_lens,
    write_about,
    write_maps,
)
from memprobe.lens_kinds import FITTED_KINDS, fitter
from memprobe.lens_specs import make_lens
from memprobe.locks import one_process
from memprobe.sameness import differ
from memprobe.starting_over import Work, settle
from memprobe.templates import Template

if TYPE_CHECKING:
    from memprobe.factoids import Factoid
    from memprobe.models import LensModel

__all__ = ["FITTED", "Fitter", "check_kind", "check_sizes", "fit", "load_texts", "locked", "make_corpus"]

STATE = "state.safetensors"
SAVE_SECONDS = 60
"""At most so much work is lost when a fit is killed."""

Progress = Callable[[int, int, str], None]
"""Called with (units of work done, in all, what they are)."""


def _files(out: Path) -> list[Path]:
    """What a fit wrote into a directory."""
    return [file for name in (ABOUT, STATE, WEIGHTS, *HALVES) if (file := out / name).exists()]


FITTED = Work("lens", there=lambda out: bool(_files(out)), files=_files, shows=lambda out: bool(_files(out)))
"""A fit, as ``--fresh`` starts it over; it writes nothing before some of its work is done."""


class Fitter(Protocol):
    """A fit under way, made of units of work in a fixed order."""

    units: int

    def run(self, unit: int) -> None:
        """Does one unit."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a killed fit goes on from."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        ...

    def maps(self, half: int | None = None) -> dict[int, AffineMap]:
        """The maps fitted on one half of the corpus, or on both, for depths 0 … n_layers - 1."""
        ...


def check_kind(kind: str, steps: int | None) -> None:
    """Raises a MemprobeError for an unknown kind, or steps of what takes none; see :func:`fit`."""
    if kind not in FITTED_KINDS:
        raise MemprobeError(f"--kind {kind}: {among(kind, FITTED_KINDS)}")
    if steps is not None and (kind != "tuned" or steps < 1):
        raise MemprobeError(
            f"--steps {steps}: give a whole number of at least 1; only a tuned lens takes steps"
        )


def fit(
    kind: str,
    lens_model: LensModel,
    corpus: Corpus,
    out: str | Path,
    *,
    steps: int | None = None,
    factoids: Sequence[Factoid] = (),
    template: str = "plain",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fits a lens into a directory; see :mod:`memprobe.lens_files` for what it holds.

    Args:
        kind: one of :data:`memprobe.lens_kinds.FITTED_KINDS`.
        corpus: of :func:`make_corpus`.
        steps: for ``tuned``, at most so many steps of each half, on as much of its text; the least-squares map that
            they start from has all of it.
        factoids: facts on which the floor is measured, put as ``template`` says; without any it stays as it is, or
            there is none. A floor that was measured on others is measured again.

    Returns:
        What ``lens.json`` says.

    Raises:
        MemprobeError: an unknown kind or template, steps of what takes none, ``out`` holds another fit or other
            files, is in use or cannot be written, or a fit that is not finite.
    """
    check_kind(kind, steps)
    check_made(factoids)
    settings = {
        "kind": kind,
        "model": lens_model.label,
        **identity_of(lens_model),
        "architecture": type(lens_model.model).__name__,
        "dtype": str(lens_model.model.dtype).removeprefix("torch."),
        "n_layers": lens_model.n_layers,
        "d_model": lens_model.d_model,
        "corpus": corpus.about,
    } | ({} if steps is None else {"steps": steps})
    parsed = Template.parse(template)
    out = Path(out)
    _check_out(out, settings)
    with locked(out):
        _check_out(out, settings)  # as it is now that nobody else writes here
        return _fit(lens_model, corpus, out, settings, factoids, parsed, progress)


_KNOWN_BY = {"settings": "config.json of its model", "tokenizer": "tokenizer of its model"}
"""Parts of :func:`memprobe.identity.identity_of` beside the weights, and how they are told."""
_CALLED = {**_KNOWN_BY, "fingerprint": "model", "steps": "number of steps"}
_DEALT = ("hash", "length", "tokens", "held out")


def _makes(settings: dict[str, Any]) -> dict[str, Any]:
    """Of what a fit is given, what makes its maps: neither the model's label nor the corpus's name does."""
    corpus = settings.get("corpus") or {}
    made = {key: value for key, value in settings.items() if key != "model"}
    return made | {"steps": settings.get("steps"), "corpus": {key: corpus.get(key) for key in _DEALT}}


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds a lens's directory for one process; inside, the same thread may lock it again.

    A lens that a killed process had set aside comes back.

    Raises:
        MemprobeError: another process fits into it, or it cannot be written.
    """
    with one_process(out, "fitting") as first:
        if first:
            settle(out, FITTED)
        yield


def _fit(
    lens_model: LensModel,
    corpus: Corpus,
    out: Path,
    settings: dict[str, Any],
    factoids: Sequence[Factoid],
    template: Template,
    progress: Progress | None,
) -> dict[str, Any]:
    kind = settings["kind"]
    _check_out(out, settings)  # as it is now that nobody else writes here
    about: dict[str, Any] | None = read_about(out) if (out / ABOUT).exists() else None
    if about is None:
        seconds = _fit_maps(kind, lens_model, corpus, out, settings, progress)
        about = {**settings, "seconds": seconds, "depths": None, "floor": None}
        write_about(out, about)
        (out / STATE).unlink(missing_ok=True)
    if about["depths"] is None:
        lens = make_lens(lens_model, read_lens(out, kind))
        told = _of(progress, "judging on held-out text")
        about["depths"] = judge(lens_model, lens, corpus.test, progress=told)
        write_about(out, about)
    if factoids and not measured_on(about["floor"], factoids, template):
        halves = [
            make_lens(lens_model, read_lens(out / name, kind), name=f"{kind} {number}")
            for number, name in enumerate(HALVES, 1)
        ]
        lens = make_lens(lens_model, read_lens(out, kind))
        told = _of(progress, "measuring the floor")
        about["floor"] = floor_of(lens_model, lens, halves, factoids, template, progress=told)
        write_about(out, about)
    return {"schema": LENS_SCHEMA, **about}


def _of(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    """Progress of one of the three parts of the work: the units of a fit, held-out sequences, facts of the floor."""
    return lambda done, total: progress(done, total, what) if progress is not None else None


def _fit_maps(
    kind: str,
    lens_model: LensModel,
    corpus: Corpus,
    out: Path,
    settings: dict[str, Any],
    progress: Progress | None,
) -> float:
    """Runs the units that are left and writes the maps; returns the seconds that all of them took."""
    options = {"steps": settings["steps"]} if "steps" in settings else {}
    fitting: Fitter = fitter(kind)(lens_model, corpus, **options)
    done, seconds = _restore(fitting, out / STATE, settings)
    told = _of(progress, "fitting")
    told(done, fitting.units)
    started = saved = time.monotonic()
    before = seconds

    for unit in range(done, fitting.units):
        fitting.run(unit)
        done, now = unit + 1, time.monotonic()
        seconds = before + now - started
        if (
            now - saved > SAVE_SECONDS and done < fitting.units
        ):  # never within a unit, which may be half added
            _save(fitting.state(), out / STATE, settings, done, seconds)
            saved = time.monotonic()
        told(done, fitting.units)
    fits = {HALVES[0]: fitting.maps(0), HALVES[1]: fitting.maps(1), WEIGHTS: fitting.maps()}
    for maps in fits.values():
        for depth, map_ in maps.items():
            if not all(part.isfinite().all() for part in (map_.weight, map_.bias) if part is not None):
                raise MemprobeError(f"{kind}: the fit of depth {depth} is not finite; fit on other text")
    for name, maps in fits.items():
        write_maps(out / name, kind, maps)
    return round(seconds, 1)


def _check_out(out: Path, settings: dict[str, Any]) -> None:
    """Raises a MemprobeError where ``out`` is not a fit of these settings, finished or under way."""
    if not out.exists():
        return
    known = {WEIGHTS, ABOUT, STATE, *HALVES}
    if not out.is_dir() or any(file.name not in known and file.name[0] != "." for file in out.iterdir()):
        raise MemprobeError(f"{out}: exists and is not a lens of memprobe fit; use another --out")
    if not (out / ABOUT).exists():
        return
    held, asked = _makes(read_about(out)), _makes(settings)
    for key, value in asked.items():
        # What a model is known by beside its weights came later than the first lenses.
        other = differ(held, asked, key) if key in _KNOWN_BY else held.get(key) != value
        if other:
            raise MemprobeError(
                f"{out}: holds a lens with another {_CALLED.get(key, key)}; use another --out, or --fresh to start over"
            )


def _save(
    tensors: dict[str, Tensor], path: Path, settings: dict[str, Any], done: int, seconds: float
) -> None:
    from safetensors.torch import save_file

    metadata = {"settings": json.dumps(settings), "done": str(done), "seconds": str(seconds)}
    with replacing(path) as temporary:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata=metadata)


def _restore(fitter: Fitter, path: Path, settings: dict[str, Any]) -> tuple[int, float]:
    """Units done by an earlier call, and the seconds that they took."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _makes(json.loads(metadata["settings"])) != json.loads(json.dumps(_makes(settings))):
            raise MemprobeError(
                f"{path.parent}: a fit with other settings is under way here; use another --out, or --fresh"
            )
        fitter.restore(state)
        return int(metadata["done"]), float(metadata["seconds"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise MemprobeError(
            f"{path}: truncated or corrupt ({first_line(error)}); --fresh starts over"
        ) from error
