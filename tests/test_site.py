"""The built site, opened from disk in a browser: no request leaves it, and nothing that it names is missing."""

import pytest

from tests.pages import chromium


@pytest.mark.browser
def test_every_page_opens_from_disk_and_asks_for_nothing_elsewhere(site):
    pages = sorted(set(site.rglob("*.html")) - {site / "404.html"})  # which a server alone shows
    assert {"gallery.html", "demo.html", "study.html"} <= {page.name for page in pages}
    elsewhere, missing, empty = [], [], []
    with chromium() as browser:
        tab = browser.new_page()
        tab.on("request", lambda asked: _elsewhere(asked.url) and elsewhere.append((tab.url, asked.url)))
        tab.on("requestfailed", lambda asked: _left(asked) or missing.append((tab.url, asked.url)))
        for page in pages:
            tab.goto(page.as_uri(), wait_until="load")
            if not tab.evaluate("document.body.innerText.trim().length"):
                empty.append(page.name)
            undrawn = tab.evaluate(
                "[...document.images].filter(one => !one.naturalWidth).map(one => one.src)"
            )
            missing += [(page.name, image) for image in undrawn]
    assert not elsewhere
    assert not missing
    assert not empty


def _elsewhere(address: str) -> bool:
    return not address.startswith(("file:", "data:", "blob:", "about:"))


def _left(asked) -> bool:
    """Whether a request ended because the tab went on to the next page."""
    return "ERR_ABORTED" in (asked.failure or "")
