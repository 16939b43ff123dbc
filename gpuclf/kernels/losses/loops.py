"""Losses of scores with the classes as rows, compiled; needs numba.

With the samples along a row, a vector register holds as many of them, and a loop over the classes
has nothing to exchange between its lanes. What a compiler makes of such loops written plainly
takes four times as long: it calls a function for each logarithm, and multiplies and adds apart. So
they are spelled out in LLVM's instructions.

Samples are taken 64 bytes at a time, three times each, while their scores are in L1: for the
highest score and their own class's, for the loss, and for its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from gpuclf.kernels.building.emission import I32, I64, Array, Code, emitted
from gpuclf.kernels.building.machine_code import compiled
from gpuclf.kernels.losses.on_cpu import LANES

__all__ = ["gradient_in_place", "gradients_in_place", "room_of_rows"]

LINE = 64
MAX_PART = 512  # rows whose labels and weights stay in L1


def room_of_rows(n_rows: int, n_classes: int, dtype: Any) -> tuple[Any, ...]:
    """Return what :func:`gradient_in_place` writes to."""
    sums = np.zeros((n_classes, LINE // dtype.itemsize), dtype)
    return np.zeros(n_rows, np.int32), np.zeros(n_rows, dtype), sums


@compiled
def gradients_in_place(
    scores: Any, bias: Any, y: Any, sample_weight: Any, losses: Any, totals: Any, hinge: bool
) -> None:
    """Do as :func:`gradient_in_place` for K models.

    Parameters
    ----------
    scores : array of shape (K, C, padded_length(N))
        Without the bias. What is behind the N samples is overwritten.
    bias : array of shape (K, C)
    y : array of shape (N,)
    sample_weight : array of shape (1, N) or (K, N)
    losses, totals : float64 array of shape (K,) and (K, C)
        Added to.
    hinge : bool
    """
    n_models, n_classes, n_padded = scores.shape
    n_samples, step = len(y), min(MAX_PART, n_padded)
    sums = np.empty((n_classes, LINE // scores.itemsize), scores.dtype)
    room = np.empty(step, np.int32), np.empty(step, scores.dtype), sums
    for k in range(n_models):
        weights = sample_weight[k % len(sample_weight)]
        for c in range(n_classes):
            for r in range(n_samples, n_padded):
                scores[k, c, r] = 0
        for first in range(0, n_samples, step):
            n_rows = min(step, n_samples - first)
            losses[k] += gradient_in_place(
                scores[k], first, bias[k], y, weights, first, n_rows, n_classes - 1, totals[k],
                room, hinge,
            )  # fmt: skip


# Compiled with what calls it, and only there: else once more at each level, a third longer in all.
@partial(compiled, inline="always")
def gradient_in_place(
    S: Any, column: int, bias: Any, y: Any, sample_weight: Any, first: int, n_rows: int,
    swapped: int, totals: Any, room: Any, hinge: bool,
) -> float:  # fmt: skip
    """Write the gradient of the loss over the scores of a block, and return the loss.

    Parameters
    ----------
    S : array of shape (C, rows)
    column : int
        Where the block begins. Behind its `n_rows`, up to a multiple of `LANES`, there are any
        finite numbers; their gradient is zero.
    bias : array of shape (C,)
        Added to the scores.
    y, sample_weight : array of shape (N,)
    first, n_rows : int
        The samples of the block.
    swapped : int
        The class that stands in the last row, and the last class in its.
    totals : float64 array of shape (C,)
        The sums of the gradient over the rows are added.
    room : tuple
        As :func:`room_of_rows` gives it, of as many rows or more.
    hinge : bool
        The loss: else softmax cross-entropy.

    Returns
    -------
    float
        NaN if a label is out of range.
    """
    n_classes = len(S)
    labels, weights, sums = room
    loss, last = 0.0, n_classes - 1
    padded = (n_rows + LANES - 1) // LANES * LANES
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
    for r in range(n_rows, padded):
        labels[r], weights[r] = 0, 0
    sums[:] = 0
    if hinge:
        loss += _multiclass_hinge(S, column, bias, labels, weights, sums, padded)
    else:
        loss += _softmax_cross_entropy(S, column, bias, labels, weights, sums, padded)
    for c in range(n_classes):
        for lane in range(sums.shape[1]):
            totals[c] += sums[c, lane]
    return float(loss)


class _Rows:
    """Vectors of the samples `first` and on, whose scores are in the rows of S."""

    def __init__(
        self, code: Code, S: Array, column: Any, bias: Array, labels: Array, weights: Array,
        sums: Array, first: Any,
    ) -> None:  # fmt: skip
        self.code, self.builder, self.S, self.bias, self.sums = code, code.builder, S, bias, sums
        self.item = S.dtype.bitwidth // 8
        self.vector = ir.VectorType(S.item, LINE // self.item)
        self.behind = code.times(code.builder.add(column, first), self.item)
        self.weights = code.load(code.at(weights, code.times(first, self.item)), self.vector)
        whole = ir.VectorType(I32, self.vector.count)
        self.labels = code.load(code.at(labels, code.times(first, 4)), whole)

    def number(self, value: float) -> Any:
        """Return a vector of a number."""
        return ir.Constant(self.vector, [value] * self.vector.count)

    def whole(self, value: int) -> Any:
        """Return a vector of a whole number of as many bits."""
        kind = ir.VectorType(ir.IntType(8 * self.item), self.vector.count)
        return ir.Constant(kind, [value] * self.vector.count)

    def start_with(self, value: Any) -> Any:
        """Return a place for a vector that loops change, which LLVM keeps in a register."""
        return cgutils.alloca_once_value(self.builder, value)

    def add_to(self, place: Any, value: Any) -> None:
        """Add to what is at a place."""
        self.builder.store(self.builder.fadd(self.builder.load(place), value), place)

    def for_classes(self, body: Callable[[Any, Any, Any], None]) -> None:
        """Emit ``body(class, address of its scores, whether it is the samples' own)`` in a loop."""
        with cgutils.for_range(self.builder, self.S.length(0)) as loop:
            number = self.code.everywhere(self.builder.trunc(loop.index, I32), self.labels.type)
            is_own = self.builder.icmp_signed("==", self.labels, number)
            body(loop.index, self.code.at(self.S.row(loop.index), self.behind), is_own)

    def score(self, c: Any, address: Any) -> Any:
        """Return the scores of a class."""
        bias = self.code.load(
            self.code.at(self.bias, self.code.times(c, self.item)), self.S.item, self.item
        )
        value = self.code.load(address, self.vector, self.item)
        return self.builder.fadd(value, self.code.everywhere(bias, self.vector))

    def keep_gradient(self, c: Any, address: Any, value: Any) -> None:
        """Write the gradient over the scores of a class, and add it to the sums."""
        self.code.store(value, address, self.item)
        total = self.sums.row(c)
        before = self.code.load(total, self.vector, self.item)
        self.code.store(self.builder.fadd(before, value), total, self.item)

    def sum(self, values: Any) -> Any:
        """Return the sum in float64."""
        doubles = ir.VectorType(ir.DoubleType(), self.vector.count)
        return self.code.sum(
            values if values.type == doubles else self.builder.fpext(values, doubles)
        )


def _emitted_loss(of_rows: Callable[[_Rows], Any]) -> Any:
    """Make a function for compiled loops of what emits the loss of some rows and returns it."""

    def body(
        code: Code, S: Any, column: Any, bias: Any, labels: Any, weights: Any, sums: Any,
        n_rows: Any,
    ) -> Any:  # fmt: skip
        builder = code.builder
        total = cgutils.alloca_once_value(builder, ir.Constant(ir.DoubleType(), 0.0))
        step = I64(LINE // (S.dtype.bitwidth // 8))
        with cgutils.for_range_slice(builder, I64(0), n_rows, step, inc=True) as (first, _):
            rows = _Rows(code, S, column, bias, labels, weights, sums, first)
            rows.add_to(total, rows.sum(of_rows(rows)))
        return builder.load(total)

    body.__name__ = of_rows.__name__
    return emitted(body, returns=lambda *_: types.float64)


@_emitted_loss
def _softmax_cross_entropy(rows: _Rows) -> Any:
    builder = rows.builder
    highest, own = rows.start_with(rows.number(-math.inf)), rows.start_with(rows.number(0.0))
    normaliser = rows.start_with(rows.number(0.0))

    def look(c: Any, address: Any, is_own: Any) -> None:
        score, before = rows.score(c, address), builder.load(highest)
        is_higher = builder.fcmp_ordered(">", score, before)
        builder.store(builder.select(is_higher, score, before), highest)
        builder.store(builder.select(is_own, score, builder.load(own)), own)

    def exponentiate(c: Any, address: Any, is_own: Any) -> None:
        value = _exponential(rows, builder.fsub(rows.score(c, address), builder.load(highest)))
        rows.code.store(value, address, rows.item)
        rows.add_to(normaliser, value)

    def differentiate(c: Any, address: Any, is_own: Any) -> None:
        probability = builder.fmul(rows.code.load(address, rows.vector, rows.item), factor)
        taken = builder.select(is_own, rows.weights, rows.number(0.0))
        rows.keep_gradient(c, address, builder.fsub(probability, taken))

    rows.for_classes(look)
    rows.for_classes(exponentiate)
    factor = builder.fdiv(rows.weights, builder.load(normaliser))
    rows.for_classes(differentiate)
    difference = builder.fsub(builder.load(highest), builder.load(own))
    loss = builder.fadd(_logarithm(rows, builder.load(normaliser)), difference)
    return builder.fmul(rows.weights, loss)


@_emitted_loss
def _multiclass_hinge(rows: _Rows) -> Any:
    builder = rows.builder
    own, zero = rows.start_with(rows.number(0.0)), rows.number(0.0)

    def look(c: Any, address: Any, is_own: Any) -> None:
        score = rows.score(c, address)
        builder.store(builder.select(is_own, score, builder.load(own)), own)

    def violate(c: Any, address: Any, is_own: Any) -> None:
        margin = builder.fsub(rows.score(c, address), threshold)
        is_met = builder.or_(is_own, builder.fcmp_ordered("<=", margin, zero))  # not by NaN
        rows.add_to(of_rows, builder.select(is_met, zero, margin))
        gradient = builder.select(is_met, zero, rows.weights)
        rows.code.store(gradient, address, rows.item)
        rows.add_to(of_own, gradient)

    def differentiate(c: Any, address: Any, is_own: Any) -> None:
        gradient = rows.code.load(address, rows.vector, rows.item)
        negative = builder.fneg(builder.load(of_own))
        rows.keep_gradient(c, address, builder.select(is_own, negative, gradient))

    rows.for_classes(look)
    of_label = builder.load(own)
    threshold = builder.fsub(of_label, rows.number(1.0))
    of_rows = rows.start_with(builder.fsub(of_label, of_label))  # NaN stays
    of_own = rows.start_with(zero)
    rows.for_classes(violate)
    rows.for_classes(differentiate)
    return builder.fmul(rows.weights, builder.load(of_rows))


def _polynomial(rows: _Rows, x: Any, coefficients: list[float]) -> Any:
    """Return the sum of ``coefficients[i] * x**i``, by Horner's scheme."""
    value = rows.number(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = rows.code.multiply_add(value, x, rows.number(coefficient))
    return value


def _exponential(rows: _Rows, x: Any) -> Any:
    r"""Return :math:`e^x` of numbers up to 0, to 2 units in the last place.

    :math:`e^x = 2^n e^{x - n \log 2}`, the second by its series. What would be below the smallest
    normal number is zero; NaN stays NaN.
    """
    builder, is_single, bits = rows.builder, rows.item == 4, 8 * rows.item
    digits = 23 if is_single else 52
    # log 2 in two parts, the first of few bits: its products with n are exact.
    upper = 0.693359375 if is_single else 0.693145751953125
    lower = -2.12194440e-4 if is_single else 1.42860682030941723212e-6
    least, n_terms = (-87.0, 8) if is_single else (-708.0, 13)
    magic = rows.number(float(3 << (digits - 1)))  # so large a number has no fraction
    shifted = rows.code.multiply_add(x, rows.number(1 / math.log(2)), magic)
    n = builder.fsub(shifted, magic)
    rest = rows.code.multiply_add(n, rows.number(-upper), x)
    rest = rows.code.multiply_add(n, rows.number(-lower), rest)
    series = _polynomial(rows, rest, [1 / math.factorial(i) for i in range(n_terms)])
    # n is in the last bits of `shifted`; in the bits of 2**n, it is the exponent.
    bias = rows.whole((1 << (bits - digits - 2)) - 1)
    exponent = builder.add(builder.bitcast(shifted, bias.type), bias)
    power = builder.bitcast(builder.shl(exponent, rows.whole(digits)), rows.vector)
    is_tiny = builder.fcmp_ordered("<", x, rows.number(least))
    return builder.select(is_tiny, rows.number(0.0), builder.fmul(series, power))


def _logarithm(rows: _Rows, x: Any) -> Any:
    r"""Return :math:`\log x` of numbers from 1 on; NaN stays NaN.

    :math:`\log 2^n m = n \log 2 + 2 (u + u^3/3 + u^5/5 + \ldots)` where :math:`u = (m-1)/(m+1)`
    and m is between :math:`\sqrt{1/2}` and :math:`\sqrt 2`.
    """
    builder, is_single = rows.builder, rows.item == 4
    n_digits, n_terms = (23, 5) if is_single else (52, 11)
    # Moved by the bits of sqrt(1/2), the exponent changes where m shall.
    sqrt_half = np.float32(math.sqrt(0.5)) if is_single else np.float64(math.sqrt(0.5))
    below = rows.whole(int(sqrt_half.view(np.int32 if is_single else np.int64)))
    pattern, digits = builder.bitcast(x, below.type), rows.whole(n_digits)
    n = builder.ashr(builder.sub(pattern, below), digits)
    m = builder.bitcast(builder.sub(pattern, builder.shl(n, digits)), rows.vector)
    u = builder.fdiv(builder.fsub(m, rows.number(1.0)), builder.fadd(m, rows.number(1.0)))
    squared = builder.fmul(u, u)
    series = _polynomial(rows, squared, [2 / (2 * i + 1) for i in range(n_terms)])
    scaled = builder.fmul(builder.sitofp(n, rows.vector), rows.number(math.log(2)))
    logarithm = rows.code.multiply_add(series, u, scaled)
    return builder.fadd(logarithm, builder.fsub(x, x))
