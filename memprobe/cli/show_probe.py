"""A probe's summary on the terminal: a sentence for each checkpoint, its numbers, then recall by depth."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memprobe import sentences, wording
from memprobe.cli.terminal import plain_table, wide_terminal
from memprobe.statistics.vocabulary import label as called

if TYPE_CHECKING:
    from rich.table import Table

    from memprobe.probes import Probe


def print_summary(probe: Probe, *, full: bool = False) -> None:
    """Prints a sentence for each checkpoint, their numbers, then recall and normalised frequency by depth.

    Args:
        full: print every depth, also those where no more surfaces than by chance.
    """
    summary = probe.summary
    k, token, checkpoints = summary["k"], summary["token"], summary["checkpoints"]
    facts = probe.run["factoids"]
    n = facts["n"]
    console = wide_terminal()
    for label, entry in checkpoints.items():
        console.print(
            sentences.of_summary(label, entry, k=k),
            markup=False,
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
    console.print(
        f"{wording.count(facts['n'], 'fact')} ({facts['source']}), template {probe.run['template']}, "
        f"read with {'its own readout' if probe.run['readout'] == 'own' else probe.run['readout']}. A depth holds "
        f"an answer when {wording.TOKEN_RULES[token]} among the top {k} tokens. In brackets: 95 % intervals.\n",
        style="dim",
        markup=False,
        highlight=False,
        soft_wrap=not console.is_terminal,
    )
    for group in _that_fit(checkpoints, console.width - 40, 24):
        console.print(_headline(group))
    if all(entry["shuffled_lof"]["restricted_mean"] is None for entry in checkpoints.values()):
        console.print(NO_CHANCE, style="dim", soft_wrap=not console.is_terminal)
    elif (least := min(entry["lof"].get("net_n") or n for entry in checkpoints.values())) < n:
        console.print(
            f"The chance level is of {least:,} of {wording.count(n, 'fact')}: the others are alone in their "
            "relation and source, or share their answer's first token with all there.\n",
            style="dim",
            soft_wrap=not console.is_terminal,
        )
    folded = False
    for group in _that_fit(checkpoints, console.width - 8, 34 if k == 1 else 54):
        table, some = _by_depth(group, k, named=len(checkpoints) > 1, full=full)
        console.print(table)
        folded |= some
    if folded:
        console.print(FOLDED, style="dim", highlight=False, soft_wrap=not console.is_terminal)
    if more := _not_shown(probe):
        console.print(more, style="dim", markup=False, highlight=False, soft_wrap=not console.is_terminal)


FOLDED = (
    "Depths where no more surfaces than by chance share a line: ≤ is the largest of them. --full shows each."
)
NO_CHANCE = (
    "No chance level: it is that of other facts' answers, of one source and relation, that begin with another token; "
    "here there are none.\n"
)


def _not_shown(probe: Probe) -> str | None:
    """What a probe holds beside the lens and the position that its summary is of, and what shows it."""
    from memprobe.probes import tables_of

    lenses = [name for name in probe.lenses if name != probe.lens]
    positions = [name for name in probe.positions if name != probe.position]
    held = [f"the lens {name}" for name in lenses] + [f"the position {name}" for name in positions]
    if any("attributions" in tables_of(probe.run, label) for label in probe.checkpoints):
        held.append("what blocks write towards the answers")
    if not held:
        return None
    options = [*(["--lens NAME"] if lenses else []), *(["--position NAME"] if positions else [])]
    all_of_it = f" ({' and '.join(options)}: every table by that)" if options else ""
    return (
        f"These are by the lens {probe.lens} at the position {probe.position}. Also read: {wording.listed(held)}; "
        f"memprobe compare {shlex.quote(str(probe.path))} shows it{all_of_it}."
    )


def _that_fit(checkpoints: dict[str, Any], room: int, width: int) -> Iterator[dict[str, Any]]:
    """Checkpoints in groups whose columns fit side by side."""
    labels, size = list(checkpoints), max(1, room // width)
    for start in range(0, len(labels), size):
        yield {label: checkpoints[label] for label in labels[start : start + size]}


def _headline(checkpoints: dict[str, Any]) -> Table:
    from rich.text import Text

    table = plain_table()
    table.add_column("")
    for label in checkpoints:
        table.add_column(Text(label), justify="right")
    last = {len(entry["normalised_frequency"]) for entry in checkpoints.values()}
    n_layers = last.pop() if len(last) == 1 else None
    rows = {
        called("exact_match"): lambda e: _share(e, "exact_match"),
        called("exact_tokens"): lambda e: _share(e, "exact_tokens"),
        f"{called('lof_mean')}, mean ± sd": lambda e: _spread(e["lof"]),
        f"  {called('share_never', short=True)}": lambda e: _share(e["lof"], "never"),
        f"  {called('lof_restricted_mean', n_layers=n_layers, short=True)}": lambda e: _number(
            e["lof"], "restricted_mean"
        ),
        "  minus that of shuffled answers": _net,
        f"{called('settled_mean')}, mean ± sd": lambda e: _spread(e["settled"]),
        called("depths_per_factoid"): lambda e: _number(e["diversity"] | _occur(e), "depths_per_factoid"),
        called("effective_layers"): lambda e: _number(e["diversity"] | _occur(e), "effective_layers"),
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(entry) for entry in checkpoints.values()))
    return table


def _net(entry: Mapping[str, Any]) -> str:
    """First occurrence minus its chance level: apart, the two mislead, since few shuffled answers ever occur."""
    return wording.net_of_row(entry["lof"], "net", "+.2f")


def _by_depth(checkpoints: dict[str, Any], k: int, *, named: bool, full: bool) -> tuple[Table, bool]:
    """A row for each depth, and whether some depths share one."""
    from rich.text import Text

    ks = list(dict.fromkeys((1, k)))
    size = max(len(entry["recall"][str(k)]) for entry in checkpoints.values())
    quiet = [
        not full and all(_quiet(entry, depth, ks) for entry in checkpoints.values()) for depth in range(size)
    ]
    table = plain_table()
    table.add_column("depth", justify="right", no_wrap=True)
    for label in checkpoints:
        prefix = f"{label}\n" if named else ""
        for one in ks:
            table.add_column(Text(f"{prefix}recall@{one}"), justify="right")
            table.add_column(Text("shuffled", "dim"), justify="right", style="dim", vertical="bottom")
        table.add_column(Text(f"{prefix}normalised\nfrequency"), justify="right")
    for first, last in _spans(quiet):
        cells = []
        for entry in checkpoints.values():
            for one in ks:
                cells += [
                    _largest(entry[name][str(one)], first, last, ".1%") for name in ("recall", "shuffled")
                ]
            cells.append(_largest([None, *entry["normalised_frequency"]], first, last, ".3f"))
        table.add_row(str(first) if first == last else f"{first}–{last}", *cells)
    return table, any(quiet)


def _quiet(entry: Mapping[str, Any], depth: int, ks: list[int]) -> bool:
    """Whether recall at a depth is not above chance: one fact at most, or its interval reaches the chance level."""
    for k in map(str, ks):
        if depth >= len(entry["recall"][k]):
            continue
        recall, low = entry["recall"][k][depth], entry["recall_low"][k][depth]
        if low is not None and recall * entry["n"] > 1.5 and low > (entry["shuffled"][k][depth] or 0.0):
            return False
    return depth < len(entry["normalised_frequency"])  # the model's own readout always has a line


def _spans(quiet: list[bool]) -> Iterator[tuple[int, int]]:
    """(first, last) of each line: quiet depths together, every other by itself."""
    first = 0
    for depth, one in enumerate(quiet):
        if not one or depth + 1 == len(quiet) or not quiet[depth + 1]:
            yield first, depth
            first = depth + 1


def _largest(values: list[float | None], first: int, last: int, form: str) -> str:
    known = [value for value in values[first : last + 1] if value is not None]
    most = max(known) if known else None
    return ("≤ " if most and last > first else "") + wording.number(most, form)


def _share(entry: Mapping[str, Any], name: str) -> str:
    return wording.of_row(entry, name, ".1%")


def _number(entry: Mapping[str, Any], name: str) -> str:
    counts = {"lof_n": entry.get("n"), "lof_answers": entry.get("answers")}
    return wording.of_row(counts | dict(entry), name)


def _occur(entry: Mapping[str, Any]) -> dict[str, int | None]:
    """How many facts occur, of how many answers, which decides what has an interval; older summaries do not say."""
    return {"lof_n": entry["lof"].get("n"), "lof_answers": entry["lof"].get("answers")}


def _spread(entry: Mapping[str, Any]) -> str:
    return wording.mean_and_sd(entry.get("mean"), entry.get("sd"))
