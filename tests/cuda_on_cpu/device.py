"""Stands in for a CUDA device: launches kernels on copies of NumPy arrays between guard zones."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from gpuclf.backend import array_namespace
from gpuclf.kernels import cuda_modules

from .compilation import library

ORDERS = {"forward": 0, "reversed": 1, "shuffled": 2}
# What memory holds that nobody has written: NaN and -1, or large numbers, by order.
GARBAGE = {"forward": 0xFF, "reversed": 0x7F, "shuffled": 0xFF}
GUARD_BYTES = 64 << 10


class CudaOnCpuError(RuntimeError):
    """A kernel did what it must not do."""


class _Argument(ctypes.Structure):
    _fields_ = [
        ("value", ctypes.c_void_p),
        ("kind", ctypes.c_char),
        ("is_array", ctypes.c_bool),
        ("is_writable", ctypes.c_bool),
        ("item_bytes", ctypes.c_int),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("order", ctypes.c_uint),
        ("fill", ctypes.c_int),
        ("n_arguments", ctypes.c_int),
        ("arguments", ctypes.POINTER(_Argument)),
    ]


class _Guarded:
    """A copy of an array between guard zones, aligned to 256 bytes as a device's memory is.

    What a view's address has beyond a multiple of 16, to which NumPy aligns, the copy's has too.
    """

    def __init__(self, number: int, array: np.ndarray, fill: int) -> None:
        if not array.flags.c_contiguous:
            raise CudaOnCpuError(f"an array of shape {array.shape} is not contiguous")
        self.number = number
        self.array = array
        self.fill = fill
        self.memory = np.full(array.nbytes + 2 * GUARD_BYTES + 512, fill, np.uint8)
        self.start = GUARD_BYTES + -(self.memory.ctypes.data + GUARD_BYTES) % 256
        self.start += array.ctypes.data % 16
        self.bytes = self.memory[self.start : self.start + array.nbytes]
        self.bytes[:] = np.frombuffer(array, np.uint8) if array.nbytes else 0
        self.address = self.memory.ctypes.data + self.start

    def finish(self) -> None:
        """Check the zones around the copy, and bring back what the kernel has written."""
        before, after = self.memory[: self.start], self.memory[self.start + self.array.nbytes :]
        if np.any(before != self.fill) or np.any(after != self.fill):
            side = "before" if np.any(before != self.fill) else "after"
            raise CudaOnCpuError(f"memory {side} argument {self.number} was written")
        if self.array.flags.writeable:
            self.array.view(np.uint8).reshape(-1)[:] = self.bytes if self.array.nbytes else 0
        elif np.any(self.bytes != np.frombuffer(self.array, np.uint8)):
            raise CudaOnCpuError(f"argument {self.number} is read-only and was written")


class CpuDevice:
    """Launches kernels on the CPU.

    Attributes
    ----------
    order : {"forward", "reversed", "shuffled"}
        In which order blocks, warps and lanes take their turns.
    limits : DeviceLimits
        What wrappers are told about the device. Few multiprocessors, so that a grid that follows
        them goes round several times also for little data.
    launches : list of str
        The names of the kernels launched so far.
    """

    def __init__(self) -> None:
        self.order = "forward"
        self.limits = cuda_modules.DeviceLimits(90, 3, 227 << 10)
        self.launches: list[str] = []
        self._sources: dict[str, str] = {}

    @property
    def garbage(self) -> int:
        """The byte that memory is filled with before anything is written there."""
        return GARBAGE[self.order]

    def source(self, file: str) -> str:
        """Return the text of a file as it is compiled."""
        if file not in self._sources:
            self._sources[file] = (cuda_modules.FOLDER / file).read_text()
        return self._sources[file]

    def add_source(self, file: str, text: str) -> None:
        """Let kernels be found in `text` under the name `file`."""
        self._sources[file] = text

    @contextmanager
    def broken(self, file: str, *replacements: tuple[str, str]) -> Iterator[None]:
        """Compile `file` with pieces of its text replaced; each must be there exactly once."""
        intact = text = self.source(file)
        for old, new in replacements:
            if text.count(old) != 1:
                raise ValueError(f"{old!r} is {text.count(old)} times in {file}")
            text = text.replace(old, new)
        self._sources[file] = text
        try:
            yield
        finally:
            self._sources[file] = intact

    def build(
        self, file: str, name: str, constants: cuda_modules.Constants
    ) -> cuda_modules.Launcher:
        """Stand in for :func:`gpuclf.kernels.cuda_modules.build`."""
        entry = getattr(library(file, self.source(file), constants), f"launch_{name}")
        entry.argtypes, entry.restype = [ctypes.POINTER(_Request)], ctypes.c_char_p

        def launch(grid, block, args, shared_bytes):
            self.launches.append(name)
            guarded: dict[tuple[int, int], _Guarded] = {}
            numbers = []  # keeps the scalars alive
            arguments = (_Argument * len(args))()
            for number, (given, argument) in enumerate(zip(args, arguments, strict=True)):
                is_array = isinstance(given, np.ndarray) and given.ndim > 0
                if is_array:
                    place = given.ctypes.data, given.nbytes
                    for other in guarded.values():
                        if place != (other.array.ctypes.data, other.array.nbytes) and (
                            np.may_share_memory(given, other.array)
                        ):
                            raise CudaOnCpuError("arguments overlap without being the same")
                    if place not in guarded:
                        guarded[place] = _Guarded(number, given, self.garbage)
                    address = guarded[place].address
                else:
                    numbers.append(np.array(given))
                    address = numbers[-1].ctypes.data
                is_null = isinstance(given, np.uint64) and given == 0
                argument.value = address
                argument.kind = b"n" if is_null else given.dtype.kind.encode()[:1]
                argument.is_array = is_array
                argument.is_writable = is_array and given.flags.writeable
                argument.item_bytes = given.dtype.itemsize
            request = _Request(
                (*grid, 1, 1)[:3],
                (*block, 1, 1)[:3],
                shared_bytes,
                ORDERS[self.order],
                self.garbage,
                len(args),
                arguments,
            )
            error = entry(ctypes.byref(request))
            if error is not None:
                raise CudaOnCpuError(f"{file}, {name}: {error.decode()}")
            for one in guarded.values():
                one.finish()

        return launch

    def array_namespace(self, *arrays, **named) -> SimpleNamespace:
        """Stand in for :func:`gpuclf.backend.array_namespace`: NumPy with this device's memory.

        Replacing numpy.empty itself would break Numba, which looks functions up in NumPy.
        """
        array_namespace(*arrays, **named)
        return SimpleNamespace(**vars(np) | {"empty": self.empty, "empty_like": self.empty_like})

    def empty(self, *args, **kwargs) -> np.ndarray:
        """Stand in for :func:`numpy.empty`: memory full of garbage, as a pool gives it."""
        array = _numpy_empty(*args, **kwargs)
        if array.size and not array.dtype.hasobject:
            ctypes.memset(array.ctypes.data, self.garbage, array.nbytes)
        return array

    def empty_like(self, prototype, dtype=None, **kwargs) -> np.ndarray:
        """Stand in for :func:`numpy.empty_like`."""
        return self.empty(prototype.shape, dtype or prototype.dtype)


_numpy_empty = np.empty
