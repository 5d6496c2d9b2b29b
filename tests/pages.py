"""Pages in headless Chromium, with what they put on the console."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """``MEMPROBE_CHROMIUM``, or the first Chromium on the path."""
    named = os.environ.get("MEMPROBE_CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


AUDIT = Path(__file__).with_name("audit.js").read_text(encoding="utf-8")
"""A function that says what is wrong with what a page shows."""


@contextmanager
def chromium() -> Iterator:
    """A browser that starts once and opens pages of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser, path: Path, *, hash: str = "", width: int = 1440, height: int = 900, **options
) -> Iterator:
    """The page at ``path``, drawn; on leaving, it must not have complained nor asked the network for anything."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None
    )
    try:
        page.goto(path.as_uri() + hash)
        page.wait_for_selector("[data-ready]", state="attached", timeout=60_000)
        yield page
        assert complaints == []
    finally:
        context.close()
