"""``memprobe compare``: do the same facts surface at different depths, and how sure are we?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memprobe.cli.app import app
from memprobe.cli.options import FixedReadout, Reference, TokenRule, TopK
from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from memprobe.compare import Comparison, Member
    from memprobe.probes import Probe


@app.command("compare")
def compare_command(
    probes: Annotated[
        list[Path],
        typer.Argument(
            metavar="PROBE…",
            help="Probe directories (memprobe layers --out makes them), or a directory with one set-up's probes in all "
            "readouts, as in a grid's probes/SETUP.",
        ),
    ],
    reference: Reference = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The base model. [default: the one without a manifest among others that have one, or 'base']",
            show_default=False,
        ),
    ] = None,
    fixed_readout: FixedReadout = None,
    top_k: TopK = 10,
    token: TokenRule = "first",
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
    net: Annotated[
        str | None,
        typer.Option(
            metavar="CONTROL",
            help="Show recall and the statistics net of a control: shuffled, base, or intrusion:NAME. "
            "[default: shuffled answers stand beside them] --out and --json hold all of them anyway.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        str,
        typer.Option(help="Overlap with the reference and the base model (anchors), or of all pairs: all."),
    ] = "anchors",
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

    `memprobe compare probes/stages --net base --pairs all`

    `memprobe compare runs/study/probes/kvr-lama-n64 --reference naive-s0.2`
    """
    from memprobe.compare import compare

    opened, others = _found(probes)
    result = compare(
        opened,
        k=top_k,
        token=token,
        reference=reference,
        base=base,
        fixed_readout=fixed_readout or others,
        by=by or (),
        arms=dict(_arm(text) for text in arm or ()),
        pairs=pairs,
        draws=draws,
        seed=seed,
        track=_track,
    )
    _check_net(result, net)
    if out is not None:
        result.write(out)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_comparison(result, net)
    _say(result, out)


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
            names = ", ".join(str(one.parent) for one in asked.values())
            raise MemprobeError(f"{path}: holds probes of different factoids; name one of {names}")
        setups = {setup_of(probe.path): str(probe.path.parent) for probe in inside}
        if len(setups) > 1:
            raise MemprobeError(
                f"{path}: holds {len(setups)} set-ups; name one of {', '.join(setups.values())}"
            )
        own += [probe for probe in inside if probe.run["readout"] == "own"]
        others += [probe for probe in inside if probe.run["readout"] != "own"]
        if not inside:
            raise MemprobeError(f"{path}: holds no probe directory (memprobe layers --out makes one)")
    return own, others


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

WIDTH = 100

_NAMES = {
    "lof": "LoF, where in both",
    "lof_restricted": "LoF, never as n+1",
    "settled": "settled, where in both",
    "settled_restricted": "settled, never as n+1",
    "depths_per_factoid": "depths per factoid",
    "area": "area under recall",
    "recall_full": "recall at full depth",
    "log_prob_full": "log-prob, full depth",
    "exact": "exact match",
}
_DIRECTION = "LoF, settled: in depths, negative is earlier. Others: positive is better (log-prob in nats)."


def print_comparison(result: Comparison, net: str | None = None) -> None:
    """Prints the tables that fit a terminal of 100 columns; ``--out`` and ``--json`` hold all of them.

    Args:
        net: the control that recall and the statistics are shown net of; by default their chance level from
            shuffled answers stands beside them.

    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH  # a file or a pipe has no width
    settings = result.settings
    base = f", base model {settings['base']}" if settings["base"] else ""
    console.print(
        f"{settings['factoids']} factoids; a depth holds one whose answer is in the top {settings['k']} (token rule "
        f"{settings['token']}). Template {settings['template']!r}, readout {settings['readout']}; reference "
        f"{settings['reference']}{base}. [95 % intervals] from {settings['draws']} draws, seed {settings['seed']}.",
        style="dim",
        markup=False,
        highlight=False,
    )
    if net is None:
        _recall(console, result.tables)
        _placement(console, result.tables)
    else:
        _net_recall(console, result.tables, net)
        _net(console, result.tables, net)
    for show in (_differences, _by_depth, _spread):
        show(console, result.tables)
    _overlap(console, result)
    for show in (_fates, _kept, _paths, _arms, _groups, _steps):
        show(console, result.tables)


def _check_net(result: Comparison, net: str | None) -> None:
    there = result.tables["net"]["control"].unique(maintain_order=True).to_list()
    if net is not None and net not in there:
        has = f"the controls here are {', '.join(there)}" if there else "these probes hold no controls"
        raise MemprobeError(f"--net {net}: {has}")


def _table(
    console: Console,
    title: str,
    columns: list[str],
    rows: list[list[str]],
    *,
    left: int = 1,
    says: str | None = None,
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print()
    console.print(Text(title, "bold"))
    if says:
        console.print(Text(says, "dim"))
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


def _p(value: float | None) -> str:
    return "–" if value is None else "<.0001" if value < 0.00005 else f"{value:.4f}"


def _rows(table: pl.DataFrame | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_dicts()


def _shown_depths(table: pl.DataFrame) -> list[int]:
    deepest = int(table["depth"].to_numpy().max())
    return sorted({round(deepest * step / 8) for step in range(9)})


def _recall(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    curves = tables["curves"]
    shown = _shown_depths(curves)
    rows = []
    for label in curves["checkpoint"].unique(maintain_order=True):
        own = {row["depth"]: row for row in curves.to_dicts() if row["checkpoint"] == label}
        for name, column in ((label, "recall"), ("  shuffled answers", "chance")):
            rows.append([name, *(_number(own[d][column]) if d in own else "" for d in shown)])
    says = "Share of factoids held; more is better. Shuffled answers (other factoids') are its chance level."
    _table(console, "Recall by depth, and its chance level", ["depth", *map(str, shown)], rows, says=says)


def _net_recall(console: Console, tables: dict[str, pl.DataFrame], control: str) -> None:
    table = tables["net_by_depth"].filter(control=control, measure="recall")
    shown = _shown_depths(table)
    rows = []
    for label in table["checkpoint"].unique(maintain_order=True):
        own = {row["depth"]: row for row in table.to_dicts() if row["checkpoint"] == label}
        rows.append([label, *(_number(own[d]["net"], "+.2f") if d in own else "" for d in shown)])
    says = "Share of factoids held minus the control's; more is better."
    _table(console, f"Recall by depth, net of {control}", ["depth", *map(str, shown)], rows, says=says)


def _net(console: Console, tables: dict[str, pl.DataFrame], control: str) -> None:
    rows, before = [], None
    for row in _rows(tables["net"].filter(control=control)):
        label = row["checkpoint"]
        rows.append(
            [
                label if label != before else "",
                _NAMES[row["statistic"]],
                str(row["n"]),
                _number(row["value"]),
                _number(row["chance"]),
                _interval(row["net"], row["low"], row["high"], "+.2f"),
            ]
        )
        before = label
    columns = ["", "", "n", "value", "control", "net"]
    _table(console, f"Net of {control}: value minus control", columns, rows, left=2, says=_DIRECTION)


def _placement(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    rows = _rows(tables["placement"])
    names = [row["checkpoint"] + (" (base)" if row["base"] else "") for row in rows]

    def show(title: str, says: str, columns: dict[str, Callable[[dict[str, Any]], str]]) -> None:
        body = [
            [name, *(cell(row) for cell in columns.values())] for name, row in zip(names, rows, strict=True)
        ]
        _table(console, title, ["", *columns], body, says=says)

    show(
        "First occurrence (LoF)",
        "The smallest depth that holds a factoid; smaller is earlier. By chance: of shuffled answers.\n"
        "What never surfaces stands at n+1 where said so; no median: half never do.",
        {
            "mean ± sd": lambda row: f"{_number(row['lof_mean'])} ± {_number(row['lof_sd'])}",
            "median": lambda row: _edges(row, "lof_median", ".0f"),
            "never as n+1": lambda row: _edges(row, "lof_restricted_mean"),
            "by chance": lambda row: _number(row["chance_lof_restricted_mean"]),
        },
    )
    show(
        "Shares of factoids",
        "Cover: what naming the k commonest answer tokens would hold, whatever the prompt.",
        {
            "exact match": lambda row: _number(row["exact"]),
            "never held": lambda row: _edges(row, "share_never"),
            "first at full": lambda row: _number(row["share_only_full"]),
            "area": lambda row: _number(row["area"]),
            "by chance": lambda row: _number(row["chance_area"]),
            "cover": lambda row: _number(row["answer_cover"]),
        },
    )
    show(
        "Settled depth",
        "The smallest depth from which every later one holds the factoid; smaller is earlier.",
        {
            "mean ± sd": lambda row: f"{_number(row['settled_mean'])} ± {_number(row['settled_sd'])}",
            "never": lambda row: _number(row["settled_share_never"]),
            "never as n+1": lambda row: _edges(row, "settled_restricted_mean"),
            "by chance": lambda row: _number(row["chance_settled_restricted_mean"]),
        },
    )
    show(
        "Diversity",
        "How many depths hold a factoid, and over how many all occurrences spread (exp of the entropy).",
        {
            "depths per factoid": lambda row: _edges(row, "depths_per_factoid"),
            "by chance": lambda row: _number(row["chance_depths_per_factoid"]),
            "effective layers": lambda row: _edges(row, "effective_layers"),
        },
    )


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
    said = {True: "yes", False: "no", None: "?"}
    for reference, checkpoint in (
        table.select("reference", "checkpoint").unique(maintain_order=True).iter_rows()
    ):
        rows = []
        for row in _rows(table.filter(reference=reference, checkpoint=checkpoint, on="all")):
            key = (reference, checkpoint, row["statistic"])
            inner = both.get(key) or {"difference": None, "low": None, "high": None}
            rows.append(
                [
                    _NAMES[row["statistic"]],
                    str(row["n"]),
                    _interval(row["difference"], row["low"], row["high"], "+.2f"),
                    _p(row["p"]),
                    _number(row["effect"], "+.2f"),
                    _interval(inner["difference"], inner["low"], inner["high"], "+.2f"),
                    said[held[key]] if key in held else "",
                ]
            )
        columns = ["", "n", "difference", "p", "d_z", "exact in both", "held"]
        says = f"{_DIRECTION}\nHeld: the same side of 0 in the own and in the base readout (?: not probed)."
        _table(console, f"{checkpoint} minus {reference}, factoid by factoid", columns, rows, says=says)


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
        pair = f"{checkpoint} − {reference}" if measure == "recall" else ""
        rows.append([pair, str(measure), _spans(up), _spans(down)])
    columns = ["", "", "answer stands higher at depths", "lower at depths"]
    _table(console, "Depths that differ (false-discovery rate 5 % over depths)", columns, rows, left=4)


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
    rows = [
        [
            f"{row['checkpoint']} − {row['reference']}",
            *(_number(row[name]) for name in ("sd", "sd_reference", "sd_expected")),
            _interval(row["difference"], row["low"], row["high"], "+.2f"),
        ]
        for row in _rows(tables.get("spread"))
        if row["on"] == "all"
    ]
    if rows:
        columns = ["", "sd of LoF", "reference's", "expected", "sd − expected"]
        says = "In depths. Expected: the reference's LoF shifted by the difference of the means, clipped to 1 … n."
        _table(console, "Spread", columns, rows, says=says)


def _overlap(console: Console, result: Comparison) -> None:
    table = result.tables.get("overlap")
    if table is None:
        return
    depths = [depth for depth in _shown_depths(table.drop_nulls("depth")) if depth][-6:]
    rows = []
    for reference, checkpoint in (
        table.select("reference", "checkpoint").unique(maintain_order=True).iter_rows()
    ):
        part = {row["depth"]: row for row in _rows(table.filter(reference=reference, checkpoint=checkpoint))}
        whole = part[None]
        rows.append(
            [
                f"{checkpoint}, {reference}",
                *(_number(part[depth]["jaccard"] if depth in part else None) for depth in depths),
                _interval(whole["jaccard"], whole["low"], whole["high"], ".2f"),
            ]
        )
    more = "" if result.settings["pairs"] == "all" else " --pairs all shows every pair."
    says = f"Of the factoids that a depth holds in either, the share that it holds in both.{more}"
    _table(console, "Overlap, by depth", ["depth", *map(str, depths), "1 … n"], rows, says=says)


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
                f"{reference} → {checkpoint}",
                *(str(counts[path]) for path in ("1→1", "1→0", "0→1", "0→0")),
                _edges(row, "surfaces"),
                _number(row["deepest"], ".1f"),
                _number(row["log_prob"]),
                _number(row["intruded"]),
            ]
        )
    columns = ["", "1→1", "1→0", "0→1", "0→0", "surface", "deepest", "log-prob", "intruded"]
    says = (
        "Counts; then of the lost (1→0): the share held at some depth still, the deepest such depth, the answer's "
        "log-prob left (nats), the share outranked by an answer of another dataset."
    )
    _table(console, "Fates: exact match before → after, and where the lost went", columns, rows, says=says)


def _kept(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    if "kept" not in tables:
        return
    shown = ("lof_restricted", "lof_restricted_net", "settled_restricted")
    rows = []
    for key, part in tables["kept"].group_by("reference", "checkpoint", maintain_order=True):
        found = {row["statistic"]: row for row in part.to_dicts()}
        counts = found[shown[0]]
        differences = [found[name] for name in shown]
        edges = [_interval(row["difference"], row["low"], row["high"], ".2f") for row in differences]
        rows.append([" → ".join(map(str, key)), str(counts["n_kept"]), str(counts["n_lost"]), *edges])
    columns = ["", "1→1", "1→0", "LoF", "LoF, net of shuffled", "settled"]
    says = "In the reference: mean of 1→1 minus mean of 1→0, never as n+1. Negative: kept facts were earlier."
    _table(console, "Where kept facts were before, against lost ones", columns, rows, says=says)


def _paths(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    rows = [
        [
            f"{row['arm']}, seed {row['seed']}",
            row["stages"],
            row["path"],
            str(row["n"]),
            _interval(row["share"], row["low"], row["high"], ".2f"),
        ]
        for row in _rows(tables.get("paths"))
        if row["n"]
    ]
    if rows:
        columns = ["", "stages", "exact match", "n", "share"]
        _table(console, "Paths through the stages", columns, rows, left=3)


def _arms(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    shown = ["exact", "recall_full", "lof_restricted", "settled_restricted", "depths_per_factoid"]
    for name in ("arms", "arm_differences"):
        table = tables.get(name)
        if table is None:
            continue
        means = name == "arms"
        for (arm, stage), part in table.group_by("arm", "stage", maintain_order=True):
            rows = []
            for row in _rows(part):
                if row["statistic"] not in shown:
                    continue
                value = row["mean"] if means else row["difference"]
                cells = [_interval(value, row["low"], row["high"], ".2f" if means else "+.2f")]
                if means:
                    cells.append("  ".join(_number(one) for one in row["by_seed"]))
                else:
                    cells.append(_p(row["p"]))
                    cells.append({True: "yes", False: "no", None: "too few seeds"}[row["significant"]])
                rows.append([_NAMES[row["statistic"]], *cells])
            if means:
                title, columns, says = f"Arm {arm}, stage {stage}, over seeds", ["", "mean", "by seed"], None
            else:
                title = f"Arm {arm} minus {part['reference'][0]}, stage {stage}, over seeds"
                columns, says = (
                    ["", "difference", "p", "significant"],
                    f"Seeds and factoids both vary.\n{_DIRECTION}",
                )
            _table(console, title, columns, rows, says=says)


def _groups(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    groups = tables.get("groups")
    if groups is None:
        return
    for (by, checkpoint), part in groups.group_by("by", "checkpoint", maintain_order=True):
        rows = [
            [
                row["group"],
                str(row["n"]),
                _edges(row, "recall_full"),
                _edges(row, "share_never"),
                _edges(row, "lof_restricted_mean"),
            ]
            for row in _rows(part)
        ]
        p = part["log_rank_p"][0]
        says = None if p is None else f"Log-rank test that the groups surface alike: p = {p:.4f}"
        columns = ["", "n", "recall at full", "never held", "LoF, never as n+1"]
        _table(console, f"{checkpoint} by {by}", columns, rows, says=says)


def _steps(console: Console, tables: dict[str, pl.DataFrame]) -> None:
    rows = [
        [
            str(row["step"]),
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
            "exact",
            "area",
            "LoF, never as n+1",
            "settled, never as n+1",
            "depths per factoid",
        ]
        _table(console, "By training step", columns, rows)
