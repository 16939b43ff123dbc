"""Distances between samples.

Bytes are compared in integers: no distance is rounded, so that ties are ties on every machine. The
squared L2 distance is expanded into norms and a product, and BLAS does the product in float32:
pixels relative to 128, multiplied and summed over 1,024 features, stay below 2**24, up to where
float32 holds every integer.

Floats are compared in float64, the expansion relative to the middle of the training samples. Of
fractions, libraries may sum the same differences in another order, so that ties are the same
everywhere for bytes and for whole numbers only.

Cosine distances are taken as half the squared L2 distances of samples of length 1, which keeps the
digits of small ones: ``1 - cos`` would be rounded to 1e-16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.devices.cupy import on_its_device
from gpuclf.dispatch import fusable
from gpuclf.samples.standardized import BYTE_CENTRE, Standardized
from gpuclf.samples.streamed import Streamed
from gpuclf.samples.walk import row_slices
from gpuclf.validation import check_finite, check_samples

__all__ = [
    "EXACT_FEATURES",
    "METRICS",
    "Expansion",
    "Ranking",
    "check_directions",
    "check_pair",
    "differences_bytes",
    "manhattan",
    "metric_named",
    "pairwise_distances",
    "ranking_by",
    "squared_differences",
    "squared_euclidean",
    "to_distances",
    "unit_rows",
]

METRICS = ("l2", "l1", "cosine")
OTHER_NAMES = {"euclidean": "l2", "manhattan": "l1", "cityblock": "l1"}  # scikit-learn's
EXACT_FEATURES = 1024  # 1,024 * 128 * 128 = 2**24
UNIT = 2.0**-8  # whole numbers, quarters, ... are expanded exactly
CENTRE_SAMPLES = 100
# L1 has no product that BLAS could do, only differences that are written out and summed. On a CPU
# they should stay in a core's cache; on a device they should be many.
CPU_DIFFERENCES_BYTES = 256 << 10
DEVICE_DIFFERENCES_BYTES = 16 << 20

Ranking = Callable[[Array, Array], Array]


@on_its_device
def pairwise_distances(A: Array, B: Array, metric: str = "l2") -> Array:
    r"""Distances between all samples of A and all samples of B.

    .. math::

        \text{l2}: \sqrt{\sum_d (a_{id} - b_{jd})^2}, \qquad \text{l1}: \sum_d |a_{id} - b_{jd}|,
        \qquad \text{cosine}: 1 - \frac{a_i \cdot b_j}{\|a_i\| \|b_j\|}

    Parameters
    ----------
    A : array of shape (N, D)
    B : array of shape (M, D)
        uint8, float16, float32 or float64; other integers are computed as float64.
    metric : {"l2", "l1", "cosine"}, default "l2"
        "euclidean" and "manhattan" are other names of the first two.

    Returns
    -------
    array of shape (N, M), float64
        In the library of A and B. From bytes, and from whole numbers in floats, they are exact
        (l2 up to the root's rounding). From other floats the l2 squares have an error of about
        1e-16 times the squared norms of the centred samples: equal samples may come out 1e-8 of
        their norm apart, and equal distances may differ (the search puts that right). Cosine
        distances have an error of about 1e-16.

    Raises
    ------
    TypeError
        If A or B is not an array of real numbers, or they live on different devices.
    ValueError
        If shapes or `metric` do not fit, A or B has NaN (looked for in NumPy arrays only), or a
        zero vector whose cosine is asked for.

    See Also
    --------
    gpuclf.naive.pairwise_distances_two_loops, gpuclf.naive.pairwise_distances_one_loop
    gpuclf.models.neighbors.k_neighbors : the nearest ones, without the whole matrix in memory.

    Notes
    -----
    Always float64, because rounding distances to float32 would make ties of some that differ.
    The l1 distances of floats are slow, because their differences are written out; bytes take
    machine instructions (with numba).
    Source: Stanford CS231n, assignment 1, k-nearest neighbour exercise ("no loops").

    Examples
    --------
    >>> import numpy as np
    >>> A, B = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 1.0]])
    >>> pairwise_distances(A, B)
    array([[5., 1.]])
    >>> pairwise_distances(A, B, metric="l1")
    array([[7., 1.]])
    """
    A, B = check_pair(A, B)
    metric = metric_named(metric)
    if metric == "cosine":
        for name, X in (("A", A), ("B", B)):
            check_directions(X, name)
    return to_distances(ranking_by(B, metric)(A, B), metric)


@fusable(
    numpy="nearest.on_cpu:compiled_squared_euclidean",
    cupy="nearest.on_gpu:squared_euclidean_of_bytes",
)
def squared_euclidean(A: Array, B: Array, centre: Array | None = None) -> Array:
    """Squared L2 distances (N, M): integers for bytes, else float64; inputs are not checked.

    Parameters
    ----------
    A : array of shape (N, D)
    B : array of shape (M, D)
    centre : array of shape (D,), float64, optional
        Subtracted from A and B first, which changes no distance: the expansion
        ``a*a + b*b - 2*a*b`` loses the digits that a common offset takes. Not needed by bytes.
    """
    xp = array_namespace(A, B)
    if A.dtype != xp.uint8 or B.dtype != xp.uint8:
        A, B = xp.astype(A, xp.float64), xp.astype(B, xp.float64)
        if centre is not None:
            A -= centre
            B -= centre
        squares = A @ B.T
        squares *= -2
        squares += xp.vecdot(A, A)[:, None]
        squares += xp.vecdot(B, B)
        return xp.maximum(squares, xp.zeros_like(squares[:1, :1]))
    n_features = int(A.shape[1])
    integer = xp.int32 if n_features * 255**2 < 2**31 else xp.int64
    products: Array = 0
    norms_A: Array = 0
    norms_B: Array = 0
    for features in row_slices(n_features, EXACT_FEATURES):
        a, b = (xp.astype(x[:, features], xp.float32) - BYTE_CENTRE for x in (A, B))
        products += xp.astype(a @ b.T, integer)
        norms_A += xp.astype(xp.sum(a * a, axis=1), integer)
        norms_B += xp.astype(xp.sum(b * b, axis=1), integer)
    products *= -2
    products += norms_A[:, None]
    products += norms_B
    return products


@fusable(numpy="nearest.on_cpu:compiled_manhattan", cupy="nearest.on_gpu:manhattan_of_bytes")
def manhattan(A: Array, B: Array, block_bytes: int | None = None) -> Array:
    """L1 distances (N, M): integers for bytes, else float64; inputs are not checked.

    Parameters
    ----------
    A : array of shape (N, D)
    B : array of shape (M, D)
    block_bytes : int, optional
        How long the differences may become that are written out at a time.
    """
    xp = array_namespace(A, B)
    exact = A.dtype == xp.uint8 and B.dtype == xp.uint8
    # Bytes have no negative differences: the larger minus the smaller.
    dtype, result = (xp.uint8, xp.int64) if exact else (xp.float64, xp.float64)
    if exact and int(A.shape[1]) * 255 < 2**31:
        result = xp.int32

    def block(a: Array, b: Array) -> Array:
        return xp.sum(xp.maximum(a, b) - xp.minimum(a, b), axis=-1, dtype=result)

    return _over_differences(block, A, B, dtype, block_bytes)


def squared_differences(A: Array, B: Array, block_bytes: int | None = None) -> Array:
    """Squared L2 distances (N, M), float64, without expansion; as :func:`manhattan`."""
    xp = array_namespace(A, B)

    def block(a: Array, b: Array) -> Array:
        differences = a - b
        return xp.sum(differences * differences, axis=-1)

    return _over_differences(block, A, B, xp.float64, block_bytes)


def _over_differences(
    block: Callable[[Array, Array], Array], A: Array, B: Array, dtype: Any, block_bytes: int | None
) -> Array:
    """Put together what ``block`` gives for a few rows of A (n, 1, D) and of B (1, m, D)."""
    xp = array_namespace(A, B)
    row_bytes = int(A.shape[1]) * (1 if dtype == xp.uint8 else 8)
    block_bytes = block_bytes or differences_bytes(xp)
    step_B = max(1, min(block_bytes // row_bytes, int(B.shape[0])))
    step_A = max(1, block_bytes // (row_bytes * step_B))

    def distances(rows_A: slice, rows_B: slice) -> Array:
        a, b = xp.astype(A[rows_A, :], dtype), xp.astype(B[rows_B, :], dtype)
        return block(a[:, None, :], b[None, :, :])

    return xp.concat(
        [
            xp.concat([distances(a, b) for a in row_slices(int(A.shape[0]), step_A)], axis=0)
            for b in row_slices(int(B.shape[0]), step_B)
        ],
        axis=1,
    )


class Expansion:
    """Squared distances to B by expansion, with a bound for what it rounds."""

    def __init__(self, B: Array, n_rows: int, metric: str) -> None:
        xp = array_namespace(B)
        self._B, self._n_rows, self._of_units = B, n_rows, metric == "cosine"
        self._centre = _centre(B, max(1, min(CENTRE_SAMPLES, n_rows // 4)))
        if self._of_units:
            self._centre = xp.zeros_like(self._centre)
        norms = [xp.max(xp.vecdot(b, b)) for b in map(self._centred, self._pieces())]
        self._largest_norm = xp.max(xp.stack(norms))
        self._B_is_exact: bool | None = None

    def squares(self, A: Array, B: Array) -> Array:
        """Return squared distances between rows of A and of B, or of a part of it."""
        if self._of_units:
            A, B = unit_rows(A), unit_rows(B)
        return squared_euclidean(A, B, self._centre)

    def unsure(self, A: Array, kth_squares: Array, last_squares: Array) -> Array:
        """Return the rows of A for which a sample beyond the candidates may be as near.

        Parameters
        ----------
        A : array of shape (n, D)
        kth_squares : array of shape (n,)
            The largest squared distance that was found, by differences.
        last_squares : array of shape (n,)
            The largest of the candidates' squares, by expansion: all other samples have larger
            ones.
        """
        xp = array_namespace(A)
        A = self._centred(A)
        sizes = xp.vecdot(A, A) + self._largest_norm
        # Each of the three products is a sum of D terms; twice what they can round.
        rounding = 2 * (int(A.shape[1]) + 8) * float(xp.finfo(xp.float64).eps) * sizes
        unsure = kth_squares + rounding >= last_squares
        # One look for both: whether there is any, and how large the terms are.
        found, size = to_host(xp.stack([xp.astype(xp.any(unsure), xp.float64), xp.max(sizes)]))
        if found and self._is_exact(A, size):
            unsure = xp.zeros_like(unsure)
        return xp.nonzero(unsure)[0]

    def _is_exact(self, A: Array, size: float) -> bool:
        """Tell whether all terms and sums are multiples of UNIT**2 that float64 holds."""
        if 2 * size / UNIT**2 >= 2**53 or not _is_multiple(A):
            return False
        if self._B_is_exact is None:
            self._B_is_exact = all(_is_multiple(self._centred(b)) for b in self._pieces())
        return self._B_is_exact

    def _pieces(self) -> Iterator[Array]:
        # Half a tile: telling whether numbers are multiples takes more temporaries.
        n_rows = int(self._B.shape[0])
        return (self._B[rows, :] for rows in row_slices(n_rows, -(-self._n_rows // 2)))

    def _centred(self, X: Array) -> Array:
        xp = array_namespace(X)
        X = unit_rows(X) if self._of_units else xp.astype(X, xp.float64)
        return X - self._centre


def check_pair(A: Array, B: Array) -> tuple[Array, Array]:
    """Return both as bytes or floats, or raise as :func:`pairwise_distances` says."""
    checked = []
    for name, X in (("A", A), ("B", B)):
        if isinstance(X, Standardized):
            raise TypeError(f"{name} is Standardized; write the samples out: {name}.to_array()")
        if isinstance(X, Streamed):
            raise TypeError(f"{name} is Streamed; upload it whole: gpuclf.to_device({name})")
        xp = array_namespace(X)
        if xp.isdtype(X.dtype, ("integral", "bool")) and X.dtype != xp.uint8:
            X = xp.astype(X, xp.float64)
        is_half = X.dtype == getattr(xp, "float16", None)
        if not (is_half and X.ndim == 2 and 0 not in X.shape):
            check_samples(X, name)
        if X.dtype != xp.uint8 and not _is_finite(X):
            check_finite(X, name)
        checked.append(X)
    array_namespace(A=A, B=B)
    if A.shape[1] != B.shape[1]:
        raise ValueError(
            f"A and B must have the same number of features, got shapes {tuple(A.shape)} and "
            f"{tuple(B.shape)}"
        )
    return checked[0], checked[1]


@np.errstate(over="ignore", invalid="ignore")
def _is_finite(X: Array) -> bool:
    """Tell, for NumPy arrays, whether the sum is finite: it needs no temporary."""
    if not isinstance(X, np.ndarray):
        return True
    return bool(np.isfinite(np.sum(X, dtype=np.float32 if X.dtype == np.float16 else None)))


def metric_named(metric: str) -> str:
    """Return the name in METRICS of a metric, or raise a ValueError if there is none."""
    name = OTHER_NAMES.get(metric, metric) if isinstance(metric, str) else None
    if name not in METRICS:
        raise ValueError(
            "metric must be 'l2' (or 'euclidean'), 'l1' (or 'manhattan') or 'cosine', "
            f"got {metric!r}"
        )
    return str(name)


def check_directions(X: Array, name: str) -> None:
    """Raise a ValueError if a sample is all zeros, so that it has no direction."""
    xp = array_namespace(X)
    step = max(1, differences_bytes(xp) // int(X.shape[1]))
    for rows in row_slices(int(X.shape[0]), step):
        nothing = to_host(xp.all(X[rows, :] == 0, axis=1))
        if nothing.any():
            raise ValueError(
                f"{name}[{rows.start + int(np.argmax(nothing))}] is a zero vector, whose cosine "
                f"distance is not defined: leave such samples out, as by {name}[{name}.any(axis=1)]"
                ", or use metric='euclidean'"
            )


def unit_rows(X: Array) -> Array:
    """Return the samples with length 1, in float64; squares may neither overflow nor vanish."""
    xp = array_namespace(X)
    X = xp.astype(X, xp.float64)
    X = X / xp.max(xp.abs(X), axis=1)[:, None]
    return X / xp.sqrt(xp.vecdot(X, X))[:, None]


def ranking_by(B: Array, metric: str, block_bytes: int | None = None) -> Ranking:
    """Return the function whose values order the samples as their distances do."""
    if metric == "l1":
        return lambda A, B: manhattan(A, B, block_bytes)
    if metric == "cosine":
        return lambda A, B: squared_euclidean(unit_rows(A), unit_rows(B))
    centre = None if B.dtype == array_namespace(B).uint8 else _centre(B)
    return lambda A, B: squared_euclidean(A, B, centre)


def differences_bytes(xp: Any) -> int:
    """Return how many bytes of differences to write out at a time."""
    return CPU_DIFFERENCES_BYTES if xp is np else DEVICE_DIFFERENCES_BYTES


def to_distances(ranks: Array, metric: str) -> Array:
    """Return float64 distances of what :func:`ranking_by` ranks by."""
    xp = array_namespace(ranks)
    ranks = xp.astype(ranks, xp.float64, copy=False)
    if metric == "cosine":
        return ranks / 2
    return xp.sqrt(ranks) if metric == "l2" else ranks


def _centre(B: Array, n_samples: int = CENTRE_SAMPLES) -> Array:
    """Return about the mean, rounded to a power of two near the standard deviation.

    So integers stay integers (or halves, quarters, ...), and their squares exact in float64.
    """
    xp = array_namespace(B)
    sample = B[:: int(B.shape[0]) // n_samples + 1, :]
    if sample.dtype == getattr(xp, "float16", None):
        sample = xp.astype(sample, xp.float32)
    standardized = Standardized.fit(sample)
    grid = 2.0 ** math.floor(math.log2(np.max(to_host(standardized.scale))))
    return xp.round(standardized.mean / grid) * grid


def _is_multiple(X: Array) -> bool:
    xp = array_namespace(X)
    multiples = X / UNIT
    return bool(to_host(xp.all(multiples == xp.round(multiples))))
