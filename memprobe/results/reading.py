"""Which tool wrote a file or folder, and the one evaluation in it that is meant."""

from __future__ import annotations

from pathlib import Path

from memprobe.errors import MemprobeError, there_are
from memprobe.results import inspect_logs, lm_eval, open_unlearning
from memprobe.results.evaluation import Evaluation

_TOOLS = (lm_eval, open_unlearning, inspect_logs)


def read_evaluations(path: str | Path) -> list[Evaluation]:
    """Every evaluation at a path, whichever tool wrote it.

    Raises:
        MemprobeError: there is none, or one cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise MemprobeError(f"{path}: no such file or folder")
    for tool in _TOOLS:
        if files := tool.files(path):
            return [evaluation for file in files for evaluation in tool.read(file)]
    raise MemprobeError(
        f"{path}: holds no samples of lm-evaluation-harness (samples_TASK_DATE.jsonl, from --log_samples), no log of "
        "Inspect (.eval, .json) and no evaluation of OpenUnlearning (NAME_EVAL.json)"
    )


def read_one(path: str | Path, *, task: str | None = None) -> Evaluation:
    """The one evaluation at a path.

    Args:
        task: its name, where there are several.

    Raises:
        MemprobeError: there is none of that name, or several.
    """
    evaluations = read_evaluations(path)
    chosen = [one for one in evaluations if task is None or one.task == task]
    names = ", ".join(dict.fromkeys(one.task for one in evaluations))
    if not chosen:
        raise MemprobeError(f"{path}: no task {task!r}; {there_are(task, [one.task for one in evaluations])}")
    if len({one.task for one in chosen}) > 1:
        raise MemprobeError(f"{path}: several tasks, name one of {names} (`task`)")
    if len(chosen) > 1:
        files = ", ".join(str(one.file) for one in chosen)
        raise MemprobeError(f"{path}: several results of task {names}; name one of {files}")
    return chosen[0]
