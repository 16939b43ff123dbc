"""How fast a machine can be at all, measured, and the time that no call can beat on it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuclf.bench.measure.devices import HOLD_S, Device
from gpuclf.devices.cpu import cpu_workers

if TYPE_CHECKING:
    from gpuclf.bench.measure.timing import Row

__all__ = [
    "SLACK",
    "Floor",
    "Work",
    "best_of",
    "judge_rows",
    "measure_ceilings",
    "reject_too_fast",
    "set_floor",
    "too_fast",
]

# Clocks and ceilings are good to a few percent, and a ceiling is itself a measurement.
SLACK = 1.1
LEAST_REPEATS, REPEATS, MOST_REPEATS = 3, 10, 200
# Of short calls there are more: one in a hundred may have the machine for itself.
ENOUGH_S, MOST_S = 0.05, 0.5
SMALL_SIDE = 512  # its product ends within the time that the system gives a process at once
IDLE_SHARE = 0.8  # of the processors' time, where nobody else is at work
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
        stored: str = "uint8",
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
        arithmetic = max(rate for name, rate in products if stored == "uint8" or name != "int8")
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
        "left_out": what could not be measured, with the reason; "cpu_share": on a CPU, how much of
        the time of all processors this process got. A rate is that of the fastest of 3 to
        200 calls: it serves as a ceiling.
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

    found: dict[str, Any] = {"operations_per_s": rates(multiplied)}
    began, used = time.perf_counter(), time.process_time()
    found |= {"bytes_per_s": rates(moved), "cached": rates(cached), "left_out": left_out}
    if device.name == "cpu":
        used, passed = time.process_time() - used, time.perf_counter() - began
        found["cpu_share"] = min(1.0, used / (passed * cpu_workers()))
    return found


def best_of(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the higher of each rate of two measurements, for each device's name.

    Whatever disturbs a measurement makes it slower: the best is nearest to what a machine can do.
    """
    best = {}
    for name in one | other:
        found = [each[name] for each in (one, other) if name in each]
        best[name] = {
            key: _highest([each.get(key, {}) for each in found])
            for key in ("bytes_per_s", "operations_per_s", "cached")
        }
        measured = {rate for rates in best[name].values() for rate in rates}
        best[name]["left_out"] = {
            rate: why
            for each in found
            for rate, why in each.get("left_out", {}).items()
            if rate not in measured
        }
        if shares := [each["cpu_share"] for each in found if "cpu_share" in each]:
            best[name]["cpu_share"] = max(shares)
    return best


def _highest(found: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for rates in found for name in rates)
    return {name: max(rates[name] for rates in found if name in rates) for name in names}


# ---------------------------------------------------------------------------- rows by ceilings


def set_floor(row: Row, ceilings: Mapping[str, dict[str, Any]], n_features: int) -> None:
    """Give a row the floor that its device's ceilings allow, if there are any."""
    if row.device not in ceilings:
        return
    width = 1 if row.stored == "uint8" else np.dtype(row.dtype).itemsize
    uploaded = row.samples * n_features * width if row.uploads else 0
    work = Work(row.bytes, row.operations)
    floor = Floor.of(work, ceilings[row.device], uploaded, row.stored)
    row.floor_s, row.limited_by = floor.seconds, floor.limited_by


def reject_too_fast(row: Row, slack: float = SLACK) -> None:
    """Reject a row one of whose medians, times the slack, is less than its floor."""
    if row.floor_s is None:
        return
    for kind, median in _medians(row).items():
        if median * slack < row.floor_s:
            row.status = "rejected"
            row.reason = (
                f"{kind} {median:.3g} is less than the floor of {row.floor_s:.3g} s "
                f"({row.limited_by}): the timer did not wait, or the work was not done"
            )
    if row.status == "timed" and row.median_s is not None:
        best = row.median_s if row.device_s is None else row.device_s["median"]
        row.share_of_floor = row.floor_s / best


def _medians(row: Row) -> dict[str, float]:
    found = {"wall_s": row.median_s}
    for kind in ("device_s", "queued_s"):
        found[kind] = (getattr(row, kind) or {}).get("median")
    return {kind: median for kind, median in found.items() if median is not None}


def too_fast(
    row: Row, ceilings: Mapping[str, dict[str, Any]], n_features: int, slack: float = SLACK
) -> bool:
    """Return whether a timed row is faster than the ceilings allow."""
    set_floor(row, ceilings, n_features)
    floor, medians = row.floor_s, _medians(row)
    return bool(row.status == "timed" and floor and medians) and min(medians.values()) * slack < (
        floor or 0.0
    )


def judge_rows(rows: Iterable[Row], ceilings: Mapping[str, dict[str, Any]], n_features: int) -> int:
    """Give rows their floors, and reject what is faster.

    Parameters
    ----------
    rows : iterable of Row
        Measured without ceilings.
    ceilings : dict
        For each device's name the best that :func:`measure_ceilings` found, before and after.
    n_features : int

    Returns
    -------
    int
        How many rows are faster than ceilings of a machine on which others were at work all the
        time: those show what the others left, so such a row has no floor, and is not rejected.
    """
    undecided = 0
    for row in rows:
        if row.status != "timed":
            set_floor(row, ceilings, n_features)
        elif too_fast(row, ceilings, n_features) and _is_busy(ceilings[row.device]):
            row.floor_s = row.limited_by = None
            undecided += 1
        else:
            reject_too_fast(row)
    return undecided


def _is_busy(ceilings: dict[str, Any]) -> bool:
    return bool(ceilings.get("cpu_share", 1.0) < IDLE_SHARE)


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
    small = min(side, SMALL_SIDE)
    few = A[:small, :small].copy()

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
        f"float32, {small} rows": (2.0 * small**3, lambda: lambda: few @ few),
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
    pairs: list[tuple[Any, Any]] = []
    began = time.perf_counter()
    device.hold(HOLD_S)  # or the first calls would have the host's time between their marks
    while _more(len(pairs), time.perf_counter() - began, device.queues):
        start = device.mark()
        call()
        pairs.append((start, device.mark()))
    device.synchronize()
    return min(device.seconds_between(*pair) for pair in pairs)


def _more(n: int, seconds: float, queues: bool) -> bool:
    """Whether there should be another call after n, which took so long on a clock."""
    if queues:  # they have not been waited for
        return n < REPEATS
    if seconds > MOST_S:
        return n < LEAST_REPEATS
    return n < REPEATS or (n < MOST_REPEATS and seconds < ENOUGH_S)


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
