"""What people see: messages, tables and progress on stderr. stdout is for data.

The only file that knows Rich. NO_COLOR, a narrow terminal and no terminal at all are Rich's to
handle; `quiet` is handled here.
"""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich import markup
from rich.console import Console, JustifyMethod
from rich.progress_bar import ProgressBar
from rich.table import Table

from prune_cli.errors import OutputError, PruneError
from prune_cli.write.atomic import write_file
from prune_cli.write.paths import STDOUT

if TYPE_CHECKING:
    from prune_cli.inspection.inspection import Inspection, Line, ParameterFacts, ZeroCount
    from prune_cli.plan.facts import PlanItem
    from prune_cli.plan.shrink import ShrinkPlan
    from prune_cli.report.comparison import Comparison, Pair, TensorComparison
    from prune_cli.report.report import Report
    from prune_cli.verify.verify import Verification
    from prune_cli.write.progress import OnTensor

MAX_ROWS = 40
"""A table of more rows is collapsed: rows that differ in numbers only become one."""

_BAR_WIDTH = 10
_MOST_RUNS = 4  # with a column each
_UNLIMITED = 1 << 16  # columns
_LONG_WORK_BYTES = 64 << 20


class _Messages(Console):
    """The console on stderr. A class, to go on without messages when nobody reads them."""

    def on_broken_pipe(self) -> None:
        """Called by Rich, which would end the process."""
        self.quiet = True

    def print(self, *objects: Any, **how: Any) -> None:
        """As Rich prints; where there is no room for messages, the work goes on without."""
        try:
            super().print(*objects, **how)
        except OSError:
            self.quiet = True


def _width(stream: TextIO | None) -> int | None:
    """For Rich: None finds the terminal's; in a file or a pipe nothing is wrapped."""
    is_known = "COLUMNS" in os.environ or (stream is not None and stream.isatty())
    return None if is_known else _UNLIMITED


_stderr = _Messages(stderr=True, highlight=False, width=_width(sys.stderr))


def escape(text: str) -> str:
    """`text` as it can be printed: no markup in it counts, and no control character acts.

    Names come out of files, and a terminal obeys what it is sent.
    """
    plain = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return markup.escape("".join(plain))


def show_error(error: PruneError) -> None:
    """The message, each of its lines a problem."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    _print(f"[bold red]error:[/] {escape(first)}")
    for line in rest:
        _print(f"       {escape(line)}")


def show_tips(tips: Iterable[str]) -> None:
    """What may help."""
    for tip in tips:
        _print(f"[bold]tip:[/] {escape(tip)}")


def show_interrupted() -> None:
    """That a signal ended it, and what is left."""
    _print(
        "[bold red]interrupted:[/] partial output removed; finished shards are kept "
        "(continue with --resume)"
    )


def write_stdout(text: str) -> None:
    """Data for the next program in the pipe; one that has read enough ends it, without a word.

    Raises:
        SystemExit: nobody reads on.
        OutputError: there is no room for it.
    """
    try:
        write_file(STDOUT, text.encode("utf-8", "surrogateescape"))
    except OutputError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            raise SystemExit(OutputError.exit_code) from None
        raise


@contextlib.contextmanager
def progress(nbytes: int, *, quiet: bool, doing: str = "writing") -> "Iterator[OnTensor | None]":
    """A bar of bytes and rate for long work on a terminal; elsewhere nothing."""
    if quiet or nbytes < _LONG_WORK_BYTES or not _stderr.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", table_column=None),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_stderr, transient=True) as bar:
        task = bar.add_task(doing, total=nbytes)
        yield lambda _name, count: bar.advance(task, count)


# --- the main command ------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table of pruned tensors; `count` tensors that look alike share one."""

    name: str
    shape: tuple[int, ...]
    dim: int
    channels: int
    pruned: int
    already: int
    count: int = 1


def show_report(
    report: "Report",
    *,
    written: Iterable[Path | None] = (),
    emitting: int = 0,
    quiet: bool = False,
) -> None:
    """The table of pruned tensors, the totals, what was left out, and where the files are."""
    if quiet:
        return
    _print_report(report, emitting, _stderr)
    show_written(written)


def show_written(paths: Iterable[Path | None]) -> None:
    """Where the files are."""
    for path in paths:
        if path and (path.is_file() or path.is_dir()):
            _print(f"[bold]wrote[/] {escape(str(path))} ({_size(path)})")


def _print_report(report: "Report", emitting: int, console: Console) -> None:
    rows = collapse(rows_of(report.tensors), MAX_ROWS)
    console.print(_table(rows[:MAX_ROWS]))
    if len(rows) > MAX_ROWS:
        more = len(rows) - MAX_ROWS
        _print(f"[dim]... and {more} more rows; the report has every tensor[/]", console)
    for line in _summary(report, emitting):
        _print(line, console)


def show_shrunk(
    report: "Report", *, written: Iterable[Path | None] = (), quiet: bool = False
) -> None:
    """The groups of channels that went, what is left whole and why, and what it is worth."""
    if not quiet:
        _print_shrunk(report, _stderr)
        show_written(written)


def _print_shrunk(report: "Report", console: Console) -> None:
    plan = report.shrink
    assert plan is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("channels of", overflow="fold", ratio=1)
    for heading in ("dim", "before", "after", "coupled"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for group in plan.groups[:MAX_ROWS]:
        gone = len(group.removed)
        after, coupled = group.channels - gone, len(group.members)
        cells = [str(number) for number in (group.dim, group.channels, after, coupled)]
        table.add_row(escape(group.root), *cells, _bar(gone, group.channels))
    console.print(table)
    if len(plan.groups) > MAX_ROWS:
        more = len(plan.groups) - MAX_ROWS
        _print(f"[dim]... and {more} more groups; the report has them[/]", console)
    for line in _shrink_summary(report, plan):
        _print(line, console)


def _shrink_summary(report: "Report", plan: "ShrinkPlan") -> Iterator[str]:
    effect, output = plan.effect, report.output
    verb = "removed" if output else "would remove"
    gone = sum(len(group.removed) for group in plan.groups)
    yield f"[bold]{verb} {gone:,} channels in {len(plan.groups):,} group(s)[/]"
    yield "parameters " + _change(effect.parameters_before, effect.parameters_after)
    yield "FLOPs of one forward pass " + _change(effect.flops_before, effect.flops_after)
    if output:
        yield "bytes " + _change(report.input.bytes, output.bytes)
    if latency := plan.latency:
        before, after = latency.milliseconds["before"], latency.milliseconds["after"]
        yield (
            f"latency {before:.2f} ms -> {after:.2f} ms ([bold]{before / after:.2f}x[/] as fast; "
            f"medians of {latency.rounds} in turns, {latency.threads} thread(s))"
        )
    for reason, roots in _by_reason(plan):
        yield f"left whole {escape(_some(roots))}: {escape(reason)}"
    if report.dropped:
        names = escape(_some([drop.key for drop in report.dropped]))
        yield f"[yellow]dropped[/] {names}: safetensors holds named tensors only"


def _by_reason(plan: "ShrinkPlan") -> list[tuple[str, list[str]]]:
    """The groups that were left whole, by the reason."""
    reasons: dict[str, list[str]] = {}
    for group in plan.whole:
        reasons.setdefault(group.reason, []).append(group.root)
    return list(reasons.items())


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({(after - before) / max(before, 1):+.1%})"


def show_verification(verification: "Verification", *, quiet: bool = False) -> None:
    """Every disagreement, or what was found to be as it should."""
    for problem in verification.disagreements:
        channel = "" if problem.channel is None else f", channel {problem.channel}"
        offset = "" if problem.offset is None else f" (byte {problem.offset:,} of its file)"
        where = f"[bold]{escape(problem.tensor)}[/]{channel}: " if problem.tensor else ""
        _print(f"{where}{escape(problem.fact)}{offset}")
    if verification.is_verified and not quiet:
        scope = (
            "every byte" if verification.with_source else "all that can be told without the source"
        )
        _print(
            f"[bold green]verified[/] {verification.tensors:,} tensor(s), "
            f"{format_bytes(verification.nbytes)}: {scope}"
            + ("" if verification.with_source else "; --source compares every byte")
        )


def rows_of(items: "Iterable[PlanItem]") -> list[Row]:
    """A Row for each of `items`."""
    return [
        Row(
            item.name,
            item.shape,
            item.dim,
            item.channels,
            len(item.pruned),
            len(item.already_pruned),
        )
        for item in items
    ]


def collapse(rows: Sequence[Row], limit: int) -> list[Row]:
    """`rows`, or if there are more than `limit`: those that differ only in numbers made one.

    Example:
        >>> [row.name for row in collapse([Row("l.0.w", (2, 2), 0, 2, 1, 0),
        ...                                Row("l.1.w", (2, 2), 0, 2, 1, 0)], limit=1)]
        ['l.*.w']
    """
    if len(rows) <= limit:
        return list(rows)
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        name = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", row.name)
        groups.setdefault((name, row.shape, row.dim), []).append(row)
    return [
        Row(
            str(name) if len(group) > 1 else group[0].name,
            group[0].shape,
            group[0].dim,
            sum(row.channels for row in group),
            sum(row.pruned for row in group),
            sum(row.already for row in group),
            len(group),
        )
        for (name, *_), group in groups.items()
    ]


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    collapsed = any(row.count > 1 for row in rows)
    before = any(row.already for row in rows)
    table.add_column("tensor", overflow="fold", ratio=1)
    if collapsed:
        table.add_column("tensors", justify="right", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("dim", justify="right", no_wrap=True)
    if before:
        table.add_column("before", justify="right", no_wrap=True)
    table.add_column("pruned", justify="right", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for row in rows:
        cells: list[str | ProgressBar] = [escape(row.name)]
        cells += [str(row.count)] if collapsed else []
        cells += ["x".join(map(str, row.shape)), str(row.dim)]
        cells += [str(row.already)] if before else []
        cells += [f"{row.pruned}/{row.channels}", _bar(row.pruned + row.already, row.channels)]
        table.add_row(*cells)
    return table


def _bar(part: int, whole: int) -> ProgressBar:
    return ProgressBar(
        total=max(whole, 1),
        completed=part,
        width=_BAR_WIDTH,
        complete_style="red",
        finished_style="red",
    )


def _summary(report: "Report", emitting: int) -> Iterator[str]:
    totals = report.totals
    yield (
        f"[bold]{_what_was_done(report)}[/]; "
        f"{totals.sparsity:.1%} of their {totals.elements:,} elements are zero"
    )
    yield f"[dim]{describe_options(report)}[/]"
    for note in _notes(report, emitting):
        yield f"[yellow]note:[/] {escape(note)}"
    if report.skipped:
        names = escape(_some([skip.name for skip in report.skipped]))
        yield f"skipped {names}: {escape(report.skipped[0].reason)}"
    if report.dropped:
        names = escape(_some([drop.key for drop in report.dropped]))
        yield f"[yellow]dropped[/] {names}: safetensors holds named tensors only"


def _what_was_done(report: "Report") -> str:
    totals = report.totals
    if report.method == "remove":
        verb = "made" if report.output else "would make"
        return f"{verb} the masks of {len(report.tensors):,} tensor(s) permanent"
    verb = "pruned" if report.output else "would prune"
    return (
        f"{verb} {totals.channels_pruned:,} of {totals.channels:,} channels in "
        f"{totals.tensors_pruned:,} tensor(s)"
    )


def describe_options(report: "Report") -> str:
    """The amount as it was understood, the dim and the seed; or where the channels are from."""
    options = report.options
    match report.method, options.amount:
        case "remove", _:
            return "masks that the checkpoint had"
        case "apply", _:
            return "channels of the report that was applied"
        case _, None:
            amount = "amounts of the recipe"
        case _, _ if options.rules:
            amount = f"amounts of the recipe, and {options.amount} where it gives none"
        case _, int():
            amount = f"amount {options.amount}: {options.amount} channel(s) of each tensor"
        case _:
            part = f"{100 * options.amount:.6g}%"
            amount = f"amount {options.amount}: {part} of each tensor's live channels"
    recipe = f", {len(options.rules)} rule(s)" if options.rules else ""
    return f"{amount}, dim {options.dim}, seed {options.seed}{recipe}"


def _notes(report: "Report", emitting: int) -> Iterator[str]:
    untouched = [item.name for item in report.tensors if not item.pruned]
    if untouched and report.method == "random_structured":
        yield f"the amount rounds to no channel in {_some(untouched)}"
    if emitting:
        yield (
            f"in {emitting} module(s) the bias of a pruned channel still emits; "
            "--with-bias prunes it too"
        )
    yield from report.notes


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(path: Path) -> str:
    if path.is_dir():
        return f"{sum(1 for _ in path.iterdir())} files"
    return format_bytes(path.stat().st_size)


def format_bytes(nbytes: float) -> str:
    """A size as people say it, in powers of 1000.

    Example:
        >>> format_bytes(1_963_008)
        '2.0 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"


def _print(text: str, console: Console = _stderr) -> None:
    console.print(text, soft_wrap=not console.is_terminal)


# --- inspect ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _page() -> Iterator[Console]:
    """A console whose text goes to stdout in one piece: it is what was asked for, so it is data."""
    console = Console(highlight=False, width=_width(sys.stdout))
    with console.capture() as captured:
        yield console
    write_stdout(captured.get())


def show_inspection(inspection: "Inspection", *, show_all: bool = False) -> None:
    """What is in a checkpoint, on stdout: its modules and parameters as a tree, and the totals."""
    from prune_cli.inspection.inspection import outline

    lines = outline(inspection.parameters, None if show_all else MAX_ROWS)
    with _page() as page:
        files = f"{inspection.files} files" if inspection.files > 1 else inspection.format
        page.print(f"[bold]{escape(inspection.path)}[/]  {files}, {format_bytes(inspection.bytes)}")
        page.print()
        counted = any(facts.zeros is not None for facts in inspection.parameters)
        shown = lines if show_all else lines[:MAX_ROWS]
        page.print(_zeros_table(shown) if counted else _outline_table(shown))
        if len(lines) > len(shown):
            _print(f"[dim]... and {len(lines) - len(shown)} more lines; --all shows them[/]", page)
        page.print()
        page.print(_dtype_table(inspection))
        for text in _inspection_notes(inspection, lines):
            _print(text, page)


def show_globs(inspection: "Inspection") -> None:
    """The patterns that are proposed for --module, on stdout, ready to be pasted."""
    globs = inspection.globs or ()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("--module", no_wrap=True)
    with_param = any(glob.param != "weight" for glob in globs)
    for header in (*(["--param"] if with_param else []), "modules", "tensors", "size"):
        table.add_column(
            header, justify="left" if header.startswith("-") else "right", no_wrap=True
        )
    for glob in globs:
        cells = [shlex.quote(glob.param)] if with_param else []
        cells += [f"{glob.modules:,}", f"{glob.tensors:,}", format_bytes(glob.bytes)]
        table.add_row("  " * glob.depth + escape(shlex.quote(glob.pattern)), *map(escape, cells))
    with _page() as page:
        unlimited = page.options.update(max_width=_UNLIMITED)  # what is pasted must not wrap
        page.width = max(page.width, page.measure(table, options=unlimited).maximum)
        page.print(table if globs else "nothing in it can be pruned: no tensor has two dims")
        if globs:
            page.print("\n[dim]counted is what can be pruned; * crosses dots[/]")


def _outline_table(lines: "Sequence[Line]") -> Table:
    grouped = any(len(line.node.parameters) > 1 and not line.is_open for line in lines)
    headers = ["tensors"] if grouped else []
    table = _tree_table((*headers, "shape", "dtype", "size", "dims"))
    for line in lines:
        parameters = line.node.parameters
        one = not line.node.children
        dims = parameters[0].prunable_dims if one else ()
        cells = [f"{len(parameters):,}"] if grouped else []
        cells += [_shape(parameters[0].shape) if one else ""]
        cells += ["" if line.is_open else _only({facts.dtype for facts in parameters})]
        cells += [format_bytes(sum(facts.bytes for facts in parameters))]
        cells += [_span(dims) if one else ""]
        table.add_row(_label(line), *cells, style="dim" if line.is_open else "")
    return table


def _zeros_table(lines: "Sequence[Line]") -> Table:
    """Each tensor with a bar for each dim that has zero channels."""
    table = _tree_table(("shape", "dim", "zero"))
    table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for line in lines:
        parameters = line.node.parameters
        shape = _shape(parameters[0].shape) if not line.node.children else ""
        counts = [] if line.is_open else _add_up(parameters)
        zero = [count for count in counts if count.zero]
        if not zero:
            nothing = "none" if counts else "" if line.is_open else "-"
            table.add_row(_label(line), shape, "", nothing, "", style="dim")
        for number, count in enumerate(zero):
            start = ("", "") if number else (_label(line), shape)
            part = f"{count.zero:,}/{count.channels:,}"
            table.add_row(*start, str(count.dim), part, _bar(count.zero, count.channels))
    return table


def _tree_table(headers: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", overflow="fold")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _label(line: "Line") -> str:
    """A module in bold while it is open; a number of parameters that look alike as "x12"."""
    node = line.node
    text = "  " * line.depth + escape(node.label)
    if node.children:
        return f"[bold]{text}[/]" if line.is_open else f"{text} [dim]...[/]"
    return text + (" [yellow]masked[/]" if node.parameters[0].mask else "")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _span(dims: Sequence[int]) -> str:
    return f"{dims[0]}-{dims[-1]}" if dims else "-"


def _only(values: Collection[str]) -> str:
    return next(iter(values)) if len(values) == 1 else "mixed"


def _add_up(parameters: "Iterable[ParameterFacts]") -> "list[ZeroCount]":
    """The zero channels of `parameters`, for each dim that any of them has."""
    from prune_cli.inspection.inspection import ZeroCount

    counts = [count for facts in parameters for count in facts.zeros or ()]
    return [
        ZeroCount(
            dim,
            sum(count.channels for count in counts if count.dim == dim),
            sum(count.zero for count in counts if count.dim == dim),
        )
        for dim in sorted({count.dim for count in counts})
    ]


def _dtype_table(inspection: "Inspection") -> Table:
    table = Table.grid(padding=(0, 2))
    columns: tuple[JustifyMethod, ...] = ("left", "right", "right", "right")
    for justify in columns:
        table.add_column(justify=justify, no_wrap=True)
    for total in inspection.dtypes:
        tensors = f"{total.tensors:,} tensor" + ("s" if total.tensors != 1 else "")
        size = format_bytes(total.bytes)
        table.add_row(f"[bold]{total.dtype}[/]", tensors, f"{total.elements:,} elements", size)
    return table


def _inspection_notes(inspection: "Inspection", lines: "Sequence[Line]") -> Iterator[str]:
    parameters = inspection.parameters
    prunable = [facts for facts in parameters if facts.prunable_dims]
    weights = sum(facts.param == "weight" for facts in prunable)
    yield (
        f"{len(prunable):,} of {len(parameters):,} can be pruned, along any of their dims; "
        f"{weights:,} of them called weight, the default of --param"
    )
    if any(line.node.children and not line.is_open for line in lines):
        yield "[dim]... stands for modules that are not shown: --module picks some, --all shows all[/]"
    masked = [facts.name for facts in parameters if facts.mask]
    if masked:
        yield f"masked {escape(_some(masked))}: pruned by torch; a mask is beside it"
    shared = [f"{alias} is {facts.name}" for facts in parameters for alias in facts.aliases]
    if shared:
        yield f"shared memory: {escape(_some(shared))}"
    for reason in _few([facts.reason for facts in parameters if facts.reason and _is_odd(facts)]):
        yield f"[yellow]note:[/] {escape(reason)}"
    for note in inspection.notes:
        yield f"[yellow]note:[/] {escape(note)}"
    if inspection.dropped:
        yield f"not in the state dict, or no tensors: {escape(_some([drop.key for drop in inspection.dropped]))}"


def _is_odd(facts: "ParameterFacts") -> bool:
    """Whether it cannot be pruned for another reason than having too few dims."""
    return len(facts.shape) > 1


def _few(texts: Sequence[str]) -> list[str]:
    return [*texts[:3], *([f"and {len(texts) - 3} more like these"] if len(texts) > 3 else [])]


# --- report ----------------------------------------------------------------------------------


def print_report(report: "Report") -> None:
    """The same table as show_report or show_shrunk, but on stdout: here it is what was asked for."""
    with _page() as page:
        if report.shrink is None:
            _print_report(report, 0, page)
        else:
            _print_shrunk(report, page)


def show_comparison(comparison: "Comparison") -> None:
    """Several reports beside each other, on stdout."""
    with _page() as page:
        page.print(_run_table(comparison))
        page.print()
        rows = [facts for facts in comparison.tensors if facts.follows is None]
        page.print(_overlap_table(rows[:MAX_ROWS], len(comparison.runs)))
        if len(rows) > MAX_ROWS:
            more = len(rows) - MAX_ROWS
            _print(f"[dim]... and {more} more tensors; --json and --html have every one[/]", page)
        page.print()
        for pair in comparison.pairs[:MAX_ROWS]:
            _print(f"{pair.first + 1} and {pair.second + 1}: {_alike(pair)}", page)


def _alike(pair: "Pair") -> str:
    if pair.overlap is None:
        return "no tensor in common that could be compared"
    shared, union = pair.overlap.shared, pair.overlap.union
    return (
        f"[bold]{pair.overlap.jaccard:.1%}[/] alike, {shared:,} of {union:,} channels in "
        f"{pair.tensors:,} tensor(s)"
    )


def _run_table(comparison: "Comparison") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("report", overflow="fold")
    for header in ("amount", "dim", "seed", "tensors", "pruned", "sparsity"):
        table.add_column(header, justify="right", no_wrap=True)
    for number, run in enumerate(comparison.runs, 1):
        amount = "-" if run.amount is None else str(run.amount)
        pruned = f"{run.channels_pruned:,}/{run.channels:,}"
        cells = [amount, str(run.dim), str(run.seed), f"{run.tensors:,}", pruned]
        table.add_row(str(number), escape(run.report), *cells, f"{run.sparsity:.1%}")
    return table


def _overlap_table(rows: "Iterable[TensorComparison]", runs: int) -> Table:
    """How many channels each run pruned, and a bar for the part that all of them did."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold", ratio=1)
    shown = range(runs if runs <= _MOST_RUNS else 0)
    headers = ("channels", *(str(number + 1) for number in shown), "shared", "alike")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for facts in rows:
        channels = "-" if facts.channels is None else f"{facts.channels:,}"
        counts = [facts.pruned[number] for number in shown]
        cells = [channels, *("-" if count is None else f"{count:,}" for count in counts)]
        if facts.overlap is None:
            table.add_row(escape(facts.name), *cells, "-", "-", "")
        else:
            alike, shared = f"{facts.overlap.jaccard:.1%}", f"{facts.overlap.shared:,}"
            bar = _bar(facts.overlap.shared, facts.overlap.union)
            table.add_row(escape(facts.name), *cells, shared, alike, bar)
    return table
