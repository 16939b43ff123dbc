"""The Python version of CIFAR-10: pickles, read without trusting them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.image_dataset import DatasetError, damaged, file_size, reading
from gpuclf.datasets.strict_pickle import (
    ForbiddenPickleError,
    MalformedPickleError,
    PickledArray,
    read_pickle,
)

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
    if not isinstance(data, PickledArray) or data.array is None:
        damaged(path, expected, _kind(data))
    if data.array.shape != X.shape:
        damaged(path, expected, f"shape {data.array.shape}")

    if labels is None and b"fine_labels" in batch:
        damaged(path, "b'labels'", "b'fine_labels': this is a file of CIFAR-100")
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
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        damaged(path, f"{key!r} to be a list of strings", _kind(names))
    return tuple(n if isinstance(n, str) else n.decode("ascii", "replace") for n in names)


def _kind(found: object) -> str:
    return "nothing" if found is None else f"a value of type {type(found).__name__.strip('_')}"


def _unpickle(path: Path, largest: int = LARGEST_FILE_BYTES) -> dict[bytes, object]:
    """Return the dict that a pickle holds; its keys are bytes, as Python 2 wrote them."""
    size = file_size(path)
    if size > largest:
        damaged(path, f"at most {largest:,} bytes", f"{size:,}")
    with reading(path), path.open("rb") as file:
        data = file.read(size)
    try:
        content = read_pickle(data)
    except ForbiddenPickleError as error:
        raise DatasetError(
            f"{path} is not CIFAR-10: its pickle asks for {error}, which the data set does not "
            "contain. Nothing of it was run. Do not open this file with pickle, where it could "
            "run foreign code; delete it and download CIFAR-10 again."
        ) from None
    except MalformedPickleError as error:
        found = f"{size:,} bytes that cannot be read as one ({error})"
        damaged(path, "a complete pickle of lists and arrays of uint8", found)
    if not isinstance(content, dict):
        damaged(path, "a pickled dict", _kind(content))
    # Opened as text and saved again by Python 3, keys are text.
    return {
        k if isinstance(k, bytes) else k.encode("utf-8", "replace"): content[k] for k in content
    }
