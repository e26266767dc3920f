"""Files that appear whole or not at all, and streams that only go forward."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prune_cli.checkpoint.source import FileSource
from prune_cli.errors import InputError, OutputError
from prune_cli.write.atomic import pending, write_file
from prune_cli.write.checks import check_can_write
from prune_cli.write.paths import is_special
from prune_cli.write.sinks import FileSink, StreamSink

CONTENT = bytes(range(256)) * 9000  # more than two pieces


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FileSource]:
    """A file to copy from."""
    (tmp_path / "source").write_bytes(CONTENT)
    opened = FileSource(os.open(tmp_path / "source", os.O_RDONLY))
    yield opened
    opened.close()


@pytest.fixture(params=["nameless", "hidden", "no proc"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a file is before it has its name: it has none where the system has such files."""
    if request.param == "hidden":
        monkeypatch.delattr(os, "O_TMPFILE")
    if request.param == "no proc":
        monkeypatch.setattr("prune_cli.write.atomic._path_of", lambda _: Path("/nowhere"))
    return str(request.param)


def test_a_file_appears_when_it_is_committed(tmp_path: Path, kind: str) -> None:
    """Until then its bytes are under no name, or under another in the same folder."""
    (tmp_path / "out").write_text("old")

    with pending(tmp_path / "out") as file:
        file.set_size(6)
        file.sink.write(b"def", 3)
        assert (tmp_path / "out").read_text() == "old"
        assert len(list(tmp_path.iterdir())) == (1 if kind == "nameless" else 2)
        file.sink.write(b"abc", 0)
        file.commit()
        assert (tmp_path / "out").read_bytes() == b"abcdef"

    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.usefixtures("kind")
def test_an_unfinished_file_is_removed(tmp_path: Path, error: type[BaseException]) -> None:
    """Whatever is raised, the old file stays and the new one goes."""
    (tmp_path / "out").write_text("old")

    with pytest.raises(error), pending(tmp_path / "out") as file:
        file.sink.write(b"new", 0)
        raise error

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_holes_are_zero(tmp_path: Path) -> None:
    """What is never written of a file that has its size is zero."""
    with pending(tmp_path / "out") as file:
        file.set_size(10)
        file.sink.zero(9, 0)
        file.sink.write(b"x", 9)
        file.commit()

    assert (tmp_path / "out").read_bytes() == bytes(9) + b"x"


@pytest.mark.parametrize("start", [0, 1, 1 << 20])
def test_files_are_copied_into_files(tmp_path: Path, source: FileSource, start: int) -> None:
    """In the kernel, any part to any place."""
    with pending(tmp_path / "out") as file:
        file.sink.copy(source, start, len(CONTENT) - start, 5)
        file.commit()

    assert (tmp_path / "out").read_bytes() == bytes(5) + CONTENT[start:]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_what_the_kernel_will_not_copy_is_copied_by_hand(
    tmp_path: Path, source: FileSource, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Across some file systems copy_file_range is refused; the bytes are the same."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refuse)

    with pending(tmp_path / "out") as file:
        file.sink.copy(source, 3, len(CONTENT) - 3, 0)
        file.commit()

    assert (tmp_path / "out").read_bytes() == CONTENT[3:]


def test_where_there_is_no_kernel_copy_it_is_done_by_hand(
    tmp_path: Path, source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Linux has copy_file_range."""
    monkeypatch.delattr(os, "copy_file_range")

    with pending(tmp_path / "out") as file:
        file.sink.copy(source, 0, len(CONTENT), 0)
        file.commit()

    assert (tmp_path / "out").read_bytes() == CONTENT


def test_a_source_that_ends_early_is_an_input_error(tmp_path: Path, source: FileSource) -> None:
    """A file that was cut while it was read is told as such, by a file and by a stream."""
    with pytest.raises(InputError, match=r"the input ended at byte 2,304,000"):
        list(source.pieces(0, len(CONTENT) + 1))
    with pytest.raises(InputError, match="ended"), pending(tmp_path / "out") as file:
        file.sink.copy(source, 0, len(CONTENT) + 1, 0)

    assert not (tmp_path / "out").exists()


def test_a_source_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    """Reading a folder, for one, fails."""
    descriptor = os.open(tmp_path, os.O_RDONLY)

    with pytest.raises(InputError, match="cannot be read"):
        list(FileSource(descriptor).pieces(0, 1))
    os.close(descriptor)


def test_a_stream_goes_forward_only(source: FileSource) -> None:
    """Bytes reach a pipe in order; a step back or ahead is a bug of the caller."""
    read, write = os.pipe()
    sink = StreamSink(Path("-"), write)

    sink.write(b"abc", 0)
    sink.copy(source, 65, 3, 3)
    sink.zero(2, 6)

    assert os.read(read, 10) == b"abcABC\0\0"
    assert not sink.seekable
    for at in (0, 7):
        with pytest.raises(ValueError, match="a stream is at byte 8"):
            sink.write(b"x", at)
    os.close(read)
    with pytest.raises(OutputError, match="stdout was closed"):
        sink.write(b"x", 8)
    os.close(write)


def test_write_file_writes_all_or_nothing(tmp_path: Path) -> None:
    """A file in a folder that is not there cannot be written, and says so."""
    write_file(tmp_path / "a", b"abc")

    assert (tmp_path / "a").read_bytes() == b"abc"
    with pytest.raises(OutputError, match="missing/a cannot be written: No such file"):
        write_file(tmp_path / "missing" / "a", b"abc")


def test_special_files_are_told(tmp_path: Path) -> None:
    """Pipes and devices are; files, folders and what is not there are not."""
    os.mkfifo(tmp_path / "pipe")

    assert is_special(tmp_path / "pipe")
    assert is_special(Path("/dev/null"))
    assert not any(map(is_special, (tmp_path, tmp_path / "none", Path(__file__))))


def test_all_that_stands_in_the_way_is_named_at_once(tmp_path: Path) -> None:
    """One error for several outputs."""
    (tmp_path / "a").write_text("")

    with pytest.raises(OutputError) as caught:
        check_can_write([tmp_path / "a", tmp_path / "no" / "b"], [], force=False)

    assert len(str(caught.value).splitlines()) == 2


def test_a_failing_file_sink_names_its_file(tmp_path: Path, source: FileSource) -> None:
    """A descriptor that only reads cannot be written; the error has the path."""
    sink = FileSink(tmp_path / "out", source.descriptor)

    with pytest.raises(OutputError, match="out cannot be written"):
        sink.write(b"x", 0)
    with pytest.raises(OutputError, match="out cannot be written"):
        sink.copy(source, 0, 1, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_leaves_nothing(small_disk: Path, source: FileSource) -> None:
    """Where there is no room, the error says so, and the half file is gone."""
    with (
        pytest.raises(OutputError, match="No space left on device"),
        pending(small_disk / "out") as file,
    ):
        file.set_size(len(CONTENT))
        file.sink.copy(source, 0, len(CONTENT), 0)

    assert list(small_disk.iterdir()) == []
