"""Lens and position on the page: chosen like k and the token rule, and a room with all lenses."""

import pytest

from memprobe import dashboard
from memprobe.dashboard import writing
from memprobe.studies import open_study
from tests.pages import chromium, find_chromium, opened
from tests.test_compare_lenses import LENSES, made

__all__ = ["made"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None, reason="Chromium is not installed; MEMPROBE_CHROMIUM can name one"
    ),
]


def test_lens_and_position_are_chosen(made, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "K_VALUES", (1, 60))
    page_file = tmp_path / "page.html"
    text = dashboard.dashboard_text(open_study([made.path]), draws=200)
    page_file.write_text(text, encoding="utf-8")
    with chromium() as browser, opened(browser, page_file) as page:
        assert set(page.locator("#lens option").all_inner_texts()) == set(LENSES)
        assert page.locator("#position option").all_inner_texts() == ["answer", "subject"]
        assert page.locator("#sets").is_hidden(), "one set of facts, whatever the lens"
        page.locator('input[name=k][value="60"]').check(force=True)
        page.locator("input[name=checkpoint][value=a]").uncheck(force=True)
        before = page.locator("#headline").inner_text()
        page.select_option("#lens", "linear")
        page.select_option("#position", "subject")
        assert page.locator("#headline").inner_text() != before
        assert not page.locator("input[name=checkpoint][value=a]").is_checked(), "the choice stays"
        assert "set=" in page.url and "Its floor" in page.locator("#asked").inner_text()
        page.select_option("#position", "answer")
        page.locator("#tab-lenses").click()
        table = page.locator("#lenses-table").inner_text()
        assert all(lens in table for lens in LENSES) and "0.25, 0.50" in table
        page.wait_for_selector("#lenses .plot .js-plotly-plot, #lenses .js-plotly-plot, #lenses svg")
        names = page.evaluate("[...shownFigures].map(([, figure]) => figure.data.map((trace) => trace.name))")
        assert any(set(LENSES) <= set(found) for found in names)
