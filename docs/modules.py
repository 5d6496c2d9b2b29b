"""The map of ``memprobe``: its modules by what they are for, in the order in which data flows.

``python docs/modules.py`` writes ``docs/reference/modules.md``; what it says of each is how its docstring begins.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "modules.md"
GROUPS = {
    "What all stand on": "errors files parquet locks walking places sizes storage labels",
    "Facts, and how they are asked": "factoids sources templates chats subjects writable answers metrics known filter",
    "Training, as memprobe reads it": "arms recipes stages runs manifests evaluations lineage chains sequences",
    "Checkpoints on a disk": "checkpoints packaged hub_cache adapters merging quantised weights identity settings "
    "grafts",
    "Models": "load_options hf loading splitting models blocks parts modes causality soundness batching prefixes",
    "Lenses": "lenses lens_kinds lens_files lens_specs lens_set fitted fitting sweeps logits prompt_lens",
    "Capture": "planning capturing residuals attributions records",
    "Probe directories": "hands prober cluster engine probing probe_writer probe_joining probes run_file vouching "
    "starting_over sharing summary callback",
    "Interventions": "interventions noise partial patch_plan patching grafting patch_pairs patch_writer patches "
    "patch_tables",
    "Readings, statistics, comparisons": "sameness comparable members reading readings statistics compare "
    "retention results studies",
    "What is shown": "palette wording sentences plots figures dashboard cli",
}
"""By headline, modules and packages."""

_HEAD = """# Modules

`memprobe` by what its modules are for, in the order in which data flows: facts, checkpoints, models and lenses,
capture, probes, statistics, what is shown. `python docs/modules.py` makes this page of their docstrings. `training`,
which imports `memprobe` and is never imported by it, has [commands of its own](../how-to/train.md).
"""


def modules() -> dict[str, Path]:
    """By name, the file of each module, and of each package, in the root of ``memprobe``."""
    folder = ROOT / "memprobe"
    found = {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("__")}
    return found | {path.parent.name: path for path in folder.glob("*/__init__.py")}


def opening(path: Path) -> str:
    """The first paragraph of a module's docstring, as Markdown."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return markdown(text.split("\n\n")[0])


def markdown(text: str) -> str:
    """A docstring's text in one line of Markdown, fit for a table."""
    line = " ".join(text.split())
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", line).replace("``", "`").replace("|", "\\|")


def page() -> str:
    """The page as Markdown."""
    files = modules()
    parts = [_HEAD]
    for headline, names in GROUPS.items():
        rows = [
            f"| `{name}{'/' if files[name].name == '__init__.py' else ''}` | {opening(files[name])} |"
            for name in names.split()
        ]
        parts += [f"\n## {headline}\n", "| | |", "|---|---|", *rows]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
