"""MNIST, Fashion-MNIST and their kin, in the IDX files they come in."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.image_dataset import DatasetError, ImageDataset, file_size

__all__ = ["find_idx_files", "read_idx", "read_idx_dataset"]

_NAME = re.compile(
    r"(?P<kind>.*?)(?P<part>train|t10k|test)-(?P<what>images|labels)[.-]idx[13]-ubyte(\.gz)?"
)
_FOLDERS = (".", "raw", "MNIST/raw", "FashionMNIST/raw")  # the latter are torchvision's
_UNSIGNED_BYTES = 8
_CHUNK_BYTES = 1 << 24
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip


def find_idx_files(path: Path) -> dict[tuple[str, str], Path]:
    """Return the files of one data set, for ("train" or "test", "images" or "labels").

    Parameters
    ----------
    path : Path
        A folder with them (or with ``raw/``), or one of them.

    Raises
    ------
    DatasetError
        If several data sets lie in the folder.
    """
    if path.is_file():
        match = _NAME.fullmatch(path.name)
        return _files_in(path.parent, match["kind"]) if match else {}
    for name in _FOLDERS:
        folder = path / name
        if not folder.is_dir():
            continue
        matches = [m for entry in sorted(folder.iterdir()) if (m := _NAME.fullmatch(entry.name))]
        kinds = sorted({match["kind"] for match in matches})
        if len(kinds) > 1:
            raise DatasetError(
                f"{folder} has the IDX files of several data sets: {', '.join(map(repr, kinds))}. "
                f"Give one of the files, such as {folder / matches[0][0]}."
            )
        if kinds:
            return _files_in(folder, kinds[0])
    return {}


def _files_in(folder: Path, kind: str) -> dict[tuple[str, str], Path]:
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):  # a file that is unpacked comes before its .gz
        match = _NAME.fullmatch(path.name)
        if match and match["kind"] == kind:
            part = "train" if match["part"] == "train" else "test"
            files.setdefault((part, match["what"]), path)
    return files


def read_idx_dataset(path: Path) -> ImageDataset:
    """Read the files that :func:`find_idx_files` finds; rows are single grey planes.

    Raises
    ------
    DatasetError
        If a file is missing or not what it should be.
    """
    files = find_idx_files(path)
    parts: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]] = []
    for part in ("train", "test"):
        if part == "test" and not any(key[0] == "test" for key in files):
            continue
        missing = [what for what in ("images", "labels") if (part, what) not in files]
        if missing:
            raise DatasetError(
                f"{path} holds {', '.join(sorted(p.name for p in files.values()))}, but not the "
                f"{' and '.join(missing)} of the {part} part. Get the files whole."
            )
        images, labels = files[part, "images"], files[part, "labels"]
        X, y = read_idx(images, 3), read_idx(labels, 1).astype(np.int64)
        if len(X) != len(y):
            raise DatasetError(f"{images} has {len(X):,} images, {labels} {len(y):,} labels.")
        parts.append((X, y))
    if len(parts) == 1:
        parts.append((parts[0][0][:0], parts[0][1][:0]))
    (X, y), (X_test, y_test) = parts
    if X.shape[1:] != X_test.shape[1:]:
        raise DatasetError(
            f"{path} has training images of {X.shape[1:]} and test images of {X_test.shape[1:]}."
        )
    n_classes = int(max(y.max(initial=0), y_test.max(initial=0))) + 1
    # The two data sets differ in nothing but their pixels and what their folder is called.
    is_fashion = "fashion" in str(path.resolve()).lower()
    digits = tuple(str(label) for label in range(n_classes))
    name = "Fashion-MNIST" if is_fashion else "MNIST"
    height, width = X.shape[1:]
    return ImageDataset(
        *(X.reshape(-1, height * width), y, X_test.reshape(-1, height * width), y_test),
        name=name if n_classes == 10 else path.resolve().name,
        class_names=_FASHION if is_fashion and n_classes == 10 else digits,
        source=f"IDX files of {files['train', 'images'].parent}",
        image_shape=(1, height, width),
    )


def read_idx(path: Path, n_axes: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, which may be gzipped.

    The header is checked against the file's length before memory is taken.

    Notes
    -----
    Format: two bytes 0, the type (8: unsigned bytes), the number of axes, the length of each as
    four bytes, the most significant first, then the values, row-major.
    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
    """
    size = file_size(path)
    is_zipped = path.suffix == ".gz"
    try:
        file: Any
        with gzip.open(path, "rb") if is_zipped else path.open("rb") as file:
            shape = _read_header(file, path, n_axes)
            n = math.prod(shape)
            start = 4 + 4 * n_axes
            there = (_unpacked_size(file, start + n) if is_zipped else size) - start
            if there != n:
                found = f"{there:,}" if there < n or not is_zipped else "more"
                raise _damaged(path, f"{n:,} bytes of values, as its header says", found)
            file.seek(start)
            return _read_values(file, path, n).reshape(shape)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, "a complete gzipped file", str(error)) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_header(file: IO[bytes], path: Path, n_axes: int) -> tuple[int, ...]:
    magic = bytes((0, 0, _UNSIGNED_BYTES, n_axes))
    found = file.read(4)
    if found != magic:
        what = {1: "labels", 3: "images"}[n_axes]
        raise _damaged(
            path, f"the first bytes {magic.hex(' ')}, of {what}", found.hex(" ") or "none"
        )
    lengths = file.read(4 * n_axes)
    if len(lengths) < 4 * n_axes:
        raise _damaged(path, f"{n_axes} lengths of axes", f"{len(lengths)} bytes")
    shape = tuple(np.frombuffer(lengths, ">u4").tolist())
    if min(shape) == 0:
        raise _damaged(path, "axes of at least 1", f"shape {shape}")
    return shape


def _unpacked_size(file: IO[bytes], enough: int) -> int:
    """Return how long a stream is, up to somewhat more than enough; nothing of it is kept."""
    file.seek(0)
    size = 0
    while size <= enough and (got := len(file.read(_CHUNK_BYTES))):
        size += got
    return size


def _read_values(file: Any, path: Path, n: int) -> npt.NDArray[np.uint8]:
    values = np.empty(n, np.uint8)
    buffer, done = values.data, 0
    while done < n:
        got = file.readinto(buffer[done : done + _CHUNK_BYTES])
        if not got:
            raise _damaged(path, f"{n:,} values", f"{done:,}")
        done += got
    return values


def _damaged(path: Path, expected: str, found: str) -> DatasetError:
    return DatasetError(
        f"{path} is damaged or not an IDX file: expected {expected}, found {found}. Delete it and "
        "get it again."
    )
