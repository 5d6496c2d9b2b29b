"""memprobe: where, depth by depth, a language model's memorised facts surface.

    facts = memprobe.load_factoids("known")
    probe = memprobe.probe(["smollm2-135m"], facts, out="probes/known")
    probe.records                                  # one row per (checkpoint, factoid, token, depth)
    memprobe.statistics.recall_by_depth(probe.records, k=10, token="first")
    memprobe.plots.recall_curves(...)

Names are imported when first used, so that ``import memprobe`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from memprobe import figures, plots, statistics
    from memprobe.callback import ProbeCallback
    from memprobe.capture import capture
    from memprobe.dashboard import write_report
    from memprobe.errors import MemprobeError
    from memprobe.factoids import Factoid, Template, make_factoid
    from memprobe.models import load, wrap
    from memprobe.probing import probe
    from memprobe.records import Probe, open_probe
    from memprobe.sources import load_factoids

_HOMES = {
    "Factoid": "factoids",
    "MemprobeError": "errors",
    "Probe": "records",
    "ProbeCallback": "callback",
    "Template": "factoids",
    "capture": "capture",
    "load": "models",
    "load_factoids": "sources",
    "make_factoid": "factoids",
    "open_probe": "records",
    "probe": "probing",
    "wrap": "models",
    "write_report": "dashboard",
}
_MODULES = ("figures", "plots", "statistics")

__all__ = [
    "Factoid",
    "MemprobeError",
    "Probe",
    "ProbeCallback",
    "Template",
    "capture",
    "figures",
    "load",
    "load_factoids",
    "make_factoid",
    "open_probe",
    "plots",
    "probe",
    "statistics",
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
