"""What does a checkpoint already know? Factoids are asked, greedily, and split by the answer.

This is the paper's "yet to learn" filter: D_A is taken from what the base model cannot say, and the known half
measures what later stages destroy. Answers are kept in a journal batch by batch, so that a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, factoids_hash
from memprobe.files import write_text
from memprobe.metrics import alias_match, strict_match
from memprobe.records import FACTOIDS
from memprobe.templates import Template, TokenisedFactoid, tokenise

if TYPE_CHECKING:
    from memprobe.models import LensModel

MAX_SHOTS = 5
NEW_TOKENS = 16
"""Tokens generated for an answer; more where the answer itself is longer than this less :data:`SLACK`."""
SLACK = 4

Progress = Callable[[int, int, int], None]
"""Called with (factoids answered, of how many, how many of those are known)."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A factoid and what the checkpoint said.

    Attributes:
        prediction: the greedy continuation up to the end of the answer.
        strict: it equals the answer, stripped and in lower case (the paper's rule).
        alias_aware: it equals the answer or an alias after the usual normalisation.
    """

    factoid: Factoid
    prediction: str
    strict: bool
    alias_aware: bool


def ask(
    lens_model: LensModel,
    factoids: Sequence[Factoid],
    journal: Path,
    *,
    template: str = "plain",
    shots: int = 0,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[Answered]:
    """Asks every factoid, in the order given.

    Args:
        journal: file of what is answered so far; it is read first, and grows batch by batch.
        shots: solved examples before each prompt, 0 to 5: the same ones for all factoids, drawn from them by
            a hash of the seed; a factoid that is one of them gets the next one in its place.
        batch_tokens: padded tokens of one batch.

    Raises:
        MemprobeError: too few factoids for the shots, a prompt beyond the context, or a journal of another run.
    """
    prepared = prepare(lens_model, factoids, template=template, shots=shots, seed=seed)
    settings = {
        "fingerprint": lens_model.fingerprint,
        "factoids": factoids_hash(factoids),
        "template": template,
        "shots": shots,
        "seed": seed,
        "dtype": str(lens_model.model.dtype),
    }
    predictions = _read_journal(journal, settings)
    apart = frozenset(row.id for row in _example_order(factoids, seed)[:shots])
    by_id = {item.factoid.id: item for item in prepared}
    known = sum(judge(by_id[key], text).alias_aware for key, text in predictions.items())
    if progress is not None:
        progress(len(predictions), len(factoids), known)
    open_items = [item for item in prepared if item.factoid.id not in predictions]
    for batch in _journalled(
        generate_answers(lens_model, open_items, batch_tokens, apart), journal, settings
    ):
        predictions |= batch
        known += sum(judge(by_id[key], text).alias_aware for key, text in batch.items())
        if progress is not None:
            progress(len(predictions), len(factoids), known)
    return [judge(item, predictions[item.factoid.id]) for item in prepared]


def prepare(
    lens_model: LensModel, factoids: Sequence[Factoid], *, template: str, shots: int, seed: int
) -> list[TokenisedFactoid]:
    """Factoids with their solved examples, tokenised.

    Raises:
        MemprobeError: too few factoids for the shots, or a prompt beyond the context.
    """
    parsed = Template.parse(template)
    items = []
    for factoid, before in zip(factoids, _shots(factoids, shots, seed), strict=True):
        asked = replace(factoid, prompt=before + factoid.prompt)
        item = tokenise(asked, parsed, lens_model.tokenizer, lens_model.max_length)
        items.append(replace(item, factoid=factoid))
    return items


def generate_answers(
    lens_model: LensModel,
    items: Sequence[TokenisedFactoid],
    batch_tokens: int = 4096,
    apart: frozenset[str] = frozenset(),
) -> Iterator[dict[str, str]]:
    """Raw continuations by factoid id, batch by batch: items of like length together.

    Those whose ids are ``apart`` have other examples before them; without them, the prompts of the rest begin
    alike, and that beginning is read once.
    """
    from memprobe.generation import generate_batches

    groups: dict[tuple[int, int | None, bool], list[TokenisedFactoid]] = defaultdict(list)
    for item in items:
        new_tokens = max(NEW_TOKENS, len(item.targets) + SLACK)
        groups[new_tokens, item.end, item.factoid.id in apart].append(item)
    for (new_tokens, end, _), group in groups.items():
        prompts = [item.prompt for item in group]
        for indices, texts in generate_batches(
            lens_model, prompts, max_new_tokens=new_tokens, end=end, batch_tokens=batch_tokens
        ):
            yield {group[index].factoid.id: text for index, text in zip(indices, texts, strict=True)}


def rows_of(answered: Sequence[Answered]) -> str:
    """JSONL that reads back as a factoid file, with ``prediction``, ``strict`` and ``alias_aware`` beside it."""
    lines = []
    for one in answered:
        row: dict[str, Any] = {
            name: value for name in FACTOIDS if (value := getattr(one.factoid, name)) not in (None, ())
        }
        row |= {"prediction": one.prediction, "strict": one.strict, "alias_aware": one.alias_aware}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def write_rows(answered: Sequence[Answered], path: Path) -> None:
    """Writes :func:`rows_of` atomically."""
    write_text(rows_of(answered), path)


def judge(item: TokenisedFactoid, text: str) -> Answered:
    """A raw continuation held against the answer: plain text ends with the sentence, others with their token."""
    from memprobe.generation import cut

    factoid = item.factoid

    def until(answer: str) -> str:
        return cut(text, answer) if item.end is None else text.strip()

    said = until(factoid.answer)
    # A full stop inside an alias must not end the answer either, so each is held against its own cut.
    alias_aware = any(alias_match(until(answer), [answer]) for answer in (factoid.answer, *factoid.aliases))
    return Answered(factoid, said, strict_match(said, factoid.answer), alias_aware)


def _shots(factoids: Sequence[Factoid], shots: int, seed: int) -> list[str]:
    """The text of the solved examples before each factoid's prompt."""
    if not 0 <= shots <= MAX_SHOTS:
        raise MemprobeError(f"--shots {shots}: give 0 to {MAX_SHOTS}")
    if shots and len(factoids) <= shots:
        raise MemprobeError(f"--shots {shots}: {len(factoids)} factoids are too few to draw examples from")
    order = _example_order(factoids, seed)
    texts = []
    for factoid in factoids:
        examples = [row for row in order[: shots + 1] if row.id != factoid.id][:shots]
        texts.append("".join(f"{row.prompt} {row.answer}\n\n" for row in examples))
    return texts


def _example_order(factoids: Sequence[Factoid], seed: int) -> list[Factoid]:
    return sorted(factoids, key=lambda row: hashlib.sha256(f"shots {seed} {row.id}".encode()).digest())


def _journalled(
    batches: Iterator[dict[str, str]], path: Path, settings: Mapping[str, Any]
) -> Iterator[dict[str, str]]:
    """The batches, each written to the journal before it is handed on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(json.dumps(settings) + "\n")
            for batch in batches:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.items())
                file.flush()
                yield batch
    except OSError as error:
        raise MemprobeError(f"{path}: cannot be written ({error.strerror})") from error


def _read_journal(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
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
    except ValueError as error:
        raise MemprobeError(f"{path}: broken; delete it to start again") from error
    if header != settings:
        changed = ", ".join(key for key, value in settings.items() if header.get(key) != value)
        raise MemprobeError(
            f"{path}: holds the answers of another run (other {changed}); finish that run, or delete the file"
        )
    if lines[-1]:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - len(lines[-1]))
    return dict(rows)
