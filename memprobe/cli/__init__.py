"""The command line: ``memprobe layers | lens | fit | patch | check | compare | figures | dashboard | …``.

One module per command; each adds its command to the application in :mod:`memprobe.cli.app` when it is imported here.
Heavy imports (torch, transformers, plotly) wait inside the commands, so that ``memprobe --help`` answers at once.
"""

from __future__ import annotations

from memprobe.cli import (
    app,
    check,
    compare,
    dashboard,
    demo,
    figures,
    filter,
    fit,
    import_results,
    layers,
    lens,
    open,
    patch,
    share,
    show,
    sources,
)

__all__ = [
    "app",
    "check",
    "compare",
    "dashboard",
    "demo",
    "figures",
    "filter",
    "fit",
    "import_results",
    "layers",
    "lens",
    "main",
    "open",
    "patch",
    "share",
    "show",
    "sources",
]


def main() -> None:
    """The command ``memprobe``."""
    app.run(app.app, "memprobe")
