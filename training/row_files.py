"""What a run prepared, as JSON: written once and read again when the run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from memprobe.factoids import Factoid
from memprobe.sources.kinds import AnyRow, Message, Task, Text


def row_to_json(row: AnyRow) -> dict[str, Any]:
    """A row's fields that are not empty: a line of the stage's file, which reads back as a source."""
    return {key: value for key, value in asdict(row).items() if value not in (None, (), [])}


def rows_text(rows: Iterable[AnyRow]) -> str:
    """Rows as the JSONL of a stage's file."""
    return "".join(json.dumps(row_to_json(row), ensure_ascii=False) + "\n" for row in rows)


def rows_hash_of(rows: Iterable[AnyRow]) -> str:
    """The SHA-256 of a stage's file, as its manifest has it."""
    return hashlib.sha256(rows_text(rows).encode("utf-8")).hexdigest()


def tagged(row: AnyRow) -> dict[str, Any]:
    """A row as JSON with its kind."""
    return {"kind": type(row).__name__, **row_to_json(row)}


def untagged(data: dict[str, Any]) -> AnyRow:
    """The row that :func:`tagged` wrote."""
    fields = {key: value for key, value in data.items() if key != "kind"}
    if data["kind"] == "Task":
        turns = tuple(Message(turn["role"], turn["content"]) for turn in fields["messages"])
        return Task(turns, fields["source"], fields["id"])
    if data["kind"] == "Text":
        return Text(**{"prompt": "", **fields})
    return Factoid(**fields | {"aliases": tuple(fields.get("aliases", ()))})
