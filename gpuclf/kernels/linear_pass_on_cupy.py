"""The linear pass over bytes on tensor cores, in four launches: see linear_pass.cu."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.backend import array_namespace
from gpuclf.kernels import cuda_modules
from gpuclf.linear import linear_pass
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy

if TYPE_CHECKING:
    from gpuclf.features import Features

__all__ = ["linear_pass_on_tensor_cores"]

MIN_CAPABILITY = 80
MAX_CLASSES = 64
MIN_COPY_BYTES = 4
# Sums are split by these, never by the device at hand, so that all devices give the same bits.
MAX_GRADIENT_BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
MIN_SCORE_BLOCKS = 132
MAX_SCORE_STAGES = 5
MIN_SCORE_STAGES = 2

# As in linear_pass.cu.
VECTOR = 16  # bytes
CHUNK = 64
GROUP = 64
STRIP = 128
GRADIENT_STAGES = 3
PARTIAL_FLOATS = STRIP * 16  # of a strip and class tile
MAX_STRIPS = 8  # of a block


@linear_pass.register("cupy")
def linear_pass_on_tensor_cores(
    W: Any, b: Any, features: Features, y: Any, weights: Any, data_loss: Any,
    precision: str = "float32",
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.linear.linear_pass` with scores and gradients in two walks over X.

    At "tf32", scores and dW are products of factors with 11 bits: relative errors of some 2e-4,
    where "float32" has some 2e-7.
    """
    X = features.stored
    xp = array_namespace(W=W, b=b, X=X, y=y, weights=weights)
    if not _fits(W, b, features, y, weights, data_loss, precision):
        return NotImplemented
    copy_bytes = gcd(VECTOR, features.n_features, cuda_modules.address(X))
    limits = cuda_modules.device_limits(W)
    if copy_bytes < MIN_COPY_BYTES or limits.capability < MIN_CAPABILITY:
        return NotImplemented

    n_samples, (n_features, n_classes) = features.n_samples, W.shape
    parts = 1 if precision == "tf32" else 2
    tiles, class_tiles = _ceil(n_classes, 8), _ceil(n_classes, 16)
    shares_a_tile = parts == 2 and 1 <= n_classes % 8 <= 4
    weight_vectors = 64 * (parts * tiles - shares_a_tile) + 1
    warp_rows = 32 if n_classes <= 16 else 16
    block_rows = 3 * GROUP if n_samples > 3 * GROUP * MIN_SCORE_BLOCKS else GROUP
    n_score_blocks = _ceil(n_samples, block_rows)
    n_warps = block_rows // warp_rows
    stage_bytes = block_rows * CHUNK + VECTOR * weight_vectors
    score_stages = min(MAX_SCORE_STAGES, limits.shared_bytes // stage_bytes)
    epilogue_bytes = 4 * block_rows * (16 * class_tiles + 8)
    score_bytes = max(score_stages * stage_bytes, epilogue_bytes)

    n_strips = _ceil(n_features, STRIP)
    n_groups = _ceil(n_samples, GROUP)
    gradient_vectors = 4 * parts * 32
    n_shares = max(1, MAX_GRADIENT_BLOCKS // _ceil(n_strips, MAX_STRIPS))
    n_shares = min(n_groups, n_shares)
    room = limits.shared_bytes // (GRADIENT_STAGES * VECTOR) - gradient_vectors - 1
    strips = min(MAX_STRIPS, room // (GROUP * STRIP // VECTOR))
    if score_stages < MIN_SCORE_STAGES or strips < 1:
        return NotImplemented
    strips = _ceil(n_strips, _ceil(n_strips, strips))
    stage_vectors = strips * GROUP * STRIP // VECTOR + gradient_vectors + 1
    gradient_bytes = GRADIENT_STAGES * VECTOR * stage_vectors

    def empty(*shape: int, dtype: Any = None) -> Any:
        return xp.empty(shape, dtype=dtype or xp.float32, device=W.device)

    hinge = int(data_loss is multiclass_hinge)
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

    def launch(name: str, grid: Any, block: int, *args: Any, shared_bytes: int = 0) -> None:
        args = tuple(np.int32(arg) if isinstance(arg, int) else arg for arg in args)
        built = cuda_modules.kernel("linear_pass.cu", name, **constants)
        built(grid, block, args, shared_bytes=shared_bytes)

    bias = xp.zeros((n_classes,), dtype=W.dtype, device=W.device) if b is None else b
    labels = xp.astype(y, xp.int64, copy=not (y.dtype == xp.int64 and y.flags.c_contiguous))
    packed = empty(_ceil(n_features, CHUNK), weight_vectors, 4)
    launch("pack_weights", _ceil(n_features, CHUNK), 256, W, packed)

    score_groups = n_score_blocks * block_rows // GROUP
    gradients = empty(score_groups, class_tiles, gradient_vectors, 4)
    unscale = empty(score_groups)
    sums = empty(n_classes + 1, n_score_blocks, dtype=xp.float64)
    launch(
        "score_rows", n_score_blocks, 32 * n_warps, X, packed, bias, labels, weights, gradients,
        unscale, sums, n_samples, shared_bytes=score_bytes,
    )  # fmt: skip

    partials = empty(n_shares, class_tiles, n_strips, PARTIAL_FLOATS)
    launch(
        "multiply_gradients", (class_tiles, _ceil(n_strips, strips), n_shares), 32 * strips, X,
        gradients, unscale, partials, n_samples, shared_bytes=gradient_bytes,
    )  # fmt: skip

    dW, db, loss = empty(n_features, n_classes), empty(n_classes), empty(1, dtype=xp.float64)
    n_blocks = class_tiles * n_strips * 4 + n_classes + 1
    launch(
        "sum_partials", n_blocks, 256, partials, sums, dW, db, loss, n_shares, n_score_blocks
    )  # fmt: skip
    return xp.reshape(loss, ()), dW, db


def _fits(
    W: Any, b: Any, features: Features, y: Any, weights: Any, data_loss: Any, precision: str
) -> bool:
    n_samples, n_features = features.n_samples, features.n_features
    vectors = [y, weights] if b is None else [y, weights, b]
    return (
        precision in ("float32", "tf32")
        and any(data_loss is known for known in (softmax_cross_entropy, multiclass_hinge))
        and features.folds
        and features.stored.dtype.name == "uint8"
        and features.stored.flags.c_contiguous
        and W.ndim == 2
        and W.shape[-1] <= MAX_CLASSES
        and n_samples < 2**31 - 2**10
        and n_features < 2**31 // MAX_CLASSES
        and all(x.dtype.name == "float32" for x in (W, *vectors[1:]))
        and all(x.flags.c_contiguous for x in (W, *vectors[1:]))
        and all(x.ndim == 1 for x in vectors)
    )


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
