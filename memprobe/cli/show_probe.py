"""A probe's summary as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from memprobe import sentences, wording

if TYPE_CHECKING:
    from rich.table import Table

    from memprobe.probes import Probe


def print_summary(probe: Probe) -> None:
    """Prints one line per checkpoint, then recall and normalised frequency by depth."""
    from rich.console import Console

    summary = probe.summary
    k, token, checkpoints = summary["k"], summary["token"], summary["checkpoints"]
    facts = probe.run["factoids"]
    console = Console()
    if not console.is_terminal:  # a file has room for all checkpoints side by side
        console.width = _UNFOLDED
    console.print(
        f"{facts['n']} factoids ({facts['source']}), template {probe.run['template']!r}, "
        f"readout {probe.run['readout']}, a depth holds an answer when "
        f"{wording.TOKEN_RULES[token]} in its top {k}; [95 % intervals]",
        style="dim",
        markup=False,
    )
    for label, entry in checkpoints.items():
        console.print(
            sentences.of_summary(label, entry, k=k),
            markup=False,
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
    for group in _that_fit(checkpoints, console.width - 36, 24):
        console.print(_headline(group))
    for group in _that_fit(checkpoints, console.width - 8, 34 if k == 1 else 54):
        console.print(_by_depth(group, k, named=len(checkpoints) > 1))


_UNFOLDED = 10_000


def _that_fit(checkpoints: dict[str, Any], room: int, width: int) -> Iterator[dict[str, Any]]:
    """Checkpoints in groups whose columns fit side by side."""
    labels, size = list(checkpoints), max(1, room // width)
    for start in range(0, len(labels), size):
        yield {label: checkpoints[label] for label in labels[start : start + size]}


def _headline(checkpoints: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for label in checkpoints:
        table.add_column(Text(label), justify="right")
    rows = {
        "exact match": lambda e: _share(e, "exact_match"),
        "exact tokens": lambda e: _share(e, "exact_tokens"),
        "LoF, mean ± sd of those that occur": lambda e: _spread(e["lof"]),
        "  never occurs": lambda e: _share(e["lof"], "never"),
        "  mean with never as n_layers + 1": lambda e: _number(e["lof"], "restricted_mean"),
        "  shuffled answers, mean ± sd": lambda e: _spread(e["shuffled_lof"]),
        "  shuffled answers, never": lambda e: _share(e["shuffled_lof"], "never"),
        "settled depth, mean ± sd": lambda e: _spread(e["settled"]),
        "depths per factoid": lambda e: _number(e["diversity"], "depths_per_factoid"),
        "effective number of layers": lambda e: _number(e["diversity"], "effective_layers"),
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(entry) for entry in checkpoints.values()))
    return table


def _by_depth(checkpoints: dict[str, Any], k: int, *, named: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("depth", justify="right")
    ks = list(dict.fromkeys((1, k)))
    for label in checkpoints:
        prefix = f"{label}\n" if named else ""
        for one in ks:
            table.add_column(Text(f"{prefix}recall@{one}"), justify="right")
            table.add_column(Text("shuffled", "dim"), justify="right", style="dim", vertical="bottom")
        table.add_column(Text(f"{prefix}normalised\nfrequency"), justify="right")
    size = max(len(entry["recall"][str(k)]) for entry in checkpoints.values())
    for depth in range(size):
        cells = []
        for entry in checkpoints.values():
            for one in ks:
                cells += [
                    _at(entry["recall"][str(one)], depth, ".1%"),
                    _at(entry["shuffled"][str(one)], depth, ".1%"),
                ]
            cells.append(_at([None, *entry["normalised_frequency"]], depth, ".3f"))
        table.add_row(str(depth), *cells)
    return table


def _at(values: list[float | None], depth: int, form: str) -> str:
    return wording.number(values[depth] if depth < len(values) else None, form)


def _share(entry: dict[str, Any], name: str) -> str:
    return wording.of_row(entry, name, ".1%")


def _number(entry: dict[str, Any], name: str) -> str:
    return wording.of_row(entry, name)


def _spread(entry: dict[str, Any]) -> str:
    return wording.mean_and_sd(entry.get("mean"), entry.get("sd"))
