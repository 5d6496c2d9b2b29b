"""Which verdicts of the stored study changed when its statistics were mended, and why: a page from stored results.

    python analyses/changed_verdicts.py    # docs/findings/verdicts.md

``analyses/study/verdicts-before.csv`` holds the verdicts as they stood; those of today come from the stored results,
and each reason from today's row: its interval, its p within its family, its bounds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import polars as pl

from memprobe.arms import Arm
from memprobe.statistics.verdicts import NOT_TESTED
from memprobe.wording import markdown_table
from training.study.claims import claims
from training.study.results import read_results

STUDY, PAGE = ROOT / "analyses" / "study", ROOT / "docs" / "findings" / "verdicts.md"
BEFORE = STUDY / "verdicts-before.csv"
KEYS = ["claim", "arm", "against", "stage", "k", "token"]
HEAD = """# Verdicts that changed

The study of 64 keys was first told with two verdicts, *seen* and *not seen at this scale*, from intervals that did not
hold near 0 and 1, a test of spread whose null was invalid, and no correction for many claims. Below is every verdict
that is another one now, made by `python analyses/changed_verdicts.py` from the stored results. Intervals are of the
checkpoints' own readout; for claims about depth the base readout, and the depth net of shuffled answers, must agree.
Changed words alone are in the last table: what was *not seen* is *undecided* where the interval is wider than the
bounds that would count as nothing.
"""


def table() -> pl.DataFrame:
    """[claim, arm, against, stage, k, token, before, verdict, why, reworded] of claims with another verdict."""
    results = read_results(STUDY)
    found = claims(results)
    names = dict(results.cells.select("arm_text", "arm").iter_rows())
    texts = {name: text for text, name in names.items()}
    now = found.with_columns(pl.col("arm", "against").replace(names), pl.col("token").fill_null(""))
    before = pl.read_csv(BEFORE, schema_overrides={"stage": pl.Int64, "k": pl.Int64, "arm": pl.String})
    text = [pl.col(name).fill_null("") for name in ("arm", "against", "token")]
    joined = before.with_columns(text).join(now, on=KEYS, how="left", nulls_equal=True, maintain_order="left")
    rows = []
    for row in joined.iter_rows(named=True):
        if row["verdict"] is None:
            row |= {"verdict": "no claim", "why": why_no_claim(Arm.of(texts[row["arm"]]))}
        elif row["verdict"] == row["before"]:
            continue
        else:
            row["why"] = why(row)
        reworded = row["before"].startswith("not seen") and row["verdict"] in ("undecided", "no claim")
        rows.append(
            {name: row[name] for name in [*KEYS, "before", "verdict", "why"]} | {"reworded": reworded}
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def why_no_claim(arm: Arm) -> str:
    """Of an arm of which the claim is not made."""
    if arm.is_control:
        return "controls are what arms are held against, and make no claim"
    if arm.sees_again:
        return "an arm that shows D_A again is held against naive alone"
    return "the control trains longer in another stage than this arm, so it is none of its own"


def why(row: dict[str, Any]) -> str:
    """Of one claim as it stands today, against what was said."""
    said, p = row["verdict"], row["p_family"]
    edges = "" if row["low"] is None else f"[{row['low']:+.2f}, {row['high']:+.2f}]"
    if row["claim"] == "more diverse":
        return (
            "the old null was invalid: a pure shift passed it; first occurrences fact by fact were not stored"
        )
    if said == NOT_TESTED:
        return row["evidence"].rpartition("; ")[2]
    if row["claim"] == "gradients":  # has no interval
        return f"seeds of one arm are no further arms: rank correlation {row['estimate']:.2f}, p {p:.2f}"
    if said == "contradicted":
        return f"the interval lies on the other side, {edges}, in every lens (Holm p {p:.3f})"
    if said == "equivalent":
        return f"the interval {edges} lies within ±{row['equivalent']:g}, which the claim names as nothing"
    if row["before"] == NOT_TESTED:
        return f"a draw without a kept or a lost fact no longer takes the interval away; it is {edges}"
    one_sided = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    if one_sided and p is not None and p > 0.05:
        return f"tested with its family: {edges}, Holm p {p:.3f}"
    bounds = "" if row["equivalent"] is None else f" and leaves ±{row['equivalent']:g}"
    return f"the interval {edges} holds 0{bounds}"


def page() -> str:
    """The page as Markdown."""
    made = table()
    parts = [HEAD]
    for title, some in (
        ("Another answer", made.filter(~pl.col("reworded"))),
        ("Another word", made.filter("reworded")),
    ):
        parts.append(f"## {title}: {len(some)}\n")
        rows = []
        for row in some.iter_rows(named=True):
            reading = "" if row["k"] is None else f"top {row['k']}, {row['token']}"
            cells = [row["claim"], row["arm"], row["against"], row["stage"], reading, row["before"]]
            cells += [row["verdict"], row["why"]]
            rows.append(["" if cell is None else str(cell) for cell in cells])
        head = ["claim", "arm", "against", "stage", "reading", "before", "now", "why"]
        parts += [*markdown_table(head, rows, right={3}, gap=""), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
