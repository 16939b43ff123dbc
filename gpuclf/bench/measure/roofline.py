"""How fast a machine can be at all, measured, and the time that no call can beat on it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpuclf.bench.measure.devices import Device
from gpuclf.devices.cpu import cpu_workers

__all__ = ["Floor", "Work", "measure_ceilings"]

REPEATS = 10
TORCH_PRODUCTS = ("float32", "tf32", "bfloat16", "float16", "int8")
# Sizes that some cache holds, of all threads together, and how often they are read in a call.
CACHED = {1 << 19: 100, 1 << 25: 4}
BYTE_QUERIES, BYTE_ROWS = 128, 2048


@dataclass(frozen=True)
class Work:
    """The least that a call has to do, however it is written.

    Attributes
    ----------
    bytes : int
        To be moved through memory: each input read once, each output written once.
    operations : int
        Additions and multiplications of the products; what is done a score is not counted.
    """

    bytes: int
    operations: int


@dataclass(frozen=True)
class Floor:
    """The time that no call can beat on this device.

    Attributes
    ----------
    seconds : float
    limited_by : {"memory", "arithmetic", "upload"}
    """

    seconds: float
    limited_by: str

    @classmethod
    def of(
        cls,
        work: Work,
        ceilings: dict[str, Any],
        uploaded_bytes: int = 0,
        features: str = "uint8",
    ) -> Floor:
        """Divide the work by the fastest rates measured, whatever their precision.

        Only bytes are multiplied as bytes. A few of them may come from a cache: reading gets
        slower with size, so the rate of a smaller array is a ceiling too (and, because one
        measurement may fail, those of larger ones).
        """
        rates = dict(ceilings["bytes_per_s"])
        uploads = [rates.pop(name) for name in list(rates) if name.startswith("upload")]
        cached = {int(size): rate for size, rate in ceilings.get("cached", {}).items()}
        least = max((size for size in cached if size <= work.bytes), default=0)
        memory = max([*rates.values(), *(rate for size, rate in cached.items() if size >= least)])
        products = ceilings["operations_per_s"].items()
        arithmetic = max(rate for name, rate in products if features == "uint8" or name != "int8")
        times = {"memory": work.bytes / memory, "arithmetic": work.operations / arithmetic}
        if uploaded_bytes:
            times["upload"] = uploaded_bytes / max(uploads, default=memory)
        limit = max(times, key=lambda name: times[name])
        return cls(times[limit], limit)


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
        "bytes_per_s": rates of "copy" (bytes read plus bytes written), "read", and on a GPU
        "upload pageable" and "upload pinned"; "cached": on a CPU, rates of reading few bytes again
        and again, by their number; "operations_per_s": rates of matrix products by precision;
        "left_out": what could not be measured, with the reason. A rate is that of the fastest of
        10 calls: it serves as a ceiling.
    """
    prepare = _on_gpu if device.name == "cuda" else _on_cpu
    moved, cached, multiplied = prepare(device, nbytes, side)
    left_out: dict[str, str] = {}

    def rates(prepared: Prepared) -> dict[str, float]:
        found = {}
        for name, (amount, make) in prepared.items():
            try:
                found[name] = amount / fastest(make(), device)
            except Exception as error:  # whatever is missing, the others still count
                left_out[name] = f"{type(error).__name__}: {error}"
        return found

    return {
        "bytes_per_s": rates(moved),
        "operations_per_s": rates(multiplied),
        "cached": rates(cached),
        "left_out": left_out,
    }


# What is done in a call, and what makes the call.
Prepared = dict[str, tuple[float, Callable[[], Callable[[], object]]]]


def _on_gpu(device: Device, nbytes: int, side: int) -> tuple[Prepared, Prepared, Prepared]:
    xp = device.xp
    rng = np.random.default_rng(0)
    host = rng.integers(256, size=nbytes, dtype=np.uint8)
    source, target = xp.asarray(host.view(np.float32)), xp.empty(nbytes // 4, np.float32)
    source = xp.nan_to_num(source)  # random bytes are sometimes no numbers, which can be slow
    A, B = (xp.asarray(rng.standard_normal((side, side), dtype=np.float32)) for _ in "AB")

    def upload(memory: np.ndarray) -> Callable[[], object]:
        as_bytes = target.view(np.uint8)
        return lambda: as_bytes.set(memory)

    def pinned() -> np.ndarray:
        memory = device.empty_pinned(nbytes)
        memory[:] = host
        return memory

    moved: Prepared = {
        "copy": (2 * nbytes, lambda: lambda: xp.copyto(target, source)),
        "read": (nbytes, lambda: source.max),
        "upload pageable": (nbytes, lambda: upload(host)),
        "upload pinned": (nbytes, lambda: upload(pinned())),
    }
    operations = 2.0 * side**3
    multiplied: Prepared = {"float32 on CuPy": (operations, lambda: lambda: A @ B)}
    for precision in TORCH_PRODUCTS:
        multiplied[precision] = (operations, partial(_torch_product, precision, side))
    return moved, {}, multiplied


def _on_cpu(device: Device, nbytes: int, side: int) -> tuple[Prepared, Prepared, Prepared]:
    """All threads together, as BLAS would take them."""
    n_threads = cpu_workers()
    rng = np.random.default_rng(0)
    source, target = np.ones(nbytes // 8, np.int64), np.zeros(nbytes // 8, np.int64)
    A, B = (rng.standard_normal((side, side), dtype=np.float32) for _ in "AB")

    def by_threads(call: Callable[..., object], *arrays: Any) -> Callable[[], object]:
        pool = ThreadPoolExecutor(n_threads)
        return lambda: list(pool.map(call, *arrays))

    def shares(array: np.ndarray) -> list[np.ndarray]:
        return np.array_split(array, n_threads)

    def read_again(size: int, turns: int) -> Callable[[], object]:
        def read(array: np.ndarray) -> None:
            for _ in range(turns):
                np.max(array)

        return by_threads(read, shares(np.ones(size // 8, np.int64)))

    moved: Prepared = {
        "copy": (2 * nbytes, lambda: by_threads(np.copyto, shares(target), shares(source))),
        "read": (nbytes, lambda: by_threads(np.max, shares(source))),
    }
    cached: Prepared = {
        str(size): (size * turns, partial(read_again, size, turns))
        for size, turns in CACHED.items()
    }
    multiplied: Prepared = {
        "float32": (2.0 * side**3, lambda: lambda: A @ B),
        "int8": (
            2.0 * n_threads * BYTE_QUERIES * BYTE_ROWS * side,
            partial(_byte_product, n_threads, side, by_threads),
        ),
    }
    return moved, cached, multiplied


def _byte_product(n_threads: int, side: int, by_threads: Any) -> Callable[[], object]:
    """Let each thread multiply bytes by the processor's instructions for them."""
    from gpuclf.kernels.building.machine_code import matrix_unit_is_usable
    from gpuclf.models.distances import squared_euclidean

    if not matrix_unit_is_usable():
        raise RuntimeError("no matrix unit for bytes, or numba is not installed")
    rng = np.random.default_rng(0)
    queries, rows = (
        [rng.integers(256, size=(n, side), dtype=np.uint8) for _ in range(n_threads)]
        for n in (BYTE_QUERIES, BYTE_ROWS)
    )
    return by_threads(squared_euclidean, queries, rows)  # type: ignore[no-any-return]


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
