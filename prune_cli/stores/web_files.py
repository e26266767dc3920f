"""Files of web servers, by exact ranges: what fsspec has for them, but with every answer checked.

fsspec's own takes whatever comes for the bytes that it asked for: a whole file where a server
ignores ranges, another part, a page that says "busy"; and says of every refusal that there is no
such file. Sessions, and how they are configured, are fsspec's.
"""

import re
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

_TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=30, sock_read=30)
"""Seconds: for a request of 8 MB, for a connection, and between two pieces of an answer."""

_NO_HEAD = (400, 403, 405, 501)
"""What servers answer to a HEAD that they do not know; a signed address may be signed for GET."""

_WAIT_FOR = (408, 425, 429)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class WebFiles(HTTPFileSystem):  # type: ignore[misc]
    """What `Store` asks of a file system. A class, for it remembers what version each file had."""

    cachable = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._versions: dict[str, str] = {}

    async def _info(self, url: str, **_: object) -> dict[str, Any]:
        """Return the size of a file, and its ETag if it has one.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: the server refuses it.
            ConnectionError: it cannot answer now.
        """
        async with await self._request("HEAD", url) as answer:
            if answer.status not in _NO_HEAD:
                _check_status(answer)
                return self._facts(url, answer, answer.headers.get("Content-Length"))
        async with await self._request("GET", url, {"Range": "bytes=0-0"}) as answer:
            _check_status(answer)
            told = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            size = told[3] if told else answer.headers.get("Content-Length")
            return self._facts(url, answer, size)

    def _facts(self, url: str, answer: aiohttp.ClientResponse, size: str | None) -> dict[str, Any]:
        is_known = (
            size is not None and size.isdecimal() and not answer.headers.get("Content-Encoding")
        )
        version = _version(answer)
        self._versions.setdefault(url, version)
        return {
            "name": url.partition("?")[0],
            "type": "file",
            "size": int(size or 0) if is_known else None,
            "ETag": version,
        }

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **_: object
    ) -> bytes:
        """Return exactly the bytes `start` to `end` of the version of the file that `info` saw.

        Raises:
            FileNotFoundError: it is not there.
            PermissionError: the server refuses it, or it changed.
            ConnectionError: the server answers with something else than these bytes.
        """
        start, stop = start or 0, end or 0
        async with await self._request(
            "GET", url, {"Range": f"bytes={start}-{stop - 1}"}
        ) as answer:
            _check_status(answer)
            if _version(answer) != self._versions.get(url, _version(answer)):
                raise PermissionError("it changed since it was opened")
            _check_range(answer, start, stop)
            return await _read(answer, stop - start)

    async def _request(
        self, method: str, url: str, headers: dict[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        options = dict(self.kwargs)
        asked = {**options.pop("headers", {}), **(headers or {}), "Accept-Encoding": "identity"}
        if "timeout" not in self.client_kwargs:
            options.setdefault("timeout", _TIMEOUT)
        options.setdefault("allow_redirects", True)
        session = await self.set_session()
        try:
            made: aiohttp.ClientResponse = await session.request(
                method, self.encode_url(url), headers=asked, **options
            )
        except aiohttp.ClientResponseError as error:  # it has the address, which may be signed
            raise ConnectionError("what answers there does not speak HTTP") from error
        except aiohttp.InvalidURL as error:
            raise PermissionError("that is no address of the web") from error
        return made


def _version(answer: aiohttp.ClientResponse) -> str:
    """Return what changes with the bytes of a file, as far as the server says."""
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _check_status(answer: aiohttp.ClientResponse) -> None:
    status = answer.status
    if status in (404, 410):
        raise FileNotFoundError(2, "the server has no such file")
    if status == 416:
        raise PermissionError("it changed since it was opened: it is shorter")
    if 400 <= status < 500 and status not in _WAIT_FOR:
        raise PermissionError(f"the server refuses it: {status} {answer.reason}")
    if status not in (200, 206):
        raise ConnectionError(f"the server answers {status} {answer.reason}")


def _check_range(answer: aiohttp.ClientResponse, start: int, stop: int) -> None:
    """Refuse an answer that is not the bytes `start` to `stop`; all of a file may be these."""
    told = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status == 206 and told and (int(told[1]), int(told[2]) + 1) == (start, stop):
        return
    if answer.status == 200 and (start, str(stop)) == (0, answer.headers.get("Content-Length")):
        return
    if answer.status == 200:
        raise PermissionError("the server gives files only whole; download it first")
    raise ConnectionError(f"the server gives other bytes than those from {start:,} to {stop:,}")


async def _read(answer: aiohttp.ClientResponse, nbytes: int) -> bytes:
    """Return the body, which has to be that long."""
    pieces, missing = list[bytes](), nbytes
    try:
        async for piece in answer.content.iter_any():
            pieces.append(piece)
            missing -= len(piece)
            if missing < 0:
                break
    except aiohttp.ClientPayloadError:
        pass
    if missing:
        what = "sends more than" if missing < 0 else "broke off before"
        raise ConnectionError(f"the server {what} the {nbytes:,} bytes that were asked for")
    return b"".join(pieces)
