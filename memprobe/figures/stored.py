"""The JSON beside a figure, read back: a schema for what it says, and one line for what cannot be drawn."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import polars as pl
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from memprobe.errors import MemprobeError, first_line, in_own_words, one_of
from memprobe.figures.drawing import DRAWN
from memprobe.figures.look import WIDTHS
from memprobe.files import check_valid, read_json

SCHEMA_VERSION = 1
UNDRAWABLE = (
    MemprobeError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
)
"""A table from a file can be wrong in as many ways as a figure reads it."""
REACH = 1e15
"""No number of a figure is larger; axes and their labels fail at those of hundreds of digits."""


class FigureFile(BaseModel):
    """NAME.json: which figure, its data by column, and the options of the function that draws it."""

    model_config = ConfigDict(extra="allow", strict=True)

    version: Literal[1] = Field(alias="schema")
    figure: Annotated[str, one_of(DRAWN)]
    inputs: list[dict[str, Any]] = []
    options: dict[str, Any]
    data: dict[str, list[Any]]


def read_figure(path: Path) -> dict[str, Any]:
    """What made a figure, as its JSON says it.

    Raises:
        MemprobeError: it is no such file, or says what it may not.
    """
    made_of = read_json(path)
    needed = {"schema", "figure", "options", "data"}
    if not isinstance(made_of, dict) or not needed <= made_of.keys():
        raise MemprobeError(f"{path}: describes no figure of memprobe; give the JSON beside one")
    check_valid(made_of, FigureFile, path)
    _check_options(made_of["figure"], made_of["options"], path)
    return made_of


def _check_options(figure: str, options: dict[str, Any], path: Path) -> None:
    allowed = list(inspect.signature(DRAWN[figure]).parameters)[1:]
    hints = get_type_hints(inspect.unwrap(DRAWN[figure]), {"pl": pl, "Figure": Figure})
    for name, value in options.items():
        if name not in allowed:
            raise MemprobeError(f"{path}: options: {figure} has no {name!r}, only {', '.join(allowed)}")
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise MemprobeError(
                f"{path}: options.{name}: {in_own_words(error.errors()[0]['msg'])}"
            ) from error
    if (width := options.get("width", WIDTHS[0])) not in WIDTHS:
        raise MemprobeError(f"{path}: options.width: {width} is none of {', '.join(map(str, WIDTHS))}")


def draw_stored(made_of: dict[str, Any], path: Path) -> Figure:
    """The figure of :func:`read_figure`.

    Raises:
        MemprobeError: its data are not those of such a figure.
    """
    try:
        table = pl.DataFrame(made_of["data"])
        check_reach(table)
        return DRAWN[made_of["figure"]](table, **made_of["options"])
    except UNDRAWABLE as error:
        raise MemprobeError(
            f"{path}: its data cannot be drawn as {made_of['figure']} ({first_line(error)})"
        ) from error


def check_reach(table: pl.DataFrame) -> None:
    """Refuses numbers that cannot be drawn: those that are none, and those beyond :data:`REACH`.

    Raises:
        MemprobeError: so; naming the column.
    """
    for column in table:
        values = column.explode() if isinstance(column.dtype, pl.List) else column
        if values.dtype.is_numeric():
            known = values.drop_nulls().cast(pl.Float64)
            if len(odd := known.filter(~(known.abs() <= REACH))):
                raise MemprobeError(f"{column.name}: {odd[0]:g} is beyond any axis")
