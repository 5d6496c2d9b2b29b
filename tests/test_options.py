"""One option means one thing in every command of memprobe and of training."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, get_args, get_origin

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from memprobe.cli.app import app
from memprobe.errors import MemprobeError
from training.__main__ import app as training

MEANS = {
    "--top-k": "Count an answer as present if it is among the top K tokens.",
    "--k": "Count an answer as present if it is among the top K tokens.",
    "--token": "Which tokens of an answer must be among the top K: first, last or all.",
    "--draws": "Resamples of the bootstrap, ",
    "--open": "Open the page in the browser once it is written.",
    "--reference": "",
    "--device": "auto, cpu, cuda",
    "--fresh": "",
    "--out": "",
    "--seed": "Seed ",
    "--data-dir": "Folder with the datasets' files.",
    "--json": "Print ",
}
"""Shared options, and how each begins its help: of the empty ones each command says what is its own."""
READ_PROBES = {"compare", "figures"}
"""Commands that take probes, where k and the token rule are the probe's unless told otherwise."""


@pytest.fixture(scope="module")
def options():
    """By option, (command, parameter) of each command that has it."""
    found: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for program in (app, training):
        for name, command in get_command(program).commands.items():
            for parameter in command.params:
                for option in parameter.opts:
                    found[option].append((name, parameter))
    return found


def type_of(parameter):
    """What it holds, without ``| None``."""
    annotation = parameter.type_descriptor.annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if kinds and type(None) in get_args(annotation) else annotation


@pytest.mark.parametrize("option", MEANS)
def test_an_option_has_one_type_and_one_meaning(options, option):
    found = options[option]
    assert len(found) > 1, f"{option} is of one command alone"
    assert len({type_of(parameter) for _, parameter in found}) == 1, [name for name, _ in found]
    for name, parameter in found:
        assert (parameter.help or "").startswith(MEANS[option]), f"{name} {option}: {parameter.help}"


def test_every_shared_option_has_one_type(options):
    """One that may be repeated holds several of the same."""
    for option, found in options.items():
        kinds = {name: type_of(parameter) for name, parameter in found}
        single = {get_args(kind)[0] if get_origin(kind) is list else kind for kind in kinds.values()}
        assert len(single) == 1, (option, kinds)


@pytest.mark.parametrize("option", ["--top-k", "--k", "--token"])
def test_what_is_read_of_probes_is_as_they_were_made(options, option):
    for name, parameter in options[option]:
        assert (parameter.default is None) is (name in READ_PROBES), name
        assert ("[default: as the probe was made]" in parameter.help) is (name in READ_PROBES), name
    assert {name for name, _ in options["--top-k"]} == {name for name, _ in options["--token"]}


def test_a_page_opens_where_it_is_asked_for(options):
    assert {
        name: parameter.default for name, parameter in options["--open"] if name != "demo"
    } == dict.fromkeys(["dashboard", "layers", "lens", "patch"], False)
    (demo,) = [parameter for name, parameter in options["--open"] if name == "demo"]
    assert demo.default is True and demo.secondary_opts == ["--no-open"], "the demo is there to be looked at"


def squashed(text):
    """Without what a terminal puts between words, and what marks code."""
    return re.sub(r"[\s│╭╮╰╯─`]+", "", text)


@pytest.mark.parametrize("columns", [80, 100])
def test_help_shows_every_word_as_it_is_written(columns):
    lost = []
    for program in (app, training):
        for name, command in get_command(program).commands.items():
            said = CliRunner().invoke(program, [name, "--help"], env={"COLUMNS": str(columns)}).output
            above, _, below = said.partition("╭─")
            texts = [(above, "", command.help)]
            texts += [
                (below, one.name, one.help) for one in command.params if not getattr(one, "hidden", False)
            ]
            for shown, where, text in texts:
                shown = squashed(shown)
                lost += [(name, where, word) for word in (text or "").split() if squashed(word) not in shown]
    assert not lost


LENS = ["lens", "--prompt", "The capital of France is"]
FILTER = ["filter", "--factoids", "known", "--out", "{out}/unknown.jsonl"]
FIT = ["fit", "--texts", "{out}/none.jsonl", "--out", "{out}/lens", "--kind"]
PATCH = ["patch", "--into", "other={ckpt}", "--out", "{out}/patches"]
LAYERS = ["layers", "--out", "{out}/probe"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([*LENS, "--base", "{ckpt}"], "--base {ckpt}: is of adapters"),
        ([*LENS, "--template", "nothing"], "template 'nothing'"),
        ([*LENS, "--lens", "tuned"], "--lens tuned"),
        ([*LENS, "--lens", "tuned={out}/none"], "none"),
        ([*LENS, "--lens", "logit@{out}/none"], "none"),
        ([*LENS, "--answer", " "], "the answer is empty"),
        ([*FILTER, "--shots", "9"], "--shots 9: give 0 to 5"),
        ([*FILTER, "--template", "nothing"], "template 'nothing'"),
        ([*FIT, "linear", "--held-out", "1"], "--held-out 1: give"),
        ([*FIT, "linear", "--steps", "5"], "--steps 5"),
        ([*FIT, "tuned", "--steps", "0"], "--steps 0"),
        ([*PATCH, "--what", "residual,nothing"], "--what nothing: choose"),
        ([*PATCH, "--positions", "last,nothing"], "--positions nothing: choose"),
        ([*PATCH, "--weights", "--windows", "1,0"], "--windows 0: give"),
        ([*PATCH, "--weights", "--windows", ","], "--windows: names none"),
        ([*PATCH, "--weights", "--parts", "all,nothing"], "--parts nothing: choose"),
        ([*PATCH, "--template", "nothing"], "template 'nothing'"),
        ([*LAYERS, "--template", "nothing"], "template 'nothing'"),
        ([*LAYERS, "--positions", "nothing"], "positions nothing"),
        ([*LAYERS, "--lens", "tuned"], "--lens tuned"),
        ([*LAYERS, "--keep-residuals", "nothing"], "--keep-residuals nothing"),
    ],
)
def test_what_no_model_could_do_is_refused_before_one_is_loaded(
    command, said, tiny_checkpoint, tmp_path, monkeypatch
):
    """A large model takes minutes to load, and the first of several things that are asked for may take hours."""

    def load(*given, **options):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("memprobe.models.load", load)
    checkpoint = ["--from" if command[0] == "patch" else "--ckpt", str(tiny_checkpoint)]
    asked = [word.format(ckpt=tiny_checkpoint, out=tmp_path) for word in command]
    result = CliRunner().invoke(app, asked + checkpoint)
    assert isinstance(result.exception, MemprobeError), result.exception
    assert said.format(ckpt=tiny_checkpoint) in str(result.exception)


def test_the_help_of_figures_names_every_figure(options):
    from memprobe.figures.drawing import DRAWN

    (told,) = [one.help for name, one in options["--only"] if name == "figures"]
    assert set(re.findall(r"\w+", told)) >= set(DRAWN)
