"""Changes of programs, of JSON and of bytes, that leave most of their structure as it is."""

import json
import pickletools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

Tokens = list[bytes]
"""What a program is made of; joined they are the program."""

Change = Callable[[Tokens, random.Random], Tokens]

_JSON = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+|\s+')
_NUMBERS = [0, 1, 2, 3, 4, 7, 12, -1, 1 << 31, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64]
_MORE = [10**30, 0.5, 1.5, -0.0, 1e308, float("nan"), float("inf"), None, True, False, [], {}]
_TEXTS = [
    *("", "a", "..", "../x", "/etc/passwd", "a/b", "a\\b", "\x00", "\x1b[31m", "<script>alert(1)"),
    *("\ud800", "é", "x" * 3000, "weight", "a.weight", "a.weight_orig", "a.weight_mask", "pt"),
    *("__metadata__", "*", "[", "random", "l1", "erk", "scores_structured", "apply", "remove"),
    *("F32", "F4", "F6_E2M3", "F8_E8M0", "C64", "BOOL", "BF16", "U64", "total_size"),
]


def cut_json(text: bytes) -> Tokens:
    """Return the words and signs of JSON."""
    return _JSON.findall(text)


def cut_pickle(program: bytes) -> Tokens:
    """Return the opcodes, each with its argument."""
    places = [place for _, _, place in pickletools.genops(program) if place is not None]
    return [program[at:stop] for at, stop in zip(places, [*places[1:], None], strict=True)]


def change_tokens(*more: bytes) -> Change:
    """Return a change that leaves out, doubles, exchanges or brings in a token or two."""

    def change(tokens: Tokens, generator: random.Random) -> Tokens:
        changed = list(tokens)
        for _ in range(generator.choice([1, 1, 1, 2, 3])):
            at = generator.randrange(len(changed) + 1)
            match generator.randrange(6):
                case 0:
                    del changed[at : at + 1]
                case 1:
                    changed[at:at] = changed[at : at + generator.randint(1, 6)]
                case 2:
                    changed[at : at + 1] = [generator.choice([*more, *tokens])]
                case 3:
                    changed.insert(at, generator.choice([*more, *tokens]))
                case 4 if at < len(changed):
                    changed[at] = change_bytes(changed[at], generator)
                case _:
                    start = generator.randrange(len(tokens))
                    changed[at:at] = tokens[start : start + generator.randint(1, 12)]
        return changed

    return change


def change_bytes(content: bytes, generator: random.Random) -> bytes:
    """Return `content` with one to four bytes changed, left out or brought in."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(changed) + 1)
        match generator.randrange(4):
            case 0 if at < len(changed):
                changed[at] ^= 1 << generator.randrange(8)
            case 1 if at < len(changed):
                changed[at] = generator.choice([0, 1, 2, 4, 127, 128, 255])
            case 2:
                del changed[at : at + generator.randint(1, 8)]
            case _:
                changed[at:at] = bytes(generator.choices([0, 1, 64, 255], k=2))
    return bytes(changed)


def change_json(tokens: Tokens, generator: random.Random) -> Tokens:
    """Return the JSON with other values, mostly; else with other tokens."""
    if generator.random() < 0.25:
        return change_tokens()(tokens, generator)
    try:
        value = json.loads(b"".join(tokens))
    except ValueError:
        return change_tokens()(tokens, generator)
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        change_value(value, generator)
    return cut_json(json.dumps(value).encode())


def change_value(top: Any, generator: random.Random) -> None:
    """Change one value, or one key, somewhere in `top`."""
    places = _places(top)
    if not places:
        return
    holder, key = generator.choice(places)
    text = _text(places, generator)
    match generator.randrange(7):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[text] = holder[key]
        case 1:
            holder.append(holder[key])
        case 2 if isinstance(holder, dict):
            holder[text] = holder.pop(key)
        case 3:
            other, place = generator.choice(places)
            holder[key] = json.loads(json.dumps(other[place]))
        case 4:
            holder[key] = text
        case 5 if isinstance(holder[key], int | float):
            holder[key] += generator.choice([-1, 1])
        case _:
            holder[key] = generator.choice([*_NUMBERS, *_MORE])


def _text(places: Sequence[tuple[Any, Any]], generator: random.Random) -> str:
    """Return a text, one in two from the JSON itself."""
    own = [holder[key] for holder, key in places if isinstance(holder[key], str)]
    own += [key for _, key in places if isinstance(key, str)]
    return generator.choice(own if own and generator.random() < 0.5 else _TEXTS)


def _places(top: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [top]
    for value in waiting:  # grows while it is walked
        keys = value.keys() if isinstance(value, dict) else range(len(value))
        for key in [*keys][:200]:
            found.append((value, key))
            if isinstance(value[key], dict | list):
                waiting.append(value[key])
    return found


def change_records(tokens: Tokens, generator: random.Random) -> Tokens:
    """Return binary records with another number somewhere, or one left out, doubled or moved."""
    changed = list(tokens)
    for _ in range(generator.randint(1, 2)):
        at = generator.randrange(len(changed))
        match generator.randrange(8):
            case 0 if len(changed) > 1:
                del changed[at]
            case 1:
                changed.insert(generator.randrange(len(changed) + 1), changed[at])
            case 2:
                other = generator.randrange(len(changed))
                changed[at], changed[other] = changed[other], changed[at]
            case _:
                changed[at] = _change_number(changed[at], generator)
    return changed


def _change_number(record: bytes, generator: random.Random) -> bytes:
    """Return a record with another 16- or 32-bit number in what is its head."""
    width = generator.choice([2, 4])
    if len(record) < width:
        return record
    at = generator.randrange(0, min(len(record) - width, 64) + 1, 2 if len(record) > 3 else 1)
    old = int.from_bytes(record[at : at + width], "little")
    new = generator.choice([0, 1, 8, old + 1, old - 1, old * 2, 0xFFFF, 0xFFFFFFFF, 0x8000])
    return record[:at] + (new % (1 << 8 * width)).to_bytes(width, "little") + record[at + width :]
