"""A probe directory of schema 2: several lenses and positions in one, damage that is refused, schema 1 taken over."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import polars as pl
import pytest

from memprobe import files, probe_writer
from memprobe.capturing import capture
from memprobe.compare import compare
from memprobe.dashboard.writing import dashboard_text
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.files import read_json, write_json
from memprobe.lens_specs import make_lens
from memprobe.models import wrap
from memprobe.parquet import mark_of
from memprobe.probes import Probe, open_probe, part_files, table_file
from memprobe.probing import probe
from memprobe.records import BY_CHECKPOINT, CONTROLS, RECORDS, TABLES
from memprobe.studies import open_study
from memprobe.templates import Template
from memprobe.vouching import CHECKSUMS
from tests.probes import write_probe
from tests.tiny import tiny_model, tiny_tokenizer

FACTS = [
    make_factoid("The river of Oria is the", "Lunn", "test", relation="river", subject="Oria", id="a"),
    make_factoid("The river of Selva is the", "Brack", "test", relation="river", subject="Selva", id="b"),
    make_factoid("The river of Tolm is the", "Ister", "test", relation="river", subject="Tolm", id="c"),
    make_factoid(
        "Oria: hill?", "Mount Grey", "test", relation="hill", subject="Selva", id="d"
    ),  # not in its prompt
    make_factoid("Selva: hill?", "Peak Nine", "test", relation="hill", id="e"),  # names none
]
LABELS = ["base", "tuned"]
NEW = ["lens", "position", "alias_match"]  # columns that schema 1 lacked
KEYS = ["checkpoint", "lens", "factoid", "position", "token", "depth"]


@pytest.fixture(scope="module")
def two():
    """Two tiny models in memory."""
    tokenizer = tiny_tokenizer()
    return [
        wrap(tiny_model("llama", len(tokenizer), seed=seed), tokenizer, label=label)
        for seed, label in enumerate(LABELS)
    ]


@pytest.fixture(scope="module")
def both(two, tmp_path_factory):
    """Both readouts, at the answer and at the subject, in one probe."""
    out = tmp_path_factory.mktemp("both") / "probe"
    return probe(
        two, FACTS, out, lenses=["logit", "logit@base"], positions=["answer", "subject"], batch_size=2
    )


def rows(frame: pl.DataFrame, *drop: str) -> pl.DataFrame:
    return frame.drop(drop).sort([key for key in KEYS if key not in drop])


def test_two_readouts_of_one_pass_are_those_of_two(two, both, tmp_path):
    assert both.lenses == ["logit", "logit@base"] and both.positions == ["answer", "subject"]
    for lens, readout, view in (("logit", None, both), ("logit@base", two[0], both.under("logit@base"))):
        alone = probe(two, FACTS, tmp_path / lens, readout=readout, batch_size=2)
        assert alone.lenses == [lens]
        assert (view.run["lens"], view.run["readout"]) == (alone.run["lens"], alone.run["readout"])
        for table in ("records", "controls"):
            here, there = getattr(view, table), getattr(alone, table)
            assert set(here["lens"]) == {lens} and set(here["position"]) == {"answer"}
            extra = ["control"] if table == "controls" else []
            assert here.sort([*KEYS, *extra]).equals(there.sort([*KEYS, *extra])), (lens, table)
        assert both.outcomes.sort("checkpoint", "factoid").equals(
            alone.outcomes.sort("checkpoint", "factoid")
        )
    base = pl.col("checkpoint") == "base"  # its own readout, under two names
    assert rows(both.records.filter(base), "lens").equals(
        rows(both.under("logit@base").records.filter(base), "lens")
    )
    assert not rows(both.records, "lens").equals(rows(both.under("logit@base").records, "lens"))


def test_the_answer_is_the_headline_whatever_the_order_of_positions(two, both, tmp_path):
    """Also of a probe that older code made, which kept the order of the call; the same call goes on with it."""
    asked = {"lenses": ["logit", "logit@base"], "batch_size": 2}
    turned = probe(two, FACTS, tmp_path, positions=["subject", "answer"], **asked)
    assert turned.position == "answer" and turned.run == both.run and turned.summary == both.summary
    old = read_json(tmp_path / "run.json") | {"positions": ["subject", "answer"]}
    del old["checkpoints"]["tuned"]
    write_json(old, tmp_path / "run.json")
    summary = read_json(tmp_path / "summary.json")
    summary["checkpoints"]["base"] |= summary["checkpoints"]["base"].pop("positions")["subject"]
    write_json(summary, tmp_path / "summary.json")
    assert open_probe(tmp_path).position == "answer"
    again = probe(two, FACTS, tmp_path, positions=["subject", "answer"], **asked)
    assert again.run == both.run and again.summary == both.summary


@pytest.mark.parametrize(
    "field", [{"subject": "river"}, {"relation": "one"}, {"aliases": ("the Lunn",)}, {"popularity": 1.0}]
)
def test_facts_of_which_another_field_was_changed_are_others(two, both, tmp_path, field):
    """What is read of a fact beside prompt and answer counts; a probe that said nothing of it is gone on with."""
    changed = [dataclasses.replace(FACTS[0], **field), *FACTS[1:]]
    asked = {"positions": ["answer", "subject"], "lenses": ["logit", "logit@base"], "batch_size": 2}
    out = tmp_path / "probe"
    shutil.copytree(both.path, out)
    with pytest.raises(
        MemprobeError, match=rf"the same facts with other {next(iter(field))}; use another --out"
    ):
        probe(two, changed, out, **asked)
    assert probe(two, FACTS[::-1], out, **asked).run == both.run
    run = read_json(out / "run.json")
    del run["factoids"]["content"]
    write_json(run, out / "run.json")
    assert probe(two, changed, out, **asked).run == run | {"lens": "logit", "position": "answer"}


def test_ranks_are_held_against_fp32_at_the_answer(tmp_path):
    model, tokenizer = tiny_model("llama", len(tiny_tokenizer())), tiny_tokenizer()
    model.save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    shares = [
        probe([str(tmp_path / "one")], FACTS, tmp_path / name, positions=positions, dtype="bfloat16").run
        for name, positions in (("a", ["answer", "subject"]), ("b", ["subject", "answer"]))
    ]
    first, second = (run["checkpoints"]["one"]["precision"] for run in shares)
    assert first == second


def test_what_is_read_at_the_subject(two, both):
    """Against the model itself: the logits at the subject's last token, one factoid at a time."""
    import torch

    view = both.under(position="subject")
    assert set(view.records["factoid"]) == {"a", "b", "c"} and set(view.controls["factoid"]) <= {
        "a",
        "b",
        "c",
    }
    assert (view.records["token"] >= 0).all(), "the end token belongs to the answer alone"
    entry = both.run["checkpoints"]["tuned"]["without_subject"]
    assert entry["n"] == 2 and any("not in the prompt" in why for why in entry["first"])
    assert any("names no subject" in why for why in entry["first"])
    model = two[1]
    for fact in FACTS[:3]:
        prompt = model.tokenizer.encode(fact.prompt)
        ends = [
            len(model.tokenizer.decode(prompt[: n + 1], skip_special_tokens=True)) for n in range(len(prompt))
        ]
        last = fact.prompt.index(fact.subject) + len(fact.subject)
        at = next(n for n, end in enumerate(ends) if end >= last)
        with torch.inference_mode():
            logits = model.model(input_ids=torch.tensor([prompt])).logits[0, at]
        own = view.records.filter(checkpoint="tuned", factoid=fact.id, depth=model.n_layers).sort("token")
        for token, rank, log_prob in own.select("token_id", "rank", "log_prob").iter_rows():
            assert rank == int((logits >= logits[token]).sum()) - 1
            assert log_prob == pytest.approx(float(logits.log_softmax(0)[token]), abs=1e-4)


def test_read_gives_every_lens_and_position_and_touches_only_what_is_asked(both, tmp_path):
    everything = both.read("records", lens=both.lenses, position=both.positions).collect()
    assert everything.schema == RECORDS and not everything.select(KEYS).is_duplicated().any()
    assert set(everything.select("lens", "position").iter_rows()) == {
        (lens, position) for lens in both.lenses for position in both.positions
    }
    assert both.read("controls").collect().schema == CONTROLS
    for options, word in (
        ({"lens": "tuned"}, "lens 'tuned'"),
        ({"position": "end"}, "position 'end'"),
        ({"checkpoints": ["other"]}, "no checkpoint 'other'"),
    ):
        with pytest.raises(MemprobeError, match=word):
            both.read("records", **options)
    copy = Path(shutil.copytree(both.path, tmp_path / "copy"))
    half = open_probe(copy)
    table_file(copy, "tuned", "records").unlink()
    assert set(half.read("records", checkpoints=["base"]).collect()["checkpoint"]) == {"base"}
    with pytest.raises(MemprobeError, match=r"missing, so this probe directory is incomplete"):
        half.read("records").collect()
    with pytest.raises(MemprobeError, match="missing"):
        open_probe(copy)


def test_compare_finds_the_second_readout_in_the_same_probe(two, both, tmp_path, few_k):
    own, base = (
        probe(two, FACTS, tmp_path / name, readout=other, batch_size=2)
        for name, other in (("own", None), ("base", two[0]))
    )
    apart = compare([own], fixed_readout=[base], draws=100).tables
    together = compare([both], draws=100).tables
    assert together["claims"]["fixed_difference"].is_not_null().any()
    for name in ("claims", "placement", "differences"):
        assert together[name].equals(apart[name]), name
    page = dashboard_text(open_study([both.path]))
    assert "read out by base" in page
    for view, said in ((own, "layers --lens logit --lens logit@BASE"), (both, None)):
        notes = [note for note in compare([view], draws=100).notes if note.startswith("No placement claim")]
        assert len(notes) == (said is not None) and all(said in note for note in notes)
    (note,) = (note for note in compare([both], lens="logit@base", draws=100).notes if "No placement" in note)
    assert "each checkpoint's own readout too; without `lens` both are compared" in note


def test_lenses_and_positions_that_cannot_be_are_refused(two, tmp_path):
    for options, word in (
        ({"lenses": ["logit", "logit"]}, "two lenses are called 'logit'"),
        ({"lenses": ["logit"], "readout": two[0]}, "not both"),
        ({"lenses": ["logits"]}, "--lens logits"),
        ({"positions": ["subject"]}, "choose answer"),
        ({"positions": ["answer", "prompt"]}, "choose answer"),
        (
            {"positions": ["answer", "subject"], "factoids": FACTS[3:]},
            "no factoid can be read at its subject",
        ),
    ):
        with pytest.raises(MemprobeError, match=word):
            probe(**({"checkpoints": two[:1], "factoids": FACTS, "out": tmp_path / "p"} | options))
    assert not list(tmp_path.glob("p/records/*"))


def test_capture_takes_lenses_as_texts_and_made(two):
    made = capture(
        two[0], FACTS, "plain", lenses=["logit", make_lens(two[0], None, two[1])], predictions=False
    )
    alone = capture(two[0], FACTS, "plain", predictions=False)
    assert set(made.records["lens"]) == {"logit", "logit@tuned"}
    assert made.records.filter(lens="logit").equals(alone.records)


# Damage


def copied(probe: Probe, to: Path) -> Path:
    return Path(shutil.copytree(probe.path, to))


def test_no_flipped_bit_is_taken_in_silence(both, tmp_path):
    copy = copied(both, tmp_path / "copy")
    tables = [file for table in BY_CHECKPOINT for file in sorted((copy / table).iterdir())] + [
        copy / "factoids.parquet"
    ]
    for seed in range(60):
        draw = random.Random(seed)
        file = draw.choice(tables)
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(changed if seed % 3 else whole[: draw.randrange(len(whole))])
        with pytest.raises(MemprobeError, match="changed since it was written") as refused:
            open_probe(copy)
        assert file.name in str(refused.value)
        file.write_bytes(whole)
    assert open_probe(copy).records.equals(both.records)


TAMPERED = {
    "a depth is gone": (
        "records",
        lambda t: t.filter(~((pl.col("depth") == 1) & (pl.col("factoid") == "a"))),
    ),
    "a row stands twice": ("records", lambda t: pl.concat([t, t.head(1)])),
    "a depth stands for another": (
        "records",
        lambda t: t.with_columns(
            pl.when(pl.col("depth") == 1).then(2).otherwise("depth").cast(pl.Int16).alias("depth")
        ),
    ),
    "rank -1": ("records", lambda t: t.with_columns(rank=pl.lit(-1, pl.Int32))),
    "rank past the vocabulary": ("records", lambda t: t.with_columns(rank=pl.lit(10**6, pl.Int32))),
    "null log_prob": ("records", lambda t: t.with_columns(log_prob=pl.lit(None, pl.Float32))),
    "log_prob above 0": ("records", lambda t: t.with_columns(log_prob=pl.lit(0.5, pl.Float32))),
    "entropy that is not a number": (
        "records",
        lambda t: t.with_columns(entropy=pl.lit(float("nan"), pl.Float32)),
    ),
    "another lens": ("records", lambda t: t.with_columns(lens=pl.lit("tuned"))),
    "another position": ("records", lambda t: t.with_columns(position=pl.lit("end"))),
    "another checkpoint": ("records", lambda t: t.with_columns(checkpoint=pl.lit("other"))),
    "a control's depth is gone": ("controls", lambda t: t.filter(pl.col("depth") > 0)),
    "a control's rank": ("controls", lambda t: t.with_columns(rank=pl.lit(-1, pl.Int32))),
    "an outcome twice": ("outcomes", lambda t: pl.concat([t, t.head(1)])),
    "an outcome without a verdict": (
        "outcomes",
        lambda t: t.with_columns(exact_tokens=pl.lit(None, pl.Boolean)),
    ),
    "another type": ("records", lambda t: t.with_columns(pl.col("rank").cast(pl.Int64))),
}


NOT_IN_1 = (
    "another lens",
    "another position",
    "another checkpoint",
)  # it names none, and reads what run.json names


@pytest.mark.parametrize(
    ("what", "schema"),
    [(what, schema) for what in TAMPERED for schema in (1, 2) if schema == 2 or what not in NOT_IN_1],
)
def test_what_cannot_be_is_refused_also_under_a_mark_that_fits(tmp_path, what, schema):
    made = write_probe(tmp_path / "p", {"base": 3, "late": 5}, n=6, summary=False, schema=schema, tokens=[1])
    name, change = TAMPERED[what]
    file = table_file(made.path, "late", name) if schema == 2 else made.path / f"{name}.parquet"
    table = pl.read_parquet(file)
    change(table.with_columns(pl.col("factoid").replace({table["factoid"][0]: "a"}))).write_parquet(file)
    (made.path / CHECKSUMS).unlink(missing_ok=True)
    run = json.loads((made.path / "run.json").read_text())
    if schema == 2:
        run["checkpoints"]["late"]["tables"][name] = mark_of(file)
        (made.path / "run.json").write_text(json.dumps(run))
    with pytest.raises(MemprobeError, match=r"probe again|not Int32"):
        getattr(open_probe(made.path), name)
    with pytest.raises(MemprobeError):
        compare([made.path], draws=100)


BROKEN = {
    "null": lambda run: None,
    "a list": lambda run: [],
    "deep": lambda run: "[" * 100_000,
    "no checkpoints": lambda run: {key: value for key, value in run.items() if key != "checkpoints"},
    "n_layers": lambda run: run | {"checkpoints": {"base": run["checkpoints"]["base"] | {"n_layers": "3"}}},
    "complete": lambda run: run | {"checkpoints": {"base": run["checkpoints"]["base"] | {"complete": None}}},
    "an entry": lambda run: run | {"checkpoints": {"base": 3}},
    "a mark": lambda run: (
        run | {"checkpoints": {"base": run["checkpoints"]["base"] | {"tables": {"records": {}}}}}
    ),
    "no marks": lambda run: run | {"checkpoints": {"base": run["checkpoints"]["base"] | {"tables": {}}}},
    "no lens": lambda run: run | {"lenses": {}},
    "k": lambda run: run | {"k": 0},
    "token": lambda run: run | {"token": "second"},
    "factoids": lambda run: run | {"factoids": None},
    "schema": lambda run: run | {"schema": 99},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_run_json_is_one_line(tmp_path, what):
    made = write_probe(tmp_path / "p", {"base": 3}, n=6, summary=False, schema=2)
    value = BROKEN[what](json.loads((made.path / "run.json").read_text()))
    (made.path / "run.json").write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(MemprobeError) as refused:
        open_probe(made.path)
    assert str(made.path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_broken_summary_is_one_line(tmp_path):
    made = write_probe(tmp_path / "p", {"base": 3}, n=6)
    (made.path / "summary.json").write_text('{"schema": 1, "checkpoints": {"base": {"n": "six"}}}')
    with pytest.raises(MemprobeError, match=r"summary\.json: checkpoints\.base\.n: "):
        _ = open_probe(made.path).summary


def without(value: dict, path: str) -> dict:
    """A copy of JSON in which a key is gone."""
    copied = json.loads(json.dumps(value))
    *above, last = path.split(".")
    within = copied
    for key in above:
        within = within[key]
    del within[last]
    return copied


@pytest.mark.parametrize(
    "key",
    [
        *(
            "k",
            "token",
            "checkpoints.base.recall_low",
            "checkpoints.base.recall.10",
            "checkpoints.base.shuffled.1",
        ),
        *(
            "checkpoints.base.lof.median",
            "checkpoints.base.shuffled_lof",
            "checkpoints.base.shuffled_lof.never",
        ),
    ],
)
def test_a_summary_that_lacks_what_is_shown_is_named_by_the_key(cli, tmp_path, key):
    made = write_probe(tmp_path / "p", {"base": 3}, n=6, schema=2)
    file = made.path / "summary.json"
    file.write_text(json.dumps(without(json.loads(file.read_text()), key)))
    for command in (("show", made.path), ("push", made.path, tmp_path / "shared")):
        code, _, err = cli(*command)
        assert code == 2 and str(file) in err and key.rpartition(".")[2] in err, err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "shared").exists()


def test_an_older_summary_is_under_the_rule_of_its_run(cli, tmp_path):
    made = write_probe(tmp_path / "p", {"base": 3}, n=6, schema=1)
    file = made.path / "summary.json"
    whole = cli("show", made.path)[1]
    file.write_text(json.dumps(without(without(json.loads(file.read_text()), "k"), "token")))
    assert cli("show", made.path)[:2] == (0, whole) and "top 10 tokens" in whole


# Interrupted and running


class Stop(Exception):
    pass


def stopped(two, out: Path, monkeypatch, after: int) -> Path:
    """A probe whose process ended after so many batches, each written out."""
    monkeypatch.setattr(probe_writer, "FLUSH_SECONDS", -1)

    def tell(label: str, done: int, of: int) -> None:
        if label == LABELS[-1] and done >= after:
            raise Stop

    with pytest.raises(Stop):
        probe(two, FACTS, out, batch_size=2, lenses=["logit", "logit@base"], progress=tell)
    return out


def test_a_running_probe_can_be_compared_and_shown(two, tmp_path, monkeypatch):
    out = stopped(two, tmp_path / "p", monkeypatch, 2)
    half = open_probe(out)
    assert half.finished == ["base"] and half.records.filter(checkpoint="tuned")["factoid"].n_unique() == 2
    assert compare([out], draws=100).tables["placement"].height == 2
    assert "tuned" in dashboard_text(open_study([out]))
    used = half.records.filter(checkpoint="tuned")["top1"].unique()
    assert any(half.token_text("tuned", token) == f"[{token}]" for token in used), (
        "no text yet, and no KeyError"
    )


def test_before_the_first_checkpoint_there_is_one_line(two, tmp_path, monkeypatch):
    import memprobe.prober as prober

    def never(*_, **__):
        raise Stop

    monkeypatch.setattr(prober, "plan_capture", never)
    with pytest.raises(Stop):
        probe(two, FACTS, tmp_path / "p")
    for look in (
        lambda: compare([tmp_path / "p"], draws=100),
        lambda: dashboard_text(open_study([tmp_path / "p"])),
    ):
        with pytest.raises(MemprobeError, match=r"no checkpoint yet: .* could not be read.* other options"):
            look()


@pytest.mark.parametrize("table", BY_CHECKPOINT)
def test_a_torn_batch_is_probed_again(two, both, tmp_path, monkeypatch, table):
    out = stopped(two, tmp_path / "p", monkeypatch, 2)
    torn = part_files(out, "tuned", table)[0]
    torn.write_bytes(torn.read_bytes()[:40])
    for name in (
        ".run.json.torn",
        ".report.html.torn",
        "records/.x.parquet.torn",
        f"parts/{torn.parent.name}/.y.parquet.z",
    ):
        (out / name).write_text("half")
    whole = probe(two, FACTS, out, batch_size=2, lenses=["logit", "logit@base"])
    for lens in both.lenses:
        assert rows(whole.under(lens).records).equals(rows(both.under(lens).records))
    assert not list(out.rglob(".*")), "nothing half written stays"


# Growth


def test_what_is_finished_is_not_written_again(two, tmp_path, monkeypatch):
    tokenizer, written = two[0].tokenizer, []
    probe(two[:1], FACTS, tmp_path / "p")
    before = {file: file.read_bytes() for file in (tmp_path / "p").rglob("*base-*.parquet")}
    assert len(before) == 3
    replacing, summarised = files.replacing, []
    monkeypatch.setattr(files, "replacing", lambda path: (written.append(path), replacing(path))[1])
    real = probe_writer._summary_of
    monkeypatch.setattr(
        probe_writer, "_summary_of", lambda one: (summarised.extend(one.checkpoints), real(one))[1]
    )
    grown = probe([two[1]], FACTS, tmp_path / "p")
    assert summarised == ["tuned"] and list(grown.summary["checkpoints"]) == LABELS
    assert not before.keys() & set(written) and all(file.read_bytes() == old for file, old in before.items())
    summarised.clear()
    assert probe(two, FACTS, tmp_path / "p").summary == grown.summary and summarised == []
    assert probe(two, FACTS, tmp_path / "p", k=3, token="all").summary["k"] == 3 and summarised == LABELS
    again = open_probe(tmp_path / "p")
    assert (again.run["k"], again.run["token"]) == (3, "all"), "what is read after it is counted alike"
    wide = wrap(tiny_model("llama", len(tokenizer), seed=7), tokenizer, label="tuned")
    with pytest.raises(MemprobeError, match="other weights"):
        probe([wide], FACTS, tmp_path / "p")


def test_the_summary_has_every_lens_and_position(both):
    assert list(both.only(["tuned"]).summary["checkpoints"]) == ["tuned"]
    entry = both.summary["checkpoints"]["tuned"]
    assert list(entry["lenses"]) == ["logit@base"] and list(entry["positions"]) == ["subject"]
    assert entry["positions"]["subject"]["n"] == 3 and entry["lenses"]["logit@base"]["n"] == len(FACTS)
    assert entry["lenses"]["logit@base"]["recall"] != entry["recall"]


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_directory_of_schema_1_is_taken_over(two, both, tmp_path, monkeypatch, unfinished):
    """As schema 1 left it: three tables, `lens` and `readout`, and parts without the new columns."""
    out = tmp_path / "old"
    monkeypatch.setattr(probe_writer, "FLUSH_SECONDS", -1)

    def tell(label: str, done: int, of: int) -> None:
        if unfinished and label == "tuned" and done >= 2:
            raise Stop

    try:
        probe(two, FACTS, out, batch_size=2, progress=tell)
    except Stop:
        assert unfinished
    made = open_probe(out)
    run = json.loads((out / "run.json").read_text())
    for table in BY_CHECKPOINT:
        old = made.read(table, checkpoints=made.finished).collect().drop(NEW, strict=False)
        shutil.rmtree(out / table)
        old.write_parquet(out / f"{table}.parquet")
        for part in part_files(out, "tuned", table):
            pl.read_parquet(part).drop(NEW, strict=False).write_parquet(part)
    for entry in run["checkpoints"].values():
        entry.pop("tables", None)
    run = {key: value for key, value in run.items() if key not in ("lenses", "positions", "tables")} | {
        "schema": 1
    }
    (out / "run.json").write_text(json.dumps(run))
    old = open_probe(out)
    assert old.lenses == ["logit"] and old.positions == ["answer"] and old.records.schema == TABLES["records"]
    with pytest.raises(MemprobeError, match="this probe has lens logit; you asked for logit@base"):
        probe(two, FACTS, out, lenses=["logit@base"])
    told: list[tuple[str, int, int]] = []
    grown = probe(two, FACTS, out, batch_size=2, progress=lambda *call: told.append(call))
    assert {label for label, done, of in told if done < of} == ({"tuned"} if unfinished else set())
    assert grown.run["schema"] == 2 and not list(out.glob("records.parquet"))
    assert not (out / CHECKSUMS).exists()  # of tables that are gone
    assert rows(grown.records).equals(rows(both.records))
    open_probe(out)


def test_labels_that_no_file_name_can_hold(two, tmp_path):
    labels = ["a/b", "A/B", "a b", "é" * 200, ".", "x" * 300]
    tokenizer = two[0].tokenizer
    models = [wrap(two[0].model, tokenizer, label=label) for label in labels]
    made = probe(models, FACTS[:2], tmp_path / "p")
    assert open_probe(tmp_path / "p").records["checkpoint"].n_unique() == len(labels)
    assert len(made.files()) == 3 * len(labels) + 1
    assert Template.parse("plain")


def test_a_notebook_shows_a_probe_in_sentences(tmp_path):
    probe = write_probe(tmp_path / "p", {"<b>base": 6, "tuned": 4}, n=24)
    shown = probe._repr_html_()
    assert "&lt;b&gt;base" in shown and "<b>base" not in shown
    told = probe.summary["checkpoints"]["tuned"]["exact_match"]
    assert "tuned" in shown and f"{told:.0%}" in shown
    (probe.path / "summary.json").unlink()
    assert "not probed to the end" in open_probe(probe.path)._repr_html_()
