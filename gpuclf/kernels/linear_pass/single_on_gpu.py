"""The linear pass over bytes that reads X from memory once: see single_pass.cu."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import VECTOR, Launch, ceil_div, null_for_none
from gpuclf.kernels.building.plans import KEPT_PLANS, PassPlan

__all__ = ["OneReading", "plan_of"]

FILE = "single_pass.cu"
WARPS, ROWS, CHUNK, MAX_STRIP, MAX_CLASSES = cuda.numbers_in(
    FILE, "WARPS", "ROWS", "CHUNK", "MAX_STRIP", "MAX_CLASSES"
)
# Sums are split by this, never by the device at hand, so that all devices give the same bits.
BLOCKS = 132  # a wave on an H200, which holds one of these blocks a multiprocessor
STATIC_BYTES = 2048  # at least what the kernel declares apart from its dynamic shared memory


class OneReading(PassPlan):
    """All in one walk: ``plan(W, b, X, standardized, y, weights, reg) -> [loss, dW, db]``."""

    def launch(
        self, between: list[Any], results: list[Any], params: list[Any], samples: tuple[Any, ...],
        moments: tuple[Any, Any], penalty: np.float64,
    ) -> None:  # fmt: skip
        """Launch the kernels."""
        folding, strip_sums, packed, units, partials, sums = between
        (W, b), (X, y, weights), (loss, dW, db) = params, samples, results
        self.pack(W, *moments, packed, units, folding, strip_sums)
        self.walk(
            X, packed, units, null_for_none(b), strip_sums, y, weights, partials, sums,
            self.uniform_weight, self.n_samples,
        )  # fmt: skip
        self.add_up(
            partials, sums, W, folding, strip_sums, dW, db, loss, penalty, self.n_blocks
        )  # fmt: skip


def plan_of(
    n_samples: int, n_features: int, n_classes: int, hinge: int, shared_bytes: int
) -> OneReading | None:
    """Plan the pass over samples in whole vectors; None for what one reading does not fit."""
    if n_features % VECTOR:
        return None
    return _plan(n_samples, n_features, n_classes, hinge, shared_bytes, BLOCKS)


@lru_cache(maxsize=KEPT_PLANS)
def _plan(
    n_samples: int, n_features: int, n_classes: int, hinge: int, shared_bytes: int, most_blocks: int
) -> OneReading | None:
    """Plan buffers and launches; None for what registers or shared memory do not hold."""
    n_chunks = ceil_div(n_features, WARPS * CHUNK)
    full, rest = divmod(n_classes, 4)
    lane_classes = full + (rest > 0)
    slots = 3 * full + 2 if rest in (1, 2) else 3 * lane_classes
    columns = 8 * ceil_div(slots, 2)
    fixed_bytes = WARPS * n_chunks * columns * CHUNK + columns * ROWS + WARPS * ROWS * 4 * n_classes
    room = shared_bytes - STATIC_BYTES - fixed_bytes
    ring = min(2 * n_chunks, room // (WARPS * ROWS * CHUNK))
    if n_classes > MAX_CLASSES or n_features > WARPS * MAX_STRIP or ring < n_chunks:
        return None
    constants = {"FEATURES": n_features, "CLASSES": n_classes, "HINGE": hinge, "RING": ring}
    kernel = partial(Launch, FILE, constants)
    n_sums = WARPS * n_chunks * (CHUNK // 16) * 2 * lane_classes * 32
    n_blocks = min(most_blocks, ceil_div(n_samples, ROWS))
    ring_bytes = ring * WARPS * ROWS * CHUNK
    return OneReading(
        [
            (n_features, 2, "float32"),
            (WARPS, n_classes, 2, "float64"),
            (WARPS * n_chunks, columns, CHUNK, "int8"),
            (WARPS, n_classes, "float32"),
            (n_blocks, n_sums, "float32"),
            (n_blocks, n_classes + 1, "float64"),
        ],
        [(1, "float64"), (n_features, n_classes, "float32"), (n_classes, "float32")],
        pack=kernel("pack_digits", (WARPS, n_classes), 128),
        walk=kernel("walk_tiles", n_blocks, 32 * WARPS, shared_bytes=fixed_bytes + ring_bytes),
        add_up=kernel("sum_tiles", n_sums // 64 + 1, 256),
        n_samples=np.int32(n_samples),
        uniform_weight=np.float32(1 / n_samples),
        n_blocks=np.int32(n_blocks),
    )
