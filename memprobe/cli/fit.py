"""``memprobe fit``: a lens fitted on text."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from memprobe.cli import options
from memprobe.cli.app import app, resumable
from memprobe.cli.asked import other_factoids, refuse_given
from memprobe.cli.terminal import echo, echo_json, print_table, progress_bar, terminal, wide_terminal
from memprobe.lens_kinds import FITTED_KINDS, summaries
from memprobe.load_options import LoadOptions

FitKind = StrEnum("FitKind", {kind: kind for kind in FITTED_KINDS})  # pyrefly: ignore[invalid-argument]
_KINDS = " ".join(f"{kind}: {text}" for kind, text in summaries().items())


@app.command()
@options.loads_models
def fit(
    ckpt: options.OneCheckpoint,
    kind: Annotated[
        FitKind,
        typer.Option(
            help=_KINDS,
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The lens's directory; an interrupted fit in it goes on.")],
    texts: Annotated[
        str,
        typer.Option(
            help="generic, or another source of texts (memprobe sources), or a JSONL/CSV/Parquet file with a column "
            "text."
        ),
    ] = "generic",
    tokens: Annotated[
        int, typer.Option(help="Tokens to fit on, in two halves. A high floor asks for more.", min=1)
    ] = 20_000,
    length: Annotated[
        int,
        typer.Option(
            help="Length of each sequence in tokens; shorter texts are left out, and those of a named source that "
            "have fewer words.",
            min=3,
        ),
    ] = 64,
    steps: Annotated[
        int | None,
        typer.Option(
            help="tuned: at most so many steps on each half of the text. [default: all of it once]",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        int, typer.Option(help="How many sequences measure the fit; as many again choose its settings.")
    ] = 16,
    factoids: Annotated[
        str,
        typer.Option(help="Facts on which the floor is measured: a source or a file, or none."),
    ] = "known",
    template: Annotated[
        str | None,
        typer.Option(
            help="Prompt template of those facts: plain, tulu, chat, or a text. [default: plain]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the order of the texts.", min=0, max=options.MAX_SEED)
    ] = 0,
    data_dir: options.DataDir = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start over: a lens that --out holds goes once the new one has results."
        ),
    ] = False,
    *,
    loading: LoadOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print lens.json instead of a table.")] = False,
) -> None:
    """Fits a lens to a checkpoint: a map for each depth. `memprobe layers --lens KIND=OUT` reads with it.

    Fits, judges the fit on held-out text and measures its floor; says how long each of the three will take once its
    first piece is done. Prints how well the lens predicts on held-out text by depth, beside the Logit Lens, and how far
    two fits on disjoint halves of the text differ (its floor).

    Examples:

    `memprobe fit --kind linear --ckpt smollm2-135m --texts my-texts.jsonl --out lenses/linear`

    `memprobe layers --ckpt smollm2-135m --lens logit --lens linear=lenses/linear`
    """
    from memprobe.checkpoints import refuse_unused_base, resolve
    from memprobe.fitting import FITTED, check_kind, check_sizes, load_texts, locked, make_corpus
    from memprobe.fitting import fit as fit_lens
    from memprobe.models import load
    from memprobe.starting_over import starting_over
    from memprobe.templates import Template

    if factoids == "none":
        refuse_given({"--template": template}, "is of the facts of the floor; --factoids none names none")
    # Said before anything is read.
    Template.parse(template or "plain")
    check_kind(kind.value, steps)
    check_sizes(tokens=tokens, length=length, held_out=held_out)
    checkpoint = resolve(ckpt, loading)
    refuse_unused_base(loading, [checkpoint])
    facts = [] if factoids == "none" else other_factoids(factoids, seed, data_dir, instead="--factoids FILE")
    passages, origin = load_texts(texts, length, seed=seed, data_dir=data_dir)
    model = load(checkpoint, **vars(loading))
    corpus = make_corpus(model, passages, tokens=tokens, length=length, held_out=held_out, origin=origin)
    with locked(out):
        title = f"{kind.value} lens of {model.label}"
        with starting_over(out, FITTED, fresh=fresh) as before, resumable(out), _Bar(title) as bar:
            about = fit_lens(
                kind.value,
                model,
                corpus,
                out,
                steps=steps,
                factoids=facts,
                template=template or "plain",
                progress=before.watching(bar.update),
            )
    if as_json:
        echo_json(about)
    else:
        _print(about)
    echo(f"lens     --lens {kind.value}={out}", err=True)


class _Bar:
    """A bar on standard error for each part of the work, and how long that part will take as a line."""

    def __init__(self, label: str):
        self.console = terminal(stderr=True)
        self.progress = progress_bar(self.console)
        self.label = label
        self.part = ""
        self.task: Any = None
        self.start: tuple[float, int] = 0.0, 0
        self.said = False
        self.reported = 0.0

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, done: int, total: int, part: str) -> None:
        """Moves a part's bar; says how long it will take after its first piece, and now and then in a file."""
        now = time.monotonic()
        name = f"{self.label}: {part}"
        if part != self.part:  # the time of one part says nothing of the next
            self.part, self.start, self.said = part, (now, done), False
            self.task = self.progress.add_task(name, total=total, completed=done)
            if done:
                echo(f"{name}: goes on after {done} of {total} pieces of work", err=True)
            return
        begun, before = self.start
        self.progress.update(self.task, completed=done)
        remaining = (now - begun) / max(done - before, 1) * (total - done)
        if not self.said:
            echo(f"{name}: {total - before} pieces of work, about {_time(remaining)} left", err=True)
            self.said, self.reported = True, now
        elif not self.console.is_terminal and (now - self.reported > 60 or done == total):
            echo(f"{name}: {done} of {total}, {_time(remaining)} left", err=True)
            self.reported = now


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print(about: dict[str, Any]) -> None:
    corpus = about["corpus"]
    title = f"{about['kind']} lens of {about['model']}: {corpus['tokens']:,} tokens, {corpus['held out']:,} held out"
    floor = about["floor"]
    columns = ["depth", "cross-entropy", "logit", "KL", "logit", "KL saved (95 %)"]
    says = "On held-out text, in nats; KL is to the model's own prediction, and logit is the Logit Lens's number."
    if floor is not None:
        columns += ["recall@10", "floor"]
        says += " floor: by how much the recall of fits on the two halves of the text differs."
    rows = []
    for row in about["depths"]:
        cells = [str(row["depth"])]
        cells += [f"{row[key]:.2f}" for key in ("cross_entropy", "logit_cross_entropy", "kl", "logit_kl")]
        interval = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
        cells.append(f"{row['kl_saved']:.2f}{interval}")
        if floor is not None:
            at = floor["k"]["10"]
            cells += [f"{at['lens_recall'][row['depth']]:.0%}", f"{at['recall'][row['depth']]:.0%}"]
        rows.append(cells)
    print_table(wide_terminal(), title, columns, rows, left=0, says=says)
    if floor is not None:
        for k, at in floor["k"].items():
            apart = f"place a fact {at['lof']:.1f} depths apart, and the mean LoF ({at['lens_lof']:.1f})"
            echo(
                f"floor    k = {k}: fits on the two halves of the text {apart} {at['lof_mean']:.1f} "
                f"({floor['facts']} facts)"
            )
