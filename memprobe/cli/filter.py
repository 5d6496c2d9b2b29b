"""``memprobe filter``: what a checkpoint already knows, and what it has yet to learn."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprobe.cli import options
from memprobe.cli.app import app, resumable
from memprobe.cli.asked import refuse_same_file, say_left_out
from memprobe.cli.progress import Bars
from memprobe.cli.terminal import echo
from memprobe.errors import MemprobeError
from memprobe.load_options import LoadOptions

if TYPE_CHECKING:
    from memprobe.filter import Answered
    from memprobe.models import LensModel
    from memprobe.sources import Loaded


_OF_A_SPLIT = ("checkpoint", "factoids", "template", "shots", "seed", "rule")
"""What ``OUT.run.json`` says of a split that makes it another one."""


class Rule(StrEnum):
    """What counts as known."""

    alias = "alias"
    strict = "strict"


@app.command("filter")
@options.loads_models
def filter_(
    ckpt: options.OneCheckpoint,
    factoids: Annotated[
        str, typer.Option(help="A source by name (memprobe sources) or a JSONL/CSV/Parquet file.")
    ],
    out: Annotated[
        Path, typer.Option(help="File for the factoids that the checkpoint does not know (JSONL).")
    ],
    known: Annotated[
        Path | None,
        typer.Option(help="Also write the factoids that it knows, to this file (JSONL).", show_default=False),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            help="Ask a random sample of this many factoids, drawn by --seed. [default: all]", min=1
        ),
    ] = None,
    shots: Annotated[
        int,
        typer.Option(help="Solved examples before each prompt, 0 to 5: they show what an answer looks like."),
    ] = 0,
    rule: Annotated[
        Rule,
        typer.Option(
            help="What is known: a match with the answer or an alias after SQuAD's normalisation, or a strict "
            "match with the answer alone. Both are recorded."
        ),
    ] = Rule.alias,
    template: Annotated[
        str | None,
        typer.Option(
            help="plain, tulu, chat, or a text with {prompt} and {answer}. [default: the checkpoint's own, else plain]",
            show_default=False,
        ),
    ] = None,
    data_dir: options.DataDir = None,
    on_bad_row: options.BadRows = options.BadRowChoice.fail,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens of one batch.", min=1)] = 4096,
    seed: Annotated[
        int, typer.Option(help="Seed of the sample and of the solved examples.", min=0, max=options.MAX_SEED)
    ] = 0,
    *,
    loading: LoadOptions,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Forget the answers that an interrupted run kept, once it is known that the facts can be asked, and "
            "write over the split of another run.",
        ),
    ] = False,
) -> None:
    """Splits factoids into those that a checkpoint answers and those that it does not.

    Each prompt is continued greedily, up to the end of the line or the sentence (or the template's end token).
    Every row keeps the prediction and both verdicts; OUT.run.json says what was run. Interrupted, the same
    command goes on.

    Examples:

    `memprobe filter --ckpt smollm2-135m --factoids popqa --n 2000 --out unknown.jsonl --known known.jsonl`

    `memprobe filter --ckpt ./base --factoids facts.csv --shots 5 --out unknown.jsonl`
    """
    from memprobe.checkpoints import default_template, refuse_unused_base, resolve
    from memprobe.filter import ask, check_shots, write_rows
    from memprobe.places import check_file
    from memprobe.sources import files_of, load
    from memprobe.templates import Template

    journal, about = (out.with_name(out.name + end) for end in (".answers", ".run.json"))
    refuse_same_file(
        [("--factoids", file) for file in files_of(factoids, data_dir)],
        [
            *([("--known", known)] if known is not None else []),
            ("--out", out),
            ("the answers beside --out", journal),
            ("what --out says of its run", about),
        ],
    )
    for file in (out, *([known] if known is not None else [])):
        check_file(file)
    checkpoint = resolve(ckpt, loading)
    refuse_unused_base(loading, [checkpoint])
    loaded = load(factoids, "factoids", n=n, seed=seed, data_dir=data_dir, on_bad_row=on_bad_row.value)
    chosen = template or default_template([checkpoint])
    Template.parse(chosen)
    if on_bad_row is options.BadRowChoice.skip:
        from memprobe.writable import writable

        loaded = writable(loaded, chosen, [checkpoint], loading)
    say_left_out(loaded)
    check_shots(loaded.factoids, shots)
    from memprobe.models import load as load_model

    lens_model = load_model(checkpoint, **vars(loading))
    asked = _asked(lens_model, loaded, template=chosen, shots=shots, rule=rule, seed=seed)
    if not fresh and not journal.exists():  # an interrupted run goes on, wherever it stood
        _refuse_other_split(asked, about, [out, *([known] if known is not None else [])])
    with resumable(journal), Bars() as bars:
        answered = ask(
            lens_model,
            loaded.factoids,
            journal,
            template=chosen,
            shots=shots,
            seed=seed,
            batch_tokens=batch_tokens,
            fresh=fresh,
            progress=lambda done, total, known: bars.update(checkpoint.label, done, total, f"{known} known"),
        )
    knows = [one.verdict.exact_match if rule is Rule.strict else one.verdict.alias_match for one in answered]
    write_rows([one for one, known_ in zip(answered, knows, strict=True) if not known_], out)
    if known is not None:
        write_rows([one for one, known_ in zip(answered, knows, strict=True) if known_], known)
    _write_run(about, asked, answered)
    journal.unlink(missing_ok=True)
    _print(answered, sum(knows), out, known)


def _asked(
    lens_model: LensModel, loaded: Loaded, *, template: str, shots: int, rule: Rule, seed: int
) -> dict[str, Any]:
    """What a split is of, for ``OUT.run.json``."""
    from memprobe import __version__

    checkpoint = lens_model.checkpoint
    return {
        "memprobe": __version__,
        "checkpoint": {
            "spec": checkpoint.spec if checkpoint else lens_model.label,
            "fingerprint": lens_model.fingerprint,
            "dtype": str(lens_model.model.dtype).removeprefix("torch."),
        },
        "factoids": loaded.origin.to_dict(),
        "counts": loaded.counts,
        "template": template,
        "shots": shots,
        "seed": seed,
        "rule": rule.value,
    }


def _refuse_other_split(asked: dict[str, Any], about: Path, files: Sequence[Path]) -> None:
    """Refuses to write a split over another one, which may be hours of answers.

    Raises:
        MemprobeError: a file is there and is not empty, and was not made by what is asked.
    """
    from memprobe.files import read_json

    there = [file for file in files if file.is_file() and file.stat().st_size]
    if not there:
        return
    before = read_json(about) if about.is_file() else {}
    if other := [name for name in _OF_A_SPLIT if before.get(name) != asked[name]]:
        why = f"of another {other[0]}" if before else "and nothing says of what"
        raise MemprobeError(
            f"{there[0]}: holds a split {why}; give another name, or --fresh to write over it"
        )


def _write_run(file: Path, asked: dict[str, Any], answered: list[Answered]) -> None:
    from memprobe.files import write_json

    known = {
        "alias_aware": sum(one.verdict.alias_match for one in answered),
        "strict": sum(one.verdict.exact_match for one in answered),
        "n": len(answered),
    }
    write_json(asked | {"known": known}, file)


def _print(answered: list[Answered], n_known: int, out: Path, known: Path | None) -> None:
    n = len(answered)
    strict, alias = (
        sum(one.verdict.exact_match for one in answered),
        sum(one.verdict.alias_match for one in answered),
    )
    echo(f"known    {alias} of {n} with aliases ({alias / n:.1%}), {strict} strictly ({strict / n:.1%})")
    if (empty := sum(not one.verdict.prediction for one in answered)) * 2 > n:
        echo(
            f"note     {empty} predictions are empty: the model ends the line before it answers; --shots 5 shows "
            "it what an answer looks like, or choose its own --template",
            err=True,
        )
    echo(f"unknown  {n - n_known} in {out}")
    if known is not None:
        echo(f"known    {n_known} in {known}")
