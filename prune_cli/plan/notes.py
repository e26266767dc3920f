"""What a user should be told about a plan: nothing in it is wrong, but it may not be what was meant.

Each note names the tensors, the fact and what to do about it. The plan itself does not depend on
them; reports do not hold them.
"""

from collections.abc import Iterable, Iterator, Sequence

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.encodings import Role
from prune_cli.checkpoint.names import natural_key
from prune_cli.checkpoint.tensors import Parameter
from prune_cli.plan.biases import biases_of
from prune_cli.plan.facts import CHOSEN, REMOVED, REPLAYED, Options, Plan, PlanItem
from prune_cli.plan.prunable import find_problems
from prune_cli.plan.selection import Rule, matcher

_MOST_NAMES = 3
_HEADS = frozenset(
    ["lm_head", "classifier", "head", "score", "logits", "fc_out", "embed_out", "qa_outputs"]
)
"""What people call the last layer of a model."""


def find_notes(checkpoint: Checkpoint, plan: Plan, *, is_dry_run: bool = False) -> tuple[str, ...]:
    """Return what to tell about `plan` on `checkpoint`.

    Example:
        >>> find_notes(open_checkpoint("resnet18.safetensors"), plan)
        ('in 20 modules, pruned channels still output their bias; --with-bias prunes it too',)
    """
    notes: list[Iterator[str]] = []
    if plan.method in CHOSEN:
        notes = [
            _taken_as_live(checkpoint, is_dry_run),
            _unpruned(plan),
            _emptied(plan),
            _kernel_columns(plan),
            _last_layer(checkpoint, plan),
            _unmatched(checkpoint, plan),
        ]
    if plan.method in (*CHOSEN, REPLAYED):
        notes += [_still_output(checkpoint, plan), _baked_unasked(checkpoint, plan)]
    if plan.method == REMOVED:
        notes += [_masked(checkpoint, plan)]
    return tuple(note for found in notes for note in found)


def _taken_as_live(checkpoint: Checkpoint, is_dry_run: bool) -> Iterator[str]:
    if is_dry_run and checkpoint.liveness.is_taken:
        yield (
            f"the weights in {checkpoint.path} were not read: a channel along dim 0 that is zero "
            "already shows only when they are written, and is then left out of the draw"
        )


# --- how much --------------------------------------------------------------------------------


def _unpruned(plan: Plan) -> Iterator[str]:
    """Yield what the amount leaves nothing to prune, and why."""
    reasons: dict[str, list[PlanItem]] = {}
    for item in plan.items:
        if not item.pruned and item.follows is None:
            reasons.setdefault(_why_none(item), []).append(item)
    for reason, items in reasons.items():
        names = _list_names([item.name for item in items])
        yield f"0 channels pruned in {names}: {reason}{_other_dim(items[0])}"


def _emptied(plan: Plan) -> Iterator[str]:
    """Yield what a budget over several layers leaves no channel of."""
    if not plan.options.choice:
        return
    names = [item.name for item in plan.items if item.elements_zero == item.elements]
    if names:
        yield f"no channel is left in {_list_names(names)}; --at-least 1 keeps one"


def _why_none(item: PlanItem) -> str:
    live = item.channels - len(item.already_pruned)
    if not item.amount:
        return "the amount is 0"
    if not live:
        return f"no channel along dim {item.dim} is left to prune"
    return f"{item.amount} of {live} channels along dim {item.dim} rounds to 0"


def _other_dim(item: PlanItem) -> str:
    dim = max(range(len(item.shape)), key=lambda dim: (item.shape[dim], -dim))
    if not item.amount or item.shape[dim] <= item.channels:
        return ""
    return f"; dim {dim} of {item.name} has {item.shape[dim]:,}: --dim {dim}"


# --- which dim -------------------------------------------------------------------------------


def _kernel_columns(plan: Plan) -> Iterator[str]:
    """A dim of -1 is what the library defaults to, and no channel of a convolution."""
    if -1 not in {rule.dim for rule in _rules_of(plan.options)}:
        return
    names = [
        item.name for item in plan.items if len(item.shape) > 2 and item.dim == len(item.shape) - 1
    ]
    if names:
        yield (
            f"dim -1 of a convolution is the width of its kernel ({_list_names(names)}); "
            "--dim 0 is the outputs"
        )


def _last_layer(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    """Outputs that no other layer takes in are classes or tokens, and few want to lose them."""
    taken_in = {
        parameter.tensor.shape[1]
        for parameter in checkpoint.parameters
        if len(parameter.tensor.shape) > 1
    }
    outputs = [
        item for item in plan.items if item.dim == 0 and item.pruned and len(item.shape) == 2
    ]
    is_last = {item.name for item in outputs if item.channels not in taken_in}
    is_last &= {_last_matrix(checkpoint)} if is_last else set()
    names = [
        item.name
        for item in outputs
        if item.module.rpartition(".")[2] in _HEADS or item.name in is_last
    ]
    if names:
        modules = sorted({name.rpartition(".")[0] for name in names})
        excluded = " ".join(f"--exclude '{module}'" for module in modules[:_MOST_NAMES])
        what, them = ("looks like a last layer", "it")
        if len(names) > 1:
            what, them = ("look like last layers", "them")
        yield (
            f"{_list_names(names)} {what}, whose outputs are the classes or tokens; "
            f"{excluded} leaves {them} alone"
        )


def _last_matrix(checkpoint: Checkpoint) -> str | None:
    """The last parameter with two dims in the order of the model, as far as the file has it."""
    matrices = [each.name for each in checkpoint.parameters if len(each.tensor.shape) > 1]
    if len(matrices) < 2:
        return None
    if checkpoint.format == "safetensors":  # which sorts by type and name
        return max(matrices, key=natural_key)
    return matrices[-1]


# --- what else is there ----------------------------------------------------------------------


def _unmatched(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    """Weights of modules that were asked for under names that were not."""
    names = [each.name for each in _left_over(checkpoint, plan) if _is_weight(checkpoint, each)]
    if names:
        rules = _rules_of(plan.options)
        asked = ", ".join(dict.fromkeys(param for rule in rules for param in rule.params))
        verb = "is" if len(names) == 1 else "are"
        matrices = "1 matrix" if len(names) == 1 else f"{len(names):,} matrices"
        yield (
            f"{matrices} {verb} not called {asked} and stay as they are: {_list_names(names)}; "
            "choose them with --param"
        )


def _left_over(checkpoint: Checkpoint, plan: Plan) -> Iterator[Parameter]:
    """The parameters of modules that a rule matches which no rule matches by their own name."""
    matched = {item.name for item in plan.items} | {skip.name for skip in plan.skipped}
    rules = _rules_of(plan.options)
    fits_module = matcher([pattern for rule in rules for pattern in rule.modules])
    fits_param = matcher([pattern for rule in rules for pattern in rule.params])
    is_excluded = matcher(plan.options.exclude)
    for parameter in checkpoint.parameters:
        if parameter.name in matched or fits_param(parameter.param):
            continue
        if fits_module(parameter.module) and not is_excluded(parameter.module):
            yield parameter


def _is_weight(checkpoint: Checkpoint, parameter: Parameter) -> bool:
    """Whether it looks like what people prune: numbers in at least two dims, and no table."""
    info = parameter.tensor
    encoding = checkpoint.encodings.get(parameter.name)
    return (
        len(info.shape) > 1
        and info.shape[0] > 1
        and info.dtype.startswith(("F", "BF"))
        and (encoding is None or encoding.role in (Role.CODES, Role.MAGNITUDE))
        and not any(find_problems(checkpoint, parameter))
    )


def _baked_unasked(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    planned = {item.name for item in plan.items}
    names = [
        parameter.name
        for parameter in checkpoint.parameters
        if parameter.mask and parameter.name not in planned
    ]
    if names and plan.options.bake:
        masks = "the mask" if len(names) == 1 else "the masks"
        yield (
            f"{masks} of {_list_names(names)}, which no pattern selects, become permanent too; "
            "--keep-masks keeps them"
        )


def _still_output(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    followed = {item.follows for item in plan.items}
    has_vectors = any(len(each.tensor.shape) == 1 for each in checkpoint.parameters)
    modules = {
        item.module
        for item in plan.items
        if item.pruned and item.follows is None and item.name not in followed
        if has_vectors and biases_of(checkpoint, item)
    }
    if modules:
        count = "1 module" if len(modules) == 1 else f"{len(modules):,} modules"
        remedy = "--with-bias" if plan.method in CHOSEN else "a report of --with-bias"
        yield f"in {count}, pruned channels still output their bias; {remedy} prunes it too"


def _masked(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    """Yield how many elements the masks take: they need not take whole channels."""
    from prune_cli.plan.masks import count_masked  # the only note that needs NumPy

    parameters = [checkpoint.parameter_of[item.name] for item in plan.items]
    elements = sum(parameter.tensor.elements for parameter in parameters)
    masked = sum(count_masked(checkpoint, parameter) for parameter in parameters)
    if elements:
        yield f"the masks zero {masked:,} of {elements:,} elements ({masked / elements:.1%})"


def _rules_of(options: Options) -> Sequence[Rule]:
    if options.rules:
        return options.rules
    return (Rule(options.modules, options.params, options.amount or 0, options.dim),)


def _list_names(names: Iterable[str]) -> str:
    names = sorted(names, key=natural_key)
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
