"""``memprobe lens``: one prompt through the Logit Lens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memprobe.cli.app import app
from memprobe.cli.options import (
    AllowPickle,
    BaseModel,
    Device,
    Dtype,
    OneCheckpoint,
    TokenizerFrom,
    TrustRemoteCode,
)
from memprobe.errors import MemprobeError


@app.command()
def lens(
    ckpt: OneCheckpoint,
    prompt: Annotated[str, typer.Option(help="The text to read, e.g. 'The capital of France is'.")],
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
    top_k: Annotated[int, typer.Option("--top-k", help="Tokens shown at each depth.")] = 5,
    html: Annotated[
        Path | None, typer.Option(help="Also write the layer × position heatmap to this file.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    base: BaseModel = None,
    tokenizer: TokenizerFrom = None,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Shows what each depth of a model would say next after one prompt.

    Example: `memprobe lens --ckpt smollm2-135m --prompt "The capital of France is" --answer Paris`
    """
    if top_k < 1:
        raise MemprobeError(f"--top-k {top_k}: show at least 1 token")
    if not prompt.strip():
        raise MemprobeError("--prompt is empty")
    from memprobe.checkpoints import default_template, resolve
    from memprobe.models import load
    from memprobe.prompt_lens import read_prompt

    checkpoint = resolve(
        ckpt, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, base=base, tokenizer=tokenizer
    )
    model = load(checkpoint, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    chosen = template or default_template([checkpoint])
    reading = read_prompt(model, prompt, answer=answer, template=chosen, top_k=top_k)
    _print(reading, model.label)
    if html is not None:
        from memprobe.dashboard import write_figure
        from memprobe.plots import lens_heatmap

        figure = lens_heatmap(
            reading.tokens, reading.top1, reading.probability, answer=answer, ranks=reading.answer_ranks
        )
        write_figure(figure, html, title=f"{model.label}: {prompt}")
        typer.echo(f"heatmap  {html}", err=True)


def _print(reading: Any, label: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(label), title_justify="left", box=None, pad_edge=False)
    table.add_column("depth", justify="right")
    if reading.answer_ranks is not None:
        table.add_column("rank", justify="right")
        table.add_column("p(answer)", justify="right")
    table.add_column("top tokens (probability)")
    for depth, tops in enumerate(reading.top):
        cells: list[Any] = [str(depth)]
        if reading.answer_ranks is not None:
            rank = reading.answer_ranks[depth][-1]
            cells += [
                Text(f"{rank:,}", "bold green" if rank == 0 else ""),
                f"{reading.answer_probability[depth]:.3g}",
            ]
        line = Text()
        for token, probability in tops:
            line.append(repr(token)[1:-1].replace(" ", "·") or "∅", "bold" if probability > 0.1 else "")
            line.append(f" {probability:.2f}  ", "dim")
        table.add_row(*cells, line)
    Console().print(table)
