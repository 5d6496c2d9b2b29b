"""The floor of a fitted lens: how far two fits on disjoint halves of the corpus differ, in units of the statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe.capturing import capture
from memprobe.factoids import Factoid, factoids_hash
from memprobe.templates import Template

if TYPE_CHECKING:
    from memprobe.lenses import Lens
    from memprobe.models import LensModel

KS = (1, 10)


def floor_of(
    lens_model: LensModel,
    lens: Lens,
    halves: Sequence[Lens],
    factoids: Sequence[Factoid],
    template: Template,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """How a lens and the fits on the two halves of its corpus read some facts, by the rule of the first answer token.

    Each half's fit had half the text, so that the difference is an upper bound of what another corpus of the same size
    would change.

    Args:
        progress: called with (facts read, of how many).

    Returns:
        For each k under ``k``: ``lof``, the mean over facts of |LoF of one half − LoF of the other|, restricted to
        n_layers + 1 where the answer never surfaces; ``lof_mean``, |difference of the mean restricted LoF|; and
        ``recall`` by depth, |difference of recall@k|; beside them the lens's own ``lens_lof`` and ``lens_recall``.
        ``facts`` says how many, ``factoids`` and ``template`` which (a hash) and how they were put.
    """
    lenses = [lens, *halves]
    captured = capture(lens_model, factoids, template, lenses=lenses, predictions=False, progress=progress)
    table = captured.records
    first = table.filter(pl.col("token") == 0)
    n_layers = lens_model.n_layers
    floor: dict[str, Any] = {"facts": first["factoid"].n_unique(), **_asked(factoids, template), "k": {}}
    for k in KS:
        within = first.with_columns(holds=pl.col("rank") < k)
        recall = within.group_by("lens", "depth").agg(pl.col("holds").mean()).sort("depth")
        by_lens = {
            key: recall.filter(pl.col("lens") == key)["holds"].to_list() for key in (x.name for x in lenses)
        }
        surfaced = (
            pl.col("depth").filter(pl.col("holds") & (pl.col("depth") > 0)).min().fill_null(n_layers + 1)
        )
        depths = (
            within.group_by("lens", "factoid").agg(lof=surfaced.cast(pl.Int32)).pivot("lens", index="factoid")
        )
        own, one, two = (depths[item.name] for item in lenses)
        floor["k"][str(k)] = {
            "lof": float((one - two).abs().mean()),  # pyrefly: ignore[bad-argument-type]
            "lof_mean": abs(float((one - two).mean())),  # pyrefly: ignore[bad-argument-type]
            "recall": [
                abs(a - b) for a, b in zip(by_lens[lenses[1].name], by_lens[lenses[2].name], strict=True)
            ],
            "lens_lof": float(own.mean()),  # pyrefly: ignore[bad-argument-type]
            "lens_recall": by_lens[lens.name],
        }
    return floor


def measured_on(floor: Mapping[str, Any] | None, factoids: Sequence[Factoid], template: Template) -> bool:
    """Whether a floor is that of some facts under a template; what older ones were measured on is not known."""
    return floor is not None and all(
        floor.get(key) == value for key, value in _asked(factoids, template).items()
    )


def _asked(factoids: Sequence[Factoid], template: Template) -> dict[str, str]:
    return {"factoids": factoids_hash(factoids), "template": template.name}
