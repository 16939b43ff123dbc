"""CUDA kernels by file and name: compiled at their first launch, kept per device and constants.

The sources lie beside this module: ``*.cu``, one operation each, and ``*.cuh``, what they share.
They include no header of the CUDA toolkit, so that NVRTC alone compiles them. Everything that a
kernel needs is C++17, CUDA's built-in names, and inline PTX in ``tensor_core.cuh``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from gpuclf import arrays
from gpuclf.arrays import Array
from gpuclf.devices import cupy as cupy_device

__all__ = [
    "FOLDER",
    "DeviceLimits",
    "Launch",
    "address",
    "build",
    "ceil_div",
    "compiler_options",
    "contiguous",
    "device_limits",
    "kernel",
    "recorded",
]

FOLDER = Path(__file__).parents[1]
HEADER_FOLDERS = (FOLDER / "building", FOLDER / "epochs")
Constants: TypeAlias = tuple[tuple[str, int | str], ...]
Launcher: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...], int], None]


@dataclass(frozen=True)
class DeviceLimits:
    """What a wrapper may want to know of the device before it launches.

    Attributes
    ----------
    capability : int
        Compute capability, ten times the major number plus the minor: 90 on an H200.
    multiprocessors : int
    shared_bytes : int
        The most shared memory that one block can have.
    """

    capability: int
    multiprocessors: int
    shared_bytes: int


def device_limits(x: Array) -> DeviceLimits:
    """Return the limits of the device that holds `x`, asked for once: CuPy asks for all at once."""
    number = int(x.device.id)
    if number not in _limits:
        _limits[number] = DeviceLimits(*cupy_device.cuda_device_limits(x))
    return _limits[number]


_limits: dict[int, DeviceLimits] = {}


@dataclass(frozen=True)
class Launch:
    """A kernel that is compiled when it is first called.

    Attributes
    ----------
    file, name : str
    constants : tuple of (name, value)
    """

    file: str
    name: str
    constants: Constants = ()

    def __call__(
        self, grid: int | tuple[int, ...], block: int | tuple[int, ...], args: tuple[Any, ...],
        *, shared_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Queue the kernel on the device of its first array.

        Parameters
        ----------
        grid, block : int or tuple of int
            Blocks of the grid and threads of a block, along up to three axes.
        args : tuple
            Contiguous arrays, NumPy scalars of the parameters' types, and None for a null pointer.
        shared_bytes : int, default 0
            Dynamic shared memory of a block.

        Raises
        ------
        TypeError
            For a number without a type of its own, which would be passed with the wrong width.
        """
        launcher = build(self.file, self.name, self.constants)
        launcher(_as_tuple(grid), _as_tuple(block), tuple(map(_checked, args)), shared_bytes)


def _as_tuple(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    return sizes if isinstance(sizes, tuple) else (sizes,)


def _checked(argument: Any) -> Any:
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, bool | int | float) and not isinstance(argument, np.generic):
        raise TypeError(
            f"kernel argument {argument!r} has no type; pass numpy.int32({argument!r}) or the like"
        )
    return argument


@cache
def kernel(file: str, name: str, **constants: int | str) -> Launch:
    """Return the kernel `name` of `file`, with macros defined as `constants`.

    Parameters
    ----------
    file : str
        Name of a source in this folder, such as ``"losses.cu"``.
    name : str
        Name of an ``extern "C" __global__`` function.
    **constants : int or str
        What the compiler is to know: sizes for unrolled loops, the name of a type.

    Examples
    --------
    >>> kernel("losses.cu", "softmax_cross_entropy", REAL="float").constants
    (('REAL', 'float'),)
    """
    return Launch(file, name, tuple(sorted(constants.items())))


def ceil_div(a: int, b: int) -> int:
    """Return how many blocks of `b` hold `a`.

    Examples
    --------
    >>> ceil_div(7, 3)
    3
    """
    return -(-a // b)


def contiguous(x: Array) -> Array:
    """Return `x`, or a copy if its items do not lie one after another: kernels see no strides."""
    return x if x.flags.c_contiguous else x.copy()


def address(x: Array) -> int:
    """Return where the first item of `x` lies."""
    interface = getattr(x, "__cuda_array_interface__", None) or x.__array_interface__
    return int(interface["data"][0])


def recorded(like: Array, queue: Callable[[], None]) -> Callable[[], None] | None:
    """Record the launches of `queue` instead of making them, and return what makes them all.

    Parameters
    ----------
    like : array
        On the device to launch on.
    queue : callable
        Launches kernels of this module and does nothing else. The arrays that it passes have to
        stay where they are for as long as the launches are repeated.

    Returns
    -------
    callable or None
        None where launches cannot be recorded; call `queue` itself then.
    """
    return cupy_device.cuda_graph(like, queue) if arrays.library_name(like) == "cupy" else None


def compiler_options(constants: Constants) -> tuple[str, ...]:
    """Return the options for NVRTC or nvcc that do not depend on the device."""
    return (
        "-std=c++17",
        *(f"-I{folder}" for folder in HEADER_FOLDERS),
        *(f"-D{name}={value}" for name, value in constants),
    )


@cache
def build(file: str, name: str, constants: Constants) -> Launcher:
    """Return what launches a kernel. Tests without a GPU put a function of their own here."""
    source, headers = _source(file)
    # CuPy keeps binaries on disk by source and options; it does not look into included files.
    return cupy_device.cuda_launcher(source, name, (*compiler_options(constants), headers))


def source_path(file: str) -> Path:
    """Return where a source lies, in the folder of its operation."""
    return next(FOLDER.rglob(file))


@cache
def _source(file: str) -> tuple[str, str]:
    digest = sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.rglob("*.cuh"))))
    return source_path(file).read_text(), f"-DHEADERS=0x{digest.hexdigest()[:8]}"
