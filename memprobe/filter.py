"""What does a checkpoint already know? Factoids are asked, greedily, and split by the answer.

This is the paper's "yet to learn" filter: D_A is taken from what the base model cannot say, and the known half
measures what later stages destroy. Answers are kept in a journal batch by batch, so that a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from memprobe import answers
from memprobe.answers import Verdict
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, check_made, content_hash, factoids_hash
from memprobe.files import write_text
from memprobe.identity import identity_of
from memprobe.records import FACTOIDS
from memprobe.templates import Template, TokenisedFactoid, tokenise_for

if TYPE_CHECKING:
    from memprobe.models import LensModel

MAX_SHOTS = 5

Progress = Callable[[int, int, int], None]
"""Called with (factoids answered, of how many, how many of those are known)."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A factoid and what the checkpoint said to it."""

    factoid: Factoid
    verdict: Verdict


def ask(
    lens_model: LensModel,
    factoids: Sequence[Factoid],
    journal: Path,
    *,
    template: str = "plain",
    shots: int = 0,
    seed: int = 0,
    batch_tokens: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> list[Answered]:
    """Asks every factoid, in the order given.

    Args:
        journal: file of what is answered so far; it is read first, and grows batch by batch.
        shots: solved examples before each prompt, 0 to 5: the same ones for all factoids, drawn from them by
            a hash of the seed; a factoid that is one of them gets the next one in its place.
        batch_tokens: padded tokens of one batch; by default as many as suit the device.
        fresh: forget what the journal holds, once it is known that the factoids can be asked.

    Raises:
        MemprobeError: too few factoids for the shots, a prompt beyond the context, or a journal of another run.
    """
    check_made(factoids)
    prepared = prepare(lens_model, factoids, template=template, shots=shots, seed=seed)
    settings = {
        **identity_of(lens_model),
        "factoids": factoids_hash(factoids),
        "content": content_hash(factoids),
        "template": template,
        "shots": shots,
        "seed": seed,
        "dtype": str(lens_model.model.dtype),
        "rule": answers.RULE,
    }
    if fresh:
        journal.unlink(missing_ok=True)
    verdicts = _read_journal(journal, settings)
    apart = frozenset(row.id for row in _example_order(factoids, seed)[:shots])

    def tell() -> None:
        if progress is not None:
            known = sum(verdict.alias_match for verdict in verdicts.values())
            progress(len(verdicts), len(factoids), known)

    tell()
    open_items = [item for item in prepared if item.factoid.id not in verdicts]
    batches = answers.answer(lens_model, open_items, batch_tokens=batch_tokens, apart=apart)
    for batch in _journalled(batches, journal, settings):
        verdicts |= batch
        tell()
    return [Answered(item.factoid, verdicts[item.factoid.id]) for item in prepared]


def prepare(
    lens_model: LensModel, factoids: Sequence[Factoid], *, template: str, shots: int, seed: int
) -> list[TokenisedFactoid]:
    """Factoids with their solved examples, tokenised.

    Raises:
        MemprobeError: too few factoids for the shots, or a prompt beyond the context.
    """
    parsed = Template.parse(template)
    before = _shots(factoids, shots, seed)
    asked = [
        replace(factoid, prompt=text + factoid.prompt) for factoid, text in zip(factoids, before, strict=True)
    ]
    items = tokenise_for(lens_model, asked, parsed)
    return [replace(item, factoid=factoid) for item, factoid in zip(items, factoids, strict=True)]


def rows_of(answered: Sequence[Answered]) -> str:
    """JSONL that reads back as a factoid file, with ``prediction``, ``strict`` and ``alias_aware`` beside it."""
    lines = []
    for one in answered:
        row: dict[str, Any] = {
            name: value for name in FACTOIDS if (value := getattr(one.factoid, name)) not in (None, ())
        }
        verdict = one.verdict
        row |= {
            "prediction": verdict.prediction,
            "strict": verdict.exact_match,
            "alias_aware": verdict.alias_match,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def write_rows(answered: Sequence[Answered], path: Path) -> None:
    """Writes :func:`rows_of` atomically."""
    write_text(rows_of(answered), path)


def check_shots(factoids: Sequence[Factoid], shots: int) -> None:
    """Raises a MemprobeError where so many solved examples cannot stand before each factoid."""
    if not 0 <= shots <= MAX_SHOTS:
        raise MemprobeError(f"--shots {shots}: give 0 to {MAX_SHOTS}")
    if shots and len(factoids) <= shots:
        raise MemprobeError(f"--shots {shots}: {len(factoids)} factoids are too few to draw examples from")


def _shots(factoids: Sequence[Factoid], shots: int, seed: int) -> list[str]:
    """The text of the solved examples before each factoid's prompt."""
    check_shots(factoids, shots)
    order = _example_order(factoids, seed)
    texts = []
    for factoid in factoids:
        examples = [row for row in order[: shots + 1] if row.id != factoid.id][:shots]
        texts.append("".join(f"{row.prompt} {row.answer}\n\n" for row in examples))
    return texts


def _example_order(factoids: Sequence[Factoid], seed: int) -> list[Factoid]:
    return sorted(factoids, key=lambda row: hashlib.sha256(f"shots {seed} {row.id}".encode()).digest())


def _journalled(
    batches: Iterator[dict[str, Verdict]], path: Path, settings: Mapping[str, Any]
) -> Iterator[dict[str, Verdict]]:
    """The batches, each written to the journal before it is handed on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(json.dumps(settings) + "\n")
            for batch in batches:
                rows = ([key, *astuple(verdict)] for key, verdict in batch.items())
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
                yield batch
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be written ({error.strerror})") from error


def _read_journal(path: Path, settings: Mapping[str, Any]) -> dict[str, Verdict]:
    """Finished answers by id; a last line cut off by a kill is taken out."""
    if not path.exists():
        return {}
    lines = path.read_bytes().split(b"\n")
    if len(lines) == 1:  # killed before the header was whole
        path.write_bytes(b"")
        return {}
    try:
        header = json.loads(lines[0])
        rows = [json.loads(line) for line in lines[1:-1]]
    except (ValueError, RecursionError) as error:
        raise MemprobeError(f"{path}: broken; delete it to start again") from error
    if not isinstance(header, dict):
        raise MemprobeError(f"{path}: broken; delete it to start again")
    changed = [
        _LATER.get(key, key)
        for key, value in settings.items()
        if header.get(key, value if key in _LATER else None) != value
    ]
    if changed or header.keys() - settings.keys() - _LATER.keys():
        raise MemprobeError(
            f"{path}: holds the answers of another run (other {', '.join(changed)}); "
            "finish that run, or delete the file"
        )
    if lines[-1]:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - len(lines[-1]))
    try:
        return {key: _VERDICT.validate_python(dict(zip(_FIELDS, parts, strict=True))) for key, *parts in rows}
    except (ValidationError, TypeError, ValueError) as error:
        raise MemprobeError(f"{path}: broken; delete it to start again") from error


# What journals did not always say, in words.
_LATER = {
    "content": "aliases or another field of the facts",
    "settings": "settings",
    "tokenizer": "tokenizer",
}
_VERDICT = TypeAdapter(Verdict)
_FIELDS = [field.name for field in fields(Verdict)]
