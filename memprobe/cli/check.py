"""``memprobe check``: can this checkpoint be read correctly?"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from memprobe.cli import options
from memprobe.cli.app import app
from memprobe.cli.terminal import echo, echo_json
from memprobe.errors import MemprobeError
from memprobe.load_options import LoadOptions


@app.command()
@options.loads_models
def check(
    ckpt: options.Checkpoints,
    lens: options.Lenses = None,
    *,
    loading: LoadOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Says whether checkpoints can be read correctly, and which hold the same weights.

    A checkpoint passes when the lens at full depth equals the model's own logits on a real prompt, and where lenses are
    named, when each of them fits it. Lens and model may share a wrong forward pass, so the loss on a fixed English text
    (nats a token) and exact match on 20 facts that most models know are shown beside it.

    Example: `memprobe check --ckpt smollm2-135m --ckpt runs/remix`
    """
    from memprobe.checkpoints import resolve_all
    from memprobe.identity import identity_of
    from memprobe.lens_set import LensSet
    from memprobe.lineage import same_weights
    from memprobe.models import load
    from memprobe.quantised import notes_on_company
    from memprobe.soundness import measure

    entries, known_by = [], {}
    failures = 0
    checkpoints = resolve_all(ckpt, loading)
    lenses = LensSet.of(lens or (), checkpoints=checkpoints, loading=loading)
    for checkpoint in checkpoints:
        entry: dict[str, object] = {"label": checkpoint.label, "spec": checkpoint.spec}
        try:
            model = load(checkpoint, **vars(loading))
            read_by = lenses.build(model, partial(load, **vars(loading)))
        except MemprobeError as error:
            entries.append(entry | {"ok": False, "error": str(error)})
            failures += 1
            continue
        sound = measure(model)
        entry |= {
            "ok": True,
            "architecture": type(model.model).__name__,
            "depths": model.n_layers + 1,
            "d_model": model.d_model,
            "vocabulary": model.vocab_size,
            "context": model.max_length,
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "largest_difference": model.difference,
            "loss": round(sound.loss, 3),
            "exact_match": f"{sound.exact_match} of {sound.facts} known facts",
            "fingerprint": model.fingerprint,
            "note": "; ".join(filter(None, (checkpoint.note, *notes_on_company(model.moved)))) or None,
            "lenses": {one.name: list(one.notes) for one in read_by} if lens else None,
            "manifest": None if checkpoint.manifest is None else str(checkpoint.manifest.path),
        }
        entries.append(entry)
        known_by[checkpoint.label] = identity_of(model)
    groups = same_weights(known_by.items())
    if as_json:
        echo_json({"schema": 1, "checkpoints": entries, "same_weights": groups})
    else:
        _print(entries, groups)
    if failures:
        raise MemprobeError(f"{failures} of {len(entries)} checkpoints cannot be read")


def _print(entries: list[dict[str, object]], groups: list[list[str]]) -> None:
    for entry in entries:
        echo(entry["label"])
        for key, value in entry.items():
            if key != "label" and value is not None:
                name = "can be read" if key == "ok" else key.replace("_", " ")
                if key == "depths":  # counted from the embeddings on: the last one is the model's own readout
                    value = f"0 to {int(str(value)) - 1}"
                text = {True: "yes", False: "NO"}[value] if isinstance(value, bool) else value
                if isinstance(value, dict):  # what is to be said of each lens
                    text = "; ".join(
                        [", ".join(value), *(note for notes in value.values() for note in notes)]
                    )
                echo(f"  {name:20}{text}")
    echo(conclusion(entries, groups))


def conclusion(entries: list[dict[str, object]], groups: list[list[str]]) -> str:
    """What a check comes to, in a sentence or two."""
    from memprobe import wording
    from memprobe.wording import listed

    readable = [str(entry["label"]) for entry in entries if entry["ok"]]
    broken = [str(entry["label"]) for entry in entries if not entry["ok"]]
    sentences = []
    if readable:
        who = (
            "The checkpoint" if len(entries) == 1 else "Every checkpoint" if not broken else listed(readable)
        )
        sentences.append(f"{who} can be read: at full depth the lens gives the model's own logits.")
    if broken:
        sentences.append(f"{listed(broken)} cannot be read.")
    if groups:
        sentences.append(wording.same_weights(groups))
    return " ".join(sentences)
