"""The page: what it embeds, and what a reader sees of it in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest

from memprobe import dashboard, plots, statistics
from memprobe.compare import compare
from memprobe.dashboard import explorer, page, training, writing
from memprobe.dashboard.chains import pairs_of, paths_of
from memprobe.dashboard.sets import sets_of
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.files import read_json, write_json
from memprobe.probes import Probe, open_probe
from memprobe.studies import open_study
from tests.once import once
from tests.pages import chromium, opened
from tests.probes import retell, synthetic_factoids, write_probe, write_setups
from tests.test_studies import write_metrics, write_stage
from tests.trained import write_run

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=2><!-- {{title}}"


def hostile_factoids(n):
    facts = synthetic_factoids(n)
    facts[1] = make_factoid(f"Who said {HOSTILE}", HOSTILE, HOSTILE, relation=HOSTILE, aliases=[HOSTILE])
    return facts


@pytest.fixture(scope="module", autouse=True)
def fewer():
    """Fewer draws and k than a page has: these tests make many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            writing.dashboard_text, "__kwdefaults__", writing.dashboard_text.__kwdefaults__ | {"draws": 200}
        )
        patch.setattr(writing, "K_VALUES", (1, 5, 10, 50))
        yield


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

    def make(top):
        probe = write_probe(top / "probe", labels, n=45, n_layers=8)
        dashboard.write_report(probe, probe.path / "report.html")

    return open_probe(once(tmp_path_factory, "dashboard-six", make) / "probe")


REMIX = f"remix(data=self){HOSTILE[:9]}"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two sets of factoids, one of them from two directories that share a label, and two training runs."""
    return once(tmp_path_factory, "dashboard-study", write_study)


def write_study(top):
    manifests = {
        f"{name}-{stage}": {"arm": arm, "seed": 0, "stage": stage, "stage_name": ("kvr", "known")[stage - 1]}
        for name, arm in (("naive", "none"), ("remix", REMIX))
        for stage in (1, 2)
    }
    depths = {"base": 7, "naive-1": 3, "naive-2": 5, "remix-1": 2, "remix-2": 3}
    write_probe(top / "a", depths, n=24, manifests=manifests)
    write_probe(top / "b", {"base": 6, "other": 4}, n=24, seed=1)
    write_probe(top / "c", {"base": 4}, n=9)
    for name, arm in (("naive", "none"), ("remix", REMIX)):
        run = top / "runs" / name
        (run / "1-kvr").mkdir(parents=True)
        (run / "recipe.toml").write_text(f"arm = {json.dumps(arm)}\nseed = 0\n", encoding="utf-8")
        write_stage(run / "1-kvr", {"1-kvr": (1.0, 0.8, 1.0)})
        write_stage(run / "2-known", {"1-kvr": (0.25, 0.1, 0.5), "2-known": (1.0, 0.8, 1.0)}, steps=2)
    write_metrics(top / "runs" / "naive" / ".state" / "3-pop" / "metrics.jsonl", 4)
    found = compare([top / "a"], draws=200)
    write_json(found.as_json(), top / "compared" / "comparison.json")
    dashboard.write_dashboard(open_study([top]), top / "page.html")


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


def page_of(made):
    return made.path / "report.html" if isinstance(made, Probe) else made / "page.html"


def embedded(made, name="report-data"):
    text = page_of(made).read_text(encoding="utf-8")
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def block(made, name):
    text = page_of(made).read_text(encoding="utf-8")
    return zlib.decompress(base64.b64decode(re.search(rf'id="block-{name}">(.*?)</script>', text)[1]))


# What is embedded


class Elements(HTMLParser):
    """The tags of a page, and the ids of its script elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "script":
            self.ids.append(dict(attrs).get("id"))


def test_a_files_name_is_text_wherever_it_stands(tmp_path):
    *files, _ = names = ['a"><plaintext>x', "b' onload='1", "&lt;c", "d</script>"]
    (tmp_path / "tables").mkdir()
    for name in files:
        (tmp_path / "tables" / f"{name}.csv").write_text("claim\nx\n")
    dashboard.write_dashboard(open_study([tmp_path]), tmp_path / "page.html")
    found = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "plaintext" not in found.tags
    assert {f"block-results-0-table-{name}" for name in files} <= set(found.ids)
    text = page.assemble(
        title=names[0],
        body="prompt.html",
        scripts=(),
        data=dict.fromkeys(names),
        blocks=dict.fromkeys(names, b""),
    )
    found = Elements(text)
    assert "plaintext" not in found.tags
    assert {*names, *(f"block-{name}" for name in names)} <= set(found.ids)


def test_numbers_on_top_are_those_of_statistics(six):
    headline = embedded(six)["sets"][0]["headline"]
    for rule, k in (("first", 10), ("all", 1)):
        placement = statistics.placement(six.records, k=k, token=rule, draws=10)
        recall = statistics.recall_by_depth(six.records, k=k, token=rule).filter(pl.col("depth") == 8)
        chance = statistics.shuffled_recall(six, k=k, token=rule).filter(pl.col("depth") == 8)
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
    figure = json.loads(block(six, "s0-lof"))["first"]["10"]
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
    assert len(scripts) == 6
    assert "default-src &#x27;none&#x27;" in policy
    assert "unsafe-eval" not in policy


def test_hostile_text_cannot_leave_its_script_element(one):
    text = (one.path / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "window.pwned" in embedded(one)["sets"][0]["checkpoints"][0]["label"]
    assert page.embedded_json("</script><!--") == '"\\u003c/script>\\u003c!--"'
    with pytest.raises(ValueError, match="JSON"):
        page.embedded_json(float("nan"))


def test_what_does_not_fit_the_explorer_is_left_out_of_it_and_said(six, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "MAX_CELLS", 6 * 9 * 45)
    dashboard.write_report(six, tmp_path / "report.html")
    small = replace(six, path=tmp_path)
    data = embedded(small)["sets"][0]
    assert {part["token"] for part in data["records"]} == {0}
    assert "only the first answer token is shown" in data["left_out"]
    monkeypatch.setattr(explorer, "MAX_CELLS", 6 * 9 * 10)
    dashboard.write_report(six, tmp_path / "report.html")
    data = embedded(small)["sets"][0]
    assert "first 10 of 45 factoids" in data["left_out"]
    assert {part["rows"] for part in data["records"]} == {10}
    assert embedded(six)["sets"][0]["left_out"] == ""


def test_a_probe_without_records_is_refused(tmp_path):
    probe = write_probe(tmp_path / "probe", {"a": 3}, n=4, summary=False)
    retell(probe.path, "records", probe.records.head(0))
    empty = open_probe(probe.path)
    with pytest.raises(MemprobeError, match="no records"):
        dashboard.write_report(empty, tmp_path / "report.html")


def test_survival_differences_and_flows_are_those_of_statistics(study):
    probe = open_probe(study / "a")
    found = compare([probe], k=5, token="all", reference="base", draws=200)
    survival = found.tables["survival"].filter(of="lof", checkpoint="remix-2")
    (line,) = [
        trace
        for trace in json.loads(block(study, "s0-lof-survival"))["all"]["5"]["data"]
        if trace["meta"] == {"checkpoint": "a/remix-2", "role": "line"}
        or trace["meta"] == {"checkpoint": "remix-2", "role": "line"}
    ]
    assert line["y"] == pytest.approx(survival["survival"].to_list())
    forest = json.loads(block(study, "s0-difference-lof_restricted"))["all"]["5"]["data"]
    drawn = {
        trace["meta"]["checkpoint"]: trace for trace in forest if trace["meta"]["against"] == "reference"
    }
    rows = found.tables["differences"].filter(on="all", statistic="lof_restricted", reference="base")
    for row in rows.iter_rows(named=True):
        assert drawn[row["checkpoint"]]["x"] == pytest.approx([row["difference"]]), row["checkpoint"]
    flows = json.loads(block(study, "s0-fate-0"))["all"]["5"]["data"][0]
    before = [
        value
        for value, source in zip(flows["link"]["value"], flows["link"]["source"], strict=True)
        if flows["node"]["x"][source] < 0.1
    ]
    assert sum(before) == 24


def test_stages_draw_the_values_of_each_checkpoint(study):
    figure = json.loads(block(study, "s0-stage-exact"))["first"]["10"]
    (naive,) = [trace for trace in figure["data"] if trace["meta"]["arm"] == "naive"]
    assert naive["meta"]["checkpoints"] == ["a/base", "naive-1", "naive-2"]
    headline = embedded(study)["sets"][0]["headline"]["first"]["10"]
    expected = [headline[label]["exact_match"]["value"] for label in naive["meta"]["checkpoints"]]
    assert naive["y"] == pytest.approx(expected)
    high = headline["naive-2"]["exact_match"]["high"]
    assert naive["y"][-1] + naive["error_y"]["array"][-1] == pytest.approx(high)


def test_sets_go_by_what_was_asked_and_equal_labels_are_told_apart(study):
    sets = embedded(study)["sets"]
    assert [[entry["label"] for entry in one["checkpoints"]] for one in sets] == [
        ["a/base", "naive-1", "naive-2", "remix-1", "remix-2", "b/base", "other"],
        ["base"],
    ]
    assert len({one["name"] for one in sets}) == 2
    assert [key for key, _ in sets[0]["against"]] == ["reference", "before", "naive"]
    assert sets[1]["against"] == sets[1]["chains"] == []


def test_three_seeds_of_an_arm_have_a_mean_with_its_interval(tmp_path):
    manifests = {
        f"{arm}-{seed}": {"arm": arm, "seed": seed, "stage": 1, "stage_name": "kvr"}
        for arm in ("none", "ewc(strength=1)", "replay(ratio=0.1)")
        for seed in range(3)
    }
    depths = {"base": 6} | {label: 3 + 0.2 * at for at, label in enumerate(manifests)}
    probe = write_probe(tmp_path / "probe", depths, n=16, manifests=manifests)
    dashboard.write_report(probe, probe.path / "report.html")
    found = (
        compare([probe], draws=200)
        .tables["arms"]
        .filter(arm="ewc(strength=1)", statistic="depths_per_factoid")
    )
    rows = embedded(probe)["sets"][0]["arms"]["first"]["10"]
    (row,) = [row for row in rows if row["arm"] == "EWC 1"]
    assert row["seeds"] == 3
    assert row["depths_per_factoid"]["mean"] == pytest.approx(found["mean"].item())
    assert row["depths_per_factoid"]["by_seed"] == pytest.approx(found["by_seed"].item().to_list())
    assert row["depths_per_factoid"]["low"] == pytest.approx(found["low"].item())
    drawn = json.loads(block(probe, "s0-stage-depths_per_factoid"))["first"]["10"]["data"]
    assert [trace["meta"]["role"] for trace in drawn if trace["meta"]["arm"] == "EWC 1"] == ["seed"] * 3 + [
        "line"
    ]
    said = embedded(probe)["sets"][0]["answer"]["first"]["10"]
    assert said[1:] == compare([probe], draws=200).verdict()[1:], "arms, as the terminal says it, not seeds"
    assert said[1].startswith("EWC 1 against naive")
    colours = {trace["meta"]["arm"]: trace["line"]["color"] for trace in drawn}
    assert len(set(colours.values())) == len(colours) == 3, "seeds are as many as make colours come again"


def test_the_base_model_is_told_once_where_runs_agree_on_it():
    def rows(run, stage, **scores):
        names = ("dataset", "metric", "value")
        keys = {"run": run, "stage": stage, "row": f"{run}, {stage}"}
        return [
            keys | dict(zip(names, (name, "exact_match", value), strict=True))
            for name, value in scores.items()
        ]

    one = [*rows("a", 0, kvr=0.0), *rows("a", 1, kvr=1.0)]
    two = [*rows("b", 0, kvr=0.0, lama=0.25), *rows("b", 1, kvr=1.0)]
    merged = training._base_once(pl.DataFrame([*one, *two]))
    assert merged["row"].to_list() == ["base model"] * 2 + ["a, 1", "b, 1"]
    other = rows("c", 0, kvr=0.5)
    apart = training._base_once(pl.DataFrame([*one, *two, *other]))
    assert apart["row"].to_list() == ["b, 0"] * 2 + ["c, 0", "a, 1", "b, 1"]


def test_set_ups_of_a_grid_are_sets_of_their_own_with_their_own_second_readout(tmp_path):
    write_setups(tmp_path)
    study = open_study([tmp_path])
    own = [probe for probe in study.probes if probe.run["readout"] == "own"]
    second = [probe for probe in study.probes if probe.run["readout"] != "own"]
    sets = sets_of(own, second, reference=None, draws=100, say=lambda text: None)
    assert [one.name for one in sets] == ["synthetic, 12 factoids, a-b", "synthetic, 12 factoids, a-c"]
    for one, mine, probe in zip(sets, own, second, strict=True):
        assert one.readings.labels == one.readings.second.labels == ["start", "end"]
        for label in one.readings.labels:
            rows = pl.col("checkpoint") == label
            assert one.readings.rows(label, "records").equals(mine.records.filter(rows))
            assert one.readings.second.rows(label, "records").equals(probe.records.filter(rows))
    dashboard.write_dashboard(study, tmp_path / "page.html")
    names = [one["name"].removeprefix("synthetic, 12 factoids, ") for one in embedded(tmp_path)["sets"]]
    assert names == ["a-b", "a-c", "a-b, read out by base", "a-c, read out by base"]


def test_cells_that_did_not_learn_their_data_are_left_out_and_named(tmp_path):
    depths = {"base": 6.0, "naive-s0.1": 3.0, "naive-s0.2": 4.0, "lora-s0.2": 4.0}
    write_probe(tmp_path / "probes" / "a-b" / "own", depths, n=8, summary=False)
    for arm, fine in (("naive", True), ("lora", False)):
        run = write_run(tmp_path / "runs" / "a-b" / f"{arm}-s0", [[1.0], [0.5, 1.0 if fine else 0.5]])
        stages = [{"label": "naive-s0.1"}, {"label": f"{arm}-s0.2"}]
        write_json({"learned": fine, "stages": stages}, run / "cell.json")
    said = []
    dashboard.write_dashboard(open_study([tmp_path]), tmp_path / "page.html", say=said.append)
    (one,) = embedded(tmp_path)["sets"]
    assert [entry["label"] for entry in one["checkpoints"]] == ["base", "naive-s0.1", "naive-s0.2"]
    assert any("lora-s0.2 left out" in text for text in said)


def test_a_second_readout_stands_beside_the_first(tmp_path):
    depths = {"base": 6, "tuned": 3}
    probe = write_probe(tmp_path / "own", depths, n=12)
    fixed = write_probe(tmp_path / "fixed", depths, n=12, readout="base", seed=3)
    dashboard.write_dashboard(
        open_study([tmp_path]), tmp_path / "page.html", reference="base", fixed_readout=[fixed.path]
    )
    assert len(embedded(tmp_path)["sets"]) == 1
    forest = json.loads(block(tmp_path, "s0-difference-depths_per_factoid"))["first"]["10"]["data"]
    dashboard.write_dashboard(open_study([tmp_path]), tmp_path / "page.html", reference="base")
    assert ["read out by" in one["name"] for one in embedded(tmp_path)["sets"]] == [False, True]
    assert json.loads(block(tmp_path, "s0-difference-depths_per_factoid"))["first"]["10"]["data"] == forest
    held = [
        one.records.filter(pl.col("token") == 0, pl.col("depth") > 0, pl.col("rank") < 10)
        for one in (probe, fixed)
    ]
    for trace, rows in zip(forest, held, strict=True):
        counts = dict(rows.group_by("checkpoint").len().iter_rows())
        assert trace["x"] == pytest.approx([(counts["tuned"] - counts["base"]) / 12])
    with pytest.raises(MemprobeError, match="--readout BASE"):
        dashboard.write_dashboard(open_study([tmp_path]), tmp_path / "page.html", fixed_readout=[probe])
    with pytest.raises(MemprobeError, match="`reference` 'nobody'"):
        dashboard.write_dashboard(open_study([tmp_path]), tmp_path / "page.html", reference="nobody")


def test_a_score_that_is_not_known_is_shown_as_that(tmp_path):
    run = write_run(tmp_path / "run", [[1.0], [0.5, 1.0]])
    file = run / "2-lama" / "evaluation.json"
    evaluation = read_json(file)
    unknown = {"value": None, "low": None, "high": None}
    asked = {"kind": "text", "metric": "perplexity", "n": 2, "scores": {"perplexity": unknown}}
    evaluation["sets"] |= {"texts": asked, "known": asked | {"metric": "exact_match", "scores": {}}}
    write_json(evaluation, file)
    room, _ = training.training_room(open_study([tmp_path]))
    assert room is not None and room["matrix"]
    assert room["others"][1:] == [["run, 2 lama", "texts", "perplexity", "2", "–", ""]]


def test_long_training_is_thinned_and_that_is_said(tmp_path, monkeypatch):
    (tmp_path / "recipe.toml").write_text("seed = 0\n", encoding="utf-8")
    write_metrics(tmp_path / ".state" / "1-kvr" / "metrics.jsonl", 30)
    monkeypatch.setattr(training, "MAX_POINTS", 10)
    dashboard.write_dashboard(open_study([tmp_path]), tmp_path / "page.html")
    shown = embedded(tmp_path)["training"]
    assert "every 3th step" not in shown["note"]
    assert "one step in 3" in shown["note"]
    (name, _) = shown["curves"]["loss"][0]
    assert json.loads(block(tmp_path, name))["data"][0]["x"] == list(range(1, 31, 3))


def test_the_loss_that_is_drawn_is_that_of_the_data_and_a_penalty_is_drawn_beside_it(tmp_path):
    lines = [
        {"step": step, "loss": 700.0 + step, "data_loss": 2.0, "penalty": 698.0 + step} for step in (1, 2)
    ]
    for run, some in {"ewc": lines, "naive": [{"step": step, "loss": 3.0} for step in (1, 2)]}.items():
        folder = tmp_path / run / ".state" / "1-kvr"
        folder.mkdir(parents=True)
        (tmp_path / run / "recipe.toml").write_text("seed = 0\n", encoding="utf-8")
        text = "".join(json.dumps(line) + "\n" for line in some)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    dashboard.write_dashboard(open_study([tmp_path]), tmp_path / "page.html")
    shown = embedded(tmp_path)["training"]["curves"]
    drawn = {
        measure: [line["y"] for line in json.loads(block(tmp_path, shown[measure][0][0]))["data"]]
        for measure in ("loss", "penalty")
    }
    assert drawn == {"loss": [[2.0, 2.0], [3.0, 3.0]], "penalty": [[699.0, 700.0]]}


# What a reader sees


class TestBrowser:
    pytestmark = pytest.mark.browser

    def test_one_checkpoint_opens_and_hostile_text_stays_text(self, browser, one):
        with opened(browser, one.path / "report.html", hash=f"#factoid={one.factoids['id'][1]}") as shown:
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert HOSTILE in shown.inner_text("#detail h3")
            for tab in shown.locator("#rooms button").all():
                tab.click()
            shown.wait_for_timeout(100)
            shown.locator("#tab-overview").click()
            assert HOSTILE in shown.inner_text("#headline tbody th")
            assert shown.evaluate("window.pwned") is None
            assert shown.locator("img").count() == 0
            rooms = shown.locator("#rooms button").all_inner_texts()
            assert rooms == ["Overview", "Curves", "Depths", "Factoids", "Setup"]

    def test_every_control_changes_what_is_shown(self, browser, six):
        with opened(browser, six.path / "report.html") as shown:
            assert shown.locator("#headline tbody tr").count() == 6
            row = shown.locator("#headline tbody tr").first
            before = row.inner_text()
            shown.locator("#k label", has_text="1").first.click()
            assert "Recall@1" in shown.inner_text("#headline thead")
            shown.locator("#rule label", has_text="all").click()
            assert row.inner_text() != before
            shown.click("#control")
            assert "shuffled" not in shown.inner_text("#headline")
            shown.locator("#tab-curves").click()
            count = "document.querySelector('#room-curves [data-figure=recall] .canvas')?.data.length"
            shown.wait_for_function(f"() => {count} === 6")
            shown.click("#bands")  # of six lines they are drawn on demand
            shown.wait_for_function(f"() => {count} === 12")
            shown.locator("#checkpoints label").nth(2).click()
            shown.wait_for_function(f"() => {count} === 10")
            assert shown.locator("#headline tbody tr").count() == 5
            shown.locator("#theme").click()
            shown.locator("#theme").click()
            assert shown.get_attribute("html", "data-theme") == "dark"
            query = shown.evaluate("location.hash")
            assert all(part in query for part in ("k=1", "rule=all", "control=0", "bands=on", "theme=dark"))

    def test_the_recall_that_is_drawn_is_that_of_statistics(self, browser, six):
        with opened(
            browser, six.path / "report.html", hash="#room=curves&k=5&rule=last&ckpt=remix-1"
        ) as shown:
            drawn = shown.evaluate(
                "document.querySelector('#room-curves [data-figure=recall] .canvas').data"
                ".find(t => t.meta.role === 'line').y"
            )
            rows = statistics.recall_by_depth(six.records, k=5, token="last")
            assert drawn == pytest.approx(rows.filter(pl.col("checkpoint") == "remix-1")["recall"].to_list())

    def test_a_click_on_a_factoid_shows_the_numbers_of_its_records(self, browser, six):
        chosen = six.factoids.row(5, named=True)
        with opened(browser, six.path / "report.html") as shown:
            shown.locator("#tab-factoids").click()
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            shown.locator(f"tr[data-factoid='{chosen['id']}']").click()
            shown.wait_for_function(
                f"() => document.querySelector('#detail h3').textContent.includes({chosen['prompt']!r})"
            )
            for token in (0, 1, 2):
                shown.locator("#token label").nth(token).click()
                shown.wait_for_function(f"() => document.querySelectorAll('#token input')[{token}].checked")
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
            shown.locator("#tab-factoids").click()
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.inner_text("#page") == "1–20"
            shown.click("#next")
            assert shown.inner_text("#page") == "21–40"
            shown.keyboard.press("/")
            shown.keyboard.type("currency ANSWER3")
            found = six.factoids.filter(
                pl.col("prompt").str.contains("currency") & pl.col("answer").str.contains("answer3")
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
            marks = shown.locator("#factoids tbody td:nth-child(4)").all_text_contents()
            assert [mark.lstrip("✓") for mark in marks] == [str(value or "–") for value in expected]
            assert shown.get_attribute("#factoids th.mark", "aria-sort") == "ascending"
            shown.locator("#factoids tbody button").first.focus()
            shown.keyboard.press("ArrowDown")
            second = shown.locator("#factoids tbody tr").nth(1).get_attribute("data-factoid")
            shown.wait_for_function(f"() => location.hash.includes('factoid={second}')")
            prompt = six.factoids.filter(id=second)["prompt"].item()
            shown.wait_for_function(
                f"() => document.querySelector('#detail h3').textContent.includes({prompt!r})"
            )
            detail, row = (shown.locator(name).bounding_box() for name in ("#detail", "#explorer .list"))
            assert detail["x"] >= row["x"] + row["width"] and detail["y"] < row["y"] + 200, "beside the list"

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
        with opened(
            browser, six.path / "report.html", hash="#room=curves&ckpt=base", accept_downloads=True
        ) as shown:
            with shown.expect_download() as csv:
                shown.locator("#room-curves [data-figure=recall] .tools button", has_text="CSV").click()
            table = pl.read_csv(csv.value.path())
            rows = statistics.recall_by_depth(six.records, k=10, token="first").filter(
                pl.col("checkpoint") == "base"
            )
            line = table.filter(pl.col("series") == "line")
            assert line["y"].to_list() == pytest.approx(rows["recall"].to_list())
            assert line["low"].to_list() == pytest.approx(rows["low"].to_list())
            with shown.expect_download() as image:
                shown.locator(
                    "#room-curves [data-figure=recall-heatmap] .tools button", has_text="SVG"
                ).click()
            assert "<svg" in image.value.path().read_text(encoding="utf-8")

    def test_every_room_of_a_study_opens_and_keeps_the_selection(self, browser, study):
        with opened(browser, page_of(study)) as shown:
            assert shown.locator("#rooms button").all_inner_texts() == [
                "Overview", "Curves", "Depths", "Differences", "Fates", "Training", "Factoids", "Setup",
            ]  # fmt: skip
            assert shown.locator("#stages .js-plotly-plot").count() == 4
            shown.locator("#rooms button").first.focus()
            shown.keyboard.press("ArrowRight")
            assert shown.locator("#room-curves").is_visible()
            assert not shown.locator("#room-overview").is_visible()
            shown.locator("#checkpoints label", has_text="remix-1").click()
            for room in ("depths", "differences", "fates", "training", "factoids", "run", "curves"):
                shown.locator(f"#tab-{room}").click()
                assert shown.locator(f"#room-{room}").is_visible()
                assert shown.evaluate("document.documentElement.scrollWidth") <= 1440, room
                assert shown.evaluate("state.checkpoints.length") == 6
            shown.locator("#tab-differences").click()
            shown.locator("#against label", has_text="stage before").click()
            drawn = "document.querySelector('[data-figure=difference-exact] .canvas').data"
            shown.wait_for_function(f"() => {drawn}.length === 3")
            assert shown.evaluate(f"{drawn}.map((trace) => trace.meta.against)") == ["before"] * 3
            assert "against=before" in shown.evaluate("location.hash")
            assert shown.locator("#comparisons .js-plotly-plot").count() >= 5
            shown.locator("#tab-training").click()
            assert "naive, stage 3 pop" in shown.inner_text("#running")
            shown.locator("#measure label", has_text="exact").click()
            shown.wait_for_selector("#training .js-plotly-plot")
            assert shown.locator("#matrix .js-plotly-plot, #matrix.js-plotly-plot").count() == 1

    def test_another_set_of_factoids_has_its_own_checkpoints_and_rooms(self, browser, study):
        with opened(browser, page_of(study), hash="#room=fates&k=5") as shown:
            shown.select_option("#set", index=1)
            assert shown.locator("#rooms button").all_inner_texts().count("Fates") == 0
            assert shown.evaluate("[state.k, state.checkpoints]") == [5, ["base"]]
            shown.locator("#tab-factoids").click()
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.inner_text("#found") == "9 of 9"
            shown.reload()
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            assert shown.inner_text("#found") == "9 of 9"
            shown.select_option("#set", index=0)
            shown.wait_for_function("() => document.getElementById('found').textContent === '24 of 24'")

    def test_factoids_are_found_by_fate_and_popularity(self, browser, study):
        with opened(browser, page_of(study), hash="#room=factoids") as shown:
            shown.wait_for_selector("#explorer[data-ready]", state="attached")
            outcomes = open_probe(study / "a").outcomes
            by_label = {
                label: set(outcomes.filter(pl.col("checkpoint") == label, pl.col("exact_match"))["factoid"])
                for label in ("base", "naive-1", "naive-2")
            }
            kept = set.intersection(*by_label.values())
            shown.select_option("#fate", "naive, seed 0|1→1→1")
            assert shown.inner_text("#found") == f"{len(kept)} of 24"
            shown.select_option("#fate", "")
            shown.select_option("#quarter", "quarter 4")
            assert shown.inner_text("#found") == "6 of 24"
            shown.click("[data-sort=popularity]")
            first = shown.locator("#factoids tbody .popularity").all_text_contents()
            assert first == ["324", "361", "400", "441", "484", "529"]

    def test_every_room_fits_a_phone_in_the_dark(self, browser, study):
        with opened(browser, page_of(study), width=390, color_scheme="dark") as shown:
            for tab in shown.locator("#rooms button").all():
                tab.click()
                shown.wait_for_timeout(150)
                assert shown.evaluate("document.documentElement.scrollWidth") <= 390, tab.inner_text()
            assert shown.get_attribute("html", "data-theme") == "dark"


def test_the_command_writes_the_page_and_says_what_it_holds(study, tmp_path, cli):
    code, printed, said = cli("dashboard", study, "--out", tmp_path / "page.html")
    assert (code, printed.strip()) == (0, str(tmp_path / "page.html"))
    assert "3 probes, 2 training runs, 1 comparison" in said
    assert (tmp_path / "page.html").stat().st_size > 1e6
    for arguments, problem in (
        ([tmp_path / "nowhere"], "no such directory"),
        ([study, "--reference", "nobody"], "--reference 'nobody'"),
        ([study, "--out", tmp_path], "a directory"),
    ):
        code, _, said = cli("dashboard", *arguments)
        assert code == 2
        assert problem in said
        assert len(said.strip().splitlines()) == 1


def set_with(path, manifests):
    """The set of a probe of checkpoints that were made so, and its training runs."""
    probe = write_probe(path, dict.fromkeys(manifests, 4), n=12, manifests=manifests, summary=False)
    (found,) = sets_of([probe], [], reference=None, draws=100, say=lambda text: None)
    return found.readings, paths_of(found.readings)


@pytest.mark.parametrize(
    ("naive", "ewc", "pairs"),
    [
        ("xy", "xy", 2),
        ("xy", (None, None), 2),
        ((None, None), "xy", 2),
        ("xy", (None, "z"), 1),
        ("xy", "zz", 0),
    ],
)
def test_an_arm_is_held_against_naive_training_unless_its_settings_are_known_to_be_others(
    tmp_path, naive, ewc, pairs
):
    """Probes of old, and checkpoints whose arm is told by hand, say nothing of settings."""
    made = {
        f"{arm}-{stage}": {"arm": arm, "seed": 0, "stage": stage, "stage_name": name, "recipe_mark": mark}
        for arm, marks in (("none", naive), ("ewc", ewc))
        for (stage, name), mark in zip(((1, "kvr"), (2, "lama")), marks, strict=True)
    }
    readings, paths = set_with(tmp_path / "probe", made)
    assert sum(against == "naive" for against, *_ in pairs_of(readings, paths)) == pairs


def test_of_several_naive_runs_an_arm_is_held_against_that_of_its_settings(tmp_path):
    marks = {"unsaid": ("none", None), "x": ("none", "x"), "y": ("none", "y")}
    marks |= {"ewc": ("ewc", "y"), "kl": ("kl(strength=1)", None)}
    made = {
        f"{name}-{stage}": {
            "arm": arm,
            "seed": 0,
            "stage": stage,
            "stage_name": "ab"[stage - 1],
            "recipe_mark": mark,
        }
        for name, (arm, mark) in marks.items()
        for stage in (1, 2)
    }
    readings, paths = set_with(tmp_path / "probe", made)
    naive = [pair[1:] for pair in pairs_of(readings, paths) if pair[0] == "naive"]
    of_last = {arm: reference for reference, arm in naive if arm.endswith("2") and reference.endswith("2")}
    assert of_last == {"ewc-2": "y-2"}, (
        "of x and y nobody knows which kl has, and no naive run is held against another"
    )


def test_seeds_of_runs_that_end_on_different_datasets_are_seeds_of_one_arm(tmp_path):
    """Another dataset is another setting of its stage, which tells no seed from another."""
    made = {
        f"none-{name}-{seed}": {
            **{"arm": "none", "seed": seed, "stage": stage, "stage_name": name},
            "recipe_mark": name,
        }
        for seed in range(3)
        for stage, name in ((1, "kvr"), (2, "lama"), (2, "webqa"))
    }
    _, paths = set_with(tmp_path / "probe", made)
    assert [path.arm for path in paths] == ["naive → 2 lama", "naive → 2 webqa"] * 3


def test_runs_that_share_a_stage_and_end_on_different_datasets_are_chains_of_their_own(tmp_path):
    manifests = {
        f"{arm}-{name}": {"arm": arm, "seed": 0, "stage": stage, "stage_name": name}
        for arm in ("none", "ewc")
        for stage, name in ((1, "kvr"), (2, "lama"), (2, "webqa"))
    }
    probe = write_probe(
        tmp_path / "probe", {"base": 6} | dict.fromkeys(manifests, 4), n=8, manifests=manifests
    )
    (found,) = sets_of([probe], [], reference=None, draws=100, say=lambda text: None)
    chains = paths_of(found.readings)
    assert [(chain.name, chain.labels) for chain in chains[:2]] == [
        ("naive → 2 lama, seed 0", ["base", "none-kvr", "none-lama"]),
        ("naive → 2 webqa, seed 0", ["base", "none-kvr", "none-webqa"]),
    ]
    naive = [pair[1:] for pair in pairs_of(found.readings, chains) if pair[0] == "naive"]
    assert sorted(naive) == [("none-kvr", "ewc-kvr"), ("none-lama", "ewc-lama"), ("none-webqa", "ewc-webqa")]
    dashboard.write_report(probe, probe.path / "report.html")
    figure = json.loads(block(probe, "s0-stage-exact"))["first"]["10"]
    assert figure["layout"]["xaxis"]["ticktext"] == ["base", "1 kvr", "stage 2"]
