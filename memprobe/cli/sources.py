"""``memprobe sources``: what can be probed and trained on, where it would come from, and how it looks."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprobe.cli.app import app
from memprobe.cli.asked import options_given, refuse_given, refuse_other_text, refuse_same_file
from memprobe.cli.options import MAX_SEED, BadRowChoice, BadRows, DataDir
from memprobe.cli.terminal import echo, echo_json
from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memprobe.sources import Loaded
    from memprobe.sources.kinds import AnyRow


class KindChoice(StrEnum):
    """What a file holds."""

    factoids = "factoids"
    tasks = "tasks"
    texts = "texts"


class Variant(StrEnum):
    """Evaluation sets made from factoids."""

    paraphrases = "paraphrases"
    manipulations = "manipulations"


class Conflict(StrEnum):
    """What happens to factoids that ask the same and answer differently."""

    drop = "drop"
    merge = "merge"
    keep = "keep"


class PromptChoice(StrEnum):
    """What the prompt of a text is made of."""

    words = "words"
    sentence = "sentence"


@app.command()
def sources(
    typer_context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            help="NAME[:SPLIT], kvr:N, random-words, self, or a file. Without it, all are listed."
        ),
    ] = None,
    n: Annotated[int, typer.Option(help="Rows to show; with --out, rows to draw.", min=1)] = 5,
    kind: Annotated[
        KindChoice | None,
        typer.Option(
            "--holds", help="What the rows of the file are. [default: factoids]", show_default=False
        ),
    ] = None,
    template: Annotated[str, typer.Option(help="Show rows as this template writes them.")] = "plain",
    ckpt: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Count tokens as this checkpoint does. For the source self: the checkpoint that writes the texts.",
        ),
    ] = None,
    data_dir: DataDir = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Drop factoids that share a question, or subject and relation, with this set: "
            "D_B must not repeat D_A.",
        ),
    ] = None,
    conflicts: Annotated[
        Conflict | None,
        typer.Option(
            help="What to do with factoids that ask the same and answer differently. [default: the set's own rule]",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        Variant | None,
        typer.Option(
            help="In place of the factoids: other wordings of them, or tasks that need their answers.",
            show_default=False,
        ),
    ] = None,
    words: Annotated[
        tuple[int, int],
        typer.Option(
            metavar="N N",
            help="For texts: how many words the prompt and the answer have, as in --words 12 12. [default: 50 50]",
            show_default=False,
        ),
    ] = (50, 50),
    prompt_form: Annotated[
        PromptChoice,
        typer.Option(help="For texts: a prompt with words of the passage in it, or one sentence for all."),
    ] = PromptChoice.words,
    words_file: Annotated[
        Path | None, typer.Option(help="Word list for random-words, one a line.", show_default=False)
    ] = None,
    on_bad_row: BadRows = BadRowChoice.fail,
    seed: Annotated[
        int, typer.Option(help="Seed of the sample and of what is generated.", min=0, max=MAX_SEED)
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the rows as JSONL instead of showing them.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="With --out: all rows instead of --n.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Write over other rows that --out holds.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the list, or the rows of one source, as JSON.")
    ] = False,
) -> None:
    """Lists the sources, or shows rows of one as the model would see them.

    Examples:

    `memprobe sources --data-dir data`

    `memprobe sources popqa --n 5 --ckpt smollm2-135m --data-dir data`

    `memprobe sources lama --without popqa --n 2000 --out d_b.jsonl --data-dir data`
    """
    if name is None:
        asked = options_given(typer_context)
        refuse_given(
            {option: asked[option] for option in asked if option not in ("--data-dir", "--json")},
            "is of one source; name it, or leave the option out for the list of all",
        )
        _list(data_dir, as_json=as_json)
        return
    from memprobe.sources import files_of, load, subset
    from memprobe.sources.generated import is_endless

    _refuse_what_does_not_fit(typer_context, name, kind)
    if out is not None:
        given = [("the source", name), *(("--without", other) for other in without or ())]
        read = [(option, file) for option, source in given for file in files_of(source, data_dir)]
        refuse_same_file([*read, *([("--words-file", words_file)] if words_file else [])], [("--out", out)])
    size = None if (not is_endless(name) and (every or out is None)) else n
    first = [row for other in without or () for row in load(other, "factoids", data_dir=data_dir).factoids]
    with _Progress() as progress:
        loaded = load(
            name,
            kind.value if kind else None,
            n=size if every else _streamed(name, size, n, data_dir),
            seed=seed,
            data_dir=data_dir,
            on_bad_row=on_bad_row.value,
            conflicts=conflicts.value if conflicts else None,
            without=first,
            words=words,
            prompt_form=prompt_form.value,
            words_file=words_file,
            base=ckpt,
            progress=progress.update,
        )
    rows = _derive(loaded, variant, seed)
    _say(name, loaded)
    if out is not None:
        from memprobe.files import write_text

        text = "".join(json.dumps(_as_dict(row), ensure_ascii=False) + "\n" for row in rows)
        if not fresh:
            refuse_other_text(text, out, "rows")
        write_text(text, out)
        echo(f"wrote    {len(rows)} rows to {out}", err=True)
        return
    shown = rows if len(rows) <= n else subset(rows, n, seed, name)
    if as_json:
        kept = {"source": name, "kind": loaded.origin.kind, "counts": dict(loaded.counts)}
        echo_json(kept | {"rows": [_as_dict(row) for row in shown]})
        return
    tokenizer = None
    if ckpt:
        from memprobe.checkpoints import resolve
        from memprobe.models import load_tokenizer

        tokenizer = load_tokenizer(resolve(ckpt))
    for row in shown:
        _show(row, template, tokenizer)


def _refuse_what_does_not_fit(context: typer.Context, name: str, kind: KindChoice | None) -> None:
    """Refuses options that change nothing of this source's rows, or of what is done with them."""
    from memprobe.sources import kind_of
    from memprobe.sources.generated import is_endless

    holds, leave = kind_of(name, kind.value if kind else None), "leave it out"
    if holds != "factoids":
        refuse_given(
            options_given(context, "without", "conflicts", "variant"),
            f"is of factoids, and {name} holds {holds}; {leave}",
        )
    if holds != "texts":
        refuse_given(
            options_given(context, "words", "prompt_form"), f"is of texts, and {name} holds {holds}; {leave}"
        )
    if name != "random-words":
        refuse_given(options_given(context, "words_file"), f"is of random-words alone; {leave}")
    if is_endless(name):
        refuse_given(options_given(context, "every"), f"{name} has no end; give --n in its place")
    if context.params["as_json"]:
        refuse_given(
            options_given(context, "template", "out")
            | ({} if name == "self" else options_given(context, "ckpt")),
            f"is of rows that are shown or written, and --json prints them as they are; {leave}",
        )
    if context.params["out"] is None:
        refuse_given(
            options_given(context, "every", "fresh"), "is of rows that are written; give --out with it"
        )
        return
    refuse_given(
        options_given(context, "template"), f"is of rows that are shown, and --out writes them; {leave}"
    )
    if name != "self":
        refuse_given(
            options_given(context, "ckpt"),
            f"counts the tokens of rows that are shown, and --out writes them; {leave}",
        )
    if context.params["every"]:
        refuse_given(options_given(context, "n"), "--all writes all rows; leave one of them out")


def _streamed(name: str, size: int | None, n: int, data_dir: Path | None) -> int | None:
    """Without a folder a large set is streamed, so only what is shown is fetched."""
    from memprobe.sources.catalogue import DATASETS

    dataset = DATASETS.get(name.partition(":")[0])
    large = dataset is not None and dataset.hub is not None and dataset.hub.large
    return n if large and data_dir is None else size


def _derive(loaded: Loaded, variant: Variant | None, seed: int) -> list[AnyRow]:
    if variant is None:
        return loaded.rows
    from memprobe.sources.evaluation import manipulations, paraphrases

    factoids = loaded.factoids
    return [*(paraphrases(factoids) if variant is Variant.paraphrases else manipulations(factoids, seed))]


def _list(data_dir: Path | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from memprobe.cli.terminal import terminal
    from memprobe.sources.listing import KEPT, READ, listed
    from memprobe.sources.origins import data_folder

    sources_there = listed(data_folder(data_dir))
    if as_json:
        echo_json([asdict(one) for one in sources_there])
        return
    table = Table(box=SIMPLE_HEAD)
    for column in ("source", "kind"):
        table.add_column(column)
    for column in ("rows", "kept"):
        table.add_column(column, justify="right")
    for column in ("licence", "from", "note"):
        table.add_column(column, overflow="fold")
    for one in sources_there:
        counts = [f"{one.counts[rule]:,}" if one.counts else one.amount or "?" for rule in (READ, KEPT)]
        table.add_row(one.name, one.kind, *counts, one.licence, one.where, one.note)
    table.add_row(
        "FILE",
        "any",
        "",
        "",
        "yours",
        "file",
        "JSONL, JSON, CSV, Parquet by its ending; jsonl:FILE for JSONL of another name",
    )
    console = terminal()
    # In a file or a pipe nothing is folded, so that a line stays a row.
    console.print(table) if console.is_terminal else terminal(width=220).print(table)


def _say(name: str, loaded: Loaded) -> None:
    origin, counts = loaded.origin, dict(loaded.counts)
    read, kept = counts.pop("read", 0), counts.pop("kept")
    gone = ", ".join(f"{count:,} {rule}" for rule, count in counts.items() if count)
    where = " ".join(filter(None, (origin.via, origin.location, origin.split, origin.revision)))
    echo(f"{name}: {kept:,} {origin.kind} of {read:,} rows{f' (without {gone})' if gone else ''}", err=True)
    echo(f"from     {where}; rows {origin.hash[:16]}", err=True)
    for line in loaded.bad:
        echo(f"left out {line}", err=True)


def _show(row: AnyRow, template: str, tokenizer: PreTrainedTokenizerBase | None) -> None:
    from rich.text import Text as Line

    from memprobe.cli.terminal import terminal
    from memprobe.sources.kinds import Task

    console = terminal(highlight=False, soft_wrap=True)
    facts: list[str] = [row.id]
    if isinstance(row, Task):
        body = Line()
        for message in row.messages:
            body.append(f"{message.role}: ", "bold").append(f"{message.content}\n")
        if tokenizer is not None:
            facts.append(f"{sum(_count(turn.content, tokenizer) for turn in row.messages)} tokens")
        console.print(Line("  ".join(facts), "dim"))
        console.print(body)
        return
    context, answer, end, size = _rendered(row, template, tokenizer)
    facts += [
        f"{label} {value}" for label in ("relation", "popularity") if (value := getattr(row, label, None))
    ]
    console.print(Line("  ".join([*facts, *size]), "dim"))
    console.print(Line(context).append(answer, "bold green").append(end, "dim"))
    if aliases := getattr(row, "aliases", ()):
        console.print(Line(f"also     {', '.join(aliases)}", "dim"))
    console.print()


def _rendered(
    row: Any, template: str, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, str, str, list[str]]:
    """A factoid or text before, in and after its answer, and its size in tokens."""
    from memprobe.factoids import make_factoid
    from memprobe.templates import PLAIN, Template, tokenise

    parsed = Template.parse(template)
    if tokenizer is None:
        if parsed.name != PLAIN:
            raise MemprobeError(f"--template {template}: its end token is the tokenizer's; give --ckpt")
        return f"{row.prompt} ".lstrip(), row.answer, "", []
    if not row.prompt:  # a text without a prompt is no question that a template could hold
        return "", row.answer, "", [f"0 + {_count(row.answer, tokenizer)} tokens"]
    rendered = parsed.render(row.prompt, row.answer, tokenizer)
    tokens = tokenise(make_factoid(row.prompt, row.answer, row.source, id=row.id), parsed, tokenizer)
    size = [f"{len(tokens.prompt)} + {len(tokens.answer)} tokens"]
    return rendered.context, rendered.answer, rendered.end or "", size


def _count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


class _Progress:
    """Passages that ``self`` has spoken, with rate and time left, on standard error."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, total: int) -> None:
        if self.bar is None:
            from memprobe.cli.terminal import progress_bar, terminal

            self.bar = progress_bar(terminal(stderr=True), elapsed=False)
            self.bar.start()
            self.task = self.bar.add_task("passages", total=total)
        self.bar.update(self.task, completed=done)


def _as_dict(row: AnyRow) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: value for name, value in asdict(row).items() if value not in (None, (), [], "")}
