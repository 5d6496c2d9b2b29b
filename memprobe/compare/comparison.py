"""A whole comparison: every table, the settings, and what a reader must know beside the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from memprobe import sentences, wording
from memprobe.compare import by_checkpoint, by_lens, by_pair, by_position, over_runs
from memprobe.compare.beside import besides
from memprobe.compare.headline import Headline, headline
from memprobe.compare.stored import read_stored
from memprobe.compare.table import Table
from memprobe.compare.written import (
    as_html,
    as_json,
    as_markdown,
    notes_on_arms,
    write_comparison,
)
from memprobe.errors import MemprobeError, among
from memprobe.lineage import same_weights
from memprobe.members import Member, check_apart
from memprobe.probes import Probe
from memprobe.readings import Readings
from memprobe.records import ALIKE, GENERATED
from memprobe.statistics.groups import check_by
from memprobe.statistics.occurrence import DRAWS

COMPARISON_SCHEMA = 1
"""Of ``comparison.json``."""
_FILE = "comparison.json"
PAIRS = ("anchors", "all")
TABLES: dict[str, Table] = {
    "net": by_checkpoint.net,
    "net_by_depth": by_checkpoint.net_by_depth,
    "curves": by_checkpoint.curves,
    "placement": by_checkpoint.placement,
    "survival": by_checkpoint.survival,
    "states": by_checkpoint.states,
    "groups": by_checkpoint.groups,
    "lenses": by_lens.lenses,
    "lenses_by_depth": by_lens.lenses_by_depth,
    "positions_by_depth": by_position.positions_by_depth,
    "contributions": by_lens.contributions,
    "largest_contribution": by_lens.largest_contribution,
    "differences": by_pair.differences,
    "placement_exact_in_both": by_pair.placement_exact_in_both,
    "spread": by_pair.spread,
    "differences_by_depth": by_pair.differences_by_depth,
    "overlap": by_pair.overlap,
    "fates": by_pair.fates,
    "lost_facts": by_pair.lost_facts,
    "lost": by_pair.lost,
    "kept": by_pair.kept,
    "contribution_differences": by_lens.contribution_differences,
    "claims": by_pair.claims,
    "paths": over_runs.paths,
    "arms": over_runs.arms,
    "arm_differences": over_runs.arm_differences,
    "steps": over_runs.steps,
}
"""Every table of a comparison: ``TABLES[name](readings)`` makes it, ``TABLES[name].schema`` says what it holds."""
ANSWER = (
    "placement",
    "lenses",
    "contributions",
    "largest_contribution",
    "differences",
    "claims",
    "arm_differences",
    "steps",
)
"""Those that the verdict, the main table and what stands beside it are made of."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """What :func:`compare` finds.

    Attributes:
        settings: what was compared, and how.
        notes: what a reader must know beside the numbers, one line each.
        tables: polars frames by name, all of :data:`TABLES` or those asked for; empty where there is nothing to say.
    """

    settings: dict[str, Any]
    notes: list[str]
    tables: dict[str, pl.DataFrame]

    def __repr__(self) -> str:
        many = wording.count(len(self.settings["checkpoints"]), "checkpoint")
        facts = wording.count(self.settings["factoids"], "fact")
        held = ", ".join(name for name, table in self.tables.items() if len(table))
        return f"Comparison of {many} on {facts}, against {self.settings['reference']}; tables: {held}"

    def verdict(self) -> list[str]:
        """The reference, then what differs from it, and how sure that is."""
        return sentences.verdict(self)

    def headline(self) -> Headline:
        """The main table: where the facts surface, by the lens looked through and by the others."""
        through, measure = self.settings.get("through"), self.settings.get("measure", GENERATED)
        return headline(self.tables["placement"], self.tables["lenses"], through=through, measure=measure)

    def _shown(self) -> list[Headline]:
        return [self.headline(), *besides(self.tables)]

    def _repr_html_(self) -> str:
        """The verdict and its table, for a notebook."""
        return as_html(self.verdict(), self._shown())

    def markdown(self) -> str:
        """The verdict, its table and the notes, as Markdown."""
        return as_markdown(self.verdict(), self._shown(), self.notes)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON: tables are lists of rows."""
        return as_json(COMPARISON_SCHEMA, self.settings, self.notes, self.tables)

    def write(self, folder: Path) -> None:
        """``comparison.json``, its answer in ``comparison.md``, and each table that has rows as ``NAME.csv``:
        :func:`memprobe.compare.written.write_comparison`."""
        write_comparison(folder, _FILE, self.as_json(), self.markdown(), self.tables, TABLES)


def read_comparison(path: Path) -> Comparison:
    """A ``comparison.json`` as :meth:`Comparison.write` left it; tables that it does not hold are empty.

    Raises:
        MemprobeError: the file is missing or broken, or no comparison.
    """
    return Comparison(*read_stored(path, {name: table.schema for name, table in TABLES.items()}))


def compare(
    probes: Sequence[Probe | str | Path],
    *,
    k: int | None = None,
    token: str | None = None,
    lens: str | None = None,
    position: str | None = None,
    reference: str | None = None,
    base: str | None = None,
    fixed_readout: Sequence[Probe | str | Path] = (),
    by: Iterable[str] = (),
    arms: Mapping[str, tuple[str, str, str]] | None = None,
    pairs: str = "anchors",
    only: Collection[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    track: Callable[[list[Member]], Iterable[Member]] = iter,
) -> Comparison:
    """Compares every checkpoint of these probe directories with a reference and with the base model.

    Args:
        k, token, lens, position, reference, base, fixed_readout, arms, draws, seed: see
            :meth:`memprobe.readings.Readings.of`. Only with ``fixed_readout`` can a placement claim be held.
        by: groupings, see :data:`memprobe.statistics.groups.GROUPINGS`.
        pairs: ``overlap`` of every checkpoint with the ``anchors`` (the reference and the base model), or of
            ``all`` pairs.
        only: names of the tables that are made, :data:`ANSWER` among them for a verdict; by default all.
        track: wraps the loop over checkpoints, to show progress.

    Raises:
        MemprobeError: probes that cannot be compared (other template, lens, readout or tokenisation, no factoid
            in common), unknown labels or groupings, broken files.
    """
    by = check_by(by)  # before files are read
    if pairs not in PAIRS:
        raise MemprobeError(f"`pairs` {pairs!r}: {among(pairs, PAIRS)}")
    readings = Readings.of(
        probes,
        k=k,
        token=token,
        lens=lens,
        position=position,
        reference=reference,
        base=base,
        fixed_readout=fixed_readout,
        arms=arms,
        draws=draws,
        seed=seed,
    )
    return compare_readings(readings, by=by, pairs=pairs, only=only, track=track)


def compare_readings(
    readings: Readings,
    *,
    by: Iterable[str] = (),
    pairs: str = "anchors",
    only: Collection[str] | None = None,
    track: Callable[[list[Member]], Iterable[Member]] = iter,
) -> Comparison:
    """:func:`compare` of readings that are opened already."""
    by = check_by(by)  # these two before the work, not after it
    check_apart(readings.members)
    wanted = TABLES if only is None else {name: TABLES[name] for name in TABLES if name in _known(only)}
    made = TablesOnDemand(readings, by=by, pairs=pairs)
    made.make(wanted, track)
    tables = {name: made[name] for name in wanted}
    return Comparison(settings_of(readings, pairs=pairs), _notes(readings), tables)


def _known(only: Collection[str]) -> Collection[str]:
    for name in only:
        if name not in TABLES:
            raise MemprobeError(f"`only` {name!r}: {among(name, TABLES)}")
    return only


def settings_of(readings: Readings, *, pairs: str = "anchors") -> dict[str, Any]:
    """What is compared, and how: :attr:`Comparison.settings`."""
    return {
        "k": readings.k,
        "token": readings.token,
        "draws": readings.draws,
        "seed": readings.seed,
        "factoids": len(readings.factoids),
        "reference": readings.reference.label,
        "base": readings.base.label if readings.base else None,
        "pairs": pairs,
        **{name: readings.run_json.get(name) for name in ALIKE},
        "through": readings.lens,
        "measure": readings.measure,
        "checkpoints": [
            {name: getattr(one, name) for name in ("label", "arm", "seed", "stage", "step", "n_layers")}
            for one in readings.members
        ],
    }


class TablesOnDemand(Mapping[str, pl.DataFrame]):
    """The tables of a comparison, each made when it is first asked for: of a hundred checkpoints few are needed.

    Args:
        by, pairs: see :func:`compare`.
    """

    def __init__(self, readings: Readings, *, by: Iterable[str] = (), pairs: str = "anchors"):
        self._readings, self._by, self._pairs = readings, list(by), pairs
        self._made: dict[str, pl.DataFrame] = {}

    def make(self, names: Iterable[str], track: Callable[[list[Member]], Iterable[Member]] = iter) -> None:
        """Makes tables checkpoint by checkpoint, so that few are in memory at a time however many there are."""
        readings = self._readings
        single = [name for name in names if TABLES[name].over != "all" and self._keys(name) is None]
        parts: dict[str, list[pl.DataFrame]] = {name: [] for name in single}
        for member in track(readings.members):
            ours = [pair for pair in readings.pairs if pair[1] == member.label]
            for name in single:
                keys: Sequence[Any] = [member.label] if TABLES[name].over == "checkpoint" else ours
                parts[name] += [TABLES[name].part(readings, key, **self._options(name)) for key in keys]
        self._made |= {name: TABLES[name].joined(part) for name, part in parts.items()}

    def _keys(self, name: str) -> Iterable[tuple[str, str]] | None:
        every = name == "overlap" and self._pairs == "all"
        return itertools.combinations(self._readings.labels, 2) if every else None

    def _options(self, name: str) -> dict[str, Any]:
        """What a table takes beside the readings: tables that it is made of among them."""
        if name == "groups":
            return {"by": self._by}
        beside = {"claims": ("own", "differences"), "steps": ("placed", "placement")}
        return {key: self[table] for key, table in [beside[name]]} if name in beside else {}

    def __getitem__(self, name: str) -> pl.DataFrame:
        """The table of that name, one of :data:`TABLES`."""
        if name not in self._made:
            keys = {} if (keys := self._keys(name)) is None else {"keys": keys}
            self._made[name] = TABLES[name](self._readings, **keys, **self._options(name))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(TABLES)

    def __len__(self) -> int:
        return len(TABLES)


def _notes(readings: Readings) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = list(readings.notes)
    for anchor, label in readings.pairs:
        if not readings.same_depths(anchor, label):
            mine, theirs = (readings.member(one).n_layers for one in (label, anchor))
            notes.append(f"{label} has {mine} layers, {anchor} {theirs}: their depths are not compared")
    if same := same_weights((one.label, one.entry) for one in readings.members):
        notes.append(wording.same_weights(same))
    notes += notes_on_arms(readings.members)
    if readings.token != "first" and any(readings.intrusions(label) for label in readings.labels):
        notes.append(
            "Intrusions are watched for where an answer begins: values net of them are given under `token` first."
        )
    if len(readings) > 1 and readings.second is None:
        notes.append(_no_claim(readings))
    return notes


def _no_claim(readings: Readings) -> str:
    """Why no placement claim is held, where one readout alone is looked at."""
    if readings.run_json.get("readout") == "own":
        return (
            "No placement claim is held yet: it must hold in the base model's readout too. Probe into another --out "
            "with memprobe layers --lens logit --lens logit@BASE, which reads in both."
        )
    held = readings.members[0].probe.run["lenses"].values()
    mend = (
        "without `lens` both are compared"
        if any(one["readout"] == "own" for one in held)
        else "probe in both"
    )
    return (
        f"No placement claim is held in {readings.run_json.get('readout')}'s readout alone: it must hold in each "
        f"checkpoint's own readout too; {mend}."
    )
