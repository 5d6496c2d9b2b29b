"""README and site: links resolve, commands run as they stand, and the built site asks nobody for anything."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def targets(text: str) -> list[str]:
    """Files that Markdown links to."""
    found = [target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target) and target[0] != "#"]
    return [target.split("#")[0] for target in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """As the pages stand in the repository; the site refuses to be built with a link that it lacks."""
    for target in targets(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_of_the_repository_lead_to_pages_of_the_site():
    made = generator()
    assert set(made.PAGE_OF.values()) <= set(made.pages())
    text = (
        "[a](../../analyses/where/report.md#b), ![c](../../figures/where/grafts.png), [d](study.md), [e](#f)"
    )
    shown = made.site_links(text, "findings/where.md")
    assert shown == "[a](where-tables.md#b), ![c](../figures/where/grafts.png), [d](study.md), [e](#f)"
    assert made.site_links("[a](../memprobe/cli)", "index.md") == "[a](reference/cli.md)"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_has_its_options(page):
    """Each ``memprobe …`` and ``python -m training …`` line names commands and options that there are."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            known = options_of(words)
            for word in words:
                if known is not None and word.startswith("--"):
                    assert word.split("=")[0] in known, f"{page.name}: {line}"


def options_of(words: list[str]) -> set[str] | None:
    import typer

    from memprobe.cli import app as commands
    from training.__main__ import app as training

    if words[:1] and words[0].endswith("memprobe") and "/" not in words[0].removesuffix("bin/memprobe"):
        group, rest = typer.main.get_command(commands.app), words[1:]
    elif words[:3] == ["python", "-m", "training"]:
        group, rest = typer.main.get_command(training), words[3:]
    else:
        return None
    command = group.commands[rest[0]]
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}


def test_the_commands_of_the_readme_run(tiny_checkpoint, tmp_path, quick_python):
    """As they stand, with a tiny model where the README has one of its reader's."""
    (tmp_path / "facts.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"The river {i} flows to", "answer": f"Lunn {i}"}) + "\n" for i in range(4)
        )
    )
    run = 0
    for block in blocks(ROOT / "README.md", ""):
        for line in block.splitlines():
            words = [
                word.replace("./base", str(tiny_checkpoint)).replace("./tuned", str(tiny_checkpoint))
                for word in shlex.split(line, comments=True)
            ]
            if words[:1] != ["memprobe"]:
                continue
            done = subprocess.run(
                [*quick_python, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=240
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            run += 1
    assert run >= 5 and (tmp_path / "page.html").exists() and (tmp_path / "lens.html").exists()


def test_the_python_of_the_readme_runs_twice(tiny_checkpoint, tmp_path, quick_python):
    (snippet,) = blocks(ROOT / "README.md", "python")
    code = snippet.replace("smollm2-135m", str(tiny_checkpoint))
    done = subprocess.run(
        [*quick_python, "-c", code + code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def test_the_site_is_built_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    loads = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"(https?:[^\"]+)\"")
    for page in pages:
        found = [
            url for url in loads.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in url
        ]
        assert not found, (page.name, found)


def test_the_table_of_sources_is_that_of_the_catalogue_and_the_stored_counts():
    from analyses.sources.counts import PAGE, stored_counts, table, written
    from memprobe.sources.catalogue import DATASETS

    page = PAGE.read_text(encoding="utf-8")
    assert written(page, table(stored_counts())) == page, "python -m analyses.sources.counts writes it"
    for name, dataset in DATASETS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"| {dataset.licence} |" in row and f"| {stored_counts()[name]['kept']:,} |" in row


def test_what_a_large_study_costs_is_computed_from_what_is_stored():
    """By hand: a model of 10 weights, 2 depths, width 3 and 5 tokens in its vocabulary."""
    from analyses.speed.costs import Model, operations, page

    assert operations(Model("x", 10, 25, 1, 3, 5), tokens=7, positions=2) == 2 * 10 * 7 + 2 * 3 * 5 * 2 * 2
    text = page()
    stored = json.loads((ROOT / "analyses" / "speed" / "h100.json").read_text(encoding="utf-8"))
    median = stored["sections"]["capture random:1b bfloat16"]["methods"]["memprobe"]["median"]
    assert f"{median:.3f} s" in text and "nan" not in text


def test_the_code_of_the_page_on_additions_fits_where_it_says():
    """``python -m tests.benchmarks.additions`` also runs it."""
    from tests.benchmarks.additions import HEADINGS, PAGE, USES, parts

    assert list(HEADINGS) == list(USES)
    found = [part for name in HEADINGS for part in parts(name)]
    assert len(found) == len(blocks(PAGE, "python"))
    whole: dict[str, str] = {}
    for part in found:
        path = ROOT / part.path
        if part.where == "a new file":
            assert not path.exists() and path.parent.is_dir()
            whole[part.path] = part.code
        else:
            whole[part.path] = part.put_into(whole.get(part.path) or path.read_text(encoding="utf-8"))
    for path, text in whole.items():
        compile(text, path, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_in_other_languages_can_be_read(page):
    import tomllib

    import yaml

    for text in blocks(page, "toml"):
        assert tomllib.loads(text)
    for text in blocks(page, "yaml"):
        assert yaml.safe_load(text)
    for text in blocks(page, "python") if page.name != "extend.md" else ():  # see above
        compile(text, str(page), "exec")


def test_the_map_has_every_module_once_and_is_that_of_their_docstrings():
    from docs import modules as map_

    listed = [name for names in map_.GROUPS.values() for name in names.split()]
    assert sorted(listed) == sorted(map_.modules())
    assert map_.PAGE.read_text(encoding="utf-8") == map_.page()
    assert all(len(map_.opening(path)) > 20 for path in map_.modules().values())


def test_the_page_of_keys_has_every_table_and_says_of_every_key_what_it_is():
    from docs import keys
    from training.penalties import Penalty
    from training.settings import Settings

    tables = keys.tables()

    def below(kind: type[Settings]) -> set[type[Settings]]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    claims = "training.study."  # of the file of claims, which is not written for a run
    known = {kind for kind in below(Settings) if kind.__module__.startswith("training.")}
    assert {kind for kind in known - {Settings, Penalty} if not kind.__module__.startswith(claims)} == {
        *tables.values()
    }
    for table in tables.values():
        assert set(keys.said(table)) == set(table.model_fields), table.__name__
    assert keys.PAGE.read_text(encoding="utf-8") == keys.page()


@pytest.mark.parametrize("folder", ["figures", "analyses"])
def test_what_is_stored_names_no_path_of_the_machine_that_made_it(folder):
    """Commands and inputs are written as they were given, so that they can be given again from the repository."""
    made = [
        (path, json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((ROOT / folder).rglob("*.json"))
    ]
    made = [(path, one) for path, one in made if isinstance(one, dict)]
    assert len(made) > 5
    absolute = [
        (path.relative_to(ROOT).as_posix(), word)
        for path, one in made
        for text in (
            one.get("command") or "",
            *(str(given.get("path", "")) for given in one.get("inputs") or ()),
        )
        for word in str(text).split()
        if Path(word).is_absolute()
    ]
    assert not absolute
