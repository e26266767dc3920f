"""Prune random checkpoints in random ways, and see whether verify calls a right output wrong.

    python -m tests.alarms --count 1000 --seed 0

See also: `planted`, whether it finds what is wrong.
"""

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from prune_cli import apply_report, prune_checkpoint, remove_masks, verify_checkpoint
from prune_cli.checkpoint import Loading
from prune_cli.errors import InputError, RequestError, UsageError
from prune_cli.plan.selection import Rule
from tests import build

_DTYPES = ["F32", "F32", "BF16", "F16", "F64", "I8", "U16", "C64", "F8_E4M3", "F8_E5M2", "I64"]
_PLAIN = Loading()
_SIZES = [1, 2, 3, 4, 5, 7, 8, 12]


@dataclass(frozen=True)
class Model:
    """A checkpoint, and how it is read."""

    path: Path
    loading: Loading = _PLAIN


# --- checkpoints ------------------------------------------------------------------------------


def make_model(place: Path, generator: random.Random) -> Model:
    """Make a random checkpoint of a random form."""
    content = make_tensors(generator)
    return generator.choice(_FORMS)(place, content, generator)


def make_tensors(generator: random.Random) -> build.Tensors:
    """Make layers of a few dtypes, shapes and strides; some tied, masked, or without elements."""
    content: build.Tensors = {}
    prefix = generator.choice(["", "", "module.", "model."])
    for number in range(generator.randint(1, 5)):
        name, dtype = f"{prefix}l{number}", generator.choice(_DTYPES)
        dims = generator.choice([2, 2, 2, 3, 4])
        shape = [generator.choice(_SIZES) for _ in range(dims)]
        if generator.random() < 0.05:
            shape[generator.randrange(dims)] = 0
        weight = build.random_bits(dtype, *shape, seed=generator.randrange(1 << 30))
        content[f"{name}.weight"] = _laid_out(weight, generator)
        if generator.random() < 0.6:
            content[f"{name}.bias"] = build.random_bits(dtype, shape[0], seed=number)
    if generator.random() < 0.3:
        content[f"{prefix}tied.weight"] = content[f"{prefix}l0.weight"]
    if generator.random() < 0.3:
        content = _masked(content, f"{prefix}l0.weight")
    if generator.random() < 0.3:
        content["steps"] = torch.tensor(7)
    return content


def _laid_out(weight: torch.Tensor, generator: random.Random) -> torch.Tensor:
    """Return a tensor with the same elements, perhaps in other strides."""
    match generator.randrange(5):
        case 0:
            return weight.transpose(0, -1)
        case 1 if weight.shape[0] > 1:
            return weight[1:]
    return weight


def _masked(content: build.Tensors, name: str) -> build.Tensors:
    weight = content[name]
    if not weight.is_floating_point() or weight.itemsize == 1 or not weight.numel():
        return content
    return build.masked(content, {name: weight.shape[0] // 2})


def _contiguous(content: build.Tensors) -> build.Tensors:
    return {name: tensor.contiguous().clone() for name, tensor in content.items()}


def _safetensors(place: Path, content: build.Tensors, generator: random.Random) -> Model:
    names = ["x", "k0.weight", "z.weight", "note"]
    metadata = {"format": "pt", generator.choice(names): generator.choice(["x", "l0.weight"])}
    return Model(build.safetensors(place / "m.safetensors", _contiguous(content), metadata))


def _zip(place: Path, content: build.Tensors, _: random.Random) -> Model:
    return Model(build.torch_zip(place / "m.pt", content))


def _legacy(place: Path, content: build.Tensors, _: random.Random) -> Model:
    return Model(build.torch_legacy(place / "m.pth", content))


def _nested(place: Path, content: build.Tensors, generator: random.Random) -> Model:
    training: dict[str, Any] = {"model": content, "epoch": 3, "optimizer": {"a": torch.ones(2, 2)}}
    if generator.random() < 0.5:
        training["ema"] = {name: tensor.clone() for name, tensor in content.items()}
    save = generator.choice([build.torch_zip, build.torch_legacy])
    return Model(save(place / "m.ckpt", training), Loading(("model",)))


def _folder(place: Path, content: build.Tensors, generator: random.Random) -> Model:
    names = build.shard_names(generator.randint(1, 3))
    shards = build.split(_contiguous(content), names)
    index = "model.safetensors.index.json" if generator.random() < 0.7 else None
    return Model(build.write_folder(place / "m", shards, index=index))


def _bin_folder(place: Path, content: build.Tensors, generator: random.Random) -> Model:
    names = build.shard_names(generator.randint(1, 3), "pytorch_model-{:05d}-of-{:05d}.bin")
    shards = {name: part for name, part in build.split(content, names).items() if part}
    return Model(build.write_folder(place / "m", shards, index="pytorch_model.bin.index.json"))


def _pipeline(place: Path, content: build.Tensors, _: random.Random) -> Model:
    for name in ("unet", "vae"):
        shards = {"diffusion_pytorch_model.safetensors": _contiguous(content)}
        build.write_folder(place / "m" / name, shards, index=None)
    (place / "m" / "model_index.json").write_text("{}")
    return Model(place / "m", Loading(subfolders=("*",)))


def _distributed(place: Path, content: build.Tensors, _: random.Random) -> Model:
    with warnings.catch_warnings(action="ignore"):
        dcp.save(_contiguous(content), checkpoint_id=place / "m", no_dist=True)
    return Model(place / "m")


_FORMS: list[Callable[[Path, build.Tensors, random.Random], Model]] = [
    *(_safetensors, _zip, _legacy, _nested, _folder, _folder, _bin_folder, _pipeline, _distributed),
]

# --- ways to prune ----------------------------------------------------------------------------


def make_options(generator: random.Random) -> dict[str, Any]:
    """Choose how much goes, of what, and in which form the rest is written."""
    options: dict[str, Any] = {"dim": generator.choice([0, 0, 0, -1, 1])}
    options["seed"] = generator.choice([0, 1, 99, 1 << 40])
    options |= generator.choice(
        [
            *[{"amount": generator.choice([0.0, 0.3, 0.5, 1.0, 1, 2])}] * 3,
            {"target": generator.choice(["params=0.5", "params=80%"])},
            {"rules": (Rule("*", amount=0.5, dim=0), Rule("*l1", amount=1, dim=-1))},
        ]
    )
    if "rules" not in options:
        options |= generator.choice([{}, {}, {"modules": "*l0"}, {"exclude": "*l1"}])
        options |= generator.choice([{}, {}, *_CHOICES])
    options["with_bias"] = generator.random() < 0.3
    options["bake"] = generator.random() < 0.8
    options |= generator.choice([{}, {}, {"strip_prefixes": "auto"}])
    options |= generator.choice([{}, {}, {}, {"max_shard_size": generator.choice([100, 5000])}])
    options |= generator.choice([{}, {}, {"format": "in-kind"}, {"format": "torch"}])
    return options


_CHOICES: list[dict[str, Any]] = [
    {"criterion": "l1"},
    {"criterion": "l2", "is_global": True},
    {"criterion": "fpgm", "round_to": 2},
    {"allocate": "erk"},
    {"allocate": "er", "at_least": 1},
    {"allocate": "random", "between": (0.2, 0.6)},
    {"allocate": "uniform-keep-ends"},
    {"is_global": True, "at_least": 2},
]


def write_output(model: Model, output: Path, generator: random.Random) -> Any:
    """Prune, replay or remove; return the report, or None where it is refused."""
    options = make_options(generator)
    how = {key: options[key] for key in ("format", "max_shard_size") if key in options}
    loading, report = model.loading, output.with_name("report.json")
    with contextlib.suppress(InputError, RequestError, UsageError):
        match generator.randrange(8):
            case 0:
                return remove_masks(model.path, output, report=report, loading=loading, **how)
            case 1:
                plan = prune_checkpoint(model.path, dry_run=True, loading=loading, **options)
                return apply_report(
                    plan, model.path, output, output_report=report, loading=loading, **how
                )
        return prune_checkpoint(model.path, output, report=report, loading=loading, **options)
    return None


# --- all of it --------------------------------------------------------------------------------


def find_alarms(count: int, seed: int) -> Iterator[str]:
    """Make so many outputs that are right, and yield what verify says against any."""
    made, turn = 0, 0
    while made < count:
        turn += 1
        place = Path(tempfile.mkdtemp(prefix="alarms-"))
        try:
            generator = random.Random(f"{seed}.{turn}")
            model, output = make_model(place, generator), place / "out"
            if write_output(model, output, generator):
                made += 1
                yield from (f"{seed}.{turn}: {fact}" for fact in _told(model, output))
        finally:
            shutil.rmtree(place)


def _told(model: Model, output: Path) -> Iterator[str]:
    report = output.with_name("report.json")
    for source in (None, model.path):
        try:
            found = verify_checkpoint(output, report=report, source=source, loading=model.loading)
        except InputError as error:
            yield f"{model.path.name} cannot be read: {error}"
            continue
        for problem in found.disagreements:
            yield f"{model.path.name}, {'with' if source else 'without'} source: {problem}"


def main() -> int:
    """Say what was called wrong; 1 if anything was."""
    parser = argparse.ArgumentParser(prog="python -m tests.alarms", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    alarms = list(find_alarms(wanted.count, wanted.seed))
    lines = [*alarms, f"{wanted.count} right outputs, {len(alarms)} false alarms"]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(bool(alarms))


if __name__ == "__main__":
    sys.exit(main())
