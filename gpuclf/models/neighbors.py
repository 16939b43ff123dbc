"""Distances between samples, and the nearest neighbours that they rank.

Bytes are compared in integers: no distance is rounded, so that ties are ties on every machine. The
squared L2 distance is expanded into norms and a product, and BLAS does the product in float32:
pixels relative to 128, multiplied and summed over 1,024 features, stay below 2**24, up to where
float32 holds every integer.

Floats are compared in float64, the expansion relative to the middle of the training samples. What
the expansion still rounds is put right for the neighbours: a few more candidates than asked for
are ranked again by their differences, so that equal samples have distance 0 and tie; where the
rounding could hide a neighbour beyond those candidates, the query is compared with all samples by
differences. Of fractions, libraries may sum the same differences in another order, so that ties
are the same everywhere for bytes and for whole numbers only.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from gpuclf.backend import Array, array_namespace, cpu_workers, to_device, to_host
from gpuclf.dispatch import fusable
from gpuclf.samples.standardized import BYTE_CENTRE, Standardized
from gpuclf.samples.streamed import Streamed
from gpuclf.samples.walk import map_row_blocks, row_slices
from gpuclf.validation import check_finite, check_label_count, check_samples

__all__ = [
    "MEMORY_BUDGET",
    "METRICS",
    "count_votes",
    "cross_validate_k",
    "k_neighbors",
    "knn_vote",
    "manhattan",
    "pairwise_distances",
    "smallest_k",
    "squared_euclidean",
]

METRICS = ("l2", "l1")
MEMORY_BUDGET = 256 << 20
EXACT_FEATURES = 1024  # 1,024 * 128 * 128 = 2**24
SPARE_CANDIDATES = 8
UNIT = 2.0**-8  # whole numbers, quarters, ... are expanded exactly
CENTRE_SAMPLES = 100
# L1 has no product that BLAS could do, only differences that are written out and summed. On a CPU
# they should stay in a core's cache; on a device they should be many.
CPU_DIFFERENCES_BYTES = 256 << 10
DEVICE_DIFFERENCES_BYTES = 16 << 20
DIFFERENCES_AT_ONCE = 4  # as many temporaries of that size
PAIR_BYTES = 32  # its distance, the products that it is made of, and what the selection needs

Callback = Callable[[int, int], object]  # (distances done, of how many)
Ranking = Callable[[Array, Array], Array]


def pairwise_distances(A: Array, B: Array, metric: str = "l2") -> Array:
    r"""Distances between all samples of A and all samples of B.

    .. math::

        \text{l2}: \sqrt{\sum_d (a_{id} - b_{jd})^2}, \qquad \text{l1}: \sum_d |a_{id} - b_{jd}|

    Parameters
    ----------
    A : array of shape (N, D)
    B : array of shape (M, D)
        uint8, float32 or float64; other integers are computed as float64.
    metric : {"l2", "l1"}, default "l2"

    Returns
    -------
    array of shape (N, M), float64
        In the library of A and B. From bytes, and from whole numbers in floats, they are exact
        (l2 up to the root's rounding). From other floats the l2 squares have an error of about
        1e-16 times the squared norms of the centred samples: equal samples may come out 1e-8 of
        their norm apart, and equal distances may differ (:func:`k_neighbors` puts that right).

    Raises
    ------
    TypeError
        If A or B is not an array of real numbers, or they live on different devices.
    ValueError
        If shapes or `metric` do not fit, or A or B has NaN (looked for in NumPy arrays only).

    See Also
    --------
    gpuclf.naive.pairwise_distances_two_loops, gpuclf.naive.pairwise_distances_one_loop
    k_neighbors : the nearest ones, without the whole matrix in memory.

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
    A, B = _check_pair(A, B)
    return _to_distances(_ranking(B, metric)(A, B), metric)


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
    block_bytes = block_bytes or _differences_bytes(xp)
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


@fusable(numpy="nearest.on_cpu:partitioned_smallest_k")
def smallest_k(distances: Array, k: int) -> Array:
    """Columns of the k smallest distances of each row, ordered by (distance, column).

    Parameters
    ----------
    distances : array of shape (N, M)
    k : int
        From 1 to M.

    Returns
    -------
    integer array of shape (N, k)
        Of equal distances, the one with the smaller column comes first.

    Examples
    --------
    >>> import numpy as np
    >>> smallest_k(np.array([[2.0, 0.0, 2.0, 1.0, 0.0]]), k=4)
    array([[1, 4, 3, 0]])
    """
    check_n_neighbors(k, int(distances.shape[1]))
    return array_namespace(distances).argsort(distances, axis=1, stable=True)[:, :k]


def knn_vote(distances: Array, y_train: Array, k: int) -> Array:
    """Label that most of the k nearest training samples have.

    Parameters
    ----------
    distances : array of shape (N, M)
        As :func:`pairwise_distances` gives them.
    y_train : integer array of shape (M,)
    k : int
        From 1 to M. Of equal distances, the training sample with the smaller index is nearer.

    Returns
    -------
    integer array of shape (N,)
        A tied vote goes to the smaller label.

    Raises
    ------
    TypeError
        If `y_train` does not hold integers, or lives on another device.
    ValueError
        If the shapes do not fit or `k` is out of range.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, k-nearest neighbour exercise, with its rule for ties.

    Examples
    --------
    >>> import numpy as np
    >>> knn_vote(np.array([[3.0, 1.0, 2.0, 2.0]]), np.array([0, 2, 1, 0]), k=3)
    array([0])
    """
    if isinstance(y_train, list | tuple):
        y_train = to_device(np.asarray(y_train), like=distances)
    xp = array_namespace(distances=distances, y_train=y_train)
    if distances.ndim != 2 or tuple(y_train.shape) != (distances.shape[1],):
        raise ValueError(
            "distances must have shape (N, M) and y_train (M,), one label for each column, got "
            f"{tuple(distances.shape)} and {tuple(y_train.shape)}"
        )
    if not xp.isdtype(y_train.dtype, "integral"):
        raise TypeError(f"y_train must hold integers, got {y_train.dtype}")
    classes = xp.sort(xp.unique_values(y_train))
    votes = count_votes(_take(y_train, smallest_k(distances, k)), classes)
    return xp.take(classes, xp.argmax(votes, axis=1))


def count_votes(labels: Array, classes: Array) -> Array:
    """Count how often each class occurs in each row: (N, k) labels, (C,) classes -> (N, C)."""
    xp = array_namespace(labels, classes)
    votes = xp.zeros((labels.shape[0], classes.shape[0]), dtype=xp.int64, device=labels.device)
    for j in range(int(labels.shape[1])):
        votes += xp.astype(labels[:, j : j + 1] == classes, xp.int64)
    return votes


def k_neighbors(
    A: Array,
    B: Array,
    k: int,
    metric: str = "l2",
    *,
    memory_budget: int = MEMORY_BUDGET,
    callback: Callback | None = None,
) -> tuple[Array, Array]:
    """Find the k nearest samples of B to each sample of A, in bounded memory.

    Parameters
    ----------
    A : array of shape (N, D)
        The queries; dtypes as for :func:`pairwise_distances`.
    B : array of shape (M, D)
        The training samples.
    k : int
        From 1 to M.
    metric : {"l2", "l1"}, default "l2"
    memory_budget : int, default 256 MiB
        Bytes that temporaries may take, beside the samples and the result: queries and training
        samples are compared in tiles of that size, by fewer threads if it is small.
    callback : callable, optional
        ``callback(done, total)``, called after each tile with the number of distances; from
        several threads, one at a time.

    Returns
    -------
    distances : array of shape (N, k), float64
    indices : array of shape (N, k), int64
        Rows of B, ordered by (distance, index). For bytes, and for integers in floats as far as
        float64 holds the squares, this is the order of the exact distances, on every library. For
        other floats it is the order of the distances that float64 gives by differences; where
        those tie but for rounding, libraries may order them differently.

    Raises
    ------
    TypeError, ValueError
        As :func:`pairwise_distances`; also if `k` is out of range or the budget too small.

    Examples
    --------
    >>> import numpy as np
    >>> training = np.array([[0, 0], [3, 4], [0, 3]], dtype=np.uint8)
    >>> k_neighbors(np.array([[0, 0]], dtype=np.uint8), training, k=2)
    (array([[0., 3.]]), array([[0, 2]]))
    """
    A, B = _check_pair(A, B)
    xp = array_namespace(A)
    (n_queries, n_features), n_training = (int(n) for n in A.shape), int(B.shape[0])
    check_n_neighbors(k, n_training)
    _check_metric(metric)
    exact = A.dtype == B.dtype == xp.uint8
    expanded = metric == "l2" and not exact
    n_candidates = min(k + SPARE_CANDIDATES, n_training) if expanded else k
    tiles = _tiles(n_queries, n_training, n_features, xp, exact, metric, memory_budget)
    expansion = _Expansion(B, tiles.n_training) if expanded else None
    done, lock = 0, threading.Lock()

    def count(n_distances: int) -> None:
        nonlocal done
        if callback is not None:
            with lock:
                done += n_distances
                callback(done, n_queries * n_training)

    def by_differences(A: Array, B: Array) -> Array:
        return xp.sqrt(squared_differences(A, B, tiles.block_bytes))

    def nearest(rows: slice) -> tuple[Array, Array]:
        queries = A[rows, :]
        if expansion is None:
            ranks, indices = nearest_in_tiles(
                queries, B, k, metric, tiles.n_training, tiles.block_bytes, count
            )
            return _to_distances(ranks, metric), indices
        best = _search(queries, B, n_candidates, expansion.squares, tiles.n_training, count)
        found = _ranked_by_differences(queries, B, best[1], k)
        if n_candidates == n_training:
            return found
        chosen = expansion.unsure(queries, found[0][:, -1], best[0][:, -1])
        if chosen.shape[0] == 0:
            return found
        again = _search(
            *(xp.take(queries, chosen, axis=0), B, k, by_differences, tiles.n_training),
            count=lambda n_distances: None,
        )
        return _replaced(found[0], chosen, again[0]), _replaced(found[1], chosen, again[1])

    blocks = map_row_blocks(nearest, n_queries, tiles.n_queries, workers=tiles.workers)
    distances, indices = (xp.concat(parts, axis=0) for parts in zip(*blocks, strict=True))
    return distances, xp.astype(indices, xp.int64, copy=False)


@fusable(cupy="nearest.on_gpu:nearest_of_bytes")
def nearest_in_tiles(
    A: Array, B: Array, k: int, metric: str, tile_training: int, block_bytes: int,
    count: Callable[[int], None],
) -> tuple[Array, Array]:  # fmt: skip
    """Ranks and indices (N, k) of the rows of B that are nearest to those of A, by ranks alone.

    Parameters
    ----------
    A : array of shape (N, D)
    B : array of shape (M, D)
        Bytes, or for "l1" floats: what the expansion of "l2" rounds is not put right here.
    k : int
        From 1 to M.
    metric : {"l2", "l1"}
    tile_training : int
        How many training samples may be compared at a time, at PAIR_BYTES for each pair.
    block_bytes : int
        As in :func:`manhattan`.
    count : callable
        ``count(n)``, called after each tile with its number of distances.

    Returns
    -------
    ranks : array
        The distances, integers for bytes; squares for "l2".
    indices : integer array
        Ordered by (distance, index).
    """
    return _search(A, B, k, _ranking(B, metric, block_bytes), tile_training, count)


def _search(
    A: Array, B: Array, k: int, ranking: Ranking, tile_training: int, count: Callable[[int], None]
) -> tuple[Array, Array]:
    best: tuple[Array, Array] | None = None
    for tile in row_slices(int(B.shape[0]), tile_training):
        ranks = ranking(A, B[tile, :])
        columns = smallest_k(ranks, min(k, tile.stop - tile.start))
        found = _take_from_rows(ranks, columns), columns + tile.start
        best = found if best is None else _merge(best, found, k)
        count((tile.stop - tile.start) * int(A.shape[0]))
    assert best is not None
    return best


def accuracies_of_ks(
    X: Array,
    y: Array,
    X_train: Array,
    y_train: Array,
    ks: Sequence[int],
    metric: str = "l2",
    *,
    memory_budget: int = MEMORY_BUDGET,
    callback: Callback | None = None,
) -> list[float]:
    """Return the accuracy of each k from one search, for the largest k; y is not checked."""
    xp = array_namespace(y, y_train)
    classes = xp.sort(xp.unique_values(y_train))
    _, indices = k_neighbors(
        X, X_train, max(ks), metric, memory_budget=memory_budget, callback=callback
    )
    labels = _take(y_train, indices)
    accuracies = []
    for k in ks:
        predicted = xp.take(classes, xp.argmax(count_votes(labels[:, :k], classes), axis=1))
        accuracies.append(xp.mean(xp.astype(predicted == y, xp.float64)))
    return [float(accuracy) for accuracy in to_host(xp.stack(accuracies))]


def cross_validate_k(
    X: Array,
    y: Array,
    ks: Sequence[int],
    n_folds: int = 5,
    metric: str = "l2",
    *,
    memory_budget: int = MEMORY_BUDGET,
    callback: Callback | None = None,
) -> dict[int, list[float]]:
    """Accuracies of k-nearest neighbours by cross-validation, for several k at once.

    The neighbours are searched once a fold, for the largest k; each smaller k counts the first
    of them.

    Parameters
    ----------
    X : array of shape (N, D)
    y : integer array of shape (N,)
    ks : sequence of int
    n_folds : int, default 5
        The folds are stretches of X in its own order: shuffle X and y first if they are sorted.
    metric : {"l2", "l1"}, default "l2"
    memory_budget : int, default 256 MiB
        As in :func:`k_neighbors`; a copy of the training folds comes on top.
    callback : callable, optional
        ``callback(done, total)``, with the number of distances of all folds.

    Returns
    -------
    dict
        For each k a list of `n_folds` accuracies.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, k-nearest neighbour exercise (``k_to_accuracies``).

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[0.0], [9.0], [1.0], [8.0]]), np.array([0, 1, 0, 1])
    >>> cross_validate_k(X, y, ks=[1, 2], n_folds=2)
    {1: [1.0, 1.0], 2: [0.5, 0.5]}
    """
    n_samples = int(X.shape[0])
    if isinstance(y, list | tuple):
        y = to_device(np.asarray(y), like=X)
    xp = array_namespace(X=X, y=y)
    check_label_count(y, n_samples)
    if not xp.isdtype(y.dtype, "integral"):
        raise TypeError(f"y must hold integers, got {y.dtype}")
    if not isinstance(n_folds, Integral) or not 2 <= n_folds <= n_samples:
        raise ValueError(f"n_folds must be from 2 to the {n_samples} samples, got {n_folds!r}")
    bounds = [n_samples * i // n_folds for i in range(n_folds + 1)]
    folds = [slice(start, stop) for start, stop in pairwise(bounds)]
    smallest_training = n_samples - max(fold.stop - fold.start for fold in folds)
    if len(ks) == 0:
        raise ValueError("ks is empty: pass at least one number of neighbours")
    for k in ks:
        check_n_neighbors(k, smallest_training)
    total = sum((f.stop - f.start) * (n_samples - f.stop + f.start) for f in folds)
    accuracies: dict[int, list[float]] = {int(k): [] for k in ks}
    done = 0
    for fold in folds:
        before_fold, after_fold = slice(0, fold.start), slice(fold.stop, n_samples)
        X_train = xp.concat([X[before_fold, :], X[after_fold, :]], axis=0)
        y_train = xp.concat([y[before_fold], y[after_fold]])
        report = None if callback is None else _offset(callback, done, total)
        found = accuracies_of_ks(
            *(X[fold, :], y[fold], X_train, y_train, list(accuracies), metric),
            memory_budget=memory_budget,
            callback=report,
        )
        done += (fold.stop - fold.start) * int(X_train.shape[0])
        for of_k, accuracy in zip(accuracies.values(), found, strict=True):
            of_k.append(accuracy)
    return accuracies


def check_n_neighbors(k: int, n_training: int) -> None:
    """Raise a ValueError if there are not k neighbours to find."""
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= n_training:
        raise ValueError(
            f"the number of neighbours must be an integer from 1 to the {n_training} training "
            f"samples (n_samples = {n_training}), got {k!r}"
        )


def _check_pair(A: Array, B: Array) -> tuple[Array, Array]:
    checked = []
    for name, X in (("A", A), ("B", B)):
        if isinstance(X, Standardized):
            raise TypeError(f"{name} is Standardized; write the samples out: {name}.to_array()")
        if isinstance(X, Streamed):
            raise TypeError(f"{name} is Streamed; upload it whole: gpuclf.to_device({name})")
        xp = array_namespace(X)
        if xp.isdtype(X.dtype, ("integral", "bool")) and X.dtype != xp.uint8:
            X = xp.astype(X, xp.float64)
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
    return not isinstance(X, np.ndarray) or bool(np.isfinite(np.sum(X, dtype=np.float64)))


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric must be 'l2' or 'l1', got {metric!r}")


def _ranking(B: Array, metric: str, block_bytes: int | None = None) -> Ranking:
    """Return the function whose values order the samples as their distances do."""
    _check_metric(metric)
    if metric == "l1":
        return lambda A, B: manhattan(A, B, block_bytes)
    centre = None if B.dtype == array_namespace(B).uint8 else _centre(B)
    return lambda A, B: squared_euclidean(A, B, centre)


def _differences_bytes(xp: Any) -> int:
    return CPU_DIFFERENCES_BYTES if xp is np else DEVICE_DIFFERENCES_BYTES


def _to_distances(ranks: Array, metric: str) -> Array:
    xp = array_namespace(ranks)
    ranks = xp.astype(ranks, xp.float64, copy=False)
    return xp.sqrt(ranks) if metric == "l2" else ranks


def _centre(B: Array, n_samples: int = CENTRE_SAMPLES) -> Array:
    """Return about the mean, rounded to a power of two near the standard deviation.

    So integers stay integers (or halves, quarters, ...), and their squares exact in float64.
    """
    standardized = Standardized.fit(B[:: int(B.shape[0]) // n_samples + 1, :])
    grid = 2.0 ** math.floor(math.log2(np.max(to_host(standardized.scale))))
    return array_namespace(B).round(standardized.mean / grid) * grid


class _Expansion:
    """Squared distances to B by expansion, with a bound for what it rounds."""

    def __init__(self, B: Array, n_rows: int) -> None:
        xp = array_namespace(B)
        self._B, self._n_rows = B, n_rows
        self._centre = _centre(B, max(1, min(CENTRE_SAMPLES, n_rows // 4)))
        norms = [xp.max(xp.vecdot(b, b)) for b in map(self._centred, self._pieces())]
        self._largest_norm = xp.max(xp.stack(norms))
        self._B_is_exact: bool | None = None

    def squares(self, A: Array, B: Array) -> Array:
        return squared_euclidean(A, B, self._centre)

    def unsure(self, A: Array, kth_distances: Array, last_squares: Array) -> Array:
        """Return the rows of A for which a sample beyond the candidates may be as near.

        Parameters
        ----------
        A : array of shape (n, D)
        kth_distances : array of shape (n,)
            The largest distance that was found, by differences.
        last_squares : array of shape (n,)
            The largest of the candidates' squares, by expansion: all other samples have larger
            ones.
        """
        xp = array_namespace(A)
        A = self._centred(A)
        sizes = xp.vecdot(A, A) + self._largest_norm
        # Each of the three products is a sum of D terms; twice what they can round.
        rounding = 2 * (int(A.shape[1]) + 8) * float(xp.finfo(xp.float64).eps) * sizes
        unsure = kth_distances * kth_distances + rounding >= last_squares
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
        return xp.astype(X, xp.float64) - self._centre


def _is_multiple(X: Array) -> bool:
    xp = array_namespace(X)
    multiples = X / UNIT
    return bool(to_host(xp.all(multiples == xp.round(multiples))))


@dataclass(frozen=True)
class _Tiles:
    """How many queries are compared with how many training samples at a time, by each worker."""

    n_queries: int
    n_training: int
    workers: int
    block_bytes: int


def _tiles(
    n_queries: int,
    n_training: int,
    n_features: int,
    xp: Any,
    exact: bool,
    metric: str,
    memory_budget: int,
) -> _Tiles:
    """Choose tiles that keep within the memory budget.

    A pair takes its distance, the products that it is made of, and what the selection needs. A
    sample is converted to float64; bytes are converted to float32, some features at a time. A
    square tile converts least. Differences, where they are written out, take up to half: nothing
    else is converted then, and the selection, for half of what a pair takes, comes later.
    """
    pair = PAIR_BYTES
    row = 2 * n_features + 16 * min(n_features, EXACT_FEATURES) if exact else 16 * n_features
    differences = n_features * (1 if exact else 8)
    blocks = 0 if metric == "l2" and exact else DIFFERENCES_AT_ONCE
    least = pair + 2 * row + blocks * differences
    if memory_budget < least:
        raise ValueError(
            f"memory_budget={memory_budget} bytes is too small for samples of {n_features} "
            f"features; at least {least} are needed"
        )
    workers = min(cpu_workers() if xp is np else 1, n_queries, memory_budget // least)
    memory = memory_budget // workers
    block_bytes = max(
        differences,
        min(
            _differences_bytes(xp),
            (memory - least) // (2 * DIFFERENCES_AT_ONCE),
            n_queries * n_training * differences,
        ),
    )
    side = int((math.sqrt(row**2 + pair * memory) - row) / pair)
    tile_queries = max(1, min(-(-n_queries // workers), side))
    tile_training = (memory - tile_queries * row) // (tile_queries * pair + row)
    return _Tiles(tile_queries, tile_training, workers, block_bytes)


def _merge(best: tuple[Array, Array], found: tuple[Array, Array], k: int) -> tuple[Array, Array]:
    # The columns of `best` come first and have the smaller indices: ties keep their order.
    xp = array_namespace(*best)
    ranks, indices = (xp.concat(pair, axis=1) for pair in zip(best, found, strict=True))
    order = smallest_k(ranks, min(k, int(ranks.shape[1])))
    return _take_from_rows(ranks, order), _take_from_rows(indices, order)


def _ranked_by_differences(A: Array, B: Array, candidates: Array, k: int) -> tuple[Array, Array]:
    """Return L2 distances and indices of the k nearest candidates, without expansion."""
    xp = array_namespace(A)
    candidates = xp.sort(candidates, axis=1)
    A = xp.astype(A, xp.float64)
    squares = []
    for j in range(int(candidates.shape[1])):
        difference = A - xp.astype(xp.take(B, candidates[:, j], axis=0), xp.float64)
        squares.append(xp.sum(difference * difference, axis=1))
    ranks = xp.sqrt(xp.stack(squares, axis=1))
    order = smallest_k(ranks, k)
    return _take_from_rows(ranks, order), _take_from_rows(candidates, order)


def _take(values: Array, indices: Array) -> Array:
    xp = array_namespace(values, indices)
    return xp.reshape(xp.take(values, xp.reshape(indices, (-1,))), indices.shape)


def _take_from_rows(values: Array, columns: Array) -> Array:
    xp = array_namespace(values, columns)
    starts = xp.arange(values.shape[0], dtype=columns.dtype, device=values.device)
    return _take(xp.reshape(values, (-1,)), columns + starts[:, None] * values.shape[1])


def _replaced(values: Array, rows: Array, replacements: Array) -> Array:
    """Return a copy in which some rows are others; the standard has no assignment by index."""
    xp = array_namespace(values)
    kept = xp.arange(values.shape[0], dtype=rows.dtype, device=values.device)
    sources = xp.concat([rows, kept])  # of equals, the replacement comes first
    order = xp.argsort(sources, stable=True)
    first = xp.searchsorted(xp.take(sources, order), kept)
    return xp.take(xp.concat([replacements, values], axis=0), xp.take(order, first), axis=0)


def _offset(callback: Callback, before: int, total: int) -> Callback:
    return lambda done, _: callback(before + done, total)
