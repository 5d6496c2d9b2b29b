"""Rows beside the stages' own: what is mixed into a stage, and passages that are evaluated on and never trained on.

The passages are chosen before all else, so that every arm and every stage of a run is evaluated on the same ones; what
is trained on holds none of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.sources import Loaded, load, subset
from memprobe.sources.catalogue import DATASETS
from memprobe.sources.cleaning import as_asked, without_overlap
from memprobe.sources.generated import is_endless
from memprobe.sources.kinds import AnyRow, Task, Text, rows_hash
from memprobe.sources.named import named_file
from memprobe.sources.passages import COMPLETE, RECALL, shuffle_words
from memprobe.wording import count
from training.examples import ExampleMaker
from training.prepared import facts_in
from training.recipe import Recipe
from training.recipe_tables import Mixing, Stage
from training.settings import under_key

_OPENING, _RUN = 5, 8  # words by which a passage is known, and by which it is found in another


def evaluated_texts(recipe: Recipe, data_dir: Path | None, say: Callable[[str], None]) -> list[Text]:
    """The passages for perplexity.

    Raises:
        MemprobeError: their source is missing, or has fewer than are wanted.
    """
    source, wanted = recipe.evaluate.texts, recipe.evaluate.texts_n
    if source is None:
        return []
    with under_key("evaluate.texts"):
        loaded = load(
            source,
            None if _says_its_kind(source) else "texts",
            n=wanted if is_endless(source) else None,
            seed=recipe.rows_seed + 1,
            data_dir=data_dir,
            base=recipe.base,
        )
        for line in loaded.left_out():
            say(f"evaluate.texts: left out {line}")
        texts = [row for row in loaded.rows if isinstance(row, Text)]
        if len(texts) < wanted:
            raise MemprobeError(f"{source}: has {len(texts)} texts, and texts_n is {wanted}")
        return [row for row in subset(texts, wanted, recipe.rows_seed, source) if isinstance(row, Text)]


def without_texts(rows: Iterable[AnyRow], texts: Sequence[Text]) -> list[AnyRow]:
    """The rows that are none of some texts, and no second half of a passage among them."""
    openings = {_opening(text) for text in texts}
    passages = [" ".join(f"{text.prompt} {text.answer}".split()) for text in texts]

    def is_apart(row: AnyRow) -> bool:
        if not isinstance(row, Text):
            return True
        run = " ".join(
            row.answer.split()[:_RUN]
        )  # where its prompt is one sentence, the first half is not there
        return _opening(row) not in openings and not (
            row.prompt == RECALL and any(run in passage for passage in passages)
        )

    return [row for row in rows if is_apart(row)]


def _opening(text: Text) -> str:
    """A passage's first words, by which it is known however it is halved; all of a text with a prompt of its own."""
    halved = not text.prompt or text.prompt.startswith(COMPLETE)
    words = f"{text.prompt.removeprefix(COMPLETE)} {text.answer}".split()
    return " ".join(words[:_OPENING] if halved else words)


def drawn(
    draw: Callable[..., Loaded], n: int | None, apart: Callable[[Sequence[AnyRow]], list[AnyRow]]
) -> tuple[Loaded, list[AnyRow]]:
    """``n`` rows that are apart from others, or all (fewer, of all there are, where no more are); and what they are of.

    Args:
        draw: gives ``n`` rows, or all; more of them begin with the same.
        apart: those of some rows that may be taken, in order.
    """
    loaded = draw(n=n)
    rows = apart(loaded.rows)
    while n is not None and len(rows) < min(n, len(loaded.rows)):
        try:
            larger = draw(n=n + len(loaded.rows) - len(rows))
        except MemprobeError:  # there are no more
            loaded = draw(n=None)
            return loaded, apart(loaded.rows)
        if len(larger.rows) == len(loaded.rows):
            break
        loaded, rows = larger, apart(larger.rows)
    return loaded, rows


def apart_from(rows: Sequence[AnyRow], without: Sequence[AnyRow], texts: Sequence[Text]) -> list[AnyRow]:
    """The rows that are none of others, nor passages that are evaluated on: a fact or a task is the same where it asks
    the same, whatever its answer."""
    if facts := facts_in(rows):
        return [*without_overlap(facts, facts_in(without), Counter())]
    held = [row for row in without if isinstance(row, Text)]
    asked = {as_asked(row.prompt) for row in without if not isinstance(row, Text)}
    return without_texts((row for row in rows if as_asked(row.prompt) not in asked), [*texts, *held])


def fitting(recipe: Recipe, rows: Iterable[AnyRow]) -> list[Task]:
    """Tasks of which something is left to learn within the recipe's row length."""
    from memprobe.models import load_tokenizer

    make = ExampleMaker(recipe.template, load_tokenizer(resolve(recipe.base)), recipe.max_length)
    return [row for row in rows if isinstance(row, Task) and make.fits(row)]


def mixes_facts(part: Mixing) -> bool:
    """Whether what is mixed in are facts."""
    return part.kind == "factoids"


def goes_around(part: Mixing, other: Stage | Mixing) -> bool:
    """Whether what is mixed in goes around the rows of a stage, or of what the same stage mixes in before it: facts
    around all, as any may ask the same; texts and tasks around those that are read from the same place."""
    return mixes_facts(part) or same_place(
        part.source, other.data if isinstance(other, Stage) else other.source
    )


def same_place(source: str, other: str) -> bool:
    """Whether rows of two sources may be the same ones."""
    return _place(source) == _place(other)


def _place(source: str) -> str:
    """Where the rows of a source lie, whatever part of them is read and how: a file's name, or that of a set."""
    if (file := named_file(source)) is not None:
        return file.path.name
    if source.startswith("hub:"):
        return source.removeprefix("hub:").partition(":")[0].partition("@")[0]
    head = source.partition(":")[0]
    return DATASETS[head].splits[DATASETS[head].default_split].file or head if head in DATASETS else head


def mixing_rows(
    recipe: Recipe,
    stage: Stage,
    part: Mixing,
    n_own: int,
    data_dir: Path | None,
    say: Callable[[str], None] = lambda _: None,
    *,
    without: Sequence[AnyRow] = (),
    texts: Sequence[Text] = (),
) -> tuple[list[AnyRow], dict[str, Any]]:
    """The rows that mixing takes: one epoch's, or with ``redraw`` those that every epoch draws from.

    Args:
        without: rows that stages train on, which would be replayed, or learned before their turn, under the name of
            mixing, or that they hold out (:func:`goes_around`); a fact or a task is the same where it asks the same,
            whatever its answer.
        texts: passages that are evaluated on.

    Raises:
        MemprobeError: the source is missing, or has fewer rows that may be mixed in.
    """
    needed = wanted_rows(part.ratio, n_own)
    if not needed and part.ratio and n_own:
        raise MemprobeError(
            f"{part.source}: ratio {part.ratio:g} × {n_own} own rows is no row, so that nothing would be mixed in; "
            "raise the ratio, or mix in nothing"
        )
    if not needed:
        return [], {"source": part.source, "n": 0}
    generated = is_endless(part.source)
    n: int | None = needed * stage.epochs if part.redraw and generated else needed
    if part.redraw and not generated:
        n = None  # all there are
    draw = partial(
        load,
        part.source,
        None if _says_its_kind(part.source) else "texts",
        seed=recipe.rows_seed,
        data_dir=data_dir,
        words=part.words,
        prompt_form=part.prompt,
        base=recipe.base,
    )

    def apart(rows: Sequence[AnyRow]) -> list[AnyRow]:
        others = apart_from(rows, without, texts)
        tasks = [row for row in others if isinstance(row, Task)]
        return [*fitting(recipe, tasks)] if tasks else others

    loaded, rows = drawn(draw, n, apart)
    if part.order == "shuffled":
        shuffled = shuffle_words([row for row in rows if isinstance(row, Text)], recipe.rows_seed)
        rows = list[AnyRow](shuffled)
    for line in loaded.left_out():
        say(f"mixed into {stage.name}: left out {line}")
    if gone := len(loaded.rows) - len(rows):
        trained = "trained on by stages" if facts_in(loaded.rows) else "trained or evaluated on by stages"
        why = trained if without else "evaluated on"
        say(f"mixed into {stage.name}: left out {count(gone, 'row')} of {part.source}: {why}")
    if len(rows) < needed:
        raise MemprobeError(
            f"{part.source}: has {len(rows)} rows that no stage trains on or is evaluated on, and ratio "
            f"{part.ratio:g} × {n_own} own rows needs {needed}; lower the ratio or n"
        )
    origin = replace(loaded.origin, n=len(rows), hash=rows_hash(rows))
    return rows, origin.to_dict() | {"words": list(part.words), "prompt": part.prompt, "order": part.order}


def wanted_rows(ratio: float, n: int) -> int:
    """Ratio × n, rounded half up."""
    return math.floor(ratio * n + 0.5)


def _says_its_kind(source: str) -> bool:
    """Whether what a source holds is known by its name: the rows of a file, or of any set of the hub, may be of every
    kind, but for a file whose facts are chosen by their answers."""
    file = named_file(source)
    return not source.startswith("hub:") if file is None else file.answers is not None
