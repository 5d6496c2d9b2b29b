"""memprobe: where, depth by depth, a language model's memorised facts surface.

    facts = memprobe.load_factoids("known")
    probe = memprobe.probe(["smollm2-135m"], facts, out="probes/known")
    probe.records                                  # one row per (checkpoint, factoid, token, depth)
    memprobe.statistics.recall_by_depth(probe)
    memprobe.plots.recall_curves(...)

Names are imported when first used, so that ``import memprobe`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from memprobe import compare, dashboard, figures, plots, statistics, studies
    from memprobe.callback import ProbeCallback
    from memprobe.capturing import capture
    from memprobe.dashboard import write_report
    from memprobe.errors import MemprobeError
    from memprobe.factoids import Factoid, make_factoid
    from memprobe.models import load, wrap
    from memprobe.probes import Probe, open_probe
    from memprobe.probing import probe
    from memprobe.sources import load_factoids
    from memprobe.templates import Template

# A function never has the name of a module beside this file: importing that module would take its place.
_HOMES = {
    "Factoid": "factoids",
    "MemprobeError": "errors",
    "Probe": "probes",
    "ProbeCallback": "callback",
    "Template": "templates",
    "capture": "capturing",
    "load": "models",
    "load_factoids": "sources",
    "make_factoid": "factoids",
    "open_probe": "probes",
    "probe": "probing",
    "wrap": "models",
    "write_report": "dashboard",
}
_MODULES = ("compare", "dashboard", "figures", "plots", "statistics", "studies")

__all__ = [
    "Factoid",
    "MemprobeError",
    "Probe",
    "ProbeCallback",
    "Template",
    "capture",
    "compare",
    "dashboard",
    "figures",
    "load",
    "load_factoids",
    "make_factoid",
    "open_probe",
    "plots",
    "probe",
    "statistics",
    "studies",
    "wrap",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"memprobe.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"memprobe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'memprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
