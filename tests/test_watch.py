"""The page of a running job: what makes it new, and what a reader keeps."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from memprobe import dashboard
from memprobe.dashboard.watch import Watch, files_of, serve
from memprobe.errors import MemprobeError
from tests.pages import chromium
from tests.test_studies import write_metrics, write_stage


@pytest.fixture
def run(tmp_path):
    (tmp_path / "recipe.toml").write_text("seed = 0\n", encoding="utf-8")
    write_metrics(tmp_path / ".state" / "1-kvr" / "metrics.jsonl", 2)
    return tmp_path


@contextmanager
def served(watch):
    server = serve(watch)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def get(address, **headers):
    with urlopen(Request(address, headers=headers), timeout=10) as answer:
        return answer.read().decode()


def test_the_page_is_new_when_files_are_and_stays_when_they_cannot_be_read(run):
    watch = Watch([run])
    assert watch.look()
    assert not watch.look()
    first = watch.text
    metrics = run / ".state" / "1-kvr" / "metrics.jsonl"
    write_metrics(metrics, 3, torn='{"step": 4, "lo')
    assert watch.look()
    assert watch.text != first
    assert watch.version == "2"
    write_stage(run / "1-kvr", {"1-kvr": (1.0, 0.8, 1.0)})
    whole = (run / "1-kvr" / "evaluation.json").read_text(encoding="utf-8")
    (run / "1-kvr" / "evaluation.json").write_text(whole[:40], encoding="utf-8")
    kept = watch.text
    assert not watch.look()
    assert "evaluation.json" in watch.note
    assert watch.text == kept
    (run / "1-kvr" / "evaluation.json").write_text(whole, encoding="utf-8")
    assert watch.look()
    assert watch.note == ""


def test_every_file_that_a_study_is_read_from_makes_the_page_new(tmp_path):
    """Each is written after the page was made, and what a page is not made of is no reason to make it."""
    (tmp_path / "run" / "1-a").mkdir(parents=True)
    (tmp_path / "run" / "recipe.toml").write_text("seed = 0\n", encoding="utf-8")
    apart = tmp_path / "apart"
    apart.mkdir()
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "link").symlink_to(apart, target_is_directory=True)
    seen = files_of([tmp_path / "run", tmp_path / "study"])
    for name in (
        "run/cell.json",
        "run/1-a/evaluation.json",
        "run/.state/2-b/metrics.jsonl",
        "study/tables/forgetting.csv",
        "study/patches/run.json",
        "study/patches/a-into-b.residual.last.parquet",
        "study/records/a.parquet",
        "study/factoids.parquet",
        "study/summary.json",
        "apart/comparison.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
        before, seen = seen, files_of([tmp_path / "run", tmp_path / "study"])
        assert len(seen) == len(before) + 1, name
    for name in ("run/1-a/model.safetensors", "study/report.html", "study/.cache/run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
        assert files_of([tmp_path / "run", tmp_path / "study"]) == seen, name
    assert len(files_of([apart / "comparison.json"])) == 1


def test_a_page_that_was_open_shows_the_tables_of_a_study_that_are_written_anew(tmp_path):
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "claims.csv"
    table.write_text("claim,verdict\nforgets,seen\n", encoding="utf-8")
    watch = Watch([tmp_path])
    assert watch.look() and not watch.look()
    first = watch.text
    table.write_text("claim,verdict\nforgets,contradicted\n", encoding="utf-8")
    assert watch.look() and watch.text != first


def test_a_job_without_results_is_waited_for(tmp_path):
    watch = Watch([tmp_path])
    assert not watch.look()
    with served(watch) as address:
        assert "Waiting for the first results" in get(address)
        assert json.loads(get(f"{address}version")) == {"version": "", "note": watch.note}
        (tmp_path / "recipe.toml").write_text("seed = 0\n", encoding="utf-8")
        write_metrics(tmp_path / ".state" / "1-kvr" / "metrics.jsonl", 2)
        assert watch.look()
        assert "connect-src" in get(address)


def test_only_this_machine_is_answered(run):
    watch = Watch([run])
    with served(watch) as address:
        assert address.startswith("http://127.0.0.1:")
        for path, headers, status in (("", {"Host": "evil.example:80"}, 403), ("etc/passwd", {}, 404)):
            with pytest.raises(HTTPError) as refused:
                get(address + path, **headers)
            assert refused.value.code == status
        port = int(address.split(":")[2].strip("/"))
        with pytest.raises(MemprobeError, match=f"--port {port}"):
            serve(watch, port=port)


def test_a_reader_who_goes_away_in_the_middle_is_no_error(run, capfd):
    watch = Watch([run])
    watch.look()
    with served(watch) as address:
        port = int(address.split(":")[2].strip("/"))
        for _ in range(5):
            reader = socket.create_connection(("127.0.0.1", port))
            reader.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            reader.recv(10)
            reader.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )  # reset, not ended
            reader.close()
        assert watch.text in get(address)
    assert capfd.readouterr().err == ""


def test_what_nobody_foresaw_leaves_the_page_that_there_is(run, monkeypatch):
    watch = Watch([run])
    assert watch.look()
    page = watch.text
    monkeypatch.setattr("memprobe.dashboard.watch.open_study", lambda paths: paths[1])
    write_metrics(run / ".state" / "1-kvr" / "metrics.jsonl", 3)
    assert not watch.look()
    assert watch.text == page
    assert watch.note == "IndexError: list index out of range"


def test_a_page_on_disk_asks_nobody(run):
    from memprobe.studies import open_study

    dashboard.write_dashboard(open_study([run]), run / "page.html")
    assert "connect-src" not in (run / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "0"], "--port 0: is of the server; give --watch with it"),
        (["--watch", "--out", "dashboard.html"], "--out dashboard.html: --watch serves the page"),
    ],
)
def test_options_of_the_other_page_are_refused(cli, run, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memprobe.dashboard.watch.run", lambda *_, **__: pytest.fail("it was begun"))
    code, _, err = cli("dashboard", run, *options)
    assert code == 2 and said in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "dashboard.html").exists()


def test_ctrl_c_stops_it(run):
    command = [
        sys.executable,
        "-c",
        "from memprobe.cli import main; main()",
        "dashboard",
        "--watch",
        str(run),
    ]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    assert "version" in get(f"{address}version")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert said.splitlines()[-1] == "stopped"
    assert "Traceback" not in said


@pytest.mark.browser
def test_a_reader_keeps_the_selection_when_the_page_is_new(run):
    watch = Watch([run])
    watch.look()
    with served(watch) as address, chromium() as browser:
        page = browser.new_page()
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector("[data-ready]", state="attached")
        page.locator("#measure label", has_text="grad norm").click()
        points = "document.querySelector('#training .canvas')?.data[0].x.length"
        page.wait_for_function(f"() => {points} === 2")
        write_metrics(run / ".state" / "1-kvr" / "metrics.jsonl", 5)
        assert watch.look()
        page.wait_for_function(f"() => {points} === 5", timeout=20_000)
        assert page.evaluate("state.measure") == "grad_norm"
        assert complaints == []
        page.close()
