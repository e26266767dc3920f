"""State dicts of NumPy arrays, as detectron2 and others leave them."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from prune_cli import prune_checkpoint
from prune_cli.checkpoint import Checkpoint, open_checkpoint
from prune_cli.errors import InputError
from tests import build

Array = npt.NDArray[np.generic]

ARRAYS: dict[str, Array] = {
    "a.weight": np.random.default_rng(0).standard_normal((8, 4)).astype("f4"),
    "b.weight": np.asfortranarray(np.random.default_rng(1).standard_normal((60, 50))),
    "half": np.arange(6).astype("f2"),
    "flag": np.array([True, False]),
    "count": np.array(7),
    "empty": np.zeros((0, 3), "f4"),
    "complex": np.array([1 + 2j], "c8"),
    "bytes": np.arange(200, dtype="u1").reshape(20, 10),
}


def plain(path: Path, content: object, protocol: int) -> None:
    """A plain pickle."""
    path.write_bytes(pickle.dumps(content, protocol))


def zipped(path: Path, content: object, protocol: int) -> None:
    """A file of torch.save."""
    torch.save(content, path, pickle_protocol=max(protocol, 2))


def legacy(path: Path, content: object, protocol: int) -> None:
    """A file of torch.save before 1.6."""
    protocol = max(protocol, 2)
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


SAVERS = {"plain": plain, "zip": zipped, "legacy": legacy}
Save = Callable[[Path, object, int], None]
savers = pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)


def array(checkpoint: Checkpoint, name: str) -> bytes:
    """The bytes of a tensor, in order."""
    info = checkpoint.tensors[name]
    rows = checkpoint.rows(info, 0, info.shape[0] if info.shape else 1)
    assert rows.tobytes() == checkpoint.bits(info).tobytes()
    return rows.tobytes()


@savers
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_are_tensors(tmp_path: Path, save: Save, protocol: int) -> None:
    """Wherever their bytes are: in the file, or as text in protocols before 3."""
    save(tmp_path / "x", {"model": ARRAYS, "__author__": "somebody"}, protocol)

    checkpoint = open_checkpoint(tmp_path / "x")

    assert checkpoint.tensors.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert checkpoint.tensors[name].shape == value.shape
        assert array(checkpoint, name) == value.tobytes("C"), name
    assert [dropped.key for dropped in checkpoint.dropped] == ["__author__"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_are_pruned(tmp_path: Path, protocol: int) -> None:
    """The channels are those of the same weights in safetensors."""
    arrays = {name: ARRAYS[name] for name in ("a.weight", "b.weight")}
    plain(tmp_path / "x", {"model": arrays}, protocol)
    tensors = {name: torch.from_numpy(value).contiguous() for name, value in arrays.items()}
    build.safetensors(tmp_path / "y", tensors)

    for name in "xy":
        prune_checkpoint(tmp_path / name, tmp_path / f"{name}.out", amount=0.5, dim=0)

    assert (tmp_path / "x.out").read_bytes() == (tmp_path / "y.out").read_bytes()


def test_arrays_beside_tensors_are_left_out(tmp_path: Path) -> None:
    """Where a state dict has tensors, its arrays are none."""
    torch.save({**build.tensors(), "mean": np.zeros((2, 2))}, tmp_path / "x")

    checkpoint = open_checkpoint(tmp_path / "x")

    assert checkpoint.tensors.keys() == build.tensors().keys()
    assert checkpoint.dropped[0].reason == "not a tensor: ndarray"


def test_one_array_under_two_names_is_an_alias(tmp_path: Path) -> None:
    """Whether its bytes are in the file or not."""
    value = ARRAYS["a.weight"]
    for protocol in (2, 4):
        plain(tmp_path / "x", {"b.weight": value, "a.weight": value}, protocol)

        assert open_checkpoint(tmp_path / "x").aliases == {"b.weight": "a.weight"}


@pytest.mark.parametrize("octet", [b"\xff", b"\xc4\x80"], ids=["no text", "beyond Latin-1"])
def test_text_that_means_no_bytes_is_refused(tmp_path: Path, octet: bytes) -> None:
    """Protocols before 3 hold bytes as text, long ones where they are."""
    plain(tmp_path / "x", {"w": np.zeros((64, 64), "f4")}, 2)
    content = (tmp_path / "x").read_bytes()
    at = content.index(bytes(100)) + 50
    (tmp_path / "x").write_bytes(content[:at] + octet + content[at + len(octet) :])

    with pytest.raises(InputError, match="the text of an array means no bytes"):
        open_checkpoint(tmp_path / "x")


def test_a_big_endian_array_is_refused(tmp_path: Path) -> None:
    """With what to do about it."""
    plain(tmp_path / "x", {"w": ARRAYS["a.weight"].astype(">f4")}, 4)

    with pytest.raises(InputError, match="'w' is a big-endian NumPy array"):
        open_checkpoint(tmp_path / "x")


def test_arrays_of_other_things_are_left_out(tmp_path: Path) -> None:
    """Strings and objects are no weights."""
    other = {"names": np.array(["a"]), "things": np.array([None, {}])}
    plain(tmp_path / "x", {"w": ARRAYS["a.weight"], **other}, 4)

    checkpoint = open_checkpoint(tmp_path / "x")

    assert checkpoint.tensors.keys() == {"w"}
    assert [dropped.key for dropped in checkpoint.dropped] == ["names", "things"]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_tensors_in_a_plain_pickle_are_found(tmp_path: Path, protocol: int) -> None:
    """pickle.dump puts each storage into it as a file of the legacy format."""
    content = {"w": torch.randn(3, 4).t(), "v": torch.arange(100)}
    plain(tmp_path / "x", content, protocol)

    checkpoint = open_checkpoint(tmp_path / "x")

    for name, tensor in content.items():
        assert build.same_bits(build.tensor(checkpoint, checkpoint.tensors[name]), tensor)


def test_tensors_in_an_old_plain_pickle_are_refused(tmp_path: Path) -> None:
    """There they are text; the error says what to do."""
    plain(tmp_path / "x", {"w": torch.ones(2, 2)}, 2)

    with pytest.raises(InputError, match="x holds tensors as text.*save it with torch.save"):
        open_checkpoint(tmp_path / "x")
