"""What makes stored numbers those of the facts and checkpoints that are asked for now.

Each part of it is a hash that stands where the numbers are. Some came later than others: a part is compared where both
sides have it, so that what an older memprobe wrote can be gone on with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from memprobe.factoids import Factoid, changed_fields


def differ(stored: Mapping[str, Any], given: Mapping[str, Any], key: str) -> bool:
    """Whether two entries say otherwise under a key that both have."""
    ours, theirs = stored.get(key), given.get(key)
    return ours is not None and theirs is not None and ours != theirs


def without(entry: Any, *keys: str) -> Any:
    """An entry without what is compared apart."""
    return (
        {key: value for key, value in entry.items() if key not in keys}
        if isinstance(entry, Mapping)
        else entry
    )


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
