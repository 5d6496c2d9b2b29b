"""The lenses that a probe asks for: found once, made for one model after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memprobe.checkpoints import Checkpoint, refuse_unused_base, resolve
from memprobe.errors import MemprobeError, is_near, there_are
from memprobe.identity import identity_of
from memprobe.lens_files import LensFile, in_short, read_lens
from memprobe.lens_specs import LensSpec, make_lens, parse_lens
from memprobe.lenses import Lens
from memprobe.load_options import LoadOptions
from memprobe.sameness import same_model
from memprobe.sequences import Deferred

if TYPE_CHECKING:
    from memprobe.models import LensModel


class AskedLens:
    """A lens as it was asked for.

    Attributes:
        spec: as it was parsed.
        other: the checkpoint whose readout it uses; ``None`` for each model's own.
        file: a fitted lens, read.
        fingerprint: of the weights of ``other``.
        known_by: what ``other`` is known by; see :func:`memprobe.identity.identity_of`.
    """

    def __init__(self, spec: LensSpec, other: Checkpoint | LensModel | None):
        self.spec, self.other = spec, other
        self.file: LensFile | None = None
        if spec.kind != "logit" and spec.path is not None:
            self.file = read_lens(spec.path, spec.kind)
        self.known_by = {} if other is None else identity_of(other)
        self.fingerprint = self.known_by.get("fingerprint")

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.spec.label or (
            self.spec.kind if self.other is None else f"{self.spec.kind}@{self.other.label}"
        )

    @property
    def readout(self) -> str:
        """``own``, or the label of the checkpoint that it reads with."""
        return "own" if self.other is None else self.other.label

    @property
    def in_memory(self) -> bool:
        """Whether its readout is of a model handed over in memory."""
        return self.other is not None and not isinstance(self.other, Checkpoint)

    def entry(self) -> dict[str, Any]:
        """For ``run.json``: what makes it this lens, the same for every checkpoint that it reads."""
        entry: dict[str, Any] = {"kind": self.spec.kind, "readout": self.readout}
        entry["readout_fingerprint"] = self.fingerprint
        if "settings" in self.known_by:
            entry["readout_settings"] = self.known_by["settings"]
        if self.file is not None:
            entry |= {"sha256": self.file.digest, "fitted": in_short(self.file.about)}
        return entry

    def make(self, lens_model: LensModel, load: Callable[[Checkpoint], LensModel]) -> Lens:
        """The lens for a model."""
        if self.other is None:
            other = None
        elif same_model(self.known_by, identity_of(lens_model)):  # its own readout, under another name
            other = replace(lens_model, label=self.other.label)
        else:
            other = load(self.other) if isinstance(self.other, Checkpoint) else self.other
        return make_lens(lens_model, self.file, other, self.name)


class LensSet:
    """Lenses with names of their own; checkpoints whose readouts they use are loaded once.

    Attributes:
        lenses: in the order in which they were named.
    """

    def __init__(self, lenses: Sequence[AskedLens]):
        self.lenses = list(lenses)
        self._others: dict[str, LensModel] = {}
        names = [lens.name for lens in lenses]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise MemprobeError(f"two lenses are called {twice!r}; name them, as in LABEL=logit@SPEC")

    @classmethod
    def of(
        cls,
        texts: Sequence[str] = (),
        readout: str | Checkpoint | LensModel | None = None,
        checkpoints: Sequence[Checkpoint | Deferred | LensModel] = (),
        loading: LoadOptions = LoadOptions(),
    ) -> LensSet:
        """Lenses from what a user says; nothing stands for the Logit Lens.

        Args:
            texts: see :func:`memprobe.lens_specs.parse_lens`; the spec after ``@`` may be the label of a checkpoint.
            readout: short for the one lens ``logit@SPEC``.
            checkpoints: those that are read.
            loading: how a spec is found.

        Raises:
            MemprobeError: an unknown lens, a checkpoint or file that is missing, two lenses of one name, or a base
                model of adapters where none is read.
        """
        if texts and readout is not None:
            raise MemprobeError(
                "--readout SPEC is short for the one lens logit@SPEC: give it or --lens, not both"
            )
        # One that is found when its turn comes is found now: this lens reads with it from the first on.
        by_label = {item.label: item for item in checkpoints}

        def found(spec: str | Checkpoint | LensModel | None) -> Checkpoint | LensModel | None:
            if not isinstance(spec, str):
                return spec
            named = by_label.get(spec)
            if isinstance(named, Deferred):
                return named.find()
            try:
                return named or resolve(spec, loading)
            except MemprobeError as error:
                if not is_near(spec, by_label):
                    raise
                raise MemprobeError(
                    f"{error}; {there_are(spec, by_label, before='labels here are')}"
                ) from error

        if readout is not None:
            asked = [AskedLens(LensSpec(), found(readout))]
        else:
            specs = [parse_lens(text) for text in texts] or [LensSpec()]
            asked = [AskedLens(spec, found(spec.readout)) for spec in specs]
        refuse_unused_base(loading, [*checkpoints, *(lens.other for lens in asked)])
        return cls(asked)

    @property
    def first(self) -> AskedLens:
        """What a probe is looked through first."""
        return self.lenses[0]

    def build(self, lens_model: LensModel, load: Callable[[Checkpoint], LensModel]) -> list[Lens]:
        """The lenses for a model.

        Args:
            load: loads a checkpoint whose readout is used.

        Raises:
            MemprobeError: a lens of another width, depth or vocabulary.
        """

        def loaded(checkpoint: Checkpoint) -> LensModel:
            if checkpoint.spec not in self._others:
                self._others[checkpoint.spec] = load(checkpoint)
            return replace(self._others[checkpoint.spec], label=checkpoint.label)

        return [lens.make(lens_model, loaded) for lens in self.lenses]
