"""``memprobe lens``: one prompt through one or several lenses."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from memprobe.cli import options
from memprobe.cli.app import app
from memprobe.cli.asked import check_page
from memprobe.cli.browser import open_page
from memprobe.cli.terminal import echo, echo_json
from memprobe.errors import MemprobeError
from memprobe.load_options import LoadOptions


@app.command()
@options.loads_models
def lens(
    ckpt: options.OneCheckpoint,
    prompt: Annotated[str, typer.Option(help="The text to read, e.g. 'The capital of France is'.")],
    by: options.Lenses = None,
    answer: Annotated[
        str | None, typer.Option(help="Show the rank and probability of this answer's first token.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="plain, tulu, chat, or '…{prompt}…{answer}…'. [default: the checkpoint's own, else plain]",
            show_default=False,
        ),
    ] = None,
    best: Annotated[
        int, typer.Option(help="Show this many tokens at each depth, the most probable first.")
    ] = 5,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write a page with what each depth reads after each token.", show_default=False
        ),
    ] = None,
    show: options.Open = False,
    *,
    loading: LoadOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what each lens reads at each depth and token as JSON.")
    ] = False,
) -> None:
    """Shows what each depth of a model would say next after one prompt.

    Several lenses stand side by side. --out writes a page with what each depth would say after each token, coloured by
    probability, the answer's rank, entropy, or how far its prediction is from the last depth's.

    Example: `memprobe lens --ckpt smollm2-135m --prompt "The capital of France is" --answer Paris --out lens.html`
    """
    if best < 1:
        raise MemprobeError(f"--best {best}: give a whole number of at least 1")
    if not prompt.strip():
        raise MemprobeError("--prompt is empty")
    if out is None and show:
        out = Path("lens.html")
    if out is not None:
        check_page(out)
    from memprobe.checkpoints import default_template, resolve
    from memprobe.lens_set import LensSet
    from memprobe.models import load
    from memprobe.prompt_lens import asked_of, read_prompt_by
    from memprobe.templates import Template

    asked_of(prompt, answer)
    checkpoint = resolve(ckpt, loading)
    chosen = template or default_template([checkpoint])
    Template.parse(chosen)
    named = LensSet.of(by or (), checkpoints=[checkpoint], loading=loading)
    model = load(checkpoint, **vars(loading))
    lenses = named.build(model, partial(load, **vars(loading)))
    for note in [note for one in lenses for note in one.notes]:
        echo(f"note     {note}", err=True)
    # The page shows five tokens at each place, however many the terminal does.
    readings = read_prompt_by(lenses, model, prompt, answer=answer, template=chosen, top_k=max(best, 5))
    if as_json:
        held = [asdict(reading) for reading in readings]
        echo_json({"checkpoint": model.label, "prompt": prompt, "template": chosen, "lenses": held})
    else:
        _print(readings, model.label, best)
    if out is not None:
        from memprobe.dashboard import write_prompt

        write_prompt(readings, out, label=model.label, prompt=prompt)
        echo(f"page     {out}", err=True)
        if show:
            open_page(out)


def _print(readings: list[Any], label: str, tokens: int) -> None:
    """What the model says and since which depth, then a table by depth; of several lenses, one beside the other."""
    from rich.table import Table
    from rich.text import Text

    from memprobe import sentences
    from memprobe.cli.terminal import terminal

    named = sentences.names_lens(readings)
    for reading in readings:
        echo(sentences.of_prompt(reading, named=named))
    console = terminal()
    if not console.is_terminal:
        console.width = max(console.width, 100 * len(readings))  # a file or a pipe has no width
    beside = _BESIDE if readings[0].answer_ranks is not None else 7
    room = max(8, console.width // len(readings) - beside)
    table = Table(title=Text(label), title_justify="left", box=None, pad_edge=False)
    table.add_column("depth", justify="right")
    for reading in readings:
        name = f"{reading.lens}: " if named else ""
        if reading.answer_ranks is not None:
            table.add_column(Text(f"{name}rank"), justify="right")
            table.add_column("p(answer)", justify="right")
        table.add_column(
            Text(
                "top tokens (probability)"
                if reading.answer_ranks is not None
                else f"{name}top tokens (probability)"
            )
        )
    for depth in range(len(readings[0].top)):
        cells: list[Any] = [str(depth)]
        for reading in readings:
            if reading.answer_ranks is not None:
                rank = reading.answer_ranks[depth][-1]
                cells += [
                    Text(f"{rank:,}", "bold green" if rank == 0 else ""),
                    f"{reading.answer_probability[depth]:.3g}",
                ]
            cells.append(_tokens(reading.top[depth][:tokens], room))
        table.add_row(*cells)
    console.print(table)


_BESIDE = 24
"""Columns of a terminal that the depth, and an answer's rank and probability, take beside the tokens."""


def _tokens(top: list[tuple[str, float]], room: int) -> Any:
    """The tokens of one depth with their probabilities, as many as fit on a line, the first at least."""
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    for position, (token, probability) in enumerate(top):
        one = Text(repr(token)[1:-1].replace(" ", "·") or "∅", "bold" if probability > 0.1 else "")
        one.append(f" {probability:.2f}  ", "not bold dim")
        if position and line.cell_len + one.cell_len - 2 > room:  # two spaces behind the last may be cut
            break
        line.append_text(one)
    line.rstrip()
    return line
