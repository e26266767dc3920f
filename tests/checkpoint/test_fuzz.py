"""Pickle programs that were changed opcode by opcode: no other value than torch's, no other error.

See also: tests/test_fuzz.py, which damages bytes.
"""

import contextlib
import io
import pickletools
import random
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import InputError
from tests import build

BASE = torch.arange(24.0).view(4, 6)
CONTENTS: list[dict[str, torch.Tensor]] = [
    {"a.weight": torch.ones(4, 3), "a.bias": torch.ones(4), "n": torch.tensor(1)},
    OrderedDict(
        slice=BASE[1:3, 2:5],
        transposed=BASE.t(),
        conjugate=torch.randn(2, 2, dtype=torch.complex64).conj(),
        negative=torch.randn(2, 2, dtype=torch.complex64).conj().imag,
        expanded=torch.ones(3, 1).expand(3, 5),
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
        unsigned=torch.ones(3, dtype=torch.uint16),
        float8=torch.ones(2, 2).to(torch.float8_e4m3fn),
        flags=torch.ones(2, 2, dtype=torch.bool),
    ),
]
"""Between them, every way in which torch rebuilds a tensor from its bytes."""


def members(content: object, protocol: int) -> dict[str, bytes]:
    """What torch.save puts into a zip file, by name."""
    file = io.BytesIO()
    torch.save(content, file, pickle_protocol=protocol)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def opcodes(pickled: bytes) -> list[bytes]:
    """The program, each opcode with its argument."""
    places = [place for _, _, place in pickletools.genops(pickled) if place is not None]
    return [pickled[at:stop] for at, stop in zip(places, [*places[1:], None], strict=True)]


def mutate(program: list[bytes], generator: random.Random) -> bytes:
    """The program with an opcode or two left out, doubled, exchanged or brought in."""
    changed = list(program)
    for _ in range(generator.randint(1, 2)):
        at = generator.randrange(len(changed))
        match generator.randrange(5):
            case 0:
                del changed[at]
            case 1:
                changed.insert(at, changed[at])
            case 2:
                changed[at] = generator.choice(program)
            case 3:
                changed.insert(at, generator.choice(program))
            case _:
                changed[at] = changed[at][:1] + bytes(
                    generator.choice([0, 1, 2, 5, 12, 255]) for _ in changed[at][1:]
                )
    return b"".join(changed)


def programs(count: int) -> Iterator[dict[str, bytes]]:
    """The members of many files with a changed program."""
    generator = random.Random(0)
    kinds = [members(content, protocol) for content in CONTENTS for protocol in (2, 4)]
    pickles = {id(kind): opcodes(kind["archive/data.pkl"]) for kind in kinds}
    for _ in range(count):
        kind = generator.choice(kinds)
        yield kind | {"archive/data.pkl": mutate(pickles[id(kind)], generator)}


def load(path: Path) -> object:
    """What torch's own restricted unpickler makes of it; None where it refuses."""
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception):
        return torch.load(path, weights_only=True)
    return None


def test_changed_programs_have_the_values_of_torch(tmp_path: Path) -> None:
    """Of twelve hundred, what both read is the same to the last bit."""
    path, both, refused = tmp_path / "x", 0, 0
    for content in programs(1200):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        try:
            checkpoint = open_checkpoint(path)
        except InputError:
            refused += 1
            continue
        oracle = load(path)
        if isinstance(oracle, dict):
            both += 1
            for name in (*checkpoint.tensors, *checkpoint.aliases):
                info = checkpoint.tensors[checkpoint.aliases.get(name, name)]
                wanted = oracle[name].detach().resolve_conj().resolve_neg()
                assert build.same_bits(build.tensor(checkpoint, info), wanted)

    assert both > 100 and refused > 400


dims = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A view of a tensor: of any dtype, sliced, transposed, expanded, with steps."""
    dtype = draw(st.sampled_from([name for name in build.TORCH_DTYPES if name != "F4"]))
    view = build.random_bits(dtype, *draw(dims), seed=draw(st.integers(0, 9)))
    for _ in range(draw(st.integers(0, 3))):
        dim = draw(st.integers(0, view.ndim - 1))
        match draw(st.sampled_from(["slice", "step", "transpose", "expand", "select"])):
            case "slice":
                view = view.narrow(dim, view.shape[dim] // 2, (view.shape[dim] + 1) // 2)
            case "step":
                view = view[(slice(None),) * dim + (slice(None, None, 2),)]
            case "transpose":
                view = view.transpose(dim, -1)
            case "expand":
                view = view.unsqueeze(dim).expand(*view.shape[:dim], 3, *view.shape[dim:])
            case "select" if view.ndim > 1:
                view = view.select(dim, 0)
    return view


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(views(), min_size=1, max_size=4), st.sampled_from(["zip", "legacy"]))
def test_views_have_the_values_that_were_saved(
    tmp_path: Path, tensors: list[torch.Tensor], saver: str
) -> None:
    """Whatever was done to a tensor before it was saved, its rows are those that it had."""
    content = {f"{number}.w": tensor for number, tensor in enumerate(tensors)}
    path = build.SAVERS[saver](tmp_path / "x", content)

    checkpoint = open_checkpoint(path)

    for name, view in content.items():
        tensor = view.clone(memory_format=torch.contiguous_format)
        info = checkpoint.tensors[checkpoint.aliases.get(name, name)]
        assert build.same_bits(build.tensor(checkpoint, info), tensor)
        if tensor.ndim and tensor.numel():
            rows = checkpoint.rows(info, tensor.shape[0] // 2, tensor.shape[0])
            assert rows.tobytes() == bytes(build.octets(tensor[tensor.shape[0] // 2 :]))


def text(letters: str) -> bytes:
    """The opcode for a string."""
    return b"X" + len(letters).to_bytes(4, "little") + letters.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x10tQ"


def rebuilt(
    offset: bytes = b"K\0",
    shape: bytes = b"K\4K\4\x86",
    strides: bytes = b"K\4K\1\x86",
    more: bytes = b"",
) -> bytes:
    """The opcodes for a tensor of a storage of 16 floats."""
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = STORAGE + offset + shape + strides + b"\x89" + hooks + more
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


LIES = {
    "terabytes": rebuilt(shape=b"\x8a\5\0\0\0\0\1K\4\x86"),
    "negative-stride": rebuilt(strides=b"J\xff\xff\xff\xffK\1\x86"),
    "outside": rebuilt(offset=b"K\1"),
    "negative-offset": rebuilt(offset=b"J\xff\xff\xff\xff"),
    "fewer-strides": rebuilt(strides=b"K\4\x85"),
    "no-numbers": rebuilt(shape=b"NN\x86"),
    "boolean-shape": rebuilt(shape=b"\x88\x88\x86"),
    "expanded": rebuilt(shape=b"\x8a\6\0\0\0\0\0\1K\4\x86", strides=b"K\0K\0\x86"),
    "conjugate-floats": rebuilt(more=b"}" + text("conj") + b"\x88s"),
    "flag-not-set": rebuilt(more=b"}" + text("neg") + b"\x89s"),
    "unknown-flag": rebuilt(more=b"}" + text("odd") + b"\x88s"),
    "built": rebuilt() + b"}" + text("shape") + b"Nsb",
    "filled": rebuilt() + text("shape") + b"Ns",
    "other-storage": rebuilt().replace(text("0"), text("../0")),
    "other-size": rebuilt().replace(b"K\x10tQ", b"K\x0ftQ"),
    "other-dtype": rebuilt().replace(b"FloatStorage", b"LongStorage"),
    "two-dtypes": rebuilt() + b"0" + rebuilt().replace(b"FloatStorage", b"IntStorage"),
    "no-storage": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0K\4\x85K\1\x85\x89}tR",
}


def with_tensor(path: Path, tensor: bytes) -> Path:
    """A file whose state dict has one tensor, made by these opcodes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + text("w") + tensor + b"s.")
        archive.writestr("archive/version", b"3")
        archive.writestr("archive/data/0", bytes(64))
    return path


def test_the_tensor_that_the_lies_are_made_of_is_read(tmp_path: Path) -> None:
    """So that each lie is refused for itself."""
    checkpoint = open_checkpoint(with_tensor(tmp_path / "x", rebuilt()))

    assert checkpoint.tensors["w"].shape == (4, 4)


@pytest.mark.parametrize("tensor", LIES.values(), ids=LIES)
def test_a_tensor_that_cannot_be_is_refused(tmp_path: Path, tensor: bytes) -> None:
    """Before anything of its size is allocated."""
    with pytest.raises(InputError, match="corrupt"):
        open_checkpoint(with_tensor(tmp_path / "x", tensor))
