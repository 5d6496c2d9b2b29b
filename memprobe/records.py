"""The schemas of a probe's tables. Every join is by id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl

from memprobe.factoids import Factoid

SCHEMA_VERSION = 2
"""Of what is written. Probes of schema 1 (one lens, one position, one file a table) are read as well."""

LENS, POSITION, SUBJECT = "logit", "answer", "subject"
POSITIONS = (POSITION, SUBJECT)
"""``answer``: the position that predicts the token; ``subject``: the subject's last token in the prompt.

In this order, whatever order they are asked for in: the first one of a probe is its headline (:func:`in_order`)."""

GENERATED, ARGMAX = MEASURES = ("exact_match", "exact_tokens")
"""Columns of outcomes that say whether the answer is given: what was generated greedily, or the argmax of each of its
tokens. The first implies less than the second, so that numbers are of one of them; see :func:`measure_of`."""

KEYS: dict[str, Any] = {
    "checkpoint": pl.String,
    "lens": pl.String,  # logit, logit@base, tuned …
    "factoid": pl.String,
    "position": pl.String,  # one of POSITIONS
    "token": pl.Int16,  # index of the answer token; -1 is the end token after it, -2 a bare space before it
    "token_id": pl.Int32,
    "depth": pl.Int16,  # 0 … n_layers
}
RECORDS = pl.Schema(
    KEYS
    | {
        "rank": pl.Int32,  # other tokens whose logit is at least as large: 0 is the argmax alone
        "log_prob": pl.Float32,  # nats
        "entropy": pl.Float32,  # nats
        "top1": pl.Int32,
        "ties": pl.Int32,  # other tokens with exactly the answer's logit
    }
)
CONTROLS = pl.Schema({**KEYS, "control": pl.String, "rank": pl.Int32})
OUTCOMES = pl.Schema(
    {
        "checkpoint": pl.String,
        "factoid": pl.String,
        "exact_tokens": pl.Boolean,
        "exact_match": pl.Boolean,
        "prediction": pl.String,
        "error": pl.String,  # why the factoid has no records; null for all others
        "alias_match": pl.Boolean,  # the answer or an alias, after SQuAD's normalisation; null in older probes
    }
)
PATCHES = pl.Schema(
    {
        "source": pl.String,  # label of the checkpoint whose states or weights are put in
        "target": pl.String,  # label of the checkpoint that they are put into
        "what": pl.String,  # residual, attn, mlp: states; weights: a graft
        "positions": pl.String,  # last, subject, prompt; all for weights
        "parts": pl.String,  # of the blocks, for weights; empty for states
        "control": pl.String,  # empty for the patch itself; other, random
        "depth": pl.Int16,  # depth of the stream; the block of attn and mlp; the first block of weights
        "last": pl.Int16,  # the last block of weights; else the depth
        "factoid": pl.String,
        "token": pl.Int16,
        "token_id": pl.Int32,
        "rank": pl.Int32,  # after the patch, in the target's own readout
        "log_prob": pl.Float32,  # nats
        "source_rank": pl.Int32,  # what the source itself says
        "source_log_prob": pl.Float32,
        "target_rank": pl.Int32,  # what the target itself says, corrupted where it is
        "target_log_prob": pl.Float32,
    }
)
ATTRIBUTIONS = pl.Schema(
    {
        "checkpoint": pl.String,
        "factoid": pl.String,
        "token": pl.Int16,  # index of the answer token
        "token_id": pl.Int32,
        "depth": pl.Int16,  # the block, from 1; 0 for embedding and constant
        "part": pl.String,  # embedding, constant, block; attn and mlp, which add up to block
        "logit": pl.Float32,  # what the part adds to the answer's logit, centred over the vocabulary
        "shuffled": pl.Float32,  # mean of what it adds to those of the shuffled answers; null where there is none
        "shuffled_draws": pl.List(
            pl.Float32
        ),  # the same of each draw; null in it where a draw has no such token
    }
)
FACTOIDS = pl.Schema(
    {
        "id": pl.String,
        "source": pl.String,
        "prompt": pl.String,
        "answer": pl.String,
        "aliases": pl.List(pl.String),
        "relation": pl.String,
        "subject": pl.String,
        "popularity": pl.Float64,
    }
)
ALIKE = ("template", "lens", "readout", "position", "tokenisation")
"""In ``run``, what two probes must have in common for their ranks to be comparable."""
TABLES = {
    "records": RECORDS,
    "controls": CONTROLS,
    "outcomes": OUTCOMES,
    "factoids": FACTOIDS,
    "attributions": ATTRIBUTIONS,
}
BY_CHECKPOINT = ("records", "controls", "outcomes")
"""The tables that have a file for each checkpoint."""
WHERE_ASKED = ("attributions",)
"""Those of them that are there only where they were asked for."""
UNITS = {
    "records": ("checkpoint", "lens", "factoid", "position", "token"),
    "controls": ("checkpoint", "lens", "factoid", "position", "token", "control"),
}
"""What tells one trajectory over depth from another."""
ADDED: dict[str, Any] = {"lens": None, "position": POSITION, "alias_match": None, "shuffled_draws": None}
"""Columns that older probes lack, and what stands for them; a lens is that of the whole probe."""


def measure_of(outcomes: pl.LazyFrame | pl.DataFrame) -> str:
    """By which of :data:`MEASURES` outcomes are judged: by the argmax, unless all that are judged were generated."""
    lacking = pl.col(ARGMAX).is_not_null() & pl.col(GENERATED).is_null()
    return ARGMAX if outcomes.lazy().select(lacking.any()).collect().item() else GENERATED


def in_order(positions: Iterable[str]) -> list[str]:
    """Positions in the order of :data:`POSITIONS`, so that the answer's own stands first where it is among them."""
    return sorted(positions, key=POSITIONS.index)


def factoids_frame(factoids: Iterable[Factoid]) -> pl.DataFrame:
    """Factoids as a table; see :data:`FACTOIDS`."""
    rows = [{name: getattr(factoid, name) for name in FACTOIDS} for factoid in factoids]
    for row in rows:
        row["aliases"] = list(row["aliases"])
    return pl.DataFrame(rows, schema=FACTOIDS)


def factoids_from_frame(frame: pl.DataFrame) -> list[Factoid]:
    """The inverse of :func:`factoids_frame`."""
    return [
        Factoid(**(row | {"aliases": tuple(row["aliases"] or ())})) for row in frame.iter_rows(named=True)
    ]
