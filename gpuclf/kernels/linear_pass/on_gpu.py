"""The linear pass over bytes on tensor cores: in one reading of X where it fits, or in two.

See single_pass.cu (three launches) and linear_pass.cu (four). `WALKS` is where the choice is made.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.dispatch import REPEATED
from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import VECTOR, Launch, ceil_div, null_for_none
from gpuclf.kernels.building.plans import (
    KEPT_PLANS,
    PassPlan,
    gradient_blocks,
    kept_plan,
    key_of_pass,
)
from gpuclf.kernels.linear_pass import single_on_gpu
from gpuclf.models.linear import LinearModel
from gpuclf.samples.standardized import Standardized
from gpuclf.validation import check_penalty

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = [
    "WALKS",
    "linear_objective_on_tensor_cores",
    "linear_pass_on_tensor_cores",
    "repeated_linear_loss",
]

FILE = "linear_pass.cu"
CHUNK, GROUP, STRIP, GRADIENT_STAGES = cuda.numbers_in(
    FILE, "CHUNK", "GROUP", "STRIP", "GRADIENT_STAGES"
)
# In the order in which they are tried. The record of an acceptance is to decide, which times both
# ("walks of the linear pass"); until then, the bytes that each takes: linear_pass_on_tensor_cores.
WALKS = ("once", "backwards")
MAX_CLASSES = 64
# Sums are split by these, never by the device at hand, so that all devices give the same bits.
MAX_GRADIENT_BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
MIN_SCORE_BLOCKS = 132
MIN_SCORE_STAGES, MAX_SCORE_STAGES = 2, 5
LARGEST_BLOCK = 3 * GROUP  # rows of score_rows' larger block


def linear_pass_on_tensor_cores(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any,
    precision: str = "float32", models: tuple[int, ...] = (), walks: tuple[str, ...] = WALKS,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.linear.linear_pass` in one reading of X, or in two.

    At "tf32", scores and dW of two readings are products of factors with 11 bits: relative errors
    of some 2e-4, where "float32", and one reading in any case, has some 3e-7.

    Parameters
    ----------
    W, b, samples, y, weights, data_loss, precision, models
        As in :func:`gpuclf.models.linear.linear_pass`.
    walks : tuple of {"once", "backwards"}
        The first that fits is taken: one reading of X (single_pass.cu), or two, for the scores and
        for the gradients, the second from the last row to the first, as the cache may still hold
        the last rows (linear_pass.cu). Each has an order of summation of its own, whatever the
        device. The default, `WALKS`, is one reading where it fits, chosen by the bytes of X that
        come from memory: N D, and 2 N D for two readings, less what the cache still holds. Of
        50,000 images that is 154 MB beside 307, less at most the 60 MB of an H200's cache. Derived,
        not measured.
    """
    if models:
        return NotImplemented
    return _pass(W, b, samples, y, weights, data_loss, None, precision, walks)


def linear_objective_on_tensor_cores(
    W: Any, b: Any, samples: FoldedSamples, y: Any, sample_weight: Any, data_loss: Any, reg: float,
    precision: str = "float32", walks: tuple[str, ...] = WALKS,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.linear.penalized_linear_pass` in the same launches.

    The folding of W, the unfolding of dW and the penalty take some fifteen launches of their own
    in the shared body, longer than the two walks over 50,000 images.
    """
    return _pass(W, b, samples, y, sample_weight, data_loss, reg, precision, walks)


def repeated_linear_loss(
    model: Any, params: Any, X: Any, y: Any, reg: float, precision: str
) -> Any:
    """Compute :meth:`gpuclf.models.model.Model.loss` of a signature that was met before."""
    W, b = params.get("W"), params.get("b")
    if b is None and "b" in params:
        return NotImplemented
    standardized = X if type(X) is Standardized else None
    stored = X if standardized is None else X.X
    options = model.data_loss, True, precision, WALKS
    key = key_of_pass(stored, standardized, W, b, y, None, options=options)
    if (plan := kept_plan(key)) is None:
        return NotImplemented
    check_penalty(reg)
    loss, dW, db = plan(W, b, stored, standardized, y, None, reg)
    return loss.reshape(()), {"W": dW} if b is None else {"W": dW, "b": db}


REPEATED[LinearModel] = repeated_linear_loss


def _pass(
    W: Any, b: Any, samples: FoldedSamples, y: Any, weights: Any, data_loss: Any,
    reg: float | None, precision: str, walks: tuple[str, ...],
) -> Any:  # fmt: skip
    """Launch the kernels; with `reg` for W on the features as they are, and its penalty."""
    X, standardized = samples.stored, samples.standardized
    arrays = W, b, X, standardized, y, weights
    options = data_loss, reg is not None, precision, walks
    plan = kept_plan(
        key_of_pass(X, standardized, W, b, y, weights, options=options),
        lambda: _plan_of(*arrays, samples, data_loss, precision, walks),
    )
    if plan is None:
        return NotImplemented
    loss, dW, db = plan(*arrays, reg)
    return loss.reshape(()), dW, db


def _plan_of(
    W: Any, b: Any, X: Any, standardized: Standardized | None, y: Any, weights: Any,
    samples: FoldedSamples, data_loss: Any, precision: str, walks: tuple[str, ...],
) -> PassPlan | None:  # fmt: skip
    """Check everything, and choose one reading or two."""
    copy_bytes = cuda.bytes_of_copies(samples, y, (W, b, weights), precision)
    hinge = cuda.hinge_macro(data_loss) if copy_bytes else None
    if not (
        hinge is not None
        and W.ndim == 2
        and W.shape[1] <= MAX_CLASSES
        and samples.n_features < 2**31 // MAX_CLASSES
        and cuda.have_shapes(
            (W, (samples.n_features, int(W.shape[1]))), (b, W.shape[1:]),
            (y, X.shape[:1]), (weights, X.shape[:1]),
        )
    ):  # fmt: skip
        return None
    moments = cuda.moments(samples)
    cuda.check_same_device(W=W, b=b, X=X, y=y, weights=weights, **moments)
    sizes = samples.n_samples, samples.n_features, int(W.shape[1])
    shared_bytes = cuda.device_limits(W).shared_bytes
    for walk in walks:
        plan: PassPlan | None = None
        if walk == "backwards":
            parts = 1 if precision == "tf32" else 2
            plan = _plan(*sizes, parts, hinge, copy_bytes, shared_bytes)
        elif copy_bytes == VECTOR:
            plan = single_on_gpu.plan_of(*sizes, hinge, shared_bytes)
        if plan is not None:
            return plan
    return None


class TwoReadings(PassPlan):
    """Scores and gradients: ``plan(W, b, X, standardized, y, weights, reg) -> [loss, dW, db]``."""

    def launch(
        self, between: list[Any], results: list[Any], params: list[Any], samples: tuple[Any, ...],
        moments: tuple[Any, Any], penalty: np.float64,
    ) -> None:  # fmt: skip
        """Launch the kernels."""
        folding, chunk_sums, packed, gradients, unscale, sums, partials = between
        (W, b), (X, y, weights), (loss, dW, db) = params, samples, results
        self.pack(W, *moments, packed, folding, chunk_sums)
        self.score(
            X, packed, null_for_none(b), chunk_sums, y, weights, gradients, unscale, sums,
            self.uniform_weight, self.n_samples,
        )  # fmt: skip
        self.multiply(X, gradients, unscale, partials, self.n_samples)
        self.add_up(
            partials, sums, W, folding, chunk_sums, dW, db, loss, penalty, self.n_shares,
            self.n_score_blocks,
        )  # fmt: skip


@lru_cache(maxsize=KEPT_PLANS)
def _plan(
    n_samples: int, n_features: int, n_classes: int, parts: int, hinge: int, copy_bytes: int,
    shared_bytes: int,
) -> TwoReadings | None:  # fmt: skip
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

    n_strips, gradient_vectors = ceil_div(n_features, STRIP), 4 * parts * 32
    product = gradient_blocks(
        n_samples, n_features, class_tiles, gradient_vectors + 1, MAX_GRADIENT_BLOCKS,
        (GROUP, STRIP, GRADIENT_STAGES), shared_bytes,
    )  # fmt: skip
    if score_stages < MIN_SCORE_STAGES or product is None:
        return None
    constants = {
        "FEATURES": n_features,
        "CLASSES": n_classes,
        "SPLIT": parts - 1,
        "HINGE": hinge,
        "COPY_BYTES": copy_bytes,
        "BLOCK_ROWS": block_rows,
        "SCORE_STAGES": score_stages,
        "BLOCK_STRIPS": product.strips,
    }
    kernel = partial(Launch, FILE, constants)
    score_bytes = max(score_stages * stage_bytes, epilogue_bytes)
    n_groups = n_score_blocks * block_rows // GROUP
    n_sum_blocks = class_tiles * n_strips * 4 + n_classes + 1
    return TwoReadings(
        [
            (n_features, 2, "float32"),
            (n_chunks, n_classes + 1, "float64"),
            (n_chunks, weight_vectors, 4, "float32"),
            (n_groups, class_tiles, gradient_vectors, 4, "float32"),
            (n_groups, "float32"),
            (n_score_blocks, n_classes + 1, "float64"),
            (product.shares, class_tiles, n_strips, STRIP * 16, "float32"),
        ],
        [(1, "float64"), (n_features, n_classes, "float32"), (n_classes, "float32")],
        constants=constants,
        pack=kernel("pack_weights", n_chunks, 256),
        score=kernel(
            "score_rows", n_score_blocks, block_rows // warp_rows * 32, shared_bytes=score_bytes
        ),
        multiply=kernel(
            "multiply_gradients",
            product.grid,
            32 * product.strips,
            shared_bytes=product.shared_bytes,
        ),
        add_up=kernel("sum_partials", n_sum_blocks, 256),
        n_samples=np.int32(n_samples),
        uniform_weight=np.float32(1 / n_samples),
        n_shares=np.int32(product.shares),
        n_score_blocks=np.int32(n_score_blocks),
    )
