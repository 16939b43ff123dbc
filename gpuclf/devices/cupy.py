"""CuPy: is it usable here, and what is asked of the GPU through it. The only import of CuPy.

CuPy computes and makes arrays on its current device, whichever its arguments are on. Three things
make the arrays' device the current one, each where the others cost too much or know too little:

- :func:`on_its_device` decorates what is called from outside. It looks at all arguments, into dicts
  and Standardized too, and for NumPy's costs two look-ups.
- :func:`other_device` is that look by itself, for seams (:mod:`gpuclf.dispatch`) and `Model.loss`,
  which know their library already, or repeat a known call before they look.
- :func:`on_device_of` is for what has a CuPy array in its hands, as plans and launches do. It
  enters the device of the first one, also where that is current.

None of them have `layers.apart`, which makes views and starts nothing on a device, and
:mod:`gpuclf.textbook`, which stays as the course writes it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from gpuclf.arrays import Array, library_name
from gpuclf.devices.uploads import PIECE_BYTES, upload_in_pieces

__all__ = [
    "CupyProbe",
    "CupyTransfers",
    "cuda_device_limits",
    "cuda_graph",
    "cuda_launcher",
    "describe_gpu",
    "free_device_bytes",
    "give_back",
    "give_back_at_need",
    "in_use",
    "new_arrays",
    "on_device_of",
    "on_its_device",
    "other_device",
    "probe_cupy",
    "product_precision",
    "queue_of",
    "transfers",
    "upload",
    "with_room",
]

logger = logging.getLogger("gpuclf")
Given = ParamSpec("Given")
Made = TypeVar("Made")

INSTALL_HINT = (
    "pip install 'cupy-cuda13x[ctk]' (driver for CUDA 13) or pip install 'cupy-cuda12x[ctk]' "
    "(CUDA 12); both bring CuPy with the compiler and libraries that it needs"
)
DRIVER_HINT = (
    "install NVIDIA's driver, and see that `nvidia-smi` lists the GPU and CUDA_VISIBLE_DEVICES "
    "does not hide it"
)


CUPY_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x")
LIBRARIES = ("nvrtc", "cublas", "libcudart", "DynamicLibNotFoundError", "CUDA_PATH")


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
            return CupyProbe(False, reason, _driver_remedy(reason))
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    except Exception as error:
        reason = f"{version} cannot ask the CUDA driver ({_one_line(error)})"
        return CupyProbe(False, reason, _driver_remedy(reason))
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
        return CupyProbe(False, step, _kernel_remedy(step))
    if not np.array_equal(found, [[8.0, 12.0], [24.0, 44.0]]):
        return CupyProbe(False, f"{version} on {device} computes wrong results: {found.tolist()}")
    return CupyProbe(True, f"{version} on {device}")


def _cupy_package() -> str | None:
    """Return under which name CuPy was installed, None if from its source."""
    for package in CUPY_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(package)
            return package
    return None


def _driver_remedy(reason: str) -> str:
    """Say what makes a device visible to CuPy."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "InsufficientDriver" in reason and _cupy_package() == CUPY_PACKAGES[0]:
        return (
            "update NVIDIA's driver, which is older than CUDA 13 (`nvidia-smi` shows its version), "
            "or take the CuPy for CUDA 12: pip uninstall cupy-cuda13x, then "
            "pip install 'cupy-cuda12x[ctk]'"
        )
    if hidden is not None:
        return f"unset CUDA_VISIBLE_DEVICES, which is {hidden!r}; or {DRIVER_HINT}"
    return DRIVER_HINT


def _kernel_remedy(reason: str) -> str:
    """Say what lets CuPy compile and launch."""
    package = _cupy_package()
    if not any(name in reason for name in LIBRARIES):
        return CupyProbe.remedy
    if package is None:
        return (
            "install NVIDIA's CUDA toolkit, and set CUDA_PATH to it: CuPy compiles with its NVRTC"
        )
    return f"give CuPy its compiler and libraries: pip install '{package}[ctk]'"


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


def in_use() -> bool:
    """Tell whether this process has imported CuPy, and it works."""
    return "cupy" in sys.modules and probe_cupy().usable


def describe_gpu() -> dict[str, Any]:
    """Describe the GPU in plain values: what the probe says and, where usable, its properties."""
    probe = probe_cupy()
    if not probe.usable:
        return {"usable": False, "reason": probe.reason, "remedy": probe.remedy}
    import cupy

    current = int(cupy.cuda.Device().id)
    properties = cupy.cuda.runtime.getDeviceProperties(current)
    free, total = cupy.cuda.runtime.memGetInfo()
    return {
        "usable": True,
        "reason": probe.reason,
        "name": properties["name"].decode(),
        "number": current,
        "devices": cupy.cuda.runtime.getDeviceCount(),
        "multiprocessors": properties.get("multiProcessorCount"),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "memory_bytes": total,
        "memory_free_bytes": free,
        "l2_bytes": properties["l2CacheSize"],
        "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }


def upload(a: Array, cupy: ModuleType) -> Array:
    """Copy an array to CuPy's current device; long ones in pieces, through page-locked memory."""
    try:
        if isinstance(a, np.ndarray) and a.ndim and a.nbytes > PIECE_BYTES and a.dtype.isnative:
            return upload_in_pieces(a, CupyTransfers())
        return with_room(lambda: cupy.asarray(a))
    except cupy.cuda.memory.OutOfMemoryError as error:
        free, total = cupy.cuda.runtime.memGetInfo()
        raise MemoryError(
            f"the array of shape {a.shape} needs {a.nbytes:,} bytes on the device, which has "
            f"{free:,} of {total:,} free; pass fewer rows, keep pixels as uint8, or leave the "
            "samples on the host and stream them in blocks: gpuclf.Streamed(X)"
        ) from error


class CupyTransfers:
    """What uploads ask of CUDA (:class:`~gpuclf.devices.uploads.Transfers`).

    Parameters
    ----------
    device : cupy.cuda.Device, optional
        Where the arrays are to be; by default CuPy's current device. Which one is current when a
        method is called does not matter: the arrays, streams and events are this one's.
    """

    def __init__(self, device: Any = None) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device() if device is None else device
        with self._device:
            self._uploads = cupy.cuda.Stream(non_blocking=True)

    def page_locked(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:  # noqa: D102
        import cupyx

        try:
            with self._device:
                locked: np.ndarray = cupyx.empty_pinned(shape, dtype)
        except (MemoryError, RuntimeError) as error:
            logger.debug("no page-locked memory (%s): uploads will be slower", _one_line(error))
            return np.empty(shape, dtype)
        return locked

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:  # noqa: D102
        with self._device:
            return with_room(lambda: self._cupy.empty(shape, dtype))

    def upload(self, source: np.ndarray, target: Array) -> Any:  # noqa: D102
        with self._device:
            target.set(source, stream=self._uploads)
            return self._uploads.record()

    def computed_so_far(self) -> Any:  # noqa: D102
        with self._device:
            return self._cupy.cuda.get_current_stream().record()

    def uploads_wait(self, event: Any) -> None:  # noqa: D102
        with self._device:
            self._uploads.wait_event(event)

    def computation_waits(self, event: Any) -> None:  # noqa: D102
        with self._device:
            self._cupy.cuda.get_current_stream().wait_event(event)

    def host_waits(self, event: Any) -> None:  # noqa: D102
        event.synchronize()


def free_device_bytes(like: Array = None) -> int | None:
    """Return how much memory the device of a CuPy array, or the current one, has free.

    None if CuPy is not in use.
    """
    if not in_use():
        return None
    with on_device_of(like):
        return int(sys.modules["cupy"].cuda.runtime.memGetInfo()[0])


def transfers(like: Array) -> CupyTransfers | None:
    """Return the calls that queue uploads to where `like` lives; None for libraries without."""
    return CupyTransfers(like.device) if library_name(like) == "cupy" else None


def queue_of(like: Array) -> tuple[tuple[int, int, int], Any] | None:
    """Name what runs one after another: device, current stream, thread; None without a device.

    The stream follows: the name is its own for as long as somebody has it.
    """
    if library_name(like) != "cupy":
        return None
    number = like.data.device_id
    stream = sys.modules["cupy"].cuda.get_current_stream(number)
    return (number, stream.ptr, threading.get_ident()), stream


def on_device_of(*arguments: Any) -> AbstractContextManager[Any]:
    """Make the device of the first CuPy array current inside the block; without one, nothing."""
    if (cupy := sys.modules.get("cupy")) is not None:
        for x in arguments:
            if isinstance(x, cupy.ndarray):
                device: AbstractContextManager[Any] = x.device
                return device
    return _UNCHANGED


def other_device(*arguments: Any) -> AbstractContextManager[Any] | None:
    """Return the device of the first array, or samples, of CuPy, unless it is the current one."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return None
    for x in arguments:
        if isinstance(x, dict):
            x = next(iter(x.values()), None)
        device = getattr(getattr(x, "X", x), "device", None)  # of Standardized, that of its X
        if isinstance(device, cupy.cuda.Device):
            there: AbstractContextManager[Any] = device
            return None if device.id == cupy.cuda.runtime.getDevice() else there
    return None


def on_its_device(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Let a function run with the device of its arrays as CuPy's current one."""

    @functools.wraps(function)
    def placed(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        if "cupy" in sys.modules and (device := other_device(*args, *kwargs.values())):
            with device:
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return placed


_spare: list[Callable[[], None]] = []


def give_back_at_need(give: Callable[[], None]) -> None:
    """Let `give` be called when memory runs out, to give back what is only kept to be fast."""
    _spare.append(give)


def give_back() -> None:
    """Give back what is only kept to be fast."""
    for give in _spare:
        give()


def with_room(make: Callable[[], Made]) -> Made:
    """Return ``make()``; where memory runs out, that of a second try, with what is given back."""
    try:
        return make()
    except MemoryError:
        give_back()
    return make()  # outside the handler, whose error would keep alive what the first attempt held


def new_arrays(shapes: Iterable[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[Array]:
    """Return CuPy arrays of these shapes and types on the current device, not filled."""
    empty = sys.modules["cupy"].empty
    return with_room(lambda: [empty(shape, dtype) for shape, dtype in shapes])


CUPY_DEFAULT, CUPY_TF32 = 1, 7  # cupy._core's numbers for how float32 is multiplied
_UNCHANGED = nullcontext()


def product_precision(like: Array, precision: str) -> AbstractContextManager[None]:
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
    core = getattr(sys.modules["cupy"], "_core", None) if library_name(like) == "cupy" else None
    if not hasattr(core, "set_compute_type"):
        return _UNCHANGED
    allowed = precision == "tf32" and int(like.device.compute_capability) >= 80
    return _compute_type(core, CUPY_TF32 if allowed else CUPY_DEFAULT)


@contextmanager
def _compute_type(core: Any, wanted: int) -> Iterator[None]:
    before = core.get_compute_type(np.float32)
    core.set_compute_type(np.float32, wanted)
    try:
        yield
    finally:
        core.set_compute_type(np.float32, before)


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
        ``launch(grid, block, args, shared_bytes)`` queues it on the current device, which has to be
        that of its arrays: see :func:`on_device_of`.
    """
    import cupy

    kernel = cupy.RawKernel(source, name, options)
    asked: dict[int, int] = {}  # bytes of shared memory by device

    def launch(
        grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_bytes: int
    ) -> None:
        if shared_bytes:
            number = next(x.device.id for x in args if isinstance(x, cupy.ndarray))
            if shared_bytes > asked.get(number, 0):
                if shared_bytes > kernel.max_dynamic_shared_size_bytes:
                    kernel.max_dynamic_shared_size_bytes = shared_bytes
                asked[number] = shared_bytes
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
