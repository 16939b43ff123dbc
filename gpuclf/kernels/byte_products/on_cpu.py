"""Bytes multiplied as they are, on processors with instructions for it; needs numba.

The shared bodies make floats of the bytes, four times as many bytes, and multiply those. Here W and
the gradients become digits instead: four of seven bits for a matrix unit (AMX: Intel's server
processors since 2023; `loops.py` says how, and no digit that float32 has is lost), and for the
linear pass three of eight bits, or four, for dot products (AVX-512 VNNI without AMX: Intel since
2019, AMD since 2022; `dot_loops.py`). The latter is checked for its results, by the same arithmetic
spelled out, and in the instructions that are emitted; it has not been timed by this project on such
a processor (benchmarks/cpu_limit.py times both ways there).

Declines where there are neither, for little work, mini-batches against a large W, float64, several
models, and numbers that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuclf.devices.cpu import cache_bytes, cpu_workers
from gpuclf.kernels.building.machine_code import byte_dots_are_usable, matrix_unit_is_usable
from gpuclf.samples.folding import BlockAsStored, FoldedSamples
from gpuclf.samples.walk import map_row_blocks, sum_over_row_blocks

__all__ = [
    "ByteBlock",
    "are_multiplied",
    "blocks_of_bytes",
    "bytes_affine",
    "bytes_affine_backward",
    "linear_pass_by_dots",
    "linear_pass_of_bytes",
]

MIN_MULTIPLICATIONS = 1_000_000  # below, the call takes longer than the work
MIN_ROWS = 512  # for W of any size
MAX_FEATURES = 2**31 // (128 * 127)  # of a byte less 128 and a digit: their sums fit 32 bits
MIN_STRETCH_ROWS = 512
MULTIPLICATIONS_FOR_A_THREAD = 50_000_000  # for fewer, waking it takes longer
# By dot products: of fewer bytes of samples, writing W in digits takes what the products save.
MIN_BYTES_BY_DOTS = 25_000_000
BLOCK_OF_L2 = 0.6  # has the rows of a block, 48 or 96
MAX_STRETCH_BLOCKS = 20  # longer sums in float32 lose digits


def are_multiplied(X: Any, n_outputs: int, dtype: Any) -> bool:
    """Tell whether all the products below take X."""
    return _are_worth_it(X, n_outputs, dtype) and matrix_unit_is_usable()


def _are_worth_it(X: Any, n_outputs: int, dtype: Any) -> bool:
    return bool(
        X.dtype == np.uint8
        and dtype == np.float32
        and X.flags.c_contiguous
        and X.shape[1] < MAX_FEATURES
        and X.size * n_outputs >= MIN_MULTIPLICATIONS
        # Writing W in digits takes as long as multiplying it by some hundred rows, longer if it
        # does not stay in the cache.
        and (len(X) >= MIN_ROWS or 4 * X.shape[1] * n_outputs <= cache_bytes() // 2)
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
        return linear_pass_by_dots(W, b, samples, y, weights, hinge)
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


def linear_pass_by_dots(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, hinge: bool
) -> Any:
    """Do as :func:`linear_pass_of_bytes` by dot products, of many samples and several classes."""
    if not (
        W.ndim == 2
        and W.shape[1] > 1
        and W.dtype == np.float32
        and samples.folds
        and _are_worth_it(samples.stored, W.shape[1], W.dtype)
        and samples.stored.size >= MIN_BYTES_BY_DOTS
        and byte_dots_are_usable()
    ):
        return NotImplemented
    from gpuclf.kernels.byte_products import dot_loops

    # The column that is taken from the others: its largest weight is the smallest.
    swapped = int(np.abs(W).max(axis=0).argmin())
    order = np.arange(W.shape[1])
    order[[swapped, -1]] = order[[-1, swapped]]
    b = np.zeros(len(order), W.dtype) if b is None else b
    with np.errstate(over="ignore", invalid="ignore"):
        columns, bias = (W[:, order[:-1]] - W[:, [swapped]]).T, b[order] - b[swapped]
    if not (np.isfinite(columns).all() and np.isfinite(bias).all()):
        return NotImplemented
    packed, n_digits = dot_loops.pack(np.ascontiguousarray(columns))
    labels, weights = np.ascontiguousarray(y, np.int64), np.ascontiguousarray(weights)
    of_cache = int(BLOCK_OF_L2 * cache_bytes()) // (samples.n_features * dot_loops.ROWS)
    block_rows = dot_loops.ROWS * min(max(of_cache, 1), 2)

    def partial(rows: slice) -> tuple[Any, Any, Any]:
        dW = dot_loops.zeros_of_dW(len(columns), samples.n_features)
        db = np.zeros(len(order))
        room = dot_loops.room_for(packed, len(order), block_rows)
        loss = dot_loops.linear_pass(
            *(samples.stored, packed, n_digits, bias, labels, weights, rows.start, rows.stop),
            *(dW, db, swapped, room, hinge),
        )
        if not np.isfinite(loss):  # digits cannot say NaN
            dW[:], db[:] = np.nan, np.nan
        return np.float64(loss), dW.astype(np.float64), db

    blocks = samples.n_samples // (2 * cpu_workers() * block_rows)
    stretch = min(max(blocks, -(-MIN_STRETCH_ROWS // block_rows)), MAX_STRETCH_BLOCKS) * block_rows
    loss, dW, db = sum_over_row_blocks(partial, samples.n_samples, stretch, parallel=True)
    differences, out = dot_loops.in_order(dW, samples.n_features), np.empty_like(W)
    out[:, order[:-1]], out[:, swapped] = differences.T, -differences.sum(axis=0)
    db = db.astype(W.dtype)
    db[[swapped, -1]] = db[[-1, swapped]]
    return loss, out, db
