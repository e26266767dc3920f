"""What `prune-cli shrink` costs beside `cp`, and what it is worth: masked, shrunk, original.

Planning needs no weights and runs in a process of its own, so its time and memory are those of the
model's graph and not of the file. "Imports" are what that process imports (building a model without
weights takes torch._dynamo); the one that writes imports less, at the same time.
"""

import copy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from torch import nn

from prune_cli.plan.selection import Rule
from prune_cli.plan.shrink import ShrinkPlan
from prune_cli.shrink.effect import measure_latency
from prune_cli.shrink.load import resize
from prune_cli.shrink.model import Inputs, make_inputs, parse_example
from prune_cli.shrink.plan import plan_shrink
from prune_cli.shrink.request import Request, Source
from tests.benchmarks import inputs, models
from tests.benchmarks.checkpoints import Setup
from tests.benchmarks.rows import Result, Row
from tests.benchmarks.timing import Command, peak_anonymous, race

AMOUNT = 0.25
_MODULE = "tests.benchmarks.models"
_IMPORTS = Command(
    "imports",
    (sys.executable, "-c", "import prune_cli.shrink.planning, torch._dynamo"),
)
_WRITER = Command("imports to write", (sys.executable, "-c", "import prune_cli.shrink.shrink"))
_LARGE, _TINY = (4096, 11008), (64, 172)
_SMALL = {
    "resnet": {"widths": (8, 16)},
    "vit": {"width": 64, "layers": 1},
    "bert": {"width": 64, "layers": 1, "words": 99},
    "llama": {"width": 64, "inner": 172, "layers": 1, "words": 99},
}


def results(setup: Setup) -> Iterator[Result]:
    """Measure everything."""
    yield streaming(setup)
    yield latency(setup)
    if find_spec("torch_pruning"):
        yield beside_torch_pruning(setup)


def streaming(setup: Setup) -> Result:
    """A Llama of 1.2 times the main file's size: a quarter of all widths goes."""
    width, inner = _TINY if setup.small else _LARGE
    layer = 2 * (4 * width**2 + 3 * width * inner)
    sizes = {"width": width, "inner": inner, "words": 1000}
    sizes["layers"] = max(round(1.2 * setup.nbytes / layer), 1)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in models.llama(**sizes).state_dict().items()}
    source = inputs.write_safetensors(setup.folder / "in.safetensors", shapes)
    copied = Command(
        "cp", ("cp", str(source), str(setup.folder / "copy")), source, setup.folder / "copy"
    )
    shrink, planning = _shrink(setup, source, sizes), _shrink(setup, source, sizes, "--dry-run")
    commands = [_IMPORTS, copied, planning, shrink]
    runs = race(commands, repeats=setup.repeats, threads=setup.threads)
    imports, copy_, plan, whole = (run.median for run in runs)
    base = peak_anonymous(_WRITER, threads=setup.threads)
    ours = peak_anonymous(shrink, threads=setup.threads)
    child = peak_anonymous(shrink, threads=setup.threads, of_children=True)
    source.unlink()
    rows = (
        Row("beyond imports, to cp", (whole - imports) / copy_, 3),
        Row("planning, beyond imports", plan - imports, None, "s"),
        Row("writing (all but planning), to cp", (whole - plan) / copy_),
        Row("peak RssAnon above imports", (ours - base) / 1e6, 300, "MB"),
        Row("peak RssAnon of the child that plans", child / 1e6, None, "MB"),
    )
    nbytes = inputs.total_bytes(shapes)
    return Result(f"Shrinking {nbytes / 1e9:.2f} GB, {sizes['layers']} layers", rows, tuple(runs))


def latency(setup: Setup) -> Result:
    """One forward pass of the original, the masked (zeros) and the shrunk model, in turns."""
    torch.set_num_threads(setup.threads)
    rows = []
    for name in models.EXAMPLES:
        arguments = _SMALL[name] if setup.small else {}
        three = _three(name, arguments)
        given = make_inputs([parse_example(models.EXAMPLES[name])], "cpu")
        rounds = 2 if setup.small else 10
        taken = measure_latency(three, given, rounds=rounds).milliseconds
        rows += [
            Row(f"{name}: original to masked", taken["original"] / taken["masked"]),
            Row(f"{name}: original to shrunk", taken["original"] / taken["shrunk"], 1.2, "x", True),
        ]
    return Result(f"Latency, {AMOUNT:.0%} of each group, {setup.threads} thread(s)", tuple(rows))


def beside_torch_pruning(setup: Setup) -> Result:
    """The latency of the same net, shrunk by both by the same part of each group, in turns.

    What Torch-Pruning leaves in a state that does not run has no row. It takes a part of the width
    of heads too, and another scale of attention with that; we take none.
    """
    torch.set_num_threads(setup.threads)
    rows = []
    for name, part in product(models.EXAMPLES, (0.25, 0.5)):
        arguments = _SMALL[name] if setup.small else {}
        given = make_inputs([parse_example(models.EXAMPLES[name])], "cpu")
        ours = _three(name, arguments, part)
        two = {
            "ours": ours["shrunk"],
            "theirs": _by_torch_pruning(ours["original"], given, part),
        }
        try:
            taken = measure_latency(two, given, rounds=2 if setup.small else 20).milliseconds
        except RuntimeError:  # as of a norm whose module still counts the channels of before
            continue
        ratio = taken["theirs"] / taken["ours"]
        rows.append(Row(f"{name}, {part:.0%}: Torch-Pruning's to ours", ratio, 1.0, "x", True))
    return Result(f"Latency beside Torch-Pruning, {setup.threads} thread(s)", tuple(rows))


def _by_torch_pruning(model: nn.Module, given: Inputs, part: float) -> nn.Module:
    """Return a copy that Torch-Pruning's usual pruner shrinks, heads by their width."""
    import torch_pruning

    small = copy.deepcopy(model).requires_grad_(True)
    heads = {
        layer: each.heads
        for each in small.modules()
        if hasattr(each, "heads")
        for layer in (each.q, each.k, each.v)
    }
    torch_pruning.pruner.BasePruner(
        small,
        given,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=part,
        ignored_layers=[small.head],
        num_heads=heads,
    ).step()
    return small.eval()


def _three(name: str, arguments: dict[str, object], part: float = AMOUNT) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    original = getattr(models, name)(**arguments).eval()
    source = Source(f"{_MODULE}:{name}", False, arguments, (models.EXAMPLES[name],))
    plan = plan_shrink(source, Request((Rule(("*",), ("weight",), part, 0),)), None)
    masked, shrunk = copy.deepcopy(original), copy.deepcopy(original)
    resize(shrunk, plan.resizing)
    with torch.no_grad():
        for key, tensor in original.state_dict().items():
            shrunk.state_dict()[key].copy_(_kept(plan, key, tensor))
            _mask(plan, key, masked.state_dict()[key])
    return {"original": original, "masked": masked, "shrunk": shrunk}


def _kept(plan: ShrinkPlan, key: str, tensor: torch.Tensor) -> torch.Tensor:
    for dim, kept in plan.kept.get(key, {}).items():
        tensor = tensor.index_select(dim, torch.tensor(kept))
    return tensor


def _mask(plan: ShrinkPlan, key: str, tensor: torch.Tensor) -> None:
    for dim, kept in plan.kept.get(key, {}).items():
        gone = sorted(set(range(tensor.shape[dim])) - set(kept))
        tensor.index_fill_(dim, torch.tensor(gone), 0)


def _shrink(setup: Setup, source: Path, sizes: dict[str, int], *options: str) -> Command:
    output = source.with_name("out.safetensors")
    arguments = [part for key, size in sizes.items() for part in ("--model-arg", f"{key}={size}")]
    argv = (
        *(sys.executable, "-m", "prune_cli", "shrink", str(source), "--quiet"),
        *("--model", f"{_MODULE}:llama", *arguments, "--example", models.EXAMPLES["llama"]),
        *("--amount", str(AMOUNT), "--workers", str(setup.threads)),
        *("--output", str(output), "--force", *options),
    )
    return Command(" ".join(("prune-cli shrink", *options)), argv, source, output)
