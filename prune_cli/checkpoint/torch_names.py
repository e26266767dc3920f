"""The names that a pickle may use and that mean something here: torch's, NumPy's, Python's own.

Each becomes a fact: a dtype, a storage, where in it a tensor lies. What can put names into a
file of torch.save stands in torch/_utils.py, torch/_tensor.py and torch/storage.py; nothing of
it is imported. This table is fixed: no option and no file adds to it.

See also: `pickles` for how a pickle is run, `state_dict` for which tensors are wanted.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from prune_cli.checkpoint.pickled import (
    Buildable,
    Collection,
    CorruptPickleError,
    Maker,
    Name,
    Octets,
    StandIn,
    Text,
)
from prune_cli.checkpoint.pickles import Machine
from prune_cli.checkpoint.tensors import DTYPES, MAX_DIMS

_LARGEST_SIZE = 1 << 62


# --- Facts ------------------------------------------------------------------------------------


class TorchDtype(NamedTuple):
    """A dtype as torch calls it, and the bytes of one element."""

    name: str
    itemsize: int


class StorageType(NamedTuple):
    """A class of storages: the dtype of their elements, None for bytes."""

    dtype: TorchDtype | None


@dataclass(slots=True)
class Storage:
    """The bytes that tensors lie in: `start` is their place in the file.

    Not frozen: the legacy format tells the place after the tensors.
    """

    dtype: TorchDtype | None
    start: int
    nbytes: int


class Size(tuple[int, ...]):
    """torch.Size: a shape."""

    __slots__ = ()


class Counter(dict[Any, Any]):
    """collections.Counter, without its arithmetic."""


@dataclass(frozen=True, slots=True)
class Tensor(Buildable):
    """A tensor of torch.

    Attributes:
        dtype: as torch has it; None where the file does not say.
        shape, strides: in elements.
        storage: where its bytes are; None where they are nowhere.
        offset: of its first element in the storage, in elements.
        is_conj, is_neg: whether its values are the conjugates or the negatives of what is stored.
        problem: why it is no tensor that can be had from bytes, with the remedy.
    """

    dtype: TorchDtype | None
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    storage: Storage | None = None
    offset: int = 0
    is_conj: bool = False
    is_neg: bool = False
    problem: str | None = None

    @property
    def start(self) -> int:
        """The place in the file of its first byte."""
        assert self.storage and self.dtype
        return self.storage.start + self.offset * self.dtype.itemsize

    def build(self, state: object) -> None:
        """Pass over what torch before 0.4 says of a Parameter: requires_grad, volatile, hooks."""
        match state:
            case (bool(), _, _):
                pass
            case _:
                raise CorruptPickleError("it changes a tensor after it was made")


class NumpyDtype(Buildable):
    """A dtype of NumPy: its code ("f4") and byte order ("<", ">", "|", "=")."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        self.code = code.name if isinstance(code, Name) else code
        self.order = "="

    def build(self, state: object) -> None:
        """Take the byte order; other dtypes than numbers are told by their code."""
        match state:
            case (int(), str(order), *_):
                self.order = order
            case _:
                raise CorruptPickleError("the state of a dtype is none")


class Array(Buildable):
    """An array of NumPy."""

    __slots__ = ("content", "dtype", "is_fortran", "shape")

    def __init__(self, shape: object = (), dtype: object = None, content: object = None) -> None:
        self.shape = shape
        self.dtype = dtype
        self.content = content
        self.is_fortran = False

    def build(self, state: object) -> None:
        """Take the state of ndarray.__setstate__."""
        match state:
            case (int(), tuple(shape), NumpyDtype() as dtype, fortran, content):
                self.shape, self.dtype, self.content = shape, dtype, content
                self.is_fortran = bool(fortran)
            case _:
                raise CorruptPickleError("the state of an array is none")


class Scalar(NamedTuple):
    """A number of NumPy, which is no tensor: the name of its class."""

    name: str


# --- Dtypes -----------------------------------------------------------------------------------

_OTHER_DTYPES = {
    "complex128": 16, "complex32": 4, "qint8": 1, "quint8": 1, "qint32": 4,
    "quint4x2": 1, "quint2x4": 1, "bits8": 1, "bits16": 2, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1,
    **{f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)},
}  # fmt: skip
_TORCH_DTYPES = {
    name: TorchDtype(name, nbytes)
    for name, nbytes in (
        *((dtype.torch, max(dtype.bits // 8, 1)) for dtype in DTYPES.values() if dtype.torch),
        *_OTHER_DTYPES.items(),
    )
}
DTYPE_NAMES: Mapping[str, str] = {
    dtype.torch: name for name, dtype in DTYPES.items() if dtype.torch
}
"""torch's name of a dtype -> safetensors' name."""

_SYNONYMS = {
    "float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip
_STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128", "QInt8": "qint8",
    "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4",
}  # fmt: skip
_NUMPY_CODES = {
    "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "b1": "BOOL",
    "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64",
    "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64",
    "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
_NUMPY_NAMES = {
    "f": "float", "i": "int", "u": "uint", "c": "complex", "b": "bool", "S": "bytes", "U": "str",
}  # fmt: skip


def numpy_dtype(dtype: object) -> str | None:
    """Return what safetensors calls a NumpyDtype; None if it is none of numbers."""
    code = dtype.code if isinstance(dtype, NumpyDtype) else None
    return _NUMPY_CODES.get(code) if isinstance(code, str) else None


# --- Tensors ----------------------------------------------------------------------------------


def _tensor(
    storage: object, offset: object, shape: object, strides: object, dtype: object = None
) -> Tensor:
    if not isinstance(storage, Storage):
        raise CorruptPickleError("a tensor has no storage")
    dtype = dtype or storage.dtype
    if not isinstance(dtype, TorchDtype):
        raise CorruptPickleError("a tensor has no dtype")
    shape, strides = _numbers(shape), _numbers(strides)
    if type(offset) is not int or not 0 <= offset < _LARGEST_SIZE or len(shape) != len(strides):
        raise CorruptPickleError(f"a tensor of shape {list(shape)} has a wrong offset or strides")
    tensor = Tensor(dtype, shape, strides, storage, offset)
    last = offset + elements_spanned(shape, strides)
    if 0 not in shape and last * dtype.itemsize > storage.nbytes:
        raise CorruptPickleError(f"a tensor of shape {list(shape)} reaches out of its storage")
    return tensor


def _numbers(value: object) -> tuple[int, ...]:
    """Return the sizes or strides that `value` is."""
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMS:
        raise CorruptPickleError("a shape is no tuple of numbers")
    if not all(type(n) is int and 0 <= n < _LARGEST_SIZE for n in value):
        raise CorruptPickleError("a shape or strides are no whole numbers >= 0")
    return tuple(value)


def elements_spanned(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return the elements from the first to the last of a tensor, those between them too."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    flags: object = None,
) -> Tensor:
    return _flagged(_tensor(storage, offset, shape, strides), flags)


def _tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    dtype: object,
    flags: object = None,
) -> Tensor:
    if not isinstance(dtype, TorchDtype):
        raise CorruptPickleError("a tensor has no dtype")
    return _flagged(_tensor(storage, offset, shape, strides, dtype), flags)


def _flagged(tensor: Tensor, flags: object) -> Tensor:
    if not flags:
        return tensor
    if not isinstance(flags, dict) or not flags.keys() <= {"conj", "neg"}:
        raise CorruptPickleError("a tensor has unknown flags")
    if not all(value is True for value in flags.values()):  # torch takes False for True
        raise CorruptPickleError("a tensor has a flag that is not set")
    assert tensor.dtype
    kind = tensor.dtype.name
    is_conj, is_neg = "conj" in flags, "neg" in flags
    if is_conj and not kind.startswith("complex"):
        raise CorruptPickleError(f"a tensor of {kind} is said to be conjugate")
    if is_neg and kind not in _WITH_SIGN:
        raise CorruptPickleError(f"a tensor of {kind} is said to be negative")
    return replace(tensor, is_conj=is_conj, is_neg=is_neg)


_WITH_SIGN = {"float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"}


def _parameter(data: object, *_: object) -> object:
    return data


def _from_type(function: object, kind: object, args: object, _state: object) -> object:
    """Return the tensor of a subclass: where its bytes are a tensor's, they are its own."""
    if not isinstance(function, Maker) or function.copies or type(args) is not tuple:
        raise CorruptPickleError("a tensor is made by what makes none")
    made = function.make(*args)
    return made if isinstance(made, Tensor | Array) else StandIn(kind, args)


def _sparse(layout: object, data: object) -> Tensor:
    name = layout.name if isinstance(layout, Name) else "sparse"
    shape: tuple[int, ...] = ()
    if isinstance(data, tuple):
        shape = next((part for part in data if isinstance(part, Size)), ())
    return Tensor(None, tuple(shape), problem=f"is {name}; make it dense with .to_dense()")


def _quantised(storage: object, _offset: object, shape: object, *_: object) -> Tensor:
    dtype = storage.dtype if isinstance(storage, Storage) else None
    kind = f"torch.{dtype.name}" if dtype else "unknown"
    return Tensor(
        dtype, _numbers(shape), problem=f"is quantised ({kind}); save it with .dequantize()"
    )


def _nested(*_: object) -> Tensor:
    return Tensor(None, (), problem="is nested; save its parts, or .to_padded_tensor()")


def _meta(dtype: object, shape: object, _strides: object, _requires_grad: object) -> Tensor:
    known = dtype if isinstance(dtype, TorchDtype) else None
    problem = "is on the meta device: it has no data; load the weights before you save it"
    return Tensor(known, _numbers(shape), problem=problem)


def _wrapper(kind: object, dtype: object, shape: object, *_: object) -> Tensor:
    known = dtype if isinstance(dtype, TorchDtype) else None
    return Tensor(known, _numbers(shape), problem=_why_wrapped(kind))


def _why_wrapped(kind: object) -> str:
    """Return what to do about a subclass whose bytes are those of other tensors."""
    name = kind.name if isinstance(kind, Name) else "wrapper subclass of torch.Tensor"
    if name == "DTensor":
        return (
            "is a DTensor; save its .full_tensor(), or prune the folder that "
            "torch.distributed.checkpoint wrote"
        )
    module = kind.module if isinstance(kind, Name) else ""
    article = "an" if name[:1] in "AEIOU" else "a"
    remedy = (
        "prune the model before it is quantised"
        if module.startswith("torchao")
        else ("save it as a plain tensor")
    )
    return f"is {article} {name} ({module or 'unknown'}), which holds other tensors; {remedy}"


def _from_numpy(array: object, dtype: object, device: object, _requires_grad: object) -> object:
    if isinstance(array, Array) and isinstance(dtype, TorchDtype):
        kept = numpy_dtype(array.dtype)
        if kept is not None and kept == DTYPE_NAMES.get(dtype.name):
            return array
    return _of_device(dtype, (), device)


def _from_cpu(data: object, dtype: object, device: object, _requires_grad: object) -> object:
    if isinstance(data, Tensor) and data.dtype == dtype:
        return data
    return _of_device(dtype, data.shape if isinstance(data, Tensor) else (), device)


def _of_device(dtype: object, shape: tuple[int, ...], device: object) -> Tensor:
    known = dtype if isinstance(dtype, TorchDtype) else None
    place = device if isinstance(device, str) else "another device"
    return Tensor(
        known, shape, problem=f"lay on {place[:40]} as another dtype; save it from the CPU"
    )


# --- Python's own -----------------------------------------------------------------------------


def _dict_of(kind: Callable[[], dict[Any, Any]]) -> Callable[..., object]:
    def make(machine: Machine, pairs: object = ()) -> object:
        made = kind()
        if isinstance(pairs, dict):
            machine.spend(len(pairs))
            machine.set_items(made, [part for pair in pairs.items() for part in pair])
            return made
        if not isinstance(pairs, list | tuple):
            raise CorruptPickleError("a dict is made of what holds no pairs")
        machine.spend(len(pairs))
        for pair in pairs:
            machine.set_items(made, pair)
        return made

    return make


def _default_dict(machine: Machine, _factory: object = None, pairs: object = ()) -> object:
    return _dict_of(defaultdict)(machine, pairs)


def _collection_of(kind: str) -> Callable[..., object]:
    def make(items: object = (), *_: object) -> object:
        if isinstance(items, list):
            return Collection(kind, items)
        if isinstance(items, Collection):
            return Collection(kind, items.items)
        if isinstance(items, tuple):
            return Collection(kind, list(items)) if not items else Collection(kind, [items])
        raise CorruptPickleError(f"a {kind} is made of what holds no items")

    return make


def _size(machine: Machine, sizes: object = ()) -> object:
    found = _numbers(sizes)
    machine.spend(len(found))
    return Size(found)


def _encoded(machine: Machine, text: object, encoding: object = "utf-8", *_: object) -> object:
    """Return the bytes that pickle protocols before 3 hold as text."""
    if encoding not in ("latin1", "latin-1", "utf-8"):
        raise CorruptPickleError("bytes are encoded in an unknown way")
    if isinstance(text, Text):
        return Octets("bytes", text.at, text.nbytes, is_latin1=encoding != "utf-8")
    if isinstance(text, str):
        machine.spend(len(text))
        return text.encode(encoding)
    raise CorruptPickleError("what is encoded is no text")


def _byte_array(content: object = b"", *_: object) -> object:
    if isinstance(content, Octets):
        return content._replace(kind="bytearray")
    return content if isinstance(content, bytes) else StandIn(Name("builtins", "bytearray"), ())


def _same(value: object, *_: object) -> object:
    return value


def _attribute(machine: Machine, owner: object, name: object, *rest: object) -> object:
    """Return the name of a class within a class, which protocols before 4 ask getattr for."""
    if isinstance(owner, Name) and type(name) is str and not rest:
        machine.spend(len(owner.name) + len(name))
        return Name(owner.module, f"{owner.name}.{name}")
    return StandIn(Name("builtins", "getattr"), (owner, name, *rest))


def _layout(name: object) -> Name:
    return Name("torch", name.removeprefix("torch.") if isinstance(name, str) else "")


# --- NumPy ------------------------------------------------------------------------------------


def _empty_array(*_: object) -> Array:
    return Array()


def _array_of_buffer(content: object, dtype: object, shape: object, order: object) -> Array:
    array = Array(_numbers(shape), dtype, content)
    array.is_fortran = order == "F"
    return array


def _scalar(dtype: object, *_: object) -> Scalar:
    code = dtype.code if isinstance(dtype, NumpyDtype) else None
    if not isinstance(code, str) or not code[1:].isdigit() or len(code) > 4:
        return Scalar("generic")
    name, size = _NUMPY_NAMES.get(code[0], "generic"), int(code[1:]) * 8
    return Scalar(f"{name}{size}" if code[0] in "fiuc" else f"{name}_")


# --- The table --------------------------------------------------------------------------------


def _table() -> Iterator[tuple[str, str, object]]:
    """Yield every name that is known: its module, itself, and what it is."""
    for name, dtype in _TORCH_DTYPES.items():
        yield "torch", name, dtype
    for name, known in _SYNONYMS.items():
        yield "torch", name, _TORCH_DTYPES[known]
    for name, known in _STORAGES.items():
        for module in ("torch", "torch.cuda"):
            yield module, f"{name}Storage", StorageType(_TORCH_DTYPES[known])
    for name in ("UntypedStorage", "_UntypedStorage", "TypedStorage"):
        yield "torch.storage", name, StorageType(None)
        yield "torch", name, StorageType(None)
    yield "torch", "Size", Maker("Size", _size, copies=True)
    yield "torch.serialization", "_get_layout", Maker("layout", _layout)
    yield "torch._tensor", "_rebuild_from_type", Maker("Tensor", _from_type)
    yield "torch._tensor", "_rebuild_from_type_v2", Maker("Tensor", _from_type)
    for name, make in _REBUILT.items():
        yield "torch._utils", name, Maker("Tensor", make)
    for name in ("Parameter", "Buffer"):
        yield "torch.nn.parameter", name, Maker(name, _parameter)
    yield "torch.nested._internal.nested_tensor", "_rebuild_njt", Maker("Tensor", _nested)
    for name in ("intlist", "doublelist", "boollist", "tensorlist"):
        yield "torch.jit._pickle", f"build_{name}", Maker("list", _same)
    yield "torch.jit._pickle", "restore_type_tag", Maker("object", _same)
    yield from _python_table()
    yield from _numpy_table()


_REBUILT: dict[str, Callable[..., object]] = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor_v2,
    "_rebuild_tensor_v3": _tensor_v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_sparse_tensor": _sparse,
    "_rebuild_sparse_csr_tensor": _sparse,
    "_rebuild_qtensor": _quantised,
    "_rebuild_nested_tensor": _nested,
    "_rebuild_meta_tensor_no_storage": _meta,
    "_rebuild_wrapper_subclass": _wrapper,
    "_rebuild_device_tensor_from_numpy": _from_numpy,
    "_rebuild_xla_tensor": _from_numpy,
    "_rebuild_device_tensor_from_cpu_tensor": _from_cpu,
}


def _python_table() -> Iterator[tuple[str, str, object]]:
    kinds = {"OrderedDict": OrderedDict, "Counter": Counter}
    for name, kind in kinds.items():
        yield "collections", name, Maker(name, _dict_of(kind), copies=True)
    yield "collections", "defaultdict", Maker("defaultdict", _default_dict, copies=True)
    yield "collections", "deque", Maker("deque", _collection_of("deque"))
    yield "builtins", "dict", Maker("dict", _dict_of(dict), copies=True)
    for name in ("set", "frozenset"):
        yield "builtins", name, Maker(name, _collection_of(name))
    yield "builtins", "getattr", Maker("getattr", _attribute, copies=True)
    yield "builtins", "bytearray", Maker("bytearray", _byte_array)
    yield "_codecs", "encode", Maker("bytes", _encoded, copies=True)


def _numpy_table() -> Iterator[tuple[str, str, object]]:
    yield "numpy", "dtype", Maker("dtype", NumpyDtype)
    for core in ("numpy.core", "numpy._core"):
        yield f"{core}.multiarray", "_reconstruct", Maker("ndarray", _empty_array)
        yield f"{core}.multiarray", "scalar", Maker("scalar", _scalar)
        yield f"{core}.numeric", "_frombuffer", Maker("ndarray", _array_of_buffer)


TABLE: Mapping[tuple[str, str], object] = {
    (module, name): thing for module, name, thing in _table()
}
"""Every known name."""
