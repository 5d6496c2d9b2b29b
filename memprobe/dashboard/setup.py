"""What was run, in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from memprobe.dashboard import explorer
from memprobe.dashboard.patches import TITLE
from memprobe.dashboard.sets import Set
from memprobe.probes import RUN, Probe
from memprobe.readings import Readings
from memprobe.records import POSITION
from memprobe.statistics.vocabulary import INTERVALS
from memprobe.studies import Study


def headings(study: Study, sets: Sequence[Set]) -> tuple[str, str]:
    """The title and the subtitle of the page."""
    # One checkpoint read through two lenses stands in two sets.
    members = [one for each in sets for one in each.readings.members]
    labels = [label for label, _ in dict.fromkeys((one.label, one.entry["fingerprint"]) for one in members)]
    if not sets:
        count = len(study.runs)
        named = study.runs[0].name if count == 1 else f"{count} training runs"
        if study.runs:
            return f"Training: {named}", ""
        if study.patches:
            return TITLE, ""
        if study.outcomes and not study.comparisons:
            return "Which facts are given", ""
        return ("Comparisons" if study.comparisons else "What a study of arms found"), ""
    title = labels[0] if len(labels) == 1 else f"{len(labels)} checkpoints"
    parts = []
    asked = len({one.readings.run_json["factoids"]["hash"] for one in sets})
    lenses = len({(one.readings.run_json["lens"], one.readings.run_json["readout"]) for one in sets})
    if asked > 1:
        parts.append(f"{asked} sets of facts")
    if lenses > 1:
        parts.append(f"{lenses} lenses")
    if study.runs:
        parts.append(f"{len(study.runs)} training run{'s' * (len(study.runs) > 1)}")
    if study.comparisons:
        parts.append(f"{len(study.comparisons)} comparison{'s' * (len(study.comparisons) > 1)}")
    return f"Where facts surface in {title}", " · ".join(parts)


def asked_how(one: Set) -> str:
    """The line under a set of checkpoints: what was asked, and how."""
    readings = one.readings
    run = readings.run_json
    errors = sum(readings.rows(label, "outcomes", ("error",))["error"].count() for label in readings.labels)
    parts = [
        f"{len(readings.asked):,} facts from {run['factoids'].get('source', 'a file')}",
        f"{run['lens'].capitalize()} Lens",
        "each checkpoint’s own readout" if run["readout"] == "own" else f"read out by {run['readout']}",
        f"template {run['template']}",
    ]
    if errors:
        parts.append(f"{errors:,} left out with an error")
    if one.waiting:
        parts.append(f"no records yet of {', '.join(one.waiting)}")
    return " · ".join([*parts, *(note.rstrip(".") for note in readings.notes)])


def what_was_run(readings: Readings) -> list[tuple[str, str]]:
    """Name and value of everything that the numbers depend on."""
    run = readings.run_json
    facts = run["factoids"]
    versions = {"memprobe": run["memprobe"]} | run["versions"]
    probes = {member.probe.path: member.probe for member in readings.members}
    dates = [datetime.fromtimestamp((path / RUN).stat().st_mtime) for path in probes]
    intervals = [text for kind, text in INTERVALS.items() if kind != "none"]
    return [
        ("Probed", f"{max(dates):%d %B %Y, %H:%M}"),
        ("Again", "; ".join(_command(probe) for probe in probes.values())),
        ("Factoids", f"{facts.get('source', '')}, {facts['n']:,}, sha256 {facts['hash']}"),
        ("Template", run["template"]),
        ("Tokenisation", run["tokenisation"]),
        ("Lens", run["lens"]),
        ("Readout", run["readout"]),
        ("Precision", f"model {run['dtype']}, readout float32"),
        ("Seed", str(run["seed"])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Intervals", f"95 %, {readings.draws:,} draws over facts; {', '.join(intervals)}"),
        ("On this page", f"log-probabilities in half precision, ranks up to {explorer.MAX_RANK:,}"),
    ]


def _command(probe: Probe) -> str:
    """What probes these checkpoints once more, as far as ``run.json`` tells."""
    run = probe.run
    specs = {label: entry.get("spec") for label, entry in run["checkpoints"].items()}
    if not all(specs.values()):
        return "models in memory, by memprobe.probe or a callback"
    parts = ["memprobe", "layers"]
    for label, spec in specs.items():
        parts += ["--ckpt", spec if label == spec else f"{label}={spec}"]
    parts += [
        "--factoids",
        _source_of(run.get("origin") or run["factoids"]),
        "--n",
        str(run["factoids"]["n"]),
    ]
    parts += ["--template", run["template"]]
    if run["dtype"] != "float32":
        parts += ["--dtype", run["dtype"]]
    entries = run["checkpoints"].values()
    if tokenizer := next((one for entry in entries if (one := entry.get("tokenizer_from"))), None):
        parts += ["--tokenizer", tokenizer]
    if probe.lenses != ["logit"]:
        parts += [text for name, entry in run["lenses"].items() for text in ("--lens", _lens(name, entry))]
    if probe.positions != [POSITION]:
        parts += ["--positions", ",".join(probe.positions)]
    for name, one in (run.get("intrusions") or {}).items():
        parts += ["--intrusion", f"{name}={_source_of(one)}"]
    if any("attributions" in (entry.get("tables") or {}) for entry in entries):
        parts += ["--attributions"]
    for entry in entries:
        if kept := (entry.get("residuals") or {}).get("depths"):
            parts += [
                "--keep-residuals",
                ",".join(map(str, kept)) if len(kept) <= entry["n_layers"] else "all",
            ]
            break
    parts += ["-k", str(run["k"]), "--token", run["token"], "--seed", str(run["seed"])]
    return shlex.join(parts)


def _lens(name: str, entry: Mapping[str, Any]) -> str:
    """How a lens is asked for; ``PATH`` where a file is read, for nothing says which it was."""
    kind, at = entry["kind"], "" if entry["readout"] == "own" else f"@{entry['readout']}"
    asked = f"{kind}{at}" if kind == "logit" else f"{kind}=PATH{at}"
    return asked if name == f"{kind}{at}" else f"{name}={asked}"


def _source_of(origin: Mapping[str, Any]) -> str:
    """What is asked for where facts come from; ``FILE`` where nothing says which file it was."""
    source = str(origin.get("source") or "file")
    return str(origin.get("location") or "FILE") if source == "file" else source


def checkpoint_rows(readings: Readings) -> list[list[str]]:
    """A header and a row for each checkpoint."""
    rows = [["Checkpoint", "Spec", "Fingerprint", "Layers", "Width", "Vocabulary", "Trained as", "Notes"]]
    for member in readings.members:
        label, entry, manifest = member.label, member.entry, member.manifest
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
                "; ".join(note for note in [entry.get("note"), *entry.get("notes", [])] if note),
            ]
        )
    return rows
