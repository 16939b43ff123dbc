"""The size of a call from which this machine's GPU is faster, kept between processes."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpuclf.devices import cupy as cupy_device
from gpuclf.devices.cpu import cpu_workers
from gpuclf.devices.machine import cpu_name
from gpuclf.files import write_json

__all__ = ["measured_break_even", "parse_break_even", "remember_break_even"]

MOST_BYTES = 1 << 16


def remember_break_even(nbytes: int) -> None:
    """Keep how many bytes of samples make a call faster on the GPU, for ``--backend auto``."""
    with suppress(OSError):  # of a cache that cannot be written nobody's result depends
        write_json(_file(), {"machine": _machine_id(), "bytes": nbytes})


def measured_break_even() -> int | None:
    """Return what :func:`remember_break_even` kept on this machine, None if nothing."""
    try:
        found = parse_break_even(_file().read_bytes())
    except (OSError, ValueError):
        return None  # never measured, or not by this version
    return found["bytes"] if found["machine"] == _machine_id() else None


def parse_break_even(content: bytes) -> dict[str, Any]:
    """Return what the file holds: "machine", and "bytes", a whole number of 1 or more.

    Raises
    ------
    ValueError
        If it holds anything else.
    """
    try:
        found = json.loads(content[:MOST_BYTES])
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict) or type(found.get("machine")) is not str:
        raise ValueError("names no machine")
    if type(found.get("bytes")) is not int or not 1 <= found["bytes"] < 1 << 63:
        raise ValueError("bytes must be a whole number of 1 or more")
    return found


def _file() -> Path:
    try:
        import pooch  # type: ignore[import-untyped]
    except ImportError:  # an image with CuPy alone: nothing is downloaded there
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gpuclf"
    else:
        folder = Path(pooch.os_cache("gpuclf"))
    return folder.expanduser() / "break_even.json"


def _machine_id() -> str:
    return f"{cpu_name()}; {cpu_workers()} threads; {cupy_device.probe_cupy().reason}"
