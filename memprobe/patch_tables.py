"""A directory of patches → its tables, once, for terminal, JSON, page, figures and notebooks.

by_depth                  share moved by every patch or graft, with controls
first_depth               from which depth half is moved          first_depth_differences   between pairs
fates                     the same by what became of them         grafts                    the block that moves most
arms, arm_differences     the same over training seeds            arm_curves                share moved, over seeds
erasure                   erasure scores beside a reference  errors                    facts without patches, and why
"""

from __future__ import annotations

import polars as pl

from memprobe.lineage import lineage
from memprobe.patches import Patches
from memprobe.statistics import patch_arms, patches
from memprobe.statistics.patch_arms import Made

NAMES = (
    "by_depth",
    "first_depth",
    "first_depth_differences",
    "fates",
    "grafts",
    "arms",
    "arm_differences",
    "arm_curves",
    "erasure",
    "errors",
)


def tables_of(
    opened: Patches,
    *,
    facts: str = "all",
    threshold: float = patches.GAP,
    reference: str | None = None,
    draws: int = patches.DRAWS,
) -> dict[str, pl.DataFrame]:
    """Every table by its name in :data:`NAMES`; those of which there is nothing are empty.

    Args:
        facts: which facts the tables without a column for it are of; see :data:`memprobe.statistics.patches.FACTS`.
        threshold: nats by which source and target must differ on a fact.
        reference: of the erasure score, the label of the checkpoint that never had the facts.
        draws: of the bootstrap.

    Raises:
        MemprobeError: unknown ``facts``, or a threshold that is not positive.
    """
    table, made = opened.table, made_of(opened)
    options = {"facts": facts, "threshold": threshold}
    first = patches.first_depths(table, **options, n_layers=opened.layers)
    arms, differences = patch_arms.by_arm(table, made, threshold=threshold, n_layers=opened.layers)
    erasure = pl.DataFrame() if reference is None else patch_arms.erasures(table, reference, draws=draws)
    return {
        "by_depth": patches.by_depth(table, **options, draws=draws),
        "first_depth": patches.first_depth_summary(first, draws=draws),
        "first_depth_differences": patches.first_depth_differences(first, draws=draws),
        "fates": patch_arms.by_fate(table, threshold=threshold, n_layers=opened.layers, draws=draws),
        "grafts": patches.graft_effects(table, **options, draws=draws),
        "arms": arms,
        "arm_differences": differences,
        "arm_curves": patch_arms.curves_by_arm(table, made, **options),
        "erasure": erasure,
        "errors": opened.errors,
    }


def made_of(opened: Patches) -> dict[tuple[str, str], Made]:
    """How the targets were made, by (source, target) of the table; those without a manifest are not among them."""
    entries = [entry for entry in opened.run["pairs"].values() if entry["complete"]]
    sides = {
        entry[side]: {"fingerprint": entry[f"{side}_fingerprint"], "manifest": entry.get(f"{side}_manifest")}
        for entry in entries
        for side in ("source", "target")
    }
    made = {}
    for entry in entries:
        if manifest := entry.get("target_manifest"):
            before, rows = lineage(sides, entry["target"])
            given = _stage(entry.get("source_manifest")) or entry["source"]
            made[entry["source"], entry["into"]] = Made(
                manifest["arm"],
                str(manifest["seed"]),
                f"{given} into {_stage(manifest)}",
                before,
                rows,
                manifest.get("recipe_mark"),
            )
    return made


def _stage(manifest: dict | None) -> str:
    return f"{manifest['stage']}-{manifest['stage_name']}" if manifest else ""
