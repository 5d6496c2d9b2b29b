"""A grid that has ended and whose file asks for more of its cells than it did: what is missing is done, or refused."""

import json
import shutil

import pytest

from memprobe.errors import MemprobeError
from memprobe.probes import open_probe
from tests.training.grids import write
from tests.training.test_grid import records_of
from training.grid import cells_of, plan, read_grid, run_grid
from training.grid.stages import is_done

RUN, PROBE = "runs/a-b-n4/naive-s0", "probes/a-b-n4/depths"


@pytest.fixture
def grid(tiny_checkpoint, tmp_path, monkeypatch):
    """Writes a grid of one cell of two short stages with more keys, and does its work; its directory."""
    module = "def note(run):\n    (run / 'noted').write_text(str(sorted(run.rglob('*.safetensors'))))\n"
    (tmp_path / "notes_of_cells.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)

    def work(*keys, keep="records"):
        path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1, keep=keep)
        path.write_text("\n".join([*keys, path.read_text()]))
        assert run_grid(read_grid(path), path, tmp_path / "out", quiet=True) == []
        assert all(done for *_, done in plan(read_grid(path), path, tmp_path / "out").cells)
        return tmp_path / "out"

    return work


def trained_nothing(monkeypatch):
    monkeypatch.setattr("training.run.run", lambda *args, **options: pytest.fail("trained again"))


def test_a_probe(grid, monkeypatch):
    out = grid("probe = false")
    stages = [out / RUN / name for name in ("1-a", "2-b")]
    stored = [records_of(stage) for stage in stages]
    assert not (out / PROBE).exists()
    grid()
    assert open_probe(out / PROBE).finished == ["base", "naive-s0.1", "naive-s0.2"]
    assert [records_of(stage) for stage in stages] == stored and not list(out.rglob("*.safetensors"))
    assert "done again: the grid file asks for its probe now" in (out / "log.txt").read_text()
    trained_nothing(monkeypatch)
    grid()
    grid("probe = false")  # more is there than is asked for


def test_a_probe_that_nobody_can_make_is_not_waited_for(grid, tiny_checkpoint, tmp_path, monkeypatch):
    """Of a first stage without facts."""
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=1)
    texts = [f"All rivers of land {number} run down to the sea. " * 40 for number in range(4)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    texts = '[data.a]\nkind = "texts"\nheld_out = 1\ndata = "texts.jsonl"'
    path.write_text(path.read_text().replace('[data.a]\ndata = "kvr:{n}"', texts))
    out = tmp_path / "texts"
    assert run_grid(read_grid(path), path, out, quiet=True) == []
    trained_nothing(monkeypatch)
    assert run_grid(read_grid(path), path, out, quiet=True) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((), ("probe_n = 2",), "of 4 facts, and 2 are asked for now"),
        (("probe_n = 2",), (), "of 2 facts, and 4 are asked for now"),
        (("base_readout = false",), (), "without the base model's readout, and base_readout = true now"),
        ((), ("base_readout = false",), "with the base model's readout, and base_readout = false now"),
    ],
)
def test_a_probe_of_other_facts_or_readouts(before, after, said, grid):
    out = grid(*before)
    with pytest.raises(
        MemprobeError, match=rf"depths: is a probe {said}.*: take that back, or delete this folder"
    ):
        grid(*after)
    grid(*before)
    shutil.rmtree(out / PROBE)
    grid(*after)
    probe = open_probe(out / PROBE)
    assert probe.finished == ["base", "naive-s0.1", "naive-s0.2"]
    assert probe.run["factoids"]["n"] == (2 if "probe_n = 2" in after else 4)
    assert ("logit@base" in probe.lenses) == ("base_readout = false" not in after)


def test_more_facts_than_there_are_is_all_of_them(grid, monkeypatch):
    out = grid("probe_n = 9")
    before = open_probe(out / PROBE)
    assert before.run["factoids"]["n"] == len(before.factoids) == 4
    trained_nothing(monkeypatch)
    grid()
    after = open_probe(out / PROBE)
    assert after.finished == before.finished and after.records.equals(before.records)


def test_a_function_after_each_cell(grid, monkeypatch):
    out = grid()
    asked = 'after = "notes_of_cells:note"'
    grid(asked)
    assert "2-b/model.safetensors" in (out / RUN / "noted").read_text()
    trained_nothing(monkeypatch)
    grid(asked)
    grid()


def test_weights_that_are_to_stay(grid, monkeypatch):
    out = grid()
    grid(keep="weights")
    assert len(list((out / "runs").rglob("model.safetensors"))) == 2
    trained_nothing(monkeypatch)
    (out / RUN / "2-b" / "model.safetensors").unlink()  # by hand
    grid(keep="weights")


@pytest.mark.parametrize("probed", [True, False])
def test_cells_of_older_versions(probed, grid, tmp_path):
    """They do not say what was asked of them; whether they were probed is seen."""
    out = grid(*(() if probed else ("probe = false",)))
    ended = json.loads((out / RUN / "cell.json").read_text())
    (out / RUN / "cell.json").write_text(
        json.dumps({key: value for key, value in ended.items() if key not in ("keep", "after")})
    )
    path = tmp_path / "grid.toml"
    path.write_text(path.read_text().replace("probe = false", "").replace('"records"', '"weights"'))
    (cell,) = cells_of(read_grid(path), path)
    assert is_done(out, cell) == probed
