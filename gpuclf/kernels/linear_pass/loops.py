"""The loops of on_cpu.py, a block of rows at a time; imported only where numba is installed.

Their innermost parts keep a tile of a thin product in vector registers, by explicit LLVM code. A
compiler vectorises a loop over one accumulator, or over one row of them; it does not keep a tile
of rows by columns in registers, and without that every multiplication waits for a load. So the
tile is spelled out: :func:`_dot_tile` for ``X @ W``, :func:`_outer_tile` for ``X^T @ dS``.

W and dW lie as the tiles read them, (groups of columns, vectors of features, columns, lanes), and
a group is as many columns as a tile. What the samples are, bytes or floats of any length, is
seen by the tiles of the first group only: they leave the floats in L1 for the other groups.

The sizes come as the lengths of tuples, so that numba compiles, and caches, a version for each
(:func:`shape_for`); how many numbers a vector has is one of them, and LLVM cuts vectors that the
processor does not have into such as it has.

All loops are in one file, because numba takes what it compiled before as long as the file of the
outermost function has not changed; the losses are those of :mod:`gpuclf.kernels.losses.loops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gpuclf.kernels.building.emission import I32, I64, Array, Code, emitted
from gpuclf.kernels.building.machine_code import compiled
from gpuclf.kernels.losses.loops import gradient_in_place, room_of_rows
from gpuclf.kernels.losses.on_cpu import LANES

__all__ = [
    "VECTOR_BYTES",
    "Samples",
    "Shape",
    "add_gradient_of_rows",
    "add_products",
    "aligned",
    "features_of",
    "linear_pass",
    "pack",
    "room_for",
    "scores_of_rows",
    "shape_for",
    "unpack",
    "zeros_of_W",
]

_features = llvmlite.binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx") else 16
HAS_32_REGISTERS = VECTOR_BYTES == 64 or bool(_features.get("neon", False))
# Lanes, rows of X in a dot tile, columns, vectors of features in an outer tile: as lengths.
Shape = tuple[tuple[int, ...], ...]
PANEL_BYTES = 2048  # of a row: what a few tiles of rows multiply from L1 ...
CHUNK_COLUMNS = 9  # ... with so many columns of W, which stay there
LINE = 64


def shape_for(n_columns: int, item_bytes: int) -> Shape:
    """Return the sizes of tiles: up to 27 accumulators in 32 registers, 12 in 16."""
    if HAS_32_REGISTERS:
        groups = -(-n_columns // 9)
        columns = -(-n_columns // groups)
        rows = vectors = 3 if columns > 6 else 4
    else:
        # Whichever pads less; four rows of two keep a processor as busy as four of three.
        columns = min((3, 2), key=lambda width: -n_columns % width) if n_columns > 1 else 1
        rows = vectors = 4
    sizes = VECTOR_BYTES // item_bytes, rows, columns, vectors
    return tuple((0,) * size for size in sizes)


class Samples:
    """Rows of items of any type, as vectors of floats."""

    def __init__(self, code: Code, array: Array, vector: Any) -> None:
        self.code, self.array, self.vector = code, array, vector
        self.item_bytes = array.dtype.bitwidth // 8
        self.float_bytes = 4 if isinstance(vector.element, ir.FloatType) else 8
        self.vector_bytes = vector.count * self.float_bytes
        self.bytes_of_vector = vector.count * self.item_bytes  # as they are stored

    def at(self, row: Any, column: Any) -> Any:
        """Return the address of an item."""
        return self.code.at(self.array.row(row), self.code.times(column, self.item_bytes))

    def load(self, address: Any) -> Any:
        """Return the floats of a vector of items; bytes count from 128."""
        builder, vector, lanes = self.code.builder, self.vector, self.vector.count
        items = self.code.load(address, ir.VectorType(self.array.item, lanes), 1)
        if self.array.item == vector.element:
            return items
        ints, floats = ir.VectorType(I32, lanes), ir.VectorType(ir.FloatType(), lanes)
        if self.item_bytes == 1:
            # Flipping the top bit and reading the byte as signed is "minus 128".
            top_bits = ir.Constant(items.type, [128] * lanes)
            return builder.sitofp(builder.sext(builder.xor(items, top_bits), ints), vector)
        if self.item_bytes == 2:  # numba knows neither: int16 are float16, uint16 are bfloat16
            if self.array.dtype.signed:
                short = builder.bitcast(items, ir.VectorType(ir.HalfType(), vector.count))
            else:
                upper = builder.shl(builder.zext(items, ints), ir.Constant(ints, [16] * lanes))
                short = builder.bitcast(upper, floats)
            return short if short.type == vector else builder.fpext(short, vector)
        if isinstance(self.array.item, ir.FloatType):
            return builder.fpext(items, vector)
        return builder.fptrunc(items, vector)


def add_products(
    code: Code, sums: list[list[Any]], left: Callable[[int], Any], right: Callable[[int], Any]
) -> None:
    """Add ``left(i) * right(j)`` to ``sums[i][j]``.

    The fewer factors stay in registers, for which there is just room; each of the others is made
    and used at once.
    """

    def add(i: int, j: int, a: Any, b: Any) -> None:
        code.builder.store(code.multiply_add(a, b, code.builder.load(sums[i][j])), sums[i][j])

    rows, columns = range(len(sums)), range(len(sums[0]))
    if len(columns) < len(rows):
        held = [right(j) for j in columns]
        for i in rows:
            a = left(i)
            for j in columns:
                add(i, j, a, held[j])
    else:
        held = [left(i) for i in rows]
        for j in columns:
            b = right(j)
            for i in rows:
                add(i, j, held[i], b)


def _dot_tile(
    code: Code, x: Samples, starts: list[Any], middle: Any, W: Any, targets: list[Any],
    parts: list[Any], n_vectors: Any, n_columns: int,
) -> None:  # fmt: skip
    """Add the products of rows and columns, lane by lane, to `parts`, an address a row.

    `starts` are the addresses of the rows, `W` that of the columns, (vectors, columns, lanes).
    What lies at `middle` is subtracted, unless that is None, and the floats are written to
    `targets`, if there are any.
    """
    builder, vector = code.builder, x.vector
    size, item = x.vector_bytes, x.float_bytes
    rows, columns = range(len(starts)), range(n_columns)
    zero = ir.Constant(vector, [0.0] * vector.count)
    # LLVM turns these stack slots into registers.
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in columns] for _ in rows]
    with cgutils.for_range(builder, n_vectors) as loop:
        behind = code.times(loop.index, size)
        w = code.at(W, code.times(loop.index, n_columns * size))
        subtracted = None if middle is None else code.load(code.at(middle, behind), vector, item)

        def number_of(r: int) -> Any:
            number = x.load(code.at(starts[r], code.times(loop.index, x.bytes_of_vector)))
            if subtracted is not None:
                number = builder.fsub(number, subtracted)
            if targets:
                code.store(number, code.at(targets[r], behind), item)
            return number

        def weights_of(c: int) -> Any:
            return code.load(code.at(w, c * size), vector, size)

        add_products(code, sums, number_of, weights_of)
    for r in rows:
        for c in columns:
            address = code.at(parts[r], c * size)
            before = code.load(address, vector, size)
            code.store(builder.fadd(before, builder.load(sums[r][c])), address, size)


def _outer_tile(
    code: Code, x: Samples, row: Any, column: Any, middle: Any, G: Array, offset: Any, n_rows: Any,
    dW: Any, kept: Any, bytes_ahead: Any, n_vectors: int, n_columns: int,
) -> None:  # fmt: skip
    """Add ``G[:, columns]^T @ X[row:, column:]`` to dW, an address: (vectors, columns, lanes).

    `offset`: where the columns of G begin, in bytes. Unless they are None: `middle` as for
    :func:`_dot_tile`; the floats are written to the rows of `kept`; the memory `bytes_ahead` of
    each row is called into the cache, for nothing else keeps the memory busy in this phase.
    """
    builder, vector = code.builder, x.vector
    size, item = x.vector_bytes, x.float_bytes
    columns, vectors = range(n_columns), range(n_vectors)
    places = [[code.at(dW, (v * n_columns + c) * size) for c in columns] for v in vectors]
    zero = ir.Constant(vector, [0.0] * vector.count)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in columns] for _ in vectors]
    with cgutils.for_range(builder, n_rows) as loop:
        address = x.at(builder.add(row, loop.index), column)
        g = code.at(G.row(loop.index), offset)
        if bytes_ahead is not None:
            for line in range(0, n_vectors * x.bytes_of_vector, LINE):
                code.prefetch(code.at(address, bytes_ahead, line))

        def number_of(v: int) -> Any:
            number = x.load(code.at(address, v * x.bytes_of_vector))
            if middle is not None:
                subtracted = code.load(code.at(middle, v * size), vector, item)
                number = builder.fsub(number, subtracted)
            if kept is not None:
                target = code.at(kept, code.times(loop.index, n_vectors * size), v * size)
                code.store(number, target, item)
            return number

        def factor_of(c: int) -> Any:
            return code.everywhere(code.load(code.at(g, c * item), vector.element, item), vector)

        add_products(code, sums, number_of, factor_of)
    for v in vectors:
        for c in columns:
            # Added up block by block: one sum of all rows would lose digits.
            before = code.load(places[v][c], vector, size)
            code.store(builder.fadd(before, builder.load(sums[v][c])), places[v][c], size)


@emitted
def write_scores(
    code: Code, X: Any, row: Any, n_rows: Any, centre: Any, W: Any, n_columns: Any, n_models: Any,
    parts: Any, kept: Any, S: Any, column: Any, shape: Any, is_centred: int,
) -> None:  # fmt: skip
    """Write ``X[row : row + n_rows] @ W`` to ``S[:, column : column + n_rows]``.

    Arguments as for :func:`linear_pass`. Behind the columns of each model, S has rows for those
    that were saved.
    """
    builder = code.builder
    lanes, tile_rows, tile_columns, tile_vectors = shape
    vector = ir.VectorType(W.item, lanes)
    x, floats = Samples(code, X, vector), Samples(code, kept, vector)
    size, item = x.vector_bytes, x.float_bytes
    group_bytes = builder.mul(W.length(1), I64(tile_columns * size))
    of_chunk = max(CHUNK_COLUMNS // tile_columns, 1)  # groups
    n_groups = W.length(0)
    of_model = builder.udiv(n_columns, n_models)
    saved = builder.sub(builder.udiv(S.length(0), n_models), of_model)
    kept_rows = [kept.row(r) for r in range(tile_rows)]

    def products(start: Any, stop: Any, back: Any, group: Any) -> None:
        panel, last = PANEL_BYTES // item, code.plus(X.length(0), -1)
        with cgutils.for_range_slice(builder, start, stop, I64(panel), inc=True) as (place, _):
            n_vectors = builder.udiv(code.smaller(I64(panel), builder.sub(stop, place)), I64(lanes))
            feature = builder.sub(place, back)
            w = code.at(W, builder.mul(group, group_bytes), code.times(place, tile_columns * item))
            middle = code.at(centre, code.times(feature, item)) if is_centred else None
            with cgutils.for_range_slice(builder, I64(0), n_rows, I64(tile_rows), inc=True) as (
                r,
                _,
            ):
                # Behind the last row there is no memory to read.
                numbers = [builder.add(row, code.plus(r, i)) for i in range(tile_rows)]
                starts = [x.at(code.smaller(number, last), feature) for number in numbers]
                out = [parts.row(code.plus(r, i)) for i in range(tile_rows)]
                sizes = n_vectors, tile_columns
                _dot_tile(code, x, starts, middle, w, kept_rows, out, *sizes)
                more = code.smaller(I64(of_chunk), builder.sub(n_groups, group))
                with cgutils.for_range(builder, more, start=I64(1)) as other:
                    w = code.at(w, builder.mul(other.index, group_bytes))
                    offset = code.times(other.index, tile_columns * size)
                    out = [code.at(address, offset) for address in out]
                    _dot_tile(code, floats, kept_rows, None, w, [], out, *sizes)

    with cgutils.for_range_slice(builder, I64(0), n_groups, I64(of_chunk), inc=True) as (group, _):
        cgutils.memset(
            builder, parts.start, code.times(parts.length(0), of_chunk * tile_columns * size), 0
        )
        for part in _strips(code, X, lanes * tile_vectors):
            products(*part, group)
        first = code.times(group, tile_columns)
        some = code.smaller(I64(of_chunk * tile_columns), builder.sub(n_columns, first))
        with cgutils.for_range(builder, some) as of_columns:
            number = builder.add(first, of_columns.index)
            behind = builder.mul(builder.udiv(number, of_model), saved)
            target = code.at(S.row(builder.add(number, behind)), code.times(column, item))
            with cgutils.for_range(builder, n_rows) as of_rows:
                part = code.at(parts.row(of_rows.index), code.times(of_columns.index, size))
                score = code.sum(code.load(part, vector, size))
                code.store(score, code.at(target, code.times(of_rows.index, item)), item)


@emitted
def add_gradient(
    code: Code, X: Any, row: Any, n_rows: Any, centre: Any, G: Any, of_G: Any, dW: Any, kept: Any,
    bytes_ahead: Any, shape: Any, is_centred: int,
) -> None:  # fmt: skip
    """Add ``X[row : row + n_rows]^T @ G[of_G:]`` to dW; arguments as for :func:`write_scores`."""
    builder = code.builder
    lanes, _, tile_columns, tile_vectors = shape
    vector = ir.VectorType(dW.item, lanes)
    x, floats = Samples(code, X, vector), Samples(code, kept, vector)
    size, item, strip = x.vector_bytes, x.float_bytes, lanes * tile_vectors
    group_bytes = builder.mul(dW.length(1), I64(tile_columns * size))
    sizes, G = (tile_vectors, tile_columns), G.below(of_G)
    for start, stop, back in _strips(code, X, strip):
        with cgutils.for_range_slice(builder, start, stop, I64(strip), inc=True) as (place, _):
            feature = builder.sub(place, back)
            dw = code.at(dW, code.times(place, tile_columns * item))
            middle = code.at(centre, code.times(feature, item)) if is_centred else None
            given = row, feature, middle, G, I64(0), n_rows, dw, kept, bytes_ahead
            _outer_tile(code, x, *given, *sizes)
            with cgutils.for_range(builder, dW.length(0), start=I64(1)) as other:
                dw = code.at(dw, builder.mul(other.index, group_bytes))
                offset = code.times(other.index, tile_columns * item)
                given = I64(0), I64(0), None, G, offset, n_rows, dw, None, None
                _outer_tile(code, floats, *given, *sizes)


def _strips(code: Code, X: Array, strip: int) -> list[tuple[Any, Any, Any]]:
    """Return where in W strips of features begin and end, and how far behind them in X.

    First those that are whole, and then the one at the end, which goes over some features twice:
    their weights are zero there, and their gradients are not read.
    """
    whole = code.times(code.builder.udiv(X.length(1), I64(strip)), strip)
    more = code.builder.icmp_signed("<", whole, X.length(1))
    stop = code.builder.select(more, code.plus(whole, strip), whole)
    return [(I64(0), whole, I64(0)), (whole, stop, code.builder.sub(stop, X.length(1)))]


@compiled
def features_of(vector: int, n_features: int, shape: Any) -> tuple[int, int]:
    """Return the first feature of a vector of W, and how many are those of vectors before it."""
    lanes, strip = len(shape[0]), len(shape[0]) * len(shape[3])
    whole, first = n_features // strip * strip, vector * lanes
    if first < whole:
        return first, 0
    first -= whole + strip - n_features
    return first, min(max(whole - first, 0), lanes)


@compiled
def pack(W: Any, b: Any, first: int, n_columns: int, packed: Any, bias: Any, shape: Any) -> int:
    """Write W and b of one model as the tiles read them.

    Parameters
    ----------
    W : array of shape (D, C)
    b : array of shape (C,)
    first : int
        Where the model's columns begin in `packed`.
    n_columns : int
        C, or C - 1 to take one column from all the others, for losses that see differences only.
    packed : array of shape (groups, vectors, columns, lanes)
        Of zeros.
    bias : array of shape (C,)
        Of zeros.
    shape : tuple
        As :func:`shape_for` gives it.

    Returns
    -------
    swapped : int
        The column that stands last, and the last in its place: the one whose largest weight is
        the smallest, for the differences keep its digits.
    """
    n_features, n_classes = W.shape
    lanes, columns = len(shape[0]), len(shape[2])
    zero, last = W.dtype.type(0), n_classes - 1
    saves = n_columns < n_classes
    swapped = last
    if saves:
        for c in range(n_classes):
            bias[c] = zero
        for d in range(n_features):
            for c in range(n_classes):
                bias[c] = max(bias[c], abs(W[d, c]))
        for c in range(n_classes):
            if bias[c] < bias[swapped]:
                swapped = c
    for c in range(n_columns):
        source = last if c == swapped else c
        bias[c] = b[source] - (b[swapped] if saves else zero)
        group, t = (first + c) // columns, (first + c) % columns
        for v in range(packed.shape[1]):
            start, skipped = features_of(v, n_features, shape)
            for lane in range(skipped, lanes):
                taken = W[start + lane, swapped] if saves else zero
                packed[group, v, t, lane] = W[start + lane, source] - taken
    for c in range(n_columns, n_classes):
        bias[c] = zero
    return int(swapped)


@compiled
def unpack(packed: Any, first: int, n_columns: int, swapped: int, dW: Any, shape: Any) -> None:
    """Undo :func:`pack` for a gradient, of shape (D, C)."""
    lanes, columns = len(shape[0]), len(shape[2])
    n_features, n_classes = dW.shape
    last = n_classes - 1
    for v in range(packed.shape[1]):
        start, skipped = features_of(v, n_features, shape)
        for lane in range(skipped, lanes):
            d, total = start + lane, dW.dtype.type(0)
            for c in range(n_columns):
                value = packed[(first + c) // columns, v, (first + c) % columns, lane]
                dW[d, last if c == swapped else c] = value
                total += value
            if n_columns < n_classes:
                dW[d, swapped] = -total


@compiled
def linear_pass(
    X: Any, centre: Any, W: Any, b: Any, y: Any, weights: Any, start: int, stop: int, losses: Any,
    dW: Any, db: Any, n_columns: int, swapped: Any, room: Any, shape: Any, is_centred: Any,
    hinge: bool,
) -> None:  # fmt: skip
    """Add the losses and gradients of the rows start:stop, of K models.

    Parameters
    ----------
    X : array of shape (N, D)
        Of 64 features or more. Bytes, which count from 128, or floats, those of 16 bits as the
        integers that have their bits. Its rows are taken as they lie in memory, aligned or not:
        the order of the sums must not depend on an address.
    centre : array of shape (D,)
        Subtracted from the rows, if `is_centred`, a tuple, is not empty.
    W : array of shape (groups, vectors, columns, lanes)
        With `n_columns` columns of all models, one model behind the other.
    b : array of shape (K, C)
    swapped : integer array of shape (K,)
        W, b and swapped as :func:`pack` gives them.
    y : array of shape (N,)
    weights : array of shape (1, N) or (K, N)
    start, stop : int
    losses : float64 array of shape (K,)
    dW : array of the shape of W
    db : float64 array of shape (K, C)
        The last two in the order of W and b.
    room : tuple
        As :func:`room_for` gives it.
    shape : tuple
        As :func:`shape_for` gives it.
    hinge : bool
        The loss: else softmax cross-entropy.
    """
    parts, of_dot, of_outer, S, G, of_rows = room
    block_rows, zero, (n_models, n_classes) = len(parts), W.dtype.type(0), b.shape
    of_model = n_columns // n_models
    ahead = block_rows * X.shape[1] * X.itemsize
    for row in range(start, stop, block_rows):
        n_rows = min(block_rows, stop - row)
        write_scores(
            X, row, n_rows, centre, W, n_columns, n_models, parts, of_dot, S, 0, shape, is_centred
        )
        for c in range(len(S)):
            for r in range(n_rows, S.shape[1]):
                S[c, r] = zero
        for k in range(n_models):
            scores, first = S[k * n_classes : (k + 1) * n_classes], k * of_model
            if of_model < n_classes:
                for r in range(n_rows):
                    scores[of_model, r] = scores[0, r] * zero  # NaN stays
            losses[k] += gradient_in_place(
                scores, 0, b[k], y, weights[k % len(weights)], row, n_rows, swapped[k], db[k],
                of_rows, hinge,
            )  # fmt: skip
            for r in range(n_rows):
                for c in range(of_model):
                    G[r, first + c] = scores[c, r]
        add_gradient(X, row, n_rows, centre, G, 0, dW, of_outer, ahead, shape, is_centred)


@compiled
def scores_of_rows(
    X: Any, centre: Any, W: Any, start: int, stop: int, S: Any, room: Any, shape: Any,
    is_centred: Any,
) -> None:  # fmt: skip
    """Write the scores of the rows start:stop to S (C, rows), of one model and without the bias.

    For a loss that is not in machine code; arguments as for :func:`linear_pass`.
    """
    parts, kept = room[:2]
    for row in range(start, stop, len(parts)):
        n_rows = min(len(parts), stop - row)
        write_scores(
            X, row, n_rows, centre, W, len(S), 1, parts, kept, S, row - start, shape, is_centred
        )


@compiled
def add_gradient_of_rows(
    X: Any, centre: Any, G: Any, start: int, stop: int, dW: Any, room: Any, shape: Any,
    is_centred: Any,
) -> None:  # fmt: skip
    """Add the gradient of the rows start:stop to dW; G (rows, columns padded) is the scores'."""
    parts, _, kept = room[:3]
    ahead = len(parts) * X.shape[1] * X.itemsize
    for row in range(start, stop, len(parts)):
        n_rows = min(len(parts), stop - row)
        add_gradient(X, row, n_rows, centre, G, row - start, dW, kept, ahead, shape, is_centred)


def zeros_of_W(n_features: int, n_columns: int, dtype: Any, shape: Shape) -> Any:
    """Return zeros (groups, vectors, columns, lanes); a strip or more of features."""
    lanes, _, columns, vectors = map(len, shape)
    n_vectors = -(-n_features // (lanes * vectors)) * vectors
    return aligned((-(-n_columns // columns), n_vectors, columns, lanes), dtype)


def room_for(W: Any, n_classes: int, block_rows: int, shape: Shape) -> tuple[Any, ...]:
    """Return what the blocks of a walk share.

    Parameters
    ----------
    W : array
        As for :func:`linear_pass`.
    n_classes : int
        Of all models.
    block_rows : int
        A multiple of 12.
    shape : tuple

    Returns
    -------
    parts
        Scores lane by lane.
    of_dot, of_outer
        The floats of the samples that a tile of the first group leaves.
    S, G
        Scores, and their gradient as the tiles read it.
    of_rows
        For :func:`~gpuclf.kernels.losses.loops.gradient_in_place`.
    """
    lanes, rows, columns, vectors = map(len, shape)
    groups, dtype, strip = len(W), W.dtype, lanes * vectors
    in_vectors = -(-block_rows // LANES) * LANES
    in_chunk = max(CHUNK_COLUMNS // columns, 1) * columns
    return (
        aligned((block_rows, in_chunk, lanes), dtype),
        aligned((rows, PANEL_BYTES // dtype.itemsize), dtype),
        aligned((block_rows, strip), dtype),
        aligned((n_classes, in_vectors), dtype),
        aligned((block_rows, groups * columns), dtype),
        room_of_rows(in_vectors, n_classes, dtype),
    )


def aligned(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return zeros that begin where a cache line does: loads of two lines take twice as long."""
    n_bytes = math.prod(shape) * dtype.itemsize
    room = np.zeros(n_bytes + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + n_bytes].view(dtype).reshape(shape)
