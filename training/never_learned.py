"""Facts that a checkpoint was never shown: what learning again is held against."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memprobe.checkpoints import Checkpoint
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.files import read_valid
from memprobe.manifests import Manifest
from memprobe.sources import load as load_rows
from memprobe.sources import load_factoids
from training.data import PREPARED
from training.drawing import mixes_facts, mixing_rows
from training.prepared import PreparedFile, facts_in
from training.recipe import parse_recipe


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
    """Facts of which no stage that made the checkpoint was shown the prompt.

    Args:
        first: stage 1's.
        n: how many are made, at most.
        source: of facts of the same kind, all of which are taken; ``None`` makes keys and values.

    Raises:
        MemprobeError: none can be made, or what stages were shown is not known (:func:`prompts_taught`).
    """
    taught = prompts_taught(checkpoint, manifest, data_dir)
    if source is not None:
        loaded = load_rows(source, "factoids", data_dir=data_dir, seed=seed)
        facts = [fact for fact in loaded.factoids if fact.prompt not in taught]
        for line in loaded.left_out():
            say(f"never-learned: left out {line}")
        if known := len(loaded.rows) - len(facts):
            say(f"never-learned: left out {known:,} of {len(loaded.rows):,} facts of {source}: taught before")
        return facts
    if {fact.source for fact in first} != {"kvr"}:
        raise MemprobeError(
            "--never-learned: name facts of the same kind that no stage taught (only KVR's can be made)"
        )
    from memprobe.sources.kvr import generate_kvr

    # No prompt occurs twice, so that those taught take away as many as they are at most.
    made = generate_kvr(n + len(taught), seed=seed, split="test")
    return [fact for fact in made if fact.prompt not in taught][:n]


def prompts_taught(checkpoint: Checkpoint, manifest: Manifest, data_dir: Path | None) -> set[str]:
    """The prompts of every row that a checkpoint's stages trained on, mixing rows too.

    Rows that were mixed in are those that its run keeps. Away from the run, facts among them are drawn again.

    Raises:
        MemprobeError: a stage's rows are gone, or facts that were mixed in cannot be drawn again as they were.
    """
    taught: set[str] = set()
    stages = manifest.data["stages"]
    for entry in stages:
        file = manifest.stage_factoids(entry["index"])
        lines = file.read_text(encoding="utf-8").split("\n")
        taught |= {str(json.loads(line).get("prompt")) for line in lines if line}
    # A stage lies in its run's directory, and a checkpoint along the way two folders deeper.
    for folder in checkpoint.path.resolve().parents[:3:2]:
        if (folder / PREPARED).exists():
            kept = read_valid(folder / PREPARED, PreparedFile)["stages"]
            if [_origins(stage) for stage in kept][: len(stages)] == [_origins(entry) for entry in stages]:
                mixed = [row for stage in kept for rows in stage["mixing"] for row in rows]
                return taught | {str(row.get("prompt")) for row in mixed}
    return taught | {fact.prompt for fact in _mixed_facts(manifest, data_dir)}


def _mixed_facts(manifest: Manifest, data_dir: Path | None) -> list[Factoid]:
    """The facts that were mixed into stages, drawn again as :mod:`training.data` draws them."""
    recipe = parse_recipe(manifest.data["recipe"], str(manifest.path))
    stages = list(zip(recipe.stages, manifest.data["stages"], strict=False))
    own = [
        fact
        for stage, entry in stages
        if stage.kind == "factoids"
        for fact in load_factoids(str(manifest.stage_factoids(entry["index"])))
    ]
    mixed: list[Factoid] = []
    for stage, entry in stages:
        without = list(own)  # and what is mixed into the stage already
        for place, part in enumerate(stage.mixing, 1):
            if not mixes_facts(part):
                continue
            rows, origin = mixing_rows(recipe, stage, part, entry["n"], data_dir, without=without)
            if origin.get("hash") != dict(enumerate(_origins(entry))).get(place):
                raise MemprobeError(
                    f"{manifest.path}: stage {entry['index']}-{stage.name} mixed in other facts of {part.source} than "
                    f"are drawn now; give the checkpoint in its run's directory, beside {PREPARED}, or --data-dir as "
                    "it was then"
                )
            without += facts_in(rows)
        mixed += without[len(own) :]
    return mixed


def _origins(entry: Mapping[str, Any]) -> list[str | None]:
    """By their hashes, a stage's own rows and those of each of its mixing sources, as they were drawn."""
    return [one.get("hash") for one in entry.get("origins") or []]
