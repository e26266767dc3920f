"""What is written to a store is what is written here, whole or not at all, whatever happens."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile
from s3fs import S3FileSystem

from prune_cli import OutputError, api
from prune_cli.stores import StorePath, locate
from prune_cli.stores.requests import find_now
from prune_cli.stores.uploads import begin_upload
from prune_cli.write.objects import pending_object
from tests import build
from tests.conftest import Run
from tests.stores import clients
from tests.stores.clients import files_in, state_of, uploads
from tests.stores.kills import interrupt
from tests.stores.proxy import Fault, Proxy, proxied
from tests.stores.servers import BUCKET, Server, moto, rclone

PRUNE = ("random-structured", "-a", "0.25", "-d", "0", "-q")
STAGING = ".prune-cli-partial/"
PART = 8 << 20


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A store that does all that S3 does."""
    with moto(tmp_path_factory.mktemp("moto") / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A store that takes no conditions and copies no parts."""
    folder = tmp_path_factory.mktemp("rclone")
    with rclone(folder / "objects", folder / "log.txt") as server:
        yield server


@pytest.fixture
def watched(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """`s3` as prune-cli sees it from here on, behind a proxy."""
    with proxied(s3) as (server, proxy):
        _go_to(server, monkeypatch)
        yield proxy


def _go_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A folder of the bucket that no other test has; reports call it as they do the one here."""
    name = request.node.name.replace("[", "-").replace(" ", "-").rstrip("]")
    return f"s3://{BUCKET}/{name}/out"


def key(url: str) -> str:
    """The key of a URL."""
    return url.removeprefix(f"s3://{BUCKET}/")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three shards; one is sent in parts."""
    shards = build.split(build.tensors(), build.shard_names(3))
    shards[build.shard_names(3)[0]]["big.weight"] = torch.randn(1200, 2048)
    return build.write_folder(tmp_path_factory.mktemp("input") / "model", shards)


@pytest.fixture(scope="module")
def pruned(model: Path) -> dict[str, bytes]:
    """What a run on this machine makes of it."""
    output = model.with_name("out")
    api.prune_checkpoint(model, output, amount=0.25, dim=0)
    return files_in(output)


# --- the same bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["s3", "poor"])
def test_a_folder_is_what_it_is_here(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    model: Path,
    kind: str,
    pruned: dict[str, bytes],
) -> None:
    """To a store, from it to itself, and from it to this machine; and it verifies."""
    server = request.getfixturevalue(kind)
    _go_to(server, monkeypatch)
    copy, output, again = (f"s3://{BUCKET}/{name}" for name in ("model", "a/out", "b/out"))
    clients.put(server, "model", files_in(model))

    codes = [
        run(*PRUNE, model, "-o", output).code,
        run(*PRUNE, copy, "-o", again).code,
        run("verify", output, "--source", copy, "-q").code,
    ]

    assert codes == [0, 0, 0]
    assert state_of(server, "a/out") == state_of(server, "b/out") == pruned
    assert not uploads(server)


@pytest.mark.usefixtures("watched")
def test_a_file_is_what_it_is_here(run: Run, s3: Server, tmp_path: Path, url: str) -> None:
    """In kind and as safetensors, with its report beside it."""
    source = build.torch_zip(tmp_path / "model.pt", build.tensors())
    here = tmp_path / "here"
    here.mkdir()

    codes = [
        run(*PRUNE, source, "-o", f"{place}/{name}").code
        for name in ("kind.pt", "safe.safetensors")
        for place in (url, here)
    ]

    assert codes == [0, 0, 0, 0]
    assert state_of(s3, key(url)) == files_in(here)
    assert len(files_in(here)) == 4


def test_memory_is_a_store_too(run: Run, model: Path, pruned: dict[str, bytes]) -> None:
    """Fsspec's own: nothing is seen there before it is whole, nor a second time without --force."""
    store = fsspec.filesystem("memory")

    codes = [run(*PRUNE, model, "-o", "memory://a/out").code for _ in range(2)]
    codes.append(run(*PRUNE, model, "-o", "memory://a/out", "--force").code)
    codes.append(run(*PRUNE, model, "-o", "memory://a/out", "--resume").code)

    found = {path.removeprefix("/a/out/"): store.cat_file(path) for path in store.find("/a/out")}
    store.rm("/a", recursive=True)
    assert codes == [0, 6, 0, 0]
    assert found == pruned


class Slow(AbstractBufferedFile):
    """A file of a store that sends blocks as they fill, as those of Google and Azure do."""

    def _initiate_upload(self) -> None:
        self.sent = b""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.sent += self.buffer.getvalue()
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        """Make it appear."""
        FileStore.objects[self.path] = self.sent


class FileStore(AbstractFileSystem):
    """A store that fsspec writes as files."""

    protocol = "gs"
    objects: ClassVar[dict[str, bytes]] = {}

    def info(self, path: str, **_: object) -> dict[str, object]:
        """Return what is known of an object."""
        content = self.objects.get(self._strip_protocol(path))
        if content is None:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(content), "type": "file", "etag": str(hash(content))}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Slow:
        if mode == "xb" and path in self.objects:
            raise FileExistsError(path)
        return Slow(self, path, mode, **options)


def test_a_store_of_files_gets_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed when told to; an exception, and the file's own finalizer, commit nothing."""
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gs", FileStore)
    content = bytes(20 << 20)

    with pending_object(_path("gs://b/whole")) as file:
        file.sink.write(content, 0)
        before = dict(FileStore.objects)
        file.commit()
    with pytest.raises(KeyError), pending_object(_path("gs://b/part")) as file:
        file.sink.write(content, 0)
        raise KeyError
    gc.collect()

    assert before == {}
    assert FileStore.objects == {"b/whole": content}


def test_what_the_store_has_it_copies(
    watched: Proxy, run: Run, s3: Server, url: str, tmp_path: Path
) -> None:
    """Whole shards, and long ranges of others; only what changes is sent."""
    shards = {
        "model-00001-of-00002.safetensors": {
            "a.weight": torch.ones(64, 64),
            "b.weight": torch.randn(2400, 2048),
        },
        "model-00002-of-00002.safetensors": {"c.weight": torch.randn(1200, 2048)},
    }
    folder = build.write_folder(tmp_path / "model", shards)
    source = url.replace("/out", "/model")
    clients.put(s3, key(source), files_in(folder))
    options = (*PRUNE, "-m", "a")
    run(*options, folder, "-o", tmp_path / "out")
    watched.reset()

    ran = run(*options, source, "-o", url)

    assert ran.code == 0, ran.err
    assert state_of(s3, key(url)) == files_in(tmp_path / "out")
    assert watched.received < 7_000_000
    assert not uploads(s3)


# --- not there, or whole ---------------------------------------------------------------------


@pytest.mark.usefixtures("watched")
def test_what_fails_on_the_way_is_not_there(s3: Server, url: str) -> None:
    """An exception among the bytes: no object, and no upload that is paid for."""
    with pytest.raises(KeyError), pending_object(_path(f"{url}/x")) as file:
        for at in range(0, 3 * PART, PART):
            file.sink.write(bytes(PART), at)
        raise KeyError

    assert not state_of(s3, key(url))
    assert not uploads(s3)


def _path(url: str) -> StorePath:
    found = locate(url)
    assert isinstance(found, StorePath)
    return found


FAULTS = {
    "errors": [Fault("PUT .*partNumber=1", 2, status=500), Fault("POST .*uploadId", 1, status=503)],
    "a lost part": [Fault("PUT .*partNumber=2", 1, is_lost=True)],
    "a lost end": [Fault("POST .*uploadId=", 1, is_lost=True)],
    "slow": [Fault("PUT .*partNumber=1", 1, seconds=0.5)],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_what_may_go_away_is_tried_again(
    watched: Proxy, s3: Server, url: str, faults: list[Fault]
) -> None:
    """Errors of the server, and answers that are lost: the same bytes, once."""
    content = bytes(range(256)) * (3 * PART // 512)
    watched.faults = faults

    with pending_object(_path(f"{url}/x")) as file:
        for at in range(0, len(content), PART):
            file.sink.write(content[at : at + PART], at)
        file.commit()

    assert state_of(s3, key(url)) == {"x": content}
    assert not uploads(s3)
    assert not any(fault.times for fault in faults)


def test_a_put_whose_answer_was_lost_is_ours(watched: Proxy, s3: Server, url: str) -> None:
    """The second attempt finds an object that the first has put there."""
    watched.faults = [Fault(f"PUT /{BUCKET}/.*x$", 1, is_lost=True)]

    with pending_object(_path(f"{url}/x")) as file:
        file.sink.write(b"content", 0)
        file.commit()

    assert state_of(s3, key(url)) == {"x": b"content"}


def test_a_store_that_refuses_leaves_nothing(
    watched: Proxy, run: Run, s3: Server, url: str, model: Path
) -> None:
    """For good, at the first shard: an error that names the object, and an empty folder."""
    watched.faults = [Fault("PUT .*/model-0.*safetensors", 99, status=403)]

    ran = run(*PRUNE, model, "-o", url)

    assert ran.code == 6
    assert ".safetensors cannot be written: Forbidden" in ran.text
    assert not state_of(s3, key(url))
    assert not uploads(s3)


@pytest.mark.parametrize(("kind", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_leaves_nothing(
    s3: Server, url: str, model: Path, tmp_path: Path, kind: signal.Signals, workers: int
) -> None:
    """While a part is on its way to a store that keeps silent: no object, and no upload."""
    with proxied(s3) as (server, proxy):
        arguments = (*PRUNE, model, "-o", url, "--workers", workers)
        proxy.faults = [Fault("PUT .*/model-0.*safetensors", 9, seconds=60)]
        process = clients.start(arguments, server.environment, tmp_path / "said.txt")

        def interrupt_it(_: int, is_done: bool) -> None:
            if any("partNumber=1" in one for one in proxy.requests) and not is_done:
                os.kill(process.pid or 0, kind)

        proxy.watch = interrupt_it
        process.join()

    assert process.exitcode == 130, (tmp_path / "said.txt").read_text()
    assert not state_of(s3, key(url))
    assert not uploads(s3)


def test_a_store_that_shows_half_an_object_is_refused(run: Run, model: Path) -> None:
    """Before any work; the message says where to instead."""
    file = run(
        *PRUNE, model / "model-00001-of-00003.safetensors", "-o", "https://a.test/x.safetensors"
    )
    folder = run(*PRUNE, model, "-o", "https://a.test/x")

    for ran in (file, folder):
        assert ran.code == 6
        assert "cannot be written: prune-cli writes to s3, s3a, gs" in ran.text


@pytest.mark.usefixtures("watched")
def test_a_store_that_does_not_let_us_in_is_an_output_error(
    run: Run, url: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a folder and a report: no credentials, no work, exit code 6."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    S3FileSystem.clear_instance_cache()
    source = model / "model-00002-of-00003.safetensors"

    into_folder = run(*PRUNE, model, "-o", url)
    into_file = run(*PRUNE, source, "-o", f"{url}.safetensors")
    report = run(*PRUNE, source, "--dry-run", "-r", f"{url}.json")

    for ran in (into_folder, into_file, report):
        assert ran.code == 6
        assert "cannot be written: Unable to locate credentials" in ran.text


# --- what is there ---------------------------------------------------------------------------


@pytest.mark.usefixtures("watched")
def test_an_output_that_is_there_is_an_error(
    run: Run, s3: Server, url: str, tmp_path: Path, model: Path
) -> None:
    """A file and a folder; --force replaces them, and an input never is."""
    source = build.safetensors(tmp_path / "a.safetensors", build.tensors())
    clients.put(s3, key(url), {"x.safetensors": b"old", "f/a.txt": b"a", "f/old.bin": b"b"})

    refused = run(*PRUNE, source, "-o", f"{url}/x.safetensors")
    full = run(*PRUNE, model, "-o", f"{url}/f")
    replaced = run(*PRUNE, source, "-o", f"{url}/x.safetensors", "--force")
    own = run(*PRUNE, f"{url}/x.safetensors", "-o", f"{url}/x.safetensors", "--force")

    assert (refused.code, full.code, replaced.code, own.code) == (6, 6, 0, 6)
    assert "x.safetensors exists; --force replaces it" in refused.text
    assert "/f is not empty; --force replaces the checkpoint in it" in full.text
    assert "is an input" in own.text


def test_force_takes_the_old_index_first(
    watched: Proxy, run: Run, s3: Server, url: str, model: Path, pruned: dict[str, bytes]
) -> None:
    """No loader takes new shards for the old model; what belongs to it goes, all else stays."""
    run(*PRUNE, model, "-o", url, "--max-shard-size", "1MB")
    clients.client(s3).put_object(Bucket=BUCKET, Key=f"{key(url)}/notes.txt", Body=b"mine")
    watched.reset()

    ran = run(*PRUNE, model, "-o", url, "--force")

    changes = [one for one in watched.requests if one.startswith(("PUT", "POST", "DELETE"))]
    names = [one for one in changes if STAGING not in one]
    found = state_of(s3, key(url))
    assert ran.code == 0
    assert names[0].startswith("DELETE") and "index.json" in names[0]
    assert names[-1].startswith("PUT") and "index.json" in names[-1]
    assert found.pop("notes.txt") == b"mine"
    assert found == pruned


@pytest.mark.parametrize("kind", ["s3", "poor"])
def test_of_two_at_once_one_says_so(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, url: str
) -> None:
    """Both found nothing there; the second to end does not replace the first."""
    server = request.getfixturevalue(kind)
    _go_to(server, monkeypatch)
    path = _path(f"{url}/x")

    with pending_object(path) as one, pending_object(path) as other:
        one.sink.write(b"one", 0)
        other.sink.write(b"other", 0)
        one.commit()
        with pytest.raises(OutputError, match="another run wrote to it"):
            other.commit()

    assert state_of(server, key(url)) == {"x": b"one"}


@pytest.mark.usefixtures("watched")
def test_a_store_that_takes_conditions_decides(s3: Server, url: str) -> None:
    """Even between the last look and the commit."""
    path = _path(f"{url}/x")
    upload = begin_upload(path, find_now(path))
    upload.write(b"ours")
    clients.put(s3, key(url), {"x": b"theirs"})

    with pytest.raises(FileExistsError):
        upload.commit()

    assert state_of(s3, key(url)) == {"x": b"theirs"}


def test_a_run_whose_folder_was_taken_says_so(
    watched: Proxy, s3: Server, url: str, model: Path
) -> None:
    """The second begins with --force while the first writes: the first ends, the second is whole."""
    begun, taken = threading.Event(), threading.Event()

    def hold(_: int, is_done: bool) -> None:
        if (
            not is_done
            and any("partNumber=1" in one for one in watched.requests)
            and not begun.is_set()
        ):
            begun.set()
            taken.wait(30)

    watched.watch = hold
    ended = []
    first = threading.Thread(target=lambda: ended.append(_error_of(model, url, seed=0)))
    first.start()
    begun.wait(30)
    with_force = api.prune_checkpoint(model, url, amount=0.25, dim=0, seed=1, force=True)
    taken.set()
    first.join()

    local = model.with_name("seed-1") / "out"
    local.parent.mkdir()
    api.prune_checkpoint(model, local, amount=0.25, dim=0, seed=1)
    assert with_force.options.seed == 1
    assert "another run" in ended[0]
    assert state_of(s3, key(url)) == files_in(local)
    assert not uploads(s3)


def _error_of(model: Path, url: str, *, seed: int) -> str:
    try:
        api.prune_checkpoint(model, url, amount=0.25, dim=0, seed=seed)
    except OutputError as error:
        return str(error)
    return ""


# --- resumed ---------------------------------------------------------------------------------


def test_resume_redoes_only_what_is_missing(
    watched: Proxy, run: Run, s3: Server, url: str, model: Path, pruned: dict[str, bytes]
) -> None:
    """What is finished is not sent again; what was changed since, or is another's, is not taken."""
    watched.faults = [Fault("PUT .*00002-of.*safetensors$", 99, status=403)]
    failed = run(*PRUNE, model, "-o", url)
    between = state_of(s3, key(url))
    again = run(*PRUNE, model, "-o", url)
    other = run(*PRUNE, model, "-o", url, "--resume", "--seed", "3")
    watched.reset()
    resumed = run(*PRUNE, model, "-o", url, "--resume")
    sent = watched.count("PUT .*00001-of.*partNumber")
    watched.reset()
    done = run(*PRUNE, model, "-o", url, "--resume")
    again_done = watched.count("PUT")
    os.utime(model / "model-00003-of-00003.safetensors", (4e9, 4e9))
    changed = run(*PRUNE, model, "-o", url, "--resume")
    os.utime(model / "model-00003-of-00003.safetensors", (1e9, 1e9))

    codes = [one.code for one in (failed, again, other, resumed, done, changed)]
    assert codes == [6, 6, 6, 0, 0, 6]
    assert "is not empty" in changed.text
    assert "model-00001-of-00003.safetensors" in between
    assert "model.safetensors.index.json" not in between
    assert "--resume continues it, --force starts over" in again.text
    assert "leftovers of another run" in other.text
    assert sent == again_done == 0
    assert state_of(s3, key(url)) == pruned


def test_a_killed_run_is_taken_up(s3: Server, tmp_path: Path) -> None:
    """Two of the moments that `python -m tests.stores.kills` tries."""
    assert list(interrupt(tmp_path, s3, 2, seed=1)) == []
