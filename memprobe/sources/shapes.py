"""Rows of well-known data sets in their published shapes, as rows with ``prompt`` and ``answer``.

    CounterFact  requested_rewrite: {prompt with {}, subject, relation_id, target_true: {str}}, case_id
    zsRE         src, answers, subject                     (as in MEND and ROME)
    SQuAD        question, answers: {text, answer_start}   (Hugging Face), or nested under data (the original file)

A fact is asked as these sets ask it, without SQuAD's context: what a model has in its weights is what is probed. The
answer of CounterFact is the true one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memprobe.sources.rows import BadRow, Columns


def in_plain_shape(columns: Columns) -> Columns:
    """A row with ``prompt`` and ``answer``, whichever of these sets it comes from; any other row as it is.

    Raises:
        BadRow: it has such a shape in part.
    """
    if isinstance(columns.get("requested_rewrite"), Mapping):
        return _counterfact(columns)
    if isinstance(columns.get("src"), str) and "prompt" not in columns and "question" not in columns:
        return {"prompt": columns["src"], **{key: value for key, value in columns.items() if key != "src"}}
    if isinstance(answers := columns.get("answers"), Mapping):
        texts = answers.get("text")
        if not isinstance(texts, list):
            raise BadRow("'answers' is an object without a list 'text'")
        if not texts:
            raise BadRow("has no answer (a question of SQuAD 2 that cannot be answered)")
        return {**columns, "answers": list(dict.fromkeys(texts))}
    return columns


def _counterfact(columns: Columns) -> Columns:
    asked = columns["requested_rewrite"]
    try:
        prompt, subject, right = asked["prompt"], asked["subject"], asked["target_true"]["str"]
    except (KeyError, TypeError) as error:
        raise BadRow(f"'requested_rewrite' lacks {error}") from None
    if not isinstance(prompt, str) or not isinstance(subject, str) or prompt.count("{}") != 1:
        raise BadRow("'requested_rewrite' has a prompt without one {} for the subject")
    found = {"prompt": prompt.replace("{}", subject), "answer": right, "subject": subject}
    for name, key in (("relation", "relation_id"), ("id", "case_id")):
        value = asked.get(key, columns.get(key))
        if value is not None:
            found[name] = value
    return found


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
