"""What machine this is, as `gpuclf info` prints it and benchmarks record it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import gpuclf
from gpuclf.devices import cupy as cupy_device
from gpuclf.devices.cpu import blas_controller, cache_bytes, cpu_workers

__all__ = ["cpu_name", "environment"]

PACKAGES = ["gpuclf", "numpy", "scipy", "scikit-learn", "array-api-compat", "numba"]
PACKAGES += ["cupy-cuda12x", "cupy-cuda13x", "cupy", "torch", "jax"]


def environment() -> dict[str, Any]:
    """Describe the machine and the versions, as `gpuclf info` prints and benchmarks record them.

    Returns
    -------
    dict
        Plain values only, so that it can be written as JSON.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": _usable_cpus(),
        "cpu_l2_bytes": cache_bytes(),
        "memory_bytes": _memory_bytes(),
        "blas": [
            {
                "library": library.internal_api,
                "version": library.version,
                "threads": library.num_threads,
                "architecture": getattr(library, "architecture", None),
            }
            for library in blas_controller().lib_controllers
        ],
        "threads": cpu_workers(),
        "gpu": cupy_device.describe_gpu(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    if package == "gpuclf":  # what runs, which need not be what is installed
        return gpuclf.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def cpu_name() -> str:
    """Return the processor's name, as its maker gives it where that is known."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
