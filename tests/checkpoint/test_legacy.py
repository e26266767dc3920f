"""Views of storages, which torch wrote before 0.4: as torch's reader finds them, or refused."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from prune_cli.checkpoint import open_checkpoint
from prune_cli.checkpoint.legacy import _MAGIC, _VERSION
from prune_cli.errors import InputError

ROOT = ("storage", torch.FloatStorage, "root", "cpu", 8, None)
HEAD = (*ROOT[:-1], ("head", 0, 4))
TAIL = (*ROOT[:-1], ("tail", 2, 4))


class Storage:
    """What a persistent id stands for."""

    def __init__(self, saved: tuple[object, ...]) -> None:
        self.saved = saved


class Vector:
    """A tensor of the first four elements of a storage."""

    def __init__(self, saved: tuple[object, ...]) -> None:
        self.storage = Storage(saved)

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell pickle to write what torch does."""
        arguments = (self.storage, 0, (4,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class Pickler(pickle.Pickler):
    """Writes persistent ids."""

    def persistent_id(self, value: object) -> object:
        """Return that of a storage."""
        return value.saved if isinstance(value, Storage) else None


def write(path: Path, *vectors: tuple[object, ...]) -> Path:
    """A file in which eight floats are called root, and each of `vectors` is a tensor."""
    with path.open("wb") as file:
        for value in (_MAGIC, _VERSION, {"little_endian": True}):
            pickle.dump(value, file, 2)
        Pickler(file, 2).dump({f"v{number}": Vector(one) for number, one in enumerate(vectors)})
        pickle.dump(["root"], file, 2)
        file.write((8).to_bytes(8, "little") + torch.arange(8.0).numpy().tobytes())
    return path


def test_views_of_a_storage_are_read(tmp_path: Path) -> None:
    """Each begins at its offset, and one that is named again is the same."""
    path = write(tmp_path / "m.pt", ROOT, HEAD, TAIL, HEAD)

    checkpoint = open_checkpoint(path)

    for name, expected in torch.load(path, weights_only=True).items():
        info = checkpoint.tensors[checkpoint.aliases.get(name, name)]
        assert checkpoint.bits(info).tobytes() == expected.numpy().tobytes()


TWO = {
    "view with another offset": (HEAD, (*ROOT[:-1], ("head", 2, 4))),
    "view with another size": (HEAD, (*ROOT[:-1], ("head", 0, 5))),
    "view called like its storage": (ROOT, (*ROOT[:-1], ("root", 2, 4))),
    "storage called like a view": (HEAD, ("storage", torch.FloatStorage, "head", "cpu", 4, None)),
    "storage of another dtype": (ROOT, ("storage", torch.IntStorage, "root", "cpu", 8, None)),
    "storage of another size": (ROOT, ("storage", torch.FloatStorage, "root", "cpu", 4, None)),
}


@pytest.mark.parametrize("vectors", TWO.values(), ids=TWO)
def test_a_key_that_means_two_storages_is_refused(
    tmp_path: Path, vectors: tuple[tuple[object, ...], ...]
) -> None:
    """Torch would read the first of them in place of the second."""
    with pytest.raises(InputError, match="is said to be two"):
        open_checkpoint(write(tmp_path / "m.pt", *vectors))
