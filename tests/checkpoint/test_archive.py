"""The zip files of torch: what can be read in two ways is refused, what torch refuses too."""

import io
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import InputError
from tests import build

Members = dict[str, bytes]
WEIGHT = torch.arange(12.0).view(3, 4)


def members() -> Members:
    """What torch.save puts into a zip file, by name."""
    content = io.BytesIO()
    torch.save({"w": WEIGHT}, content)
    with zipfile.ZipFile(content) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(content: Members, *more: tuple[str, bytes]) -> bytes:
    """A zip file of these members, and of `more`, whose names may be there already."""
    made = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(made, "w") as archive:
        for name, data in (*content.items(), *more):
            archive.writestr(name, data)
    return made.getvalue()


def without(suffix: str) -> bytes:
    """A file that lacks a member."""
    return zipped({name: data for name, data in members().items() if not name.endswith(suffix)})


def changed(suffix: str, change: Callable[[bytes], bytes]) -> bytes:
    """A file one of whose members is another."""
    return zipped(
        {name: change(data) if name.endswith(suffix) else data for name, data in members().items()}
    )


def patched(at: Callable[[bytes], int], new: bytes) -> bytes:
    """A file in which the bytes from `at` are `new`."""
    content = zipped(members())
    start = at(content)
    return content[:start] + new + content[start + len(new) :]


def local(content: bytes) -> int:
    """Where the local header of the weight is."""
    return content.index(b"archive/data/0") - 30


def entry(content: bytes) -> int:
    """Where the weight is in the directory."""
    return content.rindex(b"archive/data/0") - 46


REFUSED = {
    "two-of-a-name": (lambda: zipped(members(), ("archive/data/0", bytes(48))), "same name"),
    "no-version": (lambda: without("/version"), "version is missing"),
    "version-0": (lambda: changed("/version", lambda _: b"0\n"), "version is 0"),
    "version-99": (lambda: changed("/version", lambda _: b"99\n"), "version is 99"),
    "byte-order": (lambda: changed("byteorder", lambda _: b"middle"), "byte order"),
    "short-storage": (lambda: changed("data/0", lambda data: data[:-8]), "another size"),
    "long-storage": (lambda: changed("data/0", lambda data: data + bytes(8)), "another size"),
    "no-storage": (lambda: without("data/0"), "no storage '0'"),
    "local-name": (lambda: patched(lambda c: local(c) + 30, b"archive/data/9"), "is not where"),
    "local-size": (lambda: patched(lambda c: local(c) + 22, b"\x2c\0\0\0"), "another size"),
    "local-method": (lambda: patched(lambda c: local(c) + 8, b"\x08\0"), "another size"),
    "encrypted": (lambda: patched(lambda c: entry(c) + 8, b"\x01\0"), "encrypted"),
    "packed-size": (lambda: patched(lambda c: entry(c) + 20, b"\x2c\0\0\0"), "two sizes"),
    "folder": (lambda: patched(lambda c: entry(c) + 38, b"\x10"), "directory is damaged"),
    "offset": (lambda: patched(lambda c: entry(c) + 42, b"\xff\xff\0\0"), "is not where"),
    "count": (lambda: patched(lambda c: len(c) - 14, b"\x06\0\x06\0"), "instead of 6"),
    "disk": (lambda: patched(lambda c: len(c) - 18, b"\x01\0"), "a part of a zip"),
    "directory": (lambda: patched(lambda c: len(c) - 6, b"\xff\xff\xff\0"), "is not where"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_an_ambiguous_zip_is_refused(
    tmp_path: Path, make: Callable[[], bytes], message: str
) -> None:
    """The error says what is wrong, and that the file is corrupt."""
    (tmp_path / "x").write_bytes(make())

    with pytest.raises(InputError, match=f"corrupt or truncated.*{message}"):
        open_checkpoint(tmp_path / "x")


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """A member within the bytes of another one could be changed with it."""
    inner = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 8, 8, 14, 0)
    inner += b"archive/data/1" + bytes(8)
    content = bytearray(zipped(members() | {"archive/extra": inner, "archive/data/1": bytes(8)}))
    at = content.rindex(b"archive/data/1") - 46
    content[at + 42 : at + 46] = struct.pack("<L", content.index(inner))
    (tmp_path / "x").write_bytes(content)

    with pytest.raises(InputError, match="overlaps another zip member"):
        open_checkpoint(tmp_path / "x")


def test_a_rewritten_zip_is_the_same_checkpoint(tmp_path: Path) -> None:
    """Other tools write other headers; the members are what counts."""
    (tmp_path / "x").write_bytes(zipped(members()))

    checkpoint = open_checkpoint(tmp_path / "x")

    assert build.same_bits(build.tensor(checkpoint, checkpoint.tensors["w"]), WEIGHT)


def flipped(content: bytes, generator: random.Random) -> bytes:
    """`content` with a few bytes of its zip structure changed."""
    places = [at for at in range(len(content)) if at < 64 or at > len(content) - 900]
    mutated = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        mutated[generator.choice(places)] = generator.choice([0, 1, 8, 0xFF, 0x50])
    return bytes(mutated)


def damaged() -> Iterator[bytes]:
    """Many files of torch.save whose zip structure is wrong in some way."""
    generator = random.Random(0)
    content = io.BytesIO()
    torch.save({"w": WEIGHT, "v": WEIGHT + 1}, content)
    for _ in range(1500):
        yield flipped(content.getvalue(), generator)


def test_what_both_read_has_the_values_of_torch(tmp_path: Path) -> None:
    """Over many damaged files: never another value than torch.load's, never another error."""
    path = tmp_path / "x"
    read = 0
    for content in damaged():
        path.write_bytes(content)
        try:
            checkpoint = open_checkpoint(path)
            oracle = torch.load(path, weights_only=True)
        except (InputError, UnicodeDecodeError, pickle.UnpicklingError):
            continue  # torch's pickles have fewer opcodes, and its serialization id is text
        for name, info in checkpoint.tensors.items():
            assert build.same_bits(build.tensor(checkpoint, info), oracle[name])
        read += 1

    assert read > 100
