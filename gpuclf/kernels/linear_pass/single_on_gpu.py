"""The linear pass over bytes that reads X from memory once: see single_pass.cu."""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import VECTOR, ceil_div

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["single_pass"]

FILE = "single_pass.cu"
WARPS, ROWS, CHUNK, MAX_STRIP, MAX_CLASSES = cuda.numbers_in(
    FILE, "WARPS", "ROWS", "CHUNK", "MAX_STRIP", "MAX_CLASSES"
)
# Sums are split by this, never by the device at hand, so that all devices give the same bits.
BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
STATIC_BYTES = 2048  # at least what the kernel declares apart from its dynamic shared memory


def single_pass(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any,
    reg: float | None = None,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.linear.linear_pass`, or with `reg` penalized_linear_pass.

    What :func:`gpuclf.kernels.linear_pass.on_gpu.linear_pass_on_tensor_cores` would decline has
    been declined before.
    """
    X, n_samples, (n_features, n_classes) = samples.stored, samples.n_samples, W.shape
    xp = array_namespace(W=W, b=b, X=X, y=y, weights=weights)
    n_chunks = ceil_div(n_features, WARPS * CHUNK)
    full, rest = divmod(n_classes, 4)
    lane_classes = full + (rest > 0)
    slots = 3 * full + 2 if rest in (1, 2) else 3 * lane_classes
    columns = 8 * ceil_div(slots, 2)
    fixed_bytes = WARPS * n_chunks * columns * CHUNK + columns * ROWS + WARPS * ROWS * 4 * n_classes
    room = cuda.device_limits(W).shared_bytes - STATIC_BYTES - fixed_bytes
    ring = min(2 * n_chunks, room // (WARPS * ROWS * CHUNK))
    if (
        n_classes > MAX_CLASSES
        or n_features > WARPS * MAX_STRIP
        or gcd(VECTOR, n_features, cuda.address(X)) < VECTOR
        or ring < n_chunks
    ):
        return NotImplemented
    hinge = cuda.hinge_macro(data_loss)
    constants = {"FEATURES": n_features, "CLASSES": n_classes, "HINGE": hinge, "RING": ring}
    empty, launch = partial(cuda.empty, W), partial(cuda.launch, FILE, constants)
    n_sums = WARPS * n_chunks * (CHUNK // 16) * 2 * lane_classes * 32
    n_blocks = min(BLOCKS, ceil_div(n_samples, ROWS))

    mean = scale = folding = strip_sums = None
    if reg is not None:
        mean, scale = cuda.mean_and_scale(samples)
        folding, strip_sums = empty(n_features, 2), empty(WARPS, n_classes, 2, dtype="float64")
    packed = empty(WARPS * n_chunks, columns, CHUNK, dtype="int8")
    units = empty(WARPS, n_classes)
    launch(
        "pack_digits", (WARPS, n_classes), 128, W, mean, scale, packed, units, folding, strip_sums
    )

    partials = empty(n_blocks, n_sums)
    sums = empty(n_blocks, n_classes + 1, dtype="float64")
    launch(
        "walk_tiles", n_blocks, 32 * WARPS, X, packed, units, b, strip_sums, cuda.int64_labels(y),
        weights, partials, sums, np.float32(1 / n_samples), n_samples,
        shared_bytes=fixed_bytes + ring * WARPS * ROWS * CHUNK,
    )  # fmt: skip

    dW, db, loss = empty(n_features, n_classes), empty(n_classes), empty(1, dtype="float64")
    launch(
        "sum_tiles", n_sums // 64 + 1, 256, partials, sums, W, folding, strip_sums, dW, db, loss,
        np.float64(reg or 0), n_blocks,
    )  # fmt: skip
    return xp.reshape(loss, ()), dW, db
