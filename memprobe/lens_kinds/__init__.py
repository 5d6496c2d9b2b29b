"""The kinds of fitted lenses: affine maps for each depth, before the final norm and the unembedding. One file each.

A module of this package is a kind of that name. Its ``FIT`` makes a :class:`memprobe.fitting.Fitter` of a model and a
corpus, and the first line of its docstring is what the help says of it. It is found by being there, and only imported
when it fits: kinds are named without torch.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import Any

FITTED_KINDS: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def summaries() -> dict[str, str]:
    """By kind, what it is in one line."""
    here = Path(__file__).parent
    texts = {}
    for kind in FITTED_KINDS:
        text = ast.get_docstring(ast.parse((here / f"{kind}.py").read_text(encoding="utf-8"))) or kind
        texts[kind] = text.partition("\n")[0].removeprefix(f"``{kind}``: ")
    return texts


def fitter(kind: str) -> Any:
    """What makes a fit of a kind: ``fitter(kind)(lens_model, corpus)``."""
    return importlib.import_module(f"{__name__}.{kind}").FIT
