"""Look into a checkpoint: `prune-cli inspect` from Python. Only headers, unless zeros are counted.

See also: facts.py for what is found; zeros.py, the only file here that reads weights.
"""

from collections.abc import Iterable, Sequence

from prune_cli.checkpoint import Checkpoint, Loading, open_checkpoint
from prune_cli.checkpoint.names import natural_key
from prune_cli.checkpoint.tensors import Parameter, TensorInfo
from prune_cli.inspection.facts import DtypeTotal, Inspection, ParameterFacts, ZeroCount
from prune_cli.inspection.globs import propose_globs
from prune_cli.inspection.zeros import count_zeros
from prune_cli.plan.prunable import find_problems
from prune_cli.plan.selection import Rule, Selection, as_globs, select
from prune_cli.stores import Location
from prune_cli.write.progress import OnTensor


def inspect_checkpoint(
    path: str | Location,
    *,
    modules: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    params: str | Sequence[str] = ("*",),
    zeros: bool = False,
    dim: int | None = None,
    globs: bool = False,
    loading: Loading | None = None,
    on_tensor: OnTensor | None = None,
) -> Inspection:
    """Return what is in the checkpoint at `path`: `prune-cli inspect` from Python.

    Args:
        path: a checkpoint: a file, or a folder in the Hugging Face layout.
        modules: globs of dotted module names, as for pruning; a string is one glob.
        exclude: globs of modules to leave out.
        params: globs of parameter names within a module.
        zeros: count the channels that are all zero, which reads weights.
        dim: count along this dim only; along every dim by default.
        globs: propose patterns that group the modules.
        loading: how a pickle may be loaded.
        on_tensor: called as zeros are counted.

    Raises:
        InputError: the checkpoint cannot be read, or is refused.
        SelectionError: a pattern matches nothing.
        DimError: no tensor has that dim.

    Example:
        >>> inspect_checkpoint("model.safetensors").parameters[0].prunable_dims
        (0, 1)
    """
    return inspect(
        open_checkpoint(path, loading),
        modules=modules,
        exclude=exclude,
        params=params,
        zeros=zeros,
        dim=dim,
        globs=globs,
        on_tensor=on_tensor,
    )


def inspect(
    checkpoint: Checkpoint,
    *,
    modules: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    params: str | Sequence[str] = ("*",),
    zeros: bool = False,
    dim: int | None = None,
    globs: bool = False,
    on_tensor: OnTensor | None = None,
) -> Inspection:
    """Return the Inspection of an open `checkpoint`; arguments and errors as inspect_checkpoint."""
    rule = Rule(as_globs(modules), as_globs(params), amount=0, dim=0)
    selection = Selection((rule,), as_globs(exclude))
    picked = select(checkpoint.parameters, selection, aliases=checkpoint.names_of)
    parameters = [pick.parameter for pick in picked]
    if checkpoint.format == "safetensors":
        parameters.sort(key=lambda parameter: natural_key(parameter.name))
    counts = count_zeros(checkpoint, parameters, dim, on_tensor) if zeros else {}
    facts = tuple(_facts(checkpoint, each, counts.get(each.name)) for each in parameters)
    return Inspection(
        path=checkpoint.path.name or checkpoint.path.resolve().name,
        format=checkpoint.format,
        files=len(checkpoint.shards),
        bytes=checkpoint.nbytes,
        dtypes=_sum_up(parameters),
        parameters=facts,
        globs=propose_globs(facts, among=_prunable_modules(checkpoint)) if globs else None,
        dropped=checkpoint.dropped,
        notes=checkpoint.notes,
    )


def _facts(
    checkpoint: Checkpoint, parameter: Parameter, zeros: tuple[ZeroCount, ...] | None
) -> ParameterFacts:
    info = parameter.tensor
    reason = next(find_problems(checkpoint, parameter), None)
    return ParameterFacts(
        name=parameter.name,
        module=parameter.module,
        param=parameter.param,
        aliases=checkpoint.names_of.get(info.name, ()),
        dtype=info.dtype,
        shape=info.shape,
        elements=info.elements,
        bytes=info.nbytes,
        file=checkpoint.shards[info.shard].name,
        mask=parameter.mask.name if parameter.mask else None,
        prunable_dims=() if reason else tuple(range(len(info.shape))),
        reason=reason,
        zeros=zeros,
    )


def _sum_up(parameters: Iterable[Parameter]) -> tuple[DtypeTotal, ...]:
    groups: dict[str, list[TensorInfo]] = {}
    for parameter in parameters:
        for info in filter(None, (parameter.tensor, parameter.mask)):
            groups.setdefault(info.dtype, []).append(info)
    totals = [
        DtypeTotal(
            dtype,
            len(infos),
            sum(info.elements for info in infos),
            sum(info.nbytes for info in infos),
        )
        for dtype, infos in groups.items()
    ]
    return tuple(sorted(totals, key=lambda total: (-total.bytes, total.dtype)))


def _prunable_modules(checkpoint: Checkpoint) -> list[str]:
    return [
        parameter.module
        for parameter in checkpoint.parameters
        if not any(find_problems(checkpoint, parameter))
    ]
