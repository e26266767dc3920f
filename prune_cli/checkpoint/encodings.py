"""What tensors stand for that are no weights by themselves: packed weights, scales, weight norms.

A zero byte is no zero weight everywhere: 4-bit codes are stored with an offset, and the direction
of a weight norm is divided by its length. Names, dtypes and shapes tell which tensors these are, by
the rules of the libraries that write them; `_FAMILIES` has one line for each.

See also: plan/prunable.py, which refuses what cannot be pruned.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from prune_cli.checkpoint.tensors import Parameter, TensorInfo


class Role(Enum):
    """What a tensor is within an encoded weight; the value says why a pattern passes it over."""

    CODES = "packed weights"
    DIRECTION = "the direction of a weight norm"
    MAGNITUDE = "the magnitude of a weight norm"
    SCALE = "a scale, and no weight"
    OFFSET = "a zero point, and no weight"
    PART = "a part of packed weights, and no weight"


@dataclass(frozen=True, slots=True)
class Encoding:
    """What one tensor is within an encoded weight.

    Attributes:
        role: what it is.
        kind: what was done to the weights, and by whom.
        weight: the tensor that holds the weights, or stands for them.
        sign: another tensor of the same weight, by which it is known.
        holds_zero: whether a zero in it is a zero weight.
        instead: the parameter to prune in place of this one, if there is one.
        outputs: the dim, of `instead` if there is one, whose indices are the weight's outputs;
            None if none are.
    """

    role: Role
    kind: str
    weight: str
    sign: str
    holds_zero: bool = True
    instead: str | None = None
    outputs: int | None = None


_Fits = Callable[[TensorInfo, TensorInfo], bool]


def _always(_codes: TensorInfo, _sign: TensorInfo) -> bool:
    return True


def _is_integer(codes: TensorInfo, _sign: TensorInfo) -> bool:
    return codes.dtype[0] in "UI"


def _is_narrow(codes: TensorInfo, sign: TensorInfo) -> bool:
    """A weight of full width beside a `scale` is a module with two parameters."""
    return codes.dtype.startswith("F8") or _is_integer(codes, sign)


def _packs_bits(codes: TensorInfo, scale: TensorInfo) -> bool:
    """Bytes with one scale are packed with an offset, but for 4-bit floats."""
    return codes.dtype == "U8" and not _is_fp4(codes, scale)


def _is_fp4(codes: TensorInfo, scale: TensorInfo) -> bool:
    """Two 4-bit floats in a byte, as NVFP4 and MXFP4 have them: 0x00 is twice +0."""
    return codes.dtype == "U8" and scale.dtype in ("F8_E4M3", "F8_E8M0", "U8")


def _is_norm(direction: TensorInfo, magnitude: TensorInfo) -> bool:
    """A magnitude has one number for each channel of one dim, or a single one."""
    if len(direction.shape) < 2 or not magnitude.shape:
        return len(direction.shape) >= 2
    alike = len(magnitude.shape) == len(direction.shape)
    return alike and all(a in (1, b) for a, b in zip(magnitude.shape, direction.shape, strict=True))


@dataclass(frozen=True)
class _Family:
    """One way to store a weight in several tensors, whose names are endings of a common stem.

    Attributes:
        kind: what was done to the weights, as a participle.
        codes: ending of the tensor that holds the weights.
        signs: endings, any of which tells that it is stored so.
        scales: endings of the scales; where one can be pruned instead, the first.
        offsets: endings of zero points.
        parts: endings of what else belongs to it.
        holds_zero: whether a zero byte of the codes is a zero weight.
        is_exact: whether a zero channel of the scale is one of the weight.
        is_linear: whether a zero in the scale is zero weights.
        outputs: the dim of the scale that counts the outputs, if its size fits; None leaves it to
            the sizes alone.
        role: of the codes.
        fits: a condition on the codes and the sign.
    """

    kind: str
    codes: str
    signs: tuple[str, ...]
    scales: tuple[str, ...] = ()
    offsets: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    holds_zero: bool = False
    is_exact: bool = True
    is_linear: bool = True
    outputs: int | None = 0
    role: Role = Role.CODES
    fits: _Fits = _always


def _packed(
    kind: str, codes: str, *signs: str, scale: str = "", zero: str = "", **how: Any
) -> _Family:
    """Codes that are stored with an offset."""
    scales, offsets = tuple(filter(None, [scale])), tuple(filter(None, [zero]))
    how = {"is_exact": bool(scale), **how}
    return _Family(kind, codes, signs, scales, offsets, **how)


def _scaled(kind: str, codes: str, scale: str, fits: _Fits = _always) -> _Family:
    """Numbers with a scale, in which 0 is 0."""
    return _Family(kind, codes, (scale,), (scale,), holds_zero=True, fits=fits)


_BNB = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")

# The first that fits wins. Sources: the state dicts of AutoGPTQ, AutoAWQ, hqq, bitsandbytes,
# compressed-tensors, torchao, quanto, aqlm, vptq, exllama, mlx, and transformers' code for them.
_FAMILIES = (
    _packed("packed as GPTQ and AWQ do", "qweight", "qzeros", "scales", scale="scales", zero="qzeros", parts=("g_idx",), outputs=1),
    _packed("packed by ExLlamaV2", "q_weight", "q_scale", parts=("q_scale", "q_scale_max", "q_groups")),
    _packed("packed by ExLlamaV3", "trellis", "suh", "svh"),
    _scaled("4-bit floats", "_packed", "_scale", fits=_is_fp4),
    _packed("packed by compressed-tensors", "_packed", "_scale", "_shape", scale="_scale", zero="_zero_point", parts=("_shape", "_g_idx", "_global_scale")),
    _packed("packed by compressed-tensors", ".compressed", ".bitmask", parts=(".bitmask",)),
    _packed("quantised with a zero point", "", "_zero_point", scale="_scale", zero="_zero_point", parts=("_g_idx",)),
    _packed("quantised with a zero point", "", ".zero_point", scale=".scale", zero=".zero_point"),
    _packed("quantised with a zero point", "weight", "zero_point", "zeros", scale="scale", zero="zero_point", fits=_is_integer),
    _packed("packed by HQQ", "W_q", "scale", "zero", scale="scale", zero="zero", is_exact=False),
    _packed("packed as Marlin does", "B", "s", scale="s", is_exact=False, fits=_is_integer),
    _packed("packed by EETQ", "weight", "weight_scales", scale="weight_scales", is_exact=False),
    _packed("packed by bitsandbytes", "", *_BNB, parts=_BNB),
    _packed("quantised by torchao", "_qdata", "_zero_point", scale="_scale", zero="_zero_point", outputs=None),
    _packed("packed by torchao", "_qdata", "_scale_and_zero", parts=("_scale_and_zero",)),
    _packed("quantised by torchao", ":qdata", ":zero_point", scale=":scale", zero=":zero_point", outputs=None),
    _packed("packed by quanto", "._data", "._shift", scale="._scale", zero="._shift", is_exact=False, is_linear=False),
    _packed("packed by AQLM", "codes", "codebooks", scale="scales", parts=("codebooks",)),
    _packed("packed by VPTQ", "indices", "centroids.weight", "centroids"),
    _packed("packed by HIGGS", "weight", "tables", "tables2", scale="scales", is_exact=False),
    _packed("packed by MLX", "weight", "biases", scale="scales", zero="biases", is_exact=False, is_linear=False, fits=_is_integer),
    _packed("packed as BitNet does", "weight", "weight_scale", scale="weight_scale", is_exact=False, fits=_packs_bits),
    _Family("a weight norm", "_v", ("_g",), ("_g",), role=Role.DIRECTION, fits=_is_norm),
    _Family("a weight norm", ".original1", (".original0",), (".original0",), role=Role.DIRECTION, fits=_is_norm),
    _scaled("MXFP4", "_blocks", "_scales"),
    _scaled("torchao", "_qdata", "_scale"),
    _scaled("torchao", ":qdata", ":scale"),
    _scaled("quanto", "._data", "._scale"),
    _scaled("bitsandbytes", "weight", "SCB", fits=_is_integer),
    _scaled("a scale", "weight", "scale", fits=_is_narrow),
    _scaled("a scale", "", "_scale"),
    _scaled("a scale", "", "_scale_inv"),
    _scaled("a scale", "", "_scale_2"),
    _scaled("a scale", "", ".scale"),
)  # fmt: skip

_BY_END: dict[str, list[tuple[int, str]]] = {}
"""For the last two characters of a name: the numbers of families, and their signs that end so."""
for _number, _family in enumerate(_FAMILIES):
    for _sign in _family.signs:
        _BY_END.setdefault(_sign[-2:], []).append((_number, _sign))


def find_encodings(parameters: Mapping[str, Parameter]) -> dict[str, Encoding]:
    """Return what each of `parameters` is within an encoded weight; weights as such are not named.

    Args:
        parameters: of one checkpoint, by their names.

    Example:
        >>> info = TensorInfo("l.qweight", "I32", (4, 16))
        >>> scales = TensorInfo("l.scales", "F16", (2, 16))
        >>> found = find_encodings({i.name: Parameter(i.name, i) for i in (info, scales)})
        >>> found["l.qweight"].instead, found["l.qweight"].outputs
        ('l.scales', 1)
    """
    first: dict[str, tuple[int, str]] = {}
    for name in parameters:
        for number, sign in _BY_END.get(name[-2:], ()):
            codes = _codes_of(name, sign, _FAMILIES[number], parameters)
            if codes is not None:
                first[codes] = min(first.get(codes, (number, name)), (number, name))
    found: dict[str, Encoding] = {}
    for codes, (number, sign) in first.items():
        for name, encoding in _members(codes, sign, _FAMILIES[number], parameters):
            if name not in found or encoding.role in (Role.CODES, Role.DIRECTION):
                found[name] = encoding
    return found


def _codes_of(
    name: str, sign: str, family: _Family, parameters: Mapping[str, Parameter]
) -> str | None:
    """The tensor of weights that `name` tells of, if it is one of the `signs` of `family`."""
    if not name.endswith(sign):
        return None
    stem = name.removesuffix(sign)
    if stem and sign[0].isalpha() and not stem.endswith("."):
        return None
    codes = stem + family.codes
    if codes not in parameters or codes == name:
        return None
    return codes if family.fits(parameters[codes].tensor, parameters[name].tensor) else None


def _members(
    codes: str, sign: str, family: _Family, parameters: Mapping[str, Parameter]
) -> Iterator[tuple[str, Encoding]]:
    """Yield each tensor of one encoded weight, and what it is."""
    stem = codes.removesuffix(family.codes) if family.codes else codes
    scales = [stem + end for end in family.scales if stem + end in parameters]
    outputs = {
        name: _outputs(family, parameters[codes].tensor, parameters[name].tensor) for name in scales
    }
    best = next((name for name in scales if family.is_exact and outputs[name] is not None), None)
    common = Encoding(family.role, family.kind, codes, sign)
    if not family.holds_zero:
        yield (
            codes,
            replace(
                common, holds_zero=False, instead=best, outputs=outputs[best] if best else None
            ),
        )
    for name in scales:
        yield (
            name,
            replace(
                common,
                role=Role.MAGNITUDE if family.role is Role.DIRECTION else Role.SCALE,
                holds_zero=family.is_linear and _has_zero(parameters[name].tensor),
                instead=codes if family.holds_zero else None,
                outputs=outputs[name],
            ),
        )
    for ends, role in ((family.offsets, Role.OFFSET), (family.parts, Role.PART)):
        for name in (stem + end for end in ends):
            if name in parameters:
                yield name, replace(common, role=role, holds_zero=False, instead=best)


def _has_zero(scale: TensorInfo) -> bool:
    """Return whether there is a zero: exponents alone, E8M0 or in bytes, have none."""
    return scale.dtype not in ("U8", "F8_E8M0")


def _outputs(family: _Family, codes: TensorInfo, scale: TensorInfo) -> int | None:
    """The dim of `scale` that has an index for each output; None if there is none, or no zero."""
    sizes = scale.shape
    if len(sizes) < 2 or not _has_zero(scale):
        return None
    if family.role is Role.DIRECTION:  # the dim that is no 1
        return next((dim for dim, size in enumerate(sizes) if size > 1), 0)
    if family.outputs == 1:  # several inputs or outputs in a word
        return 1 if len(codes.shape) > 1 and sizes[1] % max(codes.shape[1], 1) == 0 else None
    fits = [dim for dim, size in enumerate(sizes) if codes.shape[:1] == (size,)]
    if family.outputs is None:
        return fits[0] if len(fits) == 1 else None
    return 0 if 0 in fits else None
