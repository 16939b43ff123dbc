"""Bytes multiplied as they are, on processors with a matrix unit for them; needs numba.

The shared bodies make floats of the bytes, four times as many bytes, and multiply those. Here W and
the gradients become digits of seven bits instead (`loops.py` says how), and no digit that
float32 has is lost.

Declines where there is no such unit (AMX: Intel's server processors since 2023), for little work,
mini-batches against a large W, float64, several models, and numbers that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuclf.devices.cpu import cache_bytes, cpu_workers
from gpuclf.kernels.building.machine_code import matrix_unit_is_usable
from gpuclf.samples.folding import BlockAsStored, FoldedSamples
from gpuclf.samples.walk import map_row_blocks, sum_over_row_blocks

__all__ = [
    "ByteBlock",
    "are_multiplied",
    "blocks_of_bytes",
    "bytes_affine",
    "bytes_affine_backward",
    "linear_pass_of_bytes",
]

MIN_MULTIPLICATIONS = 1_000_000  # below, the call takes longer than the work
MIN_ROWS = 512  # for W of any size
MAX_FEATURES = 2**31 // (128 * 127)  # of a byte less 128 and a digit: their sums fit 32 bits
MIN_STRETCH_ROWS = 512
MULTIPLICATIONS_FOR_A_THREAD = 50_000_000  # for fewer, waking it takes longer


def are_multiplied(X: Any, n_outputs: int, dtype: Any) -> bool:
    """Tell whether the products below take X."""
    return bool(
        X.dtype == np.uint8
        and dtype == np.float32
        and X.flags.c_contiguous
        and X.shape[1] < MAX_FEATURES
        and X.size * n_outputs >= MIN_MULTIPLICATIONS
        # Writing W in digits takes as long as multiplying it by some hundred rows, longer if it
        # does not stay in the cache.
        and (len(X) >= MIN_ROWS or 4 * X.shape[1] * n_outputs <= cache_bytes() // 2)
        and matrix_unit_is_usable()
    )


def _takes(samples: FoldedSamples, parameter: Any) -> bool:
    n_outputs = parameter.shape[-1]
    return (
        parameter.ndim == 2
        and parameter.dtype == np.float32
        and samples.folds
        and are_multiplied(samples.stored, n_outputs, parameter.dtype)
    )


def blocks_of_bytes(X: Any, n_outputs: int, dtype: Any) -> Any:
    """Compute :func:`gpuclf.samples.folding.block_type`."""
    return ByteBlock if are_multiplied(X, n_outputs, dtype) else NotImplemented


class ByteBlock(BlockAsStored):
    """A block whose bytes are multiplied as they are; where they cannot be, as floats."""

    def affine(self, W: Any, b: Any) -> Any:  # noqa: D102 - described by the base class
        found = bytes_affine(W, b, self)
        return super().affine(W, b) if found is NotImplemented else found

    def affine_backward(self, dY: Any) -> tuple[Any, Any]:  # noqa: D102 - as above
        found = bytes_affine_backward(dY, self)
        return super().affine_backward(dY) if found is NotImplemented else found


def bytes_affine(W: Any, b: Any, block: ByteBlock) -> Any:
    """Compute :meth:`ByteBlock.affine`, or decline."""
    if not _takes(block.samples, W) or b.ndim != 1 or not np.isfinite(b).all():
        return NotImplemented
    from gpuclf.kernels.byte_products import loops as byte_products

    X, W = block.samples.stored[block.rows], np.ascontiguousarray(W)
    Y = np.empty((len(X), W.shape[1]), W.dtype)

    def part(groups: slice) -> bool:
        first = groups.start * byte_products.GROUP
        stop = min(groups.stop * byte_products.GROUP, W.shape[1])
        is_finite, digits = byte_products.pack(W, first, stop)
        if is_finite:
            byte_products.affine_of_bytes(X, digits, b, Y, first)
        return bool(is_finite)

    return Y if all(_in_groups(part, X, W)) else NotImplemented


def bytes_affine_backward(dY: Any, block: ByteBlock) -> Any:
    """Compute :meth:`ByteBlock.affine_backward`, or decline."""
    if not _takes(block.samples, dY):
        return NotImplemented
    from gpuclf.kernels.byte_products import loops as byte_products

    X, n_columns = block.samples.stored[block.rows], dY.shape[1]
    n_panels, n_groups = -(-X.shape[1] // byte_products.PANEL), -(-n_columns // byte_products.GROUP)
    dW = byte_products.zeros_of_W(n_panels, n_groups)

    def part(groups: slice) -> bool:
        first = groups.start * byte_products.GROUP
        stop = min(groups.stop * byte_products.GROUP, n_columns)
        return bool(byte_products.gradient_of_bytes(X, dY, dW, first, stop))

    if not all(_in_groups(part, X, dY)):
        return NotImplemented
    db = dY.sum(axis=0, dtype=np.float64).astype(dY.dtype)
    return dW[: X.shape[1], :n_columns], db


def _in_groups(part: Callable[[slice], bool], X: Any, columns: Any) -> list[bool]:
    """Share the groups of columns among threads where each gets enough to multiply."""
    from gpuclf.kernels.byte_products.loops import GROUP

    n_columns = columns.shape[1]
    n_groups = -(-n_columns // GROUP)
    workers = max(1, min(cpu_workers(), X.size * n_columns // MULTIPLICATIONS_FOR_A_THREAD))
    return map_row_blocks(part, n_groups, -(-n_groups // workers), workers=workers)


def linear_pass_of_bytes(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, hinge: bool
) -> Any:
    """Compute :func:`gpuclf.models.linear.linear_pass` of bytes, softmax cross-entropy or hinge."""
    if not _takes(samples, W):
        return NotImplemented
    from gpuclf.kernels.byte_products import loops as byte_products
    from gpuclf.kernels.losses.loops import room_of_rows

    is_finite, digits = byte_products.pack(np.ascontiguousarray(W), 0, W.shape[1])
    if not (is_finite and np.isfinite(b).all()):
        return NotImplemented
    b, weights = np.ascontiguousarray(b), np.ascontiguousarray(weights)
    labels = np.ascontiguousarray(y, np.int64)

    def partial(rows: slice) -> tuple[Any, Any, Any]:
        dW, db = np.zeros(W.shape, W.dtype), np.zeros_like(b)
        room = room_of_rows(byte_products.BLOCK_ROWS, W.shape[1], W.dtype)
        loss = byte_products.linear_pass(
            samples.stored, digits, b, labels, weights, rows.start, rows.stop, dW, db, room, hinge
        )
        return np.float64(loss), dW, db

    stretch = max(-(-samples.n_samples // cpu_workers()), MIN_STRETCH_ROWS)
    loss, dW, db = sum_over_row_blocks(partial, samples.n_samples, stretch, parallel=True)
    return loss, dW, db
