"""The table of ``relearn --out``: what is finished is kept, and the same command goes on from there."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from memprobe.errors import MemprobeError
from memprobe.locks import held
from tests.disk import contents
from tests.training.runs import other_weights
from tests.training.test_relearn import two_stages
from training import relearn as measuring
from training.__main__ import app
from training.relearn_arms import arm_table
from training.relearn_files import measured_before, relearn_table
from training.run import run

STORED = Path(__file__).parents[2] / "analyses" / "where" / "relearn.parquet"


@pytest.fixture(scope="module")
def stages(tmp_path_factory, tiny_checkpoint):
    """Stages 2 of three runs with a stage 1 in common; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    run(two_stages(tiny_checkpoint), folder / "one", quiet=True)
    for name in ("two", "three"):
        shutil.copytree(folder / "one", folder / name)
    other_weights(folder / "two" / "2-b")
    for _ in range(2):
        other_weights(folder / "three" / "2-b")
    return [f"{name}={folder / name / '2-b'}" for name in ("one", "two", "three")]


@pytest.fixture
def measured(monkeypatch):
    """The labels that are measured, one by one."""
    labels, real = [], measuring.relearn

    def counted(spec, **options):
        labels.append(spec.partition("=")[0])
        return real(spec, **options)

    monkeypatch.setattr(measuring, "relearn", counted)
    return labels


def command(specs, out, *options):
    return CliRunner().invoke(
        app, ["relearn", *specs, "--out", str(out), "--limit", "2", "--n", "3", *options]
    )


def refused(*given):
    told = command(*given)
    assert isinstance(told.exception, MemprobeError), told.exception
    return str(told.exception)


def test_a_command_that_was_killed_goes_on(stages, measured, monkeypatch, tmp_path):
    whole, out = tmp_path / "whole.parquet", tmp_path / "again.parquet"
    assert command(stages, whole).exit_code == 0
    counted = measuring.relearn

    def killed(spec, **options):
        if spec == stages[2]:
            raise KeyboardInterrupt
        return counted(spec, **options)

    monkeypatch.setattr(measuring, "relearn", killed)
    assert command(stages, out).exit_code != 0
    assert pl.read_parquet(out)["checkpoint"].to_list() == ["one", "two"]
    monkeypatch.setattr(measuring, "relearn", counted)
    measured.clear()
    again = command(stages, out)
    assert again.exit_code == 0 and measured == ["three"]
    assert again.stderr.count("measured before") == 2
    assert pl.read_parquet(out).equals(pl.read_parquet(whole))
    assert pl.read_parquet(tmp_path / "again-arms.parquet").equals(
        pl.read_parquet(tmp_path / "whole-arms.parquet")
    )
    before = contents(tmp_path)
    assert command(stages, out).exit_code == 0 and measured == ["three"]
    assert contents(tmp_path) == before


def test_two_commands_do_not_measure_into_one_table(stages, measured, tmp_path):
    """The last to write would drop the rows that the other added since both had read it."""
    out = tmp_path / "again.parquet"
    with held(tmp_path / ".again.parquet.lock"):
        assert "another command measures into this table" in refused(stages[:1], out)
    assert measured == [] and not out.exists()
    assert command(stages[:1], out).exit_code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again-arms.parquet", "again.parquet"]


def test_what_others_measured_stays_and_a_checkpoint_is_known_by_its_weights(stages, measured, tmp_path):
    out = tmp_path / "again.parquet"
    assert command(stages[:1], out).exit_code == 0
    assert command(stages[1:2], out).exit_code == 0
    assert pl.read_parquet(out)["checkpoint"].to_list() == ["two", "one"]
    renamed = [f"1st={stages[0].partition('=')[2]}", *stages[1:2]]
    assert command(renamed, out).exit_code == 0 and measured == ["one", "two"]
    assert pl.read_parquet(out)["checkpoint"].to_list() == ["1st", "two"]
    moved = shutil.copytree(Path(stages[0].partition("=")[2]).parent, tmp_path / "run")
    for _ in range(3):
        other_weights(moved / "2-b")
    assert command([f"two={moved / '2-b'}"], out, "--device", "cpu").exit_code == 0
    assert measured == ["one", "two", "two"], "of the same label, but of other weights"
    assert pl.read_parquet(out)["checkpoint"].to_list() == ["two", "1st", "two"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lr", "0.001"], "--lr 0.0001, not 0.001"),
        (["--batch", "2"], "--batch 4, not 2"),
        (["--limit", "3"], "--limit 2, not 3"),
        (["--shots", "1"], "--shots 4, not 1"),
        (["--n", "2"], "--n 3, not 2"),
        (["--seed", "1"], "--seed 0, not 1"),
        (["--never-learned", "kvr:6:test"], "--never-learned None, not kvr:6:test"),
    ],
)
def test_a_table_of_other_options_is_refused(options, said, stages, measured, tmp_path):
    out = tmp_path / "again.parquet"
    assert command(stages[:1], out).exit_code == 0
    before = contents(tmp_path)
    told = refused(stages, out, *options)
    assert said in told and "give another --out" in told and str(out) in told
    assert measured == ["one"] and contents(tmp_path) == before


def test_a_table_of_other_never_learned_facts_is_refused(stages, measured, tmp_path):
    facts, out = tmp_path / "facts.csv", tmp_path / "again.parquet"
    rows = [f"The value of key {i:08} is?,{i:08}" for i in range(9)]
    facts.write_text("\n".join(["prompt,answer", *rows, ""]))
    named = ("--never-learned", str(facts))
    assert command(stages[:1], out, *named).exit_code == 0
    facts.write_text("\n".join(["prompt,answer", *rows[::-1], ""]))
    assert "other rows in the file of --never-learned" in refused(stages[:1], out, *named)
    facts.write_text("\n".join(["prompt,answer", *rows, ""]))
    assert command(stages[:1], out, *named).exit_code == 0 and measured == ["one"]


def test_what_is_no_such_table_is_not_written_over(stages, measured, tmp_path):
    out = tmp_path / "again.parquet"
    for made in (
        lambda: shutil.copy(STORED, out),
        lambda: pl.DataFrame({"prompt": ["a"]}).write_parquet(out),
        lambda: out.write_bytes(b"PAR1 and no more"),
    ):
        made()
        before = contents(tmp_path)
        assert str(out) in refused(stages, out)
        assert contents(tmp_path) == before and not measured


def test_a_row_comes_back_as_it_was_written(stages, tmp_path):
    out = tmp_path / "again.parquet"
    row = measuring.relearn(stages[0], limit=2, n=3)
    relearn_table([row]).write_parquet(out)
    assert measured_before(out, {"limit": 2, "n_most": 3, "never_learned": None}) == [row]
    assert measured_before(tmp_path / "none.parquet", {}) == []
    assert arm_table([row]).height and row.before and row.recipe_mark and row.fingerprint
