"""Samples that stay on the host and pass through the device in blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from gpuclf.arrays import Array, array_namespace, describe_location
from gpuclf.devices.backends import Backend, get_backend, to_device
from gpuclf.devices.cupy import on_device_of, transfers
from gpuclf.devices.uploads import uploaded_blocks
from gpuclf.samples.walk import MIN_BLOCK_ROWS, row_slices, until_it_fits

__all__ = ["STREAM_BYTES", "Streamed"]

STREAM_BYTES = 256 << 20
DTYPES = ("uint8", "float16", "float32", "float64")

Result = TypeVar("Result")
Blocks = Iterator[tuple[slice, Array]]


class Streamed:
    """Samples on the host for a model on a device, for data that the device has no room for.

    Losses, scores and the classifiers trained by gradients take them as X, or as the X of
    Standardized. Each full pass uploads them anew, one block after another, while the device
    computes with the block before; each mini-batch is gathered on the host. That costs a copy of
    X for each pass over it: where X fits, :func:`gpuclf.to_device` is faster.

    Parameters
    ----------
    X : NumPy array of shape (N, D), uint8, float16, float32 or float64
        Not copied and never changed.
    backend : {"auto", "numpy", "cupy"} or Backend
        Where to compute.
    like : array, optional
        Compute where this array lives, instead of `backend`.
    memory_budget : int, default 256 MiB
        Bytes of the device that blocks, and what is computed from one, may take. Where the device
        has less, blocks are halved.

    Attributes
    ----------
    host : NumPy array of shape (N, D)
    memory_budget : int
    shape, ndim, dtype, device
        As of the array that it stands for.

    Raises
    ------
    TypeError, ValueError
        If X is no NumPy array of these dtypes and two axes.
    gpuclf.BackendUnavailableError
        If the backend cannot be used here.

    Examples
    --------
    >>> import gpuclf
    >>> X, y = np.ones((4, 3), np.float32), np.array([0, 1, 1, 0])
    >>> loss, dW = gpuclf.softmax_loss_vectorized(
    ...     np.zeros((3, 2), np.float32), gpuclf.Streamed(X, "numpy"), y, reg=0.0)
    >>> round(float(loss), 6)
    0.693147
    """

    ndim = 2

    def __init__(
        self,
        X: np.ndarray,
        backend: str | Backend = "auto",
        *,
        like: Array = None,
        memory_budget: int = STREAM_BYTES,
    ) -> None:
        if not isinstance(X, np.ndarray) or X.dtype.name not in DTYPES:
            what = f"{type(X).__name__} of {getattr(X, 'dtype', 'no dtype')}"
            raise TypeError(
                f"X must be a NumPy array of uint8, float16, float32 or float64, got {what}"
            )
        if X.ndim != 2:
            raise ValueError(f"X must have shape (N, D), one sample a row, got {X.shape}")
        self.host = X
        self.memory_budget = memory_budget
        if like is None:
            self._like = get_backend(backend).xp.empty((0,))
        else:  # an empty one: `like` may be long, and should not be kept
            with on_device_of(like):
                self._like = array_namespace(like).empty((0,), device=like.device)
        self._most_rows = len(X)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        n_samples, n_features = self.host.shape
        return n_samples, n_features

    @property
    def dtype(self) -> Any:
        """As the device's library calls it."""
        return getattr(array_namespace(self._like), self.host.dtype.name)

    @property
    def device(self) -> Any:
        """Where the blocks go."""
        return self._like.device

    def __array_namespace__(self, api_version: str | None = None) -> ModuleType:
        return array_namespace(self._like)

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, rows: slice | tuple[Any, ...]) -> Streamed:
        """Return a stretch of the samples, as a view."""
        stretch, columns = rows if isinstance(rows, tuple) else (rows, ...)
        if not isinstance(stretch, slice) or columns not in (..., slice(None)):
            raise TypeError(f"index Streamed with a slice of rows, not {rows!r}")
        return self.select(stretch)

    def select(self, rows: slice | np.ndarray) -> Streamed:
        """Return the samples of these rows, still on the host: a view of a slice, else a copy."""
        return Streamed(self.host[rows], like=self._like, memory_budget=self.memory_budget)

    def __repr__(self) -> str:
        return f"Streamed({self.host.dtype} {self.shape}, to {describe_location(self._like)})"

    def map_arrays(self, function: Callable[[Array], Array]) -> Array:
        """Return `function` of all the samples, on the host: so to_device uploads them whole."""
        return function(self.host)

    def take(self, rows: np.ndarray) -> Array:
        """Gather rows on the host, by their numbers, and upload them."""
        return to_device(self.host[rows], like=self._like)

    def over_blocks(self, work: Callable[[Blocks], Result], bytes_per_row: int) -> Result:
        """Return ``work(blocks)``, where the blocks are pairs of a slice of rows and an array.

        Parameters
        ----------
        work : callable
            Called anew, with blocks of half the rows, where the device runs out of memory.
        bytes_per_row : int
            What is computed from a row takes, beside the row.

        Raises
        ------
        ValueError
            If the budget is too small for one row.
        MemoryError
            If the device has no room for the smallest blocks either.
        """
        n_features = self.shape[1]
        row_bytes = 2 * n_features * self.host.itemsize + bytes_per_row
        if self.memory_budget < row_bytes:
            raise ValueError(
                f"memory_budget={self.memory_budget} bytes is too small for samples of "
                f"{n_features} features; at least {row_bytes} are needed"
            )

        def attempt(n_rows: int) -> Result:
            if n_rows < planned:
                self._most_rows = n_rows  # the next pass need not find out again
            with closing(self._blocks(n_rows)) as blocks:
                return work(blocks)

        planned = min(self._most_rows, self.memory_budget // row_bytes)
        if planned < len(self):
            planned = planned // MIN_BLOCK_ROWS * MIN_BLOCK_ROWS or planned
        return until_it_fits(attempt, planned)

    def _blocks(self, n_rows: int) -> Generator[tuple[slice, Array], None, None]:
        queue = transfers(self._like)
        if queue is not None:
            yield from uploaded_blocks(self.host, n_rows, queue)
            return
        for rows in row_slices(len(self), n_rows):
            yield rows, to_device(self.host[rows], like=self._like)
