"""What is left out and what is said of it; the array libraries that shared functions run on."""

import importlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import opaque_arrays
import pytest
from cuda_on_cpu import CpuDevice, missing
from cuda_on_cpu.compilation import compiler
from pretend_gpus import pretended_gpus

from gpuclf import arrays
from gpuclf.devices.cupy import probe_cupy
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building.machine_code import (
    matrix_unit_is_usable,
    numba_is_usable,
    processor_features,
)
from gpuclf.samples import walk as row_blocks


def _gpu():
    return None if probe_cupy().usable else probe_cupy().reason


def _real_data():
    return None if os.environ.get("GPUCLF_DATA") else "GPUCLF_DATA names no folder with CIFAR-10"


def _amx():
    return None if matrix_unit_is_usable() else "no matrix unit for bytes (AMX), or no numba"


def _vnni():
    is_there = numba_is_usable() and processor_features().get("avx512vnni")
    return None if is_there else "no dot products of bytes (AVX-512 VNNI), or no numba"


def _nightly():
    return None if os.environ.get("GPUCLF_NIGHTLY") else "GPUCLF_NIGHTLY is not set (make nightly)"


# What a marker needs: why it cannot be had here, or None.
WHY_LEFT_OUT = {
    "gpu": _gpu,
    "real_data": _real_data,
    "amx": _amx,
    "vnni": _vnni,
    "nightly": _nightly,
}
left_out = {}  # by marker: how many tests, and why


def pytest_addoption(parser):
    """Let CI run once what needs neither PyTorch, JAX nor CuPy, and the rest where they are."""
    help_text = "leave out the tests named in this file (GPUCLF_PASSED_TESTS writes it)"
    parser.addoption("--but", type=Path, help=help_text)


passed = []  # names of tests


def pytest_runtest_logreport(report):
    """Remember what passed."""
    if report.when == "call" and report.passed:
        passed.append(report.nodeid)


def pytest_configure(config):
    """Run what is asked for by its full name, slow or not."""
    if config.option.markexpr == "not slow" and any("::" in name for name in config.args):
        config.option.markexpr = ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leave out what this machine cannot run, and mark repetitions as slow."""
    _leave_out(config, items, *(marker for marker in WHY_LEFT_OUT if marker != "nightly"))
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("essential_cases"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for alike in cases.values():
        marker = alike[0].get_closest_marker("essential_cases")
        (n,), n_in_ci = marker.args, marker.kwargs.get("in_ci", len(alike))
        essential, in_ci = ({i * len(alike) // k for i in range(k)} for k in (n, n_in_ci))
        for i, item in enumerate(alike):
            if i not in essential:
                item.add_marker(pytest.mark.slow)
            if i not in essential | in_ci:
                item.add_marker(pytest.mark.nightly)
    _leave_out(config, items, "nightly")
    if file := config.getoption("but"):
        done = set(file.read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]


def _leave_out(config, items, *markers):
    for marker in markers:
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := WHY_LEFT_OUT[marker]()) is not None:
            left_out[marker] = len(marked), reason
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


# Files that compile the same loops, or start the same cluster: one process does it once.
TOGETHER = {
    "test_compiled_linear.py": "linear",
    "test_acceptance.py": "linear",
    "test_cli.py": "linear",
    "test_cluster.py": "cluster",
    "test_exact_neighbors.py": "nearest",
    "test_neighbors.py": "nearest",
    "test_kneighbors_classifier.py": "nearest",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give files that share what takes long to one worker, first; the others test by test."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return TOGETHER.get(Path(path).name, nodeid)

    return Scheduling(config, log)


def pytest_sessionfinish(session):
    """Tell the process that prints the summary what pytest-xdist's worker left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = left_out
    elif file := os.environ.get("GPUCLF_PASSED_TESTS"):
        Path(file).write_text("\n".join(passed) + "\n")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Hear what a worker left out; every worker collects the same."""
    left_out.update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter):
    """Count the tests left out and those skipped, a line for each reason."""
    if left_out:
        terminalreporter.section("left out")
    for marker, (count, reason) in left_out.items():
        terminalreporter.line(f"{count:5} marked {marker}: {reason}")
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5} {reason}")


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
    return importlib.import_module(f"{arrays._array_api_compat().__name__}.{library}")


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


@pytest.fixture(autouse=True)
def warnings_are_logged():
    """Undo what the command line did to the logger: caplog would miss warnings."""
    logging.getLogger("gpuclf").setLevel(logging.NOTSET)


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.gpu if name == "cupy" else ()) for name in LIBRARIES
    ]
)
def lib(request):
    library = LIBRARIES[request.param]()
    # Known from here on, whatever a test pretends of CuPy: array-api-compat looks for that one.
    arrays.library_of(library.asarray(np.zeros(1)))
    return library


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
    monkeypatch.setattr(row_blocks, "CPU_CONVERTED_BLOCK_BYTES", 0)
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


@pytest.fixture
def gpus(monkeypatch):
    """Two pretended GPUs: see pretend_gpus.py."""
    with pretended_gpus(monkeypatch) as found:
        yield found
