"""The command that a page gives to make its probe once more: run as it stands, it makes the same probe."""

import json
import shlex

import pytest

from memprobe.dashboard.setup import _command
from memprobe.files import read_json
from memprobe.probes import open_probe
from tests.families import FACTS
from tests.tiny import save_tiny

ASKED = {
    "plain": (),
    "named lenses": ("--lens", "mine=logit", "--lens", "logit@base", "--lens", "theirs=logit@tuned"),
    "precision": ("--dtype", "bfloat16", "-k", "5", "--token", "all"),
    "another tokenizer": ("--tokenizer", "a", "--seed", "3"),
    "what else is kept": ("--keep-residuals", "0,2", "--attributions"),
    "all of it": ("--keep-residuals", "all", "--template", "tulu"),
}
SAME = ("lenses", "positions", "template", "dtype", "seed", "factoids", "k", "token")


@pytest.mark.parametrize("asked", ASKED)
def test_the_command_of_a_page_makes_its_probe_once_more(cli, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_tiny(tmp_path / name, seed=seed)
    rows = [{"id": fact.id, "prompt": fact.prompt, "answer": fact.answer} for fact in FACTS]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("layers", "--ckpt", "base=a", "--ckpt", "tuned=b", "--factoids", "facts.jsonl", *ASKED[asked])
    code, _, said = cli(*given, "--out", "one")
    assert code == 0, said
    first = open_probe(tmp_path / "one")
    words = shlex.split(_command(first))
    assert words.pop(0) == "memprobe"
    code, _, said = cli(*words, "--out", "two")
    assert code == 0, (words, said)
    one, two = (read_json(tmp_path / name / "run.json") for name in ("one", "two"))
    assert {name: one[name] for name in SAME} == {name: two[name] for name in SAME}
    for label, entry in one["checkpoints"].items():
        other = two["checkpoints"][label]
        assert entry["tables"] == other["tables"]
        kept = [one.get("residuals", {}) for one in (entry, other)]  # the order of a header is not kept
        assert [one.get("depths") for one in kept] == [kept[0].get("depths")] * 2
        assert entry.get("tokenizer_from") == other.get("tokenizer_from")
