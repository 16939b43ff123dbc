"""The linear pass over bytes by dot products of bytes (AVX-512 VNNI); needs numba.

VPDPBUSD multiplies 64 bytes, one factor signed, and adds four products each to 16 integers: four
times what an instruction on float32 multiplies. W and the gradient of the scores become digits as
in `loops.py`, here to base 254, so that three of them keep 24 bits of a column's largest number:

    w = scale * (d0 + d1 / 254 + d2 / 254**2),    -127 <= d <= 127.

Three digits cost columns their small numbers where a few are far larger than the rest: then all get
a fourth (:func:`digits_needed`).

A row of digits has one digit of one column, for 64 features or 64 samples; a tile is nine of them
by three vectors, which are 27 sums in 32 registers. Losses see differences of scores only, so one
column is taken from all the others: of ten classes, nine columns of three digits fill three tiles.
What three digits leave of a number goes to one that follows (:func:`~.loops.digits_of_rows`); a
stretch's last block has four, so that of the gradient's sums nothing is left out.

* Forward, a vector is 64 features of a sample; its 16 sums are added up behind the last feature.
* Backward, it is 16 features of four samples, interleaved, and a digit of four samples is
  broadcast. The columns' order is that of :func:`~.loops.interleave` (:func:`in_order`).

Bytes count from 128 as in `loops.py`: by what the sums begin with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gpuclf.kernels.building.emission import I32, I64
from gpuclf.kernels.building.machine_code import compiled
from gpuclf.kernels.byte_products.loops import (
    PANEL,
    TILE_BYTES,
    clear_columns,
    digits_of_rows,
    emitted_of_bytes,
    interleave,
    whole_rows,
)
from gpuclf.kernels.linear_pass.loops import aligned
from gpuclf.kernels.losses.loops import gradient_in_place, room_of_rows

__all__ = [
    "ROWS",
    "digits_needed",
    "in_order",
    "linear_pass",
    "pack",
    "room_for",
    "zeros_of_dW",
]

BASE = 254.0
TILE = 9  # rows of digits
VECTORS = 3  # and samples of a tile forward
ROWS = 48  # whose scores are made at once: 16 tiles, and three vectors
LANES = 16
LINE = 64
STRIP_VECTORS = 12  # the least that are whole tiles and whole panels
STRIP = STRIP_VECTORS * LANES
# A column's largest number by the root of the mean square: up to this, three digits are as good as
# float32. Weights that learnt from images of CIFAR-10 have up to 4.8, normal ones 4.
MAX_RATIO = 5.0

_ints, _floats = ir.VectorType(I32, LANES), ir.VectorType(ir.FloatType(), LANES)


def _tile_of_sums(c: Any) -> list[list[Any]]:
    zero = ir.Constant(_ints, [0] * LANES)
    # LLVM turns these stack slots into registers.
    return [
        [cgutils.alloca_once_value(c.builder, zero) for _ in range(VECTORS)] for _ in range(TILE)
    ]


def _add(c: Any, sums: list[Any], vectors: list[Any], digits: Any) -> None:
    """Add the products of a row of digits and three vectors."""
    for place, vector in zip(sums, vectors, strict=True):
        c.builder.store(c.add_dots(c.builder.load(place), vector, digits), place)


@emitted_of_bytes
def multiply_rows(
    c: Any, X: Any, first: Any, pitch: Any, digits: Any, tile: Any, panel_bytes: Any, n_panels: Any,
    parts: Any, row: Any,
) -> None:  # fmt: skip
    """Write the products of three samples and a tile's rows of digits to `parts` (9, ROWS, 16).

    `first`: where the samples begin, in bytes. `tile`: where the rows begin among the digits of 64
    features, which are `panel_bytes` long. `row`: of `parts`. What lies in 16 lanes adds up to a
    score's digit.
    """
    builder, sums = c.builder, _tile_of_sums(c)
    x = [c.at(X, first)]
    for _ in range(VECTORS - 1):
        x.append(c.at(x[-1], pitch))
    digits = c.at(digits, tile)
    with cgutils.for_range(builder, n_panels) as loop:
        behind = c.times(loop.index, PANEL)
        vectors = [c.load(c.at(address, behind), _ints) for address in x]
        lines = c.at(digits, builder.mul(loop.index, panel_bytes))
        for t in range(TILE):
            _add(c, sums[t], vectors, c.load(c.at(lines, LINE * t), _ints))
    parts = c.at(parts, c.times(row, LINE))
    for t in range(TILE):
        for r in range(VECTORS):
            c.store(builder.load(sums[t][r]), c.at(parts, LINE * (ROWS * t + r)))


@emitted_of_bytes
def add_lanes(c: Any, parts: Any, begins: Any, first: Any, sums: Any) -> None:
    """Write the sums of the lanes of :func:`multiply_rows` to `sums` (9, ROWS), from `first` on."""
    with cgutils.for_range(c.builder, I64(TILE)) as loop:
        part = c.at(parts, c.times(loop.index, LINE * ROWS))
        number = c.builder.add(first, loop.index)
        begin = c.load(c.at(begins, c.times(number, LINE)), _ints)
        target = c.at(sums, c.times(number, 4 * ROWS))
        for row in range(0, ROWS, LANES):
            vectors = [c.load(c.at(part, LINE * (row + r)), _ints) for r in range(LANES)]
            c.store(c.builder.add(c.sums_of_lanes(vectors), begin), c.at(target, 4 * row))


@emitted_of_bytes
def multiply_columns(
    c: Any, digits: Any, tile: Any, step_bytes: Any, quads: Any, place: Any, n_quads: Any,
    begins: Any, first: Any, sums: Any, X: Any, ahead: Any,
) -> None:  # fmt: skip
    """Write the products of a tile's rows of digits and 48 features to `sums` (9, 48).

    `tile`: where the rows begin among the digits of 64 samples, which are `step_bytes` long.
    `place`: where the features begin among the strip's quads of 64 samples, in bytes. `first`: of
    the rows of digits, in `begins` and `sums`. From ``X[ahead]`` on, memory is called into the
    cache, a line a step.
    """
    builder, sums_of_tile = c.builder, _tile_of_sums(c)
    digits, quads, x = c.at(digits, tile), c.at(quads, place), c.at(X, ahead)
    begins = c.at(begins, c.times(first, LINE))
    for t in range(TILE):
        for v in range(VECTORS):
            builder.store(c.load(c.at(begins, LINE * t), _ints), sums_of_tile[t][v])
    with cgutils.for_range_slice(builder, I64(0), n_quads, I64(16), inc=True) as (start, _):
        step = builder.lshr(start, I64(4))
        rows = c.at(digits, builder.mul(step, step_bytes))
        four = c.at(quads, c.times(step, STRIP_VECTORS * TILE_BYTES))
        some = c.smaller(I64(16), builder.sub(n_quads, start))
        with cgutils.for_range(builder, some) as loop:
            line = c.at(four, c.times(loop.index, LINE))
            vectors = [c.load(c.at(line, TILE_BYTES * v), _ints) for v in range(VECTORS)]
            c.prefetch(c.at(x, c.times(builder.add(start, loop.index), LINE)))
            word = c.at(rows, c.times(loop.index, 4))
            for t in range(TILE):
                digit = c.everywhere(c.load(c.at(word, PANEL * t), I32), _ints)
                _add(c, sums_of_tile[t], vectors, digit)
    target = c.at(sums, c.times(first, 4 * ROWS))
    for t in range(TILE):
        for v in range(VECTORS):
            c.store(builder.load(sums_of_tile[t][v]), c.at(target, 4 * (ROWS * t + LANES * v)))


@emitted_of_bytes
def add_numbers(
    c: Any, sums: Any, n_columns: Any, n_digits: Any, scales: Any, out: Any, first: Any, pitch: Any
) -> None:
    """Put the digits' sums (rows of digits, 48) together, and add them to 48 numbers a column.

    `first`: where those of the first column begin, in floats; of the next, `pitch` later.
    """
    builder = c.builder
    down = ir.Constant(_floats, [1 / BASE] * LANES)
    zero = ir.Constant(_floats, [0.0] * LANES)
    with cgutils.for_range(builder, n_columns) as columns:
        values = [cgutils.alloca_once_value(builder, zero) for _ in range(VECTORS)]
        last = builder.mul(c.plus(columns.index, 1), n_digits)
        with cgutils.for_range(builder, n_digits) as digits:  # the small ones first
            row = c.plus(builder.sub(last, digits.index), -1)
            address = c.at(sums, c.times(row, 4 * ROWS))
            for v, value in enumerate(values):
                number = builder.sitofp(c.load(c.at(address, LINE * v), _ints), _floats)
                builder.store(c.multiply_add(builder.load(value), down, number), value)
        scale = c.load(c.at(scales, c.times(columns.index, 4)), ir.FloatType())
        scale = c.everywhere(scale, _floats)
        start = builder.add(first, builder.mul(columns.index, pitch))
        for v, value in enumerate(values):
            target = c.at(out, c.times(start, 4), LINE * v)
            before = c.load(target, _floats)
            c.store(c.multiply_add(builder.load(value), scale, before), target)


@compiled
def digits_needed(G: Any) -> int:
    """Return 3, or 4 where a row's largest number would cost its small ones."""
    n_columns, n_rows = G.shape
    for m in range(n_columns):
        largest, squares = np.float32(0), np.float32(0)
        for r in range(n_rows):
            largest = max(largest, abs(G[m, r]))
        if largest > 0:
            for r in range(n_rows):
                share = G[m, r] / largest
                squares += share * share
            if squares * np.float32(MAX_RATIO * MAX_RATIO) < n_rows:
                return 4
    return 3


@compiled
def _write_scores(
    X: Any, first: int, n_rows: int, weights: Any, n_digits: int, parts: Any, sums: Any, S: Any
) -> None:
    """Write ``(X - 128) @ W`` of `n_rows` rows to S (C, rows); what follows is any numbers."""
    digits, begins, scales = weights
    n_panels, n_digit_rows = digits.shape[:2]
    n_features = X.shape[1]
    for c in range(len(S)):
        for r in range(S.shape[1]):
            S[c, r] = 0
    for row in range(0, n_rows, ROWS):
        for tile in range(0, n_digit_rows, TILE):
            for r in range(0, min(ROWS, n_rows - row), VECTORS):
                multiply_rows(
                    X, (first + row + r) * n_features, n_features, digits, tile * PANEL,
                    n_digit_rows * PANEL, n_panels, parts, r,
                )  # fmt: skip
            add_lanes(parts, begins, tile, sums)
        add_numbers(sums, len(scales), n_digits, scales, S, row, S.shape[1])


@compiled
def _add_columns(
    X: Any, first_row: int, n_rows: int, gradient: Any, n_digits: int, quads: Any, sums: Any,
    dW: Any, block_rows: int,
) -> None:  # fmt: skip
    """Add ``G @ (X - 128)`` of `n_rows` rows to dW (M, D padded)."""
    digits, begins, scales = gradient
    n_features, n_digit_rows, n_quads = X.shape[1], digits.shape[1], (n_rows + 3) // 4
    n_panels = (n_features + PANEL - 1) // PANEL
    ahead = (first_row + block_rows) * n_features
    for panel in range(0, n_panels, STRIP // PANEL):
        some = min(STRIP // PANEL, n_panels - panel)
        for p in range(some):
            interleave(
                X, first_row * n_features + (panel + p) * PANEL, n_features,
                quads[p * 4 * TILE_BYTES :], STRIP_VECTORS * TILE_BYTES, n_quads,
            )  # fmt: skip
        for place in range(0, some * PANEL, ROWS):
            for tile in range(0, n_digit_rows, TILE):
                multiply_columns(
                    digits, tile * PANEL, n_digit_rows * PANEL, quads, place * LINE, n_quads,
                    begins, tile, sums, X, ahead,
                )  # fmt: skip
                ahead += n_quads * LINE
            add_numbers(sums, len(scales), n_digits, scales, dW, panel * PANEL + place, dW.shape[1])


@compiled
def linear_pass(
    X: Any, weights: Any, n_digits: int, bias: Any, y: Any, sample_weight: Any, start: int,
    stop: int, dW: Any, db: Any, swapped: int, room: Any, hinge: bool,
) -> float:  # fmt: skip
    """Add the gradients of the rows start:stop to dW and db, and return their loss.

    Parameters
    ----------
    X : uint8 array of shape (N, D)
        Contiguous; bytes count from 128.
    weights, n_digits
        As :func:`pack` gives them.
    bias : float32 array of shape (C,)
        In the order of the columns, the last zero.
    y, sample_weight : array
    start, stop : int
    dW : float32 array of shape (C - 1, D padded)
        As :func:`zeros_of_dW` makes it; its features are in the order that :func:`in_order` undoes.
    db : float64 array of shape (C,)
    swapped : int
        The class that stands last, and the last in its place.
    room : tuple
        As :func:`room_for` gives it.
    hinge : bool
        The loss: else softmax cross-entropy.
    """
    S, three, four, left, sums, parts, quads, of_rows = room
    block_rows, n_columns = S.shape[1], len(S) - 1
    loss = 0.0
    for row in range(start, stop, block_rows):
        n_rows = min(block_rows, stop - row)
        x, first = whole_rows(X, row, (n_rows + 11) // 12 * 12)  # threes forward, fours backward
        _write_scores(x, first, n_rows, weights, n_digits, parts, sums, S)
        loss += gradient_in_place(
            S, 0, bias, y, sample_weight, row, n_rows, swapped, db, of_rows, hinge
        )
        clear_columns(S, n_rows)
        G = S[:n_columns]
        is_last = row + block_rows >= stop  # of the last nothing must be left
        n_needed = 4 if is_last else digits_needed(G)
        gradient = three if n_needed == 3 else four
        digits_of_rows(G, n_rows, gradient, n_needed, BASE, 1, left)
        _add_columns(x, first, n_rows, gradient, n_needed, quads, sums, dW, block_rows)
    return loss


def _room_in_tiles(n_columns: int, n_items: int, n_digits: int) -> tuple[Any, ...]:
    """Return room for whole tiles, as :func:`~.loops.digits_of_rows` fills it."""
    n_rows = -(-n_columns * n_digits // TILE) * TILE
    return (
        aligned((-(-n_items // PANEL), n_rows, PANEL), np.dtype(np.int8)),
        aligned((n_rows, LANES), np.dtype(np.int32)),
        np.zeros(n_columns, np.float32),
    )


def pack(columns: Any) -> tuple[tuple[Any, ...], int]:
    """Write W in digits.

    Parameters
    ----------
    columns : float32 array of shape (C - 1, D)
        Columns of W less the one that is taken from them; finite, contiguous.

    Returns
    -------
    weights : (digits, begins, scales)
    n_digits : int
    """
    n_digits = digits_needed(columns)
    weights = _room_in_tiles(len(columns), columns.shape[1], n_digits)
    left = np.zeros((len(columns), PANEL), np.float32)
    digits_of_rows(columns, columns.shape[1], weights, n_digits, BASE, 1, left)
    return weights, n_digits


def room_for(weights: tuple[Any, ...], n_classes: int, block_rows: int) -> tuple[Any, ...]:
    """Return what the blocks of a walk share; their rows are a multiple of ROWS.

    Returns
    -------
    S
        Scores.
    three, four
        Their gradient in digits.
    left
        What those leave of it.
    sums, parts
        Of digits; forward, lane by lane before.
    quads
        A strip of features of four samples, interleaved.
    of_rows
        For :func:`~gpuclf.kernels.losses.loops.gradient_in_place`.
    """
    three, four = (_room_in_tiles(n_classes - 1, block_rows, n) for n in (3, 4))
    n_sums = max(weights[0].shape[1], four[0].shape[1])
    ints = np.dtype(np.int32)
    return (
        aligned((n_classes, block_rows), np.dtype(np.float32)),
        three,
        four,
        np.zeros((n_classes - 1, PANEL), np.float32),
        aligned((n_sums, ROWS), ints),
        aligned((TILE, ROWS, LANES), ints),
        aligned((-(-block_rows // PANEL) * STRIP_VECTORS * TILE_BYTES,), np.dtype(np.uint8)),
        room_of_rows(block_rows, n_classes, np.dtype(np.float32)),
    )


def zeros_of_dW(n_columns: int, n_features: int) -> Any:
    """Return room for the gradients of columns, of whole strips."""
    return aligned((n_columns, -(-n_features // STRIP) * STRIP), np.dtype(np.float32))


def in_order(dW: Any, n_features: int) -> Any:
    """Return dW with its features as they are in X, of shape (M, D)."""
    n_columns = len(dW)
    four = dW.reshape(n_columns, -1, 4, 4, 4).transpose(0, 1, 3, 2, 4)
    return four.reshape(n_columns, -1)[:, :n_features]
