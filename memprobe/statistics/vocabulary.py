"""Every statistic once: its key, what it is called, its unit, which way is which, and which interval it has.

The terminal, the page, the figures and Markdown take names, units and directions from here, and the tables take
from here which statistics there are. A statistic of a factoid is one row of :data:`PER_FACTOID`: it then stands in
every table of :mod:`memprobe.compare` and wherever :attr:`Statistic.views` say.

In labels, ``{k}`` is the top-k and ``{never}`` the depth that "never" counts as, n_layers + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from memprobe.statistics.curves import area
from memprobe.statistics.ends import FREE, SHARE, Ends, less
from memprobe.statistics.holding import Trajectories
from memprobe.statistics.occurrence import Occurrence, restricted

Unit = Literal["share", "depth", "depths", "layers", "nats", "rank", "facts"]
Interval = Literal["wilson", "order", "bca", "bootstrap-t", "percentile", "none"]
View = Literal["compared", "staged", "arms", "placement", "headline"]
INTERVALS: dict[Interval, str] = {
    "wilson": "Wilson's for shares",
    "order": "order statistics for medians",
    "bca": "bias-corrected bootstrap over facts",
    "bootstrap-t": "bootstrap-t over facts",
    "percentile": "expanded percentiles of the bootstrap over facts",
    "none": "no interval",
}
"""Of one checkpoint's number, always 95 %. Paired differences have the expanded percentiles of the bootstrap over
facts (:func:`memprobe.statistics.intervals.bootstrap_mean`), arms those of :mod:`memprobe.statistics.arms`."""
DIFFERENCE_UNITS: dict[Unit, str] = {
    "share": "percentage points",
    "depth": "depths",
    "depths": "depths",
    "layers": "layers",
    "nats": "nats",
    "rank": "ranks",
    "facts": "facts",
}


@dataclass(frozen=True)
class Statistic:
    """One statistic.

    Attributes:
        label: what it is called where there is room; :func:`label` fills it in.
        short: what it is called in a column of a terminal or over a panel.
        unit: of its value.
        interval: of its value at one checkpoint, the same wherever it is shown.
        more, less: what a positive, or a negative, difference of it says.
        views: where it is shown beside the tables, which hold all: ``compared`` (differences), ``staged`` (from
            stage to stage), ``arms`` (over seeds), ``placement`` (in a row for each checkpoint), ``headline`` (in a
            column of the one table below a verdict, on the terminal, in a notebook and in Markdown).
        of: for a statistic of a factoid, ``of(trajectory, found, exact)`` [factoid], NaN where there is none.
        net: whether it is also followed net of shuffled answers.
        on: the facts that it is over, where these are not all.
        placed: of a statistic of a factoid, its name in a checkpoint's row of placement, where it has another there.
        panel: its place among the panels of the paper's figure of differences, from 1; 0: it has none.
        least_depth: of a depth, the smallest: 0 where the stream after the embeddings counts.
        span: the least and the most that it can be, where its unit does not say it; see :meth:`ends`.
    """

    key: str
    label: str
    short: str
    unit: Unit
    interval: Interval
    more: str = "more"
    less: str = "fewer"
    views: frozenset[View] = frozenset()
    of: Callable[[Trajectories, Occurrence, np.ndarray | None], np.ndarray] | None = None
    net: bool = False
    on: str = ""
    placed: str = ""
    panel: int = 0
    least_depth: int = 1
    span: Ends | None = None

    def ends(self, n_layers: float) -> Ends:
        """The least and the most that it, or a mean of it, can be in a model of so many layers.

        A depth that counts "never" ends at n_layers + 1.
        """
        if self.span is not None:
            return self.span
        return {
            "share": SHARE,
            "depth": (float(self.least_depth), n_layers + ("{never}" in self.label)),
            "depths": (0.0, n_layers),
            "layers": (1.0, n_layers),
            "nats": (-np.inf, 0.0),
            "rank": (0.0, np.inf),
            "facts": (0.0, np.inf),
        }[self.unit]

    @property
    def share(self) -> bool:
        """Whether it is written in per cent. It lies between 0 and 1, unless it is a share of a gap."""
        return self.unit == "share"

    @property
    def in_placement(self) -> str:
        """Its name in a checkpoint's row of placement."""
        return self.placed or self.key

    @property
    def difference_unit(self) -> str:
        """The unit of a difference of it."""
        return DIFFERENCE_UNITS[self.unit]


def _unknown(found: Occurrence) -> np.ndarray:
    return np.full(len(found.factoids), np.nan)


def _views(*names: View) -> frozenset[View]:
    return frozenset(names)


_LATER: dict[str, Any] = {"more": "later", "less": "earlier"}
_HIGHER: dict[str, Any] = {"more": "higher", "less": "lower"}
_ROWS = (
    Statistic(
        "lof",
        "first occurrence",
        "LoF, where in both",
        "depth",
        "bca",
        **_LATER,
        of=lambda trajectory, found, exact: found.lof,
        on="facts that occur",
        placed="lof_mean",
    ),
    Statistic(
        "lof_restricted",
        "first occurrence, counting never as depth {never}",
        "LoF, never as {never}",
        "depth",
        "bca",
        **_LATER,
        views=_views("compared", "staged", "arms"),
        of=lambda trajectory, found, exact: restricted(found.lof, found.n_layers),
        net=True,
        placed="lof_restricted_mean",
        panel=1,
    ),
    Statistic(
        "settled",
        "settled depth",
        "settled, where in both",
        "depth",
        "bca",
        **_LATER,
        of=lambda trajectory, found, exact: found.settled,
        on="facts that settle",
        placed="settled_mean",
    ),
    Statistic(
        "settled_restricted",
        "settled depth, counting never as depth {never}",
        "settled, never as {never}",
        "depth",
        "bca",
        **_LATER,
        views=_views("compared", "arms"),
        of=lambda trajectory, found, exact: restricted(found.settled, found.n_layers),
        net=True,
        placed="settled_restricted_mean",
        panel=4,
    ),
    Statistic(
        "depths_per_factoid",
        "depths that hold a fact",
        "depths per factoid",
        "depths",
        "bca",
        views=_views("compared", "staged", "arms", "placement"),
        of=lambda trajectory, found, exact: found.held[:, 1:].sum(1),
        net=True,
        panel=2,
    ),
    Statistic(
        "area",
        "area under recall",
        "area under recall",
        "share",
        "bca",
        **_HIGHER,
        views=_views("placement"),
        of=lambda trajectory, found, exact: area(found.held.astype(float)),
        net=True,
        panel=5,
    ),
    Statistic(
        "recall_full",
        "recall@{k} at full depth",
        "recall at full depth",
        "share",
        "wilson",
        **_HIGHER,
        views=_views("compared", "staged", "arms"),
        of=lambda trajectory, found, exact: found.held[:, -1],
        net=True,
    ),
    Statistic(
        "log_prob_full",
        "log-probability at full depth",
        "log-prob, full depth",
        "nats",
        "bca",
        **_HIGHER,
        views=_views("compared"),
        of=lambda trajectory, found, exact: (
            trajectory.log_prob[:, -1] if trajectory.log_prob.size else _unknown(found)
        ),
    ),
    Statistic(
        "exact",
        "exact match",
        "exact match",
        "share",
        "wilson",
        **_HIGHER,
        views=_views("compared", "staged", "arms", "placement"),
        of=lambda trajectory, found, exact: _unknown(found) if exact is None else exact,
        panel=3,
    ),
)
PER_FACTOID: dict[str, Statistic] = {row.key: row for row in _ROWS}
"""Statistics with a value for each factoid, whose means and paired differences are taken."""


def _mean(key: str, short: str) -> Statistic:
    """The mean of a statistic of a factoid over one checkpoint's facts, by its name in a row of placement."""
    row = PER_FACTOID[key]
    return replace(
        row, key=row.in_placement, short=short, views=frozenset(), of=None, net=False, placed="", panel=0
    )


_PLACED = (
    PER_FACTOID["depths_per_factoid"],
    _mean("lof", "first occurrence"),
    Statistic(
        "lof_sd", "sd of first occurrence", "sd", "depths", "bca", "wider", "narrower", on="facts that occur"
    ),
    _mean("lof_restricted", "mean, never as {never}"),
    _mean("settled", "settled depth"),
    Statistic(
        "settled_sd",
        "sd of settled depth",
        "sd",
        "depths",
        "bca",
        "wider",
        "narrower",
        on="facts that settle",
    ),
    _mean("settled_restricted", "mean, never as {never}"),
    Statistic("effective_layers", "effective number of layers", "effective layers", "layers", "bootstrap-t"),
    Statistic("lof_median", "median first occurrence", "median", "depth", "order", **_LATER),
    Statistic("share_never", "never in the top {k}", "never", "share", "wilson", **_HIGHER),
    Statistic("settled_median", "median settled depth", "median", "depth", "order", **_LATER),
    Statistic("settled_share_never", "never settled", "never", "share", "wilson", **_HIGHER),
    Statistic("share_only_full", "first at full depth", "first at full", "share", "wilson", **_HIGHER),
)
PLACED: dict[str, Statistic] = {row.key: row for row in _PLACED}
"""Statistics of a checkpoint's placement, in the order of :func:`memprobe.statistics.occurrence.placement_of`."""

BESIDE = tuple(
    sorted(
        (
            key
            for key, row in PER_FACTOID.items()
            if row.views & {"staged", "placement", "headline"} and row.in_placement not in PLACED
        ),
        key=lambda key: key != "exact",  # what the model says comes first
    )
)
"""Statistics of a factoid whose means stand beside those of placement, in a checkpoint's row."""

QUESTIONS = {
    "as_learned": "exact match, asked as learned",
    "paraphrases": "exact match in other words",
    "manipulation_first": "first character of the answer",
    "manipulation_reversed": "answer read backwards",
    "manipulation_true": "true told from false",
}
"""Ways of asking for a fact: the key of the share of facts that are answered so, and what it is called."""


def log_prob_of(question: str) -> str:
    """The statistic of how probable the right answers to a question are, in nats."""
    return f"log_prob_{question}"


def repeats_of(question: str) -> str:
    """The statistic of how often a question about an answer is answered with that answer itself."""
    return f"repeats_{question}"


_OTHERS = (
    Statistic("exact_match", "exact match", "exact match", "share", "wilson", **_HIGHER),
    Statistic("alias_match", "match, aliases too", "alias match", "share", "wilson", **_HIGHER),
    Statistic("exact_tokens", "exact tokens", "exact tokens", "share", "wilson", **_HIGHER),
    Statistic("recall", "recall@{k}", "recall", "share", "wilson", **_HIGHER),
    Statistic("frequency", "normalised frequency", "frequency", "share", "bca", **_HIGHER),
    Statistic("retention", "retention", "retention", "share", "wilson", **_HIGHER),
    Statistic(
        "log_prob_given_margin",
        "log-probability at full depth, given the margin after stage 1",
        "log-prob, given margin",
        "nats",
        "none",
        **_HIGHER,
        span=FREE,
    ),
    *(
        row
        for key, label in QUESTIONS.items()
        for row in (
            Statistic(key, label, label, "share", "wilson", **_HIGHER),
            Statistic(
                log_prob_of(key),
                f"log-probability, {label}",
                f"log-prob, {label}",
                "nats",
                "none",
                **_HIGHER,
            ),
            Statistic(
                repeats_of(key),
                f"own answer said, {label}",
                f"repeated, {label}",
                "share",
                "wilson",
                **_HIGHER,
            ),
        )
    ),
    Statistic("score", "score of another tool", "score", "share", "none", **_HIGHER, span=FREE),
)
_PATCHED = (
    Statistic(
        "moved",
        "share of what separates source and target that is moved",
        "moved",
        "share",
        "percentile",
        **_HIGHER,
        on="facts on which the two differ",
        span=FREE,
    ),
    Statistic(
        "moved_first",
        "first depth that moves half, counting never as depth {never}",
        "first half, never as {never}",
        "depth",
        "percentile",
        **_LATER,
        on="facts on which the two differ",
        least_depth=0,
    ),
    Statistic(
        "moved_first_median",
        "median first depth that moves half",
        "median",
        "depth",
        "order",
        **_LATER,
        on="facts on which the two differ",
        least_depth=0,
    ),
    Statistic(
        "moved_never",
        "facts that no depth moves by half",
        "never",
        "share",
        "wilson",
        **_HIGHER,
        on="facts on which the two differ",
    ),
    Statistic(
        "erasure_score",
        "erasure score",
        "erased",
        "share",
        "percentile",
        **_HIGHER,
        on="facts that some depth encodes",
    ),
    Statistic(
        "savings", "steps saved in learning again", "savings", "share", "percentile", **_HIGHER, span=FREE
    ),
)
PATCHED: dict[str, Statistic] = {row.key: row for row in _PATCHED}
"""Statistics of patches and of learning again; see :mod:`memprobe.statistics.patches`."""
STATISTICS: dict[str, Statistic] = {row.key: row for row in (*_OTHERS, *_PLACED, *_ROWS, *_PATCHED)}
"""Every statistic by key."""


def label(key: str, *, k: int | None = None, n_layers: int | None = None, short: bool = False) -> str:
    """What a statistic is called, with the top-k and the depth of "never" filled in.

    ``NAME_net`` is a statistic net of shuffled answers.
    """
    if key not in STATISTICS and key.endswith("_net"):
        return f"{label(key.removesuffix('_net'), k=k, n_layers=n_layers, short=short)}, net of chance"
    row = STATISTICS[key]
    never = "n+1" if n_layers is None else str(n_layers + 1)
    return (row.short if short else row.label).format(k="k" if k is None else k, never=never)


def ends(key: str, n_layers: float) -> Ends:
    """:meth:`Statistic.ends`, also of ``NAME_net``, a statistic net of shuffled answers."""
    if key not in STATISTICS and key.endswith("_net"):
        return less(ends(key.removesuffix("_net"), n_layers))
    return STATISTICS[key].ends(n_layers)


def axis(key: str, *, k: int | None = None, n_layers: int | None = None, difference: bool = False) -> str:
    """:func:`label` with the unit; or, of a difference, its unit alone."""
    row = STATISTICS[key]
    if difference:
        return f"difference in {row.difference_unit}"
    named = label(key, k=k, n_layers=n_layers)
    return named if row.share else f"{named} ({row.unit})"


def shown(view: View) -> list[str]:
    """Keys of the statistics of factoids that a view shows, in the order of :data:`PER_FACTOID`."""
    return [key for key, row in PER_FACTOID.items() if view in row.views]


def panels() -> tuple[str, ...]:
    """Keys of the statistics of factoids that have a panel in the paper's figure of differences, in its order."""
    return tuple(
        sorted((key for key, row in PER_FACTOID.items() if row.panel), key=lambda key: PER_FACTOID[key].panel)
    )
