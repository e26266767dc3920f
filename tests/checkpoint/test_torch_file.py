"""Files of torch.save and torch.jit.save: read without their weights, and without their code."""

import argparse
import collections
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
from prune_cli.errors import InputError, UnsafePickleError, UsageError
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
def test_a_class_is_refused_by_name(tmp_path: Path, save: build.Saver) -> None:
    """The error lists every global that the pickle asks for, and the flags that allow them."""
    content = {"args": argparse.Namespace(lr=0.1), "fraction": __import__("fractions").Fraction(1)}
    path = save(tmp_path / "x", {"state_dict": build.tensors(), **content})

    with pytest.raises(UnsafePickleError) as caught:
        open_checkpoint(path)

    assert caught.value.globals == ("argparse.Namespace", "fractions.Fraction")
    flags = "--allow-global argparse.Namespace --allow-global fractions.Fraction"
    assert any(line.endswith(f": {flags}") for line in str(caught.value).splitlines())
    assert "--unsafe-load" in str(caught.value)


@both_formats
def test_allowed_globals_are_let_through(tmp_path: Path, save: build.Saver) -> None:
    """With exactly the globals named, NumPy's scalars among them, the file can be read."""
    extra = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3), "seen": np.arange(3)}
    path = save(tmp_path / "x", {"model": build.tensors(), **extra})
    with pytest.raises(UnsafePickleError) as caught:
        open_checkpoint(path)

    checkpoint = open_checkpoint(path, Loading(allow_globals=caught.value.globals))

    assert "argparse.Namespace" in caught.value.globals
    assert checkpoint.tensors.keys() == build.tensors().keys()


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
        pass
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
    with pytest.raises(UnsafePickleError) as caught:
        open_checkpoint(path)

    checkpoint = open_checkpoint(path, Loading(allow_globals=caught.value.globals))

    assert checkpoint.tensors.keys() == build.tensors().keys()
    reasons = {dropped.key: dropped.reason for dropped in checkpoint.dropped}
    for key, name in (("a", "Config"), ("b", "Settings"), ("c", "Kind"), ("d", "Outer")):
        assert reasons[key].endswith(f": {name}, which cannot be imported here")


@both_formats
def test_a_mapping_of_an_allowed_class_is_filled(
    tmp_path: Path, save: build.Saver, gone: ModuleType
) -> None:
    """Torch's unpickler fills its own only; configurations are often of another."""
    path = save(tmp_path / "x", {"model": build.tensors(), "args": gone.Settings(lr=0.1)})

    checkpoint = open_checkpoint(path, Loading(allow_globals=["gone.Settings"]))

    assert [dropped.key for dropped in checkpoint.dropped] == ["args"]
    assert "Settings of 1 entries" in checkpoint.dropped[0].reason


@both_formats
@pytest.mark.parametrize("is_here", [True, False])
def test_a_list_of_another_class_cannot_be_filled(
    tmp_path: Path, save: build.Saver, gone: ModuleType, is_here: bool
) -> None:
    """Torch gives no way to, so the error names the one that is left."""
    path = save(tmp_path / "x", {"model": build.tensors(), "steps": gone.Steps([1, 2])})
    if not is_here:
        remove(gone)

    with pytest.raises(InputError, match="holds a gone.Steps with entries.*--unsafe-load"):
        open_checkpoint(path, Loading(allow_globals=["gone.Steps"]))


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
    """Whoever wants them pruned is told what to install, and nothing else is pruned instead."""
    value = held(torch.ones(2, 2))
    holder = gone.Config(value) if kind == "Config" else gone.Settings(x=value)
    path = save(tmp_path / "x", {"net": holder, "ema": build.tensors()})
    remove(gone)
    allowed = [f"gone.{kind}", "argparse.Namespace", "builtins.frozenset"]

    with pytest.raises(InputError, match=rf"x: there are tensors in a gone.{kind}, which cannot"):
        open_checkpoint(path, Loading(allow_globals=allowed))


@both_formats
def test_what_cannot_do_without_a_class_names_it(
    tmp_path: Path, save: build.Saver, gone: ModuleType
) -> None:
    """A kind of tensor has no stand-in; the file is not corrupt."""
    content = {**build.tensors(), "odd": torch.ones(2, 2).as_subclass(gone.Odd)}
    path = save(tmp_path / "x", content)
    remove(gone)

    with pytest.raises(InputError, match="cannot be read without gone.Odd, which cannot be imp"):
        open_checkpoint(path, Loading(allow_globals=["gone.Odd"]))


def test_a_module_that_fails_is_not_taken_for_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is here but broken is for the user to mend."""
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    path = build.torch_zip(tmp_path / "x", build.tensors())

    with pytest.raises(UsageError, match="importing it failed: ZeroDivisionError"):
        open_checkpoint(path, Loading(allow_globals=["broken_module.Thing"]))


def test_a_newer_pickle_protocol_is_told(tmp_path: Path) -> None:
    """Torch's restricted unpickler reads its own; the file is not corrupt."""
    path = tmp_path / "x"
    torch.save(build.tensors(), path, pickle_protocol=4)

    with pytest.raises(InputError, match="saved with pickle_protocol=4.*--unsafe-load does"):
        open_checkpoint(path)
    assert open_checkpoint(path).tensors.keys() == build.tensors().keys()


def test_a_legacy_module_is_told(tmp_path: Path) -> None:
    """That format holds the source of modules, which only the unrestricted unpickler takes."""
    path = build.torch_legacy(tmp_path / "x", nn.Linear(2, 2))
    name = "torch.nn.modules.linear.Linear"

    with pytest.raises(InputError, match="holds a whole module in the legacy format"):
        open_checkpoint(path, Loading(allow_globals=[name]))


def test_one_allowed_global_does_not_allow_another(tmp_path: Path) -> None:
    """The allowance ends with the file, and covers nothing else."""
    path = build.torch_zip(tmp_path / "x", {"a": argparse.Namespace(), "w": torch.ones(2, 2)})
    other = build.torch_zip(tmp_path / "y", {"a": collections.deque(), "w": torch.ones(2, 2)})
    assert open_checkpoint(path, Loading(allow_globals=["argparse.Namespace"])).tensors

    with pytest.raises(UnsafePickleError, match="collections.deque"):
        open_checkpoint(other, Loading(allow_globals=["argparse.Namespace"]))
    with pytest.raises(UnsafePickleError, match="argparse.Namespace"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["", "..", "Namespace", "argparse.", "a b.c"])
def test_what_is_no_name_of_a_global_is_a_usage_error(tmp_path: Path, name: str) -> None:
    """It is told apart from the file's faults."""
    path = build.torch_zip(tmp_path / "x", build.tensors())

    with pytest.raises(UsageError, match="write module.Name"):
        open_checkpoint(path, Loading(allow_globals=[name]))


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@both_formats
def test_code_in_a_pickle_does_not_run(tmp_path: Path, save: build.Saver) -> None:
    """A pickle that would call something is refused before it does."""
    path = save(tmp_path / "x", {"w": torch.ones(2, 2), "trap": Trap(tmp_path / "mark")})

    with pytest.raises(UnsafePickleError):
        open_checkpoint(path)

    assert not (tmp_path / "mark").exists()


@both_formats
def test_a_whole_module_loads_unsafely(tmp_path: Path, save: build.Saver) -> None:
    """--unsafe-load takes the state dict of a pickled module."""
    net = build.Net()
    path = save(tmp_path / "x", net)

    checkpoint = open_checkpoint(path)

    assert checkpoint.format == "module"
    assert checkpoint.tensors.keys() == net.state_dict().keys()
    assert torch.equal(read(checkpoint, "fc.weight"), net.fc.weight)


def test_torchscript_loads_unsafely_only(tmp_path: Path) -> None:
    """A TorchScript archive is named as such, and read when its code may run."""
    path = tmp_path / "x"
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), path)

    with pytest.raises(InputError, match="TorchScript archive"):
        open_checkpoint(path)
    checkpoint = open_checkpoint(path)

    assert checkpoint.format == "torchscript"
    assert checkpoint.tensors["weight"].shape == (2, 3)


@both_formats
def test_an_unsafe_load_of_plain_tensors_is_the_same(tmp_path: Path, save: build.Saver) -> None:
    """With --unsafe-load a plain state dict has the same tensors."""
    path = save(tmp_path / "x", build.tensors())

    checkpoint = open_checkpoint(path)

    for name, tensor in build.tensors().items():
        assert build.same_bits(read(checkpoint, name), tensor)


def test_a_class_that_is_gone_is_an_input_error(tmp_path: Path) -> None:
    """Where the code of a pickled module is missing, the error says so and how to give it."""
    pickled = pickle.dumps(argparse.Namespace(), 2).replace(b"argparse", b"missing1")
    path = tmp_path / "x"
    torch.save({"w": torch.ones(2, 2), "n": 0}, path)
    rewrite_pickle(path, pickled)

    with pytest.raises(InputError, match=r"ModuleNotFoundError.*PYTHONPATH"):
        open_checkpoint(path)


def rewrite_pickle(path: Path, pickled: bytes) -> None:
    """Puts another pickle into a zip file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)


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
    """A zip file with these members in a folder `archive`."""
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
    pickled = b"\x80\x02c__builtin__\nxrange\nK\x01\x85R."
    path = zip_with(tmp_path / "x", data__pkl=pickled)

    with pytest.raises(UnsafePickleError) as caught:
        open_checkpoint(path)

    assert caught.value.globals == ("builtins.range",)
