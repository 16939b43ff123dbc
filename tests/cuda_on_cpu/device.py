"""Stands in for a CUDA device: launches kernels on copies of NumPy arrays between guard pages."""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building import cuda as cuda_modules

from .compilation import library, whole_source

ORDERS = {"forward": 0, "reversed": 1, "shuffled": 2}
COPIES = {"when waited for": 0, "at once": 1}
# What memory holds that nobody has written: NaN and -1, or large numbers, by order.
GARBAGE = {"forward": 0xFF, "reversed": 0x7F, "shuffled": 0xFF}
GUARD_BYTES = 1 << 20  # on each side, where any access is an error


class CudaOnCpuError(RuntimeError):
    """A kernel did what it must not do."""


class _Argument(ctypes.Structure):
    _fields_ = [
        ("value", ctypes.c_void_p),
        ("kind", ctypes.c_char),
        ("is_array", ctypes.c_bool),
        ("is_writable", ctypes.c_bool),
        ("item_bytes", ctypes.c_int),
        ("bytes", ctypes.c_size_t),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("order", ctypes.c_uint),
        ("copies_at_once", ctypes.c_uint),
        ("fill", ctypes.c_int),
        ("n_arguments", ctypes.c_int),
        ("arguments", ctypes.POINTER(_Argument)),
    ]


def _forbid_access(address: int, n_bytes: int) -> None:
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if protect(address, n_bytes, 0):
        raise OSError(ctypes.get_errno(), "mprotect failed")


class _Guarded:
    """A copy of an array between pages that cannot be accessed.

    It ends where the pages after it begin, or begins where those before it end. What an address
    has beyond a multiple of 16, to which NumPy aligns, the copy's has too; the bytes that are left
    for that on the copy's own pages must not be written.
    """

    def __init__(self, number: int, array: np.ndarray, fill: int, *, at_end: bool) -> None:
        if not array.flags.c_contiguous:
            raise CudaOnCpuError(f"an array of shape {array.shape} is not contiguous")
        self.number = number
        self.array = array
        self.fill = fill
        own = -(-(array.nbytes + 15) // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = mmap.mmap(-1, own + 2 * GUARD_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        everything = np.frombuffer(pages, np.uint8)
        for start in (0, GUARD_BYTES + own):
            _forbid_access(everything.ctypes.data + start, GUARD_BYTES)
        self.memory = everything[GUARD_BYTES : GUARD_BYTES + own]
        self.memory[:] = fill
        beyond = array.ctypes.data % 16
        self.start = beyond
        if at_end:
            self.start += (own - array.nbytes - beyond) // 16 * 16
        self.bytes = self.memory[self.start : self.start + array.nbytes]
        self.bytes[:] = np.frombuffer(array, np.uint8) if array.nbytes else 0
        self.address = self.memory.ctypes.data + self.start

    def finish(self) -> None:
        """Check what lies around the copy, and bring back what the kernel has written."""
        before, after = self.memory[: self.start], self.memory[self.start + self.array.nbytes :]
        if np.any(before != self.fill) or np.any(after != self.fill):
            side = "before" if np.any(before != self.fill) else "after"
            raise CudaOnCpuError(f"memory {side} argument {self.number} was written")
        if self.array.flags.writeable:
            self.array.view(np.uint8).reshape(-1)[:] = self.bytes if self.array.nbytes else 0
        elif np.any(self.bytes != np.frombuffer(self.array, np.uint8)):
            raise CudaOnCpuError(f"argument {self.number} is read-only and was written")


class HiddenArray(np.ndarray):
    """An array whose values only kernels see: on a device, to look at one is to wait for it."""

    def __getitem__(self, key):
        return hidden(np.asarray(self)[key])

    def __array_function__(self, function, types, args, kwargs):
        found = super().__array_function__(function, types, args, kwargs)
        if isinstance(found, bool | int | float) and not isinstance(found, np.generic):
            raise CudaOnCpuError(f"{function.__name__} looks at values on the device")
        return hidden(found)


def _refuse(name):
    def refused(self, *args, **kwargs):
        raise CudaOnCpuError(f"{name} looks at values on the device")

    return refused


LOOKS = ["bool", "int", "float", "index", "complex", "iter", "contains", "format", "str"]
LOOKS = [f"__{name}__" for name in LOOKS]
LOOKS += ["item", "tolist", "tobytes", "tofile", "nonzero", "argmin", "argmax"]
for _name in LOOKS:
    setattr(HiddenArray, _name, _refuse(_name))


def hidden(x):
    """Return a view of an array, or of a number of NumPy's; anything else as it is."""
    return np.asanyarray(x).view(HiddenArray) if isinstance(x, np.ndarray | np.generic) else x


def shown(x):
    """Return NumPy's own array again."""
    return np.asarray(x) if isinstance(x, HiddenArray) else x


def with_hidden_arrays(function):
    """Return `function` for NumPy arrays, whose values it cannot look at."""

    def call(*args, **kwargs):
        found = function(*map(hidden, args), **{name: hidden(x) for name, x in kwargs.items()})
        return tuple(map(shown, found)) if isinstance(found, tuple) else shown(found)

    return call


class CpuDevice:
    """Launches kernels on the CPU.

    Attributes
    ----------
    order : {"forward", "reversed", "shuffled"}
        In which order blocks, warps and lanes take their turns.
    copies : {"when waited for", "at once"}
        When asynchronous copies to shared memory are made: as late or as early as can be.
    limits : DeviceLimits
        What wrappers are told about the device. Few multiprocessors, so that a grid that follows
        them goes round several times also for little data.
    launches : list of str
        The names of the kernels launched so far.
    """

    def __init__(self) -> None:
        self.order, self.copies = "forward", "when waited for"
        self.limits = cuda_modules.DeviceLimits(90, 3, 227 << 10)
        self.launches: list[str] = []
        self._sources: dict[str, str] = {}

    @property
    def garbage(self) -> int:
        """The byte that memory is filled with before anything is written there."""
        return GARBAGE[self.order]

    def source(self, file: str) -> str:
        """Return the text of a file as it is compiled, with the headers in it that have kernels."""
        if file not in self._sources:
            self._sources[file] = whole_source(file)
        return self._sources[file]

    def add_source(self, file: str, text: str) -> None:
        """Let kernels be found in `text` under the name `file`."""
        self._sources[file] = text
        self._build_anew()

    @contextmanager
    def broken(self, file: str, *replacements: tuple[str, str]) -> Iterator[None]:
        """Compile `file` with pieces of its text replaced; each must be there exactly once."""
        intact = text = self.source(file)
        for old, new in replacements:
            if text.count(old) != 1:
                raise ValueError(f"{old!r} is {text.count(old)} times in {file}")
            text = text.replace(old, new)
        self._sources[file] = text
        self._build_anew()
        try:
            yield
        finally:
            self._sources[file] = intact
            self._build_anew()

    def _build_anew(self) -> None:
        # Launches that are kept look whether kernels are still built by the same method.
        if getattr(cuda_modules.build, "__self__", None) is self:
            cuda_modules.build = self.build

    def build(
        self, file: str, name: str, constants: cuda_modules.Constants
    ) -> cuda_modules.Launcher:
        """Stand in for :func:`gpuclf.kernels.building.cuda.build`."""
        entry = library(file, self.source(file), constants).entry(name)
        entry.argtypes, entry.restype = [ctypes.POINTER(_Request)], ctypes.c_char_p

        def launch(grid, block, args, shared_bytes):
            self.launches.append(name)
            guarded: dict[tuple[int, int], _Guarded] = {}
            numbers = []  # keeps the scalars alive
            arguments = (_Argument * len(args))()
            for number, (given, argument) in enumerate(zip(args, arguments, strict=True)):
                given = shown(given)
                is_array = isinstance(given, np.ndarray) and given.ndim > 0
                if is_array:
                    place = given.ctypes.data, given.nbytes
                    for other in guarded.values():
                        if place != (other.array.ctypes.data, other.array.nbytes) and (
                            np.may_share_memory(given, other.array)
                        ):
                            raise CudaOnCpuError("arguments overlap without being the same")
                    if place not in guarded:
                        guarded[place] = _Guarded(
                            number, given, self.garbage, at_end=self.order != "reversed"
                        )
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
                argument.bytes = given.nbytes
            request = _Request(
                (*grid, 1, 1)[:3],
                (*block, 1, 1)[:3],
                shared_bytes,
                ORDERS[self.order],
                COPIES[self.copies],
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
        """Stand in for :func:`gpuclf.arrays.array_namespace`: NumPy with this device's memory.

        Replacing numpy.empty itself would break Numba, which looks functions up in NumPy.
        """
        array_namespace(*arrays, **named)
        own = {"empty": self.empty, "empty_like": self.empty_like}
        if any(isinstance(x, HiddenArray) for x in (*arrays, *named.values())):
            own = {"empty": lambda *args, **kwargs: hidden(self.empty(*args, **kwargs))}
            own |= {"empty_like": lambda *args, **kwargs: hidden(self.empty_like(*args, **kwargs))}
            own |= {"asarray": np.asanyarray}
        return SimpleNamespace(**vars(np) | own)

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
