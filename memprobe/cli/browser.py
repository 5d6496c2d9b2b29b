"""Opening a page."""

from __future__ import annotations

from pathlib import Path

from memprobe.cli.terminal import echo


def open_page(page: Path | str) -> None:
    """Opens a file, or an address, in the browser; where there is none, says so."""
    import webbrowser

    address = page if isinstance(page, str) else page.resolve().as_uri()
    if not webbrowser.open(address):
        echo(f"no browser found; open {address} yourself", err=True)
