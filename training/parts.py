"""Parts of a TOML file (a recipe, a grid) as pydantic models: unknown keys and values of the wrong kind are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from memprobe.errors import MemprobeError, among

Validated = TypeVar("Validated", bound=BaseModel)


class Part(BaseModel):
    """A table of a file. ``true`` is no number and ``"3"`` is none either, though pydantic would read them as such."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _kind(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool) and kinds & {int, float} and bool not in kinds:
                raise ValueError(f"a number, not {str(one).lower()}")
            if isinstance(one, str) and kinds & {int, float} and not kinds & {str, dict}:
                raise ValueError("a number, not a text")
            if not isinstance(one, bool) and kinds == {bool}:
                raise ValueError("true or false")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types in an annotation; a text among a literal's choices is a text."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    elif isinstance(annotation, str | int) and not isinstance(annotation, type):
        yield type(annotation)
    for part in get_args(annotation):
        yield from _kinds(part)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain data.

    Raises:
        MemprobeError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MemprobeError(f"{path}: is not TOML ({error})") from error


def validated(part: type[Validated], data: dict[str, Any], where: str) -> Validated:
    """Plain data as a pydantic model.

    Raises:
        MemprobeError: with ``where``, the key and what is wrong with it.
    """
    try:
        return part.model_validate(data)
    except MemprobeError as error:
        raise MemprobeError(f"{where}: {error}") from error
    except ValidationError as error:
        found = error.errors()
        # A list with a broken item is also reported as too short, which says nothing.
        found = [problem for problem in found if problem["type"] != "too_short"] or found
        problems = [f"{_key(problem['loc'])}{_told(problem, part)}" for problem in found]
        more = f" (and {len(problems) - 1} more: {'; '.join(problems[1:3])})" if len(problems) > 1 else ""
        raise MemprobeError(f"{where}: {problems[0]}{more}") from error


def _key(loc: tuple[int | str, ...]) -> str:
    """``stages.2.mixing.1.ratio``, counted from 1 as the run directory does."""
    parts = [str(part + 1) if isinstance(part, int) else part for part in loc]
    return ".".join(parts) + ": " if parts else ""


def _told(problem: Any, part: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        *above, key = problem["loc"]
        known = _keys(part, above)
        return f"unknown key; {among(key, known, before='there are')}" if known else "unknown key"
    if problem["type"] == "missing":
        return "missing"
    text = str(problem["msg"]).removeprefix("Value error, ")
    given = problem["input"]
    return text + (f" (not {given!r})" if isinstance(given, str | int | float | bool) else "")


def _keys(part: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """The keys of the table at ``loc``; none where the file's schema alone does not say which table that is."""
    tables = [part]
    for step in loc:
        if isinstance(step, str):
            fields = [table.model_fields[step] for table in tables if step in table.model_fields]
            kinds = [kind for field in fields for kind in _kinds(field.annotation)]
            tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [field.alias or name for table in tables for name, field in table.model_fields.items()]
