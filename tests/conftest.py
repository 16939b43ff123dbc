"""The array libraries that every shared function is tested on."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import opaque_arrays
import pytest
from cuda_on_cpu import CpuDevice, missing
from cuda_on_cpu.compilation import compiler

from gpuclf import backend
from gpuclf.backend import probe_cupy
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.samples import walk as row_blocks


@dataclass(frozen=True)
class Library:
    """An array library, with ways in and out that do not use gpuclf's own."""

    name: str
    xp: ModuleType
    asarray: Callable[[Any], Any]
    to_numpy: Callable[[Any], np.ndarray]

    def __repr__(self):
        return self.name


def numpy_library():
    return Library("numpy", np, np.array, np.asarray)


def readonly_numpy_library():
    def asarray(values):
        array = np.array(values)
        array.flags.writeable = False
        return array

    return Library("numpy-readonly", np, asarray, np.asarray)


def strict_library(device="device1"):
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    return Library(
        "array-api-strict",
        xp,
        lambda values: xp.asarray(np.array(values), device=xp.Device(device)),
        lambda array: np.asarray(array.to_device(xp.Device("CPU_DEVICE"))),
    )


def array_api_compat(library):
    """Return a library's wrapper: array-api-compat's, or that of scikit-learn's copy."""
    return importlib.import_module(f"{backend._array_api_compat().__name__}.{library}")


def opaque_library():
    """Arrays whose values cannot be looked at: what passes has no hidden way back to the host."""
    return Library(
        "opaque",
        opaque_arrays.namespace,
        lambda values: opaque_arrays.asarray(values, device=opaque_arrays.DEVICE),
        np.from_dlpack,
    )


def torch_library():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    xp = array_api_compat("torch")
    return Library(
        "torch",
        xp,
        lambda values: xp.asarray(np.array(values)),
        lambda array: array.detach().cpu().numpy(),
    )


def cupy_library():
    probe = probe_cupy()
    if not probe.usable:
        pytest.skip(probe.reason)
    xp = array_api_compat("cupy")
    return Library("cupy", xp, xp.asarray, lambda array: array.get())


LIBRARIES = {
    "numpy": numpy_library,
    "numpy-readonly": readonly_numpy_library,
    "array-api-strict": strict_library,
    "opaque": opaque_library,
    "torch": torch_library,
    "cupy": cupy_library,
}


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.gpu if name == "cupy" else ()) for name in LIBRARIES
    ]
)
def lib(request):
    return LIBRARIES[request.param]()


@pytest.fixture
def strict():
    return strict_library()


@pytest.fixture
def strict_on_cpu():
    return strict_library("CPU_DEVICE")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of seven rows, shared among three threads whatever the machine has."""
    monkeypatch.setattr(row_blocks, "MIN_BLOCK_ROWS", 7)
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 1)
    monkeypatch.setattr(row_blocks, "CPU_CONVERTED_BLOCK_L2S", 0)
    monkeypatch.setattr(row_blocks, "DEVICE_BLOCK_BYTES", 1)
    monkeypatch.setattr(row_blocks, "cpu_workers", lambda: 3)


@pytest.fixture
def cuda_on_cpu(monkeypatch):
    """A device for CUDA kernels on NumPy arrays: see tests/cuda_on_cpu."""
    if compiler() is None:
        missing("no C++ compiler to run CUDA kernels on the CPU")
    device = CpuDevice()
    monkeypatch.setattr(cuda_modules, "build", device.build)
    monkeypatch.setattr(cuda_modules, "device_limits", lambda x: device.limits)
    paths = cuda_modules.FOLDER.glob("*/*on_gpu.py")
    wrappers = (importlib.import_module(f"gpuclf.kernels.{p.parent.name}.{p.stem}") for p in paths)
    for module in (cuda_modules, *wrappers):
        monkeypatch.setattr(module, "array_namespace", device.array_namespace, raising=False)
    return device
