"""What training arms are called, wherever they are shown: ``remix(data=generic, stages=1)`` is "REMIX generic"."""

from __future__ import annotations

import re
from collections.abc import Sequence

BEYOND_NAIVE = ("mixing", "match", "replay", "penalty", "lora")
"""Of a stage in a recipe, what makes it more than training on its own rows."""
_PART = re.compile(r"([a-z]+)(?:\(([^()]*)\))?")
_ARGUMENT = re.compile(r"([a-z_]+)\s*=\s*(.*?)\s*(?:,(?=\s*[a-z_]+\s*=)|$)")
_SPELLED = {"remix": "REMIX", "ewc": "EWC", "kl": "KL", "lora": "LoRA"}
_KINDS = ("none", "matched", "ewc", "kl", "lora", "remix", "replay", "joint")


def arm_names(texts: Sequence[str]) -> dict[str, str]:
    """Short names of arms: ``remix(data=generic, stages=1)`` is "REMIX generic".

    Arms that would then have one name keep their options, and, if need be, their whole text.
    """
    every = list(dict.fromkeys(texts))
    names = {text: _short(text, options=False) for text in every}
    for options in (True, None):
        taken = list(names.values())
        for text in every:
            if taken.count(names[text]) > 1:
                names[text] = text if options is None else _short(text, options=True)
    return names


def _short(text: str, *, options: bool) -> str:
    parts = []
    for piece in re.split(r"\+(?![^(]*\))", text):  # a + in parentheses is a number's
        match = _PART.fullmatch(piece.strip())
        if match is None:
            return text
        name, told = match[1], dict(_ARGUMENT.findall(match[2] or ""))
        if name == "none":
            parts.append("naive")
            continue
        words = [_SPELLED.get(name, name)]
        keys = ("to", "data", *(("ratio",) if name == "replay" else ()), "strength", "rank")
        words += [told[key] for key in keys if key in told]
        if name in ("remix", "matched") and told.get("stages", "1") != "1":
            words.append(f"(stage {told['stages']})")
        if name == "matched" and not options:
            words = [word for word in words if word != told.get("data")]
        if options:
            words += [f"{key} {told[key]}" for key in ("ratio", "words") if key in told and name != "replay"]
        parts.append(" ".join(words))
    return " + ".join(parts)


def by_kind(texts: set[str]) -> list[str]:
    """Arms in the order of figures: naive and its controls, penalties, mixing, then what sees D_A again."""

    def key(text: str) -> tuple[int, str]:
        kinds = [_KINDS.index(m[0]) for m in re.finditer(r"[a-z]+(?=\(|\+|$)", text) if m[0] in _KINDS]
        return (max(kinds, default=len(_KINDS)), text)

    return sorted(texts, key=key)
