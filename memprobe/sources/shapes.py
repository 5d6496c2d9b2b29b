"""Rows of well-known data sets in their published shapes, as rows with ``prompt`` and ``answer``.

    CounterFact  requested_rewrite: {prompt with {}, subject, relation_id, target_true: {str}}, case_id
    zsRE         src, answers, subject                     (as in MEND and ROME)
    SQuAD        question, answers: {text, answer_start}   (Hugging Face), or nested under data (the original file)

A fact is asked as these sets ask it, without SQuAD's context: what a model has in its weights is what is probed. The
answer of CounterFact and zsRE is the true one, or the one that an edit puts in its place (``target_new``, ``alt``):
see :data:`TARGETS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from memprobe.sources.rows import BadRow, Columns

Target = Literal["true", "new"]
TARGETS: dict[str, tuple[Target, ...]] = {"true": ("true",), "new": ("new",), "both": ("true", "new")}
"""What may stand behind a file's name (``counterfact.json:new``), and the answers that are then facts, each row's in
order. A fact of an edited answer is of the source ``edit``, and its id ends in ``-new``."""
EDITED = "edit"


def in_plain_shape(columns: Columns, target: Target = "true") -> Columns:
    """A row with ``prompt`` and ``answer``, whichever of these sets it comes from; any other row as it is.

    Args:
        target: which answer: the true one, or that of an edit.

    Raises:
        BadRow: it has such a shape in part, or no edited answer where that is asked for.
    """
    if isinstance(columns.get("requested_rewrite"), Mapping):
        return _counterfact(columns, target)
    if isinstance(columns.get("src"), str) and "prompt" not in columns and "question" not in columns:
        rest = {key: value for key, value in columns.items() if key != "src"}
        if target == "new":
            if not isinstance(columns.get("alt"), str):
                raise BadRow("has no edited answer 'alt'")
            rest = _edited(
                {key: value for key, value in rest.items() if key != "answers"} | {"answer": columns["alt"]}
            )
        return {"prompt": columns["src"], **rest}
    if target == "new":
        raise BadRow("has no edited answer; rows of CounterFact and zsRE have one")
    if isinstance(answers := columns.get("answers"), Mapping):
        texts = answers.get("text")
        if not isinstance(texts, list):
            raise BadRow("'answers' is an object without a list 'text'")
        if not texts:
            raise BadRow("has no answer (a question of SQuAD 2 that cannot be answered)")
        return {**columns, "answers": list(dict.fromkeys(texts))}
    return columns


def _edited(row: Columns) -> Columns:
    """A row that asks for an edited answer: no fact of its own id, nor of the true one's source."""
    own = {} if row.get("id") is None else {"id": f"{row['id']}-new"}
    return {**row, **own, "source": EDITED}


def _counterfact(columns: Columns, target: Target) -> Columns:
    asked = columns["requested_rewrite"]
    try:
        prompt, subject, right = asked["prompt"], asked["subject"], asked[f"target_{target}"]["str"]
    except (KeyError, TypeError) as error:
        raise BadRow(f"'requested_rewrite' lacks {error}") from None
    if not isinstance(prompt, str) or not isinstance(subject, str) or prompt.count("{}") != 1:
        raise BadRow("'requested_rewrite' has a prompt without one {} for the subject")
    row = {"prompt": prompt.replace("{}", subject), "answer": right, "subject": subject}
    for name, key in (("relation", "relation_id"), ("id", "case_id")):
        value = asked.get(key, columns.get(key))
        if value is not None:
            row[name] = value
    return _edited(row) if target == "new" else row


def squad_rows(whole: Mapping[str, Any]) -> Iterator[Columns]:
    """The questions of SQuAD's original file, in order.

    Raises:
        BadRow: it is no such file.
    """
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [answer["text"] for answer in question["answers"]]
                    yield {
                        "id": question["id"],
                        "question": question["question"],
                        "answers": {"text": answers},
                    }
    except (KeyError, TypeError) as error:
        raise BadRow(f"a JSON object that is not SQuAD's ({error}); give a list of rows") from None
