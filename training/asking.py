"""What the base model knows before stage 1: rows are chosen by its answers, which are asked for once.

Its answers are files in a folder that runs may share, named by all that they depend on: the model with its settings
and tokenizer, its number format, what was asked and by which rule answers count as right. A base model that is trained
again under the same path is another one, and facts with other aliases are other facts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memprobe.answers import RULE
from memprobe.checkpoints import Checkpoint, resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, content_hash
from memprobe.files import read_json, write_json
from memprobe.identity import identity_of
from memprobe.sources import load, subset
from memprobe.sources.kinds import AnyRow
from training.prepared import StageData, taught
from training.recipe import Recipe
from training.recipe_tables import Stage, Unknown
from training.settings import under_key

if TYPE_CHECKING:
    from memprobe.models import LensModel

_ASKED_AT_ONCE = 256


def answers_file(
    asked: Path, base: Checkpoint, dtype: str, question: Sequence[object], kind: str = ""
) -> Path:
    """Where the answers of a base model lie, in a folder that runs may share.

    Args:
        dtype: number format in which it is asked.
        question: all that its answers depend on beside that, as plain data.
        kind: what the name begins with.
    """
    mark = json.dumps([identity_of(base), RULE, dtype, *question])
    return asked / f"{kind}{hashlib.sha256(mark.encode()).hexdigest()[:16]}.json"


def unknown_rows(
    recipe: Recipe,
    stage: Stage,
    candidates: Sequence[AnyRow],
    asked: Path,
    base: Callable[[], LensModel],
    say: Callable[[str], None],
) -> tuple[list[AnyRow], list[Factoid]]:
    """Asks the base model, some at a time, until there are n factoids that it does not know."""
    assert stage.unknown is not None
    seed = recipe.own_rows_seed(stage)
    order = subset(candidates, len(candidates), seed, stage.data)
    unknown: list[AnyRow] = []
    known: list[Factoid] = []
    at_once = _ASKED_AT_ONCE if stage.n is None else max(32, min(_ASKED_AT_ONCE, 2 * stage.n), stage.n)
    for start in range(0, len(order), at_once):
        if stage.n is not None and len(unknown) >= stage.n:
            break
        some = [row for row in order[start : start + at_once] if isinstance(row, Factoid)]
        answers = _answered(base, some, asked, recipe, stage.unknown, seed)
        for factoid, knows in zip(some, answers, strict=True):
            (known if knows else unknown).append(factoid)
        say(f"{stage.name}: asked {start + len(some)} factoids, {len(known)} are known to the base model")
    if stage.n is not None and len(unknown) < stage.n:
        raise MemprobeError(
            f"{stage.data}: the base model does not know {len(unknown)} of {len(order)}, and n is {stage.n}"
        )
    return unknown[: stage.n], known


def _answered(
    base: Callable[[], LensModel],
    factoids: list[Factoid],
    asked: Path,
    recipe: Recipe,
    how: Unknown,
    seed: int,
) -> list[bool]:
    """Whether the base model answers each of these factoids; its answers are kept by what was asked."""
    from filelock import FileLock

    from memprobe.filter import ask

    question = (content_hash(factoids), how.template, how.shots, seed)
    whole = answers_file(asked, resolve(recipe.base), recipe.precision.save_dtype, question)
    journal = whole.with_suffix(".jsonl")
    if not whole.exists():
        asked.mkdir(parents=True, exist_ok=True)
        with FileLock(journal.with_suffix(".lock")):  # another run may be asking the same
            if not whole.exists():
                answers = ask(base(), factoids, journal, template=how.template, shots=how.shots, seed=seed)
                write_json({one.factoid.id: one.verdict.alias_match for one in answers}, whole)
    answered = read_json(whole)
    ids = [factoid.id for factoid in factoids]
    if not isinstance(answered, dict) or [type(answered.get(key)) for key in ids] != [bool] * len(ids):
        raise MemprobeError(
            f"{whole}: does not say of each of {len(factoids)} factoids whether it is known; delete it"
        )
    return [answered[key] for key in ids]


def known_facts(
    recipe: Recipe,
    stages: Sequence[StageData],
    asked: Path,
    base: Callable[[], LensModel],
    data_dir: Path | None,
    say: Callable[[str], None],
) -> list[Factoid]:
    """Facts that the base model answers and that no stage trains on."""
    limit = recipe.evaluate.known
    if not limit:
        return []
    with under_key("evaluate.known_source"):
        loaded = load(
            recipe.evaluate.known_source,
            "factoids",
            seed=recipe.rows_seed,
            data_dir=data_dir,
            without=taught(stages),
        )
    for line in loaded.left_out():
        say(f"evaluate.known_source: left out {line}")
    factoids = [row for row in loaded.rows if isinstance(row, Factoid)]
    known: list[Factoid] = []
    for start in range(0, len(factoids), _ASKED_AT_ONCE):
        some = factoids[start : start + _ASKED_AT_ONCE]
        answers = _answered(base, some, asked, recipe, Unknown(), recipe.rows_seed)
        known += [factoid for factoid, knows in zip(some, answers, strict=True) if knows]
        if len(known) >= limit:
            break
    say(f"the base model knows {len(known[:limit])} facts of {recipe.evaluate.known_source} to watch")
    return known[:limit]
