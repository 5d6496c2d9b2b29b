"""Which probes may be compared: those whose ranks were read in the same way."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence

from memprobe.errors import MemprobeError
from memprobe.probes import Probe
from memprobe.records import ALIKE
from memprobe.sameness import differ


def unlike(one: Probe, other: Probe, *, but: Container[str] = ()) -> tuple[str, str, str] | None:
    """Why the ranks of two views are not comparable, or ``None``: what differs, in one and in the other.

    A readout's name vouches for nothing: two probes may each have been read with a ``base`` of its own. Where both say
    by which weights and settings they were read, those count too.

    Args:
        but: names of :data:`~memprobe.records.ALIKE` that may differ.
    """
    for name in ALIKE:
        ours, theirs = one.run.get(name), other.run.get(name)
        if name in but:
            continue
        if ours != theirs:
            return name, repr(ours), repr(theirs)
        if name == "readout":
            entries = one.run["lenses"][one.lens], other.run["lenses"][other.lens]
            for part in ("readout_fingerprint", "readout_settings"):
                if differ(*entries, part):
                    of = " settings" if part == "readout_settings" else ""
                    mine, other_mark = (f"{ours!r} of{of or ' weights'} {one[part][:8]}" for one in entries)
                    return name, mine, other_mark
    return None


def check_alike(probes: Sequence[Probe], *, but: tuple[str, ...] = ()) -> None:
    """Refuses probes whose ranks are not comparable.

    Args:
        but: what may differ.

    Raises:
        MemprobeError: they differ in template, lens, readout or tokenisation.
    """
    first = probes[0]
    for probe in probes[1:]:
        if differs := unlike(first, probe, but=but):
            name, ours, theirs = differs
            own = "own" in (first.run["readout"], probe.run["readout"])
            mend = "give it as `fixed_readout`" if name == "readout" and own else "probe both alike"
            raise MemprobeError(
                f"{probe.path}: {name} {theirs}, but {first.path} has {ours}: ranks are not comparable; {mend}"
            )


def second_readouts(probes: Sequence[Probe]) -> list[Probe]:
    """The probes through the one second readout that most of them were read in, the first of several."""
    found = [probe.second_readouts() for probe in probes]

    def alike(first: Probe) -> list[Probe]:
        same = (next((view for view in views if not unlike(first, view)), None) for views in found)
        return [view for view in same if view is not None]

    return max(map(alike, itertools.chain(*found)), key=len, default=[])
