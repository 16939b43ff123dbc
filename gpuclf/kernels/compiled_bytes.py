"""Bytes multiplied as they are, on processors with a matrix unit for them; needs numba.

The shared bodies make floats of the bytes, four times as many bytes, and multiply those. Here W and
the gradients become digits of seven bits instead (`byte_products.py` says how), and no digit that
float32 has is lost.

Declines where there is no such unit (AMX: Intel's server processors since 2023), for little work,
float64, several models, and numbers that are not finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.backend import cpu_workers
from gpuclf.features import block_affine, block_affine_backward, multiplies_bytes
from gpuclf.kernels.compilation import matrix_unit_is_usable
from gpuclf.row_blocks import sum_over_row_blocks

if TYPE_CHECKING:
    from gpuclf.features import Features, RowBlock

__all__ = [
    "are_multiplied",
    "bytes_affine",
    "bytes_affine_backward",
    "linear_pass_of_bytes",
]

MIN_MULTIPLICATIONS = 1_000_000  # below, the call takes longer than the work
MAX_FEATURES = 1 << 16  # sums of so many products of a byte and a digit fit 32 bits
MIN_STRETCH_ROWS = 512


@multiplies_bytes.register("numpy")
def are_multiplied(X: Any, n_outputs: int, dtype: Any) -> bool:
    """Tell whether the products below take X."""
    return bool(
        X.dtype == np.uint8
        and dtype == np.float32
        and X.flags.c_contiguous
        and X.shape[1] < MAX_FEATURES
        and X.size * n_outputs >= MIN_MULTIPLICATIONS
        and matrix_unit_is_usable()
    )


def _takes(features: Features, parameter: Any) -> bool:
    n_outputs = parameter.shape[-1]
    return (
        parameter.ndim == 2
        and parameter.dtype == np.float32
        and features.folds
        and features.centre is None
        and are_multiplied(features.stored, n_outputs, parameter.dtype)
    )


@block_affine.register("numpy")
def bytes_affine(W: Any, b: Any, block: RowBlock) -> Any:
    """Compute :func:`gpuclf.features.block_affine` of bytes."""
    if not _takes(block.features, W) or b.ndim != 1:
        return NotImplemented
    from gpuclf.kernels import byte_products

    is_finite, digits = byte_products.pack(np.ascontiguousarray(W))
    if not (is_finite and np.isfinite(b).all()):
        return NotImplemented
    X = block.features.stored[block.rows]
    Y = np.empty((len(X), W.shape[1]), W.dtype)
    byte_products.affine_of_bytes(X, digits, b, Y)
    return Y


@block_affine_backward.register("numpy")
def bytes_affine_backward(dY: Any, block: RowBlock) -> Any:
    """Compute :func:`gpuclf.features.block_affine_backward` of bytes."""
    if not _takes(block.features, dY):
        return NotImplemented
    from gpuclf.kernels import byte_products

    is_finite, dW = byte_products.gradient_of_bytes(block.features.stored[block.rows], dY)
    return (dW, dY.sum(axis=0)) if is_finite else NotImplemented


def linear_pass_of_bytes(
    W: Any, b: Any, features: Features, y: Any, weights: Any, hinge: bool
) -> Any:
    """Compute :func:`gpuclf.linear.linear_pass` of bytes, softmax cross-entropy or hinge."""
    if not _takes(features, W):
        return NotImplemented
    from gpuclf.kernels import byte_products

    is_finite, digits = byte_products.pack(np.ascontiguousarray(W))
    if not (is_finite and np.isfinite(b).all()):
        return NotImplemented
    b, weights = np.ascontiguousarray(b), np.ascontiguousarray(weights)
    labels = np.ascontiguousarray(y, np.int64)

    def partial(rows: slice) -> tuple[Any, Any, Any]:
        dW, db = np.zeros(W.shape, W.dtype), np.zeros_like(b)
        loss = byte_products.linear_pass(
            features.stored, digits, b, labels, weights, rows.start, rows.stop, dW, db, hinge
        )
        return np.float64(loss), dW, db

    stretch = max(-(-features.n_samples // cpu_workers()), MIN_STRETCH_ROWS)
    loss, dW, db = sum_over_row_blocks(partial, features.n_samples, stretch, parallel=True)
    return loss, dW, db
