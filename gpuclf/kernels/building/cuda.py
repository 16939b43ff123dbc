"""CUDA kernels by file and name: compiled at their first launch, kept per device and constants.

The sources lie in the folders of their operations: ``*.cu``, and ``*.cuh``, what they share. They
include no header of the CUDA toolkit, so that NVRTC alone compiles them. Everything that a
kernel needs is C++17, CUDA's built-in names, and inline PTX in ``tensor_core.cuh``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuclf import arrays
from gpuclf.arrays import Array, array_namespace
from gpuclf.devices import cupy as cupy_device
from gpuclf.dispatch import machine_code_of

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples

__all__ = [
    "FOLDER",
    "MAX_GRID",
    "MAX_ROWS",
    "MIN_CAPABILITY",
    "NULL",
    "VECTOR",
    "DeviceLimits",
    "Launch",
    "address",
    "build",
    "bytes_of_copies",
    "ceil_div",
    "check_same_device",
    "compiler_options",
    "contiguous",
    "device_limits",
    "empty",
    "fits_grid",
    "have_shapes",
    "hinge_macro",
    "int64_labels",
    "kept_launch",
    "launch",
    "moments",
    "null_for_none",
    "numbers_in",
    "recorded",
    "typed",
]

FOLDER = Path(__file__).parents[1]
HEADER_FOLDERS = (FOLDER / "building", FOLDER / "epochs")
VECTOR = 16  # bytes of the widest load, and what its address must be a multiple of
MIN_CAPABILITY = 80  # of tensor cores and asynchronous copies as the headers have them
MAX_ROWS = 2**31 - 2**10  # so that the rows of a whole block have numbers
MAX_GRID = (2**31 - 1, 65_535, 65_535)  # blocks along x, y, z, on every device
NULL = np.uint64(0)  # a pointer, as an argument of a kernel
UINT8, INT64, FLOAT32, FLOAT64 = map(np.dtype, ("uint8", "int64", "float32", "float64"))
KEPT_LAUNCHES = 1024
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


def launch(
    file: str, constants: Mapping[str, int | str], name: str, grid: int | tuple[int, ...],
    block: int | tuple[int, ...], *args: Any, shared_bytes: int = 0,
) -> None:  # fmt: skip
    """Queue a kernel on the device of its first array; it is compiled when it is first used.

    Parameters
    ----------
    file : str
        Name of a source, such as ``"losses.cu"``.
    constants : dict of int or str
        Macros for the compiler: sizes for unrolled loops, the name of a type.
    name : str
        Name of an ``extern "C" __global__`` function.
    grid, block : int or tuple of int
        Blocks of the grid and threads of a block, along up to three axes.
    *args
        Contiguous arrays, None for a null pointer, integers for CUDA's int, and NumPy scalars of
        all other types.
    shared_bytes : int, default 0
        Dynamic shared memory of a block.

    Raises
    ------
    TypeError
        For a float without a type of its own, which would be passed with the wrong width.
    ValueError
        For a grid that no device takes. Wrappers decline such sizes before: see `fits_grid`.
    """
    arguments = [*map(typed, args)]
    made = kept_launch(
        file, tuple(constants.items()), name, _as_tuple(grid), _as_tuple(block), shared_bytes
    )
    with cupy_device.on_device_of(*arguments):
        made(*arguments)


class Launch:
    """What is the same whenever a kernel is launched: looked up once, for a call of many parts.

    It goes to the current device, which has to be that of its arrays.

    Parameters
    ----------
    file, constants, name, grid, block, shared_bytes
        As in :func:`launch`.
    """

    __slots__ = ("_block", "_grid", "_made", "_source", "shared_bytes")

    def __init__(
        self, file: str, constants: Mapping[str, int | str], name: str,
        grid: int | tuple[int, ...], block: int | tuple[int, ...], shared_bytes: int = 0,
    ) -> None:  # fmt: skip
        self._grid, self._block = _as_tuple(grid), _as_tuple(block)
        if not fits_grid(self._grid):
            raise ValueError(f"{name} in {file}: a grid of {self._grid} blocks; at most {MAX_GRID}")
        self._source = file, name, tuple(sorted(constants.items()))
        self.shared_bytes = shared_bytes
        self._made: tuple[Any, Any] = None, None

    def __call__(self, *args: Any) -> None:
        """Queue it with arrays, NULL or what :func:`null_for_none` makes, and NumPy scalars."""
        made_by, launcher = self._made
        if made_by is not build:  # the first time, or where a test builds in another way
            launcher = build(*self._source)
            self._made = build, launcher
        launcher(self._grid, self._block, args, self.shared_bytes)


@lru_cache(maxsize=KEPT_LAUNCHES)
def kept_launch(
    file: str,
    constants: Constants,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared_bytes: int,
) -> Launch:
    """Return what launches a kernel so, made once: see :class:`Launch`."""
    return Launch(file, dict(constants), name, grid, block, shared_bytes)


def null_for_none(x: Array | None) -> Any:
    """Return what a kernel is given for an array that may be missing."""
    return NULL if x is None else x


def fits_grid(*grids: int | tuple[int, ...]) -> bool:
    """Tell whether a device takes grids of so many blocks along x, y and z.

    Examples
    --------
    >>> fits_grid(70_000), fits_grid((1, 70_000))
    (True, False)
    """
    return all(
        0 < n <= most for grid in grids for n, most in zip(_as_tuple(grid), MAX_GRID, strict=False)
    )


def _as_tuple(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    return sizes if isinstance(sizes, tuple) else (sizes,)


def typed(argument: Any) -> Any:
    """Return an argument of a kernel with the type that it is passed with."""
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, int) and not isinstance(argument, bool):
        return np.int32(argument)
    if isinstance(argument, bool | float) and not isinstance(argument, np.generic):
        raise TypeError(f"kernel argument {argument!r} has no type; pass numpy.float32 or the like")
    return argument


def empty(like: Array, *shape: int, dtype: str = "float32") -> Array:
    """Return an array that kernels have yet to fill, on the device of `like`."""
    xp = array_namespace(like)
    with cupy_device.on_device_of(like):  # array-api-compat makes arrays on the current one
        return cupy_device.with_room(
            lambda: xp.empty(shape, dtype=getattr(xp, dtype), device=like.device)
        )


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


def int64_labels(y: Array) -> Array:
    """Return labels as kernels read them."""
    if y.dtype == INT64 and y.flags.c_contiguous:
        return y
    xp = array_namespace(y)
    return contiguous(xp.astype(y, xp.int64, copy=False))


def bytes_of_copies(
    samples: FoldedSamples, y: Array, floats: Iterable[Array | None], precision: str
) -> int:
    """Return how much of a row the walks over folded bytes can copy at once, or 0 if they decline.

    Parameters
    ----------
    samples : FoldedSamples
    y : integer array of shape (N,)
    floats : iterable of array or None
        Parameters, beginning with the W of the first product, and weights.
    precision : {"float32", "tf32", "float64"}
    """
    X, given = samples.stored, [x for x in floats if x is not None]
    W = given[0]
    fits = (
        precision in ("float32", "tf32")
        and samples.folds
        and type(X) is type(W)
        and X.dtype == UINT8
        and X.flags.c_contiguous
        and samples.n_samples < MAX_ROWS
        and y.ndim == 1
        and y.dtype.kind in "iu"
    )
    for x in moments(samples).values() if fits else ():
        fits = fits and x.dtype == FLOAT64 and x.flags.c_contiguous
    for x in given if fits else ():
        fits = fits and x.dtype == FLOAT32 and x.flags.c_contiguous
    fits = fits and device_limits(W).capability >= MIN_CAPABILITY
    size = gcd(VECTOR, samples.n_features, address(X)) if fits else 0
    return size if size >= 4 else 0  # cp.async has no smaller ones


def moments(samples: FoldedSamples) -> dict[str, Array]:
    """Return by name what the samples are standardised with; nothing if they are not."""
    given = samples.standardized
    return {} if given is None else {"mean": given.mean, "scale": given.scale}


def have_shapes(*given: tuple[Array | None, tuple[int, ...]]) -> bool:
    """Tell whether arrays, but for None, have their shapes, and no axis of length 0."""
    return all(x is None or (x.shape == shape and 0 not in shape) for x, shape in given)


def check_same_device(**named: Array | None) -> None:
    """Raise a MixedDevicesError, as array_namespace does, where arrays are not all in one place."""
    kind, place = None, None
    for x in named.values():
        if x is None:
            continue
        if kind is None:
            kind, place = type(x), x.device
        elif type(x) is not kind or x.device != place:
            array_namespace(**named)


def hinge_macro(data_loss: Any) -> int | None:
    """Return what HINGE is to be for a data loss, or None if kernels do not hold it."""
    known = {"softmax_cross_entropy": 0, "multiclass_hinge": 1}
    return known.get(machine_code_of(data_loss) or "")


def address(x: Array) -> int:
    """Return where the first item of `x` lies."""
    if isinstance(x, np.ndarray):
        return int(x.__array_interface__["data"][0])
    return int(x.data.ptr)  # CuPy's own; its interface would be a new dict


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
def numbers_in(file: str, *names: str) -> tuple[int, ...]:
    """Return what a source defines as ``constexpr int NAME = 64;``, its one home.

    Examples
    --------
    >>> numbers_in("merge_nearest.cu", "MERGE_WARPS")
    (4,)
    """
    text = source_path(file).read_text()
    found = dict(re.findall(r"^constexpr int (\w+) = (\d+);", text, re.MULTILINE))
    return tuple(int(found[name]) for name in names)


@cache
def _source(file: str) -> tuple[str, str]:
    digest = sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.rglob("*.cuh"))))
    return source_path(file).read_text(), f"-DHEADERS=0x{digest.hexdigest()[:8]}"
