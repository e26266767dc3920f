"""Patterns for `--module` that group the modules of a checkpoint, so that nobody has to guess them."""

import glob
import os
import re
from collections.abc import Collection, Iterable, Sequence

from prune_cli.checkpoint.encodings import Role, find_encodings
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.inspection.facts import Glob, ParameterFacts
from prune_cli.inspection.outline import (
    Line,
    Node,
    grow_tree,
    list_lines,
    module_parts,
    open_largest,
)
from prune_cli.plan.selection import matcher

MAX_GLOBS = 16
"""How many patterns are proposed at most."""


def propose_globs(
    parameters: Iterable[ParameterFacts],
    *,
    among: Iterable[str] | None = None,
    limit: int = MAX_GLOBS,
) -> tuple[Glob, ...]:
    """Return a few patterns for `--module` that group what can be pruned, wide ones first.

    Args:
        parameters: all or some of a checkpoint.
        among: the names of all modules of the checkpoint that hold something to prune; a pattern
            for a group matches none of them outside the group.
        limit: the most patterns to propose.

    Example:
        >>> [g.pattern for g in propose_globs(inspect_checkpoint("llama.safetensors").parameters)]
        ['*', 'lm_head', 'model.embed_tokens', 'model.layers.*', 'model.layers.*.mlp.*', ...]
    """
    prunable = [facts for facts in _without_scales(parameters) if facts.prunable_dims]
    if not prunable:
        return ()
    modules = list(dict.fromkeys(among or (facts.module for facts in prunable)))
    return _globs_of(prunable, modules, limit, is_starred=True) or _globs_of(
        prunable, modules, limit, is_starred=False
    )


def _globs_of(
    prunable: Sequence[ParameterFacts], modules: Sequence[str], limit: int, *, is_starred: bool
) -> tuple[Glob, ...]:
    tree = grow_tree(prunable, module_parts, is_starred=is_starred)
    lines = [Line(0, tree, is_open=True), *list_lines(tree, open_largest(tree, limit - 1), depth=1)]
    globs: dict[frozenset[str], Glob] = {}
    around: list[int] = []  # the depths of the patterns that contain the next one
    for line in lines:
        pattern = _pattern(line.node, modules, {facts.module for facts in prunable})
        matched = _matched(prunable, pattern) if pattern is not None else []
        held = frozenset(facts.name for facts in matched)
        if pattern is None or held in globs:
            continue
        around = [depth for depth in around if depth < line.depth]
        globs[held] = _glob(pattern, len(around), matched)
        around.append(line.depth)
    return tuple(globs.values())[:limit]


def _without_scales(parameters: Iterable[ParameterFacts]) -> list[ParameterFacts]:
    """Leave out the scales of quantised tensors: they have two dims, but are not pruned alone."""
    parameters = list(parameters)
    infos = (TensorInfo(facts.name, facts.dtype, facts.shape) for facts in parameters)
    encodings = find_encodings({info.name: Parameter(info.name, info) for info in infos})
    scales = {name for name, found in encodings.items() if found.role is Role.SCALE}
    return [facts for facts in parameters if facts.name not in scales]


def _pattern(node: Node, modules: Sequence[str], asked: Collection[str]) -> str | None:
    """Return a pattern for the modules of `node` that matches no other of `modules`.

    The pattern of a single node may match other modules that were `asked` for too.
    """
    stem = ".".join(part if part == "*" else glob.escape(part) for part in node.path)
    own = {facts.module for facts in node.parameters}
    patterns = (f"{stem}.*", f"{stem}*") if node.children else (stem,)
    for pattern in patterns:
        pattern = re.sub(r"(\.\*)+$", ".*", pattern) if stem else "*" if node.children else ""
        fits = matcher([pattern])
        found = {module for module in modules if fits(module)}
        if found == own or (found and not node.children and found <= {*asked}):
            return pattern
    return None


def _matched(parameters: Sequence[ParameterFacts], pattern: str) -> list[ParameterFacts]:
    fits = matcher([pattern])
    return [facts for facts in parameters if fits(facts.module)]


def _glob(pattern: str, depth: int, matched: Sequence[ParameterFacts]) -> Glob:
    return Glob(
        pattern=pattern,
        param=_common_param([facts.param for facts in matched]),
        depth=depth,
        modules=len({facts.module for facts in matched}),
        tensors=len(matched),
        elements=sum(facts.elements for facts in matched),
        bytes=sum(facts.bytes for facts in matched),
    )


def _common_param(params: Sequence[str]) -> str:
    """Return the one name in `params`, or a pattern that fits them all: "weight_*"."""
    first, last = min(params), max(params)
    if first == last:
        return first
    return glob.escape(os.path.commonprefix([first, last])) + "*"
