"""The instruments: each says of every fact at which depth it is, with a score by depth.

An instrument sees a model, the base that it was made from, and facts. Block b writes the stream at depth b, so that
depths and blocks have the same numbers; what names no depth says NaN. All are small: what they read is measured in
:mod:`analyses.instruments.evidence`, by memprobe's own lenses, patches and grafts.

    lof k=1 …, settled …       a lens: the first depth, or the first of those to the end, at which the answer is in the
                               top k (all its tokens)
    gain jump, gain half …     a lens: the log-probability less the base's: where it grows most, or first has half of
                               what it comes to
    attribution                what a block writes towards the answer's logits, less what the base's does
    restoration, erasure …     patches of the residual stream at the last, subject or all positions: where the share
                               that is moved grows most (jump), or first is half (half); ``erasure last tau`` is the
                               first depth that encodes the fact by the erasure score's own threshold
    graft, reset               the model's block in the base, the base's block in the model: the one that moves most
    gradient …                 gradient × weight change, at the base, at the model, and averaged on the way
    weight change              its relative norm, the same for all facts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from analyses.instruments.evidence import (
    Cost,
    Direction,
    Evidence,
    attributed,
    captured,
    gradients,
    grafted,
    patched,
    weight_changes,
)
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.lens_files import LensFile
from memprobe.models import LensModel
from memprobe.patch_plan import POSITIONS, Positions
from memprobe.statistics.erasure import TAU
from memprobe.statistics.occurrence import first_depth, settled_depth
from memprobe.statistics.patches import GAP, HALF

KS = (1, 10)
PATH = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Points of the way from the base to the model at which gradients are taken, for their mean (the trapezoid rule)."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What an instrument says of each fact.

    Attributes:
        depth: [factoid], 1 … n_layers; NaN where it names none.
        score: [factoid, depth 1 … n_layers], larger where the fact is more likely to be.
        part: by factoid, ``attn`` or ``mlp``, of instruments that tell them apart.
        strength: [factoid], the largest score of any depth, in the instrument's own unit; NaN where a fact has no
            scores, ``None`` of instruments that give a depth alone.
    """

    depth: np.ndarray
    score: np.ndarray
    part: tuple[str, ...] | None = None
    strength: np.ndarray | None = None


class Instrument(Protocol):
    """What names, for each fact, the depth or block that it holds responsible.

    Attributes:
        name: in tables.
        family: what it belongs to.
        evidence: what it reads, for its cost.
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def evidence(self) -> tuple[Evidence, ...]: ...

    def verdict(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Verdict:
        """Where the facts are that ``model`` learned and ``base`` did not know."""
        ...


def cost_of(instrument: Instrument) -> Cost:
    """What the instrument's last verdict took, all that it read counted."""
    return sum((evidence.cost for evidence in instrument.evidence), Cost())


def near(depth: np.ndarray, n_layers: int) -> np.ndarray:
    """A score for instruments that give a depth alone: the nearer the higher, none where no depth is named."""
    away = -np.abs(np.arange(1, n_layers + 1)[None, :] - depth[:, None])
    return np.where(np.isnan(away), 0.0, away)


def largest(score: np.ndarray) -> Verdict:
    """The depth of the largest score; none where a fact has no scores, or none above 0."""
    filled = np.where(np.isnan(score), -np.inf, score)
    strength = filled.max(1)
    return Verdict(
        np.where(strength > 0, filled.argmax(1) + 1.0, np.nan),
        np.where(np.isnan(score), 0.0, score),
        strength=np.where(np.isinf(strength), np.nan, strength),
    )


def first_where(true: np.ndarray) -> np.ndarray:
    """The first depth, from 1, at which a row is true; NaN where it never is."""
    return np.where(true.any(1), true.argmax(1) + 1.0, np.nan)


@dataclass
class Occurrence:
    """First occurrence (LoF) or settled depth of a lens."""

    lens: str
    statistic: str
    k: int
    records: Evidence
    family: str = "lens"

    @property
    def name(self) -> str:
        return f"{self.statistic} {self.lens} k={self.k}"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return (self.records,)

    def verdict(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Verdict:
        rank = self.records(model, base, factoids)["rank"]
        held = (rank >= 0) & (rank < self.k)
        depth = first_depth(held) if self.statistic == "lof" else settled_depth(held)
        return Verdict(depth, near(depth, model.n_layers))


@dataclass
class Gain:
    """A lens's log-probability of the answer, less the base's."""

    lens: str
    rule: str
    ours: Evidence
    theirs: Evidence
    family: str = "gain"

    @property
    def name(self) -> str:
        return f"gain {self.rule} {self.lens}"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return (self.ours, self.theirs)

    def verdict(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Verdict:
        gain = self.ours(model, base, factoids)["log_prob"] - self.theirs(model, base, factoids)["log_prob"]
        gain = gain.astype(np.float64)
        gain[gain[:, -1] <= GAP] = np.nan
        if self.rule == "jump":
            return largest(np.diff(gain, axis=1))
        depth = first_where(gain[:, 1:] >= HALF * gain[:, -1:])
        return Verdict(depth, near(depth, model.n_layers))


@dataclass
class Attribution:
    """Direct logit attribution, less the base's."""

    ours: Evidence
    theirs: Evidence
    part: str = "block"
    family: str = "attribution"

    @property
    def name(self) -> str:
        return "attribution" if self.part == "block" else f"attribution {self.part}"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return (self.ours, self.theirs)

    def verdict(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Verdict:
        ours, theirs = (evidence(model, base, factoids) for evidence in self.evidence)
        if self.part == "block":
            return largest(ours["block"] - theirs["block"])
        if "attn" not in ours:
            nothing = np.full(ours["block"].shape, np.nan)
            return largest(nothing)
        return by_part({part: ours[part] - theirs[part] for part in ("attn", "mlp")})


@dataclass
class Patching:
    """Activation patching between base and model, over depths."""

    direction: Direction
    positions: Positions
    rule: str
    shares: Evidence
    family: str = "patching"

    @property
    def name(self) -> str:
        positions = "all" if self.positions == "prompt" else self.positions
        return f"{self.direction} {positions} {self.rule}"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return (self.shares,)

    def verdict(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Verdict:
        found = self.shares(model, base, factoids)
        if self.rule == "jump":
            return largest(np.diff(np.column_stack([found["start"], found["moved"]]), axis=1))
        reached = found["taken"] > TAU if self.rule == "tau" else found["moved"] >= HALF
        depth = first_where(reached & ~np.isnan(found["moved"]))
        return Verdict(depth, near(depth, model.n_layers))


@dataclass
class Grafting:
    """Weights of one block exchanged: ``graft`` gives the base the model's, ``reset`` the model the base's."""

    direction: Direction
    shares: Evidence
    parts: tuple[str, ...] = ("all",)
    family: str = "grafting"

    @property
    def name(self) -> str:
        name = "graft" if self.direction == "restoration" else "reset"
        return name if self.parts == ("all",) else f"{name} parts"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return (self.shares,)

    def verdict(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Verdict:
        found = self.shares(model, base, factoids)
        return largest(found["all"]) if self.parts == ("all",) else by_part({p: found[p] for p in self.parts})


@dataclass
class GradientChange:
    """Gradient × weight change: at a point of the way from base to model, or averaged over it."""

    where: str
    products: Evidence
    family: str = "weights"

    @property
    def name(self) -> str:
        return f"gradient {self.where}"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return (self.products,)

    def verdict(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Verdict:
        found = self.products(model, base, factoids)
        if self.where != "path":
            return largest(found["0" if self.where == "at base" else "1"])
        values = np.stack([found[f"{point:g}"] for point in PATH])
        return largest(np.trapezoid(values, PATH, axis=0))


@dataclass
class WeightChange:
    """The block whose weights moved most, for every fact alike."""

    norms: Evidence
    family: str = "weights"
    name: str = "weight change"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return (self.norms,)

    def verdict(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Verdict:
        return largest(self.norms(model, base, factoids)["norm"])


def by_part(scores: Mapping[str, np.ndarray]) -> Verdict:
    """The largest score of any part, and which part that is."""
    names = list(scores)
    stacked = np.stack([np.where(np.isnan(scores[name]), -np.inf, scores[name]) for name in names])
    best = stacked.max(0)
    found = largest(np.where(np.isinf(best), np.nan, best))
    place = best.argmax(1)
    parts = stacked[:, np.arange(len(place)), place].argmax(0)
    return replace(found, part=tuple(names[part] for part in parts))


def all_instruments(
    template: str, lenses: Mapping[str, Callable[[], LensFile]] | None = None, only: Sequence[str] = ()
) -> list[Instrument]:
    """Every instrument, those that read the same beside each other, those that need a fitted lens last.

    Args:
        lenses: by kind, what gives a fitted lens.
        only: names, or words that names begin with; all by default.

    Raises:
        MemprobeError: one of them is the beginning of no name.
    """
    found: list[Instrument] = []
    directions: tuple[Direction, ...] = ("restoration", "erasure")
    for direction in directions:
        found.append(Grafting(direction, grafted(direction, template)))
        parts = ("attn", "mlp")
        found.append(Grafting(direction, grafted(direction, template, parts), parts))
    for direction in directions:
        for positions in POSITIONS:
            shares = patched(direction, positions, template)
            found += [Patching(direction, positions, rule, shares) for rule in ("jump", "half")]
            if direction == "erasure" and positions == "last":
                found.append(Patching(direction, positions, "tau", shares))
    ways = {"at base": (0.0,), "at model": (1.0,), "path": PATH}
    found += [GradientChange(where, gradients(points, template)) for where, points in ways.items()]
    found.append(WeightChange(weight_changes()))
    mine, base_own = attributed("model", template), attributed("base", template)
    found += [Attribution(mine, base_own), Attribution(mine, base_own, "parts")]
    found += _of_lens("logit", template, None) + _of_lens("logit@base", template, None)
    for lens, file in (lenses or {}).items():
        found += _of_lens(lens, template, file)
    chosen = [one for one in found if not only or any(f"{one.name} ".startswith(f"{name} ") for name in only)]
    if unknown := [name for name in only if not any(f"{one.name} ".startswith(f"{name} ") for one in chosen)]:
        raise MemprobeError(
            f"instruments: no name begins with {unknown[0]!r}; there are {', '.join(one.name for one in found)}"
        )
    return chosen


def _of_lens(name: str, template: str, file: Callable[[], LensFile] | None) -> list[Instrument]:
    ours = captured("model", template, file, base_readout=name.endswith("@base"))
    theirs = captured("base", template, file)
    occurrences = [Occurrence(name, what, k, ours) for what in ("lof", "settled") for k in KS]
    return [*occurrences, *(Gain(name, rule, ours, theirs) for rule in ("jump", "half"))]
