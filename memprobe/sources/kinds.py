"""The three kinds of rows: factoids (:mod:`memprobe.factoids`), task examples and texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid

Kind = Literal["factoids", "tasks", "texts"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Task:
    """An example of a skill: a conversation of one or more turns that ends with the assistant's."""

    messages: tuple[Message, ...]
    source: str
    id: str

    @property
    def prompt(self) -> str:
        """The first user turn."""
        return next(message.content for message in self.messages if message.role == "user")

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Text:
    """A passage to train on: ``prompt`` (may be empty) is the context, ``answer`` what is learned."""

    prompt: str
    answer: str
    source: str
    id: str


AnyRow = Factoid | Task | Text


def make_task(messages: Sequence[Message], source: str) -> Task:
    """A task example with an id that depends on nothing but source and messages.

    Raises:
        MemprobeError: a turn is empty, the last is not the assistant's, or no user speaks.
    """
    if not messages or messages[-1].role != "assistant":
        raise MemprobeError("a task has to end with the assistant's turn")
    if not any(message.role == "user" for message in messages):
        raise MemprobeError("a task needs a user's turn")
    if any(not message.content.strip() for message in messages):
        raise MemprobeError("a turn of the conversation is empty")
    return Task(tuple(messages), source, row_id(source, [[turn.role, turn.content] for turn in messages]))


def make_text(prompt: str, answer: str, source: str) -> Text:
    """A text with an id that depends on nothing but its content and source.

    Raises:
        MemprobeError: the answer is empty.
    """
    if not answer.strip():
        raise MemprobeError("the text is empty")
    return Text(prompt, answer, source, row_id(source, [prompt, answer]))


def row_id(source: str, content: object) -> str:
    """16 hex digits of the SHA-256 of ``[source, content]`` as JSON."""
    return _sha256([source, content])[:16]


def rows_hash(rows: Iterable[AnyRow]) -> str:
    """SHA-256 over the sorted rows without their sources: equal for the same set in any order."""
    return _sha256(sorted(json.dumps(_content(row), ensure_ascii=False) for row in rows))


def _content(row: AnyRow) -> list[object]:
    if isinstance(row, Task):
        return [row.id, [[turn.role, turn.content] for turn in row.messages]]
    return [row.id, row.prompt, row.answer]


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
