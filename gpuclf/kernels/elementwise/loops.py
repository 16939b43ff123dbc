"""The loops of on_cpu.py; imported only where numba is installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.kernels.building.machine_code import compiled

__all__ = [
    "add_multiple",
    "add_multiples_of_columns",
    "fold_into",
    "momentum_step",
    "momentum_step_of_columns",
    "standardized_rows",
    "sums_of_squares_of_columns",
    "unfold_from",
]


@compiled
def standardized_rows(X: Any, shift: Any, factor: Any, rows: Any) -> None:
    """Write ``(X - shift) * factor`` to `rows`; bytes count from 128."""
    centre = np.int32(128 if X.itemsize == 1 else 0)
    for i in range(X.shape[0]):
        for d in range(X.shape[1]):
            rows[i, d] = (rows.dtype.type(X[i, d] - centre) - shift[d]) * factor[d]


@compiled
def fold_into(W: Any, shift: Any, inverse_scale: Any, moved: Any, scaled: Any) -> None:
    """Add ``shift @ W`` to `moved`, in float64, and write ``W * inverse_scale`` to `scaled`."""
    for d in range(W.shape[0]):
        for m in range(W.shape[1]):
            moved[m] += shift[d] * W[d, m]
            scaled[d, m] = W[d, m] * inverse_scale[d]


@compiled
def unfold_from(dW: Any, db: Any, shift: Any, inverse_scale: Any, unfolded: Any) -> None:
    """Write ``dW * inverse_scale - shift * db`` to `unfolded`."""
    for d in range(dW.shape[0]):
        moved = dW.dtype.type(shift[d])
        for m in range(dW.shape[1]):
            unfolded[d, m] = dW[d, m] * inverse_scale[d] - moved * db[m]


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


@compiled
def add_multiples_of_columns(total: Any, values: Any, factors: Any) -> None:
    """Add ``factors * values`` to `total`, a factor a column."""
    for d in range(total.shape[0]):
        for m in range(total.shape[1]):
            total[d, m] += factors[m] * values[d, m]


@compiled
def sums_of_squares_of_columns(values: Any, sums: Any) -> None:
    """Add the squares of `values` to `sums`, one a column."""
    for d in range(values.shape[0]):
        for m in range(values.shape[1]):
            wide = sums.dtype.type(values[d, m])
            sums[m] += wide * wide


@compiled
def momentum_step_of_columns(
    value: Any, gradient: Any, velocity: Any, learning_rates: Any, momenta: Any, nesterov: bool
) -> None:
    """Update `velocity`, then `value`, with a learning rate and a momentum a column."""
    for d in range(value.shape[0]):
        for m in range(value.shape[1]):
            step = learning_rates[m] * gradient[d, m]
            v = momenta[m] * velocity[d, m] - step
            velocity[d, m] = v
            value[d, m] += momenta[m] * v - step if nesterov else v
