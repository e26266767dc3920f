"""Thousands of damaged files: each is refused by a PruneError, and none by anything else.

The mutations are random, from a fixed seed, on real files: so a failure comes again.
"""

import faulthandler
import json
import pickletools
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from prune_cli import prune_checkpoint
from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import InputError, OutputError, PruneError, RequestError
from tests import build
from tests.conftest import Run

SECONDS = 60
"""What takes longer than this hangs: all threads are shown, and the test run ends."""

TOKENS = [
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"-1", b"0", b"1e9", b"null", b"true", b"\\ud800"),
    *(b"99999999999999999999", b'"F32"', b'"F4"', b'"dtype"', b'"data_offsets"', b"\x00", b"\xff"),
]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Ends what hangs."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def mutate(content: bytes, generator: random.Random) -> bytes:
    """`content` with a few random injuries."""
    mutated = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(mutated) + 1)
        match generator.randrange(6):
            case 0 if at < len(mutated):
                mutated[at] ^= 1 << generator.randrange(8)
            case 1 if at < len(mutated):
                mutated[at] = generator.randrange(256)
            case 2:
                del mutated[at : at + generator.randint(1, 8)]
            case 3:
                mutated[at:at] = generator.choice(TOKENS)
            case 4:
                token = generator.choice(TOKENS)
                mutated[at : at + len(token)] = token
            case _:
                start = generator.randrange(len(mutated) + 1)
                mutated[at:at] = mutated[start : start + generator.randint(1, 32)]
    return bytes(mutated)


def survives(path: Path) -> bool:
    """Whether the file can be opened and pruned; any error but a PruneError is a bug."""
    try:
        checkpoint = open_checkpoint(path)
        report = prune_checkpoint(path, path.with_name("out"), amount=0.5, force=True)
    except PruneError as error:
        assert isinstance(error, (InputError, RequestError, OutputError)), error
        assert str(error)
        return False
    assert report.totals.tensors_pruned <= len(checkpoint.tensors)
    return True


def damage(path: Path, count: int, injure: Callable[[random.Random], bytes]) -> tuple[int, int]:
    """How many of `count` damaged files could still be pruned, and how many could not."""
    generator = random.Random(0)
    survived = 0
    for _ in range(count):
        path.write_bytes(injure(generator))
        survived += survives(path)
    assert {found.name for found in path.parent.iterdir()} <= {path.name, "out", "out.report.json"}
    return survived, count - survived


def small() -> build.Tensors:
    """Few and small tensors, so that injuries hit what matters."""
    return {"a.weight": torch.ones(4, 3), "a.bias": torch.ones(4), "n": torch.tensor(1)}


def test_damaged_safetensors_headers(tmp_path: Path) -> None:
    """Two thousand injured headers of which the length is true."""
    content = build.safetensors(tmp_path / "x", small()).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]

    def injure(generator: random.Random) -> bytes:
        mutated = mutate(header, generator)
        return len(mutated).to_bytes(8, "little") + mutated + data

    survived, refused = damage(tmp_path / "x", 2000, injure)

    assert refused > 1000 and survived > 10


def test_damaged_safetensors_numbers(tmp_path: Path) -> None:
    """A thousand headers that are good JSON with other numbers, dtypes and names."""
    content = build.safetensors(tmp_path / "x", small()).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    numbers = [0, 1, 3, 4, 12, 48, 64, -1, 1 << 31, 1 << 62, 1 << 64, 1.5, None, "4", [], True]

    def injure(generator: random.Random) -> bytes:
        changed = json.loads(json.dumps(header))
        entry = changed[generator.choice(["a.weight", "a.bias", "n"])]
        match generator.randrange(4):
            case 0:
                entry["dtype"] = generator.choice(["F64", "U8", "F4", "F6_E2M3", "", 3, "BF16"])
            case 1:
                entry["shape"] = generator.choices(numbers, k=generator.randint(0, 4))
            case 2:
                entry["data_offsets"][generator.randrange(2)] = generator.choice(numbers)
            case _:
                entry[generator.choice(["shape", "data_offsets"])] = generator.choice(numbers)
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    _, refused = damage(tmp_path / "x", 1000, injure)

    assert refused > 800


@pytest.mark.parametrize("saver", ["zip", "legacy"])
def test_damaged_torch_files(tmp_path: Path, saver: str) -> None:
    """A thousand injured files of each format of torch.save, anywhere in the file."""
    content = build.SAVERS[saver](tmp_path / "x", {"model": small(), "epoch": 3}).read_bytes()

    _, refused = damage(tmp_path / "x", 1000, lambda generator: mutate(content, generator))

    assert refused > 300


def test_damaged_pickles(tmp_path: Path) -> None:
    """A thousand injured pickles in a zip file that is otherwise whole."""
    build.torch_zip(tmp_path / "x", {"model": small(), "epoch": 3})
    with zipfile.ZipFile(tmp_path / "x") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    [name] = (name for name in members if name.endswith("/data.pkl"))
    opcodes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]

    def injure(generator: random.Random) -> bytes:
        mutated = bytearray(mutate(members[name], generator))
        for _ in range(generator.randint(0, 2)):
            at = generator.randrange(len(mutated))
            mutated[at : at + 1] = generator.choice(opcodes)
        with zipfile.ZipFile(tmp_path / "y", "w") as archive:
            for member, content in members.items():
                archive.writestr(member, bytes(mutated) if member == name else content)
        result = (tmp_path / "y").read_bytes()
        (tmp_path / "y").unlink()
        return result

    _, refused = damage(tmp_path / "x", 1000, injure)

    assert refused > 500


def test_damaged_indexes(tmp_path: Path) -> None:
    """Five hundred injured indexes of a folder."""
    folder = build.write_folder(tmp_path / "m", build.split(small(), build.shard_names(2)))
    index = folder / "model.safetensors.index.json"
    content = index.read_bytes()
    generator = random.Random(0)
    refused = 0

    for _ in range(500):
        index.write_bytes(mutate(content, generator))
        try:
            open_checkpoint(folder)
        except InputError:
            refused += 1

    assert refused > 300


@pytest.mark.parametrize("saver", build.SAVERS)
def test_damaged_files_on_the_command_line(tmp_path: Path, run: Run, saver: str) -> None:
    """Through `main` the exit codes are the documented ones, and there is never a traceback."""
    path = build.SAVERS[saver](tmp_path / "x", small())
    content = path.read_bytes()
    generator = random.Random(1)
    codes = set()

    for _ in range(60):
        path.write_bytes(mutate(content, generator))
        ran = run("random-structured", path, "-a", "0.5", "-f", "-q", "-o", tmp_path / "out")
        assert "Traceback" not in ran.err
        assert (ran.code == 0) == (ran.err == ""), ran.err
        codes.add(ran.code)

    assert codes <= {0, 3, 4}
