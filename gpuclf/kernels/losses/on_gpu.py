"""The losses in two launches on a CUDA device: see losses.cu."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building.cuda import NULL, Launch, ceil_div, contiguous
from gpuclf.kernels.building.plans import Plan, kept_plan, signature

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


class TwoLaunches(Plan):
    """``plan(scores, labels, weights) -> [loss, dscores]``."""

    def queue(
        self, between: list[Any], results: list[Any], scores: Any, labels: Any, weights: Any
    ) -> None:
        """Launch the kernels."""
        (partials,), (losses, gradient) = between, results
        weights = NULL if weights is None else contiguous(weights)
        self.of_rows(
            contiguous(scores), contiguous(labels), weights, self.weights_of_a_model, gradient,
            partials, self.n_samples, self.n_classes, *self.options,
        )  # fmt: skip
        self.add_up(partials, losses, self.n_blocks, self.divisor)


def _loss(name: str, scores: Any, labels: Any, weights: Any, *options: float) -> Any:
    arrays = signature(scores, labels, weights)
    plan = kept_plan(
        None if arrays is None else (name, arrays, options),
        lambda: _plan(name, scores, labels, weights, *options),
    )
    if plan is None:
        return NotImplemented
    losses, gradient = plan(scores, labels, weights)
    return losses.reshape(scores.shape[:-2]), gradient


def _plan(name: str, scores: Any, labels: Any, weights: Any, *options: float) -> TwoLaunches | None:
    """Check everything."""
    array_namespace(scores=scores, labels=labels, sample_weight=weights)  # of one device
    if not _fits(scores, labels, weights):
        return None
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
    weights_of_a_model = n_samples if weights is not None and weights.ndim > 1 else 0
    kernel = partial(Launch, "losses.cu", constants)
    return TwoLaunches(
        [(n_models, n_blocks, "float64")],
        [(n_models, "float64"), (*scores.shape, scores.dtype.name)],
        of_rows=kernel(name, (n_blocks, n_models), THREADS),
        add_up=kernel("add_partials", n_models, 32),
        weights_of_a_model=np.int64(weights_of_a_model),
        n_samples=np.int32(n_samples),
        n_classes=np.int32(n_classes),
        options=[scores.dtype.type(option) for option in options],
        n_blocks=np.int32(n_blocks),
        divisor=np.float64(n_samples if weights is None else 1),
    )


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
