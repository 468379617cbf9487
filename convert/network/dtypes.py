"""The element types of checkpoints, and their names in each container.

NumPy has no bfloat16: the bits are handled as `uint16`, and a `.npy` header written by JAX or
TensorFlow calls it a two-byte void.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DType:
    """An element type."""

    name: str
    """Name in the `config.json` of transformers, and in this project."""
    safetensors: str
    """Name in the header of a safetensors file."""
    npy: str
    """The little-endian `descr` of a `.npy` header."""
    bits: np.dtype[np.generic]
    """Little-endian NumPy type of the same size that holds the bits."""
    roundoff: float
    """Largest relative error of rounding to the nearest number: half the distance from 1 to the next one."""

    @property
    def itemsize(self) -> int:
        return self.bits.itemsize

    def all_finite(self, bits: NDArray[np.generic]) -> bool:
        """Return whether no element is NaN or infinite. `bits` is contiguous, of dtype `self.bits`."""
        if self is BFLOAT16:
            exponent = 0x7F80
            return not bool(np.any((bits.view(np.uint16) & exponent) == exponent))
        # A finite sum proves it at the speed of memory; the sum of finite elements may overflow, though.
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduce(bits, axis=None)
        return bool(np.isfinite(total)) or bool(np.isfinite(bits).all())

    @np.errstate(invalid="ignore")  # of a NaN that signals
    def to_float64(self, bits: NDArray[np.generic]) -> NDArray[np.float64]:
        """Return the exact values: float64 represents every element of these types."""
        if self is BFLOAT16:
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        return bits.astype(np.float64)

    @np.errstate(over="ignore", invalid="ignore")
    def from_float64(self, values: NDArray[np.float64]) -> NDArray[np.generic]:
        """Return the bits of the nearest numbers, ties to even; infinity beyond the largest."""
        return _bfloat16_bits(values) if self is BFLOAT16 else values.astype(self.bits)


FLOAT32 = DType("float32", "F32", "<f4", np.dtype("<f4"), 2.0**-24)
FLOAT16 = DType("float16", "F16", "<f2", np.dtype("<f2"), 2.0**-11)
BFLOAT16 = DType("bfloat16", "BF16", "<V2", np.dtype("<u2"), 2.0**-8)
FLOAT64 = DType("float64", "F64", "<f8", np.dtype("<f8"), 2.0**-53)

DTYPES = (FLOAT32, FLOAT16, BFLOAT16, FLOAT64)
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in DTYPES}


def from_npy(descr: str) -> tuple[DType, bool] | None:
    """Return the type with this `descr` in a `.npy` header and whether it is big-endian; None for any other type."""
    dtype = next((dtype for dtype in DTYPES if descr[1:] == dtype.npy[1:]), None)
    return (dtype, descr[0] == ">") if dtype is not None and descr[0] in "<>|" else None


def _bfloat16_bits(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round to bfloat16, the upper half of a float32."""
    near = values.astype(np.float32)
    bits, exact = near.view(np.uint32), near.astype(np.float64)
    # Rounding to odd first (Boldo and Melquiond, 2008) makes rounding twice the same as rounding once.
    bits = (bits - (np.abs(exact) > np.abs(values))) | (exact != values)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
