"""How a text is held against another. One home for each rule; those for answers are in :mod:`memprobe.answers`.

======================  ==============================================================================
folded                  lower case and one form of every letter: what makes two answers the same text
normalise               SQuAD's normalisation, under which aliases are compared
containment             the answer or an alias stands in the prediction, as whole words (WebQuestions)
rouge_l                 F1 of the longest common subsequence of words (tasks)
same_final_answer       a solution ends in the reference's result (GSM8K, MATH)
======================  ==============================================================================
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation

from memprobe.errors import MemprobeError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WORDS = re.compile(r"[a-z0-9]+")
_GSM8K = re.compile(r"####\s*\$?(-?[\d.,]*\d)")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def folded(text: str) -> str:
    """A text stripped, in lower case, and with letters that Unicode can write in two ways written in one (NFC)."""
    return unicodedata.normalize("NFC", text.strip().lower())


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


def containment(prediction: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers stands in the prediction as whole words, after :func:`normalise`."""
    words = f" {normalise(prediction)} "
    return any(f" {normalise(answer)} " in words for answer in answers)


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F1 over lower-case runs of letters and digits, 0 … 1 (Lin 2004; as ``rouge-score``, no stemmer).

    With L the length of the longest common subsequence, precision is L / words predicted and recall
    L / words in the reference.
    """
    from rapidfuzz.distance import LCSseq

    predicted, right = _WORDS.findall(prediction.lower()), _WORDS.findall(reference.lower())
    if not predicted or not right:
        return 0.0
    common = LCSseq.similarity(predicted, right)
    return 2 * common / (len(predicted) + len(right))


def same_final_answer(source: str, solution: str, reference: str) -> bool:
    """Whether a solution ends in the reference's result, by the rule of its dataset; False where it gives none.

    Raises:
        MemprobeError: no rule for this source, or the reference itself has no final answer.
    """
    if source not in FINAL_ANSWERS:
        raise MemprobeError(
            f"{source}: no rule for final answers; there is one for {', '.join(FINAL_ANSWERS)}"
        )
    read = FINAL_ANSWERS[source]
    right = read(reference)
    if right is None:
        raise MemprobeError(f"{source}: a reference solution without a final answer ({reference[-60:]!r})")
    return read(solution) == right


def gsm8k_answer(solution: str) -> str | None:
    """The number after ``####``, without commas and needless zeros; None where there is none.

    Source: Cobbe et al. 2021 (arXiv 2110.14168) and its ``grade-school-math`` code, which compares the text;
    here 18 and 18.00 are equal.
    """
    match = _GSM8K.search(solution)
    if match is None:
        return None
    try:
        number = Decimal(match[1].replace(",", ""))
    except InvalidOperation:
        return match[1]
    return format(number.normalize() + 0, "f")  # + 0 makes -0 into 0


def math_answer(solution: str) -> str | None:
    r"""What stands in the last ``\boxed{…}``, in one spelling; None where there is none.

    Source: Hendrycks et al. 2021 (arXiv 2103.03874), ``last_boxed_only_string`` and ``is_equiv`` of its code.
    """
    boxes = list(_BOX.finditer(solution))
    if not boxes:
        return None
    rest = solution[boxes[-1].end() :]
    if not rest.startswith("{"):
        return _one_spelling(re.split(r"[\s$]", rest, maxsplit=1)[0])
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return _one_spelling(rest[1:position])
    return None


FINAL_ANSWERS: dict[str, Callable[[str], str | None]] = {"gsm8k": gsm8k_answer, "math": math_answer}


def _one_spelling(answer: str) -> str:
    """The normalisation of MATH's ``_strip_string``, in its order."""
    text = answer.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for mark in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(mark, "")
    text = text.split("\\text{ ")[0]  # units
    text = text.replace("\\%", "").replace("%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:  # "k = 5"
        text = right
    text = re.sub(r"\\sqrt([^{\s\\])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{\\])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{\\])(?=\{)", r"\\frac{\1}", text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)
