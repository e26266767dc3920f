"""How fast prune-cli takes a checkpoint to another, beside `cp` and beside stock torch.

Every time is that of a whole command. Where a figure says "less 0.5 s", that much is taken off for
what starts a Python program, before it is divided by what the copy took.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prune_cli import prune_checkpoint
from tests.benchmarks import inputs
from tests.benchmarks.rows import Result, Row
from tests.benchmarks.timing import Command, Runs, peak_anonymous, race, time_call

AMOUNT = "0.25"
SHARDS = 8
START_REPEATS = 9
STARTING = 0.5
"""Seconds that a command may take beside what it does with the bytes."""
_STOCK_SCRIPT = str(Path(__file__).with_name("stock_script.py"))
_IMPORT_TORCH = Command("import torch", (sys.executable, "-c", "import torch"))


@dataclass(frozen=True)
class Setup:
    """How large, how often, where.

    Attributes:
        nbytes: of the main file; others are a half, twice and four times as large.
        small: whether it is only to be seen that everything runs.
        repeats: rounds of each race.
        threads: that torch may use, and `--workers` of prune-cli.
        folder: where inputs and outputs are.
    """

    nbytes: int
    small: bool
    repeats: int
    threads: int
    folder: Path


def start(setup: Setup, folder: Path) -> Result:
    """What the smallest work takes."""
    source = inputs.write_safetensors(folder / "in.safetensors", inputs.language_model(2e6))
    pruned = folder / "pruned.safetensors"
    prune_checkpoint(source, pruned, amount=float(AMOUNT), dim=0)
    commands = [
        _IMPORT_TORCH,
        _prune(setup, source, 0),
        _run("inspect", str(source)),
        _run("report", str(pruned)),
        _run("--help"),
    ]
    repeats = max(setup.repeats, 1 if setup.small else START_REPEATS)
    runs = race(commands, repeats=repeats, threads=setup.threads)
    torch, ours, inspected, reported, helped = (run.median for run in runs)
    rows = (
        Row("2 MB, to import torch", ours / torch, 0.45),
        Row("inspect, to import torch", inspected / torch, 0.25),
        Row("report, to import torch", reported / torch, 0.25),
        Row("--help", helped, 0.3, "s"),
    )
    return Result("Start", rows, tuple(runs))


def one_file(setup: Setup, folder: Path) -> Result:
    """A file of safetensors, along dim 0 and dim 1, beside `cp` and beside the stock script."""
    shapes = inputs.language_model(setup.nbytes)
    source = inputs.write_safetensors(folder / "in.safetensors", shapes)
    copy = _copy(source)
    pruned = [_prune(setup, source, dim) for dim in (0, 1)]
    stock = [_stock(source, dim) for dim in (0, 1)]
    copied, ours0, ours1, stock0, stock1 = runs = _race(setup, [copy, *pruned, *stock])
    rows = (
        Row("dim 0, less 0.5 s, to cp", _to_copy(ours0, copied), 1.0),
        Row("dim 1, less 0.5 s, to cp", _to_copy(ours1, copied), 1.4),
        Row("stock script to dim 0", stock0.median / ours0.median, 8, at_least=True),
        Row("stock script to dim 1", stock1.median / ours1.median, 8, at_least=True),
    )
    return Result(f"One file of safetensors, {_size(shapes)}", rows, tuple(runs))


def pickle(setup: Setup, folder: Path) -> Result:
    """The same in a file of torch.save."""
    shapes = inputs.language_model(setup.nbytes)
    source = _pickle(folder, shapes)
    commands = [_copy(source), _prune(setup, source, 0), _prune(setup, source, 1)]
    copied, ours0, ours1 = runs = _race(setup, commands)
    rows = (
        Row("dim 0, less 0.5 s, to cp", _to_copy(ours0, copied)),
        Row("dim 1, less 0.5 s, to cp", _to_copy(ours1, copied)),
    )
    return Result(f"One file of torch.save, {_size(shapes)}", rows, tuple(runs))


def memory(setup: Setup, folder: Path) -> Result:
    """The peak of anonymous memory, and that it does not grow with the file."""
    rows = []
    for kind, write in (("safetensors", _safetensors), (".pt", _pickle)):
        peaks = []
        for times in (1, 4):
            shapes = inputs.language_model(times * setup.nbytes)
            source = write(folder, shapes)
            found = [
                peak_anonymous(_prune(setup, source, dim), threads=setup.threads) for dim in (0, 1)
            ]
            source.unlink()
            peaks.append(max(found) / 1e6)
            rows.append(Row(f"{kind}, {_size(shapes)}, in all", peaks[-1], 120, "MB"))
        rows.append(Row(f"{kind}, four times the file: more by", peaks[1] - peaks[0], 10, "MB"))
    return Result("Peak anonymous memory (RssAnon), the worse of dim 0 and 1", tuple(rows))


def growth(setup: Setup, folder: Path) -> Result:
    """Whether time grows in proportion: a folder of eight times the bytes, beyond what 2 MB take.

    A machine that has to find memory and disk for 8 GB slows every program down, `cp` as well. So
    the work itself is timed too, where there is nothing to find: into /dev/null, in this process.
    """
    tiny = inputs.write_safetensors(folder / "tiny.safetensors", inputs.language_model(2e6))
    sizes = [inputs.language_model(setup.nbytes * times) for times in (0.5, 4)]
    seconds, runs = [], []
    for shapes in sizes:
        source = _safetensors(folder, shapes)
        work = time_call("plan and apply to /dev/null", partial(_discard, source), setup.repeats)
        source.unlink()
        source = inputs.write_folder(folder / "in", shapes, SHARDS)
        commands = [_prune(setup, tiny, 0), _copy_folder(source), _prune(setup, source, 0)]
        start, copied, ours = _race(setup, commands)
        shutil.rmtree(source)
        seconds.append((work.median, ours.median - start.median, copied.median))
        runs += [Runs(f"{run.name}, {_size(shapes)}", run.seconds) for run in (work, ours, copied)]
    times = inputs.total_bytes(sizes[1]) / inputs.total_bytes(sizes[0])
    growing = (large / small / times for small, large in zip(*seconds, strict=True))
    to_nothing, to_folder, copying = growing
    rows = (
        Row("plan and apply to /dev/null, a byte", to_nothing, 1.2),
        Row("prune-cli to a folder, a byte, to cp -r's", to_folder / copying, 1.2),
        Row("prune-cli to a folder, a byte", to_folder),
        Row("cp -r, a byte", copying),
    )
    return Result(f"Growth, dim 0: {_size(sizes[1])} to {_size(sizes[0])}", rows, tuple(runs))


def folder_of_shards(setup: Setup, folder: Path) -> Result:
    """A model folder, beside `cp -r`."""
    shapes = inputs.language_model(2 * setup.nbytes)
    source = inputs.write_folder(folder / "in", shapes, SHARDS)
    ours = _prune(setup, source, 0)
    copied, pruned = runs = _race(setup, [_copy_folder(source), ours])
    peak = peak_anonymous(ours, threads=setup.threads)
    rows = (
        Row("dim 0, less 0.5 s, to cp -r", _to_copy(pruned, copied), 1.0),
        Row("peak RssAnon in all", peak / 1e6, 120, "MB"),
    )
    return Result(f"A folder of {SHARDS} shards, {_size(shapes)}", rows, tuple(runs))


def large_index(setup: Setup, folder: Path) -> Result:
    """A folder of very many small tensors: what planning alone takes."""
    count = 1000 if setup.small else 100_000
    source = inputs.write_folder(folder / "in", inputs.many_tensors(count), SHARDS)
    runs = _race(setup, [_prune(setup, source, 0, "--dry-run")])
    row = Row(f"{count:,} tensors, the whole command", runs[0].median, 3, "s")
    return Result("The plan for a large index", (row,), tuple(runs))


Subject = Callable[[Setup, Path], Result]
"""Measures one subject, its files in a folder that is removed afterwards."""

SUBJECTS: dict[str, Subject] = {
    "start": start,
    "file": one_file,
    "pickle": pickle,
    "memory": memory,
    "growth": growth,
    "folder": folder_of_shards,
    "index": large_index,
}


def measure(subject: Subject, setup: Setup) -> Iterator[Result]:
    """Measures `subject` in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=setup.folder) as folder:
        yield subject(setup, Path(folder))


# --- commands ----------------------------------------------------------------------------------


def _prune(setup: Setup, source: Path, dim: int, *options: str) -> Command:
    output = source.with_name("out" if source.is_dir() else "out.safetensors")
    argv = (
        *(sys.executable, "-m", "prune_cli", "random-structured", str(source), "--quiet"),
        *("--amount", AMOUNT, "--dim", str(dim), "--workers", str(setup.threads)),
        *("--output", str(output), "--force", *options),
    )
    return Command(" ".join((f"prune-cli --dim {dim}", *options)), argv, source, output)


def _run(*arguments: str) -> Command:
    name = " ".join(("prune-cli", arguments[0]))
    return Command(name, (sys.executable, "-m", "prune_cli", *arguments))


def _discard(source: Path) -> None:
    prune_checkpoint(source, "/dev/null", amount=float(AMOUNT), dim=0, force=True)


def _copy(source: Path) -> Command:
    output = source.with_name("copy")
    return Command("cp", ("cp", str(source), str(output)), source, output)


def _copy_folder(source: Path) -> Command:
    output = source.with_name("copy")
    return Command("cp -r", ("cp", "-r", str(source), str(output)), source, output)


def _stock(source: Path, dim: int) -> Command:
    output = source.with_name("stock.safetensors")
    argv = (sys.executable, _STOCK_SCRIPT, str(source), str(output), AMOUNT, str(dim))
    return Command(f"stock script, dim {dim}", argv, source, output)


# --- the rest ----------------------------------------------------------------------------------


def _race(setup: Setup, commands: list[Command]) -> list[Runs]:
    return race(commands, repeats=setup.repeats, threads=setup.threads)


def _safetensors(folder: Path, shapes: inputs.Shapes) -> Path:
    return inputs.write_safetensors(folder / "in.safetensors", shapes)


def _pickle(folder: Path, shapes: inputs.Shapes) -> Path:
    source = _safetensors(folder, shapes)
    path = inputs.write_pickle(folder / "in.pt", source)
    source.unlink()
    return path


def _to_copy(ours: Runs, copied: Runs) -> float:
    """How many times as long as the copy ours took, without what starting may take."""
    return (ours.median - STARTING) / copied.median


def _size(shapes: inputs.Shapes) -> str:
    nbytes = inputs.total_bytes(shapes)
    return f"{nbytes / 1e9:.2f} GB" if nbytes > 1e8 else f"{nbytes / 1e6:.1f} MB"
