"""The full pass of the two-layer net over bytes on tensor cores: see two_layer_pass.cu."""

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
from gpuclf.losses import softmax_cross_entropy

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["two_layer_pass_on_tensor_cores"]

FILE = "two_layer_pass.cu"
CHUNK, GROUP, STRIP, GRADIENT_STAGES, MAX_TILES, MAX_CLASSES = cuda.numbers_in(
    FILE, "CHUNK", "GROUP", "STRIP", "GRADIENT_STAGES", "MAX_TILES", "MAX_CLASSES"
)
MAX_HIDDEN = 512
# Sums are split by these, never by the device at hand, so that all devices give the same bits.
MAX_GRADIENT_BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
MIN_ROW_BLOCKS = 132
MIN_STAGES, MAX_STAGES = 2, 4
MAX_STRIPS = 8  # of a block of multiply_gradients


def two_layer_pass_on_tensor_cores(
    W1: Any, b1: Any, W2: Any, b2: Any, samples: FoldedSamples, y: Any, sample_weight: Any,
    reg: float, hidden_mask: Any = None, precision: str = "float32",
    data_loss: Any = softmax_cross_entropy,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.two_layer.two_layer_pass` in six launches, two of them walks.

    At "tf32", the products with X are those of factors with 11 bits: relative errors of some 2e-4,
    where "float32" has some 3e-7.
    """
    copy_bytes = cuda.bytes_of_copies(samples, y, (W1, b1, W2, b2, sample_weight), precision)
    if not (
        copy_bytes
        and hidden_mask is None
        and cuda.hinge_macro(data_loss) == 0
        and W1.ndim == 2
        and W1.shape[1] <= MAX_HIDDEN
        and W2.shape[1] <= MAX_CLASSES
        and samples.n_features < 2**31 // MAX_HIDDEN
        and (sample_weight is None or sample_weight.ndim == 1)
    ):
        return NotImplemented
    X, n_samples, (n_features, n_hidden) = samples.stored, samples.n_samples, W1.shape
    cuda.check_same_device(W1=W1, b1=b1, W2=W2, b2=b2, X=X, y=y, sample_weight=sample_weight)
    plan = _plan(
        n_samples, n_features, n_hidden, int(W2.shape[1]), 1 if precision == "tf32" else 2,
        copy_bytes, cuda.device_limits(W1).shared_bytes,
    )  # fmt: skip
    if plan is None:
        return NotImplemented
    packed, folding, moved, squares, hidden, gradients, small_sums, losses, partials = (
        plan.workspace.beside(W1)
    )
    mean = scale = NULL
    if samples.standardized is not None:
        mean, scale = samples.standardized.mean, samples.standardized.scale
    plan.pack(W1, mean, scale, packed, folding, moved, squares)
    plan.project(X, packed, b1, moved, hidden, plan.n_samples)
    plan.second(
        hidden, cuda.int64_labels(y), null_for_none(sample_weight), W2, b2, gradients, small_sums,
        losses, plan.uniform_weight, plan.n_samples,
    )  # fmt: skip
    plan.multiply(X, gradients, partials, plan.n_samples)
    dW1, db1, dW2, db2 = (cuda.empty(W1, *p.shape) for p in (W1, b1, W2, b2))
    loss, penalty = cuda.empty(W1, 1, dtype="float64"), np.float64(reg)
    plan.sum_groups(
        small_sums, losses, squares, W2, dW2, db1, db2, loss, penalty, plan.n_groups
    )  # fmt: skip
    plan.sum_partials(partials, W1, folding, db1, dW1, penalty, plan.n_shares)
    return loss.reshape(()), dW1, db1, dW2, db2


@cache
def _plan(
    n_samples: int, n_features: int, n_hidden: int, n_classes: int, parts: int, copy_bytes: int,
    shared_bytes: int,
) -> SimpleNamespace | None:  # fmt: skip
    """Plan buffers and launches; None for too little shared memory or too many columns."""
    all_tiles = ceil_div(n_hidden, 8)
    unit_blocks = ceil_div(all_tiles, MAX_TILES)
    tiles = ceil_div(all_tiles, unit_blocks)
    vectors = 64 * parts * tiles + 1
    n_chunks, n_groups = ceil_div(n_features, CHUNK), ceil_div(n_samples, GROUP)

    block_rows = 3 * GROUP if n_samples > 3 * GROUP * MIN_ROW_BLOCKS else GROUP
    stage_bytes = block_rows * CHUNK + VECTOR * vectors
    # Two blocks a multiprocessor, each with a kilobyte besides.
    stages = min(MAX_STAGES, (shared_bytes // 2 - 1024) // stage_bytes)
    if stages < MIN_STAGES:
        stages = min(MIN_STAGES, (shared_bytes - 1024) // stage_bytes)

    unit_pitch, class_pitch = (8 * tiles + 23) // 32 * 32 + 8, n_classes | 1
    second_floats = 8 * all_tiles * class_pitch + GROUP * (2 * unit_pitch + class_pitch)

    n_strips = ceil_div(n_features, STRIP)
    room = shared_bytes // (GRADIENT_STAGES * VECTOR) - vectors
    most_strips = min(MAX_STRIPS, room // (GROUP * STRIP // VECTOR))
    if stages < MIN_STAGES or most_strips < 1 or 4 * second_floats + 1024 > shared_bytes:
        return None
    strips = ceil_div(n_strips, ceil_div(n_strips, most_strips))
    n_shares = max(1, MAX_GRADIENT_BLOCKS // (ceil_div(n_strips, MAX_STRIPS) * unit_blocks))
    n_shares = min(n_groups, n_shares)
    gradient_grid = unit_blocks, ceil_div(n_strips, strips), n_shares
    if not cuda.fits_grid(gradient_grid):
        return None
    constants = {
        "FEATURES": n_features,
        "HIDDEN": n_hidden,
        "CLASSES": n_classes,
        "SPLIT": parts - 1,
        "COPY_BYTES": copy_bytes,
        "BLOCK_ROWS": block_rows,
        "PROJECT_STAGES": stages,
        "BLOCK_STRIPS": strips,
    }
    kernel, pitch = partial(Launch, FILE, constants), 8 * all_tiles
    n_small = n_hidden * n_classes + n_hidden + n_classes
    gradient_bytes = GRADIENT_STAGES * (GROUP * STRIP * strips + VECTOR * vectors)
    n_row_blocks = unit_blocks * ceil_div(n_samples, block_rows)
    return SimpleNamespace(
        constants=constants,
        workspace=Workspace(
            (unit_blocks, n_chunks, vectors, 4, "float32"),
            (n_features, 2, "float32"),
            (n_chunks, n_hidden, "float64"),
            (n_chunks, unit_blocks, "float64"),
            (n_samples, pitch, "float32"),
            (n_groups, unit_blocks, vectors, 4, "float32"),
            (n_groups, n_small, "float32"),
            (n_groups, "float64"),
            (n_shares, n_features, pitch, "float32"),
        ),
        pack=kernel("pack_weights", (n_chunks, unit_blocks), 256),
        project=kernel("project_rows", n_row_blocks, block_rows, shared_bytes=stages * stage_bytes),
        second=kernel("second_layer", n_groups, 256, shared_bytes=4 * second_floats),
        multiply=kernel(
            "multiply_gradients", gradient_grid, 32 * strips, shared_bytes=gradient_bytes
        ),
        sum_groups=kernel("sum_groups", ceil_div(n_small, 32) + 1, 1024),
        sum_partials=kernel("sum_partials", ceil_div(n_features * pitch, 256), 256),
        n_samples=np.int32(n_samples),
        uniform_weight=np.float32(1 / n_samples),
        n_groups=np.int32(n_groups),
        n_shares=np.int32(n_shares),
    )
