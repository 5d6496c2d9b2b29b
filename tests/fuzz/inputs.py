"""The kinds of input: each makes one in a folder of its own and says which command reads it.

A kind is a function (random, folder, seeds) -> :class:`Input`; :data:`KINDS` says how often each is taken.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import polars as pl

from tests.fuzz import mutate


@dataclass(frozen=True)
class Input:
    """A command and what it may not do.

    Attributes:
        program: ``memprobe`` or ``training``.
        arguments: of the command line, in the input's folder.
        changed: whether a table of a probe is another one than was written: it may not be taken.
        what: what was done, in words.
    """

    program: str
    arguments: list[str]
    changed: bool = False
    what: str = ""


def factoids(random: Random, folder: Path, seeds: Path) -> Input:
    """A factoid file, damaged."""
    kind = random.choice(["jsonl", "jsonl", "csv", "csv", "parquet"])
    source, path = seeds / f"facts.{kind}", folder / f"facts.{kind}"
    if kind == "parquet":
        _damage_parquet(source, path, random)
    elif kind == "jsonl" and random.random() < 0.5:
        lines = source.read_text(encoding="utf-8").splitlines()
        at = random.randrange(len(lines))
        damaged = mutate.json_of(json.loads(lines[at]), random)
        path.write_bytes(b"\n".join([*(line.encode() for line in lines[:at]), damaged]) + b"\n")
    else:
        path.write_bytes(mutate.text_of(source.read_text(encoding="utf-8"), random))
    arguments = ["sources", path.name]
    if random.random() < 0.3:
        arguments += ["--on-bad-row", "skip"]
    if random.random() < 0.05:
        arguments = [
            "layers",
            "--ckpt",
            str(seeds / "checkpoint"),
            "--factoids",
            *arguments[1:],
            "--out",
            "o",
        ]
    return Input("memprobe", arguments, what=path.name)


def _damage_parquet(source: Path, path: Path, random: Random) -> None:
    if random.random() < 0.5:
        path.write_bytes(mutate.bytes_of(source.read_bytes(), random))
    else:
        mutate.frame_of(pl.read_parquet(source), random).write_parquet(path)


def _same(one: Path, other: Path) -> bool:
    """Whether two table files say the same."""
    if one.read_bytes() == other.read_bytes():
        return True
    try:
        return pl.read_parquet(one).equals(pl.read_parquet(other))
    except (Exception, pl.exceptions.PanicException):
        return False


def probes(random: Random, folder: Path, seeds: Path) -> Input:
    """A probe directory with a file damaged, gone, or taken for another."""
    source = seeds / random.choice(["probe", "probe", "probe", "older"])
    target = folder / "p"
    shutil.copytree(source, target)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    path = random.choice(files)
    original = source / path.relative_to(target)
    how = random.random()
    if path.suffix == ".json":
        path.write_bytes(mutate.json_of(json.loads(path.read_text(encoding="utf-8")), random))
    elif how < 0.1:
        path.unlink()
    elif how < 0.2:
        path.write_bytes(random.choice([other for other in files if other.suffix == ".parquet"]).read_bytes())
    elif how < 0.25:
        path.unlink()
        random.choice([path.mkdir, lambda: path.symlink_to(path.name), lambda: path.symlink_to(os.devnull)])()
    else:
        _damage_parquet(original, path, random)
    changed = path.suffix == ".parquet" and not (path.is_file() and _same(path, original))
    arguments = random.choice(
        [
            ["compare", "p", "--draws", "100", "--json"],
            ["compare", "p", "--draws", "100", "--by", "relation", "--out", "c"],
            ["dashboard", "p", "--out", "d.html"],
            ["figures", "p", "--out", "f", "--draws", "100", "--format", "svg", "--only", "recall"],
        ]
    )
    return Input("memprobe", arguments, changed, f"{path.relative_to(target)}")


def studies(random: Random, folder: Path, seeds: Path) -> Input:
    """Training runs with a file damaged, shown on a page or in figures."""
    target = folder / "runs"
    shutil.copytree(seeds / "runs", target)
    path = random.choice(sorted(path for path in target.rglob("*") if path.is_file()))
    _damage_text(path, random)
    arguments = random.choice(
        [
            ["dashboard", "runs", "--out", "d.html"],
            ["figures", "runs", "--out", "f", "--draws", "100", "--format", "svg", "--only", "forgetting"],
            ["check", "--ckpt", f"runs/{path.relative_to(target).parts[0]}"],
        ]
    )
    return Input("memprobe", arguments, what=str(path.relative_to(folder)))


def _damage_text(path: Path, random: Random) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        path.write_bytes(mutate.json_of(json.loads(text), random))
    else:
        path.write_bytes(mutate.text_of(text, random))


def stored(random: Random, folder: Path, seeds: Path) -> Input:
    """A comparison or a figure's JSON, damaged."""
    if random.random() < 0.5:
        shutil.copytree(seeds / "compared", folder / "c")
        path = folder / "c" / "comparison.json"
        arguments = random.choice(
            [
                ["dashboard", "c", "--out", "d.html"],
                ["figures", "c", "--out", "f", "--format", "svg", "--only", "recall", "--only", "lof"],
            ]
        )
    else:
        path = folder / "figure.json"
        shutil.copy(random.choice(sorted((seeds / "figures").glob("*.json"))), path)
        arguments = ["figures", path.name, "--out", "f", "--format", "svg"]
    _damage_text(path, random)
    return Input("memprobe", arguments, what=path.name)


def checkpoints(random: Random, folder: Path, seeds: Path) -> Input:
    """A checkpoint with a file damaged, gone, or too much."""
    target = folder / "ck"
    shutil.copytree(seeds / "checkpoint", target)
    path = random.choice(sorted(path for path in target.iterdir() if path.is_file()))
    how = random.random()
    if how < 0.1:
        path.unlink()
    elif how < 0.2:
        name = random.choice(
            [
                "adapter_config.json",
                "model.gguf",
                "model.safetensors.index.json",
                "pytorch_model.bin",
                "chat_template.jinja",
            ]
        )
        path = target / name
        path.unlink(missing_ok=True)
        if random.random() < 0.3:
            random.choice(
                [path.mkdir, lambda: path.symlink_to(path.name), lambda: path.symlink_to("/dev/zero")]
            )()
        else:
            junk = [
                json.dumps(mutate.junk(random)).encode(),
                random.randbytes(200),
                b"{% for a in b %}",
            ]
            path.write_bytes(random.choice(junk))
    elif path.suffix == ".json":
        path.write_bytes(mutate.json_of(json.loads(path.read_text(encoding="utf-8")), random))
    else:
        path.write_bytes(mutate.bytes_of(path.read_bytes(), random))
    facts = str(seeds / "facts.jsonl")
    arguments = random.choice(
        [
            ["check", "--ckpt", "ck"],
            ["layers", "--ckpt", "ck", "--factoids", facts, "--out", "o", "--json"],
            ["layers", "--ckpt", "ck", "--factoids", facts, "--out", "o", "--template", "chat"],
        ]
    )
    return Input("memprobe", arguments, what=path.name)


def recipes(random: Random, folder: Path, seeds: Path) -> Input:
    """A recipe, damaged; some of those that still can be trained are."""
    path = folder / "r.toml"
    text = (seeds / "recipe.toml").read_text(encoding="utf-8")
    path.write_bytes(mutate.text_of(text, random))
    arguments = ["run", path.name, "--out", "o"]
    if random.random() < 0.9:
        arguments += ["--base", "nowhere"]
    return Input("training", arguments, what=path.name)


def grids(random: Random, folder: Path, seeds: Path) -> Input:
    """A grid, damaged, planned."""
    path = folder / "g.toml"
    path.write_bytes(mutate.text_of((seeds / "grid.toml").read_text(encoding="utf-8"), random))
    return Input("training", ["grid", path.name, "--out", "o", "--dry-run"], what=path.name)


_WORDS = [
    "", "-", "--", "0", "-1", "1", "2", "99999999999", "1e3", "²", "nan", "auto", "first", "all", "cpu", "cuda:9", "x",
    "float16", "plain", "chat", "{prompt}{answer}", "{prompt", "known", "kvr:4", "kvr:-1", "kvr:99999999999", "kvr:x:y",
    "logit", "logit@", "logit@ck", "tuned=x", "answer,subject", "=x", "a=b=c", "graft(ck, ck, blocks=0-1)", "graft(",
    "relation", "a" * 300, "\x1b]0;t\x07", "[/]", "é", ".", "..", "/dev/null", "/dev/full", "nowhere/x", "none", "x:1",
    "owner/name", "gpt2@main", "a:b:c", "s1=a:0:1", "base",
]  # fmt: skip


def lines(random: Random, folder: Path, seeds: Path) -> Input:
    """A command line with options and values that may not fit."""
    for name in ("facts.jsonl", "facts.csv", "grid.toml", "recipe.toml"):
        shutil.copy(seeds / name, folder / name)
    for name, link in (("probe", "p"), ("checkpoint", "ck"), ("runs", "runs"), ("compared", "c")):
        (folder / link).symlink_to(seeds / name)
    options = _options()
    program, command = random.choice(sorted(options))
    arguments = [command]
    starts = {
        "layers": ["--ckpt", "ck", "--factoids", "facts.jsonl", "--out", "o"],
        "check": ["--ckpt", "ck"],
        "compare": ["p", "--draws", "100"],
        "dashboard": ["p", "--out", "d.html"],
        "figures": ["p", "--draws", "100", "--out", "f", "--format", "svg"],
        "filter": ["--ckpt", "ck", "--factoids", "facts.jsonl", "--out", "o.jsonl"],
        "lens": ["--ckpt", "ck", "The river of"],
        "sources": ["facts.csv"],
        "patch": ["--from", "a=ck", "--into", "b=ck", "--factoids", "facts.jsonl", "--out", "o"],
        "run": ["recipe.toml", "--out", "o"],
        "grid": ["grid.toml", "--dry-run", "--out", "o"],
        "report": ["runs"],
    }
    if random.random() < 0.9:
        arguments += starts.get(command, [])
    files = ["ck", "p", "c", "runs", "facts.jsonl", "facts.csv", "o", "grid.toml", "recipe.toml"]
    for _ in range(random.choice([1, 1, 2, 3])):
        name, flag = random.choice(options[program, command])
        if name in ("--watch", "--open", "--workers", "--engine", "--minutes", "--html"):
            continue
        arguments.append(name)
        if not flag:
            arguments.append(random.choice([*_WORDS, *files]))
    if random.random() < 0.1:
        arguments.append(random.choice([*_WORDS, *files]))
    return Input(program, [one for one in arguments if "\x00" not in one], what=" ".join(arguments))


def _options() -> dict[tuple[str, str], list[tuple[str, bool]]]:
    """(name, whether it takes no value) of the options of every command."""
    import typer

    from memprobe.cli import app as commands
    from training.__main__ import app as training

    found = {}
    for program, application in (("memprobe", commands.app), ("training", training)):
        for name, command in typer.main.get_command(application).commands.items():
            if name in ("fit", "demo", "open", "show", "relearn"):
                continue  # they train, fetch or open a browser
            found[program, name] = [
                (option, bool(getattr(parameter, "is_flag", False)))
                for parameter in command.params
                for option in parameter.opts
                if option.startswith("--")
            ]
    return found


KINDS: dict[str, tuple[Callable[[Random, Path, Path], Input], int]] = {
    "factoids": (factoids, 40),
    "probes": (probes, 20),
    "studies": (studies, 10),
    "stored": (stored, 6),
    "checkpoints": (checkpoints, 4),
    "recipes": (recipes, 8),
    "grids": (grids, 8),
    "lines": (lines, 4),
}
"""By name, what makes an input, and its share in a hundred."""


def kind_of(number: int) -> str:
    """The kind of input ``number``; the shares hold in every hundred."""
    order = list(itertools.chain.from_iterable([name] * share for name, (_, share) in KINDS.items()))
    Random(0).shuffle(order)
    return order[number % len(order)]
