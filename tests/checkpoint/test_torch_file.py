"""Files of torch.save and torch.jit.save: read without their weights, and without their code."""

import argparse
import collections
import datetime
import importlib
import io
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.pickles import Program, run_pickle
from prune_cli.checkpoint.torch_names import TABLE
from prune_cli.errors import InputError
from tests import build

FORMATS = {"zip": build.torch_zip, "legacy": build.torch_legacy}
both_formats = pytest.mark.parametrize("save", FORMATS.values(), ids=FORMATS)


def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """The tensor called `name`."""
    return build.tensor(checkpoint, checkpoint.tensors[name])


@both_formats
@pytest.mark.parametrize("dtype", [name for name in build.TORCH_DTYPES if name != "F4"])
def test_every_dtype_lies_in_the_file(tmp_path: Path, save: build.Saver, dtype: str) -> None:
    """The offset that was found leads to the bytes that torch wrote."""
    tensor = build.random_bits(dtype, 3, 5)
    path = save(tmp_path / "x", {"a": torch.ones(3), "w": tensor})

    info = open_checkpoint(path).tensors["w"]

    start = info.offset
    assert start is not None and info.is_plain
    assert path.read_bytes()[start : start + info.nbytes] == bytes(build.octets(tensor))


@both_formats
def test_views_and_strides_are_kept(tmp_path: Path, save: build.Saver) -> None:
    """Slices, transposes, expanded, 0-d and empty tensors have the values that torch.load gives."""
    base = torch.arange(24.0).view(4, 6)
    content = {
        "slice": base[1:3, 2:5],
        "transposed": torch.randn(5, 3).t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "expanded": torch.randn(3, 1).expand(3, 7),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "rows of none": torch.empty(4, 0)[1:],
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "conjugate": torch.randn(2, 2, dtype=torch.complex64).conj(),
        "negative": torch.randn(2, 2, dtype=torch.complex64).conj().imag,
    }
    path = save(tmp_path / "x", content)

    checkpoint = open_checkpoint(path)

    oracle = torch.load(path, weights_only=True)
    for name in content:
        assert torch.equal(read(checkpoint, name), oracle[name].resolve_conj().resolve_neg()), name


@both_formats
def test_other_classes_stand_in_for_themselves(tmp_path: Path, save: build.Saver) -> None:
    """What is no tensor is dropped under its class's name, NumPy's scalars and arrays too."""
    extra = {
        "args": argparse.Namespace(lr=0.1),
        "fraction": __import__("fractions").Fraction(1),
        "best": np.float64(3),
        "seen": np.arange(3),
        "when": datetime.timedelta(1),
        "path": Path("x"),
        "queue": collections.deque([1, 2]),
    }
    path = save(tmp_path / "x", {"model": build.tensors(), **extra})

    checkpoint = open_checkpoint(path)

    assert checkpoint.tensors.keys() == build.tensors().keys()
    reasons = {dropped.key: dropped.reason.partition(": ")[2] for dropped in checkpoint.dropped}
    assert reasons == {
        "args": "Namespace",
        "fraction": "Fraction",
        "best": "float64",
        "seen": "ndarray",
        "when": "timedelta",
        "path": type(Path("x")).__name__,
        "queue": "deque of 2",
    }


_CODE = """
import enum
class Config:
    def __init__(self, value): self.value = value
class Settings(dict): pass
class Steps(list): pass
class Kind(enum.Enum):
    BIG = 1
class Outer:
    class Inner:
        def __init__(self): self.value = 1
import torch
class Odd(torch.Tensor): pass
"""


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that is there when the checkpoint is saved, until `remove` takes it away."""
    (tmp_path / "gone.py").write_text(_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("gone")
    sys.modules.pop("gone", None)


def remove(module: ModuleType) -> None:
    """Lets nobody import `module` again."""
    Path(str(module.__file__)).unlink()
    del sys.modules[module.__name__]
    importlib.invalidate_caches()


@both_formats
def test_a_class_that_is_not_here_needs_no_code(
    tmp_path: Path, save: build.Saver, gone: ModuleType
) -> None:
    """Its objects are dropped, as whatever is no tensor, and the report can say what they were."""
    extra = {
        "a": gone.Config([1]),
        "b": gone.Settings(lr=0.1),
        "c": gone.Kind.BIG,
        "d": gone.Outer.Inner(),
    }
    path = save(tmp_path / "x", {"model": build.tensors(), **extra})
    remove(gone)

    checkpoint = open_checkpoint(path)

    assert checkpoint.tensors.keys() == build.tensors().keys()
    reasons = {dropped.key: dropped.reason.partition(": ")[2] for dropped in checkpoint.dropped}
    assert reasons == {
        "a": "Config",
        "b": "Settings of 1 entries, 0 of them tensors",
        "c": "Kind",
        "d": "Inner",
    }


@both_formats
@pytest.mark.parametrize("is_here", [True, False])
def test_a_list_of_another_class_is_counted(
    tmp_path: Path, save: build.Saver, gone: ModuleType, is_here: bool
) -> None:
    """Whether its class is here makes no difference."""
    path = save(tmp_path / "x", {"model": build.tensors(), "steps": gone.Steps([1, 2])})
    if not is_here:
        remove(gone)

    [dropped] = open_checkpoint(path).dropped

    assert dropped.reason.endswith(": Steps of 2")


HELD: dict[str, Callable[[torch.Tensor], object]] = {
    "mapping": lambda tensor: {"model": {"w": [tensor]}},
    "set": lambda tensor: frozenset([tensor]),
    "storage": lambda tensor: (tensor.untyped_storage(),),
    "object": lambda tensor: argparse.Namespace(w=tensor),
}


@both_formats
@pytest.mark.parametrize("kind", ["Config", "Settings"])
@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_tensors_of_a_class_that_is_not_here_are_not_lost(
    tmp_path: Path,
    save: build.Saver,
    gone: ModuleType,
    kind: str,
    held: Callable[[torch.Tensor], object],
) -> None:
    """A state dict is taken, and what lies beside it in objects is listed as left out."""
    value = held(torch.ones(2, 2))
    holder = gone.Config(value) if kind == "Config" else gone.Settings(x=value)
    path = save(tmp_path / "x", {"net": holder, "ema": build.tensors()})
    remove(gone)

    checkpoint = open_checkpoint(path)

    assert checkpoint.tensors.keys() == build.tensors().keys()
    assert [dropped.key for dropped in checkpoint.dropped] == ["net"]
    assert "which holds tensors" in checkpoint.dropped[0].reason


@both_formats
def test_a_state_dict_in_an_object_is_found(
    tmp_path: Path, save: build.Saver, gone: ModuleType
) -> None:
    """Where no mapping holds one, the attributes of objects are looked into."""
    holder = gone.Config({"inner": [None, build.tensors()]})
    path = save(tmp_path / "x", {"net": holder, "epoch": 3})
    remove(gone)

    checkpoint = open_checkpoint(path)

    assert checkpoint.tensors.keys() == build.tensors().keys()
    picked = open_checkpoint(path, Loading(("net.value.inner.1",)))
    assert picked.tensors == checkpoint.tensors


@both_formats
def test_a_subclass_of_tensor_is_its_bytes(
    tmp_path: Path, save: build.Saver, gone: ModuleType
) -> None:
    """Its class is not needed: what it holds is a tensor's."""
    odd = torch.randn(2, 2)
    path = save(tmp_path / "x", {**build.tensors(), "odd": odd.as_subclass(gone.Odd)})
    remove(gone)

    assert build.same_bits(read(open_checkpoint(path), "odd"), odd)


@both_formats
@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_pickle_protocol_is_read(tmp_path: Path, save: build.Saver, protocol: int) -> None:
    """torch.save writes 2, and whatever it is told to."""
    path = tmp_path / "x"
    zipped = save is build.torch_zip
    torch.save(
        build.tensors(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
    )

    checkpoint = open_checkpoint(path)

    for name, tensor in build.tensors().items():
        assert build.same_bits(read(checkpoint, name), tensor)


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@both_formats
def test_code_in_a_pickle_does_not_run(tmp_path: Path, save: build.Saver) -> None:
    """What a pickle would call stands in for its result."""
    path = save(tmp_path / "x", {"w": torch.ones(2, 2), "trap": Trap(tmp_path / "mark")})

    assert open_checkpoint(path).tensors.keys() == {"w"}

    assert not (tmp_path / "mark").exists()


@both_formats
def test_a_whole_module_is_its_state_dict(tmp_path: Path, save: build.Saver) -> None:
    """In torch's order and under torch's names, without non-persistent buffers."""
    net = build.Net()
    net.register_buffer("scratch", torch.ones(3), persistent=False)
    net.fc.register_parameter("none", None)
    net.add_module("again", net.fc)
    path = save(tmp_path / "x", net)

    checkpoint = open_checkpoint(path)

    state = net.state_dict()
    assert checkpoint.format == "module"
    assert list(checkpoint.tensors) == [name for name in state if name not in checkpoint.aliases]
    assert {*checkpoint.tensors, *checkpoint.aliases} == state.keys()
    for name, info in checkpoint.tensors.items():
        assert build.same_bits(build.tensor(checkpoint, info), state[name])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
def test_torchscript_is_its_state_dict(tmp_path: Path) -> None:
    """By the attributes that its code calls parameters and buffers; none of it runs."""
    path, net = tmp_path / "x", build.Net()
    torch.jit.save(torch.jit.script(nn.Sequential(net.conv, net.bn)), path)

    checkpoint = open_checkpoint(path)

    state = torch.jit.load(path).state_dict()
    assert checkpoint.format == "torchscript"
    assert list(checkpoint.tensors) == list(state)
    for name, info in checkpoint.tensors.items():
        assert build.same_bits(build.tensor(checkpoint, info), state[name])


def test_a_class_that_is_no_module_is_named(tmp_path: Path, gone: ModuleType) -> None:
    """Its state_dict is code; the error says so."""
    path = build.torch_zip(tmp_path / "x", gone.Config(3))

    with pytest.raises(InputError, match=r"a gone\.Config, whose code is not run; save its state"):
        open_checkpoint(path)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.99])
@both_formats
def test_a_truncated_file_is_an_input_error(tmp_path: Path, save: build.Saver, part: float) -> None:
    """However much is missing, the file is refused as truncated or corrupt."""
    path = save(tmp_path / "x", build.tensors())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])

    with pytest.raises(InputError, match="truncated|corrupt"):
        open_checkpoint(path)


def zip_with(path: Path, *, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """A zip file of the version that torch writes, with these members in a folder `archive`."""
    members.setdefault("version", b"3")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name.replace('__', '.')}", content)
    return path


def test_a_foreign_zip_is_an_input_error(tmp_path: Path) -> None:
    """A zip file without data.pkl is none of torch.save."""
    with pytest.raises(InputError, match=r"it has no data\.pkl"):
        open_checkpoint(zip_with(tmp_path / "x", readme=b"hello"))


def test_a_compressed_zip_is_an_input_error(tmp_path: Path) -> None:
    """Torch never compresses, and compressed weights cannot be mapped."""
    path = zip_with(tmp_path / "x", compression=zipfile.ZIP_DEFLATED, data__pkl=b"a" * 99)

    with pytest.raises(InputError, match="is compressed"):
        open_checkpoint(path)


def test_a_big_endian_file_is_an_input_error(tmp_path: Path) -> None:
    """Weights of the other byte order are refused, not misread."""
    path = zip_with(tmp_path / "x", data__pkl=pickle.dumps({}, 2), byteorder=b"big")

    with pytest.raises(InputError, match="big-endian"):
        open_checkpoint(path)


def test_a_big_endian_legacy_file_is_an_input_error(tmp_path: Path) -> None:
    """The legacy format says the byte order in its third pickle."""
    path = build.torch_legacy(tmp_path / "x", build.tensors())
    content = path.read_bytes()
    key = content.index(b"little_endian") + len(b"little_endian")
    at = content.index(b"\x88", key)
    path.write_bytes(content[:at] + b"\x89" + content[at + 1 :])

    with pytest.raises(InputError, match="big-endian"):
        open_checkpoint(path)


def test_a_cyclic_pickle_does_not_hang(tmp_path: Path) -> None:
    """A mapping that holds itself is walked once."""
    content: dict[str, object] = {"w": {"x": torch.ones(2, 2)}}
    content["self"] = content
    path = build.torch_zip(tmp_path / "x", content)

    assert open_checkpoint(path).tensors.keys() == {"x"}


def test_a_deep_pickle_does_not_hang(tmp_path: Path) -> None:
    """A hundred thousand nested mappings are refused at once."""
    pickled = io.BytesIO()
    pickled.write(b"\x80\x02" + b"}" + b"X\x01\0\0\0a}" * 100_000 + b"s" * 100_000 + b".")
    path = zip_with(tmp_path / "x", data__pkl=pickled.getvalue())

    with pytest.raises(InputError, match="no state dict"):
        open_checkpoint(path)


def test_a_tensor_expanded_beyond_use_is_refused(tmp_path: Path) -> None:
    """One stored element that claims terabytes is a trap."""
    path = build.torch_zip(tmp_path / "x", {"w": torch.ones(1, 1).expand(1 << 20, 1 << 20)})

    with pytest.raises(InputError, match="expanded beyond use"):
        open_checkpoint(path)


def test_python_2_names_are_understood(tmp_path: Path) -> None:
    """Globals of a Python 2 pickle are named as Python 3 has them."""
    pickled = b"\x80\x02}X\x01\0\0\0ac__builtin__\nxrange\nK\x01\x85Rs."
    path = zip_with(tmp_path / "x", data__pkl=pickled)

    with pytest.raises(InputError, match="no state dict: it is dict of 1 entries"):
        open_checkpoint(path)
    value = run_pickle(Program(pickled, 0, len(pickled)), TABLE).value
    assert value["a"].of == ("builtins", "range")
