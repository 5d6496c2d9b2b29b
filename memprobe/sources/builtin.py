"""The built-in facts, ``known``: see ``memprobe/known/known.json``."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from memprobe.factoids import Factoid, make_factoid


@cache
def known_relations() -> dict[str, dict[str, Any]]:
    """Relation -> ``template``, ``paraphrases`` (both with ``{subject}``) and ``pairs`` of subject, answer, aliases."""
    return json.loads(resources.files("memprobe.known").joinpath("known.json").read_text(encoding="utf-8"))


def read_known() -> list[Factoid]:
    """The built-in facts, relation by relation."""
    return [
        make_factoid(
            relation["template"].format(subject=subject),
            answer,
            "known",
            aliases=aliases,
            relation=name,
            subject=subject,
        )
        for name, relation in known_relations().items()
        for subject, answer, *aliases in relation["pairs"]
    ]
