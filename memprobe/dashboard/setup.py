"""What was run, in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memprobe.dashboard import explorer
from memprobe.dashboard.questions import Asked
from memprobe.dashboard.shown import DRAWS
from memprobe.studies import Study


def headings(study: Study, groups: Sequence[Asked]) -> tuple[str, str]:
    """The title and the subtitle of the page."""
    labels = [label for group in groups for label in group.labels]
    if not groups:
        count = len(study.runs)
        named = study.runs[0].name if count == 1 else f"{count} training runs"
        return (f"Training: {named}" if study.runs else "Comparisons", "")
    title = labels[0] if len(labels) == 1 else f"{len(labels)} checkpoints"
    parts = []
    if len(groups) > 1:
        parts.append(f"{len(groups)} sets of factoids")
    if study.runs:
        parts.append(f"{len(study.runs)} training run{'s' * (len(study.runs) > 1)}")
    if study.comparisons:
        parts.append(f"{len(study.comparisons)} comparison{'s' * (len(study.comparisons) > 1)}")
    return f"Where facts surface in {title}", " · ".join(parts)


def asked_how(asked: Asked) -> str:
    """The line under a set of checkpoints: what was asked, and how."""
    run = asked.run
    n, errors = len(asked.factoids), asked.outcomes["error"].is_not_null().sum()
    parts = [
        f"{n:,} factoids from {run['factoids'].get('source', 'a file')}",
        f"{run['lens'].capitalize()} Lens",
        "each checkpoint’s own readout" if run["readout"] == "own" else f"read out by {run['readout']}",
        f"template {run['template']}",
    ]
    if errors:
        parts.append(f"{errors:,} left out with an error")
    probes = {id(probe): probe for probe, _ in asked.sources.values()}.values()
    waiting = [
        label for probe in probes for label in probe.checkpoints if (probe.path, label) not in _present(asked)
    ]
    if waiting:
        parts.append(f"no records yet of {', '.join(waiting)}")
    return " · ".join(parts)


def _present(asked: Asked) -> set[tuple[Path, str]]:
    return {(probe.path, name) for probe, name in asked.sources.values()}


def what_was_run(asked: Asked) -> list[tuple[str, str]]:
    """Name and value of everything that the numbers depend on."""
    run = asked.run
    facts = run["factoids"]
    versions = {"memprobe": run["memprobe"]} | run["versions"]
    return [
        ("Factoids", f"{facts.get('source', '')}, {facts['n']:,}, sha256 {facts['hash']}"),
        ("Template", run["template"]),
        ("Tokenisation", run["tokenisation"]),
        ("Lens", run["lens"]),
        ("Readout", run["readout"]),
        ("Precision", f"model {run['dtype']}, readout float32"),
        ("Seed", str(run["seed"])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Intervals", f"95 %; Wilson for shares, else {DRAWS:,} bootstrap draws over factoids"),
        ("On this page", f"log-probabilities in half precision, ranks up to {explorer.MAX_RANK:,}"),
    ]


def checkpoint_rows(asked: Asked) -> list[list[str]]:
    """A header and a row for each checkpoint."""
    rows = [["Checkpoint", "Spec", "Fingerprint", "Layers", "Width", "Vocabulary", "Trained as"]]
    for label in asked.labels:
        entry = asked.entry(label)
        manifest = entry.get("manifest") or {}
        trained = ", ".join(
            f"{key} {manifest[key]}" for key in ("arm", "stage", "seed", "steps") if key in manifest
        )
        complete = "" if entry.get("complete", True) else " (unfinished)"
        rows.append(
            [
                label + complete,
                str(entry.get("spec") or "in memory"),
                str(entry["fingerprint"])[:16],
                str(entry["n_layers"]),
                str(entry.get("d_model", "")),
                f"{entry['vocab']:,}" if "vocab" in entry else "",
                trained,
            ]
        )
    return rows
