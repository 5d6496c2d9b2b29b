"""Sources -> rows -> examples: what each stage of a recipe trains on, loaded before anything is trained.

The rows are written to the run directory first, so that a run that goes on has the very same ones, and the
questions of the unknown-to-base filter are asked once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.files import read_valid, write_json
from memprobe.sources import Loaded, load, subset
from memprobe.sources.kinds import AnyRow, Text, rows_hash
from memprobe.sources.origins import Origin
from memprobe.sources.shuffling import shuffle_answers
from training.alike import same_rows
from training.asking import known_facts, unknown_rows
from training.drawing import (
    apart_from,
    drawn,
    evaluated_texts,
    fitting,
    goes_around,
    mixing_rows,
    same_place,
    wanted_rows,
)
from training.examples import ExampleMaker
from training.mixing import Part
from training.prepared import Prepared, PreparedFile, StageData, facts_in, from_json, taught, to_json
from training.recipe import Recipe, parse_recipe, to_toml
from training.recipe_tables import Stage
from training.settings import under_key
from training.starts import edited_files, edited_since, has_begun, revisions_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memprobe.models import LensModel

PREPARED, ASKED = ".prepared.json", ".asked"


def prepare(
    recipe: Recipe,
    run: Path,
    base: Callable[[], LensModel],
    *,
    data_dir: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    asked: Path | None = None,
) -> Prepared:
    """All rows of a run; from the run directory where they are there already.

    Args:
        base: loads the base model, for what it has to be asked.
        asked: folder of the base model's answers (default: in the run directory); runs may share one.

    Raises:
        MemprobeError: a source is missing or has fewer rows than wanted, with the recipe's key; or a file of rows was
            edited since something was trained or measured on what it said.
    """
    path = run / PREPARED
    if path.exists() and _drawn_for(kept := read_valid(path, PreparedFile), recipe):
        origins = [stage.get("origins", []) for stage in kept["stages"]]
        edited = edited_files(recipe, origins, data_dir) + edited_since(recipe, kept.get("revisions", {}))
        if not edited:
            return from_json(kept, path)
        if has_begun(run):
            raise MemprobeError(
                f"{edited[0]}: was another file when {run} was begun; put it back as it was, or give another --out"
            )
    asked = asked or run / ASKED
    texts = evaluated_texts(recipe, data_dir, say)
    every: list[StageData] = []
    for number, stage in enumerate((*recipe.stages, *recipe.later), 1):
        say(f"stage {number} {stage.name}: reading {stage.data}")
        key = f"stages.{number}" if number <= len(recipe.stages) else f"later.{number - len(recipe.stages)}"
        before = _of_the_same_place(stage, [*zip((*recipe.stages, *recipe.later), every, strict=False)])
        every.append(_own_rows(recipe, stage, key, taught(every), before, texts, asked, base, data_dir, say))
    # After all stages' own rows, which are so the same in every arm, whatever it mixes in.
    stages = [
        _with_mixing(recipe, stage, f"stages.{number}", data, every, texts, data_dir, say)
        for number, (stage, data) in enumerate(zip(recipe.stages, every, strict=False), 1)
    ]
    prepared = Prepared(stages, known_facts(recipe, stages, asked, base, data_dir, say), texts)
    about = {"recipe": to_toml(recipe), "revisions": revisions_of(recipe)}
    write_json(about | to_json(prepared), path)
    return prepared


def _drawn_for(kept: dict[str, Any], recipe: Recipe) -> bool:
    """Whether the rows that are kept are a recipe's."""
    try:
        return same_rows(parse_recipe(tomllib.loads(kept["recipe"]), PREPARED), recipe)
    except (MemprobeError, tomllib.TOMLDecodeError):  # of another version, whose recipes are others
        return False


def _of_the_same_place(stage: Stage, earlier: Sequence[tuple[Stage, StageData]]) -> list[AnyRow]:
    """Rows of earlier stages, trained or held out, that may be among those of a stage of texts or tasks, which would
    learn again what an earlier one learned, or what is evaluated as never trained."""
    return [
        row
        for one, data in earlier
        if same_place(stage.data, one.data)
        for row in (*data.rows, *data.held_out)
    ]


def _own_rows(
    recipe: Recipe,
    stage: Stage,
    key: str,
    earlier: Sequence[Factoid],
    before: Sequence[AnyRow],
    texts: Sequence[Text],
    asked: Path,
    base: Callable[[], LensModel],
    data_dir: Path | None,
    say: Callable[[str], None],
) -> StageData:
    of_facts = stage.kind == "factoids"
    wanted = None if stage.unknown or stage.n is None else stage.n + (0 if of_facts else stage.held_out)
    with under_key(f"{key}.data"):
        loaded = _loaded(recipe, stage, wanted, earlier, before, texts, data_dir)
    for line in loaded.left_out():
        say(f"{key}: left out {line}")
    rows, known = loaded.rows, []
    held_out: list[AnyRow] = []
    if not of_facts:
        with under_key(f"{key}.held_out"):
            rows, held_out = _split(rows, stage.held_out, recipe.own_rows_seed(stage), stage.data)
    counts = dict(loaded.counts)
    if stage.unknown:
        with under_key(f"{key}.unknown"):
            rows, known = unknown_rows(recipe, stage, rows, asked, base, say)
        counts |= {"known to the base model": len(known), "kept": len(rows)}
    if stage.answers == "shuffled":
        with under_key(f"{key}.answers"):
            rows = shuffle_answers(facts_in(rows), recipe.own_rows_seed(stage))
        counts |= {"with another's answer": len(rows)}
    return StageData(list(rows), held_out, [], [loaded.origin.to_dict()], counts, known)


def _with_mixing(
    recipe: Recipe,
    stage: Stage,
    key: str,
    data: StageData,
    every: Sequence[StageData],
    texts: Sequence[Text],
    data_dir: Path | None,
    say: Callable[[str], None],
) -> StageData:
    """A stage with its mixing. What another stage mixes in may be mixed in again, as random words and passages are.

    Args:
        every: all stages, later ones too, without their mixing.
    """
    mixing: list[list[AnyRow]] = []
    origins = list(data.origins)
    for place, part in enumerate(stage.mixing, 1):
        mixed = [
            row
            for other, rows in zip(stage.mixing, mixing, strict=False)  # those before it
            if goes_around(part, other)
            for row in rows
        ]
        own = [
            row
            for one, rows in zip((*recipe.stages, *recipe.later), every, strict=True)
            if goes_around(part, one)
            for row in (*rows.rows, *rows.held_out)
        ]
        with under_key(f"{key}.mixing.{place}.source"):
            rows, origin = mixing_rows(
                recipe, stage, part, len(data.rows), data_dir, say, without=own + mixed, texts=texts
            )
        mixing.append(rows)
        origins.append(origin)
    return replace(data, mixing=mixing, origins=origins)


def _loaded(
    recipe: Recipe,
    stage: Stage,
    wanted: int | None,
    earlier: Sequence[Factoid],
    before: Sequence[AnyRow],
    texts: Sequence[Text],
    data_dir: Path | None,
) -> Loaded:
    """A stage's rows. Left out, and others drawn for them, are tasks whose prompt alone fills a row, texts that are
    evaluated on, and what an earlier stage has of the same place."""
    load_rows = partial(
        load,
        stage.data,
        stage.kind,
        seed=recipe.own_rows_seed(stage),
        data_dir=data_dir,
        without=earlier if stage.kind == "factoids" else (),
        words=stage.words,
        base=recipe.base,
    )
    if stage.kind == "factoids":
        return load_rows(n=wanted)
    others = partial(apart_from, without=before, texts=texts)
    of_texts = stage.kind == "texts"
    loaded, rows = drawn(
        load_rows, wanted, lambda some: others(some) if of_texts else [*fitting(recipe, others(some))]
    )
    counts = dict(loaded.counts)
    free = others(loaded.rows)
    if of_texts or before:
        rule = "evaluated on, or of an earlier stage" if before else "evaluated on"
        counts[rule] = len(loaded.rows) - len(free)
    if not of_texts:
        counts["prompt too long"] = len(free) - len(rows)
    if len(rows) < (wanted or 1):
        rule, mend = (
            ("are not evaluated on (evaluate.texts), nor an earlier stage's", "lower n, held_out or texts_n")
            if of_texts or len(rows) == len(free)
            else (f"have a prompt of fewer than {recipe.max_length} tokens", "raise max_length or lower n")
        )
        raise MemprobeError(
            f"{stage.data}: {len(rows)} of its {len(loaded.rows)} rows {rule}, and {wanted or 1} are wanted; {mend}"
        )
    counts["kept"] = len(rows)
    return replace(loaded, rows=rows, origin=_origin_of(loaded, rows), counts=counts)


def _origin_of(loaded: Loaded, rows: Sequence[AnyRow]) -> Origin:
    """Where some of the rows that were loaded come from."""
    return replace(loaded.origin, n=len(rows), hash=rows_hash(rows))


def _split(rows: Sequence[AnyRow], held_out: int, seed: int, name: str) -> tuple[list[AnyRow], list[AnyRow]]:
    """All but the last rows of a seeded order, and those."""
    if len(rows) <= held_out:
        raise MemprobeError(f"{name}: has {len(rows)} rows, so {held_out} cannot be held out; lower held_out")
    order = subset(rows, len(rows), seed, name)
    return order[:-held_out], order[-held_out:]


# ---------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True, slots=True)
class StageParts:
    """What a stage's schedule is made of.

    Attributes:
        own: its own rows; with the arm ``joint`` those of every stage.
        others: mixing and replay, which are trained beside them.
        matched: mixing that is not trained, and whose length the stage has.
        replayed: ids of the rows that replay draws from.
    """

    own: Part
    others: list[Part]
    matched: list[Part]
    replayed: list[str]


def parts_of(
    recipe: Recipe, prepared: Prepared, number: int, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> StageParts:
    """The parts of a stage, counted from 1."""
    stage, data = recipe.stages[number - 1], prepared.stages[number - 1]
    rows = [row for one in prepared.stages for row in one.rows] if recipe.joint else data.rows
    make = ExampleMaker(recipe.template, tokenizer, max_length)
    with under_key(f"stages.{number}.data"):
        own = Part([make(row) for row in rows], len(rows))
    mixing = []
    for place, (part, texts) in enumerate(zip(stage.mixing, data.mixing, strict=True), 1):
        with under_key(f"stages.{number}.mixing.{place}"):
            examples = [make(text, own=False) for text in texts]
        mixing.append(Part(examples, wanted_rows(part.ratio, len(data.rows)), part.redraw))
    replayed, wanted = _replay(recipe, prepared, number)
    replay = []
    if stage.replay:
        replay = [Part([make(row, own=False) for row in replayed], wanted, stage.replay.redraw)]
    trained, matched = ([], mixing) if stage.match else (mixing, [])
    return StageParts(own, [*trained, *replay], matched, [row.id for row in replayed])


def _replay(recipe: Recipe, prepared: Prepared, number: int) -> tuple[list[AnyRow], int]:
    """The rows that a stage's replay draws from, and how many it takes in an epoch; none without replay."""
    replay = recipe.stages[number - 1].replay
    if not replay:
        return [], 0
    earlier = prepared.before(number, recipe.rows_seed, "replay")
    wanted = max(1, wanted_rows(replay.ratio, len(earlier)))
    return (earlier if replay.redraw else earlier[:wanted]), wanted
