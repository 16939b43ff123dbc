"""The same functions in loops, as the course writes them first: the features are one vector.

They are the oracle of the tests and the baseline of the benchmarks: nothing here is shared with
the vectorised versions, and nothing is optimised. NumPy arrays only.
"""

from __future__ import annotations

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
    """Softmax loss and gradient, looping over samples and classes.

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
        In the dtype of W; everything is summed in float64.

    Raises
    ------
    TypeError
        If X or W is no NumPy array.
    ValueError
        If the shapes do not fit or a label is out of range.

    Examples
    --------
    >>> loss, dW = softmax_loss_naive(np.zeros((3, 2)), np.ones((2, 3)), np.array([0, 1]), 0.0)
    >>> round(loss, 6)
    0.693147
    """
    n_samples, n_classes = _check_sizes(W, X, y, reg)
    weights, loss, dW = W.astype(np.float64), 0.0, np.zeros(W.shape)
    for i in range(n_samples):
        x = X[i].astype(np.float64)
        scores = x @ weights
        probabilities, sample_loss = _softmax(scores, y[i])
        loss += sample_loss
        for j in range(n_classes):
            dW[:, j] += (probabilities[j] - (j == y[i])) * x
    loss = loss / n_samples + reg * float(np.sum(weights * weights))
    return loss, (dW / n_samples + 2 * reg * weights).astype(W.dtype)


def _softmax(scores: Floats, label: int) -> tuple[Floats, float]:
    """Return the probabilities of the classes and the loss of a sample."""
    shifted = scores - np.max(scores)  # a large exp would overflow
    exponentials = np.exp(shifted)
    normaliser = np.sum(exponentials)
    return exponentials / normaliser, float(np.log(normaliser) - shifted[label])


def svm_loss_naive(
    W: Floats, X: Floats, y: NDArray[np.integer], reg: float
) -> tuple[float, Floats]:
    """Multiclass SVM loss and (sub)gradient, looping over samples and classes.

    Parameters
    ----------
    W, X, y, reg
        As for :func:`softmax_loss_naive`, and so are results and errors.

    Returns
    -------
    loss : float
    dW : array of shape (D, C)

    Examples
    --------
    >>> loss, dW = svm_loss_naive(np.zeros((3, 4)), np.ones((2, 3)), np.array([0, 1]), 0.0)
    >>> loss
    3.0
    """
    n_samples, n_classes = _check_sizes(W, X, y, reg)
    weights, loss, dW = W.astype(np.float64), 0.0, np.zeros(W.shape)
    for i in range(n_samples):
        x = X[i].astype(np.float64)
        scores = x @ weights
        for j in range(n_classes):
            margin = scores[j] - scores[y[i]] + 1
            if j != y[i] and margin > 0:
                loss += float(margin)
                dW[:, j] += x
                dW[:, y[i]] -= x
    loss = loss / n_samples + reg * float(np.sum(weights * weights))
    return loss, (dW / n_samples + 2 * reg * weights).astype(W.dtype)


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
    X, y, reg
        As for :func:`softmax_loss_naive`, and so are the errors.

    Returns
    -------
    loss : float
    grads : dict
        The same keys, shapes and dtypes as `params`.
    """
    n_samples, n_hidden = X.shape[0], params["W1"].shape[1]
    _check_sizes(params["W1"], X, np.zeros(len(X), np.int64), reg)
    _, n_classes = _check_sizes(params["W2"], np.zeros((n_samples, n_hidden)), y, reg)
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    W1, b1, W2, b2 = (wide[name] for name in ("W1", "b1", "W2", "b2"))
    loss, grads = 0.0, {name: np.zeros(value.shape) for name, value in params.items()}
    for i in range(n_samples):
        x = X[i].astype(np.float64)
        hidden = np.maximum(0, x @ W1 + b1)
        probabilities, sample_loss = _softmax(hidden @ W2 + b2, y[i])
        loss += sample_loss / n_samples
        dhidden = np.zeros(n_hidden)
        for c in range(n_classes):
            dscore = (probabilities[c] - (c == y[i])) / n_samples
            grads["W2"][:, c] += dscore * hidden
            grads["b2"][c] += dscore
            dhidden += dscore * W2[:, c]
        for h in range(n_hidden):
            if hidden[h] > 0:
                grads["W1"][:, h] += dhidden[h] * x
                grads["b1"][h] += dhidden[h]
    for name in ("W1", "W2"):
        loss += reg * float(np.sum(wide[name] ** 2))
        grads[name] += 2 * reg * wide[name]
    return loss, {name: grads[name].astype(value.dtype) for name, value in params.items()}


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


def _check_sizes(W: Floats, X: Floats, y: NDArray[np.integer], reg: float) -> tuple[int, int]:
    """Return the numbers of samples and classes."""
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
    return len(X), n_classes
