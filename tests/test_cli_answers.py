"""What the commands say first: sentences, the depths that matter, what is kept, and the newest probe."""

from __future__ import annotations

import os
import webbrowser

import pytest

from memprobe.cli import show_probe
from memprobe.cli.check import conclusion
from tests.probes import write_probe
from tests.test_cli import FACTS, facts, refused

__all__ = ["FACTS", "facts"]


def entry(recall, shuffled, n=100):
    lows = [max(0.0, value - 0.05) for value in recall]
    return {
        "n": n,
        "recall": {"10": recall, "1": recall},
        "recall_low": {"10": lows, "1": lows},
        "shuffled": {"10": shuffled, "1": shuffled},
        "normalised_frequency": [0.1] * (len(recall) - 1),
    }


def test_depths_without_more_than_chance_share_a_line():
    one = entry([0.0, 0.0, 0.01, 0.05, 0.4, 0.9], [0.0, 0.0, 0.0, 0.05, 0.05, 0.05])
    quiet = [show_probe._quiet(one, depth, [1, 10]) for depth in range(6)]
    assert quiet == [True, True, True, True, False, False]
    assert list(show_probe._spans(quiet)) == [(0, 3), (4, 4), (5, 5)]
    late = entry([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert [show_probe._quiet(late, depth, [10]) for depth in range(3)] == [True, True, False]
    assert list(show_probe._spans([True, False, True, True, False])) == [(0, 0), (1, 1), (2, 3), (4, 4)]


@pytest.mark.parametrize(
    ("ok", "groups", "wanted"),
    [
        ([True], [], "The checkpoint can be read: at full depth the lens gives the model's own logits."),
        ([True, True], [["a", "b"]], "Every checkpoint can be read: at full depth the lens gives the model's own "
         "logits. a and b hold the same weights."),
        ([True, False], [], "a can be read: at full depth the lens gives the model's own logits. b cannot be read."),
        ([False], [], "a cannot be read."),
    ],
)  # fmt: skip
def test_a_check_ends_in_a_sentence(ok, groups, wanted):
    found = [{"label": label, "ok": one} for label, one in zip("ab", ok, strict=False)]
    assert conclusion(found, groups) == wanted


def test_tables_of_several_checkpoints_fit_a_file_of_100_columns(cli, tmp_path, monkeypatch):
    probe = write_probe(tmp_path / "p", {f"checkpoint-{n}": 5.0 + n / 2 for n in range(4)}, n=24)
    monkeypatch.delenv("COLUMNS", raising=False)
    code, text, err = cli("show", probe.path)
    assert code == 0, err
    table = text[text.index("\nexact match") + 1 :].splitlines()
    assert max(map(len, table[:-1])) <= 100 and text.count(show_probe.FOLDED) == 1
    assert table[-1] == show_probe.FOLDED, "said once, below the last table"
    monkeypatch.setenv("COLUMNS", "300")
    code, wide, _ = cli("show", probe.path)
    assert code == 0 and len(wide.splitlines()) < len(text.splitlines()), "side by side where there is room"


def test_a_probe_says_what_it_kept_and_what_it_holds(cli, tiny_checkpoint, facts, tmp_path):
    asked = ["layers", "--ckpt", f"m={tiny_checkpoint}", "--factoids", facts, "--out", tmp_path / "p"]
    code, text, err = cli(*asked)
    assert code == 0, err
    assert text.startswith("m recalls ") and "minus that of shuffled answers" in text and "--full" in text
    assert "≤ " in text, "numbers of depths that share a line are their largest"
    code, text, err = cli(*asked, "--full")
    assert code == 0 and "m: all 5 factoids were done before and are kept" in err
    assert "share a line" not in text and "≤" not in text
    refused(cli(*asked, "--n", 3), "holds a probe of 5 facts", "you asked for 3 facts from a file", "--fresh")
    refused(cli(*asked, "--token", "frist"), "--token 'frist'", "did you mean first?")
    refused(cli("compare", tmp_path / "p", "--reference", "n"), "--reference 'n'", "there are m")


def test_open_shows_the_newest_probe(cli, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(webbrowser, "open", lambda address: shown.append(address) or True)
    refused(cli("open", tmp_path), "holds no probe directory")
    for at, name in enumerate(("old", "new")):
        write_probe(tmp_path / name, {"a": 3.0}, n=6, n_layers=3, summary=False)
        os.utime(tmp_path / name / "run.json", (at + 1, at + 1))
    code, text, err = cli("open", tmp_path)
    assert code == 0, err
    report = tmp_path / "new" / "report.html"
    assert text.strip() == str(report) and report.exists() and not (tmp_path / "old" / "report.html").exists()
    assert shown == [report.resolve().as_uri()]
    before = report.stat().st_mtime_ns
    assert cli("open", tmp_path)[0] == 0 and report.stat().st_mtime_ns == before, "it is not written again"
    for folder in (
        "wandb",
        "patches",
        ".new-before",
        "new/.probe-before",
    ):  # others have a run.json, too, and newer
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.json").write_text("{}")
    code, text, err = cli("open", tmp_path)
    assert code == 0 and text.strip() == str(report), err
    refused(cli("open", tmp_path / "wandb"), "holds no probe directory")
