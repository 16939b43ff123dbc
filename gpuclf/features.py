"""Samples that stay in the form they are stored in: floats, or bytes standardised on the fly.

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
from typing import TypeVar

import numpy as np

from gpuclf.backend import (
    Array,
    array_namespace,
    describe_location,
    to_device,
    to_host,
    values_are_on_host,
)
from gpuclf.dispatch import fusable
from gpuclf.layers import affine, affine_backward_params
from gpuclf.row_blocks import block_rows, sum_over_row_blocks
from gpuclf.streaming import Streamed

__all__ = [
    "Features",
    "RowBlock",
    "Standardized",
    "block_affine",
    "block_affine_backward",
    "conversion_advice",
    "fold_into",
    "is_streamed",
    "multiplies_bytes",
    "standardized_rows",
    "take_rows",
    "unfold_from",
]

Result = TypeVar("Result")

BYTE_CENTRE = 128
ROWS_TO_FOLD = 16  # for each column of W


class Standardized:
    """Pixels or floats with their standardisation, for models that begin with a product.

    Losses, scores and the classifiers trained by gradients take them as X. What compares or looks
    at the values themselves (distances, k-NN, image features, naive loops) takes arrays:
    :meth:`to_array` writes them out.

    Parameters
    ----------
    X : array of shape (N, D), uint8, float32 or float64
        Not copied and never changed.
    mean, scale : array of shape (D,) or float
        What is subtracted, and what the difference is divided by. `scale` must be positive.

    Attributes
    ----------
    X : array of shape (N, D)
    mean, scale : array of shape (D,), float64
        In the library and on the device of X.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a scale is not positive and finite.

    Examples
    --------
    >>> import gpuclf
    >>> X = np.array([[0, 100], [200, 100]], dtype=np.uint8)
    >>> gpuclf.Standardized.fit(X).to_array()
    array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    """

    def __init__(self, X: Array, mean: Array | float, scale: Array | float) -> None:
        _refuse_other_dtypes(X)
        if X.ndim != 2:
            raise ValueError(f"X must have shape (N, D), got {tuple(X.shape)}")
        self.X = X
        self.mean = self._per_feature("mean", mean)
        self.scale = self._per_feature("scale", scale)

    def _per_feature(self, name: str, value: Array | float) -> Array:
        n_features = self.X.shape[1]
        host = np.asarray(to_host(value), dtype=np.float64)
        if host.shape not in ((), (n_features,)):
            raise ValueError(
                f"{name} must be a number or have shape ({n_features},), one value for each "
                f"feature of X, got {host.shape}"
            )
        if not np.all(np.isfinite(host)) or (name == "scale" and not np.all(host > 0)):
            wanted = "finite and above 0" if name == "scale" else "finite"
            raise ValueError(
                f"{name} must be {wanted} everywhere; for a feature that never varies use 1.0"
            )
        return to_device(np.broadcast_to(host, (n_features,)).copy(), like=self.X)

    @classmethod
    def fit(cls, X: Array, sample_weight: Array | None = None) -> Standardized:
        """Standardise X by its own mean and standard deviation; a constant feature gets scale 1.

        Parameters
        ----------
        X : array of shape (N, D)
            Usually the training set; :meth:`apply` standardises other samples the same way.
        sample_weight : array of shape (N,), optional
            Non-negative; a sample of weight 2 counts as two samples.
        """
        xp = array_namespace(X=X, sample_weight=sample_weight)
        if isinstance(X, Streamed):
            weights = None if sample_weight is None else to_host(sample_weight)
            on_host = cls.fit(X.host, weights)
            mean, scale = (to_device(v, like=X) for v in (on_host.mean, on_host.scale))
            return cls._unchecked(X, mean, scale)
        _refuse_other_dtypes(X)
        if X.ndim != 2 or X.shape[0] == 0:
            raise ValueError(
                f"X must have shape (N, D) with at least one sample, got {tuple(X.shape)}"
            )
        mean, variance = _column_moments(X, sample_weight)
        if values_are_on_host(mean) and not np.all(np.isfinite(mean + variance)):
            raise ValueError("X has NaN, infinite or too large values: remove or replace them")
        deviation = xp.sqrt(xp.maximum(variance, xp.zeros_like(variance)))
        scale = xp.where(deviation > 0, deviation, xp.ones_like(deviation))
        return cls._unchecked(X, mean, scale)  # a check would be a look at the device

    @classmethod
    def _unchecked(cls, X: Array, mean: Array, scale: Array) -> Standardized:
        standardized = object.__new__(cls)
        standardized.X, standardized.mean, standardized.scale = X, mean, scale
        return standardized

    def apply(self, X: Array) -> Standardized:
        """Return other samples with this mean and scale (a test set, for example)."""
        return Standardized(X, self.mean, self.scale)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D), as of X."""
        n_samples, n_features = self.X.shape
        return int(n_samples), int(n_features)

    ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Array | slice) -> Standardized:
        if isinstance(rows, int | np.integer):
            raise TypeError(f"index Standardized with a slice or an array of rows, not {rows!r}")
        if isinstance(rows, list):
            rows = to_device(np.asarray(rows), like=self.X)
        return self.with_samples(
            self.X[rows, :] if isinstance(rows, slice) else take_rows(self.X, rows)
        )

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("standardising makes a copy; pass copy=None or copy=True")
        return np.asarray(self.to_array(), dtype=dtype)  # type: ignore[call-overload, no-any-return]

    def __repr__(self) -> str:
        return f"Standardized({self.X.dtype} {self.shape}, {describe_location(self.X)})"

    def with_samples(self, X: Array) -> Standardized:
        """Return other samples of the same features, sharing mean and scale, unchecked."""
        return self._unchecked(X, self.mean, self.scale)

    def map_arrays(self, function: Callable[[Array], Array]) -> Standardized:
        """Return a copy with `function` applied to X, mean and scale (to move it, for example)."""
        X = self.X.map_arrays(function) if isinstance(self.X, Streamed) else function(self.X)
        return self._unchecked(X, function(self.mean), function(self.scale))

    def to_array(self, dtype: object = None) -> Array:
        """Write the standardised samples out as floats of `dtype` (default float32)."""
        if isinstance(self.X, Streamed):
            raise TypeError("the samples are streamed; upload them first, with gpuclf.to_device")
        xp = array_namespace(self.X)
        dtype = xp.float32 if dtype is None else dtype
        shift = self.mean - BYTE_CENTRE if self.X.dtype == xp.uint8 else self.mean
        return standardized_rows(self.X, xp.astype(shift, dtype), xp.astype(1 / self.scale, dtype))


@fusable
def standardized_rows(X: Array, shift: Array, factor: Array) -> Array:
    """Return ``(X - shift) * factor`` in the dtype of `factor`; bytes count from 128.

    Parameters
    ----------
    X : array of shape (N, D), uint8, float32 or float64
    shift, factor : array of shape (D,)
    """
    return (_as_floats(X, factor.dtype) - shift) * factor


def _refuse_other_dtypes(X: Array) -> None:
    xp = array_namespace(X)
    if X.dtype not in (xp.uint8, xp.float32, xp.float64):
        raise TypeError(
            f"X must be uint8, float32 or float64, got {X.dtype}; {conversion_advice('X', X)}"
        )


def conversion_advice(name: str, value: Array) -> str:
    """Say how an array becomes floats, in the words of its library."""
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        size = 8 * min(max(value.dtype.itemsize, 4), 8)
        return f"its bytes are not in this machine's byte order: {name}.astype('float{size}')"
    root = type(value).__module__.partition(".")[0]
    if root == "torch":
        return f"convert it with {name}.to(torch.float32)"
    if hasattr(value, "astype"):
        return f"convert it with {name}.astype('float32')"
    return f"convert it with {root}.astype({name}, {root}.float32)"


def _column_moments(X: Array, sample_weight: Array | None) -> tuple[Array, Array]:
    """Means and variances of the columns of X, in float64, in one pass.

    Sums of squares of raw values would lose every digit for features far from zero, so the
    moments are taken about one of the samples.
    """
    xp = array_namespace(X)
    n_samples, n_features = (int(n) for n in X.shape)
    # Squared differences of bytes are below 2**16: sums of up to 256 are exact in float32.
    exact_in_float32 = X.dtype == xp.uint8 and sample_weight is None
    dtype = xp.float32 if exact_in_float32 else xp.float64
    if sample_weight is None:
        weights = xp.ones((n_samples,), dtype=dtype, device=X.device)
    else:
        weights = xp.astype(sample_weight, dtype)
    # A sample of weight 0 may be anything, so it is no origin.
    first_counted = xp.reshape(xp.argmax(xp.astype(weights > 0, xp.uint8)), (1,))
    origin = xp.astype(xp.take(X, first_counted, axis=0)[0, :], dtype)

    def moments(rows: slice) -> tuple[Array, Array]:
        difference = xp.astype(X[rows, :], dtype) - origin
        first, second = weights[rows] @ difference, weights[rows] @ (difference * difference)
        return xp.astype(first, xp.float64), xp.astype(second, xp.float64)

    step = min(256, block_rows(weights, n_samples, 2 * n_features, converted=True))
    first, second = sum_over_row_blocks(moments, n_samples, step, parallel=xp is np)
    count = xp.sum(weights, dtype=xp.float64)
    mean = first / count
    return xp.astype(origin, xp.float64) + mean, second / count - mean * mean


def _as_floats(X: Array, dtype: object) -> Array:
    """Return rows as floats of `dtype`; bytes relative to 128."""
    xp = array_namespace(X)
    if X.dtype != xp.uint8:
        return X if X.dtype == dtype else xp.astype(X, dtype)
    if xp is np:
        # Flipping the top bit and reading the byte as signed is "minus 128": one pass over bytes
        # where a subtraction would pass over floats four times as large.
        return (X ^ np.uint8(BYTE_CENTRE)).view(np.int8).astype(dtype)
    return xp.astype(X, dtype) - BYTE_CENTRE


def is_streamed(X: Array | Standardized) -> bool:
    """Tell whether the samples, standardised or not, stay on the host."""
    return isinstance(X.X if isinstance(X, Standardized) else X, Streamed)


def take_rows(X: Array, indices: Array) -> Array:
    """Gather rows of an array, or of Standardized samples, by integer index or boolean mask."""
    if isinstance(X, Standardized):
        return X[indices]
    if isinstance(X, Streamed):
        return X.take(to_host(indices))
    xp = array_namespace(X=X, indices=indices)
    if xp.isdtype(indices.dtype, "bool"):
        if tuple(indices.shape) != (int(X.shape[0]),):
            raise IndexError(
                f"a mask must have shape ({X.shape[0]},), one entry a row, got "
                f"{tuple(indices.shape)}"
            )
        (indices,) = xp.nonzero(indices)
    return xp.take(X, indices, axis=0)


class Features:
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
    folds : bool
        Whether the standardisation goes into the parameters; :meth:`rows` then gives what is
        stored minus 128 (bytes) or `centre` (floats).
    n_samples, n_features : int
    """

    def __init__(self, X: Array | Standardized, n_outputs: int, dtype: object) -> None:
        self.standardized = X if isinstance(X, Standardized) else None
        self.stored = X.X if isinstance(X, Standardized) else X
        self._dtype = dtype
        self.n_samples, self.n_features = (int(n) for n in self.stored.shape)
        xp = array_namespace(self.stored)
        is_bytes = self.stored.dtype == xp.uint8
        self.centre: Array | None = None
        self._multiplies_bytes = (
            is_bytes
            and not isinstance(self.stored, Streamed)
            and multiplies_bytes(self.stored, n_outputs, dtype)
        )
        self.folds = (is_bytes or self.standardized is not None) and (
            ROWS_TO_FOLD * n_outputs < self.n_samples or self._multiplies_bytes
        )
        if self.folds and self.standardized is not None and not is_bytes:
            # Floats may lie anywhere, so their mean is subtracted from the rows.
            self.centre = xp.astype(self.standardized.mean, dtype)

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
        self, work: Callable[[Iterator[tuple[slice, Features]]], Result], floats_per_row: int
    ) -> Result:
        """Return ``work(parts)``, where parts gives slices of rows and their part of the features.

        Streamed samples come in blocks, each to be used before the next is asked for; others are
        one part. `floats_per_row` is how many numbers one row occupies while it is worked on.
        """
        if not isinstance(self.stored, Streamed):
            return work(iter([(slice(0, self.n_samples), self)]))
        bits = array_namespace(self.stored).finfo(self._dtype).bits
        # Twice, because a standardised row is written out once more.
        bytes_per_row = 2 * floats_per_row * bits // 8
        return self.stored.over_blocks(
            lambda blocks: work((rows, self._part(X)) for rows, X in blocks), bytes_per_row
        )

    def _part(self, X: Array) -> Features:
        part = copy.copy(self)
        part.stored, part.n_samples = X, int(X.shape[0])
        if self.standardized is not None:
            part.standardized = self.standardized.with_samples(X)
        return part

    @property
    def are_converted(self) -> bool:
        """Whether products need new floats instead of a view of X."""
        return not self._multiplies_bytes and (
            self.standardized is not None or self.stored.dtype != self._dtype
        )

    @property
    def are_plain_floats(self) -> bool:
        """Whether the samples are used as they are, but for their precision."""
        xp = array_namespace(self.stored)
        return self.standardized is None and self.stored.dtype != xp.uint8

    def block(self, rows: slice) -> RowBlock:
        """Return a block of samples for :func:`block_affine` and its backward pass."""
        return RowBlock(self, rows)

    def rows(self, block: slice) -> Array:
        """Return a block of samples as the floats that the folded parameters act on."""
        if self.folds:
            rows = _as_floats(self.stored[block, :], self._dtype)
            return rows if self.centre is None else rows - self.centre
        if self.standardized is not None:
            return self.standardized[block].to_array(self._dtype)
        xp = array_namespace(self.stored)
        return xp.astype(self.stored[block, :], self._dtype, copy=False)

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


class RowBlock:
    """A block of samples that is multiplied twice, forward and backward.

    Attributes
    ----------
    features : Features
    rows : slice
    floats : array of shape (n, D)
        :meth:`Features.rows`, made once.
    """

    def __init__(self, features: Features, rows: slice) -> None:
        self.features, self.rows = features, rows

    @cached_property
    def floats(self) -> Array:  # noqa: D102 - described by the class
        return self.features.rows(self.rows)


@fusable
def multiplies_bytes(X: Array, n_outputs: int, dtype: object) -> bool:
    """Tell whether :func:`block_affine` takes bytes as they are; folding then always pays."""
    return False


@fusable
def block_affine(W: Array, b: Array | None, block: RowBlock) -> Array:
    """Return ``block.floats @ W + b``, for folded W and b."""
    return affine(block.floats, W, b)


@fusable
def block_affine_backward(dY: Array, block: RowBlock) -> tuple[Array, Array]:
    """Return the gradients of :func:`block_affine` with respect to W and b."""
    dW, db = affine_backward_params(dY, block.floats)
    return dW, db


@fusable
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


@fusable
def unfold_from(dW: Array, db: Array, shift: Array, inverse_scale: Array | None) -> Array:
    """Return ``dW * inverse_scale - shift * db``, the gradient with respect to the unfolded W."""
    xp = array_namespace(dW)
    scaled = dW if inverse_scale is None else dW * inverse_scale
    return scaled - xp.astype(shift, dW.dtype)[:, None] * db[..., None, :]
