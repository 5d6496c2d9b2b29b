"""Evaluations of OpenUnlearning: ``NAME_EVAL.json``, by metric an ``agg_value`` and ``value_by_index``.

``value_by_index`` has, by row of the metric's data, numbers (``prob``, ``score``, ``rougeL_recall`` …; a list where a
row has several answers) and for ROUGE the texts ``input``, ``ground_truth`` and ``generation``. Metrics that only
speak of the whole have none. https://github.com/locuslab/open-unlearning, ``src/evals``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError
from memprobe.files import read_json
from memprobe.results.evaluation import Evaluation

TOOL = "OpenUnlearning"
_BY_ROW = "value_by_index"


def files(path: Path) -> list[Path]:
    """The evaluations at a path."""
    if path.is_file():
        return [path] if path.name.endswith("_EVAL.json") else []
    return sorted(path.rglob("*_EVAL.json"))


def read(file: Path) -> list[Evaluation]:
    """One evaluation for each metric that has rows: every metric has data of its own.

    Raises:
        MemprobeError: the file is no evaluation, or none of its metrics has rows.
    """
    whole = read_json(file, own=False)
    evaluations = []
    for name, entry in whole.items() if isinstance(whole, dict) else ():
        rows = entry.get(_BY_ROW) if isinstance(entry, dict) else None
        if not isinstance(rows, dict):
            continue
        evaluation = Evaluation(TOOL, name, file, file.parent.name or None)
        for index, values in rows.items():
            _add(evaluation, str(index), values, f"{file} {name} row {index}")
        evaluations.append(evaluation)
    if not evaluations:
        raise MemprobeError(f"{file}: not an evaluation of {TOOL}: none of its metrics has a {_BY_ROW!r}")
    return evaluations


def _add(evaluation: Evaluation, index: str, values: Any, where: str) -> None:
    if not isinstance(values, dict):
        evaluation.ask(index, f"row {index} of {evaluation.task}", "not stored", where)
        evaluation.errors[index] = "no value"
        return
    asked, right = values.get("input"), values.get("ground_truth")
    texts = isinstance(asked, str) and isinstance(right, str) and asked.strip() and right.strip()
    prompt, answer = (asked, right) if texts else (f"row {index} of {evaluation.task}", "not stored")
    evaluation.ask(index, str(prompt), str(answer), where)
    if isinstance(prediction := values.get("generation"), str):
        evaluation.predictions[index] = prediction
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            evaluation.score(name, index, one)
