"""How the first product reads the samples: the standardisation folded into its parameters.

``(x - mean) / scale`` written out for uint8 pixels takes four times their memory and must be read
back at every pass. It is linear, so it folds into the first layer instead:

    ((X - mean) / scale) @ W + b  =  (X - 128) @ W'  +  b',
    W' = W / scale,   b' = b - ((mean - 128) / scale) @ W

and the gradient unfolds the same way. Pixels are taken relative to 128 because raw bytes are all
positive: their common part would dominate the scores and cancel in the last step, costing digits.
Floats may lie anywhere; their mean is subtracted block by block, and only the scale folds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.cupy import on_its_device
from gpuclf.dispatch import fusable
from gpuclf.layers import affine
from gpuclf.samples.short_floats import is_short_float
from gpuclf.samples.standardized import BYTE_CENTRE, Standardized, as_floats, as_stored
from gpuclf.samples.streamed import Streamed

__all__ = ["FoldedSamples", "RowBlock", "block_type", "fold_into", "unfold_from"]

Result = TypeVar("Result")

ROWS_TO_FOLD = 16  # for each column of W


class FoldedSamples:
    """One pass's view of X: what the first layer multiplies, and how its parameters fold.

    Parameters
    ----------
    X : array of shape (N, D) or Standardized
    n_outputs : int
        Columns of the first layer's W. Folding costs a few passes over W, in part in float64, and
        saves two over the rows: below 16 rows a column, samples are standardised directly, unless
        the products take bytes as they are.
    dtype : dtype
        Floats to compute in.

    Attributes
    ----------
    stored : array of shape (N, D)
        The samples as they are stored.
    standardized : Standardized or None
        X, if it was given so.
    centre : array of shape (D,) or None
        What :meth:`rows` subtracts from stored floats.
    are_streamed : bool
        Whether they stay on the host.
    folds : bool
        Whether the standardisation goes into the parameters; :meth:`rows` then gives what is
        stored minus 128 (bytes) or `centre` (floats).
    kept_by_blocks : object
        What the blocks of one pass share.
    n_samples, n_features : int
    """

    def __init__(self, X: Array | Standardized, n_outputs: int, dtype: object) -> None:
        self.standardized = X if isinstance(X, Standardized) else None
        self.stored = X.X if isinstance(X, Standardized) else X
        self._dtype = dtype
        self.n_samples, self.n_features = map(int, self.stored.shape)
        xp = array_namespace(self.stored)
        is_bytes = self.stored.dtype == xp.uint8
        self.are_streamed = isinstance(self.stored, Streamed)
        self.centre: Array | None = None
        self.kept_by_blocks: Any = None
        self._block_type: type[RowBlock] = RowBlock
        are_many = ROWS_TO_FOLD * n_outputs < self.n_samples
        is_asked = is_bytes or (are_many and is_short_float(self.stored.dtype))
        if is_asked and not self.are_streamed:
            self._block_type = block_type(self.stored, n_outputs, dtype)
        self.folds = (is_bytes or self.standardized is not None) and (
            are_many or self._block_type is not RowBlock
        )
        if self.folds and self.standardized is not None and not is_bytes:
            # Floats may lie anywhere, so their mean is subtracted from the rows.
            self.centre = _mean_of(self.standardized, dtype)

    @cached_property
    def _shift(self) -> Array:
        """What folds into b: in float64, as b' is the difference of two large sums."""
        xp = array_namespace(self.stored)
        if self.standardized is None:
            return xp.full(
                (self.n_features,), -BYTE_CENTRE, dtype=xp.float64, device=self.stored.device
            )
        # Of a centre, what rounding to `dtype` left.
        centre = BYTE_CENTRE if self.centre is None else xp.astype(self.centre, xp.float64)
        return (self.standardized.mean - centre) / self.standardized.scale

    @cached_property
    def _inverse_scale(self) -> Array | None:
        if self.standardized is None:
            return None
        xp = array_namespace(self.stored)
        return xp.astype(1 / self.standardized.scale, self._dtype)[:, None]

    def over_uploads(
        self, work: Callable[[Iterator[tuple[slice, FoldedSamples]]], Result], width: int
    ) -> Result:
        """Return ``work(parts)`` of streamed samples: slices of rows and their part, uploaded.

        Each part is to be used before the next is asked for. `width` is that of the first product.
        """
        bits = array_namespace(self.stored).finfo(self._dtype).bits
        # Twice, because a standardised row is written out once more.
        bytes_per_row = 2 * self.floats_per_row(width) * bits // 8
        found: Result = self.stored.over_blocks(
            lambda blocks: work((rows, self._part(X)) for rows, X in blocks), bytes_per_row
        )
        return found

    def _part(self, X: Array) -> FoldedSamples:
        part = copy.copy(self)
        part.stored, part.n_samples, part.are_streamed = X, int(X.shape[0]), False
        if self.standardized is not None:
            part.standardized = self.standardized.with_samples(X)
        return part

    def floats_per_row(self, width: int) -> int:
        """Return how many numbers a row takes while it is worked on: its own, and of its scores."""
        return int(self.n_features * self._block_type.floats_of_feature) + 3 * width

    @property
    def are_converted(self) -> bool:
        """Whether products need new floats instead of a view of X."""
        return self._block_type is RowBlock and (
            self.standardized is not None or self.stored.dtype != self._dtype
        )

    @property
    def are_plain_floats(self) -> bool:
        """Whether the samples are used as they are, but for their precision."""
        xp = array_namespace(self.stored)
        return self.standardized is None and self.stored.dtype != xp.uint8

    def block(self, rows: slice) -> RowBlock:
        """Return a block of samples with its two products."""
        return self._block_type(self, rows)

    def rows(self, block: slice) -> Array:
        """Return a block of samples as the floats that the folded parameters act on."""
        if self.folds:
            rows = as_floats(self.stored[block, :], self._dtype)
            if self.centre is None:
                return rows
            if is_short_float(self.stored.dtype):  # these floats are nobody else's
                rows -= self.centre
                return rows
            return rows - self.centre
        if self.standardized is not None:
            return self.standardized[block].to_array(self._dtype)
        return as_stored(self.stored[block, :], self._dtype)

    def fold(self, W: Array, b: Array | None) -> tuple[Array, Array | None]:
        """Return W', b' with ``rows @ W' + b' == features @ W + b``."""
        if not self.folds:
            return W, b
        moved, scaled = fold_into(W, self._shift, self._inverse_scale)
        return scaled, (-moved if b is None else b - moved)

    def unfold(self, dW: Array, db: Array) -> Array:
        """Return the gradient with respect to W, given those with respect to W' and b'."""
        if not self.folds:
            return dW
        return unfold_from(dW, db, self._shift, self._inverse_scale)


@on_its_device
def _mean_of(standardized: Standardized, dtype: object) -> Array:
    mean: Array = array_namespace(standardized.mean).astype(standardized.mean, dtype)
    return mean


class RowBlock:
    """A block of samples that is multiplied twice, forward and backward.

    Attributes
    ----------
    floats : array of shape (n, D)
        :meth:`FoldedSamples.rows`, made once.
    floats_of_feature : float
        The memory that an item of X takes in a block, in floats.
    """

    floats_of_feature = 1.0

    def __init__(self, samples: FoldedSamples, rows: slice) -> None:
        self.floats = samples.rows(rows)

    def affine(self, W: Array, b: Array | None) -> Array:
        """Return ``floats @ W + b``, for folded W and b."""
        return affine(self.floats, W, b)

    def affine_backward(self, dY: Array) -> tuple[Array, Array]:
        """Return the gradients of :meth:`affine` with respect to W and b."""
        return self.floats.T @ dY, array_namespace(dY).sum(dY, axis=-2)


class BlockAsStored(RowBlock):
    """A block that is multiplied as it is stored, and written as floats only if asked for them.

    Attributes
    ----------
    samples : FoldedSamples
    rows : slice
    """

    def __init__(self, samples: FoldedSamples, rows: slice) -> None:
        self.samples, self.rows = samples, rows

    @cached_property
    def floats(self) -> Array:
        return self.samples.rows(self.rows)


@fusable(numpy=("byte_products.on_cpu:blocks_of_bytes", "wide_products.on_cpu:blocks_in_tiles"))
def block_type(X: Array, n_outputs: int, dtype: object) -> type[RowBlock]:
    """Return the kind of block that multiplies X: another one takes samples as they are stored.

    Of floats it takes more than `ROWS_TO_FOLD` for each output.
    """
    return RowBlock


@fusable(numpy="elementwise.on_cpu:compiled_fold_into")
def fold_into(W: Array, shift: Array, inverse_scale: Array | None) -> tuple[Array, Array]:
    """Return ``shift @ W``, summed in float64, and ``W * inverse_scale``.

    Parameters
    ----------
    W : array of shape (..., D, C)
    shift : float64 array of shape (D,)
        In units of the scale.
    inverse_scale : array of shape (D, 1), or None for 1
    """
    xp = array_namespace(W)
    moved = xp.astype(shift @ xp.astype(W, xp.float64), W.dtype)
    return moved, W if inverse_scale is None else W * inverse_scale


@fusable(numpy="elementwise.on_cpu:compiled_unfold_from")
def unfold_from(dW: Array, db: Array, shift: Array, inverse_scale: Array | None) -> Array:
    """Return ``dW * inverse_scale - shift * db``, the gradient with respect to the unfolded W."""
    xp = array_namespace(dW)
    scaled = dW if inverse_scale is None else dW * inverse_scale
    return scaled - xp.astype(shift, dW.dtype)[:, None] * db[..., None, :]
