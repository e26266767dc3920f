"""Tensors that cannot be had from the bytes of a file: which they are, and what to do instead."""

from collections.abc import Mapping

from prune_cli.checkpoint.loading import Loading
from prune_cli.checkpoint.placing import is_packed, is_subbyte
from prune_cli.checkpoint.torch_names import DTYPE_NAMES, Array, NumpyDtype, Tensor
from prune_cli.errors import InputError


def problems_of(top: object, weights: Mapping[str, Tensor | Array]) -> dict[str, str]:
    """Return the tensors that cannot be had from bytes, or not under their name -> why."""
    problems = {name: why for name, value in weights.items() if (why := _problem(name, value))}
    return problems | _empty_shells(top, weights)


def refuse_unwritable(path: object, problems: Mapping[str, str], loading: Loading) -> None:
    """Raise InputError for tensors that cannot be had from bytes, unless they may be dropped."""
    if not problems or loading.drop_unwritable:
        return
    listed = [f"{name!r} {problem}" for name, problem in problems.items()]
    more = f"; and {len(listed) - 20} more" if len(listed) > 20 else ""
    raise InputError(
        f"{path} holds {len(listed)} tensor(s) that safetensors cannot: "
        + "; ".join(listed[:20])
        + more
        + ". Or leave them out: --drop-unwritable"
    )


def _problem(name: str, value: Tensor | Array) -> str | None:
    return _why_unnameable(name) or (
        _why_unwritable(value) if isinstance(value, Tensor) else _why_no_array(value)
    )


def _why_unnameable(name: str) -> str | None:
    if name == "__metadata__":
        return "has a name that safetensors reserves"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "has a name that is no text"
    return None


def _why_unwritable(tensor: Tensor) -> str | None:
    if tensor.problem:
        return tensor.problem
    assert tensor.dtype
    if tensor.dtype.name not in DTYPE_NAMES:
        return f"has the dtype torch.{tensor.dtype.name}"
    if is_subbyte(tensor) and not (tensor.shape and is_packed(tensor.shape, tensor.strides)):
        return (
            f"packs several torch.{tensor.dtype.name} into a byte, and does not lie in the file "
            "as it is"
        )
    return None


def _why_no_array(array: Array) -> str | None:
    order = array.dtype.order if isinstance(array.dtype, NumpyDtype) else "?"
    if order in (">", "!"):
        return "is a big-endian NumPy array; save it in the byte order of this machine"
    return None


def _empty_shells(top: object, weights: Mapping[str, Tensor | Array]) -> dict[str, str]:
    """Return the empty weights that DeepSpeed leaves in place of those it keeps elsewhere."""
    empty = [name for name, value in weights.items() if value.shape == (0,)]
    by_deepspeed = isinstance(top, dict) and "ds_version" in top
    if not empty or not (by_deepspeed or len(empty) == len(weights)):
        return {}
    why = (
        "is empty: DeepSpeed ZeRO-3 keeps the weights in other files; run zero_to_fp32.py, which "
        "lies beside them, and prune what it writes"
    )
    return dict.fromkeys(empty, why)
