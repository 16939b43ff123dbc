"""The loops of on_cpu.py, sixteen rows at a time; imported only where numba is installed.

Their innermost parts keep a tile of a thin product in vector registers, by explicit LLVM code. A
compiler vectorises a loop over one accumulator, or over one row of them; it does not keep a tile
of rows by classes in registers, and without that every multiplication waits for a load. So the
tile is spelled out: :func:`dot_tile` for ``X @ W``, :func:`outer_tile` for ``X^T @ dS``. Each loads
a vector of X once and multiplies it with all classes of the tile.

How many classes a tile has is the length of the tuple that is passed as `tile`, so that numba
compiles, and caches, one version for each length. The other sizes follow from the processor:
with 32 vector registers (AVX-512, Arm) tiles hold up to 24 accumulators, with 16 up to 12.

All loops are in one file, because numba takes what it compiled before as long as the file of the
outermost function has not changed.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gpuclf.kernels.building.emission import I8, I32, I64, Array, Code, emitted
from gpuclf.kernels.building.machine_code import compiled

__all__ = [
    "BLOCK_ROWS",
    "TILE_ROWS",
    "VECTOR_BYTES",
    "add_gradient_of_rows",
    "aligned_zeros",
    "pass_converted",
    "pass_in_place",
    "scores_of_rows",
    "tiles",
]

_features = llvmlite.binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx") else 16
_MANY_REGISTERS = VECTOR_BYTES == 64 or _features.get("neon", False)
TILE_ROWS = 4 if _MANY_REGISTERS else 2  # of X in a dot tile
MAX_DOT_CLASSES = 6
OUTER_VECTORS = 2 if _MANY_REGISTERS else 1  # of features in an outer tile
MAX_OUTER_CLASSES = 12
BLOCK_ROWS = 16
# Features of W that a few tiles of rows use one after another, from L1.
DOT_FEATURES = 1024


class _Rows:
    """A matrix whose rows are contiguous: addresses of items, and vectors."""

    def __init__(self, code: Code, array: Array) -> None:
        self.code, self.scalar = code, array.item
        self.item_bytes = array.dtype.bitwidth // 8
        self.vector = ir.VectorType(self.scalar, VECTOR_BYTES // self.item_bytes)
        self._array = array

    def at(self, row: Any, column: Any) -> Any:
        """Return the address of an item."""
        row, column = (I64(i) if isinstance(i, int) else i for i in (row, column))
        builder = self.code.builder
        items = builder.bitcast(self._array.row(row), self.scalar.as_pointer())
        return builder.gep(items, [column])

    def _behind(self, address: Any, vector: int) -> Any:
        return self.code.builder.gep(address, [I64(vector * self.vector.count)])

    def load(self, address: Any, vector: int = 0) -> Any:
        """Load the vector that lies `vector` registers behind an address."""
        return self.code.load(self._behind(address, vector), self.vector, self.item_bytes)

    def store(self, value: Any, address: Any, vector: int = 0) -> None:
        """Store a vector `vector` registers behind an address."""
        self.code.store(value, self._behind(address, vector), self.item_bytes)

    def prefetch(self, address: Any, vector: int, bytes_ahead: Any) -> None:
        """Ask for the cache line `bytes_ahead` of a vector, into L2."""
        builder, code = self.code.builder, self.code
        ahead = builder.bitcast(self._behind(address, vector), I8.as_pointer())
        for_reading, into_l2, data = I32(0), I32(2), I32(1)
        given = code.at(ahead, bytes_ahead), for_reading, into_l2, data
        code.call("llvm.prefetch.p0", ir.VoidType(), *given)


def _multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    contract = ("contract",)  # one rounding where the processor can
    return builder.fadd(builder.fmul(a, b, flags=contract), total, flags=contract)


def _sum(code: Code, vector: Any) -> Any:
    kind, scalar = vector.type, vector.type.element
    bits = 32 if isinstance(scalar, ir.FloatType) else 64
    name = f"llvm.vector.reduce.fadd.v{kind.count}f{bits}"
    return code.call(name, scalar, ir.Constant(scalar, 0.0), vector, fastmath=("reassoc",))


@emitted
def dot_tile(
    code: Code, X: Any, W: Any, S: Any, row: Any, first: Any, start: Any, stop: Any, n_classes: int
) -> None:
    """Add ``X[row + r, start:stop] @ W[first + c, start:stop]`` to ``S[row + r, first + c]``.

    For ``TILE_ROWS`` rows r and as many classes c as the last argument, a tuple, is long.
    ``stop - start`` must be a multiple of the numbers in a vector.
    """
    builder = code.builder
    x, w, s = (_Rows(code, array) for array in (X, W, S))
    rows, classes = range(TILE_ROWS), range(n_classes)
    x_rows = [x.at(code.plus(row, r), 0) for r in rows]
    w_rows = [w.at(code.plus(first, c), 0) for c in classes]
    zero = ir.Constant(x.vector, [0.0] * x.vector.count)
    # LLVM turns these stack slots into registers.
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in classes] for _ in rows]
    step = I64(x.vector.count)
    with cgutils.for_range_slice(builder, start, stop, step) as (d, _):
        x_vectors = [x.load(builder.gep(x_rows[r], [d])) for r in rows]
        for c in classes:
            w_vector = w.load(builder.gep(w_rows[c], [d]))
            for r in rows:
                total = builder.load(sums[r][c])
                total = _multiply_add(builder, x_vectors[r], w_vector, total)
                builder.store(total, sums[r][c])
    for r in rows:
        for c in classes:
            address = s.at(code.plus(row, r), code.plus(first, c))
            total = _sum(code, builder.load(sums[r][c]))
            builder.store(builder.fadd(builder.load(address), total), address)


@emitted
def outer_tile(
    code: Code, X: Any, S: Any, dW: Any, n_rows: Any, first: Any, column: Any, bytes_ahead: Any,
    n_classes: int,
) -> None:  # fmt: skip
    """Add ``S[:, first + c]^T @ X[:, column + d]`` to ``dW[first + c, column + d]``.

    For as many classes c as the last argument, a tuple, is long, and as many features d as
    ``OUTER_VECTORS`` vectors hold. On the way, the memory `bytes_ahead` of each row of X is called
    into the cache: nothing else keeps the memory busy in this phase.
    """
    builder = code.builder
    x, s, dw = (_Rows(code, array) for array in (X, S, dW))
    vectors, classes = range(OUTER_VECTORS), range(n_classes)
    dw_rows = [dw.at(code.plus(first, c), column) for c in classes]
    sums = [
        [cgutils.alloca_once_value(builder, dw.load(dw_rows[c], v)) for v in vectors]
        for c in classes
    ]
    with cgutils.for_range(builder, n_rows) as loop:
        x_row = x.at(loop.index, column)
        x_vectors = [x.load(x_row, v) for v in vectors]
        for v in vectors:
            x.prefetch(x_row, v, bytes_ahead)
        s_row = s.at(loop.index, first)
        for c in classes:
            factor = code.everywhere(builder.load(builder.gep(s_row, [I64(c)])), x.vector)
            for v in vectors:
                total = builder.load(sums[c][v])
                builder.store(_multiply_add(builder, factor, x_vectors[v], total), sums[c][v])
    for c in classes:
        for v in vectors:
            dw.store(builder.load(sums[c][v]), dw_rows[c], v)


@emitted
def widen_bytes(code: Code, X: Any, out: Any, row: Any, out_row: Any, stop: Any) -> None:
    """Write ``X[row, :stop] - 128`` to ``out[out_row, :stop]`` as floats, a vector at a time.

    `stop` must be a multiple of the numbers in a vector.
    """
    builder, x, o = code.builder, _Rows(code, X), _Rows(code, out)
    source, target = x.at(row, 0), o.at(out_row, 0)
    count = o.vector.count
    pixels = ir.VectorType(I8, count)
    top_bits = ir.Constant(pixels, [128] * count)
    with cgutils.for_range_slice(builder, I64(0), stop, I64(count)) as (d, _):
        loaded = code.load(builder.gep(source, [d]), pixels)
        # Flipping the top bit and reading the byte as signed is "minus 128".
        signed = builder.sext(builder.xor(loaded, top_bits), ir.VectorType(I32, count))
        o.store(builder.sitofp(signed, o.vector), builder.gep(target, [d]))


@emitted
def widen_halves(
    code: Code, X: Any, centre: Any, out: Any, row: Any, out_row: Any, stop: Any, end: Any
) -> None:
    """Write ``X[row, :end] - centre[0, :end]``, X being float16, to ``out[out_row, :end]``.

    A vector at a time before `stop`, which must be a multiple of the numbers in one. `centre` and
    `out` are floats of the same length.
    """
    builder, x, c, o = code.builder, _Rows(code, X), _Rows(code, centre), _Rows(code, out)
    source, middle, target = x.at(row, 0), c.at(0, 0), o.at(out_row, 0)
    with cgutils.for_range_slice(builder, I64(0), stop, I64(o.vector.count)) as (d, _):
        halves = code.load(builder.gep(source, [d]), ir.VectorType(ir.HalfType(), o.vector.count))
        less = builder.fsub(builder.fpext(halves, o.vector), c.load(builder.gep(middle, [d])))
        o.store(less, builder.gep(target, [d]))
    with cgutils.for_range_slice(builder, stop, end, I64(1)) as (d, _):
        half = code.load(builder.gep(source, [d]), ir.HalfType())
        less = builder.fsub(builder.fpext(half, o.scalar), builder.load(builder.gep(middle, [d])))
        builder.store(less, builder.gep(target, [d]))


def tiles(n_classes: int) -> tuple[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut the classes into equal tiles, for X @ W and for X^T @ dS.

    Returns
    -------
    padded : (int, int)
        Classes with the padding that fills the last tile.
    tiles : (tuple, tuple)
        Each as long as the tile is wide.
    """
    counts = [-(-n_classes // most) for most in (MAX_DOT_CLASSES, MAX_OUTER_CLASSES)]
    widths = [-(-n_classes // count) for count in counts]
    padded = counts[0] * widths[0], counts[1] * widths[1]
    return padded, ((0,) * widths[0], (0,) * widths[1])


@compiled
def aligned_zeros(n_rows: int, n_columns: int, like: Any) -> Any:
    """Return zeros of the dtype of `like` that begin where a vector register's worth does.

    Loads that straddle two cache lines take twice as long. Rows after the first are aligned if
    their length is.
    """
    lanes = VECTOR_BYTES // like.itemsize
    room = np.zeros(n_rows * n_columns + lanes, like.dtype)
    first = -(room.ctypes.data // like.itemsize) % lanes
    return room[first : first + n_rows * n_columns].reshape(n_rows, n_columns)


@compiled
def _copy(source: Any, first: int, target: Any) -> None:
    """Copy the columns from `first` on to the upper left of `target`.

    Spelled out: numba's assignment of slices brings the text of its error, which takes longer to
    compile than all of this file's loops.
    """
    for row in range(source.shape[0]):
        for column in range(first, source.shape[1]):
            target[row, column - first] = source[row, column]


@compiled
def pass_in_place(
    X: Any, W: Any, b: Any, y: Any, weights: Any, start: int, stop: int, dW: Any, db: Any,
    tiles: Any, hinge: bool,
) -> float:  # fmt: skip
    """Add the gradients of the rows start:stop to dW and db, and return their loss.

    Parameters
    ----------
    X : array of shape (N, D)
        Of the dtype of W. Its rows are taken as they lie in memory, aligned or not: the order of
        the sums must not depend on an address.
    W, dW : array of shape (C, D)
        With rows of zeros behind the last class, as :func:`tiles` says.
    b, db : array of shape (C,)
    y, weights : array of shape (N,)
    start, stop : int
    tiles : (tuple, tuple)
    hinge : bool
        The loss: else softmax cross-entropy.
    """
    work = _workspace(W, dW)
    loss = 0.0
    whole = start + (stop - start) // BLOCK_ROWS * BLOCK_ROWS
    for row in range(start, whole, BLOCK_ROWS):
        end = row + BLOCK_ROWS
        loss += _block(X[row:end], W, b, y[row:end], weights[row:end], dW, db, work, tiles, hinge)
    if whole < stop:
        last = np.zeros((BLOCK_ROWS, X.shape[1]), W.dtype)
        _copy(X[whole:stop], 0, last)
        loss += _block(last, W, b, y[whole:stop], weights[whole:stop], dW, db, work, tiles, hinge)
    _add_rest(work, dW)
    return loss


@compiled
def pass_converted(
    X: Any, centre: Any, W: Any, b: Any, y: Any, weights: Any, start: int, stop: int, dW: Any,
    db: Any, tiles: Any, hinge: bool,
) -> float:  # fmt: skip
    """Do as :func:`pass_in_place`, on ``X - 128`` for bytes and ``X - centre`` for floats.

    float16 come as the int16 that have their bits: numba does not know them.
    """
    work = _workspace(W, dW)
    x = aligned_zeros(BLOCK_ROWS, X.shape[1], W)
    loss = 0.0
    for row in range(start, stop, BLOCK_ROWS):
        end = min(row + BLOCK_ROWS, stop)
        for r in range(end - row):
            _convert(X, row + r, centre, x, r)
        loss += _block(x, W, b, y[row:end], weights[row:end], dW, db, work, tiles, hinge)
    _add_rest(work, dW)
    return loss


@compiled
def _convert(X: Any, row: int, centre: Any, x: Any, r: int) -> None:
    if X.itemsize == 2:
        lanes = VECTOR_BYTES // x.itemsize
        in_vectors = X.shape[1] // lanes * lanes
        widen_halves(X, centre.reshape(1, -1), x, row, r, in_vectors, X.shape[1])
        return
    if X.itemsize > 1:
        for d in range(X.shape[1]):
            x[r, d] = X[row, d] - centre[d]
        return
    lanes = VECTOR_BYTES // x.itemsize
    in_vectors = X.shape[1] // lanes * lanes
    widen_bytes(X, x, row, r, in_vectors)
    for d in range(in_vectors, X.shape[1]):
        x[r, d] = np.int64(X[row, d]) - 128


@compiled
def _workspace(W: Any, dW: Any) -> Any:
    """Return what the blocks share.

    The features before `stop` fill whole vectors. The rest are gathered into vectors of their own,
    for X, W and dW.
    """
    n_features, step = W.shape[1], VECTOR_BYTES // W.itemsize * OUTER_VECTORS
    stop = n_features // step * step
    width = (n_features - stop + step - 1) // step * step
    S = aligned_zeros(BLOCK_ROWS, max(len(W), len(dW)), W)
    x_rest = aligned_zeros(BLOCK_ROWS, width, W)
    W_rest = aligned_zeros(len(W), width, W)
    dW_rest = aligned_zeros(len(dW), width, W)
    _copy(W, stop, W_rest)
    return S, x_rest, W_rest, dW_rest, stop


@compiled
def _add_rest(work: Any, dW: Any) -> None:
    _, _, _, dW_rest, stop = work
    for c in range(len(dW)):
        for d in range(stop, dW.shape[1]):
            dW[c, d] += dW_rest[c, d - stop]


@compiled
def _block(
    x: Any, W: Any, b: Any, y: Any, weights: Any, dW: Any, db: Any, work: Any, tiles: Any,
    hinge: bool,
) -> float:  # fmt: skip
    S = work[0]
    n_classes = len(b)
    _write_scores(x, W, b, S, work, tiles[0])
    loss = 0.0
    for r in range(len(y)):
        scores = S[r, :n_classes]
        if not 0 <= y[r] < n_classes:
            scores[:] = np.nan
            loss = np.nan
        elif hinge:
            loss += _multiclass_hinge(scores, y[r], weights[r])
        else:
            loss += _softmax_cross_entropy(scores, y[r], weights[r])
        for c in range(n_classes):
            db[c] += S[r, c]
    _add_gradient(x, S, len(y), dW, work, tiles[1])
    return loss


@compiled
def _write_scores(x: Any, W: Any, b: Any, S: Any, work: Any, tile: Any) -> None:
    _, x_rest, W_rest, _, stop = work
    S[:] = 0
    _copy(x, stop, x_rest)
    _dot(x, W, S, 0, stop, tile)
    _dot(x_rest, W_rest, S, 0, x_rest.shape[1], tile)
    for r in range(len(S)):  # last: large biases would cost the products digits
        for c in range(len(b)):
            S[r, c] += b[c]


@compiled
def _add_gradient(x: Any, S: Any, n_rows: int, dW: Any, work: Any, tile: Any) -> None:
    _, x_rest, _, dW_rest, stop = work
    _outer(x, S, n_rows, dW, 0, stop, BLOCK_ROWS * x.strides[0], tile)
    _outer(x_rest, S, n_rows, dW_rest, 0, x_rest.shape[1], 0, tile)


@compiled
def scores_of_rows(
    X: Any, centre: Any, W: Any, b: Any, start: int, stop: int, dW: Any, tiles: Any
) -> Any:
    """Return the scores of the rows start:stop, with whole blocks of rows and columns of dW.

    For a loss that is not in machine code; arguments as for :func:`pass_in_place`, and `centre` as
    for :func:`pass_converted`, or None if X is taken as it is.
    """
    work = _workspace(W, dW)
    x = aligned_zeros(BLOCK_ROWS, X.shape[1], W)
    n_blocks = (stop - start + BLOCK_ROWS - 1) // BLOCK_ROWS
    S = aligned_zeros(n_blocks * BLOCK_ROWS, max(len(W), len(dW)), W)
    for first in range(0, stop - start, BLOCK_ROWS):
        _take_rows(X, centre, start + first, min(start + first + BLOCK_ROWS, stop), x)
        _write_scores(x, W, b, S[first : first + BLOCK_ROWS], work, tiles[0])
    return S


@compiled
def add_gradient_of_rows(
    X: Any, centre: Any, S: Any, start: int, stop: int, W: Any, dW: Any, tiles: Any
) -> None:
    """Add the gradient of the rows start:stop to dW, where S holds that of their scores."""
    work = _workspace(W, dW)
    x = aligned_zeros(BLOCK_ROWS, X.shape[1], W)
    for first in range(0, stop - start, BLOCK_ROWS):
        end = min(start + first + BLOCK_ROWS, stop)
        n_rows = end - start - first
        _take_rows(X, centre, start + first, end, x)
        _, x_rest, _, _, whole = work
        _copy(x, whole, x_rest)
        _add_gradient(x, S[first : first + BLOCK_ROWS], n_rows, dW, work, tiles[1])
    _add_rest(work, dW)


@compiled
def _take_rows(X: Any, centre: Any, start: int, stop: int, x: Any) -> None:
    for r in range(stop - start):
        if centre is None:
            x[r] = X[start + r]
        else:
            _convert(X, start + r, centre, x, r)


@compiled
def _dot(x: Any, W: Any, S: Any, start: int, stop: int, tile: Any) -> None:
    for first_feature in range(start, stop, DOT_FEATURES):
        last_feature = min(first_feature + DOT_FEATURES, stop)
        for row in range(0, BLOCK_ROWS, TILE_ROWS):
            for first in range(0, len(W), len(tile)):
                dot_tile(x, W, S, row, first, first_feature, last_feature, tile)


@compiled
def _outer(
    x: Any, S: Any, n_rows: int, dW: Any, start: int, stop: int, bytes_ahead: int, tile: Any
) -> None:
    for column in range(start, stop, VECTOR_BYTES // x.itemsize * OUTER_VECTORS):
        for first in range(0, len(dW), len(tile)):
            outer_tile(x, S, dW, n_rows, first, column, bytes_ahead, tile)


@compiled
def _softmax_cross_entropy(scores: Any, label: int, weight: Any) -> float:
    """Return the weighted loss of one sample, and write its gradient over the scores."""
    highest, own = scores.max(), scores[label]
    normaliser = scores.dtype.type(0)
    for c in range(len(scores)):
        scores[c] = np.exp(scores[c] - highest)
        normaliser += scores[c]
    for c in range(len(scores)):
        scores[c] *= weight / normaliser
    scores[label] -= weight
    loss: float = (np.log(normaliser) + (highest - own)) * weight
    return loss


@compiled
def _multiclass_hinge(scores: Any, label: int, weight: Any) -> float:
    """Do as :func:`_softmax_cross_entropy`, for the hinge loss."""
    own, loss = scores[label], 0.0
    n_violations = 0
    for c in range(len(scores)):
        margin = scores[c] - own + 1
        scores[c] = 0
        if margin > 0 and c != label:
            loss += margin
            scores[c] = weight
            n_violations += 1
        elif margin != margin:
            loss = np.nan
            scores[c] = np.nan
    scores[label] = -n_violations * weight
    weighted: float = loss * weight
    return weighted
