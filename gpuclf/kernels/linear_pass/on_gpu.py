"""The linear pass over bytes on tensor cores, in four launches: see linear_pass.cu."""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import (
    NULL,
    VECTOR,
    Launch,
    Workspace,
    ceil_div,
    null_for_none,
)
from gpuclf.kernels.linear_pass.single_on_gpu import single_pass

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["linear_objective_on_tensor_cores", "linear_pass_on_tensor_cores"]

FILE = "linear_pass.cu"
CHUNK, GROUP, STRIP, GRADIENT_STAGES = cuda.numbers_in(
    FILE, "CHUNK", "GROUP", "STRIP", "GRADIENT_STAGES"
)
MAX_CLASSES = 64
# Sums are split by these, never by the device at hand, so that all devices give the same bits.
MAX_GRADIENT_BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
MIN_SCORE_BLOCKS = 132
MIN_SCORE_STAGES, MAX_SCORE_STAGES = 2, 5
MAX_STRIPS = 8  # of a block of multiply_gradients
LARGEST_BLOCK = 3 * GROUP  # rows of score_rows' larger block


def linear_pass_on_tensor_cores(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any,
    precision: str = "float32", models: tuple[int, ...] = (), walk: str = "backwards",
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.linear.linear_pass` in two walks: scores, then gradients.

    At "tf32", scores and dW are products of factors with 11 bits: relative errors of some 2e-4,
    where "float32" has some 3e-7.

    Parameters
    ----------
    W, b, samples, y, weights, data_loss, precision, models
        As in :func:`gpuclf.models.linear.linear_pass`.
    walk : {"backwards", "once"}
        Two walks, the second from the last row to the first; or only one (single_pass.cu), where
        that can be. Each has an order of summation of its own, whatever the device.
    """
    if models:
        return NotImplemented
    return _pass(W, b, samples, y, weights, data_loss, precision, walk)


def linear_objective_on_tensor_cores(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any, reg: float,
    precision: str = "float32", walk: str = "backwards",
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.linear.penalized_linear_pass` in the same four launches.

    The folding of W, the unfolding of dW and the penalty take some fifteen launches of their own
    in the shared body, longer than the two walks over 50,000 images.
    """
    return _pass(W, b, samples, y, weights, data_loss, precision, walk, reg)


def _pass(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any, precision: str,
    walk: str, reg: float | None = None,
) -> Any:  # fmt: skip
    copy_bytes = cuda.bytes_of_copies(samples, y, (W, b, weights), precision)
    hinge = cuda.hinge_macro(data_loss) if copy_bytes else None
    if not (
        hinge is not None
        and W.ndim == 2
        and W.shape[1] <= MAX_CLASSES
        and samples.n_features < 2**31 // MAX_CLASSES
        and all(x is None or x.ndim == 1 for x in (b, weights))
    ):
        return NotImplemented
    if walk == "once":
        found = single_pass(W, b, samples, y, weights, data_loss, reg)
        if found is not NotImplemented:
            return found
    return _launch(W, b, samples, y, weights, hinge, precision, copy_bytes, reg)


@cache
def _plan(
    n_samples: int, n_features: int, n_classes: int, parts: int, hinge: int, copy_bytes: int,
    shared_bytes: int,
) -> SimpleNamespace | None:  # fmt: skip
    """Plan buffers and launches; None for too little shared memory or too many columns."""
    tiles, class_tiles = ceil_div(n_classes, 8), ceil_div(n_classes, 16)
    shares_a_tile = parts == 2 and 1 <= n_classes % 8 <= 4
    weight_vectors = 64 * (parts * tiles - shares_a_tile) + 1
    warp_rows = 32 if n_classes <= 16 else 16
    block_rows = LARGEST_BLOCK if n_samples > LARGEST_BLOCK * MIN_SCORE_BLOCKS else GROUP
    n_chunks, n_score_blocks = ceil_div(n_features, CHUNK), ceil_div(n_samples, block_rows)
    stage_bytes = block_rows * CHUNK + VECTOR * weight_vectors
    score_stages = min(MAX_SCORE_STAGES, shared_bytes // stage_bytes)
    epilogue_bytes = 4 * block_rows * (16 * class_tiles + 8)

    n_strips, strip_vectors = ceil_div(n_features, STRIP), GROUP * STRIP // VECTOR
    gradient_vectors = 4 * parts * 32
    n_shares = max(1, MAX_GRADIENT_BLOCKS // ceil_div(n_strips, MAX_STRIPS))
    n_shares = min(ceil_div(n_samples, GROUP), n_shares)
    room = shared_bytes // (GRADIENT_STAGES * VECTOR) - gradient_vectors - 1
    most_strips = min(MAX_STRIPS, room // strip_vectors)
    if score_stages < MIN_SCORE_STAGES or most_strips < 1:
        return None
    strips = ceil_div(n_strips, ceil_div(n_strips, most_strips))
    stage_vectors = strips * strip_vectors + gradient_vectors + 1
    gradient_grid = class_tiles, ceil_div(n_strips, strips), n_shares
    if not cuda.fits_grid(gradient_grid):
        return None
    constants = {
        "FEATURES": n_features,
        "CLASSES": n_classes,
        "SPLIT": parts - 1,
        "HINGE": hinge,
        "COPY_BYTES": copy_bytes,
        "BLOCK_ROWS": block_rows,
        "SCORE_STAGES": score_stages,
        "BLOCK_STRIPS": strips,
    }
    kernel = partial(Launch, FILE, constants)
    score_bytes = max(score_stages * stage_bytes, epilogue_bytes)
    gradient_bytes = GRADIENT_STAGES * VECTOR * stage_vectors
    n_groups = n_score_blocks * block_rows // GROUP
    n_sum_blocks = class_tiles * n_strips * 4 + n_classes + 1
    return SimpleNamespace(
        constants=constants,
        workspace=Workspace(
            (n_chunks, weight_vectors, 4, "float32"),
            (n_features, 2, "float32"),
            (n_chunks, n_classes + 1, "float64"),
            (n_groups, class_tiles, gradient_vectors, 4, "float32"),
            (n_groups, "float32"),
            (n_score_blocks, n_classes + 1, "float64"),
            (n_shares, class_tiles, n_strips, STRIP * 16, "float32"),
        ),
        pack=kernel("pack_weights", n_chunks, 256),
        score=kernel(
            "score_rows", n_score_blocks, block_rows // warp_rows * 32, shared_bytes=score_bytes
        ),
        multiply=kernel(
            "multiply_gradients", gradient_grid, 32 * strips, shared_bytes=gradient_bytes
        ),
        add_up=kernel("sum_partials", n_sum_blocks, 256),
        n_samples=np.int32(n_samples),
        uniform_weight=np.float32(1 / n_samples),
        n_shares=np.int32(n_shares),
        n_score_blocks=np.int32(n_score_blocks),
    )


def _launch(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, hinge: int, precision: str,
    copy_bytes: int, reg: float | None,
) -> Any:  # fmt: skip
    """Launch the kernels; with `reg` for W on the features as they are, and its penalty."""
    X, n_samples, (n_features, n_classes) = samples.stored, samples.n_samples, W.shape
    cuda.check_same_device(W=W, b=b, X=X, y=y, weights=weights)
    plan = _plan(
        n_samples, n_features, n_classes, 1 if precision == "tf32" else 2,
        hinge, copy_bytes, cuda.device_limits(W).shared_bytes,
    )  # fmt: skip
    if plan is None:
        return NotImplemented
    packed, folding, chunk_sums, gradients, unscale, sums, partials = plan.workspace.beside(W)
    mean = scale = NULL
    if reg is None:
        folding = chunk_sums = NULL
    elif samples.standardized is not None:
        mean, scale = samples.standardized.mean, samples.standardized.scale
    plan.pack(W, mean, scale, packed, folding, chunk_sums)
    plan.score(
        X, packed, null_for_none(b), chunk_sums, cuda.int64_labels(y), null_for_none(weights),
        gradients, unscale, sums, plan.uniform_weight, plan.n_samples,
    )  # fmt: skip
    plan.multiply(X, gradients, unscale, partials, plan.n_samples)
    empty = partial(cuda.empty, W)
    dW, db, loss = empty(n_features, n_classes), empty(n_classes), empty(1, dtype="float64")
    plan.add_up(
        partials, sums, W, folding, chunk_sums, dW, db, loss, np.float64(reg or 0), plan.n_shares,
        plan.n_score_blocks,
    )  # fmt: skip
    return loss.reshape(()), dW, db
