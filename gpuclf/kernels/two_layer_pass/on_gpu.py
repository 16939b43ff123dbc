"""The full pass of the two-layer net over bytes on tensor cores: see two_layer_pass.cu."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building.cuda import ceil_div

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["two_layer_pass_on_tensor_cores"]

MIN_CAPABILITY = 80
MAX_HIDDEN = 512
MAX_CLASSES = 32
MIN_COPY_BYTES = 4
# Sums are split by these, never by the device at hand, so that all devices give the same bits.
MAX_GRADIENT_BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
MIN_ROW_BLOCKS = 132
MAX_STAGES = 4
MIN_STAGES = 2

# As in two_layer_pass.cu.
VECTOR = 16  # bytes
CHUNK = 64
GROUP = 64
STRIP = 64
GRADIENT_STAGES = 3
MAX_STRIPS = 8  # of a block
MAX_TILES = 8  # of 8 hidden units, of a block


def two_layer_pass_on_tensor_cores(
    W1: Any, b1: Any, W2: Any, b2: Any, samples: FoldedSamples, y: Any, sample_weight: Any,
    reg: float, hidden_mask: Any = None, precision: str = "float32",
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.two_layer.two_layer_pass` in six launches, with two walks over X.

    At "tf32", the products with X are those of factors with 11 bits: relative errors of some 2e-4,
    where "float32" has some 3e-7.
    """
    floats = [x for x in (W1, b1, W2, b2, sample_weight) if x is not None]
    if hidden_mask is not None or not _fits(floats, samples, y, precision):
        return NotImplemented
    X, n_samples, (n_features, n_hidden) = samples.stored, samples.n_samples, W1.shape
    xp = array_namespace(W1=W1, b1=b1, W2=W2, b2=b2, X=X, y=y, sample_weight=sample_weight)
    n_classes = int(W2.shape[1])
    limits = cuda_modules.device_limits(W1)
    copy_bytes = gcd(VECTOR, n_features, cuda_modules.address(X))
    if copy_bytes < MIN_COPY_BYTES or limits.capability < MIN_CAPABILITY:
        return NotImplemented
    parts = 1 if precision == "tf32" else 2
    plan = _plan(
        n_samples, n_features, n_hidden, n_classes, parts, copy_bytes, limits.shared_bytes
    )  # fmt: skip
    if plan is None:
        return NotImplemented

    def empty(*shape: int, dtype: Any = None) -> Any:
        return xp.empty(shape, dtype=dtype or xp.float32, device=W1.device)

    def launch(name: str, grid: Any, block: int, *args: Any, shared_bytes: int = 0) -> None:
        built = cuda_modules.kernel("two_layer_pass.cu", name, **plan.constants)
        built(grid, block, args, shared_bytes=shared_bytes)

    mean = scale = None
    if samples.standardized is not None:
        mean, scale = samples.standardized.mean, samples.standardized.scale
    packed, folding = empty(*plan.packed), empty(n_features, 2)
    moved = empty(plan.n_chunks, n_hidden, dtype=xp.float64)
    squares = empty(plan.n_chunks, plan.unit_blocks, dtype=xp.float64)
    launch(
        "pack_weights", (plan.n_chunks, plan.unit_blocks), 256, W1, mean, scale, packed, folding,
        moved, squares,
    )  # fmt: skip

    rows = np.int32(n_samples)
    hidden = empty(n_samples, plan.pitch)
    launch(
        "project_rows", plan.project_grid, plan.constants["BLOCK_ROWS"], X, packed, b1, moved,
        hidden, rows, shared_bytes=plan.project_bytes,
    )  # fmt: skip

    labels = xp.astype(y, xp.int64, copy=not (y.dtype == xp.int64 and y.flags.c_contiguous))
    gradients = empty(*plan.gradients)
    small_sums = empty(plan.n_groups, plan.n_small)
    losses = empty(plan.n_groups, dtype=xp.float64)
    launch(
        "second_layer", plan.n_groups, 256, hidden, labels, sample_weight, W2, b2, gradients,
        small_sums, losses, np.float32(1 / n_samples), rows, shared_bytes=plan.second_bytes,
    )  # fmt: skip

    partials = empty(*plan.partials)
    launch(
        "multiply_gradients", plan.gradient_grid, 32 * plan.constants["BLOCK_STRIPS"], X,
        gradients, partials, rows, shared_bytes=plan.gradient_bytes,
    )  # fmt: skip

    dW1, db1, dW2, db2 = (empty(*p.shape) for p in (W1, b1, W2, b2))
    loss, penalty = empty(1, dtype=xp.float64), np.float64(reg)
    launch(
        "sum_groups", ceil_div(plan.n_small, 32) + 1, 1024, small_sums, losses, squares, W2, dW2,
        db1, db2, loss, penalty, np.int32(plan.n_groups),
    )  # fmt: skip
    launch(
        "sum_partials", ceil_div(n_features * plan.pitch, 256), 256, partials, W1, folding, db1,
        dW1, penalty, np.int32(plan.partials[0]),
    )  # fmt: skip
    return xp.reshape(loss, ()), dW1, db1, dW2, db2


@dataclass(frozen=True)
class _Plan:
    """Sizes of the buffers and launches for samples of one shape."""

    constants: dict[str, int]
    pitch: int
    unit_blocks: int
    n_chunks: int
    n_groups: int
    n_small: int
    project_grid: tuple[int, int]
    project_bytes: int
    second_bytes: int
    gradient_grid: tuple[int, int, int]
    gradient_bytes: int
    packed: tuple[int, ...]
    gradients: tuple[int, ...]
    partials: tuple[int, ...]


@cache
def _plan(
    n_samples: int, n_features: int, n_hidden: int, n_classes: int, parts: int, copy_bytes: int,
    shared_bytes: int,
) -> _Plan | None:  # fmt: skip
    """Plan the launches, or return None for a device with too little shared memory."""
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
    strip_blocks = ceil_div(n_strips, most_strips)
    strips = ceil_div(n_strips, strip_blocks)
    n_shares = max(1, MAX_GRADIENT_BLOCKS // (ceil_div(n_strips, MAX_STRIPS) * unit_blocks))
    n_shares = min(n_groups, n_shares)
    return _Plan(
        constants={
            "FEATURES": n_features,
            "HIDDEN": n_hidden,
            "CLASSES": n_classes,
            "SPLIT": parts - 1,
            "COPY_BYTES": copy_bytes,
            "BLOCK_ROWS": block_rows,
            "PROJECT_STAGES": stages,
            "BLOCK_STRIPS": strips,
        },
        pitch=8 * all_tiles,
        unit_blocks=unit_blocks,
        n_chunks=n_chunks,
        n_groups=n_groups,
        n_small=n_hidden * n_classes + n_hidden + n_classes,
        project_grid=(unit_blocks, ceil_div(n_samples, block_rows)),
        project_bytes=stages * stage_bytes,
        second_bytes=4 * second_floats,
        gradient_grid=(unit_blocks, ceil_div(n_strips, strips), n_shares),
        gradient_bytes=GRADIENT_STAGES * (GROUP * STRIP * strips + VECTOR * vectors),
        packed=(unit_blocks, n_chunks, vectors, 4),
        gradients=(n_groups, unit_blocks, vectors, 4),
        partials=(n_shares, n_features, 8 * all_tiles),
    )


def _fits(floats: list[Any], samples: FoldedSamples, y: Any, precision: str) -> bool:
    W1, _, W2, *_ = floats
    return (
        precision in ("float32", "tf32")
        and samples.folds
        and type(samples.stored) is type(W1)
        and samples.stored.dtype.name == "uint8"
        and samples.stored.flags.c_contiguous
        and W1.ndim == 2
        and W1.shape[1] <= MAX_HIDDEN
        and W2.shape[1] <= MAX_CLASSES
        and samples.n_samples < 2**31 - 2**10
        and samples.n_features < 2**31 // MAX_HIDDEN
        and all(x.ndim == 1 for x in (y, *floats[4:]))
        and all(x.dtype.name == "float32" and x.flags.c_contiguous for x in floats)
    )
