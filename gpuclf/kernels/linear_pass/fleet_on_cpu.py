"""The linear pass of softmax models on the CPU, with scores of shape (K, C, rows).

What the loss does to ten classes a row is ten numbers at a time, for which NumPy starts anew; with
the classes as rows it runs along the samples. Here the products themselves give the scores so, and
take their gradient so: nothing is transposed, but scores of tiles, which have samples as rows. All
temporaries of a block are written where those of the block before lay, for fresh memory costs as
much as the exponentials.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.devices.cpu import cache_bytes, cpu_workers
from gpuclf.dispatch import machine_code_of
from gpuclf.kernels.building.machine_code import numba_is_usable
from gpuclf.kernels.byte_products.on_cpu import are_multiplied
from gpuclf.kernels.linear_pass.on_cpu import MAX_CLASSES, MIN_MULTIPLICATIONS
from gpuclf.kernels.losses.on_cpu import padded_length
from gpuclf.samples.walk import CPU_BLOCK_BYTES, sum_over_row_blocks

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["class_major_linear_pass"]

# Sums in float32 of too many terms lose digits; threads with too few rows meet at the interpreter's
# lock. In between, the scores of a block fill two L2: spilling a little is cheaper than meeting,
# and where W is wide, than adding up a gradient of its size for each block.
MIN_ROWS, LONG_ROWS, MAX_ROWS = 512, 2048, 4096
SCORES_L2S = 2
MIN_SAMPLES = 2048  # below, BLAS's own threads share one block


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
    """Compute :func:`gpuclf.models.linear.linear_pass` of K softmax models, or of many classes."""
    n_samples, K = samples.n_samples, math.prod(models)
    width = W.shape[-1]
    if (
        len(models) > 1
        or (not models and (width <= MAX_CLASSES or n_samples < MIN_SAMPLES))
        or machine_code_of(data_loss) != "softmax_cross_entropy"
        or samples.are_streamed
        or (b is not None and b.shape != (width,))
        or weights.shape not in ((n_samples,), (K, n_samples))
        or weights.dtype != W.dtype
        or y.dtype.kind not in "iu"
        or not 0 <= y.min() <= y.max() < width // K
        or are_multiplied(samples.stored, width, W.dtype)
    ):
        return NotImplemented
    D, C = samples.n_features, width // K
    compiles = n_samples * D * width >= MIN_MULTIPLICATIONS and numba_is_usable()
    if n_samples < MIN_SAMPLES and not compiles:
        return NotImplemented
    of_cache = SCORES_L2S * cache_bytes() // (W.itemsize * width) // 32 * 32
    step = min(max(of_cache, LONG_ROWS), MAX_ROWS, max(MIN_ROWS, n_samples // cpu_workers()))
    if n_samples < MIN_SAMPLES:
        step = n_samples
    if compiles:
        from gpuclf.kernels.losses.loops import gradients_in_place
    else:
        gradients_in_place = _softmax_gradients_in_place
    is_tiled = samples.stored.dtype != W.dtype and not samples.are_converted
    if samples.are_converted:
        step = min(step, max(MIN_ROWS, CPU_BLOCK_BYTES // (W.itemsize * D)))
    scratch = threading.local()
    bias = np.zeros((K, C), W.dtype) if b is None else np.ascontiguousarray(b).reshape(K, C)
    labels, weights = y.astype(np.int64, copy=False), np.atleast_2d(weights)

    def of_block(rows: slice) -> tuple[Any, Any, Any]:
        block, n_rows = samples.block(rows), rows.stop - rows.start
        if not hasattr(scratch, "room"):
            scratch.room = np.empty(width * padded_length(step), W.dtype)
        scores = scratch.room[: width * padded_length(n_rows)].reshape(K, C, -1)
        wide = scores.reshape(width, -1)[:, :n_rows]
        if is_tiled:  # with samples as rows
            wide[:] = block.affine(W, np.zeros(width, W.dtype)).T
        else:
            np.matmul(W.T, block.floats.T, out=wide)
        losses, totals = np.zeros(K), np.zeros((K, C))
        given = bias, labels[rows], np.ascontiguousarray(weights[:, rows])
        gradients_in_place(scores, *given, losses, totals, False)
        dW = block.affine_backward(wide.T)[0] if is_tiled else block.floats.T @ wide.T
        return losses, dW, totals

    loss, dW, db = sum_over_row_blocks(of_block, n_samples, step, parallel=True)
    return loss if models else loss[0], dW, db.reshape(-1).astype(W.dtype)


def _softmax_gradients_in_place(
    scores: Any, bias: Any, labels: Any, weights: Any, losses: Any, totals: Any, hinge: bool
) -> None:
    """Do as :func:`gpuclf.kernels.losses.loops.gradients_in_place` of softmax, without numba."""
    scores = scores[..., : len(labels)]
    scores += bias[:, :, None]
    own_class = slice(None), labels, np.arange(len(labels))
    scores -= scores.max(axis=1)[:, None]
    of_rows = -scores[own_class]
    np.exp(scores, out=scores)
    normaliser = scores.sum(axis=1)
    of_rows += np.log(normaliser)
    losses += (of_rows * weights).sum(axis=-1, dtype=np.float64)
    scores *= (weights / normaliser)[:, None]
    scores[own_class] -= weights
    totals += scores.sum(axis=-1, dtype=np.float64)
