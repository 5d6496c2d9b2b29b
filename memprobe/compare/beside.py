"""Tables that stand beside the headline where a probe holds more: other lenses, and what blocks write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memprobe.compare.headline import Headline, mean_lof, never_as
from memprobe.statistics.lenses import NEAR
from memprobe.wording import net_of_row, number, of_row, percent_of_some

if TYPE_CHECKING:
    import polars as pl


def besides(tables: Mapping[str, pl.DataFrame]) -> Iterator[Headline]:
    """Those that have rows, as texts; their first two columns are names."""
    if len(tables["lenses"]):
        yield by_lens(tables["lenses"], never_as(tables["placement"]))
    if len(tables["largest_contribution"]):
        yield written(tables["largest_contribution"], tables["contributions"])


def by_lens(lenses: pl.DataFrame, never: str) -> Headline:
    """Where the facts surface by each lens, and the floors of fitted ones.

    Args:
        lenses: the table of that name.
        never: what never counts as, in words.
    """
    first = lenses["lens"][0]
    rows, before = [], None
    for row in lenses.iter_rows(named=True):
        rows.append([row["checkpoint"] if row["checkpoint"] != before else "", *lens_cells(row)])
        before = row["checkpoint"]
    says = (
        f"Mean: counting never as {never}. Against chance: minus shuffled answers, in depths, over facts "
        f"that have one. Less {first}: fact by "
        f"fact; agree: facts that both place within {NEAR} depths. Floor: how far apart two fits on halves of a lens's "
        "corpus place the mean, and a fact (first token, k = 1 or 10); differences below it say nothing."
    )
    return Headline("By lens", says, ["", *lens_columns(first)], rows)


def lens_columns(first: str) -> list[str]:
    """Names of :func:`lens_cells`."""
    return ["lens", "never", "mean", "against chance", f"less {first}", "agree", "floor"]


def lens_cells(row: Mapping[str, Any]) -> list[str]:
    """The texts of one row of the table ``lenses``, after the checkpoint."""
    apart = of_row(row, "difference", "+.1f") if row["difference"] is not None else ""
    floor = f"{number(row['floor_mean'])}, {number(row['floor'])}" if row["floor"] is not None else ""
    return [
        row["lens"],
        percent_of_some(row["never"]),
        mean_lof(row),
        net_of_row(row, "net", "+.1f"),
        apart,
        percent_of_some(row["agree"]) if row["agree"] is not None else "",
        floor,
    ]


def written(largest: pl.DataFrame, contributions: pl.DataFrame) -> Headline:
    """At which depths the answers are written.

    Args:
        largest, contributions: the tables ``largest_contribution`` and ``contributions``.
    """
    rows, before = [], None
    net = is_net(contributions)
    mean, share = ("net", "net_share") if net else ("logit", "share")
    for row in largest.iter_rows(named=True):
        label, part = row["checkpoint"], row["part"]
        here = contributions.filter(checkpoint=label, part=part)
        most = here.sort(mean, descending=True).row(0, named=True)
        rows.append(
            [
                label if label != before else "",
                PARTS[part],
                of_row(row, "depth", ".1f"),
                number(row["chance"], ".1f"),
                net_of_row(row, "net", "+.1f"),
                f"{most['depth']}: {of_row(most, share, '.0%')}",
            ]
        )
        before = label
    columns = ["", "part", "depth of the largest", "by chance", "net", "most, and its share"]
    says = (
        "Direct logit attribution. Depth of the largest: where most is written towards a fact's answer, mean over "
        f"facts; by chance: towards shuffled answers; net: fact by fact, over {_with_chance(largest)}. "
        f"Most: the depth with the largest mean contribution{', net of shuffled answers' if net else ''}, and its "
        "share of what all blocks write (some cancel, so that a share may exceed 100 %). All where the answer is "
        "predicted, whatever the position of the other tables."
    )
    return Headline("What blocks write towards the answers", says, columns, rows)


def is_net(contributions: pl.DataFrame) -> bool:
    """Whether contributions are told net of shuffled answers: where all have them."""
    return bool(contributions["net"].is_not_null().all())


def _with_chance(largest: pl.DataFrame) -> str:
    """Which facts have a chance level: net is over these, and is no difference of the two means beside it."""
    counts = largest.select("n_net", "n").unique().rows()
    (with_chance, of), *others = counts
    if others:
        return "the facts that have shuffled answers"
    return "all facts" if with_chance == of else f"the {with_chance} of {of} facts that have shuffled answers"


PARTS = {"block": "block", "attn": "attention", "mlp": "MLP"}
"""What the parts of a block are called."""
