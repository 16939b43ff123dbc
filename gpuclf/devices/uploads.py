"""Rows of a NumPy array on their way to a device, through two page-locked buffers.

From ordinary memory the driver copies piece by piece through buffers of its own, and the host
waits. Page-locked memory is fetched by the device itself: while it fetches one buffer, the host
fills the other, and the device computes with what came before. Locking memory is slow, so the two
buffers are short and used again.

Whether the results are right depends on who waits for whom. That order is kept here, apart from
the CUDA calls (:class:`gpuclf.devices.cupy.CupyTransfers`), so that a test can stand in for the
device.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

import numpy as np

__all__ = ["PIECE_BYTES", "Transfers", "row_slices", "upload_in_pieces", "uploaded_blocks"]

PIECE_BYTES = 16 << 20


class Transfers(Protocol):
    """What must be asked of a device. Its computation and its uploads are two queues of work."""

    def page_locked(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return a new host array that the device can fetch by itself."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a new array on the device; raise a MemoryError if there is no room."""

    def upload(self, source: np.ndarray, target: Any) -> Any:
        """Queue a copy; return the event of its end."""

    def computed_so_far(self) -> Any:
        """Return the event that all computation queued until now is done."""

    def uploads_wait(self, event: Any) -> None:
        """Let uploads that are queued from now on begin after an event."""

    def computation_waits(self, event: Any) -> None:
        """Let computation that is queued from now on begin after an event."""

    def host_waits(self, event: Any) -> None:
        """Return after an event."""


class _Buffers:
    """Two page-locked buffers that take turns."""

    def __init__(self, X: np.ndarray, n_rows: int, transfers: Transfers) -> None:
        self._X, self._transfers = X, transfers
        shape = (n_rows, *X.shape[1:])
        self._buffers = [transfers.page_locked(shape, X.dtype) for _ in range(2)]
        self._fetched: list[Any] = [None, None]
        self._turn = 0

    def upload(self, rows: slice, target: Any) -> Any:
        turn, self._turn = self._turn, 1 - self._turn
        if self._fetched[turn] is not None:
            self._transfers.host_waits(self._fetched[turn])
        buffer = self._buffers[turn][: rows.stop - rows.start]
        np.copyto(buffer, self._X[rows])
        self._fetched[turn] = self._transfers.upload(buffer, target)
        return self._fetched[turn]

    def finish(self) -> None:
        """Wait for the last uploads: until then the buffers and targets must not be given away."""
        for event in self._fetched:
            if event is not None:
                self._transfers.host_waits(event)


def upload_in_pieces(X: np.ndarray, transfers: Transfers, piece_bytes: int = PIECE_BYTES) -> Any:
    """Copy an array with at least one row to the device.

    Raises
    ------
    MemoryError
        If the device has no room for it.
    """
    target = transfers.empty(X.shape, X.dtype)
    n_rows = min(max(1, piece_bytes * len(X) // max(1, X.nbytes)), max(1, len(X)))
    buffers = _Buffers(X, n_rows, transfers)
    # Computation that was queued earlier may still use the memory that the array was given.
    transfers.uploads_wait(transfers.computed_so_far())
    try:
        for rows in row_slices(len(X), n_rows):
            buffers.upload(rows, target[rows])
    finally:
        buffers.finish()
    return target


def uploaded_blocks(
    X: np.ndarray, n_rows: int, transfers: Transfers
) -> Generator[tuple[slice, Any], None, None]:
    """Give the rows of X block by block, on the device, each while the next one is on its way.

    Parameters
    ----------
    X : array of shape (N, ...)
    n_rows : int
        Of a block.
    transfers : Transfers

    Yields
    ------
    rows : slice
    block : array of shape (n_rows or fewer, ...)
        Its memory is used again: computation with it must be queued before the next is asked for.

    Raises
    ------
    MemoryError
        If the device has no room for two blocks.
    """
    blocks = row_slices(len(X), n_rows)
    n_rows = min(n_rows, len(X))
    places = [transfers.empty((n_rows, *X.shape[1:]), X.dtype) for _ in blocks[:2]]
    # Computation that was queued earlier may still use the memory that the places were given.
    computed = [transfers.computed_so_far()] * 2
    buffers = _Buffers(X, n_rows, transfers)

    def start(number: int) -> tuple[Any, Any]:
        rows, place = blocks[number], number % 2
        target = places[place][: rows.stop - rows.start]
        transfers.uploads_wait(computed[place])
        return target, buffers.upload(rows, target)

    try:
        coming = [start(number) for number in range(len(places))]
        for number, rows in enumerate(blocks):
            target, arrived = coming.pop(0)
            transfers.computation_waits(arrived)
            yield rows, target
            computed[number % 2] = transfers.computed_so_far()
            if number + 2 < len(blocks):
                coming.append(start(number + 2))
    finally:
        buffers.finish()


def row_slices(n_rows: int, rows_per_block: int) -> list[slice]:
    """Cut ``range(n_rows)`` into slices of `rows_per_block`, the last one shorter if need be."""
    return [
        slice(start, min(start + rows_per_block, n_rows))
        for start in range(0, n_rows, rows_per_block)
    ]
