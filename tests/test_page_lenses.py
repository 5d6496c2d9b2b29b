"""Lens and position on the page: chosen like k and the token rule, and a room with all lenses."""

import pytest

from memprobe import dashboard
from memprobe.compare import compare
from memprobe.dashboard import writing
from memprobe.readings import Readings
from memprobe.statistics.vocabulary import label
from memprobe.studies import open_study
from tests.pages import chromium, opened
from tests.test_compare_lenses import LENSES, made

__all__ = ["made"]
pytestmark = pytest.mark.browser
EACH_ITS_OWN = property(lambda readings: readings.ids)  # so few answers would carry no interval


@pytest.fixture(scope="module")
def page_file(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "K_VALUES", (1, 60, 200))
        patch.setattr(Readings, "answers", EACH_ITS_OWN)
        path.write_text(dashboard.dashboard_text(open_study([made.path]), draws=200), encoding="utf-8")
    return path


def test_lens_and_position_are_chosen(page_file):
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
        page.locator("#tab-positions").click()
        page.wait_for_selector("#positions .js-plotly-plot")
        said = page.locator("#positions-table").inner_text()
        assert "Recall@60 there" in said and "subject" in said
        page.locator("#tab-written").click()
        page.wait_for_selector("#written .js-plotly-plot")
        said = page.locator("#written-table").inner_text()
        assert "attention" in said and "depth of the largest" in said
        assert page.locator("#k").is_hidden(), "no top k is involved"


def test_what_is_also_drawn_is_offered_where_it_changes_something(page_file):
    """Each box changes the figures of the room, or is not there."""
    roles = """() => [...shownFigures].filter(([holder]) => !holder.closest("[hidden]"))
        .flatMap(([, figure]) => figure.data.map((trace) => trace.meta?.role))"""
    with chromium() as browser, opened(browser, page_file) as page:
        for room in ("overview", "curves", "depths", "lenses", "positions", "written"):
            page.locator(f"#tab-{room}").click()
            page.wait_for_selector(f"#room-{room} .js-plotly-plot")
            for box, role in (("control", "control"), ("bands", "band")):
                drawn = []
                for wanted in (True, False):
                    if page.locator(f"#{box}").is_visible():
                        page.locator(f"#{box}").set_checked(wanted)
                    page.evaluate("render(['bands', 'control'])")
                    drawn.append(role in page.evaluate(roles))
                assert drawn == [page.locator(f"#{box}").is_visible(), False], (room, box)


def test_floors_are_drawn_and_claims_name_the_other_lenses(made, page_file, monkeypatch):
    """Of the fitted lens at the k at which its floor was measured, and of no other; lenses as ``compare`` has them."""
    monkeypatch.setattr(Readings, "answers", EACH_ITS_OWN)
    shapes = """[...shownFigures].filter(([holder]) => holder.isConnected)
        .flatMap(([holder, figure]) => (figure.layout.shapes ?? [])
        .filter((shape) => shape.type === "rect").map((shape) => [holder.dataset.figure, shape.x0, shape.x1]))"""
    with chromium() as browser, opened(browser, page_file) as page:
        page.locator('input[name=k][value="60"]').check(force=True)
        for lens, wanted in (("linear", [["difference-lof_restricted", -0.25, 0.25]]), ("logit", [])):
            page.select_option("#lens", lens)
            page.locator("#tab-differences").click()
            page.wait_for_selector("#differences .js-plotly-plot")
            page.wait_for_function(
                "[...shownFigures.keys()].filter((holder) => holder.isConnected).length > 2"
            )
            assert [shape for shape in page.evaluate(shapes) if shape[0].startswith("difference")] == wanted
        page.select_option("#lens", "linear")
        page.locator("#tab-curves").click()
        page.wait_for_function(
            "[...shownFigures.values()].some((one) => one.data.some((trace) => trace.name === 'the lens’s floor'))"
        )
        page.locator("#tab-depths").click()
        page.wait_for_function(
            "[...shownFigures.values()].some((one) => one.layout.shapes?.some((s) => s.x0 === 1))"
        )
        page.locator('input[name=k][value="200"]').check(force=True)
        page.locator("#tab-differences").click()
        claims = compare([made], k=200, draws=200).tables["claims"]
        held = [row["statistic"] for row in claims.iter_rows(named=True) if row["also_in"]]
        rows = page.locator("#also_in-table tbody tr").all_inner_texts()
        said = [row.split("\t")[2] for row in rows if row.split("\t")[-1] == "linear"]
        assert held and said == [label(name) for name in held]
        assert "by lens logit hold" in page.locator("#also-in-title").inner_text()
