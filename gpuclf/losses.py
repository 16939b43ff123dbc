"""Data losses: from scores to the loss and its gradient with respect to the scores.

Scores have shape (..., N, C): a leading axis, where there is one, counts models, and every model
is scored against the same N labels.
"""

from __future__ import annotations

from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.cupy import on_its_device
from gpuclf.dispatch import fusable

__all__ = ["log_softmax", "multiclass_hinge", "one_hot", "softmax", "softmax_cross_entropy"]


@on_its_device
def one_hot(labels: Array, n_classes: int, *, dtype: object) -> Array:
    """Return the (N, C) matrix whose row i has a one at ``labels[i]`` and zeros elsewhere.

    Comparing with the row 0..C-1 needs no indexed assignment, which the array API standard does
    not have.
    """
    xp = array_namespace(labels)
    classes = xp.arange(n_classes, dtype=xp.int64, device=labels.device)
    return xp.astype(xp.astype(labels, xp.int64)[:, None] == classes[None, :], dtype)


@on_its_device
def softmax(logits: Array) -> Array:
    """Return the probabilities ``exp(logits) / sum(exp(logits))`` along the last axis.

    Parameters
    ----------
    logits : array of shape (..., C)

    Returns
    -------
    array of shape (..., C)
        Finite for any finite logits: the row's maximum is subtracted first.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.array([[0.0, 1e4]]))
    array([[0., 1.]])
    """
    xp = array_namespace(logits)
    unnormalised = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    return unnormalised / xp.sum(unnormalised, axis=-1, keepdims=True)


@on_its_device
def log_softmax(logits: Array) -> Array:
    """Return the logarithms of :func:`softmax`, finite also where a probability rounds to 0.

    Parameters
    ----------
    logits : array of shape (..., C)

    Returns
    -------
    array of shape (..., C)

    Examples
    --------
    >>> import numpy as np
    >>> log_softmax(np.array([[0.0, 1e4]]))
    array([[-10000.,      0.]])
    """
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


@fusable(
    numpy="losses.on_cpu:class_major_softmax_cross_entropy",
    cupy="losses.on_gpu:fused_softmax_cross_entropy",
    machine_code="softmax_cross_entropy",
)
def softmax_cross_entropy(
    logits: Array, labels: Array, sample_weight: Array | None = None
) -> tuple[Array, Array]:
    r"""Softmax cross-entropy and its gradient with respect to the logits.

    With weights :math:`w_i` that default to :math:`1/N`,

    .. math::

        L = \sum_i w_i \left(\log \sum_c e^{z_{ic}} - z_{i y_i}\right), \qquad
        \frac{\partial L}{\partial z_{ic}} = w_i \left(p_{ic} - [c = y_i]\right),
        \quad p_{ic} = \frac{e^{z_{ic}}}{\sum_k e^{z_{ik}}}

    Parameters
    ----------
    logits : array of shape (..., N, C), float32 or float64
    labels : integer array of shape (N,), values in 0..C-1
    sample_weight : array of shape (N,) or (..., N), optional
        The factor of each sample's loss, used as it is. By default 1/N, which makes `loss` the
        mean.

    Returns
    -------
    loss : array of shape (...), float64
        Log-normaliser minus label score, never the logarithm of a probability: finite for any
        finite logits, also in float32 and at score gaps of 1e4. NaN if a label is out of range.
    dlogits : array of shape (..., N, C)

    Notes
    -----
    Blocks of a larger batch add up if each is given the weights of the whole: see
    :mod:`gpuclf.samples.walk`. Source of the formula: Stanford CS231n, "Linear classification"
    (softmax classifier), with the normalisation trick described there.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((2, 4)), np.array([0, 3]))
    >>> round(float(loss), 6)  # log(4)
    1.386294
    >>> dlogits[0]
    array([-0.375,  0.125,  0.125,  0.125])
    """
    xp = array_namespace(logits=logits, labels=labels, sample_weight=sample_weight)
    n_samples, n_classes = logits.shape[-2:]
    labels = xp.astype(labels, xp.int64)  # a byte could not be compared with 300 classes
    onehot = one_hot(labels, n_classes, dtype=logits.dtype)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    unnormalised = xp.exp(shifted)
    normaliser = xp.sum(unnormalised, axis=-1, keepdims=True)
    losses = xp.log(normaliser[..., 0]) - xp.sum(shifted * onehot, axis=-1)
    # On a device nobody has looked at the labels: a wrong one must not give a plausible loss.
    losses = xp.where((labels >= 0) & (labels < n_classes), losses, xp.nan)
    dlogits = unnormalised / normaliser - onehot
    if sample_weight is None:
        return xp.sum(losses, axis=-1, dtype=xp.float64) / n_samples, dlogits / n_samples
    weighted = losses * sample_weight
    return xp.sum(weighted, axis=-1, dtype=xp.float64), dlogits * sample_weight[..., None]


@fusable(
    numpy="losses.on_cpu:class_major_multiclass_hinge",
    cupy="losses.on_gpu:fused_multiclass_hinge",
    machine_code="multiclass_hinge",
)
def multiclass_hinge(
    scores: Array, labels: Array, sample_weight: Array | None = None, margin: float = 1.0
) -> tuple[Array, Array]:
    r"""Weston and Watkins's multiclass hinge loss and its gradient with respect to the scores.

    With weights :math:`w_i` that default to :math:`1/N`, and margin :math:`\Delta`,

    .. math::

        L = \sum_i w_i \sum_{j \ne y_i} \max(0, s_{ij} - s_{i y_i} + \Delta), \qquad
        \frac{\partial L}{\partial s_{ij}} = w_i v_{ij} \; (j \ne y_i), \quad
        \frac{\partial L}{\partial s_{i y_i}} = -w_i \sum_{j \ne y_i} v_{ij}, \quad
        v_{ij} = [s_{ij} - s_{i y_i} + \Delta > 0]

    Parameters
    ----------
    scores : array of shape (..., N, C), float32 or float64
    labels : integer array of shape (N,), values in 0..C-1
    sample_weight : array of shape (N,) or (..., N), optional
        The factor of each sample's loss, used as it is. By default 1/N, which makes `loss` the
        mean.
    margin : float, default 1
        By how much the label's score must exceed each other score to cost nothing.

    Returns
    -------
    loss : array of shape (...), float64
        NaN if a label is out of range.
    dscores : array of shape (..., N, C)
        At a kink, where a term is exactly 0 before the maximum is taken, the subgradient 0.

    Notes
    -----
    Source: Stanford CS231n, "Linear classification" (multiclass support vector machine).

    Examples
    --------
    >>> import numpy as np
    >>> loss, dscores = multiclass_hinge(np.array([[3.0, 2.5, -1.0, 2.0]]), np.array([0]))
    >>> float(loss), dscores  # the last class is behind by exactly the margin
    (0.5, array([[-1.,  1.,  0.,  0.]]))
    """
    xp = array_namespace(scores=scores, labels=labels, sample_weight=sample_weight)
    n_samples, n_classes = scores.shape[-2:]
    labels = xp.astype(labels, xp.int64)
    onehot = one_hot(labels, n_classes, dtype=scores.dtype)
    margins = scores - xp.sum(scores * onehot, axis=-1, keepdims=True) + margin
    violated = xp.astype(margins > 0, scores.dtype) * (1 - onehot)
    losses = xp.sum(margins * violated, axis=-1)  # a product, because it keeps NaN
    # On a device nobody has looked at the labels: a wrong one must not give a plausible loss.
    losses = xp.where((labels >= 0) & (labels < n_classes), losses, xp.nan)
    dscores = violated - onehot * xp.sum(violated, axis=-1, keepdims=True)
    if sample_weight is None:
        return xp.sum(losses, axis=-1, dtype=xp.float64) / n_samples, dscores / n_samples
    weighted = losses * sample_weight
    return xp.sum(weighted, axis=-1, dtype=xp.float64), dscores * sample_weight[..., None]
