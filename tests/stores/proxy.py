"""A proxy before a store: counts what goes through it, and spoils what it is told to."""

import contextlib
import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

from tests.stores.servers import Server

_PIECE = 1 << 16
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Fault:
    """What happens to requests whose "METHOD /path?query" matches.

    Attributes:
        pattern: what is searched in it.
        times: how often it happens; each takes one off.
        status: the answer in place of the store's.
        seconds: how long the answer is held back.
        is_lost: whether the store gets the request, and its answer goes lost.
        is_cut: whether the answer ends half way.
    """

    pattern: str
    times: int = 1
    status: int = 0
    seconds: float = 0.0
    is_lost: bool = False
    is_cut: bool = False


@dataclass
class Proxy:
    """What went through, and what is to be spoilt."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    received: int = 0
    sent: int = 0
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    busy: int = 0
    """How many requests are at the store."""

    watch: Callable[[int, bool], None] = lambda *_: None
    """Called with the number of a request, and whether the store has done it already."""

    def count(self, pattern: str) -> int:
        """Return how many requests matched."""
        return sum(bool(re.search(pattern, one)) for one in self.requests)

    def reset(self) -> None:
        """Forget what went through, and spoil nothing."""
        self.requests, self.received, self.sent, self.faults = [], 0, 0, []
        self.watch = lambda *_: None

    def note(self, request: str) -> int:
        """Note a request, and return its number."""
        with self.lock:
            self.requests.append(request)
            return len(self.requests)

    def take_fault(self, request: str) -> Fault | None:
        """Return what is to happen to a request."""
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


@contextlib.contextmanager
def proxied(server: Server) -> Iterator[tuple[Server, Proxy]]:
    """Run a proxy before `server`; yield the Server to talk to, and the Proxy."""
    proxy = Proxy()
    handler = type("Handler", (_Handler,), {"proxy": proxy, "target": urlsplit(server.url).netloc})
    listener = _Listener(("127.0.0.1", 0), handler)
    proxy.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield replace(server, url=proxy.url), proxy
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that was killed hangs up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[Proxy]
    target: ClassVar[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self._read_body()
        request = f"{self.command} {self.path}"
        number = self.proxy.note(request)
        self.proxy.watch(number, False)
        fault = self.proxy.take_fault(request)
        if fault and fault.seconds:
            time.sleep(fault.seconds)
        if fault and fault.status:
            self._answer(fault.status, [], b"", is_cut=False)
            return
        status, headers, content = self._ask(body)
        self.proxy.watch(number, True)
        if fault and fault.is_lost:
            self.close_connection = True
            return
        self._answer(status, headers, content, is_cut=bool(fault and fault.is_cut))

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return b"".join(self._read_chunks())
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.target)
        with self.proxy.lock:
            self.proxy.busy += 1
        try:
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("expect", "transfer-encoding", "connection")
            }
            connection.request(
                self.command, self.path, body, {**headers, "Content-Length": str(len(body))}
            )
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
            with self.proxy.lock:
                self.proxy.busy -= 1
        with self.proxy.lock:
            self.proxy.received += len(body)
            self.proxy.sent += len(content)
        return answer.status, answer.getheaders(), content

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, *, is_cut: bool
    ) -> None:
        self.send_response_only(status)
        length = dict(headers).get("Content-Length", str(len(content)))
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        self.close_connection = is_cut

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - http.server's
