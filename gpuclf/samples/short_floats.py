"""Floats of two bytes, as embeddings are kept: float16, and bfloat16 of PyTorch and ml_dtypes."""

from __future__ import annotations

import numpy as np

from gpuclf.arrays import Array, array_namespace

__all__ = ["is_short_float", "widened"]

BEYOND = 65536.0  # of float16, whose largest number is 65504


def is_short_float(dtype: object) -> bool:
    """Tell whether numbers of this dtype, of any library, are floats of two bytes."""
    name = getattr(dtype, "__name__", None) or str(dtype)  # numpy.float16 is a class
    return name.rpartition(".")[2] in ("float16", "bfloat16")


def widened(X: Array, dtype: object) -> Array:
    """Return short floats as floats of `dtype`; no number is rounded."""
    xp = array_namespace(X)
    if xp is not np or X.dtype != np.float16:
        return xp.astype(X, dtype)
    # NumPy widens one number at a time, this as many as a vector has: five times as fast. Sign and
    # digits go to their place in a float32, whose exponent then is 112 too small.
    bits = X.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.uint32(0x8FFFE000).astype(np.int32)
    floats = bits.view(np.float32)
    floats *= np.float32(2.0**112)
    if floats.size and max(floats.max(), -floats.min()) >= BEYOND:  # infinity and NaN
        return X.astype(dtype)
    return floats if dtype == np.float32 else floats.astype(dtype)
