"""From which checkpoints and rows a checkpoint was made, as manifests say: what two runs have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from memprobe.recipes import mark_of_settings
from memprobe.sameness import same_model
from memprobe.stages import stage_number

if TYPE_CHECKING:
    from memprobe.manifests import Manifest


def origin(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Of a manifest (``memprobe.json``), what :func:`lineage` asks: the checkpoint before, and each stage's rows."""
    parent = manifest.get("parent") or {}
    stages = [{key: stage[key] for key in ("index", "hash")} for stage in manifest.get("stages") or []]
    return {"parent": {"fingerprint": parent.get("fingerprint")} if parent else None, "stages": stages}


def trained_as(manifest: Manifest, *more: str) -> dict[str, Any]:
    """Of a checkpoint's manifest, what tables of a probe or of patches say of its training.

    Args:
        more: further attributes of the manifest.
    """
    named = {key: getattr(manifest, key) for key in ("arm", "seed", "stage", "stage_name", "steps", *more)}
    recipe, base = manifest.data.get("recipe"), (manifest.data.get("base") or {}).get("fingerprint")
    mark = mark_of_settings(recipe, manifest.stage, base) if isinstance(recipe, Mapping) else None
    of = {
        "run": manifest.data.get("run"),
        "recipe_mark": mark,
        "base": {"fingerprint": base} if base else None,
    }
    return named | of | origin(manifest.data)


def base_named(manifest: Mapping[str, Any]) -> str | None:
    """Fingerprint of the base model that a probed checkpoint's manifest names; ``None`` where nothing says it.

    Older probes hold the checkpoint before alone, which of a first stage is the base model.
    """
    first = stage_number(str(manifest.get("stage"))) == 1
    said = manifest.get("base") or (first and manifest.get("parent")) or {}
    return said.get("fingerprint")


def lineage(entries: Mapping[str, Mapping[str, Any]], label: str) -> tuple[tuple[str, ...], str]:
    """Ancestors and rows of a probed checkpoint.

    Args:
        entries: ``checkpoints`` of a probe's ``run.json``, each with its fingerprint and manifest.
        label: of the checkpoint.

    Returns:
        Fingerprints of the checkpoints it was trained from, as far as these manifests go back, with the base model at
        the end where its own names one, and the hash of its first stage's rows; both empty without a manifest.
    """
    made = {str(entry.get("fingerprint")): entry.get("manifest") or {} for entry in entries.values()}
    manifest = entries[label].get("manifest") or {}
    rows = str((manifest.get("stages") or [{}])[0].get("hash") or "")
    before: list[str] = []
    while parent := str((manifest.get("parent") or {}).get("fingerprint") or ""):
        if parent in before:
            break  # manifests that name each other in a ring say nothing further
        before.append(parent)
        manifest = made.get(parent, {})
    base = base_named(entries[label].get("manifest") or {})
    return tuple(before if base is None or base in before else [*before, base]), rows


def same_weights(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Labels of checkpoints that hold the same weights in the same model, in groups of two and more.

    Args:
        entries: (label, what it is known by) of each checkpoint; see :func:`memprobe.identity.identity_of`.
    """
    groups: list[tuple[Mapping[str, Any], list[str]]] = []
    for label, entry in entries:
        alike = next((labels for first, labels in groups if same_model(first, entry)), None)
        if alike is None:
            groups.append((entry, [label]))
        else:
            alike.append(label)
    return [labels for _, labels in groups if len(labels) > 1]
