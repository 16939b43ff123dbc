"""The same functions in loops, as the course writes them first.

They are the oracle of the tests and the baseline of the benchmarks: nothing here is shared with
the vectorised versions, and nothing is optimised. NumPy arrays only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpuclf.validation import check_penalty

__all__ = [
    "pairwise_distances_one_loop",
    "pairwise_distances_two_loops",
    "softmax_loss_naive",
    "svm_loss_naive",
    "two_layer_loss_naive",
]

Floats = NDArray[np.floating]


def softmax_loss_naive(
    W: Floats, X: Floats, y: NDArray[np.integer], reg: float
) -> tuple[float, Floats]:
    """Softmax loss and gradient, looping over samples, classes and features.

    Parameters
    ----------
    W : array of shape (D, C)
    X : array of shape (N, D)
    y : integer array of shape (N,), values in 0..C-1
    reg : float
        The penalty is ``reg * sum(W * W)``.

    Returns
    -------
    loss : float
    dW : array of shape (D, C)

    Raises
    ------
    ValueError
        If the shapes do not fit or a label is out of range.

    Examples
    --------
    >>> loss, dW = softmax_loss_naive(np.zeros((3, 2)), np.ones((2, 3)), np.array([0, 1]), 0.0)
    >>> round(loss, 6)
    0.693147
    """
    n_samples, n_features, n_classes = _check_sizes(W, X, y, reg)
    loss = 0.0
    dW = np.zeros_like(W)
    for i in range(n_samples):
        scores = [0.0] * n_classes
        for c in range(n_classes):
            for d in range(n_features):
                scores[c] += float(X[i, d]) * float(W[d, c])
        largest = max(scores)
        normaliser = sum(math.exp(score - largest) for score in scores)
        loss += math.log(normaliser) + largest - scores[y[i]]
        for c in range(n_classes):
            dscore = math.exp(scores[c] - largest) / normaliser - (c == y[i])
            for d in range(n_features):
                dW[d, c] += dscore * float(X[i, d]) / n_samples
    loss /= n_samples
    for d in range(n_features):
        for c in range(n_classes):
            loss += reg * float(W[d, c]) ** 2
            dW[d, c] += 2 * reg * W[d, c]
    return loss, dW


def svm_loss_naive(
    W: Floats, X: Floats, y: NDArray[np.integer], reg: float
) -> tuple[float, Floats]:
    """Multiclass SVM loss and (sub)gradient, looping over samples, classes and features.

    Parameters
    ----------
    W : array of shape (D, C)
    X : array of shape (N, D)
    y : integer array of shape (N,), values in 0..C-1
    reg : float
        The penalty is ``reg * sum(W * W)``.

    Returns
    -------
    loss : float
    dW : array of shape (D, C)

    Raises
    ------
    ValueError
        If the shapes do not fit or a label is out of range.

    Examples
    --------
    >>> loss, dW = svm_loss_naive(np.zeros((3, 4)), np.ones((2, 3)), np.array([0, 1]), 0.0)
    >>> loss
    3.0
    """
    n_samples, n_features, n_classes = _check_sizes(W, X, y, reg)
    loss = 0.0
    dW = np.zeros_like(W)
    for i in range(n_samples):
        scores = [0.0] * n_classes
        for c in range(n_classes):
            for d in range(n_features):
                scores[c] += float(X[i, d]) * float(W[d, c])
        for c in range(n_classes):
            margin = scores[c] - scores[y[i]] + 1
            if c != y[i] and margin > 0:
                loss += margin / n_samples
                for d in range(n_features):
                    dW[d, c] += float(X[i, d]) / n_samples
                    dW[d, y[i]] -= float(X[i, d]) / n_samples
    for d in range(n_features):
        for c in range(n_classes):
            loss += reg * float(W[d, c]) ** 2
            dW[d, c] += 2 * reg * W[d, c]
    return loss, dW


def softmax_objective(
    params: dict[str, Floats], X: Floats, y: NDArray[np.integer], reg: float
) -> tuple[float, dict[str, Floats]]:
    """Compute :func:`softmax_loss_naive` of the one parameter W, as models have their twins."""
    loss, dW = softmax_loss_naive(params["W"], X, y, reg)
    return loss, {"W": dW}


def svm_objective(
    params: dict[str, Floats], X: Floats, y: NDArray[np.integer], reg: float
) -> tuple[float, dict[str, Floats]]:
    """Compute :func:`svm_loss_naive` of the one parameter W, as models have their twins."""
    loss, dW = svm_loss_naive(params["W"], X, y, reg)
    return loss, {"W": dW}


def two_layer_loss_naive(
    params: dict[str, Floats], X: Floats, y: NDArray[np.integer], reg: float
) -> tuple[float, dict[str, Floats]]:
    """Loss and gradients of the two-layer net, looping over samples and units.

    Parameters
    ----------
    params : dict
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,).
    X : array of shape (N, D)
    y : integer array of shape (N,), values in 0..C-1
    reg : float

    Returns
    -------
    loss : float
    grads : dict
        The same keys and shapes as `params`.

    Raises
    ------
    ValueError
        If the shapes do not fit or a label is out of range.
    """
    W1, b1, W2, b2 = (params[name] for name in ("W1", "b1", "W2", "b2"))
    n_samples, n_features, n_hidden = X.shape[0], X.shape[1], W1.shape[1]
    _check_sizes(W1, X, np.zeros(len(X), np.int64), reg)
    _, _, n_classes = _check_sizes(W2, np.zeros((n_samples, n_hidden)), y, reg)
    loss = 0.0
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    for i in range(n_samples):
        x = [float(value) for value in X[i]]
        hidden = [0.0] * n_hidden
        for h in range(n_hidden):
            total = float(b1[h])
            for d in range(n_features):
                total += x[d] * float(W1[d, h])
            hidden[h] = max(total, 0.0)
        scores = [0.0] * n_classes
        for c in range(n_classes):
            scores[c] = float(b2[c])
            for h in range(n_hidden):
                scores[c] += hidden[h] * float(W2[h, c])
        largest = max(scores)
        normaliser = sum(math.exp(score - largest) for score in scores)
        loss += (math.log(normaliser) + largest - scores[y[i]]) / n_samples
        dhidden = [0.0] * n_hidden
        for c in range(n_classes):
            probability = math.exp(scores[c] - largest) / normaliser
            dscore = (probability - (c == y[i])) / n_samples
            grads["b2"][c] += dscore
            for h in range(n_hidden):
                grads["W2"][h, c] += dscore * hidden[h]
                dhidden[h] += dscore * float(W2[h, c])
        for h in range(n_hidden):
            if hidden[h] > 0:
                grads["b1"][h] += dhidden[h]
                for d in range(n_features):
                    grads["W1"][d, h] += dhidden[h] * x[d]
    for name in ("W1", "W2"):
        for value in params[name].flat:
            loss += reg * float(value) ** 2
        grads[name] += 2 * reg * params[name]
    return loss, grads


def pairwise_distances_two_loops(A: Floats, B: Floats, metric: str = "l2") -> Floats:
    """L2 or L1 distances, looping over both sets of samples.

    Parameters
    ----------
    A : array of shape (N, D)
    B : array of shape (M, D)
    metric : {"l2", "l1"}

    Returns
    -------
    float64 array of shape (N, M)

    Raises
    ------
    ValueError
        If the shapes or the metric do not fit.

    Examples
    --------
    >>> pairwise_distances_two_loops(np.zeros((1, 2)), np.array([[3.0, 4.0]]))
    array([[5.]])
    """
    A, B = _check_pair(A, B, metric)
    distances = np.zeros((len(A), len(B)))
    for i in range(len(A)):
        for j in range(len(B)):
            difference = A[i] - B[j]
            if metric == "l2":
                distances[i, j] = np.sqrt(np.sum(difference * difference))
            else:
                distances[i, j] = np.sum(np.abs(difference))
    return distances


def pairwise_distances_one_loop(A: Floats, B: Floats, metric: str = "l2") -> Floats:
    """L2 or L1 distances, looping over A; as :func:`pairwise_distances_two_loops`.

    Examples
    --------
    >>> pairwise_distances_one_loop(np.zeros((1, 2)), np.array([[3.0, 4.0]]), metric="l1")
    array([[7.]])
    """
    A, B = _check_pair(A, B, metric)
    distances = np.zeros((len(A), len(B)))
    for i in range(len(A)):
        differences = A[i] - B
        if metric == "l2":
            distances[i] = np.sqrt(np.sum(differences * differences, axis=1))
        else:
            distances[i] = np.sum(np.abs(differences), axis=1)
    return distances


def _check_pair(A: Floats, B: Floats, metric: str) -> tuple[Floats, Floats]:
    if metric not in ("l2", "l1"):
        raise ValueError(f"metric must be 'l2' or 'l1', got {metric!r}")
    A, B = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)  # bytes would wrap
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1]:
        raise ValueError(f"A (N, D) and B (M, D) must fit, got {A.shape} and {B.shape}")
    return A, B


def _check_sizes(W: Floats, X: Floats, y: NDArray[np.integer], reg: float) -> tuple[int, int, int]:
    for name, value in (("X", X), ("W", W)):
        if not isinstance(value, np.ndarray):
            raise TypeError(
                f"the loops take plain NumPy arrays, but {name} is {type(value).__name__}; write "
                "Standardized samples out with to_array()"
            )
    if X.ndim != 2 or W.ndim != 2 or X.shape[1] != W.shape[0] or len(X) == 0:
        raise ValueError(
            f"X (N, D) and W (D, C) must fit, with N at least 1, got {X.shape} and {W.shape}"
        )
    check_penalty(reg)
    n_classes = W.shape[1]
    if not (np.isfinite(X).all() and np.isfinite(W).all()):
        raise ValueError("X and W must hold no NaN or infinity; numpy.nan_to_num replaces them")
    y = np.asarray(y)
    if y.shape != (len(X),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"y must hold {len(X)} integers, one for each row of X, got {y.dtype} {y.shape}"
        )
    if y.min() < 0 or y.max() >= n_classes:
        raise ValueError(
            f"labels must be in 0..{n_classes - 1}, got {y.min()}..{y.max()}; number the "
            "classes from 0"
        )
    return len(X), W.shape[0], n_classes
