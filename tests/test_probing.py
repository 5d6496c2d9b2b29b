"""A probe directory: through kills at every write, beside other probes, and when checkpoints join later."""

import os
import shutil
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import polars as pl
import pytest
from filelock import FileLock

from memprobe import files, probe_writer, prober
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.models import wrap
from memprobe.probes import open_probe
from memprobe.probing import _order, probe
from memprobe.records import TABLES
from tests.tiny import tiny_model, tiny_tokenizer

FACTS = [
    make_factoid("The river of Oria is the", "Lunn", "test", relation="river", id="a"),
    make_factoid("The river of Selva is the", "Brack", "test", relation="river", id="b"),
    make_factoid("The river of Tolm is the", "Ister", "test", relation="river", id="c"),
    make_factoid("Oria: hill?", "Mount Grey", "test", relation="hill", id="d"),
    make_factoid("Selva: hill?", "Peak Nine", "test", relation="hill", id="e"),
]
LABELS = ["base", "step 10/é"]
SORTED = {
    "records": ["checkpoint", "lens", "factoid", "position", "token", "depth"],
    "controls": ["checkpoint", "lens", "factoid", "position", "token", "depth", "control"],
    "outcomes": ["checkpoint", "factoid"],
    "factoids": ["id"],
}


@pytest.fixture(scope="module")
def two():
    """Two tiny models in memory."""
    tokenizer = tiny_tokenizer()
    return [
        wrap(tiny_model("llama", len(tokenizer), seed=seed), tokenizer, label=label)
        for seed, label in enumerate(LABELS)
    ]


@pytest.fixture(autouse=True)
def flushed_at_once(monkeypatch):
    monkeypatch.setattr(probe_writer, "FLUSH_SECONDS", -1)


@pytest.fixture(scope="module")
def whole(two, tmp_path_factory):
    """The same probe, undisturbed."""
    return probe(two, FACTS, tmp_path_factory.mktemp("whole") / "probe", batch_size=2)


class Killed(BaseException):
    """As after SIGKILL: nothing is written from here on, and no handler can change that."""


class Power:
    """Lets so many writes and removals happen, then cuts the power in the middle of the next."""

    def __init__(self, monkeypatch, at: int | None = None):
        self.events, self.at, self.dead = 0, at, False
        replacing, rmtree = files.replacing, shutil.rmtree

        @contextmanager
        def write(path):
            self.cut(lambda: torn(path))
            with replacing(path) as temporary:
                yield temporary

        def torn(path):  # what a write leaves that never came to its end
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f".{path.name}.torn").write_bytes(b"PAR1 torn")

        def remove(path, **options):
            self.cut(lambda: [file.unlink() for file in sorted(path.glob("*.parquet"))[:2]])
            rmtree(path, **options)

        monkeypatch.setattr(files, "replacing", write)
        monkeypatch.setattr(shutil, "rmtree", remove)

    def cut(self, leave) -> None:
        self.events += 1
        if self.events == self.at:
            self.dead = True
            leave()
        if self.dead:
            raise Killed


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path):
    """Two processes may write one file at once; what a killed one left there long ago is taken away."""
    path = tmp_path / "run.json"
    stale = tmp_path / ".run.json.01234567-1-torn"  # of another machine
    stale.write_text("{")
    os.utime(stale, (0, 0))
    with files.replacing(path) as first, files.replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and sorted(tmp_path.iterdir()) == [path]


def without_chat(two) -> list:
    tokenizer = copy(two[0].tokenizer)
    tokenizer.chat_template = None
    return [wrap(two[0].model, tokenizer, label="base")]


def hold_same(one, other) -> None:
    for table, keys in SORTED.items():
        assert getattr(one, table).sort(keys).equals(getattr(other, table).sort(keys)), table
    assert one.summary == other.summary
    assert one.run == other.run


WRITES = 35  # and removals, of the whole probe; the next test says so when it changes


def test_every_write_is_counted(two, whole, tmp_path, monkeypatch):
    power = Power(monkeypatch)
    hold_same(probe(two, FACTS, tmp_path / "probe", batch_size=2), whole)
    assert power.events == WRITES


@pytest.mark.parametrize("at", range(1, WRITES + 1))
def test_killed_at_any_write_it_stays_readable_and_goes_on(two, whole, tmp_path, at):
    out = tmp_path / "probe"
    with pytest.MonkeyPatch.context() as patch:
        Power(patch, at)
        with pytest.raises(Killed):
            probe(two, FACTS, out, batch_size=2)
    if (out / "run.json").exists():
        half = open_probe(out)
        for table in ("records", "controls", "outcomes"):
            rows, full = getattr(half, table), getattr(whole, table)
            assert rows.schema == TABLES[table]
            assert not rows.is_duplicated().any()
            assert rows.join(full, on=rows.columns, how="anti", nulls_equal=True).is_empty()
            for label, entry in half.run["checkpoints"].items():
                if entry["complete"]:
                    of = pl.col("checkpoint") == label
                    assert rows.filter(of).height == full.filter(of).height
    hold_same(probe(two, FACTS, out, batch_size=2), whole)
    assert not (out / "parts").exists()


def test_a_failed_write_keeps_what_is_finished(two, whole, tmp_path):
    out = tmp_path / "probe"
    with pytest.MonkeyPatch.context() as patch:
        write = probe_writer.write_parquet
        written = []

        def full(frame, path):
            written.append(path)
            if len(written) > 5:
                raise MemprobeError(f"{path}: cannot be written (no space left on device)")
            write(frame, path)

        patch.setattr(probe_writer, "write_parquet", full)
        with pytest.raises(MemprobeError, match="no space left"):
            probe(two, FACTS, out, batch_size=2)
    assert open_probe(out).outcomes.height == 2
    hold_same(probe(two, FACTS, out, batch_size=2), whole)


def test_finished_batches_are_not_run_again(two, whole, tmp_path, monkeypatch):
    from memprobe import capturing

    asked = []
    real = capturing._capture_batch

    def counted(lens_model, lens, batch, *rest):
        if len(asked) == 4 and len(batch) == 1:
            raise KeyboardInterrupt
        asked.extend((lens_model.label, item.factoid.id) for item in batch)
        return real(lens_model, lens, batch, *rest)

    monkeypatch.setattr(capturing, "_capture_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        probe(two, FACTS, tmp_path / "probe", batch_size=2)
    finished = list(asked)
    assert len(finished) == 4
    monkeypatch.setattr(capturing, "_capture_batch", real)
    asked.clear()
    monkeypatch.setattr(
        capturing,
        "_capture_batch",
        lambda model, lens, batch, *rest: (
            asked.extend((model.label, item.factoid.id) for item in batch),
            real(model, lens, batch, *rest),
        )[1],
    )
    hold_same(probe(two, FACTS, tmp_path / "probe", batch_size=2), whole)
    assert len(asked) == 6 and not set(asked) & set(finished)
    asked.clear()
    hold_same(probe(two, FACTS, tmp_path / "probe", batch_size=2), whole)
    assert asked == []


def test_a_checkpoint_joins_and_the_others_stay(two, whole, tmp_path):
    out = tmp_path / "probe"
    before = probe(two[:1], FACTS, out, batch_size=2).records
    both = probe(two[1:], FACTS, out, batch_size=2)
    hold_same(both, whole)
    assert both.records.filter(pl.col("checkpoint") == LABELS[0]).equals(before)


def test_factoids_in_another_order_are_the_same_factoids(two, whole, tmp_path):
    out = tmp_path / "probe"
    probe(two[:1], FACTS, out, batch_size=2)
    hold_same(probe(two, FACTS[::-1], out, batch_size=2), whole)


def test_what_run_json_says(two, whole):
    assert whole.checkpoints == LABELS
    for label, model in zip(whole.checkpoints, two, strict=True):
        entry = whole.run["checkpoints"][label]
        assert entry["complete"] and entry["fingerprint"] == entry["readout_fingerprint"] == model.fingerprint
        assert (entry["n_layers"], entry["d_model"], entry["vocab"]) == (3, 32, model.vocab_size)
    used = pl.concat([whole.records["token_id"], whole.records["top1"], whole.controls["token_id"]]).unique()
    assert set(used) <= set(whole.tokens)
    assert all(whole.tokens[token] == two[0].tokenizer.decode([token]) for token in used)


def test_what_would_mix_two_probes_is_refused(two, tmp_path):
    out = tmp_path / "probe"
    probe(two[:1], FACTS, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    other = wrap(two[1].model, two[1].tokenizer, label="base")
    for changes, word in (
        ({"template": "tulu"}, "this probe has template plain; you asked for tulu"),
        ({"seed": 1}, "this probe has seed 0; you asked for 1"),
        ({"readout": two[1]}, "this probe has lens logit; you asked for"),
        ({"factoids": FACTS[:3]}, "this directory holds a probe of 5 facts from test; you asked for 3"),
        ({"intrusions": {"B": FACTS[:2]}}, "this probe has intrusions"),
        ({"checkpoints": [other]}, "holds other weights under the label 'base'"),
    ):
        with pytest.raises(MemprobeError, match=word):
            probe(**({"checkpoints": two[:1], "factoids": FACTS, "out": out} | changes))
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_probe_that_never_read_anything_is_begun_again_as_is_asked_now(two, tmp_path):
    out = tmp_path / "probe"
    with pytest.raises(MemprobeError, match="no chat template"):
        probe(without_chat(two), FACTS, out, template="chat")
    with pytest.raises(MemprobeError, match="subject"):  # in no prompt
        probe(two[:1], [replace(fact, subject=None) for fact in FACTS], out, positions=["answer", "subject"])
    with FileLock(out / ".lock"), pytest.raises(MemprobeError, match="another process is probing here"):
        probe(two[:1], FACTS[:4], out, template="plain")
    again = probe(two[:1], FACTS[:4], out, template="plain")
    assert again.finished == ["base"]
    hold_same(again, probe(two[:1], FACTS[:4], tmp_path / "new", template="plain"))


def test_rows_are_no_factoids(two, tmp_path):
    rows = [{"prompt": "The river of Oria is the", "answer": "Lunn"}]
    with pytest.raises(MemprobeError, match=r"a dict is not a factoid; memprobe\.make_factoid"):
        probe(two[:1], rows, tmp_path / "probe")
    with pytest.raises(MemprobeError, match="not a factoid"):
        probe(two[:1], FACTS, tmp_path / "probe", intrusions={"B": rows})
    assert not (tmp_path / "probe").exists()


@pytest.mark.parametrize(
    ("there", "named", "order"),
    [("ab", "b", "ab"), ("ab", "c", "abc"), ("ac", "abc", "abc"), ("xc", "abc", "xabc"), ("ba", "ab", "ba")],
)
def test_checkpoints_keep_their_order_and_new_ones_stand_as_named(there, named, order):
    assert "".join(_order(dict.fromkeys(there), named)) == order


@pytest.mark.parametrize(
    "left", ["parts/ab/records-00000000.parquet", "records/base.parquet", "records.parquet"]
)
def test_a_probe_that_holds_any_table_is_not_begun_again(two, tmp_path, left):
    out = tmp_path / "probe"
    with pytest.raises(MemprobeError, match="no chat template"):
        probe(without_chat(two), FACTS, out, template="chat")
    (out / left).parent.mkdir(parents=True, exist_ok=True)
    (out / left).write_bytes(b"mine")
    with pytest.raises(MemprobeError, match="this probe has template chat"):
        probe(two[:1], FACTS, out, template="plain")
    assert (out / left).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["factoids.parquet", "thesis.tex", ".hidden"])
def test_a_directory_with_other_files_is_left_alone(two, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(MemprobeError, match="not a probe directory"):
        probe(two[:1], FACTS, tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]


def test_precision_is_measured_on_a_sample_once(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(prober, "PRECISION_SAMPLE", 2)
    base = f"base={tiny_checkpoint}"
    options = {"out": tmp_path / "probe", "dtype": "bfloat16", "readout": str(tiny_checkpoint)}
    found = probe([base], FACTS, **options).run["checkpoints"]["base"]["precision"]
    assert found["factoids"] == 2 and found["ranks"] == 2 * (found["ranks"] // 2) > 0
    assert 0 < found["changed"] < 1 and "why" not in found
    monkeypatch.setattr(prober.Prober, "exactly", None)  # would fail if it were called again
    assert probe([base], FACTS, **options).run["checkpoints"]["base"]["precision"] == found


def test_without_memory_for_fp32_the_probe_says_so(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(prober, "_free_memory", lambda device: 1000)
    found = probe([f"base={tiny_checkpoint}"], FACTS, out=tmp_path / "probe", dtype="bfloat16")
    entry = found.run["checkpoints"]["base"]
    assert entry["complete"] and entry["precision"]["changed"] is None
    assert "GiB" in entry["precision"]["why"] and entry["parameters"] > 0


def test_models_in_memory_are_taken_as_they_are(two, tmp_path):
    import copy

    short = wrap(copy.deepcopy(two[0].model).bfloat16(), two[0].tokenizer, label="short")
    run = probe([short], FACTS, tmp_path / "probe").run
    assert run["dtype"] == "bfloat16" and "precision" not in run["checkpoints"]["short"]


def test_a_readout_of_another_size_is_refused(two, tmp_path):
    tokenizer = tiny_tokenizer()
    wide = wrap(tiny_model("llama", vocab_size=len(tokenizer), hidden_size=64), tokenizer, label="wide")
    with pytest.raises(MemprobeError, match=r"lens logit@wide: wide reads 64 x \d+, but base is 32 x"):
        probe(two[:1], FACTS, tmp_path / "probe", readout=wide)


def test_what_intrudes_and_begins_as_the_answer_does_is_no_control(two, tmp_path):
    """Of that fact alone; a control is the rank of another token."""
    intruders = {"one": [FACTS[1]], "two": [FACTS[1], FACTS[2]]}
    found = probe(two[:1], FACTS, tmp_path / "p", intrusions=intruders)
    asked = found.controls.filter(pl.col("control").str.starts_with("intrusion"))
    facts = {name: set(part["factoid"]) for (name,), part in asked.group_by("control")}
    every = {fact.id for fact in FACTS}
    assert facts == {"intrusion:one": every - {"b"}, "intrusion:two": every}
    assert found.finished == [LABELS[0]] and asked["token_id"].min() >= 0
