"""The report: what it embeds, and what a reader sees of it in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib

import polars as pl
import pytest

from memprobe import dashboard, page, plots, statistics
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.records import Probe
from tests.pages import chromium, find_chromium, opened
from tests.probes import synthetic_factoids, write_probe

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=2><!-- {{title}}"

in_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None, reason="Chromium is not installed; MEMPROBE_CHROMIUM can name one"
    ),
]


def hostile_factoids(n):
    facts = synthetic_factoids(n)
    facts[1] = make_factoid(f"Who said {HOSTILE}", HOSTILE, HOSTILE, relation=HOSTILE, aliases=[HOSTILE])
    return facts


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    probe = write_probe(
        tmp_path_factory.mktemp("one") / "probe",
        {f"tuned {HOSTILE}": 5},
        n_layers=8,
        factoids=hostile_factoids(30),
    )
    dashboard.write_report(probe, probe.path / "report.html")
    return probe


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    labels = {"base": 6, "none-1": 3, "none-2": 5, "remix-1": 2, "remix-2": 3, "replay": 4}
    probe = write_probe(tmp_path_factory.mktemp("six") / "probe", labels, n=45, n_layers=8)
    dashboard.write_report(probe, probe.path / "report.html")
    return probe


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


def embedded(probe, name="report-data"):
    text = (probe.path / "report.html").read_text(encoding="utf-8")
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def block(probe, name):
    text = (probe.path / "report.html").read_text(encoding="utf-8")
    return zlib.decompress(base64.b64decode(re.search(rf'id="block-{name}">(.*?)</script>', text)[1]))


# What is embedded


def test_numbers_on_top_are_those_of_statistics(six):
    headline = embedded(six)["headline"]
    for rule, k in (("first", 10), ("all", 1)):
        placement = statistics.placement(six.records, k=k, token=rule, draws=10)
        recall = statistics.recall_by_depth(six.records, k=k, token=rule).filter(pl.col("depth") == 8)
        chance = statistics.shuffled_recall(six.controls, k=k, token=rule).filter(pl.col("depth") == 8)
        for row in placement.iter_rows(named=True):
            label = row["checkpoint"]
            shown = headline[rule][str(k)][label]
            for name in (
                "lof_mean",
                "lof_sd",
                "share_never",
                "settled_mean",
                "depths_per_factoid",
                "effective_layers",
            ):
                assert shown[name] == pytest.approx(row[name]), name
            at_end = recall.filter(pl.col("checkpoint") == label)["recall"].item()
            assert shown["recall"]["value"] == pytest.approx(at_end)
            assert shown["shuffled"]["recall"]["value"] == pytest.approx(
                chance.filter(pl.col("checkpoint") == label)["recall"].item()
            )
            matches = six.outcomes.filter(pl.col("checkpoint") == label)["exact_match"].mean()
            assert shown["exact_match"]["value"] == pytest.approx(matches)


def test_the_lof_figure_shares_are_those_of_occurrence(six):
    figure = json.loads(block(six, "figures"))["lof"]["first"]["10"]
    lof = statistics.occurrence(six.records, k=10, token="first").filter(pl.col("checkpoint") == "base")[
        "lof"
    ]
    line, never = (trace for trace in figure["data"] if trace["meta"]["checkpoint"] == "base")
    assert line["y"] == pytest.approx([(lof == depth).sum() / len(lof) for depth in line["x"]])
    assert never["y"] == pytest.approx([lof.is_null().mean()])


def test_every_script_that_runs_is_named_by_the_policy_and_nothing_else_may(one):
    text = (one.path / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in scripts}
    assert set(re.findall(r"sha256-([A-Za-z0-9+/=]+)", policy)) == hashes
    assert len(scripts) == 5
    assert "default-src &#x27;none&#x27;" in policy
    assert "unsafe-eval" not in policy


def test_hostile_text_cannot_leave_its_script_element(one):
    text = (one.path / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "window.pwned" in embedded(one)["checkpoints"][0]["label"]
    assert page.embedded_json("</script><!--") == '"\\u003c/script>\\u003c!--"'
    with pytest.raises(ValueError, match="JSON"):
        page.embedded_json(float("nan"))


def test_what_does_not_fit_the_explorer_is_left_out_of_it_and_said(six, tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "MAX_CELLS", 6 * 9 * 45)
    dashboard.write_report(six, tmp_path / "report.html")
    small = Probe(tmp_path, six.run)
    data = embedded(small)
    assert {part["token"] for part in data["records"]} == {0}
    assert "only the first answer token is shown" in data["left_out"]
    monkeypatch.setattr(dashboard, "MAX_CELLS", 6 * 9 * 10)
    dashboard.write_report(six, tmp_path / "report.html")
    data = embedded(small)
    assert "first 10 of 45 factoids" in data["left_out"]
    assert {part["rows"] for part in data["records"]} == {10}
    assert embedded(six)["left_out"] == ""


def test_a_probe_without_records_is_refused(tmp_path):
    probe = write_probe(tmp_path / "probe", {"a": 3}, n=4)
    probe.records.head(0).write_parquet(probe.path / "records.parquet")
    empty = Probe(probe.path, probe.run)
    with pytest.raises(MemprobeError, match="no records"):
        dashboard.write_report(empty, tmp_path / "report.html")


# What a reader sees


class TestBrowser:
    pytestmark = in_browser

    def test_one_checkpoint_opens_and_hostile_text_stays_text(self, browser, one):
        with opened(browser, one.path / "report.html", hash=f"#factoid={one.factoids['id'][1]}") as shown:
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.evaluate("window.pwned") is None
            assert HOSTILE in shown.inner_text("#detail h3")
            assert HOSTILE in shown.inner_text("#headline tbody th")
            assert shown.locator("img").count() == 0
            assert shown.locator(".js-plotly-plot").count() == 4

    def test_every_control_changes_what_is_shown(self, browser, six):
        with opened(browser, six.path / "report.html") as shown:
            assert shown.locator("#headline tbody tr").count() == 6
            row = shown.locator("#headline tbody tr").first
            before = row.inner_text()
            shown.locator("#k label", has_text="1").first.click()
            assert "Recall@1" in shown.inner_text("#headline thead")
            shown.locator("#rule label", has_text="all").click()
            assert row.inner_text() != before
            shown.get_by_text("shuffled answers", exact=True).click()
            assert "shuffled" not in shown.inner_text("#headline")
            count = "document.querySelector('[data-figure=recall] .canvas').data.length"
            shown.wait_for_function(f"{count} === 12")
            shown.locator("#checkpoints label").nth(2).click()
            assert shown.locator("#headline tbody tr").count() == 5
            shown.wait_for_function(f"{count} === 10")
            shown.locator("#theme").click()
            shown.locator("#theme").click()
            assert shown.get_attribute("html", "data-theme") == "dark"
            query = shown.evaluate("location.hash")
            assert all(part in query for part in ("k=1", "rule=all", "control=0", "theme=dark"))

    def test_the_recall_that_is_drawn_is_that_of_statistics(self, browser, six):
        with opened(browser, six.path / "report.html", hash="#k=5&rule=last&ckpt=remix-1") as shown:
            drawn = shown.evaluate(
                "document.querySelector('[data-figure=recall] .canvas').data.find(t => t.meta.role === 'line').y"
            )
            rows = statistics.recall_by_depth(six.records, k=5, token="last")
            assert drawn == pytest.approx(rows.filter(pl.col("checkpoint") == "remix-1")["recall"].to_list())

    def test_a_click_on_a_factoid_shows_the_numbers_of_its_records(self, browser, six):
        chosen = six.factoids.row(5, named=True)
        with opened(browser, six.path / "report.html") as shown:
            shown.locator("#explorer").scroll_into_view_if_needed()
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            shown.locator(f"tr[data-factoid='{chosen['id']}']").click()
            shown.wait_for_function(
                f"document.querySelector('#detail h3').textContent.includes({chosen['prompt']!r})"
            )
            for token in (0, 1, 2):
                shown.locator("#token label").nth(token).click()
                shown.wait_for_function(f"document.querySelectorAll('#token input')[{token}].checked")
                drawn = shown.evaluate(
                    "document.querySelector('#detail .canvas').data"
                    ".filter(t => t.meta.checkpoint === 'none-2').map(t => [t.meta.column, t.customdata, t.y])"
                )
                rows = six.records.filter(
                    (pl.col("checkpoint") == "none-2")
                    & (pl.col("factoid") == chosen["id"])
                    & (pl.col("token") == token)
                ).sort("depth")
                (_, ranks, _), (_, _, log_prob) = drawn
                assert ranks == rows["rank"].to_list()
                assert log_prob == pytest.approx(rows["log_prob"].to_list(), rel=1e-3)
                read = shown.locator(".tokens tbody tr td:nth-child(4)").all_text_contents()
                assert read == [plots.visible(six.tokens[index]) for index in rows["top1"]]
            lof = statistics.occurrence(six.records, k=10, token="first").filter(
                (pl.col("checkpoint") == "none-2") & (pl.col("factoid") == chosen["id"])
            )
            cells = shown.locator(".outcomes tbody tr").nth(2).locator("td").all_text_contents()
            expected = [str(lof[name].item() or "never") for name in ("lof", "settled")]
            assert cells[1:3] == expected

    def test_search_sort_pages_and_the_keyboard(self, browser, six):
        with opened(browser, six.path / "report.html") as shown:
            shown.locator("#explorer").scroll_into_view_if_needed()
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.inner_text("#page") == "1–20"
            shown.click("#next")
            assert shown.inner_text("#page") == "21–40"
            shown.keyboard.press("/")
            shown.keyboard.type("currency ANSWER3")
            found = six.factoids.filter(
                pl.col("prompt").str.contains("currency") & pl.col("answer").eq("answer3")
            )
            assert shown.inner_text("#found") == f"{len(found)} of 45"
            shown.fill("#search", "")
            shown.select_option("#relation", "author")
            assert shown.inner_text("#found") == "15 of 45"
            shown.click("[data-sort='lof:base']")
            lof = statistics.occurrence(six.records, k=10, token="first").filter(
                pl.col("checkpoint") == "base"
            )
            ids = six.factoids.filter(pl.col("relation") == "author")["id"]
            expected = lof.filter(pl.col("factoid").is_in(ids.implode()))["lof"].sort(nulls_last=True)
            marks = shown.locator("#factoids tbody td:nth-child(3)").all_text_contents()
            assert [mark.lstrip("✓") for mark in marks] == [str(value or "–") for value in expected]
            assert shown.get_attribute("#factoids th.mark", "aria-sort") == "ascending"
            shown.locator("#factoids tbody button").first.focus()
            shown.keyboard.press("ArrowDown")
            shown.keyboard.press("Enter")
            second = shown.locator("#factoids tbody tr").nth(1).get_attribute("data-factoid")
            assert f"factoid={second}" in shown.evaluate("location.hash")

    def test_a_deep_link_restores_the_view(self, browser, six):
        chosen = six.factoids.row(7, named=True)
        link = (
            "#ckpt=base&ckpt=replay&k=50&rule=last&control=0&search=place&sort=lof%3Abase%3Adown&theme=dark"
        )
        link += f"&factoid={chosen['id']}"
        with opened(browser, six.path / "report.html", hash=link) as shown:
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.locator("#headline tbody tr").count() == 2
            assert shown.is_checked("#k input[value='50']")
            assert shown.is_checked("#rule input[value='last']")
            assert not shown.is_checked("#control")
            assert shown.input_value("#search") == "place"
            assert chosen["prompt"] in shown.inner_text("#detail h3")
            assert shown.get_attribute("html", "data-theme") == "dark"
            state = shown.evaluate("state")
            shown.reload()
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.evaluate("state") == state

    def test_a_plot_downloads_its_numbers_and_its_picture(self, browser, six):
        with opened(browser, six.path / "report.html", hash="#ckpt=base", accept_downloads=True) as shown:
            with shown.expect_download() as csv:
                shown.locator("[data-figure=recall] .tools button", has_text="CSV").click()
            table = pl.read_csv(csv.value.path())
            rows = statistics.recall_by_depth(six.records, k=10, token="first").filter(
                pl.col("checkpoint") == "base"
            )
            line = table.filter(pl.col("series") == "line")
            assert line["y"].to_list() == pytest.approx(rows["recall"].to_list())
            assert line["low"].to_list() == pytest.approx(rows["low"].to_list())
            with shown.expect_download() as image:
                shown.locator("[data-figure=lof] .tools button", has_text="SVG").click()
            assert "<svg" in image.value.path().read_text(encoding="utf-8")

    @pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (390, "dark")])
    def test_it_fits_a_laptop_and_a_phone(self, browser, six, width, theme):
        with opened(browser, six.path / "report.html", width=width, color_scheme=theme) as shown:
            shown.locator("#explorer").scroll_into_view_if_needed()
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.get_attribute("html", "data-theme") == theme

    def test_a_figure_has_a_page_of_its_own(self, browser, tmp_path):
        figure = plots.lens_heatmap(["The", HOSTILE], [["a", HOSTILE]] * 3, [[0.1, 0.9]] * 3)
        dashboard.write_figure(figure, tmp_path / "lens.html", title=HOSTILE)
        with opened(browser, tmp_path / "lens.html") as shown:
            assert shown.inner_text("h1") == HOSTILE
            assert shown.evaluate("window.pwned") is None
            assert shown.evaluate("document.querySelector('.canvas').data[0].z[2][1]") == 0.9
