"""TOML files (a recipe, a grid) as pydantic models and back: unknown keys and values of the wrong kind are refused."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from memprobe.errors import MemprobeError, among, in_own_words
from memprobe.templates import Template

Validated = TypeVar("Validated", bound=BaseModel)


class Settings(BaseModel):
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


def parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """Of a table's text: one that the core can take apart; what it says is wrong is told with the key."""

    def check(text: str | None) -> str | None:
        if text is not None:
            try:
                parse(text)
            except MemprobeError as error:
                raise ValueError(str(error)) from error
        return text

    return AfterValidator(check)


def _named(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(
            "a name has letters, digits, '_', '.' and '-' alone, and begins with a letter or a digit"
        )
    return name


Name = Annotated[str, AfterValidator(_named)]
"""Of a stage, a block, an arm, a set of data or an axis: names of directories are made of these."""

TemplateText = Annotated[str, parsed_by(Template.parse)]


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types in an annotation; a text among a literal's choices is a text."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    elif isinstance(annotation, str | int) and not isinstance(annotation, type):
        yield type(annotation)
    for part in get_args(annotation):
        yield from _kinds(part)


def validated(table: type[Validated], data: dict[str, Any], where: str) -> Validated:
    """Plain data as a pydantic model.

    Raises:
        MemprobeError: with ``where``, the key and what is wrong with it.
    """
    try:
        return table.model_validate(data)
    except MemprobeError as error:
        raise MemprobeError(f"{where}: {error}") from error
    except ValidationError as error:
        errors = error.errors()
        # A list with a broken item is also reported as too short, which says nothing.
        errors = [problem for problem in errors if problem["type"] != "too_short"] or errors
        problems = [f"{_key(problem['loc'])}{_problem(problem, table)}" for problem in errors]
        more = f" (and {len(problems) - 1} more: {'; '.join(problems[1:3])})" if len(problems) > 1 else ""
        raise MemprobeError(f"{where}: {problems[0]}{more}") from error


def _key(loc: tuple[int | str, ...]) -> str:
    """``stages.2.mixing.1.ratio``, counted from 1 as the run directory does."""
    # Of a table whose keys are checked themselves, pydantic adds that it speaks of the key.
    parts = [str(part + 1) if isinstance(part, int) else part for part in loc if part != "[key]"]
    return ".".join(parts) + ": " if parts else ""


def _problem(problem: Any, table: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        *above, key = problem["loc"]
        known = _keys(table, above)
        return f"unknown key; {among(key, known, before='there are')}" if known else "unknown key"
    if problem["type"] == "missing":
        return "missing"
    text = in_own_words(problem["msg"])
    given = problem["input"]
    return text + (f" (not {given!r})" if isinstance(given, str | int | float | bool) else "")


def _keys(table: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """The keys of the table at ``loc``; none where the file's schema alone does not say which table that is."""
    tables = [table]
    for step in loc:
        if isinstance(step, str):
            fields = [table.model_fields[step] for table in tables if step in table.model_fields]
            kinds = [kind for field in fields for kind in _kinds(field.annotation)]
            tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [field.alias or name for table in tables for name, field in table.model_fields.items()]


# ---------------------------------------------------------------------------------------------- TOML out


def toml_text(data: dict[str, Any]) -> str:
    """Plain data as TOML; reading it gives the same data."""
    lines: list[str] = []
    _add_table(data, "", lines)
    return "\n".join(lines).strip() + "\n"


def _add_table(table: dict[str, Any], prefix: str, lines: list[str]) -> None:
    for key, value in table.items():
        if not isinstance(value, dict) and not _is_tables(value):
            lines.append(f"{key} = {_toml(value)}")
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            lines += ["", f"[{name}]"]
            _add_table(value, name, lines)
        elif _is_tables(value):
            for item in value:
                lines += ["", f"[[{name}]]"]
                _add_table(item, name, lines)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _toml(value: Any) -> str:
    """A TOML value: its strings, numbers, booleans and lists are written as in JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_kind(data: Mapping[str, Any], path: Path, kind: Literal["recipe", "grid"]) -> None:
    """Refuses a grid where a recipe is wanted, and the reverse, naming the command for it.

    Raises:
        MemprobeError: so.
    """
    others = {
        "recipe": ("stages", "blocks", "grid, of many runs", "grid"),
        "grid": ("blocks", "stages", "recipe, of one run", "run"),
    }
    own, other, called, command = others[kind]
    if other in data and own not in data:
        raise MemprobeError(
            f"{path}: this is a {called}: python -m training {command} {shlex.quote(str(path))}"
        )


def changes(old: Any, new: Any, key: str = "") -> list[str]:
    """Keys in which plain data differ, as ``optimiser.lr: 5e-05 -> 0.0001``."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in dict.fromkeys([*old, *new])
            for line in changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True), 1)
        return [line for number, (one, other) in pairs for line in changes(one, other, f"{key}.{number}")]
    return [] if old == new else [f"{key}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


@contextmanager
def under_key(key: str) -> Iterator[None]:
    """Puts a key of the file before the message of an error."""
    try:
        yield
    except MemprobeError as error:
        raise MemprobeError(f"{key}: {error}") from error
