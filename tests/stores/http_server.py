"""A server of plain files by ranges, and one that breaks HTTP in one way at a time.

It serves one file, whatever the path. `Fault` says what goes wrong, and how many times; what came
in is counted. See also: hub_server.py, a Hub.
"""

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = {
    "truncates": "sends the right headers, and closes before all bytes came",
    "drops": "closes the connection without an answer",
    "stalls": "sends half of the bytes, and then nothing more",
    "lies-short": "says in Content-Length, truly, that it gives fewer bytes than were asked for",
    "lies-long": "gives more bytes than were asked for",
    "lies-range": "gives other bytes, and says which",
    "no-ranges": "answers every range with all of the file",
    "changes": "has another file, with another ETag, from then on",
    "busy": "answers 503 and a page as long as what was asked for",
    "fails": "answers 500",
    "refuses": "answers 403",
    "vanishes": "answers 404",
    "garbage": "answers what is no HTTP",
}


@dataclass
class Fault:
    """What goes wrong, after how many good answers, and how many times; -1 is for ever."""

    kind: str = ""
    after: int = 0
    times: int = -1

    def strike(self) -> str:
        """Return what goes wrong with this answer; "" for nothing."""
        if self.after > 0:
            self.after -= 1
            return ""
        if self.times == 0:
            return ""
        self.times -= 1
        return self.kind


@dataclass
class Web:
    """What the server has, what it does, and what it was asked."""

    content: bytes
    fault: Fault = field(default_factory=Fault)
    has_head: bool = True
    """Whether it knows HEAD."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """The method and the range of each request."""
    sent: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer with the size and the ETag."""
        self._note()
        if not self.web.has_head:
            self._send(405, b"")
            return
        self._send(200, self.web.content)

    def do_GET(self) -> None:
        """Answer with a range, or with what goes wrong."""
        self._note()
        with self.web.lock:
            fault = self.web.fault.strike()
        getattr(self, f"_{fault.replace('-', '_') or 'answer'}")()

    def _note(self) -> None:
        self.web.asked.append((self.command, self.headers.get("Range") or ""))

    @property
    def _range(self) -> tuple[int, int]:
        """The bytes that are wanted."""
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "bytes=0-")
        assert found
        size = len(self.web.content)
        return int(found[1]), min(int(found[2] or size) + 1, size)

    def _send(
        self,
        status: int,
        body: bytes,
        told: tuple[int, int] | None = None,
        *,
        size: int | None = None,
        etag: bool = True,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        if etag:
            self.send_header("ETag", f'"{hashlib.md5(self.web.content).hexdigest()}"')
        if told:
            self.send_header(
                "Content-Range", f"bytes {told[0]}-{told[1] - 1}/{len(self.web.content)}"
            )
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.web.sent += len(body)

    def _answer(self) -> None:
        start, stop = self._range
        if "Range" in self.headers:
            self._send(206, self.web.content[start:stop], (start, stop))
        else:
            self._send(200, self.web.content)

    # --- what goes wrong ---------------------------------------------------------------------

    def _truncates(self) -> None:
        start, stop = self._range
        half = self.web.content[start : (start + stop) // 2]
        self._send(206, half, (start, stop), size=stop - start)
        self.close_connection = True

    def _drops(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _stalls(self) -> None:
        start, stop = self._range
        half = self.web.content[start : (start + stop) // 2]
        self._send(206, half, (start, stop), size=stop - start)
        self.web.stopped.wait(20)
        self.close_connection = True

    def _lies_short(self) -> None:
        start, stop = self._range
        self._send(206, self.web.content[start : stop - 1], (start, stop))

    def _lies_long(self) -> None:
        start, stop = self._range
        self._send(206, self.web.content[start:stop] + b"more", (start, stop))

    def _lies_range(self) -> None:
        start, stop = self._range
        self._send(206, b"\0" * (stop - start), (start + 1, stop + 1))

    def _no_ranges(self) -> None:
        self._send(200, self.web.content)

    def _changes(self) -> None:
        with self.web.lock:  # two requests at once change it once
            if self.web.fault.kind == "changes":
                self.web.content, self.web.fault = self.web.content[::-1], Fault()
        self._answer()

    def _busy(self) -> None:
        start, stop = self._range
        self._send(503, b"busy".ljust(stop - start)[: stop - start])

    def _fails(self) -> None:
        self._send(500, b"")

    def _refuses(self) -> None:
        self._send(403, b"")

    def _vanishes(self) -> None:
        self._send(404, b"")

    def _garbage(self) -> None:
        self.wfile.write(b"\0" * 100)
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    """One that says nothing when a client goes away."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class WebServer:
    """A server that runs, and what it has."""

    url: str
    web: Web


@contextmanager
def serve(content: bytes, name: str = "model.safetensors") -> Iterator[WebServer]:
    """Run a server of one file on a free port."""
    web = Web(content)
    handler = type("Handler", (_Handler,), {"web": web})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield WebServer(f"http://127.0.0.1:{server.server_address[1]}/{name}", web)
    finally:
        web.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
