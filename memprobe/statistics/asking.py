"""What a statistic is asked of: a probe, with its own top k and token rule, or a table with both named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError


class Probed(Protocol):
    """What a statistic needs of a :class:`memprobe.probes.Probe`."""

    @property
    def run(self) -> Mapping[str, Any]:
        """Its ``k`` and ``token``."""
        ...

    @property
    def factoids(self) -> pl.DataFrame:
        """See :data:`memprobe.records.FACTOIDS`."""
        ...

    @property
    def records(self) -> pl.DataFrame:
        """See :data:`memprobe.records.RECORDS`."""
        ...

    @property
    def controls(self) -> pl.DataFrame:
        """See :data:`memprobe.records.CONTROLS`."""
        ...

    @property
    def attributions(self) -> pl.DataFrame:
        """See :data:`memprobe.records.ATTRIBUTIONS`."""
        ...


Ranks = pl.DataFrame | pl.LazyFrame | Probed
"""Records or controls, or the probe that holds them."""


def asked(
    source: Ranks, k: int | None, token: str | None, *, table: str = "records"
) -> tuple[pl.DataFrame | pl.LazyFrame, int, str]:
    """The table, the top k and the token rule of a question.

    Args:
        source: a table, or a probe, of which ``table`` is read.
        k, token: what counts as holding an answer; ``None``: as the probe was made.

    Raises:
        MemprobeError: a table without both: it does not say what its probe was made with.
    """
    if isinstance(source, pl.DataFrame | pl.LazyFrame):
        if k is None or token is None:
            lacking = " and ".join(name for name, value in (("k", k), ("token", token)) if value is None)
            raise MemprobeError(
                f"a table does not say which {lacking} its probe was made with: give the probe in its place, "
                f"or {lacking}"
            )
        return source, k, token
    made = source.run
    rule = str(made["token"]) if token is None else token
    return getattr(source, table), int(made["k"]) if k is None else k, rule


def answers_of(
    source: Ranks, answers: pl.DataFrame | None = None
) -> Callable[[Iterable[str]], np.ndarray | None]:
    """What tells the answers of factoids: in one case, for facts that share one are resampled together.

    Args:
        source: a probe, whose factoids are asked where ``answers`` is not given; or a table, which does not tell.
        answers: [id, answer].

    Returns:
        Of ids their answers, ``None`` where they are not known.
    """
    if answers is None and not isinstance(source, pl.DataFrame | pl.LazyFrame):
        answers = source.factoids
    if answers is None:
        return lambda ids: None
    known = dict(answers.select("id", "answer").iter_rows())
    return lambda ids: np.array([known[id].casefold() for id in ids], dtype=str)
