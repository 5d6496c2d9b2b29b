"""Runs the notebooks in this folder and keeps their outputs: ``python analyses/run_notebooks.py [NAME…]``.

Tables are kept as text and figures as PNG, without times and counters, so that a second run changes only what
the probes changed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def main() -> None:
    """Runs all notebooks, or those whose names begin as an argument does."""
    wanted = tuple(sys.argv[1:])
    for path in sorted(HERE.glob("*.ipynb")):
        if not wanted or path.name.startswith(wanted):
            print(path.name, flush=True)
            nbformat.write(executed(nbformat.read(path, as_version=4), HERE), path)


def executed(notebook: nbformat.NotebookNode, folder: Path, **parameters: Any) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in ``folder``.

    Args:
        parameters: instead of what the cell tagged ``parameters`` sets.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    if parameters:
        cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_kept(output) for output in cell.outputs]
    notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec",)}
    return notebook


def _kept(output: Mapping[str, Any]) -> nbformat.NotebookNode:
    """An output without its counter; of a table the text, which reads the same everywhere."""
    kept = nbformat.from_dict(dict(output))
    if "execution_count" in kept:
        kept.execution_count = None
    if "image/png" in kept.get("data", {}):
        kept.data = {"image/png": kept.data["image/png"]}
    elif "text/plain" in kept.get("data", {}):
        kept.data = {"text/plain": kept.data["text/plain"]}
    return kept


if __name__ == "__main__":
    main()
