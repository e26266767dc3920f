"""Reads what torch.save, torch.jit.save and pickle.dump write, without running what is in it.

Of a file only its pickle and its zip directory are read; a tensor becomes the place of its bytes
in the file. That place is real: what is stored otherwise, such as arrays of NumPy in old pickles,
is unpacked into a temporary file without a name.

See also: `pickles` and `torch_names` (what a pickle means), `archive` and `legacy` (where it is),
`state_dict` (which of its tensors are wanted), `placing` and `unwritable` (where these are).
"""

import codecs
import contextlib
import gc
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

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
from prune_cli.checkpoint.pickled import (
    CorruptPickleError,
    Maker,
    RefusedPickleError,
    Text,
    printable,
)
from prune_cli.checkpoint.pickles import Machine, Program, run_pickle
from prune_cli.checkpoint.placing import place_of, place_of_view, place_weight
from prune_cli.checkpoint.spool import Spool
from prune_cli.checkpoint.state_dict import Content, Found, ScriptClass
from prune_cli.checkpoint.strided import Place, find_overlaps, find_parameter_aliases
from prune_cli.checkpoint.tensors import Summed
from prune_cli.checkpoint.torch_names import (
    TABLE,
    Array,
    Storage,
    StorageType,
    Tensor,
    TorchDtype,
)
from prune_cli.checkpoint.unwritable import problems_of, refuse_unwritable
from prune_cli.errors import InputError
from prune_cli.stores import Location

if TYPE_CHECKING:
    from prune_cli.checkpoint.contents import Mapped

_SMALL_PICKLE = 64 << 20
_STEPS_PER_BYTE, _STEPS = 4, 1_000_000
_CODE_LIMIT = 32 << 20
_VERSIONS = range(1, 11)  # as caffe2/serialize/versions.h has them


def open_torch(path: Location, file: Shard, loading: Loading) -> Checkpoint:
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


def _unpickle(file: Shard, path: Location) -> _Unpickled:
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


def _unpickle_archive(file: Shard, path: Location) -> _Unpickled:
    archive = read_archive(file.mapped, path)
    pickled = archive.stored("data.pkl")
    if pickled is None:
        raise InputError(f"{path} is a zip file, but not one of torch.save: it has no data.pkl")
    _check_byte_order(file, archive, path)
    _check_version(file, archive)
    program = _program(file, pickled)
    value = run_pickle(program, _table(program), ZipStorages(archive).find).value
    unpickled = _of(file, value, "torch", pickled.nbytes)
    if "constants.pkl" not in archive.members:
        return unpickled
    scripts = dict(_script_classes(file, archive))
    return _Unpickled(replace(unpickled.content, scripts=scripts), "torchscript")


def _check_byte_order(file: Shard, archive: Archive, path: Location) -> None:
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


def read_member_program(content: "Mapped", member: Member) -> Program:
    """Return the pickle that a member is, copied."""
    return Program(read_member(content, member), 0, member.nbytes, member.start)


@dataclass
class ZipStorages:
    """The storages of a zip file, each found once: torch takes it as it was first named."""

    archive: Archive
    by_key: dict[str, Storage] = field(default_factory=dict)

    def find(self, saved: object) -> Storage:
        """Return the storage that a persistent id means."""
        match saved:
            case ("storage", StorageType(dtype), str(key), _, int(elements)):
                found = self._read(dtype, key, elements)
            case _:
                raise CorruptPickleError("it refers to an unknown kind of object")
        first = self.by_key.setdefault(key, found)
        if not found.nbytes:  # which torch makes again each time
            return found
        if first.dtype != dtype:
            raise CorruptPickleError(f"its storage {key[:40]!r} is said to have two dtypes")
        return first

    def _read(self, dtype: TorchDtype | None, key: str, elements: int) -> Storage:
        member = self.archive.stored(f"data/{key}")
        if member is None:
            raise CorruptPickleError(f"it has no storage {key[:40]!r}")
        if elements * (dtype.itemsize if dtype else 1) != member.nbytes:
            raise CorruptPickleError(
                f"its storage {key[:40]!r} has another size than its tensors say"
            )
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


def _length(mapped: "Mapped", text: Text) -> int:
    """Return how many characters a Text has."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    stop = text.at + text.nbytes
    return sum(
        len(decoder.decode(bytes(mapped[at : min(at + (1 << 20), stop)])))
        for at in range(text.at, stop, 1 << 20)
    )


# --- Its tensors ------------------------------------------------------------------------------


def _to_checkpoint(
    path: Location, file: Shard, unpickled: _Unpickled, loading: Loading
) -> Checkpoint:
    content = unpickled.content
    found = content.find(path, loading.state_dict_keys)
    weights = unique_weights(path, found)
    problems = problems_of(content.value, weights)
    refuse_unwritable(path, problems, loading)
    with contextlib.closing(Spool(file)) as spool:
        placed = {
            name: place_weight(file, spool, name, value)
            for name, value in weights.items()
            if name not in problems
        }
        parts = spool.parts()
    infos = {name: one.info for name, one in placed.items()}
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


# --- For outputs in kind ----------------------------------------------------------------------


def find_checksums(file: Shard, changed: Sequence[tuple[int, int]]) -> tuple[Summed, ...]:
    """Return what of a zip file has a checksum and bytes in any of the (start, stop) `changed`."""
    if not changed or file.mapped[: len(ZIP_MAGIC)] != ZIP_MAGIC:
        return ()
    members = sorted(read_archive(file.mapped, file.name).members.values())
    starts = [member.start for member in members]
    found = {bisect_right(starts, start) - 1 for start, _ in changed}
    hit = [members[number] for number in sorted(found) if number >= 0]
    return tuple(Summed(one.start, one.stop, one.checksums) for one in hit)


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
        places = {name: place_of(info) for name, info in own.items()}
        outside = {f"\0{key}": place for key, place in _outside(shard, checkpoint)}
        overlaps = _share_bytes(places, outside)
        found |= {name: other.removeprefix("\0") for name, other in overlaps.items()}
    return found


def _share_bytes(places: Mapping[str, Place], outside: Mapping[str, Place]) -> dict[str, str]:
    """Return each of `places` that has bytes in common with one `outside` -> that one."""
    same = {place[:3]: name for name, place in outside.items()}
    found = {name: same[place[:3]] for name, place in places.items() if place[:3] in same}
    meeting = find_overlaps({**outside, **places})
    for name in places.keys() & meeting.keys() - found.keys():
        found[name] = meeting[name]
    return found


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
            yield key, place_of_view(value)
