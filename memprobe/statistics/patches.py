"""What patches and grafts move: restoration, erasure, from which depth, and which block.

All start from :func:`answers`, one row per patch and factoid: the log-probability of the whole answer (the sum over its
tokens, each given the true ones before it). A patch *moves* the share

    (patched - target) / (source - target)

of what separates the two checkpoints. Where the source gives the answer more probability that is restoration, where it
gives it less it is erasure; 0 is the target as it is, 1 the source. Facts that both give alike separate nothing, so
that only those count whose two log-probabilities differ by more than a threshold, and every table says how many these
are. Controls (another factoid's states; random ones of the same norm) move a share too, and ``net`` is the mean of
paired differences to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError, among
from memprobe.statistics.controls import net_of
from memprobe.statistics.ends import within
from memprobe.statistics.intervals import FEWEST, Resamples, bootstrap_mean, median_interval, wilson
from memprobe.statistics.paired import differences, false_discovery
from memprobe.statistics.vocabulary import PATCHED

GAP = 1.0
"""Nats by which two checkpoints must differ on an answer for its restoration or erasure to be asked."""
HALF = 0.5
"""The share that counts as brought back in :func:`first_depths`."""
DRAWS = 2_000

UNIT = ["source", "target", "what", "positions", "parts"]
"""What tells one sweep over depth from another; of grafts also ``window``, the number of blocks."""
OF_STATES = ["source", "target", "what", "positions", "direction"]
"""What tells one line of a table from another that grafts have no part in: states have neither parts nor windows."""
SWEEP = [*UNIT, "window", "direction"]
"""What tells one line of :func:`by_depth` from another, over depth."""
FACTS = ("all", "overwritten", "retained")
"""All; those that the source recalls and the target does not; those that both recall."""


def answers(table: pl.DataFrame, *, facts: str = "all") -> pl.DataFrame:
    """One row per patch and factoid.

    Args:
        table: in the schema of :data:`memprobe.records.PATCHES`.
        facts: see :data:`FACTS`; recalled is an answer whose tokens are all the argmax.

    Returns:
        [source, target, what, positions, parts, window, control, depth, last, factoid, rank, log_prob, source_log_prob,
        target_log_prob, source_says, target_says]

    Raises:
        MemprobeError: unknown ``facts``.
    """
    if facts not in FACTS:
        raise MemprobeError(f"facts {facts!r}: {among(facts, FACTS)}")
    keys = [*UNIT, "window", "control", "depth", "last", "factoid"]
    in_a_row = pl.col("last") - pl.col("depth") + 1
    summed = ("log_prob", "source_log_prob", "target_log_prob")
    whole = (
        table.lazy()
        .filter(pl.col("token") >= 0)
        .with_columns(window=pl.when(pl.col("what") == "weights").then(in_a_row).otherwise(1))
        .group_by(keys, maintain_order=True)
        .agg(
            pl.col("rank").max(),
            *(pl.col(name).cast(pl.Float64).sum() for name in summed),
            source_says=(pl.col("source_rank") == 0).all(),
            target_says=(pl.col("target_rank") == 0).all(),
        )
    )
    if facts == FACTS[1]:
        whole = whole.filter(pl.col("source_says") & ~pl.col("target_says"))
    elif facts == FACTS[2]:
        whole = whole.filter(pl.col("source_says") & pl.col("target_says"))
    return whole.collect()


def moved_shares(answered: pl.DataFrame, *, threshold: float = GAP) -> pl.DataFrame:
    """The share of what separates source and target that each patch moves.

    Args:
        answered: of :func:`answers`.
        threshold: nats.

    Returns:
        ``answered`` with ``gap`` (source - target, nats), ``direction`` (restoration where the gap is positive, else
        erasure) and ``moved``; null where the gap is within the threshold.

    Raises:
        MemprobeError: a threshold that is not positive.
    """
    if not threshold > 0:
        raise MemprobeError(
            f"the threshold is {threshold}: give nats above 0, so that there is a difference to take a share of"
        )
    gap = pl.col("source_log_prob") - pl.col("target_log_prob")
    enough = gap.abs() > threshold
    return answered.with_columns(
        gap=gap,
        direction=pl.when(~enough)
        .then(None)
        .when(gap > 0)
        .then(pl.lit("restoration"))
        .otherwise(pl.lit("erasure")),
        moved=pl.when(enough).then((pl.col("log_prob") - pl.col("target_log_prob")) / gap),
    )


def by_depth(
    table: pl.DataFrame, *, facts: str = "all", threshold: float = GAP, draws: int = DRAWS, seed: int = 0
) -> pl.DataFrame:
    """Restoration and erasure by depth, with controls.

    Intervals are bootstrapped over answers. ``p`` is of a sign-flip test of the patch against its control of another
    factoid's states (random ones where there is no other; random weights for grafts), factoids of one answer flipped
    together, ``q`` the same adjusted over the depths of its sweep.

    Returns:
        [source, target, what, positions, parts, window, direction, depth, last, facts (how many were asked), n (how
        many differ enough), moved, low, high, other, net_other, net_other_low, net_other_high, random, net_random,
        net_random_low, net_random_high, p, q]; null where there is no control.
    """
    shares = moved_shares(answers(table, facts=facts), threshold=threshold)
    alike = dict(alike_of(table).iter_rows())
    rows: list[pl.DataFrame] = []
    for unit in shares.partition_by([*UNIT, "window"], maintain_order=True):
        asked = unit["factoid"].n_unique()
        for direction in ("restoration", "erasure"):
            mine = unit.filter(pl.col("direction") == direction)
            if mine.is_empty():
                continue
            values = {name: _pivot(mine, name) for name in ("", "other", "random")}
            ids, places, own = values[""]
            resamples = Resamples.of(
                len(ids), answers=np.array([alike[factoid] for factoid in ids]), draws=draws, seed=seed
            )
            moved, low, high = bootstrap_mean(own, resamples)
            head = mine.select([*UNIT, "window"]).head(1)
            part = pl.DataFrame(
                {
                    "direction": [direction] * len(places),
                    "depth": [depth for depth, _ in places],
                    "last": [last for _, last in places],
                    "facts": asked,
                    "n": (~np.isnan(own)).sum(0),
                    "moved": moved,
                    "low": low,
                    "high": high,
                }
            ).fill_nan(None)
            tested = None
            for name in ("other", "random"):
                control = _like(values[name], ids, places)
                net = net_of(own, control, resamples)
                part = part.with_columns(
                    net["chance"].alias(name),
                    net["net"].alias(f"net_{name}"),
                    net["low"].alias(f"net_{name}_low"),
                    net["high"].alias(f"net_{name}_high"),
                )
                if tested is None and not np.isnan(control).all():
                    tested = own - control
            p = np.full(len(places), np.nan)
            if tested is not None:
                tests = differences(tested, resamples, seed=seed)
                p = tests["p"].cast(pl.Float64).fill_null(np.nan).to_numpy()
            part = part.with_columns(
                pl.Series("p", p).fill_nan(None), pl.Series("q", false_discovery(p)).fill_nan(None)
            )
            rows.append(head.join(part, how="cross"))
    return pl.concat(rows) if rows else pl.DataFrame()


def first_depths(
    table: pl.DataFrame,
    *,
    facts: str = "all",
    share: float = HALF,
    threshold: float = GAP,
    n_layers: int | Mapping[tuple[str, str], int] | None = None,
) -> pl.DataFrame:
    """Per factoid, the first depth whose patch moves at least ``share``; null where none does (censored).

    Args:
        n_layers: of the models, also by (source, target); by default the deepest depth in the table.

    Returns:
        [source, target, what, positions, direction, factoid, first, answer, never_as, patched]; ``answer`` is the same
        of factoids that have one answer, ``never_as`` the depth that "never" counts as, n_layers + 1. ``patched`` is
        null where every depth was patched, else it lists those that were: ``first`` is then the first among them, and
        the fact may well move at a depth before it or between them. Grafts are not among them: their blocks do not
        follow upon another.
    """
    states = table.filter(pl.col("what") != "weights")
    shares = moved_shares(answers(states, facts=facts), threshold=threshold)
    own = shares.filter((pl.col("control") == "") & pl.col("moved").is_not_null())
    first = own.group_by([*_SWEPT, "direction", "factoid"], maintain_order=True).agg(
        first=pl.col("depth").filter(pl.col("moved") >= share).min()
    )
    first = first.join(alike_of(states), on="factoid", how="left", maintain_order="left")
    return first.join(_depths_of(states, n_layers), on=_SWEPT, how="left", maintain_order="left")


def alike_of(table: pl.DataFrame) -> pl.DataFrame:
    """[factoid, answer]: the first, by id, of the factoids that have the same answer tokens."""
    tokens = table.filter(pl.col("token") >= 0).select("factoid", "token", "token_id").unique()
    whole = tokens.sort("factoid", "token").group_by("factoid", maintain_order=True)
    written = whole.agg(pl.col("token_id").cast(pl.String).str.join(" ").alias("ids"))
    return written.select("factoid", pl.col("factoid").min().over("ids").alias("answer"))


_SWEPT = ["source", "target", "what", "positions"]


def _depths_of(states: pl.DataFrame, n_layers: int | Mapping[tuple[str, str], int] | None) -> pl.DataFrame:
    """[source, target, what, positions, never_as, patched] of each sweep, see :func:`first_depths`."""
    deepest = max(states["depth"].unique().to_list(), default=0)
    rows = []
    for sweep, part in states.group_by(_SWEPT, maintain_order=True):
        source, target, what, _ = sweep
        n = n_layers.get((source, target)) if isinstance(n_layers, Mapping) else n_layers
        n = deepest if n is None else n
        depths = part["depth"].unique().sort().to_list()
        # Attention and MLP begin with the first block; the stream has a depth before it.
        whole = set(range(0 if what == "residual" else 1, n + 1)) <= set(depths)
        rows.append([*sweep, n + 1, None if whole else depths])
    schema = states.select(_SWEPT).schema | {"never_as": pl.Int16, "patched": pl.List(pl.Int16)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def at_every_depth(first: pl.DataFrame) -> pl.DataFrame:
    """Of :func:`first_depths`, the sweeps of every depth: those of some depths know no first one."""
    return first.filter(pl.col("patched").is_null())


def first_depth_summary(first: pl.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """:func:`first_depths` in a row per sweep and direction.

    ``mean`` is over the facts that get there; ``restricted`` counts never as n_layers + 1, and has an interval where
    facts of 20 answers get there, as :func:`memprobe.statistics.placement` has it; the median counts never as later
    than every depth, with its order statistics.

    Returns:
        [source, target, what, positions, direction, patched, n, never, never_low, never_high (Wilson's), mean,
        restricted, restricted_low, restricted_high, median, median_low, median_high]; a median of "never" is null.
        Where not every depth was patched, ``patched`` lists those that were, ``never`` is the share that none of them
        moves by half, and neither means nor medians are known.
    """
    rows = []
    for part in first.partition_by(
        ["source", "target", "what", "positions", "direction"], maintain_order=True
    ):
        depth = part["first"].cast(pl.Float64).fill_null(np.inf).to_numpy()
        counted = np.where(np.isinf(depth), float(part["never_as"][0]), depth)
        resamples = Resamples.of(len(depth), answers=part["answer"].to_numpy(), draws=draws, seed=seed)
        mean, low, high = bootstrap_mean(counted[:, None], resamples)
        low, high = within(low, high, [PATCHED["moved_first"].ends(part["never_as"][0] - 1)])
        reached = depth[~np.isinf(depth)]
        if resamples.having(~np.isinf(depth)) < FEWEST["mean of those that occur"]:
            low, high = np.full((2, 1), np.nan)
        median = [float(value) if np.isfinite(value) else None for value in median_interval(depth)]
        never = np.isinf(depth).mean()
        ends = wilson(np.array([never]), np.array([len(depth)]))
        rows.append(
            part.row(0, named=True)
            | {"n": len(depth), "never": float(never)}
            | {"never_low": float(ends[0][0]), "never_high": float(ends[1][0])}
            | {"mean": float(reached.mean()) if len(reached) else None}
            | {
                "restricted": float(mean[0]),
                "restricted_low": float(low[0]),
                "restricted_high": float(high[0]),
            }
            | dict(zip(("median", "median_low", "median_high"), median, strict=True))
        )
    if not rows:
        return pl.DataFrame()
    drop = ["factoid", "first", "answer", "never_as"]
    typed = {"patched": first.schema["patched"]} | dict.fromkeys(_OF_EVERY_DEPTH, pl.Float64)
    summary = pl.DataFrame(rows, schema_overrides=typed, infer_schema_length=None).fill_nan(None).drop(drop)
    whole = pl.col("patched").is_null()
    return summary.with_columns(pl.when(whole).then(pl.col(name)).alias(name) for name in _OF_EVERY_DEPTH)


_OF_EVERY_DEPTH = (
    "mean",
    *(f"{name}{end}" for name in ("restricted", "median") for end in ("", "_low", "_high")),
)
"""What is known where every depth was patched alone."""


def first_depth_differences(first: pl.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """Does it matter into what the source's states are put? The first depths of every target minus those of the first
    target of the same kind, over the factoids that both have, never counted as n_layers + 1. Pairs that were not
    patched at every depth are left out.

    With targets that are stages of different arms, the facts being those that each arm's stage took, this says whether
    the arm moves the depth from which a state brings its fact back.

    Returns:
        [what, positions, direction, target, reference, n, difference, low, high, p, effect, dominance, q]; ``p`` is of
        sign flips, factoids of one answer together, ``q`` is p adjusted over the rows.
    """
    rows = []
    counted = at_every_depth(first).with_columns(
        pair=pl.concat_str("source", "target", separator=" → "),
        value=pl.col("first").fill_null(pl.col("never_as")),
    )
    for part in counted.partition_by(["what", "positions", "direction"], maintain_order=True):
        pairs = part["pair"].unique(maintain_order=True).to_list()
        of_each = {pair: part.filter(pl.col("pair") == pair) for pair in pairs}
        sides = {pair: one.select("factoid", "answer", "value") for pair, one in of_each.items()}
        for pair in pairs[1:]:
            both = sides[pair].join(sides[pairs[0]], on="factoid", suffix="_reference", maintain_order="left")
            if both.is_empty():
                continue
            values = (both["value"].cast(pl.Float64) - both["value_reference"].cast(pl.Float64)).to_numpy()[
                :, None
            ]
            alike = both["answer"].to_numpy()
            resamples = Resamples.of(len(alike), answers=alike, draws=draws, seed=seed)
            table = differences(values, resamples, seed=seed)
            head = part.row(0, named=True)
            rows.append(
                {key: head[key] for key in ("what", "positions", "direction")}
                | {"target": pair, "reference": pairs[0]}
                | table.row(0, named=True)
            )
    if not rows:
        return pl.DataFrame()
    made = pl.DataFrame(rows, infer_schema_length=None)
    q = false_discovery(made["p"].cast(pl.Float64).fill_null(np.nan).to_numpy())
    return made.with_columns(pl.Series("q", q).fill_nan(None))


def graft_effects(
    table: pl.DataFrame, *, facts: str = "all", threshold: float = GAP, draws: int = DRAWS, seed: int = 0
) -> pl.DataFrame:
    """Of each sweep of grafts, the block (or window) that moves most.

    The winner is known only as well as the facts are many: ``support`` is the share of bootstrap draws over answers
    in which it wins again, as the interval null of fewer answers than :data:`FEWEST` asks of a mean; ``facts_share``
    the share of factoids of which it is the largest.

    Returns:
        [source, target, parts, window, direction, n, depth, last, moved, low, high, net_random, support, facts_share]
    """
    grafts = table.filter(pl.col("what") == "weights")
    shares = moved_shares(answers(grafts, facts=facts), threshold=threshold)
    alike = dict(alike_of(grafts).iter_rows())
    rows = []
    for unit in shares.partition_by(
        ["source", "target", "parts", "window", "direction"], maintain_order=True
    ):
        head = unit.row(0, named=True)
        if head["direction"] is None or head["parts"] in ("embeddings", "head"):
            continue
        ids, places, own = _pivot(unit, "")
        control = _like(_pivot(unit, "random"), ids, places)
        resamples = Resamples.of(
            len(ids), answers=np.array([alike[factoid] for factoid in ids]), draws=draws, seed=seed
        )
        mean, low, high = bootstrap_mean(own, resamples)
        best = int(np.nanargmax(mean))
        drawn = resamples.sums(np.nan_to_num(own)).argmax(1)
        net = net_of(own, control, resamples)["net"][best]
        rows.append(
            {key: head[key] for key in ("source", "target", "parts", "window", "direction")}
            | {"n": len(ids), "depth": places[best][0], "last": places[best][1]}
            | {
                "moved": float(mean[best]),
                "low": float(low[best]),
                "high": float(high[best]),
                "net_random": net,
            }
            | {
                "support": float((drawn == best).mean()) if resamples.units >= FEWEST["mean"] else np.nan,
                "facts_share": float((np.nan_to_num(own, nan=-np.inf).argmax(1) == best).mean()),
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None).fill_nan(None) if rows else pl.DataFrame()


def _pivot(rows: pl.DataFrame, control: str) -> tuple[np.ndarray, list[tuple[int, int]], np.ndarray]:
    """A control's shares as [factoid, place], with the factoids and the places (depth, last) in order."""
    own = rows.filter(pl.col("control") == control)
    ids = own["factoid"].unique().sort().to_numpy()
    places = own.select("depth", "last").unique().sort("depth", "last").rows()
    values = np.full((len(ids), len(places)), np.nan)
    row = {factoid: number for number, factoid in enumerate(ids)}
    column = {place: number for number, place in enumerate(places)}
    for factoid, depth, last, moved in own.select("factoid", "depth", "last", "moved").iter_rows():
        values[row[factoid], column[depth, last]] = np.nan if moved is None else moved
    return ids, places, values


def _like(
    control: tuple[np.ndarray, list[tuple[int, int]], np.ndarray],
    ids: np.ndarray,
    places: Sequence[tuple[int, int]],
) -> np.ndarray:
    """A control's shares in the order of the patch's own factoids and places; NaN where it has none."""
    theirs, their_places, values = control
    row = {factoid: number for number, factoid in enumerate(theirs)}
    column = {place: number for number, place in enumerate(their_places)}
    matrix = np.full((len(ids), len(places)), np.nan)
    for i, factoid in enumerate(ids):
        for j, place in enumerate(places):
            if factoid in row and place in column:
                matrix[i, j] = values[row[factoid], column[place]]
    return matrix
