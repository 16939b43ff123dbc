"""The Python version of CIFAR-10: pickles, read without trusting them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.image_dataset import DatasetError, damaged, file_size

__all__ = ["LARGEST_FILE_BYTES", "N_CLASSES", "read_python_batch", "read_python_class_names"]

N_CLASSES = 10
# Twice what the largest file of either version takes: a bound on what an altered file or archive
# can make this process read or write.
LARGEST_FILE_BYTES = 64 << 20


def read_python_batch(
    path: Path,
    X: npt.NDArray[np.uint8],
    y: npt.NDArray[np.int64],
    labels_key: bytes = b"labels",
    n_classes: int = N_CLASSES,
) -> None:
    """Fill `X` and `y` from a pickled dict with the keys b"data" and `labels_key`."""
    batch = _unpickle(path, max(LARGEST_FILE_BYTES, 2 * X.nbytes))
    data, labels = batch.get(b"data"), batch.get(labels_key)

    expected = f"b'data' to be uint8 of shape {X.shape}"
    if not isinstance(data, _PickledArray) or data.array is None:
        damaged(path, expected, _kind(data))
    if data.array.shape != X.shape:
        damaged(path, expected, f"shape {data.array.shape}")

    expected = f"{labels_key!r} to be a list of {len(y):,} integers 0..{n_classes - 1}"
    if not isinstance(labels, list):
        damaged(path, expected, _kind(labels))
    if len(labels) != len(y):
        damaged(path, expected, f"{len(labels):,} of them")
    # By type, as True and 1.0 would pass for labels otherwise.
    if set(map(type, labels)) != {int} or min(labels) < 0 or max(labels) >= n_classes:
        i = next(i for i, v in enumerate(labels) if type(v) is not int or not 0 <= v < n_classes)
        # Only a number of ordinary size is worth printing, and the file may have any.
        plain = type(labels[i]) is int and abs(labels[i]) < 1 << 63
        damaged(path, expected, f"{labels[i] if plain else _kind(labels[i])} at position {i}")
    X[...] = data.array
    y[...] = labels


def read_python_class_names(path: Path, key: bytes = b"label_names") -> tuple[str, ...]:
    """Return the names of a pickled dict with this key."""
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        damaged(path, f"{key!r} to be a list of byte strings", _kind(names))
    return tuple(name.decode("ascii", "replace") for name in names)


def _kind(found: object) -> str:
    return "nothing" if found is None else f"a value of type {type(found).__name__.strip('_')}"


# A pickle is a program. It may name any importable object, call it with arguments of its choice
# (REDUCE), hand it a state (BUILD) and so run what it likes. Letting it name numpy.ndarray and
# numpy.dtype is not harmless either: these can then be called at will, and a forged state reaches
# NumPy's C code. Here every name that a pickled array needs stands for an object of this module
# instead, which checks what it is given; the pickle never gets hold of anything of NumPy's.


class _ForbiddenGlobalError(Exception):
    """A pickle names something other than what an array of bytes is made of."""


class _ForeignArrayError(Exception):
    """A pickle builds an array of another kind than bytes."""


class _StandIn:
    """What a pickle may name: nothing can be stored on it, and it is called with checks."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object] | None = None) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        if self._call is None:
            raise _ForeignArrayError("a malformed array")
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _ForeignArrayError("a malformed array")


class _PickledDtype:
    """Stands for the one dtype that is read, uint8."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore the state: byte order and alignment mean nothing to bytes."""


class _PickledArray:
    """Stands for an array of bytes; `array` is a read-only view of the bytes in the pickle."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: npt.NDArray[np.uint8] | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _PickledDtype(), bool(fortran_order), bytes(content)):
                pass
            case _:
                raise _ForeignArrayError("a malformed array")
        order: Any = "F" if fortran_order else "C"
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order=order)


def _dtype(code: object = None, *flags: object) -> _PickledDtype:
    if code not in (b"u1", "u1", b"|u1", "|u1"):
        shown = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)
        raise _ForeignArrayError(f"an array of dtype {shown[:20]!r}")
    return _PickledDtype()


def _encode(text: object = None, encoding: object = None) -> bytes:
    """Return bytes, as Python 3 writes them for the protocol of Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _ForbiddenGlobalError("_codecs.encode with unusual arguments")
    return text.encode("latin1")


_make_array = _StandIn(lambda *arguments: _PickledArray())
_PICKLE_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _make_array,
    ("numpy._core.multiarray", "_reconstruct"): _make_array,
    ("numpy", "ndarray"): _StandIn(),  # mentioned, never called
    ("numpy", "dtype"): _StandIn(_dtype),
    ("_codecs", "encode"): _StandIn(_encode),
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _PICKLE_GLOBALS[module, name]
        except KeyError:
            raise _ForbiddenGlobalError(f"{module}.{name}"[:80]) from None


def _unpickle(path: Path, largest: int = LARGEST_FILE_BYTES) -> dict[object, object]:
    """Return the dict that a pickle of Python 2 holds; strings in it are bytes."""
    size = file_size(path)
    if size > largest:
        damaged(path, f"at most {largest:,} bytes", f"{size:,}")
    try:
        with path.open("rb") as file:
            content = _BatchUnpickler(file, encoding="bytes").load()
    except _ForbiddenGlobalError as error:
        raise DatasetError(
            f"{path} is not CIFAR-10: its pickle asks for {error}, which the data set does not "
            "contain and which could run foreign code. Nothing of it was run. Do not open this "
            "file with pickle; delete it and download CIFAR-10 again."
        ) from None
    except _ForeignArrayError as error:
        damaged(path, "arrays of uint8", str(error))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:
        # On bytes that are not a pickle, the unpickler raises nearly anything.
        reason = f"{type(error).__name__}: {error}"[:120]
        damaged(path, "a complete pickle", f"{size:,} bytes that cannot be read as one ({reason})")
    if not isinstance(content, dict):
        damaged(path, "a pickled dict", _kind(content))
    return content
