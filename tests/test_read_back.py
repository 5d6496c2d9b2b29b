"""Files that one command leaves for another: what they may not say is named by file and key."""

import json
from pathlib import Path

import pytest

from memprobe.compare.outcomes import read_outcomes
from memprobe.errors import MemprobeError
from memprobe.lens_files import _read_tuned_lens, read_about
from memprobe.runs import StageDirectory
from memprobe.sources.own_passages import _read
from training.grid.crew import Crew

ROOT = Path(__file__).parents[1]
DEEP = "[" * 3000 + "]" * 3000


def stage_lines(folder):
    return list(StageDirectory(1, "a", folder).steps())


BROKEN = [
    ("lens.json", '{"kind": "linear", "floor": 3}', read_about, r"lens\.json: floor: should be"),
    (
        "lens.json",
        '{"kind": "other"}',
        read_about,
        r"lens\.json: kind: 'other' is none of jacobian, linear, tuned",
    ),
    ("lens.json", '{"kind": "linear", "floor": {"k": {"1": []}}}', read_about, r"lens\.json: floor\.k\.1: "),
    ("lens.json", DEEP, read_about, r"lens\.json: cannot be read as JSON"),
    ("lens.json", "null", read_about, r"lens\.json: should be"),
    ("config.json", '{"d_model": 8}', _read_tuned_lens, r"config\.json: num_hidden_layers: missing"),
    ("config.json", '{"d_model": "8", "num_hidden_layers": 2}', _read_tuned_lens, r"config\.json: d_model: "),
    ("config.json", '{"d_model": 8, "num_hidden_layers": true}', _read_tuned_lens, r"num_hidden_layers: "),
    (".workers/1.json", "[]", lambda folder: Crew(folder).cell_of(1), r"1\.json: should be"),
    (".workers/1.json", '{"cell": 3}', lambda folder: Crew(folder).cell_of(1), r"1\.json: cell: "),
    (
        ".workers/broken/a.json",
        '{"cell": "x"}',
        lambda folder: Crew(folder).broken(),
        r"a\.json: why: missing",
    ),
    ("metrics.jsonl", '{"step": 1}\n{"step": "2"}\n', stage_lines, r"metrics\.jsonl, line 2: step: "),
    ("metrics.jsonl", '{"step": 1, "loss": []}\n', stage_lines, r"line 1: loss: "),
    ("metrics.jsonl", "3\n", stage_lines, r"line 1: should be"),
    ("o.json", '{"tables": 3, "notes": []}', lambda f: read_outcomes(f / "o.json"), r"o\.json: tables: "),
    ("o.json", '{"tables": {}, "notes": [1]}', lambda f: read_outcomes(f / "o.json"), r"o\.json: notes\.0: "),
    ("r.jsonl", '["a"]\n{"a": 1}\n', lambda folder: _read(folder / "r.jsonl"), r"r\.jsonl: broken"),
    ("r.jsonl", "[3]\n", lambda folder: _read(folder / "r.jsonl"), r"r\.jsonl: broken"),
]


@pytest.mark.parametrize(("name", "text", "read", "said"), BROKEN)
def test_what_may_not_be_said_is_named(name, text, read, said, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(MemprobeError, match=said) as raised:
        read(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_what_a_lens_says_is_read_as_it_stands(tmp_path):
    about = {"schema": 1, "kind": "linear", "seconds": 2.5, "corpus": {"tokens": 3}, "own": [1]}
    (tmp_path / "lens.json").write_text(json.dumps(about))
    assert read_about(tmp_path) == about | {"depths": None, "floor": None}


def test_no_table_leaves_nan_to_a_switch_that_lists_ignore():
    """polars' nan_to_null looks at numpy arrays alone; ``fill_nan(None)`` after it looks at every column."""
    name = "nan_to_null"
    files = [file for part in ("memprobe", "training", "analyses") for file in (ROOT / part).rglob("*.py")]
    assert len(files) > 100 and not [file.name for file in files if name in file.read_text(encoding="utf-8")]
