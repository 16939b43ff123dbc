"""The nearest neighbours of samples, searched in bounded memory, and their votes.

For floats, the distances that L2 ranks by are rounded (:mod:`gpuclf.models.distances`). That is
put right for the neighbours: a few more candidates than asked for are ranked again by their
differences, so that equal samples have distance 0 and tie; where the rounding could hide
a neighbour beyond those candidates, the query is compared with all samples by differences.
On NumPy, with numba, products in float32 and a bound of their error do (kernels/nearest).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from gpuclf.arrays import Array, array_namespace, library_name, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cpu import cpu_workers
from gpuclf.devices.cupy import free_device_bytes, on_its_device
from gpuclf.dispatch import fusable
from gpuclf.models.distances import (
    EXACT_FEATURES,
    Expansion,
    Ranking,
    check_directions,
    check_pair,
    differences_bytes,
    metric_named,
    ranking_by,
    squared_differences,
    to_distances,
    unit_rows,
)
from gpuclf.models.votes import count_votes
from gpuclf.samples.walk import map_row_blocks, row_slices
from gpuclf.validation import check_label_count

__all__ = [
    "MEMORY_BUDGET",
    "cross_validate_k",
    "k_neighbors",
    "knn_vote",
    "smallest_k",
]

MEMORY_BUDGET = 256 << 20
GPU_MEMORY_BUDGET = 2 << 30  # of bytes, whose distances are exact however they are tiled
SPARE_CANDIDATES = 8
DIFFERENCES_AT_ONCE = 4  # temporaries of `differences_bytes`
PAIR_BYTES = 32  # its distance, the products that it is made of, and what the selection needs

Callback = Callable[[int, int], object]  # (distances done, of how many)


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


@on_its_device
def knn_vote(distances: Array, y_train: Array, k: int) -> Array:
    """Label that most of the k nearest training samples have.

    Parameters
    ----------
    distances : array of shape (N, M)
        As :func:`gpuclf.pairwise_distances` gives them.
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
    votes = count_votes(take_entries(y_train, smallest_k(distances, k)), classes)
    return xp.take(classes, xp.argmax(votes, axis=1))


@on_its_device
def without_self(distances: Array, indices: Array) -> tuple[Array, Array]:
    """Leave each sample out of its own neighbours: (N, k + 1) of N samples -> (N, k).

    A sample that is not among them has as many equal ones before it; then the last is left out.
    """
    xp = array_namespace(distances, indices)
    n, k = indices.shape[0], int(indices.shape[1]) - 1
    own = xp.arange(n, dtype=indices.dtype, device=indices.device)[:, None]
    places = xp.arange(k, dtype=indices.dtype, device=indices.device)
    behind = xp.astype(
        xp.cumulative_sum(xp.astype(indices == own, xp.int64), axis=1), indices.dtype
    )
    columns = places + behind[:, :-1]
    return take_from_rows(distances, columns), take_from_rows(indices, columns)


@on_its_device
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
        The queries; dtypes as for :func:`gpuclf.pairwise_distances`.
    B : array of shape (M, D)
        The training samples.
    k : int
        From 1 to M.
    metric : {"l2", "l1", "cosine"}, default "l2"
        "euclidean" and "manhattan" are other names of the first two.
    memory_budget : int, default 256 MiB
        Bytes that temporaries may take, beside the samples and the result: queries and training
        samples are compared in tiles of that size, by fewer threads if it is small. If memory runs
        out, it is halved. On a GPU the default is a quarter of what is free, up to 2 GiB, for
        samples of bytes.
    callback : callable, optional
        ``callback(done, total)``, called after each tile with the number of distances; from
        several threads, one at a time.

    Returns
    -------
    distances : array of shape (N, k), float64
    indices : array of shape (N, k), int64
        Rows of B, ordered by (distance, index). For bytes, and for integers in floats as far as
        float64 holds the squares, this is the order of the exact distances, on every library. For
        other floats and for cosines it is the order of the distances that float64 gives by
        differences; where those tie but for rounding, another library, or another k, may order
        them differently.

    Raises
    ------
    TypeError, ValueError
        As :func:`gpuclf.pairwise_distances`; also if `k` is out of range or the budget too small.
    MemoryError
        If there is no room for the smallest tiles either.

    Examples
    --------
    >>> import numpy as np
    >>> training = np.array([[0, 0], [3, 4], [0, 3]], dtype=np.uint8)
    >>> k_neighbors(np.array([[0, 0]], dtype=np.uint8), training, k=2)
    (array([[0., 3.]]), array([[0, 2]]))
    """
    A, B = check_pair(A, B)
    check_n_neighbors(k, int(B.shape[0]))
    metric = metric_named(metric)
    if metric == "cosine":
        for name, X in (("A", A), ("B", B)):
            check_directions(X, name)
    return nearest_neighbors(A, B, int(k), metric, memory_budget, callback)


def nearest_neighbors(
    A: Array, B: Array, k: int, metric: str, memory_budget: int, callback: Callback | None
) -> tuple[Array, Array]:
    """Return what :func:`k_neighbors` returns of samples that are checked already."""
    xp = array_namespace(A)
    n_queries, n_training = int(A.shape[0]), int(B.shape[0])
    of_bytes = A.dtype == B.dtype == xp.uint8 and metric != "cosine"
    if of_bytes and memory_budget == MEMORY_BUDGET and library_name(A) == "cupy":
        free = free_device_bytes(A) or 0
        memory_budget = max(memory_budget, min(GPU_MEMORY_BUDGET, free // 4))
    nearest = _nearest_of_bytes if of_bytes else nearest_of_floats
    given, smallest = memory_budget, _least_memory(*_bytes_of(A, B, metric))
    lock = threading.Lock()
    while True:
        done = 0

        def count(n_distances: int) -> None:
            nonlocal done
            if callback is not None:
                with lock:
                    done += n_distances
                    callback(done, n_queries * n_training)

        try:
            return nearest(A, B, k, metric, memory_budget, count)
        except MemoryError as error:
            if memory_budget // 2 < smallest:
                raise MemoryError(
                    f"memory ran out ({error}), although memory_budget={given} was halved to "
                    f"{memory_budget}: delete other arrays, or end other programs that use the "
                    "memory; fewer queries at once have a smaller result"
                ) from error
        # Outside the handler, whose error would keep alive what the failed attempt held.
        memory_budget //= 2


def _nearest_of_bytes(
    A: Array, B: Array, k: int, metric: str, memory_budget: int, count: Callable[[int], None]
) -> tuple[Array, Array]:
    tiles = _tiles(A, B, metric, memory_budget)
    kept: dict[Any, Array] = {}

    def nearest(rows: slice) -> tuple[Array, Array]:
        ranks, indices = nearest_in_tiles(
            A[rows, :], B, k, metric, tiles.n_training, tiles.block_bytes, count, kept
        )
        return to_distances(ranks, metric), indices

    return _in_blocks(nearest, A, tiles)


@fusable(numpy="nearest.on_cpu:compiled_nearest_of_floats")
def nearest_of_floats(
    A: Array, B: Array, k: int, metric: str, memory_budget: int, count: Callable[[int], None]
) -> tuple[Array, Array]:
    """Distances and indices as :func:`k_neighbors`, of floats or by cosine; nothing is checked.

    Parameters
    ----------
    A : array of shape (N, D)
    B : array of shape (M, D)
    k : int
        From 1 to M.
    metric : {"l2", "l1", "cosine"}
    memory_budget : int
    count : callable
        ``count(n)``, called after each tile with its number of distances.
    """
    xp, n_training = array_namespace(A, B), int(B.shape[0])
    tiles = _tiles(A, B, metric, memory_budget)
    if metric == "l1":
        ranking = ranking_by(B, metric, tiles.block_bytes)
        return _in_blocks(
            lambda rows: _search(A[rows, :], B, k, ranking, tiles.n_training, count), A, tiles
        )
    n_candidates = min(k + SPARE_CANDIDATES, n_training)
    expansion = Expansion(B, tiles.n_training, metric)

    def by_differences(A: Array, B: Array) -> Array:
        if metric == "cosine":
            A, B = unit_rows(A), unit_rows(B)
        return to_distances(squared_differences(A, B, tiles.block_bytes), metric)

    def nearest(rows: slice) -> tuple[Array, Array]:
        queries = A[rows, :]
        best = _search(queries, B, n_candidates, expansion.squares, tiles.n_training, count)
        found = _ranked_by_differences(queries, B, best[1], k, metric)
        if n_candidates == n_training:
            return found
        last = found[0][:, -1]
        squares = 2 * last if metric == "cosine" else last * last
        chosen = expansion.unsure(queries, squares, best[0][:, -1])
        if chosen.shape[0] == 0:
            return found
        again = _search(
            *(xp.take(queries, chosen, axis=0), B, k, by_differences, tiles.n_training),
            count=lambda n_distances: None,
        )
        return _replaced(found[0], chosen, again[0]), _replaced(found[1], chosen, again[1])

    return _in_blocks(nearest, A, tiles)


def _in_blocks(
    nearest: Callable[[slice], tuple[Array, Array]], A: Array, tiles: _Tiles
) -> tuple[Array, Array]:
    xp = array_namespace(A)
    blocks = map_row_blocks(nearest, int(A.shape[0]), tiles.n_queries, workers=tiles.workers)
    distances, indices = (xp.concat(parts, axis=0) for parts in zip(*blocks, strict=True))
    return distances, xp.astype(indices, xp.int64, copy=False)


@fusable(cupy="nearest.on_gpu:nearest_of_bytes")
def nearest_in_tiles(
    A: Array, B: Array, k: int, metric: str, tile_training: int, block_bytes: int,
    count: Callable[[int], None], kept: dict[Any, Array] | None = None,
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
        As in :func:`gpuclf.models.distances.manhattan`.
    count : callable
        ``count(n)``, called after each tile with its number of distances.
    kept : dict, optional
        Where a version of this function keeps what it knows of B for the next queries. B must not
        change as long as it is passed.

    Returns
    -------
    ranks : array
        The distances, integers for bytes; squares for "l2".
    indices : integer array
        Ordered by (distance, index).
    """
    return _search(A, B, k, ranking_by(B, metric, block_bytes), tile_training, count)


def _search(
    A: Array, B: Array, k: int, ranking: Ranking, tile_training: int, count: Callable[[int], None]
) -> tuple[Array, Array]:
    best: tuple[Array, Array] | None = None
    for tile in row_slices(int(B.shape[0]), tile_training):
        ranks = ranking(A, B[tile, :])
        columns = smallest_k(ranks, min(k, tile.stop - tile.start))
        found = take_from_rows(ranks, columns), columns + tile.start
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
    labels = take_entries(y_train, indices)
    accuracies = []
    for k in ks:
        predicted = xp.take(classes, xp.argmax(count_votes(labels[:, :k], classes), axis=1))
        accuracies.append(xp.mean(xp.astype(predicted == y, xp.float64)))
    return [float(accuracy) for accuracy in to_host(xp.stack(accuracies))]


@on_its_device
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


def check_n_neighbors(k: int, n_training: int, which: str = "training samples") -> None:
    """Raise a ValueError if there are not k neighbours to find."""
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= n_training:
        raise ValueError(
            f"the number of neighbours must be an integer from 1 to the {n_training} {which} "
            f"(n_samples = {n_training}), got {k!r}"
        )


@dataclass(frozen=True)
class _Tiles:
    """How many queries are compared with how many training samples at a time, by each worker."""

    n_queries: int
    n_training: int
    workers: int
    block_bytes: int


def _bytes_of(A: Array, B: Array, metric: str) -> tuple[int, int, int]:
    """Return what converting a sample takes, its differences written out, and how many of those.

    A sample is converted to float64, for cosines in two steps; bytes are converted to float32, some
    features at a time.
    """
    xp, n_features = array_namespace(A, B), int(A.shape[1])
    exact = A.dtype == B.dtype == xp.uint8 and metric != "cosine"
    if exact:
        row = 2 * n_features + 16 * min(n_features, EXACT_FEATURES)
    else:
        row = (32 if metric == "cosine" else 16) * n_features
    return (
        row,
        n_features * (1 if exact else 8),
        0 if metric == "l2" and exact else DIFFERENCES_AT_ONCE,
    )


def _least_memory(row: int, differences: int, blocks: int) -> int:
    return PAIR_BYTES + 2 * row + blocks * differences


def _tiles(A: Array, B: Array, metric: str, memory_budget: int) -> _Tiles:
    """Choose tiles that keep within the memory budget.

    A pair takes its distance, the products that it is made of, and what the selection needs. A
    square tile converts least. Differences, where they are written out, take up to half: nothing
    else is converted then, and the selection, for half of what a pair takes, comes later.
    """
    xp, pair = array_namespace(A, B), PAIR_BYTES
    n_queries, n_training = int(A.shape[0]), int(B.shape[0])
    row, differences, blocks = _bytes_of(A, B, metric)
    least = _least_memory(row, differences, blocks)
    if memory_budget < least:
        raise ValueError(
            f"memory_budget={memory_budget} bytes is too small for samples of {A.shape[1]} "
            f"features; at least {least} are needed"
        )
    workers = min(cpu_workers() if xp is np else 1, n_queries, memory_budget // least)
    memory = memory_budget // workers
    block_bytes = max(
        differences,
        min(
            differences_bytes(xp),
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
    return take_from_rows(ranks, order), take_from_rows(indices, order)


def _ranked_by_differences(
    A: Array, B: Array, candidates: Array, k: int, metric: str
) -> tuple[Array, Array]:
    """Return distances and indices of the k nearest candidates, without expansion."""
    xp = array_namespace(A)

    def floats(X: Array) -> Array:
        return unit_rows(X) if metric == "cosine" else xp.astype(X, xp.float64)

    candidates = xp.sort(candidates, axis=1)
    A = floats(A)
    squares = []
    for j in range(int(candidates.shape[1])):
        difference = A - floats(xp.take(B, candidates[:, j], axis=0))
        squares.append(xp.sum(difference * difference, axis=1))
    distances = to_distances(xp.stack(squares, axis=1), metric)
    order = smallest_k(distances, k)
    return take_from_rows(distances, order), take_from_rows(candidates, order)


def take_entries(values: Array, indices: Array) -> Array:
    xp = array_namespace(values, indices)
    return xp.reshape(xp.take(values, xp.reshape(indices, (-1,))), indices.shape)


def take_from_rows(values: Array, columns: Array) -> Array:
    xp = array_namespace(values, columns)
    starts = xp.arange(values.shape[0], dtype=columns.dtype, device=values.device)
    return take_entries(xp.reshape(values, (-1,)), columns + starts[:, None] * values.shape[1])


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
