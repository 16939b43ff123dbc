"""Blocks of bytes or short floats multiplied by wide parameters in compiled tiles; needs numba.

The shared bodies write a block's numbers as floats of four bytes, which BLAS then packs for each of
both products. Here they are widened in a core's L1, once for all columns.

Declines where BLAS is as fast: mini-batches, which all of its threads share, and wider W.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuclf.kernels.building.machine_code import numba_is_usable
from gpuclf.kernels.linear_pass.on_cpu import bits_of_short_floats, is_widened
from gpuclf.samples.folding import ROWS_TO_FOLD, BlockAsStored
from gpuclf.samples.short_floats import is_short_float
from gpuclf.samples.walk import CPU_BLOCK_BYTES

__all__ = ["TiledBlock", "blocks_in_tiles"]

MIN_FEATURES, MIN_COLUMNS = 64, 9  # a strip of the widest tiles; below, half of one is empty
# Above, BLAS is as fast on AVX2; with AVX-512 it was not measured.
MAX_COLUMNS = 200
MIN_BLOCKS = 2  # one block would be multiplied by one thread


def blocks_in_tiles(X: Any, n_outputs: int, dtype: Any) -> Any:
    """Compute :func:`gpuclf.samples.folding.block_type`."""
    floats_per_row = X.shape[1] + 3 * n_outputs
    is_taken = (
        (X.dtype == np.uint8 or is_short_float(X.dtype))
        and dtype == np.float32
        and X.flags.c_contiguous
        and X.shape[1] >= MIN_FEATURES
        and MIN_COLUMNS <= n_outputs <= MAX_COLUMNS
        and len(X) > ROWS_TO_FOLD * n_outputs
        and 4 * len(X) * floats_per_row > MIN_BLOCKS * CPU_BLOCK_BYTES
        and numba_is_usable()
        and is_widened(X)
    )
    return TiledBlock if is_taken else NotImplemented


class TiledBlock(BlockAsStored):
    """A block whose numbers are widened where they are multiplied."""

    floats_of_feature = 0.25

    def affine(self, W: Any, b: Any) -> Any:  # noqa: D102 - described by the base class
        from gpuclf.kernels.wide_products import loops

        kept = self.samples.kept_by_blocks
        if kept is None or kept[0] is not W:  # one pack serves all blocks of a pass
            self.samples.kept_by_blocks = kept = W, loops.pack(W)
        return loops.affine(self._bits, self.samples.centre, kept[1], b)

    def affine_backward(self, dY: Any) -> tuple[Any, Any]:  # noqa: D102 - as above
        from gpuclf.kernels.wide_products import loops

        return loops.gradient(self._bits, self.samples.centre, dY), dY.sum(axis=0)

    @property
    def _bits(self) -> Any:
        return bits_of_short_floats(self.samples.stored[self.rows])
