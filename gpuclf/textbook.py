"""The vectorised versions as the course has them, one expression a line: the baseline to beat.

Deliberately not the library's own functions, and not tuned: what a good student writes. For
CuPy the same student replaces ``import numpy as np`` by ``import cupy``: that is the argument `xp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.arrays import to_host

__all__ = [
    "cross_entropy",
    "hinge",
    "knn_predict",
    "linear_objective",
    "nesterov_step",
    "two_layer_loss",
]


def cross_entropy(scores: Any, y: Any, xp: Any) -> tuple[Any, Any]:
    """Softmax cross-entropy and its gradient with respect to the scores."""
    n_samples = len(y)
    probs = xp.exp(scores - scores.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    loss = -xp.log(probs[xp.arange(n_samples), y]).mean()
    dscores = probs
    dscores[xp.arange(n_samples), y] -= 1
    dscores /= n_samples
    return loss, dscores


def hinge(scores: Any, y: Any, xp: Any) -> tuple[Any, Any]:
    """Multiclass hinge and its gradient with respect to the scores."""
    n_samples = len(y)
    margins = xp.maximum(0, scores - scores[xp.arange(n_samples), y][:, None] + 1)
    margins[xp.arange(n_samples), y] = 0
    loss = margins.sum() / n_samples
    dscores = (margins > 0).astype(scores.dtype)
    dscores[xp.arange(n_samples), y] = -dscores.sum(axis=1)
    dscores /= n_samples
    return loss, dscores


def linear_objective(
    data_loss: Any, params: dict[str, Any], X: Any, y: Any, reg: float, xp: Any = np
) -> tuple[Any, dict[str, Any]]:
    """Loss and gradients of a linear classifier, with a bias b or without; see `cross_entropy`."""
    W, b = params["W"], params.get("b")
    scores = X @ W if b is None else X @ W + b
    loss, dscores = data_loss(scores, y, xp)
    grads = {"W": X.T @ dscores + 2 * reg * W}
    if b is not None:
        grads["b"] = dscores.sum(axis=0)
    return loss + reg * xp.sum(W * W), grads


def two_layer_loss(
    params: dict[str, Any], X: Any, y: Any, reg: float, xp: Any = np
) -> tuple[Any, Any]:
    """Loss and gradients of the two-layer net; arguments as :func:`gpuclf.two_layer_loss`."""
    W1, b1, W2, b2 = params["W1"], params["b1"], params["W2"], params["b2"]
    hidden = xp.maximum(0, X @ W1 + b1)
    loss, dscores = cross_entropy(hidden @ W2 + b2, y, xp)
    loss = loss + reg * (xp.sum(W1 * W1) + xp.sum(W2 * W2))
    grads = {"W2": hidden.T @ dscores + 2 * reg * W2, "b2": dscores.sum(axis=0)}
    dhidden = dscores @ W2.T
    dhidden[hidden <= 0] = 0
    grads["W1"] = X.T @ dhidden + 2 * reg * W1
    grads["b1"] = dhidden.sum(axis=0)
    return loss, grads


def nesterov_step(
    params: dict[str, Any],
    velocity: dict[str, Any],
    grads: dict[str, Any],
    learning_rate: float,
    momentum: float,
) -> None:
    """Update the parameters in place, as the course has Nesterov momentum."""
    for name in params:
        v_before = velocity[name]
        velocity[name] = momentum * velocity[name] - learning_rate * grads[name]
        params[name] += -momentum * v_before + (1 + momentum) * velocity[name]


def knn_predict(X_train: Any, y_train: Any, X: Any, k: int, metric: str, xp: Any = np) -> Any:
    """Predict by the k nearest neighbours, from the whole matrix of distances (L1: row by row)."""
    if metric == "l2":
        squares = (X**2).sum(axis=1)[:, None] - 2 * X @ X_train.T + (X_train**2).sum(axis=1)
        distances = xp.sqrt(xp.maximum(squares, 0))
    else:
        distances = xp.stack([xp.abs(X_train - row).sum(axis=1) for row in X])
    nearest = xp.argsort(distances, axis=1)[:, :k]
    votes = to_host(y_train[nearest])  # counted one by one, which a GPU is no place for
    return np.array([np.bincount(labels).argmax() for labels in votes])
