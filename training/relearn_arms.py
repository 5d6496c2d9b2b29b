"""Learning again, by arm: each number of :class:`training.relearn.Relearned` over the training seeds of an arm.

Each seed lost facts of its own, so a run is one number here, and what scatters are seeds: the interval of a mean is
Student's, that of a share the one of :mod:`memprobe.statistics.shares`, and of a difference from naive Welch's, or
Student's over pairs where the seeds of both arms start from one checkpoint. Under three seeds there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl

from memprobe.arms import Arm, by_kind
from memprobe.errors import MemprobeError
from memprobe.files import replacing, write_parquet
from memprobe.statistics.arms import Run, arm_differences, arm_means
from memprobe.statistics.shares import size_over_seeds
from training.relearn import Relearned, relearn_table

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
_KEYS = ["arm", "stage", "statistic"]


def arm_table(relearned: Sequence[Relearned]) -> pl.DataFrame:
    """Each arm's means over seeds, stage by stage, and how far they lie from naive's.

    Args:
        relearned: at least one. Two of one arm, stage and seed are arms of their own, told apart by their checkpoint.

    Returns:
        [arm, stage, seeds, statistic, mean, low, high, by_seed, reference, difference, difference_low,
        difference_high, p, significant]; arms in the order of figures, seeds in that of their numbers. What follows
        ``by_seed`` is null for naive itself and where naive is not among them at that stage.
    """
    runs: dict[tuple[str, str], list[tuple[Run, int]]] = {}
    for arm, row in sorted(zip(_apart(relearned), relearned, strict=True), key=lambda pair: pair[1].seed):
        runs.setdefault((arm, row.stage_title), []).append((_run(row, arm), row.n))
    order = {arm: place for place, arm in enumerate(by_kind({arm for arm, _ in runs}))}
    groups = [runs[key] for key in sorted(runs, key=lambda key: (order[key[0]], key[1]))]
    means = pl.concat(
        arm_means(
            [run for run, _ in group],
            list(NAMES),
            max(2, size_over_seeds(n for _, n in group)),
            shares=SHARES,
            binary=SHARES,
        )
        for group in groups
    ).drop("p", "detectable")
    every = [run for group in groups for run, _ in group]
    naive = next((arm for arm in order if Arm.of(arm).is_naive), "")
    apart = arm_differences(every, list(NAMES), min(row.n for row in relearned), reference=naive)
    share = pl.col("statistic").is_in(SHARES)  # of which Student's interval knows no ends
    ends = (
        pl.when(share).then(pl.col(end).clip(-1, 1)).otherwise(end).alias(f"difference_{end}")
        for end in ("low", "high")
    )
    apart = apart.select(*_KEYS, "reference", "difference", *ends, "p", "significant")
    return means.join(apart, on=_KEYS, how="left", maintain_order="left")


def write_tables(relearned: Sequence[Relearned], out: Path) -> None:
    """Writes a row for each checkpoint, and beside it the table of arms.

    Raises:
        MemprobeError: they cannot be written.
    """
    table, arms = files_of_tables(out)
    write_parquet(relearn_table(relearned), table)
    write_parquet(arm_table(relearned), arms)


def check_tables(out: Path) -> None:
    """Checks that :func:`write_tables` can write, before there is anything to lose.

    Raises:
        MemprobeError: it cannot, or the name is not that of a Parquet file.
    """
    if out.suffix != ".parquet":
        raise MemprobeError(
            f"--out {out}: the table is written as Parquet; give a name that ends in .parquet"
        )
    for file in files_of_tables(out):
        with suppress(_Tried), replacing(file):
            raise _Tried  # and leaves what lies there


class _Tried(Exception):
    """A file can be written."""


def files_of_tables(out: Path) -> tuple[Path, Path]:
    """Where :func:`write_tables` writes: the rows of checkpoints, and those of arms."""
    return out, out.with_name(f"{out.stem}-arms{out.suffix}")


def _apart(relearned: Sequence[Relearned]) -> list[str]:
    """The arm of each; of those that share arm, stage and seed with its label, and its place where labels are alike."""
    often = Counter((row.arm, row.stage_title, row.seed) for row in relearned)
    alike = Counter((row.arm, row.stage_title, row.seed, row.checkpoint) for row in relearned)
    arms = []
    for place, row in enumerate(relearned, 1):
        key = (row.arm, row.stage_title, row.seed)
        label = row.checkpoint if alike[(*key, row.checkpoint)] == 1 else f"{row.checkpoint}, no. {place}"
        arms.append(row.arm if often[key] == 1 else f"{row.arm} ({label})")
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
