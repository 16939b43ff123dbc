"""The losses in two launches on a CUDA device: see losses.cu."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building.cuda import ceil_div, contiguous, empty, launch

__all__ = ["fused_multiclass_hinge", "fused_softmax_cross_entropy"]

REALS = {"float32", "float64"}
LABELS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
THREADS = 256
MAX_CLASSES = 16_384
MAX_MODELS = 65_535  # the grid's second axis
MAX_BLOCKS = 1024  # of a model: enough for any device, and the same on all of them


def fused_softmax_cross_entropy(logits: Any, labels: Any, sample_weight: Any = None) -> Any:
    """Compute :func:`gpuclf.losses.softmax_cross_entropy`."""
    return _loss("softmax_cross_entropy", logits, labels, sample_weight)


def fused_multiclass_hinge(
    scores: Any, labels: Any, sample_weight: Any = None, margin: float = 1.0
) -> Any:
    """Compute :func:`gpuclf.losses.multiclass_hinge`."""
    if not isinstance(margin, int | float):
        return NotImplemented
    return _loss("multiclass_hinge", scores, labels, sample_weight, margin)


def _loss(name: str, scores: Any, labels: Any, weights: Any, *options: float) -> Any:
    xp = array_namespace(scores=scores, labels=labels, sample_weight=weights)
    if not _fits(scores, labels, weights):
        return NotImplemented
    *models, n_samples, n_classes = scores.shape
    n_models = prod(models)
    lanes = min(32, 1 << (n_classes - 1).bit_length())
    n_blocks = min(MAX_BLOCKS, ceil_div(n_samples * lanes, THREADS))
    constants = {
        "REAL": scores.dtype.name,
        "LABEL": labels.dtype.name,
        "LANES": lanes,
        "THREADS": THREADS,
    }
    gradient = empty(scores, *scores.shape, dtype=scores.dtype.name)
    partials = empty(scores, n_models, n_blocks, dtype="float64")
    losses = empty(scores, n_models, dtype="float64")
    weights_of_a_model = n_samples if weights is not None and weights.ndim > 1 else 0
    launch(
        "losses.cu", constants, name, (n_blocks, n_models), THREADS, contiguous(scores),
        contiguous(labels), None if weights is None else contiguous(weights),
        np.int64(weights_of_a_model), gradient, partials, n_samples, n_classes,
        *(scores.dtype.type(option) for option in options),
    )  # fmt: skip
    divisor = np.float64(n_samples if weights is None else 1)
    launch(
        "losses.cu", constants, "add_partials", n_models, 32, partials, losses, n_blocks, divisor
    )
    return xp.reshape(losses, tuple(models)), gradient


def _fits(scores: Any, labels: Any, weights: Any) -> bool:
    if scores.ndim < 2 or 0 in scores.shape or scores.dtype.name not in REALS:
        return False
    *models, n_samples, n_classes = scores.shape
    return (
        n_classes <= MAX_CLASSES
        and n_samples < 2**31
        and prod(models) <= MAX_MODELS
        and labels.shape == (n_samples,)
        and labels.dtype.name in LABELS
        and (weights is None or weights.dtype == scores.dtype)
        and (weights is None or weights.shape in ((n_samples,), scores.shape[:-1]))
    )
