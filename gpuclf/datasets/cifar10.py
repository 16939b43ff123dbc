"""CIFAR-10 from its original files: located, downloaded, checked and read."""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.download import download as fetch
from gpuclf.datasets.image_dataset import (
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
    damaged,
    file_size,
    reading,
)
from gpuclf.datasets.pickled_batches import (
    LARGEST_FILE_BYTES,
    N_CLASSES,
    read_python_batch,
    read_python_class_names,
)

__all__ = ["load_cifar10"]

_PIXELS = 3072
_ROWS_PER_BATCH = 10_000
_CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_ENVIRONMENT_VARIABLE = "GPUCLF_DATA"


def load_cifar10(
    data_dir: str | os.PathLike[str] | None = None, download: bool = True
) -> ImageDataset:
    """Load CIFAR-10 from disk, downloading it first if it is not there.

    Parameters
    ----------
    data_dir : path-like, optional
        Folder with the data; by default the one that the environment variable ``GPUCLF_DATA``
        names, and without that gpuclf's folder in the user's cache. It may hold the six batch
        files themselves, ``cifar-10-batches-py/``, ``cifar-10-batches-bin/``, or one of the
        original archives ``cifar-10-python.tar.gz`` and ``cifar-10-binary.tar.gz``, which is then
        checked and unpacked beside itself. No other folder is tried.
    download : bool, default True
        Fetch the official archive (163 MiB) into that folder if CIFAR-10 is not there. A download
        that breaks off is continued where it stopped, by this call or by the next one.

    Returns
    -------
    ImageDataset
        50,000 training and 10,000 test images as bytes, in the order of the files. The Python and
        the binary version give identical arrays.

    Raises
    ------
    DatasetNotFoundError
        CIFAR-10 is not there and `download` is False. The message lists every place looked in.
    DatasetError
        A file is missing, cut short or not what it should be, or the download failed. The message
        names the file, what was expected, what was found, and what to do.

    Notes
    -----
    The Python version consists of pickles, which can run any code when opened with
    :func:`pickle.load`. Here they are read by an unpickler that knows how to build lists, dicts,
    strings, numbers and arrays of bytes and refuses everything else.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html

    Examples
    --------
    >>> X_train, y_train, X_test, y_test = load_cifar10()  # doctest: +SKIP
    >>> X_train.shape, X_train.dtype.name  # doctest: +SKIP
    ((50000, 3072), 'uint8')
    """
    root = _data_folder(data_dir)
    if root.exists() and not root.is_dir():
        raise DatasetError(f"{root} is not a folder. Give the folder that holds CIFAR-10.")

    found = _find_batches(root)
    if found is None:
        archive = next((v for v in _VERSIONS if (root / v.archive).is_file()), None)
        if archive is None:
            if not download:
                raise DatasetNotFoundError(_not_found_message(root))
            archive = _VERSIONS[0]
            fetch(archive.url, archive.md5, root)
        found = archive, _unpack(archive, root)
    version, folder = found
    return _read_dataset(version, folder)


def _data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the one folder that is searched and, if need be, downloaded into."""
    chosen = data_dir if data_dir is not None else os.environ.get(_ENVIRONMENT_VARIABLE) or None
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    # Not at the top: pooch takes longer to import than the rest of the package.
    import pooch  # type: ignore[import-untyped]

    return Path(pooch.os_cache("gpuclf")).expanduser()


def _find_batches(root: Path) -> tuple["_Version", Path] | None:
    """Return the version and folder of a complete set of batch files in `root`, if there is one."""
    incomplete = None
    for folder, version in _batch_folders(root):
        missing = [name for name in version.batches if not (folder / name).is_file()]
        if not missing:
            return version, folder
        if len(missing) < len(version.batches) and incomplete is None:
            incomplete = folder, missing
    if incomplete is None:
        return None
    folder, missing = incomplete
    raise DatasetError(
        f"{folder} holds an incomplete CIFAR-10: expected six batch files, but "
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. Delete the batch "
        "files that are there and load again with download=True, or unpack the original archive."
    )


def _batch_folders(root: Path) -> list[tuple[Path, "_Version"]]:
    return [(root, v) for v in _VERSIONS] + [(root / v.folder, v) for v in _VERSIONS]


def _not_found_message(root: Path) -> str:
    places = dict.fromkeys(str(folder) for folder, _ in _batch_folders(root))
    archives = [str(root / version.archive) for version in _VERSIONS]
    return "\n    ".join(
        ["CIFAR-10 was not found. Looked for its batch files and archives in", *places, *archives]
    ) + (
        "\nUse download=True to fetch it (163 MiB), pass the folder that has it as data_dir=, or "
        f"set the environment variable {_ENVIRONMENT_VARIABLE} to that folder."
    )


def _read_dataset(version: "_Version", folder: Path) -> ImageDataset:
    rows = _ROWS_PER_BATCH
    n_train = (len(version.batches) - 1) * rows
    X = np.empty((n_train + rows, _PIXELS), np.uint8)
    y = np.empty(n_train + rows, np.int64)
    for i, name in enumerate(version.batches):
        batch = slice(i * rows, (i + 1) * rows)
        version.read_batch(folder / name, X[batch], y[batch])
    names_file = folder / version.class_names
    class_names = version.read_class_names(names_file) if names_file.is_file() else _CLASS_NAMES
    if len(class_names) != N_CLASSES:
        damaged(names_file, f"{N_CLASSES} class names", f"{len(class_names)}")
    return ImageDataset(
        *(X[:n_train], y[:n_train], X[n_train:], y[n_train:]),
        name="CIFAR-10",
        class_names=class_names,
        source=f"CIFAR-10, {version.name} version, {folder}",
        image_shape=(3, 32, 32),
    )


def _read_binary_batch(path: Path, X: npt.NDArray[np.uint8], y: npt.NDArray[np.int64]) -> None:
    """Fill `X` and `y` from records of one label byte and 3,072 pixel bytes."""
    record = 1 + _PIXELS
    expected = _ROWS_PER_BATCH * record
    size = file_size(path)
    if size != expected:
        records_of = f"{_ROWS_PER_BATCH:,} records of {record:,}"
        damaged(path, f"{expected:,} bytes ({records_of})", f"{size:,} bytes")
    with reading(path):
        records = np.fromfile(path, np.uint8).reshape(_ROWS_PER_BATCH, record)
    labels = records[:, 0]
    if labels.max() >= N_CLASSES:
        i = int(np.argmax(labels >= N_CLASSES))
        damaged(path, f"labels 0..{N_CLASSES - 1}", f"label {labels[i]} in record {i}")
    X[...] = records[:, 1:]
    y[...] = labels


def _read_binary_class_names(path: Path) -> tuple[str, ...]:
    try:
        with reading(path):
            return tuple(path.read_text(encoding="ascii").split())
    except UnicodeDecodeError:
        damaged(path, "a class name a line, in ASCII", "other bytes")


def _unpack(version: "_Version", root: Path) -> Path:
    """Check the archive in `root` and unpack it there; return the folder of its batch files."""
    archive = root / version.archive
    target = root / version.folder
    wanted = {f"{version.folder}/{name}": name for name in (*version.batches, version.class_names)}
    _check_archive(version, archive)
    try:
        # Unpacked under another name, renamed when complete: an interruption leaves nothing that
        # could be taken for the data. The inner folder gets ordinary permissions, which
        # a temporary one does not have.
        with tempfile.TemporaryDirectory(prefix=f".{version.folder}-", dir=root) as temporary:
            folder = Path(temporary, version.folder)
            folder.mkdir()
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    if member.name in wanted and member.isreg():
                        _unpack_member(tar, member, folder / wanted[member.name])
            missing = [name for name in version.batches if not (folder / name).is_file()]
            if missing:
                damaged(archive, "six batch files in it", f"no {', '.join(missing)}")
            try:
                folder.rename(target)
            except OSError:
                # Another process may have been faster, which is as good.
                if not all((target / name).is_file() for name in version.batches):
                    raise
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        damaged(archive, "a complete gzipped tar archive", f"{type(error).__name__}: {error}")
    except OSError as error:
        raise DatasetError(
            f"{archive} could not be unpacked into {root}: {error}. Make that folder writable and "
            "see that 200 MB are free on its disk, or unpack the archive elsewhere and pass that "
            "folder as data_dir=."
        ) from error
    return target


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    # Only the bytes come from the archive. Its names, links, owners and modes never reach the file
    # system, which is stricter than tarfile's "data" filter and works before Python 3.11.4 too.
    if member.size > LARGEST_FILE_BYTES:
        raise tarfile.TarError(f"{member.name} would take {member.size:,} bytes")
    source = tar.extractfile(member)
    if source is None:
        raise tarfile.TarError(f"{member.name} has no content")
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file)


def _check_archive(version: "_Version", archive: Path) -> None:
    with reading(archive), archive.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    found = f"{digest.hexdigest()} ({file_size(archive):,} bytes)"
    if digest.hexdigest() != version.md5:
        damaged(archive, f"MD5 {version.md5}", f"MD5 {found}")


@dataclass(frozen=True)
class _Version:
    name: str
    folder: str
    batches: tuple[str, ...]
    class_names: str
    url: str
    md5: str
    read_batch: Callable[[Path, npt.NDArray[np.uint8], npt.NDArray[np.int64]], None]
    read_class_names: Callable[[Path], tuple[str, ...]]

    @property
    def archive(self) -> str:
        return self.url.rpartition("/")[2]


_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
# Checksums: https://www.cs.toronto.edu/~kriz/cifar.html
_VERSIONS = (
    _Version(
        name="python",
        folder="cifar-10-batches-py",
        batches=_BATCHES,
        class_names="batches.meta",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        read_batch=read_python_batch,
        read_class_names=read_python_class_names,
    ),
    _Version(
        name="binary",
        folder="cifar-10-batches-bin",
        batches=tuple(f"{name}.bin" for name in _BATCHES),
        class_names="batches.meta.txt",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        read_batch=_read_binary_batch,
        read_class_names=_read_binary_class_names,
    ),
)
