"""The notebooks: run top to bottom on synthetic probes, and kept with outputs and what they found."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from analyses.run_notebooks import executed
from tests.probes import write_probe

FOLDER = Path(__file__).parents[1] / "analyses"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALLOWED = {"polars", "memprobe"}

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """Stand-ins for the demo's probes: stages of two arms, in two readouts, with an answer of D_B watched for."""
    folder = tmp_path_factory.mktemp("probes")
    arms = {"naive": "none", "remix": "remix(data=self, stages=1)"}
    manifests = {
        f"{arm}-{stage}": {"arm": text, "seed": 0, "stage": stage}
        for arm, text in arms.items()
        for stage in (1, 2)
    }
    depths = {"base": 8.0, "naive-1": 5.0, "naive-2": 7.0, "remix-1": 4.0, "remix-2": 6.0}
    for name, readout in (("own", "own"), ("fixed", "base")):
        write_probe(folder / name, depths, n=24, readout=readout, manifests=manifests, intrusion=True)
    return {"PROBE": str(folder / "own"), "FIXED": str(folder / "fixed")}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_runs_on_other_probes(path, probes):
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    names = {name for name in probes if re.search(rf"^{name} =", cell.source, re.M)}
    assert "PROBE" in names
    done = executed(notebook, FOLDER, **{name: probes[name] for name in names})
    assert any("image/png" in output.get("data", {}) for cell in code(done) for output in cell.outputs)


def test_it_is_kept_with_what_it_found(path, probes):
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    question, answer = first.source.splitlines()[0], first.source
    assert first.cell_type == "markdown" and question.startswith("# ") and question.endswith("?")
    assert re.search(r"\d", answer) and "What this does not show" in answer
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "make notebooks"
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [cell for cell in code(notebook)[2:] if not cell.outputs], "a cell that shows nothing"
    assert not re.search(r"/(home|root|tmp|work)/", path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 600_000


def test_it_uses_the_public_names_and_computes_no_statistic(path, probes):
    notebook = nbformat.read(path, as_version=4)
    for cell in code(notebook):
        source = re.sub(r"^%.*$", "", cell.source, flags=re.M)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                )
                assert {module.split(".")[0] for module in modules} <= ALLOWED
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_")
                assert node.attr not in ("mean", "std", "var", "median", "quantile", "corr"), ast.unparse(
                    node
                )
