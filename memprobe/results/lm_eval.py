"""What lm-evaluation-harness writes under ``--log_samples``: ``samples_TASK_DATE.jsonl``, one line a document.

A line has ``doc``, ``target`` (text; for multiple choice the number of the right one), ``arguments`` (for each request
its context and continuation, or its context and how to generate), ``filtered_resps``, ``filter``, and each metric under
its own name. https://github.com/EleutherAI/lm-evaluation-harness, ``loggers/evaluation_tracker.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError
from memprobe.files import read_json
from memprobe.results.evaluation import Evaluation
from memprobe.sources.rows import BadRows, read_rows

TOOL = "lm-evaluation-harness"
_FILE = re.compile(r"samples_(.+)_(\d{4}-\d{2}-\d{2}T.+)\.jsonl")
_DIGITS = 16  # of a document's hash, as in a factoid's id


def files(path: Path) -> list[Path]:
    """The samples at a path: the newest of each task in a folder (with one folder a model, of the newest)."""
    if path.is_file():
        return [path] if _FILE.fullmatch(path.name) else []
    newest: dict[tuple[Path, str], Path] = {}
    for file in sorted(path.rglob("samples_*.jsonl"), key=lambda file: file.name):
        if match := _FILE.fullmatch(file.name):
            newest[file.parent, match[1]] = file
    return list(newest.values())


def read(file: Path) -> list[Evaluation]:
    """The evaluation in a file of samples.

    Raises:
        MemprobeError: a line is not what the harness writes.
    """
    match = _FILE.fullmatch(file.name)
    name, date = (match[1], match[2]) if match else (file.stem, "")
    evaluation = Evaluation(TOOL, name, file, _model(file, date))
    for row in read_rows(file, BadRows()):
        columns = row.columns
        try:
            doc, arguments, target = columns["doc"], columns["arguments"], columns["target"]
            prompt, answer = _asked(arguments, target)
            metrics = columns["metrics"]
        except KeyError as error:
            raise MemprobeError(
                f"{row.where}: not a sample of {TOOL} (it has no {error.args[0]!r})"
            ) from error
        except (TypeError, IndexError, AttributeError) as error:
            raise MemprobeError(
                f"{row.where}: not a sample of {TOOL} (its arguments, target or metrics have another form)"
            ) from error
        id = _id(doc, columns)
        first = id not in evaluation.factoids
        evaluation.ask(id, prompt, answer, row.where)
        if first and columns.get("filtered_resps"):
            evaluation.predictions[id] = _prediction(columns["filtered_resps"], arguments)
        kind = columns.get("filter", "none")
        for metric in metrics:
            evaluation.score(metric if kind == "none" else f"{metric},{kind}", id, columns.get(metric))
    return [evaluation]


def _id(doc: Any, columns: Mapping[str, Any]) -> str:
    """The document's own id, else the first digits of its hash: its number changes with ``--limit``."""
    own = doc.get("id") if isinstance(doc, dict) else None
    if isinstance(own, str | int) and not isinstance(own, bool) and str(own).strip():
        return str(own)
    return str(columns["doc_hash"])[:_DIGITS]


def _asked(arguments: Mapping[str, Mapping[str, Any]], target: Any) -> tuple[str, str]:
    requests = [arguments[f"gen_args_{i}"] for i in range(len(arguments))]
    prompt = str(requests[0]["arg_0"])
    choices = [request.get("arg_1") for request in requests]
    if not all(isinstance(choice, str) for choice in choices):  # to be generated
        return prompt, str(target)
    if len(choices) == 1:
        return prompt, str(choices[0])
    number = str(target).strip()
    named = number.isascii() and number.isdigit() and int(number) < len(choices)
    return prompt, str(choices[int(number)]) if named else str(target)


def _prediction(responses: list[Any], arguments: Mapping[str, Mapping[str, Any]]) -> str:
    """The text, or of continuations the one that is likeliest."""
    if isinstance(responses[0], str):
        return responses[0].strip()
    likely = []
    for response in responses:
        first = response[0] if isinstance(response, list) and response else response
        try:
            likely.append(float(first))
        except (TypeError, ValueError):
            return str(responses[0])
    best = max(range(len(likely)), key=likely.__getitem__)
    return str(arguments[f"gen_args_{best}"].get("arg_1", "")).strip()


def _model(file: Path, date: str) -> str | None:
    beside = file.with_name(f"results_{date}.json")
    if not beside.is_file():
        return None
    results = read_json(beside, own=False)
    name = results.get("model_name") if isinstance(results, dict) else None
    return str(name) if name else None
