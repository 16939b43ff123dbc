"""Floats of two bytes, as embeddings are kept: float16, and bfloat16 of PyTorch and ml_dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace

__all__ = ["extremes", "is_short_float", "widened"]

INFINITE = 0x7C00  # in the bits of a float16; those of NaN are beyond


def is_short_float(dtype: object) -> bool:
    """Tell whether numbers of this dtype, of any library, are floats of two bytes."""
    name = getattr(dtype, "__name__", None) or str(dtype)  # numpy.float16 is a class
    return name.rpartition(".")[2] in ("float16", "bfloat16")


def extremes(X: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest number of a NumPy array of floats.

    Of NaN and infinities one or both are not finite.
    """
    if X.dtype != np.float16:
        return float(X.min()), float(X.max())
    # NumPy compares them one at a time, whole numbers of the same bits as many as a vector has.
    # Above zero both rise together; below, the sign apart, they do not.
    signed, unsigned = X.view(np.int16), X.view(np.uint16)
    low, high = unsigned.max(), signed.max()
    low = low if low >> 15 else unsigned.min()
    high = high.view(np.uint16) if high >= 0 else unsigned.min()
    return float(low.view(np.float16)), float(high.view(np.float16))


def widened(X: Array, dtype: Any) -> Array:
    """Return short floats as floats of `dtype`; no number is rounded."""
    xp = array_namespace(X)
    if xp is not np or X.dtype != np.float16:
        return xp.astype(X, dtype)
    # NumPy widens one number at a time, this as many as a vector has: five times as fast. Sign and
    # digits go to their place in a float32, whose exponent then is 112 too small.
    halves = X.view(np.int16)
    if X.size and max(halves.max(), int(halves.view(np.uint16).max()) - 0x8000) >= INFINITE:
        return X.astype(dtype)
    bits = halves.astype(np.int32)
    bits <<= 13
    bits &= np.uint32(0x8FFFE000).astype(np.int32)
    floats = bits.view(np.float32)
    if dtype != np.float32:
        return np.multiply(floats, 2.0**112, dtype=dtype)
    floats *= np.float32(2.0**112)
    return floats
