"""Do the same facts surface at different depths in these checkpoints, and how sure are we?

Probe directories in, tables out; no model is needed.

    open_probe ... -> _check_alike -> members, common factoids
                         │
                         └─ for each checkpoint: Reading -> curves, placement, differences, fates, groups

One checkpoint's records are in memory at a time, besides those of the reference and the base model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError
from memprobe.files import write_json, write_text
from memprobe.lineage import lineage
from memprobe.probes import Probe, in_another_readout, open_probe
from memprobe.records import ALIKE
from memprobe.statistics.arms import MIN_SEEDS, Run, arm_differences, arm_means
from memprobe.statistics.controls import (
    BINARY,
    SHARES,
    STATISTICS,
    answer_cover,
    by_control,
    curve_values,
    net_tables,
    placement_claims,
    values_of,
)
from memprobe.statistics.curves import area, curves_of
from memprobe.statistics.fates import fates, kept_against_lost, lost_facts, lost_in_short
from memprobe.statistics.groups import by_group, group_labels
from memprobe.statistics.holding import Trajectories, trajectories
from memprobe.statistics.intervals import Resamples
from memprobe.statistics.occurrence import DRAWS, Occurrence, kaplan_meier, placement_of
from memprobe.statistics.paired import differences, differences_by_depth, overlap, spread_against_shift

_PLACEMENT = ("lof", "lof_restricted", "settled", "settled_restricted", "depths_per_factoid", "area")
_EVERYONE, _BOTH = "all", "exact in both"
_NET_OF_SHUFFLED = ("lof_restricted", "settled_restricted", "depths_per_factoid", "area", "recall_full")
ARM_STATISTICS = (*STATISTICS, *(f"{name}_net" for name in _NET_OF_SHUFFLED))
"""Of the tables ``arms`` and ``arm_differences``; ``NAME_net`` is net of shuffled answers."""
SHUFFLED, BASE = "shuffled", "base"
"""Names of controls in the tables ``net`` and ``net_by_depth``; the others are ``intrusion:NAME``."""
PAIRS = ("anchors", "all")


COMPARISON_SCHEMA = 1
"""Of ``comparison.json``."""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` finds.

    Attributes:
        settings: what was compared, and how.
        notes: what a reader must know beside the numbers, one line each.
        tables: polars frames by name. ``curves``, ``placement``, ``survival``, ``net``, ``net_by_depth``,
            ``differences``, ``differences_by_depth``, ``placement_exact_in_both``, ``spread``, ``overlap``,
            ``claims``, ``fates``, ``lost``, ``lost_facts``; where there is something to say also ``paths``,
            ``arms``, ``arm_differences``, ``groups``, ``steps``.
    """

    settings: dict[str, Any]
    notes: list[str]
    tables: dict[str, pl.DataFrame]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON: tables are lists of rows."""
        tables = {name: table.to_dicts() for name, table in self.tables.items()}
        return {"schema": COMPARISON_SCHEMA, **self.settings, "notes": self.notes, "tables": tables}

    def write(self, folder: Path) -> None:
        """``comparison.json``, and each table as ``NAME.csv`` (lists joined by spaces)."""
        write_json(self.as_json(), folder / "comparison.json")
        for name, table in self.tables.items():
            lists = [key for key, dtype in table.schema.items() if dtype == pl.List]
            joined = table.with_columns(pl.col(lists).cast(pl.List(pl.String)).list.join(" "))
            write_text(joined.write_csv(), folder / f"{name}.csv")


@dataclass(frozen=True)
class Member:
    """One checkpoint of the comparison: its label here, where its records are, and how it was made."""

    label: str
    probe: Probe
    name: str
    arm: str | None
    seed: str | None
    stage: str | None
    step: int | None

    @property
    def n_layers(self) -> int:
        """Depth of the model's own readout."""
        return self.probe.n_layers[self.name]


@dataclass(frozen=True, eq=False)
class Reading:
    """One checkpoint's records under the token rule, on the common factoids in their common order."""

    member: Member
    trajectory: Trajectories
    found: Occurrence
    values: np.ndarray  # [factoid, STATISTICS]
    curves: np.ndarray  # [factoid, CURVES x depth]
    exact: np.ndarray  # bool [factoid]
    first_rank: np.ndarray  # [factoid], of the first answer token in the model's own readout
    tokens: pl.DataFrame  # [factoid, length, first]
    cover: float  # share that the k commonest answer tokens cover


def compare(
    probes: Sequence[Probe | str | Path],
    *,
    k: int = 10,
    token: str = "first",
    reference: str | None = None,
    base: str | None = None,
    fixed_readout: Sequence[Probe | str | Path] = (),
    by: Iterable[str] = (),
    arms: Mapping[str, tuple[str, str, str]] | None = None,
    pairs: str = "anchors",
    draws: int = DRAWS,
    seed: int = 0,
    track: Callable[[list[Member]], Iterable[Member]] = iter,
) -> Comparison:
    """Compares every checkpoint of these probe directories with a reference.

    Args:
        k, token: what counts as holding an answer; see :func:`memprobe.statistics.held`.
        reference: label of the checkpoint that differences are taken from (default: the first).
        base: label of the base model (default: the one checkpoint without a manifest among others that have
            one, or the one labelled ``base``); differences to it are given as well.
        fixed_readout: probes of the same checkpoints read with the base model's unembedding
            (``memprobe layers --readout``). Only with them can a placement claim be held.
        by: groupings, see :data:`memprobe.statistics.groups.GROUPINGS`.
        arms: (arm, seed, stage) by label, for checkpoints without a manifest or to overrule it.
        pairs: ``overlap`` of every checkpoint with the ``anchors`` (the reference and the base model), or of
            ``all`` pairs.
        draws: of the bootstrap and of the permutation test, under ``seed``.
        track: wraps the loop over checkpoints, to show progress.

    Raises:
        MemprobeError: probes that cannot be compared (other template, lens, readout or tokenisation, no factoid
            in common), unknown labels, broken files.
    """
    if k < 1:
        raise MemprobeError(f"top-k is {k}: give 1 or more")
    if pairs not in PAIRS:
        raise MemprobeError(f"pairs {pairs!r}: choose {' or '.join(PAIRS)}")
    if draws < 100:
        raise MemprobeError(f"{draws} draws say nothing about a 95 % interval: give 100 or more")
    opened = [probe if isinstance(probe, Probe) else open_probe(probe) for probe in probes]
    fixed = [in_another_readout(probe) for probe in fixed_readout]
    fixed = fixed or [second for probe in opened for second in probe.second_readouts()[:1]]
    if not opened:
        raise MemprobeError("name at least one probe directory")
    _check_alike(opened)
    notes: list[str] = []
    members = _members(opened, arms or {}, notes)
    if not members:
        raise MemprobeError(
            f"{opened[0].path}: holds no checkpoint yet; wait until its first one is being probed"
        )
    origin = _named(members, reference, "--reference") if reference else members[0]
    root = _named(members, base, "--base") if base else _base(members)
    ids, facts = _common_factoids(members, notes)
    first = {origin.label: origin, **_by_label(root)}
    readings = {label: _read(member, ids, k, token) for label, member in first.items()}
    found = {label: _controls(member, ids, k, token) for label, member in first.items()}
    anchors = [readings[origin.label], *([readings[root.label]] if root and root is not origin else [])]
    answers = np.array([answer.casefold() for answer in facts["answer"]])
    resamples = _resamples(len(ids), draws, seed)
    rows = _Rows()
    runs, exact_by_label, placed, watched = [], {}, [], False
    for member in track(members):
        reading = readings.get(member.label) or _read(member, ids, k, token)
        controls, intrusions = found.get(member.label) or _controls(member, ids, k, token)
        exact_by_label[member.label] = reading.exact
        if pairs == "all":
            placed.append((member, reading.found))
        if root and root is not member and root.n_layers == member.n_layers:
            controls[BASE] = (readings[root.label].values, readings[root.label].curves)
        watched = watched or bool(intrusions)
        _describe(rows, reading, controls, k=k, resamples=resamples, is_base=member is root)
        if member.arm is not None:
            runs.append(_run(reading, controls.get(SHUFFLED)))
        for anchor in anchors:
            if anchor.member is not member:
                both = {"reference": anchor.member.label, "checkpoint": member.label}
                if anchor.member.n_layers == member.n_layers:
                    _subtract(
                        rows, both, reading, anchor, k=k, answers=answers, resamples=resamples, seed=seed
                    )
                    if pairs == "anchors":
                        rows.add("overlap", both, overlap(reading.found, anchor.found, resamples))
                else:
                    notes.append(
                        f"{member.label} has {member.n_layers} layers, {anchor.member.label} {anchor.member.n_layers}:"
                        " their depths are not compared"
                    )
                _follow(rows, both, reading, anchor, k=k, intrusions=intrusions)
                shuffled = found[anchor.member.label][0].get(SHUFFLED)
                _before(rows, both, reading, anchor, shuffled, resamples)
        for grouping in by:
            path = None
            if member is not origin:
                path = [f"{int(a)}→{int(b)}" for a, b in zip(anchors[0].exact, reading.exact, strict=True)]
            elif grouping == "outcome" and len(members) > 1:
                continue  # the reference itself has no outcome to go from
            labels = group_labels(
                facts, reading.tokens, None if path is None else np.array(path), by=grouping
            )
            keys = {"by": grouping, "checkpoint": member.label}
            rows.add("groups", keys, by_group(reading.found, labels, resamples))
    for (one, first), (other, second) in itertools.combinations(placed, 2):
        if one.n_layers == other.n_layers:
            pair = {"reference": one.label, "checkpoint": other.label}
            rows.add("overlap", pair, overlap(second, first, resamples))
    tables = rows.tables()
    tables["claims"] = _claims(
        tables.get("differences"), members, fixed, ids, opened, k, token, answers, resamples
    )
    _over_stages(tables, members, exact_by_label)
    _over_arms(tables, runs, len(ids), origin, notes)
    _over_steps(tables, members)
    if watched and token != "first":
        notes.append(
            "Intrusions are watched for where an answer begins: values net of them are given under --token first."
        )
    if len(members) > 1 and not fixed:
        notes.append(
            "No placement claim is held yet: it must hold in the base model's readout too. Probe again with"
            " memprobe layers --readout BASE and give that directory as --fixed-readout."
        )
    settings = {
        "k": k,
        "token": token,
        "draws": draws,
        "seed": seed,
        "factoids": len(ids),
        "reference": origin.label,
        "base": root.label if root else None,
        "pairs": pairs,
        **{name: opened[0].run.get(name) for name in ALIKE},
        "checkpoints": [
            {name: getattr(m, name) for name in ("label", "arm", "seed", "stage", "step", "n_layers")}
            for m in members
        ],
    }
    return Comparison(settings, notes, tables)


def kept_facts(
    probe: Probe,
    arms: Mapping[str, Sequence[tuple[str, str]]],
    *,
    k: int = 10,
    token: str = "first",
    draws: int = DRAWS,
    seed: int = 0,
) -> pl.DataFrame:
    """Whether the facts that further training left had surfaced earlier, before it, than those that it took.

    An arm that keeps more also has more facts to read afterwards, so that comparing arms there compares retention
    once more. This compares facts with facts: in the checkpoint *before*, where all compared ones are said, the mean
    over those still said after, minus the mean over the lost (:func:`memprobe.statistics.fates.kept_against_lost`).

    Args:
        arms: by arm, for each of its seeds the labels (before, after).
        k, token: what counts as holding an answer.
        draws: of the bootstrap over factoids, under ``seed``.

    Returns:
        [arm, seeds, kept, lost, statistic, difference, low, high, p, detectable, by_seed], of
        :data:`ARM_STATISTICS` but exact match; ``kept`` and ``lost`` count facts in each seed. The interval is of
        :func:`memprobe.statistics.arms.arm_means` and needs three seeds. Seeds without a kept or a lost fact are not
        in it.

    Raises:
        MemprobeError: an unknown label, broken files.
    """
    members = {member.label: member for member in _members([probe], {}, [])}
    ids, _ = _common_factoids(list(members.values()), [])
    chosen = [i for i, name in enumerate(ARM_STATISTICS) if name != "exact"]
    before: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    runs, counts = [], {}
    for arm, pairs in arms.items():
        for first, then in pairs:
            if first not in before:
                member = _named(list(members.values()), first, "before")
                reading = _read(member, ids, k, token)
                controls, _ = _controls(member, ids, k, token)
                before[first] = _with_net(reading, controls.get(SHUFFLED))[:, chosen], reading.exact
            values, said = before[first]
            still = _read(_named(list(members.values()), then, "after"), ids, k, token).exact
            kept, lost = said & still, said & ~still
            if kept.any() and lost.any():
                found = kept_against_lost(values, kept, lost)
                runs.append(Run(arm, "", then, then, found.difference, found.influence))
                counts.setdefault(arm, []).append((int(kept.sum()), int(lost.sum())))
    if not runs:
        return pl.DataFrame()
    table = arm_means(runs, [ARM_STATISTICS[i] for i in chosen], len(ids)).rename({"mean": "difference"})
    sizes = [[[n for n, _ in found], [n for _, n in found]] for found in counts.values()]
    numbers = pl.DataFrame(
        {"arm": list(counts), "kept": [kept for kept, _ in sizes], "lost": [lost for _, lost in sizes]}
    )
    columns = [
        "arm",
        "seeds",
        "kept",
        "lost",
        "statistic",
        "difference",
        "low",
        "high",
        "p",
        "detectable",
        "by_seed",
    ]
    return table.join(numbers, on="arm", how="left", maintain_order="left").select(columns)


# ---------------------------------------------------------------------------------------------------------------
# What is compared
# ---------------------------------------------------------------------------------------------------------------


def _check_alike(probes: list[Probe], *, but: tuple[str, ...] = ()) -> None:
    first = probes[0]
    for probe in probes[1:]:
        for name in ALIKE:
            ours, theirs = first.run.get(name), probe.run.get(name)
            if ours != theirs and name not in but:
                mend = "; give it as --fixed-readout" if name == "readout" else "; probe both alike"
                raise MemprobeError(
                    f"{probe.path}: {name} {theirs!r}, but {first.path} has {ours!r}: ranks are not comparable{mend}"
                )


def _members(probes: list[Probe], arms: Mapping[str, tuple[str, str, str]], notes: list[str]) -> list[Member]:
    named = [(probe, name) for probe in probes for name in probe.checkpoints]
    times = {name: [other for _, other in named].count(name) for _, name in named}
    members: list[Member] = []
    for probe, name in named:
        label = name if times[name] == 1 else f"{probe.path.name}/{name}"
        if any(member.label == label for member in members):
            raise MemprobeError(f"{probe.path}: checkpoint {name!r} is given twice; name each directory once")
        entry = probe.run["checkpoints"][name]
        if not entry.get("complete", True):
            notes.append(f"{label} is not finished: what is there is compared.")
        manifest = entry.get("manifest") or {}
        told = arms.get(label)
        made = told if told is not None else [_text(manifest.get(key)) for key in ("arm", "seed", "stage")]
        members.append(Member(label, probe, name, *made, step=_step(name, entry)))
    if unknown := [label for label in arms if label not in {member.label for member in members}]:
        raise MemprobeError(f"--arm: no checkpoint {unknown[0]!r}; there are {_listed(members)}")
    return members


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _step(name: str, entry: Mapping[str, Any]) -> int | None:
    """Of a probe along training: ``step`` in its entry, else in its label (``step-200``, ``step=200``)."""
    if entry.get("step") is not None:
        return int(entry["step"])
    found = re.search(r"step[-_= ]?(\d+)", name)
    return int(found[1]) if found else None


def _base(members: list[Member]) -> Member | None:
    bare = [m for m in members if not m.probe.run["checkpoints"][m.name].get("manifest")]
    if len(bare) == 1 < len(members):
        return bare[0]
    called = [member for member in members if member.name == "base"]
    return called[0] if len(called) == 1 else None


def _named(members: list[Member], label: str, option: str) -> Member:
    for member in members:
        if member.label == label:
            return member
    raise MemprobeError(f"{option} {label!r}: no such checkpoint; there are {_listed(members)}")


def _listed(members: list[Member]) -> str:
    return ", ".join(member.label for member in members)


def _by_label(member: Member | None) -> dict[str, Member]:
    return {} if member is None else {member.label: member}


def _common_factoids(members: list[Member], notes: list[str]) -> tuple[np.ndarray, pl.DataFrame]:
    """Ids that every checkpoint has records of, in the order of the first probe, and their rows.

    Raises:
        MemprobeError: there is none.
    """
    facts = members[0].probe.factoids
    common, most = None, 0
    for member in members:
        lazy = member.probe.scan("records").filter(pl.col("checkpoint") == member.name)
        here = set(_collect(lazy.select(pl.col("factoid").unique()), member.probe)["factoid"])
        if not here:
            raise MemprobeError(f"{member.probe.path}: no records of {member.name!r}; probe it again")
        most = max(most, len(here))
        common = here if common is None else common & here
        if not common:
            raise MemprobeError(
                f"{member.probe.path}: {member.label} shares no factoid with the checkpoints before it:"
                " probe the same factoids"
            )
    assert common is not None
    if len(common) < most:
        notes.append(f"Compared on the {len(common)} factoids that every checkpoint has, of up to {most}.")
    facts = facts.filter(pl.col("id").is_in(list(common)))
    if facts.height < len(common):
        raise MemprobeError(f"{members[0].probe.path}: factoids.parquet lacks factoids of its own records")
    return facts["id"].to_numpy(), facts


# ---------------------------------------------------------------------------------------------------------------
# Reading one checkpoint
# ---------------------------------------------------------------------------------------------------------------


def _collect(lazy: pl.LazyFrame, probe: Probe) -> pl.DataFrame:
    try:
        return lazy.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MemprobeError(f"{probe.path}: its tables cannot be read ({reason}); probe again") from error


def _rows_of(member: Member, table: str, ids: np.ndarray, columns: Sequence[str]) -> pl.DataFrame:
    wanted = pl.Series(ids, dtype=pl.String).implode()
    lazy = member.probe.scan(table).filter(
        pl.col("checkpoint") == member.name, pl.col("factoid").is_in(wanted)
    )
    return _collect(lazy.select("checkpoint", "factoid", *columns), member.probe)


def _read(member: Member, ids: np.ndarray, k: int, token: str) -> Reading:
    columns = ("token", "token_id", "depth", "rank", "log_prob", "entropy")
    records = _rows_of(member, "records", ids, columns)
    found = list(trajectories(records, token=token))
    if not found or len(found[0].factoids) < len(ids):
        raise MemprobeError(
            f"{member.probe.path}: records of {member.name!r} lack answer tokens; probe it again"
        )
    trajectory = found[0].select(ids)
    if trajectory.n_layers != member.n_layers:
        raise MemprobeError(
            f"{member.probe.path}: records of {member.name!r} end at depth {trajectory.n_layers},"
            f" run.json says {member.n_layers}; probe it again"
        )
    occurrence = Occurrence.of(trajectory, k)
    outcomes = _rows_of(member, "outcomes", ids, ("exact_match", "exact_tokens")).unique("factoid")
    said = outcomes.select("factoid", pl.coalesce("exact_match", "exact_tokens").alias("exact"))
    starts = records.filter(pl.col("token") == 0, pl.col("depth") == member.n_layers)
    joined = (
        pl.DataFrame({"factoid": ids})
        .join(said, on="factoid", how="left", maintain_order="left")
        .join(starts.select("factoid", "rank"), on="factoid", how="left", maintain_order="left")
    )
    exact = joined["exact"].fill_null(False).to_numpy().astype(bool)
    answers = records.filter(pl.col("token") >= 0).group_by("factoid")
    return Reading(
        member=member,
        trajectory=trajectory,
        found=occurrence,
        values=values_of(trajectory, occurrence, exact),
        curves=curve_values(trajectory, k),
        exact=exact,
        first_rank=joined["rank"].fill_null(-1).to_numpy(),
        tokens=answers.agg(
            pl.col("token").n_unique().alias("length"),
            pl.col("token_id").filter(pl.col("token") == 0).first().alias("first"),
        ),
        cover=answer_cover(records, k=k, token=token),
    )


_Cells = tuple[np.ndarray, np.ndarray]  # values_of and curve_values


def _controls(
    member: Member, ids: np.ndarray, k: int, token: str
) -> tuple[dict[str, _Cells], list[Trajectories]]:
    """What the checkpoint's own controls are worth, by name, and its intrusions.

    Intrusions are there for an answer's first token only: under another rule they are no like for like.
    """
    frame = _rows_of(member, "controls", ids, ("control", "token", "depth", "rank"))
    of_kind = {
        kind: frame.filter(pl.col("control").str.starts_with(kind)) for kind in ("shuffled:", "intrusion:")
    }
    shuffled = list(trajectories(of_kind["shuffled:"], token=token))
    intrusions = list(trajectories(of_kind["intrusion:"], token="first"))
    controls = {SHUFFLED: by_control(shuffled, ids, k)} if shuffled else {}
    if token == "first":
        controls |= {str(one.control): by_control([one], ids, k) for one in intrusions}
    return controls, intrusions


@lru_cache(maxsize=3)
def _resamples(n: int, draws: int, seed: int) -> Resamples:
    return Resamples.of(n, draws=draws, seed=seed)


# ---------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------


class _Rows:
    """Tables as they grow: parts with the same keys in front are stacked at the end."""

    def __init__(self) -> None:
        self._parts: dict[str, list[pl.DataFrame]] = {}

    def add(self, name: str, keys: Mapping[str, Any], part: pl.DataFrame | Mapping[str, Any]) -> None:
        frame = part if isinstance(part, pl.DataFrame) else pl.DataFrame([dict(part)])
        front = [pl.lit(value, _dtype(value)).alias(key) for key, value in keys.items()]
        self._parts.setdefault(name, []).append(frame.select(*front, *frame.columns))

    def tables(self) -> dict[str, pl.DataFrame]:
        return {name: pl.concat(parts, how="vertical_relaxed") for name, parts in self._parts.items()}


def _dtype(value: Any) -> Any:
    return pl.Boolean if isinstance(value, bool) else pl.Int64 if isinstance(value, int) else pl.String


def _describe(
    rows: _Rows,
    reading: Reading,
    controls: Mapping[str, _Cells],
    *,
    k: int,
    resamples: Resamples,
    is_base: bool,
) -> None:
    """Curves, placement, both net of their controls, and survival of one checkpoint."""
    keys = {"checkpoint": reading.member.label}
    found = reading.found
    net, by_depth = net_tables((reading.values, reading.curves), controls, resamples)
    rows.add("net", keys, net)
    rows.add("net_by_depth", keys, by_depth)
    recall = by_depth.filter(control=SHUFFLED, measure="recall") if SHUFFLED in controls else None
    rows.add("curves", keys, curves_of(reading.trajectory, k=k, net=recall, resamples=resamples))
    row = placement_of(found, resamples) | {
        "exact": float(reading.exact.mean()),
        "area": float(area(found.held.mean(0))),
    }
    beside = {row["statistic"]: row for row in net.filter(control=SHUFFLED).iter_rows(named=True)}
    for statistic, name in _CHANCE.items():
        row[f"chance_{name}"] = beside.get(statistic, {}).get("chance")
    for end, part in (("", "net"), ("_low", "low"), ("_high", "high")):
        row[f"net_lof_restricted_mean{end}"] = beside.get("lof_restricted", {}).get(part)
    row["answer_cover"] = reading.cover
    rows.add("placement", keys | {"base": is_base}, pl.DataFrame([row], schema=_placed(row)))
    for name, depth in (("lof", found.lof), ("settled", found.settled)):
        rows.add("survival", keys | {"of": name}, kaplan_meier(depth, found.n_layers))


_CHANCE = {
    "lof_restricted": "lof_restricted_mean",
    "settled_restricted": "settled_restricted_mean",
    "depths_per_factoid": "depths_per_factoid",
    "area": "area",
    "recall_full": "recall_full",
}
"""Chance levels that stand in the placement table: of which statistic, under which name."""


def _placed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: pl.Int64 if name in ("n", "n_layers", "lof_n", "settled_n") else pl.Float64 for name in row}


def _subtract(
    rows: _Rows,
    keys: dict[str, str],
    reading: Reading,
    anchor: Reading,
    *,
    k: int,
    answers: np.ndarray,
    resamples: Resamples,
    seed: int,
) -> None:
    """Paired differences, overall and by depth, and spread."""
    values = reading.values - anchor.values
    names = pl.Series("statistic", STATISTICS)
    both = reading.exact & anchor.exact
    for on, which in ((_EVERYONE, np.ones(len(both), bool)), (_BOTH, both)):
        if not which.any():
            continue
        drawn = resamples if which.all() else _resamples(int(which.sum()), len(resamples.counts), seed)
        table = differences(values[which], answers[which], drawn, seed=seed)
        rows.add("differences", keys | {"on": on}, table.select(names, *table.columns))
        spread = spread_against_shift(reading.found.select(which), anchor.found.select(which), drawn)
        if on == _BOTH:
            for one in (anchor, reading):
                place = placement_of(one.found.select(which), drawn)
                of = {"of": one.member.label}
                rows.add("placement_exact_in_both", keys | of, pl.DataFrame([place], schema=_placed(place)))
        rows.add(
            "spread", keys | {"on": on}, pl.DataFrame([spread], schema=dict.fromkeys(spread, pl.Float64))
        )
    by_depth = differences_by_depth(
        reading.trajectory, anchor.trajectory, k=k, answers=answers, resamples=resamples, seed=seed
    )
    rows.add("differences_by_depth", keys, by_depth)


def _follow(
    rows: _Rows,
    keys: dict[str, str],
    reading: Reading,
    anchor: Reading,
    *,
    k: int,
    intrusions: list[Trajectories],
) -> None:
    """Fates of the facts from the anchor to this checkpoint."""
    rows.add("fates", keys, fates(np.column_stack([anchor.exact, reading.exact])))
    lost = lost_facts(
        reading.trajectory,
        anchor.trajectory,
        anchor.exact & ~reading.exact,
        k=k,
        intrusions=intrusions,
        first_rank=reading.first_rank,
    )
    rows.add("lost_facts", keys, lost)
    short = lost_in_short(lost)
    rows.add(
        "lost", keys, pl.DataFrame([short], schema={"n": pl.Int64} | dict.fromkeys([*short][1:], pl.Float64))
    )


def _before(
    rows: _Rows,
    keys: dict[str, str],
    reading: Reading,
    anchor: Reading,
    shuffled: _Cells | None,
    resamples: Resamples,
) -> None:
    """Whether the anchor's facts that this checkpoint still says had surfaced there earlier than the others."""
    kept, lost = anchor.exact & reading.exact, anchor.exact & ~reading.exact
    if min(kept.sum(), lost.sum()) < 2:
        return
    found = kept_against_lost(_with_net(anchor, shuffled), kept, lost)
    counts = {"n_kept": int(kept.sum()), "n_lost": int(lost.sum())}
    columns = {"statistic": ARM_STATISTICS, "difference": found.difference}
    columns |= {"low": found.low, "high": found.high, "detectable": found.detectable}
    table = pl.DataFrame(columns, nan_to_null=True).filter(pl.col("statistic") != "exact")
    rows.add("kept", keys | counts, table)


def _claims(
    own: pl.DataFrame | None,
    members: list[Member],
    fixed: list[Probe],
    ids: np.ndarray,
    opened: list[Probe],
    k: int,
    token: str,
    answers: np.ndarray,
    resamples: Resamples,
) -> pl.DataFrame:
    """Placement differences in the own readout beside those in the fixed one."""
    if own is None:
        return pl.DataFrame()
    own = own.filter(pl.col("on") == _EVERYONE, pl.col("statistic").is_in(_PLACEMENT))
    if not fixed:
        return placement_claims(own, None)
    _check_alike([opened[0], *fixed], but=("readout",))
    notes: list[str] = []
    readings = {}
    for member in _members(fixed, {}, notes):
        match = [other for other in members if other.label == member.label or other.name == member.name]
        if len(match) == 1:
            if member.probe.fingerprint(member.name) != match[0].probe.fingerprint(match[0].name):
                raise MemprobeError(
                    f"{member.probe.path}: {member.name!r} has other weights than {match[0].label!r} in "
                    f"{match[0].probe.path}; probe both again, or give the same checkpoints"
                )
            readings[match[0].label] = _read(member, ids, k, token)
    rows = _Rows()
    for reference, checkpoint in (
        own.select("reference", "checkpoint").unique(maintain_order=True).iter_rows()
    ):
        if reference in readings and checkpoint in readings:
            values = readings[checkpoint].values - readings[reference].values
            table = differences(values, answers, resamples)
            keys = {"reference": reference, "checkpoint": checkpoint}
            rows.add("fixed", keys, table.select(pl.Series("statistic", STATISTICS), *table.columns))
    if "fixed" not in (tables := rows.tables()):
        raise MemprobeError(
            f"{fixed[0].path}: holds no two of the checkpoints {_listed(members)} under their labels"
        )
    return placement_claims(own, tables["fixed"])


def _with_net(reading: Reading, shuffled: _Cells | None) -> np.ndarray:
    """[factoid, ARM_STATISTICS] of a checkpoint; net of shuffled answers unknown where none were probed."""
    level = np.full_like(reading.values, np.nan) if shuffled is None else shuffled[0]
    net = [STATISTICS.index(name) for name in _NET_OF_SHUFFLED]
    return np.hstack([reading.values, (reading.values - level)[:, net]])


def _run(reading: Reading, shuffled: _Cells | None) -> Run:
    member = reading.member
    before, rows = lineage(member.probe.run["checkpoints"], member.name)
    names = (member.arm or "", member.stage or "", member.seed or "", member.label)
    return Run.of(*names, _with_net(reading, shuffled), before=before, rows=rows)


def _over_stages(
    tables: dict[str, pl.DataFrame], members: list[Member], exact: dict[str, np.ndarray]
) -> None:
    """Paths of facts through the stages of each run (same arm and seed)."""
    rows = _Rows()
    chains: dict[tuple[str, str], list[Member]] = {}
    for member in members:
        if member.arm is not None and member.stage is not None:
            chains.setdefault((member.arm, member.seed or ""), []).append(member)
    for (arm, seed), chain in chains.items():
        ordered = sorted(chain, key=lambda member: _stage_order(member.stage or ""))
        if len(ordered) > 1:
            keys = {"arm": arm, "seed": seed, "stages": " → ".join(member.stage or "" for member in ordered)}
            rows.add("paths", keys, fates(np.column_stack([exact[member.label] for member in ordered])))
    tables |= rows.tables()


def _stage_order(stage: str) -> tuple[int, str]:
    number = re.match(r"\d+", stage)
    return (int(number[0]) if number else 10**9, stage)


def _over_arms(
    tables: dict[str, pl.DataFrame], runs: list[Run], n: int, origin: Member, notes: list[str]
) -> None:
    if not runs:
        return
    seen: dict[tuple[str, str, str], str] = {}
    for run in runs:
        key = (run.arm, run.stage, run.seed)
        if key in seen:
            raise MemprobeError(
                f"{seen[key]} and {run.label} are both arm {run.arm!r}, stage {run.stage!r}, seed {run.seed!r}:"
                " tell them apart with --arm LABEL=ARM:SEED:STAGE"
            )
        seen[key] = run.label
    names = list(ARM_STATISTICS)
    reference = origin.arm if origin.arm is not None else runs[0].arm
    tables["arms"] = arm_means(runs, names, n, shares=SHARES, binary=BINARY)
    tables["arm_differences"] = arm_differences(runs, names, n, reference=reference, binary=BINARY)
    if min(tables["arms"]["seeds"].to_list()) < MIN_SEEDS:
        notes.append(
            f"An arm has fewer than {MIN_SEEDS} seeds: each seed is shown, and no claim about the arm is made."
        )


def _over_steps(tables: dict[str, pl.DataFrame], members: list[Member]) -> None:
    """Learning curves of depth: placement along training."""
    steps = {member.label: member.step for member in members if member.step is not None}
    if len(steps) < 2:
        return
    table = tables["placement"].filter(pl.col("checkpoint").is_in(list(steps)))
    step = pl.col("checkpoint").replace_strict(steps, return_dtype=pl.Int64).alias("step")
    tables["steps"] = table.select(step, *table.columns).sort("step", maintain_order=True)
