"""The page as a reader meets it: the answer and a chart on the first screen, tooltips, phones, paper."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import polars as pl
import pytest

from memprobe import dashboard, statistics
from memprobe.compare import compare
from memprobe.dashboard import writing
from memprobe.files import csv_text
from memprobe.probes import open_probe
from memprobe.statistics.overview import STATE_NAMES
from memprobe.studies import open_study
from tests.benchmarks.report_load import write_large_probe
from tests.once import once
from tests.pages import AUDIT, chromium, opened
from tests.probes import write_probe
from tests.trained import write_run

pytestmark = pytest.mark.browser
DRAWS = 200


@pytest.fixture(scope="module", autouse=True)
def fewer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "K_VALUES", (1, 10))
        patch.setattr(writing, "DRAWS", DRAWS)
        yield


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


def written(study, path):
    text = dashboard.dashboard_text(study, draws=DRAWS)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    top = tmp_path_factory.mktemp("one")
    write_probe(top / "probe", {"SmolLM2": 7.0}, n=40, never=0.2, summary=False)
    return written(open_study([top]), top / "page.html")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A base model and two stages, in both readouts: the first learns and surfaces earlier, the second forgets."""
    manifests = {
        f"s{stage}": {"arm": "none", "seed": 0, "stage": stage, "stage_name": name}
        for stage, name in ((1, "kvr"), (2, "lama"))
    }
    never, depths = {"base": 0.95, "s1": 0.0, "s2": 0.6}, {"base": 8.0, "s1": 4.0, "s2": 6.0}

    def make(top):
        told = {"n": 60, "never": never, "manifests": manifests, "summary": False}
        for readout in ("own", "base"):
            write_probe(top / readout, depths, readout=readout, **told)
        written(open_study([top]), top / "page.html")

    return once(tmp_path_factory, "page-stages", make) / "page.html"


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """Twenty checkpoints of one training run on 300 facts."""

    def make(top):
        write_large_probe(top / "probe", 20, 300, 13, answer_tokens=1, steps=True)
        written(open_study([top]), top / "page.html")

    return once(tmp_path_factory, "page-twenty", make) / "page.html"


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five checkpoints, two arms of two stages among them."""

    def make(top):
        write_large_probe(top / "probe", 5, 40, 13)
        written(open_study([top]), top / "page.html")

    return once(tmp_path_factory, "page-five", make) / "page.html"


PAGES = ("one", "stages", "five", "twenty")
every_page = pytest.mark.parametrize("name", PAGES)


BEGINS = {
    "one": "SmolLM2 recalls",
    "stages": "s2 against s1",
    "five": "checkpoint 4 against checkpoint 3",
    "twenty": "20 checkpoints",
}


@every_page
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_first_screen_answers_and_draws(browser, request, name, width, height):
    path = request.getfixturevalue(name)
    with opened(browser, path, width=width, height=height, color_scheme="light") as shown:
        said = shown.inner_text("#answer")
        assert "shuffled answers" in said and "the top 10" in said
        assert " recalls " in said or "exact match" in said
        # A phone folds what does not fit behind a button.
        assert BEGINS[name] in (said if width > 1000 else shown.text_content("#answer"))
        answer = shown.locator("#answer").bounding_box()
        assert answer["y"] + answer["height"] < height
        chart = shown.locator("#room-overview .js-plotly-plot >> visible=true").first.bounding_box()
        assert chart["y"] < height, "its first chart begins on the first screen"
        if width > 1000:
            assert chart["y"] + chart["height"] <= height, "and ends there"
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.get_attribute("html", "data-theme") == "light"
        shown.emulate_media(color_scheme="dark")
        shown.wait_for_selector("html[data-theme=dark]")
        dark = shown.locator("#room-overview .js-plotly-plot >> visible=true").first.bounding_box()
        assert dark == pytest.approx(chart)


def test_the_answer_is_made_from_the_numbers_below_it(browser, one, stages):
    (entry,) = embedded_sets(one)
    row = entry["headline"]["first"]["10"]["SmolLM2"]
    (said,) = entry["answer"]["first"]["10"]
    assert f"SmolLM2 recalls {row['exact_match']['value']:.0%} of 40 facts (exact match)." in said
    assert f"at depth {row['lof_median']:.0f} of 8; {row['share_never']:.0%} never do" in said
    found = compare([one.parent / "probe"], draws=DRAWS)
    placed = found.tables["placement"].row(0, named=True)
    for end in ("", "_low", "_high"):
        assert row[f"net_lof{end}"] == pytest.approx(placed[f"net_lof_restricted_mean{end}"])
    begins = "On average"
    assert said.partition(begins)[1:] == found.verdict()[0].partition(begins)[1:], "as the terminal says it"
    staged = embedded_sets(stages)[0]["answer"]["first"]["10"]
    assert [line.partition(":")[0] for line in staged[1:]] == ["s1 against base", "s2 against s1"]
    assert "depths earlier, also in the base model's readout" in staged[1]
    with opened(browser, one) as shown:
        cells = shown.locator("#headline tr", has_text="SmolLM2").first.inner_text()
        apart = f"{abs(row['net_lof']):.1f}"
        assert f"{'−' if row['net_lof'] < 0 else '+'}{apart}" in cells
        assert shown.inner_text("#answer p") == said
        shown.click("#k input[value='1']")
        assert shown.inner_text("#answer p") == entry["answer"]["first"]["1"][0] != said


def embedded_sets(path):
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])["sets"]


FIGURES = """() => [...document.querySelectorAll('.room:not([hidden]) .js-plotly-plot')]
  .filter((canvas) => canvas.offsetParent && canvas.data.length)
  .map((canvas) => canvas.closest('figure').dataset.figure)"""
DRAWN = """() => [...document.querySelectorAll('.room:not([hidden]) figure[data-figure]')]
  .filter((holder) => !holder.closest('[hidden]')).every((holder) => holder.querySelector('.js-plotly-plot'))"""
TIP = """(name) => {
  const canvas = document.querySelector(`.room:not([hidden]) [data-figure="${name}"] .js-plotly-plot`);
  const seen = [...canvas.querySelectorAll('.hoverlayer .hovertext, .hoverlayer .legend')].filter((tip) => {
    const box = tip.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && getComputedStyle(tip).display !== 'none' && /\\d/.test(tip.textContent);
  });
  return seen.map((tip) => tip.textContent).join(' ');
}"""


@pytest.mark.parametrize("name", ["one", "stages", "twenty"])
def test_every_chart_shows_values_under_the_pointer(browser, request, name):
    with opened(browser, request.getfixturevalue(name)) as shown:
        checked = set()
        for tab in shown.locator("#rooms button").all():
            tab.click()
            shown.wait_for_function(DRAWN)
            for figure in shown.evaluate(FIGURES):
                holder = shown.locator(f".room:not([hidden]) [data-figure='{figure}']")
                holder.scroll_into_view_if_needed()
                assert points_somewhere(shown, holder, figure), f"{tab.inner_text()}: {figure}"
                checked.add(figure)
        wanted = {"recall", "lof", "lof-survival", "settled", "frequency", "recall-heatmap"}
        wanted |= {
            "stages": {"stage-exact", "difference-exact", "fate-0"},
            "twenty": {"step-exact", "fates-0"},
        }.get(name, set())
        assert wanted <= checked


def points_somewhere(shown, holder, figure) -> str:
    """What a tooltip says at one of some points of a figure."""
    links = holder.locator(".sankey-link")
    boxes = [links.first.bounding_box()] if links.count() else []
    boxes += [one.bounding_box() for one in holder.locator(".nsewdrag").all()[:1]]
    marks = holder.locator(".scatterlayer .point, .barlayer .point")
    n = marks.count()
    boxes += [marks.nth(at).bounding_box() for at in sorted({n - 1, n // 2}) if 0 <= at < n]
    for box in boxes:
        for across, down in ((0.5, 0.5), (0.9, 0.1), (0.97, 0.6), (0.1, 0.9)):
            shown.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=2)
            shown.wait_for_timeout(60)
            if said := shown.evaluate(TIP, figure):
                return said
    return ""


@every_page
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_every_room_can_be_read(browser, request, name, width, scheme):
    """Nothing cut, nothing faint, no look twice, a name for everything, whatever the page, its width and its theme."""
    path = request.getfixturevalue(name)
    with opened(browser, path, width=width, height=844, color_scheme=scheme) as shown:
        for tab in shown.locator("#rooms button").all():
            tab.click()
            shown.wait_for_function(DRAWN)
            if tab.get_attribute("id") == "tab-factoids":
                shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.evaluate("document.documentElement.scrollWidth") <= width, tab.inner_text()
            assert shown.evaluate(AUDIT) == [], tab.inner_text()


@pytest.mark.parametrize("width", [1440, 390])
def test_curves_of_training_can_be_read(browser, tmp_path, width):
    run = write_run(tmp_path / "run", [[1.0], [0.25, 1.0]])
    lines = [
        {"step": step, "loss": 0.9 / step, "data_loss": 0.5 / step, "penalty": 0.4 / step} for step in (1, 2)
    ]
    for stage in run.glob("[12]-*"):
        (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    path = written(open_study([tmp_path]), tmp_path / "page.html")
    for measure in ("loss", "penalty"):
        with opened(
            browser, path, width=width, height=844, hash=f"#room=training&measure={measure}"
        ) as shown:
            shown.wait_for_function(DRAWN)
            assert shown.locator("#training .js-plotly-plot").count() == 2
            assert shown.evaluate(AUDIT) == [], measure


@every_page
def test_a_phone_shows_the_prompt_and_the_last_depth(browser, request, name):
    with opened(browser, request.getfixturevalue(name), width=390, height=844) as shown:
        shown.locator("#tab-factoids").click()
        shown.wait_for_selector("#explorer[data-ready]", state="attached")
        prompt = shown.locator("#factoids tbody tr").nth(1).locator(".prompt button").bounding_box()
        assert prompt["width"] > 250, "the prompt has a line of its own"
        shown.locator("#tab-depths").click()
        shown.wait_for_function(DRAWN)
        for figure in ("lof", "settled"):
            ticks = shown.locator(f"#room-depths [data-figure={figure}] .xtick text").all_text_contents()
            last = shown.evaluate("Math.max(...set.checkpoints.map((entry) => entry.n_layers))")
            # Beside the last cell of a heatmap "never" has no room for both.
            assert ticks[-2:] == [str(last), "never"] or (name == "twenty" and ticks[-1] == "never"), figure


def test_controls_fold_on_a_phone_and_say_what_is_chosen(browser, five):
    with opened(browser, five, width=390, height=844) as shown:
        assert shown.inner_text("#folded-said") == "5 checkpoints · top 10 · first token · with chance"
        assert not shown.locator("#k").is_visible()
        shown.click("#folded-said")
        shown.click("#k input[value='1']")
        assert "top 1 ·" in shown.inner_text("#folded-said")
        assert "the top 1;" in shown.inner_text("#answer")
    with opened(browser, five) as shown:
        assert shown.locator("#k").is_visible() and not shown.locator("#folded-said").is_visible()


def test_keys_alone_lead_through_rooms_and_facts(browser, five):
    with opened(browser, five) as shown:
        shown.locator("#tab-overview").focus()
        shown.keyboard.press("ArrowLeft")
        assert shown.evaluate("document.activeElement.id") == "tab-run"
        shown.keyboard.press("/")
        assert shown.evaluate("document.activeElement.id") == "search"
        shown.wait_for_selector("#explorer[data-ready]", state="attached")
        shown.locator("#factoids tbody button").first.focus()
        first = shown.inner_text("#detail h3")
        shown.keyboard.press("ArrowDown")
        shown.wait_for_function(
            "(before) => document.querySelector('#detail h3').innerText !== before", arg=first
        )
        box = shown.locator("#detail").bounding_box()
        assert box["y"] < 900, "a fact opens beside the list"


def test_prompts_are_read_beside_twenty_checkpoints(browser, twenty):
    with opened(browser, twenty, hash="#room=factoids") as shown:
        shown.wait_for_selector("#explorer[data-ready]", state="attached")
        assert shown.locator("#factoids tbody td.prompt").first.bounding_box()["width"] > 150
        chart = shown.locator("#detail .js-plotly-plot").bounding_box()
        table = shown.locator("#detail .outcomes").bounding_box()
        assert chart["y"] < table["y"], "of many checkpoints, the chart comes first"
        assert shown.locator("#detail .x2tick text").last.text_content() == "12"


@every_page
def test_paper_keeps_k_the_rule_and_every_column(browser, request, name):
    with opened(browser, request.getfixturevalue(name), width=794, height=1123) as shown:  # A4 at 96 dpi
        shown.click("#k input[value='1']")
        shown.click("#rule input[value='all']")
        shown.emulate_media(media="print")
        printed = shown.inner_text("#printed")
        assert "all of its tokens are among the top 1 tokens" in printed and "facts" in printed
        assert shown.locator("#answer").is_visible() and not shown.locator(".bar").is_visible()
        last = shown.locator("#headline thead th").last.bounding_box()
        assert last["x"] + last["width"] <= 794
        assert shown.locator("#headline thead th").count() == 11


def test_a_note_on_the_base_readout_stands_only_where_it_is_shown(browser, stages, twenty):
    with opened(browser, twenty, hash="#room=differences") as shown:
        shown.wait_for_selector("#room-differences .js-plotly-plot")
        assert not shown.locator("#fixed-note").is_visible()
    with opened(browser, stages, hash="#room=differences") as shown:
        shown.wait_for_selector("#room-differences .js-plotly-plot")
        assert shown.locator("#fixed-note").is_visible()
        marks = shown.evaluate(
            """() => document.querySelector('[data-figure="difference-lof_restricted"] .canvas').data
            .filter((t) => t.meta.checkpoint === 's1').map((t) => [t.meta.role, t.marker.symbol])"""
        )
        assert len(marks) == 2 and not any(symbol.endswith("-open") for _, symbol in marks), "both agree"


def test_a_chart_of_nothing_has_no_axes(browser, tmp_path):
    write_probe(tmp_path / "probe", {"a": 3, "b": 4}, n=12, n_layers=6, never=1.0)
    written(open_study([tmp_path]), tmp_path / "page.html")
    with opened(browser, tmp_path / "page.html", hash="#room=curves") as shown:
        frequency = shown.locator("#room-curves [data-figure=frequency]")
        assert frequency.locator(".nothing").inner_text().startswith("No answer is among the top k")
        assert frequency.locator(".xtick, .ytick").count() == 0
        assert shown.locator("#room-curves [data-figure=recall] .ytick").count() > 0


def test_charts_have_names_for_those_who_hear_them(browser, twenty):
    with opened(browser, twenty) as shown:
        canvas = shown.locator("[data-figure=recall] .canvas >> visible=true").first
        assert canvas.get_attribute("role") == "img"
        label = canvas.get_attribute("aria-label")
        assert label.startswith("Recall by depth. recall by depth. run/step-0") and "12 more" in label


def test_steps_are_an_axis(browser, twenty):
    probe = open_probe(twenty.parent / "probe")
    recall = statistics.recall_by_depth(probe.records, k=10, token="first").filter(pl.col("depth") == 12)
    with opened(browser, twenty) as shown:
        drawn = shown.evaluate(
            """() => { const { x, y } = document.querySelector('[data-figure="step-recall_full"] .canvas').data
            .find((t) => t.meta.role === 'line'); return [x, y]; }"""
        )
        assert drawn[0] == [100 * i for i in range(20)]
        assert drawn[1] == pytest.approx(recall["recall"].to_list(), rel=1e-6)
        lines = shown.evaluate(
            """() => document.querySelector('[data-figure="recall"] .canvas').data
            .filter((t) => t.meta.role === 'line').map((t) => t.line.color)"""
        )
        assert len(set(lines)) == 20, "each step has its colour"
        assert not shown.evaluate(
            "document.querySelector('[data-figure=\"recall\"] .canvas').data.some((t) => t.meta.role === 'band')"
        ), "bands on demand"
        shown.locator("#tab-fates").click()
        shown.wait_for_selector("[data-figure='fates-0'] .js-plotly-plot")
        assert shown.locator("#fates figure").count() == 1, "one plot over time"
        assert [text.strip() for text in shown.locator("#fates .key li:visible").all_inner_texts()] == [
            *STATE_NAMES.values()
        ]
        shares = shown.evaluate(
            "document.querySelector('[data-figure=\"fates-0\"] .canvas').data.map((t) => t.y)"
        )
        assert all(math.isclose(sum(at), 1, abs_tol=1e-6) for at in zip(*shares, strict=True))


def drawn_names(study):
    """What the paper's figure calls the arms of a study."""
    stored = study.parents[1] / "figures" / study.name / "forgetting.json"
    return json.loads(stored.read_text(encoding="utf-8"))["data"]["arm"]


def test_a_published_study_opens_without_records(browser, tmp_path, cli):
    study = Path(__file__).parents[1] / "analyses" / "study"
    code, _, err = cli("dashboard", study, "--out", tmp_path / "study.html")
    assert code == 0 and "1 published result" in err, err
    table = pl.read_csv(study / "tables" / "forgetting.csv")
    naive = table.row(0, named=True)
    with opened(browser, tmp_path / "study.html") as shown:
        said = shown.inner_text("#answer")
        assert f"After the last stage, {naive['arm']} keeps {naive['retention']:.0%}" in said
        assert naive["setup"] in shown.inner_text("#results h2")
        assert "Of 35 claims tested" in said
        called = dict(zip(table["arm"], drawn_names(study), strict=True))
        (claim,) = (
            pl.read_csv(study / "tables" / "claims.csv")
            .filter(claim="surfaces earlier after stage 1", arm="remix-random")
            .to_dicts()
        )
        moved = " ".join(f"{claim[end]:.1f}" for end in ("estimate", "low", "high"))
        moved = "{} [{}, {}]".format(*moved.split())
        assert (
            f"{claim['verdict']} for {called['remix-random']}, {moved} depths later"
            in said.lower().replace(called["remix-random"].lower(), called["remix-random"])
        )
        drawn = shown.evaluate(
            """() => { const { x, y } = document.querySelector('.js-plotly-plot').data
            .find((t) => t.name.startsWith('mean')); return [x, y]; }"""
        )
        assert "LoRA 16" in shown.inner_text("#results figure"), (
            "an arm of which nothing is finished keeps its name"
        )
        assert shown.evaluate(AUDIT) == []
        placed = shown.evaluate("""() => Object.fromEntries([...document.querySelectorAll('#results figure')].slice(1)
            .map((f) => [f.querySelector('h3').textContent, f.querySelector('.js-plotly-plot')?.data[0].x.length]))""")
        counts = pl.read_csv(study / "tables" / "placement.csv").filter(k=10, token="first", readout="own")
        assert placed["Where D_A surfaces after stage 1 (top 10)"] == len(counts.filter(stage=1))
        means = table.drop_nulls("retention")
        assert drawn[0] == pytest.approx(means["retention"].to_list(), rel=1e-6) and drawn[1] == [
            called[arm] for arm in means["arm"]
        ]
        shown.select_option("#results select", label="cost")
        shown.wait_for_function(
            "() => document.querySelector('#results thead').textContent.includes('seconds')"
        )
        assert shown.locator("#results tbody tr").count() == len(pl.read_csv(study / "tables" / "cost.csv"))
        shown.set_viewport_size({"width": 1440, "height": 900})
        for table in shown.locator("#results select option").all_inner_texts():
            shown.select_option("#results select", label=table)
            wide = shown.evaluate(
                "(() => { const s = document.querySelector('#results .scroll');"
                " return [s.scrollWidth, s.clientWidth]; })()"
            )
            assert wide[0] <= wide[1], f"{table} is cut at 1440 px"


@pytest.mark.parametrize("name", ["study", "study-500"])
def test_a_study_answers_and_draws_on_a_phone(browser, tmp_path, cli, name):
    code, _, err = cli(
        "dashboard", Path(__file__).parents[1] / "analyses" / name, "--out", tmp_path / "page.html"
    )
    assert code == 0, err
    with opened(browser, tmp_path / "page.html", width=390, height=844) as shown:
        assert "After the last stage, naive keeps" in shown.inner_text("#answer p")
        chart = shown.locator(".js-plotly-plot >> visible=true").first.bounding_box()
        assert chart["y"] < 844 - chart["height"] / 2, "half of the chart, or more, is on the first screen"
        first = shown.locator("#answer p >> visible=true").count()
        shown.click("#answer button")
        assert (
            "tested" in shown.inner_text("#answer")
            and shown.locator("#answer p >> visible=true").count() > first
        )


def test_what_is_downloaded_is_no_formula(browser, one):
    """A spreadsheet would run it. The rule is that of the tables that are written as CSV."""
    texts = [
        "=1+1",
        "+x",
        "-x",
        "@x",
        "\tx",
        "\rx",
        "a=b",
        "-",
        "- 0.5",
        "-0.5 1e-3 +2",
        "-1+1",
        "-0.5 [-1, 2]",
    ]
    with opened(browser, one) as shown:
        said = shown.evaluate("texts => csv([['=label'], ...texts.map((one) => [one])])", texts)
        numbers = shown.evaluate("csv([['n'], [-1.5], [-1e-7], [null], [0]])")
    read = pl.read_csv(said.encode(), infer_schema=False, eol_char="\n")
    assert read.columns[0].startswith("'=label")
    expected = pl.read_csv(csv_text(pl.DataFrame({"label": texts})).encode(), infer_schema=False)
    assert [text.rstrip("\r") for text in read.to_series()] == expected["label"].to_list()
    assert numbers.split("\r\n") == ["n", "-1.5", "-1e-7", "", "0", ""]
