"""Texts to mix into training: halves of passages, and random words.

A passage becomes a prompt, "Complete the following partial passage:" with its first words, and an answer, its
next words: 50 and 50 in the paper (arXiv 2411.07175). Random words are a list to be memorised.
"""

from __future__ import annotations

import importlib.util
import random
from functools import cache
from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.sources.kinds import Text, make_text
from memprobe.sources.rows import BadRows, read_lines

COMPLETE = "Complete the following partial passage:\n\n"
MEMORISE = "Memorise the following sequence of random words:"
WORDS_FILE = "words.txt"
WORDS_PACKAGE = "english-words"


def halve(passage: str, source: str, words: tuple[int, int] = (50, 50)) -> Text | None:
    """A passage's first ``words[0]`` words as the prompt and its next ``words[1]`` as the answer.

    None where the passage is shorter. With no words for the prompt, the prompt is empty.
    """
    first, then = words
    tokens = passage.split(maxsplit=first + then)[: first + then]
    if len(tokens) < first + then:
        return None
    prompt = COMPLETE + " ".join(tokens[:first]) if first else ""
    return make_text(prompt, " ".join(tokens[first:]), source)


def check_words(words: tuple[int, int]) -> None:
    """Raises a MemprobeError unless there is something to learn."""
    if words[0] < 0 or words[1] < 1:
        raise MemprobeError(
            f"--words {words[0]} {words[1]}: give at least 0 for the prompt and 1 for the answer"
        )


def random_words(n: int, vocabulary: tuple[str, ...], *, words: int = 50, seed: int = 0) -> list[Text]:
    """``n`` texts of ``words`` words each, drawn uniformly with replacement from a dictionary.

    Text i depends on the seed and i alone: a longer set begins with the shorter.
    """
    texts = []
    for row in range(n):
        draw = random.Random(f"random-words {seed} {row}")
        texts.append(make_text(MEMORISE, " ".join(draw.choices(vocabulary, k=words)), "random-words"))
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
            f"random-words: give a folder that holds {WORDS_FILE} with --data-dir, a word list with --words-file, "
            f"or: pip install {WORDS_PACKAGE}"
        )
    return _package_words()


@cache
def _package_words() -> tuple[str, ...]:
    from english_words import get_english_words_set  # pyrefly: ignore  # optional

    return tuple(sorted(get_english_words_set(["web2"])))
