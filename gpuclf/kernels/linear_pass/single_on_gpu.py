"""The linear pass over bytes that reads X from memory once: see single_pass.cu."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building.cuda import ceil_div
from gpuclf.losses import multiclass_hinge

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["single_pass"]

MIN_CAPABILITY = 80
MAX_CLASSES = 12
MAX_FEATURES = 3072
# Sums are split by this, never by the device at hand, so that all devices give the same bits.
BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor

# As in single_pass.cu.
WARPS = 8
ROWS = 32
CHUNK = 64
VECTOR = 16  # bytes
STATIC_BYTES = 2048  # at least what the kernel declares apart from its dynamic shared memory


def single_pass(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any,
    reg: float | None = None,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.linear.linear_pass`, or with `reg` linear_objective.

    What :func:`gpuclf.kernels.linear_pass.on_gpu.linear_pass_on_tensor_cores` would decline has
    been declined before.
    """
    X, n_samples, (n_features, n_classes) = samples.stored, samples.n_samples, W.shape
    xp = array_namespace(W=W, b=b, X=X, y=y, weights=weights)
    limits = cuda_modules.device_limits(W)
    n_chunks = ceil_div(n_features, WARPS * CHUNK)
    full, rest = divmod(n_classes, 4)
    lane_classes = full + (rest > 0)
    slots = 3 * full + 2 if rest in (1, 2) else 3 * lane_classes
    columns = 8 * ceil_div(slots, 2)
    fixed_bytes = WARPS * n_chunks * columns * CHUNK + columns * ROWS + WARPS * ROWS * 4 * n_classes
    room = limits.shared_bytes - STATIC_BYTES - fixed_bytes
    ring = min(2 * n_chunks, room // (WARPS * ROWS * CHUNK))
    if (
        limits.capability < MIN_CAPABILITY
        or n_classes > MAX_CLASSES
        or n_features > MAX_FEATURES
        or gcd(VECTOR, n_features, cuda_modules.address(X)) < VECTOR
        or ring < n_chunks
    ):
        return NotImplemented
    hinge = int(data_loss is multiclass_hinge)
    constants = {"FEATURES": n_features, "CLASSES": n_classes, "HINGE": hinge, "RING": ring}
    n_sums = WARPS * n_chunks * (CHUNK // 16) * 2 * lane_classes * 32
    n_blocks = min(BLOCKS, ceil_div(n_samples, ROWS))

    def empty(*shape: int, dtype: Any = xp.float32) -> Any:
        return xp.empty(shape, dtype=dtype, device=W.device)

    def launch(name: str, grid: Any, block: int, *args: Any, shared_bytes: int = 0) -> None:
        built = cuda_modules.kernel("single_pass.cu", name, **constants)
        built(grid, block, args, shared_bytes=shared_bytes)

    mean = scale = folding = strip_sums = None
    if reg is not None:
        folding = empty(n_features, 2)
        strip_sums = empty(WARPS, n_classes, 2, dtype=xp.float64)
        if samples.standardized is not None:
            mean, scale = samples.standardized.mean, samples.standardized.scale
    packed = empty(WARPS * n_chunks, columns, CHUNK, dtype=xp.int8)
    units = empty(WARPS, n_classes)
    launch(
        "pack_digits", (WARPS, n_classes), 128, W, mean, scale, packed, units, folding, strip_sums
    )

    labels = xp.astype(y, xp.int64, copy=not (y.dtype == xp.int64 and y.flags.c_contiguous))
    partials = empty(n_blocks, n_sums)
    sums = empty(n_blocks, n_classes + 1, dtype=xp.float64)
    launch(
        "walk_tiles", n_blocks, 32 * WARPS, X, packed, units, b, strip_sums, labels, weights,
        partials, sums, np.float32(1 / n_samples), np.int32(n_samples),
        shared_bytes=fixed_bytes + ring * WARPS * ROWS * CHUNK,
    )  # fmt: skip

    dW, db, loss = empty(n_features, n_classes), empty(n_classes), empty(1, dtype=xp.float64)
    launch(
        "sum_tiles", n_sums // 64 + 1, 256, partials, sums, W, folding, strip_sums, dW, db, loss,
        np.float64(reg or 0), np.int32(n_blocks),
    )  # fmt: skip
    return xp.reshape(loss, ()), dW, db
