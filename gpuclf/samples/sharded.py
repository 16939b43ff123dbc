"""Samples that no one machine holds: the chunks of a dask array, computed with where they lie.

What is summed is summed here, chunk after chunk in the order of the rows, so that results depend on
the chunks and not on who holds them (:mod:`gpuclf.samples.holders`). The same chunks can lie in
this process, as a list of arrays: that needs no dask, and gives the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from gpuclf.samples.holders import InProcess, OnCluster, Place

__all__ = ["Sharded", "gathered", "is_dask"]

DTYPES = ("uint8", "float16", "float32", "float64")
TAKEN_BY = (
    "fit, predict and score of SoftmaxClassifier and TwoLayerNetClassifier with solver='lbfgs', "
    "fit of KNeighborsClassifier, Standardized.fit and gpuclf.training.train_lbfgs take it"
)


class Sharded:
    """Samples on the workers of a dask cluster, for what is a sum over samples, or a nearest one.

    Softmax regression and the two-layer net with ``solver="lbfgs"``, their ``predict`` and
    ``score``, k-nearest neighbours and ``Standardized.fit`` take them as X: parameters and labels
    travel, samples do not. Nothing is loaded before the first of these, and then it stays until
    :meth:`release`, or until there is no reference left.

    Parameters
    ----------
    X : dask array of shape (N, D), or list of NumPy arrays
        uint8, float16, float32 or float64; cut between samples only. A list is computed with in
        this process, chunk after chunk, without dask.
    backend : {"auto", "numpy", "cupy"}, default "auto"
        Where each worker computes; "auto" asks on the worker.
    timeout : float, default 60
        Seconds to wait for a worker where there is none.

    Attributes
    ----------
    lengths : tuple of int
        Samples of each chunk.
    shape, ndim, dtype
        As of the array that it stands for.

    Raises
    ------
    TypeError, ValueError
        If X is not such an array; the message has the remedy.

    Notes
    -----
    Labels and weights, as arrays of NumPy or dask of N values, are gathered in this process.
    Results are those of the same chunks in one process, bit for bit, where the workers compute
    with as many threads (`nthreads` of dask's worker) on the same kind of processor; how many
    workers there are does not matter. Each chunk gives a loss and a gradient of its own, so a
    chunk should have thousands of samples: 100 MB to 1 GB. A worker needs memory for its chunks
    and about 300 MB. docs/scaling.md says what is worth it.

    Examples
    --------
    >>> import gpuclf
    >>> X, y = gpuclf.datasets.make_synthetic(300)
    >>> shards = Sharded([X[:100], X[100:]])  # or a dask array
    >>> model = gpuclf.SoftmaxClassifier(solver="lbfgs", max_iter=100).fit(shards, y)
    >>> bool(model.score(shards, y) == model.score(X, y))
    True
    """

    ndim = 2
    device = "cpu"  # of what comes back

    def __init__(self, X: Any, backend: str = "auto", *, timeout: float = 60.0) -> None:
        if backend not in ("auto", "numpy", "cupy"):
            raise ValueError(f"backend must be 'auto', 'numpy' or 'cupy', got {backend!r}")
        self.lengths, n_features, self.dtype = _checked(X)
        self.shape = (sum(self.lengths), n_features)
        self._starts = tuple(accumulate(self.lengths, initial=0))
        self._beside: tuple[Any, ...] = ()
        self._lock = threading.RLock()
        make = OnCluster if is_dask(X) else InProcess
        places = [
            Place(number, start, (n, n_features), self.dtype)
            for number, (start, n) in enumerate(zip(self._starts, self.lengths, strict=False))
        ]
        self._holders = make(X, backend, places, timeout)

    def map(
        self,
        function: Callable[..., Any],
        *args: Any,
        merge: Callable[[list[Any]], Any] | None = None,
        only: int | None = None,
    ) -> list[Any]:
        """Return ``function(chunk, *args)`` of each chunk, on the host, in the order of the rows.

        Parameters
        ----------
        function : callable
            Of a module, for it is sent to the workers; gets a
            :class:`gpuclf.samples.holders.Chunk`.
        *args
            NumPy arrays and other things that can be pickled.
        merge : callable, optional
            Makes one result of the list of those of a worker, whichever chunks it has.
        only : int, optional
            The number of the one chunk that is asked for.

        Raises
        ------
        RuntimeError
            If workers were lost three times.
        TimeoutError
            If there is no worker.
        """
        with self._lock:
            return self._holders.map(function, args, merge, only, self._beside)

    @contextmanager
    def beside(self, *rows: np.ndarray | None) -> Iterator[None]:
        """Hand arrays of N values to the holders, for the calls within: labels and weights."""
        with self._lock:
            before, self._beside = self._beside, rows
            try:
                yield
            finally:
                self._beside = before

    def release(self) -> None:
        """Let the workers forget the samples; the next call loads them again."""
        with self._lock:
            self._holders.release()

    def place_of(self, row: int) -> tuple[int, int]:
        """Return the chunk that has a sample, and the sample's place in it."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - self._starts[number]

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        where = self._holders.describe()
        return f"Sharded({self.dtype} {self.shape}, {len(self.lengths)} chunks {where})"

    def __array_namespace__(self, api_version: str | None = None) -> ModuleType:
        return np

    def __deepcopy__(self, memo: dict[int, Any]) -> Sharded:
        return self

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"the samples are Sharded, which cannot be taken here: {TAKEN_BY}")

    # What would pull the samples here, or move or cut them.
    __getitem__ = __array__ = map_arrays = __reduce__ = _refuse
    flags = property(_refuse)


def is_dask(x: Any) -> bool:
    """Tell whether something is a collection of dask."""
    return type(x).__module__.partition(".")[0] in ("dask", "dask_expr")


def gathered(values: Any, n_samples: int | None = None, name: str = "y") -> Any:
    """Return labels or weights of dask as a NumPy array in this process, others as they are."""
    if not is_dask(values):
        return values
    found = np.asarray(values.compute())
    if n_samples is not None and found.shape != (n_samples,):
        raise ValueError(
            f"{name} must have shape ({n_samples},), one value for each row of X, got {found.shape}"
        )
    return found


def _checked(X: Any) -> tuple[tuple[int, ...], int, np.dtype[Any]]:
    """Return the lengths of the chunks, the number of features and the dtype."""
    if is_dask(X) and not hasattr(X, "chunks"):
        raise TypeError(
            f"X must be a dask array, got {type(X).__name__} of dask: a data frame's values are "
            "X.to_dask_array(lengths=True)"
        )
    if is_dask(X):
        lengths, columns = _lengths_of(X)
        dtype = np.dtype(X.dtype)
    else:
        chunks: list[Any] = [*X] if isinstance(X, list | tuple) else [None]
        if not all(isinstance(chunk, np.ndarray) and chunk.ndim == 2 for chunk in chunks):
            raise TypeError(
                f"X must be a dask array, or a list of NumPy arrays of shape (n, D), got "
                f"{type(X).__name__}: an array that fits here needs no Sharded, and "
                "dask.array.from_array(X, chunks=(10_000, -1)) cuts one"
            )
        lengths, columns = tuple(len(chunk) for chunk in chunks), {c.shape[1] for c in chunks}
        dtype = chunks[0].dtype if chunks else np.dtype(float)
        if len(columns) > 1 or any(chunk.dtype != dtype for chunk in chunks):
            found = ", ".join(f"{chunk.dtype} {chunk.shape}" for chunk in chunks)
            raise ValueError(f"all chunks must have the same features and dtype, got {found}")
    if not lengths or 0 in lengths:
        which = f"chunk {lengths.index(0)}" if lengths else "X"
        raise ValueError(
            f"{which} is empty: leave empty chunks out, "
            + (
                "X.rechunk({0: tuple(n for n in X.chunks[0] if n)})"
                if any(lengths)
                else "and give at least one sample"
            )
        )
    if dtype.name not in DTYPES or not dtype.isnative:
        raise TypeError(
            "X must be uint8, float16, float32 or float64, in this machine's order of bytes, got "
            f"{dtype}; convert it with X.astype({dtype.name if dtype.kind == 'f' else 'float32'!r})"
        )
    return lengths, columns.pop(), dtype


def _lengths_of(X: Any) -> tuple[tuple[int, ...], set[int]]:
    """Return the lengths of a dask array's chunks and its number of features."""
    if X.ndim != 2:
        raise ValueError(
            f"X must have shape (N, D), one sample a row, got {X.shape}; flatten images with "
            "X.reshape(X.shape[0], -1)"
        )
    if any(np.isnan(n) for n in (*X.chunks[0], *X.chunks[1])):
        raise ValueError(
            "the lengths of X's chunks are not known: X.compute_chunk_sizes() finds them, or "
            "to_dask_array(lengths=True) of a data frame"
        )
    if X.numblocks[1] != 1:
        raise ValueError(
            f"X is cut between features, into {X.numblocks[1]} parts; cut between samples only: "
            "X.rechunk({1: -1})"
        )
    return tuple(map(int, X.chunks[0])), {int(X.shape[1])}
