"""The names of a checkpoint as a tree of modules and parameters, and as few lines as fit.

See also: globs.py, which makes patterns of the same tree.
"""

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prune_cli.inspection.facts import ParameterFacts


@dataclass(frozen=True, slots=True)
class Node:
    """A module, a group of modules or a parameter, and what is in it.

    `path` holds the labels from the root, "*" for any number; a node without children is a
    group of parameters that look alike.
    """

    path: tuple[str, ...]
    label: str
    parameters: tuple[ParameterFacts, ...]
    children: tuple["Node", ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an outline: a node, its depth, and whether its children follow."""

    depth: int
    node: Node
    is_open: bool


def outline(parameters: Sequence[ParameterFacts], limit: int | None) -> list[Line]:
    """Return the modules and parameters as a tree, in at most `limit` lines where possible.

    If there are more, modules that differ only by a number are merged; then the smallest modules
    stay closed, one line for all they hold.

    Example:
        >>> [line.node.label for line in outline(inspect_checkpoint("m.safetensors").parameters, 9)]
        ['fc', 'bias', 'weight', 'layers.*', 'bias', 'weight']
    """
    is_long = limit is not None and len(parameters) > limit
    tree = grow_tree(parameters, _parts_and_look, is_starred=is_long)
    if limit is None:
        return list(list_lines(tree, None))
    if not is_long and _count_lines(tree) > limit:
        tree = grow_tree(parameters, _parts_and_look, is_starred=True)
    return list(list_lines(tree, open_largest(tree, limit)))


_DEEPEST = 64  # levels of a tree; a hostile file's names may have thousands

Part = tuple[str, Hashable]
"""A label, and what distinguishes it from another of the same label."""

_Entry = tuple[Sequence[Part], ParameterFacts]


def _parts_and_look(facts: ParameterFacts) -> list[Part]:
    look = (facts.shape, facts.dtype, facts.mask is None, facts.prunable_dims)
    return [*module_parts(facts), (facts.param, look)]


def module_parts(facts: ParameterFacts) -> list[Part]:
    """Return the labels of the modules around a parameter, the root left out."""
    return [(part, None) for part in facts.module.split(".", _DEEPEST) if part]


def grow_tree(
    parameters: Iterable[ParameterFacts],
    parts_of: Callable[[ParameterFacts], Sequence[Part]],
    *,
    is_starred: bool,
) -> Node:
    """Return the root of the tree that the parts of `parameters` make up."""
    return _grow((), "", [(parts_of(facts), facts) for facts in parameters], is_starred=is_starred)


def _grow(
    path: tuple[str, ...], label: str, entries: Sequence[_Entry], *, is_starred: bool
) -> Node:
    """Return the Node of what lies under `path`; a single child takes its parent's line."""
    groups = _group(entries, len(path), is_starred=is_starred)
    parameters = tuple(facts for _, facts in entries)
    if None in groups and len(groups) == 1:
        return Node(path, label, parameters)
    chained = f"{label}." if len(groups) == 1 and label else ""
    children = tuple(
        _grow((*path, part[0]), chained + part[0], group, is_starred=is_starred)
        if part
        else Node(path, label, tuple(facts for _, facts in group))
        for part, group in groups.items()
    )
    return children[0] if len(children) == 1 and path else Node(path, label, parameters, children)


def _group(
    entries: Sequence[_Entry], at: int, *, is_starred: bool
) -> dict[Part | None, list[_Entry]]:
    """Group `entries` by their part number `at`; None for those that end before it."""
    groups: dict[Part | None, list[_Entry]] = {}
    for entry in entries:
        groups.setdefault(entry[0][at] if at < len(entry[0]) else None, []).append(entry)
    numbers = [part for part in groups if part and part[0].isdecimal()]
    if is_starred and len(numbers) > 1:
        together: dict[Part | None, list[_Entry]] = {}
        for part, group in groups.items():
            key = ("*", part[1]) if part in numbers and part else part
            together.setdefault(key, []).extend(group)
        return together
    return groups


def _count_lines(node: Node) -> int:
    return sum(1 + _count_lines(child) for child in node.children)


def open_largest(root: Node, limit: int) -> set[int]:
    """Return the ids of the nodes to open, largest first, so that at most `limit` lines result."""
    opened, count = {id(root)}, len(root.children)
    numbers = itertools.count()  # among equals the first one found
    waiting = [(-_nbytes(child), next(numbers), child) for child in root.children]
    heapq.heapify(waiting)
    while waiting:
        node = heapq.heappop(waiting)[-1]
        if node.children and count + len(node.children) <= limit:
            opened.add(id(node))
            count += len(node.children)
            for child in node.children:
                heapq.heappush(waiting, (-_nbytes(child), next(numbers), child))
    return opened


def _nbytes(node: Node) -> int:
    return sum(facts.bytes for facts in node.parameters)


def list_lines(node: Node, opened: set[int] | None, depth: int = 0) -> Iterator[Line]:
    """Yield a Line for each node below `node`; `opened` holds ids, None opens all."""
    for child in node.children:
        is_open = bool(child.children) and (opened is None or id(child) in opened)
        yield Line(depth, child, is_open)
        if is_open:
            yield from list_lines(child, opened, depth + 1)
