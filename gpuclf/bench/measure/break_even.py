"""The size of a call from which this machine's GPU is faster, kept between processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from gpuclf.devices import cupy as cupy_device
from gpuclf.devices.cpu import cpu_workers
from gpuclf.devices.machine import cpu_name
from gpuclf.files import write_json

__all__ = ["measured_break_even", "remember_break_even"]


def remember_break_even(nbytes: int) -> None:
    """Keep how many bytes of samples make a call faster on the GPU, for ``--backend auto``."""
    write_json(_file(), {"machine": _machine_id(), "bytes": nbytes})


def measured_break_even() -> int | None:
    """Return what :func:`remember_break_even` kept on this machine, None if nothing."""
    try:
        found = json.loads(_file().read_text())
        return int(found["bytes"]) if found["machine"] == _machine_id() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never measured, or not by this version


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
