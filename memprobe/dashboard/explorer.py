"""What each factoid did at each depth, packed into columns that the page inflates when its explorer is opened.

A column is an array of small numbers (zlib, base64 in the page): rank as uint16, log-probability as float16, top-1
as uint16 into a list of token texts; ``page/explorer.js`` reads the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from memprobe.errors import MemprobeError
from memprobe.readings import Readings
from memprobe.statistics.groups import group_labels
from memprobe.statistics.occurrence import Occurrence

MAX_CELLS = 1_600_000
"""Most (checkpoint, factoid, answer token, depth) cells in the explorer of a page. A cell is 6 bytes, 8 in base64, so
that with plotly.js (4.8 MB) and the figures a file stays below 25 MB whatever the data."""

# explorer.js has the same.
NEVER, ABSENT = 0xFFFF, 0xFFFE  # of depths: never in the top k; no records
MAX_RANK = 0xFFFF
MAX_TOKENS = 0xFFFF  # an index beyond the list of tokens stands for one of the rarer ones


@dataclass(frozen=True, eq=False)
class Explored:
    """What the explorer shows.

    Attributes:
        factoids: rows of those that can be opened.
        tokens: answer tokens that are shown of them.
        left_out: in words, what is not.
    """

    factoids: pl.DataFrame
    tokens: list[int]
    left_out: str


def explored(readings: Readings, cells: int) -> Explored:
    """The factoids and answer tokens of which at most so many cells fit."""
    factoids = readings.asked
    counts = [readings.counts(label, "records", "token") for label in readings.labels]
    of_token = dict(pl.concat(counts).group_by("token").agg(pl.col("count").sum()).iter_rows())
    known = len(of_token)
    per_factoid = sum(member.n_layers + 1 for member in readings.members)
    most = max(1, cells // per_factoid)
    notes = []
    if len(factoids) > most:
        notes.append(f"Only the first {most:,} of {len(factoids):,} factoids can be opened here")
        factoids = factoids.head(most)
        of_token = {0: 0}
    tokens, used = [], 0
    for token in sorted(of_token, key=lambda token: (token < 0, token)):
        used += of_token[token]
        if tokens and used > cells:
            break
        tokens.append(token)
    if len(tokens) < known:
        shown = "the first answer token is" if tokens == [0] else f"the first {len(tokens)} answer tokens are"
        notes.append(f"To keep this page small, only {shown} shown token by token")
    if notes:
        notes.append("All other numbers are over everything, and the probe's records hold the rest")
    return Explored(factoids, tokens, ". ".join([*notes, ""]).strip())


def pack_records(
    readings: Readings, shown: Explored, prefix: str
) -> tuple[list[dict[str, Any]], dict[str, bytes], list[str]]:
    """The records as columns, one block per answer token and checkpoint, its name after ``prefix``.

    A block is, for its rows of factoids: uint32 position of the factoid [row]; uint16 rank (clipped),
    float16 log_prob and uint16 top-1, each [row, depth]; uint16 answer token [row]. Tokens are indices into
    the list of their texts, the most frequent first.
    """
    position = shown.factoids.select(
        pl.col("id").alias("factoid"), pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
    )
    wanted = pl.col("token").is_in(shown.tokens) & pl.col("factoid").is_in(position["factoid"].implode())
    records = pl.concat(
        readings.rows(label, "records", where=wanted).join(position, on="factoid")
        for label in readings.labels
    )
    counts = pl.concat([records.select("checkpoint", id="top1"), records.select("checkpoint", id="token_id")])
    ids = counts.group_by("checkpoint", "id").len()
    texts = [
        member.probe.token_text(member.name, token)
        for label, token in ids.select("checkpoint", "id").iter_rows()
        for member in [readings.member(label)]
    ]
    ids = ids.with_columns(text=pl.Series(texts, dtype=pl.String))
    frequent = ids.group_by("text").agg(pl.col("len").sum()).sort(["len", "text"], descending=[True, False])
    tokens = frequent["text"].head(MAX_TOKENS).to_list()
    index = {text: at for at, text in enumerate(tokens)}
    ids = ids.with_columns(
        at=pl.Series([index.get(text, MAX_TOKENS) for text in ids["text"]], dtype=pl.UInt16)
    )
    parts, blocks = [], {}
    for token in shown.tokens:
        for label in readings.labels:
            own = ids.filter(pl.col("checkpoint") == label)
            rows = records.filter((pl.col("checkpoint") == label) & (pl.col("token") == token)).sort(
                "row", "depth"
            )
            if rows.is_empty():
                continue
            depths = readings.member(label).n_layers + 1
            if (
                len(rows) % depths
                or not (rows["depth"].to_numpy().reshape(-1, depths) == np.arange(depths)).all()
            ):
                raise MemprobeError(
                    f"{readings.member(label).probe.path}: records of {label!r} lack some depths "
                    "of some factoids; probe that checkpoint again"
                )
            firsts = rows.gather_every(depths)
            top1 = rows["top1"].replace_strict(own["id"], own["at"], return_dtype=pl.UInt16)
            answer = firsts["token_id"].replace_strict(own["id"], own["at"], return_dtype=pl.UInt16)
            name = f"{prefix}records-{len(parts)}"
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


def depth_columns(found: Occurrence, factoids: list[str]) -> bytes:
    """uint16 first occurrence, then settled depth, [factoid]; :data:`NEVER` and :data:`ABSENT` beside depths."""
    rows = {factoid: row for row, factoid in enumerate(found.factoids)}
    at = np.array([rows.get(factoid, -1) for factoid in factoids])
    columns = []
    for depth in (found.lof, found.settled):
        packed = np.where(np.isnan(depth), NEVER, np.nan_to_num(depth)).astype("<u2")
        columns.append(np.where(at >= 0, packed[at], ABSENT).astype("<u2").tobytes())
    return b"".join(columns)


def factoid_columns(
    readings: Readings, factoids: pl.DataFrame, chains: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What is shown and searched of each factoid, each a list over factoids.

    ``popularity`` and its ``quarter`` are ``None`` where no factoid has one; ``fates`` has, by chain of
    checkpoints, the path of each factoid as ``1→0`` (exact, then not), see
    :func:`memprobe.statistics.fates.fates`.
    """
    columns: dict[str, Any] = {
        name: factoids[name].to_list() for name in ("id", "source", "relation", "prompt", "answer")
    }
    columns["aliases"] = factoids["aliases"].fill_null([]).to_list()
    columns["outcomes"] = {}
    exact = {}
    for label in readings.labels:
        outcomes = readings.rows(label, "outcomes").drop("checkpoint")
        rows = factoids.select(factoid="id").join(outcomes, on="factoid", how="left", maintain_order="left")
        exact[label] = rows[readings.measure].fill_null(False)
        columns["outcomes"][label] = {
            "exact_match": rows["exact_match"].cast(pl.Int8).to_list(),
            "prediction": rows["prediction"].to_list(),
            "error": rows["error"].to_list(),
        }
    columns |= {"popularity": None, "quarter": None}
    if factoids["popularity"].is_not_null().any():
        everyone = group_labels(readings.asked, pl.DataFrame(), None, by="popularity")
        columns["popularity"] = factoids["popularity"].fill_nan(None).to_list()
        columns["quarter"] = everyone[: len(factoids)]
    columns["fates"] = {
        name: [
            "→".join(str(int(known)) for known in facts) for facts in zip(*map(exact.get, chain), strict=True)
        ]
        for name, chain in chains.items()
    }
    return columns
