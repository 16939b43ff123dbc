"""The whole linear pass in compiled code; needs numba.

Sixteen rows at a time: scores, loss and gradient of the scores, and their share of dW, while the
rows are in a core's L2, so that X is read from memory once. Python threads cannot work on pieces
this small, for they would meet at the interpreter's lock; the compiled loop releases it. Bytes and
standardised floats are converted into a buffer of sixteen rows.

A data loss that is not in machine code stays in Python: it is called for a stretch of rows between
the two compiled products, so X is read twice.

Declines what the shared body does better: little work, few features, wide W, several models,
samples that are not one contiguous matrix; a mini-batch of floats, which one thread walks here and
all of BLAS's threads there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.devices.cpu import cpu_workers
from gpuclf.dispatch import machine_code_of
from gpuclf.kernels.building.machine_code import numba_is_usable, processor_features
from gpuclf.kernels.byte_products.on_cpu import are_multiplied, linear_pass_of_bytes
from gpuclf.samples.short_floats import is_short_float
from gpuclf.samples.walk import sum_over_row_blocks

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["compiled_linear_pass"]

MIN_MULTIPLICATIONS = 1_000_000  # below, the call takes longer than the work
MIN_FEATURES = 64
MAX_CLASSES = 48
# A thread's share is summed in stretches, as float32 sums of too many terms lose digits.
MAX_STRETCH_ROWS = 4096
MIN_STRETCH_ROWS = 512
MAX_ROWS_FOR_BLAS = 512  # of floats: BLAS shares so few among its threads
OWN_LOSS_ROWS = 256  # of a call of a loss in Python: its rows should still be in a cache after it


def compiled_linear_pass(
    W: Any,
    b: Any,
    samples: FoldedSamples,
    y: Any,
    weights: Any,
    data_loss: Any,
    precision: str = "float32",
    models: tuple[int, ...] = (),
) -> Any:
    """Compute :func:`gpuclf.models.linear.linear_pass` in one compiled pass."""
    n_samples = samples.n_samples
    n_features, n_classes = W.shape
    if (
        models
        or n_features < MIN_FEATURES
        or n_classes > MAX_CLASSES
        or n_samples * n_features * n_classes < MIN_MULTIPLICATIONS
        or samples.are_streamed
        or (is_short_float(samples.stored.dtype) and not _halves_are_widened(samples.stored))
        or (b is not None and b.ndim != 1)
        or weights.shape != (n_samples,)
        or not samples.stored.flags.c_contiguous
        or not numba_is_usable()
    ):
        return NotImplemented
    known = machine_code_of(data_loss)
    hinge = known == "multiclass_hinge"
    if known is not None:
        of_bytes = linear_pass_of_bytes(W, b, samples, y, weights, hinge)
        if of_bytes is not NotImplemented:
            return of_bytes
    elif are_multiplied(samples.stored, n_classes, W.dtype):
        return NotImplemented  # the shared body's blocks multiply bytes
    from gpuclf.kernels.linear_pass import loops

    X, centre = samples.stored, samples.centre
    if not (samples.folds or samples.are_plain_floats):
        X = samples.rows(slice(0, n_samples))
    if X.dtype == np.float16:
        X = X.view(np.int16)
    in_place = X.dtype == W.dtype and centre is None
    if in_place and known is not None and n_samples <= MAX_ROWS_FOR_BLAS and cpu_workers() > 1:
        return NotImplemented
    (padded, padded_outer), tiles = loops.tiles(n_classes)
    WT = loops.aligned_zeros(padded, n_features, W)
    WT[:n_classes] = W.T
    bias = np.zeros(n_classes, W.dtype) if b is None else np.ascontiguousarray(b)
    labels, weights = np.ascontiguousarray(y, np.int64), np.ascontiguousarray(weights)
    if centre is None:
        centre = np.zeros(n_features, W.dtype)
    convert = None if in_place else centre

    def of_stretch(rows: slice) -> tuple[Any, Any, Any]:
        dWT = loops.aligned_zeros(padded_outer, n_features, W)
        db = np.zeros(n_classes, W.dtype)
        if known is None:
            loss = own_loss(rows, dWT, db)
        else:
            given = (WT, bias, labels, weights, rows.start, rows.stop, dWT, db, tiles, hinge)
            if in_place:
                loss = loops.pass_in_place(X, *given)
            else:
                loss = loops.pass_converted(X, centre, *given)
        return np.float64(loss), dWT, db

    def own_loss(rows: slice, dWT: Any, db: Any) -> Any:
        total = np.float64(0)
        for start in range(rows.start, rows.stop, OWN_LOSS_ROWS):
            some = slice(start, min(start + OWN_LOSS_ROWS, rows.stop))
            ends = some.start, some.stop
            scores = loops.scores_of_rows(X, convert, WT, bias, *ends, dWT, tiles)
            of_classes = scores[: some.stop - start, :n_classes]
            loss, dscores = data_loss(of_classes, y[some], weights[some])
            of_classes[:] = dscores
            db += dscores.sum(axis=0)
            loops.add_gradient_of_rows(X, convert, scores, *ends, WT, dWT, tiles)
            total += loss
        return total

    stretch = min(max(n_samples // (2 * cpu_workers()), MIN_STRETCH_ROWS), MAX_STRETCH_ROWS)
    loss, dWT, db = sum_over_row_blocks(of_stretch, n_samples, stretch, parallel=True)
    return loss, np.ascontiguousarray(dWT[:n_classes].T), db


def _halves_are_widened(X: Any) -> bool:
    """Tell whether the processor has an instruction that widens such short floats."""
    return bool(X.dtype == np.float16 and numba_is_usable() and processor_features().get("f16c"))
