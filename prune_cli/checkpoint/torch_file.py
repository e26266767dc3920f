"""Reads what torch.save, torch.jit.save and pickle.dump write, without running what is in it.

Of a file only its pickle and its zip directory are read; a tensor becomes the place of its bytes
in the file. That place is real: what is stored otherwise, such as arrays of NumPy in old pickles,
is unpacked into a temporary file without a name.

See also: `pickles` and `torch_names` (what a pickle means), `archive` and `legacy` (where it is),
`state_dict` (which of its tensors are wanted).
"""

import codecs
import contextlib
import gc
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from prune_cli.checkpoint.archive import (
    ZIP_MAGIC,
    Archive,
    CompressedMemberError,
    Member,
    read_archive,
    read_member,
)
from prune_cli.checkpoint.contents import Checkpoint, Shard
from prune_cli.checkpoint.legacy import LEGACY_MAGIC, bytes_as_legacy, read_legacy
from prune_cli.checkpoint.loading import Loading
from prune_cli.checkpoint.pickles import (
    CorruptPickleError,
    Machine,
    Maker,
    Octets,
    Program,
    RefusedPickleError,
    Text,
    printable,
    run_pickle,
)
from prune_cli.checkpoint.spool import Spool
from prune_cli.checkpoint.state_dict import Content, Found, ScriptClass
from prune_cli.checkpoint.strided import Place, find_overlaps, find_parameter_aliases
from prune_cli.checkpoint.tensors import DTYPES, Piece, TensorInfo, nbytes
from prune_cli.checkpoint.torch_names import (
    DTYPE_NAMES,
    TABLE,
    Array,
    NumpyDtype,
    Storage,
    StorageType,
    Tensor,
    elements_spanned,
    numpy_dtype,
)
from prune_cli.errors import InputError

_LARGEST_BLOW_UP = 64
"""Expanded tensors take less room in a torch file than packed. Beyond this factor it is a trap."""

_SMALL_PICKLE = 64 << 20
_STEPS_PER_BYTE, _STEPS = 4, 1_000_000
_CODE_LIMIT = 32 << 20
_VERSIONS = range(
    1, 11
)  # kMinSupportedFileFormatVersion and kMax... of caffe2/serialize/versions.h


def open_torch(path: Path, file: Shard, loading: Loading) -> Checkpoint:
    """Return the Checkpoint of one shard that `file`, which the user calls `path`, is.

    Raises:
        InputError: it is corrupt; there is no state dict, or more than one; or it holds tensors
            that cannot be had from its bytes.
    """
    try:
        with _collector_paused():
            return _to_checkpoint(path, file, _unpickle(file, path), loading)
    except RefusedPickleError as error:
        raise InputError(f"{path} {error}") from error
    except CompressedMemberError as error:
        raise InputError(f"{path}: {error}") from error
    except CorruptPickleError as error:
        raise InputError(
            f"{path}: it is corrupt or truncated, so copy or download it again: {error}"
        ) from error


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python from looking for cycles among objects that are all still wanted."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# --- The formats ------------------------------------------------------------------------------


class _Unpickled(NamedTuple):
    """What a file held, and in which format."""

    content: Content
    format: str


def _unpickle(file: Shard, path: Path) -> _Unpickled:
    start = bytes(file.mapped[:32])
    if start.startswith(ZIP_MAGIC):
        return _unpickle_archive(file, path)
    whole = Program(file.buffer, 0, file.nbytes)
    if LEGACY_MAGIC in start:
        return _of(file, read_legacy(whole, _table(whole)), "torch-legacy", file.nbytes)
    ran = run_pickle(whole, _table(whole))
    if ran.stop < file.nbytes:
        raise CorruptPickleError(f"{file.nbytes - ran.stop:,} bytes follow its pickle")
    return _of(file, ran.value, "pickle", file.nbytes)


def _of(file: Shard, value: object, format: str, size: int) -> _Unpickled:
    content = Content(
        value,
        length_of=partial(_length, file.mapped),
        steps=allowed_steps(size),
    )
    return _Unpickled(content, "module" if content.is_module(value) else format)


def allowed_steps(nbytes: int) -> int:
    """Return how many entries of a pickle of `nbytes` may be looked at, each several times."""
    return _STEPS + _STEPS_PER_BYTE * nbytes


def _table(program: Program) -> Mapping[tuple[str, str], object]:
    """TABLE, with storages that lie in the pickle as bytes, as pickle.dump has them."""

    def load(machine: Machine, content: object) -> object:
        machine.spend(getattr(content, "nbytes", 0))
        return bytes_as_legacy(program, content, TABLE)

    return {**TABLE, ("torch.storage", "_load_from_bytes"): Maker("storage", load, copies=True)}


def _unpickle_archive(file: Shard, path: Path) -> _Unpickled:
    archive = read_archive(file.mapped, path)
    pickled = archive.stored("data.pkl")
    if pickled is None:
        raise InputError(f"{path} is a zip file, but not one of torch.save: it has no data.pkl")
    _check_byte_order(file, archive, path)
    _check_version(file, archive)
    program = _program(file, pickled)
    value = run_pickle(program, _table(program), partial(find_storage, archive)).value
    unpickled = _of(file, value, "torch", pickled.nbytes)
    if "constants.pkl" not in archive.members:
        return unpickled
    scripts = dict(_script_classes(file, archive))
    return _Unpickled(replace(unpickled.content, scripts=scripts), "torchscript")


def _check_byte_order(file: Shard, archive: Archive, path: Path) -> None:
    order = _small_text(file, archive.stored("byteorder"))
    if order == "big":
        raise InputError(f"{path} was written on a big-endian machine; save it again on this one")
    if order not in ("", "little"):
        raise CorruptPickleError("its byte order is neither little nor big")


def _check_version(file: Shard, archive: Archive) -> None:
    """Raise where torch's own reader does."""
    found = archive.stored(".data/version") or archive.stored("version")
    text = _small_text(file, found).strip()
    if not text.isdecimal() or int(text) not in _VERSIONS:
        raise CorruptPickleError(
            f"its file format version is {text or 'missing'}; known are {_VERSIONS[0]} to "
            f"{_VERSIONS[-1]}"
        )


def _small_text(file: Shard, member: Member | None) -> str:
    if member is None:
        return ""
    return str(file.mapped[member.start : min(member.stop, member.start + 16)], "ascii", "replace")


def _program(file: Shard, member: Member) -> Program:
    """Return where a pickle is: small ones are copied, which is faster to go through."""
    if member.nbytes <= _SMALL_PICKLE:
        return read_member_program(file.mapped, member)
    return Program(file.buffer, member.start, member.stop)


def read_member_program(content: memoryview, member: Member) -> Program:
    """Return the pickle that a member is, copied."""
    return Program(read_member(content, member), 0, member.nbytes, member.start)


def find_storage(archive: Archive, saved: object) -> Storage:
    """Return the storage that a persistent id of a zip file means."""
    match saved:
        case ("storage", StorageType(dtype), str(key), _, int(elements)):
            member = archive.stored(f"data/{key}")
        case _:
            raise CorruptPickleError("it refers to an unknown kind of object")
    if member is None:
        raise CorruptPickleError(f"it has no storage {key[:40]!r}")
    if elements * (dtype.itemsize if dtype else 1) != member.nbytes:
        raise CorruptPickleError(f"its storage {key[:40]!r} has another size than its tensors say")
    return Storage(dtype, member.start, member.nbytes)


_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[([^\]\n]*)\]\n  __buffers__ = \[([^\]\n]*)\]",
    re.MULTILINE,
)
_STRING = re.compile(r'"([^"]*)"')


def _script_classes(file: Shard, archive: Archive) -> Iterator[tuple[str, ScriptClass]]:
    """Yield the modules that the code of a TorchScript archive declares; it is only searched."""
    left = _CODE_LIMIT
    for path, member in archive.members.items():
        if not path.startswith("code/") or not path.endswith(".py"):
            continue
        left -= member.nbytes
        if left < 0:
            raise CorruptPickleError("its code is too long")
        text = str(read_member(file.mapped, member), "utf-8", "replace")
        module = path.removeprefix("code/").removesuffix(".py").replace("/", ".")
        for name, parameters, buffers in _CLASS.findall(text):
            yield (
                f"{module}.{name}",
                ScriptClass(
                    frozenset(_STRING.findall(parameters)), frozenset(_STRING.findall(buffers))
                ),
            )


def _length(mapped: memoryview, text: Text) -> int:
    """Return how many characters a Text has."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    stop = text.at + text.nbytes
    return sum(
        len(decoder.decode(bytes(mapped[at : min(at + (1 << 20), stop)])))
        for at in range(text.at, stop, 1 << 20)
    )


# --- Its tensors ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Placed:
    """A tensor as a Checkpoint has it, and where it lies."""

    info: TensorInfo
    place: Place


def _to_checkpoint(path: Path, file: Shard, unpickled: _Unpickled, loading: Loading) -> Checkpoint:
    content = unpickled.content
    found = content.find(path, loading.state_dict_keys)
    weights = unique_weights(path, found)
    problems = problems_of(content.value, weights)
    refuse_unwritable(path, problems, loading)
    spool = Spool(file)
    placed = {
        name: _place(file, spool, name, value)
        for name, value in weights.items()
        if name not in problems
    }
    parts = spool.parts()
    infos = {name: one.info for name, one in placed.items()}
    _refuse_blow_up(path, file.nbytes, infos.values())
    places = {name: one.place for name, one in placed.items()}
    aliases = find_parameter_aliases(infos.values(), places)
    stored = {name: info for name, info in infos.items() if name not in aliases}
    return Checkpoint(
        path=path,
        format=unpickled.format,
        shards=(replace(file, tensors=tuple(stored.values()), parts=parts),),
        aliases=aliases,
        overlaps=find_overlaps({name: places[name] for name in stored}),
        dropped=tuple(content.dropped(found)),
        notes=tuple(_notes(content, found)),
        unwritable={printable(name): why for name, why in problems.items()},
        state_dict_keys=loading.state_dict_keys,
    )


def unique_weights(path: object, found: Sequence[Found]) -> dict[str, Tensor | Array]:
    """Return every tensor by its name.

    Raises:
        InputError: two tensors of two state dicts have one name.
    """
    weights: dict[str, Tensor | Array] = {}
    for name, value in _named_weights(found):
        if name in weights:
            raise InputError(
                f"{path} holds two tensors that would be called {name!r}; take one state dict at a "
                "time with --state-dict-key"
            )
        weights[name] = value
    return weights


def _named_weights(found: Sequence[Found]) -> Iterator[tuple[str, Tensor | Array]]:
    """Yield every tensor by its name; those of several state dicts have their key before it."""
    for one in found:
        prefix = f"{one.key}." if len(found) > 1 and one.path else ""
        for name, value in one.weights.items():
            yield prefix + name, value


def _notes(content: Content, found: Sequence[Found]) -> Iterator[str]:
    hooked = sorted(content.hooked(found))
    if hooked:
        yield (
            "state dict hooks are code, and did not run: names can differ from state_dict()'s in "
            + ", ".join(hooked[:5])
        )


def _place(file: Shard, spool: Spool, name: str, value: Tensor | Array) -> _Placed:
    return (
        _place_tensor(name, value)
        if isinstance(value, Tensor)
        else _place_array(file, spool, name, value)
    )


def _place_tensor(name: str, tensor: Tensor) -> _Placed:
    assert tensor.dtype
    itemsize = tensor.dtype.itemsize
    dtype, shape = DTYPE_NAMES[tensor.dtype.name], _stored_shape(tensor)
    if 0 in tensor.shape:
        return _Placed(TensorInfo(name, dtype, shape, 0, 0), Place(0, 0, (dtype, shape)))
    start, strides = tensor.start, tensor.strides
    stop = start + elements_spanned(tensor.shape, strides) * itemsize
    flip = _flip(tensor)
    plain = is_packed(tensor.shape, strides)
    info = TensorInfo(name, dtype, shape, 0, start, None if plain else strides, flip)
    layout = (dtype, tensor.shape, strides, flip)
    base = tensor.storage.start if tensor.storage else start
    return _Placed(info, Place(start, stop, layout, _steps(tensor.shape, strides, itemsize), base))


def _steps(
    shape: Sequence[int], strides: Sequence[int], itemsize: int
) -> tuple[tuple[int, int], ...]:
    steps = [(n, stride * itemsize) for n, stride in zip(shape, strides, strict=True) if n > 1]
    return (*steps, (itemsize, 1))


def is_packed(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie in order without gaps (torch's is_contiguous)."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _flip(tensor: Tensor) -> int:
    """Return the bits of each element that are inverted when it is read: signs."""
    assert tensor.dtype
    bits = tensor.dtype.itemsize * 8
    signs = 1 << (bits - 1)
    flip = signs if tensor.is_conj else 0
    if tensor.is_neg:
        both = signs | 1 << (bits // 2 - 1)
        flip ^= both if tensor.dtype.name.startswith("complex") else signs
    return flip


def _stored_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape that safetensors records: float4 is packed in pairs, counted one by one."""
    if not _is_subbyte(tensor) or not tensor.shape:
        return tensor.shape
    return (*tensor.shape[:-1], tensor.shape[-1] * 2)


def _is_subbyte(tensor: Tensor) -> bool:
    return tensor.dtype is not None and DTYPES[DTYPE_NAMES[tensor.dtype.name]].bits < 8


def _place_array(file: Shard, spool: Spool, name: str, array: Array) -> _Placed:
    """Place an array of NumPy: in the file where its bytes lie there, or else in the spool."""
    dtype = cast(str, numpy_dtype(array.dtype))
    shape = _array_shape(array)
    itemsize = DTYPES[dtype].bits // 8
    strides = _fortran_strides(shape) if array.is_fortran else None
    if strides is None or is_packed(shape, strides):
        strides = None
    size = nbytes(dtype, shape)
    if size == 0:
        return _Placed(TensorInfo(name, dtype, shape, 0, 0), Place(0, 0, (dtype, shape)))
    layout = (dtype, shape, strides)
    steps = _steps(shape, strides or _c_strides(shape), itemsize)
    if isinstance(array.content, Octets) and not array.content.is_latin1:
        if array.content.nbytes != size:
            raise CorruptPickleError(f"the array {name!r} has another size than its shape says")
        start = array.content.at
        info = TensorInfo(name, dtype, shape, 0, start, strides)
        return _Placed(info, Place(start, start + size, layout, steps))
    start = spool.put(array.content, size)
    piece = Piece(0, start, (0,) * len(shape), shape, strides)
    info = TensorInfo(name, dtype, shape, 0, pieces=(piece,))
    beyond = file.nbytes + start  # an address that nothing in the file has
    return _Placed(info, Place(beyond, beyond + size, layout, steps))


def _array_shape(array: Array) -> tuple[int, ...]:
    if not isinstance(array.shape, tuple) or not all(
        type(n) is int and 0 <= n < 1 << 62 for n in array.shape
    ):
        raise CorruptPickleError("the shape of an array is none")
    if len(array.shape) > 64:
        raise CorruptPickleError("an array has too many dims")
    return array.shape


def _c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _fortran_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[:dim]) for dim in range(len(shape)))


# --- What is refused --------------------------------------------------------------------------


def problems_of(top: object, weights: Mapping[str, Tensor | Array]) -> dict[str, str]:
    """Return the tensors that cannot be had from bytes, or not under their name -> why."""
    problems = {name: why for name, value in weights.items() if (why := _problem(name, value))}
    return problems | _empty_shells(top, weights)


def refuse_unwritable(path: object, problems: Mapping[str, str], loading: Loading) -> None:
    """Raise InputError for tensors that cannot be had from bytes, unless they may be dropped."""
    if not problems or loading.drop_unwritable:
        return
    listed = [f"{name!r} {problem}" for name, problem in problems.items()]
    more = f"; and {len(listed) - 20} more" if len(listed) > 20 else ""
    raise InputError(
        f"{path} holds {len(listed)} tensor(s) that safetensors cannot: "
        + "; ".join(listed[:20])
        + more
        + ". Or leave them out: --drop-unwritable"
    )


def _problem(name: str, value: Tensor | Array) -> str | None:
    return _why_unnameable(name) or (
        _why_unwritable(value) if isinstance(value, Tensor) else _why_no_array(value)
    )


def _why_unnameable(name: str) -> str | None:
    if name == "__metadata__":
        return "has a name that safetensors reserves"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "has a name that is no text"
    return None


def _why_unwritable(tensor: Tensor) -> str | None:
    if tensor.problem:
        return tensor.problem
    assert tensor.dtype
    if tensor.dtype.name not in DTYPE_NAMES:
        return f"has the dtype torch.{tensor.dtype.name}"
    if _is_subbyte(tensor) and not (tensor.shape and is_packed(tensor.shape, tensor.strides)):
        return (
            f"packs several torch.{tensor.dtype.name} into a byte, and does not lie in the file "
            "as it is"
        )
    return None


def _why_no_array(array: Array) -> str | None:
    order = array.dtype.order if isinstance(array.dtype, NumpyDtype) else "?"
    if order in (">", "!"):
        return "is a big-endian NumPy array; save it in the byte order of this machine"
    return None


def _empty_shells(top: object, weights: Mapping[str, Tensor | Array]) -> dict[str, str]:
    """Return the empty weights that DeepSpeed leaves in place of those it keeps elsewhere."""
    empty = [name for name, value in weights.items() if value.shape == (0,)]
    by_deepspeed = isinstance(top, dict) and "ds_version" in top
    if not empty or not (by_deepspeed or len(empty) == len(weights)):
        return {}
    why = (
        "is empty: DeepSpeed ZeRO-3 keeps the weights in other files; run zero_to_fp32.py, which "
        "lies beside them, and prune what it writes"
    )
    return dict.fromkeys(empty, why)


def _refuse_blow_up(path: Path, size: int, infos: Iterable[TensorInfo]) -> None:
    for info in infos:
        if info.strides is not None and info.nbytes > _LARGEST_BLOW_UP * size:
            raise InputError(
                f"{path}: {info.name!r} of shape {list(info.shape)} claims {info.nbytes:,} bytes "
                f"in a file of {size:,}; it is corrupt, or expanded beyond use"
            )


# --- For outputs in kind ----------------------------------------------------------------------


def find_checksums(file: Shard, changed: Sequence[tuple[int, int]]) -> list[Member]:
    """Return the members of a zip file that have bytes in any of the (start, stop) `changed`."""
    if not changed or file.mapped[: len(ZIP_MAGIC)] != ZIP_MAGIC:
        return []
    members = sorted(read_archive(file.mapped, file.name).members.values())
    starts = [member.start for member in members]
    found = {bisect_right(starts, start) - 1 for start, _ in changed}
    return [members[number] for number in sorted(found) if number >= 0]


def find_neighbours(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, str]:
    """Return those of the tensors `names` whose bytes a tensor outside the state dict has too.

    Returns:
        The name -> what the other is called.
    """
    found: dict[str, str] = {}
    for shard in checkpoint.shards:
        own = {info.name: info for info in shard.tensors if info.name in names and not info.pieces}
        if not own or shard.parts:
            continue
        places = {name: _place_of(info) for name, info in own.items()}
        outside = {f"\0{key}": place for key, place in _outside(shard, checkpoint)}
        overlaps = _share_bytes(places, outside)
        found |= {name: other.removeprefix("\0") for name, other in overlaps.items()}
    return found


def _share_bytes(places: Mapping[str, Place], outside: Mapping[str, Place]) -> dict[str, str]:
    """Each of `places` that has bytes in common with one `outside` -> that one."""
    same = {place[:3]: name for name, place in outside.items()}
    found = {name: same[place[:3]] for name, place in places.items() if place[:3] in same}
    meeting = find_overlaps({**outside, **places})
    for name in places.keys() & meeting.keys() - found.keys():
        found[name] = meeting[name]
    return found


def _place_of(info: TensorInfo) -> Place:
    start, itemsize = info.offset or 0, max(DTYPES[info.dtype].bits // 8, 1)
    strides = info.strides or _c_strides(info.shape)
    stop = start + elements_spanned(info.shape, strides) * itemsize if info.elements else start
    return Place(start, stop, (info.dtype, info.shape), _steps(info.shape, strides, itemsize))


def _outside(shard: Shard, checkpoint: Checkpoint) -> Iterator[tuple[str, Place]]:
    """Yield every tensor of a file that is no part of its state dict, wherever it is held."""
    content = _unpickle(shard, checkpoint.path).content
    found = content.find(checkpoint.path, checkpoint.state_dict_keys)
    paths = {one.path for one in found}
    others = [one for one in content.state_dicts() if one.path not in paths]
    named = [(f"{one.key}.{name}", part) for one in others for name, part in one.weights.items()]
    held = {id(value) for one in found for value in one.weights.values()}
    loose = [(key, value) for key, value in content.everything() if id(value) not in held]
    for key, value in (*named, *loose):
        if isinstance(value, Tensor) and not value.problem:
            yield key, _place_of(_place_tensor(key, value).info)
