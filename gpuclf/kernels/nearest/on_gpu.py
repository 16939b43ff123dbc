"""Distances between bytes and the nearest neighbours on a CUDA device.

See neighbors.cu and merge_nearest.cu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import MAX_ROWS, VECTOR, ceil_div
from gpuclf.models.neighbors import PAIR_BYTES
from gpuclf.samples.walk import row_slices

__all__ = ["manhattan_of_bytes", "nearest_of_bytes", "squared_euclidean_of_bytes"]

BLOCK_ROWS, BLOCK_COLUMNS, STAGES, CHUNK, SIDE, THREADS = cuda.numbers_in(
    "neighbors.cu", "BLOCK_ROWS", "BLOCK_COLUMNS", "STAGES", "CHUNK", "SIDE", "THREADS"
)
PRODUCT_SHARED_BYTES = STAGES * (BLOCK_ROWS + BLOCK_COLUMNS) * CHUNK
(MERGE_WARPS,) = cuda.numbers_in("merge_nearest.cu", "MERGE_WARPS")
MAX_NEIGHBORS = 128
MAX_COLUMNS = 1 << 22  # of a tile: the grid's second axis
DISTANCE_BYTES = 4
LARGEST = {"l2": 255**2, "l1": 255}  # what one feature adds to a distance


def squared_euclidean_of_bytes(A: Any, B: Any, centre: Any = None) -> Any:
    """Compute :func:`gpuclf.models.neighbors.squared_euclidean` of bytes in three launches."""
    return _pairs(A, B, "l2")


def manhattan_of_bytes(A: Any, B: Any, block_bytes: int | None = None) -> Any:
    """Compute :func:`gpuclf.models.neighbors.manhattan` of bytes in one launch."""
    return _pairs(A, B, "l1")


def nearest_of_bytes(
    A: Any, B: Any, k: int, metric: str, tile_training: int, block_bytes: int,
    count: Callable[[int], None], kept: dict[Any, Any] | None = None,
) -> Any:  # fmt: skip
    """Compute :func:`gpuclf.models.neighbors.nearest_in_tiles` in two launches a tile.

    The norms of a tile of B are a third launch for the first queries, and are kept for the others.
    """
    xp = array_namespace(A=A, B=B)  # of one device
    if k > MAX_NEIGHBORS or not _fits(A, B, metric):
        return NotImplemented
    kept = {} if kept is None else kept
    (n_queries, _), n_training = A.shape, B.shape[0]
    # Of the bytes that a pair may take, a distance is all that is kept; unless a tile is copied.
    per_pair = PAIR_BYTES // DISTANCE_BYTES if _has_vectors(B) else 1
    step = min(n_training, MAX_COLUMNS, tile_training * per_pair)
    ranks, indices = (cuda.empty(A, n_queries, k, dtype="int32") for _ in range(2))  # so far
    A = _padded(A)
    norms = _norms(A) if metric == "l2" else None
    memory = cuda.empty(A, n_queries * step, dtype="int32")
    for tile in row_slices(n_training, step):
        n_columns = tile.stop - tile.start
        distances = xp.reshape(memory[: n_queries * n_columns], (n_queries, n_columns))
        columns = _padded(B[tile, :])
        if norms is not None and (tile.start, tile.stop) not in kept:
            kept[tile.start, tile.stop] = _norms(columns)
        _write_distances(A, columns, norms, kept.get((tile.start, tile.stop)), distances)
        cuda.launch(
            "merge_nearest.cu", {"SLOTS": ceil_div(k, 32)}, "merge_nearest",
            ceil_div(n_queries, MERGE_WARPS), 32 * MERGE_WARPS, distances, ranks, indices,
            n_queries, n_columns, tile.start, k,
        )  # fmt: skip
        count(n_columns * n_queries)
    return ranks, xp.astype(indices, xp.int64)


def _pairs(A: Any, B: Any, metric: str) -> Any:
    array_namespace(A=A, B=B)  # of one device
    if not _fits(A, B, metric) or B.shape[0] > MAX_COLUMNS:
        return NotImplemented
    distances = cuda.empty(A, A.shape[0], B.shape[0], dtype="int32")
    A, B = _padded(A), _padded(B)
    norms_A, norms_B = (_norms(A), _norms(B)) if metric == "l2" else (None, None)
    _write_distances(A, B, norms_A, norms_B, distances)
    return distances


def _write_distances(A: Any, B: Any, norms_A: Any, norms_B: Any, distances: Any) -> None:
    """Fill `distances` with squares, or with L1 distances if the norms are None."""
    name, *tile, shared_bytes = "absolute_distances", SIDE, SIDE, 0
    arrays = (A, B) if norms_A is None else (A, B, norms_A, norms_B)
    if norms_A is not None:
        name = "squared_distances"
        limits = cuda.device_limits(A)
        if limits.capability >= cuda.MIN_CAPABILITY and limits.shared_bytes >= PRODUCT_SHARED_BYTES:
            name, shared_bytes = "multiply_bytes", PRODUCT_SHARED_BYTES
            tile = [BLOCK_ROWS, BLOCK_COLUMNS]
    cuda.launch(
        "neighbors.cu", {}, name, tuple(map(ceil_div, distances.shape, tile)), THREADS, *arrays,
        distances, *distances.shape, A.shape[1], shared_bytes=shared_bytes,
    )  # fmt: skip


def _norms(X: Any) -> Any:
    norms = cuda.empty(X, X.shape[0], dtype="uint32")
    n_blocks = ceil_div(X.shape[0], THREADS // 32)  # a warp for a row
    cuda.launch("neighbors.cu", {}, "squared_norms", n_blocks, THREADS, X, norms, *X.shape)
    return norms


def _fits(A: Any, B: Any, metric: str) -> bool:
    return (
        A.ndim == B.ndim == 2
        and A.dtype.name == B.dtype.name == "uint8"
        and 0 not in (*A.shape, *B.shape)
        and max(A.shape[0], B.shape[0]) < MAX_ROWS
        and A.shape[1] * LARGEST[metric] < 2**31
    )


def _has_vectors(X: Any) -> bool:
    return bool(X.shape[1] % VECTOR == cuda.address(X) % VECTOR == 0 and X.flags.c_contiguous)


def _padded(X: Any) -> Any:
    """Return X, or a copy, with rows of whole vectors at addresses that vectors can have."""
    if _has_vectors(X):
        return X
    xp = array_namespace(X)
    spare = xp.zeros((X.shape[0], -X.shape[1] % VECTOR), dtype=xp.uint8, device=X.device)
    return cuda.contiguous(xp.concat([X, spare], axis=1))
