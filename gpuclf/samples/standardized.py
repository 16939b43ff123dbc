"""Samples that stay in the form they are stored in: floats, or bytes standardised on the fly."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, describe_location, to_host, values_are_on_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.dispatch import fusable
from gpuclf.samples.holders import Chunk
from gpuclf.samples.sharded import Sharded, gathered
from gpuclf.samples.short_floats import is_short_float, widened
from gpuclf.samples.streamed import Streamed
from gpuclf.samples.walk import block_rows, sum_over_row_blocks

__all__ = [
    "BYTE_CENTRE",
    "Standardized",
    "as_floats",
    "as_stored",
    "check_total_weight",
    "conversion_advice",
    "is_sharded",
    "is_streamed",
    "standardized_rows",
    "take_rows",
]

BYTE_CENTRE = 128


if TYPE_CHECKING:
    of_the_class = classmethod
else:

    class of_the_class(classmethod):  # noqa: N801 - a decorator
        """A classmethod that instances do not have.

        scikit-learn takes what has a `fit` for an estimator, and would not split it.
        """

        def __get__(self, instance, owner=None):
            if instance is not None:
                raise AttributeError("fit is called on the class: gpuclf.Standardized.fit(X)")
            return super().__get__(None, owner)


class Standardized:
    """Pixels or floats with their standardisation, for models that begin with a product.

    Losses, scores and the classifiers trained by gradients take them as X. What compares or looks
    at the values themselves (distances, k-NN, image features, naive loops) takes arrays:
    :meth:`to_array` writes them out. scikit-learn's splitters (`train_test_split`,
    `cross_val_score`, searches) take them; mean and scale stay those of all samples.

    Parameters
    ----------
    X : array of shape (N, D), uint8, float16, bfloat16, float32 or float64
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

    @of_the_class
    @on_its_device
    def fit(
        cls,  # noqa: N805 - a classmethod
        X: Array,
        sample_weight: Array | None = None,
    ) -> Standardized:
        """Standardise X by its own mean and standard deviation; a constant feature gets scale 1.

        Parameters
        ----------
        X : array of shape (N, D), Streamed or Sharded
            Usually the training set; :meth:`apply` standardises other samples the same way.
        sample_weight : array of shape (N,), optional
            Non-negative; a sample of weight 2 counts as two samples.
        """
        if isinstance(X, Sharded):
            sample_weight = gathered(sample_weight, len(X), "sample_weight")
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
        if sample_weight is not None:
            check_total_weight(sample_weight)
        of_columns = _moments_of_chunks if isinstance(X, Sharded) else _column_moments
        mean, variance = of_columns(X, sample_weight)
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

    def __getitem__(self, rows: Array | slice | tuple[Array | slice, EllipsisType]) -> Standardized:
        if isinstance(rows, tuple):  # as scikit-learn's splitters index
            if len(rows) != 2 or not (rows[1] is ... or rows[1] == slice(None)):
                raise TypeError(f"index Standardized by rows alone, not by {rows!r}")
            rows = rows[0]
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

    @on_its_device
    def to_array(self, dtype: object = None) -> Array:
        """Write the standardised samples out as floats of `dtype` (default float32)."""
        if isinstance(self.X, Streamed):
            raise TypeError("the samples are streamed; upload them first, with gpuclf.to_device")
        xp = array_namespace(self.X)
        dtype = xp.float32 if dtype is None else dtype
        shift = self.mean - BYTE_CENTRE if self.X.dtype == xp.uint8 else self.mean
        return standardized_rows(self.X, xp.astype(shift, dtype), xp.astype(1 / self.scale, dtype))


@fusable(numpy="elementwise.on_cpu:compiled_standardized_rows")
def standardized_rows(X: Array, shift: Array, factor: Array) -> Array:
    """Return ``(X - shift) * factor`` in the dtype of `factor`; bytes count from 128.

    Parameters
    ----------
    X : array of shape (N, D), uint8 or floats
    shift, factor : array of shape (D,)
    """
    return (as_floats(X, factor.dtype) - shift) * factor


def _refuse_other_dtypes(X: Array) -> None:
    xp = array_namespace(X)
    if X.dtype not in (xp.uint8, xp.float32, xp.float64) and not is_short_float(X.dtype):
        raise TypeError(
            "X must be uint8, float16, bfloat16, float32 or float64, got "
            f"{X.dtype}; {conversion_advice('X', X)}"
        )


def check_total_weight(sample_weight: Array) -> None:
    """Raise if weights on the host cannot be divided by their sum."""
    if not values_are_on_host(sample_weight):
        return
    with np.errstate(over="ignore"):
        total = np.sum(sample_weight, dtype=np.float64)
    if not (np.all(sample_weight >= 0) and 0 < total < np.inf):
        raise ValueError(
            "sample_weight must be finite, at least 0, and not 0 everywhere: a mean is divided "
            f"by its sum, which is {total}"
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
    origin = X[0, :]
    if sample_weight is not None:  # a sample of weight 0 may be anything, so it is no origin
        first_counted = xp.reshape(xp.argmax(xp.astype(sample_weight > 0, xp.uint8)), (1,))
        origin = xp.take(X, first_counted, axis=0)[0, :]
    origin = as_stored(origin, xp.float64)
    count, first, second = _column_sums(X, sample_weight, origin)
    mean = first / count
    return origin + mean, second / count - mean * mean


def _moments_of_chunks(X: Sharded, sample_weight: np.ndarray | None) -> tuple[Array, Array]:
    """Do the same for chunks; sums of bytes are whole numbers, and exact in any order."""
    weighted = np.ones(1) if sample_weight is None else sample_weight
    number, row = X.place_of(int(np.argmax(weighted > 0)))
    (origin,) = X.map(_one_row, row, only=number)
    with X.beside(sample_weight):
        sums = X.map(_sums_of_chunk, origin)
    count, first, second = (sum(of_chunks) for of_chunks in zip(*sums, strict=True))
    mean = first / count
    return origin + mean, second / count - mean * mean


def _one_row(chunk: Chunk, row: int) -> Array:
    return as_stored(chunk.X[row, :], array_namespace(chunk.X).float64)


def _sums_of_chunk(chunk: Chunk, origin: np.ndarray) -> tuple[Array, Array, Array]:
    return _column_sums(chunk.X, chunk.beside[0], to_device(origin, like=chunk.X))


def _column_sums(
    X: Array, sample_weight: Array | None, origin: Array
) -> tuple[Array, Array, Array]:
    """Sum weights, differences from the origin and their squares, in float64."""
    xp = array_namespace(X)
    n_samples, n_features = (int(n) for n in X.shape)
    # Squared differences of bytes are below 2**16: sums of up to 256 are exact in float32.
    exact_in_float32 = X.dtype == xp.uint8 and sample_weight is None
    dtype = xp.float32 if exact_in_float32 else xp.float64
    origin = xp.astype(origin, dtype)
    if sample_weight is None:
        weights = xp.ones((n_samples,), dtype=dtype, device=X.device)
    else:
        weights = xp.astype(sample_weight, dtype)

    def moments(rows: slice) -> tuple[Array, Array]:
        difference = as_stored(X[rows, :], dtype) - origin
        first, second = weights[rows] @ difference, weights[rows] @ (difference * difference)
        return xp.astype(first, xp.float64), xp.astype(second, xp.float64)

    step = min(256, block_rows(weights, n_samples, 2 * n_features, converted=True))
    first, second = sum_over_row_blocks(moments, n_samples, step, parallel=xp is np)
    return xp.sum(weights, dtype=xp.float64), first, second


def as_floats(X: Array, dtype: object) -> Array:
    """Return rows as floats of `dtype`; bytes relative to 128."""
    xp = array_namespace(X)
    if X.dtype != xp.uint8:
        return as_stored(X, dtype)
    if xp is np:
        # Flipping the top bit and reading the byte as signed is "minus 128": one pass over bytes
        # where a subtraction would pass over floats four times as large.
        return (X ^ np.uint8(BYTE_CENTRE)).view(np.int8).astype(dtype)
    return xp.astype(X, dtype) - BYTE_CENTRE


def as_stored(X: Array, dtype: object) -> Array:
    """Return rows as floats of `dtype`."""
    if X.dtype == dtype:
        return X
    return widened(X, dtype) if is_short_float(X.dtype) else array_namespace(X).astype(X, dtype)


def is_sharded(X: Any) -> bool:
    """Tell whether the samples, standardised or not, lie on the workers of a cluster."""
    return isinstance(X.X if isinstance(X, Standardized) else X, Sharded)


def is_streamed(X: Array | Standardized) -> bool:
    """Tell whether the samples, standardised or not, stay on the host."""
    return isinstance(X.X if isinstance(X, Standardized) else X, Streamed)


@on_its_device
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
    if xp is np and not X.flags.c_contiguous:
        return X[indices]  # numpy.take would copy all of X first
    return xp.take(X, indices, axis=0)
