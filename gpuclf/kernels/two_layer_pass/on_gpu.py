"""The full pass of the two-layer net over bytes on tensor cores: see two_layer_pass.cu."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.dispatch import REPEATED
from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import VECTOR, Launch, ceil_div
from gpuclf.kernels.building.plans import (
    KEPT_PLANS,
    PassPlan,
    gradient_blocks,
    kept_plan,
    key_of_pass,
)
from gpuclf.losses import softmax_cross_entropy
from gpuclf.models.two_layer import TwoLayerNet
from gpuclf.samples.standardized import Standardized
from gpuclf.validation import check_penalty

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = ["repeated_two_layer_loss", "two_layer_pass_on_tensor_cores"]

FILE = "two_layer_pass.cu"
CHUNK, GROUP, STRIP, GRADIENT_STAGES, MAX_TILES, MAX_CLASSES = cuda.numbers_in(
    FILE, "CHUNK", "GROUP", "STRIP", "GRADIENT_STAGES", "MAX_TILES", "MAX_CLASSES"
)
NAMES = tuple(TwoLayerNet.axes)
MAX_HIDDEN = 512
# Sums are split by these, never by the device at hand, so that all devices give the same bits.
MAX_GRADIENT_BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
MIN_ROW_BLOCKS = 132
MIN_STAGES, MAX_STAGES = 2, 4


def two_layer_pass_on_tensor_cores(
    W1: Any, b1: Any, W2: Any, b2: Any, samples: FoldedSamples, y: Any, sample_weight: Any,
    reg: float, hidden_mask: Any = None, precision: str = "float32",
    data_loss: Any = softmax_cross_entropy,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.two_layer.two_layer_pass` in six launches, two of them walks.

    At "tf32", the products with X are those of factors with 11 bits: relative errors of some 2e-4,
    where "float32" has some 3e-7.
    """
    if hidden_mask is not None:
        return NotImplemented
    X, standardized = samples.stored, samples.standardized
    arrays = W1, b1, W2, b2, X, standardized, y, sample_weight
    plan = kept_plan(
        key_of_pass(
            X, standardized, W1, b1, W2, b2, y, sample_weight, options=(data_loss, precision)
        ),
        lambda: _plan_of(*arrays, samples, data_loss, precision),
    )
    if plan is None:
        return NotImplemented
    loss, *gradients = plan(*arrays, reg)
    return loss.reshape(()), *gradients


def repeated_two_layer_loss(
    model: Any, params: Any, X: Any, y: Any, reg: float, precision: str
) -> Any:
    """Compute :meth:`gpuclf.models.model.Model.loss` of a signature that was met before."""
    given = [params.get(name) for name in NAMES]
    standardized = X if type(X) is Standardized else None
    stored = X if standardized is None else X.X
    options = model.data_loss, precision
    key = key_of_pass(stored, standardized, *given, y, None, options=options)
    if (plan := kept_plan(key)) is None:
        return NotImplemented
    check_penalty(reg)
    loss, *gradients = plan(*given, stored, standardized, y, None, reg)
    return loss.reshape(()), dict(zip(NAMES, gradients, strict=True))


REPEATED[TwoLayerNet] = repeated_two_layer_loss


def _plan_of(
    W1: Any, b1: Any, W2: Any, b2: Any, X: Any, standardized: Standardized | None, y: Any,
    weights: Any, samples: FoldedSamples, data_loss: Any, precision: str,
) -> SixLaunches | None:  # fmt: skip
    """Check everything."""
    copy_bytes = cuda.bytes_of_copies(samples, y, (W1, b1, W2, b2, weights), precision)
    if not (
        copy_bytes
        and cuda.hinge_macro(data_loss) == 0
        and W1.ndim == W2.ndim == 2
        and W1.shape[1] <= MAX_HIDDEN
        and W2.shape[1] <= MAX_CLASSES
        and samples.n_features < 2**31 // MAX_HIDDEN
        and cuda.have_shapes(
            (W1, (samples.n_features, int(W1.shape[1]))), (b1, W1.shape[1:]),
            (W2, (int(W1.shape[1]), int(W2.shape[1]))), (b2, W2.shape[1:]),
            (y, X.shape[:1]), (weights, X.shape[:1]),
        )
    ):  # fmt: skip
        return None
    params = dict(zip(NAMES, (W1, b1, W2, b2), strict=True))
    cuda.check_same_device(**params, X=X, y=y, sample_weight=weights, **cuda.moments(samples))
    return _plan(
        samples.n_samples, samples.n_features, int(W1.shape[1]), int(W2.shape[1]),
        1 if precision == "tf32" else 2, copy_bytes, cuda.device_limits(W1).shared_bytes,
    )  # fmt: skip


class SixLaunches(PassPlan):
    """``plan(W1, b1, W2, b2, X, standardized, y, weights, reg) -> [loss, dW1, db1, dW2, db2]``."""

    def launch(
        self, between: list[Any], results: list[Any], params: list[Any], samples: tuple[Any, ...],
        moments: tuple[Any, Any], penalty: np.float64,
    ) -> None:  # fmt: skip
        """Launch the kernels."""
        folding, moved, packed, squares, hidden, gradients, small_sums, losses, partials = between
        (W1, b1, W2, b2), (X, y, weights) = params, samples
        loss, dW1, db1, dW2, db2 = results
        self.pack(W1, *moments, packed, folding, moved, squares)
        self.project(X, packed, b1, moved, hidden, self.n_samples)
        self.second(
            hidden, y, weights, W2, b2, gradients, small_sums, losses, self.uniform_weight,
            self.n_samples,
        )  # fmt: skip
        self.multiply(X, gradients, partials, self.n_samples)
        self.sum_groups(
            small_sums, losses, squares, W2, dW2, db1, db2, loss, penalty, self.n_groups
        )
        self.sum_partials(partials, W1, folding, db1, dW1, penalty, self.n_shares)


@lru_cache(maxsize=KEPT_PLANS)
def _plan(
    n_samples: int, n_features: int, n_hidden: int, n_classes: int, parts: int, copy_bytes: int,
    shared_bytes: int,
) -> SixLaunches | None:  # fmt: skip
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

    product = gradient_blocks(
        n_samples, n_features, unit_blocks, vectors, MAX_GRADIENT_BLOCKS,
        (GROUP, STRIP, GRADIENT_STAGES), shared_bytes,
    )  # fmt: skip
    if stages < MIN_STAGES or product is None or 4 * second_floats + 1024 > shared_bytes:
        return None
    constants = {
        "FEATURES": n_features,
        "HIDDEN": n_hidden,
        "CLASSES": n_classes,
        "SPLIT": parts - 1,
        "COPY_BYTES": copy_bytes,
        "BLOCK_ROWS": block_rows,
        "PROJECT_STAGES": stages,
        "BLOCK_STRIPS": product.strips,
    }
    kernel, pitch = partial(Launch, FILE, constants), 8 * all_tiles
    n_small = n_hidden * n_classes + n_hidden + n_classes
    n_row_blocks = unit_blocks * ceil_div(n_samples, block_rows)
    return SixLaunches(
        [
            (n_features, 2, "float32"),
            (n_chunks, n_hidden, "float64"),
            (unit_blocks, n_chunks, vectors, 4, "float32"),
            (n_chunks, unit_blocks, "float64"),
            (n_samples, pitch, "float32"),
            (n_groups, unit_blocks, vectors, 4, "float32"),
            (n_groups, n_small, "float32"),
            (n_groups, "float64"),
            (product.shares, n_features, pitch, "float32"),
        ],
        [
            (1, "float64"),
            (n_features, n_hidden, "float32"),
            (n_hidden, "float32"),
            (n_hidden, n_classes, "float32"),
            (n_classes, "float32"),
        ],
        constants=constants,
        pack=kernel("pack_weights", (n_chunks, unit_blocks), 256),
        project=kernel("project_rows", n_row_blocks, block_rows, shared_bytes=stages * stage_bytes),
        second=kernel("second_layer", n_groups, 256, shared_bytes=4 * second_floats),
        multiply=kernel(
            "multiply_gradients",
            product.grid,
            32 * product.strips,
            shared_bytes=product.shared_bytes,
        ),
        sum_groups=kernel("sum_groups", ceil_div(n_small, 32) + 1, 1024),
        sum_partials=kernel("sum_partials", ceil_div(n_features * pitch, 256), 256),
        n_samples=np.int32(n_samples),
        uniform_weight=np.float32(1 / n_samples),
        n_groups=np.int32(n_groups),
        n_shares=np.int32(product.shares),
    )
