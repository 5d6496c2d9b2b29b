"""``memprobe layers``: the main job, probing checkpoints on factoids."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memprobe.cli import options
from memprobe.cli.app import app, resumable
from memprobe.cli.asked import (
    batch_size_of,
    engine_of,
    factoids_of,
    other_factoids,
    say_left_out,
    slug,
    status,
)
from memprobe.cli.browser import open_page
from memprobe.cli.progress import Bars
from memprobe.cli.terminal import echo, echo_json
from memprobe.errors import MemprobeError
from memprobe.labels import named_once
from memprobe.load_options import LoadOptions

if TYPE_CHECKING:
    from memprobe.factoids import Factoid
    from memprobe.probes import Probe
    from memprobe.statistics.holding import TokenRule as Rule


@app.command()
@options.loads_models
def layers(
    ckpt: options.ManyCheckpoints,
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
            help="Probe a random sample of this many factoids, drawn by --seed. [default: all]", min=1
        ),
    ] = None,
    top_k: options.TopK = 10,
    token: options.TokenRule = "first",
    template: Annotated[
        str | None,
        typer.Option(
            help=options.TEMPLATE,
            show_default=False,
        ),
    ] = None,
    lens: options.Lenses = None,
    readout: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Short for --lens logit@SPEC alone: read every checkpoint with this one's final norm and unembedding. "
            "Fine-tuning moves them, so a claim about placement must hold in this readout and in the checkpoint's own.",
        ),
    ] = None,
    positions: Annotated[
        str,
        typer.Option(
            help="answer: where each answer token is predicted; answer,subject: also at the subject's last token."
        ),
    ] = "answer",
    intrusion: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FACTOIDS", help="Also watch for the answers of another dataset (e.g. of stage 2)."
        ),
    ] = None,
    attributions: Annotated[
        bool,
        typer.Option(
            "--attributions", help="Also write what each block, attention and MLP adds to the answer's logit."
        ),
    ] = False,
    keep_residuals: Annotated[
        str | None,
        typer.Option(
            metavar="DEPTHS",
            help="Also keep the residual stream at these depths, in bf16, as safetensors: all, or 0,10,20-25.",
            show_default=False,
        ),
    ] = None,
    data_dir: options.DataDir = None,
    on_bad_row: options.BadRows = options.BadRowChoice.fail,
    batch_size: options.BatchSize = "auto",
    *,
    loading: LoadOptions,
    seed: Annotated[
        int, typer.Option(help="Seed of the sample and of the shuffled answers.", min=0, max=options.MAX_SEED)
    ] = 0,
    evict: Annotated[
        bool,
        typer.Option(
            "--evict",
            help="Fetch each hub checkpoint when its turn comes, and delete it from the hub's cache after its probe.",
        ),
    ] = False,
    engine: options.EngineText = None,
    resources: options.ResourcesText = None,
    storage: options.StorageText = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The probe directory; an interrupted probe in it goes on. [default: probes/NAME]"),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start over: a probe that --out holds goes once the new one has results."
        ),
    ] = False,
    full: options.Full = False,
    no_report: Annotated[
        bool,
        typer.Option(
            "--no-report",
            help="Write no report.html. It shows every checkpoint in --out, so many are added faster without it.",
        ),
    ] = False,
    show: options.Open = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of tables.")] = False,
) -> None:
    """Probes checkpoints: at which depth do the answers to factoids become readable?

    Prints what each checkpoint recalls and where that surfaces, beside what shuffled answers do, and writes a probe
    directory with the records and an interactive report. An interrupted probe goes on with the same command; other
    checkpoints are added to it, and `memprobe show` prints all that there are.

    Examples:

    `memprobe layers --ckpt smollm2-135m`

    `memprobe layers --ckpt base=smollm2-135m --ckpt tuned=./checkpoint --factoids facts.jsonl --template chat`

    `memprobe layers --ckpt base=smollm2-135m --ckpt tuned=./checkpoint --lens logit --lens logit@base`

    `memprobe layers --ckpt 'EleutherAI/pythia-70m@step{1000..143000..1000}' --evict`

    `memprobe layers --ckpt 'runs/*/checkpoint-*'`

    `memprobe layers --ckpt 'runs/*/checkpoint-*' --engine ray --resources gpus=1`
    """
    if show and no_report:
        raise MemprobeError("--open shows the report: leave --no-report out")
    cluster = engine_of(engine, resources, storage)
    size = batch_size_of(batch_size)
    if keep_residuals is not None:
        from memprobe.residuals import parse_depths

        parse_depths(keep_residuals)
    from memprobe.checkpoints import checkpoints_of, default_template
    from memprobe.sequences import Deferred, find_all
    from memprobe.statistics.holding import check_rule

    check_rule(token)

    with status("finding checkpoints"):
        checkpoints, steps = find_all(ckpt, loading, defer=evict)
        here = checkpoints_of(checkpoints)
        # Where all are found in turn only, their manifests are asked then.
        chosen_template = template or (default_template(here) if here else None)
        asked = factoids_of(factoids, here, n, seed, data_dir, on_bad_row.value)
        if on_bad_row is options.BadRowChoice.skip:
            from memprobe.writable import writable

            known = here or [item.find() for item in checkpoints[:1] if isinstance(item, Deferred)]
            spelled = chosen_template or default_template(known)
            asked = writable(asked, spelled, known, loading)
    say_left_out(asked)
    watched = named_once("--intrusion", (_intrusion(text, seed, data_dir) for text in intrusion or []))
    out = out or Path("probes") / _folder_of([checkpoint.label for checkpoint in checkpoints])
    from memprobe.dashboard import write_report
    from memprobe.files import replacing
    from memprobe.patches import FOLDER
    from memprobe.probe_writer import PROBE, locked
    from memprobe.probing import probe
    from memprobe.starting_over import starting_over

    with locked(out):
        counted = None if fresh else _counted(out)
        with starting_over(out, PROBE, fresh=fresh) as before, resumable(out), Bars() as bars:
            if before.there and (out / FOLDER).is_dir():
                echo(
                    f"note     the patches stay, which were made beside the probe before: {out / FOLDER} (memprobe "
                    "patch --fresh makes them anew)",
                    err=True,
                )
            probed = probe(
                checkpoints,
                asked.factoids,
                out,
                template=chosen_template,
                lenses=lens or (),
                readout=readout,
                positions=[name.strip() for name in positions.split(",")],
                intrusions=watched,
                attributions=attributions,
                keep_residuals=keep_residuals,
                k=top_k,
                token=cast("Rule", token),
                batch_size=size,
                seed=seed,
                **vars(loading),
                steps=steps,
                evict=evict,
                engine=cluster,
                origin=asked.origin.to_dict(),
                progress=before.watching(bars.update),
            )
        page = out / "report.html"
        if no_report:
            page.unlink(missing_ok=True)  # it would be that of another moment
        else:
            with status("writing the report"), replacing(page) as path:
                write_report(probed, path)
    named = [checkpoint.label for checkpoint in checkpoints]
    if as_json:
        echo_json(probed.summary)
    else:
        from memprobe.cli.show_probe import print_summary

        print_summary(probed.only(named), full=full)
    if counted not in (None, now := _counted(out)):
        echo(
            f"note     this probe, with all of its checkpoints, is now counted by {now} (was {counted})",
            err=True,
        )
    _say_where(probed, named, out, None if no_report else page)
    if show:
        open_page(page)


def _counted(out: Path) -> str | None:
    """The top k and the token rule of a probe that holds something."""
    from memprobe.probes import RUN, read_run

    run = read_run(out) if (out / RUN).exists() else {"checkpoints": {}}
    return f"top {run['k']}, token rule {run['token']}" if run["checkpoints"] else None


def _intrusion(text: str, seed: int, data_dir: Path | None) -> tuple[str, list[Factoid]]:
    name, _, source = text.partition("=")
    if not name or not source:
        raise MemprobeError(f"--intrusion {text!r}: write NAME=FACTOIDS, as in lama=d_b.jsonl")
    return name, other_factoids(source, seed, data_dir, instead="--intrusion NAME=FILE")


def _folder_of(labels: list[str]) -> str:
    """A folder's name for a probe: every label, or the first, the last and how many there are."""
    slugs = [slug(label) for label in labels]
    if len("-".join(slugs)) <= 100:
        return "-".join(slugs)
    return f"{slugs[0][:60]}-to-{slugs[-1][-40:]}-{len(slugs)}"


def _say_where(probed: Probe, named: Sequence[str], out: Path, page: Path | None) -> None:
    """Notes on the checkpoints that were asked for, and where everything is."""
    from memprobe import wording
    from memprobe.lineage import same_weights

    if same := same_weights(probed.run["checkpoints"].items()):
        echo(f"note     {wording.same_weights(same)}", err=True)
    asked = probed.only(named)
    incomplete = asked.outcomes["error"].drop_nulls().len()
    if incomplete:
        echo(f"note     {incomplete} factoids gave logits that are not finite and have no records", err=True)
    for label, entry in asked.run["checkpoints"].items():
        for note in [entry["note"], *entry.get("notes", [])]:
            if note:
                echo(f"note     {label}: {note}", err=True)
        without = entry.get("without_subject") or {"n": 0}
        if without["n"]:
            more = "" if without["n"] <= len(without["first"]) else " …"
            echo(
                f"note     {label}: {without['n']} factoids are not read at their subject: "
                f"{'; '.join(without['first'])}{more}",
                err=True,
            )
        if "precision" in entry:
            echo(f"note     {label}: {_precision_text(entry['precision'])}", err=True)
    if others := len(probed.checkpoints) - len(named):
        more = wording.count(others, "other checkpoint")
        echo(f"note     {more} in {out}: memprobe show {shlex.quote(str(out))} prints all", err=True)
    echo(f"records  {out / 'records'}", err=True)
    echo(f"summary  {out / 'summary.json'}", err=True)
    echo(f"report   {page or 'not written; the same command without --no-report writes it'}", err=True)


def _precision_text(precision: dict[str, Any]) -> str:
    """How far a probe in bf16 or fp16 can be trusted, as a line."""
    dtype = precision["dtype"]
    if precision["changed"] is None:
        why = precision.get("why", "no rank to compare")
        return f"in {dtype}; its ranks were not held against fp32 ({why})"
    return (
        f"in {dtype}; {precision['changed']:.1%} of {precision['ranks']:,} ranks differ from fp32, "
        f"{precision['crossed']:.1%} across the top {precision['k']} ({precision['factoids']} factoids)"
    )
