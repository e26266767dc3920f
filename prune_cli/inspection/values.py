"""The numbers that bits stand for, in every dtype of whole bytes; without torch.

See also: `prune_cli.channels`, which prunes bits and needs no numbers.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from prune_cli.channels import Bits

Numbers = npt.NDArray[Any]

_PLAIN = {
    "BOOL": "u1",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "C64": "<c8",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}
"""What NumPy itself calls a dtype of safetensors."""


class _Small(NamedTuple):
    """A float of a byte: the bits of its mantissa, its bias, and which codes are special."""

    mantissa: int
    bias: int
    has_infinity: bool = False
    is_unsigned_zero: bool = False  # FNUZ: the only NaN is where -0 would be


_SMALL = {
    "F8_E5M2": _Small(2, 15, has_infinity=True),
    "F8_E4M3": _Small(3, 7),
    "F8_E5M2FNUZ": _Small(2, 16, is_unsigned_zero=True),
    "F8_E4M3FNUZ": _Small(3, 8, is_unsigned_zero=True),
}


def to_numbers(bits: "Bits", dtype: str) -> Numbers:
    """Return the values of `bits`, exactly, as float64 or complex128.

    Whole numbers beyond 2**53 are rounded.

    Args:
        bits: of any shape, without gaps.
        dtype: as safetensors spells it, of whole bytes.

    Example:
        >>> to_numbers(np.array([0x3F80, 0xC000], np.uint16), "BF16")
        array([ 1., -2.])
    """
    if dtype == "F8_E8M0":
        return _powers()[bits]
    if dtype in _SMALL:
        return _values(_SMALL[dtype])[bits]
    if dtype == "BF16":
        values: Numbers = (bits.astype("<u4") << np.uint32(16)).view("<f4")
    else:
        values = bits.view(_PLAIN[dtype])
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        return values.astype(np.complex128 if dtype == "C64" else np.float64)


@cache
def _values(small: _Small) -> Numbers:
    """Return the value of each of the 256 codes."""
    codes = np.arange(256)
    steps = 1 << small.mantissa
    exponent, mantissa = (codes & 0x7F) // steps, codes % steps
    is_normal = exponent > 0
    power = np.exp2(np.where(is_normal, exponent, 1) - float(small.bias))
    values = power * (is_normal + mantissa / steps) * np.where(codes & 0x80, -1.0, 1.0)
    if small.is_unsigned_zero:
        values[0x80] = np.nan
    elif small.has_infinity:
        is_top = exponent == exponent.max()
        values[is_top] = np.where(mantissa[is_top], np.nan, np.inf * np.sign(values[is_top]))
    else:
        values[[0x7F, 0xFF]] = np.nan
    return values


@cache
def _powers() -> Numbers:
    """Return the value of each code of F8_E8M0: a power of two, or NaN."""
    values: Numbers = np.exp2(np.arange(256) - 127.0)
    values[255] = np.nan
    return values
