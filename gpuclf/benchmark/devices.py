"""Clocks and ceilings of a device: all that needs a GPU to run is here.

:class:`HostDevice` has the same methods on a CPU, for rehearsals and tests.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from gpuclf.backend import cache_bytes, get_backend

__all__ = ["CudaDevice", "Device", "HostDevice", "measure_ceilings"]

REPEATS = 10
TORCH_PRODUCTS = ("float32", "tf32", "bfloat16", "float16", "int8")


class Device(Protocol):
    """Where calls run, and its clock."""

    name: str
    xp: Any
    cache_bytes: int

    def synchronize(self) -> None:
        """Wait until everything that was queued has been done."""

    def mark(self) -> Any:
        """Put a mark into the queue."""

    def seconds_between(self, start: Any, end: Any) -> float:
        """Return the device's time between two marks; both must have been reached."""

    def empty_pinned(self, nbytes: int) -> np.ndarray:
        """Return bytes of host memory that the device can copy from directly."""

    def forget(self) -> None:
        """Give memory that nobody uses back to the device, for other libraries."""


class HostDevice:
    """The CPU in a GPU's place: calls return when they are done, and marks are clock readings."""

    name = "cpu"
    xp: Any = np

    def __init__(self) -> None:
        self.cache_bytes = cache_bytes()

    def synchronize(self) -> None:
        """Return at once."""

    def mark(self) -> float:
        """Read the clock."""
        return time.perf_counter()

    def seconds_between(self, start: float, end: float) -> float:
        """Subtract."""
        return end - start

    def empty_pinned(self, nbytes: int) -> np.ndarray:
        """Return ordinary memory."""
        return np.empty(nbytes, np.uint8)

    def forget(self) -> None:
        """Return at once."""


class CudaDevice:
    """CuPy's current device, timed by CUDA events on the default stream.

    PyTorch queues its work on the same stream. JAX does not: its calls must be waited for before
    the second event.
    """

    name = "cuda"

    def __init__(self) -> None:
        self.xp: Any = get_backend("cupy").xp
        self.cache_bytes = int(self.xp.cuda.Device().attributes["L2CacheSize"])

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

    def empty_pinned(self, nbytes: int) -> np.ndarray:
        """Allocate page-locked memory."""
        memory = self.xp.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)

    def forget(self) -> None:
        """Empty CuPy's pools."""
        self.xp.get_default_memory_pool().free_all_blocks()
        self.xp.get_default_pinned_memory_pool().free_all_blocks()


def measure_ceilings(device: Device, nbytes: int = 1 << 30, side: int = 8192) -> dict[str, Any]:
    """Measure how fast the device moves bytes and multiplies, on random data.

    Parameters
    ----------
    device : Device
    nbytes : int
        Of each array that is copied; many times the cache.
    side : int
        Of the square matrices that are multiplied.

    Returns
    -------
    dict
        "bytes_per_s": rates of "copy" (bytes read plus bytes written), "read", "upload pageable"
        and "upload pinned"; "operations_per_s": rates of matrix products by precision; "left_out":
        what could not be measured, with the reason. A rate is that of the fastest of 10 calls: it
        serves as a ceiling.
    """
    xp, on_gpu = device.xp, device.name == "cuda"
    rng = np.random.default_rng(0)
    host = rng.integers(256, size=nbytes, dtype=np.uint8)
    source, target = xp.asarray(host.view(np.float32)), xp.empty(nbytes // 4, np.float32)
    source = xp.nan_to_num(source)  # random bytes are sometimes no numbers, which can be slow
    A, B = (xp.asarray(rng.standard_normal((side, side), dtype=np.float32)) for _ in "AB")

    def upload(memory: np.ndarray) -> Callable[[], object]:
        as_bytes = target.view(np.uint8)
        return (lambda: as_bytes.set(memory)) if on_gpu else (lambda: np.copyto(as_bytes, memory))

    def pinned() -> np.ndarray:
        memory = device.empty_pinned(nbytes)
        memory[:] = host
        return memory

    moved: dict[str, tuple[int, Callable[[], Callable[[], object]]]] = {
        "copy": (2 * nbytes, lambda: lambda: xp.copyto(target, source)),
        "read": (nbytes, lambda: source.max),
        "upload pageable": (nbytes, lambda: upload(host)),
        "upload pinned": (nbytes, lambda: upload(pinned())),
    }
    multiplied: dict[str, Callable[[], Callable[[], object]]] = {
        "float32 on CuPy" if on_gpu else "float32": lambda: lambda: A @ B
    }
    for precision in TORCH_PRODUCTS if on_gpu else ():
        multiplied[precision] = partial(_torch_product, precision, side)
    left_out: dict[str, str] = {}

    def rates(prepared: dict[str, tuple[int, Any]]) -> dict[str, float]:
        found = {}
        for name, (amount, prepare) in prepared.items():
            try:
                found[name] = amount / fastest(prepare(), device)
            except Exception as error:  # whatever is missing, the others still count
                left_out[name] = f"{type(error).__name__}: {error}"
        return found

    return {
        "bytes_per_s": rates(moved),
        "operations_per_s": rates({k: (2 * side**3, call) for k, call in multiplied.items()}),
        "left_out": left_out,
    }


def fastest(call: Callable[[], object], device: Device) -> float:
    """Return the device's seconds of the fastest of several calls."""
    call()
    pairs = []
    for _ in range(REPEATS):
        start = device.mark()
        call()
        pairs.append((start, device.mark()))
    device.synchronize()
    return min(device.seconds_between(*pair) for pair in pairs)


def _torch_product(precision: str, side: int) -> Callable[[], object]:
    torch: Any = importlib.import_module("torch")
    if precision == "int8":
        A, B = (torch.randint(-127, 128, (side, side), device="cuda").to(torch.int8) for _ in "AB")
        return lambda: torch._int_mm(A, B.T)
    dtype = getattr(torch, "float32" if precision == "tf32" else precision)
    A, B = (torch.randn(side, side, device="cuda").to(dtype) for _ in "AB")

    def product() -> object:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        try:
            return A @ B
        finally:
            torch.set_float32_matmul_precision("highest")

    return product
