"""Real stores on this machine, in processes of their own, for tests and for the benchmark.

`moto` does what S3 does. `rclone` serves a folder as S3, and does less: it takes no conditions, and
copies no parts.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KEY, SECRET = "testing-key", "testing-secret"
BUCKET = "models"
_PATIENCE = 30.0

_WHOLE_SUMS = {"AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
"""With a range rclone sends the checksum of the whole object, and botocore would compare them."""


@dataclass(frozen=True)
class Server:
    """A store that runs.

    Attributes:
        url: its endpoint.
        folder: where its objects are, if they are files.
        special: what clients have to be told more, in the environment.
    """

    url: str
    folder: Path | None = None
    special: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What makes clients of S3 come here."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            **self.special,
        }


@contextlib.contextmanager
def moto(log: Path) -> Iterator[Server]:
    """Run moto_server, with an empty bucket."""
    port = free_port()
    program = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(program, port, log):
        server = Server(f"http://127.0.0.1:{port}")
        make_bucket(server)
        yield server


@contextlib.contextmanager
def rclone(folder: Path, log: Path) -> Iterator[Server]:
    """Run `rclone serve s3` on `folder`; a bucket is a folder in it."""
    port = free_port()
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    program = [
        *(find_program("rclone"), "serve", "s3", str(folder), "--config", os.devnull),
        *("--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"),
    ]
    with _running(program, port, log):
        yield Server(f"http://127.0.0.1:{port}", folder, _WHOLE_SUMS)


def make_bucket(server: Server) -> None:
    """Make the bucket. Of moto any key is taken, so it needs no client."""
    request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT")
    urllib.request.urlopen(request, timeout=_PATIENCE).close()


def find_program(name: str) -> str:
    """Return where a program is that came with a wheel: beside Python, or on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name}: pip install -c constraints.txt -e '.[test]'")
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _running(program: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """Run a server until the end, and wait until it answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(program, stdout=output, stderr=output)
    try:
        _wait_for(port, process, log)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while not _listens(port):
        if time.monotonic() > end or process.poll() is not None:
            raise RuntimeError(f"{process.args} does not answer: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
