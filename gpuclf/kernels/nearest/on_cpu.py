"""What NumPy does faster for neighbours: partial selection, and compiled distances.

What is compiled needs numba (the ``fast`` extra), and for bytes a processor with instructions for
them; numba is imported when there is first enough to do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from gpuclf.kernels.building.machine_code import numba_is_usable
from gpuclf.models.neighbors import check_n_neighbors

__all__ = [
    "binned_votes",
    "compiled_manhattan",
    "compiled_nearest_of_floats",
    "compiled_squared_euclidean",
    "partitioned_smallest_k",
]

WORTH_COMPILED = 1 << 28  # numbers to compare; for less, importing numba would cost more
WORTH_KEEPING = 1 << 24  # numbers of training samples, which more than one query is compared with


def partitioned_smallest_k(distances: Any, k: int) -> Any:
    """Compute :func:`gpuclf.models.neighbors.smallest_k` by selecting before sorting.

    ``argpartition`` alone would pick any of the distances that tie with the k-th.
    """
    check_n_neighbors(k, distances.shape[1])
    kth = np.partition(distances, k - 1, axis=1)[:, k - 1 : k]
    chosen = distances <= kth
    surplus = np.count_nonzero(chosen, axis=1) - k
    if (surplus < 0).any():
        return NotImplemented  # NaN
    tied = np.flatnonzero(surplus)
    if tied.size:
        last = distances[tied] == kth[tied]
        spare = np.count_nonzero(last, axis=1) - surplus[tied]
        chosen[tied] &= ~last | (np.cumsum(last, axis=1) <= spare[:, None])
    columns = np.flatnonzero(chosen).reshape(-1, k) % distances.shape[1]
    order = np.argsort(np.take_along_axis(distances, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def binned_votes(labels: Any, classes: Any, weights: Any = None) -> Any:
    """Compute :func:`gpuclf.models.votes.count_votes` in one pass over the labels.

    The bins are filled in the order of the neighbours, which is that of the shared body's sums.
    """
    shape = len(labels), len(classes)
    bins = np.searchsorted(classes, labels) + shape[1] * np.arange(shape[0])[:, None]
    flat = None if weights is None else weights.ravel()
    return np.bincount(bins.ravel(), flat, shape[0] * shape[1]).reshape(shape)


def compiled_squared_euclidean(A: Any, B: Any, centre: Any = None) -> Any:
    """Compute :func:`gpuclf.models.neighbors.squared_euclidean` of bytes with products of bytes."""
    if A.shape[1] * 255**2 >= 2**31 or not _bytes_worth_compiled(A, B):
        return NotImplemented
    compiled = _compiled()
    return NotImplemented if compiled is None else compiled.squared_euclidean(A, B)


def compiled_manhattan(A: Any, B: Any, block_bytes: int | None = None) -> Any:
    """Compute :func:`gpuclf.models.neighbors.manhattan` of bytes with instructions for it."""
    if A.shape[1] * 255 >= 2**31 or not _bytes_worth_compiled(A, B):
        return NotImplemented
    compiled = _compiled()
    return NotImplemented if compiled is None else compiled.manhattan(A, B)


def compiled_nearest_of_floats(
    A: Any, B: Any, k: int, metric: str, memory_budget: int, count: Callable[[int], None]
) -> Any:
    """Compute :func:`gpuclf.models.neighbors.nearest_of_floats` in float32, with a bound."""
    if not _worth_compiled(A, B) or _compiled() is None:
        return NotImplemented
    from gpuclf.kernels.nearest.bounded import nearest_of_floats

    return nearest_of_floats(A, B, k, metric, memory_budget, count)


def _worth_compiled(A: Any, B: Any) -> bool:
    # By the shapes alone, not by what was asked before: the same call always has the same bits.
    return bool(A.size * len(B) >= WORTH_COMPILED or B.size >= WORTH_KEEPING)


def _bytes_worth_compiled(A: Any, B: Any) -> bool:
    return A.dtype == B.dtype == np.uint8 and _worth_compiled(A, B)


@cache
def _compiled() -> Any:
    if not numba_is_usable():
        return None
    from gpuclf.kernels.nearest import loops as compiled_distances

    return compiled_distances
