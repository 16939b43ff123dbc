"""The CPU's cores and caches, and how many of its threads BLAS takes."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuclf.arrays import Array, library_name

__all__ = ["blas_controller", "blas_threads", "cache_bytes", "cpu_workers", "single_threaded_blas"]

DEFAULT_CPU_CACHE_BYTES = 1 << 20


def cache_bytes(x: Array = None) -> int:
    """Return the size of the cache that a row block should fit into, in bytes.

    For NumPy that is one CPU core's L2, for CuPy the GPU's L2.
    """
    if x is not None and library_name(x) == "cupy":
        with x.device:
            return int(x.device.attributes["L2CacheSize"])
    return _cpu_l2_bytes()


@functools.cache
def _cpu_l2_bytes() -> int:
    if sys.platform == "darwin":
        key = "hw.perflevel0.l2cachesize" if platform.machine() == "arm64" else "hw.l2cachesize"
        answer = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip().isdigit():
            return int(answer.stdout)
        return DEFAULT_CPU_CACHE_BYTES
    size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    if size.exists():
        text = size.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            return int(text[:-1]) << 10
    return DEFAULT_CPU_CACHE_BYTES


@functools.cache
def blas_controller() -> Any:
    """Return threadpoolctl's controller of the BLAS libraries in use."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def cpu_workers() -> int:
    """Return how many CPU threads a call may use: as many as BLAS would take.

    Following BLAS means that ``OMP_NUM_THREADS``, ``OPENBLAS_NUM_THREADS``, joblib's and
    threadpoolctl's limits are all respected, and that nothing is oversubscribed. While another
    call of this library limits BLAS, the number from before it counts: results must not depend
    on what else is running.
    """
    with _blas_lock:
        return _threads_before_limit if _blas_depth else blas_threads()


def blas_threads() -> int:
    """Return how many threads BLAS would use for a product now."""
    libraries = blas_controller().lib_controllers
    return max((library.num_threads for library in libraries), default=1)


_blas_lock = threading.Lock()
_blas_depth = 0
_blas_limiter: Any = None
_threads_before_limit = 1


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep BLAS to one thread inside the block; the caller's setting comes back after it.

    Blocks may overlap in time and across threads: the first to enter limits, the last to leave
    restores. With a plain save-and-restore, overlapping calls would leave BLAS on one thread.
    """
    global _blas_depth, _blas_limiter, _threads_before_limit
    with _blas_lock:
        if _blas_depth == 0:
            _threads_before_limit = blas_threads()
            _blas_limiter = blas_controller().limit(limits=1)
        _blas_depth += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_depth -= 1
            if _blas_depth == 0:
                _blas_limiter.restore_original_limits()


def _forget_other_threads() -> None:
    """Reset, in a forked child, what threads that the child does not have were doing."""
    global _blas_lock, _blas_depth
    _blas_lock, _blas_depth = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
