"""Runs a pickle on facts alone: nothing it names is imported, called or changed.

A pickle is a program for a stack machine. Here its lists, dicts and numbers become Python's own,
a few names become what a table of the caller has for them, and whatever else it names, makes or
fills becomes a StandIn, which keeps what it was given and does nothing.

What it costs grows with the length of the pickle alone: long strings and bytes stay in the file
(Text, Octets), keys with a hash that a file could choose are hidden behind Key, and what copies
pays from a budget.

See also: `pickled` for what comes of it, `torch_names` for the table, `torch_file` for where pickles are in a file.
"""

import codecs
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prune_cli.checkpoint.pickled import (
    Buildable,
    Collection,
    CorruptPickleError,
    Key,
    Maker,
    Name,
    Octets,
    RefusedPickleError,
    StandIn,
    Text,
    printable,
)

if TYPE_CHECKING:
    from prune_cli.checkpoint.contents import Buffer

LONG_TEXT = 4096
"""Bytes from which on a string is left in the file."""

_NEWEST_PROTOCOL = 5
_LARGEST_HASH = 1 << 60  # ints up to here are their own hash; larger ones can be made to collide
_COPIES_PER_BYTE = 4
_MOST_DIGITS = 4300


@dataclass(frozen=True)
class Program:
    """Where a pickle is: `start` to `stop` of `buffer`, whose first byte is at `base` of the file."""

    buffer: "bytes | Buffer"
    start: int
    stop: int
    base: int = 0


class Ran(NamedTuple):
    """What a pickle made, and where in the buffer it ended."""

    value: Any
    stop: int


def run_pickle(
    program: Program,
    table: Mapping[tuple[str, str], object],
    persistent: Callable[[object], object] | None = None,
) -> Ran:
    """Return what the pickle makes.

    Args:
        program: where it is.
        table: what is known, by module and name; Makers among them are called.
        persistent: what an object that is outside of the pickle is.

    Raises:
        CorruptPickleError: it is truncated, or does what no pickler writes.
        RefusedPickleError: it holds what `table` or `persistent` refuse.
    """
    machine = Machine(program, table, persistent)
    try:
        return Ran(machine.run(), machine.at)
    except (CorruptPickleError, RefusedPickleError):
        raise
    except RecursionError:
        raise CorruptPickleError("it is nested too deep") from None
    except Exception as error:  # an opcode found other operands than it needs
        raise CorruptPickleError(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]


class Machine:
    """A run of a Program: its stack, its memo, and what it may still copy."""

    def __init__(
        self,
        program: Program,
        table: Mapping[tuple[str, str], object],
        persistent: Callable[[object], object] | None,
    ) -> None:
        self.data = program.buffer
        self.at, self.stop = program.start, program.stop
        self.base = program.base
        self.table = table
        self.persistent = persistent
        self.protocol = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, object] = {}
        self.copies = _COPIES_PER_BYTE * (program.stop - program.start)

    def run(self) -> object:
        """Carry out one opcode after the other, and return what is left."""
        data, stop, opcodes = self.data, self.stop, _OPCODES
        while self.at < stop:
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            opcodes[code](self)
        raise CorruptPickleError("it ends before its end")

    def take(self, nbytes: int) -> bytes:
        """Return the next `nbytes`."""
        start, self.at = self.at, self.at + nbytes
        if self.at > self.stop:
            raise CorruptPickleError("it ends before its end")
        return self.data[start : self.at]

    def number(self, nbytes: int) -> int:
        """Return the next `nbytes` as a number."""
        return int.from_bytes(self.take(nbytes), "little")

    def skip(self, nbytes: int) -> int:
        """Return where in the buffer the next `nbytes` begin, and go past them."""
        start, self.at = self.at, self.at + nbytes
        if self.at > self.stop:
            raise CorruptPickleError("it ends before its end")
        return start

    def line(self) -> bytes:
        """Return what there is up to the end of the line."""
        end = self.data.find(b"\n", self.at, self.stop)
        if end < 0:
            raise CorruptPickleError("it ends before its end")
        start, self.at = self.at, end + 1
        return self.data[start:end]

    def pop_mark(self) -> list[Any]:
        """Return what is above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def spend(self, count: int) -> None:
        """Pay for copies of `count` objects."""
        self.copies -= count
        if self.copies < 0:
            raise CorruptPickleError("it copies the same objects too often")

    def key(self, value: object) -> object:
        """Return `value` as a key of a dict: only what no file can make collide is one itself."""
        kind = type(value)
        if kind is str or kind is bool or kind is float or value is None:
            return value
        if kind is int and -_LARGEST_HASH < value < _LARGEST_HASH:  # type: ignore[operator]
            return value
        if isinstance(value, Text):
            self.spend(value.nbytes)
            start = value.at - self.base
            return str(self.data[start : start + value.nbytes], "utf-8", "surrogatepass")
        return Key(value)

    def set_items(self, target: object, items: Sequence[Any]) -> None:
        """Put keys and values, in turn, into a dict or an object that is filled like one."""
        if len(items) % 2:
            raise CorruptPickleError("a key has no value")
        if isinstance(target, StandIn):
            target.items = target.items or {}
            target = target.items
        if not isinstance(target, dict):
            raise CorruptPickleError(f"it sets items of {_kind(target)}")
        for at in range(0, len(items), 2):
            key = items[at]
            target[key if type(key) is str else self.key(key)] = items[at + 1]

    def append(self, target: object, items: list[Any]) -> None:
        """Put `items` at the end of a list, a set, or an object that is filled like one."""
        if isinstance(target, StandIn):
            target.entries = target.entries or []
            target = target.entries
        elif isinstance(target, Collection):
            target = target.items
        if type(target) is not list:
            raise CorruptPickleError(f"it appends to {_kind(target)}")
        target.extend(items)

    def find(self, module: object, name: object) -> object:
        """Return what the table has for a name; without it, the Name."""
        if type(module) is not str or type(name) is not str:
            raise CorruptPickleError("a name is not a string")
        if self.protocol < 3:
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
        found = self.table.get((module, name))
        return Name(printable(module), printable(name)) if found is None else found

    def call(self, function: object, args: object) -> object:
        """Return the fact that a Maker makes, or a StandIn: nothing else is called."""
        if type(args) is not tuple:
            raise CorruptPickleError("the arguments of a call are no tuple")
        if isinstance(function, Maker):
            return function.make(self, *args) if function.copies else function.make(*args)
        if isinstance(function, Name):
            return _call_unknown(function, args)
        if isinstance(function, StandIn):
            return StandIn(function, args)
        raise CorruptPickleError(f"it calls {_kind(function)}")


def _call_unknown(function: Name, args: tuple[Any, ...]) -> object:
    """What copyreg makes is an object of the class that it is given; the rest is as it says."""
    if function.module == "copyreg" and args and isinstance(args[0], Name | Maker):
        return new_object(args[0], args[1:])
    return StandIn(function, args)


def new_object(cls: object, args: object) -> object:
    """Return what stands for a new object of `cls`: of a known one, a fact."""
    if isinstance(cls, Maker):
        cls = Name("", cls.name)
    if not isinstance(cls, Name | StandIn):
        raise CorruptPickleError(f"it makes an object of {_kind(cls)}")
    return StandIn(cls, args)


def _kind(value: object) -> str:
    return value.class_name if isinstance(value, StandIn) else type(value).__name__


# --- The opcodes ------------------------------------------------------------------------------


def _unknown(machine: Machine) -> None:
    raise CorruptPickleError(f"byte {machine.at - 1} is no opcode")


def _proto(machine: Machine) -> None:
    machine.protocol = machine.number(1)
    if machine.protocol > _NEWEST_PROTOCOL:
        raise CorruptPickleError(f"its protocol is {machine.protocol}; known are 0 to 5")


def _frame(machine: Machine) -> None:
    if machine.at + machine.number(8) > machine.stop:
        raise CorruptPickleError("a frame ends outside")


def _mark(machine: Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        del machine.stack[-1]
    else:
        machine.pop_mark()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _dup(machine: Machine) -> None:
    machine.stack.append(machine.stack[-1])


def _constant(value: object) -> "_Opcode":
    def push(machine: Machine) -> None:
        machine.stack.append(value)

    return push


def _empty_dict(machine: Machine) -> None:
    machine.stack.append({})


def _empty_list(machine: Machine) -> None:
    machine.stack.append([])


def _empty_set(machine: Machine) -> None:
    machine.stack.append(Collection("set", []))


def _frozenset(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.stack.append(Collection("frozenset", items))


def _int(machine: Machine) -> None:
    line = machine.line()
    flags = {b"00": False, b"01": True}
    machine.stack.append(flags[line] if line in flags else int(_short(line), 0))


def _short(line: bytes) -> bytes:
    if len(line) > _MOST_DIGITS:
        raise CorruptPickleError("a number has too many digits")
    return line


def _long(machine: Machine) -> None:
    machine.stack.append(int(_short(machine.line()).removesuffix(b"L"), 0))


def _binint(machine: Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(4), "little", signed=True))


def _binint1(machine: Machine) -> None:
    machine.stack.append(machine.data[machine.at])
    machine.at += 1


def _binint2(machine: Machine) -> None:
    machine.stack.append(machine.number(2))


def _long_of(width: int) -> "_Opcode":
    def push(machine: Machine) -> None:
        nbytes = int.from_bytes(machine.take(width), "little", signed=width == 4)
        if nbytes < 0:
            raise CorruptPickleError("a number has a negative length")
        machine.stack.append(int.from_bytes(machine.take(nbytes), "little", signed=True))

    return push


def _float(machine: Machine) -> None:
    machine.stack.append(float(machine.line()))


def _binfloat(machine: Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


def _text_of(width: int) -> "_Opcode":
    def push(machine: Machine) -> None:
        nbytes = machine.number(width)
        if nbytes < LONG_TEXT:
            machine.stack.append(str(machine.take(nbytes), "utf-8", "surrogatepass"))
        else:
            start = machine.skip(nbytes)
            machine.stack.append(Text(machine.base + start, nbytes))

    return push


def _unicode(machine: Machine) -> None:
    machine.stack.append(str(machine.line(), "raw-unicode-escape"))


def _string(machine: Machine) -> None:
    line = machine.line()
    if len(line) < 2 or line[:1] not in b"'\"" or line[-1:] != line[:1]:
        raise CorruptPickleError("a string has no quotes")
    machine.stack.append(_python_2_text(codecs.escape_decode(line[1:-1])[0]))


def _python_2_text(content: bytes) -> object:
    """Return a string of Python 2, where text and bytes are one."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content


def _string_of(width: int) -> "_Opcode":
    def push(machine: Machine) -> None:
        nbytes = int.from_bytes(machine.take(width), "little", signed=width == 4)
        start = machine.skip(nbytes)
        if nbytes < 0:
            raise CorruptPickleError("a string has a negative length")
        text = _python_2_text(machine.data[start : machine.at]) if nbytes < LONG_TEXT else b""
        if type(text) is not str:
            machine.stack.append(Octets("str", machine.base + start, nbytes))
        else:
            machine.stack.append(text)

    return push


def _bytes_of(width: int, kind: str = "bytes") -> "_Opcode":
    def push(machine: Machine) -> None:
        nbytes = machine.number(width)
        machine.stack.append(Octets(kind, machine.base + machine.skip(nbytes), nbytes))

    return push


def _next_buffer(_: Machine) -> None:
    raise CorruptPickleError("it refers to buffers outside of the file")


def _nothing(_: Machine) -> None:
    """Keep what is on the stack."""


def _tuple(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.stack.append(tuple(items))


def _tuple1(machine: Machine) -> None:
    machine.stack[-1] = (machine.stack[-1],)


def _tuple2(machine: Machine) -> None:
    machine.stack[-2:] = [(machine.stack[-2], machine.stack[-1])]


def _tuple3(machine: Machine) -> None:
    machine.stack[-3:] = [(machine.stack[-3], machine.stack[-2], machine.stack[-1])]


def _list(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.stack.append(items)


def _dict(machine: Machine) -> None:
    items = machine.pop_mark()
    made: dict[object, object] = {}
    machine.set_items(made, items)
    machine.stack.append(made)


def _append(machine: Machine) -> None:
    value = machine.stack.pop()
    target = machine.stack[-1]
    if type(target) is list:
        target.append(value)
    else:
        machine.append(target, [value])


def _appends(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.append(machine.stack[-1], items)


def _setitem(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items(machine.stack[-1], (key, value))


def _setitems(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.set_items(machine.stack[-1], items)


def _put(machine: Machine) -> None:
    machine.memo[int(_short(machine.line()))] = machine.stack[-1]


def _long_binput(machine: Machine) -> None:
    at = machine.at
    machine.memo[int.from_bytes(machine.data[at : at + 4], "little")] = machine.stack[-1]
    machine.at = at + 4


def _binput(machine: Machine) -> None:
    machine.memo[machine.data[machine.at]] = machine.stack[-1]
    machine.at += 1


def _memoize(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: Machine) -> None:
    machine.stack.append(machine.memo[int(_short(machine.line()))])


def _long_binget(machine: Machine) -> None:
    machine.stack.append(machine.memo[machine.number(4)])


def _binget(machine: Machine) -> None:
    machine.stack.append(machine.memo[machine.data[machine.at]])
    machine.at += 1


def _global(machine: Machine) -> None:
    module = str(machine.line(), "utf-8")
    name = str(machine.line(), "utf-8")
    machine.stack.append(machine.find(module, name))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.find(module, name))


def _extension_of(width: int) -> "_Opcode":
    def push(machine: Machine) -> None:
        machine.stack.append(Name("copyreg", f"extension {machine.number(width)}"))

    return push


def _reduce(machine: Machine) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args)


def _new(machine: Machine) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = _new_of(machine, machine.stack[-1], args)


def _new_with_keywords(machine: Machine) -> None:
    keywords, args = machine.stack.pop(), machine.stack.pop()
    cls = machine.stack[-1]
    known = isinstance(cls, Maker) and not keywords
    machine.stack[-1] = machine.call(cls, args) if known else new_object(cls, (args, keywords))


def _new_of(machine: Machine, cls: object, args: object) -> object:
    return machine.call(cls, args) if isinstance(cls, Maker) else new_object(cls, args)


def _inst(machine: Machine) -> None:
    _global(machine)
    cls = machine.stack.pop()
    args = tuple(machine.pop_mark())
    machine.stack.append(_new_of(machine, cls, args))


def _obj(machine: Machine) -> None:
    cls, *args = machine.pop_mark()
    machine.stack.append(_new_of(machine, cls, tuple(args)))


def _build(machine: Machine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, StandIn):
        if target.state is not None:
            raise CorruptPickleError(f"it gives {target.class_name} two states")
        target.state = state
    elif isinstance(target, Buildable):
        target.build(state)
    elif not isinstance(target, dict) or not isinstance(state, dict):  # its attributes: _metadata
        raise CorruptPickleError(f"it changes {_kind(target)}")


def _persistent_text(machine: Machine) -> None:
    machine.stack.append(str(machine.line(), "ascii"))
    _persistent(machine)


def _persistent(machine: Machine) -> None:
    if machine.persistent is None:
        raise CorruptPickleError("it refers to objects outside of it")
    machine.stack[-1] = machine.persistent(machine.stack[-1])


_Opcode = Callable[[Machine], None]
_STOP = ord(".")


def _opcodes() -> list[_Opcode]:
    """Return what each byte does, as Lib/pickletools.py describes it."""
    known: dict[bytes, _Opcode] = {
        b"\x80": _proto, b"\x95": _frame, b"(": _mark, b"0": _pop, b"1": _pop_mark, b"2": _dup,
        b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False),
        b")": _constant(()), b"}": _empty_dict, b"]": _empty_list, b"\x8f": _empty_set,
        b"I": _int, b"L": _long, b"J": _binint, b"K": _binint1, b"M": _binint2,
        b"\x8a": _long_of(1), b"\x8b": _long_of(4), b"F": _float, b"G": _binfloat,
        b"V": _unicode, b"X": _text_of(4), b"\x8c": _text_of(1), b"\x8d": _text_of(8),
        b"S": _string, b"T": _string_of(4), b"U": _string_of(1),
        b"B": _bytes_of(4), b"C": _bytes_of(1), b"\x8e": _bytes_of(8),
        b"\x96": _bytes_of(8, "bytearray"), b"\x97": _next_buffer, b"\x98": _nothing,
        b"t": _tuple, b"\x85": _tuple1, b"\x86": _tuple2, b"\x87": _tuple3,
        b"l": _list, b"d": _dict, b"a": _append, b"e": _appends, b"s": _setitem, b"u": _setitems,
        b"\x90": _appends, b"\x91": _frozenset,
        b"p": _put, b"q": _binput, b"r": _long_binput, b"\x94": _memoize,
        b"g": _get, b"h": _binget, b"j": _long_binget,
        b"c": _global, b"\x93": _stack_global, b"i": _inst, b"o": _obj,
        b"\x82": _extension_of(1), b"\x83": _extension_of(2), b"\x84": _extension_of(4),
        b"R": _reduce, b"\x81": _new, b"\x92": _new_with_keywords, b"b": _build,
        b"P": _persistent_text, b"Q": _persistent,
    }  # fmt: skip
    return [known.get(bytes([code]), _unknown) for code in range(256)]


_OPCODES = _opcodes()
