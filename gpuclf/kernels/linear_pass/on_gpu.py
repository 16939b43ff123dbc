"""The linear pass over bytes on tensor cores, in four launches or more: see linear_pass.cu."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building.cuda import ceil_div
from gpuclf.kernels.linear_pass.single_on_gpu import single_pass
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.samples.walk import row_slices

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["linear_objective_on_tensor_cores", "linear_pass_on_tensor_cores"]

MIN_CAPABILITY = 80
MAX_CLASSES = 64
MIN_COPY_BYTES = 4
# Sums are split by these, never by the device at hand, so that all devices give the same bits.
MAX_GRADIENT_BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
MIN_SCORE_BLOCKS = 132
MAX_SCORE_STAGES = 5
WALK = "backwards"
MIN_SCORE_STAGES = 2

# As in linear_pass.cu.
VECTOR = 16  # bytes
CHUNK = 64
GROUP = 64
STRIP = 128
GRADIENT_STAGES = 3
MAX_STRIPS = 8  # of a block
LARGEST_BLOCK = 3 * GROUP  # rows of score_rows' larger block


def linear_pass_on_tensor_cores(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any,
    precision: str = "float32", walk: str | int = WALK,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.linear.linear_pass` with scores and gradients in two walks over X.

    At "tf32", scores and dW are products of factors with 11 bits: relative errors of some 2e-4,
    where "float32" has some 3e-7.

    Parameters
    ----------
    W, b, samples, y, weights, data_loss, precision
        As in :func:`gpuclf.models.linear.linear_pass`.
    walk : {"backwards", "forwards", "once"} or int
        In which order the second walk takes the rows; or both walks go through blocks of rows, of
        so many bytes; or there is only one (single_pass.cu), where that can be. Each has an order
        of summation of its own, whatever the device.
    """
    if not _fits(W, b, samples, y, weights, data_loss, precision):
        return NotImplemented
    if walk == "once":
        found = single_pass(W, b, samples, y, weights, data_loss)
        if found is not NotImplemented:
            return found
    return _launch(W, b, samples, y, weights, data_loss, precision, walk)


def linear_objective_on_tensor_cores(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any, reg: float,
    precision: str = "float32", walk: str | int = WALK,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.linear.linear_objective` in the same four launches.

    The folding of W, the unfolding of dW and the penalty take some fifteen launches of their own
    in the shared body, longer than the two walks over 50,000 images.
    """
    if not _fits(W, b, samples, y, weights, data_loss, precision):
        return NotImplemented
    if walk == "once":
        found = single_pass(W, b, samples, y, weights, data_loss, reg)
        if found is not NotImplemented:
            return found
    return _launch(W, b, samples, y, weights, data_loss, precision, walk, reg)


@dataclass(frozen=True)
class _Plan:
    """Sizes of the buffers and launches for samples of one shape."""

    constants: dict[str, int]
    n_chunks: int
    score_threads: int
    score_bytes: int
    gradient_grid: tuple[int, int, int]
    gradient_bytes: int
    packed: tuple[int, ...]
    gradients: tuple[int, ...]
    n_groups: int
    partials: tuple[int, ...]
    n_sum_blocks: int


@cache
def _plan(
    n_samples: int, n_features: int, n_classes: int, parts: int, hinge: bool, copy_bytes: int,
    backwards: bool, shared_bytes: int,
) -> _Plan | None:  # fmt: skip
    """Plan the launches, or return None for a device with too little shared memory."""
    tiles, class_tiles = ceil_div(n_classes, 8), ceil_div(n_classes, 16)
    shares_a_tile = parts == 2 and 1 <= n_classes % 8 <= 4
    weight_vectors = 64 * (parts * tiles - shares_a_tile) + 1
    warp_rows = 32 if n_classes <= 16 else 16
    block_rows = LARGEST_BLOCK if n_samples > LARGEST_BLOCK * MIN_SCORE_BLOCKS else GROUP
    n_chunks, n_score_blocks = ceil_div(n_features, CHUNK), ceil_div(n_samples, block_rows)
    stage_bytes = block_rows * CHUNK + VECTOR * weight_vectors
    score_stages = min(MAX_SCORE_STAGES, shared_bytes // stage_bytes)
    epilogue_bytes = 4 * block_rows * (16 * class_tiles + 8)

    n_strips, n_groups = ceil_div(n_features, STRIP), ceil_div(n_samples, GROUP)
    gradient_vectors = 4 * parts * 32
    strip_vectors = GROUP * STRIP // VECTOR
    n_shares = max(1, MAX_GRADIENT_BLOCKS // ceil_div(n_strips, MAX_STRIPS))
    n_shares = min(n_groups, n_shares)
    room = shared_bytes // (GRADIENT_STAGES * VECTOR) - gradient_vectors - 1
    most_strips = min(MAX_STRIPS, room // strip_vectors)
    if score_stages < MIN_SCORE_STAGES or most_strips < 1:
        return None
    strips = ceil_div(n_strips, ceil_div(n_strips, most_strips))
    stage_vectors = strips * strip_vectors + gradient_vectors + 1
    constants = {
        "FEATURES": n_features,
        "CLASSES": n_classes,
        "SPLIT": parts - 1,
        "HINGE": int(hinge),
        "COPY_BYTES": copy_bytes,
        "BLOCK_ROWS": block_rows,
        "SCORE_STAGES": score_stages,
        "BLOCK_STRIPS": strips,
        "BACKWARDS": int(backwards),
    }
    n_groups_of_blocks = n_score_blocks * block_rows // GROUP
    return _Plan(
        constants=constants,
        n_chunks=n_chunks,
        score_threads=block_rows // warp_rows * 32,
        score_bytes=max(score_stages * stage_bytes, epilogue_bytes),
        gradient_grid=(class_tiles, ceil_div(n_strips, strips), n_shares),
        gradient_bytes=GRADIENT_STAGES * VECTOR * stage_vectors,
        packed=(n_chunks, weight_vectors, 4),
        gradients=(n_groups_of_blocks, class_tiles, gradient_vectors, 4),
        n_groups=n_groups_of_blocks,
        partials=(n_shares, class_tiles, n_strips, STRIP * 16),
        n_sum_blocks=class_tiles * n_strips * 4 + n_classes + 1,
    )


def _launch(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any, precision: str,
    walk: str | int, reg: float | None = None,
) -> Any:  # fmt: skip
    """Launch the kernels; with `reg` for W on the features as they are, and its penalty."""
    X, n_samples, (n_features, n_classes) = samples.stored, samples.n_samples, W.shape
    xp = array_namespace(W=W, b=b, X=X, y=y, weights=weights)
    limits = cuda_modules.device_limits(W)
    copy_bytes = gcd(VECTOR, n_features, cuda_modules.address(X))
    if copy_bytes < MIN_COPY_BYTES or limits.capability < MIN_CAPABILITY:
        return NotImplemented
    parts = 1 if precision == "tf32" else 2
    hinge = data_loss is multiclass_hinge
    longest = n_samples
    if not isinstance(walk, str):
        longest = min(n_samples, max(1, walk // n_features // LARGEST_BLOCK) * LARGEST_BLOCK)
    plan = _plan(
        longest, n_features, n_classes, parts, hinge, copy_bytes, walk != "forwards",
        limits.shared_bytes,
    )  # fmt: skip
    if plan is None:
        return NotImplemented

    def empty(*shape: int, dtype: Any = None) -> Any:
        return xp.empty(shape, dtype=dtype or xp.float32, device=W.device)

    def launch(name: str, grid: Any, block: int, *args: Any, shared_bytes: int = 0) -> None:
        built = cuda_modules.kernel("linear_pass.cu", name, **plan.constants)
        built(grid, block, args, shared_bytes=shared_bytes)

    mean = scale = folding = chunk_sums = None
    if reg is not None:
        folding = empty(n_features, 2)
        chunk_sums = empty(plan.n_chunks, n_classes + 1, dtype=xp.float64)
        if samples.standardized is not None:
            mean, scale = samples.standardized.mean, samples.standardized.scale
    packed = empty(*plan.packed)
    launch("pack_weights", plan.n_chunks, 256, W, mean, scale, packed, folding, chunk_sums)

    labels = xp.astype(y, xp.int64, copy=not (y.dtype == xp.int64 and y.flags.c_contiguous))
    gradients, unscale = empty(*plan.gradients), empty(plan.n_groups)
    partials = empty(*plan.partials)
    rows_of_score_block = plan.constants["BLOCK_ROWS"]
    n_score_blocks = ceil_div(n_samples, rows_of_score_block)
    sums = empty(n_score_blocks, n_classes + 1, dtype=xp.float64)
    for rows in row_slices(n_samples, longest):
        part, n_rows = X[rows], np.int32(rows.stop - rows.start)
        first = rows.start // rows_of_score_block
        last = ceil_div(rows.stop, rows_of_score_block)
        launch(
            "score_rows", last - first, plan.score_threads, part, packed, b, chunk_sums,
            labels[rows], None if weights is None else weights[rows], gradients, unscale,
            sums[first:last], np.float32(1 / n_samples), n_rows, shared_bytes=plan.score_bytes,
        )  # fmt: skip
        launch(
            "multiply_gradients", plan.gradient_grid, 32 * plan.constants["BLOCK_STRIPS"], part,
            gradients, unscale, partials, n_rows, np.int32(rows.start > 0),
            shared_bytes=plan.gradient_bytes,
        )  # fmt: skip

    dW, db, loss = empty(n_features, n_classes), empty(n_classes), empty(1, dtype=xp.float64)
    launch(
        "sum_partials", plan.n_sum_blocks, 256, partials, sums, W, folding, chunk_sums, dW, db,
        loss, np.float64(reg or 0), np.int32(plan.partials[0]), np.int32(n_score_blocks),
    )  # fmt: skip
    return xp.reshape(loss, ()), dW, db


def _fits(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any, precision: str
) -> bool:
    n_samples, n_features = samples.n_samples, samples.n_features
    floats = [x for x in (W, b, weights) if x is not None]
    return (
        precision in ("float32", "tf32")
        and any(data_loss is known for known in (softmax_cross_entropy, multiclass_hinge))
        and samples.folds
        and type(samples.stored) is type(W)
        and samples.stored.dtype.name == "uint8"
        and samples.stored.flags.c_contiguous
        and W.ndim == 2
        and W.shape[-1] <= MAX_CLASSES
        and n_samples < 2**31 - 2**10
        and n_features < 2**31 // MAX_CLASSES
        and all(x.dtype.name == "float32" and x.flags.c_contiguous for x in floats)
        and all(x.ndim == 1 for x in (y, *floats[1:]))
    )
