"""Losses of a block of scores with the classes as rows, compiled; needs numba.

With the samples along a row, a compiler works on as many at a time as a vector register holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gpuclf.kernels.building.emission import I32, I64, Code, emitted
from gpuclf.kernels.building.machine_code import compiled

__all__ = ["LANES", "gradient_in_place", "room_of_rows"]

LANES = 16  # numbers that the exponentials are taken of at a time; LLVM cuts what is too long
# exp(x) = 2^n exp(r): r = x - n log 2 is small, and log 2 is subtracted in two parts, the first of
# few bits. The polynomial is Cephes' (Moshier, expf), from the highest power on.
LOG2_E, LOG_2 = 1.44269504088896341, (0.693359375, -2.12194440e-4)
OF_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
LEAST = -87.0  # below, the exponential is taken for zero: what comes next has no digits left


def room_of_rows(n_rows: int, dtype: Any) -> tuple[Any, ...]:
    """Return what :func:`gradient_in_place` writes to."""
    return np.zeros(n_rows, np.int64), *(np.zeros(n_rows, dtype) for _ in range(4))


@emitted
def exponentials(code: Code, S: Any, c: Any, highest: Any, normaliser: Any) -> None:
    """Write ``exp(S[c] - highest)``, of numbers up to 0, over S[c], and add it to `normaliser`.

    For float32, whose rows are a multiple of ``LANES`` long. NaN stays.
    """
    if not isinstance(S.item, ir.FloatType):
        return  # the caller's other branch
    builder, floats = code.builder, ir.VectorType(S.item, LANES)
    ints, row = ir.VectorType(I32, LANES), S.row(c)

    def all_of(value: float) -> Any:
        return ir.Constant(floats, [value] * LANES)

    with cgutils.for_range_slice(builder, I64(0), S.length(1), I64(LANES)) as (r, _):
        place = code.times(r, 4)
        x = builder.fsub(
            code.load(code.at(row, place), floats), code.load(code.at(highest, place), floats)
        )
        n = code.call(f"llvm.rint.v{LANES}f32", floats, builder.fmul(x, all_of(LOG2_E)))
        rest = x
        for part in LOG_2:
            rest = code.multiply_add(n, all_of(-part), rest)
        value = all_of(OF_EXP[0])
        for factor in (*OF_EXP[1:], 1.0, 1.0):
            value = code.multiply_add(value, rest, all_of(factor))
        exponent = builder.add(builder.fptosi(n, ints), ir.Constant(ints, [127] * LANES))
        power = builder.shl(exponent, ir.Constant(ints, [23] * LANES))
        value = builder.fmul(value, builder.bitcast(power, floats))
        is_none = builder.fcmp_ordered("<", x, all_of(LEAST))
        value = builder.select(is_none, all_of(0.0), value)
        code.store(value, code.at(row, place))
        total = code.at(normaliser, place)
        code.store(builder.fadd(code.load(total, floats), value), total)


@compiled
def gradient_in_place(
    S: Any, y: Any, sample_weight: Any, first: int, n_rows: int, swapped: int, totals: Any,
    room: Any, hinge: bool,
) -> float:  # fmt: skip
    """Write the gradient of the loss over the scores of a block, and return the loss.

    Parameters
    ----------
    S : array of shape (C, rows)
        The rows a multiple of ``LANES``. Of those behind `n_rows` any finite numbers; their
        gradient is zero.
    y, sample_weight : array of shape (N,)
    first, n_rows : int
        The samples of the block.
    swapped : int
        The class that stands in the last row, and the last class in its.
    totals : float64 array of shape (C,)
        The sums of the gradient over the rows are added.
    room : tuple
        As :func:`room_of_rows` gives it.
    hinge : bool
        The loss: else softmax cross-entropy.

    Returns
    -------
    float
        NaN if a label is out of range.
    """
    n_classes = len(S)
    labels, weights, first_room, second_room, third_room = room
    loss, last = 0.0, n_classes - 1
    for r in range(S.shape[1]):
        labels[r], weights[r] = 0, 0
    for r in range(n_rows):
        label = y[first + r]
        weights[r] = sample_weight[first + r]
        if not 0 <= label < n_classes:
            loss = np.nan
        elif label == swapped:
            labels[r] = last
        elif label == last:
            labels[r] = swapped
        else:
            labels[r] = label
    if hinge:
        loss += _multiclass_hinge(S, labels, weights, first_room, second_room, third_room)
    else:
        loss += _softmax_cross_entropy(S, labels, weights, first_room, second_room)
    for c in range(n_classes):
        for r in range(n_rows):
            totals[c] += S[c, r]
    return float(loss)


@compiled
def _softmax_cross_entropy(
    S: Any, labels: Any, weights: Any, highest: Any, normaliser: Any
) -> float:
    """Return the weighted loss, and write its gradient over the scores, classes as rows."""
    n_classes, n_rows = S.shape
    for r in range(n_rows):
        highest[r], normaliser[r] = S[0, r], 0
    for c in range(1, n_classes):
        for r in range(n_rows):
            highest[r] = max(highest[r], S[c, r])
    loss = 0.0
    for r in range(n_rows):
        loss -= weights[r] * (S[labels[r], r] - highest[r])
    for c in range(n_classes):
        if S.itemsize == 4:
            exponentials(S, c, highest, normaliser)
        else:
            for r in range(n_rows):
                S[c, r] = np.exp(S[c, r] - highest[r])
                normaliser[r] += S[c, r]
    for r in range(n_rows):
        loss += weights[r] * np.log(normaliser[r])
        normaliser[r] = weights[r] / normaliser[r]
    for c in range(n_classes):
        for r in range(n_rows):
            S[c, r] *= normaliser[r]
    for r in range(n_rows):
        S[labels[r], r] -= weights[r]
    return loss


@compiled
def _multiclass_hinge(
    S: Any, labels: Any, weights: Any, own: Any, of_row: Any, of_own: Any
) -> float:
    """Do as :func:`_softmax_cross_entropy`, for the hinge loss."""
    n_classes, n_rows = S.shape
    zero, one = S.dtype.type(0), S.dtype.type(1)
    for r in range(n_rows):
        own[r], of_row[r], of_own[r] = S[labels[r], r] - one, zero, zero
    for c in range(n_classes):
        for r in range(n_rows):
            margin = S[c, r] - own[r]
            is_violated = labels[r] != c and not margin <= zero  # NaN stays
            of_row[r] += margin if is_violated else zero
            S[c, r] = weights[r] if is_violated else zero
            of_own[r] += S[c, r]
    loss = 0.0
    for r in range(n_rows):
        loss += of_row[r] * weights[r]
        S[labels[r], r] = -of_own[r]
    return loss
