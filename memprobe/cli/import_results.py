"""``memprobe import``: results of other evaluation tools, to be compared fact by fact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli.app import app
from memprobe.cli.terminal import echo
from memprobe.errors import MemprobeError
from memprobe.labels import split_name


@app.command("import")
def import_command(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="[LABEL=]PATH…",
            help="What another tool wrote for one checkpoint: samples of lm-evaluation-harness (--log_samples), a log "
            "of Inspect (.eval, .json), an evaluation of OpenUnlearning (NAME_EVAL.json), or a folder with one.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The results directory; further checkpoints join it.")],
    task: Annotated[
        str | None,
        typer.Option(help="Which task (OpenUnlearning: which metric's rows), where there are several."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="The score that decides whether a fact is known. [default: exact_match, or the only one]",
            show_default=False,
        ),
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="A fact counts as known if its score is at least this. [default: 1 where every score is 0 or 1; "
            "else give it]",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Take these results in place of others that --out has under their labels."
        ),
    ] = False,
) -> None:
    """Reads results of other evaluation tools, so that `memprobe compare` can pair them fact by fact.

    Facts keep the ids that the tool gives them (the document's own `id`, else a hash of it; a sample's id; the row), so
    that one fact is the same in every checkpoint, and the same as in a probe of a file with those ids.

    Examples:

    `memprobe import base=out/base tuned=out/tuned --task triviaqa --out results/triviaqa`

    `memprobe import naive=logs/naive.eval --metric match --out results/rivers`

    `memprobe compare results/triviaqa --reference base`
    """
    from memprobe.results import read_one, write_results
    from memprobe.results.measures import notes_on_measures

    named: dict[str, str] = {}
    for text in results:
        label, path = _named(text)
        if label in named:
            raise MemprobeError(f"label {label!r} stands for two results; write LABEL=PATH")
        named[label] = path
    evaluations = {label: read_one(path, task=task) for label, path in named.items()}
    written = write_results(evaluations, out, metric=metric, at_least=at_least, replace=replace)
    for label in evaluations:
        entry, table = written.about["checkpoints"][label], written.outcomes(label)
        known, judged = int(table["exact_match"].sum()), len(table) - table["exact_match"].null_count()
        echo(
            f"{label}: {known} of {judged} facts known ({entry['tool']}, {entry['task']}, {entry['metric']})"
        )
        if unjudged := len(table) - judged:
            first = table.filter(table["exact_match"].is_null()).row(0, named=True)
            echo(
                f"note     {label}: {unjudged} facts have no score ({first['factoid']}: {first['error']})",
                err=True,
            )
        if (times := table["times"].max()) != 1:
            echo(f"note     {label}: facts were asked up to {times} times; the mean score counts", err=True)
    for note in notes_on_measures({label: written.measure(label) for label in written.checkpoints}):
        echo(f"note     {note}", err=True)
    echo(f"results  {out}", err=True)


def _named(text: str) -> tuple[str, str]:
    """The label and the path of ``[LABEL=]PATH``; without a label that of the file or folder."""
    from memprobe.files import exists

    label, path = (None, text) if exists(text) else split_name(text, lambda _, path: exists(path))
    if label == "" or not path:
        raise MemprobeError(f"{text!r}: write PATH or LABEL=PATH")
    file = Path(path).expanduser()
    named = file.resolve() if file.name in ("", "..") else file
    return label or (named.name if named.is_dir() else named.stem), str(file)
