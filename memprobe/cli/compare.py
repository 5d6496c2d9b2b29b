"""``memprobe compare``: do the same facts surface at different depths, and how sure are we?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memprobe.cli import options
from memprobe.cli.app import app, in_options
from memprobe.cli.asked import refuse_given
from memprobe.cli.terminal import echo, echo_json
from memprobe.errors import MemprobeError, there_are
from memprobe.labels import named_once, split_outside

if TYPE_CHECKING:
    from memprobe.compare import Comparison
    from memprobe.compare.outcomes import OutcomeComparison
    from memprobe.members import Member
    from memprobe.probes import Probe


_NET = ("net", "net_by_depth")
"""Tables that ``--net`` shows beside those of the answer."""


@app.command("compare")
def compare_command(
    typer_context: typer.Context,
    probes: Annotated[
        list[Path],
        typer.Argument(
            metavar="PROBE…",
            help="Probe directories (memprobe layers --out makes them), results of other tools (memprobe import; "
            "answers are compared then, not depths), or a directory with one set-up's probes in all "
            "readouts, as in a grid's probes/SETUP.",
        ),
    ],
    reference: options.Reference = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="Label of the base model. [default: the checkpoint with the weights that manifests name as theirs; "
            "where they name none, the only one without a manifest, else the one labelled base]",
            show_default=False,
        ),
    ] = None,
    fixed_readout: options.FixedReadout = None,
    top_k: options.ProbesTopK = None,
    token: options.ProbesTokenRule = None,
    lens: options.ProbesLens = None,
    position: options.ProbesPosition = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Also compare within groups of facts: relation, source, popularity, answer-length, first-token, "
            "outcome. Repeatable."
        ),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="LABEL=ARM:SEED[:STAGE]",
            help="How a checkpoint without a manifest was made, as in tuned=none:0:2 (naive training, seed 0, stage 2);"
            " arms are compared over seeds. Repeatable.",
        ),
    ] = None,
    net: Annotated[
        str | None,
        typer.Option(
            metavar="CONTROL",
            help="Show recall and the statistics minus those of a control: shuffled, base, or intrusion:NAME; --out "
            "and --json always hold all of them. [default: shuffled answers stand beside them]",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Which checkpoints are compared for overlap: each with the reference and the base model (anchors), "
            "or all pairs (all). [default: anchors]",
            show_default=False,
        ),
    ] = None,
    draws: options.Draws = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of those resamples.", min=0, max=options.MAX_SEED)] = 0,
    full: options.Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every table as JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for comparison.json, the answer as comparison.md, and one CSV per table.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compares where the same facts surface in different checkpoints, with intervals and controls.

    Needs probe directories only, no model. Intervals in brackets are 95 %; a difference is checkpoint minus
    reference, so a negative one in depth says "earlier".

    Examples:

    `memprobe compare probes/stages --reference base --fixed-readout probes/stages-base-readout`

    `memprobe compare probes/none-0 probes/remix-0 --by relation --out tables/`

    `memprobe compare probes/stages --net base --pairs all`

    `memprobe compare runs/study/probes/kvr-lama-n64 --reference naive-s0.2`

    `memprobe compare probes/lenses --lens tuned --position subject`
    """
    from memprobe.cli.show_comparison import print_comparison
    from memprobe.compare import ANSWER, compare
    from memprobe.places import check_folder
    from memprobe.results import is_results
    from memprobe.statistics.groups import check_by

    if out is not None:
        check_folder(out)
    if any(is_results(path) for path in probes):
        given = {
            "--base": base,
            "--fixed-readout": fixed_readout,
            "-k": top_k,
            "--token": token,
            "--lens": lens,
        }
        given |= {"--position": position, "--by": by, "--net": net, "--pairs": pairs}
        refuse_given(given, "is about depths, and results of other tools hold answers alone; leave it out")
        _compare_outcomes(probes, reference, arms or [], draws, seed, full, as_json, out)
        return
    check_by(by or ())  # before probes are opened
    everything = full or as_json or out is not None
    more = [name for name, asked in (("groups", by), ("overlap", pairs)) if asked]
    opened, others = _found(probes)
    result = compare(
        opened,
        k=top_k,
        token=token,
        lens=lens,
        position=position,
        reference=reference,
        base=base,
        fixed_readout=fixed_readout or others,
        by=by or (),
        arms=_arms(arms or ()),
        pairs=pairs or "anchors",
        only=None if everything else (*ANSWER, *(_NET if net else ()), *more),
        draws=draws,
        seed=seed,
        track=_track,
    )
    command = typer_context.command
    result = replace(result, notes=[in_options(note, command) for note in result.notes])
    _check_net(result, net)
    if out is not None:
        result.write(out)
    if as_json:
        echo_json(result.as_json())
    else:
        print_comparison(result, net, full=full, groups=bool(by), overlap=pairs is not None)
        if not full:
            echo("\nEvery table: --full; as files: --out DIR.", err=True)
    _say(result, out, seeds=everything)


def _compare_outcomes(
    paths: Sequence[Path],
    reference: str | None,
    arms: Sequence[str],
    draws: int,
    seed: int,
    full: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Answers alone: what other tools found has no depths."""
    from memprobe.cli.show_comparison import print_outcomes
    from memprobe.compare.outcomes import compare_outcomes

    result = compare_outcomes(paths, reference=reference, arms=_arms(arms), draws=draws, seed=seed)
    if out is not None:
        result.write(out)
    if as_json:
        echo_json(result.as_json())
    else:
        print_outcomes(result, full=full)
    _say(result, out, seeds=full or as_json or out is not None)


def _found(paths: Sequence[Path]) -> tuple[list[Probe], list[Probe]]:
    """The probes in their own readout, and those in another one that were found beside them.

    Raises:
        MemprobeError: a directory holds no probe, or probes of different factoids or set-ups.
    """
    from memprobe.probes import open_probe
    from memprobe.studies import open_study, setup_of

    own: list[Probe] = []
    others: list[Probe] = []
    for path in paths:
        if (path / "run.json").exists() or not path.is_dir():
            own.append(open_probe(path))
            continue
        inside = open_study([path]).probes
        asked = {probe.run["factoids"]["hash"]: probe.path for probe in inside}
        if len(asked) > 1:
            names = ", ".join(dict.fromkeys(str(_named_by(one)) for one in asked.values()))
            raise MemprobeError(f"{path}: holds probes of different factoids; name one of {names}")
        setups = {setup_of(probe.path): str(_named_by(probe.path)) for probe in inside}
        if len(setups) > 1:
            raise MemprobeError(
                f"{path}: holds {len(setups)} set-ups; name one of {', '.join(setups.values())}"
            )
        own += [probe for probe in inside if probe.run["readout"] == "own"]
        others += [probe for probe in inside if probe.run["readout"] != "own"]
        if not inside:
            raise MemprobeError(f"{path}: holds no probe directory (memprobe layers --out makes one)")
    return own, others


def _named_by(probe: Path) -> Path:
    """What names a probe below a folder: in a grid its set-up, whose probes are compared together."""
    from memprobe.studies import setup_of

    return probe if setup_of(probe) is None else probe.parent


def _arms(texts: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """By label, (arm, seed, stage) as ``--arm`` names them.

    Raises:
        MemprobeError: one is written otherwise, or a label stands twice.
    """
    return named_once("--arm", map(_arm, texts))


def _arm(text: str) -> tuple[str, tuple[str, str, str]]:
    # A label may hold an = and an arm may, in brackets; what is made follows the last one outside of any.
    *label, made = split_outside(text, "=")
    parts = split_outside(made, ":")
    if not any(label) or len(parts) not in (2, 3) or not all(parts):
        raise MemprobeError(f"--arm {text!r}: write LABEL=ARM:SEED or LABEL=ARM:SEED:STAGE")
    return "=".join(label), (parts[0], parts[1], parts[2] if len(parts) == 3 else "")


def _track(members: list[Member]) -> Iterable[Member]:
    from rich.progress import track

    from memprobe.cli.terminal import terminal

    return track(members, "comparing", console=terminal(stderr=True), transient=True)


def _say(result: Comparison | OutcomeComparison, out: Path | None, *, seeds: bool) -> None:
    """What stands below the tables.

    Args:
        seeds: whether arms are shown or stored, so that a reader must know that one has few seeds.
    """
    from memprobe.cli.show_comparison import print_notes
    from memprobe.cli.terminal import wide_terminal

    print_notes(result.notes, seeds=seeds)
    if out is not None:
        wide_terminal(stderr=True, highlight=False).print(f"tables: {out}", soft_wrap=True)


def _check_net(result: Comparison, net: str | None) -> None:
    if net is None:
        return
    there = result.tables["net"]["control"].unique(maintain_order=True).to_list()
    if net not in there:
        has = (
            there_are(net, there, before="the controls here are")
            if there
            else "these probes hold no controls"
        )
        raise MemprobeError(f"--net {net}: {has}")
