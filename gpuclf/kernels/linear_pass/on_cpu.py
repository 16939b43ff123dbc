"""The whole linear pass in compiled code; needs numba.

A block of rows at a time: scores, loss and gradient of the scores, and their share of dW, while the
rows are in a core's L2, so that X is read from memory once. Python threads cannot work on pieces
this small, for they would meet at the interpreter's lock; the compiled loop releases it. Bytes,
short floats and centred floats are widened as they are read.

A data loss that is not in machine code stays in Python: it is called for a stretch of rows between
the two compiled products, so X is read twice.

Declines what others do better: little work, few features, wide W, samples that are not one
contiguous matrix. Of a mini-batch BLAS has the products.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.devices.cpu import cache_bytes, cpu_workers
from gpuclf.dispatch import machine_code_of
from gpuclf.kernels.building.machine_code import numba_is_usable, processor_features
from gpuclf.kernels.byte_products.on_cpu import are_multiplied, linear_pass_of_bytes
from gpuclf.kernels.losses.on_cpu import padded_length
from gpuclf.samples.short_floats import is_short_float
from gpuclf.samples.walk import sum_over_row_blocks

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["compiled_linear_pass", "linear_objective_by_blas"]

MIN_MULTIPLICATIONS = 1_000_000  # below, the call takes longer than the work
MIN_FEATURES = 64  # what the widest strip of the loops takes
# Above, the products of BLAS are as fast; with AVX-512 they wait for memory longer.
MAX_CLASSES, MAX_CLASSES_AVX512 = 48, 128
# A thread's share is summed in stretches, as float32 sums of too many terms lose digits; what they
# give is added in float64, because the column taken from all others adds up the errors of all.
MAX_STRETCH_ROWS = 2048
MIN_STRETCH_ROWS = 512
# Of several models. Below, the wide products of BLAS are faster.
MIN_FEATURES_OF_MODELS, MIN_ROWS_OF_FLOATS, MIN_ROWS_OF_BYTES = 256, 8192, 2048
MAX_ROWS_FOR_BLAS = 512  # so few stay in the cache, as floats, from one product to the other
# W, dW and what the processor fetches ahead have the rest of L2; tiles have 3 or 4 rows.
BLOCK_OF_L2 = 0.6
MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 12, 96
OWN_LOSS_ROWS = 256  # of a call of a loss in Python: its rows should still be in a cache after it


def linear_objective_by_blas(
    W: Any,
    b: Any,
    samples: FoldedSamples,
    y: Any,
    sample_weight: Any,
    data_loss: Any,
    reg: Any,
    precision: str = "float32",
) -> Any:
    """Compute :func:`gpuclf.models.linear.penalized_linear_pass` of few rows.

    Their products are BLAS's, whose threads share them; what is between and behind is compiled, for
    the operations of NumPy take as long as a product.
    """
    n_samples, kind = samples.n_samples, W.dtype
    standardized = samples.standardized if samples.folds else None
    if (
        n_samples > MAX_ROWS_FOR_BLAS
        or W.ndim != 2
        or n_samples * W.size < MIN_MULTIPLICATIONS
        or samples.are_streamed
        or (samples.folds and standardized is None)
        or (standardized is not None and are_multiplied(samples.stored, W.shape[1], kind))
        or (samples.are_plain_floats and samples.stored.dtype != kind)
        or (sample_weight is not None and sample_weight.shape != (n_samples,))
        or not W.flags.c_contiguous
        or (known := machine_code_of(data_loss)) is None
        or not numba_is_usable()
    ):
        return NotImplemented
    gradients_in_place, add_multiple = _compiled_between_products()
    # To fold a standardisation takes more passes over W than so few rows are worth.
    rows = slice(0, n_samples)
    X = samples.rows(rows) if standardized is None else standardized.to_array(kind)
    C = W.shape[1]
    scores = np.empty((1, C, padded_length(n_samples)), kind)
    dscores = scores[0, :, :n_samples]
    dscores[:] = (X @ W).T
    bias = np.zeros(C, kind) if b is None else np.ascontiguousarray(b)
    labels, weights = np.ascontiguousarray(y, np.int64), _mean_weights(n_samples, kind)
    if sample_weight is not None:
        weights = np.ascontiguousarray(sample_weight, kind)
    losses, totals = np.zeros(1), np.zeros((1, C))
    given = scores, bias[None], labels, weights[None]
    gradients_in_place(*given, losses, totals, known == "multiclass_hinge")
    dW, flat = X.T @ dscores.T, W.reshape(-1)
    add_multiple(dW.reshape(-1), flat, kind.type(2 * reg))
    return losses[0] + reg * np.float64(flat @ flat), dW, totals[0].astype(kind)


@cache
def _compiled_between_products() -> Any:
    from gpuclf.kernels.elementwise.loops import add_multiple
    from gpuclf.kernels.losses.loops import gradients_in_place

    return gradients_in_place, add_multiple


@cache
def _mean_weights(n_samples: int, dtype: Any) -> Any:
    return np.full(n_samples, 1 / n_samples, dtype)


def compiled_linear_pass(
    W: Any,
    b: Any,
    samples: FoldedSamples,
    y: Any,
    weights: Any,
    data_loss: Any,
    precision: str = "float32",
    models: tuple[int, ...] = (),
    widens_bytes: bool = False,
) -> Any:
    """Compute :func:`gpuclf.models.linear.linear_pass` in one compiled pass.

    `widens_bytes`: bytes as floats also where they could be multiplied as they are, to compare.
    """
    n_samples, K = samples.n_samples, math.prod(models)
    (n_features, width), is_bytes = W.shape, samples.stored.dtype == np.uint8
    if (
        len(models) > 1
        or n_features < (MIN_FEATURES_OF_MODELS if models else MIN_FEATURES)
        or (models and n_samples < (MIN_ROWS_OF_BYTES if is_bytes else MIN_ROWS_OF_FLOATS))
        or width > 2 * MAX_CLASSES_AVX512  # of two classes, one column is saved
        or n_samples * n_features * width < MIN_MULTIPLICATIONS
        or samples.are_streamed
        or not is_widened(samples.stored)
        or (b is not None and b.ndim != 1)
        or weights.shape not in ((n_samples,), (K, n_samples))
        or not samples.stored.flags.c_contiguous
        or not numba_is_usable()
    ):
        return NotImplemented
    from gpuclf.kernels.linear_pass import loops

    n_classes, known = width // K, machine_code_of(data_loss)
    of_model = n_classes - 1 if known is not None and n_classes > 1 else n_classes
    n_columns, hinge = K * of_model, known == "multiclass_hinge"
    if n_columns > (MAX_CLASSES_AVX512 if loops.VECTOR_BYTES == 64 else MAX_CLASSES):
        return NotImplemented
    if known is None and models:
        return NotImplemented
    if not widens_bytes:
        if known is not None and not models:
            of_bytes = linear_pass_of_bytes(W, b, samples, y, weights, hinge)
            if of_bytes is not NotImplemented:
                return of_bytes
        elif are_multiplied(samples.stored, width, W.dtype):
            return NotImplemented  # the shared body's blocks multiply bytes
    X, centre = samples.stored, samples.centre
    if not (samples.folds or samples.are_plain_floats):
        X = samples.rows(slice(0, n_samples))
    X = bits_of_short_floats(X)
    shape = loops.shape_for(n_columns, W.itemsize)
    given_b = np.zeros(width, W.dtype) if b is None else b
    packed = loops.zeros_of_W(n_features, n_columns, W.dtype, shape)
    bias, swapped = np.zeros((K, n_classes), W.dtype), np.zeros(K, np.int64)
    columns = [slice(k * n_classes, (k + 1) * n_classes) for k in range(K)]
    for k, own in enumerate(columns):
        place = k * of_model, of_model, packed, bias[k], shape
        swapped[k] = loops.pack(W[:, own], given_b[own], *place)
    labels = np.ascontiguousarray(y, np.int64)
    weights = np.ascontiguousarray(np.atleast_2d(weights))
    middle = np.zeros(n_features, W.dtype) if centre is None else np.ascontiguousarray(centre)
    is_centred = () if centre is None else (0,)
    block = block_rows(n_features * X.itemsize)

    def of_stretch(rows: slice) -> tuple[Any, Any, Any]:
        dW = loops.zeros_of_W(n_features, n_columns, W.dtype, shape)
        losses, db = np.zeros(K), np.zeros(bias.shape)
        room = loops.room_for(packed, width, block, shape)
        if known is None:
            losses[0] = own_loss(rows, dW, db[0], room)
            return losses, dW, db
        loops.linear_pass(
            *(X, middle, packed, bias, labels, weights, rows.start, rows.stop, losses, dW, db),
            *(n_columns, swapped, room, shape, is_centred, hinge),
        )
        return losses, dW.astype(np.float64), db

    def own_loss(rows: slice, dW: Any, db: Any, room: Any) -> Any:
        total, sizes = np.float64(0), (room, shape, is_centred)
        for start in range(rows.start, rows.stop, OWN_LOSS_ROWS):
            some = slice(start, min(start + OWN_LOSS_ROWS, rows.stop))
            ends = some.start, some.stop
            S = np.empty((width, some.stop - start), W.dtype)
            loops.scores_of_rows(X, middle, packed, *ends, S, *sizes)
            S += bias[0][:, None]  # the bias last: a large one would cost the products digits
            loss, dscores = data_loss(S.T, y[some], weights[0, some])
            G = np.zeros((len(dscores), packed.shape[0] * packed.shape[2]), W.dtype)
            G[:, :width] = dscores
            db += dscores.sum(axis=0)
            loops.add_gradient_of_rows(X, middle, G, *ends, dW, *sizes)
            total += loss
        return total

    stretch = min(max(n_samples // (2 * cpu_workers()), MIN_STRETCH_ROWS), MAX_STRETCH_ROWS)
    loss, dW, db = sum_over_row_blocks(of_stretch, n_samples, stretch, parallel=True)
    db, out = db.astype(W.dtype), np.empty_like(W)
    for k, own in enumerate(columns):
        db[k, [swapped[k], -1]] = db[k, [-1, swapped[k]]]
        loops.unpack(dW, k * of_model, of_model, swapped[k], out[:, own], shape)
        if known is not None and not np.isfinite(loss[k]):  # of labels out of range too
            out[:, own], db[k] = np.nan, np.nan
    return loss if models else loss[0], out, db.reshape(-1)


def block_rows(row_bytes: int) -> int:
    """Return how many rows are multiplied twice while they stay in a core's L2."""
    fitting = int(BLOCK_OF_L2 * cache_bytes()) // row_bytes // 12 * 12
    return min(max(fitting, MIN_BLOCK_ROWS), MAX_BLOCK_ROWS)


def is_widened(X: Any) -> bool:
    """Tell whether the processor widens such numbers: float16 by an instruction of its own."""
    return bool(X.dtype != np.float16 or (numba_is_usable() and processor_features().get("f16c")))


def bits_of_short_floats(X: Any) -> Any:
    """Return the integers that the loops take floats of two bytes as; other numbers as they are."""
    if not is_short_float(X.dtype):
        return X
    return X.view(np.int16 if X.dtype == np.float16 else np.uint16)
