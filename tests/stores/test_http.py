"""Files of web servers that keep to HTTP, and of some that do not: the right bytes, or an error."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientTimeout
from fsspec.config import conf

from tests import build
from tests.conftest import Run
from tests.stores.http_server import FAULTS, Fault, WebServer, serve

PRUNE = ("-a", "0.5", "-d", "0", "-m", "fc")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint larger than what is read at once: its weights need several requests."""
    path = tmp_path_factory.mktemp("web") / "model.safetensors"
    weight = build.random_bits("F32", 1000, 1500)
    build.safetensors(path, build.tensors() | {"large.weight": weight})
    return path.read_bytes()


@pytest.fixture
def web(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A server of it, to a client that fsspec's own configuration makes impatient."""
    impatient = {"client_kwargs": {"timeout": ClientTimeout(total=5, sock_read=0.3)}}
    monkeypatch.setitem(conf, "http", impatient)
    monkeypatch.setattr("prune_cli.stores.store.FIRST_WAIT", 0.002)
    monkeypatch.setattr("prune_cli.stores.ranges.FIRST_WAIT", 0.002)
    with serve(content) as server:
        yield server


@pytest.fixture
def expected(run: Run, content: bytes, tmp_path: Path) -> bytes:
    """What pruning the same file here gives."""
    (tmp_path / "here.safetensors").write_bytes(content)
    out = tmp_path / "expected.safetensors"
    assert run("random-structured", tmp_path / "here.safetensors", *PRUNE, "-o", out).code == 0
    return out.read_bytes()


@pytest.mark.parametrize("has_head", [True, False], ids=["HEAD", "GET only"])
def test_a_file_of_a_web_server_is_pruned_as_it_is_here(
    run: Run, web: WebServer, tmp_path: Path, expected: bytes, has_head: bool
) -> None:
    """Also from a server that does not know HEAD, or an address signed for GET."""
    web.web.has_head = has_head
    out = tmp_path / "out.safetensors"

    done = run("random-structured", web.url, *PRUNE, "-o", out)

    assert done.code == 0, done.err
    assert out.read_bytes() == expected


@pytest.mark.parametrize("after", [0, 2], ids=["at once", "in the midst"])
@pytest.mark.parametrize(
    "kind", sorted({*FAULTS} - {"changes", "refuses", "vanishes", "no-ranges"})
)
def test_what_goes_wrong_once_is_asked_for_again(
    run: Run, web: WebServer, tmp_path: Path, expected: bytes, kind: str, after: int
) -> None:
    """The result is right."""
    web.web.fault = Fault(kind, after, times=1)
    out = tmp_path / "out.safetensors"

    done = run("random-structured", web.url, *PRUNE, "-o", out)

    assert done.code == 0, done.err
    assert out.read_bytes() == expected


REASONS = {
    "truncates": "the server broke off before the",
    "stalls": "Timeout",
    "lies-short": "the server broke off before the",
    "lies-long": "the server sends more than the",
    "lies-range": "the server gives other bytes than those from",
    "no-ranges": "the server gives files only whole",
    "changes": "it changed since it was opened",
    "busy": "the server answers 503",
    "refuses": "the server refuses it: 403",
    "vanishes": "it is not there any more",
}


@pytest.mark.parametrize("kind", sorted(REASONS))
def test_what_stays_wrong_is_an_error_in_one_line(
    run: Run, web: WebServer, tmp_path: Path, kind: str
) -> None:
    """It names the file and what the server does; there is no output."""
    web.web.fault = Fault(kind, after=1)
    out = tmp_path / "out.safetensors"

    done = run("random-structured", web.url, *PRUNE, "-o", out)

    assert done.code == 3
    assert done.text.startswith(f"error: {web.url} cannot be read: ")
    assert REASONS[kind] in done.text
    assert "Traceback" not in done.err
    assert not out.exists()


def test_a_server_without_ranges_is_not_read_to_the_end(
    run: Run, web: WebServer, content: bytes
) -> None:
    """Its file may be larger than any memory."""
    web.web.fault = Fault("no-ranges")

    done = run("inspect", web.url)

    assert done.code == 3
    assert web.web.sent <= 2 * len(content)
    assert len(web.web.asked) <= 3


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/model.safetensors", "Cannot connect"),
        ("http:///model.safetensors", "cannot be read"),
    ],
    ids=["nobody", "no host"],
)
def test_an_address_where_nobody_is(run: Run, url: str, reason: str) -> None:
    """It is an error after some attempts."""
    done = run("inspect", url)

    assert done.code == 3
    assert reason in done.text


def test_a_signature_is_shown_nowhere(run: Run, web: WebServer) -> None:
    """An address may hold what gives access to the file."""
    web.web.fault = Fault("refuses")
    web.web.has_head = False

    refused = run("inspect", f"{web.url}?signature=secret")
    web.web.fault = Fault()
    shown = run("inspect", f"{web.url}?signature=secret")

    assert (refused.code, shown.code) == (3, 0)
    assert "secret" not in refused.out + refused.err + shown.out + shown.err
