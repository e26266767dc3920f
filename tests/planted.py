"""Plant one difference after the other in outputs and reports, and see whether verify finds it.

    python -m tests.planted --count 1000 --seed 0

With the source at hand verify can know of all but what its docstring names: who wrote the report,
what the input was called, and options that decide nothing.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prune_cli import prune_checkpoint, verify_checkpoint
from prune_cli.errors import InputError
from tests import build

_NOT_KNOWN = {("tool",), ("schema",), ("input", "path"), ("output", "path")}
_DECIDES_NOTHING = {
    ("options", key) for key in ("modules", "exclude", "params", "dim", "strip_prefixes", "rules")
} | {("options", "choice")}


@dataclass(frozen=True)
class Pruned:
    """A right output, its report and its source."""

    name: str
    source: Path
    output: Path
    report: Path

    @property
    def files(self) -> list[Path]:
        """Every file of the output but the report."""
        inside = self.output.rglob("*") if self.output.is_dir() else [self.output]
        return sorted(path for path in inside if path.is_file() and path != self.report)

    def is_verified(self) -> bool:
        """Whether verify finds nothing; what it cannot read is a finding too."""
        try:
            found = verify_checkpoint(self.output, report=self.report, source=self.source)
        except InputError:
            return False
        return found.is_verified


def make_outputs(place: Path) -> list[Pruned]:
    """Make outputs of every form, each of which has to be verified."""
    content = build.tensors()
    tied = {**content, "tied.weight": content["fc.weight"]}
    trained = {"state_dict": content, "optimizer": {"m": torch.ones(6, 3)}, "epoch": 3}
    plain = build.safetensors(place / "m.safetensors", content, {"format": "pt", "a": "b"})
    zipped = build.torch_zip(place / "m.pt", trained)
    legacy = build.torch_legacy(place / "m.pth", trained)
    aliased = build.torch_zip(place / "tied.pt", tied)
    folder = build.write_folder(place / "m", build.split(content, build.shard_names(2)))
    return [
        _prune("baked", plain, place / "baked.safetensors", amount=0.5, dim=0),
        _prune("with biases", plain, place / "b.safetensors", amount=1, dim=0, with_bias=True),
        _prune("masks", plain, place / "masks.safetensors", amount=0.5, dim=0, bake=False),
        _prune("l1", plain, place / "l1.safetensors", amount=0.5, dim=0, criterion="l1"),
        _prune("aliases", aliased, place / "tied.safetensors", amount=0.5, dim=0),
        _prune("zip in kind", zipped, place / "zip.pt", amount=0.5, dim=0),
        _prune("legacy in kind", legacy, place / "legacy.pth", amount=0.5, dim=1),
        _prune("state dict of torch", plain, place / "plain.pt", amount=0.5, dim=0),
        _prune("folder", folder, place / "folder", amount=0.5, dim=0),
    ]


def _prune(name: str, source: Path, output: Path, **options: Any) -> Pruned:
    report = output / "prune-report.json" if source.is_dir() else output.with_suffix(".json")
    prune_checkpoint(source, output, report=report, **options)
    return Pruned(name, source, output, report)


# --- what is planted --------------------------------------------------------------------------


def plant(pruned: Pruned, generator: random.Random) -> str:
    """Change something in the output or its report; return what."""
    ways: list[Callable[[Pruned, random.Random], str]] = [flip_a_bit, flip_a_bit, edit_the_report]
    if pruned.output.is_dir():
        ways += [edit_the_index, take_a_file]
    return generator.choice(ways)(pruned, generator)


def flip_a_bit(pruned: Pruned, generator: random.Random) -> str:
    """Flip a bit anywhere in a file of the output, or leave its last byte out."""
    path = generator.choice(pruned.files)
    content = bytearray(path.read_bytes())
    at, bit = generator.randrange(len(content)), generator.randrange(8)
    if generator.random() < 0.03:
        del content[-1]
    else:
        content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {at} of {path.name}"


def edit_the_report(pruned: Pruned, generator: random.Random) -> str:
    """Change one value of the report, or leave a row out."""
    found = json.loads(pruned.report.read_bytes())
    free = {("options", "seed")} if found["method"] != "random_structured" else set()  # none drew
    places = [place for place in _leaves(found) if not _is_free(place) and place not in free]
    place = generator.choice(places)
    holder = found
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = _other(holder[place[-1]], generator)
    pruned.report.write_text(json.dumps(found))
    return f"{place} of the report"


def edit_the_index(pruned: Pruned, generator: random.Random) -> str:
    """Name another file, another tensor or another size."""
    path = pruned.output / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    name = generator.choice(list(index["weight_map"]))
    match generator.randrange(4):
        case 0:
            files = set(index["weight_map"].values()) - {index["weight_map"][name]}
            index["weight_map"][name] = files.pop()
        case 1:
            index["weight_map"][name + "x"] = index["weight_map"].pop(name)
        case 2:
            index["metadata"]["total_size"] += 1
        case _:
            index["metadata"]["more"] = 1
    path.write_text(json.dumps(index))
    return "the index"


def take_a_file(pruned: Pruned, generator: random.Random) -> str:
    """Remove a file."""
    path = generator.choice(pruned.files)
    path.unlink()
    return f"{path.name} is away"


def _leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        keys = value.keys() if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from _leaves(value[key], (*at, key))
    else:
        yield at


def _is_free(place: tuple[Any, ...]) -> bool:
    return place[:1] in _NOT_KNOWN or place[:2] in _NOT_KNOWN | _DECIDES_NOTHING


def _other(value: Any, generator: random.Random) -> Any:
    """Return another value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + generator.choice([1, 2]) if value < 2 else value - 1
        case float():
            return value * 0.7
        case str():
            return value + "x"
        case None:
            return 1
    return [0]


# --- all of it --------------------------------------------------------------------------------


def find_missed(place: Path, count: int, seed: int) -> Iterator[str]:
    """Plant so many differences, and yield those that verify does not find."""
    generator = random.Random(seed)
    outputs = make_outputs(place)
    for pruned in outputs:
        if not pruned.is_verified():
            yield f"{pruned.name}: a right output fails"
    for number in range(count):
        pruned = outputs[number % len(outputs)]
        kept = {path: path.read_bytes() for path in (*pruned.files, pruned.report)}
        what = plant(pruned, generator)
        if pruned.is_verified():
            yield f"{pruned.name}: {what}"
        for path, content in kept.items():
            path.write_bytes(content)


def main() -> int:
    """Say what was missed; 1 if anything was."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        missed = list(find_missed(place, wanted.count, wanted.seed))
    finally:
        shutil.rmtree(place)
    lines = [*missed, f"{wanted.count} planted, {len(missed)} missed"]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
