"""Texts to mix into training: halves of passages, and random words.

A text is a prompt and an answer, 50 words each in the paper (arXiv 2411.07175). The answer is always a passage's
second half; of the prompt there are two forms:

``words``     an instruction and the first half, which the answer continues: "Complete the following partial
              passage:" for real text, "Memorize the following random-string passage:" for random words
``sentence``  the instruction alone, the same sentence for every text
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from memprobe.errors import MemprobeError
from memprobe.sources.kinds import Text, make_text
from memprobe.sources.rows import BadRows, read_lines

COMPLETE = "Complete the following partial passage:\n\n"
MEMORISE = "Memorize the following random-string passage:"
RECALL = "Memorize the following passage:"
INSTRUCTIONS = (COMPLETE, f"{MEMORISE}\n\n", MEMORISE, RECALL)
PromptForm = Literal["words", "sentence"]
WordOrder = Literal["written", "shuffled"]
WORDS_FILE = "words.txt"
WORDS_PACKAGE = "english-words"


def halve(
    passage: str, source: str, words: tuple[int, int] = (50, 50), prompt_form: PromptForm = "words"
) -> Text | None:
    """A passage's first ``words[0]`` words as the prompt and its next ``words[1]`` as the answer.

    None where the passage is shorter. With the form ``sentence`` the answer is the same and the prompt one sentence;
    with no words for a prompt of the form ``words`` it is empty.
    """
    first, then = words
    tokens = passage.split(maxsplit=first + then)[: first + then]
    if len(tokens) < first + then:
        return None
    halved = COMPLETE + " ".join(tokens[:first]) if first else ""
    prompt = RECALL if prompt_form == "sentence" else halved
    return make_text(prompt, " ".join(tokens[first:]), source)


def start(passage: str, source: str, words: int) -> Text:
    """A passage's first words as they are written, without a prompt; a passage of fewer words is kept whole."""
    ends = (word.end() for word in re.finditer(r"\S+", passage))
    return make_text("", passage[: next(itertools.islice(ends, words - 1, None), None)], source)


def shuffle_words(texts: Sequence[Text], seed: int) -> list[Text]:
    """The same texts with the words of each prompt, behind its instruction, and of each answer in a random order.

    What is left of a text is which words stand in it: a control for what can be predicted from the words before. The
    order depends on the seed and the text alone.
    """
    shuffled = []
    for text in texts:
        draw = random.Random(f"words {seed} {text.id}")
        head = next((start for start in INSTRUCTIONS if text.prompt.startswith(start)), "")
        prompt, answer = (
            " ".join(draw.sample(words := part.split(), len(words)))
            for part in (text.prompt.removeprefix(head), text.answer)
        )
        shuffled.append(make_text(head + prompt, answer, text.source))
    return shuffled


def check_words(words: tuple[int, int]) -> None:
    """Raises a MemprobeError unless there is something to learn."""
    if words[0] < 0 or words[1] < 1:
        raise MemprobeError(
            f"--words {words[0]} {words[1]}: give at least 0 for the prompt and 1 for the answer"
        )


def random_words(
    n: int,
    vocabulary: tuple[str, ...],
    *,
    words: tuple[int, int] = (50, 50),
    prompt_form: PromptForm = "words",
    seed: int = 0,
) -> list[Text]:
    """``n`` texts of words drawn uniformly with replacement from a dictionary.

    The answer has ``words[1]`` words, and the prompt of the form ``words`` ``words[0]`` others before them. Text i
    depends on the seed and i alone, so that a longer set begins with the shorter, and its answer is the same under
    both forms.
    """
    first, then = words
    texts = []
    for row in range(n):
        draw = random.Random(f"random-words {seed} {row}")
        answer = " ".join(draw.choices(vocabulary, k=then))
        before = " ".join(draw.choices(vocabulary, k=first)) if prompt_form == "words" else ""
        texts.append(make_text(f"{MEMORISE}\n\n{before}" if before else MEMORISE, answer, "random-words"))
    return texts


def vocabulary(words_file: Path | None) -> tuple[str, ...]:
    """Dictionary words: of a file with one a line, else of the installed package ``english-words`` (web2).

    Raises:
        MemprobeError: neither is there, or the file has no words.
    """
    if words_file is not None:
        if not words_file.is_file():
            raise MemprobeError(f"{words_file}: no such word list")
        words = tuple(dict.fromkeys(line for line, _ in read_lines(words_file, BadRows())))
        if not words:
            raise MemprobeError(f"{words_file}: no words")
        return words
    if importlib.util.find_spec("english_words") is None:
        raise MemprobeError(
            f"random-words: give a folder that holds {WORDS_FILE} with --data-dir, a word list with `words_file`, "
            f"or: pip install {WORDS_PACKAGE}"
        )
    return _package_words()


@cache
def _package_words() -> tuple[str, ...]:
    from english_words import get_english_words_set  # pyrefly: ignore  # optional

    return tuple(sorted(get_english_words_set(["web2"])))
