"""Put one input through everything that reads it, and say what does not hold.

Whatever is refused is refused by a PruneError. What is not refused has the values that torch and
safetensors read, and its output is verified and can be read by them.
"""

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import deserialize
from safetensors.torch import load

from prune_cli import apply_report, prune_checkpoint, verify_checkpoint
from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.tensors import DTYPES
from prune_cli.cli.main import main
from prune_cli.errors import PruneError, RequestError
from prune_cli.inspection.facts import inspection_to_json
from prune_cli.inspection.inspect import inspect
from prune_cli.plan.recipe import read_recipe
from prune_cli.report.comparison import compare_reports, comparison_to_json
from prune_cli.report.report import from_json, read_report
from prune_cli.show.page import render_page
from prune_cli.shrink.allowed import allowed_config
from tests import build

_MOST_PAGE_BYTES = 5_000_000
_ATTEMPTS: tuple[dict[str, Any], ...] = (
    {"amount": 0.5, "dim": 0},
    {"amount": 0.5, "dim": -1, "with_bias": True},
    {"amount": 1, "dim": 0, "bake": False},
    {"amount": 0.5, "dim": 0, "criterion": "l1"},
    {"amount": 0.5, "dim": 0, "format": "in-kind"},
)


class FaultError(AssertionError):
    """Something does not hold."""


def exercise(role: str, path: Path, *, attempt: int, by_command: bool) -> bool:
    """Put the input at `path` through what is done with one of its role.

    Args:
        role: "checkpoint", "report", "recipe" or "config".
        path: of the checkpoint that it is, or that belongs to it.
        attempt: which of the ways to prune is tried.
        by_command: do it by the command line.

    Returns:
        Whether it was of use to prune something.

    Raises:
        Exception: anything but a PruneError is a fault.
    """
    if by_command:
        return _by_command(role, path)
    with warnings.catch_warnings(action="ignore"):
        return _ROLES[role](path, _ATTEMPTS[attempt % len(_ATTEMPTS)])


def _checkpoint(path: Path, way: dict[str, Any]) -> bool:
    opened = _try(open_checkpoint, path)
    if opened is None:
        return False
    _compare_values(opened)
    _inspect(opened)
    return _prune(path, way)


def _inspect(checkpoint: Checkpoint) -> None:
    found = _try(inspect, checkpoint, globs=True, zeros=True)
    if found:
        json.loads(inspection_to_json(found))


def _prune(path: Path, way: dict[str, Any]) -> bool:
    out = path.parent / "pruned"
    loading = Loading(drop_unwritable=True)
    prune = partial(prune_checkpoint, path, loading=loading, **way)
    dry = _try(prune, dry_run=True)
    report = _try(prune, out, workers=1)
    if report is None:
        if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            raise FaultError("a run that was refused left something")
        return False
    if dry is None or dry.tensors != report.tensors:
        raise FaultError("the dry run had another plan")
    if from_json(report.to_json()) != report:
        raise FaultError("the report is not the one that was written")
    _verify(path, out, loading)
    _read_back(out, in_kind=way.get("format") == "in-kind")
    again = apply_report(report, path, path.parent / "again", loading=loading, workers=1)
    if [row.pruned for row in again.tensors] != [row.pruned for row in report.tensors]:
        raise FaultError("the report does not replay")
    return True


def _verify(path: Path, out: Path, loading: Loading) -> None:
    for source in (None, path):
        found = verify_checkpoint(out, source=source, loading=loading)
        if not found.is_verified:
            told = "; ".join(str(one) for one in found.disagreements[:3])
            raise FaultError(
                f"what was just written fails {'with' if source else 'without'} its source: {told}"
            )


def _read_back(out: Path, *, in_kind: bool) -> None:
    """Raise unless safetensors and torch read what was written."""
    if in_kind or out.is_dir():
        return
    with contextlib.suppress(KeyError):  # a dtype that only this safetensors has
        load(out.read_bytes())


# --- values -----------------------------------------------------------------------------------


def _compare_values(checkpoint: Checkpoint) -> None:
    """Raise where a tensor has another value than torch or safetensors reads."""
    path = checkpoint.path
    if path.is_dir():
        return
    if checkpoint.format == "safetensors":
        _compare_with_safetensors(checkpoint)
        return
    found = _load(path)
    if isinstance(found, dict):
        for name in (*checkpoint.tensors, *checkpoint.aliases):
            wanted = found.get(name)
            if isinstance(wanted, torch.Tensor):
                _compare(checkpoint, name, wanted)


def _compare_with_safetensors(checkpoint: Checkpoint) -> None:
    try:
        found = dict(deserialize(checkpoint.path.read_bytes()))
    except Exception as error:
        raise FaultError(f"safetensors does not read it: {error}") from error
    if not found.keys() <= {*checkpoint.tensors, *checkpoint.aliases}:
        raise FaultError("safetensors reads other tensors")
    for name, entry in found.items():
        info = checkpoint.tensors[name]
        if (info.dtype, list(info.shape)) != (entry["dtype"], entry["shape"]):
            raise FaultError(f"{name!r} is something else to safetensors")
        if DTYPES[info.dtype].bits >= 8 and checkpoint.bits(info).tobytes() != entry["data"]:
            raise FaultError(f"{name!r} has other values to safetensors")


def _compare(checkpoint: Checkpoint, name: str, wanted: torch.Tensor) -> None:
    info = checkpoint.tensors[checkpoint.aliases.get(name, name)]
    if DTYPES[info.dtype].bits < 8 or wanted.layout != torch.strided or wanted.is_quantized:
        return
    resolved = wanted.detach().resolve_conj().resolve_neg()
    if not build.same_bits(build.tensor(checkpoint, info), resolved):
        raise FaultError(f"{name!r} has another value than torch.load's")


def _load(path: Path) -> object:
    """Return what torch's own restricted unpickler makes of it; None where it refuses."""
    with contextlib.suppress(Exception):
        return torch.load(path, weights_only=True, map_location="cpu")
    return None


# --- other roles ------------------------------------------------------------------------------


def _report(path: Path, way: dict[str, Any]) -> bool:
    place = path.parent / "report"
    report = _try(read_report, place)
    if report is None:
        return False
    json.loads(report.to_json())
    comparison_to_json(compare_reports({"one": report, "other": report}))
    if len(render_page({"one": report}).encode()) > _MOST_PAGE_BYTES:
        raise FaultError("its page is larger than 5 MB")
    for source in (None, path):
        _try(verify_checkpoint, path.parent / "out.safetensors", report=place, source=source)
    applied = _try(apply_report, place, path, path.parent / "again", bake=way.get("bake"))
    return applied is not None


def _recipe(path: Path, _: dict[str, Any]) -> bool:
    recipe = path.parent / "recipe"
    rules = _try(read_recipe, recipe, modules=("*",), params=("weight",), amount=None, dim=0)
    return rules is not None and _prune(path, {"rules": rules})


def _config(path: Path, way: dict[str, Any]) -> bool:
    with contextlib.suppress(ValueError, RecursionError, RequestError):
        config = json.loads((path / "config.json").read_bytes())
        if isinstance(config, dict):
            allowed_config(config, {"hidden_size", "hidden_act", "num_hidden_layers"})
    return _checkpoint(path, way)


_ROLES: dict[str, Callable[[Path, dict[str, Any]], bool]] = {
    "checkpoint": _checkpoint,
    "report": _report,
    "recipe": _recipe,
    "config": _config,
}


def _try(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what `call` returns; None where it refuses, which takes words."""
    try:
        return call(*arguments, **options)
    except PruneError as error:
        if not str(error) or error.exit_code == 1:
            raise FaultError(f"{type(error).__name__} says nothing") from error
        str(error).encode("utf-8", "surrogateescape")
    return None


# --- by the command line ----------------------------------------------------------------------


def _by_command(role: str, path: Path) -> bool:
    """Do it by the command line, whose output is text for a terminal."""
    folder = path.parent
    out, report = folder / "cli", folder / "cli.report.json"
    prune = ["random-structured", path, "-a", "0.5", "-d", "0", "-o", out, "-r", report, "-f"]
    if role == "recipe":
        prune = ["random-structured", path, "--recipe", folder / "recipe", "-o", out, "-f"]
    if role == "report":
        place = folder / "report"
        _run("verify", folder / "out.safetensors", path, "-r", place)
        _run("report", place, "--html", folder / "page.html")
        return _run("apply", place, path, "-o", out) == 0
    _run("inspect", "-g", path)
    _run("inspect", "-z", path)
    if _run(*prune):
        return False
    if _run("verify", out, path, "-r", report if report.exists() else out / "x"):
        raise FaultError("the command line does not verify what it wrote")
    return True


def _run(*argv: object) -> int:
    """Return how a command ends; what it says is text, and neither a traceback nor a control."""
    with _captured() as said:
        code = main([str(argument) for argument in argv])
        text = said()
    if code not in (0, 2, 3, 4, 5, 6):
        raise FaultError(f"{argv[0]} ended with {code}")
    if any(ord(letter) < 32 and letter not in "\n\t" for letter in text):
        raise FaultError(f"{argv[0]} wrote control characters")
    return code


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """Catch what is written to stdout and stderr, by whatever way."""
    with tempfile.TemporaryFile() as file:
        kept = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in kept:
            os.dup2(file.fileno(), number)
        try:
            yield partial(_read_all, file)
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


def _read_all(file: IO[bytes]) -> str:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    file.seek(0)
    return file.read().decode()
