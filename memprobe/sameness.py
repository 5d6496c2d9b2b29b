"""What makes stored numbers those of the facts and checkpoints that are asked for now.

Each part of it is a hash that stands where the numbers are (:mod:`memprobe.identity` makes those of checkpoints). Some
came later than others: a part is compared where both sides have it, so that what an older memprobe wrote can be gone on
with. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from memprobe import wording
from memprobe.factoids import Factoid, changed_fields

_PARTS = {
    "fingerprint": "other weights",
    "settings": "the same weights with other settings (config.json, adapter_config.json)",
    "tokenizer": "what was asked with another tokenizer",
}
"""What a checkpoint is known by, and how it is said that a directory holds another one."""


Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing")


def apart(one: Any, other: Any) -> bool:
    """Whether two marks are others; ``None`` says nothing, and is like any."""
    return one is not None and other is not None and one != other


def differ(stored: Mapping[str, Any], given: Mapping[str, Any], key: str) -> bool:
    """Whether two entries say otherwise under a key that both have."""
    return apart(stored.get(key), given.get(key))


def of_several_marks(marked: Iterable[tuple[Key, str | None, Thing]]) -> dict[Key, list[Thing]]:
    """The keys whose things do not all have one mark, with the first thing of each mark.

    Args:
        marked: (key, mark, thing); ``None`` says nothing, and is like any.
    """
    first: dict[Key, dict[str, Thing]] = {}
    for key, mark, thing in marked:
        if mark is not None:
            first.setdefault(key, {}).setdefault(mark, thing)
    return {key: list(by_mark.values()) for key, by_mark in first.items() if len(by_mark) > 1}


def without(entry: Any, *keys: str) -> Any:
    """An entry without what is compared apart."""
    return (
        {key: value for key, value in entry.items() if key not in keys}
        if isinstance(entry, Mapping)
        else entry
    )


def other_checkpoint(stored: Mapping[str, Any], given: Mapping[str, Any], side: str = "") -> str | None:
    """What an entry holds in place of a checkpoint that is given now; ``None`` where it is the same.

    Args:
        stored, given: entries with the parts of :func:`identity_of`.
        side: what their names begin with, such as ``source_``.
    """
    return next((said for part, said in _PARTS.items() if differ(stored, given, f"{side}{part}")), None)


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries are of one model: the same tensors and, where both say them, settings."""
    return one["fingerprint"] == other["fingerprint"] and not differ(one, other, "settings")


def other_facts(
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    before: Callable[[], Iterable[Factoid]],
    now: Sequence[Factoid],
) -> str | None:
    """Which fields of facts are others, where prompts and answers are the same; ``None`` where none is.

    Args:
        stored, given: with a ``content`` (:func:`memprobe.factoids.content_hash`) where they have one.
        before: the facts that are stored; asked for where there is something to say.
    """
    if not differ(stored, given, "content"):
        return None
    return ", ".join(changed_fields(before(), now)) or "fields"


def said_to_hold(key: str, ours: Any, theirs: Any) -> str:
    """What a directory holds, and what was asked of it: two sentences with what differs between them."""
    if key != "factoids":
        return f"this probe has {key} {_short(ours)}; you asked for {_short(theirs)}"
    there, asked = (f"{wording.count(facts['n'], 'fact')} from {_source(facts)}" for facts in (ours, theirs))
    if there == asked:
        asked = f"{theirs['n']:,} others (hash {theirs['hash'][:8]}, here {ours['hash'][:8]})"
    return f"this directory holds a probe of {there}; you asked for {asked}"


def _source(facts: Mapping[str, Any]) -> str:
    return "a file" if facts["source"] == "file" else facts["source"]


def _short(value: Any) -> str:
    if isinstance(value, dict) and "hash" in value:
        return f"{wording.count(value['n'], 'fact')} from {_source(value)}, hash {value['hash'][:8]}"
    if isinstance(value, dict | list):
        return ", ".join(value) or "none"
    return str(value)
