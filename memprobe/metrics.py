"""How a prediction is held against the right answers. One home for each rule.

======================  ==============================================================================
strict                  strip and lower case, then equal to the answer (the rule of the paper's code)
alias_aware             equal to the answer or an alias after :func:`normalise`
containment             the answer or an alias stands in the prediction, as whole words (WebQuestions)
rouge_l                 F1 of the longest common subsequence of words (tasks)
======================  ==============================================================================
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WORDS = re.compile(r"[a-z0-9]+")


def strict_match(prediction: str, answer: str) -> bool:
    """Whether both are equal, stripped and in lower case."""
    return prediction.strip().lower() == answer.strip().lower()


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no English articles, single spaces.

    Source: Rajpurkar et al. 2016, ``evaluate-v1.1.py``; punctuation and compatibility forms (full-width
    letters, ligatures) by Unicode here, so that it works beyond ASCII. A text of which nothing would be left
    ("A", "The", "!") keeps its words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(
        character
        for character in folded
        if character not in string.punctuation and unicodedata.category(character)[0] != "P"
    )
    without_articles = " ".join(_ARTICLES.sub(" ", bare).split())
    return without_articles or " ".join(bare.split()) or " ".join(folded.split())


def alias_match(prediction: str, answers: Iterable[str]) -> bool:
    """Whether the prediction equals one of the answers after :func:`normalise`."""
    said = normalise(prediction)
    return any(said == normalise(answer) for answer in answers)


def containment(prediction: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers stands in the prediction as whole words, after :func:`normalise`."""
    said = f" {normalise(prediction)} "
    return any(f" {normalise(answer)} " in said for answer in answers)


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1 over lower-case runs of letters and digits, 0 … 1 (Lin 2004; as ``rouge-score``, no stemmer).

    With L the length of the longest common subsequence, precision is L / words predicted and recall
    L / words in the reference.
    """
    from rapidfuzz.distance import LCSseq

    said, right = _WORDS.findall(prediction.lower()), _WORDS.findall(reference.lower())
    if not said or not right:
        return 0.0
    common = LCSseq.similarity(said, right)
    return 2 * common / (len(said) + len(right))
