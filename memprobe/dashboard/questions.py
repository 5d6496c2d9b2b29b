"""Which checkpoints were asked alike, so that their numbers may stand beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe.probes import Probe
from memprobe.records import ALIKE
from memprobe.studies import setup_of, short_names

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Asked:
    """Checkpoints that were asked the same factoids in the same way, from one probe directory or several.

    Attributes:
        name: short, of what was asked.
        sources: by label here, the probe that holds the checkpoint and its label there.
        records, controls, outcomes: as in :class:`memprobe.probes.Probe`, under the labels used here.
        factoids: what was asked.
        run: of the first probe.
    """

    name: str
    sources: dict[str, tuple[Probe, str]]
    records: pl.DataFrame
    controls: pl.DataFrame
    outcomes: pl.DataFrame
    factoids: pl.DataFrame
    run: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """Of the checkpoints, in order."""
        return list(self.sources)

    def entry(self, label: str) -> dict[str, Any]:
        """What run.json says of a checkpoint."""
        probe, name = self.sources[label]
        return probe.run["checkpoints"][name]

    @property
    def n_layers(self) -> dict[str, int]:
        """Depth of the model's own readout, by label."""
        return {label: self.entry(label)["n_layers"] for label in self.sources}

    def token_text(self, label: str, token_id: int) -> str:
        """Text of a token id as a checkpoint's own tokenizer writes it."""
        probe, name = self.sources[label]
        return probe.token_text(name, token_id)

    @property
    def shuffled(self) -> pl.DataFrame:
        """Controls whose answers are other factoids'."""
        return self.controls.filter(pl.col("control").str.starts_with("shuffled:"))


def asked_alike(probes: Sequence[Probe], say: Callable[[str], None] = lambda text: None) -> list[Asked]:
    """Checkpoints by what they were asked: the same factoids, template, lens, readout and tokenisation.

    Set-ups of a grid stay apart (:func:`memprobe.studies.setup_of`). A label that several directories use is told
    apart by their names. Checkpoints without records are left out.
    """
    by_question: dict[tuple[Any, ...], list[Probe]] = {}
    for probe in probes:
        key = (probe.run["factoids"]["hash"], setup_of(probe.path), *(probe.run.get(name) for name in ALIKE))
        by_question.setdefault(key, []).append(probe)
    groups = []
    for together in by_question.values():
        present = []
        for probe in together:
            labels = set(probe.records["checkpoint"].unique())
            present += [(probe, label) for label in probe.checkpoints if label in labels]
            waiting = [label for label in probe.checkpoints if label not in labels]
            if waiting:
                say(f"{probe.path}: no records yet of {', '.join(waiting)}")
        if not present:
            continue
        labels = [label for _, label in present]
        folders = dict(zip(map(id, together), short_names([one.path for one in together]), strict=True))
        sources = {
            label if labels.count(label) == 1 else f"{folders[id(probe)]}/{label}": (probe, label)
            for probe, label in present
        }
        groups.append((together, sources))
    names = _question_names([together[0] for together, _ in groups])
    return [
        Asked(
            name=name,
            sources=sources,
            records=_under(sources, "records"),
            controls=_under(sources, "controls"),
            outcomes=_under(sources, "outcomes"),
            factoids=together[0].factoids,
            run=together[0].run,
        )
        for name, (together, sources) in zip(names, groups, strict=True)
    ]


def _under(sources: Mapping[str, tuple[Probe, str]], table: str) -> pl.DataFrame:
    """The table of several probes, with the labels that are used here."""
    parts = [
        getattr(probe, table)
        .filter(pl.col("checkpoint") == name)
        .with_columns(pl.lit(label, pl.String).alias("checkpoint"))
        for label, (probe, name) in sources.items()
    ]
    return pl.concat(parts)


def _question_names(probes: Sequence[Probe]) -> list[str]:
    """A short name for each set: the factoids' source and number, with what else tells it from the others."""
    runs = [probe.run for probe in probes]
    setups = [setup_of(probe.path) for probe in probes]
    names = [
        f"{run['factoids'].get('source') or 'a file'}, {run['factoids']['n']:,} factoids" for run in runs
    ]
    if len(set(setups)) > 1:
        names = [
            name + (f", {setup.name}" if setup else "") for name, setup in zip(names, setups, strict=True)
        ]
    for key, form in (("readout", "read out by {}"), ("template", "template {}"), ("lens", "{} lens")):
        if len({run.get(key) for run in runs}) > 1:
            for at, run in enumerate(runs):
                if names.count(names[at]) > 1 or run.get(key) != "own":
                    told = "its own readout" if run.get(key) == "own" else form.format(run.get(key))
                    names[at] = (
                        f"{names[at]}, {told}" if key != "readout" or told != "its own readout" else names[at]
                    )
    seen: dict[str, int] = {}
    for at, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if names.count(name) > 1:
            names[at] = f"{name} ({runs[at]['factoids']['hash'][:6]})"
    return names


def fixed_of(group: Asked, fixed: Sequence[Probe]) -> Asked | None:
    """The same checkpoints and factoids in the base model's readout, under the labels of the group."""
    for probe in fixed if group.run["readout"] == "own" else ():
        if probe.run["factoids"]["hash"] != group.run["factoids"]["hash"]:
            continue
        sources = {
            label: (probe, name)
            for label, (own, name) in group.sources.items()
            if name in probe.checkpoints and probe.fingerprint(name) == own.fingerprint(name)
        }
        if sources:
            parts = [_under(sources, table) for table in ("records", "controls", "outcomes")]
            return Asked(group.name, sources, *parts, factoids=group.factoids, run=probe.run)
    return None
