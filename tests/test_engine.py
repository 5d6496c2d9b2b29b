"""Probing on a Ray cluster of several nodes gives the same bytes as one process, whatever is lost on the way."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from memprobe import engine as engines
from memprobe import prober
from memprobe.checkpoints import Checkpoint, resolve
from memprobe.cli.asked import engine_of
from memprobe.cli.progress import Bars
from memprobe.cluster import (
    Engine,
    Resources,
    all_done,
    connect,
    no_room,
    parse_engine,
    rooms,
    while_connected,
)
from memprobe.engine import OnRay, _Actor, _Running
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.hands import Do, Turn
from memprobe.lens_set import LensSet
from memprobe.load_options import LoadOptions
from memprobe.prober import ProbeRequest
from memprobe.probes import open_probe
from memprobe.probing import probe
from memprobe.residuals import read_residuals
from memprobe.sequences import Deferred
from memprobe.sizes import parse_size
from memprobe.templates import Template
from tests.clusters import (
    SMALL,
    Beside,
    Counting,
    Failing,
    Slow,
    Torn,
    at_work,
    cluster_of,
    files_of,
    wait_until,
)
from tests.tiny import save_tiny

FACTS = [
    make_factoid(f"The river of {name} is the", answer, "test", relation="river", id=f"f{number:02}")
    for number, (name, answer) in enumerate(
        (name + tail, answer)
        for name in ("Oria", "Selva", "Tolm", "France")
        for tail, answer in (("", "Lunn"), (" the old", "Brack"), (", hot and cold", "Ister"))
    )
]
LABELS = ["c1", "c2", "c3", "c4"]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster(forks):
    with cluster_of(2, forks) as made:
        yield made


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    return [f"{name}={save_tiny(folder / name, seed=seed)}" for seed, name in enumerate(LABELS)]


def asked(out, **options):
    return {"factoids": FACTS, "out": out, "batch_size": 2, "device": "cpu"} | options


@pytest.fixture(scope="module")
def here(four, tmp_path_factory):
    """The files of the same probe in one process."""
    out = tmp_path_factory.mktemp("here") / "probe"
    on_ray(four, out)
    return files_of(out)


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(prober, "UNIT", 4)


def on_ray(four, out, **options):
    """In half precision, so that one checkpoint is held against fp32, and with all that can be asked for."""
    more = {"lenses": ["logit", "logit@c1"], "dtype": "bfloat16", "attributions": True}
    return probe(four, **asked(out), **more, **options)


def test_a_cluster_gives_the_same_bytes_also_where_nodes_share_a_storage_alone(cluster, four, here, tmp_path):
    told = []
    storage = tmp_path / "storage"
    out = tmp_path / "probe"
    engine = Engine(storage=f"file://{storage}")
    on_ray(four, out, engine=engine, progress=lambda *what: told.append(what))
    assert files_of(out) == here and not list(storage.rglob("*.parquet"))
    assert {label for label, done, every in told if done == every == len(FACTS)} == set(LABELS)


def test_a_lost_node_costs_time_only(cluster, four, here, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "Parted", Slow)
    out = tmp_path / "probe"
    lost = []

    def tell(label: str, done: int, every: int) -> None:
        if not lost and done >= 4:
            lost.append(label)
            cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False)

    try:
        on_ray(four, out, engine=Engine(), progress=tell)
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    assert lost and files_of(out) == here


@pytest.mark.timeout(600)  # two processes that import torch, beside the cluster's own
def test_a_killed_driver_goes_on_from_outside_too(cluster, four, here, tmp_path, quick_python):
    out = tmp_path / "probe"
    script = (
        "import sys; from memprobe import engine, prober; from memprobe.probing import probe; "
        "from tests import test_engine as t; from tests.clusters import Slow; "
        "prober.UNIT = 4; engine.Parted = Slow; t.on_ray(sys.argv[3:], sys.argv[1], engine=t.Engine(sys.argv[2]))"
    )
    command = [*quick_python, "-c", script, str(out), cluster.outside, *four]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: driver.poll() is not None or list(out.glob("parts/*/outcomes-*.parquet")), 240)
    finally:
        driver.send_signal(signal.SIGKILL)
        said = driver.communicate()[1]
    assert driver.returncode == -signal.SIGKILL, said.decode()[-2000:]
    assert open_probe(out).finished != LABELS
    again = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr.decode()[-2000:]
    assert files_of(out) == here


def test_a_unit_that_fails_three_times_is_named_and_the_others_finish(
    cluster, four, here, tmp_path, monkeypatch
):
    out = tmp_path / "probe"
    with monkeypatch.context() as patch:
        patch.setattr(engines, "Parted", Failing)
        with pytest.raises(MemprobeError) as error:
            on_ray(four, out, engine=Engine())
    said = str(error.value)
    assert "1 of 4 checkpoints" in said and "\n" not in said
    assert "c2: batches 3 to 4: failed 3 times: the disk that holds c2 is gone" in said
    assert open_probe(out).finished == ["c1", "c3", "c4"]
    on_ray(four, out, engine=Engine())
    assert files_of(out) == here


def test_a_part_that_cannot_be_read_here_is_read_again(cluster, four, tmp_path, monkeypatch):
    """Else the checkpoint would be called complete without its facts."""
    out = tmp_path / "probe"
    with monkeypatch.context() as patch:
        patch.setattr(engines, "Parted", Torn)
        probe(four[:1], **asked(out), engine=Engine())
    assert (tmp_path / "probe-torn").exists()
    probe(four[:1], **asked(tmp_path / "here"))
    assert files_of(out) == files_of(tmp_path / "here")


def test_parts_of_another_probe_in_a_storage_are_not_taken(cluster, four, tmp_path):
    """A killed probe leaves parts there under its label alone, which other weights may have by now, or other facts."""
    one, other = (f"m={spec.partition('=')[2]}" for spec in four[:2])
    engine = Engine(storage=f"file://{tmp_path / 'storage'}")

    def killed(label, done, every):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe([one], **asked(tmp_path / "one"), engine=engine, progress=killed)
    for spec, facts in ((other, FACTS), (one, FACTS[:-1])):
        with pytest.raises(MemprobeError, match=r"parts/\w+ holds parts of another probe"):
            probe([spec], **asked(tmp_path / f"{len(facts)}", factoids=facts), engine=engine)
    shutil.rmtree(tmp_path / "one" / "parts", ignore_errors=True)
    told = []
    probe([one], **asked(tmp_path / "one"), engine=engine, progress=lambda *what: told.append(what[1]))
    assert told[0] >= 4, "its own are gone on with"
    probe([one], **asked(tmp_path / "here"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "here")
    assert not files_of(tmp_path / "storage")


def test_that_no_node_has_room_is_said(cluster, tmp_path, monkeypatch):
    """Ray waits for one without a word."""
    monkeypatch.setattr(OnRay, "_first_dtype", lambda hands: "float32")
    said = []
    with OnRay(
        Engine(each=Resources(gpus=2, cpus=1), say=said.append), SimpleNamespace(evict=False), tmp_path
    ):
        pass
    assert said == [
        "--engine ray: no node of the cluster has GPU 2, CPU 1 (at most GPU 0, CPU 1): waiting until one joins it"
    ]
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 2.0**33}},
        {"Alive": False, "Resources": {"GPU": 8.0}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert rooms(ray, {"num_cpus": 1.5, "memory": 2**32}) == [2] and no_room(ray, {"num_cpus": 4}) is None
    assert "memory 16 GiB (at most memory 8 GiB)" in no_room(ray, {"memory": 2**34})
    assert "GPU 0.5 (at most GPU 0)" in no_room(ray, {"num_gpus": 0.5})


def test_the_command_of_the_manual(cluster, cli, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text(encoding="utf-8")
    line = next(
        line for line in page.splitlines() if line.startswith("memprobe layers --ckpt 'checkpoints/*'")
    )
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two")):
        save_tiny(tmp_path / "checkpoints" / name, seed=seed)
    rows = [{"id": fact.id, "prompt": fact.prompt, "answer": fact.answer} for fact in FACTS]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = shlex.split(line)[1:]
    code, _, said = cli(*words)
    assert code == 0, said
    at = words.index("--engine")
    code, _, said = cli(*words[:at], *words[at + 2 :], "--out", "probes/here")
    assert code == 0, said
    found, alone = files_of(Path("probes/all")), files_of(Path("probes/here"))
    assert found.keys() == alone.keys() and "report.html" in found
    assert all(found[name] == alone[name] for name in found if name != "report.html")  # which has a date
    assert open_probe("probes/all").finished == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "resources", "said"),
    [
        ("dask", None, "--engine dask: give ray, or ray://HOST:PORT"),
        ("ray://", None, "--engine ray://: give ray, or ray://HOST:PORT"),
        ("auto", None, "--engine auto: give ray, which takes the cluster that this machine belongs to"),
        (
            "10.0.0.1:6379",
            None,
            "set RAY_ADDRESS=10.0.0.1:6379 and give ray; from outside give ray://10.0.0.1:10001",
        ),
        ("ray", "gpus=two", "gpus=two: give a number"),
        ("ray", "tpus=1", "write gpus=1,cpus=4,memory=40GiB"),
        ("ray", "actors=0", "give a whole number of at least 1"),
        ("ray", "memory=much", "a size such as 40GiB"),
    ],
)
def test_what_an_engine_cannot_be(text, resources, said):
    with pytest.raises(MemprobeError, match=said):
        parse_engine(text, resources)


def test_what_an_actor_takes():
    made = parse_engine("ray://head:1", "gpus=2, cpus=1.5,memory=2GiB,actors=3", "s3://bucket/x")
    assert made == Engine("ray://head:1", Resources(2, 1.5, 2 * 2**30), 3, "s3://bucket/x")
    assert (parse_size("500MB"), parse_size("1.5KiB"), parse_size("7")) == (500 * 10**6, 1536, 7)


def test_a_turn_waits_for_what_others_must_have_passed(tmp_path):
    """Else two checkpoints of one shape, both read before the first was held against fp32, would both be."""

    def flow(item):
        yield Turn("in", after="out")
        yield Do("exactly", item)
        yield Turn("out")

    items = [SimpleNamespace(label=label) for label in ("c1", "c2")]
    hands = OnRay(Engine(), SimpleNamespace(evict=False), tmp_path)
    hands.flows = [_Running(item, flow(item)) for item in items]
    first, second = hands.flows
    for one in hands.flows:
        one.begun = True
    hands._advance()
    assert first.waiting.popleft()[0] == "exactly"
    first.out = 1
    hands._advance()
    assert not second.waiting
    first.out = 0
    hands._advance()
    assert first.ended and second.waiting


def test_actors_read_ahead_what_no_other_will_take(tmp_path):
    """And begin it; where nothing else is left, also what another read ahead and is not free for."""
    hands = OnRay(Engine(), SimpleNamespace(evict=False), tmp_path)
    hands.flows = [_Running(SimpleNamespace(label=label), None) for label in LABELS]
    first, second, third, fourth = hands.flows
    one, other = hands.actors = [_Actor(None), _Actor(None)]
    first.begun = second.begun = True
    assert hands._ahead(one) is third.item and hands._ahead(one) is third.item
    assert hands._ahead(other) is fourth.item
    assert hands._to_begin(other) is fourth and third.readers == {one}
    fourth.begun = True
    other.ahead = None  # it holds the fourth now
    assert hands._ahead(other) is None
    assert hands._to_begin(other) is third
    third.begun = True
    assert hands._to_begin(one) is None and hands._ahead(one) is third.item  # it is reading that already


def test_an_actor_puts_the_next_checkpoint_into_the_model_that_it_holds(
    cluster, four, here, tmp_path, monkeypatch
):
    """One actor: of four, the first is let go of when it is held against fp32, so that the second is loaded anew."""
    monkeypatch.setattr(engines, "Parted", Counting)
    out = tmp_path / "probe"
    on_ray(four, out, engine=Engine(actors=1))
    assert files_of(out) == here
    assert Path(f"{out}-reused").read_text() == "2"


def test_actors_take_what_is_asked_where_there_is_room(cluster, tmp_path):
    """GPUs that a node only says it has: Ray counts them as it counts others."""
    import ray

    def taken(actors):
        asked = [actor.handle.__ray_call__.remote(assigned) for actor in actors]
        return sorted((found["GPU"], found["CPU"]) for found in ray.get(asked))

    options = {"lenses": LensSet.of(()), "template": Template("plain"), "loading": LoadOptions(device="cpu")}
    wanted = ProbeRequest(
        FACTS, positions=("answer",), intrusions=None, steps={}, seed=0, batch_size=2,
        keep_residuals=None, evict=False, **options,
    )  # fmt: skip
    node = cluster.add_node(num_gpus=2, **SMALL)
    try:
        with OnRay(Engine(), wanted, tmp_path) as hands:
            assert hands.resources == {"num_gpus": 1.0, "num_cpus": 1.0}
            assert sum(hands._rooms()) == 1  # the node has two GPUs and one core
        half = Engine(each=Resources(gpus=1, cpus=0.5, memory=2**20))
        with OnRay(half, wanted, tmp_path) as hands:
            hands._grow(9)
            assert taken(hands.actors) == [(1.0, 0.5), (1.0, 0.5)]
    finally:
        cluster.remove_node(node)


def assigned(actor):
    """What an actor was given."""
    import ray

    return ray.get_runtime_context().get_assigned_resources()


def test_models_in_memory_stay_here(four, tmp_path):
    from memprobe.models import load

    with pytest.raises(MemprobeError, match="a model in memory stays in this process"):
        probe([load(four[0])], **asked(tmp_path / "probe"), engine=Engine())


def test_without_ray_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MemprobeError, match=r"needs the extra `cluster`"):
        connect("ray")


@pytest.mark.parametrize(
    ("address", "said"), [("ray", "none could be started here"), ("ray://h:1", "no cluster answers")]
)
def test_a_node_that_does_not_come_up_is_one_line(monkeypatch, address, said):
    ray = pytest.importorskip("ray")

    def late(**_options):
        raise Exception("The current node timed out during startup.\nMore.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr("memprobe.cluster._check_there", lambda *_place: None)
    with pytest.raises(MemprobeError, match=f"--engine {address}: .*{said}.*timed out during startup"):
        connect(address)


@pytest.mark.parametrize(
    ("address", "variable", "said"),
    [
        ("ray", "127.0.0.1:{port}", "127.0.0.1:{port}, which RAY_ADDRESS names "),
        ("ray", "ray://127.0.0.1:{port}", "127.0.0.1:{port}, which RAY_ADDRESS names "),
        ("ray://127.0.0.1:{port}", "", "127.0.0.1:{port} "),
        ("ray://127.0.0.1:{port}/", "127.0.0.1:1", "127.0.0.1:{port} "),
    ],
)
def test_a_machine_that_does_not_answer_is_said_before_ray_is_asked(monkeypatch, address, variable, said):
    """Ray itself takes a minute, writes lines of its own, and does not heed that it is to end."""
    ray = pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_options: pytest.fail("Ray was asked"))
    monkeypatch.setenv("RAY_ADDRESS", variable.format(port=port))
    address = address.format(port=port)
    with pytest.raises(MemprobeError) as raised:
        connect(address)
    assert str(raised.value).startswith(
        f"--engine {address}: no cluster answers at {said.format(port=port)}("
    )


def test_all_tasks_are_waited_for_and_none_by_the_cluster(monkeypatch):
    """Whoever waits in the cluster for a client that is killed waits on at full speed."""
    ends, asked = {"a": 3, "b": 1, "c": 5}, []

    class Ray:
        def wait(self, references, num_returns, timeout):
            asked.append(timeout)
            return [one for one in references if len(asked) >= ends[one]][:num_returns], []

    monkeypatch.setattr("memprobe.cluster._MOMENT", 0)
    all_done(Ray(), list(ends))
    assert len(asked) == max(ends.values()) and set(asked) == {0}


def test_a_lost_connection_is_one_line():
    said = r"--engine ray://far: the connection was lost .*; the same command goes on"
    with pytest.raises(MemprobeError, match=said), while_connected("ray://far"):
        raise ConnectionError("Client is shutting down.\nmore")


@pytest.mark.parametrize(("deaths", "connected"), [(4, True), (5, False)])
def test_a_server_that_dies_at_its_start_is_asked_for_again(monkeypatch, deaths, connected):
    """As Ray's proxy reports a client's server process that did not survive its fork."""
    ray = pytest.importorskip("ray")
    asked_for = []

    def init(**options):
        asked_for.append(options)
        if len(asked_for) <= deaths:
            raise ConnectionAbortedError("Initialization failure from server:\nsee its log")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("memprobe.cluster.time.sleep", lambda _seconds: None)
    monkeypatch.setattr("memprobe.cluster._check_there", lambda *_place: None)
    monkeypatch.setenv("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "0")
    if connected:
        assert connect("ray://h:1") == (ray, True)
    else:
        with pytest.raises(MemprobeError, match="no cluster answers"):
            connect("ray://h:1")
    assert len(asked_for) == 5


def test_one_checkpoint_has_two_actors_and_ctrl_c_ends_both(cluster, four, cli, tmp_path, monkeypatch):
    import ray

    rows = [{"id": fact.id, "prompt": fact.prompt, "answer": fact.answer} for fact in FACTS]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["layers", "--ckpt", four[0], "--factoids", tmp_path / "facts.jsonl", "--batch-size", "2"]
    on_cluster = [*words, "--out", tmp_path / "probe", "--engine", "ray"]
    named = []

    def interrupt(bars, label, done, total, note=""):
        if done and not named:
            named.extend(ray.util.list_named_actors(all_namespaces=True))
            raise KeyboardInterrupt  # as Ctrl-C does

    with monkeypatch.context() as patch:
        patch.setattr(engines, "Parted", Beside)
        patch.setattr(engines, "_LOOK", 0.2)
        patch.setattr(Bars, "update", interrupt)
        code, _, said = cli(*on_cluster)
    assert {actor["name"] for actor in named} == {"probe 1", "probe 2"}
    kept = tmp_path / "probe"
    assert code == 130 and said.splitlines() == [
        f"memprobe: interrupted; what is finished is kept in {kept}, the same command goes on"
    ]
    wait_until(lambda: not at_work())
    assert list(kept.glob("parts/*/outcomes-*.parquet"))
    for more in (on_cluster, [*words, "--out", tmp_path / "here"]):
        code, _, said = cli(*more)
        assert code == 0, said
    found, alone = files_of(kept), files_of(tmp_path / "here")
    assert found.keys() == alone.keys()
    assert all(found[name] == alone[name] for name in found if name != "report.html")


def fetched(cache: Path, source: Path, number: int) -> Checkpoint:
    """A step of a model as the hub gives it: into this machine's cache, where it is not there yet."""
    snapshot = cache / "models--owner--name" / "snapshots" / f"{number:040x}"
    if not snapshot.exists():
        with (cache.parent / "fetched").open("a") as file:
            file.write(f"{number} ")
        shutil.copytree(source, snapshot)
    return resolve(f"step{number}={snapshot}")


def test_hub_checkpoints_are_given_back_when_no_actor_reads_them(cluster, four, tmp_path):
    """In half precision, where the model that was read is let go of for the one that it is held against."""
    cache = tmp_path / "hub"
    (cache / "models--owner--name").mkdir(parents=True)
    steps = [
        Deferred(f"owner/name@step{number}", f"step{number}", partial(fetched, cache, Path(spec[3:]), number))
        for number, spec in enumerate(four, 1)
    ]
    found = []
    for name, engine in (("here", None), ("there", Engine())):
        out = tmp_path / name / "probe"
        probe(steps, **asked(out), dtype="bfloat16", evict=True, engine=engine)
        found.append(files_of(out))
        assert sorted((tmp_path / "fetched").read_text().split()) == ["1", "2", "3", "4"], "each once"
        assert not list(cache.rglob("*.safetensors"))
        (tmp_path / "fetched").unlink()
    assert found[0] == found[1]


def test_a_model_split_over_devices_in_an_actor(cluster, four, cli, tmp_path):
    size = Path(four[0][3:], "model.safetensors").stat().st_size
    words = ["layers", "--ckpt", four[0], "--factoids", "known", "--n", "3"]
    split = ["--device-map", "auto", "--max-memory", f"cpu={size // 2 // 1000}KB", "--engine", "ray"]
    for name, more in {"split": split, "whole": ["--device", "cpu"]}.items():
        code, _, said = cli(*words, *more, "--out", tmp_path / name)
        assert code == 0, said
    for table in ("records", "controls", "outcomes"):
        ours, theirs = (next((tmp_path / name / table).iterdir()) for name in ("split", "whole"))
        assert ours.read_bytes() == theirs.read_bytes(), table


def test_residuals_come_home_from_a_storage(cluster, four, tmp_path):
    storage = tmp_path / "storage"
    for name, engine in (("here", None), ("there", Engine(storage=str(storage)))):
        probe(four[:2], **asked(tmp_path / name), keep_residuals="0,2", engine=engine)
    for label in LABELS[:2]:  # the bytes differ: safetensors writes its metadata in an order of its own
        ours, theirs = (read_residuals(tmp_path / name, label) for name in ("there", "here"))
        assert ours.depths == theirs.depths == [0, 2] and ours.rows.equals(theirs.rows)
        assert torch.equal(ours.values, theirs.values)
    assert not files_of(storage)


@pytest.mark.parametrize(
    ("url", "said"),
    [("127.0.0.1:8265", "Ray's dashboard: http://127.0.0.1:8265\n"), ("", ""), (None, "")],
)
def test_where_the_dashboard_is(monkeypatch, capsys, url, said):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: SimpleNamespace(dashboard_url=url))
    connect("ray", engine_of("ray", None, None).say)
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("taken", [lambda *_: None, signal.SIG_DFL])
def test_who_had_taken_sigterm_before_ray_keeps_it(monkeypatch, taken):
    rays = lambda *_: None  # noqa: E731
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **_: SimpleNamespace(dashboard_url=signal.signal(signal.SIGTERM, rays) and None),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    before = signal.signal(signal.SIGTERM, taken)
    try:
        connect("ray")
        assert signal.getsignal(signal.SIGTERM) is (taken if callable(taken) else rays)
    finally:
        signal.signal(signal.SIGTERM, before)
