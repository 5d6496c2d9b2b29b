"""Logs of Inspect: ``.json``, or ``.eval``, a ZIP archive with one JSON file a sample.

A sample has ``id``, ``epoch``, ``input`` (text or messages), ``target``, ``output`` and for each scorer a value: a
number, a truth value, or C (correct), I (incorrect), P (partial), N (no answer), which count 1, 0, one half and 0 as
they do there. https://inspect.aisi.org.uk/eval-logs.html
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError, first_line
from memprobe.files import read_json
from memprobe.results.evaluation import Evaluation

TOOL = "Inspect"
LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
_ZSTANDARD = 93  # APPNOTE of the ZIP format, section 4.4.5
_LOCAL_HEADER = 30


def files(path: Path) -> list[Path]:
    """The logs at a path: of a folder, the newest of each task."""
    if path.is_file():
        return [path] if path.suffix == ".eval" or _is_log(path) else []
    newest: dict[tuple[Path, str], Path] = {}
    for file in sorted(path.rglob("*"), key=lambda file: file.name):  # names begin with the time
        if file.suffix == ".eval" or (file.suffix == ".json" and _is_log(file)):
            task = file.stem.rpartition("_")[0].rpartition("_")[2] or file.stem
            newest[file.parent, task] = file
    return list(newest.values())


def read(file: Path) -> list[Evaluation]:
    """The evaluation in a log.

    Raises:
        MemprobeError: the file is damaged or no log, or holds no samples.
    """
    header, samples = _opened(file)
    try:
        about = header["eval"]
        evaluation = Evaluation(TOOL, str(about["task"]), file, about.get("model"))
        for number, sample in enumerate(samples, 1):
            _add(evaluation, sample, f"{file} sample {number}")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise MemprobeError(f"{file}: not a log of {TOOL} ({type(error).__name__}: {error})") from error
    if not evaluation.factoids:
        raise MemprobeError(f"{file}: holds no samples (its run is {header.get('status', 'not known')})")
    return [evaluation]


def _add(evaluation: Evaluation, sample: Mapping[str, Any], where: str) -> None:
    id = str(sample["id"])
    target = sample["target"]
    answers = [target] if isinstance(target, str) else [str(one) for one in target]
    choices = sample.get("choices")
    answers = [_choice(answer, choices) for answer in answers]
    evaluation.ask(id, _prompt(sample["input"]), answers[0] if answers else "", where, answers[1:])
    output = sample.get("output") or {}
    if prediction := output.get("completion"):
        evaluation.predictions.setdefault(id, str(prediction))
    if error := sample.get("error"):
        message = error.get("message") if isinstance(error, dict) else str(error)
        evaluation.errors.setdefault(id, first_line(Exception(message)))
    for scorer, score in (sample.get("scores") or {}).items():
        value = score.get("value")
        for metric, one in value.items() if isinstance(value, dict) else [(None, value)]:
            number = LETTERS.get(one, one) if isinstance(one, str) else one
            evaluation.score(scorer if metric is None else f"{scorer}.{metric}", id, number)


def _choice(answer: str, choices: Any) -> str:
    """The text of a choice that is named by its letter."""
    letter = answer.strip()
    if isinstance(choices, list) and len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
        return str(choices[ord(letter) - ord("A")])
    return answer


def _prompt(asked: Any) -> str:
    """Text as it is; of messages the last one of the user."""
    if isinstance(asked, str):
        return asked
    messages = [message for message in asked if message.get("role") == "user"] or list(asked)
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


def _is_log(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return b'"version"' in start and b'"eval"' in start and b'"status"' in start


def _opened(file: Path) -> tuple[Mapping[str, Any], Iterator[Mapping[str, Any]]]:
    if file.suffix == ".json":
        whole = read_json(file, own=False)
        samples = whole.get("samples") or [] if isinstance(whole, dict) and "eval" in whole else None
        if not isinstance(samples, list):
            raise MemprobeError(f"{file}: not a log of {TOOL}")
        return whole, iter(samples)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
        head = entries.get("header.json") or entries["_journal/start.json"]
        samples = [entry for name, entry in entries.items() if name.startswith("samples/")]
        return _member(file, head), (_member(file, entry) for entry in samples)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise MemprobeError(f"{file}: cannot be read as a log of {TOOL} ({first_line(error)})") from error


def _member(file: Path, entry: zipfile.ZipInfo) -> Any:
    """One JSON file of the archive; Python's own reader knows no Zstandard before 3.14."""
    try:
        if entry.compress_type != _ZSTANDARD:
            with zipfile.ZipFile(file) as archive:
                return json.loads(archive.read(entry))
        import pyarrow

        with file.open("rb") as raw:
            raw.seek(entry.header_offset)
            name, extra = struct.unpack("<HH", raw.read(_LOCAL_HEADER)[26:30])
            raw.seek(entry.header_offset + _LOCAL_HEADER + name + extra)
            packed = raw.read(entry.compress_size)
        text = pyarrow.decompress(packed, decompressed_size=entry.file_size, codec="zstd", asbytes=True)
        if zlib.crc32(text) != entry.CRC:
            raise ValueError("its checksum differs")
        return json.loads(text)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error) as error:
        raise MemprobeError(f"{file}: {entry.filename} is damaged ({first_line(error)})") from error
