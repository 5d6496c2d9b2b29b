"""Every key that a recipe and a grid may say: its kind, its default, and what it is.

``python docs/keys.py`` writes ``docs/reference/keys.md``. Kinds and defaults are those by which files are read; what is
said of a key stands in its class's docstring.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs.modules import markdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "keys.md"

_HEAD = """# Keys of recipes and grids

What the TOML files of `python -m training run` and `python -m training grid` may say; `python docs/keys.py` makes this
page. Unknown keys and values of another kind are refused, with the file and the key. How they are used:
[train the checkpoints](../how-to/train.md), [run a study](../how-to/study.md). A run leaves its recipe with every
default written out in `recipe.toml`.
"""


def tables() -> dict[str, type[Settings]]:
    """By headline, the class of each table."""
    from training import recipe_tables as parts
    from training.grid.file import Block, Grid
    from training.penalties import penalties
    from training.recipe import Recipe

    return {
        "A recipe": Recipe,
        "`[optimiser]`": parts.Optimiser,
        "`[precision]`": parts.Precision,
        "`[evaluate]`": parts.Evaluate,
        "`[resources]`": parts.Resources,
        "`[[stages]]`": parts.Stage,
        "`stop` of a stage": parts.Stop,
        "`unknown` of a stage": parts.Unknown,
        "`checkpoints` of a stage": parts.Along,
        "`mixing` of a stage, a list": parts.Mixing,
        "`replay` of a stage": parts.Replay,
        "`lora` of a stage": parts.Lora,
        **{f'`penalty` of a stage, `method = "{name}"`': kind for name, kind in sorted(penalties().items())},
        "A grid": Grid,
        "`[[blocks]]` of a grid": Block,
    }


def said(table: type[Settings]) -> dict[str, str]:
    """By key, what the docstrings of a table, and of those that it is made from, say of it."""
    from training.settings import Settings

    found: dict[str, str] = {}
    for kind in [kind for kind in reversed(table.__mro__) if issubclass(kind, Settings)]:
        _, _, attributes = inspect.cleandoc(vars(kind).get("__doc__") or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?= {4}\S)", "\n" + attributes.split("\n\n")[0]):
            keys, colon, text = entry.partition(": ")
            if colon:
                found |= dict.fromkeys((key.strip() for key in keys.split(",")), sentence(text))
    return found


def sentence(text: str) -> str:
    """A docstring's text in one line of Markdown that begins with a capital; modules keep their whole names."""
    line = markdown(re.sub(r":mod:`([\w.]+)`", r"``\1``", text))
    return line[:1].upper() + line[1:]


def kind_of(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    """A key's JSON schema in words: ``a number above 0``."""
    if "$ref" in schema:
        return kind_of(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        kinds = [kind_of(one, whole) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "integer" | "number" as name:
            return ("a whole number" if name == "integer" else "a number") + _limits(schema)
        case "array" if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} numbers in brackets"
        case "array":
            return f"a list of {_many(schema['items'], whole)}"
        case "string":
            return "text"
        case "boolean":
            return "`true` or `false`"
        case _:
            return "a table"


def _many(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    """What a list holds."""
    one = kind_of(schema, whole)
    plural = {"a table": "tables", "text": "texts", "a whole number": "whole numbers"}
    return plural.get(one, one.replace("a list of", "lists of"))


def _limits(schema: dict[str, Any]) -> str:
    words = (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "to below"),
    )
    given = [f"{word} {schema[key]:,.10g}" for key, word in words if key in schema]
    return f" {' '.join(given)}" if given else ""


def rows(table: type[Settings]) -> Iterator[str]:
    """The lines of a table's Markdown, a key each."""
    whole, about = table.model_json_schema(), said(table)
    for key, field in table.model_fields.items():
        default = field.get_default(call_default_factory=True)
        plain = isinstance(default, bool | int | float | str | tuple) and default != ()
        shown = "must be said" if field.is_required() else f"`{json.dumps(default)}`" if plain else ""
        yield f"| `{key}` | {kind_of(whole['properties'][key], whole)} | {shown} | {about[key]} |"


def page() -> str:
    """The page as Markdown."""
    parts = [_HEAD.rstrip()]
    for headline, table in tables().items():
        opening = sentence(inspect.cleandoc(table.__doc__ or "").split("\n\n")[0])
        parts += [
            f"\n## {headline}\n\n{opening}\n",
            "| key | kind | default | what it is |",
            "|---|---|---|---|",
        ]
        parts += rows(table)
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
