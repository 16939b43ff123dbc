"""Where calls run, and its clock: the CPU, or CuPy's device."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import numpy as np

from gpuclf.devices.backends import get_backend
from gpuclf.devices.cpu import cache_bytes

__all__ = ["HOLD_S", "CudaDevice", "Device", "HostDevice"]

HOLD_S = 2e-3  # how long a GPU is held while the host queues a call; a call takes some 0.1 ms
SETTLE_STEP_S, SETTLE_STEPS = 0.01, 30
# One thread that waits. Bounded by its own clock: it ends whatever the host does.
HOLD = """
extern "C" __global__ void hold(long long cycles) {
    const long long start = clock64();
    while (clock64() - start < cycles) {}
}
"""
FASTEST_CLOCK_KHZ = 2_000_000  # where the driver does not say; faster than any GPU so far runs long


class HostDevice:
    """The CPU: calls return when they are done, and marks are clock readings.

    Attributes
    ----------
    name : {"cpu", "cuda"}
    xp : module
    cache_bytes : int
        Of the cache that samples of a call may be found in.
    queues : bool
        Calls return before they are done.
    """

    name = "cpu"
    xp: Any = np
    queues = False

    def __init__(self) -> None:
        self.cache_bytes = cache_bytes()

    def synchronize(self) -> None:
        """Wait until everything that was queued has been done."""

    def mark(self) -> Any:
        """Put a mark into the queue."""
        return time.perf_counter()

    def seconds_between(self, start: Any, end: Any) -> float:
        """Return the device's time between two marks; both must have been reached."""
        return float(end - start)

    def hold(self, seconds: float) -> None:
        """Keep the queue busy, so that what is queued behind waits until the host is done."""

    def reached(self, mark: Any) -> bool:
        """Tell, without waiting, whether the queue has come to a mark."""
        return False

    def empty_pinned(self, nbytes: int) -> np.ndarray:
        """Return bytes of host memory that the device can copy from directly."""
        return np.empty(nbytes, np.uint8)

    def forget(self) -> None:
        """Give memory that nobody uses back to the device, for other libraries."""

    def settle(self) -> None:
        """Wait until no thread of this process is busy.

        After a threaded product BLAS's threads keep a core busy for a while, waiting for the next
        one: that is time of the implementation before, not of the one that is timed.
        """
        for _ in range(SETTLE_STEPS):
            before = time.process_time()
            time.sleep(SETTLE_STEP_S)
            if time.process_time() - before < SETTLE_STEP_S / 10:
                return

    def transfer_seconds(self, samples: np.ndarray) -> float | None:
        """Return how long it takes to hand samples over; None where they are there already."""


class CudaDevice(HostDevice):
    """CuPy's current device, timed by CUDA events on the default stream.

    PyTorch queues its work on the same stream. JAX does not: its calls must be waited for before
    the second event.
    """

    name = "cuda"
    queues = True

    def __init__(self) -> None:
        self.xp = get_backend("cupy").xp
        attributes = self.xp.cuda.Device().attributes
        self.cache_bytes = int(attributes["L2CacheSize"])
        self._clock_hz = 1e3 * int(attributes.get("ClockRate") or FASTEST_CLOCK_KHZ)
        self._hold: Any = None

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        self.xp.cuda.Device().synchronize()

    def mark(self) -> Any:
        """Record an event."""
        event = self.xp.cuda.Event()
        event.record(self.xp.cuda.Stream.null)
        return event

    def seconds_between(self, start: Any, end: Any) -> float:
        """Ask the driver; its resolution is about half a microsecond."""
        return float(self.xp.cuda.get_elapsed_time(start, end)) / 1e3

    def hold(self, seconds: float) -> None:
        """Queue a kernel that waits so long at the highest clock, or longer at a lower one."""
        if self._hold is None:
            self._hold = self.xp.RawKernel(HOLD, "hold")
        with self.xp.cuda.Stream.null:
            self._hold((1,), (1,), (np.int64(seconds * self._clock_hz),))

    def reached(self, mark: Any) -> bool:
        """Ask the driver."""
        return bool(mark.done)

    def empty_pinned(self, nbytes: int) -> np.ndarray:
        """Allocate page-locked memory."""
        memory = self.xp.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)

    def forget(self) -> None:
        """Empty CuPy's pools."""
        self.xp.get_default_memory_pool().free_all_blocks()
        self.xp.get_default_pinned_memory_pool().free_all_blocks()

    def settle(self) -> None:
        """Wait for the device: calls of other libraries keep it busy, not the host."""
        self.synchronize()

    def transfer_seconds(self, samples: np.ndarray) -> float | None:
        """Time one upload from ordinary memory."""
        self.synchronize()
        began = time.perf_counter()
        self.xp.asarray(samples)
        self.synchronize()
        return time.perf_counter() - began


Device: TypeAlias = HostDevice
