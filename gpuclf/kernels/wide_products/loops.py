"""The loops of on_cpu.py; imported only where numba is installed.

Forward, columns are lanes, so that a tile needs no sums across lanes and W of any width stays in
tiles: (groups of columns, features, columns). A panel of features at a time, the rows are widened
once for all columns, W's columns of a group stay in L1, and sums begin at zero. Backward, these are
the tiles of :mod:`gpuclf.kernels.linear_pass.loops`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gpuclf.kernels.building.emission import I64, Code, emitted
from gpuclf.kernels.building.machine_code import compiled
from gpuclf.kernels.linear_pass import loops as linear_pass
from gpuclf.kernels.linear_pass.loops import (
    HAS_32_REGISTERS,
    VECTOR_BYTES,
    Samples,
    add_products,
    aligned,
    features_of,
)

__all__ = ["affine", "gradient", "pack"]

PANEL = 256  # features
BLOCK_ROWS = 96  # what is widened of them stays in L1 backward, in L2 forward
TILE_ROWS, TILE_VECTORS = 12 if HAS_32_REGISTERS else 6, 2
LINE = 64
Shape = tuple[tuple[int, ...], ...]  # rows and vectors of a tile, and of a narrow one, as lengths
SHAPE: Shape = tuple((0,) * size for size in (TILE_ROWS, TILE_VECTORS, 1))


@emitted
def add_tile(
    code: Code, rows: Any, first: Any, n_features: Any, W: Any, of_W: Any, S: Any, of_S: Any,
    n_rows: int, n_vectors: int,
) -> None:  # fmt: skip
    """Add ``rows[first:, :n_features] @ W[of_W:]`` to ``S[of_S:]``, a tile's rows and columns."""
    item = 4 if isinstance(S.item, ir.FloatType) else 8
    vector = ir.VectorType(S.item, VECTOR_BYTES // item)
    zero = ir.Constant(vector, [0.0] * vector.count)
    sums = [
        [cgutils.alloca_once_value(code.builder, zero) for _ in range(n_vectors)]
        for _ in range(n_rows)
    ]
    starts = [rows.row(code.plus(first, r)) for r in range(n_rows)]
    W = W.below(of_W)
    with cgutils.for_range(code.builder, n_features) as loop:
        behind, w = code.times(loop.index, item), W.row(loop.index)

        def number_of(r: int) -> Any:
            number = code.load(code.at(starts[r], behind), vector.element, item)
            return code.everywhere(number, vector)

        def weights_of(v: int) -> Any:
            return code.load(code.at(w, v * VECTOR_BYTES), vector, VECTOR_BYTES)

        add_products(code, sums, number_of, weights_of)
    for r in range(n_rows):
        for v in range(n_vectors):
            place = code.at(S.row(code.plus(of_S, r)), v * VECTOR_BYTES)
            before = code.load(place, vector, VECTOR_BYTES)
            total = code.builder.fadd(before, code.builder.load(sums[r][v]))
            code.store(total, place, VECTOR_BYTES)


@emitted
def prefetch_panel(code: Code, X: Any, row: Any, feature: Any) -> None:
    """Call a row's numbers into the cache, from a feature on."""
    item = X.dtype.bitwidth // 8
    for line in range(0, PANEL * item, LINE):
        code.prefetch(code.at(X.row(row), code.times(feature, item), line))


@emitted
def widen(
    code: Code, X: Any, row: Any, feature: Any, n_features: Any, middle: Any, rows: Any, target: Any
) -> None:
    """Write ``X[row, feature : feature + n_features] - middle`` to ``rows[target]``."""
    item = 4 if isinstance(rows.item, ir.FloatType) else 8
    lanes = VECTOR_BYTES // item
    whole = code.times(code.builder.udiv(n_features, I64(lanes)), lanes)
    for count, start, stop in ((lanes, I64(0), whole), (1, whole, n_features)):
        vector = ir.VectorType(rows.item, count)
        x = Samples(code, X, vector)
        with cgutils.for_range_slice(code.builder, start, stop, I64(count), inc=True) as (place, _):
            source = code.builder.add(feature, place)
            subtracted = code.load(code.at(middle, code.times(source, item)), vector, item)
            number = code.builder.fsub(x.load(x.at(row, source)), subtracted)
            code.store(number, code.at(rows.row(target), code.times(place, item)), item)


@compiled
def affine_of_rows(
    X: Any, middle: Any, W: Any, b: Any, Y: Any, rows: Any, S: Any, shape: Any
) -> None:
    """Write ``(X - middle) @ W + b`` to Y (N, H), for W in groups; `rows` and S are workspace."""
    n_features, n_columns = X.shape[1], Y.shape[1]
    groups, width = len(W) // n_features, W.shape[1]
    tile_rows, zero = len(shape[0]), S.dtype.type(0)
    # Of the last group, half may be padding.
    narrow = groups - 1 if 2 * (groups * width - n_columns) >= width else groups
    for first in range(0, len(X), BLOCK_ROWS):
        n_rows = min(BLOCK_ROWS, len(X) - first)
        for r in range(len(S)):
            for c in range(width):
                S[r, c] = zero
        for feature in range(0, n_features, PANEL):
            n, behind = min(PANEL, n_features - feature), feature + PANEL
            ahead = 0 if behind < n_features else BLOCK_ROWS
            for r in range(n_rows):
                prefetch_panel(X, first + ahead + r, 0 if ahead else behind)
                widen(X, first + r, feature, n, middle, rows, r)
            for g in range(groups):
                w = g * n_features + feature
                for r in range(0, n_rows, tile_rows):
                    s = g * BLOCK_ROWS + r
                    if g == narrow:
                        add_tile(rows, r, n, W, w, S, s, shape[0], shape[2])
                    else:
                        add_tile(rows, r, n, W, w, S, s, shape[0], shape[1])
        for r in range(n_rows):
            for g in range(groups):
                c = g * width
                y, bias, sums = Y[first + r, c : c + width], b[c : c + width], S[g * BLOCK_ROWS + r]
                for i in range(len(y)):
                    y[i] = sums[i] + bias[i]


def pack(W: Any) -> Any:
    """Return W (D, H) as (groups of columns, D, columns), with zeros behind the last column."""
    n_features, n_columns = W.shape
    width = TILE_VECTORS * VECTOR_BYTES // W.itemsize
    groups = -(-n_columns // width)
    packed = aligned((groups, n_features, width), W.dtype)
    for g in range(groups):
        columns = W[:, g * width : (g + 1) * width]
        packed[g, :, : columns.shape[1]] = columns
    return packed


def affine(X: Any, centre: Any, packed: Any, b: Any) -> Any:
    """Return ``(X - centre) @ W + b``.

    Parameters
    ----------
    X : array of shape (N, D)
        Bytes, which count from 128, or short floats as the integers that have their bits.
    centre : array of shape (D,) or None
    packed : array of shape (groups, D, columns)
        W as :func:`pack` gives it.
    b : array of shape (H,)

    Returns
    -------
    array of shape (N, H)
    """
    groups, _, width = packed.shape
    Y = np.empty((len(X), len(b)), packed.dtype)
    rows = aligned((BLOCK_ROWS, PANEL), packed.dtype)
    S = aligned((groups * BLOCK_ROWS, width), packed.dtype)
    middle = np.zeros(X.shape[1], packed.dtype) if centre is None else centre
    affine_of_rows(X, middle, packed.reshape(-1, width), b, Y, rows, S, SHAPE)
    return Y


@compiled
def unpack(packed: Any, dW: Any, shape: Any) -> None:
    """Write a gradient (groups, vectors, columns, lanes) as (D, H)."""
    groups, n_vectors, columns, lanes = packed.shape
    for v in range(n_vectors):
        start, skipped = features_of(v, len(dW), shape)
        for g in range(groups):
            first = g * columns
            for t in range(min(columns, dW.shape[1] - first)):
                for lane in range(skipped, lanes):
                    dW[start + lane, first + t] = packed[g, v, t, lane]


def gradient(X: Any, centre: Any, dY: Any) -> Any:
    """Return ``(X - centre)^T @ dY``, the gradient of :func:`affine` with respect to W."""
    n_columns, dtype = dY.shape[1], dY.dtype
    shape = linear_pass.shape_for(n_columns, dtype.itemsize)
    dW = linear_pass.zeros_of_W(X.shape[1], n_columns, dtype, shape)
    room = linear_pass.room_for(dW, n_columns, BLOCK_ROWS, shape)
    # Rows an odd number of lines apart do not meet in the same lines of L1.
    of_line = LINE // dtype.itemsize
    padded = (-(-dW.shape[0] * dW.shape[2] // of_line) | 1) * of_line
    G = np.zeros((len(X), padded), dtype)
    G[:, :n_columns] = dY
    is_centred = () if centre is None else (0,)
    middle = np.zeros(0, dtype) if centre is None else centre
    linear_pass.add_gradient_of_rows(X, middle, G, 0, len(X), dW, room, shape, is_centred)
    out = np.empty((X.shape[1], n_columns), dtype)
    unpack(dW, out, shape)
    return out
