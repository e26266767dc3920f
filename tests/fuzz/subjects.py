"""What is damaged: for each kind of input one or more true ones, as tokens, and how they are written."""

import contextlib
import io
import json
import math
import pickle
import pickletools
import random
import re
import struct
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save

from prune_cli import prune_checkpoint
from prune_cli.checkpoint.tensors import DTYPES
from prune_cli.plan.facts import SHRUNK
from prune_cli.plan.shrink import Effect, Group, ShrinkOptions, ShrinkPlan, Whole
from prune_cli.report.report import Report
from tests import build
from tests.fuzz.changes import (
    Change,
    Tokens,
    change_json,
    change_records,
    change_tokens,
    cut_json,
    cut_pickle,
)

_MOST_BYTES = 1 << 16
_NAMES = [
    *("a.weight", "a.bias", "b.weight", "b.weight_orig", "b.weight_mask", "weight", "", ".", "..a"),
    *(
        "a..weight",
        "layers.0.weight",
        "layers.1.weight",
        "layers.10.weight",
        "é.weight",
        "*.weight",
    ),
    *("[a].weight", "x y.weight", "\x1b[1m.weight", "<b>.weight", "a.weight_scale", "a.qweight"),
    *("a.parametrizations.weight.original0", "a.parametrizations.weight.original1", "format"),
    *(
        "a.weight_g",
        "a.weight_v",
        "module.a.weight",
        "a.weight.absmax",
        "a/b.weight",
        "a.running_mean",
    ),
]


@dataclass(frozen=True)
class Subject:
    """A true input of one kind.

    Attributes:
        kind: what it is.
        tokens: the part that is damaged.
        change: damages it.
        write: puts it into a folder, whole, and returns the checkpoint that it is or belongs to.
        role: what it is used as: a checkpoint, a report or a recipe, called like this.
    """

    kind: str
    tokens: Callable[[random.Random], Tokens]
    change: Change
    write: Callable[[Path, Tokens], Path]
    role: str = "checkpoint"


@cache
def subjects() -> dict[str, Subject]:
    """Return every subject by its kind."""
    every = [
        Subject("header", _constant(*_headers()), _change_header, _write_safetensors),
        Subject("odd tensors", _odd_header, lambda tokens, _: tokens, _write_safetensors),
        *_pickle_subjects(),
        Subject("zip records", _constant(*map(_records, _zips())), change_records, _write_joined),
        Subject("zip members", _constant(*map(_members, _zips())), _change_members, _write_members),
        Subject("index", _constant(_index()), change_json, _write_index),
        Subject("report", _constant(*_reports()), change_json, _write_report, "report"),
        Subject("recipe", _constant(_recipe()), change_tokens(*_TOML), _write_recipe, "recipe"),
        Subject("dcp", _constant(_dcp()), change_tokens(*_OPCODES), _write_dcp),
        Subject("config", _constant(_config()), change_json, _write_config, "config"),
    ]
    return {subject.kind: subject for subject in every}


def _constant(*choices: Tokens) -> Callable[[random.Random], Tokens]:
    return lambda generator: generator.choice(choices)


def _small() -> build.Tensors:
    return {"a.weight": torch.ones(4, 3), "a.bias": torch.ones(4), "n": torch.tensor(1)}


# --- safetensors ------------------------------------------------------------------------------


def _headers() -> list[Tokens]:
    tied = {"format": "pt", "z.weight": "a.weight"}
    masked = build.masked(_small(), {"a.weight": 1})
    made = (_header(_small(), {"format": "pt"}), _header(_small(), tied), _header(masked, None))
    return [cut_json(header) for header in made]


def _header(content: build.Tensors, metadata: dict[str, str] | None) -> bytes:
    saved = save(content, metadata)
    return saved[8 : 8 + int.from_bytes(saved[:8], "little")].rstrip()


def _change_header(tokens: Tokens, generator: random.Random) -> Tokens:
    """Return another header, whose offsets fit its shapes in one of two."""
    changed = change_json(tokens, generator)
    unlike = (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError)
    with contextlib.suppress(*unlike):  # a header: a text can stand in a shape, many times over
        if generator.random() < 0.5:
            header, at = json.loads(b"".join(changed)), 0
            for name in header.keys() - {"__metadata__"}:
                entry = header[name]
                nbytes = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].bits // 8
                entry["data_offsets"] = [at, at + nbytes]
                at += nbytes
            return cut_json(json.dumps(header).encode())
    return changed


def _odd_header(generator: random.Random) -> Tokens:
    """Return a header that is true, of names, dtypes and shapes that nobody has."""
    header: dict[str, Any] = {}
    if generator.random() < 0.5:
        header["__metadata__"] = {
            generator.choice(["format", *_NAMES]): generator.choice(["pt", "tf", "", *_NAMES])
            for _ in range(generator.randint(0, 3))
        }
    at = 0
    for name in generator.sample(_NAMES, generator.randint(0, 5)):
        dtype = generator.choice(list(DTYPES))
        shape = generator.choices([0, 1, 2, 3, 5, 8, 16], k=generator.randint(0, 5))
        if generator.random() < 0.05:  # no byte of the file tells how many channels it claims
            shape = [generator.choice([1 << 12, 1 << 31, (1 << 63) - 1]), 0, *shape]
        nbytes = math.prod(shape) * DTYPES[dtype].bits // 8
        if math.prod(shape) * DTYPES[dtype].bits % 8 or nbytes > _MOST_BYTES:
            shape, nbytes = [8], DTYPES[dtype].bits
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    return cut_json(json.dumps(header).encode())


def _write_safetensors(folder: Path, tokens: Tokens) -> Path:
    text = b"".join(tokens)
    path = folder / "model.safetensors"
    data = random.Random(len(text)).randbytes(_data_bytes(text))
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _data_bytes(header: bytes) -> int:
    """Return the end of the last tensor, if that can be told."""
    ends = [0]
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(header)
        for entry in found.values() if isinstance(found, dict) else ():
            match entry:
                case {"data_offsets": [_, int(stop)]} if 0 <= stop <= _MOST_BYTES:
                    ends.append(stop)
    return max(ends)


# --- pickles ----------------------------------------------------------------------------------

_OPCODES = (
    *(b"b", b"R", b"0", b"2", b"(", b"}", b"]", b")", b"N", b"t", b"l", b"u", b"s", b"a", b"e"),
    *(b"\x81", b"\x92", b"\x94", b"\x88", b"\x89", b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"Q"),
    *(
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
        b"\x8a\x10" + b"\x7f" * 16,
        b"q\x00",
        b"h\x01",
        b"h\x05",
    ),
    *(b"X\x00\x00\x00\x00", b"X\x03\x00\x00\x00\xed\xa0\x80", b"X\x04\x00\x00\x00a.\x1b["),
    *(b"cdatetime\ndatetime\n", b"ctorch\nSize\n", b"ctorch\nTensor\n", b"cbuiltins\neval\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n"),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ccollections\nOrderedDict\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch\nfloat32\n", b"ctorch\nuint16\n"),
    *(b"ctorch\nHalfStorage\n", b"ctorch.storage\nUntypedStorage\n", b"ctorch\nBoolStorage\n"),
    *(b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n"),
    *(
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n",
        b"ctorch._utils\n_rebuild_sparse_tensor\n",
    ),
    *(b"X\x04\x00\x00\x00conj\x88s", b"X\x03\x00\x00\x00neg\x88s", b"\x85", b"\x86", b"\x87"),
    *(b"G" + struct.pack(">d", math.nan), b"\x8f", b"\x90", b"\x91", b"B\x00\x00\x00\x00", b"."),
)


def _contents() -> list[object]:
    base = torch.arange(24.0).view(4, 6)
    net = build.Net()
    return [
        _small(),
        OrderedDict(
            slice=base[1:3, 2:5],
            transposed=base.t(),
            conjugate=torch.randn(2, 2, dtype=torch.complex64).conj(),
            negative=torch.randn(2, 2, dtype=torch.complex64).conj().imag,
            expanded=torch.ones(3, 1).expand(3, 5),
            parameter=torch.nn.Parameter(torch.ones(2, 2)),
            unsigned=torch.ones(3, dtype=torch.uint16),
            flags=torch.ones(2, 2, dtype=torch.bool),
        ),
        {"model": _small(), "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}, "k": {1, 2}},
        build.masked(_small(), {"a.weight": 1}),
        {"w.weight": np.ones((3, 2)), "b": np.arange(3), "s": np.float64(1)},
        net,
    ]


def _pickle_subjects() -> Iterator[Subject]:
    """Yield three subjects, of each content and two protocols, for each form of file."""
    for number, (content, protocol) in enumerate(product(_contents(), (2, 4))):
        change = change_tokens(*_OPCODES)
        members = _saved(content, protocol)
        program = cut_pickle(members.pop("data.pkl"))
        write = partial(_write_zip, members)
        yield Subject(f"zip pickle {number}", _constant(program), change, write)
        legacy = _cut_legacy(_save(content, protocol, is_zip=False))
        yield Subject(f"legacy pickle {number}", _constant(legacy), change, _write_joined)
        plain = cut_pickle(pickle.dumps(content, protocol + 1))
        yield Subject(f"plain pickle {number}", _constant(plain), change, _write_joined)


def _save(content: object, protocol: int, *, is_zip: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


def _saved(content: object, protocol: int) -> dict[str, bytes]:
    """Return the members of a file of torch.save by their names in it."""
    with zipfile.ZipFile(io.BytesIO(_save(content, protocol, is_zip=True))) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def _cut_legacy(content: bytes) -> Tokens:
    """Return the opcodes of the five pickles, and the storages behind them."""
    tokens, at = Tokens(), 0
    for _ in range(5):
        program = content[at:]
        stop = next(place for code, _, place in pickletools.genops(program) if code.name == "STOP")
        tokens += cut_pickle(program[: (stop or 0) + 1])
        at += (stop or 0) + 1
    return [*tokens, content[at:]]


def _write_joined(folder: Path, tokens: Tokens) -> Path:
    path = folder / "model.pt"
    path.write_bytes(b"".join(tokens))
    return path


def _write_zip(members: Mapping[str, bytes], folder: Path, tokens: Tokens) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": b"".join(tokens), **members}.items():
            archive.writestr(f"archive/{name}", content)
    return path


# --- zip --------------------------------------------------------------------------------------


def _zips() -> list[bytes]:
    files = []
    for content in (_small(), {"model": _small(), "epoch": 3}):
        file = io.BytesIO()
        torch.save(content, file)
        files.append(file.getvalue())
    return files


def _records(content: bytes) -> Tokens:
    """Return the records of a zip file: members with their headers, entries, ends."""
    starts = [
        found.start()
        for found in re.finditer(rb"PK(?:\x03\x04|[\x01\x05-\x07][\x02\x06-\x08])", content)
    ]
    return [content[at:stop] for at, stop in zip(starts, [*starts[1:], None], strict=True)]


def _members(content: bytes) -> Tokens:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [b"%s\0\0%s" % (name.encode(), archive.read(name)) for name in archive.namelist()]


def _change_members(tokens: Tokens, generator: random.Random) -> Tokens:
    """Return members doubled, renamed, compressed, exchanged, shortened."""
    changed = list(tokens)
    for _ in range(generator.randint(1, 2)):
        at = generator.randrange(len(changed))
        name, _, rest = changed[at].partition(b"\0")
        other, _, content = generator.choice(tokens).partition(b"\0")
        match generator.randrange(7):
            case 0:
                changed.insert(generator.randrange(len(changed) + 1), name + b"\0" + content)
            case 1:
                changed[at] = other + b"\0" + rest
            case 2:
                changed[at] = name + b"\0" + generator.choice([b"\x08", b"\x0c"]) + rest[1:]
            case 3 if len(changed) > 1:
                del changed[at]
            case 4:
                name = generator.choice([name.upper(), name + b"/", b"./" + name, b"x/" + name])
                changed[at] = name + b"\0" + rest
            case 5:
                changed[at] = name + b"\0" + rest[: generator.randrange(len(rest)) + 1]
            case _:
                changed[at] = name + b"\0" + rest + bytes(generator.randint(1, 80))
    return changed


def _write_members(folder: Path, tokens: Tokens) -> Path:
    path = folder / "model.pt"
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
        for token in tokens:
            name, _, rest = token.partition(b"\0")
            kind = {b"\x08": zipfile.ZIP_DEFLATED, b"\x0c": zipfile.ZIP_BZIP2}.get(rest[:1], 0)
            archive.writestr(str(name, "utf-8", "replace"), rest[1:], compress_type=kind)
    return path


# --- folders ----------------------------------------------------------------------------------

_SHARDS = build.shard_names(2)


def _index() -> Tokens:
    weight_map = {key: name for name, part in _split().items() for key in part}
    return cut_json(json.dumps({"metadata": {"total_size": 72}, "weight_map": weight_map}).encode())


def _split() -> dict[str, build.Tensors]:
    return build.split({**_small(), "b.weight": torch.ones(2, 2)}, _SHARDS)


def _write_index(folder: Path, tokens: Tokens) -> Path:
    model = build.write_folder(folder / "m", _split(), index=None)
    (model / "model.safetensors.index.json").write_bytes(b"".join(tokens))
    return model


def _config() -> Tokens:
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "hidden_act": "gelu",
        "attn_implementation": "eager",
        "id2label": {"0": "LABEL_0"},
        "quantization_config": None,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "torch_dtype": "float32",
    }
    return cut_json(json.dumps(config).encode())


def _write_config(folder: Path, tokens: Tokens) -> Path:
    model = build.write_folder(folder / "m", {"model.safetensors": _small()}, index=None)
    (model / "config.json").write_bytes(b"".join(tokens))
    return model


@cache
def _dcp_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(action="ignore"):
        dcp.save({"model": _small(), "step": 3}, checkpoint_id=place)
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


def _dcp() -> Tokens:
    return cut_pickle(_dcp_files()[".metadata"])


def _write_dcp(folder: Path, tokens: Tokens) -> Path:
    model = folder / "m"
    model.mkdir()
    for name, content in _dcp_files().items():
        (model / name).write_bytes(content)
    (model / ".metadata").write_bytes(b"".join(tokens))
    return model


# --- reports and recipes ----------------------------------------------------------------------

_WAYS: Sequence[dict[str, Any]] = (
    {"amount": 0.5, "dim": 0},
    {"amount": 1, "dim": 0, "with_bias": True},
    {"amount": 0.5, "dim": 0, "bake": False},
    {"amount": 0.5, "dim": 0, "criterion": "l1"},
    {"target": "params=0.5", "dim": 0, "allocate": "erk"},
)


def _reports() -> list[Tokens]:
    with tempfile.TemporaryDirectory() as place:
        model = build.safetensors(Path(place) / "model.safetensors", _small())
        made = [prune_checkpoint(model, Path(place) / "out", force=True, **way) for way in _WAYS]
    made.append(_shrink_report(made[0]))
    return [cut_json(report.to_json().encode()) for report in made]


def _shrink_report(report: Report) -> Report:
    """Return a report of a model that got smaller, with all that such a one has."""
    group = Group("a.weight", 0, 0.5, 1, 4, 1, (0, 2), (("a.weight", 0), ("a.bias", 0)))
    plan = ShrinkPlan(
        kept={"a.weight": {0: (1, 3)}, "a.bias": {0: (1, 3)}},
        shapes={"a.weight": (2, 3), "a.bias": (2,)},
        attributes={"a": {"out_features": 2}},
        config={"hidden_size": 2},
        groups=(group,),
        whole=(Whole("b.weight", 0, 3, "it is the output"),),
        effect=Effect(16, 8, 32, 16),
    )
    options = replace(report.options, shrink=ShrinkOptions(1, False, "m:f", {"n": "1"}, ("1x3",)))
    return replace(report, method=SHRUNK, options=options, tensors=(), shrink=plan)


def _write_report(folder: Path, tokens: Tokens) -> Path:
    model = build.safetensors(folder / "model.safetensors", _small())
    prune_checkpoint(model, folder / "out.safetensors", amount=0.5, dim=0)
    (folder / "report").write_bytes(b"".join(tokens))
    return model


_TOML = (b"=", b"[", b"]", b'"', b"\n", b"nan", b"-1", b"99999999999999999999", b"[[rules]]")


def _recipe() -> Tokens:
    text = b'[[rules]]\nmodule = ["a", "a*"]\nparam = "weight"\namount = 0.5\ndim = 0\n'
    text += b'[[rules]]\nmodule = "*"\namount = "50%"\ndim = -2\n'
    return re.findall(rb'\s+|"[^"]*"|\[+|\]+|[^\s\[\]"]+', text)


def _write_recipe(folder: Path, tokens: Tokens) -> Path:
    (folder / "recipe").write_bytes(b"".join(tokens))
    return build.safetensors(folder / "model.safetensors", _small())
