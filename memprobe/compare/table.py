"""What a table of a comparison is: a function of readings, with the schema of what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from memprobe.readings import Readings

NUMBERS = ("difference", "low", "high")
Over = Literal["checkpoint", "pair", "all"]
_KEYS: dict[Over, tuple[str, ...]] = {
    "checkpoint": ("checkpoint",),
    "pair": ("reference", "checkpoint"),
    "all": (),
}


@dataclass(frozen=True)
class Table:
    """One table, made for the checkpoints or pairs that are asked for.

    Attributes:
        over: what :attr:`rows` makes rows of: one checkpoint, a pair (reference, checkpoint), or all readings.
        schema: of the whole table, keys in front.
        rows: ``rows(readings, *key, **options)`` gives the rows without their keys.
        aligned: whether a pair must have the same layers.
    """

    over: Over
    schema: pl.Schema
    rows: Callable[..., pl.DataFrame]
    aligned: bool = False

    def __call__(
        self, readings: Readings, keys: Iterable[str | tuple[str, str]] | None = None, **options: Any
    ) -> pl.DataFrame:
        """The table of these checkpoints or pairs; by default of all checkpoints, with the anchors.

        Args:
            options: of :attr:`rows`.
        """
        if self.over == "all":
            return self._typed(self.rows(readings, **options))
        if keys is None:
            keys = readings.labels if self.over == "checkpoint" else readings.pairs
        return self.joined([self.part(readings, key, **options) for key in keys])

    def part(self, readings: Readings, key: str | tuple[str, str], **options: Any) -> pl.DataFrame:
        """The rows of one checkpoint or one pair."""
        labels = [key] if isinstance(key, str) else list(key)
        if self.aligned and not readings.same_depths(*labels):
            return self.empty
        rows = self.rows(readings, *labels, **options)
        front = [pl.lit(label).alias(name) for name, label in zip(_KEYS[self.over], labels, strict=True)]
        return self._typed(rows.select(*front, pl.all()))

    def joined(self, parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Parts as one table."""
        return pl.concat([self.empty, *parts])

    @property
    def empty(self) -> pl.DataFrame:
        """The table without rows."""
        return pl.DataFrame(schema=self.schema)

    def _typed(self, frame: pl.DataFrame) -> pl.DataFrame:
        if not frame.width:
            return self.empty
        return frame.cast(dict(self.schema)).select(list(self.schema))  # type: ignore[arg-type]


def table(
    over: Over, schema: Mapping[str, Any], *, aligned: bool = False
) -> Callable[[Callable[..., pl.DataFrame]], Table]:
    """Makes a function that gives rows a :class:`Table`; ``schema`` is without the keys."""
    keys = dict.fromkeys(_KEYS[over], pl.String)

    def made(rows: Callable[..., pl.DataFrame]) -> Table:
        return Table(over, pl.Schema(keys | dict(schema)), rows, aligned)

    return made


def floats(*names: str) -> dict[str, Any]:
    """Columns of numbers."""
    return dict.fromkeys(names, pl.Float64)


def with_ends(*names: str) -> dict[str, Any]:
    """Columns NAME, NAME_low and NAME_high."""
    return floats(*(f"{name}{end}" for name in names for end in ("", "_low", "_high")))


def row(values: Mapping[str, Any], schema: Mapping[str, Any]) -> pl.DataFrame:
    """One row, whose missing numbers keep their type."""
    return pl.DataFrame([dict(values)], schema={name: schema[name] for name in values})
