"""Losses along the samples: ten classes a row are ten numbers, for which NumPy starts anew.

With the classes as rows, the same operations run along thousands of samples. Beside products that
are worth numba they are compiled (:mod:`gpuclf.kernels.losses.loops`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.dispatch import machine_code_of
from gpuclf.kernels.building.machine_code import numba_is_usable
from gpuclf.losses import softmax_cross_entropy

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = [
    "LANES",
    "class_major_multiclass_hinge",
    "class_major_softmax_cross_entropy",
    "padded_length",
    "two_layer_pass_with_compiled_loss",
]

LANES = 16  # of compiled losses: rows come in multiples of these, a line of float32
MIN_MULTIPLICATIONS = 1_000_000  # of the products beside: below, numba is not imported for a loss

# The methods of arrays call these through two functions in Python, as long as a mini-batch takes.
smallest, largest, added = np.minimum.reduce, np.maximum.reduce, np.add.reduce


def padded_length(n_samples: int) -> int:
    """Return how long compiled losses want rows of so many scores.

    An odd number of cache lines: of a power of two, a cache keeps few rows at once.
    """
    return (-(-n_samples // LANES) | 1) * LANES


def _class_major(scores: Any, labels: Any, sample_weight: Any) -> Any:
    """Return the scores (C, K N), and labels and weights for them.

    None if the arguments are out of the ordinary.
    """
    *models, n_samples, n_classes = scores.shape
    weights = scores.dtype.type(1 / n_samples) if sample_weight is None else sample_weight
    fits = (
        len(models) <= 1
        and labels.shape == (n_samples,)
        and labels.dtype.kind in "iu"
        and smallest(labels) >= 0
        and largest(labels) < n_classes
        and weights.shape in ((), (n_samples,), scores.shape[:-1])
        and weights.dtype == scores.dtype
    )
    if not fits:
        return None
    if not models:
        return scores.T.copy(), labels, weights
    labels = np.tile(labels, len(scores))
    weights = np.broadcast_to(weights, scores.shape[:-1]).reshape(-1)
    return scores.transpose(2, 0, 1).copy().reshape(n_classes, -1), labels, weights


def _of_models(losses: Any, dscores: Any, like: Any) -> Any:
    """Return the sums of weighted losses, and the gradient in the shape of the scores."""
    if like.ndim == 2:
        return added(losses, dtype=np.float64), dscores.T
    loss = losses.reshape(like.shape[:-1]).sum(axis=-1, dtype=np.float64)
    return loss, np.moveaxis(dscores.reshape(-1, *like.shape[:-1]), 0, -1)


def class_major_softmax_cross_entropy(logits: Any, labels: Any, sample_weight: Any = None) -> Any:
    """Compute :func:`gpuclf.losses.softmax_cross_entropy` with the classes as rows."""
    class_major = _class_major(logits, labels, sample_weight)
    if class_major is None:
        return NotImplemented
    probs, labels, weights = class_major
    own_class = labels, np.arange(len(labels))
    probs -= largest(probs)
    losses = -probs[own_class]
    np.exp(probs, out=probs)
    normaliser = added(probs)
    losses += np.log(normaliser)
    probs *= weights / normaliser
    probs[own_class] -= weights
    return _of_models(losses * weights, probs, logits)


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


def two_layer_pass_with_compiled_loss(
    W1: Any,
    b1: Any,
    W2: Any,
    b2: Any,
    samples: FoldedSamples,
    y: Any,
    sample_weight: Any,
    reg: Any,
    hidden_mask: Any = None,
    precision: str = "float32",
    data_loss: Any = softmax_cross_entropy,
) -> Any:
    """Compute :func:`gpuclf.models.two_layer.two_layer_pass` by its body, with another loss."""
    known = machine_code_of(data_loss)
    if known is None or samples.n_samples * W1.size < MIN_MULTIPLICATIONS or not numba_is_usable():
        return NotImplemented
    from gpuclf.models.two_layer import two_layer_pass

    compiled = _compiled(known == "multiclass_hinge")
    given = W1, b1, W2, b2, samples, y, sample_weight, reg, hidden_mask, precision
    return two_layer_pass.reference(*given, compiled)


@cache
def _compiled(hinge: bool) -> Any:
    from gpuclf.kernels.losses.loops import gradients_in_place

    def data_loss(scores: Any, labels: Any, sample_weight: Any) -> tuple[Any, Any]:
        *models, n_samples, n_classes = scores.shape
        padded = np.empty((*models, n_classes, padded_length(n_samples)), scores.dtype)
        dscores = padded[..., :n_samples]
        dscores[:] = scores.swapaxes(-1, -2)
        class_major = padded.reshape(-1, *padded.shape[-2:])
        bias = np.zeros(class_major.shape[:2], scores.dtype)
        weights = np.ascontiguousarray(sample_weight, scores.dtype).reshape(-1, n_samples)
        losses, totals = np.zeros(len(bias)), np.zeros(bias.shape)
        labels = np.ascontiguousarray(labels, np.int64)
        gradients_in_place(class_major, bias, labels, weights, losses, totals, hinge)
        return losses.reshape(models) if models else losses[0], dscores.swapaxes(-1, -2)

    return data_loss
