"""What an addition costs: each is made for real in a copy of the checkout, used, and its source files are counted.

    python -m tests.benchmarks.additions [dataset source statistic lens penalty instrument]

What is added, and where, is the code of docs/how-to/extend.md. Nothing of the checkout is changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "extend.md"
HEADINGS = {
    "dataset": "A dataset",
    "source": "A generated source",
    "statistic": "A statistic of a fact",
    "lens": "A lens that is an affine map",
    "penalty": "A penalty",
    "instrument": "An instrument",
}
_BLOCK = re.compile(r"^```python\n# (\S+): (a new file|above|in place of) ?([^\n]*)\n(.*?)^```", re.S | re.M)


class Part(NamedTuple):
    """A piece of code and its place.

    Attributes:
        path: the file, from the top of the checkout.
        where: ``a new file``, ``above`` or ``in place of``.
        anchor: how the one line of the file begins that the code stands above, or in place of.
        code: as the page has it.
    """

    path: str
    where: str
    anchor: str
    code: str

    def put_into(self, source: str) -> str:
        """The file with the code in it.

        Raises:
            AssertionError: the anchor is not one line of the file.
        """
        lines = source.splitlines(keepends=True)
        found = [at for at, line in enumerate(lines) if line.strip().startswith(self.anchor)]
        assert len(found) == 1, f"{self.path}: {len(found)} lines begin with {self.anchor!r}"
        (at,) = found
        if self.where == "in place of":
            lines[at] = self.code
            return "".join(lines)
        before = lines[at - 1].strip()
        if before.startswith("@") or before.endswith("("):  # a decorator, or the call that the line is inside
            at -= 1
        indent = " " * (len(lines[at]) - len(lines[at].lstrip()))
        return "".join([*lines[:at], textwrap.indent(self.code, indent), *lines[at:]])


def parts(name: str) -> list[Part]:
    """What the page says of an addition."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {HEADINGS[name]}\n")[1].split("\n## ")[0]
    return [Part(*found) for found in _BLOCK.findall(section)]


_RUN = """
import subprocess, sys
from pathlib import Path
work = Path(sys.argv[1])
def run(*arguments):
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
"""

USES = {
    "dataset": _RUN
    + """
(work / "rivers.jsonl").write_text('{"ask": "The river of Oria is", "river": "Lunn"}\\n')
assert "rivers" in run("memprobe", "sources", "--data-dir", work)
assert "Lunn" in run("memprobe", "sources", "rivers", "--data-dir", work)
from training.recipe import read_recipe
(work / "r.toml").write_text('base = "x"\\n[[stages]]\\nname = "a"\\ndata = "rivers"\\n')
read_recipe(work / "r.toml")
""",
    "source": _RUN
    + """
assert "squares" in run("memprobe", "sources") and "81" in run("memprobe", "sources", "squares", "--n", "10")
from training.recipe import read_recipe
arm = 'arm = "remix(data=squares, stages=1)"'
(work / "r.toml").write_text(f'base = "x"\\n{arm}\\n[[stages]]\\nname = "a"\\ndata = "kvr:4"\\n')
read_recipe(work / "r.toml")
""",
    "statistic": _RUN
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
    "lens": _RUN
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
    "penalty": _RUN
    + """
import json
run("tests.tiny", work / "base")
recipe = ["training/recipes/tiny.toml", "--base", work / "base", "--arm", "l2(strength=0.1)", "--out", work / "run"]
run("training", "run", *recipe)
assert json.loads((work / "run" / "2-others" / "memprobe.json").read_text())["arm"].startswith("l2(")
assert '"penalty"' in (work / "run" / "2-others" / "metrics.jsonl").read_text()
""",
    "instrument": _RUN
    + """
run("tests.tiny", work / "base")
from memprobe.factoids import make_factoid
from memprobe.checkpoints import resolve_all
from memprobe.models import load
from analyses.instruments.instruments import all_instruments
(one,) = all_instruments("plain", only=["rank fall"])
(found,) = resolve_all([str(work / "base")])
model = load(found, device="cpu")
facts = [make_factoid(f"The river {n} flows to", f"Lunn {n}", "file") for n in range(4)]
verdict = one.verdict(model, model, facts)
assert verdict.score.shape == (4, model.n_layers)
""",
}
"""By addition, a Python program that fails where it is not there; the folder for its files is argv[1]."""


def cost(name: str) -> str:
    """Makes an addition in a copy, uses it, and says which source files it touched.

    Raises:
        AssertionError: it does not work.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy, work = Path(folder) / "copy", Path(folder) / "work"
        work.mkdir()
        subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(copy)], check=True)
        for part in parts(name):
            target = copy / part.path
            text = (
                part.code if part.where == "a new file" else part.put_into(target.read_text(encoding="utf-8"))
            )
            target.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", USES[name], str(work)], cwd=copy, env=_environment(copy), check=False
        )
        assert done.returncode == 0, f"{name}: does not work"
        git = ["git", "-C", str(copy), "-c", "core.excludesFile="]
        subprocess.run([*git, "add", "-A", "memprobe", "training", "analyses"], check=True)
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
    for one in sys.argv[1:] or USES:
        print(cost(one), flush=True)
