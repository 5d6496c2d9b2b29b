"""Lenses, positions and attributions in a comparison, against numbers counted by hand from the records."""

import itertools

import numpy as np
import polars as pl
import pytest
import torch

from memprobe.compare import compare, read_comparison
from memprobe.compare.beside import _with_chance, written
from memprobe.factoids import make_factoid
from memprobe.figures import redraw
from memprobe.files import read_json
from memprobe.fitted import floor_of, notes_on_view
from memprobe.lens_files import AffineMap, write_about, write_maps
from memprobe.models import wrap
from memprobe.probes import open_probe, table_file
from memprobe.probing import probe
from memprobe.readings import Readings
from memprobe.records import SUBJECT
from memprobe.statistics.lenses import NEAR
from tests.tiny import N_LAYERS, tiny_model, tiny_tokenizer

K = 60
WORDS = ("cold", "hot", "Paris", "of", "is", "the", "river", "12")
NAMES = ("Oria", "Selva", "Tolm", "Peak", "Grey", "Ister", "Lunn")
FACTS = [
    make_factoid(f"The {what} of {name} is the", WORDS[(at + 3 * row) % len(WORDS)], "tiny", subject=name)
    for row, what in enumerate(("river", "hill", "lake"))
    for at, name in enumerate(NAMES)
] + [make_factoid("Selva: hill?", "Oria", "tiny")]
FLOOR = {"lof": 0.5, "lof_mean": 0.25, "recall": [0.01 * depth for depth in range(N_LAYERS + 1)]}
LENSES = ("logit", "logit@a", "linear")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two checkpoints through three lenses, at both positions, with attributions."""
    folder = tmp_path_factory.mktemp("lenses")
    tokenizer = tiny_tokenizer()
    models = [
        wrap(tiny_model("llama", len(tokenizer), seed=seed), tokenizer, label=label)
        for seed, label in enumerate("ab")
    ]
    random = torch.Generator().manual_seed(0)
    width = models[0].d_model
    maps = {
        depth: AffineMap(torch.eye(width) + 0.3 * torch.randn(width, width, generator=random) / width**0.5)
        for depth in range(N_LAYERS)
    }
    write_maps(folder / "fit" / "lens.safetensors", "linear", maps)
    floor = {"facts": 3, "k": {str(K): FLOOR}}
    write_about(folder / "fit", {"kind": "linear", "fingerprint": models[0].fingerprint, "floor": floor})
    lenses = ["logit", "logit@a", f"linear={folder / 'fit'}"]
    where = ["answer", "subject"]
    return probe(models, FACTS, folder / "probe", lenses=lenses, positions=where, attributions=True)


@pytest.fixture(scope="module")
def tables(made):
    return compare([made], k=K, draws=200).tables


def surfaced(rows: pl.DataFrame) -> int:
    held = rows.filter((pl.col("rank") < K) & (pl.col("depth") > 0))["depth"].to_list()
    return min(held, default=N_LAYERS + 1)


def placed(made, lens, label) -> tuple[np.ndarray, np.ndarray]:
    """First occurrence of each fact, and the mean over its shuffled answers."""
    view = made.under(lens)
    here = (pl.col("checkpoint") == label) & (pl.col("token") == 0)
    records, controls = view.records.filter(here), view.controls.filter(here)
    own, chance = [], []
    for fact in FACTS:
        own.append(surfaced(records.filter(factoid=fact.id)))
        draws = controls.filter(factoid=fact.id).partition_by("control")
        chance.append(np.mean([surfaced(draw) for draw in draws]) if draws else np.nan)
    return np.array(own), np.array(chance)


def test_first_occurrence_by_lens(made, tables):
    table = tables["lenses"]
    assert table["lens"].to_list() == list(LENSES) * 2 and set(table["k"]) == {K}
    seen = set()
    for row in table.iter_rows(named=True):
        own, chance = placed(made, row["lens"], row["checkpoint"])
        apart = own - placed(made, "logit", row["checkpoint"])[0]
        seen |= set(apart.tolist())
        assert row["n"] == len(FACTS) and row["n_net"] == (~np.isnan(chance)).sum()
        assert row["lof"] == pytest.approx(own.mean())
        if (own <= N_LAYERS).sum() >= 20:
            assert row["lof_low"] <= row["lof"] <= row["lof_high"]
            if row["lens"] == "logit":  # as in the other table of the same number
                same = tables["placement"].row(
                    by_predicate=pl.col("checkpoint") == row["checkpoint"], named=True
                )
                ends = [same[f"lof_restricted_mean_{end}"] for end in ("low", "high")]
                assert [row["lof_low"], row["lof_high"]] == pytest.approx(ends)
        else:
            assert row["lof_low"] is None and row["lof_high"] is None, "as in the table of placement"
        assert row["never"] == (own > N_LAYERS).mean()
        assert row["chance"] == pytest.approx(np.nanmean(chance))
        assert row["net"] == pytest.approx(np.nanmean(own - chance))
        fitted = row["lens"] == "linear"
        assert (row["floor"], row["floor_mean"]) == ((0.5, 0.25) if fitted else (None, None))
        if row["lens"] == "logit":
            assert row["difference"] is None and row["agree"] is None
        else:
            assert row["difference"] == pytest.approx(apart.mean())
            assert row["agree"] == pytest.approx((np.abs(apart) <= NEAR).mean())
    assert len(seen) > 2, "the lenses place the facts apart"


def test_every_view_is_read_once_for_all_k(made):
    readings = Readings.of([made])
    one, other = (readings.under(k=k) for k in (1, K))
    for views, others in ((one.by_lens, other.by_lens), (one.by_position, other.by_position)):
        assert len(views) > 1 and views.keys() == others.keys()
        for name, view in views.items():
            assert (view.k, others[name].k) == (1, K)
            assert view["a"].trajectory is others[name]["a"].trajectory


def test_recall_by_lens_and_depth(made, tables):
    table = tables["lenses_by_depth"]
    assert len(table) == 2 * len(LENSES) * (N_LAYERS + 1)
    for row in table.iter_rows(named=True):
        view = made.under(row["lens"])
        here = (pl.col("checkpoint") == row["checkpoint"]) & (pl.col("depth") == row["depth"])
        first = here & (pl.col("token") == 0)
        assert row["recall"] == (view.records.filter(first)["rank"] < K).mean()
        shuffled = view.controls.filter(first).group_by("factoid").agg((pl.col("rank") < K).mean())
        assert row["chance"] == pytest.approx(shuffled["rank"].mean())
        assert row["floor"] == (FLOOR["recall"][row["depth"]] if row["lens"] == "linear" else None)


def test_a_claim_names_the_other_lenses_in_which_it_holds(made, monkeypatch):
    """Against a comparison that looks through that lens; and the base readout is no other lens."""
    # So few answers tell nothing: as if each fact had its own.
    monkeypatch.setattr(Readings, "answers", property(lambda readings: readings.ids))
    k = 200
    other = compare([made], k=k, lens="linear", draws=200).tables["differences"].filter(on="all")
    sides = {
        row["statistic"]: (row["low"] > 0) - (row["high"] < 0)
        for row in other.iter_rows(named=True)
        if row["low"] is not None
    }
    claims = compare([made], k=k, draws=200).tables["claims"]
    found = set()
    for row in claims.iter_rows(named=True):
        side = 0 if row["own_low"] is None else (row["own_low"] > 0) - (row["own_high"] < 0)
        held = ["linear"] if side and sides.get(row["statistic"]) == side else []
        assert row["also_in"] == held, row
        found.add(bool(held))
    assert found == {True, False}, "some hold there and some do not"
    alone = compare([made.path], k=K, draws=200, lens="linear")
    assert any("floor" in note and "0.25 (k = 60)" in note for note in alone.notes)
    assert alone.settings["lens"].startswith("linear ")
    assert set(itertools.chain(*alone.tables["claims"]["also_in"])) <= {"logit", "logit@a"}


def test_a_probe_of_the_logit_lens_alone_has_nothing_to_say_of_lenses(tmp_path):
    from tests.probes import write_probe

    one = write_probe(tmp_path / "p", {"base": 3.0, "tuned": 5.0}, n=12, summary=False)
    tables = compare([one], draws=100).tables
    for name in ("lenses", "lenses_by_depth", "positions_by_depth", "contributions", "largest_contribution"):
        assert tables[name].is_empty()
    assert tables["claims"]["also_in"].is_null().all()


def test_at_the_subject(made):
    """On the facts that name one, which is said, and from the records there."""
    result = compare([made], k=K, position=SUBJECT, draws=200)
    assert result.settings["position"] == SUBJECT and result.settings["factoids"] == len(FACTS) - 1
    assert any("last token of the subject" in note and "1 fact without one" in note for note in result.notes)
    records = made.under(position=SUBJECT).records
    for row in result.tables["curves"].iter_rows(named=True):
        here = records.filter(checkpoint=row["checkpoint"], depth=row["depth"], token=0)
        assert row["recall"] == (here["rank"] < K).mean()


def test_recall_by_position_and_depth(made, tables):
    """On the facts that have both positions, which leaves out the one without a subject at the answer too."""
    table = tables["positions_by_depth"]
    assert len(table) == 2 * 2 * (N_LAYERS + 1) and set(table["n"]) == {len(FACTS) - 1}
    asked = [fact.id for fact in FACTS[:-1]]
    seen = set()
    for row in table.iter_rows(named=True):
        view = made.under(position=row["position"])
        here = (pl.col("checkpoint") == row["checkpoint"]) & (pl.col("depth") == row["depth"])
        first = here & (pl.col("token") == 0) & pl.col("factoid").is_in(asked)
        assert row["recall"] == (view.records.filter(first)["rank"] < K).mean()
        assert row["recall_low"] <= row["recall"] <= row["recall_high"]
        shuffled = view.controls.filter(first).group_by("factoid").agg((pl.col("rank") < K).mean())
        assert row["chance"] == pytest.approx(shuffled["rank"].mean())
        seen.add(row["recall"])
    assert len(seen) > 3, "positions and depths differ"


def test_the_placement_table_has_a_row_for_each_lens(made):
    result = compare([made], k=K, draws=200)
    rows = [list(row) for row in result.headline().rows]
    assert [row[0] for row in rows] == [
        "a",
        "  by logit@a",
        "  by linear",
        "b",
        "  by logit@a",
        "  by linear",
    ]
    placed = {(row["checkpoint"], row["lens"]): row for row in result.tables["lenses"].iter_rows(named=True)}
    for label, at in (("a", 2), ("b", 5)):
        row = placed[label, "linear"]
        assert rows[at][2] == f"{row['never']:.0%}" and rows[at][4].startswith(f"{row['lof']:.1f} ")
    through = compare([made], k=K, draws=200, lens="linear").headline()
    assert [row[0] for row in through.rows][:3] == ["a", "  by logit", "  by logit@a"]


def test_floors_are_in_the_tables_and_on_the_face_of_figures(made, tmp_path, cli):
    tables = compare([made], k=K, draws=200, lens="linear").tables
    assert set(tables["placement"]["lof_floor"]) == {FLOOR["lof_mean"]}
    for part in tables["curves"].partition_by("checkpoint"):
        assert part["floor"].to_list() == FLOOR["recall"]
    own = compare([made], k=K, draws=200).tables
    assert own["placement"]["lof_floor"].is_null().all() and own["curves"]["floor"].is_null().all()
    asked = ["figures", made.path, "-k", K, "--draws", 200, "--format", "svg", "--lens", "linear"]
    asked += ["--width", 183, "--only", "recall", "--only", "lof", "--only", "differences"]
    code, _, told = cli(*asked, "--out", tmp_path)
    assert code == 0, told
    recall, lof, differences = (
        redraw(tmp_path / f"{name}.json") for name in ("recall", "lof", "differences")
    )
    lines = {line.get_gid(): line for figure in (recall, lof) for axes in figure.axes for line in axes.lines}
    [floor] = [line for gid, line in lines.items() if gid and gid.endswith("/floor") and "lof" not in gid]
    np.testing.assert_allclose(floor.get_ydata(), FLOOR["recall"])
    assert np.ptp(lines["lof_mean/floor"].get_xdata()) == pytest.approx(FLOOR["lof_mean"])
    spans = {patch.get_gid(): patch for axes in differences.axes for patch in axes.patches if patch.get_gid()}
    assert set(spans) == {"lof_restricted/floor"}, "no floor was measured of other statistics"
    box = (
        spans["lof_restricted/floor"]
        .get_window_extent()
        .transformed(differences.axes[0].transData.inverted())
    )
    assert (box.x0, box.x1) == pytest.approx((-FLOOR["lof_mean"], FLOOR["lof_mean"]))


@pytest.mark.parametrize(("net", "most"), [([0.1, 0.9], "2: 90%"), ([None, None], "1: 70%")])
def test_the_most_that_is_written_is_the_highest_point_of_the_chart(net, most):
    """Which is net of shuffled answers where all have them."""
    edges = {f"{name}_{end}": None for name in ("share", "net_share") for end in ("low", "high")}
    names = {"checkpoint": "a", "part": "block"}
    rows = [
        {**names, "depth": 1, "logit": 0.7, "share": 0.7, "net": net[0], "net_share": net[0], **edges},
        {**names, "depth": 2, "logit": 0.3, "share": 0.3, "net": net[1], "net_share": net[1], **edges},
    ]
    placed = {**names, "n": 12, "n_net": 12, "chance": 1.0}
    placed |= {f"{name}{end}": 1.0 for name in ("depth", "net") for end in ("", "_low", "_high")}
    table = written(pl.DataFrame([placed]), pl.DataFrame(rows, schema_overrides={"net": pl.Float64}))
    assert table.rows[0][-1] == most


def test_what_blocks_write(made, tables):
    """Means, the depth of the largest contribution, net of shuffled answers, and paired differences."""
    rows = made.attributions.filter(token=0)
    assert set(tables["contributions"]["part"]) == {"block", "attn", "mlp"}
    by_label = {}
    for label, part in itertools.product("ab", ("block", "attn", "mlp")):
        mine = rows.filter(checkpoint=label, part=part).sort("factoid", "depth")
        wide = mine["logit"].to_numpy().reshape(len(FACTS), N_LAYERS).astype(float)
        chance = mine["shuffled"].to_numpy().reshape(len(FACTS), N_LAYERS).astype(float)
        by_label[label, part] = wide
        table = tables["contributions"].filter(checkpoint=label, part=part)
        assert table["depth"].to_list() == list(range(1, N_LAYERS + 1))
        np.testing.assert_allclose(table["logit"], wide.mean(0), rtol=1e-6)
        np.testing.assert_allclose(table["net"], np.nanmean(wide - chance, axis=0), rtol=1e-5, atol=1e-7)
        whole = by_label[label, "block"].mean(0).sum()
        np.testing.assert_allclose(table["share"], wide.mean(0) / whole, rtol=1e-5)
        net = np.nanmean(wide - chance, axis=0)
        if part == "block":
            whole_net = net.sum()
        np.testing.assert_allclose(table["net_share"], net / whole_net, rtol=1e-4, atol=1e-6)
        [row] = tables["largest_contribution"].filter(checkpoint=label, part=part).iter_rows(named=True)
        known = ~np.isnan(chance).any(1)
        draws = [
            np.array(one.to_list(), float) for one in mine["shuffled_draws"]
        ]  # [factoid and depth][draw]
        by_draw = np.array(draws).reshape(len(FACTS), N_LAYERS, -1)
        there = ~np.isnan(by_draw).any(1)
        places = np.where(there, np.nan_to_num(by_draw).argmax(1) + 1.0, np.nan)
        depth, other = wide.argmax(1) + 1, np.full(len(FACTS), np.nan)
        other[known] = np.nanmean(places[known], axis=1)
        assert row["depth"] == pytest.approx(depth.mean()) and row["sd"] == pytest.approx(depth.std(ddof=1))
        assert row["n_net"] == known.sum() and row["chance"] == pytest.approx(other[known].mean())
        assert row["net"] == pytest.approx((depth - other)[known].mean())
        assert row["depth_low"] is row["net_low"] is None, "nine answers carry no interval"
    apart = tables["contribution_differences"]
    assert set(apart.select("reference", "checkpoint").iter_rows()) == {("a", "b")}
    for part in ("block", "attn", "mlp"):
        one, other = by_label["a", part], by_label["b", part]
        here = apart.filter(part=part)
        np.testing.assert_allclose(
            here.filter(measure="logit")["difference"], (other - one).mean(0), rtol=1e-5
        )
        [largest] = here.filter(measure="largest")["difference"]
        assert largest == pytest.approx((other.argmax(1) - one.argmax(1)).mean())


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([(20, 22)], "the 20 of 22 facts that have shuffled answers"),
        ([(20, 22), (22, 22)], "the facts that have shuffled answers"),
        ([(22, 22)], "all facts"),
    ],
)
def test_it_is_said_over_which_facts_net_is(counts, said):
    assert _with_chance(pl.DataFrame(counts, schema=["n_net", "n"], orient="row")) == said


def test_all_of_it_is_printed_and_written(made, tmp_path, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # headers on one line
    asked = ["compare", made.path, "-k", K, "--draws", 200]
    code, said, _ = cli(*asked, "--out", tmp_path)
    assert code == 0
    assert pl.read_csv(tmp_path / "largest_contribution.csv")["n_net"].unique().to_list() == [22]
    assert "net: fact by fact, over all facts." in " ".join(said.split())
    code, shown, _ = cli("show", made.path)
    assert code == 0 and (
        "These are by the lens logit at the position answer. Also read: the lens logit@a, the lens linear, the "
        f"position subject and what blocks write towards the answers; memprobe compare {made.path} shows it "
        "(--lens NAME and --position NAME: every table by that)."
    ) in " ".join(shown.split())
    for text in ("By lens", "0.25, 0.50", "What blocks write", "attention", "depth of the largest"):
        assert text in said and text in (tmp_path / "comparison.md").read_text()
    names = {file.name for file in tmp_path.iterdir()}
    assert {"lenses.csv", "lenses_by_depth.csv", "contributions.csv", "largest_contribution.csv"} <= names
    assert "contribution_differences.csv" in names
    assert "floor_mean" in pl.read_csv(tmp_path / "lenses.csv").columns
    again = read_comparison(tmp_path / "comparison.json").tables
    assert again["claims"].equals(compare([made], k=K, draws=200).tables["claims"])
    code, said, _ = cli(*asked, "--full")
    assert code == 0 and "also in" in said
    code, said, told = cli(*asked, "--lens", "linear", "--position", "subject")
    assert code == 0 and "Its floor" in told and "last token of the subject" in told
    for option, value, message in (
        ("--lens", "tuned", "not read with lens 'tuned'; there are logit, logit@a, linear"),
        ("--position", "end", "not read with position 'end'; there are answer, subject"),
    ):
        code, _, told = cli(*asked, option, value)
        assert code != 0 and message in told and "Traceback" not in told


def test_identity_maps_give_the_logit_lens_records_byte_for_byte(tiny_checkpoint, tmp_path, cli):
    """Over the whole chain, from the command line to the files, both lenses being given one name."""
    from memprobe.checkpoints import resolve
    from memprobe.models import load

    read = load(resolve(str(tiny_checkpoint)))
    eye = {
        depth: AffineMap(torch.eye(read.d_model), torch.zeros(read.d_model)) for depth in range(read.n_layers)
    }
    write_maps(tmp_path / "eye" / "lens.safetensors", "linear", eye)
    write_about(tmp_path / "eye", {"kind": "linear", "fingerprint": read.fingerprint})
    asked = ["layers", "--ckpt", tiny_checkpoint, "--factoids", "known", "--n", 12]
    asked += ["--positions", "answer,subject"]
    for lens, folder in (("same=logit", "one"), (f"same=linear={tmp_path / 'eye'}", "other")):
        code, _, told = cli(*asked, "--lens", lens, "--out", tmp_path / folder)
        assert code == 0, told
    one, other = open_probe(tmp_path / "one"), open_probe(tmp_path / "other")
    assert one.lenses == other.lenses == ["same"] and other.run["lens"].startswith("linear ")
    for table in ("records", "controls"):
        files = [table_file(view.path, view.checkpoints[0], table).read_bytes() for view in (one, other)]
        assert files[0] == files[1] and len(files[0]) > 1000, table


def test_floors_are_known_where_they_were_measured(made):
    assert floor_of(made, "linear", k=K).lof == 0.5
    for lens, k, token in (("logit", K, "first"), ("linear", 3, "first"), ("linear", K, "all")):
        assert floor_of(made, lens, k=k, token=token).lof is None
    there = made.under("linear", "subject")
    assert floor_of(there, "linear", k=K).lof is None
    assert (
        "is not known" in notes_on_view(there)[0] and "says nothing" in notes_on_view(made.under("linear"))[0]
    )


def test_curves_of_several_lenses_in_one_figure(made, tables, tmp_path, cli):
    """What is drawn is what the tables say, with the floor of the fitted lens in the legend."""
    asked = ["figures", made.path, "-k", K, "--draws", 200, "--format", "svg", "--out", tmp_path]
    code, _, told = cli(*asked, "--only", "lenses", "--only", "contributions", "--only", "positions")
    assert code == 0, told
    by_position = redraw(tmp_path / "positions.json")
    drawn = {line.get_gid(): line.get_ydata() for axes in by_position.axes for line in axes.lines}
    for label, where in itertools.product("ab", ("answer", "subject")):
        rows = tables["positions_by_depth"].filter(checkpoint=label, position=where)
        np.testing.assert_allclose(drawn[f"{label}/{where}/line"], rows["recall"])
    data = {name: read_json(tmp_path / f"{name}.json")["data"] for name in ("lenses", "contributions")}
    assert data["lenses"]["recall"] == tables["lenses_by_depth"]["recall"].to_list()
    assert data["contributions"]["value"] == pytest.approx(tables["contributions"]["net"].to_list())
    figure = redraw(tmp_path / "lenses.json")
    lines = {line.get_gid(): line.get_ydata() for axes in figure.axes for line in axes.lines}
    for label, lens in itertools.product("ab", LENSES):
        rows = tables["lenses_by_depth"].filter(checkpoint=label, lens=lens)
        np.testing.assert_allclose(lines[f"{label}/{lens}/line"], rows["recall"])
        np.testing.assert_allclose(lines[f"{label}/{lens}/chance"], rows["chance"])
    words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "linear (floor 0.25 depths)" in words and "logit" in words
    code, _, told = cli(*asked, "--only", "recall", "--lens", "linear", "--position", "subject")
    assert code == 0 and "Its floor" in told, told
    stored = read_json(tmp_path / "recall.json")
    assert "--lens linear --position subject" in stored["command"]
    assert "floor" in stored["settings"]["view"][0]
