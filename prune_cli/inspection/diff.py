"""Two checkpoints, whoever made them: tensors that only one has, and where the others differ.

Tensors are compared by their names, bit by bit, in pieces; a NaN is the same as itself, and +0 is
not -0. Where the dtypes are not the same, the numbers are compared.
See also: `prune_cli.verify`, which holds a pruned checkpoint against its report.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.names import natural_key
from prune_cli.checkpoint.tensors import DTYPES, TensorInfo
from prune_cli.jsontext import encode
from prune_cli.report.formats import Column, Kind, Rows
from prune_cli.report.numbers import format_shape
from prune_cli.stores import Location
from prune_cli.write.progress import OnTensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from prune_cli.channels import Bits

SCHEMA = 1

_PIECE = 1 << 18  # elements that are compared at once


@dataclass(frozen=True, slots=True)
class Values:
    """Where the elements of two tensors of one shape differ.

    Attributes:
        elements: how many do.
        dim: the dim along which the fewest channels differ, as a part of it; None without dims.
        channels: those channels, ascending.
        of: how many channels there are.
        largest: the largest difference of two elements; None where it is not a finite number, or
            the dtype is packed below a byte.
    """

    elements: int
    dim: int | None
    channels: tuple[int, ...]
    of: int
    largest: float | None


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that both checkpoints have, and that is not the same in them.

    `dtypes` and `shapes` are those of the first and the second; `values` are None where the
    elements are the same, or the shapes are not.
    """

    name: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    values: Values | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What two checkpoints do not have in common; names are in natural order.

    Attributes:
        first, second: their names, without the folders above them.
        only_first, only_second: tensors that one of them does not have.
        tensors: those that differ.
        same: how many tensors are the same in both.
    """

    first: str
    second: str
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    same: int

    @property
    def is_none(self) -> bool:
        """Whether they hold the same tensors."""
        return not (self.only_first or self.only_second or self.tensors)


def diff_checkpoints(
    first: str | Location,
    second: str | Location,
    *,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
) -> Difference:
    """Return what the checkpoints at `first` and `second` do not have in common.

    Args:
        first: a file or a folder, of any format.
        second: another, of the same format or not.
        loading: how a pickle is loaded.
        on_tensor: called as tensors are compared, with the bytes of the first.

    Raises:
        InputError: one cannot be read, or is refused.

    Example:
        >>> diff_checkpoints("model.pt", "model.pruned.safetensors").tensors[0].values.channels
        (3, 17, 41)
    """
    return diff(open_checkpoint(first, loading), open_checkpoint(second, loading), on_tensor)


def diff(first: Checkpoint, second: Checkpoint, on_tensor: OnTensor | None = None) -> Difference:
    """Return what two opened checkpoints do not have in common."""
    one, other = _by_name(first), _by_name(second)
    names = [name for name in one if name in other]
    found: list[TensorDifference] = []
    for name in sorted(names, key=natural_key):
        found += _compare(name, _Side(first, one[name]), _Side(second, other[name]))
        if on_tensor:
            on_tensor(name, one[name].nbytes)
    return Difference(
        first=_title(first),
        second=_title(second),
        only_first=_missing(one, other),
        only_second=_missing(other, one),
        tensors=tuple(found),
        same=len(names) - len(found),
    )


def difference_to_json(difference: Difference) -> str:
    """Return the difference as JSON, a line for each tensor, ending in a newline."""
    facts = asdict(difference)
    return encode({"schema": SCHEMA, **facts, "tensors": list(facts["tensors"])})


def _by_name(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return every tensor by each of its names."""
    aliases = {alias: checkpoint.tensors[name] for alias, name in checkpoint.aliases.items()}
    return {**aliases, **checkpoint.tensors}


def _title(checkpoint: Checkpoint) -> str:
    return checkpoint.path.name or checkpoint.path.resolve().name


def _missing(one: Mapping[str, object], other: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(sorted((name for name in one if name not in other), key=natural_key))


# --- one tensor ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Side:
    """A tensor in one of the checkpoints."""

    checkpoint: Checkpoint
    info: TensorInfo

    def flat_bits(self) -> "Bits":
        """Return its elements in order; those of a dtype below a byte as the bytes they are in."""
        info = self.info
        if DTYPES[info.dtype].bits < 8:
            info = info._replace(dtype="U8", shape=(info.nbytes,))
        return self.checkpoint.bits(info).reshape(-1)


def _compare(name: str, one: _Side, other: _Side) -> Iterator[TensorDifference]:
    """Yield the difference of a tensor, if there is one."""
    a, b = one.info, other.info
    values = _compare_values(one, other) if a.shape == b.shape else None
    if values or (a.dtype, a.shape) != (b.dtype, b.shape):
        yield TensorDifference(name, (a.dtype, b.dtype), (a.shape, b.shape), values)


def _compare_values(one: _Side, other: _Side) -> Values | None:
    dtypes = (one.info.dtype, other.info.dtype)
    is_packed = any(DTYPES[dtype].bits < 8 for dtype in dtypes)
    if is_packed and dtypes[0] != dtypes[1]:
        return None  # as numbers there is nothing to compare
    shape = () if is_packed else one.info.shape
    tally = _Tally(shape)
    bits, others = one.flat_bits(), other.flat_bits()
    for start in range(0, len(bits), _PIECE):
        pieces = bits[start : start + _PIECE], others[start : start + _PIECE]
        places = _find_different(*pieces, dtypes)
        if len(places):
            tally.note(places + start)
            if not is_packed:
                tally.measure(pieces[0][places], pieces[1][places], dtypes)
    return tally.sum_up(is_packed=is_packed)


def _find_different(
    bits: "Bits", others: "Bits", dtypes: tuple[str, str]
) -> "npt.NDArray[np.int64]":
    """Return where two pieces differ: in bits of one dtype, in numbers of two."""
    import numpy as np

    if dtypes[0] == dtypes[1]:
        return np.flatnonzero(bits != others)
    from prune_cli.inspection.values import to_numbers

    one, other = to_numbers(bits, dtypes[0]), to_numbers(others, dtypes[1])
    return np.flatnonzero((one != other) & ~(np.isnan(one) & np.isnan(other)))


@dataclass(slots=True)
class _Tally:
    """What is known so far of where two tensors of one shape differ."""

    shape: tuple[int, ...]
    elements: int = 0
    largest: float = 0.0
    flags: list["npt.NDArray[np.bool_]"] = field(default_factory=list)

    def note(self, places: "npt.NDArray[np.int64]") -> None:
        """Note that the elements at `places` of the flat tensors differ."""
        import numpy as np

        if not self.flags:
            self.flags = [np.zeros(size, dtype=np.bool_) for size in self.shape]
        self.elements += len(places)
        for dim, flags in enumerate(self.flags):
            flags[places // math.prod(self.shape[dim + 1 :]) % self.shape[dim]] = True

    def measure(self, bits: "Bits", others: "Bits", dtypes: tuple[str, str]) -> None:
        """Note how far elements that differ are apart."""
        import numpy as np

        from prune_cli.inspection.values import to_numbers

        with np.errstate(all="ignore"):
            apart = np.abs(to_numbers(bits, dtypes[0]) - to_numbers(others, dtypes[1]))
        self.largest = max(self.largest, float(np.where(np.isnan(apart), np.inf, apart).max()))

    def sum_up(self, *, is_packed: bool) -> Values | None:
        """Return what was noted; None if nothing differs."""
        if not self.elements:
            return None
        counts = [int(flags.sum()) for flags in self.flags]
        parts = [count / size for count, size in zip(counts, self.shape, strict=True)]
        dim = parts.index(min(parts)) if parts else None
        return Values(
            elements=self.elements,
            dim=dim,
            channels=() if dim is None else tuple(self.flags[dim].nonzero()[0].tolist()),
            of=0 if dim is None else self.shape[dim],
            largest=None if is_packed or math.isinf(self.largest) else self.largest,
        )


# --- rows ------------------------------------------------------------------------------------

_COLUMNS = (
    Column("name", Kind.TEXT, "tensor"),
    Column("difference", Kind.TEXT),
    Column("dim"),
    Column("channels", Kind.TEXT),
    Column("elements"),
    Column("largest", title="max |\u0394|"),
)


def list_differences(difference: Difference) -> Rows:
    """Return a row for each tensor that is not the same in both."""
    one = [(name, f"only in {difference.first}") for name in difference.only_first]
    other = [(name, f"only in {difference.second}") for name in difference.only_second]
    missing = [(name, what, None, None, None, None) for name, what in (*one, *other)]
    return Rows(_COLUMNS, (*missing, *(_row(tensor) for tensor in difference.tensors)))


def _row(
    tensor: TensorDifference,
) -> tuple[str, str, int | None, str | None, int | None, float | None]:
    what = ", ".join(_describe(tensor)) or "values"
    values = tensor.values
    if values is None:
        return (tensor.name, what, None, None, None, None)
    channels = f"{len(values.channels):,}/{values.of:,}" if values.dim is not None else None
    return (tensor.name, what, values.dim, channels, values.elements, values.largest)


def _describe(tensor: TensorDifference) -> Sequence[str]:
    shapes = [format_shape(shape) for shape in tensor.shapes]
    pairs = (shapes, list(tensor.dtypes))
    return [f"{one} -> {other}" for one, other in pairs if one != other]
