"""Fitted lenses for a plan: given, or fitted to the base model once for all processes."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from analyses.instruments.plan import Options, PlanFile
from memprobe.errors import MemprobeError, first_line
from memprobe.files import write_json
from training.run_log import RunLog

KINDS = ("linear", "tuned", "jacobian")
_POLL = 1.0  # seconds between two looks at a lens that another process fits


def kinds_of(plan: PlanFile, options: Options) -> list[str]:
    """The fitted lenses of a plan: given, or to be fitted."""
    given = dict(options.lenses)
    return [kind for kind in KINDS if kind in given or getattr(plan.fits, kind)]


class Lenses:
    """Fitted lenses: given, or fitted to the base by whichever process comes first."""

    def __init__(
        self, plan: PlanFile, options: Options, base: Any, report: RunLog, check: Callable[[], None]
    ):
        self.plan, self.options, self.base, self.report, self.check = plan, options, base, report, check
        self.given = dict(options.lenses)
        self.kinds = kinds_of(plan, options)
        self.files: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def fit_one(self, number: int) -> None:
        """Begins with one of the lenses, unless another process has it; one that fails is told where it is asked for.

        Raises:
            MemprobeError: what it takes is missing, such as the texts.
        """
        fitted = [kind for kind in self.kinds if kind not in self.given]
        if number < len(fitted):
            try:
                self._fit(fitted[number])
            except RuntimeError as error:
                self._give_up(fitted[number], error)

    def _give_up(self, kind: str, error: RuntimeError) -> None:
        self.failed[kind] = f"the {kind} lens could not be fitted ({first_line(error)})"
        self.report.say(f"{kind} lens: {''.join(traceback.format_exception(error))}")

    def by_kind(self) -> dict[Any, Callable[[], Any]]:
        """What gives each lens; it may have to wait for it."""
        return {kind: partial(self._read, kind) for kind in self.kinds}

    def _read(self, kind: str) -> Any:
        from memprobe.lens_files import read_lens

        if kind in self.failed:
            raise MemprobeError(self.failed[kind])
        if kind not in self.files:
            try:
                path = self.given.get(kind) or self._fit(kind)
            except RuntimeError as error:
                self._give_up(kind, error)
                raise MemprobeError(self.failed[kind]) from error
            self.files[kind] = read_lens(path, kind)  # pyrefly: ignore[bad-argument-type]
        return self.files[kind]

    def _fit(self, kind: str) -> Path:
        """Fits a lens, unless it is there; waits where another process is at it."""
        from filelock import FileLock, Timeout

        from memprobe.fitting import fit, load_texts, make_corpus

        folder = self.options.scratch / "lenses" / kind
        folder.parent.mkdir(parents=True, exist_ok=True)
        about = self.options.out / "lenses" / f"{kind}.json"
        lock = FileLock(f"{folder}.lock", timeout=_POLL)
        while True:
            self.check()
            try:
                with lock:
                    fits = self.plan.fits
                    length = fits.jacobian_length if kind == "jacobian" else fits.length
                    texts, origin = load_texts(fits.texts, length, data_dir=self.options.data_dir)
                    corpus = make_corpus(
                        self.base,
                        texts,
                        tokens=getattr(fits, kind),
                        length=length,
                        held_out=fits.held_out,
                        origin=origin,
                    )
                    start = time.monotonic()
                    about_fit = fit(
                        kind,  # pyrefly: ignore[bad-argument-type]
                        self.base,
                        corpus,
                        folder,
                        steps=fits.tuned_steps if kind == "tuned" else None,
                        progress=lambda *_: self.check(),
                    )
                    if not about.exists():
                        write_json(about_fit, about)
                        self.report.say(f"{kind} lens: fitted in {time.monotonic() - start:.0f} s")
                    return folder
            except Timeout:
                continue
