"""Sets of checkpoints that were asked alike, each as readings with a name of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memprobe.errors import MemprobeError, there_are
from memprobe.members import members_of
from memprobe.probes import Probe
from memprobe.readings import Readings
from memprobe.studies import asked_alike, in_fixed_readout, setup_of, with_records


@dataclass(frozen=True, eq=False)
class Set:
    """Checkpoints that the page shows beside each other.

    Attributes:
        name: short, of what was asked, through which lens and where.
        family: the same for all lenses and positions of what was asked.
        readings: at the probes' own top-k and token rule.
        waiting: labels of checkpoints that have no records yet.
    """

    name: str
    family: str
    readings: Readings
    waiting: list[str]


def sets_of(
    probes: Sequence[Probe],
    fixed: Sequence[Probe],
    *,
    reference: str | None,
    draws: int,
    say: Callable[[str], None],
) -> list[Set]:
    """The sets of these probes; differences in the readout of ``fixed`` stand beside the others.

    Args:
        reference: label that differences are taken from, in the sets that have it.

    Raises:
        MemprobeError: no set has the reference, or files are broken.
    """
    groups = asked_alike(probes)
    sets = []
    firsts = [group[0] for group in groups]
    for group, name, family in zip(groups, _names(firsts), _families(firsts), strict=True):
        present = [probe for one in group if (probe := with_records(one, say)).checkpoints]
        if present:
            begun = {(probe.path, label) for probe in present for label in probe.checkpoints}
            waiting = [
                label for probe in group for label in probe.checkpoints if (probe.path, label) not in begun
            ]
            sets.append(Set(name, family, _read(present, fixed, reference, draws, say), waiting))
    if reference and not any(reference in one.readings.labels for one in sets):
        known = [label for one in sets for label in one.readings.labels]
        raise MemprobeError(f"`reference` {reference!r}: no such checkpoint; {there_are(reference, known)}")
    return sets


def _read(
    probes: Sequence[Probe],
    fixed: Sequence[Probe],
    reference: str | None,
    draws: int,
    say: Callable[[str], None],
) -> Readings:
    def opened(chosen: Sequence[Probe]) -> Readings:
        run = chosen[0].run
        labels = {member.label for member in members_of(chosen, {}, [])}
        return Readings.of(
            chosen,
            k=run["k"],
            token=run["token"],
            reference=reference if reference in labels else None,
            fixed_readout=in_fixed_readout(chosen, fixed),
            draws=draws,
        )

    ended = [probe.only(probe.finished) for probe in probes if probe.finished]
    try:
        return opened(probes)
    except MemprobeError:
        # Checkpoints that are being probed may share no fact with the others yet.
        if not ended or all(probe.finished == probe.checkpoints for probe in probes):
            raise
    for probe in probes:
        if unfinished := [label for label in probe.checkpoints if label not in probe.finished]:
            say(f"{probe.path}: {', '.join(unfinished)} not finished, and left out")
    return opened(ended)


def _families(probes: Sequence[Probe]) -> list[str]:
    """A name for each set that those share which differ in lens, readout or position alone."""
    keys = [
        (
            setup_of(probe.path),
            probe.run["factoids"]["hash"],
            probe.run["template"],
            probe.run["tokenisation"],
        )
        for probe in probes
    ]
    alone = {key: _names([probes[keys.index(key)]])[0] for key in keys}
    several = list(alone.values())
    return [
        alone[key] if several.count(alone[key]) == 1 else f"{alone[key]} ({list(alone).index(key) + 1})"
        for key in keys
    ]


def _names(probes: Sequence[Probe]) -> list[str]:
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
    for key, form, usual in (
        ("readout", "read out by {}", "own"),
        ("template", "template {}", None),
        ("lens", "{} lens", None),
        ("position", "at the {}", "answer"),
    ):
        if len({run.get(key) for run in runs}) > 1:
            for at, run in enumerate(runs):
                if run.get(key) != usual:
                    names[at] = f"{names[at]}, {form.format(run.get(key))}"
    for at, run in enumerate(runs):
        if names.count(names[at]) > 1:
            names[at] = f"{names[at]} ({run['factoids']['hash'][:6]})"
    return names
