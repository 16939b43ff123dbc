"""Passes over memory that NumPy makes one operation at a time, in one go; needs numba.

A mini-batch step moves more memory than it multiplies: standardising a batch of bytes is four
passes over floats, and updating a parameter with momentum six.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gpuclf.kernels.building.machine_code import numba_is_usable
from gpuclf.samples.short_floats import is_short_float

__all__ = [
    "compiled_add_penalty_gradient",
    "compiled_fold_into",
    "compiled_momentum_step",
    "compiled_penalties_of_models",
    "compiled_standardized_rows",
    "compiled_unfold_from",
]

MIN_ITEMS = 16_384  # below, NumPy is done before numba is imported for the first time


def _are_worth_it(*arrays: Any) -> bool:
    return (
        arrays[0].size >= MIN_ITEMS
        and numba_is_usable()
        and all(array.flags.c_contiguous for array in arrays)
    )


@cache
def _loops() -> Any:
    from gpuclf.kernels.elementwise import loops

    return loops


def compiled_standardized_rows(X: Any, shift: Any, factor: Any) -> Any:
    """Compute :func:`gpuclf.samples.standardized.standardized_rows` in one pass."""
    if is_short_float(X.dtype) or not _are_worth_it(X, shift, factor):
        return NotImplemented
    rows = np.empty(X.shape, factor.dtype)
    _loops().standardized_rows(X, shift, factor, rows)
    return rows


def compiled_fold_into(W: Any, shift: Any, inverse_scale: Any) -> Any:
    """Compute :func:`gpuclf.samples.folding.fold_into` in one pass."""
    if W.ndim != 2 or inverse_scale is None or not _are_worth_it(W, shift, inverse_scale):
        return NotImplemented
    moved, scaled = np.zeros(W.shape[1]), np.empty_like(W)
    _loops().fold_into(W, shift, inverse_scale[:, 0], moved, scaled)
    return moved.astype(W.dtype), scaled


def compiled_unfold_from(dW: Any, db: Any, shift: Any, inverse_scale: Any) -> Any:
    """Compute :func:`gpuclf.samples.folding.unfold_from` in one pass; dW may have longer rows."""
    if dW.ndim != 2 or inverse_scale is None or dW.size < MIN_ITEMS or not numba_is_usable():
        return NotImplemented
    unfolded = np.empty(dW.shape, dW.dtype)
    _loops().unfold_from(dW, db, shift, inverse_scale[:, 0], unfolded)
    return unfolded


def compiled_add_penalty_gradient(dW: Any, W: Any, reg: Any) -> Any:
    """Compute :func:`gpuclf.models.linear.add_penalty_gradient` in one pass."""
    if dW.dtype != W.dtype or dW.shape != W.shape:
        return NotImplemented
    of_columns = getattr(reg, "ndim", 0) > 0
    if of_columns:
        columns = _columns_of_models(dW, W)
    if not (columns if of_columns else _are_worth_it(dW, W)):
        return NotImplemented
    if of_columns:
        factors = _for_columns(2 * np.asarray(reg), columns[0])
        _loops().add_multiples_of_columns(*columns, factors)
    else:
        _loops().add_multiple(dW.reshape(-1), W.reshape(-1), W.dtype.type(2 * reg))
    return dW


def compiled_penalties_of_models(W: Any) -> Any:
    """Compute :func:`gpuclf.models.linear.penalties_of_models` in one pass."""
    columns = _columns_of_models(W)
    if not columns:
        return NotImplemented
    sums = np.zeros(columns[0].shape[1])
    _loops().sums_of_squares_of_columns(columns[0], sums)
    return sums.reshape(len(W), -1).sum(axis=1)


def compiled_momentum_step(
    value: Any, gradient: Any, velocity: Any, learning_rate: Any, momentum: Any, nesterov: bool
) -> Any:
    """Compute :func:`gpuclf.training.momentum_step` in one pass."""
    arrays = value, gradient, velocity
    if not value.dtype == gradient.dtype == velocity.dtype:
        return NotImplemented
    of_columns = getattr(learning_rate, "ndim", 0) > 0
    if of_columns:
        columns = _columns_of_models(*arrays)
    if not (columns if of_columns else _are_worth_it(*arrays)):
        return NotImplemented
    if of_columns:
        factors = (_for_columns(factor, columns[0]) for factor in (learning_rate, momentum))
        _loops().momentum_step_of_columns(*columns, *factors, nesterov)
    else:
        scalar = value.dtype.type
        flat = (array.reshape(-1) for array in arrays)
        _loops().momentum_step(*flat, scalar(learning_rate), scalar(momentum), nesterov)
    return None


def _columns_of_models(*stacks: Any) -> list[Any]:
    """Return views (D, K C) of stacks (K, D, C) that lie side by side; none if one does not."""
    if any(stack.ndim != 3 or stack.shape != stacks[0].shape for stack in stacks):
        return []
    moved = [stack.transpose(1, 0, 2) for stack in stacks]
    if not _are_worth_it(*moved):
        return []
    return [stack.reshape(len(stack), -1) for stack in moved]


def _for_columns(factors: Any, columns: Any) -> Any:
    """Repeat a factor a model, or one for all, for each of the model's columns."""
    factors = np.asarray(factors, columns.dtype).reshape(-1)
    return np.repeat(factors, columns.shape[1] // len(factors))
