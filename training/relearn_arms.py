"""Learning again, by arm: each number of :class:`training.relearn.Relearned` over the training seeds of an arm.

Each seed lost facts of its own, so a run is one number here, and what scatters are seeds: the interval of a mean is
Student's, that of a share the one of :mod:`memprobe.statistics.shares`, and of a difference from naive Welch's, or
Student's over pairs where the seeds of both arms start from one checkpoint. Under three seeds there is none.

More facts take more steps, each being shown more rarely: steps, examples and shares back are held against each other
between sets of one size alone. Savings are a share of the steps of as many never-learned facts, learned in the same
way, so that most of what the size does stands on both sides; where the limit cuts many facts off, savings shrink with
it. A cue is given to one fact at a time, whatever the size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl

from memprobe.arms import Arm, by_kind
from memprobe.statistics.arms import Run, are_seeds, arm_differences, arm_means
from memprobe.statistics.ends import SHARE
from memprobe.statistics.shares import size_over_seeds
from training.relearn import Relearned

SHARES = ("back_lost", "back_fresh", "cued_lost", "cued_fresh")
NAMES = (
    "savings",
    *(
        f"{name}_{side}"
        for name in ("steps", "examples", "back", "cued", "gain")
        for side in ("lost", "fresh")
    ),
)
"""Statistics: fields of :class:`training.relearn.Relearned`; ``savings`` as the vocabulary has it."""
BY_SIZE = tuple(f"{name}_{side}" for name in ("steps", "examples", "back") for side in ("lost", "fresh"))
"""Statistics that depend on how many facts a set has."""
_KEYS = ["arm", "stage", "statistic"]


def arm_table(relearned: Sequence[Relearned]) -> pl.DataFrame:
    """Each arm's means over seeds, stage by stage, and how far they lie from naive's.

    Args:
        relearned: at least one. Two of one arm, stage and seed, and those of an arm trained with several settings or
            from several base models, are arms of their own, told apart by their checkpoint.

    Returns:
        [arm, stage, seeds, statistic, mean, low, high, by_seed, reference, difference, difference_low,
        difference_high, p, significant, n_by_seed, note]; arms in the order of figures, seeds in that of their numbers.
        ``reference`` to ``significant`` are null for naive itself and where naive is not among them at that stage; all
        of them but ``reference`` for :data:`BY_SIZE` where sets differ in size. ``n_by_seed``: facts in each set;
        ``note``: what a reader must know of a difference, or why there is none; empty where there is nothing to say.
    """
    runs: dict[tuple[str, str], list[tuple[Run, Relearned]]] = {}
    for arm, row in sorted(zip(_apart(relearned), relearned, strict=True), key=lambda pair: pair[1].seed):
        runs.setdefault((arm, row.stage_title), []).append((_run(row, arm), row))
    order = {arm: place for place, arm in enumerate(by_kind({arm for arm, _ in runs}))}
    groups = {key: runs[key] for key in sorted(runs, key=lambda key: (order[key[0]], key[1]))}
    means = pl.concat(
        arm_means(
            [run for run, _ in group],
            list(NAMES),
            max(2, size_over_seeds(row.n for _, row in group)),
            ends=dict.fromkeys(SHARES, SHARE),
            binary=SHARES,
            complete=True,
        )
        for group in groups.values()
    ).drop("p", "detectable")
    every = [run for group in groups.values() for run, _ in group]
    naive = next((arm for arm in order if Arm.of(arm).is_naive), "")
    size = min(row.n for row in relearned)
    apart = arm_differences(
        every, list(NAMES), size, reference=naive, ends=dict.fromkeys(SHARES, SHARE), complete=True
    )
    ends = {f"difference_{end}": end for end in ("low", "high")}
    apart = apart.select(*_KEYS, "reference", "difference", "p", "significant", **ends)
    rows = {key: [row for _, row in group] for key, group in groups.items()}
    about = pl.DataFrame(
        [
            (*key, [row.n for row in here], *_beside(here, rows.get((naive, key[1]), here)))
            for key, here in rows.items()
        ],
        schema={
            "arm": pl.String,
            "stage": pl.String,
            "n_by_seed": pl.List(pl.Int64),
            "of_one_size": pl.Boolean,
            "note": pl.String,
        },
        orient="row",
    )
    table = means.join(apart, on=_KEYS, how="left", maintain_order="left")
    table = table.join(about, on=_KEYS[:2], how="left", maintain_order="left")
    told = pl.col("of_one_size") | ~pl.col("statistic").is_in(BY_SIZE)
    differences = ("difference", "difference_low", "difference_high", "p", "significant")
    return table.with_columns(pl.when(told).then(name).alias(name) for name in differences).drop(
        "of_one_size"
    )


def _beside(here: Sequence[Relearned], naive: Sequence[Relearned]) -> tuple[bool, str]:
    """Whether all sets of two arms are of one size, and what must be known of a difference between them."""
    both = [*here, *naive]
    sizes, marks = sorted({row.n for row in both}), {row.recipe_mark for row in both if row.recipe_mark}
    notes = []
    if len(sizes) > 1 and here is not naive:
        notes.append(
            f"sets of {', '.join(map(str, sizes))} facts: steps, examples and shares back depend on the size and are "
            "not held against naive's (--n gives sets of one size)"
        )
    if len(marks) > 1:
        notes.append("trained with other settings than naive: a difference is of both")
    return len(sizes) == 1, "; ".join(notes)


def _apart(relearned: Sequence[Relearned]) -> list[str]:
    """The arm of each; of those that are no seeds of it with its label, and its place where labels are alike."""
    alone = are_seeds([(row.arm, row.stage_title, str(row.seed), row.recipe_mark) for row in relearned])
    alike = Counter(
        (row.arm, row.stage_title, row.checkpoint)
        for row, is_seed in zip(relearned, alone, strict=True)
        if not is_seed
    )
    arms = []
    for place, (row, is_seed) in enumerate(zip(relearned, alone, strict=True), 1):
        once = alike[row.arm, row.stage_title, row.checkpoint] == 1
        label = row.checkpoint if once else f"{row.checkpoint}, no. {place}"
        arms.append(row.arm if is_seed else f"{row.arm} ({label})")
    return arms


def _run(row: Relearned, arm: str) -> Run:
    """One seed's numbers; facts, which are others under each seed, have no part of their own in what scatters."""
    means = np.array([getattr(row, name) for name in NAMES], dtype=float)
    return Run(
        arm,
        row.stage_title,
        str(row.seed),
        row.checkpoint,
        means,
        np.zeros((1, len(NAMES))),
        row.before,
        row.rows,
    )
