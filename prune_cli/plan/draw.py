"""Plan and PlanItem: which channels of which tensors go, decided before any weight flows.

A plan is frozen facts. It is made from headers; of the weights it reads only what tells that a
channel is already zero (`pruning.live_channels`).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal, cast

import torch

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.tensors import DTYPES, Parameter, TensorInfo, resolve_dim
from prune_cli.errors import (
    InputError,
    ParameterError,
    PruneError,
    RequestError,
    SelectionError,
    UsageError,
)
from prune_cli.module import draw_positions, live_channels, masked_elements, number_to_prune
from prune_cli.plan.prunable import find_problems, scaled_by
from prune_cli.plan.selection import Amount, Rule, Selected, Selection, select, split_name

METHOD = "random_structured"

_FEW_CHANNELS = 4096
_UNSIGNED: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""What memoryview calls an unsigned number of so many bytes."""

_MASK_BLOCK = 1 << 18  # elements that are looked at together


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, as the report records it.

    Attributes:
        amount: None where every rule of a recipe has its own.
        dim: as given, so -1 is the last of each tensor.
        seed: the user's, from which each tensor's own is derived.
        modules, exclude, params: glob patterns.
        bake: whether the zeros are permanent; else NAME_orig and NAME_mask are written.
        with_bias: whether the bias elements of pruned channels go too.
        rules: of a recipe; without one, the options above are the only rule.
    """

    amount: Amount | None
    dim: int = -1
    seed: int = 0
    modules: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    params: tuple[str, ...] = ("weight",)
    bake: bool = True
    with_bias: bool = False
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One tensor and its channels; the row of it in a report.

    Attributes:
        name: full dotted name without `_orig`; module, param: its two parts.
        aliases: further names of the same memory.
        dtype, shape: as in the checkpoint, dtype as safetensors spells it.
        dim: counted from the front.
        amount: as asked for, an int or a float.
        seed: of this tensor's own generator; None where the channels were not drawn.
        channels: how many there are along `dim`.
        already_pruned, pruned: ascending; `pruned` are those that go now.
        follows: the weight whose channels these are, for a bias.
    """

    name: str
    module: str
    param: str
    aliases: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    dim: int
    amount: Amount
    seed: int | None
    channels: int
    already_pruned: tuple[int, ...]
    pruned: tuple[int, ...]
    follows: str | None = None

    @property
    def elements(self) -> int:
        """The number of elements of the tensor."""
        return self.elements_per_channel * self.channels

    @property
    def elements_per_channel(self) -> int:
        """The number of elements that one channel has."""
        elements = 1
        for dim, size in enumerate(self.shape):
            elements *= size if dim != self.dim else 1
        return elements

    @property
    def elements_zero(self) -> int:
        """The number of elements in pruned channels, those pruned before included."""
        return (len(self.pruned) + len(self.already_pruned)) * self.elements_per_channel


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor that the patterns match and that is left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was decided; `items` and `skipped` are sorted by name."""

    method: str
    options: Options
    items: tuple[PlanItem, ...]
    skipped: tuple[Skipped, ...] = ()


def derive_seed(seed: int, name: str) -> int:
    """The seed of the generator of the tensor `name`, from 0 to 2**64 - 1.

    A contract: it depends on nothing else, so a tensor loses the same channels whatever else is
    in the checkpoint, on every device and in any order.

    Example:
        >>> derive_seed(0, "fc.weight")
        4845879779924941752
    """
    return int.from_bytes(sha256(f"{seed}:{name}".encode()).digest()[:8], "big")


def make_plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Decides what `options` prune in `checkpoint`.

    Raises:
        RequestError: they do not fit it; every problem is named at once.
    """
    rules = options.rules or (_only_rule(options),)
    if not checkpoint.parameters:
        raise SelectionError(f"{checkpoint.path} holds no tensors")
    selection = Selection(rules, options.exclude)
    selected = select(checkpoint.parameters, selection, aliases=checkpoint.names_of)
    prunable, skipped = _split_off_unprunable(checkpoint, selected)
    generator = torch.Generator("cpu")
    items = _gather(lambda pick: _plan_item(checkpoint, options.seed, generator, pick), prunable)
    if not items:
        raise SelectionError(_nothing_left(skipped))
    skipped += [Skipped(name, reason) for name, reason in _scales(checkpoint, items)]
    if options.with_bias:
        biases, without = _bias_items(checkpoint, items)
        items, skipped = items + biases, skipped + without
    if options.bake:
        refuse_odd_masks(checkpoint)
    left = {skip.name: skip for skip in skipped} | dict.fromkeys(item.name for item in items)
    return Plan(
        METHOD,
        options,
        tuple(sorted(items, key=lambda item: item.name)),
        tuple(skip for _, skip in sorted(left.items()) if skip),
    )


def refuse_odd_masks(checkpoint: Checkpoint) -> None:
    """Reads every mask, so that one that cannot be baked stops the run before it writes.

    Raises:
        InputError: some hold values other than 0 and 1; all are named.
    """
    problems = [
        str(error)
        for parameter in checkpoint.parameters
        if parameter.mask and (error := _mask_error(checkpoint, parameter.mask))
    ]
    if problems:
        raise InputError("\n".join(problems))


def _mask_error(checkpoint: Checkpoint, info: TensorInfo) -> InputError | None:
    mask = checkpoint.tensor(info)
    mask = mask.view(-1) if mask.is_contiguous() else mask
    rows = max(_MASK_BLOCK * len(mask) // max(mask.numel(), 1), 1)
    try:
        for block in mask.split(rows):
            masked_elements(block, info.name)
    except InputError as error:
        return error
    return None


def channels_to_prune(item: PlanItem) -> tuple[int, ...]:
    """The channels that the seed of `item` gives: what `item.pruned` must be, if it was drawn."""
    dead = torch.tensor(item.already_pruned, dtype=torch.int64)
    live = all_but(dead, item.channels)
    generator = torch.Generator("cpu").manual_seed(item.seed or 0)
    return _draw(live, item.amount, generator, item.name)


def biases_of(checkpoint: Checkpoint, item: PlanItem) -> list[Parameter]:
    """The biases with one element for each channel of `item`.

    Of its module, and of every other module that shares the weight. Headers do not tell a
    transposed convolution, whose bias belongs to dim 1, from another; where it is not square its
    bias has the wrong length, and is left alone.
    """
    biases = _vectors_beside(checkpoint, item) if item.dim == 0 else []
    return [bias for bias in biases if bias.tensor.shape == (item.channels,)]


def bias_name(weight: str) -> str | None:
    """What the bias beside `weight` is called: "fc.bias", "rnn.bias_ih_l0", "attn.in_proj_bias".

    None: the parameter is not called a weight, so nothing is known of its bias.
    """
    module, param = split_name(weight)
    return f"{module}.".lstrip(".") + param.replace("weight", "bias") if "weight" in param else None


def _vectors_beside(checkpoint: Checkpoint, item: PlanItem) -> list[Parameter]:
    names = filter(None, map(bias_name, (item.name, *item.aliases)))
    stored = dict.fromkeys(checkpoint.parameter_aliases.get(name, name) for name in names)
    return [checkpoint.parameter_of[name] for name in stored if name in checkpoint.parameter_of]


def count_emitting_biases(checkpoint: Checkpoint, plan: Plan) -> int:
    """In how many modules a channel that is pruned now has a bias that is not."""
    followed = {item.follows for item in plan.items}
    return len(
        {
            item.module
            for item in plan.items
            if item.pruned and item.follows is None and item.name not in followed
            if biases_of(checkpoint, item)
        }
    )


# --- what is not planned ---------------------------------------------------------------------


def _only_rule(options: Options) -> Rule:
    if options.amount is None:
        raise UsageError("no amount is given; say how much to prune: --amount 0.25")
    return Rule(options.modules, options.params, options.amount, options.dim)


def _split_off_unprunable(
    checkpoint: Checkpoint, selected: list[Selected]
) -> tuple[list[Selected], list[Skipped]]:
    """Norms have no channels to prune, torch refuses them too; scales belong to what they scale.

    Patterns with a wildcard pass them over, a name that was spelt out is a problem.
    """
    prunable: list[Selected] = []
    skipped: list[Skipped] = []
    for pick in selected:
        reason = None if pick.by_name else _why_passed_over(checkpoint, pick.parameter)
        if reason:
            skipped.append(Skipped(pick.parameter.name, reason))
        else:
            prunable.append(pick)
    return prunable, skipped


def _why_passed_over(checkpoint: Checkpoint, parameter: Parameter) -> str | None:
    if scaled_by(parameter.name) in checkpoint.parameter_of:
        return "a scale, and no weight"
    dims = len(parameter.tensor.shape)
    return f"{dims}-D: it has no channels to prune" if dims < 2 else None


def _refuse_problems(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise ParameterError("\n".join(found))


def _nothing_left(skipped: list[Skipped]) -> str:
    if not skipped:
        return "nothing is left to prune: what the patterns match is excluded again"
    names = "; ".join(f"{skip.name} ({skip.reason})" for skip in skipped[:5])
    return f"nothing that matches can be pruned: {names}{'; ...' if len(skipped) > 5 else ''}"


def _scales(checkpoint: Checkpoint, items: list[PlanItem]) -> Iterator[tuple[str, str]]:
    planned = {item.name for item in items}
    for name in checkpoint.tensors:
        weight = scaled_by(name)
        if weight in planned:
            yield name, f"a scale of {weight}: left alone, 0 stays 0"


# --- what is planned -------------------------------------------------------------------------


def _gather(plan: Callable[[Selected], PlanItem], picks: list[Selected]) -> list[PlanItem]:
    """`plan` of each, or one error that names all the problems."""
    items: list[PlanItem] = []
    errors: list[PruneError] = []
    for pick in picks:
        try:
            items.append(plan(pick))
        except RequestError as error:
            errors.append(error)
    if errors:
        kinds = {type(error) for error in errors}
        raise (kinds.pop() if len(kinds) == 1 else RequestError)("\n".join(map(str, errors)))
    return items


def _plan_item(
    checkpoint: Checkpoint, seed: int, generator: torch.Generator, pick: Selected
) -> PlanItem:
    parameter, rule = pick.parameter, pick.rule
    info = parameter.tensor
    _refuse_problems(find_problems(checkpoint, parameter))
    dim = resolve_dim(rule.dim, info.shape, parameter.name)
    channels = info.shape[dim]
    live = _live(checkpoint, parameter, dim)
    own_seed = derive_seed(seed, parameter.name)
    return PlanItem(
        name=parameter.name,
        module=parameter.module,
        param=parameter.param,
        aliases=checkpoint.names_of.get(info.name, ()),
        dtype=info.dtype,
        shape=info.shape,
        dim=dim,
        amount=rule.amount,
        seed=own_seed,
        channels=channels,
        already_pruned=() if len(live) == channels else _others(live, channels),
        pruned=_draw(live, rule.amount, generator.manual_seed(own_seed), parameter.name),
    )


def _live(checkpoint: Checkpoint, parameter: Parameter, dim: int) -> Sequence[int]:
    """The channels that hold anything but zeros, ascending."""
    if parameter.mask is None and _is_dense(checkpoint, parameter.tensor, dim):
        return range(parameter.tensor.shape[dim])
    tensor = checkpoint.tensor(parameter.mask or parameter.tensor)
    return cast(list[int], live_channels(tensor, dim).tolist())


def _others(live: Sequence[int], channels: int) -> tuple[int, ...]:
    return tuple(sorted({*range(channels)}.difference(live)))


def _is_dense(checkpoint: Checkpoint, info: TensorInfo, dim: int) -> bool:
    """Whether the first element of each channel shows that it is live; False may be wrong.

    A model can have a hundred thousand tensors, and what torch does before it looks at the first
    one takes longer than this.
    """
    channels, itemsize = info.shape[dim], DTYPES[info.dtype].bits // 8
    if info.offset is None or not info.is_plain or not info.elements:
        return False
    if channels > _FEW_CHANNELS or info.dtype == "C64":  # which has two signs
        return False
    step = math.prod(info.shape[dim + 1 :])
    stop = info.offset + channels * step * itemsize
    first = checkpoint.shards[info.shard].mapped[info.offset : stop].cast(_UNSIGNED[itemsize])
    all_but_sign = (1 << 8 * itemsize - 1) - 1  # -0.0 is zero
    return all(element & all_but_sign for element in first[::step].tolist())


def all_but(live: torch.Tensor, channels: int) -> tuple[int, ...]:
    """The channels from 0 to `channels` - 1 that are not in `live`, ascending."""
    if len(live) == channels:
        return ()
    dead = torch.ones(channels, dtype=torch.bool).index_fill_(0, live, False)
    return tuple(dead.nonzero().flatten().tolist())


def _draw(
    live: Sequence[int], amount: Amount, generator: torch.Generator, name: str
) -> tuple[int, ...]:
    k = number_to_prune(amount, len(live), name)
    return tuple(live[n] for n in draw_positions(len(live), k, generator=generator))


def _bias_items(
    checkpoint: Checkpoint, items: list[PlanItem]
) -> tuple[list[PlanItem], list[Skipped]]:
    """The rows of the biases that go with `items`, and the weights whose bias does not fit."""
    if not any(item.dim == 0 for item in items):
        raise RequestError("a bias has one element for each channel of dim 0: --with-bias needs it")
    biases = [(item, bias) for item in items for bias in biases_of(checkpoint, item)]
    _refuse_problems(
        f"{bias.name} shares its memory with another tensor; save the two apart (.clone())"
        for _, bias in biases
        if bias.tensor.name in checkpoint.overlaps
    )
    times = Counter(bias.name for _, bias in biases)
    rows = [_bias_item(checkpoint, item, bias) for item, bias in biases if times[bias.name] == 1]
    without = [
        Skipped(bias.name, f"a bias that has not one element for each channel of {item.name}")
        for item in items
        if item.dim == 0
        for bias in _vectors_beside(checkpoint, item)
        if bias.tensor.shape != (item.channels,)
    ]
    shared = [Skipped(name, "a bias of several weights") for name in times if times[name] > 1]
    return rows, without + shared


def _bias_item(checkpoint: Checkpoint, item: PlanItem, bias: Parameter) -> PlanItem:
    return replace(
        item,
        name=bias.name,
        module=bias.module,
        param=bias.param,
        aliases=checkpoint.names_of.get(bias.tensor.name, ()),
        dtype=bias.tensor.dtype,
        shape=bias.tensor.shape,
        already_pruned=(),
        follows=item.name,
    )
