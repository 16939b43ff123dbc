"""The linear pass of several softmax models on the CPU, with scores of shape (K, C, rows).

What the loss does to ten classes a row is ten numbers at a time, for which NumPy starts anew; with
the classes as rows it runs along the samples. Here the products themselves give the scores so, and
take their gradient so: nothing is transposed. All temporaries of a block are written where those of
the block before lay, for fresh memory costs as much as the exponentials.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.devices.cpu import cache_bytes, cpu_workers
from gpuclf.dispatch import machine_code_of
from gpuclf.kernels.byte_products.on_cpu import are_multiplied
from gpuclf.samples.walk import sum_over_row_blocks

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["class_major_linear_pass"]

# Sums in float32 of too many terms lose digits; threads with too few rows meet at the interpreter's
# lock. In between, the scores of a block fill two L2: spilling a little is cheaper than meeting.
MIN_ROWS, MAX_ROWS = 512, 4096
SCORES_L2S = 2
MIN_SAMPLES = 2048  # below, BLAS's own threads share the one block


def class_major_linear_pass(
    W: Any,
    b: Any,
    samples: FoldedSamples,
    y: Any,
    weights: Any,
    data_loss: Any,
    precision: str = "float32",
    models: tuple[int, ...] = (),
) -> Any:
    """Compute :func:`gpuclf.models.linear.linear_pass` of several softmax models."""
    n_samples, K = samples.n_samples, math.prod(models)
    width = W.shape[-1]
    if (
        len(models) != 1
        or machine_code_of(data_loss) != "softmax_cross_entropy"
        or samples.are_streamed
        or n_samples < MIN_SAMPLES
        or (b is not None and b.shape != (width,))
        or weights.shape not in ((n_samples,), (K, n_samples))
        or weights.dtype != W.dtype
        or y.dtype.kind not in "iu"
        or not 0 <= y.min() <= y.max() < width // K
        or are_multiplied(samples.stored, width, W.dtype)
    ):
        return NotImplemented
    C = width // K
    stack = np.ascontiguousarray(W.T)  # (K C, D)
    of_cache = SCORES_L2S * cache_bytes() // (W.itemsize * width) // 32 * 32
    step = min(max(of_cache, MIN_ROWS), MAX_ROWS, max(MIN_ROWS, n_samples // cpu_workers()))
    scratch = threading.local()

    def of_block(rows: slice) -> tuple[Any, Any, Any]:
        X, labels, w = samples.rows(rows), y[rows], weights[..., rows]
        if not hasattr(scratch, "scores"):
            scratch.scores = np.empty((width, step), W.dtype)
        n_rows = len(labels)
        wide = scratch.scores[:, :n_rows]
        np.matmul(stack, X.T, out=wide)
        if b is not None:
            wide += b[:, None]
        loss = _softmax_in_place(wide.reshape(K, C, n_rows), labels, w)
        return loss, wide @ X, wide.sum(axis=1)

    loss, dWT, db = sum_over_row_blocks(of_block, n_samples, step, parallel=True)
    return loss, np.ascontiguousarray(dWT.T), db


def _softmax_in_place(scores: Any, labels: Any, weights: Any) -> Any:
    """Return the losses (K,), and leave the gradient in the place of the scores (K, C, rows)."""
    own_class = slice(None), labels, np.arange(len(labels))
    scores -= scores.max(axis=1)[:, None]
    losses = -scores[own_class]
    np.exp(scores, out=scores)
    normaliser = scores.sum(axis=1)
    losses += np.log(normaliser)
    losses *= weights
    scores *= (weights / normaliser)[:, None]
    scores[own_class] -= weights
    return losses.sum(axis=-1, dtype=np.float64)
