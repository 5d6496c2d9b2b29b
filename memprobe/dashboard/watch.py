"""The page of a running job: a small server, for this machine alone, that makes the page anew when files change.

    files ── every few seconds: names, sizes, times ── changed? ── page ──> GET /   GET /version

Half-written files are no fault here: the page stays as it was until they can be read.
"""

from __future__ import annotations

import html
import json
import signal
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl

from memprobe.dashboard.writing import dashboard_text
from memprobe.errors import MemprobeError, first_line
from memprobe.runs import STATE
from memprobe.studies import READ, open_study
from memprobe.walking import walk

SECONDS = 2.0
"""Between two looks at the files."""
_WAITING = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="color-scheme" content="light dark"><title>memprobe</title>
<body style="font: 16px/1.5 system-ui; margin: 4em auto; max-width: 40em; padding: 0 1em">
<p>Waiting for the first results.</p><p style="opacity: .6; overflow-wrap: anywhere">{}</p>"""


class Watch:
    """The newest page that could be made of some directories.

    Attributes:
        text: the page; ``None`` as long as there has been nothing to show.
        version: changes with the page.
        note: why the page is older than the files, else empty.
    """

    def __init__(self, paths: Sequence[Path], **options: Any) -> None:
        """Options are those of :func:`memprobe.dashboard.dashboard_text`."""
        self.paths, self.options = list(paths), options
        self.text: str | None = None
        self.version, self.note = "", ""
        self._seen: object = None
        self._count = 0

    def look(self) -> bool:
        """Makes the page anew if the files have changed; whether there is a new one."""
        seen = files_of(self.paths)
        if seen == self._seen:
            return False
        try:
            text = dashboard_text(open_study(self.paths), version=str(self._count + 1), **self.options)
        except (Exception, pl.exceptions.PanicException) as error:
            # Looked at again: what is being written may be whole by then. Files that nobody foresaw are no reason to
            # leave the reader without the page that there is.
            self._seen = None
            foreseen = isinstance(error, MemprobeError | OSError | pl.exceptions.PolarsError)
            self.note = first_line(error) if foreseen else f"{type(error).__name__}: {first_line(error)}"
            return False
        self._count += 1
        self.text, self.version, self.note, self._seen = text, str(self._count), "", seen
        return True


def files_of(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """(name, size, time) of the files that a page is made of: all of the kinds that a study is read from."""
    found = [path for path in paths if path.is_file()]
    for folder, folders, files in walk([path for path in paths if path.is_dir()]):
        folders[:] = [inner for inner in folders if not inner.startswith(".") or inner == STATE]
        found += [folder / file for file in files if file.endswith(READ)]
    stamps = []
    for path in found:
        try:
            status = path.stat()
        except OSError:  # gone since it was listed
            continue
        stamps.append((str(path), status.st_size, status.st_mtime_ns))
    return sorted(stamps)


def serve(watch: Watch, *, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address that shows the page; the caller runs it.

    Raises:
        MemprobeError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page elsewhere that had its name point here would come with that name.
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                self._send(watch.text or _WAITING.format(html.escape(watch.note)), "text/html")
            elif self.path == "/version":
                self._send(json.dumps({"version": watch.version, "note": watch.note}), "application/json")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A reader who went away in the middle is no error; what else goes wrong costs that reader its page."""

    try:
        return Server(("127.0.0.1", port), Handler)
    except OSError as error:
        raise MemprobeError(
            f"--port {port}: cannot be used ({error.strerror}); choose another, or 0"
        ) from error


def run(watch: Watch, *, port: int = 0, started: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Shows the page until Ctrl-C.

    Args:
        started: called with the address.
        say: called with one line when the page is new, or cannot be made.
    """
    server = serve(watch, port=port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stop = threading.Event()

    def asked(number: int, frame: object) -> None:
        stop.set()  # an exception here could land in the middle of anything
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    before = signal.signal(signal.SIGINT, asked)
    note = ""
    try:
        started(f"http://127.0.0.1:{server.server_address[1]}/")
        while not stop.is_set():
            if watch.look():
                say(f"page {watch.version}")
            elif watch.note and watch.note != note:
                say(f"waiting: {watch.note}")
            note = watch.note
            stop.wait(SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, before)
        server.shutdown()
        server.server_close()
    say("stopped")
