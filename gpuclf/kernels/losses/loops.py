"""Losses of scores with the classes as rows, compiled; needs numba.

With the samples along a row, a compiler works on as many at a time as a vector register holds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpuclf.kernels.building.machine_code import compiled

__all__ = ["LANES", "gradient_in_place", "gradients_in_place", "room_of_rows"]

# Compiled with what calls it, and only there: else once more at each level, a third longer in all.
inlined = partial(compiled, inline="always")
LANES = 16  # rows in multiples of these leave no rest that is worked on one by one
PART_BYTES = 16 << 10  # of a model's scores, half of L1
MIN_PART, MAX_PART = 64, 512


def room_of_rows(n_rows: int, dtype: Any) -> tuple[Any, ...]:
    """Return what :func:`gradient_in_place` writes to."""
    return np.zeros(n_rows, np.int64), *(np.zeros(n_rows, dtype) for _ in range(4))


@compiled
def gradients_in_place(
    scores: Any, bias: Any, y: Any, sample_weight: Any, losses: Any, totals: Any, hinge: bool
) -> None:
    """Do as :func:`gradient_in_place` for K models, a part of the rows at a time that stays in L1.

    Parameters
    ----------
    scores : array of shape (K, C, N)
        Without the bias.
    bias : array of shape (K, C)
    y : array of shape (N,)
    sample_weight : array of shape (1, N) or (K, N)
    losses, totals : float64 array of shape (K,) and (K, C)
        Added to.
    hinge : bool
    """
    n_models, n_classes, n_samples = scores.shape
    step = PART_BYTES // (scores.itemsize * n_classes) // LANES * LANES
    step = min(max(step, MIN_PART), MAX_PART, (n_samples + LANES - 1) // LANES * LANES)
    part, numbers = np.empty((n_classes, step), scores.dtype), np.zeros((4, step), scores.dtype)
    room = np.zeros(step, np.int64), numbers[0], numbers[1], numbers[2], numbers[3]
    for k in range(n_models):
        weights = sample_weight[k % len(sample_weight)]
        for first in range(0, n_samples, step):
            n_rows = min(step, n_samples - first)
            for c in range(n_classes):
                for r in range(n_rows):
                    part[c, r] = scores[k, c, first + r] + bias[k, c]
                for r in range(n_rows, step):
                    part[c, r] = 0
            losses[k] += gradient_in_place(
                part, y, weights, first, n_rows, n_classes - 1, totals[k], room, hinge
            )
            for c in range(n_classes):
                for r in range(n_rows):
                    scores[k, c, first + r] = part[c, r]


@inlined
def gradient_in_place(
    S: Any, y: Any, sample_weight: Any, first: int, n_rows: int, swapped: int, totals: Any,
    room: Any, hinge: bool,
) -> float:  # fmt: skip
    """Write the gradient of the loss over the scores of a block, and return the loss.

    Parameters
    ----------
    S : array of shape (C, rows)
        Behind `n_rows` any finite numbers; their gradient is zero.
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
        totals[c] += _sum(S[c])
    return float(loss)


@partial(compiled, fastmath={"reassoc"})
def _sum(row: Any) -> Any:
    """Add up in the order that vectors have: in theirs alone, each number would wait."""
    total = row.dtype.type(0)
    for r in range(len(row)):
        total += row[r]
    return total


@inlined
def _softmax_cross_entropy(
    S: Any, labels: Any, weights: Any, highest: Any, normaliser: Any
) -> float:
    """Return the weighted loss, and write its gradient over the scores, classes as rows."""
    n_classes, n_rows = S.shape
    for r in range(n_rows):
        highest[r], normaliser[r] = S[0, r], 0
    for c in range(1, n_classes):
        for r in range(n_rows):
            highest[r] = np.maximum(highest[r], S[c, r])  # max() is not made a vector's
    loss = 0.0
    for r in range(n_rows):
        loss -= weights[r] * (S[labels[r], r] - highest[r])
    for c in range(n_classes):
        _exponentials(S[c], highest, normaliser)
    for r in range(n_rows):
        loss += weights[r] * np.log(normaliser[r])
        normaliser[r] = weights[r] / normaliser[r]
    for c in range(n_classes):
        for r in range(n_rows):
            S[c, r] *= normaliser[r]
    for r in range(n_rows):
        S[labels[r], r] -= weights[r]
    return loss


@inlined
def _exponentials(row: Any, highest: Any, normaliser: Any) -> None:
    r"""Write ``exp(row - highest)``, of numbers up to 0, over the row, and add it to `normaliser`.

    :math:`e^x = 2^n e^{x - n \log 2}`, the second by its series: to 1 and 2 units in the last
    place. What would be below the smallest normal number is zero; NaN stays NaN. Written out,
    because for a vector of numbers there is no exponential that compilers know.
    """
    f = row.dtype.type
    if np.finfo(row.dtype).bits == 32:
        least, log2, rest = f(-87.0), f(0.693359375), f(-2.12194440e-4)
    else:
        least, log2, rest = f(-708.0), f(0.693145751953125), f(1.42860682030941723212e-6)
    magic = f(3 << (np.finfo(row.dtype).nmant - 1))  # so large a number has no fraction
    per_log2, zero, half, one = f(1.4426950408889634), f(0), f(0.5), f(1)
    for r in range(len(row)):
        difference = row[r] - highest[r]
        shifted = difference * per_log2 + magic
        n = shifted - magic
        x = (difference - n * log2) - n * rest  # log 2 in two parts, the first of few bits
        if np.finfo(row.dtype).bits == 32:
            y = x * f(1 / 5040) + f(1 / 720)
        else:
            y = x * f(1 / 479001600) + f(1 / 39916800)
            y = y * x + f(1 / 3628800)
            y = y * x + f(1 / 362880)
            y = y * x + f(1 / 40320)
            y = y * x + f(1 / 5040)
            y = y * x + f(1 / 720)
        y = y * x + f(1 / 120)
        y = y * x + f(1 / 24)
        y = y * x + f(1 / 6)
        y = y * x + half
        value = (y * x * x + x + one) * _power_of_two(shifted)
        value = zero if difference < least else value
        row[r] = value
        normaliser[r] += value


@intrinsic
def _power_of_two(typing_context: Any, kind: Any) -> Any:
    """Return 2**n, for n in the last bits of a float: in the bits of the result, its exponent."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        width, digits = (32, 23) if kind == types.float32 else (64, 52)
        bits = ir.IntType(width)
        n = builder.add(builder.bitcast(values[0], bits), bits((1 << (width - digits - 2)) - 1))
        return builder.bitcast(builder.shl(n, bits(digits)), values[0].type)

    return kind(kind), generate


@inlined
def _multiclass_hinge(
    S: Any, labels: Any, weights: Any, own: Any, of_row: Any, of_own: Any
) -> float:
    """Do as :func:`_softmax_cross_entropy`, for the hinge loss."""
    n_classes, n_rows = S.shape
    zero, one = S.dtype.type(0), S.dtype.type(1)
    for r in range(n_rows):
        own[r], of_row[r], of_own[r] = S[labels[r], r] - one, zero, zero
        S[labels[r], r] = own[r]  # a margin of zero: to ask for the class would keep vectors away
    for c in range(n_classes):
        for r in range(n_rows):
            margin = S[c, r] - own[r]
            is_violated = not margin <= zero  # NaN stays
            of_row[r] += margin if is_violated else zero
            S[c, r] = weights[r] if is_violated else zero
            of_own[r] += S[c, r]
    loss = 0.0
    for r in range(n_rows):
        loss += of_row[r] * weights[r]
        S[labels[r], r] = -of_own[r]
    return loss
