"""The loops of compiled_linear.py, sixteen rows at a time; imported only where numba is installed.

After a change of register_tiles.py, touch this file: numba keeps what it compiled until this one's
date changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.kernels.compilation import compiled
from gpuclf.kernels.register_tiles import (
    MAX_DOT_CLASSES,
    MAX_OUTER_CLASSES,
    OUTER_VECTORS,
    TILE_ROWS,
    VECTOR_BYTES,
    dot_tile,
    outer_tile,
    widen_bytes,
)

__all__ = ["pass_converted", "pass_in_place", "tiles"]

BLOCK_ROWS = 16
# Features of W that a few tiles of rows use one after another, from L1.
DOT_FEATURES = 1024


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
def pass_in_place(
    X: Any,
    W: Any,
    b: Any,
    y: Any,
    weights: Any,
    start: int,
    stop: int,
    dW: Any,
    db: Any,
    tiles: Any,
    hinge: bool,
) -> float:
    """Add the gradients of the rows start:stop to dW and db, and return their loss.

    W and dW have the classes as rows, with rows of zeros behind the last class. X has their dtype.
    """
    S = np.zeros((BLOCK_ROWS, max(len(W), len(dW))), W.dtype)
    loss = 0.0
    whole = start + (stop - start) // BLOCK_ROWS * BLOCK_ROWS
    for row in range(start, whole, BLOCK_ROWS):
        end = row + BLOCK_ROWS
        loss += _block(X[row:end], W, b, y[row:end], weights[row:end], S, dW, db, tiles, hinge)
    if whole < stop:
        rest = np.zeros((BLOCK_ROWS, X.shape[1]), W.dtype)
        rest[: stop - whole] = X[whole:stop]
        loss += _block(rest, W, b, y[whole:stop], weights[whole:stop], S, dW, db, tiles, hinge)
    return loss


@compiled
def pass_converted(
    X: Any,
    centre: Any,
    W: Any,
    b: Any,
    y: Any,
    weights: Any,
    start: int,
    stop: int,
    dW: Any,
    db: Any,
    tiles: Any,
    hinge: bool,
) -> float:
    """Do as :func:`pass_in_place`, on ``X - 128`` for bytes and ``X - centre`` for floats."""
    S = np.zeros((BLOCK_ROWS, max(len(W), len(dW))), W.dtype)
    x = np.zeros((BLOCK_ROWS, X.shape[1]), W.dtype)
    loss = 0.0
    for row in range(start, stop, BLOCK_ROWS):
        end = min(row + BLOCK_ROWS, stop)
        for r in range(end - row):
            _convert(X, row + r, centre, x, r)
        loss += _block(x, W, b, y[row:end], weights[row:end], S, dW, db, tiles, hinge)
    return loss


@compiled
def _convert(X: Any, row: int, centre: Any, x: Any, r: int) -> None:
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
def _block(
    x: Any,
    W: Any,
    b: Any,
    y: Any,
    weights: Any,
    S: Any,
    dW: Any,
    db: Any,
    tiles: Any,
    hinge: bool,
) -> float:
    n_classes = len(b)
    S[:] = 0
    _dot(x, W, S, tiles[0])
    S[:, :n_classes] += b  # last: large biases would cost the products digits
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
    _outer(x, S, len(y), dW, tiles[1])
    return loss


@compiled
def _dot(x: Any, W: Any, S: Any, tile: Any) -> None:
    n_features, lanes = x.shape[1], VECTOR_BYTES // x.itemsize
    in_vectors = n_features // lanes * lanes
    for start in range(0, in_vectors, DOT_FEATURES):
        stop = min(start + DOT_FEATURES, in_vectors)
        for row in range(0, BLOCK_ROWS, TILE_ROWS):
            for first in range(0, len(W), len(tile)):
                dot_tile(x, W, S, row, first, start, stop, tile)
    for row in range(BLOCK_ROWS):
        for c in range(len(W)):
            for d in range(in_vectors, n_features):
                S[row, c] += x[row, d] * W[c, d]


@compiled
def _outer(x: Any, S: Any, n_rows: int, dW: Any, tile: Any) -> None:
    n_features, step = x.shape[1], VECTOR_BYTES // x.itemsize * OUTER_VECTORS
    in_vectors = n_features // step * step
    bytes_ahead = BLOCK_ROWS * x.strides[0]
    for column in range(0, in_vectors, step):
        for first in range(0, len(dW), len(tile)):
            outer_tile(x, S, dW, n_rows, first, column, bytes_ahead, tile)
    for c in range(len(dW)):
        for row in range(n_rows):
            for d in range(in_vectors, n_features):
                dW[c, d] += S[row, c] * x[row, d]


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
