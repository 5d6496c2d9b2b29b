"""A tokenizer's own chat template, rendered the same on every day, within a limit of time and size.

Chat templates are programs that a checkpoint brings along: they may ask for today's date, raise, loop or write without
end.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from memprobe.errors import MemprobeError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_DATE = datetime.date(2024, 7, 26)
"""What a chat template is told when it asks for today: the same weights must give the same ranks tomorrow."""

SECONDS, CHARACTERS = 10.0, 1_000_000
"""The most that rendering may take, and what a template may add to the messages."""


def render_chat(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]], *, prompt: bool = False
) -> str:
    """Messages as the chat template writes them, on :data:`CHAT_DATE`.

    Args:
        turns: ``{"role": …, "content": …}`` in order; the content is a text or a list of parts.
        prompt: also what the template writes before the assistant's next turn.

    Raises:
        MemprobeError: there is no chat template, it cannot be rendered, or not within the limits.
    """
    if not tokenizer.chat_template:
        raise MemprobeError("template 'chat': this tokenizer has no chat template; use plain or tulu")
    try:
        with _on_a_fixed_day(), _within(SECONDS):
            text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt)
    except _TooLong:
        raise MemprobeError(
            f"template 'chat': the chat template was not rendered within {SECONDS:g} s"
        ) from None
    except Exception as error:  # whatever a template can raise
        raise MemprobeError(
            f"template 'chat': the chat template cannot be rendered ({first_line(error)})"
        ) from error
    if not isinstance(text, str):
        raise MemprobeError("template 'chat': the chat template writes no text")
    if len(text) > CHARACTERS + sum(len(str(turn["content"])) for turn in turns):
        raise MemprobeError(f"template 'chat': the chat template writes {len(text):,} characters")
    return text


class _TooLong(BaseException):
    """Nothing inside a template may catch it."""


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Stops Python code of this thread that takes longer."""
    thread = ctypes.c_ulong(threading.get_ident())
    lock, over = threading.Lock(), False
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def stop() -> None:
        with lock:
            if not over:
                raise_in(thread, ctypes.py_object(_TooLong))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
            raise_in(thread, None)  # one that was sent and has not arrived
        timer.cancel()


@contextlib.contextmanager
def _on_a_fixed_day() -> Iterator[None]:
    """transformers gives templates ``strftime_now``, which asks this module's ``datetime``."""
    from transformers.utils import chat_template_utils

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Fixed:
            return cls(CHAT_DATE.year, CHAT_DATE.month, CHAT_DATE.day, tzinfo=tz)

    kept = chat_template_utils.datetime
    chat_template_utils.datetime = Fixed
    try:
        yield
    finally:
        chat_template_utils.datetime = kept
