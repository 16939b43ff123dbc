"""Softmax of scores (K, C, rows), compiled; needs numba.

A part of the rows at a time stays in a core's cache from its scores to its gradient. A vector
register holds neighbouring rows, for which there is no exponential that compilers know: here are
its polynomials.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.kernels.building.machine_code import compiled

__all__ = ["softmax_in_place", "workspace"]

PART_BYTES = 16 << 10  # of a model's scores, half of L1
MIN_PART, MAX_PART = 64, 512


def workspace(n_classes: int, dtype: Any) -> tuple[Any, Any]:
    """Return what :func:`softmax_in_place` writes to: a part's numbers, and bits of as many."""
    width = np.dtype(dtype).itemsize
    rows = min(max(PART_BYTES // (width * n_classes) // 16 * 16, MIN_PART), MAX_PART)
    return np.empty(rows, dtype), np.empty(rows, f"i{width}")


@compiled
def softmax_in_place(
    scores: Any, bias: Any, labels: Any, weights: Any, margins: Any, normalisers: Any, work: Any
) -> None:
    """Leave the gradient of the weighted losses in the place of the scores.

    Parameters
    ----------
    scores : array of shape (K, C, rows)
        Without the bias.
    bias : array of shape (K, C)
    labels : integer array of shape (rows,)
        From 0 to C - 1.
    weights : array of shape (1, rows) or (K, rows)
    margins, normalisers : array of shape (K, rows)
        Written: a sample's loss is ``margin + log(normaliser)``.
    work : tuple
        As :func:`workspace` gives it.
    """
    highest, bits = work
    n_models, n_classes, n_rows = scores.shape
    for k in range(n_models):
        for start in range(0, n_rows, len(highest)):
            stop = min(start + len(highest), n_rows)
            top, exponents = highest[: stop - start], bits[: stop - start]
            total, share = normalisers[k, start:stop], weights[k % len(weights), start:stop]
            for r in range(len(top)):
                top[r], total[r] = -np.inf, 0
            for c in range(n_classes):
                _shift(scores[k, c, start:stop], bias[k, c], top)
            for r in range(len(top)):
                margins[k, start + r] = top[r] - scores[k, labels[start + r], start + r]
            for c in range(n_classes):
                row = scores[k, c, start:stop]
                _exponentials(row, top, exponents.view(row.dtype))
                _to_powers(row, exponents)
                _scaled_and_added(row, exponents.view(row.dtype), total)
            for r in range(len(top)):
                top[r] = share[r] / total[r]
            for c in range(n_classes):
                row = scores[k, c, start:stop]
                for r in range(len(row)):
                    row[r] *= top[r]
            for r in range(len(top)):
                scores[k, labels[start + r], start + r] -= share[r]


@compiled
def _shift(row: Any, bias: Any, top: Any) -> None:
    for r in range(len(row)):
        score = row[r] + bias
        row[r] = score
        top[r] = score if score > top[r] else top[r]


@compiled
def _scaled_and_added(row: Any, powers: Any, total: Any) -> None:
    for r in range(len(row)):
        value = row[r] * powers[r]
        row[r] = value
        total[r] += value


@compiled
def _to_powers(row: Any, bits: Any) -> None:
    """Turn n, the last bits of a sum with `magic`, into the bits of 2**n."""
    width, digits = np.finfo(row.dtype).bits, np.finfo(row.dtype).nmant
    offset = (1 << (width - digits - 2)) - 1
    for i in range(len(bits)):
        bits[i] = (bits[i] + offset) << digits


@compiled
def _exponentials(row: Any, top: Any, exponents: Any) -> None:
    r"""Write exp(row - top) in two factors: a fraction over the row, and the exponent of 2.

    :math:`e^x = 2^n e^{x - n \log 2}`, the second by its series: to 1 and 2 units in the last
    place. Below the smallest normal number it stays there; NaN stays NaN.
    """
    f = row.dtype.type
    if np.finfo(row.dtype).bits == 32:
        least, magic = f(-87.0), f(3 << 22)
        log2, rest = f(0.693359375), f(-2.12194440e-4)
    else:
        least, magic = f(-708.0), f(3 << 51)
        log2, rest = f(0.693145751953125), f(1.42860682030941723212e-6)
    per_log2, one, half = f(1.4426950408889634), f(1), f(0.5)
    for i in range(len(row)):
        x = row[i] - top[i]
        x = least if x < least else x
        shifted = x * per_log2 + magic  # so large a number has no fraction
        exponents[i] = shifted
        n = shifted - magic
        x = (x - n * log2) - n * rest
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
        y = y * x * x + x
        row[i] = y + one
