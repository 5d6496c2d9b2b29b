"""Factoids: one (prompt, answer) pair each, with an id that is stable across machines and orderings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from memprobe.errors import MemprobeError


@dataclass(frozen=True, slots=True)
class Factoid:
    """One (prompt, answer) pair.

    Attributes:
        prompt: the question, or the sentence up to the answer; no trailing space.
        answer: what a model should say; no surrounding space.
        source: where it comes from, e.g. ``kvr`` or ``popqa``; never a path.
        id: stable across machines and orderings; see :func:`factoid_id`.
        aliases: other right answers (``answer`` itself is not among them).
        relation: e.g. ``capital`` or ``P36``; shuffled controls stay within one.
        subject: what the fact is about, where the source says so.
        popularity: of the subject, where the source says so (PopQA: monthly page views).
    """

    prompt: str
    answer: str
    source: str
    id: str
    aliases: tuple[str, ...] = ()
    relation: str | None = None
    subject: str | None = None
    popularity: float | None = None


def factoid_id(source: str, prompt: str, answer: str) -> str:
    """16 hex digits of the SHA-256 of ``[source, prompt, answer]`` as JSON: never a row number."""
    text = json.dumps([source, prompt, answer], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def make_factoid(
    prompt: str,
    answer: str,
    source: str,
    *,
    aliases: Iterable[str] = (),
    relation: str | None = None,
    subject: str | None = None,
    popularity: float | None = None,
    id: str | None = None,
) -> Factoid:
    """A factoid with outer white space removed, aliases without repeats, and an id made where none is given.

    Raises:
        MemprobeError: the prompt or the answer is empty.
    """
    prompt, answer = prompt.strip(), answer.strip()
    for what, text in (("prompt", prompt), ("answer", answer), ("relation", relation), ("subject", subject)):
        _check_text(what, text or "")
    if not prompt:
        raise MemprobeError(f"the prompt is empty (answer {answer!r})")
    if not answer:
        raise MemprobeError(f"the answer is empty (prompt {prompt!r})")
    kept = dict.fromkeys(alias.strip() for alias in aliases)
    for alias in kept:
        _check_text("alias", alias)
    return Factoid(
        prompt=prompt,
        answer=answer,
        source=source,
        id=id if id is not None else factoid_id(source, prompt, answer),
        aliases=tuple(alias for alias in kept if alias and alias != answer),
        relation=relation,
        subject=subject,
        popularity=popularity,
    )


def factoids_hash(factoids: Iterable[Factoid]) -> str:
    """SHA-256 over the sorted (id, prompt, answer): equal for the same set in any order."""
    rows = sorted([factoid.id, factoid.prompt, factoid.answer] for factoid in factoids)
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


class SameFacts:
    """Facts by id, as several files hold them: an id must stand for one fact in all.

    Attributes:
        reworded: ids that some file asks in other words, or whose answer it writes in another case.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, str, str]] = {}
        self.reworded: set[str] = set()

    def add(self, facts: Iterable[tuple[str, str, str]], where: str) -> None:
        """Holds further facts against those before.

        Args:
            facts: (id, prompt, answer).
            where: their file, for the message.

        Raises:
            MemprobeError: an id has another answer than before.
        """
        for id, prompt, answer in facts:
            asked, known, at = self._held.setdefault(id, (prompt, answer, where))
            if known.casefold() != answer.casefold():
                raise MemprobeError(
                    f"{where}: fact {id!r} has the answer {answer!r}, in {at} {known!r}; "
                    "ids must stand for the same facts"
                )
            if (asked, known) != (prompt, answer):
                self.reworded.add(id)

    def note(self) -> list[str]:
        """What a reader must know of them, if anything."""
        count = len(self.reworded)
        return (
            [
                f"{count} of these facts were put in other words to some checkpoints (other templates or examples)."
            ]
            if count
            else []
        )


def content_hash(factoids: Iterable[Factoid]) -> str:
    """SHA-256 over all that factoids say: equal for the same set in any order.

    What is read of them beside prompt and answer is in it: the subject, what shuffled controls are drawn within, the
    aliases that count as right. Stored beside :func:`factoids_hash`, by which a set was known before; fields that say
    nothing are left out, so that one that is added later changes no hash of old.
    """
    rows = sorted(json.dumps(_said(factoid), ensure_ascii=False, sort_keys=True) for factoid in factoids)
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()


def _said(factoid: Factoid) -> dict[str, object]:
    said = {one.name: getattr(factoid, one.name) for one in fields(Factoid)}
    if factoid.popularity is not None:
        said["popularity"] = float(factoid.popularity)  # as a table gives it back
    return {name: value for name, value in said.items() if value not in (None, ())}


def changed_fields(before: Iterable[Factoid], now: Iterable[Factoid]) -> list[str]:
    """Names of the fields in which factoids of one id differ, in the order of :class:`Factoid`."""
    known = {factoid.id: _said(factoid) for factoid in before}
    pairs = [(known[factoid.id], _said(factoid)) for factoid in now if factoid.id in known]
    return [
        one.name
        for one in fields(Factoid)
        if any(old.get(one.name) != new.get(one.name) for old, new in pairs)
    ]


def check_made(factoids: Iterable[object]) -> None:
    """Refuses what is no factoid, such as a row of a file.

    Raises:
        MemprobeError: so.
    """
    if isinstance(factoids, Factoid):
        raise MemprobeError("give factoids as a list, also a single one: [factoid]")
    for one in factoids:
        if not isinstance(one, Factoid):
            raise MemprobeError(
                f"a {type(one).__name__} is not a factoid; memprobe.make_factoid(prompt, answer, source) makes one"
            )


def check_factoids(factoids: Sequence[Factoid], purpose: str) -> None:
    """What every run over factoids needs of them.

    Args:
        purpose: what is done with them, for the message: ``probe``.

    Raises:
        MemprobeError: there are none, or two have one id.
    """
    check_made(factoids)
    ids = [factoid.id for factoid in factoids]
    if not ids:
        raise MemprobeError(f"there are no factoids to {purpose}")
    if len(set(ids)) < len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise MemprobeError(f"the factoid id {repeated!r} stands twice")


def _check_text(what: str, text: str) -> None:
    """Refuses what no tokenizer and no file can hold: lone surrogates (half of a character) and NUL."""
    for character in text:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise MemprobeError(
                f"the {what} {text[:60]!a} holds {character!a}, which is no character; correct the text"
            )
