"""How numbers, intervals and verdicts are written, wherever they are shown.

One way each: ``value [low, high]`` with the 95 % interval in brackets, ``–`` for what does not exist, ``∞`` for an
interval without an upper end, shares in per cent. What statistics are called is
:mod:`memprobe.statistics.vocabulary`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from memprobe.statistics.intervals import FEWEST, MIN_SEEDS
from memprobe.statistics.occurrence import too_few
from memprobe.statistics.vocabulary import STATISTICS

MISSING = "–"
HELD = {True: "yes", False: "no", None: "?"}
"""Whether a placement claim is held; ``?``: the base model's readout was not probed."""
TOKEN_RULES = {"first": "its first token is", "last": "its last token is", "all": "all of its tokens are"}
"""What of an answer is in the top k."""
FEW_SEEDS, FEW_FACTS, NO_SCATTER = "too few seeds", "too few facts", "nothing scatters"
NOT_KNOWN = "not known under every seed"
"""Why a number has no interval: of few seeds or facts none is estimated, and seeds that agree exactly scatter by
nothing that an error could be told from."""


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = (), gap: str = " "
) -> list[str]:
    """The lines of a table in Markdown.

    Args:
        right: columns of numbers, set to the right.
        gap: in the line below the head, on either side of a bar.
    """
    rule = f"{gap}|{gap}".join("---:" if at in right else "---" for at in range(len(head)))
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (head, *rows)]
    return [lines[0], f"|{gap}{rule}{gap}|", *lines[1:]]


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash where there is none."""
    return MISSING if value is None else f"{value:{_without_sign_of_zero(form)}}"


def _without_sign_of_zero(form: str) -> str:
    """What rounds to nothing is 0, never -0."""
    if form[-1:] not in "efgEFG%" or "z" in form:
        return form
    sign = form[:1] if form[:1] in "+- " else ""
    return f"{sign}z{form[len(sign) :]}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent."""
    return number(value, f".{digits}%")


def percent_of_some(value: float | None) -> str:
    """A share in per cent, with as many digits as it needs not to be written as none or as all of what it is not."""
    return percent(value, 0 if value is None else digits_of_share(value))


def digits_of_share(value: float, others: Iterable[float] = ()) -> int:
    """How many digits a share in per cent needs not to be written as none, as all, or as one of ``others`` that it is
    not."""
    if value in (0, 1):
        return 0
    unlike = [one for one in (0.0, 1.0, *others) if abs(one - value) > _SAME]
    needed = (
        digits
        for digits in range(_MOST_DIGITS)
        if percent(value, digits) not in {percent(one, digits) for one in unlike}
    )
    return next(needed, _MOST_DIGITS)


_MOST_DIGITS = 5
_SAME = 1e-9  # by which means of the same counts may be apart


def interval(
    value: float | None, low: float | None, high: float | None, form: str = ".2f", *, open_ended: bool = False
) -> str:
    """``value [low, high]``; the value alone where it has no interval.

    Args:
        open_ended: whether a missing upper end means infinity, as of a median depth.
    """
    if value is None:
        return MISSING
    if low is None or (high is None and not open_ended):
        return number(value, form)
    return f"{number(value, form)} [{number(low, form)}, {'∞' if high is None else number(high, form)}]"


def of_row(row: Mapping[str, Any], name: str, form: str = ".2f", *, open_ended: bool = False) -> str:
    """:func:`interval` of the columns NAME, NAME_low and NAME_high.

    Of a row of placement, which counts what occurs, a number that too few occurrences leave without an interval
    (:func:`memprobe.statistics.occurrence.too_few`) says so.
    """
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is not None and low is None and too_few(name, row):
        return _too_few(value, form)
    return interval(value, low, high, form, open_ended=open_ended)


def net_of_row(row: Mapping[str, Any], name: str, form: str) -> str:
    """:func:`of_row` of a difference from the chance level, which for one reason alone has no interval: too few facts,
    or facts of too few answers, have one."""
    if row.get(name) is not None and row.get(f"{name}_low") is None:
        return _too_few(row[name], form)
    return of_row(row, name, form)


def _too_few(value: float, form: str) -> str:
    return f"{number(value, form)} (too few)"


def why_without_interval(value: float | None, seeds: int, *, facts: int | None = None) -> str:
    """Why a number over training seeds has no interval (:func:`memprobe.statistics.arms.arm_differences`).

    Args:
        value: the number; ``None`` where there is none.
        seeds: of the side that has fewer.
        facts: over how many factoids each seed's number is, where that is known to be few or many.
    """
    if seeds < MIN_SEEDS:
        return FEW_SEEDS
    if value is None:
        return NOT_KNOWN
    return FEW_FACTS if facts is not None and facts < 2 else NO_SCATTER


def why_of_difference(row: Mapping[str, Any], *, facts: int | None = None) -> str:
    """:func:`why_without_interval` of a row of :func:`memprobe.statistics.arms.arm_differences`."""
    return why_without_interval(row["difference"], min(row["seeds"], row["reference_seeds"]), facts=facts)


def significant(row: Mapping[str, Any], *, facts: int | None = None) -> str:
    """Whether a difference of arms is significant, or why nothing says so."""
    if row["significant"] is None:
        return why_of_difference(row, facts=facts)
    return "yes" if row["significant"] else "no"


def of_kept(row: Mapping[str, Any], form: str) -> str:
    """A difference in a row of the table ``kept``, and why it has no interval where it has none.

    What is net of chance is over those facts that have shuffled answers, which the row does not count.
    """
    if row["difference"] is None or row["low"] is not None:
        return difference(row, form)
    few = min(row["n_kept"], row["n_lost"]) < FEWEST["mean"]
    why = "too few" if few else "no scatter"
    if not few and row["statistic"].endswith("_net"):
        why = "too few, or no scatter"
    return f"{number(row['difference'], form)} ({why})"


def wins(row: Mapping[str, Any]) -> str:
    """How surely the block of :func:`memprobe.statistics.patches.graft_effects` is the one that moves most."""
    facts = f"for {percent_of_some(row['facts_share'])} of {count(row['n'], 'fact')}"
    if row["support"] is None:
        return f"{facts}, whose answers are too few to resample"
    return f"in {percent_of_some(row['support'])} of resamples and {facts}"


def difference(row: Mapping[str, Any], form: str = "+.2f") -> str:
    """:func:`interval` of the columns difference, low and high, with its sign."""
    return interval(row["difference"], row["low"], row["high"], form)


def mean_and_sd(mean: float | None, sd: float | None) -> str:
    """``mean ± sd``"""
    return MISSING if mean is None else f"{number(mean)} ± {number(sd)}"


_SMALLEST = 0.0001  # four digits


def p_value(value: float | None) -> str:
    """With four digits; below those, so said."""
    return MISSING if value is None else f"< {_SMALLEST}" if value < _SMALLEST else f"{value:.4f}"


def p_of(value: float) -> str:
    """:func:`p_value` in a sentence: ``p = 0.0123``, ``p < 0.0001``."""
    return f"p {'' if value < _SMALLEST else '= '}{p_value(value)}"


def spans(depths: Iterable[int]) -> str:
    """1, 2, 3, 7 as 1–3, 7."""
    runs: list[list[int]] = []
    for depth in depths:
        if runs and runs[-1][1] == depth - 1:
            runs[-1][1] = depth
        else:
            runs.append([depth, depth])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"


def listed(names: Sequence[str]) -> str:
    """a, b and c"""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def same_weights(groups: Iterable[Sequence[str]]) -> str:
    """Which checkpoints hold the same weights, so that no difference between them is one of training.

    Args:
        groups: of labels, see :func:`memprobe.lineage.same_weights`.
    """
    return " ".join(f"{listed(labels)} hold the same weights." for labels in groups)


def count(n: int, thing: str) -> str:
    """1 fact, 2 facts"""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def shortened(labels: Sequence[str], most: int = 28) -> dict[str, str]:
    """Labels that fit into so many characters where they can, told apart by what differs between them.

    A long label loses what all long labels share at its beginning, then at its end, then its middle; of a beginning
    that leaves little, as much stays as there is room for. Two that would become the same stay whole.
    """
    long = [label for label in labels if len(label) > most]
    front, back = (_shared(long), _shared([label[::-1] for label in long])) if len(long) > 1 else (0, 0)
    short_of = {}
    for label in labels:
        short = label
        if len(label) > most:
            if front > 2:
                rest = label[front:]
                room = most - 1 - len(rest) if len(rest) < 2 * most // 3 else 0
                short = f"{label[: min(room, front)]}…{rest}"
            if len(short) > most and back > 2:
                short = short[: len(short) - back] + "…"
            if len(short) > most:
                half = (most - 1) // 2
                short = f"{short[: most - 1 - half]}…{short[-half:]}"
        short_of[label] = short
    shorts = list(short_of.values())
    return {label: short if shorts.count(short) == 1 else label for label, short in short_of.items()}


def _shared(labels: Sequence[str]) -> int:
    """How many characters all begin with, up to the last break between words."""
    first, last = min(labels), max(labels)
    apart = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    breaks = [
        at + 1 for at, character in enumerate(first[: next(apart, len(first))]) if not character.isalnum()
    ]
    return breaks[-1] if breaks else 0


def form_of(statistic: str, *, signed: bool = False) -> str:
    """The format of a statistic's value: shares in per cent, all else with two digits."""
    sign = "+" if signed else ""
    return f"{sign}.1%" if STATISTICS[statistic.removesuffix("_net")].share else f"{sign}.2f"
