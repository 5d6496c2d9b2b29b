"""What probes: one model in memory at a time, and units of work on it.

A unit is some consecutive batches of a checkpoint's plan. How a plan falls into batches depends on the plan alone, so
that what a unit gives is the same whoever reads it, here or on another machine (:mod:`memprobe.engine`), and whatever
was read before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe import residuals
from memprobe.checkpoints import Checkpoint, made_of, resolve
from memprobe.factoids import Factoid
from memprobe.hub_cache import bases_named, evict, is_cached_snapshot, is_of
from memprobe.identity import identity_of
from memprobe.lineage import trained_as
from memprobe.load_options import LoadOptions
from memprobe.planning import CapturePlan, plan_capture
from memprobe.quantised import notes_on_company
from memprobe.sequences import Deferred
from memprobe.sweeps import slow_note, sweep_name
from memprobe.templates import Template

if TYPE_CHECKING:
    import torch

    from memprobe.capturing import Batch, BatchSize, Tables
    from memprobe.lens_set import AskedLens, LensSet
    from memprobe.lenses import Lens
    from memprobe.models import LensModel

UNIT = 256
"""Factoids of a unit."""
PRECISION_SAMPLE = 16
"""Factoids whose ranks are held against fp32 where a probe computes in less."""

_NAMED = 3  # factoids that are named where many are counted


@dataclass(frozen=True)
class ProbeRequest:
    """What a probe asks of every checkpoint, the same in all processes; see :func:`memprobe.probing.probe`.

    Attributes:
        steps: training steps by label.
        unit: factoids of a unit, or a few more: batches are not divided.
        kept: where the files lie that are not evicted (:func:`read_by_others`).
        kept_models: hub ids of models that are not evicted (:func:`bases_ahead`).
    """

    factoids: Sequence[Factoid]
    template: Template
    lenses: LensSet
    positions: Sequence[str]
    intrusions: Mapping[str, Sequence[Factoid]] | None
    steps: Mapping[str, int]
    seed: int
    batch_size: BatchSize
    loading: LoadOptions
    keep_residuals: str | None
    evict: bool
    unit: int = UNIT
    kept: frozenset[Path] = frozenset()
    kept_models: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Unit:
    """Batches ``start`` … ``stop`` - 1 of a checkpoint's plan, but for factoids that are ``done``.

    Attributes:
        n: factoids that are left.
    """

    start: int
    stop: int
    n: int
    done: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Opened:
    """What is known of a checkpoint once its model is loaded.

    Attributes:
        checkpoint: as it was found; ``None`` for a model handed over in memory.
        entry: for ``run.json``.
        units: what is left to read.
    """

    checkpoint: Checkpoint | None
    entry: dict[str, Any]
    units: list[Unit]


def read_by_others(
    named: Sequence[Checkpoint | Deferred | LensModel], lenses: LensSet, loading: LoadOptions
) -> frozenset[Path]:
    """Where the files lie that lenses and other checkpoints than their own are read from."""
    whole = [lens.other for lens in lenses.lenses if isinstance(lens.other, Checkpoint)]
    whole += [resolve(spec) for spec in (loading.base, loading.tokenizer) if spec is not None]
    paths = {part.path for one in whole for part in made_of(one)}
    for item in named:
        if isinstance(item, Checkpoint):
            paths |= {part.path for part in made_of(item) if part is not item}
    return frozenset(paths)


def bases_ahead(named: Sequence[Checkpoint | Deferred | LensModel], loading: LoadOptions) -> frozenset[str]:
    """Hub ids of the models that adapters lie over which are found when their turn comes, where their own files name
    them."""
    if loading.base is not None:
        return frozenset()
    return frozenset(base for item in named if isinstance(item, Deferred) for base in bases_named(item.spec))


class Prober:
    """Holds one loaded model and reads units of it.

    Whichever checkpoint is asked for is loaded in place of the one before; factoids are tokenised once for each
    tokenizer.
    """

    def __init__(self, asked: ProbeRequest):
        from memprobe.loading import Loader
        from memprobe.models import choose_device, choose_dtype

        self.asked = asked
        self.where = choose_device(asked.loading.device)
        self.dtype = str(choose_dtype(asked.loading.dtype, self.where)).removeprefix("torch.")
        self.loader = Loader(asked.loading.device, self.dtype, asked.loading.trust_remote_code)
        self._model: LensModel | None = None
        self._lenses: list[Lens] = []
        self._found: dict[str, Checkpoint] = {}
        self._plans: dict[Any, tuple[Any, CapturePlan]] = {}
        self._batches: list[Batch] = []

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *exception: object) -> None:
        self.loader.__exit__(*exception)

    def open(self, item: Checkpoint | Deferred | LensModel, done: frozenset[str] = frozenset()) -> Opened:
        """Loads a checkpoint and says what is to be read of it.

        Args:
            done: ids of factoids that were read before.

        Raises:
            MemprobeError: it cannot be loaded, or not be read in the way that is asked.
        """
        from memprobe.capturing import batches_of

        lens_model = self.model(item)
        if self.asked.keep_residuals is not None:
            residuals.depths_of(self.asked.keep_residuals, lens_model)  # refused before the work
        plan = self.plan()
        first = self.asked.lenses.first
        entry = _entry(lens_model, first, self.asked.steps.get(lens_model.label))
        if lens_model.checkpoint is not None:
            entry["tokenizer_from"] = self.asked.loading.tokenizer
        slow = slow_note(lens_model.device)
        notes = [note for lens in self._lenses for note in lens.notes] + notes_on_company(lens_model.moved)
        entry["notes"] = notes + ([slow] if slow else [])
        entry["reading"] = sweep_name(lens_model.device)
        if len(plan.positions) > 1:
            entry["without_subject"] = _without_subject(plan.without_subject)
        batches = batches_of(lens_model, plan, self.asked.batch_size)
        return Opened(lens_model.checkpoint, entry, units_of(batches, done, self.asked.unit))

    def read(self, item: Checkpoint | Deferred | LensModel, unit: Unit) -> Iterator[tuple[int, Tables]]:
        """Reads a unit, batch by batch.

        Yields:
            The tables of a batch, and the place of its first factoid in the plan: what they are filed under.
        """
        from memprobe.capturing import batches_of, capture_batches

        lens_model = self.model(item)
        plan = self.plan()
        batches = self._batches = self._batches or batches_of(lens_model, plan, self.asked.batch_size)
        place = sum(len(batch) for batch in batches[: unit.start])
        chosen = batches[unit.start : unit.stop]
        places = {
            one.factoid.id: place + at for at, one in enumerate(one for batch in chosen for one in batch)
        }
        for tables in capture_batches(
            lens_model,
            plan,
            lenses=self._lenses,
            batch_size=self.asked.batch_size,
            batches=chosen,
            done=unit.done,
        ):
            yield places[tables.outcomes["factoid"][0]], tables

    def announce(
        self,
        item: Checkpoint | Deferred | LensModel,
        following: Checkpoint | Deferred | None,
        beside: int = 1,
    ) -> None:
        """Begins to read the files of the checkpoint that comes after the one that is loaded from files.

        Args:
            beside: processes of this machine that may do so at once.
        """
        from memprobe.models import LensModel

        if following is not None and not isinstance(item, LensModel):
            self.loader.announce(following, beside)

    def texts(self, item: Checkpoint | Deferred | LensModel, ids: Sequence[int]) -> dict[str, str]:
        """What tokens say, each alone."""
        from memprobe.models import LensModel

        # The model may be gone by now.
        known = item.tokenizer if isinstance(item, LensModel) else self.loader.tokenizer(self._find(item))
        texts = known.batch_decode([[index] for index in ids], clean_up_tokenization_spaces=False)
        return {str(index): text for index, text in zip(ids, texts, strict=True)}

    def attribute(self, item: Checkpoint | Deferred | LensModel) -> tuple[pl.DataFrame, dict[str, Any]]:
        """What each block adds to the answers' logits; see :func:`memprobe.attributions.attribute_all`."""
        from memprobe.attributions import attribute_all

        lens_model = self.model(item)
        asked = self.asked
        return attribute_all(
            lens_model, plan_capture(lens_model, asked.factoids, asked.template, seed=asked.seed)
        )

    def keep_residuals(self, item: Checkpoint | Deferred | LensModel, out: Any) -> dict[str, Any]:
        """Keeps the residual stream; see :func:`memprobe.residuals.keep_residuals`."""
        lens_model = self.model(item)
        depths = residuals.depths_of(self.asked.keep_residuals or residuals.ALL, lens_model)
        return residuals.keep_residuals(lens_model, self.plan(), depths, out)

    def exactly(self, item: Checkpoint | Deferred, parameters: int) -> pl.DataFrame | str:
        """The records of the first factoids through the first lens, in fp32; or why there is no memory for them.

        Args:
            parameters: of the checkpoint.
        """
        from memprobe.capturing import capture

        first = self.asked.lenses.first
        self._forget()
        needed = 4 * parameters * (1 if first.other is None else 2)
        if needed > (free := _free_memory(self.where)):
            return f"fp32 weights need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free"
        lens_model = self._load(self._find(item), "float32")
        made = first.make(lens_model, lambda other: self._load(other, "float32"))
        sample = self.asked.factoids[:PRECISION_SAMPLE]
        return capture(
            lens_model,
            sample,
            self.asked.template,
            lenses=[made],
            seed=self.asked.seed,
            predictions=False,
        ).records

    def evict(self, item: Checkpoint | Deferred) -> None:
        """Deletes a hub checkpoint that was found here from the hub's cache, unless others are read from it."""
        ahead = self.loader.forget(item.label)
        checkpoint = self._found.pop(item.label, ahead)
        if checkpoint is None or checkpoint.path in self.asked.kept:
            return
        if is_cached_snapshot(checkpoint.path) and not is_of(checkpoint.path, self.asked.kept_models):
            evict(checkpoint.path)

    def model(self, item: Checkpoint | Deferred | LensModel) -> LensModel:
        """The model of a checkpoint, which is in memory from then on, and no other one."""
        from memprobe.models import LensModel

        if self._model is not None and self._model.label == item.label:
            return self._model
        # The loader may put the next checkpoint's tensors into the model that is there.
        self._model, self._lenses, self._batches = None, [], []
        if isinstance(item, LensModel):
            self._model = item
        else:
            self._found.pop(item.label, None)  # of a try that failed, perhaps as its files were gone
            found = self._find(item)
            self._model = self.loader.get(found)
        self._lenses = self.asked.lenses.build(self._model, lambda other: self._load(other, self.dtype))
        return self._model

    def plan(self) -> CapturePlan:
        """The plan of the model that is loaded."""
        lens_model = self._model
        assert lens_model is not None
        key = (id(lens_model.tokenizer), lens_model.n_ids, lens_model.max_length)
        if key not in self._plans:
            asked = self.asked
            plan = plan_capture(
                lens_model,
                asked.factoids,
                asked.template,
                positions=asked.positions,
                intrusions=asked.intrusions,
                seed=asked.seed,
            )
            self._plans.clear()  # checkpoints of one tokenizer mostly follow each other
            self._plans[key] = lens_model.tokenizer, plan
        return self._plans[key][1]

    def _find(self, item: Checkpoint | Deferred) -> Checkpoint:
        """A checkpoint, which is fetched where it must be, once while it is read."""
        if item.label not in self._found:
            self._found[item.label] = self.loader.find(item)
        return self._found[item.label]

    def _load(self, checkpoint: Checkpoint | LensModel, dtype: str) -> LensModel:
        from memprobe import models

        if isinstance(checkpoint, models.LensModel):
            return checkpoint
        return models.load(checkpoint, **vars(replace(self.asked.loading, dtype=dtype)))

    def _forget(self) -> None:
        self._model, self._lenses, self._batches = None, [], []
        self.loader.release()


def units_of(batches: Sequence[Batch], done: frozenset[str], size: int = UNIT) -> list[Unit]:
    """Batches as units of at least ``size`` factoids, but for the last, without those of which all is done."""
    units: list[Unit] = []
    start, ids = 0, []
    for stop, batch in enumerate(batches, 1):
        ids += [item.factoid.id for item in batch]
        if len(ids) >= size or stop == len(batches):
            before = frozenset(ids) & done
            if len(before) < len(ids):
                units.append(Unit(start, stop, len(ids) - len(before), before))
            start, ids = stop, []
    return units


def _free_memory(device: torch.device) -> int:
    """Bytes that weights may still take: they are read into main memory, then moved to the device."""
    import psutil
    import torch

    free = psutil.virtual_memory().available
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return free


def _entry(lens_model: LensModel, first: AskedLens, step: int | None) -> dict[str, Any]:
    checkpoint = lens_model.checkpoint
    # A graft is asked as the checkpoint that it is made of, but is no stage of a run.
    manifest = checkpoint.manifest if checkpoint and checkpoint.kind != "graft" else None
    return {
        "spec": checkpoint.spec if checkpoint else None,
        "note": checkpoint.note if checkpoint else None,
        "architecture": type(lens_model.model).__name__,
        **identity_of(lens_model),
        "readout_fingerprint": first.fingerprint or lens_model.fingerprint,
        "n_layers": lens_model.n_layers,
        "d_model": lens_model.d_model,
        "vocab": lens_model.vocab_size,
        "parameters": lens_model.model.num_parameters(),
        "difference": lens_model.difference,
        "manifest": trained_as(manifest, "template") if manifest else None,
        "step": step,
        "complete": False,
    }


def _without_subject(reasons: Mapping[str, str]) -> dict[str, Any]:
    """How many factoids are not read at their subject, and the first of them."""
    return {"n": len(reasons), "first": list(reasons.values())[:_NAMED]}
