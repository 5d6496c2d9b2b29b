"""``memprobe compare``: do the same facts surface at different depths, and how sure are we?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprobe.cli import app
from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from memprobe.compare import Comparison, Member


@app.command("compare")
def compare_command(
    probes: Annotated[
        list[Path],
        typer.Argument(metavar="PROBE…", help="Probe directories (memprobe layers --out makes them)."),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="Differences are taken from this checkpoint. [default: the first]",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The base model. [default: the one without a manifest among others that have one, or 'base']",
            show_default=False,
        ),
    ] = None,
    fixed_readout: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PROBE",
            help="The same checkpoints, probed with --readout BASE. Without it no placement claim is held. Repeatable.",
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", help="A depth holds an answer whose rank is below this.")
    ] = 10,
    token: Annotated[
        str, typer.Option(help="Which answer tokens must be in the top k: first, last or all.")
    ] = "first",
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Also by group: relation, source, popularity, answer-length, first-token, outcome. Repeatable."
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=ARM:SEED[:STAGE]",
            help="How a checkpoint without a manifest was made; arms are compared over seeds. Repeatable.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Of the bootstrap and of the permutation test.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of those draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print every table as JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for comparison.json and one CSV per table.", show_default=False),
    ] = None,
) -> None:
    """Compares where the same facts surface in different checkpoints, with intervals and controls.

    Needs probe directories only, no model. Intervals in brackets are 95 %; a difference is checkpoint minus
    reference, so a negative one in depth says "earlier".

    Examples:

    `memprobe compare probes/stages --reference base --fixed-readout probes/stages-base-readout`

    `memprobe compare probes/none-0 probes/remix-0 --by relation --out tables/`
    """
    from memprobe.compare import compare

    result = compare(
        probes,
        k=top_k,
        token=token,
        reference=reference,
        base=base,
        fixed_readout=fixed_readout or (),
        by=by or (),
        arms=dict(_arm(text) for text in arm or ()),
        draws=draws,
        seed=seed,
        track=_track,
    )
    if out is not None:
        result.write(out)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_comparison(result)
    _say(result, out)


def _arm(text: str) -> tuple[str, tuple[str, str, str]]:
    label, _, made = text.rpartition("=")
    parts = made.split(":")
    if not label or len(parts) not in (2, 3) or not all(parts):
        raise MemprobeError(f"--arm {text!r}: write LABEL=ARM:SEED or LABEL=ARM:SEED:STAGE")
    return label, (parts[0], parts[1], parts[2] if len(parts) == 3 else "")


def _track(members: list[Member]) -> Iterable[Member]:
    from rich.console import Console
    from rich.progress import track

    return track(members, "comparing", console=Console(stderr=True), transient=True)


def _say(result: Comparison, out: Path | None) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    if out is not None:
        console.print(f"tables: {out}", markup=False)


# ---------------------------------------------------------------------------------------------------------------
# Tables on the terminal
# ---------------------------------------------------------------------------------------------------------------

_NAMES = {
    "lof": "LoF, where in both",
    "lof_restricted": "LoF, never as n+1",
    "settled": "settled, where in both",
    "settled_restricted": "settled, never as n+1",
    "depths_per_factoid": "depths per factoid",
    "area": "area under recall",
    "recall_full": "recall at full depth",
    "log_prob_full": "log-prob at full depth",
    "exact": "exact match",
}


def print_comparison(result: Comparison) -> None:
    """Prints the tables that fit a terminal; ``--out`` and ``--json`` hold all of them."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width, so nothing need be folded
    settings = result.settings
    base = f", base model {settings['base']}" if settings["base"] else ""
    console.print(
        f"{settings['factoids']} factoids, top {settings['k']}, token rule {settings['token']}, "
        f"template {settings['template']!r}, readout {settings['readout']}; reference {settings['reference']}{base}; "
        f"[95 % intervals], {settings['draws']} draws, seed {settings['seed']}",
        style="dim",
        markup=False,
        highlight=False,
    )
    for show in (
        _recall,
        _placement,
        _differences,
        _by_depth,
        _spread,
        _fates,
        _paths,
        _arms,
        _groups,
        _steps,
    ):
        show(console, result.tables)


def _table(console: Console, title: str, columns: list[str], rows: list[list[str]], *, left: int = 1) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), title=Text(title, "bold"), title_justify="left"
    )
    for position, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print()
    console.print(table)


def _edges(row: dict[str, Any], name: str, form: str = ".2f") -> str:
    """value [low, high]"""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return _interval(value, low, high, form)


def _interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None:
        return "–"
    return f"{value:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else f"{value:{form}}"


def _rows(table: pl.DataFrame | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_dicts()


def _recall(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    curves = tables["curves"]
    deepest = int(curves["depth"].to_numpy().max())
    shown = sorted({round(deepest * step / 8) for step in range(9)})
    rows = []
    for label in curves["checkpoint"].unique(maintain_order=True):
        own = {row["depth"]: row for row in curves.to_dicts() if row["checkpoint"] == label}
        for name, column in ((label, "recall"), ("  shuffled answers", "chance")):
            rows.append([name, *(_number(own[d][column]) if d in own else "" for d in shown)])
    _table(console, "Recall by depth, and its chance level", ["", *map(str, shown)], rows)


def _placement(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "exact": lambda row: _number(row["exact"]),
        "LoF mean ± sd": lambda row: f"{_number(row['lof_mean'])} ± {_number(row['lof_sd'])}",
        "never": lambda row: _edges(row, "share_never"),
        "only at full": lambda row: _number(row["share_only_full"]),
        "never as n+1": lambda row: _edges(row, "lof_restricted_mean"),
        "by chance": lambda row: _number(row["chance_lof_restricted_mean"]),
        "median": lambda row: _edges(row, "lof_median", ".0f"),
    }
    rows = _rows(tables["placement"])
    names = [row["checkpoint"] + (" (base)" if row["base"] else "") for row in rows]
    body = [[name, *(cell(row) for cell in columns.values())] for name, row in zip(names, rows, strict=True)]
    _table(console, "First occurrence (LoF)", ["", *columns], body)
    columns = {
        "settled mean ± sd": lambda row: f"{_number(row['settled_mean'])} ± {_number(row['settled_sd'])}",
        "never": lambda row: _number(row["settled_share_never"]),
        "never as n+1": lambda row: _edges(row, "settled_restricted_mean"),
        "depths per factoid": lambda row: _edges(row, "depths_per_factoid"),
        "effective layers": lambda row: _edges(row, "effective_layers"),
        "k commonest tokens cover": lambda row: _number(row["answer_cover"]),
    }
    body = [[name, *(cell(row) for cell in columns.values())] for name, row in zip(names, rows, strict=True)]
    _table(console, "Settled depth and diversity", ["", *columns], body)


def _differences(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    table = tables.get("differences")
    if table is None:
        return
    held = {(r["reference"], r["checkpoint"], r["statistic"]): r["held"] for r in _rows(tables["claims"])}
    both = {
        (r["reference"], r["checkpoint"], r["statistic"]): r
        for r in _rows(table)
        if r["on"] == "exact in both"
    }
    for reference in table["reference"].unique(maintain_order=True):
        rows = []
        for row in _rows(table):
            if row["reference"] != reference or row["on"] != "all":
                continue
            key = (reference, row["checkpoint"], row["statistic"])
            inner = both.get(key)
            rows.append(
                [
                    row["checkpoint"] if row["statistic"] == "lof" else "",
                    _NAMES[row["statistic"]],
                    str(row["n"]),
                    _interval(row["difference"], row["low"], row["high"], "+.2f"),
                    _number(row["p"], ".4f"),
                    _number(row["effect"], "+.2f"),
                    "–"
                    if inner is None
                    else _interval(inner["difference"], inner["low"], inner["high"], "+.2f"),
                    "" if key not in held else {True: "yes", False: "no", None: "not known"}[held[key]],
                ]
            )
        columns = ["", "", "n", "difference", "p", "d_z", "exact in both", "held in both readouts"]
        _table(console, f"Minus {reference}, factoid by factoid", columns, rows, left=2)


def _by_depth(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    import polars as pl

    table = tables.get("differences_by_depth")
    if table is None:
        return
    rows = []
    for (reference, checkpoint, measure), part in table.group_by(
        "reference", "checkpoint", "measure", maintain_order=True
    ):
        # A fall in rank is a rise of the answer, so every measure speaks of the answer here.
        better = pl.col("dominance") * (-1 if measure == "rank" else 1)
        sure = part.filter(pl.col("q") < 0.05)
        up, down = (sure.filter(which)["depth"].to_list() for which in (better > 0, better < 0))
        first = measure == "recall"
        rows.append(
            [
                str(checkpoint) if first else "",
                str(reference) if first else "",
                str(measure),
                _spans(up),
                _spans(down),
            ]
        )
    columns = ["", "minus", "", "answer stands higher at", "lower at"]
    _table(console, "Depths that differ (false-discovery rate 5 % over depths)", columns, rows, left=5)


def _spans(depths: list[int]) -> str:
    """1, 2, 3, 7 as 1–3, 7."""
    spans: list[list[int]] = []
    for depth in depths:
        if spans and spans[-1][1] == depth - 1:
            spans[-1][1] = depth
        else:
            spans.append([depth, depth])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans) or "none"


def _spread(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    if "spread" not in tables:
        return
    overlaps = {(r["reference"], r["checkpoint"]): r for r in _rows(tables["overlap"]) if r["depth"] is None}
    rows = []
    for row in _rows(tables["spread"]):
        if row["on"] == "all":
            shared = overlaps[row["reference"], row["checkpoint"]]
            rows.append(
                [
                    row["checkpoint"],
                    row["reference"],
                    *(_number(row[name]) for name in ("sd", "sd_reference", "sd_expected")),
                    _interval(row["difference"], row["low"], row["high"], "+.2f"),
                    _interval(shared["jaccard"], shared["low"], shared["high"], ".2f"),
                ]
            )
    columns = ["", "against", "sd of LoF", "reference", "expected*", "sd − expected", "overlap of depths"]
    _table(console, "Spread and overlap (* the reference's LoF, shifted and clipped)", columns, rows, left=2)


def _fates(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    if "fates" not in tables:
        return
    lost = {(row["reference"], row["checkpoint"]): row for row in _rows(tables["lost"])}
    rows = []
    for (reference, checkpoint), part in tables["fates"].group_by(
        "reference", "checkpoint", maintain_order=True
    ):
        counts = dict(part.select("path", "n").iter_rows())
        row = lost[reference, checkpoint]
        rows.append(
            [
                str(checkpoint),
                str(reference),
                *(str(counts[path]) for path in ("1→1", "1→0", "0→1", "0→0")),
                _edges(row, "surfaces"),
                _number(row["deepest"], ".1f"),
                _number(row["log_prob"]),
                _edges(row, "intruded"),
            ]
        )
    columns = ["", "from", "1→1", "1→0", "0→1", "0→0", "lost: surface", "deepest", "log-prob", "intruded"]
    _table(console, "Fates: exact match before → after, and where the lost went", columns, rows, left=2)


def _paths(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    rows = [
        [
            row["arm"],
            row["seed"],
            row["stages"],
            row["path"],
            str(row["n"]),
            _edges({**row, **_renamed(row)}, "share"),
        ]
        for row in _rows(tables.get("paths"))
        if row["n"]
    ]
    if rows:
        columns = ["arm", "seed", "stages", "exact match", "n", "share"]
        _table(console, "Paths through the stages", columns, rows, left=4)


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {"share_low": row["low"], "share_high": row["high"]}


def _arms(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    shown = ("exact", "recall_full", "lof_restricted", "settled_restricted", "depths_per_factoid")
    rows = [
        [
            row["arm"],
            row["stage"],
            _NAMES[row["statistic"]],
            _interval(row["mean"], row["low"], row["high"], ".2f"),
            "  ".join(_number(value) for value in row["by_seed"]),
        ]
        for row in _rows(tables.get("arms"))
        if row["statistic"] in shown
    ]
    if rows:
        _table(console, "Arms over training seeds", ["arm", "stage", "", "mean", "by seed"], rows, left=3)
    rows = [
        [
            row["arm"],
            row["reference"],
            row["stage"],
            _NAMES[row["statistic"]],
            _interval(row["difference"], row["low"], row["high"], "+.2f"),
            _number(row["p"], ".4f"),
            {True: "yes", False: "no", None: "too few seeds"}[row["significant"]],
        ]
        for row in _rows(tables.get("arm_differences"))
        if row["statistic"] in shown
    ]
    if rows:
        columns = ["arm", "minus", "stage", "", "difference", "p", "significant"]
        _table(console, "Differences between arms: seeds resampled, then factoids", columns, rows, left=4)


def _groups(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    rows, before = [], None
    for row in _rows(tables.get("groups")):
        key = (row["by"], row["checkpoint"])
        rows.append(
            [
                row["by"] if key != before else "",
                row["checkpoint"] if key != before else "",
                row["group"],
                str(row["n"]),
                _edges(row, "recall_full"),
                _edges(row, "share_never"),
                _edges(row, "lof_restricted_mean"),
                _number(row["log_rank_p"], ".4f") if key != before else "",
            ]
        )
        before = key
    if rows:
        columns = ["by", "", "group", "n", "recall at full", "never", "LoF, never as n+1", "log-rank p"]
        _table(console, "By group", columns, rows, left=3)


def _steps(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    rows = [
        [
            str(row["step"]),
            row["checkpoint"],
            _number(row["exact"]),
            _number(row["area"]),
            _edges(row, "lof_restricted_mean"),
            _edges(row, "settled_restricted_mean"),
            _edges(row, "depths_per_factoid"),
        ]
        for row in _rows(tables.get("steps"))
    ]
    if rows:
        columns = [
            "step",
            "",
            "exact",
            "area",
            "LoF, never as n+1",
            "settled, never as n+1",
            "depths per factoid",
        ]
        _table(console, "By training step", columns, rows, left=2)
