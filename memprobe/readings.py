"""Checkpoints that may be compared: asked the same, under one top-k, one token rule and one lens.

    probes ──> Readings ──> [label] -> Reading: ranks by depth, values by factoid, outcomes
                       ├──> controls(label): shuffled answers, the base model, intrusions
                       ├──> reference, base, pairs, chains of stages, runs of arms
                       └──> factoids: those that every checkpoint has, in one order

Every table, page and figure takes its numbers from one of these, so that which probes belong together, who is the
base model and which facts are common is decided here alone. No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memprobe.chains import Chain, chains_of
from memprobe.comparable import check_alike, second_readouts, unlike
from memprobe.errors import MemprobeError
from memprobe.fitted import Floor, floor_of, notes_on_view
from memprobe.lineage import lineage
from memprobe.members import (
    Member,
    Series,
    base_of,
    common_factoids,
    common_measure,
    in_readout_of,
    members_of,
    named,
    notes_on_counting,
    series_of,
)
from memprobe.probes import Probe, in_another_readout, nothing_yet, open_probe, tables_of
from memprobe.reading import Cells, Reading, common, controls_of, counts_of, reading_of, rows_of
from memprobe.records import ATTRIBUTIONS, GENERATED
from memprobe.statistics.arms import Run
from memprobe.statistics.controls import STATISTICS, by_control, means_of, net_tables
from memprobe.statistics.holding import Trajectories, check_k, check_rule
from memprobe.statistics.intervals import Resamples, check_draws
from memprobe.statistics.occurrence import DRAWS, placement_of
from memprobe.statistics.vocabulary import BESIDE, PER_FACTOID

SHUFFLED, BASE = "shuffled", "base"
"""Names of controls in the tables ``net`` and ``net_by_depth``; the others are ``intrusion:NAME``."""
NET_OF_SHUFFLED = tuple(key for key, row in PER_FACTOID.items() if row.net)
ARM_STATISTICS = (*STATISTICS, *(f"{name}_net" for name in NET_OF_SHUFFLED))
"""Of a run, see :meth:`Readings.run`; ``NAME_net`` is net of shuffled answers."""
_MEMORY = 2**30  # bytes of readings that are kept; beyond, the oldest is read again


@dataclass(eq=False)
class Readings:
    """Checkpoints of probe directories, read under one top-k and one token rule; made by :meth:`of`.

    Attributes:
        members: the checkpoints in the order given.
        reference: that differences are taken from.
        base: the base model, where one is among them.
        factoids: rows of the common factoids; their order is that of every array here.
        notes: what a reader must know beside the numbers, one line each.
        measure: by which answers count as recalled, one of :data:`memprobe.records.MEASURES`: that of every checkpoint.
        second: the same checkpoints read out by the base model, where probed.
    """

    members: list[Member]
    reference: Member
    base: Member | None
    factoids: pl.DataFrame
    k: int
    token: str
    draws: int = DRAWS
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    measure: str = GENERATED
    second: Readings | None = None
    _origin: Readings | None = field(default=None, init=False, repr=False)  # that these are :meth:`under`

    def __post_init__(self) -> None:
        check_k(self.k)
        check_rule(self.token)
        deepest = max(member.n_layers for member in self.members) + 1
        facts = max(member.probe.run["factoids"]["n"] for member in self.members)
        room = max(4, _MEMORY // (facts * deepest * 48 + 1))
        self._read = lru_cache(room)(self._reading)
        self._lists = lru_cache(room)(self._control_records)
        self._cells = lru_cache(room)(self._control_cells)
        self.net = lru_cache(4)(self._net)
        self.placed = lru_cache(None)(self._placed)
        self.run = lru_cache(None)(self._run)

    @classmethod
    def of(
        cls,
        probes: Sequence[Probe | str | Path],
        *,
        k: int | None = None,
        token: str | None = None,
        lens: str | None = None,
        position: str | None = None,
        reference: str | None = None,
        base: str | None = None,
        fixed_readout: Sequence[Probe | str | Path] = (),
        arms: Mapping[str, tuple[str, str, str]] | None = None,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> Readings:
        """Opens probe directories whose checkpoints were asked alike.

        Args:
            k, token: what counts as holding an answer, see :func:`memprobe.statistics.held`; by default those that the
                first probe was made with.
            lens, position: which of those that the probes were read with; by default that of each probe's view.
            reference: label of the checkpoint that differences are taken from (default: the first).
            base: label of the base model (default: see :func:`memprobe.members.base_of`).
            fixed_readout: probes of the same checkpoints read with the base model's unembedding (default: the second
                readout in the same probes, where they have one).
            arms: (arm, seed, stage) by label, for checkpoints without a manifest or to overrule it.
            draws: of the bootstrap and of the permutation test, under ``seed``.

        Raises:
            MemprobeError: probes that cannot be compared (other template, lens, readout or tokenisation, no
                factoid in common), unknown labels, broken files.
        """
        if k is not None:
            check_k(k)
        if token is not None:
            check_rule(token)
        check_draws(draws, seed)
        opened = [probe if isinstance(probe, Probe) else open_probe(probe) for probe in probes]
        fixed = [in_another_readout(probe) for probe in fixed_readout]
        if lens or position:
            opened = [probe.under(lens, position) for probe in opened]
            fixed = [probe.under(position=position) for probe in fixed]
        if not opened:
            raise MemprobeError("name at least one probe directory")
        check_alike(opened)
        given, fixed = bool(fixed), fixed or second_readouts(opened)
        notes = notes_on_view(opened[0]) + notes_on_counting(opened, k, token)
        k, token = k or int(opened[0].run["k"]), token or str(opened[0].run["token"])
        members = members_of(opened, arms or {}, notes)
        if not members:
            raise MemprobeError(nothing_yet(opened[0].path))
        read_out = in_readout_of(members, fixed) if fixed else []
        # What one pass read in both readouts has the same factoids in both.
        factoids = common_factoids([*members, *read_out] if fixed_readout else members, notes)
        notes += dict.fromkeys(probe.note for probe in opened if probe.note)
        readings = cls(
            members=members,
            reference=named(members, reference, "reference") if reference else members[0],
            base=named(members, base, "base") if base else base_of(members, notes),
            factoids=factoids,
            k=k,
            token=token,
            draws=draws,
            seed=seed,
            notes=notes,
            measure=common_measure(members, notes),
        )
        if fixed:
            readings.second = readings._read_out(read_out, fixed if given else [])
        return readings

    def under(self, *, k: int | None = None, token: str | None = None) -> Readings:
        """The same checkpoints and factoids under another top-k or token rule; what was read stays read."""
        other = replace(self, k=k or self.k, token=token or self.token)
        other._origin = self
        if other.token == self.token:
            other._read, other._lists = self._read, self._lists
        if self.second is not None:
            other.second = self.second.under(k=k, token=token)
        return other

    @cached_property
    def by_lens(self) -> dict[str, Readings]:
        """The same checkpoints and factoids through every lens that all of them were read with, by its name; this one
        among them, in the order of the first probe."""
        if self._origin is not None:
            return self._alike(self._origin.by_lens)
        probes = {id(member.probe): member.probe for member in self.members}.values()
        readings: dict[str, Readings] = {}
        for name in self.members[0].probe.lenses:
            if not all(name in probe.lenses for probe in probes):
                continue
            views = {id(probe): probe.under(name) for probe in probes}
            first, *others = views.values()
            if any(unlike(first, view) for view in others):
                continue  # one name, two fits, or two readouts
            if name == self.members[0].probe.lens:
                readings[name] = self
                continue
            members = [replace(member, probe=views[id(member.probe)]) for member in self.members]
            readings[name] = self._through(members, self.factoids)
        return readings

    @cached_property
    def by_position(self) -> dict[str, Readings]:
        """The same checkpoints through the same lens at every position that all were read at, this one's own first, on
        the facts that have all of these; empty where there is one only."""
        if self._origin is not None:
            return self._alike(self._origin.by_position)
        probes = {id(member.probe): member.probe for member in self.members}.values()
        own, positions = self.members[0].probe.position, self.members[0].probe.positions
        shared = [name for name in positions if all(name in one.positions for one in probes)]
        if len(shared) < 2:
            return {}
        named, ids = {}, set(self.factoids["id"])
        for name in [own, *(name for name in shared if name != own)]:
            members = [replace(member, probe=member.probe.under(position=name)) for member in self.members]
            ids &= set(common_factoids(members, [])["id"])
            named[name] = members
        factoids = self.factoids.filter(pl.col("id").is_in(list(ids)))
        if factoids.is_empty():
            return {}
        return {name: self._through(members, factoids) for name, members in named.items()}

    def _through(self, members: list[Member], factoids: pl.DataFrame) -> Readings:
        """Other views of the members, in their order."""
        by_label = {member.label: member for member in members}
        return replace(
            self,
            members=members,
            reference=by_label[self.reference.label],
            base=by_label[self.base.label] if self.base else None,
            factoids=factoids,
            notes=[],
            second=None,
        )

    def _alike(self, views: Mapping[str, Readings]) -> dict[str, Readings]:
        """The origin's views under the top-k and token rule here."""
        under = {"k": self.k, "token": self.token}
        return {name: self if one is self._origin else one.under(**under) for name, one in views.items()}

    # ----------------------------------------------------------------------------------- what there is

    @cached_property
    def ids(self) -> np.ndarray:
        """Of the common factoids, [factoid]."""
        return self.factoids["id"].to_numpy()

    @cached_property
    def answers(self) -> np.ndarray:
        """What makes two factoids' answers the same, [factoid]."""
        return np.array([answer.casefold() for answer in self.factoids["answer"]])

    @property
    def asked(self) -> pl.DataFrame:
        """Rows of all factoids that were asked, as the first probe has them."""
        return self.members[0].probe.factoids

    @property
    def run_json(self) -> dict[str, Any]:
        """What was run, as the first probe says."""
        return self.members[0].probe.run

    @property
    def lens(self) -> str:
        """Name of the lens that is looked through."""
        return self.members[0].probe.lens

    @property
    def labels(self) -> list[str]:
        """Of the checkpoints."""
        return [member.label for member in self.members]

    def floor(self, label: str) -> Floor:
        """How far two fits of the lens that is looked through read a checkpoint's facts apart."""
        probe = self.member(label).probe
        return floor_of(probe, probe.lens, k=self.k, token=self.token)

    def member(self, label: str) -> Member:
        """The checkpoint of that label.

        Raises:
            MemprobeError: there is none.
        """
        return named(self.members, label, "label")

    @property
    def anchors(self) -> list[str]:
        """What every checkpoint is held against: the reference, and the base model."""
        return list(dict.fromkeys([self.reference.label, *([self.base.label] if self.base else [])]))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(anchor, checkpoint), checkpoint by checkpoint."""
        return [(anchor, label) for label in self.labels for anchor in self.anchors if anchor != label]

    @cached_property
    def chains(self) -> list[Chain[Member]]:
        """The training runs that arms, seeds and stages tell of."""
        return chains_of(self.members)

    @cached_property
    def series(self) -> list[Series]:
        """The training runs that several of these checkpoints lie along."""
        return series_of(self.members)

    @property
    def before(self) -> list[tuple[str, str]]:
        """(before, after) of every stage of every chain."""
        pairs = [pair for chain in self.chains for pair in itertools.pairwise(chain.labels)]
        return list(dict.fromkeys(pairs))

    def same_depths(self, one: str, other: str) -> bool:
        """Whether two checkpoints have the same layers, so that their depths can be compared."""
        return self.member(one).n_layers == self.member(other).n_layers

    def resamples(self, which: np.ndarray | None = None) -> Resamples:
        """The draws over the answers of the common factoids, or of some of them, by boolean mask or by row."""
        answers = self.answers if which is None else self.answers[which]
        return _resamples(tuple(answers.tolist()), self.draws, self.seed)

    # ------------------------------------------------------------------------------- one checkpoint's

    def __iter__(self) -> Iterator[Reading]:
        return (self[label] for label in self.labels)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, label: str) -> Reading:
        reading = self._read(label)
        return reading if reading.k == self.k else replace(reading, k=self.k)

    def shuffled(self, label: str) -> list[Trajectories]:
        """The draws of shuffled answers; none where they were not probed."""
        return self._lists(label)[0]

    def intrusions(self, label: str) -> list[Trajectories]:
        """Answers of other datasets, watched for where an answer begins."""
        return self._lists(label)[1]

    def controls(self, label: str) -> dict[str, Cells]:
        """What the checkpoint's controls are worth, by name: its own, and the base model where its depths are alike.

        Intrusions are there for an answer's first token only: under another rule they are no like for like.
        """
        controls = dict(self._cells(label))
        if self.base is not None and self.base.label != label and self.same_depths(self.base.label, label):
            controls[BASE] = self[self.base.label].cells
        return controls

    def shuffled_values(self, label: str) -> np.ndarray:
        """[factoid, STATISTICS] of shuffled answers, the mean over their draws; NaN where none were probed."""
        shuffled = self._cells(label).get(SHUFFLED)
        return np.full_like(self[label].values, np.nan) if shuffled is None else shuffled.values

    def with_net(self, label: str) -> np.ndarray:
        """[factoid, ARM_STATISTICS]; net of shuffled answers unknown where none were probed."""
        values, level = self[label].values, self.shuffled_values(label)
        net = [STATISTICS.index(name) for name in NET_OF_SHUFFLED]
        return np.hstack([values, (values - level)[:, net]])

    def _placed(self, label: str) -> dict[str, float | None]:
        """Where its answers surface: :func:`~memprobe.statistics.occurrence.placement_of`, with what stands beside it,
        :data:`~memprobe.statistics.vocabulary.BESIDE`. Every number NAME has NAME_low and NAME_high."""
        reading, resamples = self[label], self.resamples()
        beside = {name: reading.values[:, at] for at, name in enumerate(STATISTICS) if name in BESIDE}
        return placement_of(reading.found, resamples) | means_of(beside, resamples)

    def _net(self, label: str) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The checkpoint net of each of its controls: :func:`memprobe.statistics.controls.net_tables`."""
        return net_tables(self[label].cells, self.controls(label), self.resamples(), drawn=[SHUFFLED])

    def _run(self, label: str) -> Run:
        """Means over factoids of :data:`ARM_STATISTICS`, and what each factoid does to them."""
        member = self.member(label)
        before, rows = lineage({one.label: one.entry for one in self.members}, label)
        names = (member.arm or "", member.stage or "", member.seed or "", label)
        return Run.of(*names, self.with_net(label), before=before, rows=rows)

    # --------------------------------------------------------------------------------------- reading

    def rows(
        self, label: str, table: str, columns: Sequence[str] = (), where: pl.Expr | None = None
    ) -> pl.DataFrame:
        """A checkpoint's rows of a table, of all its factoids, under the label that it has here.

        Args:
            table: records, controls or outcomes.
            columns: some of them, beside checkpoint and factoid; all where empty.
            where: only rows of which this holds; others are not kept in memory.
        """
        return rows_of(self.member(label), table, columns, where)

    def counts(self, label: str, table: str, column: str) -> pl.DataFrame:
        """How many of a checkpoint's rows have which value: [column, count], without order."""
        return counts_of(self.member(label), table, column)

    def attributions(self, label: str) -> pl.DataFrame:
        """What a checkpoint's blocks write towards the answers of the common factoids, see
        :data:`memprobe.records.ATTRIBUTIONS`; no rows where that was not asked for."""
        member = self.member(label)
        if "attributions" not in tables_of(member.probe.run, member.name):
            return pl.DataFrame(schema=ATTRIBUTIONS)
        rows = member.probe.only([member.name]).attributions
        return common(rows, self.ids).with_columns(checkpoint=pl.lit(label, pl.String))

    def _reading(self, label: str) -> Reading:
        return reading_of(self.member(label), self.ids, k=self.k, token=self.token, measure=self.measure)

    def _control_records(self, label: str) -> tuple[list[Trajectories], list[Trajectories]]:
        return controls_of(self.member(label), self.ids, token=self.token, lengths=self[label].tokens)

    def _control_cells(self, label: str) -> dict[str, Cells]:
        shuffled, intrusions = self._lists(label)
        cells = {SHUFFLED: Cells(*by_control(shuffled, self.ids, self.k))} if shuffled else {}
        if self.token == "first":
            cells |= {str(one.control): Cells(*by_control([one], self.ids, self.k)) for one in intrusions}
        return cells

    def _read_out(self, members: list[Member], fixed: list[Probe]) -> Readings | None:
        """The same in the base model's readout.

        Args:
            members: of :func:`memprobe.members.in_readout_of`.
            fixed: the probes that were named for it, if any were.

        Raises:
            MemprobeError: those hold no two of these checkpoints.
        """
        by_label = {member.label: member for member in members}
        if fixed and self.pairs and not any(by_label.keys() >= {*pair} for pair in self.pairs):
            raise MemprobeError(
                f"{fixed[0].path}: holds no two of the checkpoints {', '.join(self.labels)} under their labels"
            )
        if not members:
            return None
        base = by_label.get(self.base.label) if self.base else None
        reference = by_label.get(self.reference.label, members[0])
        return replace(self, members=members, reference=reference, base=base, notes=[])


@lru_cache(maxsize=3)
def _resamples(answers: tuple[str, ...], draws: int, seed: int) -> Resamples:
    return Resamples.of(len(answers), answers=np.array(answers, dtype=str), draws=draws, seed=seed)
