"""The loops of compiled_elementwise.py; imported only where numba is installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.kernels.compilation import compiled

__all__ = ["add_multiple", "momentum_step", "standardized_rows"]


@compiled
def standardized_rows(X: Any, shift: Any, factor: Any, rows: Any) -> None:
    """Write ``(X - shift) * factor`` to `rows`; bytes count from 128."""
    centre = np.int32(128 if X.itemsize == 1 else 0)
    for i in range(X.shape[0]):
        for d in range(X.shape[1]):
            rows[i, d] = (rows.dtype.type(X[i, d] - centre) - shift[d]) * factor[d]


@compiled
def add_multiple(total: Any, values: Any, factor: Any) -> None:
    """Add ``factor * values`` to `total`."""
    for i in range(len(total)):
        total[i] += factor * values[i]


@compiled
def momentum_step(
    value: Any, gradient: Any, velocity: Any, learning_rate: Any, momentum: Any, nesterov: bool
) -> None:
    """Update `velocity`, then `value`."""
    for i in range(len(value)):
        step = learning_rate * gradient[i]
        v = momentum * velocity[i] - step
        velocity[i] = v
        value[i] += momentum * v - step if nesterov else v
