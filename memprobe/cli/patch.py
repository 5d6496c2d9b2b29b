"""``memprobe patch``: states or weights of one checkpoint in another."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memprobe.cli import options
from memprobe.cli.app import app, resumable
from memprobe.cli.asked import batch_size_of, factoids_of, refuse_given, say_left_out, slug, status
from memprobe.cli.browser import open_page
from memprobe.cli.progress import Bars
from memprobe.cli.terminal import echo, echo_json
from memprobe.errors import MemprobeError, among, there_are
from memprobe.load_options import LoadOptions


class CorruptChoice(StrEnum):
    """What is corrupted in the target's prompt."""

    subject = "subject"


@app.command()
@options.loads_models
def patch(
    source: Annotated[
        list[str],
        typer.Option(
            "--from", metavar="[LABEL=]SPEC", help="The checkpoint whose states are put in. Repeatable."
        ),
    ],
    into: Annotated[
        list[str],
        typer.Option(
            "--into",
            metavar="[LABEL=]SPEC",
            help="The checkpoint that they are put into. Several --from and --into are paired in order; a "
            "single one is paired with each of the others.",
        ),
    ],
    factoids: Annotated[
        str | None,
        typer.Option(
            help=options.FACTS,
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            help="Patch a random sample of this many factoids, drawn by --seed. [default: all]", min=1
        ),
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            help="residual, attn, mlp, several with commas: the stream, or a block's outputs. [default: residual]",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="last (those that predict the answer), subject, prompt (all that the model is given), several with "
            "commas. [default: last]",
            show_default=False,
        ),
    ] = None,
    depths: Annotated[
        str | None, typer.Option(help="Depths to patch, as in 0-10,20,30. [default: all]", show_default=False)
    ] = None,
    corrupt: Annotated[
        CorruptChoice | None,
        typer.Option(
            help="Causal tracing: noise on the subject in the target's run; --from and --into may be the same "
            "checkpoint."
        ),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="With --corrupt: size of the noise, in standard deviations of the embeddings. [default: 3]",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Graft the source's blocks one after another instead of its states."),
    ] = False,
    windows: Annotated[
        str | None,
        typer.Option(
            help="With --weights: how many blocks in a row, several with commas. [default: 1]",
            show_default=False,
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="With --weights: which weights of the blocks (all, attn, mlp, norms), or embeddings, or head. "
            "Several with commas. [default: all]",
            show_default=False,
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            help="Also patch another factoid's states and random ones of the same norm (random weights)."
        ),
    ] = True,
    threshold: Annotated[
        float,
        typer.Option(
            help="Leave out facts whose answer the two checkpoints give with log-probabilities that differ by less "
            "than this (nats)."
        ),
    ] = 1.0,
    facts: Annotated[
        str,
        typer.Option(
            help="Facts of the tables: all, those overwritten (recalled by the source, not the target) or retained."
        ),
    ] = "all",
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The one of --from that never knew the facts (the base model). Adds the erasure score of the others; "
            "--into is then a checkpoint that knows the facts.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help=options.TEMPLATE, show_default=False),
    ] = None,
    data_dir: options.DataDir = None,
    on_bad_row: options.BadRows = options.BadRowChoice.fail,
    batch_size: options.BatchSize = "auto",
    *,
    loading: LoadOptions,
    seed: Annotated[
        int, typer.Option(help="Seed of the sample, the noise and the controls.", min=0, max=options.MAX_SEED)
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The directory; interrupted patching in it goes on. [default: patch-NAMES in probes]"
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start over: patches that --out holds go once the new ones have results."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Also write patches.html, to look at in a browser.")
    ] = False,
    show: options.Open = False,
) -> None:
    """Puts states (or weights) of one checkpoint into another: which depths give a fact back, or take it away?

    A lens shows where an answer becomes readable; this shows what a depth's state does. For every factoid, depth and
    set of positions: log-probability and rank of every answer token after the patch, beside what another factoid's
    states and random ones do. Restoration is the share of what separates the two checkpoints that the patch gives back.

    Examples:

    `memprobe patch --from runs/a/1-kvr --into runs/a/2-lama --positions last,subject --html`

    `memprobe patch --from smollm2-135m --into smollm2-135m --corrupt subject --positions subject,last`

    `memprobe patch --from runs/a/1-kvr --into runs/a/2-lama --weights --windows 1,5 --parts all,attn,mlp`

    `memprobe patch --from base=smollm2-135m --from runs/a/2-lama --into runs/a/1-kvr --reference base`
    """
    if not 0 < threshold < math.inf:
        raise MemprobeError(
            f"--threshold {threshold}: give finite nats above 0, so that there is a difference to take a share of"
        )
    if noise is not None and not 0 < noise < float("inf"):
        raise MemprobeError(f"--noise {noise}: give a number above 0")
    if weights and corrupt is not None:
        raise MemprobeError("--weights grafts into the model itself; it does not go with --corrupt")
    if corrupt is None:
        refuse_given({"--noise": noise}, "is of causal tracing; give --corrupt subject with it")
    if weights:
        refuse_given(
            {"--what": what, "--positions": positions, "--depths": depths},
            "says which states are put in; it does not go with --weights",
        )
    else:
        refuse_given({"--windows": windows, "--parts": parts}, "is of grafts; give --weights with it")
    size = batch_size_of(batch_size)
    from memprobe.checkpoints import Checkpoint, common_template
    from memprobe.interventions import NOISE
    from memprobe.patch_pairs import pair_up
    from memprobe.patch_pairs import patch as run_patch
    from memprobe.patch_tables import tables_of
    from memprobe.patch_writer import locked
    from memprobe.patches import PATCHING
    from memprobe.residuals import parse_depths
    from memprobe.starting_over import starting_over
    from memprobe.statistics.patches import FACTS

    chosen_depths = None if depths is None else parse_depths(depths, "--depths")
    if facts not in FACTS:
        raise MemprobeError(f"--facts {facts}: {among(facts, FACTS)}")
    with status("finding checkpoints"):
        pairs = pair_up(source, into, loading)
        given = list(dict.fromkeys(pair.source.label for pair in pairs))
        if reference is not None and reference not in given:
            raise MemprobeError(
                f"--reference {reference}: is not a label of --from; {there_are(reference, given)} "
                "(a label is what stands before = in --from LABEL=SPEC, else the checkpoint's name)"
            )
        sides = [item for pair in pairs for item in (pair.source, pair.target)]
        checkpoints = list({item.label: item for item in sides if isinstance(item, Checkpoint)}.values())
        chosen_template = template or common_template(checkpoints) or "plain"
        asked = factoids_of(factoids, checkpoints, n, seed, data_dir, on_bad_row.value)
        if on_bad_row is options.BadRowChoice.skip:
            from memprobe.writable import writable

            asked = writable(asked, chosen_template, checkpoints, loading)
    say_left_out(asked)
    out = (
        out
        or Path("probes") / f"patch-{'-'.join(slug(checkpoint.label) for checkpoint in checkpoints)}"[:100]
    )
    page = out / "patches.html" if html or show else None
    with locked(out):
        with starting_over(out, PATCHING, fresh=fresh) as before, resumable(out), Bars() as bars:
            patched = run_patch(
                pairs,
                asked.factoids,
                out,
                what=["weights"] if weights else _list(what or "residual"),
                positions=_list(positions or "last"),
                depths=chosen_depths,
                controls=controls,
                corrupt=corrupt is not None,
                noise=NOISE if noise is None else noise,
                windows=[_whole(text, "--windows") for text in _list(windows or "1")],
                parts=_list(parts or "all"),
                template=chosen_template,
                batch_size=None if size == "auto" else size,
                seed=seed,
                loading=loading,
                progress=before.watching(bars.update),
            )
        tables = tables_of(patched, facts=facts, threshold=threshold, reference=reference)
        if as_json:
            echo_json({name: table.fill_nan(None).to_dicts() for name, table in tables.items()})
        else:
            from memprobe.cli.show_patches import show_patches

            show_patches(tables, threshold, facts=facts)
        if reference is not None and tables["erasure"].is_empty():
            echo(
                f"note     no erasure score: it takes {reference!r} and another --from into the same checkpoint "
                "(--what residual, --positions last, depths from 1 on)",
                err=True,
            )
        if failed := patched.errors["factoid"].n_unique():
            from memprobe.wording import count

            gave = f"{count(failed, 'factoid')} gave logits that are not finite: no patches of these"
            echo(f"note     {gave}", err=True)
        if page is not None:
            from memprobe.dashboard.patches import write_patches
            from memprobe.files import replacing

            with status("writing the page"), replacing(page) as path:
                write_patches(patched, path, facts=facts, threshold=threshold)
    if page is not None:
        echo(f"page     {page}", err=True)
        if show:
            open_page(page)
    echo(f"patches  {out / 'patches'}", err=True)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str, option: str) -> int:
    if not text.isdecimal():
        raise MemprobeError(f"{option} {text}: give whole numbers, as in 1,5")
    return int(text)
