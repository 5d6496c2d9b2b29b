"""A probe -> one HTML file that opens from disk, needs no network, and runs no script but its own.

Statistics become figures and tables here, for every k and token rule; the scripts in ``memprobe/page/``
choose among them and compute none. What each factoid did at each depth is packed into columns that the page
inflates when its explorer first comes into view.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from memprobe import page, plots
from memprobe.errors import MemprobeError
from memprobe.records import Probe, write_text
from memprobe.statistics import K_VALUES, TOKEN_RULES
from memprobe.statistics.curves import frequency_of, recall_of, shuffled_recall_of
from memprobe.statistics.holding import trajectories
from memprobe.statistics.intervals import Resamples, wilson
from memprobe.statistics.occurrence import Occurrence, placement_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_CELLS = 1_200_000
"""Most (checkpoint, factoid, answer token, depth) cells in the explorer. A cell is 6 bytes, 8 in base64, so
that with plotly.js (4.8 MB) a file stays below 15 MB whatever the data."""

DRAWS = 2_000  # bootstrap draws per interval: the page has 18 times as many intervals as summary.json

# In the explorer's columns; explorer.js has the same.
NEVER, ABSENT = 0xFFFF, 0xFFFE  # of depths: never in the top k; no records
MAX_RANK = 0xFFFF
MAX_TOKENS = 0xFFFF  # an index beyond the list of tokens stands for one of the rarer ones


def write_report(probe: Probe, path: str | Path) -> None:
    """Writes the interactive report on a probe directory, with all its checkpoints, as one HTML file.

    Statistics are over all factoids. The explorer leaves out what is beyond :data:`MAX_CELLS` (later answer
    tokens first, then factoids), and the page says so.

    Raises:
        MemprobeError: the probe has no records, or ``path`` cannot be written.
    """
    labels = _labels(probe)
    if not labels:
        raise MemprobeError(f"{probe.path}: no records to report on; see the errors in outcomes.parquet")
    factoids, answer_tokens, left_out = _explored(probe, labels)
    parts, columns, tokens = _pack_records(probe, labels, factoids, answer_tokens)
    ks = sorted({*K_VALUES, int(probe.run["k"])})
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    headline: dict[str, dict[str, Any]] = {}
    occurrence = []
    for rule in TOKEN_RULES:
        under = _Rule(probe, rule, labels)
        headline[rule] = {}
        for k in ks:
            drawn, headline[rule][str(k)], depths = under.tables(k, factoids["id"].to_list())
            occurrence.append(depths)
            for name, figure in drawn.items():
                figures.setdefault(name, {}).setdefault(rule, {})[str(k)] = _figure(figure)
    title, subtitle = _headings(probe, labels)
    data = {
        "title": title,
        "subtitle": subtitle,
        "checkpoints": [
            {"label": label, "n_layers": probe.n_layers[label]} | plots.style(position)
            for position, label in enumerate(labels)
        ],
        "k": ks,
        "rules": list(TOKEN_RULES),
        "default": {"k": int(probe.run["k"]), "rule": probe.run["token"]},
        "controls": not _shuffled(probe).head(1).collect().is_empty(),
        "templates": _templates(),
        "headline": headline,
        "records": parts,
        "left_out": left_out,
        "run": _what_was_run(probe),
        "run_checkpoints": _checkpoint_rows(probe),
    }
    blocks = columns | {
        "figures": page.embedded_json(figures).encode(),
        "trajectory": page.embedded_json(_trajectory(probe, labels)).encode(),
        "factoids": page.embedded_json(_factoid_columns(probe, labels, factoids)).encode(),
        "occurrence": b"".join(occurrence),
        "tokens": page.embedded_json(tokens).encode(),
    }
    scripts = ("core.js", "report.js", "explorer.js", "start.js", page.PLOTLY)
    text = page.assemble(
        title=f"{title} · memprobe",
        body="report.html",
        scripts=scripts,
        data={"report-data": data},
        blocks=blocks,
    )
    write_text(text, Path(path))


def write_figure(figure: Figure, path: str | Path, title: str) -> None:
    """Writes one figure as a self-contained page in the look of the report.

    Raises:
        MemprobeError: ``path`` cannot be written.
    """
    data = {"title": title, "figure": _figure(figure), "templates": _templates()}
    scripts = ("core.js", page.PLOTLY, "figure.js")
    text = page.assemble(
        title=title, body="figure.html", scripts=scripts, data={"figure-data": data}, blocks={}
    )
    write_text(text, Path(path))


class _Rule:
    """What the page shows under one token rule. The rule is applied once; each k then is a threshold."""

    def __init__(self, probe: Probe, rule: str, labels: list[str]) -> None:
        self.labels = labels
        self.answers = {part.checkpoint: part for part in trajectories(probe.records, token=rule)}
        self.others = list(trajectories(_shuffled(probe), token=rule))
        self.outcomes = {label: _outcomes(probe, label) for label in labels}
        self.resamples: dict[tuple[int, int], Resamples] = {}

    def tables(self, k: int, factoids: list[str]) -> tuple[dict[str, Figure], dict[str, Any], bytes]:
        """Figures by name, the numbers on top by checkpoint, and the explorer's columns of depths."""
        recall = recall_of(self.answers.values(), k=k)
        chance = shuffled_recall_of(self.others, k=k)
        frequency = frequency_of(self.answers.values(), k=k)
        found = {label: Occurrence.of(self.answers[label], k) for label in self.labels}
        figures = {
            "recall": plots.recall_curves(recall, chance, checkpoints=self.labels),
            "frequency": plots.normalised_frequency(frequency, checkpoints=self.labels),
            "lof": plots.lof_distribution(_lof_shares(found), checkpoints=self.labels),
        }
        others = pl.DataFrame(
            [
                {"checkpoint": part.checkpoint} | self._placement(Occurrence.of(part, k), draws=1)
                for part in self.others
            ],
            infer_schema_length=None,
        )
        headline = {
            label: self.outcomes[label]
            | self._placement(found[label], draws=DRAWS)
            | {
                "recall": _at_full_depth(recall, label),
                "shuffled": _chance_level(others, chance, label),
            }
            for label in self.labels
        }
        columns = [_depth_columns(found[label], factoids) for label in self.labels]
        return figures, headline, b"".join(columns)

    def _placement(self, found: Occurrence, *, draws: int) -> dict[str, float | None]:
        size = len(found.factoids)
        if (size, draws) not in self.resamples:
            self.resamples[size, draws] = Resamples.of(size, draws=draws)
        return placement_of(found, self.resamples[size, draws])


def _at_full_depth(recall: pl.DataFrame, label: str) -> dict[str, float] | None:
    rows = recall.filter(pl.col("checkpoint") == label)
    if rows.is_empty():
        return None
    deepest = rows.filter(pl.col("depth") == rows["depth"].max())
    return dict(zip(("value", "low", "high"), deepest.select("recall", "low", "high").row(0), strict=True))


def _chance_level(others: pl.DataFrame, chance: pl.DataFrame, label: str) -> dict[str, Any] | None:
    """The numbers on top for shuffled answers, meaned over the draws in which they exist."""
    rows = others.filter(pl.col("checkpoint") == label) if len(others) else others
    if rows.is_empty():
        return None
    names = ("lof_mean", "lof_sd", "share_never", "depths_per_factoid")
    means = rows.select(pl.col(names).cast(pl.Float64).mean()).row(0, named=True)
    return means | {"recall": _at_full_depth(chance, label)}


def _outcomes(probe: Probe, label: str) -> dict[str, Any]:
    """Shares of exact_match and exact_tokens with Wilson intervals, over the factoids that have them."""
    rows = probe.outcomes.filter((pl.col("checkpoint") == label) & pl.col("error").is_null())
    shares: dict[str, Any] = {}
    for name in ("exact_match", "exact_tokens"):
        known = rows[name].drop_nulls()
        if len(known):
            share = float(known.mean())  # type: ignore[arg-type]
            low, high = wilson(np.array(share), np.array(len(known)))
            shares[name] = {"value": share, "low": float(low), "high": float(high)}
        else:
            shares[name] = None
    return shares


def _lof_shares(found: dict[str, Occurrence]) -> pl.DataFrame:
    """[checkpoint, lof, share]: the share of factoids first held at each depth 1 … n_layers; null is never."""
    parts = []
    for label, occurrence in found.items():
        depths = np.arange(1, occurrence.n_layers + 1)
        shares = [*(occurrence.lof[:, None] == depths).mean(0), np.isnan(occurrence.lof).mean()]
        schema = {"checkpoint": pl.String, "lof": pl.Int64, "share": pl.Float64}
        columns = {"checkpoint": [label] * len(shares), "lof": [*depths.tolist(), None], "share": shares}
        parts.append(pl.DataFrame(columns, schema=schema))
    return pl.concat(parts)


# What the explorer holds


def _explored(probe: Probe, labels: list[str]) -> tuple[pl.DataFrame, list[int], str]:
    """The factoids and answer tokens that fit the explorer, and in words what does not."""
    factoids = probe.factoids
    cells = dict(probe.records.group_by("token").agg(pl.len()).iter_rows())
    per_factoid = sum(probe.n_layers[label] + 1 for label in labels)
    most = max(1, MAX_CELLS // per_factoid)
    notes = []
    if len(factoids) > most:
        notes.append(f"Only the first {most:,} of {len(factoids):,} factoids can be opened here")
        factoids = factoids.head(most)
        cells = {0: 0}
    tokens, used = [], 0
    for token in sorted(cells, key=lambda token: (token < 0, token)):
        used += cells[token]
        if tokens and used > MAX_CELLS:
            break
        tokens.append(token)
    if len(tokens) < probe.records["token"].n_unique():
        shown = "the first answer token is" if tokens == [0] else f"the first {len(tokens)} answer tokens are"
        notes.append(f"To keep this page small, only {shown} shown token by token")
    if notes:
        notes.append("All numbers above are over everything, and records.parquet holds the rest")
    return factoids, tokens, ". ".join([*notes, ""]).strip()


def _pack_records(
    probe: Probe, labels: list[str], factoids: pl.DataFrame, answer_tokens: list[int]
) -> tuple[list[dict[str, Any]], dict[str, bytes], list[str]]:
    """The records as columns, one block per answer token and checkpoint.

    A block is, for its rows of factoids: uint32 position of the factoid [row]; uint16 rank (clipped),
    float16 log_prob and uint16 top-1, each [row, depth]; uint16 answer token [row]. Tokens are indices into
    the list of their texts, the most frequent first.
    """
    position = factoids.select(
        pl.col("id").alias("factoid"), pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
    )
    records = probe.records.filter(pl.col("token").is_in(answer_tokens)).join(position, on="factoid")
    counts = pl.concat([records.select("checkpoint", id="top1"), records.select("checkpoint", id="token_id")])
    ids = counts.group_by("checkpoint", "id").len()
    texts = [probe.token_text(label, token) for label, token in ids.select("checkpoint", "id").iter_rows()]
    ids = ids.with_columns(text=pl.Series(texts, dtype=pl.String))
    frequent = ids.group_by("text").agg(pl.col("len").sum()).sort(["len", "text"], descending=[True, False])
    tokens = frequent["text"].head(MAX_TOKENS).to_list()
    index = {text: at for at, text in enumerate(tokens)}
    ids = ids.with_columns(
        at=pl.Series([index.get(text, MAX_TOKENS) for text in ids["text"]], dtype=pl.UInt16)
    )
    parts, blocks = [], {}
    for token in answer_tokens:
        for label in labels:
            own = ids.filter(pl.col("checkpoint") == label)
            rows = records.filter((pl.col("checkpoint") == label) & (pl.col("token") == token)).sort(
                "row", "depth"
            )
            if rows.is_empty():
                continue
            depths = probe.n_layers[label] + 1
            if (
                len(rows) % depths
                or not (rows["depth"].to_numpy().reshape(-1, depths) == np.arange(depths)).all()
            ):
                raise MemprobeError(
                    f"{probe.path}: records of {label!r} lack some depths of some factoids; probe that checkpoint again"
                )
            firsts = rows.gather_every(depths)
            top1 = rows["top1"].replace_strict(own["id"], own["at"], return_dtype=pl.UInt16)
            answer = firsts["token_id"].replace_strict(own["id"], own["at"], return_dtype=pl.UInt16)
            name = f"records-{len(parts)}"
            blocks[name] = b"".join(
                [
                    firsts["row"].to_numpy().astype("<u4").tobytes(),
                    np.minimum(rows["rank"].to_numpy(), MAX_RANK).astype("<u2").tobytes(),
                    np.clip(rows["log_prob"].to_numpy(), -6e4, 0).astype("<f2").tobytes(),
                    top1.to_numpy().astype("<u2").tobytes(),
                    answer.to_numpy().astype("<u2").tobytes(),
                ]
            )
            parts.append(
                {"block": name, "checkpoint": label, "token": token, "depths": depths, "rows": len(firsts)}
            )
    return parts, blocks, tokens


def _depth_columns(found: Occurrence, factoids: list[str]) -> bytes:
    """uint16 first occurrence, then settled depth, [factoid]; :data:`NEVER` and :data:`ABSENT` beside depths."""
    rows = {factoid: row for row, factoid in enumerate(found.factoids)}
    at = np.array([rows.get(factoid, -1) for factoid in factoids])
    columns = []
    for depth in (found.lof, found.settled):
        packed = np.where(np.isnan(depth), NEVER, np.nan_to_num(depth)).astype("<u2")
        columns.append(np.where(at >= 0, packed[at], ABSENT).astype("<u2").tobytes())
    return b"".join(columns)


def _factoid_columns(probe: Probe, labels: list[str], factoids: pl.DataFrame) -> dict[str, Any]:
    columns: dict[str, Any] = {
        name: factoids[name].to_list() for name in ("id", "source", "relation", "prompt", "answer")
    }
    columns["aliases"] = factoids["aliases"].fill_null([]).to_list()
    columns["outcomes"] = {}
    for label in labels:
        outcomes = probe.outcomes.filter(pl.col("checkpoint") == label).drop("checkpoint")
        rows = factoids.select(factoid="id").join(outcomes, on="factoid", how="left", maintain_order="left")
        columns["outcomes"][label] = {
            "exact_match": rows["exact_match"].cast(pl.Int8).to_list(),
            "prediction": rows["prediction"].to_list(),
            "error": rows["error"].to_list(),
        }
    return columns


def _trajectory(probe: Probe, labels: list[str]) -> dict[str, Any]:
    """The figure of one factoid, for the page to put each factoid's own numbers into."""
    first = pl.col("token") == 0
    some = [probe.records.filter(first & (pl.col("checkpoint") == label)).head(1) for label in labels]
    rows = pl.concat(some).with_columns(factoid=pl.lit(""))
    return _figure(plots.rank_trajectory(rows, k=int(probe.run["k"]), checkpoints=labels))


# What was run


def _headings(probe: Probe, labels: list[str]) -> tuple[str, str]:
    run = probe.run
    title = labels[0] if len(labels) == 1 else f"{len(labels)} checkpoints"
    n, errors = len(probe.factoids), probe.outcomes["error"].is_not_null().sum()
    parts = [
        f"{n:,} factoids from {run['factoids'].get('source', 'a file')}",
        f"{run['lens'].capitalize()} Lens",
        "each checkpoint’s own readout" if run["readout"] == "own" else f"read out by {run['readout']}",
        f"template {run['template']}",
    ]
    if errors:
        parts.append(f"{errors:,} left out with an error")
    waiting = [label for label in probe.checkpoints if label not in labels]
    if waiting:
        parts.append(f"no records yet of {', '.join(waiting)}")
    return f"Where facts surface in {title}", " · ".join(parts)


def _what_was_run(probe: Probe) -> list[tuple[str, str]]:
    run = probe.run
    facts = run["factoids"]
    versions = {"memprobe": run["memprobe"]} | run["versions"]
    return [
        ("Factoids", f"{facts.get('source', '')}, {facts['n']:,}, sha256 {facts['hash']}"),
        ("Template", run["template"]),
        ("Tokenisation", run["tokenisation"]),
        ("Lens", run["lens"]),
        ("Readout", run["readout"]),
        ("Precision", f"model {run['dtype']}, readout float32"),
        ("Seed", str(run["seed"])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("On this page", f"log-probabilities in half precision, ranks up to {MAX_RANK:,}"),
    ]


def _checkpoint_rows(probe: Probe) -> list[list[str]]:
    rows = [["Checkpoint", "Spec", "Fingerprint", "Layers", "Width", "Vocabulary", "Trained as"]]
    for label, entry in probe.run["checkpoints"].items():
        manifest = entry.get("manifest") or {}
        trained = ", ".join(
            f"{key} {manifest[key]}" for key in ("arm", "stage", "seed", "steps") if key in manifest
        )
        complete = "" if entry.get("complete", True) else " (unfinished)"
        rows.append(
            [
                label + complete,
                str(entry.get("spec") or "in memory"),
                str(entry["fingerprint"])[:16],
                str(entry["n_layers"]),
                str(entry.get("d_model", "")),
                f"{entry['vocab']:,}" if "vocab" in entry else "",
                trained,
            ]
        )
    return rows


def _labels(probe: Probe) -> list[str]:
    """Checkpoints that have records, in the order in which they were named."""
    present = set(probe.records["checkpoint"].unique())
    return [label for label in probe.checkpoints if label in present]


def _shuffled(probe: Probe) -> pl.LazyFrame:
    return probe.controls.lazy().filter(pl.col("control").str.starts_with("shuffled:"))


def _templates() -> dict[str, Any]:
    return {theme: plots.template(theme) for theme in ("light", "dark")}


def _figure(figure: Figure) -> dict[str, Any]:
    """A figure as plain JSON without its template, which the page sets by theme."""
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain
