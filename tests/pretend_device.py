"""A device that does everything as late as the waits allow, and notices a wait that is missing.

Stands in for gpuclf.devices.cupy.CupyTransfers. Arrays on it are NumPy arrays and computation
happens at once; an upload happens only when something waits for it, and until then its target holds
garbage. Memory has a history: an upload into memory that earlier computation may still use must
have been told to wait for that computation.
"""

import weakref

import numpy as np

GARBAGE = 0xAA


class Upload:
    def __init__(self, source, target):
        self.source, self.target, self.done = source, target, False


class PretendDevice:
    def __init__(self, free_bytes=1 << 40):
        self.free = free_bytes
        self.queue = []  # uploads that nothing has waited for yet
        self.allocations = []  # bytes of each, for tests
        self._computed = 0  # how much computation has been queued
        self._uploads_know = 0  # after how much of it uploads begin
        self._used = []  # (first byte, last byte, when computation used them)
        self._unseen = []  # uploads that the host has not waited for: it must not refill them

    # ------------------------------------------------------------- gpuclf.devices.uploads.Transfers

    def page_locked(self, shape, dtype):
        return _garbage(shape, dtype)

    def empty(self, shape, dtype):
        array = _garbage(shape, dtype)
        if array.nbytes > self.free:
            raise MemoryError(f"Out of memory allocating {array.nbytes:,} bytes")
        self.free -= array.nbytes
        self.allocations.append(array.nbytes)
        weakref.finalize(array, self._give_back, array.nbytes)
        self.use(array)  # by what was computed before with the memory, and is still queued
        return array

    def upload(self, source, target):
        first, last = np.lib.array_utils.byte_bounds(target)
        for start, end, when in self._used:
            if first < end and start < last and when > self._uploads_know:
                raise AssertionError("an upload overwrites what computation may still use")
        if any(np.shares_memory(source, upload.source) for upload in self._unseen):
            raise AssertionError("the host refills a buffer that may not have been fetched yet")
        target[...] = _garbage(target.shape, target.dtype)
        upload = Upload(source, target)
        self.queue.append(upload)
        self._unseen.append(upload)
        return upload

    def computed_so_far(self):
        return self._computed

    def uploads_wait(self, event):
        self._uploads_know = max(self._uploads_know, event)

    def computation_waits(self, event):
        self._run_until(event)
        self.use(event.target)

    def host_waits(self, event):
        self._run_until(event)
        if event in self._unseen:
            del self._unseen[: self._unseen.index(event) + 1]

    def _run_until(self, event):
        while not event.done:
            upload = self.queue.pop(0)
            upload.target[...] = upload.source
            upload.done = True

    # --------------------------------------------------------------------------- for tests

    def use(self, array):
        """Queue computation with an array."""
        self._computed += 1
        self._used.append((*np.lib.array_utils.byte_bounds(array), self._computed))

    def _give_back(self, n_bytes):
        self.free += n_bytes


def _garbage(shape, dtype):
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = GARBAGE
    return array
