"""Facts that a checkpoint was never shown: what learning again is held against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memprobe.checkpoints import Checkpoint
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.files import read_valid
from memprobe.manifests import Manifest
from memprobe.sources import load as load_rows
from memprobe.sources import subset
from memprobe.sources.cleaning import as_asked, without_overlap
from memprobe.sources.kinds import AnyRow
from memprobe.sources.named import named_file
from training.data import PREPARED
from training.drawing import evaluated_texts, goes_around, mixes_facts, mixing_rows
from training.prepared import PreparedFile, facts_in, from_json
from training.recipe import parse_recipe
from training.recipe_tables import Mixing


@dataclass(frozen=True)
class Taught:
    """What stages were shown.

    Attributes:
        prompts: of every row, as :func:`memprobe.sources.cleaning.as_asked` writes them.
        facts: those rows that are facts.
    """

    prompts: set[str]
    facts: list[Factoid]

    @classmethod
    def by(cls, rows: Iterable[AnyRow]) -> Taught:
        """What some rows show."""
        rows = list(rows)
        return cls({as_asked(row.prompt) for row in rows}, facts_in(rows))

    def leaves(self, facts: Sequence[Factoid]) -> list[Factoid]:
        """Those of some facts that none of the rows asks for, be it in other words."""
        return [
            fact
            for fact in without_overlap(facts, self.facts, Counter())
            if as_asked(fact.prompt) not in self.prompts
        ]


def never_learned(
    checkpoint: Checkpoint,
    manifest: Manifest,
    first: Sequence[Factoid],
    n: int,
    source: str | None,
    data_dir: Path | None,
    seed: int,
    say: Callable[[str], None],
) -> list[Factoid]:
    """Facts that no stage which made the checkpoint was shown: neither the prompt, nor the relation of the subject.

    Args:
        first: stage 1's.
        n: how many are made, at most.
        source: of facts of the same kind, all of which are taken, in an order that the seed draws; ``None`` makes keys
            and values.

    Raises:
        MemprobeError: none can be made, or what stages were shown is not known (:func:`taught_to`).
    """
    taught = taught_to(checkpoint, manifest, data_dir)
    if source is not None:
        loaded = load_rows(source, "factoids", data_dir=data_dir, seed=seed)
        facts = taught.leaves(loaded.factoids)
        for line in loaded.left_out():
            say(f"never-learned: left out {line}")
        if known := len(loaded.rows) - len(facts):
            say(f"never-learned: left out {known:,} of {len(loaded.rows):,} facts of {source}: taught before")
        # A file has them by relation, or the best known first: the first ones would be of another kind than the lost.
        return facts_in(subset(facts, len(facts), seed, source)) if facts else []
    if {fact.source for fact in first} != {"kvr"}:
        raise MemprobeError(
            "--never-learned: name facts of the same kind that no stage taught (only KVR's can be made)"
        )
    from memprobe.sources.kvr import generate_kvr

    # No prompt occurs twice, so that those taught take away as many as they are at most.
    return taught.leaves(generate_kvr(n + len(taught.prompts), seed=seed, split="test"))[:n]


def taught_to(checkpoint: Checkpoint, manifest: Manifest, data_dir: Path | None) -> Taught:
    """Every row that a checkpoint's stages trained on, mixing rows too.

    Rows that were mixed in are those that its run keeps. Away from the run, those that may ask for a fact are drawn
    again: facts, and rows of files and of the hub.

    Raises:
        MemprobeError: a stage's rows are gone, or rows that were mixed in cannot be drawn again as they were.
    """
    stages = manifest.data["stages"]
    own = [
        load_rows(str(manifest.stage_factoids(entry["index"])), entry.get("kind", "factoids")).rows
        for entry in stages
    ]
    rows = [row for some in own for row in some]
    # A stage lies in its run's directory, and a checkpoint along the way two folders deeper.
    for folder in checkpoint.path.resolve().parents[:3:2]:
        if (folder / PREPARED).exists():
            kept = read_valid(folder / PREPARED, PreparedFile)
            mixing = kept["stages"][: len(stages)]
            if [_origins(stage) for stage in mixing] == [_origins(entry) for entry in stages]:
                prepared = from_json(kept, folder / PREPARED).stages[: len(stages)]
                return Taught.by(
                    [*rows, *(row for stage in prepared for some in stage.mixing for row in some)]
                )
    return Taught.by([*rows, *_mixed_rows(manifest, own, data_dir)])


def _mixed_rows(manifest: Manifest, own: Sequence[Sequence[AnyRow]], data_dir: Path | None) -> list[AnyRow]:
    """What was mixed into stages and may ask for a fact, drawn again as :mod:`training.data` draws it.

    Args:
        own: each stage's own rows.
    """
    recipe = parse_recipe(manifest.data["recipe"], str(manifest.path))
    stages = list(zip(recipe.stages, manifest.data["stages"], own, strict=False))
    advice = f"give the checkpoint in its run's directory, beside {PREPARED}, or --data-dir as it was then"
    mixed: list[AnyRow] = []
    for stage, entry, _ in stages:
        before: list[AnyRow] = []  # what is mixed into the stage already
        for place, part in enumerate(stage.mixing, 1):
            if not _may_ask(part):
                continue
            around = [row for other, _, rows in stages if goes_around(part, other) for row in rows]
            facts = mixes_facts(part)
            where = f"{manifest.path}: stage {entry['index']}-{stage.name}"
            try:
                texts = [] if facts else evaluated_texts(recipe, data_dir, lambda _: None)
                rows, origin = mixing_rows(
                    recipe, stage, part, entry["n"], data_dir, without=around + before, texts=texts
                )
            except MemprobeError as error:
                raise MemprobeError(
                    f"{where}: what it mixed in cannot be drawn again ({error}); {advice}"
                ) from error
            if origin.get("hash") != dict(enumerate(_origins(entry))).get(place):
                what = "facts" if facts else "rows"
                raise MemprobeError(
                    f"{where} mixed in other {what} of {part.source} than are drawn now; {advice}"
                )
            before += facts_in(rows)
            mixed += rows
    return mixed


def _may_ask(part: Mixing) -> bool:
    """Whether rows that are mixed in may ask for a fact: passages and made texts do not, and a named set of tasks holds
    none; a file or a set of the hub may hold whatever it likes."""
    return mixes_facts(part) or part.source.startswith("hub:") or named_file(part.source) is not None


def _origins(entry: Mapping[str, Any]) -> list[str | None]:
    """By their hashes, a stage's own rows and those of each of its mixing sources, as they were drawn."""
    return [one.get("hash") for one in entry.get("origins") or []]
