"""Imports go one way: no circle, inside functions neither, and memprobe never imports training."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it) of every import that runs, wherever it stands."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for inner in node.orelse:
                yield from walk(inner)
            return
        yield node
        for inner in ast.iter_child_nodes(node):
            yield from walk(inner)

    for node in walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """What each module imports, among these."""
    graph: dict[str, set[str]] = {}
    for name, text in sources.items():
        found = set()
        for module, taken in imported(ast.parse(text)):
            inner = f"{module}.{taken}"
            found.add(inner if taken and inner in sources else module)
        graph[name] = (found & sources.keys()) - {name}
    return graph


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; empty where there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    paths = [path for top in ("memprobe", "training") for path in (ROOT / top).rglob("*.py")]
    return {module_name(path): path.read_text(encoding="utf-8") for path in paths}


def test_circles_are_found_inside_functions_and_not_among_types():
    late = "def f():\n    from p.a import g\n"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import g\n"
    assert set(circle_in(graph_of({"p.a": "from p import b", "p.b": late}))) == {"p.a", "p.b"}
    assert circle_in(graph_of({"p.a": "from p import b", "p.b": typed})) == []


def test_no_modules_import_each_other(sources):
    assert circle_in(graph_of(sources)) == []


def test_memprobe_never_imports_training(sources):
    graph = graph_of(sources)
    for name, others in graph.items():
        if name.split(".")[0] == "memprobe":
            assert not [other for other in others if other.split(".")[0] == "training"], name


def test_no_module_is_so_long_that_it_is_two():
    tops = ("memprobe", "training", "analyses")
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for top in tops
        for path in (ROOT / top).rglob("*.py")
    }
    assert {path: n for path, n in lines.items() if n > 450} == {}
