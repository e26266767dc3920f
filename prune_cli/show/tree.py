"""What inspect found, on stdout: modules and parameters as a tree, zero channels, and patterns."""

import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table

from prune_cli.inspection.facts import Glob, Inspection, ParameterFacts, ZeroCount
from prune_cli.inspection.listing import span_dims
from prune_cli.inspection.outline import Line, outline
from prune_cli.report.numbers import format_bytes, format_count, format_shape, list_some
from prune_cli.show.console import UNLIMITED, escape, say, stdout_page
from prune_cli.show.tables import MAX_ROWS, Name, draw_bar, make_table, print_fitting


def print_inspection(inspection: Inspection, *, show_all: bool = False) -> None:
    """Print what is in a checkpoint: its modules and parameters as a tree, and the totals."""
    lines = outline(inspection.parameters, None if show_all else MAX_ROWS)
    shown = lines if show_all else lines[:MAX_ROWS]
    with stdout_page() as page:
        page.print(_heading(inspection))
        page.print()
        _print_tree(inspection, shown, page)
        if len(lines) > len(shown):
            more = len(lines) - len(shown)
            say(f"[dim]... and {more:,} more lines; --all shows them[/]", page)
        page.print()
        page.print(_dtype_table(inspection))
        for text in _notes(inspection, lines):
            say(text, page)


def _heading(inspection: Inspection) -> str:
    files = f"{inspection.files:,} files" if inspection.files > 1 else inspection.format
    return f"[bold]{escape(inspection.path)}[/]  {files}, {format_bytes(inspection.bytes)}"


def _print_tree(inspection: Inspection, lines: Sequence[Line], page: Console) -> None:
    if any(facts.zeros is not None for facts in inspection.parameters):
        print_fitting(page, lambda with_bar: _zeros_table(lines, with_bar))
    else:
        page.print(_outline_table(lines))


def _outline_table(lines: Sequence[Line]) -> Table:
    grouped = any(len(line.node.parameters) > 1 and not line.is_open for line in lines)
    headings = (*(["tensors"] if grouped else []), "shape", "dtype", "size", "dims")
    table = make_table("name", *headings)
    for line in lines:
        parameters = line.node.parameters
        one = not line.node.children
        dims = parameters[0].prunable_dims if one else ()
        cells = [f"{len(parameters):,}"] if grouped else []
        cells += [format_shape(parameters[0].shape) if one else ""]
        cells += ["" if line.is_open else _only({facts.dtype for facts in parameters})]
        cells += [format_bytes(sum(facts.bytes for facts in parameters))]
        cells += [span_dims(dims) if one else ""]
        table.add_row(Name(_label(line)), *cells, style="dim" if line.is_open else "")
    return table


def _zeros_table(lines: Sequence[Line], with_bar: bool) -> Table:
    """Return each tensor with a row, and a bar, for each dim that has zero channels."""
    table = make_table("name", "shape", "dim", "zero", with_bar=with_bar)
    for line in lines:
        parameters = line.node.parameters
        shape = format_shape(parameters[0].shape) if not line.node.children else ""
        counts = [] if line.is_open else _add_up(parameters)
        zero = [count for count in counts if count.zero]
        if not zero:
            nothing = "none" if counts else "" if line.is_open else "-"
            table.add_row(Name(_label(line)), shape, "", nothing, style="dim")
        for number, count in enumerate(zero):
            start = ("", "") if number else (Name(_label(line)), shape)
            bar = [draw_bar(count.zero, count.channels)] if with_bar else []
            table.add_row(*start, str(count.dim), f"{count.zero:,}/{count.channels:,}", *bar)
    return table


def _label(line: Line) -> str:
    """Return a node's label: a module in bold while it is open, with dots while it is closed."""
    node = line.node
    text = "  " * line.depth + escape(node.label)
    if node.children:
        return f"[bold]{text}[/]" if line.is_open else f"{text} [dim]...[/]"
    return text + (" [magenta]masked[/]" if node.parameters[0].mask else "")


def _only(values: Collection[str]) -> str:
    return next(iter(values)) if len(values) == 1 else "mixed"


def _add_up(parameters: Iterable[ParameterFacts]) -> list[ZeroCount]:
    """Return the zero channels of `parameters`, for each dim that any of them has."""
    counts = [count for facts in parameters for count in facts.zeros or ()]
    return [
        ZeroCount(
            dim,
            sum(count.channels for count in counts if count.dim == dim),
            sum(count.zero for count in counts if count.dim == dim),
        )
        for dim in sorted({count.dim for count in counts})
    ]


def _dtype_table(inspection: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    columns: tuple[JustifyMethod, ...] = ("left", "right", "right", "right")
    for justify in columns:
        table.add_column(justify=justify, no_wrap=True)
    for total in inspection.dtypes:
        tensors = format_count(total.tensors, "tensor")
        elements = format_count(total.elements, "element")
        table.add_row(f"[bold]{total.dtype}[/]", tensors, elements, format_bytes(total.bytes))
    return table


def _notes(inspection: Inspection, lines: Sequence[Line]) -> Iterator[str]:
    parameters = inspection.parameters
    prunable = [facts for facts in parameters if facts.prunable_dims]
    weights = sum(facts.param == "weight" for facts in prunable)
    elements = sum(facts.elements for facts in parameters)
    yield f"{format_count(elements, 'parameter')} in all, buffers counted"
    yield (
        f"{len(prunable):,} of {len(parameters):,} tensors can be pruned, along any of their dims; "
        f"{weights:,} of them are called weight, the default of --param"
    )
    if any(line.node.children and not line.is_open for line in lines):
        yield "[dim]... stands for modules not shown: --module picks some, --all shows all[/]"
    masked = [facts.name for facts in parameters if facts.mask]
    if masked:
        yield f"masked {escape(list_some(masked))}: pruned by torch, with a mask beside it"
    shared = [f"{alias} is {facts.name}" for facts in parameters for alias in facts.aliases]
    if shared:
        yield f"shared memory: {escape(list_some(shared))}"
    for reason in (*_few(_odd_reasons(parameters)), *inspection.notes):
        yield f"[bold magenta]note:[/] {escape(reason)}"
    if inspection.dropped:
        names = escape(list_some([drop.key for drop in inspection.dropped]))
        yield f"not tensors, or not in the state dict: {names}"


def _odd_reasons(parameters: Iterable[ParameterFacts]) -> list[str]:
    """Return why parameters cannot be pruned, but for those with too few dims."""
    return [facts.reason for facts in parameters if facts.reason and len(facts.shape) > 1]


def _few(texts: Sequence[str]) -> list[str]:
    return [*texts[:3], *([f"and {len(texts) - 3:,} more like these"] if len(texts) > 3 else [])]


# --- globs -----------------------------------------------------------------------------------


def print_globs(inspection: Inspection) -> None:
    """Print the patterns that are proposed for --module, ready to paste."""
    globs = inspection.globs or ()
    with stdout_page() as page:
        if not globs:
            page.print("nothing in it can be pruned: no tensor has two dims")
            return
        table = _glob_table(globs)
        unlimited = page.options.update(max_width=UNLIMITED)  # what is pasted must not wrap
        page.width = max(page.width, page.measure(table, options=unlimited).maximum)
        page.print(table)
        page.print("\n[dim]counts are of what can be pruned; * crosses dots[/]")


def _glob_table(globs: Sequence[Glob]) -> Table:
    params = ["--param"] if any(glob.param != "weight" for glob in globs) else []
    table = make_table("--module", *params, "modules", "tensors", "size")
    for column in table.columns[: 1 + len(params)]:
        column.justify, column.no_wrap = "left", True
    for glob in globs:
        cells = [escape(shlex.quote(glob.param))] if params else []
        cells += [f"{glob.modules:,}", f"{glob.tensors:,}", format_bytes(glob.bytes)]
        table.add_row("  " * glob.depth + escape(shlex.quote(glob.pattern)), *cells)
    return table
