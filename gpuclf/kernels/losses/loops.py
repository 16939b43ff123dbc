"""Losses of a block of scores with the classes as rows, compiled; needs numba.

With the samples along a row, a compiler works on as many at a time as a vector register holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.kernels.building.machine_code import compiled

__all__ = ["gradient_in_place", "room_of_rows"]


def room_of_rows(n_rows: int, dtype: Any) -> tuple[Any, ...]:
    """Return what :func:`gradient_in_place` writes to."""
    return np.zeros(n_rows, np.int64), *(np.zeros(n_rows, dtype) for _ in range(4))


@compiled
def gradient_in_place(
    S: Any, y: Any, sample_weight: Any, first: int, n_rows: int, swapped: int, totals: Any,
    room: Any, hinge: bool,
) -> float:  # fmt: skip
    """Write the gradient of the loss over the scores of a block, and return the loss.

    Parameters
    ----------
    S : array of shape (C, rows)
        Of rows behind `n_rows` any finite numbers; their gradient is zero.
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
    return loss


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
