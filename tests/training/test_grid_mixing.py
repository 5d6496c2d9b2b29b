"""Arms that mix facts in, in grids: which stages cells share, and that the rows of a stage are those of its cell."""

import json

import pytest

from memprobe.errors import MemprobeError
from training.grid import plan, read_grid, run_grid
from training.grid.cells import cells_of
from training.grid.on_ray import _question

GRID = """
keep = "records"
probe = false
[recipe]
base = "{base}"
[recipe.optimiser]
lr = 3e-3
batch = 16
micro_batch = 16
[recipe.evaluate]
limit = 4
[data.a]
data = "kvr:4"
epochs = 1
[data.b]
data = "known"
n = 150
epochs = 1
[data.c]
data = "kvr:6:test"
epochs = 1
[arms]
naive = "none"
facts = "remix(data=known, stages=1, ratio=10)"
facts-replay = "remix(data=known, stages=1, ratio=10)+replay(ratio=0.5)"
words = "remix(data=self, stages=1, ratio=1, words=2)"
last = "remix(data=kvr:8:test, stages=2, ratio=1)"
[[blocks]]
name = "first"
stages = [["a", "b"], ["a", "c"]]
arms = {arms}
seeds = [0]
"""


def write(folder, arms, base="none"):
    path = folder / "grid.toml"
    path.write_text(GRID.format(base=base, arms=arms))
    return path


def firsts(path):
    """Of each cell, where its stage 1 lies."""
    return {cell.node.name: cell.node.chain[0].name for cell in cells_of(read_grid(path), path)}


def test_stages_that_mix_facts_are_shared_by_cells_of_one_chain(tmp_path):
    path = write(tmp_path, '["naive", "facts", "facts-replay", "words"]')
    assert firsts(path) == {
        "a-b/naive-s0": "a/naive-s0",
        "a-c/naive-s0": "a/naive-s0",
        "a-b/words-s0": "a/words-s0",
        "a-c/words-s0": "a/words-s0",
        "a-b/facts-s0": "a-before-b/facts-s0",
        "a-c/facts-s0": "a-before-c/facts-s0",
        "a-b/facts-replay-s0": "a-before-b/facts-s0",  # mixed in alike, and replay is of the stage after it
        "a-c/facts-replay-s0": "a-before-c/facts-s0",
    }


@pytest.mark.parametrize("size", ["6", "{m}"])
def test_a_stage_goes_around_those_later_ones_alone_whose_rows_it_could_mix_in(tmp_path, size):
    """What is mixed into stage 2 goes around stage 3; stage 1 mixes nothing in, and is that of every cell."""
    path = write(tmp_path, '["naive", "second"]')
    text = (
        path.read_text()
        .replace('"kvr:6:test"', f'"kvr:{size}:test"')
        .replace('[["a", "b"], ["a", "c"]]', '[["a", "b", "c"]]')
    )
    text = text.replace('last = "', 'second = "remix(data=known, stages=2, ratio=1)"\nlast = "')
    path.write_text(text + ("axes = { m = [6, 8] }\n" if "{" in size else ""))
    chains = {
        cell.node.name: [node.name for node in cell.node.chain] for cell in cells_of(read_grid(path), path)
    }
    for end in ("-m6", "-m8") if "{" in size else ("",):
        assert chains[f"a-b-c{end}/naive-s0"][:2] == ["a/naive-s0", "a-b/naive-s0"]
        assert chains[f"a-b-c{end}/second-s0"][:2] == ["a/naive-s0", f"a-b-before-c{end}/second-s0"]


def test_facts_of_d_b_are_not_mixed_into_stage_1_of_a_grid(tiny_checkpoint, tmp_path):
    """Stage 1 is trained by a run that does not train on D_B, and held against the rows of the one that does."""
    path, out = write(tmp_path, '["facts"]', tiny_checkpoint), tmp_path / "out"
    assert run_grid(read_grid(path), path, out, quiet=True) == []


def test_texts_that_a_later_stage_reads_too_are_not_mixed_into_stage_1_of_a_grid(tiny_checkpoint, tmp_path):
    """From another file they are whichever stage comes later, and stage 1 is trained once."""
    path, out = write(tmp_path, '["naive", "facts"]', tiny_checkpoint), tmp_path / "out"
    for name in ("own", "other"):
        lines = [{"text": " ".join(f"{name}{row}.{word}" for word in range(8))} for row in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {
        'data = "known"\nn = 150': 'data = "own.jsonl"\nkind = "texts"\nwords = [2, 2]\nn = 8\nheld_out = 4',
        'naive = "none"': 'naive = "remix(data=other.jsonl, stages=1, words=2)"',
        'facts = "remix(data=known, stages=1, ratio=10)"': 'facts = "remix(data=own.jsonl, stages=1, words=2)"',
    }
    grid = path.read_text()
    for old, new in changes.items():
        grid = grid.replace(old, new)
    path.write_text(grid)
    assert firsts(path) == {
        "a-b/naive-s0": "a/naive-s0",
        "a-c/naive-s0": "a/naive-s0",
        "a-b/facts-s0": "a-before-b/facts-s0",
        "a-c/facts-s0": "a/facts-s0",
    }
    assert plan(read_grid(path), path, out).stages == 7
    assert run_grid(read_grid(path), path, out, quiet=True) == []


def test_a_plan_refuses_what_cannot_be_mixed(tiny_checkpoint, tmp_path):
    path = write(tmp_path, '["last"]', tiny_checkpoint)
    path.write_text(
        path.read_text().replace('[["a", "b"], ["a", "c"]]', '[["c", "a"]]').replace("ratio=1)", "ratio=2)")
    )
    with pytest.raises(
        MemprobeError, match="has 2 rows that no stage trains on"
    ):  # of 8, 6 are stage 1's own
        plan(read_grid(path), path, tmp_path / "out")


def test_what_is_asked_of_the_base_model_depends_on_mixed_facts_alone(tmp_path):
    """What is mixed in is not watched."""
    path = write(tmp_path, '["naive", "words", "facts"]')
    path.write_text(path.read_text().replace("limit = 4", 'limit = 4\nknown = 8\ntexts = "self"'))
    asked = {
        cell.node.arm: _question(cell.node)
        for cell in cells_of(read_grid(path), path)
        if "a-b" in cell.node.name
    }
    assert asked["naive"] == asked["words"] != asked["facts"]
