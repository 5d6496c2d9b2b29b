"""Residuals that are kept: equal to plain Hugging Face's hidden states, resumable, checked, refused in words."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memprobe import residuals
from memprobe.errors import MemprobeError
from memprobe.probe_joining import join_probe
from memprobe.probes import open_probe
from memprobe.residuals import parse_depths, read_residuals
from memprobe.sharing import pull, push

FACTS = [
    {"id": str(i), "prompt": f"The river of {land} is the", "answer": river, "subject": land}
    for i, (land, river) in enumerate(
        (("Oria", "Lunn"), ("Selva", "Brack"), ("Tolm", "Ister"), ("Quend", "Oss"))
    )
]


@pytest.fixture
def facts(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FACTS))
    return path


def test_they_are_the_models_own_hidden_states(cli, tiny_checkpoint, facts, tmp_path, monkeypatch):
    monkeypatch.setattr(residuals, "SHARD", 3)
    out = tmp_path / "probe"
    common = ("layers", "--ckpt", f"tiny={tiny_checkpoint}", "--factoids", facts, "--out", out)
    code, _, err = cli(*common, "--positions", "answer,subject", "--keep-residuals", "all")
    assert code == 0, err
    assert len(list(out.glob("residuals/*/*.safetensors"))) == 2
    kept = read_residuals(out, "tiny")
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    last = model.config.num_hidden_layers
    assert kept.depths == list(range(last + 1)) and kept.values.dtype == torch.bfloat16
    assert set(kept.rows["position"]) == {"answer", "subject"}
    records = open_probe(out).records
    compared = 0
    for row, values in zip(kept.rows.iter_rows(named=True), kept.values, strict=True):
        fact = FACTS[int(row["factoid"])]
        prompt = tokenizer(fact["prompt"]).input_ids
        ids = prompt + tokenizer(" " + fact["answer"], add_special_tokens=False).input_ids
        if row["position"] != "answer" or row["token"] == -1:
            continue
        with torch.no_grad():
            states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        lead = int(-2 in set(kept.rows.filter(factoid=row["factoid"])["token"]))  # a space that is a token
        at = len(prompt) - 1 + (0 if row["token"] == -2 else row["token"] + lead)
        for depth in range(last):  # the last state of Hugging Face is normed already
            expected = states[depth][0, at].bfloat16()
            torch.testing.assert_close(values[depth], expected, rtol=1e-2, atol=1e-2)
        with torch.no_grad():
            said = model.lm_head(model.model.norm(values[last].float())).log_softmax(-1)
        key = {"factoid": row["factoid"], "token": row["token"], "depth": last}
        (record,) = records.filter(**key).to_dicts()
        assert said[record["token_id"]].item() == pytest.approx(record["log_prob"], abs=0.1)
        compared += 1
    assert compared >= len(FACTS)


def test_some_depths_are_added_to_a_finished_probe_and_go_on(
    cli, tiny_checkpoint, facts, tmp_path, monkeypatch
):
    monkeypatch.setattr(residuals, "SHARD", 1)
    out = tmp_path / "probe"
    common = ("layers", "--ckpt", f"tiny={tiny_checkpoint}", "--factoids", facts, "--out", out)
    assert cli(*common)[0] == 0
    write, written = residuals._write, []

    def killed_at_the_third(path, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(residuals, "_write", killed_at_the_third)
    assert cli(*common, "--keep-residuals", "0,2")[0] != 0
    assert "residuals" not in open_probe(out).run["checkpoints"]["tiny"]
    monkeypatch.setattr(
        residuals, "_write", lambda path, *rest: (written.append(path.name), write(path, *rest))
    )
    assert cli(*common, "--keep-residuals", "0,2")[0] == 0
    assert written == [f"{i:05}.safetensors" for i in range(4)]  # none twice
    kept = read_residuals(out, "tiny")
    assert kept.depths == [0, 2] and set(kept.rows["factoid"]) == {row["id"] for row in FACTS}
    code, _, err = cli(*common, "--keep-residuals", "1")
    assert code == 2 and "other depths" in err
    shard = next(iter(out.glob("residuals/*/*.safetensors")))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(MemprobeError, match="changed since"):
        read_residuals(out, "tiny")
    assert cli(*common, "--fresh")[0] == 0 and not (out / "residuals").exists()


def test_residuals_that_did_not_travel_are_kept_again(cli, tiny_checkpoint, facts, tmp_path):
    """Pulled, joined, or with their shards deleted."""
    out = tmp_path / "probe"

    def keep(where, depths="0,2"):
        return cli(
            "layers", "--ckpt", f"tiny={tiny_checkpoint}", "--factoids", facts, "--out", where,
            "--keep-residuals", depths,
        )  # fmt: skip

    assert keep(out)[0] == 0
    push(out, str(tmp_path / "shared"))
    pull(str(tmp_path / "shared"), tmp_path / "pulled")
    join_probe(out, tmp_path / "joined")
    for name in ("pulled", "joined"):
        with pytest.raises(MemprobeError, match="no residuals of 'tiny'"):
            read_residuals(tmp_path / name, "tiny")
        assert keep(tmp_path / name, "1")[0] == 0
        assert read_residuals(tmp_path / name, "tiny").depths == [1]
    next(iter(out.glob("residuals/*/*.safetensors"))).unlink()
    with pytest.raises(MemprobeError, match="--keep-residuals keeps them again"):
        read_residuals(out, "tiny")
    assert keep(out)[0] == 0 and read_residuals(out, "tiny").depths == [0, 2]


def test_depths_as_written():
    assert parse_depths("all") is None and parse_depths("3, 0,5-7") == [0, 3, 5, 6, 7]
    for text in ("", "x", "5-3", "-1", "1,,2"):
        with pytest.raises(MemprobeError, match="keep_residuals"):
            parse_depths(text)


def test_a_depth_that_is_not_there_is_refused_before_the_work(cli, tiny_checkpoint, facts, tmp_path):
    out = tmp_path / "probe"
    common = ("layers", "--ckpt", f"tiny={tiny_checkpoint}", "--factoids", facts, "--out", out)
    code, _, err = cli(*common, "--keep-residuals", "0,99")
    assert code == 2 and "--keep-residuals" in err and "99" in err and not list(out.glob("records/*"))
    code, _, err = cli(*common, "--keep-residuals", "some")
    assert code == 2 and "write all" in err
    with pytest.raises(MemprobeError, match=r"no run\.json|no residuals"):
        read_residuals(out, "tiny")
