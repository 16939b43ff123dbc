"""Which array library to compute with, and the way of arrays to its device."""

from __future__ import annotations

import functools
import logging
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpuclf.arrays import Array, device_of, library_name, library_of, map_arrays, to_host
from gpuclf.devices import cupy as cupy_device

__all__ = ["Backend", "BackendUnavailableError", "get_backend", "synchronize", "to_device"]

logger = logging.getLogger("gpuclf")


class BackendUnavailableError(RuntimeError):
    """The array library that was asked for cannot be used on this machine."""


@dataclass(frozen=True)
class Backend:
    """An array library that can be used here.

    Attributes
    ----------
    name : {"numpy", "cupy"}
    xp : module
        The library itself.
    reason : str
        Why it was chosen, for people to read.
    """

    name: str
    xp: ModuleType
    reason: str


def get_backend(
    name: str | Backend = "auto", *, nbytes: int | None = None, break_even: int | None = None
) -> Backend:
    """Return the array library of that name.

    Parameters
    ----------
    name : {"auto", "numpy", "cupy"} or Backend
        "auto" takes CuPy where it is usable and NumPy otherwise, and logs why, once.
    nbytes : int, optional
        Bytes of the samples that a call will see.
    break_even : int, optional
        Bytes from which calls are faster on the GPU: "auto" leaves fewer to NumPy. `gpuclf bench`
        measures it: :func:`gpuclf.bench.measure.break_even.measured_break_even`.

    Raises
    ------
    BackendUnavailableError
        If "cupy" is asked for and the probe fails; the message has the reason and the remedy.
    ValueError
        For any other name.

    Examples
    --------
    >>> get_backend("numpy").xp.__name__
    'numpy'
    """
    if isinstance(name, Backend):
        return name
    if name == "numpy":
        return Backend("numpy", np, "asked for")
    if name not in ("auto", "cupy"):
        raise ValueError(f"backend must be 'auto', 'numpy' or 'cupy', got {name!r}")
    probe = cupy_device.probe_cupy()
    if not probe.usable and name == "cupy":
        raise BackendUnavailableError(
            f"backend 'cupy' cannot be used: {probe.reason}. To use it, {probe.remedy}; "
            "or use backend='numpy'. `gpuclf info` shows what was found."
        )
    if not probe.usable:
        _log_fallback(probe.reason)
        return Backend("numpy", np, probe.reason)
    if name == "auto" and None not in (nbytes, break_even) and nbytes < break_even:  # type: ignore[operator]
        reason = f"calls on {nbytes:,} bytes are faster on the CPU: break-even at {break_even:,}"
        return Backend("numpy", np, reason)
    return Backend("cupy", sys.modules["cupy"], probe.reason)


@functools.cache
def _log_fallback(reason: str) -> None:
    logger.warning("no GPU: %s; using NumPy", reason)


def to_device(x: Any, backend: str | Backend = "auto", *, like: Array = None) -> Any:
    """Copy an array to the device of a backend, or to where another array lives.

    Long arrays go to CuPy in pieces, through page-locked memory. Samples that the device has no
    room for can stay on the host: see :class:`gpuclf.Streamed`.

    Parameters
    ----------
    x : array, dict of arrays, Standardized, or fitted classifier (a copy is moved)
        A NumPy array that is to stay in NumPy is returned as it is, without a copy.
    backend : {"auto", "numpy", "cupy"} or Backend
    like : array, optional
        Take the library and device of this array instead of `backend`.

    Raises
    ------
    BackendUnavailableError
        If the backend cannot be used here.
    MemoryError
        If the device has too little memory; the message names the bytes wanted and free.
    """
    if like is not None:
        xp, device = library_of(like), device_of(like)
        return map_arrays(x, lambda a: _put_like(a, xp, device))
    target = get_backend(backend)
    if target.name == "numpy":
        return to_host(x)
    return map_arrays(x, lambda a: cupy_device.upload(a, target.xp))


def _put_like(a: Array, xp: ModuleType, device: Any) -> Array:
    if library_of(a) is xp and device_of(a) == device:
        return a
    host = to_host(a)
    if xp is np:
        return host
    if xp.__name__.rpartition(".")[2] == "cupy":
        with device:
            return cupy_device.upload(host, sys.modules["cupy"])
    return xp.asarray(host, device=device)


def synchronize(x: Array | Backend | None = None) -> None:
    """Wait until the device has finished what was queued; does nothing for NumPy.

    Parameters
    ----------
    x : array or Backend, optional
        Wait for the current stream of this array's device. By default, and for a Backend, for that
        of CuPy's current device, if CuPy is in use.
    """
    if x is None:
        library = "cupy" if cupy_device.in_use() else "numpy"
    else:
        library = x.name if isinstance(x, Backend) else library_name(x)
    if library == "cupy":
        with cupy_device.on_device_of(x):
            sys.modules["cupy"].cuda.get_current_stream().synchronize()
    elif library == "torch" and getattr(x, "is_cuda", False):
        sys.modules["torch"].cuda.synchronize(device_of(x))
