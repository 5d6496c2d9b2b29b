"""Runs the notebooks in this folder and keeps their outputs: ``python analyses/run_notebooks.py [NAME…]``.

Tables are kept as HTML and, unless they are long, as text; sentences as Markdown, figures as PNG, without times and
counters, so that a second run changes only what the probes changed. On other probes, into another folder (paths are as
seen from this folder)::

    python analyses/run_notebooks.py 04 --set 'PROBES=["../runs/GRID/probes/SETUP"]' --out runs/GRID/notebooks
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from memprobe.errors import MemprobeError, among

HERE = Path(__file__).parent
LONG = 8_000
"""Characters of a table's text that no terminal shows well; it is as long again as its HTML."""


def main() -> None:
    """Runs all notebooks, or those whose names begin as an argument does."""
    parser = argparse.ArgumentParser(description="Runs the notebooks and keeps their outputs.")
    parser.add_argument("names", nargs="*", help="how the notebooks' names begin, such as 04 [all]")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the notebooks [this one]")
    asked = parser.parse_args()
    paths = [path for path in sorted(HERE.glob("*.ipynb")) if path.name.startswith(tuple(asked.names) or "")]
    if not paths:
        parser.error(f"no notebook begins with {' or '.join(asked.names)}")
    try:
        parameters = {
            name: ast.literal_eval(value) for name, value in (one.split("=", 1) for one in asked.set)
        }
    except (SyntaxError, ValueError):
        parser.error("--set takes NAME=VALUE with a Python value, a text in quotes")
    if parameters and asked.out.resolve() == HERE.resolve():
        parser.error("--set needs --out: what is kept here was found on the demos")
    asked.out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        print(path.name, flush=True)
        try:
            done = executed(nbformat.read(path, as_version=4), HERE, **parameters)
        except MemprobeError as error:
            parser.exit(MemprobeError.exit_code, f"{path.name}: error: {error}\n")
        nbformat.write(done, asked.out / path.name)


def executed(notebook: nbformat.NotebookNode, folder: Path, **parameters: Any) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in ``folder``.

    Args:
        parameters: instead of what the cell tagged ``parameters`` sets. The opening then says that its answer
            is of other data.

    Raises:
        MemprobeError: the notebook has no such parameter, or what it is given is refused.
        nbclient.exceptions.CellExecutionError: a cell fails otherwise.
    """
    if parameters:
        cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        known = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
        if unknown := sorted(set(parameters) - known):
            raise MemprobeError(f"no parameter {unknown[0]}: {among(unknown[0], sorted(known))}")
        cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
        notebook.cells[
            0
        ].source += "\n\n**Run again on other data: the answer above was found on the demos.**"
    try:
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    except CellExecutionError as error:
        if error.ename != MemprobeError.__name__:
            raise
        raise MemprobeError(error.evalue) from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_kept(output) for output in cell.outputs]
    notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec",)}
    return notebook


def _kept(output: Mapping[str, Any]) -> nbformat.NotebookNode:
    """An output without its counter; of a table HTML and, if a terminal can show it, text; of sentences these."""
    kept = nbformat.from_dict(dict(output))
    if "execution_count" in kept:
        kept.execution_count = None
    if "image/png" in kept.get("data", {}):
        kept.data = {"image/png": kept.data["image/png"]}
    elif "text/markdown" in kept.get("data", {}):
        kept.data = {"text/markdown": kept.data["text/markdown"]}
    elif "text/plain" in kept.get("data", {}):
        kinds = ["text/html", "text/plain"]
        if "text/html" in kept.data and len(kept.data["text/plain"]) > LONG:
            kinds = ["text/html"]
        kept.data = {kind: kept.data[kind] for kind in kinds if kind in kept.data}
    return kept


if __name__ == "__main__":
    main()
