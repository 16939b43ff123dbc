"""What NumPy does faster in another order: thin products in pieces, losses along the samples.

A linear classifier multiplies thousands of rows by ten columns. BLAS copies ("packs") its operands
into an order of its own first, which for so few columns costs as much as multiplying. On AVX-512
processors OpenBLAS has kernels that skip it, for products of at most a million multiplications.
:func:`numpy.matmul` on a stack of such pieces calls them one after another, in one call of Python.

What it saves is measured by benchmarks/test_skinny_products.py. Declines wide products, BLAS
libraries without such kernels, and anything that is not one contiguous matrix.

A loss over ten classes is ten numbers a row, for which NumPy starts its inner loop anew. With
the classes as rows, the same operations run along thousands of samples.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gpuclf.backend import blas_architectures, blas_threads
from gpuclf.layers import affine, affine_backward_params
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy

__all__ = [
    "SMALL_PRODUCT",
    "class_major_multiclass_hinge",
    "class_major_softmax_cross_entropy",
    "grouped_affine",
    "grouped_affine_backward_params",
]

SMALL_PRODUCT = 1_000_000  # OpenBLAS: interface/gemm.c, limit of the small matrix path
MIN_GROUP_ROWS = 16
MAX_GROUP_ROWS = 64
GROUPS_AT_ONCE = 32  # each leaves a gradient of its own until they are summed
WITH_SMALL_KERNELS = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"})


def _small_products_pay() -> bool:
    # A stack of products runs on one thread; where BLAS has more, they win it back.
    return _blas_has_small_kernels() and blas_threads() == 1


@cache
def _blas_has_small_kernels() -> bool:
    return bool(WITH_SMALL_KERNELS.intersection(blas_architectures()))


def _group_rows(X: Any, n_columns: int) -> int:
    """Return the rows of one piece, or 0 if cutting does not pay."""
    if X.ndim != 2 or not X.flags.c_contiguous or not _small_products_pay():
        return 0
    multiplications_per_row = max(1, X.shape[1] * n_columns)
    rows = min(SMALL_PRODUCT // multiplications_per_row // 8 * 8, MAX_GROUP_ROWS)
    return rows if rows >= MIN_GROUP_ROWS and len(X) >= 2 * rows else 0


@affine.register("numpy")
def grouped_affine(X: Any, W: Any, b: Any = None) -> Any:
    """Compute :func:`gpuclf.layers.affine` in groups of rows."""
    rows = _group_rows(X, W.shape[-1])
    if rows == 0 or W.ndim != 2 or X.dtype != W.dtype:
        return NotImplemented
    if b is not None and (b.ndim != 1 or b.dtype != X.dtype):
        return NotImplemented
    n_groups, n_columns = len(X) // rows, W.shape[1]
    whole = n_groups * rows
    columns = np.ascontiguousarray(W.T).T  # each column in one piece: the kernels then run faster
    Y = np.empty((len(X), n_columns), X.dtype)
    np.matmul(
        X[:whole].reshape(n_groups, rows, -1),
        columns,
        out=Y[:whole].reshape(n_groups, rows, n_columns),
    )
    if whole < len(X):
        np.matmul(X[whole:], columns, out=Y[whole:])
    if b is not None:
        Y += b
    return Y


@affine_backward_params.register("numpy")
def grouped_affine_backward_params(dY: Any, X: Any) -> Any:
    """Compute :func:`gpuclf.layers.affine_backward_params` in groups of rows, then sum."""
    rows = _group_rows(X, dY.shape[-1])
    if rows == 0 or dY.ndim != 2 or len(dY) != len(X) or X.dtype != dY.dtype:
        return NotImplemented
    n_groups = len(X) // rows
    whole = n_groups * rows
    dYT = np.ascontiguousarray(dY.T)
    dY_groups = dYT[:, :whole].reshape(-1, n_groups, rows).transpose(1, 0, 2)
    X_groups = X[:whole].reshape(n_groups, rows, -1)
    dWT = np.zeros((dY.shape[1], X.shape[1]), X.dtype)
    for start in range(0, n_groups, GROUPS_AT_ONCE):
        some = slice(start, start + GROUPS_AT_ONCE)
        dWT += np.matmul(dY_groups[some], X_groups[some]).sum(axis=0)
    if whole < len(X):
        dWT += dYT[:, whole:] @ X[whole:]
    # In the order of W, which it will be added to: mixed orders are slow to add.
    return np.ascontiguousarray(dWT.T), dYT.sum(axis=1)


def _class_major(scores: Any, labels: Any, sample_weight: Any) -> Any:
    """Return the scores (C, K N), and labels and weights for them.

    None if the arguments are out of the ordinary.
    """
    n_samples, n_classes = scores.shape[-2:]
    weights = scores.dtype.type(1 / n_samples) if sample_weight is None else sample_weight
    fits = (
        scores.ndim in (2, 3)
        and labels.shape == (n_samples,)
        and np.issubdtype(labels.dtype, np.integer)
        and labels.min() >= 0
        and labels.max() < n_classes
        and weights.shape in ((), (n_samples,), scores.shape[:-1])
        and weights.dtype == scores.dtype
    )
    if not fits:
        return None
    if scores.ndim == 3:
        labels = np.tile(labels, len(scores))
        weights = np.broadcast_to(weights, scores.shape[:-1]).reshape(-1)
    rows = np.moveaxis(scores, -1, 0).copy().reshape(n_classes, -1)
    return rows, labels, weights


def _of_models(losses: Any, dscores: Any, like: Any) -> Any:
    """Return the sums of weighted losses, and the gradient in the shape of the scores."""
    loss = np.sum(losses.reshape(like.shape[:-1]), axis=-1, dtype=np.float64)
    return loss, np.moveaxis(dscores.reshape(-1, *like.shape[:-1]), 0, -1)


@softmax_cross_entropy.register("numpy")
def class_major_softmax_cross_entropy(logits: Any, labels: Any, sample_weight: Any = None) -> Any:
    """Compute :func:`gpuclf.losses.softmax_cross_entropy` with the classes as rows."""
    class_major = _class_major(logits, labels, sample_weight)
    if class_major is None:
        return NotImplemented
    probs, labels, weights = class_major
    own_class = labels, np.arange(len(labels))
    probs -= probs.max(axis=0)
    losses = -probs[own_class]
    np.exp(probs, out=probs)
    normaliser = probs.sum(axis=0)
    losses += np.log(normaliser)
    probs *= weights / normaliser
    probs[own_class] -= weights
    return _of_models(losses * weights, probs, logits)


@multiclass_hinge.register("numpy")
def class_major_multiclass_hinge(
    scores: Any, labels: Any, sample_weight: Any = None, margin: float = 1.0
) -> Any:
    """Compute :func:`gpuclf.losses.multiclass_hinge` with the classes as rows."""
    class_major = _class_major(scores, labels, sample_weight)
    if class_major is None:
        return NotImplemented
    margins, labels, weights = class_major
    own_class = labels, np.arange(len(labels))
    margins -= margins[own_class] - margin
    margins[own_class] *= 0  # not set to 0: NaN stays NaN
    dscores = (margins > 0).astype(scores.dtype)
    dscores[own_class] = -dscores.sum(axis=0)
    dscores *= weights
    losses = np.maximum(margins, 0, out=margins).sum(axis=0)
    return _of_models(losses * weights, dscores, scores)
