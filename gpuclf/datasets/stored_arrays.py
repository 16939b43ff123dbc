"""Samples and labels in NumPy's own files, .npz and .npy, whose headers are checked first."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.image_dataset import DatasetError, DatasetNotFoundError, ImageDataset
from gpuclf.datasets.labels import encode_labels
from gpuclf.datasets.rows import as_bytes, as_rows

__all__ = ["find_npy_pairs", "read_npy", "read_npy_folder", "read_npz", "read_unlabelled"]

# What the arrays of an archive are called, in lower case: samples and labels to train on, to test.
_NAMES = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x", "y", "x_test", "y_test"),
    ("images", "labels", "test_images", "test_labels"),
    ("data", "labels", "test_data", "test_labels"),
)
_UNLABELLED = ("x", "images", "data", "x_test", "test_images", "test_data")
# The words for samples in a file's name, and what stands in their place in that of its labels.
_WORDS = (("x", "y"), ("images", "labels"), ("data", "labels"), ("samples", "labels"))
_DEFLATE_RATIO = 1040  # no deflated stream is longer by more


def read_npz(path: Path, layout: str | None = None) -> ImageDataset:
    """Read an archive of X and y, or of X_train, y_train, X_test, y_test."""
    with _members(path) as (archive, members):
        names = next((n for n in _NAMES if n[0] in members and n[1] in members), None)
        if names is None:
            raise DatasetError(
                f"{path} holds {_listed(members)}; "
                "expected X and y, or X_train, y_train, X_test and y_test: store them with "
                "numpy.savez(path, X=X, y=y)."
            )
        wanted = [name for name in names if name in members]
        if len(wanted) == 3:
            raise DatasetError(f"{path} holds {', '.join(wanted)}; one of {names} is missing.")
        arrays = [_read_member(archive, members[name], path) for name in wanted]
    return _dataset(arrays, path, layout)


def read_unlabelled(path: Path) -> npt.NDArray[Any]:
    """Read the samples of a file that need have no labels: an .npy, or an .npz with an X."""
    if path.suffix.lower() == ".npy":
        return _read_npy(path)
    with _members(path) as (archive, members):
        names = [*members] if len(members) == 1 else [n for n in _UNLABELLED if n in members]
        if len(names) != 1:
            raise DatasetError(
                f"{path} holds {_listed(members)}; expected the samples as X: store them with "
                "numpy.savez(path, X=X)."
            )
        return _read_member(archive, members[names[0]], path)


@contextmanager
def _members(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open an archive: its arrays by their names in lower case."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield (
                archive,
                {info.filename.removesuffix(".npy").lower(): info for info in archive.infolist()},
            )
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # zipfile raises nearly anything on altered archives
        raise DatasetError(f"{path} is damaged: {type(error).__name__}: {error}"[:300]) from error


def _listed(members: dict[str, zipfile.ZipInfo]) -> str:
    return ", ".join(map(repr, list(members)[:10])) or "no arrays"


def read_npy(path: Path, layout: str | None = None) -> ImageDataset:
    """Read samples, and their labels from the file beside."""
    labels = next((p for p in _label_files(path) if p.is_file() and p != path), None)
    if labels is None:
        expected = " or ".join(p.name for p in _label_files(path))
        raise DatasetNotFoundError(
            f"{path} has no labels beside it: expected {expected} in the same folder, one label a "
            "sample."
        )
    return _dataset([_read_npy(path), _read_npy(labels)], path, layout)


def find_npy_pairs(folder: Path) -> dict[str, Path]:
    """Return the files of samples that have labels beside them, as "train", "test" or ""."""
    pairs: dict[str, Path] = {}
    for path in sorted(folder.glob("*.npy")):
        if any(labels.is_file() for labels in _label_files(path, named=True)):
            words = re.split(r"[^a-z0-9]+", path.stem.lower())
            pairs.setdefault(next((part for part in ("train", "test") if part in words), ""), path)
    return pairs


def read_npy_folder(folder: Path, layout: str | None = None) -> ImageDataset:
    """Read X_train.npy, y_train.npy and the same of test, or X.npy and y.npy."""
    pairs = find_npy_pairs(folder)
    train = pairs.get("train", pairs.get(""))
    if train is None:
        raise DatasetError(f"{folder} has {pairs['test'].name}, but nothing to train on.")
    paths = [train] + ([pairs["test"]] if "test" in pairs else [])
    arrays = []
    for path in paths:
        labels = next(p for p in _label_files(path, named=True) if p.is_file())
        arrays += [_read_npy(path), _read_npy(labels)]
    return _dataset(arrays, folder, layout)


def _label_files(path: Path, *, named: bool = False) -> list[Path]:
    """Return where the labels of a file of samples may lie; `named` after it."""
    stems = []
    for samples, labels in _WORDS:
        word = rf"(?<![A-Za-z]){samples}(?![A-Za-z])"
        found = re.search(word, path.stem, re.IGNORECASE)
        if found:
            in_case = labels.upper() if found[0].isupper() and len(samples) > 1 else labels
            stems.append(path.stem[: found.start()] + in_case + path.stem[found.end() :])
    stems += [f"{path.stem}_labels", f"{path.stem}_y"]
    stems += [] if named else ["labels", "y"]
    return [path.with_name(f"{stem}.npy") for stem in dict.fromkeys(stems)]


def _dataset(arrays: list[npt.NDArray[Any]], path: Path, layout: str | None) -> ImageDataset:
    """Make a data set of X, y and, where there are four arrays, X_test, y_test."""
    where = str(path)
    X, y, *test = arrays
    for samples, labels in (arrays[:2], arrays[2:] or arrays[:2]):
        if samples.ndim == 0 or len(samples) != len(np.atleast_1d(labels)):
            raise DatasetError(
                f"{where} has {samples.shape} samples and {labels.shape} labels, expected as many "
                "labels as samples."
            )
    try:
        rows, image_shape, layout = as_rows(X, layout, name="X")
        rows = _usable(rows, image_shape)
        test_rows = rows[:0]
        if test:
            test_rows, test_shape, _ = as_rows(test[0], layout, name="X_test")
            test_rows = _usable(test_rows, test_shape)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: {error}") from error
    if test and (test_shape != image_shape or test_rows.shape[1:] != rows.shape[1:]):
        raise DatasetError(
            f"{where} has training samples of shape {X.shape[1:]} and test samples of "
            f"{test[0].shape[1:]}, expected the same."
        )
    if test_rows.dtype != rows.dtype:
        raise DatasetError(
            f"{where} has training samples of {rows.dtype} and test samples of {test_rows.dtype}, "
            "expected the same."
        )
    labels, test_labels, class_names = encode_labels(y, test[1] if test else None, where)
    return ImageDataset(
        *(rows, labels, test_rows, test_labels),
        name=path.stem,
        class_names=class_names,
        source=where,
        image_shape=image_shape,
    )


def _usable(rows: npt.NDArray[Any], image_shape: tuple[int, int, int] | None) -> npt.NDArray[Any]:
    """Return images as bytes, and rows of floats as they are: they may be features."""
    if image_shape is None and rows.dtype.kind == "f":
        return rows
    return np.asarray(as_bytes(rows, "X"))


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        with path.open("rb") as file:
            return _read_array(file, path.stat().st_size, path.name)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # the header is Python's own notation: it fails in many ways
        raise DatasetError(f"{path} is damaged: {type(error).__name__}: {error}"[:300]) from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> npt.NDArray[Any]:
    where = f"{path}, {info.filename}"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DatasetError(f"{where} is compressed in a way that numpy.savez does not use.")
    if info.file_size > _DEFLATE_RATIO * (info.compress_size + 1):
        raise DatasetError(
            f"{where} is damaged: {info.compress_size:,} bytes cannot hold {info.file_size:,}."
        )
    with archive.open(info) as file:
        return _read_array(file, info.file_size, where)


def _read_array(file: IO[bytes], size: int, where: str) -> npt.NDArray[Any]:
    """Read an array; nothing is allocated that the file does not hold."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DatasetError(f"{where} is of format {version}, expected plain numbers or text.")
    v1 = version == (1, 0)
    read_header = np.lib.format.read_array_header_1_0 if v1 else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.kind not in "biufUS" or dtype.itemsize == 0:
        raise DatasetError(
            f"{where} has dtype {dtype}, expected numbers, booleans or text. Objects are never "
            "loaded, as they could run foreign code: store the array with such a dtype."
        )
    n = math.prod(shape)
    if min(shape, default=1) < 0 or n * dtype.itemsize != size - file.tell():
        raise DatasetError(
            f"{where} is damaged: {dtype} of shape {shape} takes {n * dtype.itemsize:,} bytes, "
            f"{size - file.tell():,} are there."
        )
    array = np.empty(n, dtype)
    buffer = array.view(np.uint8).data
    done = 0
    while done < len(buffer):
        got = file.readinto(buffer[done : done + (1 << 24)])  # type: ignore[attr-defined]
        if not got:
            raise DatasetError(f"{where} ends after {done:,} of {len(buffer):,} bytes.")
        done += got
    file.read(1)  # an archive's checksum is compared at the end
    array = array.reshape(shape, order="F" if fortran_order else "C")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
