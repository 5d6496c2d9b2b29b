"""Rows as training examples: which tokens a model sees, and which of them it learns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memprobe.chats import render_chat
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, factoid_id
from memprobe.sources.kinds import AnyRow, Message, Task, Text
from memprobe.templates import CHAT, Template, tokenise
from training.mixing import IGNORED, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ExampleMaker:
    """Rows as tokens, with the loss on what the assistant says and on the end token alone.

    Factoids and single turns go through :func:`memprobe.templates.tokenise`, as when they are probed.
    """

    template: str
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def __call__(self, row: AnyRow, own: bool = True) -> Example:
        """One row as an example; tasks and texts longer than ``max_length`` are cut, factoids are not.

        Raises:
            MemprobeError: a factoid is too long or cannot be written, or of a cut row nothing is left to learn.
        """
        if isinstance(row, Factoid):
            whole, learned = self._turn(row)
            if len(whole) - 1 > self.max_length:
                raise MemprobeError(
                    f"factoid {row.id} ({row.prompt[:60]!r}): {len(whole)} tokens do not fit "
                    f"max_length {self.max_length}"
                )
        elif isinstance(row, Text):
            whole, learned = self._text(row)
        else:
            whole, learned = self._task(row)
        return self._example(row, whole, learned, own)

    def fits(self, task: Task) -> bool:
        """Whether anything is left to learn of a task that is cut."""
        _, learned = self._task(task)
        return any(learned[1 : self.max_length + 1])

    def _example(self, row: AnyRow, whole: list[int], learned: list[bool], own: bool) -> Example:
        end = min(len(whole), self.max_length + 1)
        labels = tuple(
            token if carries else IGNORED for token, carries in zip(whole[1:end], learned[1:end], strict=True)
        )
        if all(label == IGNORED for label in labels):
            if len(whole) < 2:
                raise MemprobeError(
                    f"row {row.id}: has {len(whole)} tokens, so that there is no next one to learn"
                )
            raise MemprobeError(
                f"row {row.id}: its prompt alone fills {self.max_length} tokens, all of max_length or of the model"
            )
        return Example(tuple(whole[: end - 1]), labels, row.id, own)

    def _turn(self, factoid: Factoid) -> tuple[list[int], list[bool]]:
        item = tokenise(factoid, Template.parse(self.template), self.tokenizer)
        whole = [*item.prompt, *item.targets]
        return whole, [False] * len(item.prompt) + [True] * len(item.targets)

    def _text(self, text: Text) -> tuple[list[int], list[bool]]:
        if text.prompt:
            return self._turn(_as_factoid(text.prompt, text.answer, text.source))
        whole = list(self.tokenizer.encode(text.answer))
        return whole, [True] * len(whole)

    def _task(self, task: Task) -> tuple[list[int], list[bool]]:
        if self.template == CHAT:
            return self._chat(task.messages)
        whole: list[int] = []
        in_loss: list[bool] = []
        before = ""
        for message in task.messages:
            if message.role != "assistant":
                before = f"{before}\n\n{message.content}" if before else message.content
                continue
            ids, marks = self._turn(_as_factoid(before or "…", message.content, task.source))
            if whole:
                gap = list(self.tokenizer.encode("\n", add_special_tokens=False))
                bos = self.tokenizer.bos_token_id
                ids, marks = (ids[1:], marks[1:]) if ids[0] == bos == whole[0] else (ids, marks)
                whole, in_loss = whole + gap, in_loss + [False] * len(gap)
            whole, in_loss, before = whole + ids, in_loss + marks, ""
        return whole, in_loss

    def _chat(self, messages: Iterable[Message]) -> tuple[list[int], list[bool]]:
        """Each assistant turn is what the chat template adds to the conversation before it."""
        whole: list[int] = []
        in_loss: list[bool] = []
        turns = [{"role": message.role, "content": message.content} for message in messages]
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = self._rendered(turns[:number], prompt=True)
            after = self._rendered(turns[: number + 1], prompt=False)
            if before[: len(whole)] != whole or after[: len(before)] != before:
                raise MemprobeError("template 'chat': this chat template rewrites earlier turns; use tulu")
            in_loss += [False] * (len(before) - len(whole)) + [True] * (len(after) - len(before))
            whole = after
        return whole, in_loss

    def _rendered(self, turns: list[dict[str, str]], prompt: bool) -> list[int]:
        text = render_chat(self.tokenizer, turns, prompt=prompt)
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _as_factoid(prompt: str, answer: str, source: str) -> Factoid:
    return Factoid(prompt, answer, source, factoid_id(source, prompt, answer))
