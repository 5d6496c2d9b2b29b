"""Numbers that pages quote in prose: every interval, with its value, stands in the stored results."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

from memprobe.probes import open_probe
from memprobe.summary import summarise

ROOT = Path(__file__).parents[1]
STUDIES = tuple(
    f"analyses/{name}/tables"
    for name in (
        "study",
        "study-ewc",
        "study-kinds",
        "study-500",
        "study-paper",
        "study-gemma",
        "study-questions",
        "study-later",
        "study-real",
        "study-stages",
        "study-random",
        "study-controls",
    )
)
STUDY, STUDY_EWC, STUDY_KINDS, STUDY_500, STUDY_PAPER, *_LATER = STUDIES
STUDY_GEMMA, STUDY_QUESTIONS, STUDY_LATER, STUDY_REAL, STUDY_STAGES, STUDY_RANDOM, STUDY_CONTROLS = _LATER
SEEDS_3_TO_5 = "analyses/study-questions-seeds-3-5/tables"
PAGES = {
    "README.md": (
        STUDY,
        STUDY_EWC,
        STUDY_500,
        STUDY_PAPER,
        STUDY_QUESTIONS,
        "analyses/where",
        "analyses/lenses",
        "analyses/demo",
        "analyses/instruments/results",
    ),
    "docs/findings/index.md": (
        STUDY_QUESTIONS,
        STUDY_500,
        STUDY,
        STUDY_EWC,
        STUDY_PAPER,
        STUDY_GEMMA,
        STUDY_LATER,
        STUDY_REAL,
        STUDY_STAGES,
        STUDY_RANDOM,
        STUDY_CONTROLS,
        "analyses/where",
        "analyses/puzzle",
        "analyses/instruments/results",
    ),
    "docs/findings/random-words.md": ("analyses/puzzle", STUDY_RANDOM),
    "docs/findings/study.md": (STUDY, STUDY_EWC, STUDY_CONTROLS),
    "docs/findings/second-stages.md": (STUDY, STUDY_PAPER, STUDY_KINDS, STUDY_STAGES, STUDY_RANDOM),
    "docs/findings/later.md": (STUDY_LATER,),
    "docs/findings/real-facts.md": (STUDY_PAPER, STUDY_REAL),
    "docs/findings/three-stages.md": (STUDY_PAPER, STUDY_STAGES, STUDY_RANDOM),
    "docs/findings/gemma.md": (STUDY_GEMMA,),
    "docs/findings/other-questions.md": (STUDY_QUESTIONS, SEEDS_3_TO_5, STUDY_PAPER),
    "docs/findings/where.md": ("analyses/where",),
    "docs/findings/planted-truth.md": ("analyses/instruments/results",),
}
"""Pages with numbers in prose, and the folders that hold what they quote."""
NUMBER = r"[+\-−]?\d+(?:\.\d+)?"
INTERVAL = re.compile(rf"\[({NUMBER})%?, ({NUMBER})%?\]")
BEFORE = 90
"""Characters before an interval, the last number of which is its value."""

Triple = tuple[float, float, float]


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def quoted(text: str) -> Iterator[tuple[str, list[str], str, str]]:
    """(where, numbers before, low, high) of each interval of a text."""
    text = re.sub(r"\s+", " ", text)
    for found in INTERVAL.finditer(text):
        before = text[max(0, found.start() - BEFORE) : found.start()]
        before = before.rpartition("]")[2]  # what an interval before this one speaks of is another number
        before = re.sub(r"\bnone\b", "0", before)
        yield text[max(0, found.start() - 60) : found.end()], re.findall(NUMBER, before), found[1], found[2]


BARE = ("value", "ratio", "estimate", "retention", "lof", "difference", "share", "correlation")
"""Columns whose interval may be written ``low`` and ``high``; ``net_low`` is of ``net``, or of ``lof_net``."""


def value_of(low: str, columns: Container[str]) -> str:
    """The column that a column of lower ends is of."""
    of = low.removesuffix("low").removesuffix("_")
    names = (of, f"lof_{of}") if of else [name for name in BARE if f"{name}_low" not in columns]
    return next((name for name in names if name in columns), "")


def stored(folder: Path) -> Iterator[Triple]:
    """(value, low, high) of every interval that a folder's tables hold, as columns or in texts."""
    for path in sorted(folder.rglob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                known = {
                    name: float(text)
                    for name, text in row.items()
                    if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text or "")
                }
                for name, low in known.items():
                    value, high = (known.get(one) for one in (value_of(name, row), name[:-3] + "high"))
                    if name.endswith("low") and value is not None and high is not None:
                        yield value, low, high
                for text in row.values():
                    yield from _in_text(text or "")
    for path in sorted(folder.rglob("summary.json")):
        yield from _in_json(json.loads(path.read_text(encoding="utf-8")))
    for path in sorted(folder.rglob("*.md")):
        yield from _in_text(path.read_text(encoding="utf-8"))


def _in_json(entry: object) -> Iterator[Triple]:
    if isinstance(entry, dict):
        for name, value in entry.items():
            edges = [entry.get(f"{name}_{end}") for end in ("low", "high")]
            if isinstance(value, float) and None not in edges:
                yield (value, *edges)
            yield from _in_json(value)


def _in_text(text: str) -> Iterator[Triple]:
    for _, before, low, high in quoted(text):
        yield from ((number(one), number(low), number(high)) for one in before[-1:])


def same(text: str, value: float) -> bool:
    """Whether a number is written so, at the digits that it is written with."""
    digits = len(text.partition(".")[2])
    return abs(number(text) - value) <= 0.5001 * 10**-digits


def is_stored(before: list[str], low: str, high: str, known: set[Triple]) -> bool:
    """Whether there is such an interval, in the same unit or in per cent, whichever way it is counted."""
    for value, start, end in known:
        for scale in (1, 100, -1, -100):
            edges = sorted((start * scale, end * scale))
            if (
                same(low, edges[0])
                and same(high, edges[1])
                and any(same(one.lstrip("+-−"), abs(value * scale)) for one in before[-1:])
            ):
                return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_that_is_quoted_is_a_stored_one(page):
    known = {triple for folder in PAGES[page] for triple in stored(ROOT / folder)}
    found = list(quoted((ROOT / page).read_text(encoding="utf-8")))
    assert len(found) > 5
    lost = [where for where, before, low, high in found if not is_stored(before, low, high, known)]
    assert not lost, "\n".join(lost)


def test_another_number_is_seen():
    known = {(0.5, 0.319, 0.681), (-1.99, -2.73, -1.24)}
    for text, wanted in (
        ("keeps 50.0 % [31.9, 68.1]", True),
        ("keeps 50 % of them [32, 68]", True),
        ("keeps 51 % [32, 68]", False),
        ("keeps 50 % [31, 68]", False),
        ("1.99 depths earlier [1.24, 2.73]", True),
        ("1.98 depths earlier [1.24, 2.73]", False),
    ):
        ((_, before, low, high),) = quoted(text)
        assert is_stored(before, low, high, known) == wanted, text


def read(path: str) -> str:
    return re.sub(r"\s+", " ", (ROOT / path).read_text(encoding="utf-8"))


def rows(path: str, **wanted: str) -> list[dict[str, str]]:
    with (ROOT / path).open(encoding="utf-8", newline="") as file:
        return [
            row for row in csv.DictReader(file) if all(row[name] == value for name, value in wanted.items())
        ]


def test_the_stored_demo_says_what_its_records_say_today():
    """Intervals are computed otherwise now and then, and what is stored is computed again with them."""
    stored = json.loads((ROOT / "analyses/demo/summary.json").read_text(encoding="utf-8"))["checkpoints"]
    for label, entry in summarise(open_probe(ROOT / "analyses/demo")).items():
        assert stored[label].keys() == entry.keys() and stored[label]["lof"] == pytest.approx(entry["lof"])


def test_the_tutorial_quotes_the_demo():
    entry = json.loads((ROOT / "analyses/demo/summary.json").read_text(encoding="utf-8"))["checkpoints"][
        "smollm2-135m"
    ]
    page = read("docs/tutorial.md")
    never, chance = entry["lof"]["never"], entry["shuffled_lof"]["never"]
    assert (
        f"{100 * never:.0f} % of the answers never occur, and {100 * chance:.0f} % of the shuffled ones"
        in page
    )
    assert f"depth {len(entry['normalised_frequency'])} is what this model itself reads out" in page
    assert f"on {entry['n']} built-in facts" in page


@pytest.mark.parametrize(("place", "study", "arms"), [(0, STUDY, 11), (1, STUDY_CONTROLS, 9)])
def test_the_table_of_arms_is_that_of_the_stored_study(place, study, arms):
    """Every row of the page's tables of arms, from the stored tables."""
    page = (
        (ROOT / "docs/findings/study.md")
        .read_text(encoding="utf-8")
        .split("## Controls and mixing again")[place]
    )
    shown = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| .* \[.*× ", line)]
    kept = {row["arm"]: row for row in rows(f"{study}/forgetting.csv")}
    losses = {row["arm"]: row for row in rows(f"{study}/other_losses.csv")}
    found = {}
    for arm, row in kept.items():
        if not row["retention"]:
            continue
        unseen = "unseen" if row["unseen_low"] and "replay" in arm else ""
        value, low, high = (
            100 * float(row[name])
            for name in (("unseen", "unseen_low", "unseen_high") if unseen else ("retention", "low", "high"))
        )
        seeds = [100 * float(one) for one in row["unseen_by_seed" if unseen else "by_seed"].split()]
        known, perplexity = (
            [float(losses[arm][name]) if losses[arm][name] else None for name in (f"{what}_after_1", what)]
            for what in ("known", "perplexity")
        )
        found[arm] = [
            f"{value:.1f} % [{low:.1f}, {high:.1f}]",
            ", ".join(f"{one:.1f}" for one in seeds),
            f"{100 * float(row['last_score']):.1f} %",
            f"× {float(row['steps']):.2f}",
            f"× {float(row['tokens']):.2f}",
            ", ".join("–" if one is None else f"{100 * one:.0f} %" for one in known),
            ", ".join("–" if one is None else f"{one:.0f}" for one in perplexity),
        ]
    assert len(shown) == len(found) == arms
    assert sorted(row[1:] for row in shown) == sorted(found.values())


def test_where_planted_facts_surface_is_what_is_stored():
    """By block: the stored distance is from the block to the mean first occurrence, where every fact occurs later."""
    depth = {}
    for row in rows("analyses/instruments/results/by_block.csv", kind="several", planted="all"):
        if row["instrument"].startswith("lof logit k=") and float(row["named"]) == 1:
            at = (row["source"], int(row["first"].partition(".")[0]), row["instrument"].rpartition("=")[2])
            depth[at] = at[1] + float(row["error"])
    page = read("docs/findings/planted-truth.md")
    blocks = sorted({block for _, block, _ in depth})
    assert len(depth) == 4 * len(blocks) == 16
    for block in blocks:
        shown = [depth[source, block, k] for source in ("popqa", "kvr") for k in ("1", "10")]
        assert f"| {block} | {' | '.join(f'{one:.1f}' for one in shown)} |" in page
    early, late = (f"{depth['popqa', block, '1']:.1f}" for block in (5, 26))
    assert f"at depth {early} of 30, into block 26 at {late}" in read("README.md")
    assert f"at depth {early} of 30 on average, those planted in block 26 at {late}" in read(
        "docs/concepts/first-occurrence.md"
    )


def test_what_is_said_of_the_lenses_is_what_is_stored():
    page = read("docs/findings/lenses.md")
    of = {
        (row["checkpoint"], row["lens"], row["k"]): {
            name: float(row[name] or 0) for name in ("difference", "agree")
        }
        for row in rows("analyses/lenses/known.csv")
    }
    fitted = ("linear", "tuned", "jacobian")
    earlier = {k: [-of["smollm2-135m", lens, k]["difference"] for lens in fitted] for k in ("1", "10")}
    assert "by two depths at k = 1 and three to four at k = 10" in page
    assert {round(one) for one in earlier["1"]} == {2} and {round(one) for one in earlier["10"]} == {3, 4}
    assert "Only about a third of the facts" in page
    assert all(0.3 < of["smollm2-135m", lens, "10"]["agree"] < 0.4 for lens in fitted)
    assert "more than eight facts of ten" in page
    assert all(of["gemma3-270m", lens, k]["agree"] > 0.8 for lens in fitted for k in ("1", "10"))
    apart = {lens: -of["gemma3-270m", lens, "10"]["difference"] for lens in fitted}
    assert "lie a quarter (Jacobian) to 1.2 depths (tuned) apart" in page
    assert min(apart, key=apart.__getitem__) == "jacobian" and round(apart["jacobian"], 2) == 0.25
    assert max(apart, key=apart.__getitem__) == "tuned" and round(apart["tuned"], 1) == 1.2


def test_the_times_of_one_h100_are_the_stored_ones():
    page = (ROOT / "docs/findings/speed.md").read_text(encoding="utf-8")
    stored_ = json.loads((ROOT / "analyses/speed/h100.json").read_text(encoding="utf-8"))["sections"]
    for name, section in (
        ("SmolLM2-135M, fp32", "capture smollm2-135m float32"),
        ("SmolLM2-135M, bf16", "capture smollm2-135m bfloat16"),
        ("Llama of 1.2 B random weights, vocabulary 128,256, bf16", "capture random:1b bfloat16"),
    ):
        methods = stored_[section]["methods"]
        median = {method: entry["median"] for method, entry in methods.items()}
        ratios = zip(methods["memprobe"]["seconds"], methods["floor"]["seconds"], strict=True)
        over = statistics.median(ours / floor for ours, floor in ratios)
        wanted = f"| {name} | {median['floor']:.3f} | {median['memprobe']:.3f} ({over:.2f} ×"
        assert wanted in page, wanted
        (line,) = [one for one in page.splitlines() if one.startswith(wanted)]
        assert f"| {median['eager']:.3f} | {median['TransformerLens']:.2f}" in line
        assert (
            f"| {median['stock']:.3g}" in line
            or f"| {median['stock']:.3f}" in line
            or f"| {median['stock']:.2f}" in line
        )
    reading = {(tuple(row["shape"]), row["sweep"]): row for row in stored_["reading"]["rows"]}
    for width in (49152, 262144):
        eager, own, used = (
            reading[(512, width), sweep] for sweep in ("eager", "triton", "triton 1024/4 warps/1 parts")
        )
        us = [f"{one['median_us']:,.0f} µs" for one in (eager, own, used)]
        times = eager["median_us"] / used["median_us"]
        assert f"| 512 × {width:,} | {' | '.join(us)}, {times:.0f} × |" in page


SHARES = re.compile(r"\d+(?:\.\d+)?(?= ?%)|\d+\.\d+")
PLANTED = ("analyses/instruments/results/report.md", "analyses/instruments/results/small/report.md")
REPORTS = {
    "docs/findings/index.md": (
        *PLANTED,
        "analyses/where/report.md",
        "analyses/study-500/README.md",
        *(f"{folder}/claims.csv" for folder in (STUDY, STUDY_PAPER)),
        *(f"{folder}/forgetting.csv" for folder in STUDIES),
        f"{STUDY}/other_losses.csv",
        f"{STUDY_GEMMA}/other_losses.csv",
    ),
    "docs/findings/study.md": (
        "analyses/study/README.md",
        "analyses/study-ewc/README.md",
        "analyses/study-controls/README.md",
        *sorted(str(p) for folder in (STUDY, STUDY_CONTROLS) for p in (ROOT / folder).glob("*.csv")),
    ),
    "docs/findings/second-stages.md": (
        *(f"analyses/{name}/README.md" for name in ("study-paper", "study-kinds", "study-stages")),
        *(f"{STUDY_PAPER}/{name}.csv" for name in ("forgetting", "lost_facts")),
        f"{STUDY_STAGES}/forgetting.csv",
    ),
    "docs/findings/random-words.md": (
        "analyses/puzzle/results.md",
        "analyses/study-random/README.md",
        *(f"{STUDY_RANDOM}/{name}.csv" for name in ("forgetting", "other_losses")),
    ),
    "docs/findings/later.md": (
        "analyses/study-later/README.md",
        *(f"{STUDY_LATER}/{name}.csv" for name in ("forgetting", "other_losses", "claims")),
        "training/grids/smollm2-paper.toml",
    ),
    "docs/findings/real-facts.md": (
        "analyses/study-paper/README.md",
        "analyses/study-real/README.md",
        *(f"{STUDY_PAPER}/{name}.csv" for name in ("forgetting", "lost_facts")),
        f"{STUDY_REAL}/forgetting.csv",
    ),
    "docs/findings/three-stages.md": (
        *(f"analyses/{name}/README.md" for name in ("study-paper", "study-stages")),
        *(f"{folder}/forgetting.csv" for folder in (STUDY_PAPER, STUDY_STAGES, STUDY_RANDOM)),
        f"{STUDY_STAGES}/stages.csv",
    ),
    "docs/findings/gemma.md": (
        "analyses/study-gemma/README.md",
        *(f"{STUDY_GEMMA}/{name}.csv" for name in ("forgetting", "lost_facts")),
        "training/grids/gemma3-study.toml",
    ),
    "docs/findings/other-questions.md": (
        "analyses/study-questions/README.md",
        "analyses/study-questions-seeds-3-5/README.md",
        f"{STUDY_QUESTIONS}/other_questions.csv",
        f"{STUDY_QUESTIONS}/forgetting.csv",
        f"{STUDY_QUESTIONS}/other_losses.csv",
        f"{STUDY_QUESTIONS}/claims.csv",
        f"{STUDY_PAPER}/forgetting.csv",
        f"{STUDY}/forgetting.csv",
    ),
    "docs/findings/where.md": ("analyses/where/report.md", "analyses/instruments/results/report.md"),
    "docs/findings/planted-truth.md": PLANTED,
    "docs/how-to/patch.md": PLANTED,
    "README.md": (
        *PLANTED,
        "analyses/where/report.md",
        "analyses/study/README.md",
        "analyses/study-ewc/README.md",
        "analyses/study-500/README.md",
        "analyses/study-paper/README.md",
        "analyses/lenses/known.csv",
        "analyses/demo/summary.json",
        *(
            f"{folder}/forgetting.csv"
            for folder in (STUDY, STUDY_EWC, STUDY_500, STUDY_PAPER, STUDY_QUESTIONS)
        ),
    ),
}
COUNTED = ("## Where planted facts surface", "## A model whose")
"""Begin and end of the part whose numbers are sums of stored ones, which a test of its own holds."""
MEAN_OF = {"52.1": (54.7, 51.6, 50.0)}


@pytest.mark.parametrize("page", REPORTS)
def test_every_share_that_is_quoted_is_a_stored_number(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    if COUNTED[0] in text:
        text = text[: text.index(COUNTED[0])] + text[text.index(COUNTED[1]) :]
    text = re.sub(
        r"```.*?```|\]\([^)]*\)|`[^`]*`|arXiv[: ][\d.]+|Python [\d.]+ to [\d.]+", "", text, flags=re.S
    )
    reports = [(ROOT / report).read_text(encoding="utf-8") for report in REPORTS[page]]
    known = {abs(number(one)) for report in reports for one in re.findall(NUMBER, report)}
    quoted_here = {found[0] for found in SHARES.finditer(text)}
    assert len(quoted_here) > 1
    lost = [
        one
        for one in quoted_here
        if not any(same(one, value * scale) for value in known for scale in (1, 100))
        and not (one in MEAN_OF and same(one, statistics.mean(MEAN_OF[one])))
    ]
    assert not lost, lost


def test_the_profile_of_training_is_the_stored_one():
    page = (ROOT / "docs/findings/speed.md").read_text(encoding="utf-8")
    of_kind: dict[str, list[float]] = {}
    ratios, alone = [], []
    for name in ("naive", "mixed"):
        text = (ROOT / f"analyses/speed/training_profile_{name}.json").read_text(encoding="utf-8")
        milliseconds = json.loads(text)["milliseconds_a_row"]
        stock = sum(milliseconds["stock"].values())
        for parts in milliseconds.values():
            for kind, value in [*parts.items(), ("all", sum(parts.values()))]:
                of_kind.setdefault(kind, []).append(value)
            ratios.append(stock / sum(parts.values()))
            alone.append(stock / sum(value for kind, value in parts.items() if kind.startswith("product")))
    for kind, values in of_kind.items():
        assert f"| {kind} | {' | '.join(f'{value:,.0f}' for value in values)} |" in page, kind
    for name, values in (("stock / all", ratios), ("stock / products alone", alone)):
        assert f"| {name} | {' | '.join(f'{value:.3g}' for value in values)} |" in page, name


def test_training_row_by_row_is_the_stored_run():
    page = (ROOT / "docs/findings/speed.md").read_text(encoding="utf-8")
    names = {
        "stock": "stock",
        "masked": "packed, under a mask",
        "packed": "packed, row by row",
        "bfloat16 masked": "bfloat16, under a mask",
        "bfloat16": "bfloat16, row by row",
    }
    cells: dict[str, list[str]] = {arm: [] for arm in names}
    for name in ("naive", "mixed"):
        text = (ROOT / f"analyses/speed/training_rows_{name}.json").read_text(encoding="utf-8")
        runs = {arm: one for arm, (one,) in json.loads(text)["runs"].items()}
        assert runs.keys() == names.keys()
        stock = runs["stock"]
        for arm, one in runs.items():
            apart = max(abs(a - b) / a for a, b in zip(stock["losses"], one["losses"], strict=True))
            faster = one["rate"] / stock["rate"]
            cells[arm] += [f"{1e3 / one['rate']:.0f}", f"{faster:.2f}", f"{apart:.1e}"]
    for arm, label in names.items():
        assert f"| {label} | {' | '.join(cells[arm])} |" in page, arm


def test_the_capture_against_its_peers_is_the_stored_one():
    page = (ROOT / "docs/findings/speed.md").read_text(encoding="utf-8")
    names = {
        "memprobe": "memprobe",
        "eager": "its logits read by torch",
        "floor": "floor",
        "TransformerLens": "TransformerLens 4.3.0 `logit_lens`",
        "nnsight": "nnsight 0.8.1",
        "nnterp": "nnterp 1.3.0 (with nnsight 0.7.0)",
        "stock": "stock hidden states",
    }
    stored = json.loads((ROOT / "analyses/speed/bench-cpu.json").read_text(encoding="utf-8"))["sections"]
    methods, alone = stored["capture"]["methods"], stored["memory"]["peak_mib"]
    assert names.keys() == methods.keys()
    busy = {name: one["processor_seconds"] for name, one in methods.items()}
    for name, label in names.items():
        ratios = (
            statistics.median(one / base for one, base in zip(busy[name], busy[other], strict=True))
            for other in ("memprobe", "floor")
        )
        peak = alone.get(name, methods[name]["peak_mib"])
        cells = [f"{statistics.median(busy[name]):.3g}", *(f"{one:.2f}" for one in ratios), f"{peak:,.0f}"]
        assert f"| {label} | {' | '.join(cells)} |" in page, name
