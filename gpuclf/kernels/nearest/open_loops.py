"""The loops of bounded.py: which samples are open, and their distances; needs numba.

A query's list holds the samples that are open: those that may be among its k nearest, as far as
rounded ranks can tell. It is tightened when it is full; what stays open is settled by differences
in float64 when the list has no room left, and at the end. All loops are in one file, because numba
takes what it compiled before as long as the file of the outermost function has not changed.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.cpython.unsafe.numbers import trailing_zeros

from gpuclf.kernels.building.emission import I32, I64, Code, emitted
from gpuclf.kernels.building.machine_code import compiled, processor_features

__all__ = [
    "LANES",
    "OPEN_SHARE",
    "PANEL_BYTES",
    "STRIPE",
    "TILE_ROWS",
    "Lists",
    "Nearest",
    "Samples",
    "centred",
    "differences",
    "finish",
    "norms",
    "packed",
    "select",
]

STRIPE = 64  # columns that are compared with the threshold at once, one bit each
PANEL_BYTES = 64  # of one feature: samples of B side by side, a lane each
TILE_ROWS = 12 if processor_features().get("avx512f") else 6  # whose sums fill the registers
LANES = 16  # numbers that are counted at once
FEW, MANY = 8, 512  # up to so many are sorted by insertion, and by counting
OPEN_SHARE = 20  # settling one sample in so many takes as long as the next stage
ROOTS = 2.0**-50  # two squares that differ by less may have the same root

F32, F64 = ir.FloatType(), ir.DoubleType()
CONTRACT = ("contract",)  # one rounding where the processor can


class Lists(NamedTuple):
    """The open samples of each query, in the order of their rows, and what bounds them."""

    lows: Any  # (queries, room): ranks, at least this far
    highs: Any  # and at most this far, but for the query's own slack
    rows: Any
    counts: Any  # of open samples; -1: given up, too many are open
    limits: Any  # counts at which to tighten
    thresholds: Any  # what is not below is no neighbour
    slacks: Any  # the query's share of the bound
    offsets: Any  # what its ranks lack for being distances
    grow: Any  # (1,): ranks are right but for this factor


class Nearest(NamedTuple):
    """The nearest settled samples of each query, ordered by (distance, row)."""

    ranks: Any  # the distances, or their squares
    indices: Any
    filled: Any
    settled: Any  # how many distances were computed for it


class Samples(NamedTuple):
    """What distances are computed from: queries multiplied already, samples with multipliers."""

    A: Any
    B: Any
    multipliers: Any  # (M,), or (1,) if they are all the same
    absolute: bool  # sums of absolute differences, not of squares
    final: bool  # ranks are right, and to be taken as they are


def _as_f64(builder: Any, value: Any, kind: Any, count: int = 0) -> Any:
    """Convert a number, or a vector of `count`, to float64; uint16 holds the bits of float16."""

    def of(scalar: Any) -> Any:
        return ir.VectorType(scalar, count) if count else scalar

    if kind == types.float64:
        return value
    if kind == types.float32:
        return builder.fpext(value, of(F64))
    if kind != types.uint16:
        return builder.uitofp(value, of(F64))

    def constant(scalar: Any, number: Any) -> Any:
        return ir.Constant(of(scalar), [number] * count if count else number)

    # The same fraction under float32's exponent, which the factor corrects, for subnormals too.
    bits = builder.zext(value, of(I32))
    size = builder.shl(builder.and_(bits, constant(I32, 0x7FFF)), constant(I32, 13))
    sign = builder.shl(builder.and_(bits, constant(I32, 0x8000)), constant(I32, 16))
    small = builder.bitcast(builder.or_(size, sign), of(F32))
    return builder.fmul(builder.fpext(small, of(F64)), constant(F64, 2.0**112))


def _double(*_: Any) -> Any:
    """Return the type that distances are settled in: see :func:`emitted`."""
    return types.float64


def _item(X: Any, *_: Any) -> Any:
    """Return the type of an array's items."""
    return X.dtype


@partial(emitted, returns=_double)
def _number(code: Code, X: Any, row: Any, d: Any) -> Any:
    """Return ``X[row, d]`` in float64."""
    item_bytes = X.dtype.bitwidth // 8
    value = code.load(code.at(X.row(row), code.times(d, item_bytes)), X.item, item_bytes)
    return _as_f64(code.builder, value, X.dtype)


def _sum_of_differences(absolute: bool) -> Any:
    """Return a function: the sum over d of a function of ``A[i, d] - B[j, d] * multiplier``."""

    @partial(emitted, returns=_double)
    def total(code: Code, A: Any, i: Any, B: Any, j: Any, multiplier: Any) -> Any:
        builder, lanes = code.builder, 8
        starts = [
            builder.bitcast(array.row(row), array.item.as_pointer())
            for array, row in ((A, i), (B, j))
        ]
        wide = ir.VectorType(F64, lanes)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for kind in (wide, F64)]

        def add(d: Any, count: int) -> None:
            numbers = []
            for start, array in zip(starts, (A, B), strict=True):
                kind = ir.VectorType(array.item, count) if count else array.item
                align = array.dtype.bitwidth // 8
                value = code.load(builder.gep(start, [d]), kind, align)
                numbers.append(_as_f64(builder, value, array.dtype, count))
            factor = code.everywhere(multiplier, wide) if count else multiplier
            difference = builder.fsub(numbers[0], builder.fmul(numbers[1], factor))
            place = sums[0 if count else 1]
            builder.store(_added(code, difference, builder.load(place), absolute), place)

        n = A.length(1)
        whole = builder.and_(n, I64(-lanes))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(lanes)) as (d, _):
            add(d, lanes)
        with cgutils.for_range_slice(builder, whole, n, I64(1)) as (d, _):
            add(d, 0)
        reduce = f"llvm.vector.reduce.fadd.v{lanes}f64"
        return code.call(
            reduce, F64, builder.load(sums[1]), builder.load(sums[0]), fastmath=("reassoc",)
        )

    return total


def _added(code: Code, difference: Any, total: Any, absolute: bool) -> Any:
    builder, kind = code.builder, difference.type
    if not absolute:
        square = builder.fmul(difference, difference, flags=CONTRACT)
        return builder.fadd(square, total, flags=CONTRACT)
    scalar = getattr(kind, "element", kind)
    bits = 32 if scalar == F32 else 64
    name = f"llvm.fabs.v{kind.count}f{bits}" if hasattr(kind, "element") else f"llvm.fabs.f{bits}"
    return builder.fadd(code.call(name, kind, difference), total)


_squares, _absolutes = _sum_of_differences(False), _sum_of_differences(True)


def _as_items(code: Code, number: Any, array: Any, count: int) -> Any:
    """Return a vector of a float, in the type of an array's items."""
    if array.item == F32:  # which it was before it was given in 64 bits
        number = code.builder.fptrunc(number, F32)
    return code.everywhere(number, ir.VectorType(array.item, count))


@partial(emitted, returns=lambda *_: types.uint64)
def _below(code: Code, C: Any, at: Any, low: Any, first: Any, threshold: Any) -> Any:
    """Return a bit for each of STRIPE columns: whether ``C + low`` is below the threshold."""
    builder, vector = code.builder, ir.VectorType(C.item, STRIPE)
    align = C.dtype.bitwidth // 8
    parts = [
        code.load(code.at(array, code.times(start, align)), vector, align)
        for array, start in ((C, at), (low, first))
    ]
    everywhere = _as_items(code, threshold, C, STRIPE)
    below = builder.fcmp_ordered("<", builder.fadd(*parts), everywhere)
    return builder.bitcast(below, ir.IntType(STRIPE))


def _over_vectors(what: str) -> Any:
    """Return a function of ``X[row, :n]``: its "least", how many are "below" y, the "most" of them.

    Whole vectors are read: what lies behind must be infinite.
    """

    @partial(emitted, returns=(lambda *_: types.int64) if what == "below" else _item)
    def found(code: Code, X: Any, row: Any, n: Any, y: Any) -> Any:
        builder = code.builder
        start = builder.bitcast(X.row(row), X.item.as_pointer())
        vector = ir.VectorType(X.item, LANES)
        integer = I32 if X.item == F32 else I64
        counts = ir.VectorType(integer, LANES)
        bound = _as_items(code, y, X, LANES)
        first = {
            "least": ir.Constant(vector, [float("inf")] * LANES),
            "most": ir.Constant(vector, [float("-inf")] * LANES),
            "below": ir.Constant(counts, None),
        }[what]
        total = cgutils.alloca_once_value(builder, first)
        with cgutils.for_range_slice(builder, I64(0), n, I64(LANES)) as (p, _):
            x = code.load(builder.gep(start, [p]), vector, X.dtype.bitwidth // 8)
            so_far = builder.load(total)
            if what == "below":
                below = builder.fcmp_ordered("<", x, bound)
                new = builder.sub(so_far, builder.sext(below, counts))
            elif what == "least":
                new = builder.select(builder.fcmp_ordered("<", x, so_far), x, so_far)
            else:
                more = builder.fcmp_ordered(">", x, so_far)
                more = builder.and_(more, builder.fcmp_ordered("<", x, bound))
                new = builder.select(more, x, so_far)
            builder.store(new, total)
        bits = 32 if X.item == F32 else 64
        if what == "below":
            sums = code.call(
                f"llvm.vector.reduce.add.v{LANES}i{bits}", integer, builder.load(total)
            )
            return sums if bits == 64 else builder.zext(sums, I64)
        name = {"least": "fmin", "most": "fmax"}[what]
        return code.call(f"llvm.vector.reduce.{name}.v{LANES}f{bits}", X.item, builder.load(total))

    return found


_least, _most, _count_below = map(_over_vectors, ("least", "most", "below"))


def _tile(absolute: bool) -> Any:
    """Return a function that fills ``out[i : i + TILE_ROWS]`` for the samples of one panel."""

    @emitted
    def tile(code: Code, A: Any, panels: Any, out: Any, i: Any, panel: Any) -> None:
        builder, rows = code.builder, range(TILE_ROWS)
        item_bytes = A.dtype.bitwidth // 8
        vector = ir.VectorType(A.item, PANEL_BYTES // item_bytes)
        starts = [A.row(code.plus(i, r)) for r in rows]
        b_start = panels.row(panel)
        zero = ir.Constant(vector, None)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in rows]
        with cgutils.for_range(builder, A.length(1)) as loop:
            b = code.load(code.at(b_start, code.times(loop.index, PANEL_BYTES)), vector, item_bytes)
            for r in rows:
                at = code.at(starts[r], code.times(loop.index, item_bytes))
                a = code.everywhere(code.load(at, A.item, item_bytes), vector)
                total = _added(code, builder.fsub(a, b), builder.load(sums[r]), absolute)
                builder.store(total, sums[r])
        for r in rows:
            at = code.at(out.row(code.plus(i, r)), code.times(panel, PANEL_BYTES))
            code.store(builder.load(sums[r]), at, item_bytes)

    return tile


_square_tile, _absolute_tile = _tile(False), _tile(True)


@compiled
def differences(A: Any, panels: Any, absolute: Any, out: Any) -> None:
    """Fill `out` with sums of differences: A has whole tiles of rows, B is in panels."""
    for panel in range(len(panels)):
        for i in range(0, len(A), TILE_ROWS):
            if absolute:
                _absolute_tile(A, panels, out, i, panel)
            else:
                _square_tile(A, panels, out, i, panel)


@compiled
def packed(rows: Any, panels: Any) -> None:
    """Write rows into panels (n, D, lanes): the same feature of several samples side by side."""
    lanes = panels.shape[2]
    for panel in range(len(panels)):
        for d in range(rows.shape[1]):
            for lane in range(lanes):
                panels[panel, d, lane] = rows[panel * lanes + lane, d]


@compiled
def centred(
    X: Any, first: Any, n: Any, multipliers: Any, centre: Any, absolute: Any, out: Any, norms: Any
) -> None:
    """Write ``X * multipliers - centre`` for n rows, and the norms of what was written.

    Squared norms, or sums of absolutes; computed in float64.
    """
    nothing = np.zeros((1, X.shape[1]))
    for i in range(n):
        multiplier = multipliers[first + i if len(multipliers) > 1 else 0]
        for d in range(X.shape[1]):
            out[i, d] = _number(X, first + i, d) * multiplier - centre[d]
        if absolute:
            norms[i] = _absolutes(nothing, 0, out, i, 1.0)
        else:
            norms[i] = _squares(nothing, 0, out, i, 1.0)


@compiled
def _kth_at_most(highs: Any, row: Any, n: Any, k: Any) -> Any:
    """Return one of ``highs[row, :n]`` that k do not exceed, or few more, by bisection."""
    number = highs.dtype.type
    highs[row, n : n + LANES] = np.inf
    least = np.float64(_least(highs, row, n, number(0)))
    most = np.float64(_most(highs, row, n, number(np.inf)))
    most += abs(most) * 2 * np.finfo(highs.dtype).eps + np.finfo(highs.dtype).tiny
    for _ in range(40):
        middle = number(least + (most - least) / 2)
        if not least < middle < most:
            break
        count = _count_below(highs, row, n, middle)
        if count < k:
            least = np.float64(middle)
            continue
        most = np.float64(middle)
        if count <= k + k // 8:
            break
    return np.float64(_most(highs, row, n, number(most)))


@compiled
def norms(X: Any, start: Any, stop: Any, out: Any) -> None:
    """Write the squared norms of some rows."""
    nothing = np.zeros((1, X.shape[1]))
    for i in range(start, stop):
        out[i] = _squares(nothing, 0, X, i, 1.0)


@compiled
def _lower(i: Any, kth: Any, lists: Any) -> None:
    """Lower a query's threshold to what no rank of a sample at distance `kth` exceeds."""
    slack, grow = lists.slacks[i], np.float64(lists.grow[0])
    if slack > 0 or grow > 1:
        kth = (kth + slack) * grow
        kth += abs(kth) * 4 * np.finfo(lists.lows.dtype).eps  # to round up
    lists.thresholds[i] = min(lists.thresholds[i], kth)


@compiled
def _limit(i: Any, lists: Any, samples: Any) -> Any:
    """Return the largest rank to keep: a listed sample wins ties, and roots may make some."""
    return lists.thresholds[i] * (1 + ROOTS if samples.final else 1)


@compiled
def _tighten(i: Any, n: Any, k: Any, lists: Any, samples: Any) -> Any:
    """Drop what the k-th smallest high shows to be too far; return how many stay."""
    _lower(i, _kth_at_most(lists.highs, i, n, k) + lists.slacks[i], lists)
    limit, kept = _limit(i, lists, samples), 0
    for p in range(n):  # without a branch: nobody could predict it
        rank, high, row = lists.lows[i, p], lists.highs[i, p], lists.rows[i, p]
        lists.lows[i, kept], lists.highs[i, kept], lists.rows[i, kept] = rank, high, row
        kept += rank <= limit
    return kept


@compiled
def _settle(i: Any, n: Any, k: Any, lists: Any, found: Any, samples: Any) -> None:
    """Merge a query's open samples into its nearest, by their distances."""
    have, limit = found.filled[i], _limit(i, lists, samples)
    worst = found.ranks[i, k - 1] if have == k else np.inf
    ranks, rows = np.empty((1, have + n + LANES)), np.empty(have + n, np.int64)
    for p in range(have):
        ranks[0, p], rows[p] = found.ranks[i, p], found.indices[i, p]
    total, many = have, len(samples.multipliers) > 1
    for p in range(n):
        rank, row = np.float64(lists.lows[i, p]), np.int64(lists.rows[i, p])
        if rank > limit:
            continue
        found.settled[i] += 1
        if not samples.final:
            multiplier = samples.multipliers[row if many else 0]
            if samples.absolute:
                rank = _absolutes(samples.A, i, samples.B, row, multiplier)
            else:
                rank = _squares(samples.A, i, samples.B, row, multiplier)
        ranks[0, total], rows[total] = rank, row
        total += rank < worst or have < k  # at the same distance, those before win
    if total > have:
        _merge(i, total, k, ranks, rows, found)
    if found.filled[i] == k:
        last = found.ranks[i, k - 1]
        if lists.slacks[i] > 0 or lists.grow[0] > 1:
            last *= 1 + (samples.A.shape[1] + 8) * 2.0**-53  # how wrong its sum may be
        _lower(i, last - lists.offsets[i], lists)


@compiled
def _merge(i: Any, total: Any, k: Any, ranks: Any, rows: Any, found: Any) -> None:
    """Keep the k nearest of samples that are in the order of preference at the same distance.

    By distance, not by rank: ranks may differ where distances tie.
    """
    if total > 2 * k + FEW:
        limit, kept = _kth_at_most(ranks, 0, total, k) * (1 + ROOTS), 0
        for p in range(total):
            rank, row = ranks[0, p], rows[p]
            ranks[0, kept], rows[kept] = rank, row
            kept += rank <= limit
        total = kept
    keys = np.empty(total)
    for p in range(total):
        keys[p] = math.sqrt(ranks[0, p])
    order = _sorted(keys)
    found.filled[i] = min(total, k)
    for p in range(found.filled[i]):
        found.ranks[i, p], found.indices[i, p] = ranks[0, order[p]], rows[order[p]]


@compiled
def _merged(keys: Any) -> Any:
    """Return what sorts the keys, stable, by merging; numba's own takes 5 s to compile."""
    n, run = len(keys), 1
    order, other = np.arange(n), np.empty(n, np.int64)
    while run < n:
        for start in range(0, n, 2 * run):
            left, right = start, min(start + run, n)
            middle, stop = right, min(start + 2 * run, n)
            for place in range(start, stop):
                if right == stop or (left < middle and keys[order[left]] <= keys[order[right]]):
                    other[place] = order[left]
                    left += 1
                else:
                    other[place] = order[right]
                    right += 1
        order, other = other, order
        run *= 2
    return order


@compiled
def _sorted(keys: Any) -> Any:
    """Return what sorts the keys, stable: by insertion, by counting, by merging."""
    n = len(keys)
    if n > MANY:
        return _merged(keys)
    order = np.arange(n)
    if n > FEW:
        padded, met = np.empty((1, n + LANES)), np.zeros(n, np.int64)
        padded[0, n:] = np.inf
        for p in range(n):  # assigning a slice takes 3 s to compile
            padded[0, p] = keys[p]
        for p in range(n):
            smaller = _count_below(padded, 0, n, keys[p])
            order[smaller + met[smaller]] = p
            met[smaller] += 1
        return order
    for p in range(1, n):
        place = p
        while place > 0 and keys[order[place - 1]] > keys[p]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = p
    return order


@compiled
def select(
    C: Any, low: Any, width: Any, first: Any, n_columns: Any, query: Any, n_queries: Any, k: Any,
    lists: Any, found: Any, samples: Any,
) -> None:  # fmt: skip
    """Add the open columns of C to the lists of its queries, the first of which is `query`.

    The rank of sample ``first + j`` is ``C[:, j] + low[j]``, which `width` may make too small.
    """
    room, grow = lists.rows.shape[1] - LANES, lists.grow[0]
    for r in range(n_queries):
        i = query + r
        n, full, threshold = lists.counts[i], lists.limits[i], low.dtype.type(lists.thresholds[i])
        if n < 0:
            continue
        for start in range(0, n_columns, STRIPE):
            bits = _below(C, r * C.shape[1] + start, low, start, threshold)
            while bits:
                j = start + np.int64(trailing_zeros(bits))
                bits &= bits - np.uint64(1)
                rank = C[r, j] + low[j]
                lists.lows[i, n], lists.highs[i, n] = rank, (rank + width[j]) * grow
                lists.rows[i, n] = first + j
                n += 1
            if n < full:
                continue
            n = _tighten(i, n, k, lists, samples)
            full = n + max(16, k, n // 2)  # tightening takes as long as the list
            if full + STRIPE > room:
                most = room // 4 + (first + start) // OPEN_SHARE
                if not samples.final and found.settled[i] + n > most:
                    n = -1
                    break
                _settle(i, n, k, lists, found, samples)
                n, full = 0, max(16, 2 * k)
            threshold = low.dtype.type(lists.thresholds[i])
        lists.counts[i], lists.limits[i] = n, full


@compiled
def finish(n_queries: Any, k: Any, lists: Any, found: Any, samples: Any) -> None:
    """Settle what is still open, except for queries that were given up."""
    for i in range(n_queries):
        n = lists.counts[i]
        if n >= k:
            n = _tighten(i, n, k, lists, samples)
        if n >= 0:
            _settle(i, n, k, lists, found, samples)
