"""What a study of arms found over training seeds, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memprobe import wording
from memprobe.arms import NAIVE, Arm
from memprobe.sentences.differences import moved

if TYPE_CHECKING:
    import polars as pl

MOST_ARMS = 4
"""Arms that a sentence on a study names."""
SURFACES = "surfaces earlier"
"""How the names of claims about depth begin."""
UNDECIDED = "undecided"


def of_retention(table: pl.DataFrame) -> list[str]:
    """What is left of D_A after the last stage, by arm, a sentence for each pair of datasets.

    Args:
        table: [setup, arm, retention, low, high] of the table ``forgetting``, and from there ``arm_text``, by which
            naive training is known whatever it is called (without it, by its name). ``missing``, where it is there,
            says why an arm has no number.
    """
    lines = []
    for (setup,), part in table.group_by("setup", maintain_order=True):
        with_setup = _with_setup(setup, table)
        rows = part.to_dicts()
        known = [row for row in rows if row["retention"] is not None]
        if not known:
            more = f"; and {len(rows) - MOST_ARMS} more" if len(rows) > MOST_ARMS else ""
            why = "; ".join(map(_no_number, rows[:MOST_ARMS]))
            lines.append(with_setup(f"nothing can be said of what is kept: {why}{more}."))
            continue
        best = sorted(known, key=lambda row: -row["retention"])
        named = [row["retention"] for row in known if row in best[:MOST_ARMS] or _is_naive(row)]
        naive = next((row for row in rows if _is_naive(row)), None)
        if naive is None or naive["retention"] is None:
            without = "" if naive is None else f" {_no_number(naive)}."
            lines.append(
                with_setup(f"after the last stage, most of {_D_A} is kept by {_kept(best, named)}.{without}")
            )
            continue
        better = [row for row in best if row["retention"] > naive["retention"]]
        others = [row for row in best if row is not naive]
        sentence = f"after the last stage, {naive['arm']} keeps {_share_of(naive, named)} of {_D_A}."
        if better:
            sentence += f" Most is kept by {_kept(better, named)}."
        elif others:
            sentence += f" No arm keeps more; next is {_kept(others[:1], named)}."
        lines.append(with_setup(sentence))
    return lines


_D_A = "the facts of stage 1 (D_A)"


def _is_naive(row: Mapping[str, Any]) -> bool:
    """Whether an arm is naive training, by its text; tables without texts have its name."""
    return row["arm_text"] == NAIVE if "arm_text" in row else row["arm"] == Arm.of(NAIVE).name()


def _no_number(row: Mapping[str, Any]) -> str:
    """That an arm has no number, and why, where that is known."""
    return f"{row['arm']} {row.get('missing') or 'has no number'}"


def _kept(rows: Sequence[Mapping[str, Any]], named: Sequence[float]) -> str:
    """Arms with what they keep; so many that a sentence can name them.

    Args:
        named: every share that the sentence names.
    """
    return "; ".join(f"{row['arm']}, {_share_of(row, named)}" for row in rows[:MOST_ARMS])


def _with_setup(setup: str, table: pl.DataFrame) -> Callable[[str], str]:
    """Puts before a sentence which pair of datasets it speaks of; nothing where a study has one."""
    if table["setup"].n_unique() > 1:
        return lambda said: f"{setup}: {said}"
    return lambda said: said[0].upper() + said[1:]


def of_placements(claims: pl.DataFrame) -> list[str]:
    """Where facts surface, arm against arm over seeds, a sentence for each pair of datasets and stage.

    Args:
        claims: [setup, claim, arm, against, verdict, estimate, low, high, seeds] of those claims of a study that say
            where facts surface earlier, in depths.
    """
    lines = []
    for (setup, claim, against), part in claims.group_by("setup", "claim", "against", maintain_order=True):
        rows = part.filter(part["verdict"] != "not tested").drop_nulls("estimate").to_dicts()
        if not rows:
            continue
        rows.sort(key=lambda row: -abs(row["estimate"]))
        alike = len({row["seeds"] for row in rows}) == 1  # else each arm says its own
        decided = [
            f"{row['verdict']} for {_over_seeds(row, alike)}" for row in rows if row["verdict"] != UNDECIDED
        ]
        verdicts = [
            *decided[:MOST_ARMS],
            *([f"and {len(decided) - MOST_ARMS} more"] if len(decided) > MOST_ARMS else []),
        ]
        if open_ := [row for row in rows if row["verdict"] == UNDECIDED]:
            verdicts.append(f"undecided for {_undecided(open_, alike, alone=len(open_) == len(rows))}")
        when = claim.removeprefix(SURFACES).strip()
        over = f" ({wording.count(rows[0]['seeds'], 'seed')})" if alike else ""
        asked = f"do facts surface earlier {when} than with {against}{over}?"
        answer = "; ".join(verdicts)
        lines.append(_with_setup(setup, claims)(f"{asked} {answer[0].upper() + answer[1:]}."))
    return lines


def _over_seeds(row: Mapping[str, Any], alike: bool) -> str:
    """An arm, and how many depths earlier or later its facts surface; over how many seeds, where arms have others."""
    edges = row["estimate"], row["low"], row["high"]
    clear = None not in edges and not row["low"] <= 0 <= row["high"]
    apart = moved(*edges) if clear else f"{wording.interval(*edges, '+.1f')} depths"
    return f"{row['arm']}, {apart}" + ("" if alike else f", {wording.count(row['seeds'], 'seed')}")


def _undecided(rows: Sequence[Mapping[str, Any]], alike: bool, *, alone: bool) -> str:
    """The arms of which a claim is undecided, by name where they are few, with the largest difference among them."""
    most = _over_seeds(rows[0], alike)
    if len(rows) == 1:
        return most
    of = f"{'all' if alone else 'the other'} {len(rows)} arms"
    return f"{of} (most: {most})"


def of_verdicts(verdicts: Sequence[str]) -> str:
    """How many claims came out how."""
    counts = {name: verdicts.count(name) for name in dict.fromkeys(verdicts)}
    tested = len(verdicts) - counts.pop("not tested", 0)
    listed = wording.listed([f"{n} {name}" for name, n in counts.items()]) if counts else "none"
    return f"Of {wording.count(tested, 'claim')} tested: {listed}."


def _share_of(row: Mapping[str, Any], named: Sequence[float]) -> str:
    """What an arm keeps, with digits enough to tell it from nothing, from all, and from what other arms keep."""
    form = f".{wording.digits_of_share(row['retention'], named)}f"
    edges = [None if row[end] is None else 100 * row[end] for end in ("low", "high")]
    value, *rest = wording.interval(100 * row["retention"], *edges, form=form).split(" ", 1)
    return " ".join([f"{value}%", *rest])
