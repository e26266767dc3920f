"""The unpickler: what any pickler writes means the same, and what none writes costs little."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_cli.checkpoint.pickled import (
    Collection,
    CorruptPickleError,
    Key,
    Name,
    Octets,
    StandIn,
    Text,
)
from prune_cli.checkpoint.pickles import Program, run_pickle
from prune_cli.checkpoint.torch_names import TABLE

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def run(pickled: bytes) -> Any:
    """What the pickle makes."""
    return run_pickle(Program(pickled, 0, len(pickled)), TABLE).value


numbers = st.integers(-(1 << 200), 1 << 200) | st.integers(-70000, 70000)
leaves = st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | st.text(max_size=300)
keys = st.text(max_size=9) | st.integers(-(1 << 59), 1 << 59) | st.none()
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_objects_mean_what_they_mean(value: object, protocol: int) -> None:
    """Numbers, strings, lists, tuples and dicts come back as pickle.loads has them."""
    assert run(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_and_cyclic_objects_stay_shared(protocol: int) -> None:
    """The memo is the pickler's."""
    shared: list[object] = [1]
    shared.append(shared)

    first, second = run(pickle.dumps((shared, shared), protocol))

    assert first is second and first[1] is first


class Thing:
    """Has attributes and nothing else."""

    def __init__(self) -> None:
        self.value = 3


class Filled(dict[str, int]):
    """A dict with a name of its own."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_keeps_its_attributes_and_items(protocol: int) -> None:
    """A stand-in holds what was pickled of it, and its class is but a name."""
    thing, filled = run(pickle.dumps([Thing(), Filled(a=1)], protocol))

    assert isinstance(thing, StandIn) and thing.of == (__name__, "Thing")
    assert thing.state == {"value": 3}
    assert filled.class_name == "Filled"
    assert (filled.items or filled.args[1]) == {"a": 1}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_and_long_strings_stay_where_they_are(protocol: int) -> None:
    """They are places in the file; before protocol 3, bytes are text that means Latin-1."""
    content, text = bytes(range(256)) * 20, "é" * 5000
    pickled = pickle.dumps([content, text], protocol)

    found, long = run(pickled)

    assert isinstance(found, Octets) or protocol == 0
    if protocol:
        assert isinstance(long, Text)
        assert pickled[long.at : long.at + long.nbytes].decode() == text
        stored = pickled[found.at : found.at + found.nbytes]
        assert found.is_latin1 == (protocol < 3)
        assert (stored.decode().encode("latin-1") if found.is_latin1 else stored) == content


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sets_are_their_items(protocol: int) -> None:
    """Without a hash being asked for."""
    found = run(pickle.dumps({1, 2, 3}, protocol))

    assert isinstance(found, Collection)
    assert (found.kind, sorted(found.items)) == ("set", [1, 2, 3])


@pytest.mark.parametrize("key", [(1, 2), 1 << 61, -(1 << 61), ((), ((),))], ids=repr)
def test_keys_whose_hash_a_file_could_choose_are_hidden(key: object) -> None:
    """Two that are equal are two."""
    [found] = run(pickle.dumps({key: 1}))

    assert isinstance(found, Key) and found.value == key


WRONG = {
    "empty": b"",
    "no-stop": b"\x80\x02N",
    "no-value": b"\x80\x02.",
    "unknown-opcode": b"\xff.",
    "new-protocol": b"\x80\x06N.",
    "frame": b"\x80\x04\x95\xff\xff\0\0\0\0\0\0N.",
    "no-memo": b"h\x07.",
    "number-calls": b"K\x01)R.",
    "no-tuple-of-arguments": b"cm\nf\n]R.",
    "number-is-filled": b"K\x01K\x02a.",
    "odd-items": b"}(K\x01u.",
    "no-mark": b"Nt.",
    "buffers": b"\x80\x05\x97.",
    "persistent": b"NQ.",
    "long-length": b"\x8b\xff\xff\xff\x7f1.",
    "negative-length": b"\x8b\xff\xff\xff\xff1.",
    "text-length": b"X\xff\xff\xff\xffa.",
    "surrogate-bytes": b"X\x01\0\0\0\xff.",
    "two-states": b"cm\nC\n)\x81}b}b.",
    "changed-number": b"K\x01}b.",
    "name-of-number": b"\x80\x04K\x01K\x02\x93.",
    "many-digits": b"I" + b"9" * 5000 + b"\n.",
}


@pytest.mark.parametrize("pickled", WRONG.values(), ids=WRONG)
def test_what_no_pickler_writes_is_corrupt(pickled: bytes) -> None:
    """Whatever is wrong, the error is the same kind."""
    with pytest.raises(CorruptPickleError):
        run(pickled)


def test_nothing_of_a_name_is_imported() -> None:
    """Neither a module that is there, nor one that is not."""
    found = run(b"\x80\x02cthis\nd\ncno.such\nthing\n\x86.")

    assert found == (Name("this", "d"), Name("no.such", "thing"))
    assert "this" not in sys.modules


def text_of(text: str) -> bytes:
    """The opcode for a string."""
    return b"X" + struct.pack("<I", len(text)) + text.encode()


SIZE = 1_000_000
_MANY = b"}(" + b"".join(text_of(f"{n:x}") + b"N" for n in range(SIZE // 30)) + b"uq\x01"
_PRIME = (1 << 61) - 1

BOMBS = {
    "memo": b"N" + b"".join(b"r" + struct.pack("<I", (1 << 32) - 1 - n) for n in range(SIZE // 5)),
    "memoized": b"N" + b"\x94" * SIZE,
    "deep-tuples": b"N" + b"\x85" * SIZE,
    "deep-lists": b"]" * (SIZE // 2) + b"a" * (SIZE // 2 - 1),
    "deep-objects": b"cm\nf\nq\0N" + b"q\x01h\0h\x01\x85R" * (SIZE // 8),
    "exponential": b"N" + b"2\x86" * (SIZE // 2),
    "exponential-key": b"}N" + b"2\x86" * (SIZE // 2) + b"Ns",
    "builds": b"cm\nC\n)\x81" + b"}b" * (SIZE // 2),
    "sets": b"\x8f" * SIZE,
    "marks": b"(" * SIZE,
    "names": b"".join(b"c%x\nb\n" % n for n in range(SIZE // 8)),
    "colliding-keys": b"}("
    + b"".join(b"\x8a\x0a" + (_PRIME * n).to_bytes(10, "little") + b"N" for n in range(SIZE // 13))
    + b"u",
    "copied-lists": b"ccollections\nOrderedDict\nq\0]("
    + b"K\x01N\x86" * (SIZE // 10)
    + b"eq\x01"
    + b"h\0h\x01\x85R" * (SIZE // 14),
    "copied-text": b"c_codecs\nencode\nq\0"
    + text_of("a" * 4000)
    + text_of("latin1")
    + b"\x86q\x01"
    + b"h\0h\x01R" * (SIZE // 6),
    "shared-attributes": b"cm\nC\nq\0" + _MANY + b"](" + b"h\0)\x81h\x01b" * (SIZE // 12) + b"e",
    "shared-slots": b"cm\nC\nq\0"
    + _MANY
    + b"]("
    + b"h\0)\x81h\x01h\x01\x86b" * (SIZE // 16)
    + b"e",
    "shared-entries": _MANY
    + b"}("
    + b"".join(text_of(f"{n:x}") + b"h\x01" for n in range(40000))
    + b"u",
}

_MEASURE = """
import json, sys, time
from prune_cli.checkpoint import open_checkpoint
from prune_cli.errors import InputError
seconds = {}
for path in sys.argv[1:]:
    begun = time.process_time()
    try:
        open_checkpoint(path)
    except InputError:
        seconds[path] = time.process_time() - begun
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([seconds, int(peak.split()[1])]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_pickle_of_a_megabyte_costs_little(tmp_path: Path) -> None:
    """Each bomb is refused, in less than 10 seconds and 300 MB."""
    paths = []
    for name, bomb in BOMBS.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(b"\x80\x04" + bomb + b".")
        assert len(bomb) < 1.2 * SIZE

    ran = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, paths)], capture_output=True, check=True
    )

    seconds, kilobytes = json.loads(ran.stdout)
    assert seconds.keys() == {str(path) for path in paths}
    assert max(seconds.values()) < 10
    assert kilobytes < 300_000
