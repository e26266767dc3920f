"""Whether a tensor can be pruned, as far as its header and its neighbours' names tell.

Without torch, so that `inspect` is instant. The plan refuses by the same words.

See also: checkpoint/encodings.py, which tells what is with a packed weight or a weight norm.
"""

from collections.abc import Iterator

from prune_cli.checkpoint import Checkpoint
from prune_cli.checkpoint.encodings import Encoding, Role
from prune_cli.checkpoint.tensors import DTYPES, Parameter

_PASSED_OVER = (Role.SCALE, Role.OFFSET, Role.PART)


def find_problems(
    checkpoint: Checkpoint, parameter: Parameter, *, is_bias: bool = False
) -> Iterator[str]:
    """Yield why `parameter` cannot be pruned, whatever the amount and the dim; nothing if it can.

    `is_bias`: it has one element for each channel of a weight, and goes with that.
    """
    info, name = parameter.tensor, parameter.name
    if len(info.shape) < 2 and not is_bias:
        yield f"{name} is {len(info.shape)}-D, so it has no channels to prune; exclude it (-x)"
    if not DTYPES[info.dtype].holds_zero:
        yield f"{name} is {info.dtype}, which cannot hold zero; exclude it (-x)"
    if DTYPES[info.dtype].bits < 8:
        yield f"{name} is {info.dtype}, packed below a byte; exclude it (-x)"
    if info.name in checkpoint.overlaps:
        other = checkpoint.overlaps[info.name]
        yield f"{name} shares part of its memory with {other}; save the two apart (.clone())"
    encoding = checkpoint.encodings.get(name)
    if encoding and not encoding.holds_zero:
        yield f"{name} {why_not_zero(name, encoding)}; {_remedy(encoding)}"


def why_not_zero(name: str, encoding: Encoding) -> str:
    """Return why a zero in the tensor `name` is no zero weight, as a clause without its subject."""
    other = encoding.sign if encoding.sign != name else encoding.weight
    match encoding.role:
        case Role.DIRECTION:
            return (
                "is the direction of a weight norm, which is divided by its length: "
                "a channel of zeros becomes NaN"
            )
        case Role.CODES:
            return f"is {encoding.kind} ({other} is with it): 0 is not its zero"
        case Role.SCALE | Role.MAGNITUDE:
            return f"is a scale of {encoding.weight} in which 0 is not zero"
    return f"is {encoding.role.value}: 0 in it is no zero weight"


def why_passed_over(
    checkpoint: Checkpoint, parameter: Parameter, *, is_spelt_out: bool
) -> str | None:
    """Return why a pattern does not mean `parameter`; None if it does.

    Norms have no channels to prune, torch refuses them too; scales belong to what they scale, and
    the direction of a weight norm goes with its magnitude.

    Args:
        checkpoint: that it is in.
        parameter: what the pattern matches.
        is_spelt_out: whether its own name, without the module's, stands in the patterns.
    """
    encoding = checkpoint.encodings.get(parameter.name)
    if encoding and not is_spelt_out:
        if encoding.role in _PASSED_OVER:
            return encoding.role.value
        if encoding.role is Role.DIRECTION and encoding.instead:
            return f"the direction of a weight norm: prune {encoding.instead}"
    dims = len(parameter.tensor.shape)
    return f"{dims}-D: it has no channels to prune" if dims < 2 else None


def scale_of(checkpoint: Checkpoint, name: str) -> str | None:
    """Return the tensor whose scale `name` is; None if it is none."""
    encoding = checkpoint.encodings.get(name)
    return encoding.weight if encoding and encoding.role is Role.SCALE else None


def _remedy(encoding: Encoding) -> str:
    if encoding.instead is None:
        return "prune the checkpoint it was made from, or exclude it (-x)"
    param = encoding.instead.rpartition(".")[2]
    if encoding.role is Role.SCALE:  # the weights themselves can be zero
        return f"prune {encoding.instead}: --param '{param}'"
    return (
        f"prune {encoding.instead}, whose zero channels are zero channels of the weight: "
        f"--param '{param}' --dim {encoding.outputs}"
    )
