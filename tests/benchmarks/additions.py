"""What an addition costs: each is made for real in a copy of the checkout, used, and its source files are counted.

    python -m tests.benchmarks.additions [dataset source statistic penalty lens]

The steps are those of docs/how-to/extend.md. Nothing of the checkout is changed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Addition:
    """An addition and its use.

    Attributes:
        rows: by file, what is put in before a line that is there.
        modules: new files.
        use: a Python program that fails where the addition is not there; the folder for its files is argv[1].
    """

    use: str
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)


_RUN = """
import subprocess, sys
from pathlib import Path
work = Path(sys.argv[1])
def run(*arguments):
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
"""

ADDITIONS = {
    "dataset": Addition(
        rows={
            "memprobe/sources/catalogue.py": (
                '        Dataset(\n            "popqa",\n',
                """        Dataset(
            "rivers",
            "factoids",
            "CC0",
            None,
            {"all": Split("rivers.jsonl", ())},
            lambda columns: make_factoid(text_of(columns, "ask"), text_of(columns, "river"), "rivers"),
        ),
""",
            )
        },
        use=_RUN
        + """
(work / "rivers.jsonl").write_text('{"ask": "The river of Oria is", "river": "Lunn"}\\n')
assert "rivers" in run("memprobe", "sources", "--data-dir", work)
assert "Lunn" in run("memprobe", "sources", "rivers", "--data-dir", work)
from training.recipe import read_recipe
(work / "r.toml").write_text('base = "x"\\n[[stages]]\\nname = "a"\\ndata = "rivers"\\n')
read_recipe(work / "r.toml")
""",
    ),
    "source": Addition(
        rows={
            "memprobe/sources/generated.py": (
                '    "self": Generated(',
                """    "squares": Generated(
        "texts",
        lambda asked: (
            [make_text(f"{n} squared is", str(n * n), "squares") for n in range(asked.size)],
            Origin("squares", "texts", "generated"),
        ),
        "none",
        "numbers and their squares",
    ),
""",
            ),
        },
        use=_RUN
        + """
assert "squares" in run("memprobe", "sources") and "81" in run("memprobe", "sources", "squares", "--n", "10")
from training.recipe import read_recipe
arm = 'arm = "remix(data=squares, stages=1)"'
(work / "r.toml").write_text(f'base = "x"\\n{arm}\\n[[stages]]\\nname = "a"\\ndata = "kvr:4"\\n')
read_recipe(work / "r.toml")
""",
    ),
    "statistic": Addition(
        rows={
            "memprobe/statistics/vocabulary.py": (
                '    Statistic(\n        "area",\n',
                """    Statistic(
        "late_depths",
        "depths in the second half that hold a fact",
        "late depths",
        "depths",
        "bca",
        views=_views("compared", "staged", "arms", "placement", "headline"),
        of=lambda trajectory, found, exact: found.held[:, 1 + found.n_layers // 2 :].sum(1),
        panel=6,
    ),
""",
            )
        },
        use=_RUN
        + """
from tests.probes import write_probe
write_probe(work / "probe", {"a": 4.0, "b": 5.0}, n=30)
assert "late depths" in run("memprobe", "compare", work / "probe", "--draws", "200", "--out", work / "tables")
assert "late depths" in (work / "tables" / "comparison.md").read_text()
run("memprobe", "figures", work / "probe", "--only", "differences", "--width", "183", "--draws", "200", "--out", work)
assert "late_depths" in (work / "differences.json").read_text()
run("memprobe", "dashboard", work / "probe", "--out", work / "page.html")
assert "depths in the second half that hold a fact" in (work / "page.html").read_text()
""",
    ),
    "penalty": Addition(
        modules={
            "training/penalties/l2.py": '''"""The squared change of every weight (Xuhong et al. 2018, L2-SP)."""

from __future__ import annotations

from typing import Literal

from training.penalties import Boundary, Penalty, Step, Term


class L2(Penalty):
    """Half the squared change of all weights."""

    holds_weights = True
    method: Literal["l2"] = "l2"

    def term(self, boundary: Boundary) -> Term:
        """The term of a stage."""
        start = {name: weight.detach().clone() for name, weight in boundary.model.named_parameters()}

        def held(step: Step):
            change = [(weight - start[name]).square().sum() for name, weight in step.model.named_parameters()]
            return 0.5 * sum(change) / step.accumulation

        return held
'''
        },
        use=_RUN
        + """
import json
run("tests.tiny", work / "base")
recipe = ["training/recipes/tiny.toml", "--base", work / "base", "--arm", "l2(strength=0.1)", "--out", work / "run"]
run("training", "run", *recipe)
assert json.loads((work / "run" / "2-others" / "memprobe.json").read_text())["arm"].startswith("l2(")
assert '"penalty"' in (work / "run" / "2-others" / "metrics.jsonl").read_text()
""",
    ),
    "lens": Addition(
        modules={
            "memprobe/lens_kinds/shift.py": '''"""``shift``: the last stream's mean minus that of a depth."""

from __future__ import annotations

import torch

from memprobe.fitting.streams import streams_of
from memprobe.lens_files import AffineMap


class ShiftFit:
    """A unit of work is one half of the corpus."""

    units = 2

    def __init__(self, lens_model, corpus):
        self.lens_model, self.corpus = lens_model, corpus
        self.shifts = torch.zeros(2, lens_model.n_layers, lens_model.d_model)

    def run(self, unit):
        """The mean over a half."""
        mean = streams_of(self.lens_model, self.corpus.halves[unit]).flatten(1, 2).float().mean(1)
        self.shifts[unit] = (mean[-1] - mean[:-1]).cpu()

    def state(self):
        """What a killed fit goes on from."""
        return {"shifts": self.shifts}

    def restore(self, state):
        """The inverse."""
        self.shifts = state["shifts"]

    def maps(self, half=None):
        """The identity and a shift."""
        shift = self.shifts.mean(0) if half is None else self.shifts[half]
        return {depth: AffineMap(torch.eye(shift.shape[1]), one) for depth, one in enumerate(shift)}


FIT = ShiftFit
'''
        },
        use=_RUN
        + """
import json
run("tests.tiny", work / "base")
from tests.tiny import SENTENCES
texts = [json.dumps({"text": f"{n}. {one}"}) for n in range(40) for one in SENTENCES]
(work / "t.jsonl").write_text("\\n".join(texts))
assert "shift" in run("memprobe", "fit", "--help")
small = ["--tokens", "256", "--length", "8", "--held-out", "4", "--factoids", "none"]
run("memprobe", "fit", "--kind", "shift", "--ckpt", work / "base", "--texts", work / "t.jsonl", *small,
    "--out", work / "lens")
lens = ["--lens", f"shift={work / 'lens'}", "--factoids", "kvr:4", "--out", work / "probe"]
run("memprobe", "layers", "--ckpt", work / "base", *lens)
""",
    ),
}


def cost(name: str) -> str:
    """Makes an addition in a copy, uses it, and says which source files it touched.

    Raises:
        AssertionError: it does not work.
    """
    addition = ADDITIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy, work = Path(folder) / "copy", Path(folder) / "work"
        work.mkdir()
        subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(copy)], check=True)
        for path, (before, text) in addition.rows.items():
            source = (copy / path).read_text(encoding="utf-8")
            assert source.count(before) == 1, f"{path}: {before!r}"
            source = source.replace(before, text + before)
            if name == "source":
                source = source.replace("import AnyRow, Kind, Text", "import AnyRow, Kind, Text, make_text")
            (copy / path).write_text(source, encoding="utf-8")
        for path, text in addition.modules.items():
            (copy / path).write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", addition.use, str(work)], cwd=copy, env=_environment(copy), check=False
        )
        assert done.returncode == 0, f"{name}: does not work"
        git = ["git", "-C", str(copy), "-c", "core.excludesFile="]
        subprocess.run([*git, "add", "-A", "memprobe", "training"], check=True)
        changed = subprocess.run(
            [*git, "diff", "--cached", "--numstat"], check=True, capture_output=True, text=True
        ).stdout.split("\n")
    files = [line.split("\t") for line in changed if line]
    said = ", ".join(f"{path} (+{more})" for more, _, path in files)
    return f"{name:<10} {len(files)} source file{'' if len(files) == 1 else 's'}: {said}"


def _environment(copy: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    for one in sys.argv[1:] or ADDITIONS:
        print(cost(one), flush=True)
