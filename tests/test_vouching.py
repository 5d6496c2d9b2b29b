"""Probes of schema 1 were written without checksums: what vouches for their tables."""

import polars as pl
import pytest

from memprobe import vouching
from memprobe.compare import compare
from memprobe.errors import MemprobeError
from memprobe.files import read_json
from memprobe.probes import open_probe
from memprobe.vouching import CHECKSUMS
from tests.probes import retell, write_probe


@pytest.fixture
def older(tmp_path):
    """A probe of schema 1 that nobody has opened yet."""
    made = write_probe(tmp_path / "p", {"base": 3, "late": 5}, n=8)
    (made.path / CHECKSUMS).unlink()
    return made


def test_the_first_opening_keeps_checksums_and_says_so_once(older):
    (note,) = [note for note in compare([older.path], draws=100).notes if "without checksums" in note]
    assert "equal summary.json's" in note and "may be unnoticed" in note
    assert set(read_json(older.path / CHECKSUMS)) == {"records", "controls", "outcomes", "factoids"}
    assert not any("checksums" in note for note in compare([older.path], draws=100).notes)


@pytest.mark.parametrize("table", ["records", "controls", "outcomes", "factoids"])
def test_a_bit_that_flips_after_the_first_opening_is_found(older, table):
    open_probe(older.path)
    file = older.path / f"{table}.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(MemprobeError, match=rf"{table}.parquet: changed since it was written"):
        open_probe(older.path)


def rank(depth: int, to: int, control: str | None = None):
    """A rank of the first fact's first token is another one, at a depth where it was on the other side of 10."""

    def change(table: pl.DataFrame) -> pl.DataFrame:
        here = (pl.col("token") == 0) & (pl.col("depth") == depth)
        if control is not None:
            here &= pl.col("control") == control
        first = table.filter(here & ((pl.col("rank") < 10) != (to < 10)))["factoid"][0]
        changed = pl.when(here & (pl.col("factoid") == first)).then(to).otherwise(pl.col("rank"))
        return table.with_columns(changed.cast(pl.Int32).alias("rank"))

    return change


CHANGED = {
    "a rank": ("records", rank(5, 400), "recall of the top"),
    "a control's rank": ("controls", rank(2, 0, "shuffled:0"), "shuffled of the top"),
    "an outcome": ("outcomes", lambda t: t.with_columns(~pl.col("exact_match")), "exact_match is"),
    "an answer": ("factoids", lambda t: t.with_columns(answer=pl.lit("x")), "holds other facts"),
    "a fact's id": (
        "outcomes",
        lambda t: t.with_columns(pl.col("factoid").replace({t["factoid"][0]: "a"})),
        "a fact 'a' that was not asked",
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_was_changed_before_is_held_against_the_summary(older, what):
    table, change, words = CHANGED[what]
    retell(older.path, table, change(getattr(older, table)))
    with pytest.raises(MemprobeError, match=words):
        open_probe(older.path)
    assert not (older.path / CHECKSUMS).exists()


def test_a_changed_outcome_in_exact_tokens_alone_is_held_against_the_summary(older):
    """The words may be right where the tokens are not: each is held by itself."""
    other = pl.int_range(pl.len()) == 0
    changed = older.outcomes.with_columns(pl.col("exact_tokens") ^ other)
    assert changed["exact_match"].equals(older.outcomes["exact_match"])
    retell(older.path, "outcomes", changed)
    with pytest.raises(MemprobeError, match="exact_tokens is"):
        open_probe(older.path)


def test_a_later_tokens_rank_is_held_against_the_recall_of_all_tokens(older):
    """The rule asks the first token alone, yet recall over all tokens is in the summary, and is shown."""
    here = (pl.col("token") == 1) & (pl.col("depth") == 8)
    first = older.records.filter(here, pl.col("rank") < 10)["factoid"][0]
    changed = pl.when(here & (pl.col("factoid") == first)).then(400).otherwise(pl.col("rank"))
    retell(older.path, "records", older.records.with_columns(changed.cast(pl.Int32).alias("rank")))
    with pytest.raises(MemprobeError, match="recall_all of the top"):
        open_probe(older.path)


@pytest.mark.parametrize("rule", ["first", "last", "all"])
def test_the_summary_is_of_the_probes_own_token_rule(tmp_path, rule):
    from memprobe.files import write_json
    from memprobe.summary import summarise

    made = write_probe(tmp_path / "p", {"base": 3}, n=9, summary=False)
    write_json(read_json(made.path / "run.json") | {"token": rule}, made.path / "run.json")
    summary = {"schema": 1, "k": 10, "token": rule, "checkpoints": summarise(made, token=rule, draws=100)}
    write_json(summary, made.path / "summary.json")
    (made.path / CHECKSUMS).unlink()
    assert "equal summary.json's" in open_probe(made.path).note


def test_where_nothing_can_be_written_the_note_says_so_each_time(older, monkeypatch):
    def refuse(*_):
        raise MemprobeError("read-only")

    monkeypatch.setattr(vouching, "write_json", refuse)
    for _ in range(2):
        assert "none can be kept here" in open_probe(older.path).note


def test_broken_checksums_are_named(older):
    open_probe(older.path)
    (older.path / CHECKSUMS).write_text("{}")
    with pytest.raises(MemprobeError, match=r"checksums.json: records: missing"):
        open_probe(older.path)
