"""Which array library holds an array, which are usable here, and how to move between them.

The maths never receives a backend object: a function asks :func:`array_namespace` for the library
of its own inputs. This module is the only one that imports CuPy.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from gpuclf.uploads import PIECE_BYTES, upload_in_pieces

__all__ = [
    "Array",
    "Backend",
    "BackendUnavailableError",
    "CupyProbe",
    "CupyTransfers",
    "MixedDevicesError",
    "array_namespace",
    "blas_architectures",
    "blas_threads",
    "cache_bytes",
    "cpu_workers",
    "cuda_device_limits",
    "cuda_graph",
    "cuda_launcher",
    "describe_location",
    "environment",
    "free_device_bytes",
    "get_backend",
    "library_name",
    "probe_cupy",
    "product_precision",
    "single_threaded_blas",
    "synchronize",
    "to_device",
    "to_host",
    "transfers",
]

Array: TypeAlias = Any  # an array of any library: NumPy, CuPy, PyTorch, array-api-strict, ...
logger = logging.getLogger("gpuclf")

INSTALL_HINT = (
    "pip install 'gpuclf[cuda13]' (driver for CUDA 13) or pip install 'gpuclf[cuda12]' (CUDA 12); "
    "both bring CuPy with the compiler and libraries that it needs"
)
DRIVER_HINT = (
    "install NVIDIA's driver, and see that `nvidia-smi` lists the GPU and CUDA_VISIBLE_DEVICES "
    "does not hide it"
)
DEFAULT_CPU_CACHE_BYTES = 1 << 20


class BackendUnavailableError(RuntimeError):
    """The array library that was asked for cannot be used on this machine."""


class MixedDevicesError(TypeError):
    """Arrays of different libraries or devices met in one call."""


@dataclass(frozen=True)
class CupyProbe:
    """What the three-step probe of CuPy found: importable, a device, and usable.

    Attributes
    ----------
    usable : bool
        A kernel was compiled and launched, a matrix product ran, and the result came back right.
    reason : str
        One sentence: the device where usable, otherwise the first step that failed and why.
    remedy : str
        What would make it usable, where it is not.
    """

    usable: bool
    reason: str
    remedy: str = f"install it with {INSTALL_HINT}"


@functools.cache
def probe_cupy() -> CupyProbe:
    """Find out, once per process, whether CuPy works here.

    "Installed" is not "usable": a missing compiler or driver shows only at the first kernel.
    """
    try:
        import cupy
    except Exception as error:  # a broken install can raise anything while it loads libraries
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return CupyProbe(False, "CuPy is not installed")
        return CupyProbe(False, f"CuPy is installed but fails to import ({_one_line(error)})")
    version = f"CuPy {cupy.__version__}"
    try:
        if not cupy.cuda.is_available():
            reason = f"{version} is installed but sees no CUDA device{_why_no_device(cupy)}"
            return CupyProbe(False, reason, DRIVER_HINT)
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    except Exception as error:
        reason = f"{version} cannot ask the CUDA driver ({_one_line(error)})"
        return CupyProbe(False, reason, DRIVER_HINT)
    try:
        doubled = cupy.empty(4, dtype=cupy.float32)
        kernel = cupy.RawKernel(
            'extern "C" __global__ void probe(float* x) { x[threadIdx.x] = 2.0f * threadIdx.x; }',
            "probe",
        )
        kernel((1,), (4,), (doubled,))
        square = doubled.reshape(2, 2)
        found = cupy.asnumpy(square @ square)
    except Exception as error:
        step = f"{version} sees {device} but a first kernel fails ({_one_line(error)})"
        return CupyProbe(False, step)
    if not np.array_equal(found, [[8.0, 12.0], [24.0, 44.0]]):
        return CupyProbe(False, f"{version} on {device} computes wrong results: {found.tolist()}")
    return CupyProbe(True, f"{version} on {device}")


def _why_no_device(cupy: ModuleType) -> str:
    try:
        if cupy.cuda.runtime.driverGetVersion() == 0:
            return " (no CUDA driver)"
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f" ({_one_line(error)})"
    return ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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


def get_backend(name: str | Backend = "auto", *, nbytes: int | None = None) -> Backend:
    """Return the array library of that name.

    Parameters
    ----------
    name : {"auto", "numpy", "cupy"} or Backend
        "auto" takes CuPy where it is usable and NumPy otherwise, and logs why, once.
    nbytes : int, optional
        Bytes of the samples that a call will see. "auto" leaves few of them to NumPy, if
        ``gpuclf bench`` has measured on this machine that they are faster there.

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
    probe = probe_cupy()
    if probe.usable:
        import cupy

        least = measured_break_even() if name == "auto" and nbytes is not None else None
        if least is not None and nbytes is not None and nbytes < least:
            reason = f"calls on {nbytes:,} bytes are faster on the CPU: break-even at {least:,}"
            return Backend("numpy", np, reason)
        return Backend("cupy", cupy, probe.reason)
    if name == "cupy":
        raise BackendUnavailableError(
            f"backend 'cupy' cannot be used: {probe.reason}. To use it, {probe.remedy}; "
            "or use backend='numpy'. `gpuclf info` shows what was found."
        )
    _log_fallback(probe.reason)
    return Backend("numpy", np, probe.reason)


@functools.cache
def _log_fallback(reason: str) -> None:
    logger.warning("no GPU: %s; using NumPy", reason)


def _break_even_file() -> Path:
    import pooch  # type: ignore[import-untyped]

    return Path(pooch.os_cache("gpuclf")).expanduser() / "break_even.json"


def remember_break_even(nbytes: int) -> None:
    """Keep the size of a call from which this machine's GPU is faster, for ``"auto"``.

    Parameters
    ----------
    nbytes : int
        Of the samples.
    """
    path = _break_even_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": _machine_id(), "bytes": nbytes}))


def measured_break_even() -> int | None:
    """Return what :func:`remember_break_even` kept on this machine, None if nothing."""
    try:
        found = json.loads(_break_even_file().read_text())
        return int(found["bytes"]) if found["machine"] == _machine_id() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never measured, or not by this version


def _machine_id() -> str:
    return f"{_cpu_name()}; {cpu_workers()} threads; {probe_cupy().reason}"


# ---------------------------------------------------------------------- whose array is it?


def _is_numpy(x: object) -> bool:
    return isinstance(x, np.ndarray | np.generic)


def _library_of(x: Array) -> ModuleType:
    if _is_numpy(x):
        return np  # NumPy 2 is the array API; wrapping it would only slow it down
    try:
        found: ModuleType = _array_api_compat().array_namespace(x)
    except TypeError:
        raise TypeError(_not_an_array(x)) from None
    return found


@functools.cache
def _array_api_compat() -> ModuleType:
    try:
        return importlib.import_module("array_api_compat")
    except ImportError:  # scikit-learn carries a copy
        return importlib.import_module("sklearn.externals.array_api_compat")


def _not_an_array(x: object) -> str:
    return (
        f"expected an array (NumPy, CuPy or another array API library), got {type(x).__name__}; "
        "convert it with numpy.asarray first"
    )


def library_name(x: Array) -> str:
    """Return the name of the library of an array, such as "numpy" or "cupy"."""
    return "numpy" if _is_numpy(x) else _library_of(x).__name__.rpartition(".")[2]


def _device_of(x: Array) -> object:
    return "cpu" if _is_numpy(x) else x.device


def describe_location(x: Array) -> str:
    """Say which library holds `x` and where, as error messages need it.

    Examples
    --------
    >>> describe_location(np.zeros(3))
    'numpy on cpu'
    """
    return f"{library_name(x)} on {_device_of(x)}"


def array_namespace(*arrays: Array, **named: Array) -> ModuleType:
    """Return the one array library that all the arguments belong to.

    Parameters
    ----------
    *arrays, **named
        Arrays; those passed by name are called by it in the error. None is passed over.

    Returns
    -------
    module
        A namespace of the Python array API standard.

    Raises
    ------
    MixedDevicesError
        If two arrays live in different libraries or on different devices. Nothing is ever copied
        between devices silently.

    Examples
    --------
    >>> array_namespace(np.zeros(3)).__name__
    'numpy'
    """
    everything = (*arrays, *named.values())
    if everything and all(type(x) is np.ndarray for x in everything):
        return np  # the common case, on the path of every mini-batch
    given = [(f"argument {i}", x) for i, x in enumerate(arrays)] + list(named.items())
    present = [(name, x) for name, x in given if x is not None]
    if not present:
        raise TypeError("array_namespace needs at least one array")
    first_name, first = present[0]
    xp = _library_of(first)
    for name, x in present[1:]:
        if _library_of(x) is not xp or _device_of(x) != _device_of(first):
            raise MixedDevicesError(
                f"{first_name} is {describe_location(first)} but {name} is {describe_location(x)}; "
                f"move one of them: gpuclf.to_host({first_name}) brings an array to NumPy, "
                f"gpuclf.to_device({name}, like={first_name}) takes it to the other's device"
            )
    return xp


def values_are_on_host(x: Array) -> bool:
    """Tell whether looking at the values of `x` is free of a device synchronisation."""
    return _is_numpy(x)


# ------------------------------------------------------------------------- moving arrays


def to_device(x: Any, backend: str | Backend = "auto", *, like: Array = None) -> Any:
    """Copy an array to the device of a backend, or to where another array lives.

    Long arrays go to CuPy in pieces, through page-locked memory. Samples that the device has no
    room for can stay on the host: see :class:`gpuclf.Streamed`.

    Parameters
    ----------
    x : array, dict of arrays, or Standardized
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
        xp, device = _library_of(like), _device_of(like)
        return _map_arrays(x, lambda a: _put_like(a, xp, device))
    target = get_backend(backend)
    if target.name == "numpy":
        return to_host(x)
    return _map_arrays(x, lambda a: _upload_to_cupy(a, target.xp))


def _put_like(a: Array, xp: ModuleType, device: object) -> Array:
    if _library_of(a) is xp and _device_of(a) == device:
        return a
    host = to_host(a)
    if xp is np:
        return host
    if xp.__name__.rpartition(".")[2] == "cupy":
        with device:  # type: ignore[attr-defined]
            return _upload_to_cupy(host, sys.modules["cupy"])
    return xp.asarray(host, device=device)


def _upload_to_cupy(a: Array, cupy: ModuleType) -> Array:
    try:
        if isinstance(a, np.ndarray) and a.ndim and a.nbytes > PIECE_BYTES and a.dtype.isnative:
            return upload_in_pieces(a, CupyTransfers(cupy))
        return cupy.asarray(a)
    except cupy.cuda.memory.OutOfMemoryError as error:
        free, total = cupy.cuda.runtime.memGetInfo()
        raise MemoryError(
            f"the array of shape {a.shape} needs {a.nbytes:,} bytes on the device, which has "
            f"{free:,} of {total:,} free; pass fewer rows, keep pixels as uint8, or leave the "
            "samples on the host and stream them in blocks: gpuclf.Streamed(X)"
        ) from error


class CupyTransfers:
    """The CUDA calls of :class:`gpuclf.uploads.Transfers`: CuPy's current stream computes."""

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._uploads = cupy.cuda.Stream(non_blocking=True)

    def page_locked(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:  # noqa: D102
        import cupyx

        try:
            locked: np.ndarray = cupyx.empty_pinned(shape, dtype)
        except (MemoryError, RuntimeError) as error:
            logger.debug("no page-locked memory (%s): uploads will be slower", _one_line(error))
            return np.empty(shape, dtype)
        return locked

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:  # noqa: D102
        return self._cupy.empty(shape, dtype)

    def upload(self, source: np.ndarray, target: Array) -> Any:  # noqa: D102
        target.set(source, stream=self._uploads)
        return self._uploads.record()

    def computed_so_far(self) -> Any:  # noqa: D102
        return self._cupy.cuda.get_current_stream().record()

    def uploads_wait(self, event: Any) -> None:  # noqa: D102
        self._uploads.wait_event(event)

    def computation_waits(self, event: Any) -> None:  # noqa: D102
        self._cupy.cuda.get_current_stream().wait_event(event)

    def host_waits(self, event: Any) -> None:  # noqa: D102
        event.synchronize()


def free_device_bytes() -> int | None:
    """Return how much memory CuPy's current device has free; None if CuPy is not in use."""
    if "cupy" not in sys.modules or not probe_cupy().usable:
        return None
    return int(sys.modules["cupy"].cuda.runtime.memGetInfo()[0])


def transfers(like: Array) -> CupyTransfers | None:
    """Return the calls that queue uploads to where `like` lives; None for libraries without."""
    return CupyTransfers(sys.modules["cupy"]) if library_name(like) == "cupy" else None


def to_host(x: Any) -> Any:
    """Return NumPy arrays for arrays of any library; NumPy arrays come back uncopied.

    Parameters
    ----------
    x : array, dict of arrays, Standardized, or scalar

    Examples
    --------
    >>> to_host({"W": np.ones(2)})
    {'W': array([1., 1.])}
    """
    return _map_arrays(x, _array_to_host)


def _array_to_host(a: Array) -> Array:
    if _is_numpy(a) or isinstance(a, bool | int | float):
        return a
    library = library_name(a)
    if library == "cupy":
        return a.get()
    if library == "torch":
        return a.detach().cpu().numpy()
    if library == "array_api_strict":
        return np.asarray(a.to_device(type(a.device)("CPU_DEVICE")))
    return np.from_dlpack(a)


def _map_arrays(x: Any, function: Callable[[Array], Array]) -> Any:
    if isinstance(x, dict):
        return {key: _map_arrays(value, function) for key, value in x.items()}
    if hasattr(x, "map_arrays"):
        return x.map_arrays(function)
    return function(x)


def synchronize(x: Array | Backend | None = None) -> None:
    """Wait until the device has finished what was queued; does nothing for NumPy.

    Parameters
    ----------
    x : array or Backend, optional
        Wait for the device of this one. By default for CuPy's current device, if CuPy is in use.
    """
    if x is None:
        library = "cupy" if "cupy" in sys.modules and probe_cupy().usable else "numpy"
    else:
        library = x.name if isinstance(x, Backend) else library_name(x)
    if library == "cupy":
        sys.modules["cupy"].cuda.get_current_stream().synchronize()
    elif library == "torch" and getattr(x, "is_cuda", False):
        sys.modules["torch"].cuda.synchronize(_device_of(x))


# ------------------------------------------------------------------------------ precision

CUPY_DEFAULT, CUPY_TF32 = 1, 7  # cupy._core's numbers for how float32 is multiplied


@contextmanager
def product_precision(like: Array, precision: str) -> Iterator[None]:
    """Let CuPy's float32 products use TF32 units inside the block, or keep them from it.

    Parameters
    ----------
    like : array
        Of the library that computes; others than CuPy are left as they are.
    precision : {"float32", "tf32", "float64"}
        Only "tf32" allows TF32 (10 bits behind the point); GPUs without it compute in float32.

    Notes
    -----
    CuPy's one public switch is the environment variable CUPY_TF32, which it reads once. The private
    one holds for the process; what was set comes back after the block.
    """
    core: Any = None
    if library_name(like) == "cupy":
        core = getattr(sys.modules["cupy"], "_core", None)
    if not hasattr(core, "set_compute_type"):
        yield
        return
    allowed = precision == "tf32" and int(like.device.compute_capability) >= 80
    before = core.get_compute_type(np.float32)
    core.set_compute_type(np.float32, CUPY_TF32 if allowed else CUPY_DEFAULT)
    try:
        yield
    finally:
        core.set_compute_type(np.float32, before)


# -------------------------------------------------------------------- the machine's sizes


def cache_bytes(x: Array = None) -> int:
    """Return the size of the cache that a row block should fit into, in bytes.

    For NumPy that is one CPU core's L2, for CuPy the GPU's L2.
    """
    if x is not None and library_name(x) == "cupy":
        with x.device:
            return int(x.device.attributes["L2CacheSize"])
    return _cpu_l2_bytes()


def cuda_device_limits(x: Array) -> tuple[int, int, int]:
    """Return a CuPy array's device: compute capability, multiprocessors, shared bytes a block."""
    attributes = x.device.attributes
    return (
        int(x.device.compute_capability),
        attributes["MultiProcessorCount"],
        attributes["MaxSharedMemoryPerBlockOptin"],
    )


@functools.cache
def cuda_launcher(source: str, name: str, options: tuple[str, ...]) -> Callable[..., None]:
    """Return a function that launches a kernel, compiled at its first launch on a device.

    Kernels of the same source and options share what is compiled.

    Parameters
    ----------
    source : str
        CUDA C++ for NVRTC, with ``extern "C"`` kernels.
    name : str
    options : tuple of str
        The compiler's, without the target.

    Returns
    -------
    callable
        ``launch(grid, block, args, shared_bytes)`` queues it on the device of the first array.
    """
    import cupy

    kernel = cupy.RawKernel(source, name, options)

    def launch(
        grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_bytes: int
    ) -> None:
        with next(x.device for x in args if isinstance(x, cupy.ndarray)):
            if shared_bytes and shared_bytes > kernel.max_dynamic_shared_size_bytes:
                kernel.max_dynamic_shared_size_bytes = shared_bytes
            kernel(grid, block, args, shared_mem=shared_bytes)

    return launch


def cuda_graph(like: Array, queue: Callable[[], None]) -> Callable[[], None] | None:
    """Capture the kernels that `queue` launches as a CUDA graph; None if that fails.

    Parameters
    ----------
    like : array
        A CuPy array on the device to launch on.
    queue : callable
        Launches kernels that have been compiled, with arrays that stay where they are. Nothing else
        may be queued by it: CuPy's pool would hand out again what a graph still uses.

    Returns
    -------
    callable
        Queues the whole graph on CuPy's current stream.
    """
    import cupy

    with like.device:
        stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        try:
            with stream:
                stream.begin_capture()
                try:
                    queue()
                finally:
                    graph = stream.end_capture()
        except (RuntimeError, NotImplementedError) as error:
            logger.warning("launches are not recorded (%s)", _one_line(error))
            return None

    def launch() -> None:
        with like.device:
            graph.launch(stream=cupy.cuda.get_current_stream())

    return launch


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
def _blas_controller() -> Any:
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
    libraries = _blas_controller().lib_controllers
    return max((library.num_threads for library in libraries), default=1)


def blas_architectures() -> list[str]:
    """Return the processor kinds that the BLAS libraries in use chose their kernels for."""
    libraries = _blas_controller().lib_controllers
    return [library.architecture for library in libraries if hasattr(library, "architecture")]


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
            _blas_limiter = _blas_controller().limit(limits=1)
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


def environment() -> dict[str, Any]:
    """Describe the machine and the versions, as `gpuclf info` prints and benchmarks record them.

    Returns
    -------
    dict
        Plain values only, so that it can be written as JSON.
    """
    blas = [
        {
            "library": library.internal_api,
            "version": library.version,
            "threads": library.num_threads,
            "architecture": getattr(library, "architecture", None),
        }
        for library in _blas_controller().lib_controllers
    ]
    probe = probe_cupy()
    gpu: dict[str, Any] = {"usable": probe.usable, "reason": probe.reason}
    if not probe.usable:
        gpu["remedy"] = probe.remedy
    else:
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        free, total = cupy.cuda.runtime.memGetInfo()
        gpu |= {
            "name": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "memory_bytes": total,
            "memory_free_bytes": free,
            "l2_bytes": properties["l2CacheSize"],
            "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
            "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
        }
    packages = ["gpuclf", "numpy", "scipy", "scikit-learn", "array-api-compat", "numba"]
    packages += ["cupy-cuda12x", "cupy-cuda13x", "cupy", "torch", "jax"]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": _usable_cpus(),
        "cpu_l2_bytes": _cpu_l2_bytes(),
        "memory_bytes": _memory_bytes(),
        "blas": blas,
        "threads": cpu_workers(),
        "gpu": gpu,
        "versions": {name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str | None:
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


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
