"""Uploads to S3 in parts: some are sent while the next is filled, some are copied by the store.

All requests run in fsspec's own thread, where no signal interrupts them: so an upload that was begun
is known, and is aborted whatever happens to the thread that writes.

Format: the S3 API, "Uploading and copying objects using multipart upload".
See also: `uploads`, what an upload is.
"""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Collection, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from prune_cli.stores.paths import StorePath
from prune_cli.stores.requests import is_same_store, writing
from prune_cli.stores.store import Fact
from prune_cli.stores.traffic import note_sent

_PART_BYTES = 8 << 20
_LEAST_PART = 5 << 20
"""No part but the last may be smaller."""

_LEAST_COPY = 8 << 20
_MOST_PARTS = 10_000
_PLANNED_PARTS = 9_000
"""Fewer, as parts before those that the store copies can be smaller than planned."""

_PATIENCE = 30.0
"""Seconds until a store that does not answer is left with an upload that was to be aborted."""

_LOOK = 0.5
"""Seconds until it is looked whether all work is to end."""

_CHANGED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchUpload")
_NO_CONDITIONS = ("NotImplemented", "501")


_Told = dict[str, Any]
"""What S3 answered about a part."""


class S3Upload:
    """An object that is written in parts; one that fits into a part is put as it is."""

    def __init__(
        self,
        path: StorePath,
        before: Fact | None,
        nbytes: int,
        buffered: int,
        stopped: threading.Event,
    ) -> None:
        self._path, self._before, self._nbytes, self._stopped = path, before, nbytes, stopped
        self._fs = path.store.filesystem
        self._where = _where(path)
        fitting = min(max(buffered, _LEAST_PART), _PART_BYTES)
        self._part_bytes = max(fitting, -(-nbytes // _PLANNED_PARTS))
        self._at_once = max(buffered // self._part_bytes, 1)
        self._buffer = bytearray()
        self._done = 0
        self._id: str | None = None
        self._beginning: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._parts: list[Future[_Told]] = []
        self._waited = 0

    def write(self, data: memoryview | bytes) -> None:
        """Add `data`; what fills a part is sent, unless enough of them are on their way."""
        rest = memoryview(data)
        while rest:
            some = rest[: self._part_bytes - len(self._buffer)]
            self._buffer += some
            rest = rest[len(some) :]
            if len(self._buffer) == self._part_bytes:
                self._send_buffer()
        self._done += len(data)

    @property
    def least_before_copy(self) -> int:
        """How many bytes more have to be written before the store can copy."""
        return max(_LEAST_PART - len(self._buffer), 0) if self._buffer else 0

    def copy(self, source: StorePath, start: int, nbytes: int) -> bool:
        """Have the store itself add bytes of another object; False: it cannot, nothing is added."""
        if not self._may_copy(source, nbytes):
            return False
        if self._buffer:
            self._send_buffer()
        self._begin()
        number = len(self._parts) + 1
        self._add(self._start(self._copy_part(number, self._id, source, start, nbytes)))
        self._done += nbytes
        return True

    def _may_copy(self, source: StorePath, nbytes: int) -> bool:
        parts_left = _MOST_PARTS - len(self._parts) - 2
        enough_parts = parts_left * self._part_bytes > self._nbytes - self._done
        is_worth_it = nbytes >= _LEAST_COPY and not self.least_before_copy
        is_possible = is_same_store(source, self._path) and not self._fs.fixed_upload_size
        return is_possible and is_worth_it and enough_parts and self._does_copy(source)

    def _does_copy(self, source: StorePath) -> bool:
        """Return whether the store copies ranges, which is tried once, in an upload of its own."""
        store = self._path.store
        if store.copies_ranges is None:
            store.copies_ranges = bool(self._wait(self._start(self._try_copy(source))))
        return store.copies_ranges

    def commit(self) -> None:
        """Make it appear, if what was there before still is.

        Raises:
            FileExistsError: another run changed what was there.
        """
        if self._id is None:
            self._wait(self._start(self._put(bytes(self._buffer))))
            return
        if self._buffer:
            self._send_buffer()
        parts = [self._wait(part) for part in self._parts]
        self._wait(self._start(self._complete(parts)))
        self._id = None

    def discard(self) -> None:
        """Abort it, after what is on its way."""
        ended = asyncio.run_coroutine_threadsafe(self._abort(), self._fs.loop)
        with contextlib.suppress(Exception):  # why it is discarded is what has to be told
            ended.result(_PATIENCE)

    # Parts, in the thread that writes.

    def _send_buffer(self) -> None:
        self._begin()
        body, self._buffer = self._buffer, bytearray()
        self._add(self._start(self._send_part(len(self._parts) + 1, body)))

    def _begin(self) -> None:
        if self._id is None:
            self._wait(self._start(self._create()))

    def _add(self, part: Future[_Told]) -> None:
        self._parts.append(part)
        while len(self._parts) - self._waited > self._at_once:
            self._wait(self._parts[self._waited])
            self._waited += 1

    def _wait(self, answer: Future[Any]) -> Any:
        """Return an answer; a store that keeps silent does not hold up the end of all other work."""
        while True:
            try:
                return answer.result(_LOOK)
            except TimeoutError:
                if answer.done():
                    raise
                if self._stopped.is_set():
                    raise InterruptedError("stopped while the store was silent") from None

    def _start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(self._known(work), self._fs.loop)

    # Requests, in the thread of fsspec.

    async def _known(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do `work` as a task that `_abort` can find."""
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.discard(task)

    async def _create(self) -> None:
        self._beginning = asyncio.current_task()
        self._id = (await self._ask("create_multipart_upload"))["UploadId"]

    async def _send_part(self, number: int, body: bytearray) -> _Told:
        answer = await self._ask("upload_part", PartNumber=number, UploadId=self._id, Body=body)
        note_sent(len(body))
        return self._told(number, answer)

    async def _copy_part(
        self, number: int, upload_id: str | None, source: StorePath, start: int, nbytes: int
    ) -> _Told:
        version = source.fact.version if source.fact else ""
        answer = await self._ask(
            "upload_part_copy",
            PartNumber=number,
            UploadId=upload_id,
            CopySource=_where(source),
            CopySourceRange=f"bytes={start}-{start + nbytes - 1}",
            **({"CopySourceIfMatch": f'"{version}"'} if version else {}),
        )
        return self._told(number, answer["CopyPartResult"])

    async def _try_copy(self, source: StorePath) -> bool:
        upload_id = (await self._ask("create_multipart_upload"))["UploadId"]
        try:
            await self._copy_part(1, upload_id, source, 0, _LEAST_PART)
        except Exception:  # noqa: BLE001 - whatever it is, the bytes can be sent
            return False
        finally:
            await self._ask("abort_multipart_upload", UploadId=upload_id)
        return True

    def _told(self, number: int, answer: dict[str, Any]) -> _Told:
        """Return what completes the upload; a store that copied nothing answers without an ETag."""
        is_checked = "ChecksumAlgorithm" in self._fs.s3_additional_kwargs
        sums = {key: value for key, value in answer.items() if key.startswith("ChecksumSHA")}
        return {"PartNumber": number, "ETag": answer["ETag"], **(sums if is_checked else {})}

    async def _put(self, content: bytes) -> None:
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        await self._ask_if_unchanged("put_object", etag, Body=content)
        note_sent(len(content))

    async def _complete(self, parts: Sequence[_Told]) -> None:
        await self._ask_if_unchanged(
            "complete_multipart_upload",
            _etag_of_parts([part["ETag"] for part in parts]),
            UploadId=self._id,
            MultipartUpload={"Parts": list(parts)},
        )

    async def _ask_if_unchanged(self, method: str, etag: str, **arguments: Any) -> None:
        """Ask for what holds only if nobody changed what was there.

        A request that is sent again, for its answer was lost, finds what it did itself: its ETag
        tells.
        """
        condition = {"IfNoneMatch": "*"}
        if self._before:
            condition = {"IfMatch": f'"{self._before.version}"'} if self._before.version else {}
        try:
            await self._ask(method, **condition, **arguments)
        except Exception as error:
            code = _code(error)
            if code in _NO_CONDITIONS and condition:
                await self._ask(method, **arguments)
            elif code in _CHANGED or (self._before and code in ("NoSuchKey", "404")):
                if await self._find_etag() != etag:
                    raise FileExistsError(f"{self._path} was changed") from error
            else:
                raise

    async def _find_etag(self) -> str | None:
        try:
            return str((await self._ask("head_object"))["ETag"]).strip('"')
        except FileNotFoundError:
            return None

    async def _abort(self) -> None:
        tasks = {*self._tasks} - {self._beginning}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._beginning and not self._beginning.done():
            await asyncio.wait([self._beginning])
        if self._id:
            await self._ask("abort_multipart_upload", UploadId=self._id)

    async def _ask(self, method: str, **arguments: Any) -> Any:
        return await self._fs._call_s3(method, **self._where, **arguments)


def _where(path: StorePath) -> dict[str, str]:
    bucket, key, _ = path.store.filesystem.split_path(path.place)
    return {"Bucket": bucket, "Key": key}


def _code(error: BaseException) -> str:
    """Return what S3 calls an error; fsspec keeps that in its cause."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _etag_of_parts(etags: Sequence[str]) -> str:
    """Return the ETag of an object that was uploaded in parts, from theirs."""
    with contextlib.suppress(ValueError):  # those of some kinds of encryption are no digests
        digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in etags)
        return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"
    return ""


# --- uploads that a killed run left ---------------------------------------------------------


def abort_uploads(folder: StorePath, names: Collection[str]) -> None:
    """Abort every upload to one of the objects `names` in `folder`, if that is allowed.

    Raises:
        OutputError: the store does not answer.
    """
    wanted = {_where(folder / name)["Key"] for name in names}
    with (
        writing(folder),
        contextlib.suppress(PermissionError, FileNotFoundError),
    ):  # or there is none
        for upload in [*_list_uploads(folder)]:
            if upload["Key"] in wanted:
                _abort_upload(folder, upload)


def _abort_upload(folder: StorePath, upload: dict[str, Any]) -> None:
    bucket = _where(folder)["Bucket"]
    with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
        folder.store.filesystem.abort_mpu(bucket, upload["Key"], upload["UploadId"])


def _list_uploads(folder: StorePath) -> Iterator[dict[str, Any]]:
    place, ask = _where(folder / "x"), folder.store.filesystem.call_s3
    request = {"Bucket": place["Bucket"], "Prefix": place["Key"].removesuffix("x")}
    after: dict[str, str] = {}
    while True:
        answer = ask("list_multipart_uploads", **request, **after)
        yield from answer.get("Uploads", ())
        if not answer.get("IsTruncated"):
            return
        after = {
            "KeyMarker": answer["NextKeyMarker"],
            "UploadIdMarker": answer["NextUploadIdMarker"],
        }
