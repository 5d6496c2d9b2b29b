"""The notebooks: run top to bottom on synthetic probes, and kept with outputs and what they found."""

import ast
import re
import shutil
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from analyses import claims, run_notebooks
from analyses.instruments.report import write_report
from analyses.run_notebooks import executed
from tests import instruments
from tests.patched import write_patched
from tests.probes import write_probe

FOLDER = Path(__file__).parents[1] / "analyses"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALLOWED = {"io", "polars", "memprobe", "IPython", "PIL"}
COMPUTES = {
    "agg",
    "corr",
    "cov",
    "cum_sum",
    "count",
    "len",
    "max",
    "mean",
    "median",
    "min",
    "n_unique",
    "over",
    "product",
    "quantile",
    "std",
    "sum",
    "value_counts",
    "var",
    "group_by",
    "map_elements",
    "map_batches",
    "describe",
}
NAMES = (
    r"`[^`]*`|SmolLM2-135M(-Instruct)?|Gemma-3-270M|recall@\d+|\d+ million parameters"
    r"|\bk = \d+|\btop \d+|\b(depth|stage|block|figure) \d+"
    r"|\d→\d|95 % interval"
)
"""Digits that are part of a name: code, model sizes, k, depths and stages, citations, paths of facts, levels."""

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


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
    # A study is read from what report leaves of it: here, a copy of the published one.
    tables = shutil.copytree(FOLDER / "study" / "tables", folder / "tables")
    drawn = shutil.copytree(FOLDER.parent / "figures" / "study", folder / "figures")
    planted = [instruments.cell(seed) for seed in range(3)]
    planted += [instruments.cell(kind=kind) for kind in ("null", "full")]
    write_report(instruments.results(*planted), folder / "instruments", folder / "instruments", draws=50)
    return {
        "PROBE": str(folder / "own"),
        "FIXED": str(folder / "fixed"),
        "PROBES": [str(folder)],
        "TABLES": str(tables),
        "STUDIES": {"one": str(folder), "another": str(FOLDER / "study-500")},
        "FORGETTING": [str(drawn / "forgetting.json")],
        "FIGURES": str(drawn),
        "RESULTS": str(folder / "instruments"),
        "PATCHES": (patches := str(write_patched(folder / "patches"))),
        "GRAFTS": patches,
        "ERASURE": patches,
        "RELEARN": str(FOLDER / "where" / "relearn.parquet"),
        "PICTURES": str(shutil.copytree(FOLDER.parent / "figures" / "where", folder / "drawn")),
        "LENSES": str(shutil.copytree(FOLDER / "lenses", folder / "lenses")),
        "FIGURE": str(folder / "instruments" / "found.png"),
    }


def code_of(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def code(notebook):
    return code_of(notebook.cells)


def typed_numbers(text):
    return re.findall(r"\d+(?:[.,]\d+)*", re.sub(NAMES, "", text))


def python_of(notebook):
    """The syntax tree of each code cell, without lines for IPython."""
    for cell in code(notebook):
        yield ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.M))


def parameters(notebook):
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))


def texts(notebook):
    """All that a notebook's cells print or show as text."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    kinds = ("text/plain", "text/markdown")
    shown = [
        [output.get("text", ""), *(output.get("data", {}).get(k, "") for k in kinds)] for output in outputs
    ]
    return "\n".join("".join(parts) for parts in shown)


def test_they_are_numbered_in_order():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02}_" for i in range(1, len(NOTEBOOKS) + 1)]


@every
def test_it_runs_on_other_probes(path, probes):
    notebook = nbformat.read(path, as_version=4)
    names = {name for name in probes if re.search(rf"^{name} =", parameters(notebook).source, re.M)}
    assert names & {"PROBE", "PROBES", "TABLES", "STUDIES", "RESULTS", "LENSES", "PATCHES"}
    done = executed(notebook, FOLDER, **{name: probes[name] for name in names})
    assert any("image/png" in output.get("data", {}) for cell in code(done) for output in cell.outputs)
    assert "on other data" in done.cells[0].source


def test_every_stored_study_is_in_the_notebook_of_claims_and_on_the_site():
    """All but one that tells some seeds of another on their own."""
    stored = {path.parents[1].name for path in FOLDER.glob("study*/tables/claims.csv")}
    stored.remove("study-questions-seeds-3-5")
    assert {study.folder for study in claims.STUDIES} == stored
    notebook = nbformat.read(FOLDER / "10_what_the_paper_claims.ipynb", as_version=4)
    set_in = {node.targets[0].id: node.value for node in ast.parse(parameters(notebook).source).body[:2]}
    assert set(ast.literal_eval(set_in["STUDIES"]).values()) == stored


def test_naive_against_remix_takes_a_grids_probe_without_another_parameter(tmp_path):
    arms = {"naive": "none", "remix": "remix(data=generic, stages=1)"}
    depths, manifests = {"base": 8.0}, {}
    for name, arm in arms.items():
        for seed in range(3):
            for stage in (1, 2):
                label = f"{name}-s{seed}.{stage}"
                depths[label] = 4.0 + stage + (name == "naive")
                manifests[label] = {"arm": arm, "seed": seed, "stage": stage}
    write_probe(tmp_path / "own", depths, manifests=manifests, n=16, tokens=(1,), summary=False)
    notebook = nbformat.read(FOLDER / "04_naive_against_remix.ipynb", as_version=4)
    shown = texts(executed(notebook, FOLDER, PROBES=[str(tmp_path / "own")]))
    assert "against naive-s0.2" in shown
    assert "No placement claim is held yet" in shown  # there is no probe in the base model's readout
    assert re.search(r"remix\(data=generic, stages=1\) ┆ 2 +┆ exact +┆ 3 +(┆ -?[\d.]+ +){3}┆", shown)


@every
def test_it_is_kept_with_what_it_found(path):
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    question, answer = first.source.splitlines()[0], first.source
    assert first.cell_type == "markdown" and question.startswith("# ") and question.endswith("?")
    assert "What this does not show" in answer
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "make notebooks"
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [cell for cell in code(notebook)[2:] if not cell.outputs], "a cell that shows nothing"
    assert not re.search(r"/(home|root|tmp|work)/", path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 700_000


@every
def test_a_line_before_each_cell_says_what_it_does(path):
    cells = nbformat.read(path, as_version=4).cells
    for before, cell in pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and before.source.strip(), cell.source


@every
def test_no_number_is_typed_by_hand(path):
    """What a run finds is said by sentences that cells make from its tables."""
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        if cell.cell_type == "markdown":
            assert not typed_numbers(cell.source), cell.source
    made = [
        output.get("data", {}).get("text/markdown", "") for cell in code_of(cells) for output in cell.outputs
    ]
    assert re.search(r"\d", "".join(made)), "the answer in numbers, made from the tables"


def test_a_typed_number_is_seen():
    assert typed_numbers("It says 44 % of them, at depth 30, k = 10.") == ["44"]
    assert typed_numbers("2.0 against -0.5 in `0.1` of stage 2 (figure 4, SmolLM2-135M, top 10)") == [
        "2.0",
        "0.5",
    ]


@every
def test_it_uses_the_public_names_and_computes_no_statistic(path):
    for tree in python_of(nbformat.read(path, as_version=4)):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [name.name for name in node.names]
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
                assert {module.split(".")[0] for module in modules} <= ALLOWED
                assert not [
                    part for name in [*names, *modules] for part in name.split(".") if part[:1] == "_"
                ]
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_")
                assert node.attr not in COMPUTES, ast.unparse(node)
            assert not isinstance(node, ast.BinOp) or isinstance(node.op, ast.Mod | ast.BitAnd | ast.BitOr)


# The script


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["run_notebooks.py", *map(str, arguments)])
    run_notebooks.main()


def test_the_kept_ones_are_not_run_over_with_other_parameters(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "01", "--set", "K=1")
    assert "--set needs --out" in capsys.readouterr().err


def test_unknown_names_and_parameters_are_refused(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, "99")
    assert "no notebook begins with 99" in capsys.readouterr().err
    for given, message in {
        "KK=1": "no parameter KK: choose GROUPING, K, PROBE, TOKEN",
        "PROBE='nowhere'": "nowhere: no run.json",
    }.items():
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, "01", "--set", given, "--out", tmp_path)
        err = capsys.readouterr().err
        assert ended.value.code == 2 and message in err and len(err.splitlines()) == 1
    with pytest.raises(SystemExit):
        run(monkeypatch, "01", "--set", "PROBE=../probes", "--out", tmp_path)
    assert "a Python value" in capsys.readouterr().err


def test_a_copy_is_written_elsewhere(monkeypatch, probes, tmp_path):
    kept = (FOLDER / "01_common_facts.ipynb").read_bytes()
    run(monkeypatch, "01", "--set", f"PROBE={probes['PROBE']!r}", "--out", tmp_path / "copies")
    copy = nbformat.read(tmp_path / "copies" / "01_common_facts.ipynb", as_version=4)
    assert probes["PROBE"] in parameters(copy).source and "naive-1" in texts(copy)
    assert (FOLDER / "01_common_facts.ipynb").read_bytes() == kept
